"""Which methods beat the controls: worked by hand, against slow loops, by error rates, and on real runs of every kind."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import xaieval
from tests import ROOT
from tests.slow_selection import slow_holm, slow_p_above
from xaieval.analysis.controls import compare_with_controls
from xaieval.cli import main
from xaieval.data import Preprocessing, scenes
from xaieval.errors import ExplainerError, MetricError
from xaieval.evaluation import distributed
from xaieval.evaluation.scores import Scores

PROPERTY = settings(deadline=None, max_examples=30)

AD, IC, AREA = "average_drop", "increase_in_confidence", "area"
METRICS = [
    {"name": AD, "higher_is_better": False, "interval": "mean", "label": "AD %"},
    {"name": IC, "higher_is_better": True, "interval": "wilson", "label": "IC %"},
    {"name": AREA, "higher_is_better": None, "interval": "mean", "label": "area"},
]
CONTROLS = ["random", "edges"]
NAMES = ["random", "uniform", "center", "edges", "fake-cam"]
NAN = float("nan")

Values = dict[tuple[str, str], dict[str, list[float]]]  # pair, metric, image


def _rows(values: Values) -> pd.DataFrame:
    """Rows image by image; a metric without values is 0 everywhere."""
    count = len(next(iter(next(iter(values.values())).values())))
    records = [
        {"image_id": f"image {image}", "layer": layer, "method": method, "status": "ok", AD: 0.0, IC: 0.0, AREA: 0.5}
        | {metric: column[image] for metric, column in columns.items()}
        for image in range(count)
        for (layer, method), columns in values.items()
    ]
    return pd.DataFrame(records)


def _scores(rows: pd.DataFrame | Values, controls: list[str] | None = CONTROLS) -> Scores:
    manifest: dict[str, Any] = {"metrics": METRICS, "seed": 0} | ({} if controls is None else {"controls": controls})
    return Scores(rows if isinstance(rows, pd.DataFrame) else _rows(rows), manifest)


@pytest.fixture
def values() -> Values:
    """p5 has lower drops than random but not than edges, and more increases than both; p2 beats no control."""
    count = 24
    spread = [float(image % 5) for image in range(count)]
    return {
        ("p2", "gradcam"): {AD: [60 + one for one in spread], IC: [0.0] * count},
        ("p5", "gradcam"): {AD: [10 + one for one in spread], IC: [100.0] * 20 + [0.0] * 4},
        ("input", "random"): {AD: [50 + one for one in reversed(spread)], IC: [100.0] * 2 + [0.0] * 22},
        ("input", "edges"): {AD: [0.0] * count, IC: [0.0, 100.0] * 4 + [0.0] * 16},
    }


# ---- by hand


def test_a_method_is_marked_with_the_metrics_in_which_it_beats_every_control(values):
    summary = _scores(values).summary()
    assert list(summary.columns[-2:]) == ["n_failed", "beats_controls"]
    marks = summary["beats_controls"]
    assert marks[("p5", "gradcam")] == IC
    assert marks[("p2", "gradcam")] == ""
    assert marks.isna().to_dict() == {pair: pair[1] in CONTROLS for pair in summary.index}


def test_the_table_has_each_test_with_both_means(values):
    table = _scores(values).controls_table().set_index(["layer", "method", "metric", "control"]).sort_index()
    assert len(table) == 2 * 2 * 2
    assert set(table.index.get_level_values("method")) == {"gradcam"}
    assert set(table.index.get_level_values("metric")) == {AD, IC}, "area has no direction"
    drop = table.loc[("p5", "gradcam", AD)]
    assert drop.loc["random", ["value", "control_value", "n_images"]].to_list() == pytest.approx([11.917, 51.917, 24], abs=1e-3)
    assert drop["beats"].to_dict() == {"random": True, "edges": False}
    assert drop.loc["edges", "p_value"] == 1
    # Increases: 18 images that random lacks and none the other way; of edges' four all are among the 20.
    increase = table.loc[("p5", "gradcam", IC)]
    assert increase["p_value"].to_dict() == {"random": 2.0**-18, "edges": 2.0**-16}
    assert increase["p_holm"].to_dict() == pytest.approx({"random": 7 * 2.0**-18, "edges": 6 * 2.0**-16})


def test_the_level_decides(values):
    values[("p5", "gradcam")][IC] = [100.0] * 2 + [0.0] * 4 + [100.0] * 9 + [0.0] * 9
    scores = _scores(values)
    actual = {level: scores.summary(level=level)["beats_controls"][("p5", "gradcam")] for level in (0.5, 0.9999)}
    assert actual == {0.5: IC, 0.9999: ""}
    with pytest.raises(MetricError, match="the level of an interval is a probability"):
        scores.controls_table(level=95)


def test_several_metrics_stand_in_their_order_with_commas(values):
    del values[("input", "edges")]
    assert _scores(values).summary()["beats_controls"][("p5", "gradcam")] == f"{AD}, {IC}"


def test_a_control_without_a_value_is_no_rival(values):
    rows = _rows(values)
    rows.loc[rows["method"] == "edges", AD] = NAN
    scores = _scores(rows)
    assert set(scores.controls_table().query("metric == @AD")["control"]) == {"random"}
    assert scores.summary()["beats_controls"][("p5", "gradcam")] == f"{AD}, {IC}"


def test_only_images_on_which_both_count_take_part(values):
    rows = _rows(values)
    broken = (rows["method"] == "random") & rows["image_id"].isin(["image 0", "image 1"])
    rows.loc[broken, "status"], rows.loc[broken, [AD, IC]] = "nan_map", NAN
    # A value in a row that does not count must not be used either.
    other = (rows["layer"] == "p5") & (rows["image_id"] == "image 23")
    rows.loc[other, "status"] = "nan_confidence"
    table = _scores(rows).controls_table().set_index(["layer", "metric", "control"])
    assert table["n_images"].to_dict() == {
        (layer, metric, control): 24 - 2 * (control == "random") - (layer == "p5")
        for layer, metric, control in itertools.product(["p2", "p5"], [AD, IC], CONTROLS)
    }
    assert table.loc[("p5", IC, "random"), "p_value"] == 2.0**-18, "20 increases, less the two images that random lost"


def test_without_controls_there_is_no_mark_and_the_table_says_what_to_do(values):
    scores = _scores(values, controls=None)
    assert "beats_controls" not in scores.summary()
    with pytest.raises(MetricError) as caught:
        scores.controls_table()
    assert str(caught.value) == ("the run has no control maps; score(..., controls=True) adds them")


def test_a_run_of_controls_alone_or_without_rows_that_count_has_marks_all_the_same(values):
    alone = {pair: columns for pair, columns in values.items() if pair[1] in CONTROLS}
    scores = _scores(alone)
    assert scores.controls_table().empty
    assert scores.summary()["beats_controls"].isna().all()
    rows = _rows(values).assign(status="nan_map")
    marks = _scores(rows).summary()["beats_controls"]
    assert marks.dropna().to_list() == ["", ""]


def test_marks_are_written_and_the_table_comes_back_from_a_file(values, tmp_path):
    scores = _scores(values)
    scores.save(tmp_path)
    written = pd.read_csv(tmp_path / "summary.csv").set_index(["layer", "method"])["beats_controls"]
    assert written.dropna().to_dict() == {("p5", "gradcam"): IC}
    pd.testing.assert_frame_equal(Scores.load(tmp_path).controls_table(), scores.controls_table())


# ---- Fake-CAM, which checks metrics


def test_fake_cam_is_no_rival_and_its_success_is_said_once_of_the_metric(values):
    values[("input", "fake-cam")] = {AD: [0.0] * 24, IC: [0.0] * 24}
    scores = _scores(values, controls=[*CONTROLS, "fake-cam"])
    assert set(scores.controls_table()["control"]) == set(CONTROLS)
    assert scores.summary()["beats_controls"].isna().to_list() == [False, False, True, True, True]
    assert scores.fooled_metrics() == {
        AD: "this metric can be fooled: fake-cam, ones except for one pixel, has 0.0, the best method (gradcam at p5) 11.9"
    }
    assert not any("fake-cam" in text for text in scores.warnings())


def test_a_metric_in_which_methods_and_fake_cam_are_equal_can_be_fooled_too(values):
    values[("input", "fake-cam")] = {AD: [100.0] * 24, IC: values[("p5", "gradcam")][IC][::-1]}
    assert list(_scores(values, controls=["fake-cam"]).fooled_metrics()) == [IC]


def test_the_best_of_many_methods_that_is_ahead_by_chance_does_not_hide_that_a_metric_can_be_fooled():
    noise = np.random.default_rng(0)
    values = {(f"p{number}", "gradcam"): {AD: noise.normal(30, 9, 24).tolist()} for number in range(12)}
    values[("input", "fake-cam")] = {AD: noise.normal(30, 9, 24).tolist()}
    means = {pair: np.mean(column[AD]) for pair, column in values.items()}
    best = min(means, key=means.__getitem__)
    assert best[1] == "gradcam"
    scores = _scores(values, controls=["fake-cam"])
    assert scores.fooled_metrics()[AD] == (
        f"this metric may be fooled: fake-cam, ones except for one pixel, has {means['input', 'fake-cam']:.1f}, the best "
        f"method (gradcam at {best[0]}) {means[best]:.1f}, which is not significantly better"
    )


def test_a_metric_in_which_one_method_beats_fake_cam_is_not_fooled_unless_its_images_are_few_groups(values):
    values[("input", "fake-cam")] = {AD: [90.0] * 24, IC: [50.0] * 24}
    scores = _scores(values, controls=["fake-cam"])
    assert scores.fooled_metrics() == {}
    groups = {name: str(number % 3) for number, name in enumerate(scores.rows["image_id"].unique())}
    assert list(scores.with_groups(groups).fooled_metrics()) == [AD, IC]
    assert list(scores.fooled_metrics(level=1 - 1e-9)) == [AD, IC]


def test_with_fake_cam_alone_there_is_nothing_to_beat(values):
    values[("input", "fake-cam")] = {AD: [0.0] * 24, IC: [0.0] * 24}
    scores = _scores(values, controls=["fake-cam"])
    assert "beats_controls" not in scores.summary()
    with pytest.raises(MetricError, match=r"^the run has no control maps; score"):
        scores.controls_table()


def test_without_fake_cam_nothing_is_said_about_metrics(values):
    assert _scores(values).fooled_metrics() == {}
    assert _scores(values, controls=None).fooled_metrics() == {}


# ---- by slow loops


tables = st.tuples(st.integers(2, 8), st.integers(1, 3), st.integers(1, 3), st.integers(0, 10_000))


@PROPERTY
@given(tables)
def test_the_table_is_what_loops_over_images_find(shape):
    images, methods, controls, seed = shape
    rng = np.random.default_rng(seed)
    pairs = [("p5", f"method {n}") for n in range(methods)] + [("input", f"control {n}") for n in range(controls)]
    values = {
        pair: {AD: rng.integers(0, 9, images).astype(float).tolist(), IC: (100.0 * rng.integers(0, 2, images)).tolist()}
        for pair in pairs
    }
    names = [method for _, method in pairs[methods:]]
    table = compare_with_controls(_rows(values), METRICS, names, level=0.6)
    expected = []
    for metric, side in ((AD, -1), (IC, 1)):
        for own in pairs[:methods]:
            for control in pairs[methods:]:
                mine, theirs = values[own][metric], values[control][metric]
                better = [side * (a - b) for a, b in zip(mine, theirs, strict=True)]
                p = slow_p_above(better)
                expected.append((own[1], metric, control[1], sum(mine) / images, sum(theirs) / images, p))
    columns = ["method", "metric", "control", "value", "control_value", "p_value"]
    actual = [tuple(row) for row in table[columns].itertuples(index=False)]
    assert [row[:3] for row in actual] == [row[:3] for row in expected]
    np.testing.assert_allclose([row[3:] for row in actual], [row[3:] for row in expected], rtol=1e-9)
    corrected = slow_holm([row[-1] for row in expected])
    np.testing.assert_allclose(table["p_holm"], corrected, rtol=1e-9)
    assert table["beats"].to_list() == [p < 0.4 for p in table["p_holm"]]


def test_without_a_difference_a_false_mark_is_rare():
    rng = np.random.default_rng(0)
    wrong = 0
    for run in range(50):
        values = {
            pair: {AD: rng.normal(50, 10, 30).tolist(), IC: (100.0 * rng.integers(0, 2, 30)).tolist()}
            for pair in [("p5", "gradcam"), ("p5", "layercam"), ("input", "random"), ("input", "edges")]
        }
        wrong += bool(_scores(values).controls_table().assign(run=run)["beats"].any())
    assert wrong <= 7, "5 % of 50, and three standard deviations"


def test_a_large_table_has_every_test():
    rng = np.random.default_rng(0)
    metrics = [{"name": f"m{n}", "higher_is_better": True, "interval": "mean"} for n in range(15)]
    pairs = [(f"p{n}", "gradcam") for n in range(37)] + [("input", name) for name in NAMES]
    index = pd.MultiIndex.from_product([range(210), range(len(pairs))])
    rows = pd.DataFrame({"image_id": index.get_level_values(0), "status": "ok"})
    rows["layer"], rows["method"] = zip(*(pairs[place] for place in index.get_level_values(1)), strict=True)
    for metric in metrics:
        rows[metric["name"]] = rng.normal(size=len(rows)) + 0.02 * index.get_level_values(1)
    table = compare_with_controls(rows, metrics, NAMES)
    assert len(table) == 37 * 15 * 4, "fake-cam is no rival"
    beaten = table.groupby("layer", sort=False)["beats"].mean()
    assert beaten["p36"] == 0, "which is behind the controls in this order"


# ---- in runs


def tiny() -> nn.Module:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.ReLU())
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def test_controls_are_added_after_the_methods_and_named_in_the_manifest():
    scores = xaieval.score(tiny(), [images()], ["0", "2"], "gradcam", controls=True, progress=False)
    pairs = list(scores.rows[["layer", "method"]].drop_duplicates().itertuples(index=False, name=None))
    assert pairs == [("0", "gradcam"), ("2", "gradcam"), *(("input", name) for name in NAMES)]
    assert scores.manifest["controls"] == NAMES
    named = xaieval.score(tiny(), [images()], ["0", "2"], ["gradcam", *NAMES], progress=False)
    pd.testing.assert_frame_equal(scores.rows, named.rows)
    assert "controls" not in named.manifest
    assert "beats_controls" not in named.summary()
    assert list(scores.summary()["beats_controls"].isna()) == [False, False, *[True] * 5]


def test_controls_that_were_asked_for_are_not_added_twice():
    scores = xaieval.score(tiny(), [images()], "2", ["edges", "gradcam", "random"], controls=True, progress=False)
    assert list(scores.rows["method"].unique()) == ["gradcam", "edges", "random", "uniform", "center", "fake-cam"]
    assert scores.manifest["controls"] == NAMES


def test_a_method_of_ones_own_by_the_name_of_a_control_is_refused():
    def random(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return images.mean(dim=1)

    with pytest.raises(ExplainerError, match=r"methods are one or more, each name once; got \['random', 'random'"):
        xaieval.score(tiny(), [images()], methods=random, controls=True, progress=False)


def test_black_boxes_volumes_and_shares_of_a_run_have_controls_too(tmp_path):
    def brightness(images: Tensor) -> Tensor:
        return torch.stack([images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3))], dim=1)

    rows = xaieval.score(brightness, [images()], methods="center", controls=True, progress=False).rows
    assert set(rows["method"]) == set(NAMES)
    ball = nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    rows = xaieval.score(ball, [torch.rand(2, 1, 5, 6, 7)], "0", controls=True, progress=False).rows
    assert (rows["status"].isin(["ok", "constant_map"])).all()
    shared = distributed.score(tiny(), [images()], "2", output_dir=tmp_path, controls=True, progress=False)
    assert shared.manifest["controls"] == NAMES
    assert Scores.load(tmp_path).summary()["beats_controls"].notna().sum() == 1


def test_a_run_that_stops_early_has_controls_that_take_no_part_in_the_stopping():
    loader = DataLoader(TensorDataset(images(20)), batch_size=10, collate_fn=lambda items: torch.stack([x for (x,) in items]))
    options: dict[str, Any] = {"stop": xaieval.Stop(rule="best", min_images=10, max_images=10), "progress": False}
    scores = xaieval.score(tiny(), loader, ["0", "2"], "gradcam", controls=True, **options)
    assert set(scores.manifest["stop"]["orders"]) == {"gradcam"}
    assert len(scores.rows) == 10 * 7
    assert scores.summary()["beats_controls"].notna().sum() == 2


@pytest.fixture(scope="module")
def scene_scores() -> Scores:
    """Scores of the built-in model on 60 scenes."""
    prepare = Preprocessing(image_size=128, resize=128, mean=(0.5,) * 3, std=(0.5,) * 3)
    loader = scenes(prepare, size=60).loader(batch_size=30)
    return xaieval.score(xaieval.models.fpn_scenes(), loader, ["fpn[p3]", "fpn[p5]"], controls=True, progress=False)


@pytest.mark.slow
def test_a_good_level_beats_all_controls_in_average_drop_which_fake_cam_fools(scene_scores):
    summary = scene_scores.summary()
    assert summary.loc[("input", "fake-cam"), AD] < 0.1
    assert summary.loc[("input", "fake-cam"), AD] == summary[AD].min()
    table = scene_scores.controls_table().set_index(["layer", "metric", "control"])
    assert table.loc[("fpn[p5]", AD, "random"), "beats"]
    assert table.loc[("fpn[p5]", AD, "uniform"), "beats"]
    assert "fake-cam" not in table.index.get_level_values("control")
    assert summary.loc[("fpn[p5]", "gradcam"), "beats_controls"].startswith(AD)
    assert next(iter(scene_scores.fooled_metrics())) == AD


@pytest.mark.slow
def test_the_command_adds_controls_marks_and_warnings(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["score", "--layers", "fpn[p5]", "--max-images", "8", "--batch-size", "8", "--no-progress"]
    main([*arguments, "--controls", "--out", "by-option"])
    printed = capsys.readouterr().out
    assert "controls beaten" in printed
    assert printed.count("(control)") == 5
    assert re.search(r"^ *fpn\[p5\] .* \d+\.\d +8 +0 +(none|(AD|IC) [1-4]/4.*)$", printed, re.M)
    assert "the control map " not in printed
    assert "\nAD %: this metric can be fooled: fake-cam, ones except for one pixel, has " in printed
    Path("run.toml").write_text("controls = true\n")
    main([arguments[0], "run.toml", *arguments[1:], "--out", "by-file"])
    capsys.readouterr()
    manifests = [json.loads((Path(folder) / "manifest.json").read_text()) for folder in ("by-option", "by-file")]
    assert manifests[0]["controls"] == manifests[1]["controls"] == NAMES
    main([*arguments, "--out", "without"])
    printed = capsys.readouterr().out
    assert "control" not in printed
    assert "warning" not in printed


# ---- the page


def test_the_table_of_the_page_is_the_benchmark_result():
    folder = ROOT / "benchmarks/controls"
    scores, summary = Scores.load(folder), pd.read_csv(folder / "summary.csv")
    won = scores.controls_table().groupby(["layer", "method", "metric"])["beats"].sum()
    metrics = [metric["name"] for metric in scores.metrics if "excess_of" not in metric]
    expected = []
    for row in summary.to_dict("records"):
        counts = [str(won.get((row["layer"], row["method"], metric))) for metric in metrics]
        beaten = "(control)" if row["method"] in NAMES else ", ".join(counts)
        cells = [f"`{row['method']}`", f"`{row['layer']}`", *(_cell(row, metric) for metric in metrics), beaten]
        expected.append(f"| {' | '.join(cells)} |")
    page = (ROOT / "docs/controls.md").read_text()
    assert _lines_after(page, "<!-- from benchmarks/controls") == expected
    versions = scores.manifest["versions"]
    assert f"n = {len(scores.rows) // len(summary)}, seed {scores.manifest['seed']}, xaieval {versions['xaieval']}" in page
    assert f"torch {versions['torch']}" in page
    beaten = summary.set_index(["method", "layer"])["beats_controls"]
    assert beaten["layercam", "fpn[p2]"] == AD
    assert all(beaten[method, layer].startswith(AD) for method in ("gradcam", "layercam") for layer in ("fpn[p4]", "fpn[p5]"))
    assert all(IC in beaten[method, "fpn[p5]"] for method in ("gradcam", "layercam"))
    assert beaten[[("gradcam", "fpn[p3]"), ("layercam", "fpn[p3]")]].isna().all(), "as the page says"


def test_the_matched_table_of_the_page_is_the_benchmark_result():
    scores = Scores.load(ROOT / "benchmarks/controls")
    table, areas = scores.matched_table(), scores.summary()["mask_area"]
    won = table.groupby(["layer", "method", "metric"])["beats"].sum()
    expected = []
    for (layer, method), tests in table[table["metric"] == AD].groupby(["layer", "method"], sort=False):
        first = tests.iloc[0]
        counts = ", ".join(str(won[layer, method, metric]) for metric in (AD, IC, "average_gain"))
        means = " | ".join(f"{mean:.1f}" for mean in (100 * areas[layer, method], first["value"], *tests["control_value"]))
        excess = f"{first['excess']:.1f} [{first['low']:.1f}, {first['high']:.1f}]"
        expected.append(f"| `{method}` | `{layer}` | {means} | {excess} | {counts} |")
    page = (ROOT / "docs/controls.md").read_text()
    assert _lines_after(page, "<!-- matched controls in AD") == expected
    assert table.loc[table["metric"] == AD, "beats"].all(), "as the page says"
    excess = scores.summary()[f"{AD}_excess"].drop(index="input")
    assert excess.idxmin()[0] == "fpn[p4]"


def _lines_after(page: str, mark: str) -> list[str]:
    """The rows of the table after a comment."""
    return [line for line in page.split(mark)[1].split("<!--")[0].splitlines() if line.startswith("| `")]


def _cell(row: dict[str, Any], metric: str) -> str:
    return f"{row[metric]:.1f} [{row[f'{metric}_low']:.1f}, {row[f'{metric}_high']:.1f}]"
