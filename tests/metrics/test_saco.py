"""SaCo: by hand, by the algorithm of the paper, and in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.evidence import asker, evidence, linear, maps_of, pictures, run_in_batches, tiny
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import METRICS, faithfulness_coefficient, saco


def by_the_paper(sums: Any, falls: Any) -> float:
    """Algorithm 1 of the paper: pair by pair."""
    coefficient = total = 0.0
    for first in range(len(sums) - 1):
        for second in range(first + 1, len(sums)):
            difference = float(sums[first]) - float(sums[second])
            weight = difference if falls[first] >= falls[second] else -difference
            coefficient += weight
            total += abs(weight)
    return coefficient / total


def check_by_hand(module: Any) -> None:
    # Pairs: 5 and 3 wrong, 5 and 0 right, 3 and 0 right: (-2 + 5 + 3) / 10.
    found = module.faithfulness_coefficient(torch.tensor([[5.0, 3.0, 0.0]]), torch.tensor([[0.2, 0.4, 0.1]]))
    assert float(found) == pytest.approx(0.6)


def check_equal_falls_count_for_the_map(module: Any) -> None:
    falls = torch.tensor([[0.1, 0.1 + 1e-9, 0.1]], dtype=torch.float64)
    sums = torch.tensor([[5.0, 3.0, 0.0]])
    assert module.faithfulness_coefficient(sums, torch.full((1, 3), 0.1)).tolist() == [1]
    assert float(module.faithfulness_coefficient(sums, falls)) < 1
    assert module.faithfulness_coefficient(sums, falls, torch.tensor([1e-6])).tolist() == [1]


def check_by_the_algorithm_of_the_paper(module: Any) -> None:
    images, maps = pictures(3), maps_of(pictures(3))
    known = evidence(asker(tiny(), images), images, maps)
    found = module.saco(groups=8).judge(known)[0]
    for number in range(3):
        order = np.argsort(-maps[number].flatten().numpy(), kind="stable").reshape(8, 8)
        sums, falls = [], []
        for group in order:
            changed = images[number].clone().flatten(1)
            changed[:, group] = images[number].mean()
            answer = known["ask"]([(changed.view(1, 1, 8, 8), torch.tensor([number]))])
            falls.append(float(known["confidence"][number] - answer))
            sums.append(float(maps[number].flatten()[group].double().sum()))
        assert float(found[number]) == pytest.approx(by_the_paper(sums, falls), abs=1e-9)


def check_the_right_order_is_1_and_the_reverse_is_less(module: Any) -> None:
    images = pictures(2).abs()
    known = evidence(linear(torch.ones(8, 8)), images, images[:, 0])
    assert module.saco(4, "zero").judge(known)[0].tolist() == [1, 1]
    assert (module.saco(4, "zero").judge(known | {"maps": 9 - images[:, 0]})[0] == -1).all()


def check_a_constant_map_has_no_value(module: Any) -> None:
    images = pictures(2)
    rounded = torch.full((8, 8), 0.3)
    rounded[::2] += 3e-8  # as bilinear upsampling leaves a constant map
    known = evidence(asker(tiny(), images), images, torch.stack([rounded, maps_of(images)[1]]))
    assert module.saco().judge(known)[0].isnan().tolist() == [True, False]
    rounded = torch.tensor([[1.0000001, 1.0, 1.0]])
    assert module.faithfulness_coefficient(rounded, torch.tensor([[0.3, 0.2, 0.1]])).isnan().all()


MUTANTS = {
    "pairs with themselves": ("offset=1", "offset=2"),
    "equal is wrong": (" - margin", " - margin + 1e-12"),
    "rounding counts": ("falls.double()[:, lower] - margin", "falls.double()[:, lower]"),
    "falls of the lower": ("falls.double()[:, higher] >=", "falls.double()[:, lower] >="),
    "pairs are not weighted": ("torch.where(holds, weights, -weights)", "torch.where(holds, 1.0, -1.0)"),
    "not divided": (".sum(dim=1) / total", ".sum(dim=1)"),
    "a constant map is right": ("high - low <= FLAT", "high - low < 0 * FLAT"),
    "another number of groups": ("perturbed_pixels(maps[0].numel(), groups)", "perturbed_pixels(maps[0].numel(), groups + 1)"),
}

test_the_formulas_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.saco"], MUTANTS, MetricError
)

NUMBERS = st.floats(-10, 10, width=32)


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float32, (2, 5), elements=NUMBERS))
def test_it_is_that_of_the_paper_for_any_sums_and_falls_and_in_minus_1_to_1(numbers):
    sums, falls = -np.sort(-numbers[0]), numbers[1]
    found = float(faithfulness_coefficient(torch.from_numpy(sums[None]), torch.from_numpy(falls[None])))
    if np.isnan(found):
        assert sums[0] - sums[-1] <= 1e-6 * np.abs(sums).max()
    else:
        assert found == pytest.approx(by_the_paper(sums, falls), abs=1e-9)
        assert -1 <= found <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: saco(groups=1), "groups is at least 2, got 1"),
        (lambda: saco(baseline="men"), "no baseline 'men'; did you mean 'mean'"),
        (lambda: faithfulness_coefficient(torch.ones(1, 3), torch.ones(1, 2)), r"of one shape, got \[1, 3\] and \[1, 2\]"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(MetricError, match=message):
        make()


def test_the_metric_in_a_run():
    scores = run_in_batches(["saco"], controls="matched")
    assert scores.manifest["metrics"][0]["settings"] == {"groups": 10, "baseline": "mean"}
    assert METRICS["saco"].higher_is_better
    assert any(column.startswith("saco_") for column in scores.rows), "matched controls are judged, too"
