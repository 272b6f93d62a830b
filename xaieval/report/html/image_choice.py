"""Which images a report shows: the best, the worst and random ones, layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from xaieval.errors import MetricError, choose_from
from xaieval.report.figures.data import Pair, first_directed, pairs_of, rows_of
from xaieval.results.record import RunRecord
from xaieval.results.rows import COUNTED

__all__ = ["EACH", "MOST_PAIRS", "ImageChoice", "choose_images", "images_to_show", "methods_to_show", "pairs_to_show"]

EACH, MOST_PAIRS = 3, 12  # images of a kind; layers and methods that are shown


@dataclass(frozen=True)
class ImageChoice:
    """Ids of images.

    Attributes:
        metric: what the manifest says of the metric that decided.
        best: by layer and method, the best first.
        worst: by layer and method, the worst first.
        others: drawn at random from all that are neither, the same for all layers and methods.
    """

    metric: Mapping[str, Any]
    best: Mapping[Pair, list[str]]
    worst: Mapping[Pair, list[str]]
    others: list[str]

    @property
    def ids(self) -> list[str]:
        """All of them, each once."""
        kinds = [*self.best.values(), *self.worst.values(), self.others]
        return list(dict.fromkeys(image for kind in kinds for image in kind))


def images_to_show(scores: RunRecord, methods: Sequence[str] = ()) -> list[str]:
    """The ids of the images whose maps a report asks for.

    Args:
        scores: of a run.
        methods: whose maps are shown; the first one that is no control map unless told.

    Raises:
        MetricError: the run has no such method.

    Example:
        >>> from xaieval import Scores
        >>> rows = pd.DataFrame({"image_id": list("abcdefgh"), "layer": "p5", "method": "gradcam", "status": "ok"})
        >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
        >>> images_to_show(Scores(rows.assign(average_drop=range(8)), {"metrics": [drop]}))
        ['a', 'b', 'c', 'h', 'g', 'f', 'e', 'd']
    """
    pairs = pairs_to_show(scores, methods_to_show(scores, methods))[:MOST_PAIRS]
    choice = choose_images(scores, pairs)
    return [] if choice is None else choice.ids


def methods_to_show(scores: RunRecord, methods: Sequence[str] = ()) -> list[str]:
    """The methods asked for, or the first one that is no control map.

    Raises:
        MetricError: the run has no such method.
    """
    controls = scores.controls
    known = list(scores.rows["method"].unique())
    for method in methods:
        if method not in known:
            raise MetricError(f"no method {method!r} in this run; {choose_from(method, known)}")
    return list(methods) or [*(method for method in known if method not in controls), *known][:1]


def pairs_to_show(scores: RunRecord, methods: Sequence[str]) -> list[Pair]:
    """Layers of these methods, method by method."""
    pairs = [pair for pair in pairs_of(scores.rows) if pair[1] in methods]
    return sorted(pairs, key=lambda pair: methods.index(pair[1]))


def choose_images(scores: RunRecord, pairs: Sequence[Pair], among: Collection[str] | None = None) -> ImageChoice | None:
    """The best, the worst and random images by the run's first metric that has a direction.

    Images that are equal in it are told apart by what share of the confidence is kept, then by their ids.

    Args:
        scores: of a run.
        pairs: layers and methods, each of which has its own best and worst images.
        among: ids to choose from; those of all rows unless told.

    Returns:
        None if the run has no metric with a direction.
    """
    metric = first_directed(scores.metrics)
    if metric is None:
        return None
    rows = scores.rows[scores.rows["status"].isin(COUNTED)]
    rows = rows if among is None else rows[rows["image_id"].isin(list(among))]
    ordered = {pair: _best_first(rows_of(rows, pair), metric) for pair in pairs}
    best = {pair: ids[: min(EACH, -(-len(ids) // 2))] for pair, ids in ordered.items()}
    worst = {pair: ids[::-1][: min(EACH, len(ids) // 2)] for pair, ids in ordered.items()}
    extremes = {image for kinds in (best, worst) for ids in kinds.values() for image in ids}
    # An order of all images of the run, so that the choice among some of them keeps to that among all.
    shuffled = np.random.default_rng(scores.seed).permutation(sorted(scores.rows["image_id"].unique()))
    there = {image for ids in ordered.values() for image in ids} - extremes
    return ImageChoice(metric, best, worst, [str(image) for image in shuffled if image in there][:EACH])


def _best_first(rows: pd.DataFrame, metric: Mapping[str, Any]) -> list[str]:
    """Ids of one layer and method in order of the metric; those without a value are left out."""
    kept = rows["masked_confidence"] / rows["confidence"] if {"confidence", "masked_confidence"} <= {*rows} else 0.0
    good = rows[metric["name"]] * (1 if metric["higher_is_better"] else -1)
    table = pd.DataFrame({"good": good, "kept": kept, "image_id": rows["image_id"]}).dropna(subset="good")
    return list(table.sort_values(["good", "kept", "image_id"], ascending=[False, False, True])["image_id"])
