"""Train the classifier that comes with xaieval: an FPN on the generated data set `scenes`.

    pip install -e '.[dev]'
    python benchmarks/train_fpn_scenes.py

writes the weights into the package (safetensors; the file's metadata says how they were made), and prints the accuracy on the
1,000 images of the test split, which were not used for training.
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
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_accuracy

import xaieval
from xaieval.data.scenes import CLASSES, make_scene
from xaieval.models import FPNClassifier
from xaieval.models.builtin import FPN_SCENES, FPN_SCENES_WEIGHTS
from xaieval.training.fit import fit


def scenes(split: str, size: int, seed: int) -> TensorDataset:
    """Generated images, normalised to [-1, 1], and their labels."""
    with ProcessPoolExecutor() as pool:
        drawn = list(pool.map(partial(make_scene, split=split, seed=seed), range(size), chunksize=64))
    images = torch.from_numpy(np.stack([scene.image for scene in drawn])).permute(0, 3, 1, 2)
    return TensorDataset(images.float() / 127.5 - 1, torch.tensor([scene.label for scene in drawn]))


def main(*, size: int = 10_000, epochs: int = 12, batch_size: int = 64, seed: int = 0, out: Path = FPN_SCENES_WEIGHTS) -> None:
    """Train, test, and save.

    Args:
        size: Number of training images.
        epochs: Number of passes over them.
        batch_size: Number of images per step.
        seed: Seed of the images and of the training.
        out: The weights file to write.
    """
    torch.manual_seed(seed)
    model = FPNClassifier(**FPN_SCENES).to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    validation = fit(
        model,
        DataLoader(scenes("train", size, seed), batch_size, shuffle=True, drop_last=True),
        DataLoader(scenes("validation", 1000, seed), 200),
        num_classes=len(CLASSES),
        epochs=epochs,
        seed=seed,
        log_dir="build",
    )
    images, labels = scenes("test", 1000, seed).tensors
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in images.split(200)])
    test = float(multiclass_accuracy(logits, labels, num_classes=len(CLASSES), average="micro"))
    made = {
        "command": "python benchmarks/train_fpn_scenes.py",
        "size": size, "epochs": epochs, "batch_size": batch_size, "seed": seed,
        "validation_accuracy": round(validation, 4), "test_accuracy": round(test, 4), "test_images": len(labels),
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "lightning": lightning.__version__,
                     "numpy": np.__version__, "xaieval": xaieval.__version__},
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, out, metadata={"made": json.dumps(made)})
    print(json.dumps(made, indent=2))


if __name__ == "__main__":
    cyclopts.run(main)
