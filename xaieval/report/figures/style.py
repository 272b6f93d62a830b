"""What all figures have in common: colours, sizes, words, the key, and how they are saved.

Fonts, font sizes, line widths, and the colours of text, axes and grid are those of matplotlib's rcParams, so that a style
sheet holds for these figures as for any others; only the hues of data are chosen here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.typing import NDArray

from xaieval.errors import MetricError, UsageError
from xaieval.report.figures.data import DIRECTIONS
from xaieval.results.metric_display import label_of

__all__ = [
    "COLUMN",
    "HUES",
    "MARKERS",
    "MOST_STYLES",
    "PAGE",
    "Size",
    "Style",
    "add_legend",
    "add_title",
    "axis_label",
    "colours",
    "error_bars",
    "figure_of",
    "fit_height",
    "font_points",
    "legend_characters",
    "light_grid",
    "line_characters",
    "name_characters",
    "new_figure",
    "one_axes",
    "plain",
    "row_inches",
    "save_figure",
    "styles",
    "text_inches",
]

Size = float | tuple[float, float] | None

COLUMN, PAGE = 3.5, 7.0  # inches, the width of one column and of two in most journals
GAP = 1.5  # letters between the columns of a key
ROOM = 12.0  # inches, in which a figure is laid out before its height is known

# Okabe and Ito's without their yellow, which is hard to see on white, and a dark grey: as far from the others for
# colour-blind eyes as they are from each other (a test computes it). The colour of the text goes in between, as their black.
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f5f5f")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES = ("-", "--", ":")
HATCHES = ("", "////", "....")
MOST_STYLES = len(DASHES) * (len(HUES) + 1)


@dataclass(frozen=True)
class Style:
    """How one of several things is drawn, such that no two look the same, also without colours.

    Attributes:
        colour: of line, marker or bar.
        marker: of points.
        dash: of lines.
        hatch: of bars.
        filled: whether markers are.
    """

    colour: str
    marker: str
    dash: str
    hatch: str
    filled: bool


def colours() -> list[str]:
    """The hues and the colour of text, which is black unless a style sheet says otherwise."""
    return [*HUES[:-1], mpl.colors.to_hex(mpl.rcParams["text.color"]), HUES[-1]]


def styles(number: int, what: str, most: int = MOST_STYLES) -> list[Style]:
    """As many styles as there are things to draw.

    Args:
        number: of them.
        what: they are, for the error: "curves".
        most: that can be told apart.

    Raises:
        MetricError: there are more.
    """
    if number > most:
        raise MetricError(
            f"{number} {what} cannot be told apart in one picture, at most {most} can; choose some by layers= and methods=, "
            "or see all in kind='heatmap'"
        )
    hues = colours()
    return [
        Style(hues[i % len(hues)], MARKERS[i % len(MARKERS)], DASHES[i // len(hues)], HATCHES[i // len(hues)], i < len(hues))
        for i in range(number)
    ]


def new_figure(size: Size, width: float = PAGE, layout: str = "constrained") -> Figure:
    """A figure that belongs to no window; `fit_height` mends its height where none is given.

    Args:
        size: width, or width and height, in inches.
        width: where no size is given.
        layout: matplotlib's layout engine.

    Raises:
        UsageError: the size is none.
    """
    asked = (size, ROOM) if isinstance(size, int | float) else size or (width, ROOM)
    if len(asked) != 2 or not min(asked) > 0:
        raise UsageError(f"size is a width, or (width, height), in inches and positive; got {size!r}")
    return Figure(figsize=asked, layout=layout)  # type: ignore[arg-type]  # a name that matplotlib knows


def one_axes(size: Size, ax: Axes | None, width: float = PAGE) -> Axes:
    """The caller's axes, or those of a new figure.

    Raises:
        UsageError: both size and axes are given.
    """
    if ax is None:
        return new_figure(size, width).subplots()
    if size is not None:
        raise UsageError("size= is that of a new figure, and ax= draws into one of yours; give one of the two")
    return ax


def figure_of(axes: Axes) -> Figure:
    """The figure that axes are in, also those of a subfigure."""
    figure: Any = axes.figure
    return figure.figure


def fit_height(axes: Axes, inches: float, size: Size, panels: int = 1) -> None:
    """Make the figure as high as it takes for axes of this height, where the caller gave no height.

    Args:
        axes: of the figure, drawn completely.
        inches: that they shall be high.
        size: as the caller gave it.
        panels: how many of them stand above each other.
    """
    if isinstance(size, tuple):
        return
    figure = figure_of(axes)
    figure.draw_without_rendering()
    spent = figure.get_figheight() - panels * axes.get_window_extent().height / figure.dpi
    figure.set_figheight(spent + panels * inches)


def font_points(kind: str) -> float:
    """The size of a font in points: "legend.fontsize" or another one of the rcParams, or "small"."""
    params: Any = mpl.rcParams
    return FontProperties(size=params.get(kind, kind)).get_size_in_points()


def text_inches(text: str, points: float) -> float:
    """How wide a text is; of several lines, the widest."""
    drawn = Text(0, 0, text, fontsize=points)
    drawn.set_figure(Figure(dpi=72))
    return drawn.get_window_extent().width / 72


def row_inches(labels: Sequence[str], kind: str = "ytick.labelsize") -> float:
    """How high the rows of a picture are, such that their labels have room."""
    return (1 + 1.3 * max(label.count("\n") + 1 for label in labels)) * font_points(kind) / 72


def plain(name: object, width: int = 1000) -> str:
    r"""A name as matplotlib shows it letter by letter, broken into lines after its dots, dashes and the like.

    Args:
        name: of a layer, a method, a class or an image.
        width: characters in a line.

    Example:
        >>> plain("backbone.body.layer4.2.conv3", 20)
        'backbone.body.\nlayer4.2.conv3'
    """
    joints = re.split(r"(?<=[-.,:/ _])|(?=\[)", str(name))
    pieces = [piece[start : start + width] for piece in joints for start in range(0, len(piece), width)]
    text = _filled(pieces, width).replace("$", r"\$")  # two would be mathematics
    return f" {text}" if text.startswith("_") else text  # matplotlib leaves labels with an underscore out of legends


def name_characters(figure: Figure) -> int:
    """Characters in a line of a name beside the axes, about a third of the figure's width."""
    return max(16, int(4.5 * figure.get_figwidth()))


def add_title(axes: Axes, parts: Sequence[str], ax: Axes | None) -> None:
    """The line above: over the whole of a figure of ours, over the caller's own axes alone.

    Args:
        axes: that were drawn on.
        parts: of the line, which is broken between them.
        ax: what the caller gave.
    """
    text = _filled([f"{part}, " for part in parts[:-1]] + [*parts[-1:]], line_characters(axes, ax, "medium")).replace(
        "$", r"\$"
    )
    if ax is None:
        figure_of(axes).suptitle(text, fontsize="medium")
    else:
        axes.set_title(text, fontsize="medium")


def line_characters(axes: Axes, ax: Axes | None, font: str = "legend.fontsize", taken: float = 0.2) -> int:
    """Characters that fit into a line over a figure of ours, or over the caller's own axes.

    Args:
        axes: that are drawn on.
        ax: what the caller gave.
        font: "small", or one of the rcParams.
        taken: inches of that width which are not free.
    """
    width = figure_of(axes).get_figwidth() if ax is None else axes.get_window_extent().width / figure_of(axes).dpi
    return int((width - taken) / text_inches("n", font_points(font)))


def legend_characters(axes: Axes, ax: Axes | None) -> int:
    """Characters that fit into a line of the key."""
    return line_characters(axes, ax, taken=0.2 + _handle_inches())


def _filled(pieces: Sequence[str], width: int) -> str:
    """Pieces put into lines of at most so many characters, unless a piece is longer."""
    lines = [""]
    for piece in pieces:
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def axis_label(entry: Mapping[str, Any], width: int = 34) -> str:
    """What the manifest says of a metric, for an axis, in lines of so many characters."""
    label = plain(label_of(entry), width)
    way = DIRECTIONS[entry["higher_is_better"]]
    return label if entry["higher_is_better"] is None else _filled([f"{label}, ", way], width)


def error_bars(mean: Any, low: Any, high: Any) -> NDArray[np.float64]:
    """The lengths of error bars below and above the means, `[2, N]`.

    By rounding a mean may lie a hair outside its interval; such a length is 0.
    """
    means = np.atleast_1d(np.asarray(mean, dtype=float))
    return np.clip(np.stack([means - np.asarray(low, dtype=float), np.asarray(high, dtype=float) - means]), 0, None)


def light_grid(axes: Axes, axis: str) -> None:
    """Lines of the style's own grid, fainter, below everything else; and no frame where no axis is."""
    axes.grid(axis=axis, alpha=0.35)  # type: ignore[arg-type]  # "x", "y" or "both"
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(axes: Axes, groups: Sequence[Sequence[tuple[Any, str]]], ax: Axes | None, title: str = "") -> None:
    """The legend: below the axes of a figure of ours, in as many columns as fit; inside of the caller's own axes.

    Args:
        axes: that were drawn on.
        groups: of artists with their labels; each group begins a column where there are several.
        ax: what the caller gave.
        title: above the labels.
    """
    entries = [entry for group in groups for entry in group]
    where: dict[str, Any] = {"loc": "best"}
    if ax is None:
        columns = _columns(axes, [label for _, label in entries])
        rows = next(rows for rows in count(1) if rows >= len(entries) or _spent(groups, rows) <= columns)
        blank = [(Line2D([], [], linestyle=""), "")]
        if rows < len(entries):
            entries = [entry for group in groups for entry in [*group, *blank * (-len(group) % rows)]]
        where = {"loc": "outside lower center", "ncols": -(-len(entries) // rows), "columnspacing": GAP, "frameon": False}
    handles, labels = zip(*entries, strict=True)
    (axes if ax is not None else figure_of(axes)).legend(handles, labels, title=title or None, **where)


def _spent(groups: Sequence[Sequence[Any]], rows: int) -> int:
    """Columns that groups take if each has so many rows at most."""
    return sum(-(-len(group) // rows) for group in groups)


def _columns(axes: Axes, labels: Sequence[str]) -> int:
    """Columns of the key that fit into the width of the figure."""
    points = font_points("legend.fontsize")
    widest = max(text_inches(label, points) for label in labels) + _handle_inches()
    return max(1, int((figure_of(axes).get_figwidth() - 0.2) / widest))


def _handle_inches() -> float:
    """What an entry of the key takes beside its label."""
    widths = mpl.rcParams["legend.handlelength"] + mpl.rcParams["legend.handletextpad"] + GAP
    return float(widths * font_points("legend.fontsize") / 72)


def save_figure(figure: Figure, path: str | Path, dpi: float = 300) -> None:
    """Write a figure as journals want it: in PDF, PS and EPS with TrueType fonts (type 42) in place of matplotlib's type 3.

    Text, lines and cells stay vectors; only images and colour bars are pixels.

    Args:
        figure: any.
        path: whose suffix says which format.
        dpi: pixels in an inch, of images, and of formats that are pixels altogether.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(new_figure((1, 1)), f"{folder}/empty.pdf")
    """
    with mpl.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):
        figure.savefig(path, dpi=dpi)
