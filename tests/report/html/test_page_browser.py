"""The report of a run in a real browser: it is accessible, works by keyboard, and neither loads nor executes anything else."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from xaieval.evaluation.scores import Scores
from xaieval.report import Maps, images_to_show

pytestmark = pytest.mark.slow

REQUIRED = os.environ.get("XAIEVAL_REQUIRE_BROWSER") == "1"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",  # which a container's root does not have
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
EVIL = ("<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>")
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 375, "height": 750}
METRICS = [
    {"name": "average_drop", "higher_is_better": False, "interval": "mean", "label": "AD %"},
    {"name": "increase_in_confidence", "higher_is_better": True, "interval": "wilson", "label": "IC %"},
]


def _scores(count: int, layers: list[str], methods: list[str], prefix: str = "photos/", **manifest: Any) -> Scores:
    rng = np.random.default_rng(0)
    pairs = [(layer, method) for layer in layers for method in methods]
    confidence, masked = np.repeat(rng.uniform(0.5, 1, count), len(pairs)), rng.uniform(0, 1, count * len(pairs))
    rows = pd.DataFrame(
        {
            "image_id": np.repeat([f"{prefix}{number:04d}" for number in range(count)], len(pairs)),
            "layer": [layer for layer, _ in pairs] * count,
            "method": [method for _, method in pairs] * count,
            "label": pd.array(np.repeat(np.arange(count) % 2, len(pairs)), dtype="Int64"),
            "confidence": confidence,
            "masked_confidence": masked,
            "mask_area": rng.uniform(0, 1, len(masked)),
            "average_drop": 100 * np.maximum(0, confidence - masked) / confidence,
            "increase_in_confidence": 100.0 * (masked > confidence),
            "status": "ok",
        }
    )
    run = {"protocol.confidence": "softmax", "protocol.masking": "otsu", "seed": manifest.get("seed", 0)}
    return Scores(rows, {"metrics": METRICS, "seed": 0, "complete": True, "run": run} | manifest)


def _write(scores: Scores, path: Path, method: str, **options: Any) -> Path:
    ids, layers = images_to_show(scores), [one for one in scores.rows["layer"].unique() if one != "input"]
    maps = {method: {layer: torch.rand(len(ids), 16, 16) for layer in layers}}
    scores.to_html(path, Maps(ids, torch.rand(len(ids), 3, 16, 16), maps), **options)
    return path


@pytest.fixture(scope="module")
def page_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything that a page can have: controls, a comparison, very long names."""
    options = {"model": "timm:vit_small_patch16_224", "data": "folder:" + "photographs/" * 6}
    layers = ["blocks.3", "backbone.feature_pyramid_network.layer_blocks.0[pool]"]
    manifest = {"options": options, "controls": ["random"], "versions": {"xaieval": "0.1.0"}}
    scores = _scores(60, layers, ["gradcam", "random"], "photographs/" * 5, **manifest)
    other = _scores(60, layers, ["gradcam", "random"], "photographs/" * 5, **manifest, seed=1)
    return _write(scores, tmp_path_factory.mktemp("run") / "page.html", "gradcam", other=other)


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page in which every name that a user can choose is an injection attempt."""
    scores = _scores(40, list(EVIL), list(EVIL), EVIL[0] + EVIL[1], options={"model": EVIL[0], "data": EVIL[1]})
    scores.rows.loc[0, "status"] = EVIL[1]
    return _write(scores, tmp_path_factory.mktemp("hostile") / "page.html", EVIL[0], classes=list(EVIL))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _go_without("needs playwright: pip install playwright")
    if CHROMIUM is None:
        _go_without("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def _go_without(reason: str) -> None:
    if REQUIRED:
        pytest.fail(f"{reason} (XAIEVAL_REQUIRE_BROWSER is set)")
    pytest.skip(reason)


class Visit:
    """A page in the browser, and the events on it."""

    def __init__(self, browser: Any, path: Path, size: dict[str, int] = DESKTOP, **settings: Any) -> None:
        self.context = browser.new_context(viewport=size, **settings)
        self.page = self.context.new_page()
        self.events: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.events.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.events.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def column(self, place: int) -> list[str]:
        """The texts of a column of the table of rows."""
        return self.page.locator(f"#rows-table tbody td:nth-child({place})").all_inner_texts()


@pytest.mark.parametrize("page", ["page_of_a_run", "hostile_page"])
def test_nothing_is_requested_but_the_file_and_nothing_goes_wrong(browser, page, request):
    path = request.getfixturevalue(page)
    with Visit(browser, path) as visit:
        visit.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        visit.page.locator("#rows-table button").first.click()
        assert [url for url in visit.requests if not url.startswith("data:")] == [path.as_uri()]
        assert visit.events == []


def test_hostile_names_are_seen_as_they_are(browser, hostile_page):
    with Visit(browser, hostile_page) as visit:
        assert visit.page.locator("h1").inner_text() == f"Explanation scores of {EVIL[0]} on {EVIL[1]}"
        assert visit.column(1)[0] == f"{EVIL[0]}{EVIL[1]}0000"
        assert set(visit.column(2)) == set(visit.column(3)) == set(EVIL)
        assert visit.column(4)[0] == EVIL[0]
        assert set(visit.page.locator("select").first.locator("option").all_inner_texts()) == {"all", *EVIL}
        assert visit.page.evaluate("document.querySelectorAll('script').length") == 2
        assert visit.page.evaluate("document.querySelectorAll('img:not([alt])').length") == 0
        assert visit.page.evaluate("[...document.images].every(image => image.src.startsWith('data:image/jpeg'))")


def test_the_policy_stops_a_script_that_got_in_all_the_same(browser, page_of_a_run, tmp_path):
    page = page_of_a_run.read_text().replace(
        "</main>", "<script>document.title = 'taken'</script><img src=x onerror=alert(1)></main>"
    )
    (tmp_path / "page.html").write_text(page)
    with Visit(browser, tmp_path / "page.html") as visit:
        assert visit.page.title().startswith("Explanation scores")
        assert visit.events
        assert all("Content Security Policy" in event for event in visit.events)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(browser, page_of_a_run, size, scheme):
    name = "axe_core_python.sync_playwright"
    axe = importlib.import_module(name) if REQUIRED else pytest.importorskip(name)
    with Visit(browser, page_of_a_run, size, color_scheme=scheme) as visit:
        assert (
            visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
            == {
                "light": "rgb(251, 251, 250)",
                "dark": "rgb(20, 23, 26)",
            }[scheme]
        )
        found = axe.Axe().run(visit.page)
        assert len(found["passes"]) > 20
        grave = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in grave] == []


@pytest.mark.parametrize("page", ["page_of_a_run", "hostile_page"])
def test_a_phone_does_not_scroll_sideways(browser, page, request):
    with Visit(browser, request.getfixturevalue(page), PHONE) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 375
        assert visit.page.evaluate("document.querySelector('.scroll').scrollWidth > 375"), "only the tables scroll"


def test_the_table_is_sorted_and_filtered_by_keyboard(browser, page_of_a_run):
    with Visit(browser, page_of_a_run) as visit:
        keys = visit.page.keyboard
        head = visit.page.locator("#rows-table th", has_text="AD %")
        visit.page.locator("#rows-table button", has_text="AD %").focus()
        outline = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        keys.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        place = 1 + visit.page.locator("#rows-table th").all_inner_texts().index("AD %")
        up = [float(text) for text in visit.column(place)]
        keys.press("Space")
        assert head.get_attribute("aria-sort") == "descending"
        down = [float(text) for text in visit.column(place)]
        assert up == sorted(up)
        assert down == sorted(down, reverse=True)
        assert up[0] == 0.0 < down[0]
        assert visit.page.locator("[aria-sort]").count() == 1
        keys.press("Shift+Tab")
        keys.press("Tab")
        assert visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", outline
        visit.page.get_by_label("Image contains").focus()
        keys.type("0007")
        assert visit.page.get_by_role("status").inner_text() == "Rows 1 to 4 of 4 (of 240)"
        keys.press("Tab")
        keys.press("ArrowDown")
        assert visit.page.get_by_role("status").inner_text() == "Rows 1 to 2 of 2 (of 240)"
        assert set(visit.column(2)) == {"blocks.3"}


def test_rows_are_read_page_by_page(browser, page_of_a_run):
    with Visit(browser, page_of_a_run) as visit:
        on, back = (visit.page.get_by_role("button", name=name) for name in ("Next", "Previous"))
        first = visit.column(1)
        assert len(first) == 25
        assert back.is_disabled()
        on.press("Enter")
        assert visit.page.get_by_role("status").inner_text() == "Rows 26 to 50 of 240"
        back.press("Enter")
        assert visit.column(1) == first
        for _ in range(9):
            on.press("Enter")
        assert len(visit.column(1)) == 15
        assert on.is_disabled()


def test_without_javascript_everything_can_be_read(browser, page_of_a_run):
    with Visit(browser, page_of_a_run, java_script_enabled=False) as visit:
        assert len(visit.column(1)) == 20
        assert visit.page.get_by_text("The 20 worst rows by AD %").is_visible()
        for heading in ("What came out", "Results by layer and method", "Maps", "How it was measured"):
            assert visit.page.get_by_role("heading", name=heading, exact=True).is_visible()
        assert visit.page.locator("figure svg").count() == 4
        assert visit.page.locator("img").count() == 2 * 9 * 2
        assert not visit.page.locator("#filters").is_visible()
        assert not visit.page.locator("#pager").is_visible()
        assert visit.events == []
