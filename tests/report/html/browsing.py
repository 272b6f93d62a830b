"""Pages and a browser for the tests of reports."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from xaieval.evaluation.scores import Scores
from xaieval.report import Maps, images_to_show

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
    {"name": "insertion", "higher_is_better": True, "interval": "mean", "label": "Insertion"},
]


def make_scores(count: int, layers: list[str], methods: list[str], prefix: str = "photos/", **manifest: Any) -> Scores:
    rng = np.random.default_rng(0)
    pairs = [(layer, method) for layer in layers for method in methods]
    confidence, masked = np.repeat(rng.uniform(0.5, 1, count), len(pairs)), rng.uniform(0, 1, count * len(pairs))
    label = np.repeat(np.arange(count) % 2, len(pairs))
    wrong = np.repeat(np.arange(count) % 3 == 0, len(pairs))
    rows = pd.DataFrame(
        {
            "image_id": np.repeat([f"{prefix}{number:04d}" for number in range(count)], len(pairs)),
            "layer": [layer for layer, _ in pairs] * count,
            "method": [method for _, method in pairs] * count,
            "label": pd.array(label, dtype="Int64"),
            "predicted": pd.array(np.where(wrong, 1 - label, label), dtype="Int64"),
            "target": pd.array(np.where(wrong, 1 - label, label), dtype="Int64"),
            "confidence": confidence,
            "masked_confidence": masked,
            "mask_area": rng.uniform(0, 1, len(masked)),
            "average_drop": 100 * np.maximum(0, confidence - masked) / confidence,
            "increase_in_confidence": 100.0 * (masked > confidence),
            "insertion": masked,
            "insertion_curve": [np.linspace(0, 2 * mean, 9) for mean in masked],
            "status": "ok",
        }
    )
    run = {"protocol.confidence": "softmax", "protocol.masking": "otsu", "seed": manifest.get("seed", 0)}
    return Scores(rows, {"metrics": METRICS, "seed": 0, "complete": True, "run": run} | manifest)


def write_page(scores: Scores, path: Path, method: str, **options: Any) -> Path:
    """The page with noise as images and maps; black is what the masked images of the first layer show, the others have none."""
    ids, layers = images_to_show(scores), [one for one in scores.rows["layer"].unique() if one != "input"]
    maps = {method: {layer: torch.rand(len(ids), 16, 16) for layer in layers}}
    masked = {method: {layers[0]: torch.zeros(len(ids), 3, 16, 16, dtype=torch.uint8)}}
    scores.to_html(path, Maps(ids, torch.rand(len(ids), 3, 16, 16), maps, masked=masked), **options)
    return path


def go_without(reason: str) -> None:
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
