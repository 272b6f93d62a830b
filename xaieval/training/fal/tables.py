"""The tables of the experiment, computed from rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.stats.intervals import bootstrap_interval, wilson_interval
from xaieval.evaluation.scores import Scores
from xaieval.models import LEVELS
from xaieval.results.rows import COUNTED
from xaieval.training.fal.results import Results
from xaieval.training.fal.run import CONTROL

__all__ = ["accuracy_table", "attention_table", "comparison_table", "level_table", "macro_f1", "subset_table"]

DROP, INCREASE = "average_drop", "increase_in_confidence"
RESAMPLES = 1000


def level_table(results: Results, label: int | None = None, level: float = 0.95) -> pd.DataFrame:
    """Table 1: how well each level of the FPN explains it.

    Args:
        results: of the experiment.
        label: images of this true class alone; all unless told.
        level: of the intervals.

    Returns:
        Index (method, level); each metric in percent with `_low` and `_high`, `mask_area` (mean of the masks, in [0, 1]),
        `n_images`, `n_failed`.
    """
    return _summary(results, _of_class(results.base, label), level)


def attention_table(results: Results, label: int | None = None, level: float = 0.95) -> pd.DataFrame:
    """The models' own attention maps as explanations: index (arm, level), columns as in `level_table`."""
    if results.attention.empty:
        return pd.DataFrame()
    rows = _of_class(results.attention, label)
    return _summary(results, rows.assign(method=rows["arm"]), level).rename_axis(["arm", "level"])


def comparison_table(results: Results, label: int | None = None, level: float = 0.95) -> pd.DataFrame:
    """Table 2: the arms beside the FPN control, on the same test images.

    Returns:
        Index arm; `model` (which stands for it, fold by fold), `n_images`, `accuracy`, `macro_f1` (all classes only), AD and IC
        as means over the levels and at each level (`average_drop_p2`), all in percent; for `accuracy`, `macro_f1` and the means
        also `_low` and `_high`; for all `<name>_difference` to the control with its own `_low` and `_high`: percentage points,
        bootstrap over the images that both have. The levels of ABN are the stages of its backbone with the same reductions.
    """
    if results.compared.empty:
        return pd.DataFrame()
    rows = _of_class(results.compared, label)
    control_rows = rows[rows["arm"] == CONTROL]
    control = _per_image(control_rows)
    records = []
    for arm, group in rows.groupby("arm", sort=False):
        images = _per_image(group)
        models = [choice["arms"].get(arm) for choice in results.choices.values()]
        record: dict[str, Any] = {"arm": arm, "model": " ".join(str(name) for name in dict.fromkeys(models) if name)}
        record |= _scores(images, level, results.seed) | _levels(group, control_rows, level, results.seed)
        if label is None:
            record |= _f1(images, control, len(results.classes), level, results.seed)
        if arm != CONTROL:
            record |= _differences(images, control, level, results.seed)
        records.append(record)
    return pd.DataFrame(records).set_index("arm")


def accuracy_table(results: Results, level: float = 0.95) -> pd.DataFrame:
    """Accuracy of the FPN on folds of contiguous blocks and, where that was run, on folds drawn image by image."""
    found = {"contiguous blocks": results.base, "random images": results.random_split}
    records = []
    for split, rows in found.items():
        if not rows.empty:
            images = rows.drop_duplicates(["fold", "image_id"])
            right = images["predicted"] == images["label"]
            low, high = wilson_interval(int(right.sum()), len(right), level)
            records.append(
                {
                    "split": split,
                    "accuracy": 100 * right.mean(),
                    "accuracy_low": 100 * low,
                    "accuracy_high": 100 * high,
                    "n_images": len(images),
                }
            )
    return pd.DataFrame(records).set_index("split")


def subset_table(results: Results) -> pd.DataFrame:
    """All sets of levels with attention, with the rank of each (1 is best), on the average over the folds.

    Returns:
        Index subset ("" is the control); `accuracy`, AD and IC (means over the levels), a column `<name>_rank` for each, their
        mean `mean_rank`, and `selected`: in how many folds this set was the one that the scores select. Sorted by `mean_rank`.
        Empty unless the arm "subsets" was run.
    """
    arms = [arm for arm in results.arms if arm.startswith("subset ")]
    if not arms:
        return pd.DataFrame()
    chosen = [choice["arms"].get("selected", _selected(choice)) for choice in results.choices.values()]
    records = []
    for arm in [CONTROL, *arms]:
        images = _per_image(results.compared[results.compared["arm"] == arm])
        name = next(choice["arms"][arm] for choice in results.choices.values() if arm in choice["arms"])
        means = images.groupby("fold")[["accuracy", DROP, INCREASE]].mean().mean()
        records.append(
            {"subset": arm.removeprefix("subset ") if arm != CONTROL else "", **means, "selected": chosen.count(name)}
        )
    table = pd.DataFrame(records).set_index("subset")
    for name, ascending in (("accuracy", False), (DROP, True), (INCREASE, False)):
        table[f"{name}_rank"] = table[name].rank(ascending=ascending)
    table["mean_rank"] = table[["accuracy_rank", f"{DROP}_rank", f"{INCREASE}_rank"]].mean(axis=1)
    return table.sort_values("mean_rank", kind="stable")


def macro_f1(labels: Any, predicted: Any, classes: int) -> float:
    """Mean of the classes' F1, in percent; a class without images and predictions is left out.

    Example:
        >>> round(macro_f1(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]), classes=3), 1)
        73.3
    """
    confusion = np.bincount(np.asarray(labels) * classes + np.asarray(predicted), minlength=classes**2).reshape(
        classes, classes
    )
    seen = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(100 * (2 * np.diag(confusion)[seen > 0] / seen[seen > 0]).mean())


def _of_class(rows: pd.DataFrame, label: int | None) -> pd.DataFrame:
    return rows if label is None else rows[rows["label"] == label]


def _summary(results: Results, rows: pd.DataFrame, level: float) -> pd.DataFrame:
    named = rows.assign(layer=rows["level"])
    manifest = {"metrics": results.metrics, "seed": results.seed}
    table = Scores(named, manifest).summary(level, RESAMPLES)
    counted = named[named["status"].isin(COUNTED)]
    table["mask_area"] = counted.groupby(["layer", "method"])["mask_area"].mean()
    table = table.swaplevel().rename_axis(["method", "level"])
    return pd.concat([table.loc[[method]].sort_index() for method in named["method"].unique()])


def _per_image(rows: pd.DataFrame) -> pd.DataFrame:
    """One row an image: class, prediction, and the means of AD and IC over the levels; those with a failed level are NaN."""
    grouped = rows.groupby(["fold", "image_id"], sort=True)
    table = grouped[["label", "predicted"]].first().astype(int)
    for metric in (DROP, INCREASE):
        table[metric] = grouped[metric].mean().where(grouped[metric].count() == rows["level"].nunique())
    return table.assign(accuracy=100.0 * (table["label"] == table["predicted"]))


def _scores(images: pd.DataFrame, level: float, seed: int) -> dict[str, Any]:
    record: dict[str, Any] = {"n_images": len(images)}
    for name in ("accuracy", DROP, INCREASE):
        record |= _mean(name, images[name].dropna().to_numpy(), level, seed)
    return record


def _mean(name: str, values: Any, level: float, seed: int) -> dict[str, float]:
    low, high = bootstrap_interval(values, level, RESAMPLES, seed)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def _levels(rows: pd.DataFrame, control: pd.DataFrame, level: float, seed: int) -> dict[str, float]:
    """AD and IC at each level, and their differences to the control's."""
    keys, record = ["fold", "image_id"], dict[str, float]()
    for name, group in rows.groupby("level"):
        ours, theirs = (some.set_index(keys)[[DROP, INCREASE]] for some in (group, control[control["level"] == name]))
        for metric in (DROP, INCREASE):
            record[f"{metric}_{name}"] = float(ours[metric].mean())
            if group["arm"].iloc[0] != CONTROL:
                differences = (ours[metric] - theirs[metric]).dropna().to_numpy()
                record |= _mean(f"{metric}_{name}_difference", differences, level, seed)
    return record


def _differences(images: pd.DataFrame, control: pd.DataFrame, level: float, seed: int) -> dict[str, float]:
    record: dict[str, float] = {}
    for name in ("accuracy", DROP, INCREASE):
        differences = (images[name] - control[name]).dropna().to_numpy()
        record |= _mean(f"{name}_difference", differences, level, seed)
    return record


def _f1(images: pd.DataFrame, control: pd.DataFrame, classes: int, level: float, seed: int) -> dict[str, float]:
    """Macro F1, and its difference to the control's; the images are drawn anew, the same for both."""
    both = images.join(control["predicted"].rename("control"), how="inner")
    labels, ours, theirs = (both[name].to_numpy() for name in ("label", "predicted", "control"))
    rng = np.random.default_rng(seed)
    draws = [rng.integers(len(both), size=len(both)) for _ in range(RESAMPLES)]
    found = np.array([[macro_f1(labels[d], values[d], classes) for values in (ours, theirs)] for d in draws])
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(found[:, 0], ends)
    first, last = np.quantile(found[:, 0] - found[:, 1], ends)
    value, reference = macro_f1(labels, ours, classes), macro_f1(labels, theirs, classes)
    record = {"macro_f1": value, "macro_f1_low": low, "macro_f1_high": high}
    same = np.array_equal(ours, theirs)
    difference = {"macro_f1_difference": value - reference, "macro_f1_difference_low": first, "macro_f1_difference_high": last}
    return record if same else record | difference


def _selected(choice: dict[str, Any]) -> str:
    levels = sorted(level for level in LEVELS for layer in choice["selection"]["layers"] if level in layer)
    return "-".join(["fal", *levels]) if levels else CONTROL
