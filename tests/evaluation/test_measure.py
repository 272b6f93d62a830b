"""Numbers at their limits: what cannot be measured has a status, and touches nothing else."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from xaieval import Protocol, score
from xaieval.errors import DataError, MetricError
from xaieval.evaluation.scores import Scores
from xaieval.explainers import METHODS
from xaieval.explainers.attention_gradients import ATTENTION_GRADIENTS
from xaieval.explainers.attention_relevance import ATTENTION_RELEVANCE
from xaieval.explainers.dense_prompts import DENSE_PROMPTS
from xaieval.explainers.detectors import DETECTORS
from xaieval.explainers.grad_eclip import GRAD_ECLIP
from xaieval.explainers.rollout import ROLLOUT
from xaieval.metrics import METRICS, linear_imputation

# Not of convolutional classifiers, and thousands of passes that are like those of Score-CAM.
FAMILIES = (ROLLOUT, ATTENTION_GRADIENTS, ATTENTION_RELEVANCE, GRAD_ECLIP, DENSE_PROMPTS, DETECTORS)
OF_OTHERS = {method.name for family in FAMILIES for method in family}
ELSEWHERE = OF_OTHERS | {"attention", "precomputed", "rise", "occlusion", "cam", "sobol", "hsic", "extremal-perturbation"}
# Of several layers, or of many passes for each image that are like those of others.
ELSEWHERE |= {"layercam-fusion", "poly-cam", "gscorecam", "opti-cam", "guided-ig", "blur-ig", "expected-gradients", "xrai"}
FREE = ("random", "uniform", "center", "edges", "fake-cam")  # of the model
BAD = 1  # number of the image with something odd
ROAD = ("road", "road_morf", "road_lerf")
SUBSETS = ("faithfulness_correlation", "sensitivity_n")


class Net(nn.Module):
    """A small network of any width and scale."""

    def __init__(self, classes: int = 3, channels: int = 4, stride: int = 2, weight: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, second = (nn.Conv2d(size, channels, 3, stride, 1) for size in (3, channels))
        self.features = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
        self.scale = scale
        for parameter in self.parameters():
            parameter.data.mul_(weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)) * self.scale


class Hole(Net):
    """All logits of an image are one number, where its first pixel is large."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return torch.where(images[:, 0, 0, 0, None] > 100, self.value, logits)


def batch(bad: float | None = None, shape: tuple[int, ...] = (3, 12, 20), dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    if bad is not None:
        images[BAD] = bad
    return {"images": images.to(dtype), "labels": [0, 1, 2, 0], "ids": list("abcd")}


def run(model: nn.Module, data: dict[str, Any], methods: Any = ("gradcam", "random"), **options: Any) -> Scores:
    options = {"metrics": ("average_drop", "increase_in_confidence"), "progress": False} | options
    return score(model, [data], options.pop("layers", "features"), methods, **options)


def statuses(scores: Scores, image: str | None = None) -> dict[str, int]:
    rows = scores.rows if image is None else scores.rows[scores.rows["image_id"] == image]
    return dict(Counter(rows["status"]))


METHODS_HERE = [name for name in METHODS if name not in ELSEWHERE]
METRICS_HERE = [name for name, metric in METRICS.items() if "masks" not in metric.needs]
SOME_METRICS = [
    "average_drop",
    "increase_in_confidence",
    "drop_in_deletion",
    "adcc",
    "insertion",
    "road",
    "max_sensitivity",
    "mprt",
]
CROSSED = {  # all methods with all metrics would take minutes
    "all methods": (METHODS_HERE, SOME_METRICS),
    "all metrics": (["gradcam", "layercam", "random"], METRICS_HERE),
}


@pytest.fixture(scope="module")
def others() -> dict[str, pd.DataFrame]:
    """Rows of the three ordinary images by themselves."""
    data = batch()
    keep = [0, 2, 3]
    alone = {"images": data["images"][keep], "labels": [0, 2, 0], "ids": list("acd")}
    return {name: run(Net(), alone, methods, metrics=metrics).rows for name, (methods, metrics) in CROSSED.items()}


@pytest.mark.slow
@pytest.mark.parametrize("crossed", CROSSED)
@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (0.0, {"ok", "constant_map"}),
        (0.7, {"ok", "constant_map"}),
        (1e-42, {"ok", "constant_map"}),
        (1e30, {"ok", "constant_map", "nan_map"}),
        (math.inf, {"nan_confidence"}),
        (math.nan, {"nan_confidence"}),
    ],
)
def test_an_odd_image_has_statuses_and_touches_no_other(bad, expected, crossed, others):
    methods, metrics = CROSSED[crossed]
    scores = run(Net(), batch(bad), methods, metrics=metrics)
    assert set(statuses(scores, "b")) <= expected
    rest = scores.rows[scores.rows["image_id"] != "b"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, others[crossed], rtol=1e-4, atol=1e-4)  # AD and its kin are in percent
    assert set(scores.rows.groupby(["layer", "method"])["image_id"].count()) == {4}
    counted = scores.rows["status"].isin(["ok", "constant_map"])
    assert scores.rows.loc[~counted, metrics].isna().all(axis=None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_a_status_of_their_image(value):
    data = batch()
    data["images"][BAD, 0, 0, 0] = 1000
    scores = run(Hole(value), data, METHODS_HERE)
    assert statuses(scores, "b") == {"nan_confidence": len(METHODS_HERE)}
    for image in "acd":
        assert "nan_confidence" not in statuses(scores, image)


def test_a_logit_of_1e30_is_a_confidence_of_one():
    # Softmax of equal logits is one over their number, however large they are; nothing changes by masking, and nothing has a
    # gradient, so the map is flat. Random maps mask the pixel that decides.
    data = batch()
    data["images"][BAD, 0, 0, 0] = 1000
    rows = run(Hole(1e30), data).rows.set_index(["image_id", "method"])
    assert rows.loc[("b", "gradcam"), "status"] == "constant_map"
    assert rows.loc[("b", "gradcam"), "confidence"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("model", "confidence", "gradcam", "random"),
    [
        (Net(scale=1e30), "softmax", "ok", "ok"),  # 1 for one class and 0 for all others, and still a gradient
        (Net(scale=1e30), "identity", "ok", "ok"),
        (Net(weight=0.0), "softmax", "constant_map", "ok"),
        (Net(weight=0.0), "identity", "zero_confidence", "zero_confidence"),
        (Net(weight=1e-20), "softmax", "constant_map", "ok"),  # activations below all floats
        (Net(weight=1e15), "softmax", "nan_confidence", "nan_confidence"),  # logits beyond all floats: inf minus inf
        (Net(classes=1), "softmax", "ok", "ok"),
        (Net(classes=1), "sigmoid", "ok", "ok"),
        (Net(classes=100_000), "softmax", "ok", "ok"),
        (Net(channels=1), "softmax", "ok", "ok"),
        (Net(stride=32), "softmax", "constant_map", "ok"),  # a map of one cell
        (Net().double(), "softmax", "ok", "ok"),
        (Net().bfloat16(), "softmax", "ok", "ok"),
        (Net().half(), "softmax", "ok", "ok"),
    ],
)
def test_models_at_their_limits(model, confidence, gradcam, random):
    data = batch(dtype=next(model.parameters()).dtype)
    scores = run(model, data, protocol=Protocol(confidence=confidence))
    by_method = {method: set(rows["status"]) for method, rows in scores.rows.groupby("method")}
    assert by_method == {"gradcam": {gradcam}, "random": {random}}
    summary = scores.summary()
    assert (summary["n_images"] + summary["n_failed"] == 4).all()
    values = scores.rows.loc[scores.rows["status"].isin(["ok", "constant_map"]), ["average_drop", "increase_in_confidence"]]
    assert values.ge(0).all(axis=None)
    assert values.le(100).all(axis=None) or confidence == "identity"


def test_half_precision_that_overflows_is_a_status():
    scores = run(Net(weight=40.0).half(), batch(dtype=torch.float16), layers="features.2")
    assert set(statuses(scores)) <= {"ok", "nan_confidence", "nan_map", "nan_masked_confidence"}
    overflows = run(Net(weight=400.0).half(), batch(dtype=torch.float16), layers="features.2")
    assert statuses(overflows) == {"nan_confidence": 8}


@pytest.mark.slow
@pytest.mark.parametrize("crossed", CROSSED)
@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 2, 64), (3, 5, 3)])
def test_images_of_odd_shapes_are_measured(shape, crossed):
    methods, metrics = CROSSED[crossed]
    metrics = [name for name in metrics if name not in (*ROAD, *SUBSETS)]  # which leave no pixel of one
    scores = run(Net(), batch(shape=shape), methods, metrics=metrics)
    assert set(statuses(scores)) <= {"ok", "constant_map"}


def test_whole_numbers_are_no_images():
    with pytest.raises(DataError, match=r"^images are a floating-point tensor .*; got int64 \[4, 3, 12, 20\]"):
        run(Net(), batch(dtype=torch.int64))


@pytest.mark.slow
def test_one_image_has_means_and_no_intervals_of_them():
    data = batch()
    scores = run(Net(), {"images": data["images"][:1], "ids": ["a"]}, METHODS_HERE, metrics=SOME_METRICS)
    summary = scores.summary()
    assert summary["average_drop"].notna().all()
    assert summary[["average_drop_low", "average_drop_high"]].isna().all(axis=None)
    assert summary["increase_in_confidence_high"].gt(70).all()  # Wilson's interval of one image


# ---- imputation


@pytest.mark.parametrize("bad", [0.0, 1e-42, 1e30, 3e38, math.inf, math.nan])
def test_imputation_of_an_odd_image_touches_no_other(bad):
    generator = torch.Generator().manual_seed(0)
    images, missing = torch.randn(3, 2, 9, 9, generator=generator), torch.rand(3, 9, 9, generator=generator) > 0.5
    expected = linear_imputation(images, missing)
    images[BAD] = bad
    found = linear_imputation(images, missing)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    if math.isfinite(bad):
        torch.testing.assert_close(found[BAD], images[BAD], rtol=1e-5, atol=0)  # the mean of equal numbers
    else:
        assert found[BAD][:, missing[BAD]].isnan().all()


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float64, 1e-5)])
def test_imputation_of_other_types(dtype, apart):
    generator = torch.Generator().manual_seed(0)
    images, missing = torch.randn(3, 2, 9, 9, generator=generator), torch.rand(3, 9, 9, generator=generator) > 0.5
    found = linear_imputation(images.to(dtype), missing)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), linear_imputation(images, missing), rtol=0, atol=apart)


# ---- statistics of extreme rows

LIST = [
    {"name": "average_drop", "higher_is_better": False, "interval": "mean", "label": "AD %"},
    {"name": "increase_in_confidence", "higher_is_better": True, "interval": "wilson", "label": "IC %"},
]


def table(values: list[float]) -> Scores:
    """Two layers, of which the second has half of the drops, each with two methods and a control."""
    frames = []
    for layer, share in (("one", 1.0), ("two", 0.5)):
        for method in ("gradcam", "layercam", "random"):
            drops = share * np.array(values, dtype=float)
            status = np.where(np.isfinite(drops), "ok", "nan_map")
            columns = {
                "average_drop": drops,
                "increase_in_confidence": np.where(np.isfinite(drops), 100.0 * (drops > 50), np.nan),
            }
            images = [str(number) for number in range(len(values))]
            frames.append(pd.DataFrame({"image_id": images, "layer": layer, "method": method, **columns, "status": status}))
    return Scores(pd.concat(frames, ignore_index=True), {"metrics": LIST, "controls": ["random"], "seed": 0})


EXTREMES = {
    "one": [10.0],
    "two": [10.0, 20.0],
    "all the same": [5.0] * 6,
    "zeros": [0.0] * 6,
    "all at the end": [100.0] * 6,
    "some missing": [math.nan, 1.0, 2.0, 3.0],
    "one left": [math.nan, 1.0, math.nan],
    "huge": [1e30, 1.0, 2.0],
    "below all floats": [5e-324, 0.0, 0.0],
    "both signs": [-1e30, 1e30, 0.0],
    "all missing": [math.nan] * 4,
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("level", [1e-9, 0.95, 1 - 1e-12])
def test_summaries_hold_their_means(name, level):
    summary = table(EXTREMES[name]).summary(level)
    known = summary.dropna(subset=["average_drop_low"])
    assert (known["average_drop_low"] <= known["average_drop"] * (1 + 1e-12) + 1e-300).all() or name == "both signs"
    assert (known["average_drop_high"] >= known["average_drop"]).all()
    assert (summary["n_images"] + summary["n_failed"] == len(EXTREMES[name])).all()
    assert summary["average_drop"].notna().all() == (name != "all missing")


@pytest.mark.parametrize("name", EXTREMES)
def test_every_comparison_answers_or_says_why_not(name):
    scores = table(EXTREMES[name])
    assert isinstance(scores.warnings(), list)
    assert not scores.controls_table()["beats"].any()
    assert scores.win_percentages()["n_images"].notna().all()
    questions = (
        lambda: scores.rank("average_drop", method="gradcam"),
        lambda: scores.rank("increase_in_confidence", method="gradcam"),
        lambda: scores.rank("average_drop", "both", test="wilcoxon"),
        lambda: scores.select_layers(method="gradcam"),
        lambda: scores.select_layers(1, method="gradcam"),
        lambda: scores.compare(scores),
        lambda: scores.compare(scores, test="wilcoxon"),
    )
    for ask in questions:
        if name == "all missing":
            with pytest.raises(MetricError, match=r"^no image .* count"):
                ask()
        else:
            assert repr(ask())


def test_a_run_in_print_says_when_it_was_measured():
    dates = {"started": "2026-01-02T03:04:05Z", "ended": "2026-01-02T05:06:07Z"}
    scores = Scores(table([1.0]).rows, {"metrics": LIST, "dates": dates, "versions": {"xaieval": "0.1.0"}})
    assert repr(scores).endswith("\nmeasured 2026-01-02 03:04 to 05:06 UTC, xaieval 0.1.0")
    assert "measured 2026-01-02 03:04 to 05:06 UTC, xaieval 0.1.0</p>" in scores._repr_html_()
    assert "measured" not in repr(table([1.0]))


def test_a_run_without_rows_has_a_summary_without_rows():
    nothing = Scores(table([1.0]).rows.iloc[:0], {"metrics": LIST})
    assert nothing.summary().empty
    assert repr(nothing).startswith("Scores of 0 images\n")
    with pytest.raises(MetricError, match=r"^the runs have no image in common.*: none in this run, '0' in the other"):
        nothing.compare(table([1.0]))
