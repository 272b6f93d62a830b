"""The tables of benchmarks/fal/paper.py, against slow loops."""

from __future__ import annotations

import itertools
import runpy

import numpy as np
import pandas as pd
import pytest

from tests import ROOT
from xaieval.analysis.stats.crossed import crossed_interval, crossed_p_value
from xaieval.analysis.stats.paired import holm

PAPER = runpy.run_path(str(ROOT / "benchmarks/fal/paper.py"))


@pytest.fixture
def rows():
    """Two arms, three seeds, four blocks of two images, four levels."""
    rng = np.random.default_rng(0)
    keys = list(itertools.product(["fpn", "fal-p2-p3@amplify"], range(3), range(8), ["p2", "p3", "p4", "p5"]))
    frame = pd.DataFrame(keys, columns=["arm", "seed", "image_id", "level"]).assign(fold=0)
    frame["group"] = [f"0-{image // 2}" for image in frame["image_id"]]
    area = rng.uniform(0.2, 0.8, len(frame))
    drop = 80 - 60 * area + 3 * frame["image_id"] + rng.normal(0, 1, len(frame))
    increase = 100.0 * (rng.uniform(size=len(frame)) < 0.3)
    values = {"average_drop": drop, "increase_in_confidence": increase, "average_drop_excess": drop - 50, "mask_area": area}
    frame = frame.assign(**values, confidence=0.5)
    return frame.assign(**PAPER["at_equal_area"](frame))


def test_at_equal_area_the_slope_within_images_is_gone(rows):
    alone = rows[rows["arm"] == "fpn"].drop(columns="average_drop_at_equal_area")
    images = alone.groupby(["seed", "image_id"])
    area = alone["mask_area"] - images["mask_area"].transform("mean")
    adjusted = PAPER["at_equal_area"](alone)["average_drop_at_equal_area"]
    assert np.sum(area * alone["average_drop"]) < -1
    assert np.sum(area * adjusted) == pytest.approx(0, abs=1e-6)
    assert adjusted.mean() == pytest.approx(alone["average_drop"].mean())


def test_table_1_has_means_over_images_and_intervals_over_blocks_and_seeds(rows):
    table = PAPER["table1"](rows, "held out").set_index(["arm", "level"])
    for arm, level in itertools.product(["fpn", "fal-p2-p3@amplify"], ["p2", "p5"]):
        own = rows[(rows["arm"] == arm) & (rows["level"] == level)]
        blocks = [
            [own[(own["group"] == f"0-{block}") & (own["seed"] == seed)]["average_drop"].mean() for seed in range(3)]
            for block in range(4)
        ]
        found = table.loc[(arm, level)]
        assert found["average_drop"] == pytest.approx(own["average_drop"].mean())
        assert (found["average_drop_low"], found["average_drop_high"]) == pytest.approx(crossed_interval(blocks))
        assert (found["images"], found["blocks"], found["seeds"]) == (8, 4, 3)


def test_differences_are_paired_by_block_and_seed(rows):
    first, second = (rows[rows["arm"] == arm] for arm in ("fal-p2-p3@amplify", "fpn"))
    table = PAPER["differences"](first, second, "FAL - FPN").set_index(["level", "metric"])
    means = [arm.pivot_table(index="group", columns="seed", values="average_drop") for arm in (first, second)]
    found = table.loc[("mean", "average_drop")]
    assert found["difference"] == pytest.approx(first["average_drop"].mean() - second["average_drop"].mean())
    assert (found["low"], found["high"]) == pytest.approx(crossed_interval(means[0] - means[1]))
    assert found["p"] == pytest.approx(crossed_p_value(means[0] - means[1]))
    assert list(table["p_holm"]) == pytest.approx(holm(table["p"]))
    assert len(table) == 5 * 4


def test_seeds_that_scored_other_blocks_are_refused(rows):
    incomplete = rows[(rows["group"] != "0-1") | (rows["seed"] != 2)]
    with pytest.raises(ValueError, match="some blocks have no average_drop for some seeds; all seeds need to score the same"):
        PAPER["block_table"](incomplete, "average_drop")
