"""Effective complexity: by hand, by a slow loop, against Quantus' count, and in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.metrics.evidence import asker, drawn, evidence, linear, maps_of, pictures, run_in_batches, tiny
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import METRICS, attributed_area, effective_complexity
from xaieval.metrics.perturbation import filling_by

# The linear confidence is 10; kept in the order of the map it is 6, then 9, then 9.5, then 10.
PICTURE = torch.tensor([[[[3.0, 6.0], [0.5, 0.5]]]])
MAP = torch.tensor([[[0.5, -0.9], [0.3, 0.1]]])


def check_by_hand(module: Any) -> None:
    known = evidence(linear(torch.ones(2, 2)), PICTURE, MAP)
    for tolerance, expected in ((1.0, 0), (0.41, 25), (0.11, 50), (0.1, 50), (0.06, 75), (0.04, 100)):
        found = module.effective_complexity(tolerance, steps=4, samples=1, baseline="zero").judge(known)[0]
        assert found.tolist() == [expected], tolerance
    found = module.effective_complexity(0.04, steps=(0.25, 0.5), samples=1, baseline="zero").judge(known)[0]
    assert found.tolist() == [100], "no step is enough, but all pixels are"


def check_by_a_slow_loop(module: Any) -> None:
    images, maps = pictures(3), maps_of(pictures(3))
    known = evidence(asker(tiny(), images), images, maps)
    noises = [
        filling_by("noise", images, known["protocol"], drawn(3), f"noise {number}")(torch.ones(())) for number in range(2)
    ]
    found = module.effective_complexity(0.05, steps=8, samples=2).judge(known)[0]
    for number in range(3):
        order = np.argsort(-maps[number].abs().flatten().numpy(), kind="stable")
        for count in range(0, 65, 8):
            changed = torch.stack([noise[number] for noise in noises]).flatten(2)
            changed[:, :, order[:count]] = images[number].flatten(1)[:, order[:count]]
            answers = known["ask"]([(changed.view(2, 1, 8, 8), torch.full((2,), number))])
            change = float((answers / known["confidence"][number] - 1).square().mean().sqrt())
            if change <= 0.05:
                break
        assert float(found[number]) == pytest.approx(100 * count / 64)
    assert len(set(found.tolist())) > 1


def check_the_area_by_hand(module: Any) -> None:
    maps = torch.tensor([[[5.0, -2.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, torch.nan], [0.0, 0.0]]])
    for threshold, expected in ((0.0, 75), (0.1, 50), (0.3, 50), (0.5, 25)):
        found = module.attributed_area(threshold).per_image(maps)
        assert float(found[0]) == expected
        assert found[1:].isnan().all()


MUTANTS = {
    "the kept are replaced": ("yield ranks >= count", "yield ranks < count"),
    "signs are kept": ("pixel_ranks(attributions.abs())", "pixel_ranks(attributions)"),
    "squares for roots": ("squares.sqrt() <=", "squares <="),
    "changes are absolute": ("tolerance * confidence.double().abs()[:, None]", "tolerance"),
    "changes cancel": (".square().mean(dim=1)", ".mean(dim=1).square()"),
    "the last": (".long().argmax(dim=1)", ".long().sub(1).abs().argmax(dim=1)"),
    "samples for steps": (".view(-1, samples, len(kept))", ".view(-1, len(kept), samples).mT"),
    "as high is above": ("sizes > threshold", "sizes >= threshold"),
    "the threshold is absolute": ("threshold * largest", "threshold"),
    "signs of areas": ("attributions.double().abs()", "attributions.double()"),
}

test_the_formulas_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.effective_complexity"], MUTANTS, MetricError
)


def test_the_area_is_the_count_of_quantus():
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    images = pictures(3)
    maps = maps_of(images) * (torch.arange(64).view(8, 8) % 3 > 0)
    metric = quantus.EffectiveComplexity(disable_warnings=True)
    theirs = metric(tiny(), images.numpy(), np.zeros(3, int), maps[:, None].numpy(), device="cpu")
    assert attributed_area().per_image(maps).tolist() == pytest.approx([100 * count / 64 for count in theirs])


def test_a_confidence_of_0_or_nan_has_no_value():
    known = evidence(linear(torch.ones(2, 2)), PICTURE, MAP)
    metric = effective_complexity(steps=2, samples=1)
    assert metric.judge(known | {"confidence": torch.zeros(1)})[0].isnan().all()
    assert metric.judge(known | {"ask": lambda blocks: torch.full((len(list(blocks)),), torch.nan)})[0].isnan().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: effective_complexity(0), "tolerance is positive, got 0"),
        (lambda: effective_complexity(steps=0), "steps is at least 1, got 0"),
        (lambda: effective_complexity(samples=0), "samples is at least 1, got 0"),
        (lambda: effective_complexity(baseline="n"), "no baseline 'n'"),
        (lambda: attributed_area(1), r"threshold is a share of the largest attribution, in \[0, 1\), got 1"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(MetricError, match=message):
        make()


def test_the_metrics_in_a_run():
    scores = run_in_batches([effective_complexity(steps=8, samples=2), "attributed_area"])
    assert scores.rows["effective_complexity"].between(0, 100).all()
    assert not any(METRICS[name].higher_is_better for name in ("effective_complexity", "attributed_area"))
