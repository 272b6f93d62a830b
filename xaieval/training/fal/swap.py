"""Masks of two networks on both networks: is a difference of their scores one of their maps, or one of the networks?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from filelock import FileLock

from xaieval.evaluation.cross_score import cross_score
from xaieval.results.files import write_file
from xaieval.results.rows import VALUED
from xaieval.training.fal.arms import FPN
from xaieval.training.fal.runs import Cell, layers_of, scoring_device

__all__ = ["SWAP", "read_swaps", "swap"]

SWAP = "swap-fold{fold}-seed{seed}.parquet"
METRIC, CENTER = "average_drop", "center"
COLUMNS = ["image_id", "group", "masks_of", "model", METRIC]


def swap(cell: Cell, fal: str, log: Callable[[str], None] = lambda line: None) -> None:
    """Score the masks of the FPN and of FAL, and a centred Gaussian, on both networks, unless that is done.

    Writes one row per test image, masks and network: AD in percent, averaged over the levels.
    """
    path = cell.folder / SWAP.format(fold=cell.fold, seed=cell.seed)
    with FileLock(cell.place(FPN) / ".swap"):  # another process may be at it
        if not path.exists():
            log(f"fold {cell.fold}, seed {cell.seed}: masks of {FPN} and {fal} on both")
            rows = _rows(cell, fal)
            write_file(path, lambda file: rows.to_parquet(file, index=False, compression="zstd"))


def read_swaps(folder: Path) -> pd.DataFrame:
    """The rows of each fold's first seed, with `fold` and `seed`; `masks_of` is fpn, fal or center, `model` is fpn or fal."""
    paths = sorted(folder.glob(SWAP.format(fold="*", seed="*")))
    if not paths:
        return pd.DataFrame()
    rows = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
    return rows[rows["seed"] == rows.groupby("fold")["seed"].transform("min")]


def _rows(cell: Cell, fal: str) -> pd.DataFrame:
    options = cell.experiment.options
    models = {FPN: cell.trained(FPN), "fal": cell.trained(fal)}
    scores = cross_score(
        models,
        cell.experiment.pictures.subset(cell.images.test).loader(options.batch_size),
        layers={name: layers_of(model) for name, model in models.items()},
        methods=options.methods[:1],
        metrics=METRIC,
        controls=CENTER,
        device=scoring_device(options.device),
        progress=False,
        seed=options.seed,
    )
    rows = scores.rows[scores.rows["status"].isin(VALUED)]
    means = rows.groupby(["image_id", "masks_of", "model"], sort=False)[METRIC].mean().reset_index()
    means["group"] = means["image_id"].map(cell.experiment.groups)
    return means[COLUMNS].assign(fold=cell.fold, seed=cell.seed)
