"""Random logit: by hand, against explanations of other classes, against Quantus, and in a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import xaieval
from tests.mutants import mutation_tests
from tests.noisy_images import drawn, pictures, quantus_scores, rows_do_not_depend_on_the_batch, tiny
from xaieval.errors import MetricError
from xaieval.metrics import METRICS, pearson, random_logit, ssim

TARGETS = torch.tensor([0, 3, 1, 2])
LOGITS = torch.tensor([[9.0, 1, 2, 3], [4, 9, 6, 7], [5, 8, 1, 2], [0, 0, 9, 1]])


def of_class(classes: Tensor) -> Tensor:
    """A map of one bright row at the number of the class."""
    maps = torch.zeros(len(classes), 12, 12)
    maps[torch.arange(len(classes)), 2 * classes] = 1
    return maps


# ---- checks that take the functions under test


def check_the_other_class(tested: Any) -> None:
    asked: list[list[int]] = []

    def explain_class(classes: Tensor) -> Tensor:
        asked.append(classes.tolist())
        return of_class(classes)

    def value(classes: str, draw: Any = None) -> Tensor:
        asked.clear()
        return tested.random_logit(classes, "pearson").per_image(of_class(TARGETS), LOGITS, TARGETS, explain_class, draw)

    numbers = torch.tensor([0.0, 0.4, 0.99, 0.7])  # of three other classes the first, the second, the third, the third
    value("random", lambda shape, name: numbers)
    assert asked == [[1, 1, 3, 3]]
    value("second")
    assert asked == [[3, 1, 0, 3]]
    found = value("all")
    assert asked == [[1, 0, 0, 0], [2, 1, 2, 1], [3, 2, 3, 3]]
    # One row of twelve against another: the correlation of two indicators of 1/12 that never meet.
    np.testing.assert_allclose(found, [-1 / 11] * 4, rtol=1e-6)


def check_the_mean_over_all_classes(tested: Any) -> None:
    def explain_class(classes: Tensor) -> Tensor:
        maps = of_class(classes)
        maps[classes == 1] = of_class(TARGETS)[classes == 1]  # class 1 has the map of the target
        return maps

    found = tested.random_logit("all", "pearson").per_image(of_class(TARGETS), LOGITS, TARGETS, explain_class, None)
    np.testing.assert_allclose(found, [(1 - 2 / 11) / 3, (1 - 2 / 11) / 3, -1 / 11, (1 - 2 / 11) / 3], rtol=1e-6)


def check_what_has_no_value_is_nan(tested: Any) -> None:
    def broken(classes: Tensor) -> Tensor:
        return of_class(classes).index_fill(0, torch.tensor([1]), torch.nan)

    found = tested.random_logit("second").per_image(of_class(TARGETS), LOGITS, TARGETS, broken, None)
    assert found.isnan().tolist() == [False, True, False, False]
    small = tested.random_logit("second").per_image(of_class(TARGETS)[:, :9, :9], LOGITS, TARGETS, None, None)
    assert small.isnan().all(), "smaller than the window of SSIM"


MUTANTS = {
    "the target too": ("numbers + (numbers >= targets)", "numbers"),
    "one class too many": ("logits.shape[1] - 1)", "logits.shape[1])"),
    "the last class never": ("(logits.shape[1] - 1)).long()", "(logits.shape[1] - 2)).long()"),
    "the first for the second": ("logits.scatter(1, targets[:, None], -torch.inf)", "logits"),
    "the worst": (".argmax(dim=1)", ".argmin(dim=1)"),
    "the largest for the mean": (".mean(dim=0)", ".amax(dim=0)"),
}

test_the_metric_passes, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.random_logit"], MUTANTS, TypeError, IndexError
)


# ---- other tools


def test_quantus_compares_maps_as_one_line_of_pixels():
    # Windows along the line reach over the end of one row of the image into the next, and see nothing of the row below.
    images = pictures(3, 1, side=16)
    model = tiny()
    with torch.no_grad():
        targets = model(images).argmax(dim=1)

    def explain(altered: Tensor, classes: Tensor) -> Tensor:
        weights = torch.linspace(0, 1, 16) ** (1 + classes.float()).view(-1, 1, 1)
        return (altered[:, 0].sigmoid() * weights).double()

    rng = np.random.RandomState(42)
    others = torch.tensor(rng.randint(0, 4, 3))
    others = others + (others >= targets)
    calls = [targets, others]
    theirs = quantus_scores(
        "RandomLogit", images, lambda altered: explain(altered, calls.pop(0)), num_classes=5, normalise=False
    )
    before, after = explain(images, targets), explain(images, others)
    skimage = pytest.importorskip("skimage.metrics")
    flat = [
        skimage.structural_similarity(a, b, data_range=float(max(a.max(), b.max()) - min(a.min(), b.min())))
        for a, b in zip(before.flatten(1).numpy(), after.flatten(1).numpy(), strict=True)
    ]
    np.testing.assert_allclose(theirs, flat, rtol=1e-6)
    ours = random_logit("second").per_image(
        before, torch.nn.functional.one_hot(others, 5).float(), targets, lambda c: explain(images, c), None
    )
    np.testing.assert_allclose(ours, ssim(before, after))
    assert np.abs(ours.numpy() - theirs).min() > 0.01


# ---- in a run, settings, errors


@pytest.mark.parametrize("classes", ["random", "second", "all"])
def test_a_run_compares_with_the_maps_that_explain_gives_for_these_classes(classes):
    images, model = pictures(), tiny()
    found = xaieval.score(tiny(), [images], ["2"], "layercam", [random_logit(classes, "pearson")], progress=False).rows
    with torch.no_grad():
        logits = model(images)
    targets = logits.argmax(dim=1)
    maps = torch.stack([xaieval.explain(tiny(), images, "2", "layercam", target=number)["2"] for number in range(5)], dim=1)
    own = maps[torch.arange(5), targets]
    alike = torch.stack([pearson(own, maps[:, number]) for number in range(5)], dim=1)
    if classes == "all":
        expected = (alike.sum(dim=1) - 1) / 4
    elif classes == "second":
        expected = alike.gather(1, logits.topk(2).indices[:, 1:])[:, 0]
    else:
        other = (drawn(5)((), "random-logit") * 4).long()
        expected = alike.gather(1, (other + (other >= targets))[:, None])[:, 0]
    assert expected.isfinite().sum() >= 2
    np.testing.assert_allclose(found["random_logit"], expected, atol=1e-4)


def test_the_column_of_a_run_does_not_depend_on_the_batch_and_shows_maps_without_a_class():
    scores = rows_do_not_depend_on_the_batch([random_logit()], "random_logit", methods=("gradcam", "edges"))
    assert scores.summary().loc[("input", "edges"), "random_logit"] == pytest.approx(1)


def test_models_without_another_class_are_refused():
    protocol = xaieval.Protocol(confidence="identity")  # one output is a number; with "softmax" it is two classes
    with pytest.raises(MetricError, match="the model has one output; leave the metric out"):
        xaieval.score(tiny(classes=1), [pictures(2)], ["2"], "gradcam", "random_logit", protocol=protocol, progress=False)
    segmenter = torch.nn.Conv2d(3, 4, 3, padding=1)
    with pytest.raises(MetricError, match="only a classifier has, and the task is segmentation"):
        xaieval.score(segmenter, [pictures(2)], (), "edges", "random_logit", task="segmentation", progress=False)


def test_settings_are_kept_and_wrong_ones_refused():
    assert METRICS["random_logit"].settings == {"classes": "random", "similarity": "ssim"}
    assert METRICS["random_logit"].family == "randomisation"
    with pytest.raises(MetricError, match="no classes 'seconds'; did you mean 'second'"):
        random_logit("seconds")
    with pytest.raises(MetricError, match="no similarity 'cosine'"):
        random_logit(similarity="cosine")
