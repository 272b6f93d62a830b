"""Relative stability: by hand, by a slow loop, against Quantus with the same noise, and in a run."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import xaieval
from tests.mutants import mutation_tests
from tests.noisy_images import drawn, looking, noises, pictures, quantus_scores, rows_do_not_depend_on_the_batch, tiny
from xaieval.errors import MetricError
from xaieval.metrics import (
    METRICS,
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
)

NAMES = ("relative_input_stability", "relative_representation_stability", "relative_output_stability")
WIDE = {"samples": 6, "radius": 0.9}  # noise under which the class of some noisy images changes


def explain(images: Tensor) -> Tensor:
    """Never 0, so that every element has a relative change."""
    return 3 + images[:, 0].sin() + images[:, 1] ** 2


class Seen(NamedTuple):
    attributions: Tensor
    predicted: Tensor
    logits: Tensor
    activation: Tensor | None


# ---- checks that take the functions under test


def check_by_hand(tested: Any) -> None:
    image, noisy = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[3.5, 4.5]]]])  # 0.75 of [0, 1) at radius 1

    def inspect(altered: Tensor) -> Seen:
        after = torch.equal(altered, noisy)
        assert after or torch.equal(altered, image)
        return Seen(
            attributions=torch.tensor([[[1.0, 4.0 if after else 2.0]]]),
            predicted=torch.tensor([7]),
            logits=torch.tensor([[5.0, 12.0]]) if after else torch.zeros(1, 2),
            activation=torch.tensor([[[[2.0, 3.0 if after else 2.0]]]]),
        )

    def value(name: str, change: str) -> float:
        metric = getattr(tested, name)(samples=1, radius=1, noise="uniform", change=change)
        return float(metric.per_image(image, inspect, lambda shape, name: torch.full((1, *shape), 0.75)))

    of_map = 2 / math.sqrt(5)
    assert value(NAMES[0], "norm") == pytest.approx(of_map / (math.sqrt(0.5) / 5))
    assert value(NAMES[1], "norm") == pytest.approx(of_map / (1 / math.sqrt(8)))
    assert value(NAMES[2], "norm") == pytest.approx(of_map / 13)
    assert value(NAMES[0], "elements") == pytest.approx(1 / math.hypot(0.5 / 3, 0.5 / 4))
    assert value(NAMES[1], "elements") == pytest.approx(1 / 0.5)
    assert value(NAMES[2], "elements") == pytest.approx(1 / 13)


def check_slow_loop(tested: Any) -> None:
    images, inspect = pictures(4), looking(explain)
    before, kept = inspect(images), np.zeros(4)
    expected = np.full((3, 4), math.nan)
    for added in noises("relative-stability", 6, 0.9, "gaussian", images):
        after = inspect(images + added)
        for number in range(4):
            if after.predicted[number] != before.predicted[number]:
                continue
            kept[number] += 1
            of_map = _relative(before.maps[number], after.maps[number])
            below = (
                _relative(images[number], images[number] + added[number]),
                _relative(before.activation[number], after.activation[number]),
                float((after.logits - before.logits)[number].norm()),
            )
            for place in range(3):
                expected[place, number] = np.nanmax([expected[place, number], of_map / below[place]])
    assert 0 < kept.sum() < 24, "some noises change the class and some do not"
    for name, wanted in zip(NAMES, expected, strict=True):
        np.testing.assert_allclose(getattr(tested, name)(**WIDE).per_image(images, inspect, drawn(4)), wanted, rtol=1e-3)


def _relative(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm() / before.norm())


def check_what_has_no_value_is_nan(tested: Any) -> None:
    images = torch.ones(4, 1, 2, 2)

    def inspect(altered: Tensor) -> Seen:
        after = not torch.equal(altered, images)
        maps = altered[:, 0] * torch.tensor([0.0, 1, 1, 1]).view(4, 1, 1)
        logits = torch.tensor([[0.0], [0.0], [0.0], [float(after)]])
        return Seen(maps, torch.tensor([0, int(after), 0, 0]), logits, None)

    # A map of zeros; another class; the same logits, by whose distance nothing can be divided.
    found = tested.relative_output_stability(samples=2).per_image(images, inspect, drawn(4))
    assert found.isnan().tolist() == [True, True, True, False]
    assert tested.relative_representation_stability(samples=2).per_image(images, inspect, drawn(4)).isnan().all()


MUTANTS = {
    "other classes too": (".masked_fill(after.predicted != before.predicted, -torch.inf)", ""),
    "the same class left out": ("after.predicted != before", "after.predicted == before"),
    "the smallest": ("reduce(torch.maximum", "reduce(torch.minimum"),
    "an epsilon": ("denominator.masked_fill(denominator == 0, torch.nan)", "(denominator + 1e-6)"),
    "images for the layer": ("change(before.activation, after.activation)", "change(images, changed)"),
    "logits relative too": ("- before.logits.double()).norm(dim=1)", "- before.logits.double()).norm(dim=1) / 2"),
    "elements by the norm": ("((after - before) / before).norm(dim=1)", "((after - before).norm(dim=1) / before.norm(dim=1))"),
    "elements of 0 left out": (".masked_fill((before == 0).any(dim=1), torch.nan)", ""),
}


def check_elements(tested: Any) -> None:
    zero, one = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    assert tested.elementwise_change(zero, one).isnan().all(), "no change of 0 is a share of it"
    assert float(tested.elementwise_change(torch.tensor([[2.0, -1.0]]), torch.tensor([[8.0, 3.0]]))) == 5


test_the_metrics_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.relative_stability"], MUTANTS
)


# ---- other tools


def test_by_elements_they_are_those_of_quantus_given_the_same_noise():
    images, small = pictures(4, 1), {"samples": 3, "radius": 0.02}
    added = noises("relative-stability", 3, 0.02, "gaussian", images)
    for name, settings in (
        ("RelativeInputStability", {}),
        ("RelativeOutputStability", {}),
        ("RelativeRepresentationStability", {"layer_names": ["0"]}),
    ):
        theirs = quantus_scores(name, images, explain, added, **settings)
        ours = METRICS_OF[name](**small, change="elements").per_image(images, looking(explain, layer=0), drawn(4))
        np.testing.assert_allclose(ours, theirs, rtol=2e-3)


METRICS_OF = {
    "RelativeInputStability": relative_input_stability,
    "RelativeOutputStability": relative_output_stability,
    "RelativeRepresentationStability": relative_representation_stability,
}


def test_one_noisy_image_of_another_class_makes_quantus_give_nan_and_is_left_out_here_as_in_the_paper():
    images = pictures(5)
    added = noises("relative-stability", 6, 0.9, "gaussian", images)
    theirs = quantus_scores("RelativeInputStability", images, explain, added)
    ours = relative_input_stability(**WIDE).per_image(images, looking(explain), drawn(5))
    assert (np.isnan(theirs) & ours.isfinite().numpy()).sum() >= 2


def test_the_noise_of_quantus_makes_every_pixel_brighter_and_ours_does_not():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Quantus' own imports and remarks
        quantus = pytest.importorskip("quantus", reason="a tool to compare with, which the package does not need")
        perturb = quantus.RelativeInputStability(disable_warnings=True).perturb_func
    flat = np.zeros((2, 500))
    theirs = perturb(arr=flat, indices=np.tile(np.arange(500), (2, 1)))
    assert theirs.min() >= 0.02
    assert theirs.max() <= 0.2
    [ours] = noises("relative-stability", 1, 0.05, "gaussian", torch.zeros(2, 1, 20, 25))
    assert abs(float(ours.mean())) < 0.01


def test_a_pixel_of_zero_alone_makes_the_number_of_quantus():
    images = pictures(2, 1)

    def almost_zero(altered: Tensor) -> Tensor:
        maps = explain(altered)
        maps[:, 0, 0] = 0.001 * (altered[:, 0, 0, 0] - images[:, 0, 0, 0])  # 0 on the images themselves
        return maps

    added = noises("relative-stability", 3, 0.05, "gaussian", images)
    with_it, without = (quantus_scores("RelativeInputStability", images, made, added) for made in (almost_zero, explain))
    assert (with_it > 3 * without).all()
    elements = relative_input_stability(samples=3, change="elements")
    assert elements.per_image(images, looking(almost_zero), drawn(2)).isnan().all()
    ours, others = (
        relative_input_stability(samples=3).per_image(images, looking(made), drawn(2)) for made in (almost_zero, explain)
    )
    np.testing.assert_allclose(ours, others, rtol=0.02)


# ---- in a run, settings, errors


def test_the_columns_of_a_run_do_not_depend_on_the_batch():
    few = [made(samples=2) for made in METRICS_OF.values()]
    scores = rows_do_not_depend_on_the_batch(few, *NAMES, rtol=1e-3)
    without_layer = scores.rows[scores.rows["method"] == "center"]
    assert without_layer["relative_representation_stability"].isna().all()
    assert (without_layer[["relative_input_stability", "relative_output_stability"]].dropna() == 0).all(axis=None)


def test_the_logits_and_the_layer_of_a_run_are_those_of_the_model():
    images, model = pictures(), tiny()
    scores = xaieval.score(
        tiny(), [images], ["2"], "gradcam", [made(samples=1) for made in METRICS_OF.values()], progress=False
    ).rows
    changed = images + noises("relative-stability", 1, 0.05, "gaussian", images)[0]
    with torch.no_grad():
        logits = (model(changed) - model(images)).norm(dim=1)
        layer = [_relative(*pair) for pair in zip(model[:3](images), model[:3](changed), strict=True)]
    image = [_relative(*pair) for pair in zip(images, changed, strict=True)]
    of_map = scores[NAMES[0]] * image
    assert (of_map.dropna() > 0).any()
    np.testing.assert_allclose(scores[NAMES[1]] * layer, of_map, rtol=1e-3)
    np.testing.assert_allclose(scores[NAMES[2]] * logits.numpy(), of_map, rtol=1e-3)


def test_only_classifiers_have_logits():
    model = torch.nn.Conv2d(3, 4, 3, padding=1)
    with pytest.raises(MetricError, match="only a classifier has, and the task is segmentation; leave the metric out"):
        xaieval.score(model, [pictures(2)], (), "edges", [relative_output_stability()], task="segmentation", progress=False)


def test_settings_are_kept_and_wrong_ones_refused():
    for name in NAMES:
        assert METRICS[name].settings == {"samples": 10, "radius": 0.05, "noise": "gaussian", "change": "norm"}
    for wrong, message in (
        ({"samples": 0}, "samples is at least 1, got 0"),
        ({"radius": -1}, "radius is positive, got -1"),
        ({"noise": "pink"}, "no noise 'pink'"),
        ({"change": "element"}, "no change 'element'; did you mean 'elements'"),
    ):
        with pytest.raises(MetricError, match=message):
            relative_input_stability(**wrong)
