"""Which layer and method is the best in a metric, and from which others it does not differ significantly, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from xaieval.results.metric_display import label_of, mean_text

__all__ = ["best_in_words", "ties_of"]

MOST_NAMED = 4  # pairs in a sentence

Pair = tuple[str, str]


def ties_of(letters: pd.Series[Any], best: Pair) -> list[Pair] | None:
    """The layers and methods that share a letter with the best; None if nothing was tested.

    Args:
        letters: The letters of each pair of layer and method; "" of those that were not tested.
        best: The layer and method with the best mean.
    """
    tested: dict[Any, set[str]] = {pair: set(own) for pair, own in letters.items() if own}
    if best not in tested:
        return None
    return [(str(pair[0]), str(pair[1])) for pair, own in tested.items() if pair != best and own & tested[best]]


def best_in_words(frame: pd.DataFrame, metric: Mapping[str, Any]) -> str:
    """The best of a metric in a sentence or two; "" if there is none, or nothing to compare it with.

    Args:
        frame: The `frame` of the table of one run.
        metric: The metric's entry in the manifest.

    Example:
        >>> pairs = pd.MultiIndex.from_tuples([("p4", "gradcam"), ("p5", "gradcam")], names=["layer", "method"])
        >>> means = {"drop": [40.0, 15.0], "drop_low": [35.0, 12.0], "drop_high": [45.0, 18.0]}
        >>> frame = pd.DataFrame(means | {"drop_letters": ["b", "a"], "drop_best": [False, True]}, index=pairs)
        >>> best_in_words(frame, {"name": "drop", "label": "AD %", "higher_is_better": False})
        'AD %: gradcam at p5 has the lowest mean, 15.0 [12.0, 18.0], and differs significantly from the other one.'
    """
    name, higher = metric["name"], metric["higher_is_better"]
    letters: pd.Series[Any] = frame[f"{name}_letters"]
    best = [(str(layer), str(method)) for layer, method in frame.index[frame[f"{name}_best"].to_numpy(dtype=bool)]]
    if higher is None or not best:
        return ""
    row = frame.loc[best].iloc[0]
    mean = mean_text(row[name], row[f"{name}_low"], row[f"{name}_high"], metric)
    way = "highest" if higher else "lowest"
    tied = ties_of(letters, best[0])
    if len(best) > 1:  # the same mean, with intervals that may differ
        start = f"{label_of(metric)}: {_named(best)} have the {way} mean, {mean.partition(' ')[0]}"
        it, does, differ = "They", "do", "differ"
    else:
        start, it, does, differ = f"{label_of(metric)}: {_named(best)} has the {way} mean, {mean}", "It", "does", "differs"
    if tied is None:
        return f"{start}; nothing was tested."
    ties = [pair for pair in tied if pair not in best]
    others = int((letters != "").sum()) - len(best)
    rest = others - len(ties)
    if not others:
        return f"{start}."
    one = "the other one" if others == 1 else ""
    if not ties:
        return f"{start}, and {differ} significantly from {one or f'all {others} others'}."
    if not rest:
        return f"{start}, but {does} not differ significantly from {one or f'any of the {others} others'}."
    return (
        f"{start}. {it} {does} not differ significantly from {_named(ties)}. {it} {differ} significantly from the other "
        f"{'one' if rest == 1 else rest}."
    )


def _named(pairs: Sequence[Pair]) -> str:
    """Pairs as words: a method at its layer."""
    words = [f"{method} at {layer}" for layer, method in pairs[:MOST_NAMED]]
    words += [f"{len(pairs) - MOST_NAMED} more"] if len(pairs) > MOST_NAMED else []
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
