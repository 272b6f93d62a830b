"""Passes that no metric needs are not made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from xaieval import Scores, score
from xaieval.evaluation import matched
from xaieval.metrics import (
    METRICS,
    Metric,
    average_sensitivity,
    completeness,
    continuity,
    efficient_mprt,
    faithfulness_correlation,
    feature_agreement,
    infidelity,
    input_invariance,
    local_lipschitz,
    max_sensitivity,
    mprt,
    mu_fidelity,
    non_sensitivity,
    r_oms,
    random_logit,
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
    sensitivity_n,
    sign_agreement,
    stability_flip,
    stability_shift,
)

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
WITHOUT = ("sparseness", "entropy")
MASKED = ("average_drop", "drop_in_deletion", "adcc")


class Counting(nn.Module):
    """A small network that counts the images it is shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(4, 3)
        self.shown = 0

    def forward(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        return self.head(self.features(images).mean(dim=(2, 3)))


def shown(*metrics: str, **options: object) -> int:
    model = Counting()
    score(model, [IMAGES], "features", metrics=metrics, fast=False, progress=False, **options)
    return model.shown


def run(*metrics: str, **options: object) -> Scores:
    return score(Counting(), [IMAGES], "features", ["gradcam", "uniform"], metrics, progress=False, **options)


def test_metrics_of_maps_alone_need_no_masked_image():
    few, once, both = shown("sparseness"), shown("average_drop"), shown("average_drop", "drop_in_deletion")
    assert (once - few, both - once) == (4, 4)
    assert shown(*WITHOUT) == few


def test_matched_controls_of_curves_need_no_masked_image():
    fewer, more = shown("deletion", controls="matched"), shown("deletion", "average_drop", controls="matched")
    assert more - fewer == 4 * 5  # of the method and its four controls


def test_rows_without_masked_images_count(tmp_path):
    scores = run(*WITHOUT)
    assert set(scores.rows["status"]) <= {"ok", "constant_map"}
    assert scores.rows["masked_confidence"].isna().all()
    assert scores.rows[["confidence", "mask_area"]].notna().all(axis=None)
    assert (scores.summary()["n_images"] == 4).all()
    scores.save(tmp_path)
    pd.testing.assert_frame_equal(Scores.load(tmp_path).rows, scores.rows)
    scores.to_html(tmp_path / "report.html")
    assert "masked confidence" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("metric", MASKED)
def test_values_are_the_same_beside_a_metric_that_needs_them(metric):
    alone, beside = run(*WITHOUT, "insertion", controls="matched"), run(*WITHOUT, "insertion", metric, controls="matched")
    columns = [name for name in alone.rows if name != "masked_confidence"]
    pd.testing.assert_frame_equal(alone.rows[columns], beside.rows[columns], check_exact=True)


@pytest.mark.parametrize(
    ("metric", "method", "passes"),
    [
        (max_sensitivity, "captum:Saliency", 1),  # its own
        (local_lipschitz, "captum:Saliency", 1),
        (relative_output_stability, "captum:Saliency", 2),  # and one for what the model says
        (max_sensitivity, "gradcam", 1),  # the pass that gives activations
    ],
)
def test_a_method_that_makes_its_own_passes_needs_no_other_for_maps(metric, method, passes):
    layers = () if method != "gradcam" else "features"
    few, more = (counted([metric(samples)], [method], layers)[1] for samples in (2, 5))
    assert more - few == 3 * passes * len(IMAGES)


LAYERS, METHODS = ("features.0", "features.1"), ("gradcam", "layercam", "uniform")
ALTERED = [
    *(faithfulness_correlation(3, 0.1), sensitivity_n((0.1, 0.5), 2), mu_fidelity(4, samples=3), completeness()),
    *(non_sensitivity(2), infidelity(3), r_oms(segments=8), max_sensitivity(2), average_sensitivity(2), stability_shift()),
    *(stability_flip(), local_lipschitz(2), continuity(2), relative_input_stability(2), relative_output_stability(2)),
    *(relative_representation_stability(2), random_logit(), mprt(), efficient_mprt(), input_invariance()),
]


def counted(metrics: Sequence[Metric], methods: Sequence[str], layers: Sequence[str], **options: Any) -> tuple[Scores, int]:
    model = Counting()
    return score(model, [IMAGES], layers, methods, metrics, fast=False, progress=False, **options), model.shown


def test_altered_images_are_those_of_all_metrics_that_know_them_beforehand():
    assert {metric.name for metric in METRICS.values() if metric.altered_by} == {
        *(metric.name for metric in ALTERED),
        "smooth_mprt",
    }


def test_images_that_no_map_alters_are_shown_once_for_all_maps():
    def beyond(methods: Sequence[str], layers: Sequence[str]) -> int:
        return counted(ALTERED, methods, layers)[1] - counted([METRICS["sparseness"]], methods, layers)[1]

    assert beyond(METHODS, LAYERS) == beyond(METHODS[:1], LAYERS[-1:]) > 40 * len(IMAGES)


def test_what_is_shared_has_the_values_of_passes_for_each_map():
    judged = METRICS["average_drop"]  # which matched controls need
    apart = [replace(metric, altered_by="") for metric in ALTERED]
    (shared, fewer), (alone, more) = (
        counted([*some, judged], METHODS, LAYERS, controls="matched") for some in (ALTERED, apart)
    )
    pd.testing.assert_frame_equal(shared.rows, alone.rows, check_exact=True)
    assert fewer < more / 3


def test_metrics_of_the_same_altered_images_share_them():
    for together in (
        [max_sensitivity(3), average_sensitivity(3)],
        [relative_input_stability(2), relative_representation_stability(2), relative_output_stability(2)],
    ):
        assert len({counted(some, METHODS, LAYERS)[1] for some in (together, together[:1])}) == 1
    apart = [max_sensitivity(3), average_sensitivity(3, radius=0.5)]  # other images
    assert counted(apart, METHODS, LAYERS)[1] == counted(apart[:1], METHODS, LAYERS)[1] + 3 * len(IMAGES)


def test_a_wrong_word_makes_no_wrong_value():
    """Images are shared by their content, so that those of one map are never taken for those of another."""
    by_map = Metric(
        "own",
        lambda maps, images, ask: ask([(images * maps[:, None], torch.arange(4))]),
        True,
        needs=("maps", "images", "ask"),
        altered_by="what is wrong",
    )
    wrong, right = (counted([one], METHODS, LAYERS)[0] for one in (by_map, replace(by_map, altered_by="")))
    pd.testing.assert_frame_equal(wrong.rows, right.rows, check_exact=True)


def test_a_method_that_is_not_in_the_run_is_asked_once_for_all_maps_and_metrics():
    seen: list[str] = []

    class Reference:
        name, needs_layer, needs_gradient = "reference", True, False

        def __call__(self, context: Any) -> Tensor:
            seen.append(context.layer)
            return context.activation[:, 0]

    reference = Reference()
    agreements = [make(reference, cells=4) for make in (feature_agreement, sign_agreement)]
    rows = counted(agreements, METHODS, LAYERS)[0].rows
    assert seen == list(LAYERS)
    assert (rows["feature_agreement"].isna() == (rows["layer"] == "input")).all()


def test_matched_controls_are_made_once_for_a_map(monkeypatch):
    made: list[str] = []

    def noting(name: str, make: Any, *given: Any) -> Tensor:
        made.append(name)
        return make(*given)

    for name in ("shifted", "with_values_of"):
        monkeypatch.setattr(matched, name, partial(noting, name, getattr(matched, name)))
    counted([METRICS["average_drop"], METRICS["deletion"], METRICS["insertion"]], METHODS[:1], LAYERS, controls="matched")
    assert sorted(made) == ["shifted"] * 2 + ["with_values_of"] * 4  # of two layers; swapped and blurred take values
