"""Agreement of two methods: by hand, by going through all orders, against OpenXAI's formula, and in a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby, permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import xaieval
from tests.mutants import mutation_tests
from tests.noisy_images import pictures, rows_do_not_depend_on_the_batch, tiny
from xaieval.errors import ExplainerError, MetricError
from xaieval.metrics import (
    METRICS,
    feature_agreement,
    rank_agreement,
    sign_agreement,
    signed_rank_agreement,
    top_k_agreement,
)

KINDS = {
    "feature_agreement": {},
    "rank_agreement": {"ranks": True},
    "sign_agreement": {"signs": True},
    "signed_rank_agreement": {"ranks": True, "signs": True},
}
MADE = (feature_agreement, rank_agreement, sign_agreement, signed_rank_agreement)


def maps(*values: list[float]) -> Tensor:
    return torch.tensor(values)[:, None]


# ---- checks that take the functions under test


def check_by_hand(tested: Any) -> None:
    one, other = maps([5.0, -4, 3, 2, 1]), maps([4.0, 5, 1, 3, -2])
    # Top 2: cells 0 and 1 of both, in other order, cell 1 with another sign. Top 4: cells 0, 1, 2, 3 and 1, 0, 3, 4.
    found = {name: [float(tested.top_k_agreement(one, other, k / 5, **kind)) for k in (2, 4)] for name, kind in KINDS.items()}
    assert found == {
        "feature_agreement": [1, 0.75],
        "rank_agreement": [0, 0],
        "sign_agreement": [0.5, 0.5],
        "signed_rank_agreement": [0, 0],
    }
    other = maps([-5.0, -4, 1, 3, 2])
    assert [float(tested.top_k_agreement(one, other, 0.4, **kind)) for kind in KINDS.values()] == [1, 1, 0.5, 0.5]


def check_equal_values_have_all_orders(tested: Any) -> None:
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        one, other = (torch.randint(-2, 3, (2, 6), generator=generator).float().tolist() for _ in range(2))
        for share, (kind, number) in product((1 / 6, 0.5, 1.0), product(KINDS.values(), range(2))):
            found = float(tested.top_k_agreement(maps(one[number]), maps(other[number]), share, **kind))
            assert found == pytest.approx(_over_all_orders(one[number], other[number], round(6 * share), **kind))


def _orders(values: list[float]) -> Iterator[list[int]]:
    """All orders of the cells from the largest absolute value."""
    cells = sorted(range(len(values)), key=lambda cell: -abs(values[cell]))
    groups = [list(group) for _, group in groupby(cells, key=lambda cell: abs(values[cell]))]
    for parts in product(*(permutations(group) for group in groups)):
        yield [cell for part in parts for cell in part]


def _over_all_orders(one: list[float], other: list[float], k: int, ranks: bool = False, signs: bool = False) -> float:
    if len({abs(value) for value in one}) == 1 or len({abs(value) for value in other}) == 1:
        return pytest.approx(math.nan, nan_ok=True)
    found = []
    for first in _orders(one):
        for second in _orders(other):
            cells = set(first[:k]) & set(second[:k])
            cells = {cell for cell in cells if not ranks or first.index(cell) == second.index(cell)}
            found.append(sum(not signs or np.sign(one[cell]) == np.sign(other[cell]) for cell in cells) / k)
    return float(np.mean(found))


def check_what_has_no_order_is_nan(tested: Any) -> None:
    some = maps([3.0, 2, 1, 0])
    for bad in ([1.0, 1, 1, 1], [1.0, -1, 1, -1], [math.nan, 1, 2, 3], [math.inf, 1, 2, 3]):
        for pair in ((some, maps(bad)), (maps(bad), some)):
            assert tested.top_k_agreement(*pair).isnan().all()


def check_cells_are_means(tested: Any) -> None:
    fine, coarse = torch.randn(2, 12, 12), torch.randn(2, 12, 12)
    metric = tested.rank_agreement("other", 0.5, cells=3)
    means = [functional.avg_pool2d(each[:, None], 4)[:, 0] for each in (fine, coarse)]
    torch.testing.assert_close(metric.per_image(fine, lambda name: coarse), tested.top_k_agreement(*means, 0.5, ranks=True))
    pixels = tested.sign_agreement("other", cells=None).per_image(fine, lambda name: coarse)
    torch.testing.assert_close(pixels, tested.top_k_agreement(fine, coarse, signs=True))


MUTANTS = {
    "the smallest": ("values = -flat.double().abs()", "values = flat.double().abs()"),
    "with signs": ("values = -flat.double().abs()", "values = -flat.double()"),
    "of all cells": ("agreed.sum(dim=1) / k", "agreed.mean(dim=1)"),
    "equal values in order of the image": ("right=True)", "right=False) + 1"),
    "ranks beyond k": (".clamp(max=k) - torch.maximum", " - torch.maximum"),
    "one rank too few": ("torch.maximum(low, other_low) + 1)", "torch.maximum(low, other_low))"),
    "chances of one map": ("_chance(low, high, k) * _chance(other_low, other_high, k)", "_chance(low, high, k)"),
    "ranks of one map": (" / ((high - low + 1) * (other_high - other_low + 1))", " / (high - low + 1)"),
    "signs ignored": ("one.sign() == other.sign()", "one.sign() == one.sign()"),
    "no order is an order": ("(size.amin(dim=1) == size.amax(dim=1)) | ", ""),
    "pixels for cells": ("[min(cells, side) for side", "[side for side"),
}

test_the_agreement_passes, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.map_agreement"], MUTANTS
)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-3, 3), min_size=4, max_size=30), st.floats(0.05, 1), st.randoms(use_true_random=False))
def test_a_map_agrees_with_itself_and_strict_agreement_is_never_above_loose(values, share, random):
    one, other = maps([float(value) for value in values]), maps([float(value) for value in random.sample(values, len(values))])
    if len({abs(value) for value in values}) == 1:
        return
    feature, rank, sign, both = (float(top_k_agreement(one, other, share, **kind)) for kind in KINDS.values())
    assert -1e-9 <= both <= min(rank, sign) + 1e-9
    assert max(rank, sign) <= feature + 1e-9 <= 1 + 2e-9
    torch.testing.assert_close(top_k_agreement(one, other, share), top_k_agreement(other, one, share))
    distinct = one + torch.linspace(0, 0.1, one.shape[-1])
    if len(set(distinct.abs().flatten().tolist())) == len(values):
        assert float(top_k_agreement(distinct, distinct, share, ranks=True, signs=True)) == pytest.approx(1)


# ---- OpenXAI, which is not installed: its formulas, from `openxai/metrics.py`


def openxai(one: Tensor, other: Tensor, k: int, ranks: bool = False, signs: bool = False) -> list[float]:
    """Cells are named by index, dense rank and sign; sets of names are compared, or names place by place."""
    found = []
    for pair in zip(one.flatten(1).numpy(), other.flatten(1).numpy(), strict=True):
        names = []
        for values in pair:
            top = np.argsort(-np.abs(values), kind="stable")[:k]
            dense = np.unique(-np.abs(values), return_inverse=True)[1]
            names.append([(cell, dense[cell] if ranks else 0, np.sign(values[cell]) if signs else 0) for cell in top])
        same = sum(a == b for a, b in zip(*names, strict=True)) if ranks else len(set(names[0]) & set(names[1]))
        found.append(same / k)
    return found


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_they_are_those_of_openxai_where_no_values_are_equal(kind):
    one = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(1))
    other = one + 0.3 * torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(top_k_agreement(one, other, 0.25, **kind), openxai(one, other, 10, **kind), atol=1e-12)


def test_pixels_of_zero_agree_in_openxai_because_of_where_they_are():
    one, other = torch.zeros(2, 10, 10)
    one[9, 9], other[9, 8] = 1, 1  # two maps that have nothing in common
    pair = one[None], other[None]
    assert openxai(*pair, 25) == [24 / 25]
    # One cell above 99 that are equal, in both maps: by chance 24 of 99 of them are in, and the bright cell of the other too.
    chance = 24 / 99
    assert float(top_k_agreement(*pair, 0.25)) == pytest.approx((98 * chance**2 + 2 * chance) / 25)


# ---- in a run, settings, errors


def test_the_reference_is_that_of_the_run_or_made_for_it():
    images = pictures(4)
    given: dict[str, Any] = {
        "layers": ["0", "2"],
        "metrics": [feature_agreement("layercam"), rank_agreement("layercam")],
        "progress": False,
    }
    alone = xaieval.score(tiny(), [images], methods=("gradcam", "center"), **given).rows
    beside = xaieval.score(tiny(), [images], methods=("gradcam", "layercam", "center"), **given).rows
    keys = ["image_id", "layer", "method"]
    both = alone.merge(beside, on=keys, suffixes=("", "_beside"))
    assert len(both) == 4 * 3
    for name in ("feature_agreement", "rank_agreement"):
        np.testing.assert_allclose(both[name], both[f"{name}_beside"], atol=1e-6)
        assert beside.loc[beside["method"] == "layercam", name].dropna().eq(1).all()
        assert alone.loc[alone["method"] == "center", name].isna().all(), "it has no layer to make the other at"


def test_a_reference_without_a_layer_is_compared_with_every_method():
    rows = rows_do_not_depend_on_the_batch([made("edges") for made in MADE], *KINDS, methods=("layercam", "edges")).rows
    assert rows.loc[rows["method"] == "edges", list(KINDS)].eq(1).all(axis=None)
    assert rows.loc[rows["method"] == "layercam", "feature_agreement"].between(0, 1).all()


def test_settings_are_kept_and_wrong_ones_refused():
    for name in KINDS:
        assert METRICS[name].settings == {"reference": "gradcam", "share": 0.25, "cells": 7}
        assert METRICS[name].higher_is_better is None
    for made, message in (
        (lambda: feature_agreement(share=0), r"share of the cells lies in \(0, 1\], got 0"),
        (lambda: rank_agreement(cells=1), "cells is at least 2, or None for pixels, got 1"),
        (lambda: top_k_agreement(torch.ones(1, 2, 2), torch.ones(1, 2, 3)), r"got \[1, 2, 2\] and \[1, 2, 3\]"),
    ):
        with pytest.raises(MetricError, match=message):
            made()
    with pytest.raises(ExplainerError, match="no method 'gradcamm'; did you mean 'gradcam'"):
        xaieval.score(tiny(), [pictures(2)], ["2"], "layercam", sign_agreement("gradcamm"), progress=False)
