"""Figures of rankings."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xaieval.analysis.ranking import Ranking
from xaieval.analysis.tables import counted
from xaieval.report.figures.data import level_note
from xaieval.report.figures.style import (
    HUES,
    Size,
    add_title,
    axis_label,
    error_bars,
    fit_height,
    light_grid,
    name_characters,
    new_figure,
    plain,
    row_inches,
)

__all__ = ["ranking_figure"]

HEADING = -0.95  # the vertical position of the heading; the first item is at 0


def ranking_figure(ranking: Ranking, *, size: Size = None) -> Figure:
    """Draw a ranking: means with intervals, best first, and groups of items that do not differ significantly.

    Each group is a bar to the right of the means, as in a critical-difference diagram: items that no bar connects differ
    significantly. The dots on a bar are its members, since a group may leave out an item in between if variances differ. Beside
    the bars are the letters of the groups, and how often an item ranks first in resampled sets of images.

    Args:
        ranking: The result of `Scores.rank`.
        size: Width, or width and height, in inches.

    Returns:
        A new figure that is not shown in a window.

    Raises:
        UsageError: The size is not positive.

    Reference:
        The bars follow Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006, section 3.2.3;
        the tests are different ones (see `Scores.rank`).

    Example:
        >>> import pandas as pd
        >>> from xaieval.analysis.ranking import rank
        >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p2"] * 9 + ["p5"] * 9, "method": "gradcam"})
        >>> rows = rows.assign(status="ok", average_drop=[90.0] * 9 + [10.0] * 9)
        >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
        >>> len(ranking_figure(rank(rows, [drop], "average_drop")).axes)
        2
    """
    groups = [group for group in ranking.groups if len(group) > 1]
    figure = new_figure(size)
    names = [plain(item, name_characters(figure)) for item in ranking.table.index]
    left, right = figure.subplots(1, 2, width_ratios=(5, 0.3 + 0.35 * len(groups)))
    _draw_means(left, ranking, names)
    _draw_groups(right, ranking, groups)
    fixed = [ranking.fixed] if ranking.fixed else []
    add_title(left, [*fixed, counted(ranking.n_images, ranking.grouping), level_note(ranking.level)], None)
    for axes in (left, right):
        axes.set_ylim(len(names) - 0.5, HEADING - 0.4)
    fit_height(left, row_inches([*names, ""]) * (len(names) + 0.9), size)
    return figure


def _draw_means(axes: Axes, ranking: Ranking, names: list[str]) -> None:
    """Draw the means with their intervals."""
    table = ranking.table
    ends = error_bars(table["mean"], table["low"], table["high"])
    axes.errorbar(table["mean"], range(len(table)), xerr=ends, fmt="o", color=HUES[0], capsize=3)
    axes.set_yticks(range(len(table)), names)
    axes.set_xlabel(axis_label(ranking.metric, 24))
    light_grid(axes, "x")


def _draw_groups(axes: Axes, ranking: Ranking, groups: list[list[str]]) -> None:
    """Draw the bars of the groups, with letters and shares as tick labels on the right."""
    rows = {str(item): place for place, item in enumerate(ranking.table.index)}
    ink, wide = mpl.rcParams["text.color"], mpl.rcParams["lines.linewidth"]
    for number, group in enumerate(groups):
        places = [rows[item] for item in group]
        axes.plot(
            [number] * len(places), places, "-o", color=ink, alpha=0.6, linewidth=wide, markersize=4, solid_capstyle="round"
        )
    records = ranking.table.to_dict("records")
    words = [f"{row['letters']}  {row['first']:.0%}" for row in records]
    axes.set_yticks([HEADING, *range(len(words))], ["letters,\nfirst in", *words])
    axes.yaxis.tick_right()
    axes.set_xticks([])
    axes.set_xlim(-0.7, len(groups) - 0.3)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
