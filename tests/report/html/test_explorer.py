"""The pictures, points and curves that the scripts of a page draw are those of the run, and have a limited size."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from xaieval.errors import DataError
from xaieval.report import Maps
from xaieval.report.html.curve_charts import curve_charts_of
from xaieval.report.html.explorer import explorer_of
from xaieval.report.html.scatter import scatter_of
from xaieval.results.record import RunRecord

AD = {"name": "average_drop", "higher_is_better": False, "interval": "mean", "label": "AD %"}
INSERTION = {"name": "insertion", "higher_is_better": True, "interval": "mean", "label": "Insertion"}
PAIRS = [("p4", "cam"), ("p5", "cam"), ("p5", "other")]


def _maps(count: int = 3, side: int = 40, **more: object) -> Maps:
    """Grey images of known brightness; maps that are 0 at p4 and 1 at p5."""
    pixels = torch.linspace(0, 1, count).view(-1, 1, 1, 1).expand(-1, 3, side, side)
    maps = {"cam": {"p4": torch.zeros(count, side, side), "p5": torch.ones(count, side, side)}}
    return Maps([f"{number}" for number in range(count)], pixels, maps, **more)


def _pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")) / 255


def test_each_image_has_its_maps_in_colour_and_the_images_masked_by_them():
    masked = {"cam": {"p5": torch.full((3, 3, 40, 40), 51, dtype=torch.uint8)}}
    explorer = explorer_of(_maps(masked=masked), ["2", "unknown", "0", "2"], PAIRS)
    assert (explorer.ids, explorer.pairs, explorer.all_images) == (["2", "0"], PAIRS[:2], 2)
    first, second = explorer.data["images"]
    np.testing.assert_allclose(_pixels(first["image"]), 1.0)
    np.testing.assert_allclose(_pixels(second["image"]), 0.0)
    assert _pixels(first["maps"][0]).mean() < 0.02, "the map of p4 is black"
    assert _pixels(first["maps"][1]).mean() > 0.7, "the map of p5 is bright"
    assert first["masked"][0] is None
    np.testing.assert_allclose(_pixels(first["masked"][1]), 0.2, atol=0.01)


def test_pictures_that_do_not_fit_are_left_out_but_never_all():
    maps = _maps(8)
    size = len(str(explorer_of(maps, ["0"], PAIRS).data["images"]))
    some = explorer_of(maps, maps.ids, PAIRS, most_bytes=4 * size)
    assert 3 <= len(some.ids) <= 4
    assert some.ids == list(maps.ids)[: len(some.ids)]
    assert some.all_images == 8
    assert explorer_of(maps, maps.ids, PAIRS, most_bytes=1).ids == ["0"]
    assert explorer_of(None, ["0"], PAIRS).data == {"pairs": [], "images": []}
    assert explorer_of(maps, maps.ids, [("p9", "cam")]).ids == []


def test_masked_images_have_the_shape_of_the_images():
    with pytest.raises(DataError, match=r"^images masked by cam at p5 are \[3, 3, 40, 40\]; got \[3, 3, 8, 8\]$"):
        _maps(masked={"cam": {"p5": torch.rand(3, 3, 8, 8)}})


def test_points_are_the_means_of_each_layer_and_method():
    summary = pd.DataFrame(
        {"average_drop": [20.0, np.nan], "insertion": [0.5, 0.25], "mask_area": [0.1, 0.9]},
        index=pd.MultiIndex.from_tuples([("p4", "cam"), ("input", "random")], names=["layer", "method"]),
    )
    record = RunRecord(pd.DataFrame(), {"metrics": [AD, INSERTION], "controls": ["random"]})
    found = scatter_of(record, summary)
    assert [(axis["label"], axis["digits"]) for axis in found["axes"]] == [("AD %", 1), ("Insertion", 3), ("mask area %", 1)]
    assert [(point["method"], point["control"], point["values"]) for point in found["points"]] == [
        ("cam", False, [20.0, 0.5, 10.0]),
        ("random", True, [None, 0.25, 90.0]),
    ]
    assert scatter_of(record, summary.iloc[:1]) == {"axes": [], "points": []}


def test_curves_are_the_means_over_the_images_at_their_fractions():
    curves = [[0.0, 0.5, 1.0], [0.0, 0.1, 0.6], [1.0, 1.0, 1.0]]
    rows = pd.DataFrame({"layer": "p4", "method": ["cam", "cam", "random"], "insertion": [0.5, 0.2, 1.0]})
    rows["insertion_curve"] = curves
    metric = INSERTION | {"settings": {"fractions": [0.0, 0.2, 1.0]}}
    [chart] = curve_charts_of(RunRecord(rows, {"metrics": [AD, metric], "controls": ["random"]}))
    [curve] = chart.curves
    assert (curve.layer, curve.method, curve.text) == ("p4", "cam", "0.350")
    across = {words: x for x, words in chart.across}
    up = {words: y for y, words in chart.up}
    places = [tuple(map(float, point.split(","))) for point in curve.points.split()]
    assert places[0] == (across["0"], up["0"])
    assert places[1][0] == pytest.approx(across["0"] + 0.2 * (across["1"] - across["0"]), abs=0.1)
    assert places[2] == (across["1"], up["0.8"])
    pooled = metric | {"settings": {"pooled": "mean_iou"}}
    assert curve_charts_of(RunRecord(rows, {"metrics": [pooled]})) == [], "a curve over thresholds"
    assert curve_charts_of(RunRecord(rows.drop(columns="insertion_curve"), {"metrics": [metric]})) == []
