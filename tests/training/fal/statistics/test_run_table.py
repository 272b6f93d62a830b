"""One row per run from rows of images, against slow loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from xaieval.errors import DataError
from xaieval.models import LEVELS
from xaieval.training.fal.statistics.run_table import MEASURES, run_table

ARMS = ("fpn", "abn", "fal-p2-p3@focus", "twin-p2-p3@amplify")


def _rows(seed: int = 0) -> pd.DataFrame:
    """Rows of four arms on two folds of six images, whose classes have different numbers of images."""
    rng = np.random.default_rng(seed)
    records = []
    for arm in ARMS:
        for fold in (0, 1):
            for image in range(6):
                predicted = int(rng.integers(2))
                for level in LEVELS:
                    record = {"arm": arm, "fold": fold, "seed": 3, "image_id": f"{fold}-{image}", "label": image // 4}
                    record |= {"group": f"{fold}-{image // 2}", "predicted": predicted, "level": level}
                    record |= dict(zip(MEASURES, [*rng.uniform(0, 100, 3), rng.uniform()], strict=True))
                    records.append(record)
    rows = pd.DataFrame(records)
    rows.loc[rng.choice(len(rows), 10, replace=False), "average_drop_excess"] = np.nan
    return rows.sample(frac=1, random_state=seed)


@pytest.mark.parametrize("by", [None, "label", "group"])
def test_means_are_those_of_loops(by):
    rows = _rows()
    table = run_table(rows, by)
    keys = ["arm", "fold", "seed", *([by] if by else [])]
    assert len(table) == len(rows.drop_duplicates(keys))
    for _, run in table.iterrows():
        own = rows[(rows[keys] == run[keys]).all(axis=1)]
        images = {image: part.iloc[0] for image, part in own.groupby("image_id")}
        assert run["n_images"] == len(images)
        assert run["accuracy"] == pytest.approx(100 * np.mean([one["label"] == one["predicted"] for one in images.values()]))
        assert run["missing"] == own["average_drop_excess"].isna().sum()
        for name in MEASURES:
            scale = 100 if name == "mask_area" else 1
            means = [scale * np.nanmean(own.loc[own["level"] == level, name].to_numpy()) for level in LEVELS]
            assert [run[f"{name}_{level}"] for level in LEVELS] == pytest.approx(means)
            assert run[name] == pytest.approx(np.mean(means))


def test_what_the_arms_are():
    table = run_table(_rows()).drop_duplicates("arm").set_index("arm")
    assert table.loc[list(ARMS), "kind"].tolist() == ["fpn", "abn", "fal", "twin"]
    assert table.loc[list(ARMS), "design"].tolist() == ["", "", "focus", "amplify"]
    assert table.loc[list(ARMS), "gate"].tolist() == [0, 1, 1, 0]
    assert table.loc["twin-p2-p3@amplify", list(LEVELS)].tolist() == [1, 1, 0, 0]


def test_a_level_without_any_value_leaves_the_mean_unknown():
    rows = _rows()
    rows.loc[(rows["arm"] == "abn") & (rows["level"] == "p5"), "average_drop"] = np.nan
    table = run_table(rows).set_index("arm")
    assert table.loc["abn", "average_drop"].isna().all()
    assert table.loc["fpn", "average_drop"].notna().all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (_rows().drop(columns="group"), "the rows of an experiment have no column 'group'; they have arm, fold, seed, "),
        (_rows().iloc[:0], "the experiment has no rows; run it first"),
        (
            pd.concat([_rows().sort_values(["arm", "image_id", "level"])] * 2),
            "image '0-0' has several rows of arm 'abn' at level p2; give the rows of one method",
        ),
    ],
)
def test_errors(rows, message):
    with pytest.raises(DataError) as raised:
        run_table(rows, "group")
    assert str(raised.value).startswith(message)
