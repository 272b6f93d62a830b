"""Figures of rankings."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xaieval.ranking import Ranking

__all__ = ["ranking_figure"]

ROW = 0.34  # inches
BLUE, GREY = "#1f5fa8", "#555555"


def ranking_figure(ranking: Ranking) -> Figure:
    """Means with intervals, best at the top; to their right a bar through each group that cannot be told apart,
    its letters, and how often an item is first in resampled sets of images.

    As in a critical-difference diagram, items that no bar joins differ beyond chance. Dots on a bar are its members: where
    spreads differ, a group may leave out an item in its midst.

    Args:
        ranking: by `Scores.rank`.

    Returns:
        A figure that belongs to no window; save it by `savefig`.

    Reference:
        The bars are those of Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006, section
        3.2.3; the tests are not his (see `Scores.rank`).

    Example:
        >>> import pandas as pd
        >>> from xaieval.ranking import rank
        >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p2"] * 9 + ["p5"] * 9, "method": "gradcam"})
        >>> rows = rows.assign(status="ok", average_drop=[90.0] * 9 + [10.0] * 9)
        >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
        >>> len(ranking_figure(rank(rows, [drop], "average_drop")).axes)
        2
    """
    table, groups = ranking.table, [group for group in ranking.groups if len(group) > 1]
    figure = Figure(figsize=(5.9 + 0.22 * len(groups), 1.25 + ROW * len(table)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(5, 1.3 + 0.3 * len(groups)))
    _draw_means(left, ranking)
    _draw_groups(right, ranking, groups)
    return figure


def _draw_means(axes: Axes, ranking: Ranking) -> None:
    table = ranking.table
    places = range(len(table))
    # An interval is made for its own sake, so that by rounding the mean may lie a hair outside of it.
    ends = [(table["mean"] - table["low"]).clip(lower=0), (table["high"] - table["mean"]).clip(lower=0)]
    axes.errorbar(table["mean"], places, xerr=ends, fmt="o", color=BLUE, ecolor=BLUE, capsize=3, markersize=5)
    axes.set_yticks(places, [str(item) for item in table.index])
    axes.invert_yaxis()
    axes.set_ylim(len(table) - 0.5, -0.5)
    way = "higher" if ranking.metric["higher_is_better"] else "lower"
    axes.set_xlabel(f"{ranking.metric.get('label') or ranking.metric['name']}, {way} is better\n{ranking.level:.0%} intervals")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    kind = "method" if ranking.over == "layer" else "layer"
    where = f"{kind} {ranking.fixed}, " if ranking.fixed else ""
    axes.set_title(f"{where}n = {ranking.n_images}", fontsize="small")


def _draw_groups(axes: Axes, ranking: Ranking, groups: list[list[str]]) -> None:
    rows = {str(item): place for place, item in enumerate(ranking.table.index)}
    for number, group in enumerate(groups):
        places = [rows[item] for item in group]
        axes.plot([number] * len(places), places, "-o", color=GREY, linewidth=3, markersize=6, solid_capstyle="round")
    letters, shares = len(groups), len(groups) + max(2.0, 0.9 + 0.35 * ranking.table["group"].str.len().max())
    written: dict[str, Any] = {"va": "center", "fontsize": "small"}
    for place, row in enumerate(ranking.table.to_dict("records")):
        axes.text(letters, place, row["group"], **written)
        axes.text(shares, place, f"{row['first']:.0%}", color=GREY, **written)
    axes.text(letters, -0.8, "group", **written)
    axes.text(shares, -0.8, "first in", color=GREY, **written)
    axes.set_xlim(-0.6, shares + 2)
    axes.axis("off")
