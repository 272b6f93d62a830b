"""Whether the methods of a run are in the order of a published table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from xaieval.analysis.published import printed_text
from xaieval.results.metric_display import decimals_of, label_of
from xaieval.results.rows import NO_LAYER

__all__ = ["order_notes"]

MOST = 6  # pairs of methods that are named


def order_notes(frame: pd.DataFrame, numbers: pd.DataFrame, metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the methods of a run are in the order of a printed table, in each metric of both.

    Methods are compared at the same layer, those without a layer with all. Two that share a letter cannot be told apart.

    Args:
        frame: The frame of the run's table, with letters (see `xaieval.report.ResultTable`).
        numbers: The printed numbers, from `xaieval.analysis.published.beside_published`.
        metrics: The metrics of the run.

    Example:
        >>> pairs = pd.MultiIndex.from_tuples([("p5", "gradcam"), ("p5", "layercam")], names=["layer", "method"])
        >>> frame = pd.DataFrame({"average_drop": [40.0, 50.0], "average_drop_letters": ["a", "b"]}, pairs)
        >>> drop = {"name": "average_drop", "label": "AD %", "higher_is_better": False}
        >>> print(order_notes(frame, pd.DataFrame({"average_drop": [46.5, 36.8]}, pairs), [drop])[0])
        AD %: at p5, layercam is better than gradcam in print (36.8, 46.5), but worse here (50.0, 40.0; significantly)
    """
    shown = [one for one in metrics if one["name"] in numbers and one["higher_is_better"] is not None]
    return [note for metric in shown for note in _order(frame, numbers[metric["name"]].dropna(), metric)]


def _order(frame: pd.DataFrame, printed: pd.Series[float], metric: Mapping[str, Any]) -> Iterator[str]:
    name, label, digits = metric["name"], label_of(metric), decimals_of(metric)
    sign = 1 if metric["higher_is_better"] else -1
    measured, letters = frame[name].dropna(), frame[f"{name}_letters"]
    pairs: list[Any] = [pair for pair in printed.index if pair in measured.index]
    ordered = [
        (one, other)
        for one in pairs
        for other in pairs
        if sign * (printed[one] - printed[other]) > 0 and (one[0] == other[0] or NO_LAYER in (one[0], other[0]))
    ]
    turned = [(one, other) for one, other in ordered if sign * (measured[one] - measured[other]) < 0]
    for one, other in turned[:MOST]:
        layer = other[0] if one[0] == NO_LAYER else one[0]
        yield (
            f"{label}: at {layer}, {one[1]} is better than {other[1]} in print ({printed_text(printed[one])}, "
            f"{printed_text(printed[other])}), but worse "
            f"here ({measured[one]:.{digits}f}, {measured[other]:.{digits}f}; {_how_sure(letters[one], letters[other])})"
        )
    if len(turned) > MOST:
        yield f"{label}: {len(turned) - MOST} more pairs of methods are not in the order of print"
    if ordered and not turned:
        sure = {_how_sure(letters[one], letters[other]) for one, other in ordered}
        doubt = "" if sure == {"significantly"} else ", but not all of the differences are significant"
        yield f"{label}: the methods are in the order of print{', which was not tested' if sure == {'not tested'} else doubt}"


def _how_sure(one: str, other: str) -> str:
    """Whether two items with these letters differ."""
    if not one or not other:
        return "not tested"
    return "not significantly" if set(one) & set(other) else "significantly"
