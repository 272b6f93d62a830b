"""Bar charts of a metric per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from xaieval.analysis.summary import summarise
from xaieval.errors import MetricError
from xaieval.report.figures.data import (
    common_names,
    count_range,
    counts_note,
    level_note,
    metric_entry,
    pair_names,
    pairs_of,
    subset,
    summary_of,
)
from xaieval.report.figures.style import (
    Size,
    Style,
    add_legend,
    add_title,
    axis_label,
    error_bars,
    figure_of,
    fit_height,
    legend_characters,
    light_grid,
    name_characters,
    one_axes,
    plain,
    row_inches,
    styles,
)
from xaieval.results.record import RunRecord

__all__ = ["classes_figure"]

MOST_CLASSES = 100
FILLED = 0.8  # the share of the height of a class that its bars take
BAR = 0.11  # inches, the smallest height of a bar


def classes_figure(
    scores: RunRecord,
    metric: str | None = None,
    classes: Sequence[str] | Mapping[int, str] | None = None,
    *,
    level: float = 0.95,
    size: Size = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw a metric per class (the labels of the images): one bar per layer and method, with its interval.

    Args:
        scores: A run (`xaieval.Scores`) on images with labels.
        metric: Name of the metric (default: the first metric of the run).
        classes: Names of the classes 0, 1, ...; or a mapping from classes to names, to show only these in this order
            (default: "class 0", "class 1", ...).
        level: Level of the intervals, in (0, 1).
        size: Width, or width and height, in inches.
        ax: Axes to draw on (default: those of a new figure).

    Returns:
        A new figure that is not shown in a window, or the figure of `ax`.

    Raises:
        MetricError: The run has no such metric or no labels, more classes than fit into a figure, or classes without a name.
        UsageError: Both `size` and `ax` are given.

    Example:
        >>> import pandas as pd
        >>> from xaieval import Scores
        >>> rows = pd.DataFrame({"image_id": range(3), "layer": "p2", "method": "gradcam", "status": "ok"})
        >>> rows = rows.assign(label=[0, 1, 1], a=[5.0, 9.0, 9.0])
        >>> scores = Scores(rows, {"metrics": [{"name": "a", "higher_is_better": True, "interval": "mean"}]})
        >>> [label.get_text() for label in classes_figure(scores, classes=["cat", "dog"]).axes[0].get_yticklabels()]
        ['cat, n = 1', 'dog, n = 2']
    """
    entry = metric_entry(scores, metric)
    shown = subset(scores)
    names = _names(shown.sample.rows, classes)
    tables = {label: _summary(shown, entry, label, level) for label in names}
    pairs = pairs_of(shown.sample.rows)
    chosen = styles(len(pairs), "bars of each class")
    axes = one_axes(size, ax)
    for number, (pair, style) in enumerate(zip(pairs, chosen, strict=True)):
        _draw_bars(axes, [table.loc[pair] for table in tables.values()], entry["name"], number, len(pairs), style)
    width = name_characters(figure_of(axes))
    rows = [plain(f"{names[label]}, {count_range(table['n_images'])}", width) for label, table in tables.items()]
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(axis_label(entry))
    whole = summary_of(shown, level)
    add_title(axes, [*common_names(pairs), *counts_note(whole), level_note(level), *_unlabelled(shown.sample.rows)], ax)
    light_grid(axes, "x")
    if len(pairs) > 1:
        handles = [Patch(facecolor=style.colour, hatch=style.hatch, edgecolor=_edge()) for style in chosen]
        labels = [plain(name, legend_characters(axes, ax)) for name in pair_names(pairs)]
        add_legend(axes, [list(zip(handles, labels, strict=True))], ax)
    if ax is None:
        fit_height(axes, max(row_inches(rows), BAR * len(pairs) / FILLED) * len(rows), size)
    return figure_of(axes)


def _names(rows: pd.DataFrame, classes: Sequence[str] | Mapping[int, str] | None) -> dict[int, str]:
    """The classes to show, with their names."""
    present = sorted({int(label) for label in rows["label"].dropna()}) if "label" in rows else []
    if not present:
        raise MetricError("the rows have no labels, so no classes can be drawn; score batches of (images, labels)")
    given = classes if isinstance(classes, Mapping) else dict(enumerate(classes or ()))
    names = dict(given) if isinstance(classes, Mapping) else {label: given.get(label, f"class {label}") for label in present}
    unknown = [label for label in names if label not in present]
    unnamed = [label for label in present if label not in given] if classes is not None and not unknown else []
    if unknown or (unnamed and not isinstance(classes, Mapping)):
        what = f"no image has the label {unknown[0]}" if unknown else f"classes= has no name for the label {unnamed[0]}"
        raise MetricError(f"{what}; labels of the run: {', '.join(map(str, present))}")
    if len(names) > MOST_CLASSES:
        raise MetricError(
            f"{len(names)} classes do not fit into a figure, at most {MOST_CLASSES} do; choose some with classes={{0: name}}"
        )
    return names


def _summary(scores: RunRecord, entry: dict[str, Any], label: int, level: float) -> pd.DataFrame:
    """The summary of one metric over the images of a class."""
    rows = scores.sample.rows[(scores.sample.rows["label"] == label).fillna(False).astype(bool)]
    return summarise(rows, [entry], level=level, seed=scores.seed, weights=scores.group_weights)


def _draw_bars(axes: Axes, rows: list[Any], name: str, number: int, of: int, style: Style) -> None:
    """Draw the bars of one layer and method, one per class."""
    height = FILLED / of
    places = [place + (number + 0.5) * height - FILLED / 2 for place in range(len(rows))]
    values, low, high = ([row[name + end] for row in rows] for end in ("", "_low", "_high"))
    wide = 0.6 * mpl.rcParams["lines.linewidth"]
    axes.barh(
        places,
        values,
        height,
        xerr=error_bars(values, low, high),
        color=style.colour,
        hatch=style.hatch,
        edgecolor=_edge(),
        linewidth=0.5,
        error_kw={"elinewidth": wide, "ecolor": mpl.rcParams["text.color"]},
    )


def _edge() -> str:
    """The colour of the edges and hatches of bars."""
    return str(mpl.rcParams["axes.facecolor"])


def _unlabelled(rows: pd.DataFrame) -> list[str]:
    """The number of images without a label, which are in no class, if there are any."""
    number = rows.loc[rows["label"].isna(), "image_id"].nunique()
    return [f"without {number} unlabelled {'image' if number == 1 else 'images'}"] if number else []
