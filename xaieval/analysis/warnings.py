"""Reasons not to trust the numbers of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from xaieval.analysis.controls import BestMaps, controls_ahead
from xaieval.analysis.grouping import find_in_groups
from xaieval.analysis.precision import find_in_precision
from xaieval.analysis.predictions import find_in_predictions
from xaieval.analysis.size import find_metrics_of_size
from xaieval.analysis.stats.intervals import check_level
from xaieval.analysis.stats.paired import holm
from xaieval.analysis.stats.permutation import Floats, sign_flip_p_values
from xaieval.analysis.tables import directions, grouping_of, metric_tables, name_of_pair
from xaieval.results.findings import Finding
from xaieval.results.matched import without_excess
from xaieval.results.metric_display import decimals_of
from xaieval.results.record import RunRecord
from xaieval.results.row_pieces import first_rows
from xaieval.results.rows import COUNTED, EXCLUDED, Pair

__all__ = ["find_warnings"]

MAX_SHARE = 0.05  # share of constant maps or of failed rows above which there is a warning
CHECKED = "average_drop"  # the metric that is easily fooled
REFERENCES = ("insertion", "coherency")  # first words of the metrics that it is checked against
MAX_NAMES = 3  # in a sentence
CONSTANT, LEFT_OUT = "constant_map", "constant_map_left_out"  # statuses


def find_warnings(record: RunRecord, level: float = 0.95) -> list[Finding]:
    """Reasons not to trust the numbers of a run, each with a name; an empty list does not prove that they are right.

    First what the check of the model found on the first batch (the manifest's `findings`), then what the rows show:

    - `unfinished`: the run is not finished.
    - `labels_of_another_space` and others: see `xaieval.analysis.predictions.find_in_predictions`.
    - `constant_maps`, `failed_rows`: more than 5 % of the maps of a method at a layer are constant, or of its rows failed.
    - `images_in_groups`, `groups_of_one`, `one_group`: see `xaieval.analysis.grouping.find_in_groups`.
    - `rounding_decides`: in a run of fewer digits than float32, the maps of a method keep nearly the whole image.
    - `metric_without_values`: a metric has no value on any image.
    - `control_is_best`, `control_may_be_best`: in a metric no method has a better mean than the best control map. The first if
      the control map is significantly better than every method (see `xaieval.analysis.controls.controls_ahead`), the second if
      it may be ahead by chance. Fake-CAM does not count: which metrics it fools is said by
      `xaieval.analysis.controls.fooled_metrics`.
    - `metric_follows_size`: see `xaieval.analysis.size.find_metrics_of_size`.
    - `metrics_disagree`: by Average Drop a method is significantly better than the mean of the other methods, by insertion or
      coherency significantly worse. Both are sign-flip tests paired by image, of whole groups if the run has
      groups; the larger of the two p-values counts, corrected by Holm for all methods. Controls are left out.

    Args:
        record: A run.
        level: 1 minus the probability of even one false disagreement, and of even one false `control_is_best`, in (0, 1).

    Raises:
        MetricError: The level is not in (0, 1).

    Example:
        >>> import pandas as pd
        >>> rows = pd.DataFrame({"image_id": range(9), "layer": "p5", "method": "gradcam", "average_drop": 10.0})
        >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
        >>> found = find_warnings(RunRecord(rows.assign(status=["nan_map"] + ["ok"] * 8), {"metrics": [drop]}))
        >>> [finding.name for finding in found], found[0].evidence
        (['failed_rows'], {'p5 gradcam': {'nan_map': 1, 'ok': 8}})
    """
    check_level(level)
    metrics, statuses = record.metrics, record.count_statuses()
    higher_is_better = directions(without_excess(metrics))
    images = record.n_images
    unfinished = f"the run is not finished: this is what was measured on its first {images} images"
    return [
        *(Finding.from_dict(entry) for entry in record.manifest.get("findings", ())),
        *([] if record.complete else [Finding("unfinished", unfinished, {"images": images})]),
        *find_in_predictions(record),
        *find_in_groups(record),
        *find_in_precision(record),
        *_constant_maps(statuses, record.controls),
        *_failed_rows(statuses),
        *_without_values(record),
        *_best_controls(record, higher_is_better, 1 - level),
        *find_metrics_of_size(record),
        *_disagreements(record, higher_is_better, 1 - level),
    ]


def _constant_maps(statuses: Mapping[Pair, Mapping[str, int]], controls: Sequence[str]) -> list[Finding]:
    problems: dict[str, list[Pair]] = {}
    for pair, counts in statuses.items():
        left_out = counts.get(LEFT_OUT, 0)
        constant = counts.get(CONSTANT, 0) + left_out
        made = sum(counts.get(status, 0) for status in (*COUNTED, LEFT_OUT))
        if constant > MAX_SHARE * made and pair[1] not in controls:
            effect = "their images are left out, so the means are over the others" if left_out else "their rows still count"
            problem = f"{constant} of {made} maps are constant ({constant / made:.0%}); they explain nothing, and {effect}"
            problems.setdefault(problem, []).append(pair)
    return _by_problem("constant_maps", problems, statuses)


def _failed_rows(statuses: Mapping[Pair, Mapping[str, int]]) -> list[Finding]:
    problems: dict[str, list[Pair]] = {}
    for pair, counts in statuses.items():
        failed = {status: count for status, count in counts.items() if status not in (*COUNTED, LEFT_OUT, EXCLUDED)}
        share = sum(failed.values()) / max(1, sum(counts.values()) - counts.get(EXCLUDED, 0))
        if share > MAX_SHARE:
            reasons = ", ".join(f"{status} {count}" for status, count in failed.items())
            problem = f"{share:.0%} of the rows failed ({reasons}); the means are over the other images, which may be easier"
            problems.setdefault(problem, []).append(pair)
    return _by_problem("failed_rows", problems, statuses)


def _without_values(record: RunRecord) -> list[Finding]:
    """Metrics that have no value on any row that counts."""
    empty = {entry["name"]: entry for entry in record.metrics}
    some = False
    for part in record.parts(["status", *empty]):
        counted = part[part["status"].isin(COUNTED)]
        some = some or len(counted) > 0
        empty = {name: entry for name, entry in empty.items() if counted[name].isna().all()}
    if not some or not empty:
        return []
    parts = record.parts(["image_id", "status"])
    images = len(first_rows(part[part["status"].isin(COUNTED)] for part in parts))
    return [
        Finding(
            "metric_without_values",
            f"{entry['name']} has no value on any of the {images} images that count{_why_no_values(entry)}",
            {"metric": entry["name"], "images": images},
        )
        for entry in empty.values()
    ]


def _why_no_values(metric: Mapping[str, Any]) -> str:
    """Why a metric of matched controls, or of where the object is, can have no values."""
    if metric.get("control") == "dimmed":
        return ": no map has the control dimmed, which constant maps and metrics of curves lack; give another one first"
    if "control" in metric:
        own = "constant maps lack" if metric["control"] != "swapped" else "constant maps and a single image lack"
        return f": no map has the control {metric['control']}, which {own}"
    if "masks" not in metric.get("needs", ()):
        return ""
    return (
        ": their masks and boxes mark no pixel as object; boxes are (x1, y1, x2, y2) in pixels of the model's input, not in "
        "shares of the image and not in another format"
    )


def _best_controls(record: RunRecord, higher_is_better: Mapping[str, bool], alpha: float) -> list[Finding]:
    """One finding for each metric in which no method has a better mean than the best control."""
    digits = {metric["name"]: decimals_of(metric) for metric in record.metrics}
    ahead = controls_ahead(record.sample.rows, higher_is_better, record.controls, record.group_weights, record.seed)
    return [_best_control(found, digits[found.metric], p_value, p_value < alpha) for found, p_value in ahead]


def _best_control(found: BestMaps, digits: int, p_value: float, surely: bool) -> Finding:
    control, best = (
        f"{name_of_pair(pair)} ({mean:.{digits}f})"
        for pair, mean in ((found.control, found.control_mean), (found.best, found.mean))
    )
    evidence = {"metric": found.metric, "control": found.control_mean, "method": found.mean, "p_value": p_value}
    if surely:
        text = (
            f"the control map {control} is significantly better than every method, the best of which is {best}; so a good "
            f"{found.metric} alone proves nothing"
        )
        return Finding("control_is_best", f"{found.metric}: {text}", evidence)
    apart = "has the same mean" if found.same_mean else "has a worse one, and the difference may be chance"
    text = f"no method has a better mean than the control map {control}; the best, {best}, {apart}"
    return Finding("control_may_be_best", f"{found.metric}: {text}", evidence)


def _disagreements(record: RunRecord, higher_is_better: Mapping[str, bool], alpha: float) -> list[Finding]:
    """One finding for each reference by which a method is significantly worse, but significantly better by Average Drop."""
    references = [name for name in higher_is_better if name.split("_")[0] in REFERENCES]
    rows = record.sample.rows
    method_rows = rows[~rows["method"].isin(record.controls)]
    pairs = list(method_rows[["layer", "method"]].drop_duplicates().itertuples(index=False, name=None))
    if CHECKED not in higher_is_better or not references or len(pairs) < 2:
        return []
    tables = metric_tables(method_rows, [CHECKED, *references], ["layer", "method"])
    leads = {name: _leads(table.to_numpy() * (1 if higher_is_better[name] else -1)) for name, table in tables.items()}
    test = {
        name: partial(sign_flip_p_values, seed=record.seed, groups=grouping_of(method_rows, table.index, record.group_weights))
        for name, table in tables.items()
    }
    better = test[CHECKED](leads[CHECKED])
    # Both have to be significant, so the larger p-value counts.
    p_values = [np.maximum(better, test[name](-leads[name])) for name in references]
    significant = np.array(holm(np.concatenate(p_values))).reshape(len(references), len(pairs)) < alpha
    return [
        Finding(
            "metrics_disagree",
            f"{CHECKED} and {reference} disagree about {_names([pairs[column] for column in np.flatnonzero(row)])}: "
            "significantly better than the mean of the other methods by the former, significantly worse by the latter; look at "
            "the maps before you rank methods",
            {"metrics": [CHECKED, reference], "pairs": [" ".join(pairs[column]) for column in np.flatnonzero(row)]},
        )
        for reference, row in zip(references, significant, strict=True)
        if row.any()
    ]


def _leads(values: Floats) -> Floats:
    """By how much each value `[N, P]` (higher is better) exceeds the mean of the others of its image; NaN if it is missing."""
    present = np.isfinite(values)
    total = np.where(present, values, 0.0).sum(axis=1, keepdims=True)
    others = present.sum(axis=1, keepdims=True) - 1
    mean = np.divide(total - values, others, out=np.full(values.shape, np.nan), where=present & (others > 0))
    return values - mean


def _by_problem(name: str, problems: Mapping[str, Sequence[Pair]], statuses: Mapping[Pair, Mapping[str, int]]) -> list[Finding]:
    """One finding for each problem, with the pairs that have it and the number of their rows by status."""
    return [
        Finding(
            name,
            f"{'every layer and method' if len(pairs) == len(statuses) > 1 else _names(pairs)}: {text}",
            {" ".join(pair): dict(statuses[pair]) for pair in pairs},
        )
        for text, pairs in problems.items()
    ]


def _names(pairs: Sequence[Pair]) -> str:
    more = f" and {len(pairs) - MAX_NAMES} more" if len(pairs) > MAX_NAMES else ""
    return ", ".join(name_of_pair(pair) for pair in pairs[:MAX_NAMES]) + more
