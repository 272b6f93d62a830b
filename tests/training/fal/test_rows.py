"""Packed rows: what goes in comes out, in few bytes."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from tests.training.fal.conftest import GROUPS, ROLES, made_rows, write_experiment, write_run
from xaieval.errors import OutputError
from xaieval.models import LEVELS
from xaieval.training.fal.rows import pack, read_methods, read_records, read_rows

KEYS = ["arm", "fold", "seed", "image_id", "level"]


def test_rows_are_those_of_the_runs(packed):
    rows = read_rows(packed)
    assert len(rows) == 3 * 2 * 2 * 8 * 4
    assert not rows.duplicated(KEYS).any()
    for (arm, fold, seed), run in rows.groupby(["arm", "fold", "seed"]):
        made = made_rows(arm, fold, seed).assign(level=lambda table: table["layer"].str[7:9])
        both = run.merge(made, on=["image_id", "level"], suffixes=("", "_made"))
        assert len(both) == 32
        counted = both["status"] == "ok"
        for name in ("average_drop", "increase_in_confidence", "average_drop_shifted", "confidence", "mask_area"):
            np.testing.assert_allclose(both.loc[counted, name], both.loc[counted, f"{name}_made"], atol=1e-9)
            assert both.loc[~counted, name].isna().all()
        excess = both["average_drop_made"] - both["average_drop_shifted_made"]
        np.testing.assert_allclose(both.loc[counted, "average_drop_excess"], excess[counted], atol=1e-9)
        assert (both["label"] == both["label_made"]).all()
        assert (both["predicted"] == both["predicted_made"]).all()
        assert list(both["group"]) == [GROUPS[name] for name in both["image_id"]]


def test_values_are_rounded_to_the_nearest_step(tmp_path):
    write_run(tmp_path, "fpn", 0, 0)
    path = tmp_path / "fold0-seed0/fpn/rows.parquet"
    rows = pd.read_parquet(path)
    rows.loc[0, ["average_drop", "confidence", "mask_area"]] = [12.345678, 0.123456, 1.0]
    rows.to_parquet(path)
    pack(tmp_path, GROUPS)
    found = read_rows(tmp_path).set_index(["image_id", "level"]).loc["0/0", "p2"]
    assert found["average_drop"] == pytest.approx(12.35)
    assert found["confidence"] == pytest.approx(0.1235)
    assert found["mask_area"] == pytest.approx(1.0)


def test_other_methods_have_their_own_rows(packed):
    methods = read_methods(packed)
    assert set(methods["method"]) == {"layercam"}
    assert set(methods["arm"]) == {"fpn"}
    made = made_rows("fpn", 1, 0, "layercam").query("status == 'ok'")
    found = methods.query("fold == 1 and seed == 0")
    assert found["average_drop"].mean() == pytest.approx(made["average_drop"].mean())


def test_records_say_gates_times_and_choices(packed):
    records = read_records(packed)
    assert [(record["seed"], record["fold"]) for record in records][:3] == [(0, 0)] * 3
    assert {record["arm"] for record in records if "choice" in record} == {"fpn"}
    assert records[-1]["seconds"] == {"training": 1.0, "all": 2.0}


def test_levels_of_a_plain_backbone_are_in_the_order_of_execution(tmp_path):
    write_run(tmp_path, "abn", 0, 0)
    path = tmp_path / "fold0-seed0/abn/rows.parquet"
    rows = pd.read_parquet(path)
    stages = dict(zip(LEVELS, ("a.1", "b.2", "c.0", "d.4"), strict=True))
    rows["layer"] = rows["layer"].str[7:9].map(stages).radd("backbone.")
    rows.to_parquet(path)
    pack(tmp_path, GROUPS)
    assert list(read_rows(tmp_path)["level"][:4]) == list(LEVELS)


def test_a_seed_of_the_whole_experiment_has_less_than_a_megabyte(tmp_path):
    images = 210
    rng = np.random.default_rng(0)
    for fold in range(5):
        for number in range(18):
            write_run(tmp_path, arm := f"fal-{number}", fold, 0)
            names = [f"class{image % 21}/class{image % 21}{fold}{image:03d}.jpg" for image in range(images)]
            count = 4 * images
            rows = pd.DataFrame({"image_id": np.repeat(names, 4), "layer": [f"levels[{level}]" for level in LEVELS] * images})
            rows = rows.assign(label=1, predicted=2, confidence=np.repeat(rng.random(images), 4), mask_area=rng.random(count))
            rows = rows.assign(average_drop=rng.uniform(0, 100, count), average_drop_shifted=rng.uniform(0, 100, count))
            rows = rows.assign(increase_in_confidence=100.0 * rng.integers(2, size=count), status="ok", method="gradcam")
            rows.to_parquet(tmp_path / f"fold{fold}-seed0/{arm}/rows.parquet")
    pack(tmp_path, {})
    assert (tmp_path / "rows-seed0.parquet").stat().st_size < 1_000_000


def test_packing_again_gives_the_same_files(packed):
    before = {path.name: path.read_bytes() for path in packed.glob("*-seed*.*")}
    pack(packed, GROUPS)
    assert before == {path.name: path.read_bytes() for path in packed.glob("*-seed*.*")}
    assert set(before) == {f"{kind}-seed{seed}.{end}" for seed in (0, 1) for kind, end in FILES}


FILES = (("rows", "parquet"), ("methods", "parquet"), ("runs", "json"))


def test_a_further_seed_is_a_further_file(tmp_path):
    write_experiment(tmp_path, ["fpn"], seeds=(0,), roles=ROLES)
    write_run(tmp_path, "fpn", 0, 12)
    pack(tmp_path, GROUPS)
    assert sorted(read_rows(tmp_path)["seed"].unique()) == [0, 12]
    assert json.loads((tmp_path / "runs-seed12.json").read_text())[0]["seed"] == 12


def test_a_folder_without_rows_says_so(tmp_path):
    with pytest.raises(OutputError, match=r"holds no rows of an experiment; 'xaieval-bench fal --out FOLDER' makes them$"):
        read_rows(tmp_path)
    assert read_methods(tmp_path).empty
    assert read_records(tmp_path) == []
