"""Train the four classifiers of scenes with a known cue, which come with xaieval.

    pip install -e '.[dev]'
    python benchmarks/train_cue_models.py

writes the weights into the package (safetensors; the metadata of each file says how they were made), and prints, for 1,000
images of the test split that were not used for training: the accuracy, the accuracy without the cue, and with nothing but it.

Each network is trained on three versions of each scene: with its cue and with nothing but the cue, whose label is the class;
and without the cue, whose label is an equal share of every class. Without the last, a network could know a class by the absence
of the others, and its cause would be nowhere in the image.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cyclopts
import lightning
import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_accuracy

import xaieval
from xaieval.data.cues import CUES, Cue
from xaieval.data.scenes import make_scene
from xaieval.models.builtin import cue_scenes, cue_weights
from xaieval.training.fit import fit

NO_CLASS = -1  # the label of an image without its cue


def versions(cue: Cue, split: str, size: int, seed: int) -> dict[str, TensorDataset]:
    """Images with the cue, without it, and of nothing else, normalised to [-1, 1], and their labels."""
    with ProcessPoolExecutor() as pool:
        drawn = list(pool.map(partial(make_scene, split=split, seed=seed, cue=cue), range(size), chunksize=64))
    labels = torch.tensor([scene.label for scene in drawn])
    made = {}
    for name in ("image", "without_cue", "cue_only"):
        images = torch.from_numpy(np.stack([getattr(scene, name) for scene in drawn])).permute(0, 3, 1, 2)
        made[name] = TensorDataset(images.float() / 127.5 - 1, labels)
    return made


def training_set(cue: Cue, size: int, seed: int) -> TensorDataset:
    """The three versions of `size` scenes; those without the cue are of no class."""
    parts = versions(cue, "train", size, seed)
    labels = {name: part.tensors[1] for name, part in parts.items()}
    labels["without_cue"] = torch.full_like(labels["without_cue"], NO_CLASS)
    images = torch.cat([part.tensors[0] for part in parts.values()])
    return TensorDataset(images, torch.cat(list(labels.values())))


def shared_cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy; the label of an image of no class is an equal share of every class."""
    logits = model(images)
    classes = functional.one_hot(labels.clamp(min=0), logits.shape[1]).to(logits.dtype)
    shares = torch.where((labels == NO_CLASS)[:, None], torch.full_like(classes, 1 / logits.shape[1]), classes)
    return functional.cross_entropy(logits, shares)


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """The share of images whose class is predicted."""
    images, labels = data.tensors
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in images.split(200)])
    return float(multiclass_accuracy(logits, labels, num_classes=logits.shape[1], average="micro"))


def train(cue: Cue, size: int, epochs: int, batch_size: int, seed: int) -> tuple[nn.Module, dict[str, object]]:
    """A trained network, and how it was made."""
    torch.manual_seed(seed)
    model = cue_scenes(cue, trained=False).to(memory_format=torch.channels_last)  # faster on a CPU
    fit(
        model,
        DataLoader(training_set(cue, size, seed), batch_size, shuffle=True, drop_last=True),
        DataLoader(versions(cue, "validation", 200, seed)["image"], 200),
        num_classes=len(CUES[cue]),
        epochs=epochs,
        loss=shared_cross_entropy,
        learning_rate=3e-3,
        seed=seed,
        log_dir="build",
    )
    model.eval()
    tested = {name: round(accuracy(model, data), 4) for name, data in versions(cue, "test", 1000, seed).items()}
    made = {
        "command": "python benchmarks/train_cue_models.py",
        "cue": cue, "size": size, "epochs": epochs, "batch_size": batch_size, "seed": seed,
        "test_accuracy": tested["image"], "test_accuracy_without_cue": tested["without_cue"],
        "test_accuracy_cue_only": tested["cue_only"], "test_images": 1000,
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "lightning": lightning.__version__,
                     "numpy": np.__version__, "xaieval": xaieval.__version__},
    }  # fmt: skip
    return model, made


def main(
    cues: list[Cue] | None = None,
    *,
    size: int = 2000,
    epochs: int = 12,
    batch_size: int = 64,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train, test, and save.

    Args:
        cues: The cues. Default: all.
        size: Number of training scenes, each in three versions.
        epochs: Number of passes over them.
        batch_size: Number of images per step.
        seed: Seed of the images and of the training.
        out: Folder of the weights files. Default: the package.
    """
    for cue in cues or list(CUES):
        model, made = train(cue, size, epochs, batch_size, seed)
        path = cue_weights(cue) if out is None else out / cue_weights(cue).name
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, path, metadata={"made": json.dumps(made)})
        print(json.dumps(made, indent=2))


if __name__ == "__main__":
    cyclopts.run(main)
