"""An experiment whose runs are written without training, and the smallest one that is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from xaieval.config.fal_options import FalOptions
from xaieval.models import LEVELS
from xaieval.training.fal.rows import pack

CLASSES = ["ring", "star"]
ROLES = {"selected": "fal-p2", "random": "fal-p3", "best": "fal-p5", "all": "fal-p2-p3-p4-p5", "selected-twin": "twin-p2"}
ROLES |= {"random-twin": "twin-p3", "best-twin": "twin-p5", "all-twin": "twin-p2-p3-p4-p5"}
GROUPS = {f"{fold}/{number}": f"{number % 2}-{fold * 2 + number // 4}" for fold in (0, 1) for number in range(8)}

TINY = FalOptions(
    max_images=100,
    image_size=32,
    channels=8,
    batch_size=32,
    epochs=1,
    seeds=1,
    run_folds=(0, 1),
    k=2,
    methods=("gradcam",),
    progress=False,
)


def made_rows(arm: str, fold: int, seed: int, method: str = "gradcam") -> pd.DataFrame:
    """Rows of 8 images at 4 levels, as a run writes them; the last image has no values."""
    rng = np.random.default_rng([len(arm), sum(map(ord, arm + method)), fold, seed])
    records = []
    for number in range(8):
        predicted = int(rng.integers(2))
        for level in LEVELS:
            record = {"image_id": f"{fold}/{number}", "layer": f"levels[{level}]", "method": method, "label": number % 2}
            drop, shifted = (round(float(rng.uniform(0, 100)), 2) for _ in range(2))
            record |= {"predicted": predicted, "confidence": 0.5, "mask_area": 0.25, "average_drop": drop}
            record |= {"increase_in_confidence": 100.0 * int(rng.integers(2)), "average_drop_shifted": shifted}
            records.append(record | {"status": "ok" if number < 7 else "zero_confidence"})
    return pd.DataFrame(records).astype({"label": "Int64", "predicted": "Int64"})


def write_run(folder: Path, arm: str, fold: int, seed: int, roles: dict[str, str] | None = None) -> None:
    """The files of a finished run; with roles, also the choice of arms."""
    place = folder / f"fold{fold}-seed{seed}" / arm
    place.mkdir(parents=True)
    made_rows(arm, fold, seed).to_parquet(place / "rows.parquet")
    values = {"p2": {"low": 0.1, "median": 0.5, "high": 0.9, "contrast": 0.2 + seed / 10}}
    gates = {"values": values, "changed_without": 0.1 * (fold + 1), "changed_shuffled": 0.05, "n_images": 8}
    record = {"arm": arm, "fold": fold, "seed": seed, "gates": gates if arm.startswith("fal") else None}
    record |= {"seconds": {"training": 1.0, "all": 2.0}, "versions": {"xaieval": "0.1.0"}, "metrics": []}
    (place / "run.json").write_text(json.dumps(record))
    if arm == "fpn":
        made_rows(arm, fold, seed, "layercam").to_parquet(place / "methods.parquet")
        if roles:
            settings = {"by": ["ad-ic"], "k": 1, "level": 0.95}
            choice = {"settings": settings, "roles": roles, "selection": {"rule": "ad-ic", "layers": ["levels[p2]"]}}
            (place / "choice.json").write_text(json.dumps(choice))


def write_experiment(
    folder: Path, arms: list[str], seeds: tuple[int, ...] = (0, 1), roles: dict[str, str] | None = None
) -> Path:
    """The packed folder of an experiment of two folds."""
    run = {"backbone": "test_resnet", "data": "scenes", "head": "mean", "channels": 8, "image_size": 32, "epochs": 1}
    run |= {"design": "focus", "methods": ["gradcam", "layercam"], "seed": 0}
    (folder / "manifest.json").write_text(json.dumps({"run": run, "classes": CLASSES}))
    for seed in seeds:
        for fold in (0, 1):
            for arm in arms:
                write_run(folder, arm, fold, seed, roles)
    pack(folder, GROUPS)
    return folder


@pytest.fixture
def packed(tmp_path):
    """The folder of an experiment with roles: the FPN, FAL on the selected level and its twin, two folds, two seeds."""
    return write_experiment(tmp_path, ["fpn", "fal-p2", "twin-p2"], roles=ROLES)
