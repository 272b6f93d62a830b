"""Does a network that has seen masked images judge explanation maps otherwise?

    python benchmarks/judge.py --weights FILE --data ucmerced:DIR

MobileNetV2 is trained on small pictures of UC Merced, half of the images, one fold of the blocks of `train_ucmerced.py`. Two
judges go on from there for as many epochs: one on masked images (`fit(masked=True)`), one on whole images, which shows what is
due to the longer training. The maps are those of the first network; all three judge them on the test images. Writes
`benchmarks/judge/`.
"""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cyclopts
import pandas as pd
import torch
from torch import nn
from train_ucmerced import BLOCKS, CLASSES, FOLDS, HALF, network

import xaieval
from xaieval.data import Pictures, Preprocessing, load_pictures
from xaieval.data.splits import block_folds
from xaieval.metrics import deletion, insertion
from xaieval.training import augmentation, fit, training_loader

OUT = Path(__file__).parent / "judge"
SHOWN = Preprocessing(96, 96, mean=HALF, std=HALF, interpolation="bilinear")
TRAINED = Preprocessing(64, 64, mean=HALF, std=HALF, interpolation="bilinear")
IMAGES, EPOCHS, MORE = 1050, 5, 3
LAYERS = ["blocks.6"]
METRICS = ["average_drop", "increase_in_confidence", "drop_in_deletion", insertion(steps=8), deletion(steps=8)]
METHODS = ["gradcam"]


def main(weights: Path, data: str, seed: int = 0) -> None:
    """Train the network and its judges, score, and write the tables.

    Args:
        weights: ImageNet weights of mobilenetv2_100, safetensors.
        data: ucmerced:DIR.
        seed: Of the fold, the training and the control maps.
    """
    pictures = load_pictures(data, SHOWN).spread(IMAGES)
    fold = block_folds(list(pictures.labels), FOLDS, blocks=BLOCKS, seed=seed)[0]
    seen = sorted(set(range(len(pictures))) - set(fold.test))
    test = pictures.subset(fold.test)
    torch.manual_seed(seed)
    model = trained(network(weights), pictures.subset(seen), EPOCHS, 1e-3, seed)
    judges = {"the network itself": None}
    for name, masked in (("trained on masked images", True), ("trained on whole images as long", False)):
        judges[name] = trained(copy.deepcopy(model), pictures.subset(seen), MORE, 3e-4, seed, masked=masked)
    tables = {name: scored(model, judge, test, seed) for name, judge in judges.items()}
    accuracies = {name: accuracy(judge or model, test) for name, judge in judges.items()}
    write(tables, accuracies, len(test), seed)


def trained(model: nn.Module, pictures: Pictures, epochs: int, rate: float, seed: int, masked: bool = False) -> nn.Module:
    """The network after some epochs on random crops."""
    loader = training_loader(replace(pictures, preprocessing=augmentation(TRAINED)), 32, shuffle=True)
    options: dict[str, Any] = {"learning_rate": rate, "weight_decay": 0.05, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        fit(model, loader, None, num_classes=CLASSES, epochs=epochs, masked=masked, seed=seed, log_dir=folder, **options)
    return model.eval()


def scored(model: nn.Module, judge: nn.Module | None, test: Pictures, seed: int) -> xaieval.Scores:
    """The scores of the network's maps, with control maps and shifted copies."""
    controls = ["random", "center", "shifted"]
    return xaieval.score(
        model, test.loader(70), LAYERS, METHODS, METRICS, controls=controls, judge=judge, seed=seed, progress=False
    )


@torch.no_grad()
def accuracy(model: nn.Module, test: Pictures) -> dict[str, float]:
    """Percent of right answers on whole images, and with random halves of their cells removed (7 x 7 cells)."""
    torch.manual_seed(0)
    right = {"whole": 0, "masked": 0}
    for batch in test.loader(70):
        images, labels = batch["image"], batch["label"]
        kept = (torch.rand(len(images), 1, 7, 7) < 0.5).float()
        masks = nn.functional.interpolate(kept, images.shape[2:], mode="nearest-exact")
        for name, shown in (("whole", images), ("masked", images * masks)):
            right[name] += int((model(shown).argmax(dim=1) == labels).sum())
    return {name: 100 * count / len(test) for name, count in right.items()}


def write(tables: dict[str, xaieval.Scores], accuracies: dict[str, dict[str, float]], count: int, seed: int) -> None:
    """The summaries, one below the other, and what does not fit into them."""
    OUT.mkdir(exist_ok=True)
    rows = []
    for name, scores in tables.items():
        summary = scores.summary().reset_index()
        own = scores.rows[scores.rows["method"].isin(METHODS)]
        size = own.groupby(["layer", "method"]).apply(lambda part: part["average_drop"].corr(part["mask_area"]))
        rows.append(summary.assign(judge=name, r_size=[size.get((row.layer, row.method)) for row in summary.itertuples()]))
    pd.concat(rows).to_csv(OUT / "summary.csv", index=False, float_format="%.5g")
    versions = {name: tables["the network itself"].manifest["versions"][name] for name in ("xaieval", "torch", "timm")}
    facts = {"accuracy": accuracies, "images": count, "seed": seed, "versions": versions}
    (OUT / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    cyclopts.run(main)
