"""The first screen of a report: which layer and method is best, how sure that is, and what to doubt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from xaieval.analysis.warnings import find_warnings
from xaieval.report.figures.data import DIRECTIONS, Pair
from xaieval.report.html.sections import best_pair, title_of
from xaieval.report.result_table import ResultTable
from xaieval.report.significance import MOST_NAMED, ties_of
from xaieval.results.matched import without_excess
from xaieval.results.metric_display import decimals_of, interval_text, label_of
from xaieval.results.record import RunRecord

__all__ = ["Best", "Winner", "best_of", "doubts_of", "how_sure", "size_note", "winners_of"]

FEW = 50  # images; with fewer, intervals of skewed values contain the mean too rarely (benchmarks/coverage)

Beaten = Mapping[Pair, Sequence[tuple[str, Sequence[str]]]]  # what `controls_beaten` returns


class Best(NamedTuple):
    """The best layer and method in a metric.

    Attributes:
        title: Name and label of the metric.
        label: Its label.
        direction: Which direction is better.
        value: The mean as text.
        interval: The interval as text.
        layer: Address of the layer.
        method: Name of the method.
        ties: The layers and methods that cannot be told apart from it; None if that was not tested.
        fooled: Why the metric can be fooled; "" if that is not known.
    """

    title: str
    label: str
    direction: str
    value: str
    interval: str
    layer: str
    method: str
    ties: list[Pair] | None
    fooled: str

    @property
    def named_ties(self) -> list[Pair]:
        """As many of the ties as fit into a cell."""
        return (self.ties or [])[:MOST_NAMED]

    @property
    def more_ties(self) -> int:
        """How many do not fit."""
        return len(self.ties or []) - len(self.named_ties)


class Winner(NamedTuple):
    """A layer and method that is best in some metrics, and the control maps that it beats in them."""

    layer: str
    method: str
    labels: list[str]
    controls: list[str]


def best_of(scores: RunRecord, table: ResultTable, fooled: Mapping[str, str]) -> list[Best]:
    """For each metric that has a direction, the best layer and method without controls, and those that are as good.

    Args:
        scores: The run.
        table: Its table, whose letters say what cannot be told apart.
        fooled: The result of `xaieval.analysis.controls.fooled_metrics`.
    """
    results = []
    for metric in without_excess(scores.metrics):
        name, frame = metric["name"], table.frame
        pair = best_pair(frame, metric, scores.controls)
        if metric["higher_is_better"] is None or pair is None:
            continue
        form = f"z.{decimals_of(metric)}f"
        row = frame.loc[[pair]].to_dict("records")[0]
        interval = interval_text(row[f"{name}_low"], row[f"{name}_high"], form, "\N{EN DASH}")
        results.append(
            Best(
                title_of(metric),
                label_of(metric),
                DIRECTIONS[metric["higher_is_better"]],
                f"{row[name]:{form}}",
                interval,
                *pair,
                ties_of(frame[f"{name}_letters"], pair),
                fooled.get(name, ""),
            )
        )
    return results


def winners_of(best: Sequence[Best], beaten: Beaten) -> list[Winner]:
    """The layers and methods that are best in a metric, those of most metrics first.

    Args:
        best: The best of each metric.
        beaten: The control maps that each layer and method beats, as texts in the order of these metrics.
    """
    places: dict[Pair, list[int]] = {}
    for place, one in enumerate(best):
        places.setdefault((one.layer, one.method), []).append(place)
    winners = []
    for pair, own in sorted(places.items(), key=lambda item: -len(item[1])):
        won = beaten.get(pair, ())
        controls = [f"{won[place][0]} in {best[place].label}" for place in own] if len(won) == len(best) else []
        winners.append(Winner(*pair, [best[place].label for place in own], controls))
    return winners


def how_sure(best: Sequence[Best], level: str) -> str:
    """Whether the best are significantly better than all others.

    Args:
        best: The best of each metric, at least one.
        level: The level of the tests as text.

    Example:
        >>> one = Best("average drop (AD %)", "AD %", "lower is better", "15.0", "[10.4, 19.6]", "p5", "gradcam", [], "")
        >>> how_sure([one], "95%")
        'Significantly better than all others in AD % (95%).'
        >>> how_sure([one._replace(ties=[("p4", "gradcam")]), one._replace(label="IC %")], "95%")
        'Significantly better than all others in IC %, but not in AD % (95%).'
    """
    if any(one.ties is None for one in best):
        few = "there is only one layer and method to rank" if all(one.ties is None for one in best) else ""
        return f"Not tested against the others{': ' if few else ''}{few}."
    certain, open_ = (_joined([one.label for one in best if bool(one.ties) == tied]) for tied in (False, True))
    if not certain:
        return f"Not certain: in no metric significantly better than all others ({level})."
    return f"Significantly better than all others in {certain}{f', but not in {open_}' if open_ else ''} ({level})."


def size_note(winners: Sequence[Winner], summary: pd.DataFrame, controls: Sequence[str]) -> str:
    """What to know of the size of the winner's maps: whether they keep the largest share of the image; "" if they do not.

    Args:
        winners: The layers and methods that are best in a metric.
        summary: The summary of the run.
        controls: Names of the control maps, which do not count.

    Example:
        >>> pairs = pd.MultiIndex.from_tuples([("p4", "cam"), ("p5", "cam")], names=["layer", "method"])
        >>> size_note([Winner("p5", "cam", ["AD %"], [])], pd.DataFrame({"mask_area": [0.2, 0.5]}, pairs), [])
        'The maps of p5 cam are the largest: they keep 50.0 % of the image, the others at most 20.0 %.'
    """
    areas = summary.get("mask_area", pd.Series(dtype=float)).dropna()
    own = areas[[pair[1] not in controls for pair in areas.index]].sort_values(ascending=False)
    largest = [winner for winner in winners if len(own) > 1 and (winner.layer, winner.method) == own.index[0]]
    shares = [f"{100 * area:.1f}" for area in own[:2]]
    if not largest or shares[0] == shares[1]:
        return ""
    name = " ".join(own.index[0])
    return f"The maps of {name} are the largest: they keep {shares[0]} % of the image, the others at most {shares[1]} %."


def doubts_of(scores: RunRecord, summary: pd.DataFrame, level: float) -> list[str]:
    """The warnings of the run, with the words of its metrics, and one more if there are few images."""
    doubts = [_in_words(finding.text, scores.metrics) for finding in find_warnings(scores, level)]
    fewest = int(summary["n_images"].min())
    few = (
        f"Only {fewest} {'image counts' if fewest == 1 else 'images count'} for a layer and method; with fewer than {FEW}, "
        "intervals of skewed values contain the true mean too rarely, so score more images"
    )
    return [*doubts, *([few] if fewest < FEW else []), *filter(None, [scores.sample_note])]


def _in_words(text: str, metrics: Sequence[Mapping[str, Any]]) -> str:
    """A sentence with the labels of metrics instead of their names in code."""
    for name, label in sorted(((one["name"], label_of(one)) for one in metrics), key=lambda pair: -len(pair[0])):
        if "_" in name:
            text = re.sub(rf"(?<![\w'\"=.]){re.escape(name)}(?!\w)", lambda _, word=label: word, text)  # type: ignore[misc]
    return f"{text[:1].upper()}{text[1:]}"


def _joined(words: Sequence[str]) -> str:
    """Words as a list in a sentence."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
