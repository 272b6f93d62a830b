"""Several runs in one table: a model in each row, at its best layer and method or at one that is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from xaieval.analysis.comparability import protocols_of
from xaieval.analysis.in_common import InCommon, in_common
from xaieval.analysis.stats.intervals import check_level
from xaieval.analysis.summary import summarise, why_missing
from xaieval.config.metric_names import own_name
from xaieval.errors import MetricError, choose_from
from xaieval.report.result_table import ResultTable, protocol_of
from xaieval.results.metric_display import counts_text, label_of
from xaieval.results.record import RunRecord

__all__ = ["models_table"]

OneOrEach = str | Sequence[str] | None


def models_table(
    runs: Mapping[str, RunRecord],
    by: str | None = None,
    *,
    layer: OneOrEach = None,
    method: OneOrEach = None,
    level: float = 0.95,
    across_protocols: bool = False,
) -> ResultTable:
    """Several runs in one table, a model in each row.

    Each row is the pair of layer and method that is the best of its run by a metric, or the best of those at a layer or of a
    method that is given. Means are over the images that all runs have. Control maps are never chosen.

    The best of several pairs, chosen on the images that it is measured on, looks better than it is: part of its lead is luck
    (the winner's curse). So the intervals of a row are widened by Bonferroni's correction for the number of pairs that it was
    chosen from: each has the level `1 - (1 - level) / pairs`, so all of them together hold with at least the probability
    `level`, and with them that of the chosen pair, in whatever way it was chosen. Its mean is not corrected. A pair that is
    given, or chosen on other images, keeps the plain interval.

    Args:
        runs: The runs by the names of their models, at least two.
        by: The metric that chooses. Default: the first that all runs have with a direction.
        layer: The layer of all runs, or of each of them in their order. Default: any.
        method: The method of all runs, or of each of them in their order. Default: any.
        level: Level of the intervals before the correction, in (0, 1).
        across_protocols: Put runs into one table although they were measured under different protocols, and say so.

    Returns:
        A `ResultTable` with the index `(model, layer, method)`, the column `n_pairs` (of how many pairs a row is the best), and
        `notes` that say in what the runs differ.

    Raises:
        MetricError: The runs have no image or no metric in common; or a metric, layer or method is none of theirs; or no pair
            has a value.
        ProtocolError: They were measured under different protocols.

    Example:
        >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p2"] * 9 + ["p5"] * 9, "method": "gradcam"})
        >>> rows = rows.assign(status="ok", average_drop=[90.0, 80, 85] * 3 + [10.0, 20, 15] * 3)
        >>> metrics = [{"name": "average_drop", "label": "AD %", "higher_is_better": False, "interval": "mean"}]
        >>> halved = rows.assign(average_drop=rows["average_drop"] / 2)
        >>> small, large = (RunRecord(table, {"metrics": metrics}) for table in (rows, halved))
        >>> models_table({"small": small, "large": large})
        model  layer  method             AD % ↓  n  failed
        small  p5     gradcam  15.0 [9.7, 20.3]  9       0
        large  p5     gradcam   7.5 [4.8, 10.2]  9       0
    """
    check_level(level)
    shared = in_common(runs, across_protocols)
    chosen_by = _metric(by, shared.metrics)
    layers, methods = _each(layer, "layer", runs), _each(method, "method", runs)
    records = [
        _best(name, run, shared.metrics, chosen_by, given, level)
        for (name, run), *given in zip(shared.runs.items(), layers, methods, strict=True)
    ]
    frame = pd.DataFrame(records).set_index(["model", "layer", "method"])
    for entry in shared.metrics:
        frame[f"{entry['name']}_best"] = _is_best(frame[entry["name"]], entry["higher_is_better"])
    order = [entry["name"] + end for entry in shared.metrics for end in ("", "_low", "_high", "_best")]
    rest = [name for name in ("mask_area", "n_images", "n_groups", "n_failed", "n_pairs") if name in frame]
    return ResultTable(frame[[*order, *rest]], shared.metrics, _caption(shared, frame, chosen_by, level), shared.notes)


def _metric(by: str | None, metrics: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The metric that chooses.

    Raises:
        MetricError: It is none of those that all runs have with a direction.
    """
    known = {entry["name"]: entry for entry in metrics if entry["higher_is_better"] is not None}
    chosen = next(iter(known), None) if by is None else own_name(by, known)
    if chosen not in known:
        raise MetricError(f"no metric {by!r} with a direction in all runs; {choose_from(by, known)}")
    return known[chosen]


def _each(given: OneOrEach, what: str, runs: Mapping[str, RunRecord]) -> list[str | None]:
    """A layer or method for each run.

    Raises:
        MetricError: There are neither one nor as many as runs.
    """
    if given is None or isinstance(given, str):
        return [given] * len(runs)
    words = list(given)
    if len(words) not in (1, len(runs)):
        raise MetricError(f"{what} is one for all of the {len(runs)} runs, or one for each of them; got {len(words)}")
    return [*(words * len(runs) if len(words) == 1 else words)]


def _best(
    name: str,
    run: RunRecord,
    metrics: Sequence[Mapping[str, Any]],
    by: Mapping[str, Any],
    given: Sequence[str | None],
    level: float,
) -> dict[str, Any]:
    """The row of a run.

    Raises:
        MetricError: It has no such layer or method, or no pair has a value.
    """
    rows = run.sample.rows[~run.sample.rows["method"].isin(run.controls)]
    for column, value in zip(("layer", "method"), given, strict=True):
        known = [str(one) for one in rows[column].unique()]
        if value is not None and value not in known:
            raise MetricError(f"no {column} {value!r} in {name}; {choose_from(value, known)}")
        rows = rows if value is None else rows[rows[column] == value]
    pairs = len(rows[["layer", "method"]].drop_duplicates())
    within = 1 - (1 - level) / max(pairs, 1)
    summary = summarise(rows, metrics, level=within, weights=run.group_weights)
    means = summary[by["name"]].dropna()
    if means.empty:
        raise MetricError(
            f"no layer and method of {name} has a value of {by['name']}; leave this run out, or choose by another"
        )
    place = means.idxmax() if by["higher_is_better"] else means.idxmin()
    [record] = summary.loc[[place]].reset_index().to_dict("records")
    return {"model": name, **{str(column): value for column, value in record.items()}, "n_pairs": pairs}


def _is_best(means: pd.Series[float], higher_is_better: bool | None) -> pd.Series[bool]:
    """Which means are the best of a column; none of a metric without a direction."""
    known = means.dropna()
    if higher_is_better is None or known.empty:
        return pd.Series(False, index=means.index)
    best = known.max() if higher_is_better else known.min()
    return means.apply(lambda mean: math.isclose(mean, best))


def _caption(shared: InCommon, frame: pd.DataFrame, by: Mapping[str, Any], level: float) -> str:
    """What was measured, on what, and how rows were chosen."""
    first, *others = shared.runs.values()
    same = all(one == other for one, other in (protocols_of(first, run) for run in others))
    many = frame["n_pairs"].max() > 1
    each = [f"{pairs} ({name})" for name, pairs in zip(shared.runs, frame["n_pairs"], strict=True)]
    counts = [str(frame["n_pairs"].iloc[0])] if len({*frame["n_pairs"]}) == 1 else each
    why = why_missing(frame, [entry["name"] for entry in shared.metrics], level, first.group_weights)
    sentences = [
        f"Means with {100 * level:g} % intervals ({counts_text(shared.images, first.n_groups, first.group_weights)}, the same "
        "images for all).",
        protocol_of(first) if same else "The protocols differ.",
        f"Each row is the best pair of layer and method of its run by {label_of(by)}, out of {', '.join(counts)}. The best of "
        "several on the same images looks better than it is: the intervals allow for that choice (Bonferroni), the means do "
        "not."
        if many
        else "",
        "Bold: the best mean of a column, without a test.",
        why and f"{why[0].upper()}{why[1:]}.",
    ]
    return " ".join(filter(None, sentences))
