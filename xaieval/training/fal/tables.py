"""Tables of the experiment, computed from its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xaieval.analysis.stats.intervals import difference_interval, metric_interval, wilson_interval
from xaieval.evaluation.scores import Scores
from xaieval.models import levels_of
from xaieval.results.rows import COUNTED
from xaieval.training.fal.results import Results
from xaieval.training.fal.run import CONTROL, model_name

__all__ = ["accuracy_table", "attention_table", "comparison_table", "level_table", "macro_f1", "subset_table"]

DROP, INCREASE = "average_drop", "increase_in_confidence"
RESAMPLES = 1000  # bootstrap samples for macro F1, which is no mean over images
KINDS = {"accuracy": "wilson"}  # kinds of intervals of values that are 0 or 100; means over levels are neither
IMAGE = ["fold", "image_id"]  # the columns that identify a test image


def level_table(results: Results, label: int | None = None, level: float = 0.95) -> pd.DataFrame:
    """Table 1: the metrics at each level of the FPN.

    Args:
        results: Results of the experiment.
        label: Use only images of this true class. Default: all images.
        level: Level of the intervals.

    Returns:
        A table with index (method, level): each metric in percent with `_low` and `_high`, `mask_area` (mean of the masks, in
        [0, 1]), `n_images`, `n_failed`.
    """
    return _summary(results, _of_class(results.base, label), level)


def attention_table(results: Results, label: int | None = None, level: float = 0.95) -> pd.DataFrame:
    """The models' own attention maps as explanations: index (arm, level), columns as in `level_table`."""
    if results.attention.empty:
        return pd.DataFrame()
    rows = _of_class(results.attention, label)
    return _summary(results, rows.assign(method=rows["arm"]), level).rename_axis(["arm", "level"])


def comparison_table(results: Results, label: int | None = None, level: float = 0.95) -> pd.DataFrame:
    """Table 2: the arms compared with the FPN control, on the same test images.

    Args:
        results: Results of the experiment.
        label: Use only images of this true class. Default: all images.
        level: Level of the intervals.

    Returns:
        A table with index arm: `model` (the arm's models, fold by fold), `n_images`, `accuracy`, `macro_f1` (without `label`
        only), AD and IC as means over the levels and at each level (`average_drop_p2`), all in percent. `accuracy`, `macro_f1`
        and the means have `_low` and `_high`. All have a `<name>_difference` from the control in percentage points with its
        own `_low` and `_high`, paired by image over the images that both have. The intervals are those of
        `xaieval.analysis.stats.intervals`; only that of macro F1 is by the bootstrap. The levels of ABN are the stages of its
        backbone with the same strides.
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
        record |= _scores(images, level) | _levels(group, control_rows, level)
        if label is None:
            record |= _f1(images, control, len(results.classes), level, results.seed)
        if arm != CONTROL:
            record |= _differences(images, control, level)
        records.append(record)
    return pd.DataFrame(records).set_index("arm")


def accuracy_table(results: Results, level: float = 0.95) -> pd.DataFrame:
    """Accuracy of the FPN in percent, on folds of contiguous blocks and, if they were run, on folds drawn image by image."""
    splits = {"contiguous blocks": results.base, "random images": results.random_split}
    records = {split: _accuracy(rows, level) for split, rows in splits.items() if not rows.empty}
    return pd.DataFrame.from_dict(records, orient="index").rename_axis("split")


def subset_table(results: Results) -> pd.DataFrame:
    """Every set of levels with attention and its rank (1 is best), averaged over the folds.

    Returns:
        A table with index subset ("" is the control), sorted by `mean_rank`: `accuracy`, AD and IC (means over the levels), a
        `<name>_rank` for each, the mean of the ranks `mean_rank`, and `selected`, the number of folds in which the scores
        selected this set. Empty unless the arm "subsets" was run.
    """
    arms = [arm for arm in results.arms if arm.startswith("subset ")]
    if not arms:
        return pd.DataFrame()
    selected = [_selected(choice) for choice in results.choices.values()]
    records = []
    for arm in [CONTROL, *arms]:
        images = _per_image(results.compared[results.compared["arm"] == arm])
        subset = arm.removeprefix("subset ") if arm != CONTROL else ""
        means = images.groupby("fold")[["accuracy", DROP, INCREASE]].mean().mean()
        records.append({"subset": subset, **means, "selected": selected.count(model_name(subset.split()))})
    table = pd.DataFrame(records).set_index("subset")
    for name, ascending in (("accuracy", False), (DROP, True), (INCREASE, False)):
        table[f"{name}_rank"] = table[name].rank(ascending=ascending)
    table["mean_rank"] = table[["accuracy_rank", f"{DROP}_rank", f"{INCREASE}_rank"]].mean(axis=1)
    return table.sort_values("mean_rank", kind="stable")


def macro_f1(labels: Any, predicted: Any, classes: int) -> float:
    """Mean F1 over the classes, in percent; a class without images and predictions is left out.

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
    table = Scores(named, manifest).summary(level)
    counted = named[named["status"].isin(COUNTED)]
    table["mask_area"] = counted.groupby(["layer", "method"])["mask_area"].mean()
    table = table.swaplevel().rename_axis(["method", "level"])
    return pd.concat([table.loc[[method]].sort_index() for method in named["method"].unique()])


def _accuracy(rows: pd.DataFrame, level: float) -> dict[str, float]:
    images = rows.drop_duplicates(IMAGE)
    right = images["predicted"] == images["label"]
    low, high = wilson_interval(int(right.sum()), len(right), level)
    shares = {"accuracy": right.mean(), "accuracy_low": low, "accuracy_high": high}
    return {name: 100 * share for name, share in shares.items()} | {"n_images": len(images)}


def _per_image(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per image: label, prediction, accuracy, and means of AD and IC over the levels, NaN if a level failed."""
    grouped = rows.groupby(IMAGE, sort=True)
    table = grouped[["label", "predicted"]].first().astype(int)
    for metric in (DROP, INCREASE):
        table[metric] = grouped[metric].mean().where(grouped[metric].count() == rows["level"].nunique())
    return table.assign(accuracy=100.0 * (table["label"] == table["predicted"]))


def _scores(images: pd.DataFrame, level: float) -> dict[str, Any]:
    record: dict[str, Any] = {"n_images": len(images)}
    for name in ("accuracy", DROP, INCREASE):
        values = images[name].dropna()
        record |= _with_ends(name, values.mean(), metric_interval(values, KINDS.get(name, "mean"), level))
    return record


def _difference(name: str, own: pd.Series[Any], control: pd.Series[Any], kind: str, level: float) -> dict[str, float]:
    """The mean difference of the images that have both values, with its interval."""
    both = pd.concat([own, control], axis=1, keys=["own", "control"]).dropna()
    ends = difference_interval(both["own"], both["control"], kind, level)
    return _with_ends(f"{name}_difference", (both["own"] - both["control"]).mean(), ends)


def _levels(rows: pd.DataFrame, control: pd.DataFrame, level: float) -> dict[str, float]:
    """AD and IC at each level, and their differences from the control."""
    record: dict[str, float] = {}
    for name, group in rows.groupby("level"):
        own, reference = (table.set_index(IMAGE) for table in (group, control[control["level"] == name]))
        for metric, kind in ((DROP, "mean"), (INCREASE, "wilson")):
            record[f"{metric}_{name}"] = float(own[metric].mean())
            if group["arm"].iloc[0] != CONTROL:
                record |= _difference(f"{metric}_{name}", own[metric], reference[metric], kind, level)
    return record


def _differences(images: pd.DataFrame, control: pd.DataFrame, level: float) -> dict[str, float]:
    record: dict[str, float] = {}
    for name in ("accuracy", DROP, INCREASE):
        record |= _difference(name, images[name], control[name], KINDS.get(name, "mean"), level)
    return record


def _f1(images: pd.DataFrame, control: pd.DataFrame, classes: int, level: float, seed: int) -> dict[str, float]:
    """Macro F1 and its difference from the control; both use the same bootstrap samples of the images."""
    both = images.join(control["predicted"].rename("control"), how="inner")
    labels, own, reference = (both[name].to_numpy() for name in ("label", "predicted", "control"))
    rng = np.random.default_rng(seed)
    samples = [rng.integers(len(both), size=len(both)) for _ in range(RESAMPLES)]
    drawn = np.array([[macro_f1(labels[i], predicted[i], classes) for predicted in (own, reference)] for i in samples])
    value = macro_f1(labels, own, classes)
    record = _with_quantiles("macro_f1", value, drawn[:, 0], level)
    if np.array_equal(own, reference):
        return record
    difference = value - macro_f1(labels, reference, classes)
    return record | _with_quantiles("macro_f1_difference", difference, drawn[:, 0] - drawn[:, 1], level)


def _with_quantiles(name: str, value: float, drawn: NDArray[np.float64], level: float) -> dict[str, float]:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return _with_ends(name, value, (low, high))


def _with_ends(name: str, value: float, ends: tuple[float, float]) -> dict[str, float]:
    return {name: float(value), f"{name}_low": ends[0], f"{name}_high": ends[1]}


def _selected(choice: dict[str, Any]) -> str:
    """Name of the model with attention on the selected levels, also where the arm "selected" was not run."""
    return choice["arms"].get("selected") or model_name(levels_of(choice["selection"]["layers"]))
