"""Figures show the numbers of the summary, their labels do not overlap, and they can be printed."""

from __future__ import annotations

import itertools
import os
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

import xaieval
from xaieval import Scores
from xaieval.config.controls import MATCHED
from xaieval.data import Preprocessing
from xaieval.errors import DataError, MetricError, UsageError
from xaieval.metrics import METRICS, insertion
from xaieval.report import curves_figure, save_figure
from xaieval.report.figures.kinds import KINDS
from xaieval.report.figures.style import HUES, colours, plain, styles
from xaieval.results.matched import excess_entry

AD, IC = "average_drop", "increase_in_confidence"
LAYERS = [f"backbone.body.layer{1 + i // 3}.{i % 3}.conv3" for i in range(12)]
METHODS = ["gradcam", "layercam", "captum:IntegratedGradients", "pytorch-grad-cam:ScoreCAM", "torch-cam:GradCAMpp"]
METHODS += ["attention-rollout", "random", "rise"]
SHARES = (0.0, 0.1, 0.4, 1.0)
ENTRIES = [METRICS[AD].to_dict(), METRICS[IC].to_dict(), insertion(steps=SHARES, keep_curve=True).to_dict()]


def run(layers: int = 4, methods: int = 1, images: int = 30, classes: int = 3, matched: bool = False) -> Scores:
    """A run of made-up numbers that get better from layer to layer, if asked for with matched controls of the drops."""
    rng = np.random.default_rng(0)
    parts = []
    for number, (layer, method) in enumerate(itertools.product(LAYERS[:layers], METHODS[:methods])):
        drops = np.clip(rng.beta(0.5, 0.5, images) * (140 - 10 * (number // methods)), 0, 100)
        curves = np.clip(np.array(SHARES) + rng.normal(0, 0.1, (images, 4)), 0, 1)
        part = {"image_id": range(images), "layer": layer, "method": method, "status": "ok", AD: drops}
        part |= {IC: 100.0 * (rng.random(images) < 0.2), "insertion": curves.mean(axis=1), "insertion_curve": list(curves)}
        parts.append(pd.DataFrame(part | {"label": pd.array(np.arange(images) % classes, dtype="Int64")}))
    rows, manifest = pd.concat(parts, ignore_index=True), {"metrics": ENTRIES, "seed": 0}
    if not matched:
        return Scores(rows, manifest)
    columns = {f"{AD}_{name}": rows[AD] + 10 * number for number, name in enumerate(MATCHED)}
    rows = rows.assign(**columns, **{f"{AD}_excess": 0.0})
    return Scores(
        rows, manifest | {"metrics": [*ENTRIES, excess_entry(ENTRIES[0], MATCHED[0])], "matched_controls": [*MATCHED]}
    )


@pytest.fixture
def drawn_texts(monkeypatch):
    """A function that returns the text and the bounding box of every text drawn in a figure."""

    def boxes(figure: Figure) -> list[tuple[str, mpl.transforms.Bbox]]:
        found: list[Text] = []
        draw = Text.draw
        monkeypatch.setattr(Text, "draw", lambda text, renderer: (found.append(text), draw(text, renderer))[1])
        FigureCanvasAgg(figure).draw()
        monkeypatch.setattr(Text, "draw", draw)
        return [(text.get_text(), text.get_window_extent()) for text in found if text.get_visible() and text.get_text().strip()]

    return boxes


def overlaps(boxes):
    """Pairs of texts that overlap by more than a pixel."""
    return [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


def outside(figure: Figure, boxes):
    """Texts that are cut off at the border of the figure."""
    whole = figure.bbox
    return [text for text, box in boxes if min(box.x0, box.y0) < -1 or box.x1 > whole.x1 + 1 or box.y1 > whole.y1 + 1]


ONE, TWO = 3.5, 7.0  # inches, one column and two
CASES = [
    *[("tradeoff", 1, 1, ONE), ("tradeoff", 12, 1, ONE), ("tradeoff", 4, 8, TWO)],
    *[("heatmap", 1, 1, ONE), ("heatmap", 12, 8, ONE), ("heatmap", 4, 3, TWO)],
    *[("curves", 12, 1, ONE), ("curves", 4, 3, TWO), ("classes", 1, 8, ONE), ("classes", 12, 1, TWO)],
    *[("spread", 12, 1, ONE), ("spread", 2, 4, TWO), ("ranking", 4, 1, ONE), ("ranking", 1, 8, TWO)],
    *[("agreement", 4, 1, ONE), ("agreement", 12, 8, TWO), ("matched", 1, 1, ONE), ("matched", 12, 2, TWO)],
]
# XAIEVAL_ALL_FIGURES=1 tests all numbers of layers and methods, which takes half an hour.
EVERY = [(layers, methods, width) for layers in range(1, 13) for methods in range(1, 9) for width in (ONE, TWO)]
if os.environ.get("XAIEVAL_ALL_FIGURES"):
    CASES = [(kind, *case) for kind in KINDS for case in EVERY]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "layers", "methods", "width"), CASES)
def test_labels_neither_overlap_nor_are_cut_off(kind, layers, methods, width, drawn_texts):
    too_many = kind in ("curves", "classes") and layers * methods > 24
    too_few = kind == "agreement" and layers * methods < 4
    if too_many or too_few or (kind == "ranking" and not 2 <= layers * methods <= 24):
        pytest.skip("refused (see other tests), or a ranking with too many pairs to test")
    figure = run(layers, methods, images=12, matched=kind == "matched").plot(kind, size=width)
    assert figure.get_figwidth() == width
    boxes = drawn_texts(figure)
    assert len(boxes) > 3
    assert overlaps(boxes) == []
    assert outside(figure, boxes) == []


@pytest.mark.slow
@pytest.mark.parametrize(("count", "width"), [(1, ONE), (4, TWO), (12, ONE)])
def test_labels_of_maps_neither_overlap_nor_are_cut_off(count, width, drawn_texts):
    maps = {name: torch.rand(3, 8, 8) for name in LAYERS[:count]}
    titles = ["airplane", "baseballdiamond", "a/long/folder/agricultural00.tif"]
    figure = xaieval.show(torch.rand(3, 3, 8, 8), maps, titles, "mobilenetv2_100, gradcam", size=width)
    boxes = drawn_texts(figure)
    cut = width == ONE and count == 12  # only the end of a long title fits
    assert {text.replace("\n", "") for text, _ in boxes} >= {"image", *maps, *titles[: 2 if cut else 3]}
    assert overlaps(boxes) == []
    assert outside(figure, boxes) == []


def test_the_check_of_overlaps_detects_one(drawn_texts):
    figure = Figure()
    for x in (0.5, 0.51, 0.99):
        figure.text(x, 0.5, "label")
    boxes = drawn_texts(figure)
    assert overlaps(boxes) == [("label", "label")]
    assert outside(figure, boxes) == ["label"]


# ---- what is drawn is what was measured


def test_the_tradeoff_shows_means_and_intervals_of_the_summary():
    scores = run(3, 2)
    table = scores.summary(0.9)
    [axes] = scores.plot(level=0.9).axes
    bars = axes.containers
    assert len(bars) == len(table)
    for (_, row), bar in zip(table.sort_index(level="method", sort_remaining=False).iterrows(), bars, strict=True):
        point, _, (across, up) = bar
        assert (point.get_xdata()[0], point.get_ydata()[0]) == (row[AD], row[IC])
        [[(left, _), (right, _)]] = across.get_segments()
        [[(_, low), (_, high)]] = up.get_segments()
        np.testing.assert_allclose([left, right, low, high], row[[f"{AD}_low", f"{AD}_high", f"{IC}_low", f"{IC}_high"]])
    [legend] = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts() if text.get_text()] == [*METHODS[:2], *LAYERS[:3]]
    assert axes.figure.get_suptitle() == "n = 30, 90 % intervals"


@pytest.mark.slow
def test_no_two_points_of_the_tradeoff_look_alike():
    for layers, methods in ((12, 1), (12, 8)):
        [axes] = run(layers, methods, images=5).plot(size=(7, 5)).axes
        points = [bar[0] for bar in axes.containers]
        seen = {(point.get_color(), point.get_marker(), point.get_markerfacecolor()) for point in points}
        assert len(seen) == layers * methods


@pytest.mark.slow
def test_the_heatmap_writes_the_values_into_its_cells():
    scores = run(3, 2)
    scores.rows.loc[scores.rows["layer"] == LAYERS[1], "status"] = "nan_map"
    control = scores.rows[scores.rows["layer"] == LAYERS[0]].assign(layer="input", method="random")
    scores = Scores(pd.concat([scores.rows, control], ignore_index=True), scores.manifest)
    axes, bar = scores.plot("heatmap").axes
    table = scores.summary()[AD]
    values = axes.collections[0].get_array()
    for row, layer in enumerate([*LAYERS[:3], "input"]):
        for column, method in enumerate([*METHODS[:2], "random"]):
            np.testing.assert_equal(float(np.ma.filled(values, np.nan)[row, column]), table.get((layer, method), np.nan))
    written = [text.get_text() for text in axes.texts]
    assert written == [f"{value:.1f}" if np.isfinite(value) else "–" for value in table]  # noqa: RUF001  # a dash, as it is drawn
    assert bar.get_xlabel() == "AD %, lower is better"
    assert axes.collections[0].get_cmap().name == "cividis_r", "bright is better"
    assert scores.plot("heatmap", metrics=IC).axes[0].collections[0].get_cmap().name == "cividis"


def test_bars_of_classes_are_the_means_of_their_images():
    scores = run(2, 1, images=20)
    scores.rows.loc[scores.rows["image_id"] == 0, "label"] = pd.NA
    [axes] = scores.plot("classes", classes=["river", "forest", "beach"], level=0.8).axes
    for number, layer in enumerate(LAYERS[:2]):
        bars = [bar for bar in axes.containers if isinstance(bar, mpl.container.BarContainer)][number]
        for label, bar in enumerate(bars):
            rows = scores.rows[(scores.rows["label"] == label).fillna(False) & (scores.rows["layer"] == layer)]
            assert bar.get_width() == pytest.approx(rows[AD].mean())
        ends = bars.errorbar.lines[2][0].get_segments()
        low, high = Scores(rows, scores.manifest).summary(0.8)[[f"{AD}_low", f"{AD}_high"]].iloc[0]
        np.testing.assert_allclose([ends[2][0][0], ends[2][1][0]], [low, high])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["river, n = 6", "forest, n = 7", "beach, n = 6"]
    assert "without 1 unlabelled image" in axes.figure.get_suptitle()
    chosen = scores.plot("classes", classes={2: "beach", 0: "river"}).axes[0]
    assert [label.get_text() for label in chosen.get_yticklabels()] == ["beach, n = 6", "river, n = 6"]


def test_the_spread_shows_every_image_of_a_few():
    scores = run(2, images=20)
    [axes] = scores.plot("spread").axes
    for place, layer in enumerate(LAYERS[:2]):
        values = scores.rows.loc[scores.rows["layer"] == layer, AD]
        dots = axes.collections[3 * place].get_offsets()
        np.testing.assert_allclose(dots[:, 0], np.sort(values))
        assert np.ptp(dots[:, 1]) < 1, "within the row"
        assert len(np.unique(dots.round(9), axis=0)) == 20, "no dot hides another"
        [[(low, _), (high, _)]] = axes.collections[3 * place + 1].get_segments()
        np.testing.assert_allclose([low, high], values.quantile([0.25, 0.75]))
    means = axes.containers[0][0]
    np.testing.assert_allclose(means.get_xdata(orig=False), scores.summary()[AD])


def test_the_spread_of_many_images_is_a_histogram_and_as_small(tmp_path):
    rng = np.random.default_rng(0)
    drops = np.where(rng.random(50_000) < 0.3, 0.0, rng.uniform(0, 100, 50_000))
    rows = pd.DataFrame({"image_id": range(50_000), "layer": "p2", "method": "gradcam", "status": "ok", AD: drops})
    figure = Scores(rows, {"metrics": ENTRIES[:1]}).plot("spread")
    outline = figure.axes[0].collections[0].get_paths()[0].vertices
    heights = np.unique(outline[:, 1][outline[:, 1] > 0])
    share = np.histogram(drops, 50)[0] / np.histogram(drops, 50)[0].max()
    assert heights.max() == pytest.approx(0.42), "the heap at 0"
    assert heights[heights < 0.4].max() == pytest.approx(0.42 * np.sort(share)[-2])
    save_figure(figure, tmp_path / "spread.pdf")
    assert (tmp_path / "spread.pdf").stat().st_size < 40_000


def test_curves_have_the_axis_of_their_metric():
    scores = run(2, 2)
    figure = scores.plot("curves", methods=["gradcam"])
    lines = figure.axes[0].get_lines()
    np.testing.assert_allclose(lines[0].get_xdata(), SHARES)
    own = scores.rows[(scores.rows["layer"] == LAYERS[0]) & (scores.rows["method"] == "gradcam")]
    np.testing.assert_allclose(lines[0].get_ydata(), np.mean(list(own["insertion_curve"]), axis=0))
    [legend] = figure.legends
    assert legend.get_texts()[0].get_text() == f"{LAYERS[0]}: {own['insertion'].mean():.3f}"
    assert legend.get_title().get_text() == "mean insertion"


@pytest.mark.parametrize(("layers", "methods", "names"), [(3, 1, LAYERS[:3]), (1, 3, METHODS[:3]), (2, 2, None)])
def test_a_ranking_is_over_what_there_is_several_of(layers, methods, names):
    means = run(layers, methods).plot("ranking").axes[0]
    shown = [label.get_text().replace("\n", "") for label in means.get_yticklabels()]
    assert sorted(shown) == sorted(names or [f"{layer}{method}" for layer in LAYERS[:2] for method in METHODS[:2]])
    assert list(means.containers[0][0].get_xdata()) == sorted(means.containers[0][0].get_xdata()), "best first"


def test_layers_and_methods_can_be_chosen():
    scores = run(3, 3)
    labels = scores.plot("heatmap", layers=LAYERS[1:3], methods="layercam").axes[0]
    assert [label.get_text().replace("\n", "") for label in labels.get_yticklabels()] == LAYERS[1:3]
    assert [label.get_text() for label in labels.get_xticklabels()] == ["layercam"]


def test_a_run_with_controls_is_drawn_without_them():
    scores = run(2, 2)
    scores = Scores(scores.rows, {**scores.manifest, "controls": ["layercam"]})
    assert scores.plot(methods=["gradcam"]).axes


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "heatmp"}, "unknown kind of figure 'heatmp'; did you mean 'heatmap'?"),
        ({"kind": "heatmap", "metrics": "insertoin"}, "the run has no metric 'insertoin' to draw; did you mean 'insertion'?"),
        (
            {"kind": "spread", "metrics": [AD, "insertion"]},
            "this kind of figure shows one metric; got \\['average_drop', 'insertion'\\]",
        ),
        ({"metrics": AD}, "a trade-off is between two metrics, such as .*; got 'average_drop'"),
        (
            {"metrics": (AD, "deletion")},
            "the run has no metric 'deletion' to draw; known: average_drop, increase_in_confidence, insertion",
        ),
        ({"layers": ["layer9"]}, "the run has no layer 'layer9'; known: backbone"),
        ({"methods": ["gradcm"]}, "the run has no method 'gradcm'; did you mean 'gradcam'?"),
        ({"kind": "spread", "metrics": IC}, "increase_in_confidence is 0 or 100 for each image"),
        ({"kind": "curves", "metrics": AD}, "the rows have no curves of 'average_drop'"),
        ({"classes": ["cat"]}, "classes= applies only to kind='classes', not to kind='tradeoff'"),
        ({"kind": "classes", "classes": ["cat", "dog"]}, "classes= has no name for the label 2; labels of the run: 0, 1, 2"),
        ({"kind": "classes", "classes": {7: "cat"}}, "no image has the label 7; labels of the run: 0, 1, 2"),
        ({"size": 0}, "size is a positive width, or \\(width, height\\), in inches; got 0"),
        ({"level": 2}, "the level of an interval is a probability"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(UsageError, match=f"^{message}") as raised:
        run(2).plot(**arguments)
    assert "\n" not in str(raised.value)


def test_a_run_without_labels_curves_or_values_says_so():
    scores = run(2)
    scores.rows["label"] = pd.array([pd.NA] * len(scores.rows), dtype="Int64")
    with pytest.raises(MetricError, match=r"the rows have no labels, so no classes can be drawn; score batches of"):
        scores.plot("classes")
    with pytest.raises(MetricError, match=r"the run kept no curves; score it with a metric that keeps them"):
        Scores(scores.rows.drop(columns="insertion_curve"), scores.manifest).plot("curves")
    with pytest.raises(MetricError, match=r"no row has a value of average_drop; the column 'status'"):
        Scores(scores.rows.assign(status="nan_map"), scores.manifest).plot("spread")


def test_more_than_can_be_told_apart_is_refused():
    many = run(12, 3, images=3)
    with pytest.raises(
        MetricError, match=r"36 curves cannot be told apart in one figure, at most 24 can; choose some with layers="
    ):
        many.plot("curves")
    rows = pd.concat([run(1, images=3).rows.assign(layer=f"p{number}", method=f"m{number % 2}") for number in range(13)])
    with pytest.raises(MetricError, match=r"13 layers of 2 methods cannot be told apart in one figure, at most 12 can"):
        Scores(rows, many.manifest).plot()
    labelled = run(1, images=101, classes=101)
    with pytest.raises(MetricError, match=r"101 classes do not fit into a figure, at most 100 do; choose some with classes="):
        labelled.plot("classes")


# ---- ax=, windows, styles, print


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ranking"])
def test_a_figure_is_drawn_on_the_axes_of_the_caller(kind):
    figure = Figure(figsize=(6, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    assert run(4, matched=kind == "matched").plot(kind, ax=right) is figure
    assert right.has_data()
    assert not left.has_data()
    assert tuple(figure.get_size_inches()) == (6, 5), "the figure keeps its size"


def test_axes_are_refused_where_several_are_needed_or_a_size_is_given():
    axes = Figure().subplots()
    with pytest.raises(UsageError, match="kind='ranking' needs two axes, but ax= is one; leave ax= out"):
        run(2).plot("ranking", ax=axes)
    with pytest.raises(UsageError, match="2 metrics need 2 axes, but ax= is one; draw one metric"):
        curves_figure(run(2).rows, ["insertion", "insertion"], SHARES, ax=axes)
    with pytest.raises(UsageError, match="size= sets the size of a new figure, and ax= draws on existing axes"):
        run(2).plot(ax=axes, size=3.5)


def test_a_figure_in_a_subfigure_is_the_whole_one():
    figure = Figure()
    assert run(2).plot(ax=figure.subfigures(1, 2)[0].subplots()) is figure


@pytest.mark.parametrize("kind", KINDS)
def test_figures_open_no_window_and_change_no_settings(kind, tmp_path):
    before, windows = dict(mpl.rcParams), plt.get_fignums()  # other tests may have some
    figure = run(4, matched=kind == "matched").plot(kind)
    save_figure(figure, tmp_path / "figure.svg")
    assert plt.get_fignums() == windows
    assert dict(mpl.rcParams) == before
    assert figure.canvas.manager is None


@pytest.mark.parametrize("kind", KINDS)
def test_style_sheets_apply(kind, drawn_texts):
    with plt.style.context(["dark_background", {"font.family": "serif", "font.size": 6, "lines.linewidth": 3}]):
        figure = run(4, 1, images=10, matched=kind == "matched").plot(kind)
        boxes = drawn_texts(figure)
        texts = [text for text in figure.findobj(Text) if text.get_text() and text not in figure.axes[0].texts]
        assert {text.get_fontfamily()[0] for text in texts} == {"serif"}
        assert max(text.get_fontsize() for text in texts) <= 6
        assert {mpl.colors.to_hex(text.get_color()) for text in texts} <= {"#ffffff"}
        assert figure.get_facecolor() == (0, 0, 0, 1)
        assert "#ffffff" in colours()
        assert "#000000" not in colours()
    assert overlaps(boxes) == []


def test_sizes_are_inches():
    assert tuple(run(2).plot(size=(4, 3)).get_size_inches()) == (4, 3)
    few, many = (run(count, images=5).plot("heatmap", size=6) for count in (2, 12))
    assert (few.get_figwidth(), many.get_figwidth()) == (6, 6)
    assert many.get_figheight() > few.get_figheight() + 2, "the height depends on the number of layers"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_pdf_has_truetype_fonts_and_no_pixels_but_a_colour_bar(kind, tmp_path):
    save_figure(run(4, 1, images=10, matched=kind == "matched").plot(kind), tmp_path / "figure.pdf")
    content = (tmp_path / "figure.pdf").read_bytes()
    assert b"/CIDFontType2" in content
    assert b"/Type3" not in content
    assert len(re.findall(rb"/Subtype /Image", content)) == (1 if kind in ("heatmap", "agreement") else 0)


def test_a_pdf_by_savefig_alone_would_have_other_fonts(tmp_path):
    run(2).plot().savefig(tmp_path / "figure.pdf")
    assert b"/Type3" in (tmp_path / "figure.pdf").read_bytes(), "otherwise save_figure is not needed"


# ---- colours

# Colours as seen without one kind of cones: Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of
# color vision deficiency", IEEE TVCG 15, 2009, severity 1.
EYES = {
    "all cones": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
JUST_SEEN = 2.3  # the just noticeable difference in Lab


def lab(colour: str, eyes) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as these eyes see it."""
    srgb = np.array(mpl.colors.to_rgb(colour))
    light = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.asarray(eyes) @ light, 0, 1) / XYZ.sum(axis=1)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def nearest(palette, eyes) -> float:
    return min(np.linalg.norm(lab(one, eyes) - lab(other, eyes)) for one, other in itertools.combinations(palette, 2))


@pytest.mark.parametrize("ink", ["#000000", "#ffffff"])
@pytest.mark.parametrize("eyes", EYES.values(), ids=EYES)
def test_colours_differ_for_all_eyes(eyes, ink):
    assert nearest([*HUES, ink], eyes) > 6 * JUST_SEEN


def test_matplotlibs_own_colours_would_not_pass():
    assert nearest([f"C{number}" for number in range(8)], EYES["deuteranopia"]) < 4 * JUST_SEEN


@pytest.mark.parametrize("name", ["inferno", "cividis"])
@pytest.mark.parametrize("eyes", EYES.values(), ids=EYES)
def test_colour_maps_get_brighter_all_the_way(name, eyes):
    shades = [lab(mpl.colors.to_hex(shade), eyes)[0] for shade in mpl.colormaps[name](np.linspace(0, 1, 32))]
    assert min(np.diff(shades)) > 0


def test_no_two_styles_are_the_same_even_without_colours():
    for field in ("marker", "dash", "hatch"):
        chosen = styles(24, "curves")
        assert len({(style.colour, getattr(style, field)) for style in chosen}) == 24
    with pytest.raises(MetricError, match="25 curves cannot be told apart"):
        styles(25, "curves")


# ---- names


@pytest.mark.parametrize("name", ["_blocks.0", "a$b$c", "$", "<b>&", "x" * 60, "fpn[p2]#1"])
def test_names_are_drawn_literally(name, drawn_texts):
    rows = run(2, images=5).rows
    rows["layer"] = rows["layer"].replace(LAYERS[0], name)
    for kind in ("tradeoff", "heatmap"):
        said = "".join(
            text.replace("\n", "").replace(r"\$", "$") for text, _ in drawn_texts(Scores(rows, {"metrics": ENTRIES}).plot(kind))
        )
        assert name in said


def test_long_names_are_broken_where_they_have_joints():
    assert plain("backbone.fpn[pool]", 14) == "backbone.fpn\n[pool]"
    assert plain("x" * 25, 10).split("\n") == ["x" * 10, "x" * 10, "x" * 5], "if it has no joint"


# ---- show


def test_show_lays_maps_over_grey_images():
    images, maps = torch.rand(2, 3, 8, 6), {"layer3": torch.rand(2, 8, 6), "layer4": torch.rand(2, 8, 6)}
    figure = xaieval.show(images, maps)
    first, second, third, *_ = figure.axes
    np.testing.assert_allclose(first.images[0].get_array(), images[0].permute(1, 2, 0))
    for axes, name in ((second, "layer3"), (third, "layer4")):
        grey, overlay = axes.images
        np.testing.assert_allclose(grey.get_array(), images[0].mean(dim=0), rtol=1e-5)
        np.testing.assert_allclose(overlay.get_array(), maps[name][0])
        assert overlay.get_clim() == (0, 1), "one scale for all"
    assert len([axes for axes in figure.axes if axes.get_label() == "<colorbar>"]) == 1


def test_show_undoes_the_normalisation():
    pixels = torch.rand(2, 3, 8, 8)
    prepare = Preprocessing(image_size=8, resize=8, mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (prepare.mean, prepare.std))
    normalised = (pixels - mean) / std
    for arguments in ({"preprocessing": prepare}, {"mean": prepare.mean, "std": prepare.std}):
        shown = xaieval.show(normalised, torch.rand(2, 8, 8), **arguments).axes[0].images[0].get_array()
        np.testing.assert_allclose(shown, pixels[0].permute(1, 2, 0), atol=1e-5)


def test_show_takes_grey_images_and_gradients():
    grey = torch.rand(1, 1, 8, 8, requires_grad=True)
    shown = xaieval.show(grey, grey[:, 0]).axes[0].images[0].get_array()
    np.testing.assert_allclose(shown[..., 0], grey[0, 0].detach())


@pytest.mark.parametrize(("bands", "expected"), [(None, (0, 1, 2)), ((3, 2, 1), (3, 2, 1)), ((4,), (4, 4, 4))])
def test_three_bands_of_an_image_are_shown(bands, expected):
    images = torch.zeros(1, 6, 5, 20)
    for band in range(6):
        images[:, band] = 1000.0 * torch.linspace(0, 1, 20).roll(3 * band)
    figure = xaieval.show(images, torch.rand(1, 5, 20), bands=bands)
    shown = torch.from_numpy(figure.axes[0].images[0].get_array().data).permute(2, 0, 1)
    torch.testing.assert_close(shown, images[0, list(expected)] / 1000)


@pytest.mark.parametrize(
    ("images", "maps", "arguments", "message"),
    [
        (
            3 * torch.ones(1, 3, 4, 4),
            torch.rand(1, 4, 4),
            {},
            r"images are in \[0, 1\]; these are in \[3, 3\]; pass preprocessing=",
        ),
        (torch.rand(1, 3, 4, 4), {"p2": 2 * torch.ones(1, 4, 4)}, {}, r"maps of 'p2' are in \[0, 1\]; these are in \[2, 2\]"),
        (torch.rand(3, 4, 4), torch.rand(1, 4, 4), {}, r"images are \[N, 3, H, W\], .*; got \[3, 4, 4\]"),
        (torch.rand(2, 3, 4, 4), torch.rand(1, 4, 4), {}, r"maps of 'map' are \[2, 4, 4\], one per image and of its size; got"),
        (torch.rand(2, 3, 4, 4), {}, {}, "there are no maps to show"),
        (torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4), {"titles": ["one"]}, "1 titles for 2 images"),
        (torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4), {"mean": (0, 0, 0)}, "mean= and std= undo a normalisation together"),
    ],
)
def test_what_cannot_be_shown_is_refused(images, maps, arguments, message):
    with pytest.raises(DataError, match=f"^{message}"):
        xaieval.show(images, maps, **arguments)


# ---- notebooks


def test_a_notebook_shows_the_summary_with_intervals():
    scores = run(2, images=20)
    scores.rows["layer"] = scores.rows["layer"].replace(LAYERS[0], "<script>alert(1)</script>")
    scores.rows.loc[0, "status"] = "nan_map"
    html = scores._repr_html_()
    first = scores.summary().iloc[0]
    letters = scores.table().frame[f"{AD}_letters"].iloc[0]
    assert f"<td>{first[AD]:.1f} [{first[f'{AD}_low']:.1f}, {first[f'{AD}_high']:.1f}] {letters}</td>" in html
    assert ">AD % ↓</th>" in html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "of 20 images, 95 % intervals" in html
    assert "<td>19</td>" in html
    assert "color" not in html, "the page decides the colours"
    for tag in ("div", "table", "tr", "td", "th", "p"):
        assert html.count(f"<{tag}>") + html.count(f"<{tag} ") == html.count(f"</{tag}>")


def test_a_notebook_shows_the_warnings_of_a_small_run():
    scores = run(1, images=20)
    scores.rows["status"] = "constant_map"
    assert "<li>" in scores._repr_html_()
    assert scores.warnings()[0].split(",")[0] in scores._repr_html_()
    large = Scores(pd.concat([scores.rows] * 1001, ignore_index=True), scores.manifest)
    assert "<li>" not in large._repr_html_()
    assert "<code>warnings()</code>" in large._repr_html_()


def test_a_run_that_is_not_complete_says_so():
    scores = run(1, images=5)
    assert "not complete" not in scores._repr_html_()
    assert "the run is not complete" in Scores(scores.rows, {**scores.manifest, "complete": False})._repr_html_()


# ---- controls


def _with_controls() -> Scores:
    """Two layers whose drops are 40 and 30, and control maps of 90 and 35."""
    parts = {("p2", "gradcam"): 40.0, ("p5", "gradcam"): 30.0, ("input", "uniform"): 90.0, ("input", "center"): 35.0}
    rows = pd.concat(
        pd.DataFrame({"image_id": range(12), "layer": layer, "method": method, "status": "ok", AD: drop, IC: 0.0})
        for (layer, method), drop in parts.items()
    ).reset_index(drop=True)
    rows[AD] += rows["image_id"] % 3
    return Scores(rows, {"metrics": ENTRIES[:2], "seed": 0, "controls": ["uniform", "center"]})


def test_controls_do_not_set_the_scales_and_are_not_ranked():
    scores = _with_controls()
    figure = scores.plot("tradeoff")
    assert figure.axes[0].get_xlim()[1] < 50
    assert "beyond the scales: uniform" in figure.get_suptitle().replace("\n", " ")
    mesh = scores.plot("heatmap").axes[0].collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (31.0, 41.0)
    labels = [tick.get_text() for tick in scores.plot("ranking").axes[0].get_yticklabels()]
    assert labels == ["p5", "p2"]


def test_matched_controls_are_drawn_beside_the_means_of_the_methods():
    scores = run(2, 1, matched=True)
    axes = scores.plot("matched").axes[0]
    table = scores.matched_table()
    for number, name in enumerate(MATCHED):
        drawn = axes.lines[-len(MATCHED) + number].get_xdata()
        np.testing.assert_allclose(drawn, table.loc[table["control"] == name, "control_value"])
    with pytest.raises(MetricError) as caught:
        scores.plot("matched", metrics=IC)
    assert str(caught.value) == (
        f"{IC} has no matched controls in this run; those of confidences and curves have, such as average_drop"
    )
    columns = [f"{AD}_{name}" for name in (*MATCHED, "excess")]
    with pytest.raises(MetricError) as caught:
        Scores(scores.rows.assign(**dict.fromkeys(columns, np.nan)), scores.manifest).plot("matched")
    assert str(caught.value) == (
        f"no map of this run has a matched control of {', '.join(MATCHED)}: constant maps have none, and swapped takes two "
        "images"
    )
    with pytest.raises(MetricError, match=r"^the run has no matched controls; score\(\.\.\., controls='matched'\)"):
        run(2).plot("matched")
