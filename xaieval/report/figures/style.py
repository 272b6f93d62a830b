"""What all figures have in common: colours, sizes, titles, the legend, and how they are saved.

Fonts, font sizes, line widths, and the colours of text, axes and grid are those of matplotlib's rcParams, so that style sheets
apply to these figures too. Only the colours of data are chosen here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
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
GAP = 1.5  # letters between the columns of a legend
TALL = 12.0  # inches, the height of a figure before it is fitted
SCREEN = 100  # pixels per inch of a figure in a notebook

# The colours of Okabe and Ito without yellow, which is hard to see on white, and a dark grey, which colour-blind readers
# distinguish from the others as well as those from each other (a test computes it). `colours` adds the text colour as black.
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f5f5f")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES = ("-", "--", ":")
HATCHES = ("", "////", "....")
MOST_STYLES = len(DASHES) * (len(HUES) + 1)


@dataclass(frozen=True)
class Style:
    """How one of several layers or methods is drawn. No two styles are the same, even without colours.

    Attributes:
        colour: Colour of the line, marker or bar.
        marker: Marker of points.
        dash: Line style.
        hatch: Hatch of bars.
        filled: Whether markers are filled.
    """

    colour: str
    marker: str
    dash: str
    hatch: str
    filled: bool


def colours() -> list[str]:
    """The colours of data, including the text colour, which is black unless a style sheet changes it."""
    return [*HUES[:-1], mpl.colors.to_hex(mpl.rcParams["text.color"]), HUES[-1]]


def styles(number: int, what: str, most: int = MOST_STYLES) -> list[Style]:
    """Styles that can be told apart.

    Args:
        number: How many are needed.
        what: What they are for, to name it in an error: "curves".
        most: The largest number that can be told apart.

    Raises:
        MetricError: More are needed.
    """
    if number > most:
        raise MetricError(
            f"{number} {what} cannot be told apart in one figure, at most {most} can; choose some with layers= and methods=, "
            "or use kind='heatmap'"
        )
    hues = colours()
    return [
        Style(hues[i % len(hues)], MARKERS[i % len(MARKERS)], DASHES[i // len(hues)], HATCHES[i // len(hues)], i < len(hues))
        for i in range(number)
    ]


def new_figure(size: Size, width: float = PAGE, layout: str = "constrained") -> Figure:
    """A new figure that is not shown in a window; `fit_height` adjusts its height if `size` gives none.

    Args:
        size: Width, or width and height, in inches.
        width: Width in inches if no size is given.
        layout: Name of matplotlib's layout engine.

    Raises:
        UsageError: The size is not positive.
    """
    inches = (size, TALL) if isinstance(size, int | float) else size or (width, TALL)
    if len(inches) != 2 or not min(inches) > 0:
        raise UsageError(f"size is a positive width, or (width, height), in inches; got {size!r}")
    return _Shown(figsize=inches, layout=layout)  # type: ignore[arg-type]  # a name that matplotlib knows


class _Shown(Figure):
    """A figure that notebooks display although pyplot does not know it, with or without `%matplotlib inline`."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Sharp pixels, and the size in which a page shows them. Where matplotlib's own display is set up, that one is used."""
        file = BytesIO()
        self.savefig(file, format="png", dpi=2 * SCREEN)
        width, height = self.get_size_inches()
        return file.getvalue(), {"width": round(SCREEN * width), "height": round(SCREEN * height)}


def one_axes(size: Size, ax: Axes | None, width: float = PAGE) -> Axes:
    """The caller's axes, or those of a new figure.

    Raises:
        UsageError: Both size and axes are given.
    """
    if ax is None:
        return new_figure(size, width).subplots()
    if size is not None:
        raise UsageError("size= sets the size of a new figure, and ax= draws on existing axes; pass only one of them")
    return ax


def figure_of(axes: Axes) -> Figure:
    """The figure of axes, also of axes in a subfigure."""
    figure: Any = axes.figure
    return figure.figure


def fit_height(axes: Axes, inches: float, size: Size, panels: int = 1) -> None:
    """Set the height of the figure so that its axes get a given height, unless the caller chose the height.

    Args:
        axes: Axes on which everything is drawn.
        inches: The height of the axes in inches.
        size: The caller's size.
        panels: Number of axes above each other.
    """
    if isinstance(size, tuple):
        return
    figure = figure_of(axes)
    figure.draw_without_rendering()
    taken = figure.get_figheight() - panels * axes.get_window_extent().height / figure.dpi
    figure.set_figheight(taken + panels * inches)


def font_points(kind: str) -> float:
    """The size of a font in points: one of the rcParams such as "legend.fontsize", or a name such as "small"."""
    params: Any = mpl.rcParams
    return FontProperties(size=params.get(kind, kind)).get_size_in_points()


def text_inches(text: str, points: float) -> float:
    """The width of a text in inches; of several lines, that of the widest."""
    drawn = Text(0, 0, text, fontsize=points)
    drawn.set_figure(Figure(dpi=72))
    return drawn.get_window_extent().width / 72


def row_inches(labels: Sequence[str], kind: str = "ytick.labelsize") -> float:
    """The height in inches that rows need for their labels."""
    return (1 + 1.3 * max(label.count("\n") + 1 for label in labels)) * font_points(kind) / 72


def plain(name: object, width: int = 1000) -> str:
    r"""A name as text that matplotlib draws literally, broken into lines after dots, dashes and similar characters.

    Args:
        name: Name of a layer, a method, a class or an image.
        width: The largest number of characters in a line.

    Example:
        >>> plain("backbone.body.layer4.2.conv3", 20)
        'backbone.body.\nlayer4.2.conv3'
    """
    joints = re.split(r"(?<=[-.,:/ _])|(?=\[)", str(name))
    pieces = [piece[start : start + width] for piece in joints for start in range(0, len(piece), width)]
    text = _filled(pieces, width).replace("$", r"\$")  # two would start mathematics
    return f" {text}" if text.startswith("_") else text  # matplotlib leaves labels with an underscore out of legends


def name_characters(figure: Figure) -> int:
    """The number of characters in a line of a name beside the axes, about a third of the figure's width."""
    return max(16, int(4.5 * figure.get_figwidth()))


def add_title(axes: Axes, parts: Sequence[str], ax: Axes | None) -> None:
    """Write the title: above a new figure, or above the caller's axes.

    Args:
        axes: The axes that were drawn on.
        parts: Parts of the title, which is broken into lines between them.
        ax: The caller's axes, None for a new figure.
    """
    pieces = [f"{part}, " for part in parts[:-1]] + [*parts[-1:]]
    text = _filled(pieces, line_characters(axes, ax, "medium")).replace("$", r"\$")
    if ax is None:
        figure_of(axes).suptitle(text, fontsize="medium")
    else:
        axes.set_title(text, fontsize="medium")


def line_characters(axes: Axes, ax: Axes | None, font: str = "legend.fontsize", taken: float = 0.2) -> int:
    """The number of characters that fit into a line as wide as a new figure, or as the caller's axes.

    Args:
        axes: The axes that are drawn on.
        ax: The caller's axes, None for a new figure.
        font: Font, see `font_points`.
        taken: Inches of the width that are not free.
    """
    width = figure_of(axes).get_figwidth() if ax is None else axes.get_window_extent().width / figure_of(axes).dpi
    return int((width - taken) / text_inches("n", font_points(font)))


def legend_characters(axes: Axes, ax: Axes | None) -> int:
    """The number of characters that fit into a line of the legend."""
    return line_characters(axes, ax, taken=0.2 + _handle_inches())


def _filled(pieces: Sequence[str], width: int) -> str:
    """Pieces joined into lines of at most `width` characters, unless a piece is longer."""
    lines = [""]
    for piece in pieces:
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def axis_label(entry: Mapping[str, Any], width: int = 34) -> str:
    """The label of an axis that shows a metric, in lines of at most `width` characters."""
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
    """Draw a faint grid below everything else, and remove the frame at the top and on the right."""
    axes.grid(axis=axis, alpha=0.35)  # type: ignore[arg-type]  # "x", "y" or "both"
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(axes: Axes, groups: Sequence[Sequence[tuple[Any, str]]], ax: Axes | None, title: str = "") -> None:
    """Draw the legend: below the axes of a new figure in as many columns as fit, or inside the caller's axes.

    Args:
        axes: The axes that were drawn on.
        groups: Groups of artists with their labels; each group starts a new column if there are several columns.
        ax: The caller's axes, None for a new figure.
        title: Title of the legend.
    """
    entries = [entry for group in groups for entry in group]
    where: dict[str, Any] = {"loc": "best"}
    if ax is None:
        columns = _columns_that_fit(axes, [label for _, label in entries])
        rows = next(rows for rows in count(1) if rows >= len(entries) or _columns_taken(groups, rows) <= columns)
        blank = [(Line2D([], [], linestyle=""), "")]
        if rows < len(entries):
            entries = [entry for group in groups for entry in [*group, *blank * (-len(group) % rows)]]
        where = {"loc": "outside lower center", "ncols": -(-len(entries) // rows), "columnspacing": GAP, "frameon": False}
    handles, labels = zip(*entries, strict=True)
    (axes if ax is not None else figure_of(axes)).legend(handles, labels, title=title or None, **where)


def _columns_taken(groups: Sequence[Sequence[Any]], rows: int) -> int:
    """The number of columns that the groups take with this number of rows."""
    return sum(-(-len(group) // rows) for group in groups)


def _columns_that_fit(axes: Axes, labels: Sequence[str]) -> int:
    """The number of columns of the legend that fit into the width of the figure."""
    points = font_points("legend.fontsize")
    widest = max(text_inches(label, points) for label in labels) + _handle_inches()
    return max(1, int((figure_of(axes).get_figwidth() - 0.2) / widest))


def _handle_inches() -> float:
    """The width in inches of an entry of the legend without its label."""
    widths = mpl.rcParams["legend.handlelength"] + mpl.rcParams["legend.handletextpad"] + GAP
    return float(widths * font_points("legend.fontsize") / 72)


def save_figure(figure: Figure, path: str | Path, dpi: float = 300) -> None:
    """Save a figure for print: with TrueType fonts (type 42) instead of matplotlib's type 3 fonts in PDF, PS and EPS.

    Text, lines and cells are vector graphics; only images and colour bars are pixels.

    Args:
        figure: A figure of matplotlib.
        path: The file; its suffix decides the format.
        dpi: Resolution of images and of pixel formats, in pixels per inch.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(new_figure((1, 1)), f"{folder}/empty.pdf")
    """
    with mpl.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):
        figure.savefig(path, dpi=dpi)
