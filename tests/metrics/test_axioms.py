"""Axioms: by hand, by slow loops, against Quantus and captum, and in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import Tensor, nn

import xaieval
from tests.metrics.evidence import asker, evidence, linear, maps_of, pictures, run_in_batches, tiny
from tests.mutants import mutation_tests
from xaieval.config.protocol import Protocol
from xaieval.errors import MetricError
from xaieval.metrics import METRICS, completeness, completeness_error, input_invariance, non_sensitivity

NAMES = ("completeness", "non_sensitivity", "input_invariance")

# Replacing the pixels by 0 lowers the linear confidence by 1, 0, 0 and -4.
PICTURE = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
WEIGHTS = torch.tensor([[1.0, 0.0], [0.0, -1.0]])


def check_completeness_by_hand(module: Any) -> None:
    known = evidence(linear(WEIGHTS), PICTURE, torch.tensor([[[1.0, 0.0], [0.0, -4.0]]]))
    assert module.completeness().judge(known)[0].tolist() == [0]
    known["attributions"] = torch.tensor([[[-1.0, 0.0], [0.0, -0.5]]])
    assert float(module.completeness().judge(known)[0]) == pytest.approx(0.5)  # -1.5 for -3
    with_first = module.completeness(lambda images: torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]]))
    assert float(with_first.judge(known)[0]) == pytest.approx(0.7)  # -1.5 for -3 - 2
    found = module.completeness_error(torch.ones(3, 1, 1), torch.tensor([-1.0, 0.0, torch.nan]))
    assert found[0] == 2
    assert found[1:].isnan().all()


def check_non_sensitivity_by_hand(module: Any) -> None:
    # Only the first and the last pixel have an effect; the map marks the first and the second.
    known = evidence(linear(WEIGHTS), PICTURE, torch.tensor([[[-0.5, 1.0], [1e-9, 0.0]]]))
    assert module.non_sensitivity(2).judge(known)[0].tolist() == [50]
    assert module.non_sensitivity(9).judge(known)[0].tolist() == [50], "no more cells than pixels"
    assert module.non_sensitivity(2, threshold=0.6).judge(known)[0].tolist() == [75]
    scaled = known | {"attributions": 10 * known["attributions"]}
    assert module.non_sensitivity(2, threshold=0.6).judge(scaled)[0].tolist() == [75]
    assert module.non_sensitivity(2, threshold=2).judge(known)[0].tolist() == [25], "1 is no effect, 4 is one"
    assert module.non_sensitivity(1).judge(known)[0].tolist() == [0]


def check_a_map_of_zeros_marks_nothing_and_one_with_nan_has_no_value(module: Any) -> None:
    known = evidence(linear(WEIGHTS), PICTURE, torch.zeros(1, 2, 2))
    assert module.non_sensitivity(2).judge(known)[0].tolist() == [50]
    assert module.non_sensitivity(2).judge(known | {"attributions": torch.full((1, 2, 2), torch.nan)})[0].isnan().all()


def check_input_invariance_by_hand(module: Any) -> None:
    maps = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    metric, shifts = module.input_invariance(shift=0.5), []

    def again(shift: float) -> Tensor:
        shifts.append(shift)
        return maps + torch.tensor([0.0, 1.0])

    found = metric.per_image(maps, again)
    assert float(found[0]) == pytest.approx(0.2)
    assert found[1].isnan()
    assert shifts == [0.5]


MUTANTS = {
    "not relative": (" / change.abs()).masked_fill(change == 0", ").masked_fill(change == 0"),
    "the confidence alone": ("confidence.double() - before.double()", "confidence.double()"),
    "an epsilon": ("change.abs()).masked_fill(change == 0", "change.abs()).masked_fill(change == 7"),
    "signs do not matter": ("total, change = attributions.double()", "total, change = attributions.double().abs()"),
    "agreement": ("(counts > 0) != (falls", "(counts > 0) == (falls"),
    "rises do not count": ("falls.abs() > threshold", "falls > threshold"),
    "negative values do not count": ("sizes = attributions.double().abs()", "sizes = attributions.double()"),
    "absolute threshold": ("threshold * largest.view", "threshold + 0 * largest.view"),
    "the norm of the other": ("norm = before.norm", "norm = after.norm"),
    "zero is invariant": ("masked_fill(norm == 0, torch.nan)", "nan_to_num(0, posinf=0)"),
}

test_the_formulas_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.changes", "xaieval.metrics.axioms"], MUTANTS, MetricError
)


# ---- against captum and Quantus


def test_integrated_gradients_of_captum_are_complete_and_quantus_says_that_they_are_not():
    # Quantus asks whether two floats are equal to the last bit.
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    images, model = pictures(4), tiny()
    with torch.no_grad():
        targets = model(images).argmax(dim=1)

    def ask(blocks: Any) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(some)[range(len(of)), targets[of]] for some, of in blocks])

    maps, delta = IntegratedGradients(model).attribute(images, target=targets, n_steps=50, return_convergence_delta=True)
    known = evidence(ask, images, maps[:, 0].detach())
    found = completeness().judge(known)[0]
    change = known["confidence"] - ask([(torch.zeros_like(images), torch.arange(4))])
    np.testing.assert_allclose(found, (delta / change).abs(), atol=1e-5)
    assert (found < 1e-2).all()
    metric = quantus.Completeness(abs=False, normalise=False, disable_warnings=True, perturb_baseline=0.0)
    theirs = metric(model, images.numpy(), targets.numpy(), maps.detach().numpy(), device="cpu")
    assert not all(theirs)  # a sum may be right to the last bit by chance


def test_non_sensitivity_of_pixels_is_the_count_of_quantus():
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    images, model = pictures(3), tiny()
    images[:, :, 2:4] = 0  # what is 0 already has no effect
    maps = maps_of(images) * (torch.arange(64).view(8, 8) % 3 > 0)
    maps = maps / maps.abs().amax()  # quantus divides by the largest value of the whole batch
    maps[:, 0, 0] = 1
    with torch.no_grad():
        targets = model(images).argmax(dim=1).numpy()
    metric = quantus.NonSensitivity(disable_warnings=True, perturb_baseline=0.0)
    theirs = metric(model, images.numpy(), targets, maps[:, None].numpy(), softmax=True, device="cpu")
    ours = non_sensitivity(8).judge(evidence(asker(model, images), images, maps))[0]
    assert ours.tolist() == pytest.approx([100 * count / 64 for count in theirs])
    assert (ours > 10).all()


def test_non_sensitivity_of_quantus_stops_at_groups_of_pixels():
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    images = pictures(2)
    metric = quantus.NonSensitivity(features_in_step=4, disable_warnings=True, perturb_baseline=0.0)
    with pytest.raises(ValueError, match="could not be broadcast together"):
        metric(tiny(), images.numpy(), np.zeros(2, int), maps_of(images)[:, None].numpy(), softmax=True, device="cpu")


def test_the_shifted_image_of_quantus_has_a_pixel_that_is_not_shifted():
    # So its shifted model sees another image, and not even a gradient is invariant; ours are to rounding.
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    images = pictures(3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    targets, seen = model(images).argmax(dim=1).numpy(), []

    def explain(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
        given = torch.as_tensor(np.asarray(inputs), dtype=torch.float32).requires_grad_()
        seen.append(given.detach())
        return Saliency(model).attribute(given, target=torch.as_tensor(targets)).detach().numpy()

    maps = explain(model, images, targets)
    metric = quantus.InputInvariance(disable_warnings=True)
    assert metric(model, images.numpy(), targets, maps, explain_func=explain, device="cpu") == [False] * 3
    assert (seen[1] == images).flatten(1).sum(dim=1).tolist() == [1] * 3
    scores = xaieval.score(model, [images], "0", ["captum:Saliency"], ["input_invariance"], progress=False)
    assert scores.rows["input_invariance"].max() < 1e-4


# ---- the shifted model


class Named(nn.Module):
    """A model that takes its images by the name that those of transformers have."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny(3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.network(pixel_values)


def invariance(model: nn.Module, methods: Any, **choices: Any) -> Any:
    given = {"metrics": ["input_invariance"], "progress": False} | choices
    layer = "network.1" if isinstance(model, Named) else "1"
    scores = xaieval.score(model, [pictures(4, 3)], layer, methods, **given)
    return scores.rows.groupby("method")["input_invariance"].mean()


def test_maps_of_gradients_are_invariant_and_those_with_the_input_or_a_baseline_are_not():
    found = invariance(tiny(3), ["gradcam", "captum:Saliency", "captum:InputXGradient", "captum:IntegratedGradients"])
    assert found[["gradcam", "captum:Saliency"]].max() < 1e-4
    assert found[["captum:InputXGradient", "captum:IntegratedGradients"]].min() > 0.1
    assert invariance(Named(), ["captum:Saliency"]).max() < 1e-4


def test_the_maps_of_the_shifted_model_by_a_slow_way():
    images, model = pictures(4, 3).requires_grad_(), tiny(3)
    targets = model(images).argmax(dim=1)

    class Shifted(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            return model(given - 0.7)

    before = InputXGradient(model).attribute(images, target=targets).sum(dim=1)
    after = InputXGradient(Shifted()).attribute(images + 0.7, target=targets).sum(dim=1)
    expected = (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
    scores = xaieval.score(model, [images.detach()], "1", ["captum:InputXGradient"], [input_invariance(0.7)], progress=False)
    np.testing.assert_allclose(scores.rows["input_invariance"], expected.detach(), rtol=1e-4)
    assert not model._forward_pre_hooks, "the model is given back as it was"


def test_a_model_that_does_not_see_the_shift_taken_away_is_refused():
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = tiny(3)

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images)

    def call(model: nn.Module, images: Tensor) -> Tensor:
        return model(images.square())

    with pytest.raises(MetricError, match="a shift of the images that the model undoes changed its output"):
        xaieval.score(Doubled(), [pictures(4, 3)], "network.1", "gradcam", ["input_invariance"], forward=call, progress=False)


# ---- settings, and in a run


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: completeness("zeros"), "no baseline 'zeros'; did you mean 'zero'"),
        (lambda: completeness_error(torch.ones(2, 3, 3), torch.ones(3)), r"got \[2, 3, 3\] and \[3\]"),
        (lambda: non_sensitivity(0), "grid_size is at least 1, got 0"),
        (lambda: non_sensitivity(threshold=-1), "threshold is at least 0, got -1"),
        (lambda: non_sensitivity(baseline="zeros"), "no baseline 'zeros'"),
        (lambda: input_invariance(0), "shift is a number other than 0"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(MetricError, match=message):
        make()


def test_the_metrics_in_a_run():
    scores = run_in_batches(NAMES, methods=("captum:IntegratedGradients", "gradcam"), protocol=Protocol(confidence="identity"))
    found = scores.rows[scores.rows["method"] == "captum:IntegratedGradients"]
    assert found["completeness"].max() < 0.01
    assert not any(METRICS[name].higher_is_better for name in NAMES)
