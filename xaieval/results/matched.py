"""The columns of matched controls in the rows, and the entries of excess metrics in the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["control_column", "control_columns", "excess_column", "excess_entry", "without_excess"]


def control_column(metric: str, control: str) -> str:
    """The column of a metric's values for the matched controls of the maps.

    Example:
        >>> control_column("average_drop", "shifted")
        'average_drop_shifted'
    """
    return f"{metric}_{control}"


def excess_column(metric: str) -> str:
    """The column of a metric's excess: its value minus that of the map's matched control.

    Example:
        >>> excess_column("average_drop")
        'average_drop_excess'
    """
    return f"{metric}_excess"


def control_columns(metrics: Sequence[str], controls: Sequence[str]) -> list[str]:
    """The columns that matched controls add to the rows, in order.

    Args:
        metrics: Names of the metrics that have matched controls.
        controls: Names of the matched controls.

    Example:
        >>> control_columns(["average_drop"], ["shifted", "dimmed"])
        ['average_drop_shifted', 'average_drop_dimmed', 'average_drop_excess']
    """
    if not controls:
        return []
    return [
        column
        for metric in metrics
        for column in (*(control_column(metric, control) for control in controls), excess_column(metric))
    ]


def excess_entry(metric: Mapping[str, Any], control: str) -> dict[str, Any]:
    """The manifest's entry of the excess of a metric: of the same direction and unit, and always a mean.

    Args:
        metric: The metric's entry in the manifest.
        control: The matched control that is subtracted.

    Example:
        >>> entry = {"name": "increase_in_confidence", "higher_is_better": True, "interval": "wilson", "label": "IC %"}
        >>> excess = excess_entry(entry, "shifted")
        >>> excess["name"], excess["label"], excess["interval"], excess["excess_of"]
        ('increase_in_confidence_excess', 'IC excess %', 'mean', 'increase_in_confidence')
    """
    name, label = str(metric["name"]), str(metric.get("label") or metric["name"])
    words = f"{label.removesuffix(' %')} excess{' %' if label.endswith(' %') else ''}"
    own = {"name": excess_column(name), "interval": "mean", "label": words, "excess_of": name, "control": control}
    return {**metric, **own}


def without_excess(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries of metrics that are no excess of another.

    Example:
        >>> [entry["name"] for entry in without_excess([{"name": "a"}, {"name": "a_excess", "excess_of": "a"}])]
        ['a']
    """
    return [dict(entry) for entry in metrics if "excess_of" not in entry]
