"""The images that a report shows: the best, the worst and random ones, per layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from xaieval.errors import MetricError, choose_from
from xaieval.report.figures.data import Pair, first_directed, pairs_of, rows_of
from xaieval.results.record import RunRecord
from xaieval.results.rows import VALUED

__all__ = [
    "EACH",
    "MOST_PAIRS",
    "ImageChoice",
    "choose_images",
    "images_to_show",
    "methods_to_explore",
    "methods_to_show",
    "pairs_to_show",
]

EACH, MOST_PAIRS = 3, 12  # images of each kind; the largest number of layers and methods


@dataclass(frozen=True)
class ImageChoice:
    """The ids of the images to show.

    Attributes:
        metric: The manifest's entry of the metric that orders the images.
        best: Ids per layer and method, best first.
        worst: Ids per layer and method, worst first.
        others: Ids drawn at random from all images that are neither best nor worst, the same for all layers and methods.
    """

    metric: Mapping[str, Any]
    best: Mapping[Pair, list[str]]
    worst: Mapping[Pair, list[str]]
    others: list[str]

    @property
    def ids(self) -> list[str]:
        """All ids, each once."""
        kinds = [*self.best.values(), *self.worst.values(), self.others]
        return list(dict.fromkeys(image for kind in kinds for image in kind))


def images_to_show(scores: RunRecord, methods: Sequence[str] = ()) -> list[str]:
    """The ids of the images that a report of the run shows.

    Args:
        scores: The run (`xaieval.Scores`).
        methods: Methods whose maps are shown (default: the first one that is not a control map).

    Raises:
        MetricError: A method is not in the run.

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
    """The methods whose maps are shown: the given ones, or the first one that is not a control map.

    Raises:
        MetricError: A method is not in the run.
    """
    controls = scores.controls
    known = list(scores.sample.rows["method"].unique())
    for method in methods:
        if method not in known:
            raise MetricError(f"no method {method!r} in this run; {choose_from(method, known)}")
    return list(methods) or [*(method for method in known if method not in controls), *known][:1]


def methods_to_explore(scores: RunRecord, methods: Sequence[str] = ()) -> list[str]:
    """The methods whose maps can be looked at one by one: the given ones, or all that are no control maps.

    Raises:
        MetricError: A method is not in the run.
    """
    own = [method for method in scores.sample.rows["method"].unique() if method not in scores.controls]
    return methods_to_show(scores, methods) if methods or not own else own


def pairs_to_show(scores: RunRecord, methods: Sequence[str]) -> list[Pair]:
    """All pairs of layer and method with these methods, in the order of the methods."""
    pairs = [pair for pair in pairs_of(scores.sample.rows) if pair[1] in methods]
    return sorted(pairs, key=lambda pair: methods.index(pair[1]))


def choose_images(scores: RunRecord, pairs: Sequence[Pair], among: Collection[str] | None = None) -> ImageChoice | None:
    """The best, the worst and random images by the first metric of the run that has a direction.

    Ties are broken by the share of the confidence that is kept, then by the ids.

    Args:
        scores: The run.
        pairs: Layers and methods; each pair has its own best and worst images.
        among: Ids to choose from (default: all images of the run).

    Returns:
        The choice, or None if the run has no metric with a direction.
    """
    metric = first_directed(scores.metrics)
    if metric is None:
        return None
    rows = scores.sample.rows[scores.sample.rows["status"].isin(VALUED)]
    rows = rows if among is None else rows[rows["image_id"].isin(list(among))]
    ordered = {pair: _best_first(rows_of(rows, pair), metric) for pair in pairs}
    best = {pair: ids[: min(EACH, -(-len(ids) // 2))] for pair, ids in ordered.items()}
    worst = {pair: ids[::-1][: min(EACH, len(ids) // 2)] for pair, ids in ordered.items()}
    extremes = {image for kinds in (best, worst) for ids in kinds.values() for image in ids}
    # All images of the run are shuffled, so that the random images do not depend on `among` if it has them.
    shuffled = np.random.default_rng(scores.seed).permutation(sorted(scores.sample.rows["image_id"].unique()))
    rest = {image for ids in ordered.values() for image in ids} - extremes
    return ImageChoice(metric, best, worst, [str(image) for image in shuffled if image in rest][:EACH])


def _best_first(rows: pd.DataFrame, metric: Mapping[str, Any]) -> list[str]:
    """The ids of the rows of one layer and method, best first; rows without a value are left out."""
    kept = rows["masked_confidence"] / rows["confidence"] if {"confidence", "masked_confidence"} <= {*rows} else 0.0
    good = rows[metric["name"]] * (1 if metric["higher_is_better"] else -1)
    table = pd.DataFrame({"good": good, "kept": kept, "image_id": rows["image_id"]}).dropna(subset="good")
    return list(table.sort_values(["good", "kept", "image_id"], ascending=[False, False, True])["image_id"])
