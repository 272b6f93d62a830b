"""A table of all metrics that have a name."""

from __future__ import annotations

from typing import NamedTuple

from xaieval.metrics import METRICS, Metric

__all__ = ["Entry", "catalogue"]

BETTER = {True: "higher", False: "lower", None: "describes"}


class Entry(NamedTuple):
    """What is to be known of a metric before it is taken.

    Attributes:
        name: for `metrics=`, and the column in `rows` and `summary`.
        needs: what it is a function of, by the names of `xaieval.metrics.NEEDS`.
        passes: forward passes an image and map beyond the masked one.
        better: "higher", "lower", or "describes" for a number of the map that is neither.
        label: short name with its unit.
        paper: where the metric is from.
    """

    name: str
    needs: str
    passes: str
    better: str
    label: str
    paper: str


def catalogue() -> list[Entry]:
    """Every metric by name.

    Example:
        >>> [entry for entry in catalogue() if entry.name == "coherency"][0]
        Entry(name='coherency', needs='maps, masked_maps', passes='the method once more', better='higher',
              label='coherency %', paper='Poppi et al. 2021, arXiv 2104.10252')
    """
    return [_entry(metric) for metric in METRICS.values()]


def _entry(metric: Metric) -> Entry:
    needs = ", ".join(need for need in metric.needs if need != "protocol")  # which is known anyway
    better = BETTER[metric.higher_is_better]
    return Entry(metric.name, needs, metric.passes, better, metric.label or metric.name, metric.paper)
