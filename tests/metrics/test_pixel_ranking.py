"""AUC and average precision of pixels: by hand, by slow loops, against scikit-learn, Quantus and the formulas of papers."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import (
    METRICS,
    average_precision,
    pixel_average_precision,
    pooled_average_precision,
    roc_auc,
    two_class_average_precision,
)

EXACT = {"rtol": 1e-12, "atol": 1e-9, "equal_nan": True}
FUNCTIONS = ("roc_auc", "average_precision", "two_class_average_precision")

MAP = torch.tensor([[[0.9, 0.5], [0.5, 0.1]]], dtype=torch.float64)
OBJECT = torch.tensor([[[True, False], [True, False]]])


def _case(seed: int, *shape: int, steps: int = 0) -> tuple[Tensor, Tensor]:
    """Random maps in [0, 1], with `steps + 1` distinct values if `steps` is given, and random masks with an object each."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(shape, generator=generator, dtype=torch.float64)
    masks = torch.rand(shape, generator=generator) > 0.7
    masks[:, 0, 0] = True
    masks[:, 0, 1] = False
    return (maps * steps).round() / steps if steps else maps, masks


# ---- checks that take the functions under test


def check_by_hand(metrics: Any) -> None:
    # Pairs of object and other: .9 > .5, .9 > .1, .5 = .5 (half), .5 > .1. Precision at .9 is 1 of 1, at .5 it is 2 of 3.
    assert metrics.roc_auc(MAP, OBJECT).item() == pytest.approx(87.5)
    assert metrics.average_precision(MAP, OBJECT).item() == pytest.approx(100 * (1 + 2 / 3) / 2)
    # Scores of the two classes: object .9 .5 .5 .1, background .1 .5 .5 .9; of the classes are .9, .5 and .5, .9.
    assert metrics.two_class_average_precision(MAP, OBJECT).item() == pytest.approx(100 * (1 + 1 + 4 / 6 + 4 / 6) / 4)
    # Steps at 0, 0.5 and 1: none reaches 1; 2 of 3 at 0.5 are the object.
    values, shares = metrics.pixel_average_precision(thresholds=2).per_image(MAP, OBJECT)
    assert shares.tolist() == [[0.5, 0.5, 0, 1, 0.75, 0]]
    assert values.item() == pytest.approx(100 * 2 / 3)
    sure = torch.tensor([[[1.0, 0.5]]]), torch.tensor([[[True, False]]])
    assert metrics.pixel_average_precision(thresholds=2).per_image(*sure)[0].item() == 100  # all of it at the first step


def check_slow_loops(metrics: Any) -> None:
    for seed, steps in product(range(3), (0, 3)):
        maps, masks = _case(seed, 3, 4, 5, steps=steps)
        for map_, mask, auc, precision in zip(
            maps.numpy(), masks.numpy(), metrics.roc_auc(maps, masks), metrics.average_precision(maps, masks), strict=True
        ):
            wins = [(a > b) + 0.5 * (a == b) for a in map_[mask] for b in map_[~mask]]
            assert auc.item() == pytest.approx(100 * np.mean(wins))
            assert precision.item() == pytest.approx(100 * np.mean([mask[map_ >= value].mean() for value in map_[mask]]))


def check_what_chance_scores(metrics: Any) -> None:
    flat = torch.full((1, 7, 9), 0.3)
    masks = torch.zeros(1, 7, 9, dtype=torch.bool)
    masks[0, 2:4, 3:6] = True
    assert metrics.roc_auc(flat, masks).item() == 50
    assert metrics.average_precision(flat, masks).item() == pytest.approx(100 * 6 / 63)
    assert metrics.two_class_average_precision(flat + 0.2, masks).item() == pytest.approx(50)


def check_images_without_a_value(metrics: Any) -> None:
    for name in FUNCTIONS:
        function = getattr(metrics, name)
        assert function(MAP, torch.zeros_like(OBJECT)).isnan().all(), name
        for bad in (math.nan, math.inf):
            maps = MAP.clone()
            maps[0, 0, 1] = bad
            assert function(maps, OBJECT).isnan().all(), name
    everything = torch.ones_like(OBJECT)
    assert metrics.roc_auc(MAP, everything).isnan().all()  # there is nothing to tell the object from
    assert metrics.average_precision(MAP, everything).item() == 100
    for maps in (MAP + 0.2, MAP - 0.2):
        assert metrics.two_class_average_precision(maps, OBJECT).isnan().all()
        assert torch.cat([part.flatten() for part in metrics.pixel_average_precision(4).per_image(maps, OBJECT)]).isnan().all()


def check_values_set_to_a_threshold_reach_it(metrics: Any) -> None:
    for number in range(11):
        maps = torch.full((1, 1, 2), number / 10)
        _, shares = metrics.pixel_average_precision(10).per_image(maps, torch.tensor([[[True, False]]]))
        assert shares[0, 11:].sum() == number + 1, number


MUTANTS = {
    "ties count for the map": ("first + last + 2", "2 * first + 2"),
    "ties count against the map": ("first + last + 2", "2 * last + 2"),
    "ties of precision are cut apart": (".gather(1, last)", ""),
    "zero pairs": ("flat.shape[1] - size)", "flat.shape[1])"),
    "the object's pairs are not taken off": ("- size * (size + 1)", "- size * size"),
    "ascending": ("descending=True", "descending=False"),
    "the background has no score of its own": ("torch.cat([flat, 1 - flat]", "torch.cat([flat, flat]"),
    "above only": ("right=True", "right=False"),
    "recall from above": ("prepend=torch.zeros_like(hits[..., :1])", "prepend=hits[..., :1]"),
    "from the lowest threshold": ("part.flip(-1) for", "part for"),
    "any scale": ("low=0, high=1)\n    return _area", "low=-9, high=9)\n    return _area"),
}

test_the_metrics_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.pixel_ranking"], MUTANTS
)


# ---- beside other implementations


@settings(deadline=None, max_examples=20)
@given(hnp.arrays(np.float64, (2, 4, 5), elements=st.integers(0, 6).map(lambda number: number / 6)), st.integers(0, 99))
def test_scikit_learn_agrees_exactly_with_and_without_ties(values, seed):
    maps, masks = torch.from_numpy(values), _case(seed, 2, 4, 5)[1]
    two = [np.stack([values, 1 - values], axis=1), np.stack([masks, ~masks], axis=1)]
    for place in range(2):
        truth, score = masks[place].numpy().ravel(), values[place].ravel()
        np.testing.assert_allclose(roc_auc(maps, masks)[place], 100 * roc_auc_score(truth, score), **EXACT)
        np.testing.assert_allclose(average_precision(maps, masks)[place], 100 * average_precision_score(truth, score), **EXACT)
        # The mAP of papers on vision transformers: one list of both classes, `get_ap_scores` of Chefer et al.
        both = 100 * average_precision_score(two[1][place].ravel(), two[0][place].ravel())
        np.testing.assert_allclose(two_class_average_precision(maps, masks)[place], both, **EXACT)


def test_quantus_agrees_on_auc_as_a_fraction():
    import quantus

    maps, masks = _case(5, 3, 6, 7, steps=4)
    metric = quantus.AUC(disable_warnings=True, display_progressbar=False)
    found = metric(
        None, np.zeros((3, 3, 6, 7)), np.zeros(3, int), a_batch=maps[:, None].numpy(), s_batch=masks[:, None].numpy()
    )
    np.testing.assert_allclose(100 * np.array(found), roc_auc(maps, masks), **EXACT)


def _wsol(maps: Any, masks: Any, steps: int) -> float:
    """The formula of `MaskEvaluator` in clovaai/wsolevaluation: histograms over all images, then precision times the rise."""
    edges = np.append(np.arange(steps) / steps, [1.0, 2.0, 3.0])
    hit, false = (np.histogram(maps[where], edges)[0][::-1].cumsum().astype(float) for where in (masks, ~masks))
    some = hit + false > 0
    precision = np.divide(hit, hit + false, out=np.zeros_like(hit), where=some)
    return 100 * float((precision[1:] * np.diff(hit / hit[-1])).sum())


def test_pooled_average_precision_is_that_of_the_papers_code_and_no_mean_over_images():
    maps, masks = _case(6, 5, 8, 9)
    maps[1] = maps[1] / 4  # so that common thresholds differ from those of each image
    values, shares = pixel_average_precision(50).per_image(maps, masks)
    pooled = pooled_average_precision(shares.mean(dim=0).numpy())
    assert pooled == pytest.approx(_wsol(maps.numpy(), masks.numpy(), 50))
    assert abs(values.mean().item() - pooled) > 0.5
    for value, map_, mask in zip(values, maps.numpy(), masks.numpy(), strict=True):
        assert value.item() == pytest.approx(_wsol(map_, mask, 50))
    # Many thresholds are as good as all values.
    fine = pooled_average_precision(pixel_average_precision(100_000).per_image(maps, masks)[1].mean(dim=0).numpy())
    assert fine == pytest.approx(100 * average_precision_score(masks.numpy().ravel(), maps.numpy().ravel()), abs=0.01)
    several = np.stack([shares.mean(dim=0), shares[0]])
    np.testing.assert_allclose(pooled_average_precision(several), [pooled, values[0]])


def test_bad_settings_are_refused_word_for_word():
    with pytest.raises(MetricError) as error:
        pixel_average_precision(0)
    assert str(error.value) == "thresholds is a number of steps, at least 1; got 0"
    for name in FUNCTIONS:
        with pytest.raises(MetricError, match="of one shape"):
            METRICS[name].per_image(MAP, OBJECT[:, :1])
