"""From the rows of images to one row per run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd

from xaieval.errors import DataError
from xaieval.models import LEVELS
from xaieval.training.fal.arms import Arm

__all__ = ["MEASURES", "OUTCOMES", "run_table"]

RUN = ["arm", "fold", "seed"]
MEASURES = ("average_drop", "average_drop_excess", "increase_in_confidence", "mask_area")
OUTCOMES = ("accuracy", *MEASURES[:3])
SHARES = ("mask_area",)  # in [0, 1] in the rows


def run_table(rows: pd.DataFrame, by: Literal["label", "group"] | None = None) -> pd.DataFrame:
    """One row per run, or one per run and class or block: means over the images and the levels, all in percent.

    Each level counts the same, and within a level each image. An excess is missing where a map has no control, such as a map
    that is constant; such values are left out and counted in `missing`.

    Args:
        rows: One row per arm, fold, seed, image and level, as `read_rows` gives them.
        by: Also split the test images of a run by their class, "label", or by the block of neighbours that they belong to,
            "group".

    Returns:
        The columns arm, fold, seed, and `by` if given; `n_images`; `missing`, the number of rows without a value of one of the
        measures; `accuracy`, NaN for images without a label; the measures `average_drop`, `average_drop_excess`,
        `increase_in_confidence` and `mask_area`, as mean over the levels and at each level (`average_drop_p2`); and what the
        arm is: `kind`, `design` ("" for that of the experiment), 1 or 0 for attention on `p2` to `p5`, and `gate`, 1 if the
        attention maps are used.

    Raises:
        DataError: A column is missing, there are no rows, or an image has several rows at a level.

    Example:
        >>> rows = pd.DataFrame({"arm": "twin-p4", "fold": 0, "seed": 1, "image_id": ["a", "b"] * 4, "label": 3})
        >>> rows = rows.assign(predicted=[3, 2] * 4, level=["p2", "p2", "p3", "p3", "p4", "p4", "p5", "p5"], mask_area=0.5)
        >>> rows = rows.assign(average_drop=range(8), average_drop_excess=-1.0, increase_in_confidence=0.0)
        >>> run_table(rows)[["accuracy", "average_drop", "average_drop_p2", "p3", "p4", "gate"]]
           accuracy  average_drop  average_drop_p2  p3  p4  gate
        0      50.0           3.5              0.5   0   1     0
    """
    keys = [*RUN, *([by] if by else [])]
    _check(rows, keys)
    images = rows.drop_duplicates([*keys, "image_id"])
    right = (100.0 * (images["predicted"] == images["label"])).astype(float)  # NaN for images without a label
    accuracies = images.assign(accuracy=right).groupby(keys, observed=True)["accuracy"].agg(n_images="size", accuracy="mean")
    table = accuracies.join(_means(rows, keys)).reset_index()
    missing = rows[list(MEASURES)].isna().any(axis=1).groupby([rows[key] for key in keys], observed=True).sum()
    table.insert(len(keys) + 1, "missing", missing.to_numpy())
    return table.join(_arms(table["arm"].astype(str)))


def _check(rows: pd.DataFrame, keys: Sequence[str]) -> None:
    needed = [*keys, "image_id", "level", "label", "predicted", *MEASURES]
    missing = [name for name in needed if name not in rows]
    if missing:
        raise DataError(
            f"the rows of an experiment have no column {missing[0]!r}; they have {', '.join(map(str, rows.columns))}"
        )
    if rows.empty:
        raise DataError("the experiment has no rows; run it first")
    twice = rows[rows.duplicated([*RUN, "image_id", "level"])]
    if len(twice):
        arm, image, level = (twice.iloc[0][name] for name in ("arm", "image_id", "level"))
        raise DataError(f"image {image!r} has several rows of arm {arm!r} at level {level}; give the rows of one method")


def _means(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Means of each measure at each level, and over the levels."""
    wide: pd.DataFrame = rows.pivot_table(index=keys, columns="level", values=list(MEASURES), observed=True)
    found = {}
    for name in MEASURES:
        by_level: Any = wide[name].astype(float) * (100 if name in SHARES else 1)
        found[name] = by_level.mean(axis=1, skipna=False)
        found |= {f"{name}_{level}": by_level[level] for level in LEVELS if level in by_level}
    return pd.DataFrame(found)


def _arms(names: pd.Series[str]) -> pd.DataFrame:
    """What each arm is."""
    arms = {name: Arm.of(name) for name in names.unique()}
    records = {
        name: {
            "kind": arm.kind,
            "design": arm.design or "",
            **{level: int(level in arm.levels) for level in LEVELS},
            "gate": int(arm.kind in ("fal", "abn")),
        }
        for name, arm in arms.items()
    }
    return pd.DataFrame([records[name] for name in names], index=names.index)
