"""Two runs compared, paired by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from xaieval.analysis.comparability import (
    Names,
    check_protocols,
    check_same_images,
    definition_of,
    first_difference,
    notes_on,
    protocols_of,
    same_measurement,
)
from xaieval.analysis.groups_of_both import GroupsOfBoth, groups_of_both
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import check_level, difference_interval, why_no_interval
from xaieval.analysis.stats.paired import PairedTest, check_test, holm, paired_p_values, rank_biserial
from xaieval.analysis.tables import mean_of
from xaieval.config.metric_names import own_name
from xaieval.errors import MetricError, advice, choose_from
from xaieval.results.record import RunRecord
from xaieval.results.rows import VALUED

__all__ = ["compare"]

_KEYS = ["image_id", "layer", "method"]
_ROUNDING = 1e-3  # confidences of one image by one model differ by less, whatever the device and the batch


def compare(
    first: RunRecord,
    second: RunRecord,
    names: Sequence[str] | None = None,
    test: PairedTest = "signs",
    level: float = 0.95,
    resamples: int = 9999,
    across_protocols: bool = False,
    runs: Names = ("this run", "the other"),
) -> pd.DataFrame:
    """Two runs on the same images, paired by image, per layer, method and metric.

    Means are tested by sign flips with a correction for skewness, or by Wilcoxon's signed-rank test; binary metrics by
    McNemar's exact test. All tests are two-sided, and corrected together by Holm. If a run has groups of images, tests flip
    whole groups and intervals allow for them; if only one of the runs has groups, they are used for both, with a note.

    Args:
        first: A run.
        second: A run on the same images, or on some of them, with the same names of layers and methods.
        names: Names of metrics (default: those of both runs that have a direction).
        test: "signs" or "wilcoxon".
        level: Level of the intervals, and 1 minus the probability of even one false positive among all tests, in (0, 1).
        resamples: Smallest number of random sign vectors.
        across_protocols: Compare although the runs were measured under different protocols; no run is then called better.
        runs: What the two runs are called in the notes.

    Returns:
        Index `(layer, method, metric)`; columns `mean` (of the first run) and `other_mean` over the images that both have,
        `difference` (first minus second) with its interval `low` and `high` (Student's, or Newcombe's for proportions),
        `effect_size` (matched-pairs rank-biserial, in [-1, 1]), `n_images`, `n_groups` (if there are groups), `p_value`,
        `p_holm`, and `better`: "this" for the first run, "other", or "" if the difference is not significant. `attrs["notes"]`
        is a list of sentences: how many images, layers and methods took part and what was left out, and in what the runs
        differ, such as preprocessing or weights.

    Raises:
        MetricError: The runs have no image, no layer and method, or no metric in common; or a name is unknown; or the same id
            belongs to different images: their labels contradict, or the same model has the confidences of other images; or
            the runs have their images in different groups, or weight their means differently.
        ProtocolError: They were measured under different protocols.

    Example:
        >>> rows = pd.DataFrame({"image_id": range(9), "layer": "p5", "method": "gradcam", "status": "ok"})
        >>> manifest = {"metrics": [{"name": "average_drop", "higher_is_better": False, "interval": "mean"}]}
        >>> first, second = (RunRecord(rows.assign(average_drop=value), manifest) for value in (10.0, 30.0))
        >>> table = compare(first, second)
        >>> table[["difference", "p_holm", "better"]]
                                      difference    p_holm better
        layer method  metric
        p5    gradcam average_drop       -20.0  0.003906   this
        >>> table.attrs["notes"][0]
        '9 images, 1 layer and 1 method took part; left out: nothing'
    """
    check_level(level)
    check_test(test)
    metrics = _metrics(first, second, names)
    if not across_protocols:
        check_protocols(first, second, runs)
    both = _paired(first.sample.rows, second.sample.rows, list(metrics))
    doubts = check_same_images(first, second, runs)
    items = list(dict.fromkeys(zip(both["layer"], both["method"], strict=True)))
    keys = [(layer, method, name) for layer, method in items for name in metrics]
    together = groups_of_both(first, second, both["image_id"].unique(), runs)
    draws = max(resamples, int(10 * len(keys) / (1 - level)))  # otherwise even the smallest possible p-value is not significant
    differences = _differences(both, keys)
    p_values = paired_p_values(differences.to_numpy(), test, draws, first.seed, groups=together.of(differences.index))
    parts = dict(list(both.groupby(["layer", "method"], sort=False)))
    records = [
        dict(zip(("layer", "method", "metric"), key, strict=True))
        | _record(parts[key[:2]], metrics[key[2]], level, together)
        | {"p_value": p_value}
        for key, p_value in zip(keys, p_values, strict=True)
    ]
    table = pd.DataFrame(records)
    table.insert(list(table.columns).index("n_images"), "p_holm", holm(table["p_value"]))
    one, other = protocols_of(first, second)
    table["better"] = [
        _better(row, metrics[row["metric"]], 1 - level) if one == other else "" for row in table.to_dict("records")
    ]
    table = table.set_index(["layer", "method", "metric"])
    same = [] if doubts else _same_predictions(first, second)
    table.attrs["notes"] = [*notes_on(first, second, both, runs), *together.notes, *doubts, *same, *_few(table, level)]
    return table


def _same_predictions(first: RunRecord, second: RunRecord) -> list[str]:
    """That two runs had the same model and saw the same images, if their confidences show it."""
    columns = ["image_id", "target", "confidence"]
    tables = [run.sample.rows for run in (first, second)]
    if not same_measurement(first, second) or not all(set(columns) <= set(rows.columns) for rows in tables):
        return []
    one, other = (rows.drop_duplicates("image_id")[columns].dropna() for rows in tables)
    known = one.merge(other, on=["image_id", "target"], suffixes=("", "_other"))
    apart = (known["confidence"] - known["confidence_other"]).abs().max()
    images = len(set(tables[0]["image_id"]) & set(tables[1]["image_id"]))
    if len(known) < images or not apart <= _ROUNDING:
        return []
    return [f"the model is the same, and so is all that it predicts of the {images} original images, but for rounding"]


def _few(table: pd.DataFrame, level: float) -> list[str]:
    """Why a difference has no interval, if one has none."""
    odd = table[table["difference"].notna() & table["low"].isna()]
    if odd.empty:
        return []
    return [why_no_interval(level, groups=Grouping(range(int(odd["n_groups"].min()))) if "n_groups" in odd else None)]


def _metrics(first: RunRecord, second: RunRecord, names: Sequence[str] | None) -> dict[str, Any]:
    """The metrics to compare, as both manifests define them (default: those that have a direction)."""
    one, other = ({metric["name"]: metric for metric in run.metrics} for run in (first, second))
    shared = [name for name in one if name in other]
    selected = names if names is None else [own_name(name, shared) for name in ([names] if isinstance(names, str) else names)]
    if selected is None:
        selected = [name for name in shared if one[name]["higher_is_better"] is not None]
    if not selected:
        raise MetricError(
            f"the runs have no metric in common to compare; this one has {', '.join(one) or 'none'}, "
            f"the other {', '.join(other) or 'none'}"
        )
    for name in selected:
        if name not in shared:
            raise MetricError(f"no metric {name!r} in both runs; {choose_from(name, shared)}")
        definitions = [definition_of(entry[name]) for entry in (one, other)]
        if definitions[0] != definitions[1]:
            difference = first_difference(definitions[0], definitions[1])
            raise MetricError(
                f"metric {name!r} is not the same in both runs: {difference}; use the same settings in both, or compare other "
                f"metrics by {advice('metrics=', '--metrics')}"
            )
    return {name: one[name] for name in selected}


def _example(rows: pd.DataFrame) -> str:
    return f"'{rows['image_id'].iloc[0]}'" if len(rows) else "none"


def _paired(first: pd.DataFrame, second: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """One row per image, layer and method that counts in both runs; metrics of the second run end in `_other`."""
    if not set(first["image_id"]) & set(second["image_id"]):
        raise MetricError(
            "the runs have no image in common; score the same images in both (their ids are in the column image_id: "
            f"{_example(first)} in this run, {_example(second)} in the other)"
        )
    pairs = [set(zip(rows["layer"], rows["method"], strict=True)) for rows in (first, second)]
    if not pairs[0] & pairs[1]:
        one, other = (", ".join(" ".join(pair) for pair in sorted(keys)[:3]) for keys in pairs)
        raise MetricError(
            f"the runs have no layer and method in common: {one} in this run, {other} in the other; give them the same "
            "names, as in Scores(scores.rows.replace({'layer': {'layer4': 'blocks.6'}}), scores.manifest)"
        )
    counted = [rows[rows["status"].isin(VALUED)].drop_duplicates(_KEYS)[[*_KEYS, *names]] for rows in (first, second)]
    both = counted[0].merge(counted[1], on=_KEYS, suffixes=("", "_other"))
    if both.empty:
        raise MetricError("no image has rows that count in both runs")
    return both


def _differences(both: pd.DataFrame, keys: Sequence[tuple[str, str, str]]) -> pd.DataFrame:
    """Differences `[N, T]` by image, one column per layer, method and metric; NaN where a row of either run is missing."""
    names = list(dict.fromkeys(name for _, _, name in keys))
    table = both[_KEYS].assign(**{name: both[name].astype(float) - both[f"{name}_other"].astype(float) for name in names})
    wide = table.pivot_table(index="image_id", columns=["layer", "method"], values=names, sort=False)
    columns = pd.MultiIndex.from_tuples([(name, layer, method) for layer, method, name in keys])
    return wide.reindex(columns=columns).astype(float)


def _record(part: pd.DataFrame, metric: Mapping[str, Any], level: float, together: GroupsOfBoth) -> dict[str, Any]:
    """Both means, their difference with its interval and effect size, over the images that have both values."""
    name = metric["name"]
    values = part.set_index("image_id")[[name, f"{name}_other"]].astype(float).dropna()
    groups = together.of(values.index)
    one, other = values.to_numpy().T
    low, high = difference_interval(one, other, metric["interval"], level, groups=groups)
    return {
        "mean": mean_of(one, groups),
        "other_mean": mean_of(other, groups),
        "difference": mean_of(one - other, groups),
        "low": low,
        "high": high,
        "effect_size": rank_biserial(one - other),
        "n_images": len(values),
        **({} if groups is None else {"n_groups": groups.count}),
    }


def _better(row: Mapping[Any, Any], metric: Mapping[str, Any], alpha: float) -> str:
    """The run that is significantly better: "this", "other", or ""."""
    if metric["higher_is_better"] is None or row["p_holm"] >= alpha or row["difference"] == 0:
        return ""
    return "this" if (row["difference"] > 0) == metric["higher_is_better"] else "other"
