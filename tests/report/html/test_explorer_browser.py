"""What can be done with the pictures, charts and tables of a report, in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from PIL import Image

from tests.report.html.browsing import Visit, make_scores, write_page
from xaieval.evaluation.scores import Scores

pytestmark = pytest.mark.slow

LAYERS = ["p4", "p5"]


@pytest.fixture(scope="module")
def scores() -> Scores:
    made = make_scores(60, LAYERS, ["gradcam", "random"], "photos/", controls=["random"], classes=2)
    made.rows.loc[(made.rows["image_id"] < "photos/0030") & (made.rows["layer"] == "p5"), "status"] = "constant_map"
    return made


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, scores: Scores) -> Path:
    return write_page(scores, tmp_path_factory.mktemp("page") / "page.html", "gradcam", classes=["cat", "dog"])


def _rows(scores: Scores, ids: list[str], layer: str) -> pd.DataFrame:
    """The rows of some images at a layer, in the order of the images."""
    rows = scores.rows[(scores.rows["layer"] == layer) & (scores.rows["method"] == "gradcam")]
    return rows.set_index("image_id", drop=False).loc[ids]


def _ids(visit: Any) -> list[str]:
    return [text.replace("\n", "") for text in visit.page.locator("#grid .picture .id").all_inner_texts()]


def test_an_image_is_seen_large_with_its_neighbours_and_all_its_maps(browser, path, scores):
    with Visit(browser, path) as visit:
        page, keys = visit.page, visit.page.keyboard
        best = scores.summary().xs("gradcam", level="method")["average_drop"].idxmin()
        assert (
            page.locator("#grid").get_by_label("Layer and method").evaluate("select => select.selectedOptions[0].text")
            == f"{best} gradcam"
        )
        page.locator("#grid").get_by_label("Layer and method").select_option(label="p4 gradcam")
        order = _rows(scores, _ids(visit), "p4")
        assert len(order) == 15
        assert order["average_drop"].round(1).is_monotonic_decreasing
        page.locator("#grid .picture").nth(1).focus()
        keys.press("Enter")
        assert page.get_by_role("dialog", name=order["image_id"].iloc[1]).is_visible()
        viewer = page.locator("#viewer")
        assert f"Image 2 of {len(order)} by AD %: {order['average_drop'].iloc[1]:.1f}." in viewer.inner_text()
        keys.press("ArrowRight")
        third = order.iloc[2]
        title = page.locator("#viewer-title")
        assert title.inner_text() == third["image_id"]
        facts = " ".join(page.locator("#viewer .facts").inner_text().split())
        names = ["cat", "dog"]
        assert f"explained class {names[third['target']]} prediction {names[third['predicted']]}" in facts
        assert f"label {names[third['label']]}" in facts
        assert f"{third['confidence']:.2f} \N{RIGHTWARDS ARROW} {third['masked_confidence']:.2f}" in facts
        assert ("wrong" if third["predicted"] != third["label"] else "correct") in facts
        lines = viewer.locator("tbody tr")
        for number, layer in enumerate(LAYERS):
            row = scores.rows[(scores.rows["image_id"] == third["image_id"]) & (scores.rows["layer"] == layer)].iloc[0]
            assert f"{row['average_drop']:.1f}" in lines.nth(number).inner_text()
        assert viewer.locator(".trio img:visible").count() == 4, "image, image and map, masked image"
        slider = page.get_by_label("Opacity of the map")
        slider.focus()
        keys.press("ArrowRight")
        assert page.evaluate("document.querySelector('.trio .map').style.opacity") == "0.7"
        assert title.inner_text() == third["image_id"], "the slider takes the keys of its own"
        viewer.get_by_role("button", name="p5 gradcam").press("Enter")
        assert page.evaluate("document.activeElement.textContent") == "p5 gradcam"
        assert viewer.get_by_role("button", name="p5 gradcam").get_attribute("aria-pressed") == "true"
        assert viewer.locator(".trio img:visible").count() == 3, "there are no masked images of this layer"
        place = _ids(visit).index(third["image_id"])
        assert f"Image {place + 1} of " in viewer.inner_text()
        for _ in range(len(order)):
            keys.press("ArrowRight")
        last = _ids(visit)[-1]
        assert title.inner_text() == last
        keys.press("Escape")
        assert not viewer.is_visible()
        assert page.evaluate("document.activeElement.querySelector('.id').textContent") == last
        assert visit.events == []


def test_pictures_are_filtered_and_sorted(browser, path, scores):
    with Visit(browser, path) as visit:
        page = visit.page
        page.locator("#grid").get_by_label("Layer and method").select_option(label="p5 gradcam")
        everything = _ids(visit)
        page.get_by_label("Sort by").select_option(label="confidence")
        assert page.get_by_label("Order").locator("option").all_inner_texts() == ["lowest first", "highest first"]
        page.get_by_label("Order").select_option(label="highest first")
        order = _rows(scores, _ids(visit), "p5")
        assert set(order["image_id"]) == set(everything)
        assert order["confidence"].is_monotonic_decreasing
        for label, chosen, wanted in (
            ("Class", "dog", order["label"] == 1),
            ("Prediction", "wrong", order["label"] != order["predicted"]),
            ("Status", "constant_map", order["status"] == "constant_map"),
        ):
            select = page.locator("#grid").get_by_label(label)
            select.select_option(label=chosen)
            assert 0 < wanted.sum() < len(order)
            assert _ids(visit) == list(order["image_id"][wanted])
            select.select_option(label="all")
        for label, chosen in (("Class", "cat"), ("Prediction", "correct"), ("Status", "ok")):
            page.locator("#grid").get_by_label(label).select_option(label=chosen)
        all_three = (order["label"] == 0) & (order["predicted"] == 0) & (order["status"] == "ok")
        assert _ids(visit) == list(order["image_id"][all_three])


def test_tables_and_charts_are_saved(browser, path, scores, tmp_path):
    with Visit(browser, path, color_scheme="dark") as visit:

        def saved(button: Any) -> Path:
            with visit.page.expect_download() as download:
                button.click()
            file = tmp_path / download.value.suggested_filename
            download.value.save_as(file)
            return file

        table = scores.table()
        exports = visit.page.locator("#table-exports")
        for name, text in (("CSV", table.to_csv()), ("LaTeX", table.to_latex()), ("Markdown", table.to_markdown())):
            assert saved(exports.get_by_role("button", name=name)).read_text() == text
        chart = visit.page.locator("figure", has_text="AD % against mask area %")
        drawn = saved(chart.get_by_role("button", name="SVG"))
        assert drawn.name == "a-model-AD-against-mask-area-.svg".replace("-.", ".")
        root = ElementTree.parse(drawn).getroot()
        texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
        assert "AD % against mask area %" in texts
        assert "p4 gradcam" in texts
        fills = {dot.get("fill") for dot in root.iter("{http://www.w3.org/2000/svg}circle")}
        assert fills == {"rgb(11, 90, 157)"}, "the colours of paper, in a dark page too"
        with Image.open(saved(visit.page.locator("figure", has_text="Average drop").get_by_role("button", name="PNG"))) as png:
            assert png.width == 3 * 340
            assert png.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert visit.events == []


def test_any_two_metrics_are_plotted_against_each_other(browser, path, scores):
    with Visit(browser, path) as visit:
        plot = visit.page.locator("#scatter")
        summary = scores.summary()
        columns = {
            "mask area %": 100 * summary["mask_area"],
            "AD %": summary["average_drop"],
            "Insertion": summary["insertion"],
        }
        assert plot.locator("circle").count() == 2
        assert plot.locator("rect.control").count() == 2
        for across, up in (("mask area %", "AD %"), ("AD %", "Insertion")):
            plot.get_by_label("Across").select_option(label=across)
            plot.get_by_label("Up").select_option(label=up)
            one, other = ("p4", "gradcam"), ("p5", "gradcam")
            dots = [(float(dot.get_attribute("cx")), float(dot.get_attribute("cy"))) for dot in plot.locator("circle").all()]
            assert (dots[0][0] < dots[1][0]) == (columns[across][one] < columns[across][other])
            assert (dots[0][1] > dots[1][1]) == (columns[up][one] < columns[up][other]), "up is more"
            words = plot.locator("circle title").first.text_content()
            digits = {"AD %": 1, "mask area %": 1, "Insertion": 3}
            numbers = [f"{name} {columns[name][one]:.{digits[name]}f}" for name in (across, up)]
            assert words == f"p4 gradcam: {', '.join(numbers)}"


def test_print_has_the_galleries_and_every_picture_is_loaded(browser, path):
    with Visit(browser, path) as visit:
        page = visit.page
        assert not page.locator("#galleries").is_visible()
        page.emulate_media(media="print")
        assert page.locator("#galleries img:visible").count() == 2 * 9 * 2
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")
        for name in ("#grid", "nav", "#filters", "#pager", "#table-exports"):
            assert not page.locator(name).is_visible()
        assert len(re.findall(rb"/Type\s*/Page\b", page.pdf())) > 2
