"""Matched controls in runs: their columns, what they are by slow loops, and that nothing else changes by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval import Protocol
from xaieval.config.controls import MATCHED
from xaieval.errors import MetricError, OutputError
from xaieval.evaluation.matched import DONORS
from xaieval.evaluation.scores import Scores
from xaieval.explainers.matched import blurred, distances, shifted, with_values_of
from xaieval.inference.reproducibility import seed_from
from xaieval.masking import mask, occlude
from xaieval.metrics import METRICS, Metric, drop

AD, IC = "average_drop", "increase_in_confidence"
CURVES = ("insertion", "deletion", "morf", "lerf", "road", "road_morf", "road_lerf")
OF_GROUPS = ("monotonicity", "saco")
REGIONS = ("region_perturbation", "selectivity", "irof", "abpc", "symmetric_relevance_gain", "sic", "aic")
OF_CONFIDENCES = (AD, IC, "average_gain", "drop_in_deletion", "confidence_ratio")


def tiny(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.ReLU())
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


def images(count: int = 6, side: int = 12) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def run(loader: Any = None, **options: Any) -> Scores:
    loader = [images()] if loader is None else loader
    options = {"layers": ["0", "2"], "methods": "gradcam", "controls": "matched", "progress": False} | options
    model = options.pop("model", None) or tiny()
    return xaieval.score(model, loader, options.pop("layers"), options.pop("methods"), **options)


def difference(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """The largest difference of numbers between two tables of rows, whose texts and missing values have to be equal."""
    numbers = list(first.select_dtypes("float64"))
    pd.testing.assert_frame_equal(first.drop(columns=numbers), second.drop(columns=numbers))
    pd.testing.assert_frame_equal(first[numbers].isna(), second[numbers].isna())
    return float((first[numbers] - second[numbers]).abs().max().max())


# ---- columns and manifest


def test_each_metric_has_a_column_for_each_control_and_its_excess():
    scores = run(metrics=(AD, "complexity", "insertion"))
    added = [f"{metric}_{end}" for metric in (AD, "insertion") for end in (*MATCHED, "excess")]
    assert list(scores.rows)[9:] == [AD, "complexity", "insertion", *added, "status"]
    for metric in (AD, "insertion"):
        expected = scores.rows[metric] - scores.rows[f"{metric}_shifted"]
        pd.testing.assert_series_equal(scores.rows[f"{metric}_excess"], expected, check_names=False)
    assert scores.matched_controls == list(MATCHED)
    assert "controls" not in scores.manifest
    entries = {entry["name"]: entry for entry in scores.metrics}
    assert list(entries) == [AD, "complexity", "insertion", f"{AD}_excess", "insertion_excess"]
    excess = entries[f"{AD}_excess"]
    assert {key: excess[key] for key in ("higher_is_better", "interval", "label", "excess_of", "control")} == {
        "higher_is_better": False,
        "interval": "mean",
        "label": "AD excess %",
        "excess_of": AD,
        "control": "shifted",
    }
    assert {f"{AD}_excess", f"{AD}_excess_low", "mask_area"} <= set(scores.summary())


def test_all_metrics_of_confidences_and_curves_have_them_and_no_other():
    able = [name for name, metric in METRICS.items() if metric.has_matched_controls]
    assert able == [*OF_CONFIDENCES, *CURVES, *OF_GROUPS, *REGIONS]
    scores = run(metrics=(AD, "r_oms"), layers="2")  # which no map has a part in
    assert [column for column in scores.rows if "r_oms" in column] == ["r_oms"]


def test_the_excess_is_over_the_first_of_the_chosen_controls():
    scores = run(controls=["dimmed", "random", "shifted"])
    assert scores.matched_controls == ["dimmed", "shifted"]
    assert scores.controls == ["random"]
    pd.testing.assert_series_equal(
        scores.rows[f"{AD}_excess"], scores.rows[AD] - scores.rows[f"{AD}_dimmed"], check_names=False
    )
    assert f"{AD}_swapped" not in scores.rows


def test_the_excess_of_increases_is_in_percentage_points():
    values = run([images(30)], metrics=IC, methods=["gradcam", "fake-cam"]).rows[f"{IC}_excess"]
    assert set(values.unique()) <= {-100.0, 0.0, 100.0}
    assert len(set(values)) > 1


@pytest.mark.parametrize("metrics", [(AD, IC), OF_CONFIDENCES, ("insertion", "road", AD)])
def test_rows_without_controls_are_the_same_bit_by_bit(metrics):
    with_controls, without = (run(metrics=metrics, controls=controls) for controls in ("matched", False))
    columns = [*without.rows]
    pd.testing.assert_frame_equal(with_controls.rows[columns], without.rows, check_exact=True)
    assert not {"matched_controls"} & set(without.manifest)
    assert not {"matched controls", "donors"} & set(without.manifest["run"])


# ---- what the controls are


@pytest.mark.parametrize(
    "protocol", [Protocol(), Protocol(masking="top", keep_percent=32), Protocol(fill="mean", inverse=True)]
)
def test_values_are_those_of_a_loop_over_single_images(protocol):
    model, data = tiny(), images(5)
    scores = run([{"images": data, "ids": list("abcde")}], metrics=(AD, "drop_in_deletion"), protocol=protocol, layers="2")
    maps = xaieval.explain(model, data, "2", "gradcam", protocol=protocol)["2"]
    rows = scores.rows.set_index("image_id")
    model.requires_grad_(False)
    largest = maps.flatten(1).topk(47)[0]  # of 144 pixels, of which 32 % are 46
    assert (largest[:, 45] - largest[:, 46]).min() > 1e-3, "no rounding decides which pixels are among the largest"
    for number, name in enumerate("abcde"):
        own, image = maps[number : number + 1], data[number : number + 1]
        generator = torch.Generator().manual_seed(seed_from(0, name, "shifted"))
        offset = distances(torch.rand(2, generator=generator)[None], (12, 12))
        masks = {
            "shifted": mask(shifted(own, offset), protocol),
            "blurred": mask(with_values_of(own, blurred(image)), protocol),
            "dimmed": mask(own, protocol).mean().expand_as(own),
        }
        target = int(rows.loc[name, "target"])
        fill = image.mean(dim=(2, 3), keepdim=True) if protocol.fill == "mean" else torch.zeros(1, 3, 1, 1)
        for control, kept in masks.items():
            confidence, masked, inverse = (
                model(picture).softmax(dim=1)[0, target].item()
                for picture in (image, occlude(image, kept, fill), occlude(image, 1 - kept, fill))
            )
            expected = 100 * max(0, confidence - masked) / confidence
            assert rows.loc[name, f"{AD}_{control}"] == pytest.approx(expected, abs=1e-3)
            expected = 100 * (confidence - inverse) / confidence
            assert rows.loc[name, f"drop_in_deletion_{control}"] == pytest.approx(expected, abs=1e-3)


def test_swapped_takes_the_places_of_another_image_of_the_run():
    model, data = tiny(), images(3)
    scores = run([data], metrics=AD, layers="2").rows
    maps = xaieval.explain(model, data, "2", "gradcam")["2"]
    model.requires_grad_(False)
    confidences = model(data).softmax(dim=1)
    for number in range(3):
        target = int(scores.loc[number, "target"])
        own = confidences[number, target]
        found = []
        for other in {0, 1, 2} - {number}:
            kept = with_values_of(maps[number : number + 1], maps[other : other + 1])
            masked = model(occlude(data[number : number + 1], kept, torch.zeros(1, 3, 1, 1))).softmax(dim=1)[0, target]
            found.append(float(100 * (own - masked).clamp(min=0) / own))
        assert min(abs(scores.loc[number, f"{AD}_swapped"] - value) for value in found) < 1e-3


def test_curves_of_controls_are_those_of_the_control_maps_themselves():
    """A method whose maps are the low-pass of the picture is its own control `blurred`."""

    def low_pass(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return blurred(images)

    rows = run(methods=low_pass, metrics=("insertion", "road", AD)).rows
    for metric in ("insertion", "road", AD):
        np.testing.assert_allclose(rows[f"{metric}_blurred"], rows[metric], atol=2e-3)
    assert rows["insertion_dimmed"].isna().all()
    assert rows[f"{AD}_dimmed"].notna().all()


def test_maps_that_know_no_image_are_their_own_swapped_maps_and_have_no_excess_over_them():
    rows = run(methods=["center", "fake-cam", "random"], layers=(), controls="swapped").rows.set_index("method")
    assert rows.loc[["center", "fake-cam"], f"{AD}_excess"].abs().max() < 1e-6
    assert rows.loc["random", f"{AD}_excess"].abs().max() > 1e-3


def test_fake_cam_fools_average_drop_and_not_its_excess():
    scores = run([images(40)], layers="2", methods=["gradcam", "fake-cam"], metrics=AD)
    summary = scores.summary()
    assert summary.loc[("input", "fake-cam"), AD] < 0.05 * summary.loc[("2", "gradcam"), AD]
    assert abs(summary.loc[("input", "fake-cam"), f"{AD}_excess"]) < 0.3 * abs(summary.loc[("2", "gradcam"), f"{AD}_excess"])
    assert summary.loc[("input", "fake-cam"), f"{AD}_excess"] > summary.loc[("2", "gradcam"), f"{AD}_excess"]


# ---- maps without a control


def test_a_constant_map_has_no_control_and_its_row_stays():
    rows = run(methods=["uniform", "gradcam"], metrics=(AD, "insertion"), layers="2").rows.set_index("method")
    added = [f"{metric}_{end}" for metric in (AD, "insertion") for end in (*MATCHED, "excess")]
    assert rows.loc["uniform", added].isna().all().all()
    assert rows.loc["uniform", [AD, "insertion"]].notna().all().all()
    assert (rows.loc["uniform", "status"] == "constant_map").all()
    assert rows.loc["gradcam", f"{AD}_excess"].notna().all()


def test_a_mask_that_keeps_everything_has_no_control_in_confidences_but_in_curves():
    protocol = Protocol(masking="top_binary", keep_percent=100)
    rows = run(protocol=protocol, metrics=(AD, "insertion")).rows
    assert rows[[f"{AD}_{name}" for name in MATCHED]].isna().all().all()
    assert rows["insertion_shifted"].notna().all()


def test_a_map_with_nan_has_no_values_at_all():
    def broken(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = images.mean(dim=1)
        maps[0] = torch.nan
        return maps

    rows = run(methods=broken, metrics=(AD, "insertion")).rows
    assert list(rows["status"]) == ["nan_map", *["ok"] * 5]
    values = rows[[column for column in rows if column.startswith((AD, "insertion"))]]
    assert values.loc[0].isna().all()
    assert values.loc[1:].drop(columns="insertion_dimmed").notna().all().all()


def test_a_run_of_one_image_has_nobody_to_swap_with():
    rows = run([images(1)]).rows
    assert rows[f"{AD}_swapped"].isna().all()
    assert rows[[f"{AD}_shifted", f"{AD}_dimmed", f"{AD}_blurred", f"{AD}_excess"]].notna().all().all()


def test_donors_without_a_map_are_not_drawn():
    """All donors but one have a constant map, so every other image takes that one."""

    def first_only(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        marked = images[:, 0, 0, 0] > 50
        return torch.where(marked[:, None, None], images[:, 1], torch.zeros_like(images[:, 1]))

    data = images(4)
    data[2, 0, 0, 0] = 100
    rows = run([data], methods=first_only, controls=["swapped"]).rows
    assert rows[f"{AD}_swapped"].isna().all(), "the others have no map, and the third has no other donor"
    data[0, 0, 0, 0] = 100
    rows = run([data], methods=first_only, controls=["swapped"]).rows
    assert list(rows[f"{AD}_swapped"].notna()) == [True, False, True, False]


def test_images_that_could_not_be_read_have_the_columns_without_values():
    batch = {"images": images(3), "ids": list("abc"), "failed": [("d", None, "broken")]}
    rows = run([batch], metrics=(AD, IC)).rows
    last = rows[rows["image_id"] == "d"]
    assert list(last["status"].unique()) == ["unreadable"]
    assert last[[f"{AD}_shifted", f"{AD}_excess", f"{IC}_excess"]].isna().all().all()


# ---- nothing depends on batches, resuming or processes


def test_rows_do_not_depend_on_batches():
    data = images(2 * DONORS + 3)
    options = {"metrics": (AD, "insertion"), "methods": ["gradcam", "random"]}
    whole, parts, small = (run([data], **options), run([data[:5], data[5:]], **options), run([data], batch_size=3, **options))
    assert difference(whole.rows, parts.rows) < 1e-3
    assert difference(whole.rows, small.rows) < 1e-3


def test_in_deterministic_mode_rows_are_the_same_bits_in_all_batches():
    data = images(DONORS + 3)
    whole, parts = (run(loader, deterministic=True) for loader in ([data], [data[:2], data[2:9], data[9:]]))
    assert difference(whole.rows, parts.rows) == 0


def test_a_run_that_resumes_has_the_rows_of_one_that_did_not_stop(tmp_path):
    data = images(DONORS + 6)

    class Stops(nn.Module):
        """Fails from a number of images on."""

        def __init__(self, most: int) -> None:
            super().__init__()
            self.model, self.left = tiny(), most

        def forward(self, images: Tensor) -> Tensor:
            self.left -= len(images)
            if self.left < 0:
                raise KeyboardInterrupt
            return self.model(images)

    batches = [data[:8], data[8:]]
    whole = run(batches, model=Stops(10**9), layers=["model.0", "model.2"])
    with pytest.raises(KeyboardInterrupt):
        run(batches, model=Stops(170), layers=["model.0", "model.2"], output_dir=tmp_path)
    assert list((Path(tmp_path) / "parts").glob("0*.part.arrow"))
    resumed = run(batches, model=Stops(10**9), layers=["model.0", "model.2"], output_dir=tmp_path)
    assert difference(whole.rows, resumed.rows) == 0
    assert difference(whole.rows, Scores.load(tmp_path).rows) == 0


def test_a_folder_of_a_run_with_other_controls_is_refused(tmp_path):
    run(output_dir=tmp_path)
    with pytest.raises(OutputError, match="matched controls"):
        run(output_dir=tmp_path, controls=["shifted"])
    with pytest.raises(OutputError, match="matched controls"):
        run(output_dir=tmp_path, controls=False)


def test_a_folder_of_a_run_with_other_first_images_is_refused(tmp_path):
    data = images(4)
    run([data], output_dir=tmp_path)
    with pytest.raises(OutputError, match="donors"):
        run([data[[0, 2, 1, 3]]], output_dir=tmp_path)


def test_an_iterator_is_read_once():
    assert difference(run(iter([images(3), images(9)[3:]])).rows, run([images(3), images(9)[3:]]).rows) == 0


def test_images_of_several_sizes_swap_maps():
    batches = [images(3), images(2, side=20), images(4, side=16)]
    batches = [
        {"images": batch, "ids": [f"{number}-{place}" for place in range(len(batch))]} for number, batch in enumerate(batches)
    ]
    rows = run(batches, metrics=(AD, "insertion")).rows
    assert rows[[f"{AD}_swapped", "insertion_swapped"]].notna().all().all()
    again = run([*batches[:1], *batches[1:]], metrics=(AD, "insertion"), batch_size=1).rows
    assert difference(rows, again) < 1e-3


# ---- volumes, black boxes, early stopping, other precisions


def test_volumes_have_all_controls():
    ball = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    rows = run([torch.rand(4, 1, 5, 6, 7)], model=ball, layers="0", metrics=(AD, "insertion")).rows
    assert rows[[f"{AD}_{name}" for name in MATCHED]].notna().all().all()
    assert rows["insertion_swapped"].notna().all()


def test_black_boxes_have_all_controls():
    def brightness(images: Tensor) -> Tensor:
        return torch.stack([images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3))], dim=1)

    rows = run(model=brightness, layers=(), methods=["occlusion", "center"]).rows
    assert rows[[f"{AD}_{name}" for name in MATCHED]].notna().all().all()


def test_a_run_that_stops_early_can_stop_by_an_excess():
    data = torch.utils.data.DataLoader(images(40), batch_size=10)
    stop = xaieval.Stop(rule="best", by=f"{AD}_excess", min_images=10, max_images=20)
    scores = run(data, stop=stop)
    assert scores.manifest["stop"]["images"] <= 20
    assert len(scores.rows) == 2 * scores.manifest["stop"]["images"]


def test_bf16_passes_compare_like_with_like():
    rows = run(precision="bf16", metrics=(AD, "drop_in_deletion"), methods=["gradcam", "fake-cam"]).rows
    assert rows[f"{AD}_excess"].notna().all()
    assert rows.loc[rows["method"] == "fake-cam", f"{AD}_excess"].abs().max() < 2


# ---- bad use


def test_metrics_that_cannot_judge_controls_are_named():
    with pytest.raises(MetricError) as caught:
        run(metrics=("complexity", "coherency"))
    assert str(caught.value) == (
        "matched controls (shifted, swapped, dimmed, blurred) are judged by metrics of confidences and curves, such as "
        "average_drop, and none of ['complexity', 'coherency'] is one; add one, or leave the controls out"
    )


def test_a_metric_of_ones_own_by_the_name_of_a_control_column_is_refused():
    mine = Metric("average_drop_shifted", drop, False)
    with pytest.raises(MetricError) as caught:
        run(metrics=(AD, mine))
    assert str(caught.value) == (
        "metric 'average_drop_shifted' has the name of a column of matched controls; give it another name"
    )
    assert AD in run(metrics=(AD, mine), controls=False).summary()


def test_a_metric_of_ones_own_has_controls_too_even_if_it_ignores_missing_values():
    sharp = Metric("falls", lambda y, o: 100.0 * (o < y), False, interval="wilson")
    rows = run(metrics=sharp, methods=["gradcam", "uniform"], layers="2").rows.set_index("method")
    assert set(rows.loc["gradcam", "falls_excess"]) <= {-100.0, 0.0, 100.0}
    assert rows.loc["uniform", ["falls_shifted", "falls_excess"]].isna().all().all()
