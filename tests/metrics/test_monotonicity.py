"""Monotonicity: by hand, by slow loops, against Quantus, and in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from tests.metrics.evidence import asker, drawn, evidence, linear, maps_of, pictures, run_in_batches, tiny
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import METRICS, monotonicity, monotonicity_correlation
from xaieval.metrics.perturbation import filling_by

# Of a linear confidence the four pixels, in the order of the map, add 1, 2, -3 and 0.5.
PICTURE = torch.tensor([[[[1.0, 2.0], [3.0, 0.5]]]])
WEIGHTS = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
MAP = torch.tensor([[[-0.4, -0.3], [0.1, 0.2]]])


def by_hand(metric: Any) -> Any:
    return metric.judge(evidence(linear(WEIGHTS), PICTURE, MAP))


def check_three_of_four_steps_rise(module: Any) -> None:
    values, curve = by_hand(module.monotonicity(4, keep_curve=True))
    assert curve.tolist() == [[0, 1, 3, 0, 0.5]]
    assert values.tolist() == [75]
    assert by_hand(module.monotonicity((0, 0.25, 1)))[0].tolist() == [50]  # 1, then -0.5


def check_rounding_is_no_fall(module: Any) -> None:
    known = evidence(linear(WEIGHTS), PICTURE, MAP)
    for fall, expected in ((1e-9, 100), (1e-3, 0)):
        known["ask"] = lambda blocks, fall=fall: 1 - fall * torch.arange(len(list(blocks))).double()
        assert module.monotonicity(4).judge(known | {"confidence": torch.ones(1)})[0].tolist() == [expected]


def check_rank_correlation_by_hand(module: Any) -> None:
    found = by_hand(module.monotonicity_correlation(4, samples=1, baseline="zero"))[0]
    assert float(found) == pytest.approx(spearmanr([0.4, 0.3, 0.1, 0.2], [1, 4, 9, 0.25])[0])


def check_the_effect_is_the_mean_square_over_samples(module: Any) -> None:
    images = pictures(3)
    known = evidence(asker(tiny(), images), images, maps_of(images))
    found = module.monotonicity_correlation(samples=3, pixels_per_step=8).judge(known)[0]
    noises = [
        filling_by("noise", images, known["protocol"], drawn(3), f"noise {number}")(torch.ones(())) for number in range(3)
    ]
    for number in range(3):
        sizes = known["attributions"][number].abs().flatten().numpy()
        order, sums, effects = np.argsort(-sizes, kind="stable"), [], []
        for group in order.reshape(8, 8):
            changed = images[[number] * 3].clone().flatten(2)
            changed[:, :, group] = torch.stack([noise[number] for noise in noises]).flatten(2)[:, :, group]
            confidences = known["ask"]([(changed.view(3, 1, 8, 8), torch.full((3,), number))])
            effects.append(float((confidences - known["confidence"][number]).square().mean()))
            sums.append(sizes[group].sum())
        assert float(found[number]) == pytest.approx(spearmanr(sums, effects)[0], abs=1e-9)


MUTANTS = {
    "highest first": ("least_first=True", "least_first=False"),
    "pixels are removed": ("inserts=True)", "inserts=False)"),
    "every fall counts": ("= ROUNDING * confidence", "= 0 * confidence"),
    "a share for percent": ("(100 * rises)", "rises"),
    "signs are kept": ("sizes = attributions.abs()", "sizes = attributions"),
    "changes cancel": (".square().mean(dim=1)", ".mean(dim=1).abs()"),
    "samples for groups": (".view(-1, samples, groups)", ".view(-1, groups, samples).mT"),
}

test_the_formulas_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.monotonicity"], MUTANTS, MetricError
)


# ---- against Quantus


def by_quantus(metric: Any, model: nn.Module, images: Any, maps: Any, targets: Any) -> list[Any]:
    return metric(model, images.numpy(), targets.numpy(), maps[:, None].numpy(), softmax=True, device="cpu")


def test_monotonicity_of_quantus_holds_for_any_map_because_it_inserts_nothing():
    # It fills the image with the baseline and then replaces pixels by the baseline again.
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    images, model = pictures(4), tiny()
    with torch.no_grad():
        targets = model(images).argmax(dim=1)
    metric = quantus.Monotonicity(features_in_step=4, normalise=False, disable_warnings=True, perturb_baseline=0.0)
    maps = maps_of(images).abs()
    for some in (maps, 3 - maps):
        assert by_quantus(metric, model, images, some, targets) == [True] * 4
        ours = monotonicity(pixels_per_step=4).judge(evidence(asker(model, images), images, some))[0]
        assert (ours < 100).all()


def test_the_rank_correlation_is_that_of_quantus_for_a_fixed_baseline():
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    images, model = pictures(4), tiny()
    with torch.no_grad():
        targets = model(images).argmax(dim=1)
    metric = quantus.MonotonicityCorrelation(
        nr_samples=1, features_in_step=4, normalise=False, disable_warnings=True, perturb_baseline=0.0
    )
    theirs = by_quantus(metric, model, images, maps_of(images), targets)
    own = monotonicity_correlation(samples=1, baseline="zero", pixels_per_step=4)
    np.testing.assert_allclose(own.judge(evidence(asker(model, images), images, maps_of(images)))[0], theirs, atol=1e-6)


def test_one_tiny_confidence_in_a_batch_stops_quantus_and_not_us():
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    images, model = pictures(2), tiny()
    nn.init.normal_(model[-1].weight, std=4)
    with torch.no_grad():
        logits = model(images)
    targets = torch.stack([logits[0].argmin(), logits[1].argmax()])
    metric = quantus.MonotonicityCorrelation(nr_samples=1, features_in_step=8, disable_warnings=True, perturb_baseline=0.0)
    with pytest.raises(ValueError, match="NumPy boolean array indexing assignment"):
        by_quantus(metric, model, images, maps_of(images), targets)

    def ask(blocks: Any) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(some).double().softmax(1)[range(len(of)), targets[of]] for some, of in blocks])

    known = evidence(ask, images, maps_of(images))
    assert known["confidence"][0] < 1e-5
    assert monotonicity_correlation(8, 2).judge(known)[0].isfinite().all()


# ---- settings, and in a run


def test_a_confidence_that_is_no_number_has_no_value():
    known = evidence(linear(WEIGHTS), PICTURE, MAP) | {"ask": lambda blocks: torch.full((len(list(blocks)),), torch.nan)}
    for metric in (monotonicity(4), monotonicity_correlation(4, 1)):
        assert metric.judge(known)[0].isnan().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: monotonicity(0), "steps is at least 1, got 0"),
        (lambda: monotonicity(baseline="nois"), "no baseline 'nois'; did you mean 'noise'"),
        (lambda: monotonicity_correlation(samples=0), "samples is at least 1, got 0"),
        (lambda: monotonicity_correlation(pixels_per_step=0), "pixels_per_step is at least 1, got 0"),
        (lambda: monotonicity_correlation(baseline="nois"), "no baseline 'nois'"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(MetricError, match=message):
        make()


def test_the_metrics_in_a_run():
    scores = run_in_batches([monotonicity(8, keep_curve=True), monotonicity_correlation(8, 2)])
    assert {len(curve) for curve in scores.rows["monotonicity_curve"]} == {9}
    assert scores.manifest["metrics"][1]["settings"]["samples"] == 2
    assert all(METRICS[name].higher_is_better for name in ("monotonicity", "monotonicity_correlation"))
