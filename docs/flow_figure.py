"""The figure of docs/design.md: how the data flows through the rooms of the package.

    python docs/flow_figure.py [FILE]

writes one PNG file. Default: docs/design/flow.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# What flows, the room that handles it, and the function or module to read there.
STEPS = (
    ("images", "data/", "read_batches"),
    ("activations,\ngradients", "probe/", "run"),
    ("maps", "explainers/", "raw_maps"),
    ("masked\nimages", "masking/", "occlude"),
    ("confidences", "inference/", "Runner.output"),
    ("metric\nvalues", "metrics/", "Metric.judge"),
    ("rows", "results/", "measured_rows"),
)
AFTER = (("summaries, rankings,\nselections", "analysis/"), ("figures, HTML page", "report/"), ("tables, JSON", "cli/"))
LOOP = "evaluation/loop.py: for each batch"
BLUE, GREY = "#1f5a91", "#5b6570"


def draw() -> Figure:
    """The flow from left to right, and what is made of the rows below."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(-0.2, len(STEPS) * 1.6), ylim=(-1.9, 1.5))
    ax.axis("off")
    ax.add_patch(FancyBboxPatch((-0.1, -0.55), len(STEPS) * 1.6 - 0.3, 1.55, "round,pad=0.08", ec=GREY, fc="none", ls="--"))
    ax.text(0, 1.22, LOOP, color=GREY, va="center", fontsize=10)
    for place, (what, room, name) in enumerate(STEPS):
        _box(ax, place * 1.6, 0.25, what, room, name)
        if place:
            _arrow(ax, (place * 1.6 - 0.46, 0.25), (place * 1.6 - 0.04, 0.25))
    last = (len(STEPS) - 1) * 1.6
    _arrow(ax, (last + 0.9, -0.28), (last + 0.9, -1.1))
    for place, (what, room) in enumerate(AFTER):
        x = last - place * 3.0
        _box(ax, x - 0.9, -1.4, what, room, "", width=2.1)
        if place:
            _arrow(ax, (x + 2.06, -1.4), (x + 1.24, -1.4))
    return figure


def _box(ax: Axes, x: float, y: float, what: str, room: str, name: str, width: float = 1.1) -> None:
    ax.add_patch(FancyBboxPatch((x, y - 0.28), width, 0.56, "round,pad=0.04", ec=BLUE, fc="#eef4fa"))
    ax.text(x + width / 2, y, what, ha="center", va="center", fontsize=10)
    ax.text(x + width / 2, y + 0.47, room, ha="center", va="center", fontsize=9, color=BLUE, weight="bold")
    ax.text(x + width / 2, y - 0.47, name, ha="center", va="center", fontsize=8, color=GREY, family="monospace")


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=GREY))


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/design/flow.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    draw().savefig(path, dpi=130)
