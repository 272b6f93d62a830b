"""The table of all metrics by name, as `xaieval-bench metrics` prints it."""

from __future__ import annotations

from typing import NamedTuple

from xaieval.metrics import FAMILIES, METRICS, Metric

__all__ = ["Entry", "catalogue"]

BETTER = {True: "higher", False: "lower", None: "describes"}


class Entry(NamedTuple):
    """A row of the table of metrics.

    Attributes:
        name: Name for `metrics=`, and of the column in `rows` and `summary`.
        family: The question that it answers about a map, one of `xaieval.metrics.FAMILIES`.
        needs: Its inputs, by the names of `xaieval.metrics.NEEDS`.
        passes: Forward passes for each image and map beyond the masked one.
        better: "higher", "lower", or "describes" for a number that only describes a map.
        label: Short name with its unit.
        paper: The source.
    """

    name: str
    family: str
    needs: str
    passes: str
    better: str
    label: str
    paper: str


def catalogue() -> list[Entry]:
    """Return an entry for each metric in `xaieval.metrics.METRICS`, family by family.

    Example:
        >>> [entry for entry in catalogue() if entry.name == "coherency"][0]
        Entry(name='coherency', family='faithfulness', needs='maps, masked_maps', passes='the method once more',
              better='higher', label='coherency %', paper='Poppi et al. 2021, arXiv 2104.10252')
    """
    families = list(FAMILIES)
    return [_entry(metric) for metric in sorted(METRICS.values(), key=lambda metric: families.index(metric.family))]


def _entry(metric: Metric) -> Entry:
    needs = ", ".join(need for need in metric.needs if need != "protocol")  # every run has a protocol
    better = BETTER[metric.higher_is_better]
    return Entry(metric.name, metric.family, needs, metric.passes, better, metric.label or metric.name, metric.paper)
