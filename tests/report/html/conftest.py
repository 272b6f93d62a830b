"""Pages of runs, and Chromium without a window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.html.browsing import CHROMIUM, EVIL, FLAGS, go_without, make_scores, write_page


@pytest.fixture(scope="package")
def page_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything that a page can have: controls, a comparison, very long names."""
    options = {"model": "timm:vit_small_patch16_224", "data": "folder:" + "photographs/" * 6}
    layers = ["blocks.3", "backbone.feature_pyramid_network.layer_blocks.0[pool]"]
    manifest = {"options": options, "controls": ["random"], "versions": {"xaieval": "0.1.0"}}
    scores = make_scores(60, layers, ["gradcam", "random"], "photographs/" * 5, **manifest)
    other = make_scores(60, layers, ["gradcam", "random"], "photographs/" * 5, **manifest, seed=1)
    return write_page(scores, tmp_path_factory.mktemp("run") / "page.html", "gradcam", other=other)


@pytest.fixture(scope="package")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page in which every name that a user can choose is an injection attempt."""
    scores = make_scores(40, list(EVIL), list(EVIL), EVIL[0] + EVIL[1], options={"model": EVIL[0], "data": EVIL[1]})
    scores.rows.loc[0, "status"] = EVIL[1]
    return write_page(scores, tmp_path_factory.mktemp("hostile") / "page.html", EVIL[0], classes=list(EVIL))


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        go_without("needs playwright: pip install playwright")
    if CHROMIUM is None:
        go_without("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()
