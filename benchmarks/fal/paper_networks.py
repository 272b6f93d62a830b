"""What needs the trained networks of paper.toml: their maps, and their scores by other protocols.

    xaieval-bench fal benchmarks/fal/paper.toml --weights FILE --data ucmerced:DIR --out RUN
    python benchmarks/fal/paper_networks.py RUN --weights FILE --data ucmerced:DIR

writes `paper/figure4.png` (maps of the FPN), `paper/figure5.png` (maps of the FPN and of FAL) and `paper/protocols.parquet` (AD
and IC of the FPNs by several protocols), about two minutes on a core. Networks whose weights are not in RUN are trained again.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import xaieval
from xaieval.config import PROTOCOLS, Protocol
from xaieval.config.fal_options import FalOptions
from xaieval.data.batches import read_batches
from xaieval.report import maps_figure
from xaieval.training.fal import Experiment, prepare
from xaieval.training.fal.runs import Cell, layers_of

__all__ = ["PROTOCOLS_ASKED", "figures", "protocol_rows"]

HERE = Path(__file__).parent
OUT = HERE / "paper"
FPN, FAL = "fpn", "fal-p2-p3@amplify"
SEEDS = 5
METRICS = ["average_drop", "increase_in_confidence"]
SHOWN = 5  # images in a figure
BLACK: dict[str, Any] = {"fill": "black", "mean": (0.5,) * 3, "std": (0.5,) * 3}


def second_class(logits: Tensor, labels: Any) -> Tensor:
    """The second most probable class."""
    return logits.topk(2).indices[:, 1]


PROTOCOLS_ASKED = {
    "default": Protocol(),
    "the second most probable class": Protocol(target=second_class),
    "gradient of the confidence": Protocol(gradient="confidence"),
    "divided by the maximum, as in Grad-CAM++": PROTOCOLS["grad-cam++"],
    "black instead of the mean colour": Protocol(**BLACK),
    "upper half of the pixels, soft": PROTOCOLS["score-cam"],
    "upper half of the pixels, whole": Protocol(masking="top_binary", keep_percent=50),
    "upper 15 % of the pixels, soft": Protocol(masking="top", keep_percent=15),
    "upper 15 % of the pixels, whole": Protocol(masking="top_binary", keep_percent=15),
    "Otsu's threshold": Protocol(masking="otsu"),
}


def setup(run: Path, data: str, weights: str) -> Experiment:
    """The experiment of paper.toml."""
    options = tomllib.loads((HERE / "paper.toml").read_text())
    given = {name.replace("-", "_"): tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return prepare(FalOptions(**given | {"data": data, "weights": weights, "out": str(run)}))


def protocol_rows(experiment: Experiment, run: Path) -> pd.DataFrame:
    """AD and IC of the FPN of each seed by each protocol, one row per image and level."""
    pictures = experiment.pictures.subset(experiment.folds[0].test)
    parts = []
    for seed in range(SEEDS):
        model = Cell(experiment, run, 0, seed).trained(FPN)
        for name, protocol in PROTOCOLS_ASKED.items():
            scores = xaieval.score(
                model, pictures.loader(32), layers_of(model), metrics=METRICS, protocol=protocol, progress=False, seed=0
            )
            parts.append(scores.rows.assign(protocol=name, seed=seed))
    rows = pd.concat(parts)
    rows = rows.assign(level=rows["layer"].str[-3:-1], group=rows["image_id"].map(experiment.groups))
    return rows[["protocol", "seed", "image_id", "group", "level", *METRICS, "mask_area"]]


def figures(experiment: Experiment, run: Path) -> None:
    """Maps of five airplanes: of the FPN at all levels, and of the FPN and FAL beside each other."""
    cell = Cell(experiment, run, 0, 0)
    pictures = experiment.pictures.subset(experiment.folds[0].test).spread(SHOWN)
    batch = next(read_batches(pictures.loader(SHOWN)))
    maps = {arm: _maps(cell.trained(arm), batch.images) for arm in (FPN, FAL)}
    pixels, names = experiment.preprocessing.to_pixels(batch.images), [Path(name).stem for name in batch.ids]
    maps_figure(pixels, maps[FPN], names, "FPN of the 20 other classes, Grad-CAM").savefig(OUT / "figure4.png", dpi=75)
    columns = {f"{level} {arm.split('-')[0].upper()}": maps[arm][level] for level in maps[FPN] for arm in maps}
    maps_figure(pixels, columns, names, f"FPN and {FAL}, Grad-CAM").savefig(OUT / "figure5.png", dpi=75)


def _maps(model: torch.nn.Module, images: Tensor) -> dict[str, Tensor]:
    return {layer[-3:-1]: found for layer, found in xaieval.explain(model, images, layers_of(model), "gradcam").items()}


def main() -> None:
    """Make the figures and the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    given = parser.parse_args()
    experiment = setup(given.run, given.data, given.weights)
    figures(experiment, given.run)
    rows = protocol_rows(experiment, given.run)
    texts = {name: rows[name].astype("category") for name in ("protocol", "image_id", "group", "level")}
    numbers = {name: rows[name].astype("float32").round(3) for name in (*METRICS, "mask_area")}
    rows.assign(**texts, **numbers).to_parquet(OUT / "protocols.parquet", index=False, compression="zstd")


if __name__ == "__main__":
    main()
