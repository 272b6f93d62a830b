"""Train MobileNetV2 on UC Merced, in five folds, so that each image is classified by a network that has not seen it.

    pip install -e '.[dev,fal]'
    python benchmarks/train_ucmerced.py train --weights FILE --data ucmerced:DIR --out DIR
    python benchmarks/train_ucmerced.py record --out DIR

The first command trains one network a fold and writes its weights and its predictions to `DIR`, which lies outside the
repository (side by side: `--only 0 1` and `--only 2 3 4`); a fold that is there is not trained again. The second writes the
accuracy to `benchmarks/trained_ucmerced/`. The folds keep ten contiguous blocks of ten file numbers a class together, because
neighbouring files often show the same place: 1,680 images train a network, 420 test it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import lightning
import pandas as pd
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import xaieval
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import metric_interval
from xaieval.data import Pictures, Preprocessing, load_pictures
from xaieval.data.splits import block_folds
from xaieval.errors import DataError
from xaieval.models.loading import load_model
from xaieval.training.fit import augmentation, fit, training_loader

HERE = Path(__file__).parent / "trained_ucmerced"
CLASSES = 21
FOLDS = 5
BLOCKS = 10
HALF = (0.5, 0.5, 0.5)
PREPROCESSING = Preprocessing(128, 128, mean=HALF, std=HALF, interpolation="bilinear")
ARGUMENTS = {"pad_type": "same", "num_classes": CLASSES}  # TensorFlow's padding, which the weights come from

app = cyclopts.App(help=__doc__)


@dataclass(frozen=True)
class Recipe:
    """How each network is trained: AdamW with a one-cycle learning rate, on random crops of half to all of the picture.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step.
        learning_rate: Highest learning rate.
        seed: Seed of the folds; fold k is trained with seed + k.
    """

    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-3
    seed: int = 0


def network(weights: Path) -> nn.Module:
    """MobileNetV2 with ImageNet weights and a new head that starts at zero."""
    overlay = {"file": str(weights), "mean": HALF, "std": HALF, "interpolation": "bilinear"}
    model = timm.create_model("mobilenetv2_100", pretrained=True, pretrained_cfg_overlay=overlay, **ARGUMENTS)
    nn.init.zeros_(model.classifier.weight)
    nn.init.zeros_(model.classifier.bias)
    return model


def trained_network(folder: Path, fold: int) -> nn.Module:
    """The network of a fold, in eval mode."""
    return load_model("timm:mobilenetv2_100", folder / f"fold{fold}.safetensors", model_args=ARGUMENTS).model


def pictures_of(data: str) -> Pictures:
    """The images of a data set by name, as `load_pictures` reads them.

    Raises:
        DataError: The data is a function that returns a loader.
    """
    pictures = load_pictures(data, PREPROCESSING)
    if pictures is None:
        raise DataError(f"the data is 'ucmerced:DIR', got {data!r}")
    return pictures


def held_out(pictures: Pictures, seed: int = Recipe.seed) -> list[list[int]]:
    """By fold, the numbers of the images that its network has not seen."""
    return [fold.test for fold in block_folds(list(pictures.labels), FOLDS, blocks=BLOCKS, seed=seed)]


@app.command
def train(
    weights: Path,
    data: str,
    out: Path,
    only: Annotated[list[int] | None, cyclopts.Parameter(consume_multiple=True)] = None,
    recipe: Recipe = Recipe(),
) -> None:
    """Train the network of each fold and classify its held-out images.

    Args:
        weights: ImageNet weights of mobilenetv2_100, safetensors.
        data: ucmerced:DIR.
        out: Folder of the weights and predictions.
        only: Numbers of the folds to train. Default: all.
        recipe: How the networks are trained.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = pictures_of(data)
    tests = held_out(pictures, recipe.seed)
    for number in range(FOLDS) if only is None else only:
        if (out / f"fold{number}.json").exists():
            continue
        started = time.perf_counter()
        seen = sorted(set(range(len(pictures))) - set(tests[number]))
        model = _fitted(network(weights), pictures, seen, tests[number], replace(recipe, seed=recipe.seed + number), out)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out / f"fold{number}.safetensors")
        table = predictions(model, pictures.subset(tests[number])).assign(fold=number)
        table.to_csv(out / f"fold{number}.csv", index=False)
        seconds = round(time.perf_counter() - started)
        made = asdict(recipe) | {"seconds": seconds, "weights": weights.name, "versions": versions()}
        (out / f"fold{number}.json").write_text(json.dumps(made, indent=2) + "\n")
        right = 100 * (table["label"] == table["predicted"]).mean()
        print(f"fold {number}: accuracy {right:.1f} %, {seconds} s", flush=True)


def _fitted(model: nn.Module, pictures: Pictures, seen: list[int], unseen: list[int], recipe: Recipe, out: Path) -> nn.Module:
    """Train on the images that may be seen. The others only fill the log: they choose nothing."""
    torch.manual_seed(recipe.seed)
    augmented = replace(pictures.subset(seen), preprocessing=augmentation(PREPROCESSING))
    fit(
        model.to(memory_format=torch.channels_last),  # a quarter faster on a CPU
        training_loader(augmented, recipe.batch_size, shuffle=True),
        training_loader(pictures.subset(unseen), recipe.batch_size, shuffle=False),
        num_classes=CLASSES,
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        log_dir=out / "log",
        progress=False,
    )
    return model.eval()


def predictions(model: nn.Module, pictures: Pictures) -> pd.DataFrame:
    """The class and the confidence that a network gives to each image."""
    parts = []
    with torch.inference_mode():
        for batch in pictures.loader(60):
            confidence, predicted = model(batch["image"]).softmax(dim=1).max(dim=1)
            columns = {"label": batch["label"], "predicted": predicted, "confidence": confidence}
            parts.append(pd.DataFrame({"image_id": batch["id"]} | {name: values.numpy() for name, values in columns.items()}))
    return pd.concat(parts, ignore_index=True)


def versions() -> dict[str, str]:
    """The versions of what a training depends on."""
    modules: dict[str, Any] = {"torch": torch, "timm": timm, "lightning": lightning, "xaieval": xaieval}
    return {name: str(module.__version__) for name, module in modules.items()}


@app.command
def record(out: Path) -> None:
    """Write the accuracy of the trained networks to `benchmarks/trained_ucmerced/`.

    Args:
        out: Folder of the weights and predictions.
    """
    HERE.mkdir(exist_ok=True)
    files = sorted(out.glob("fold?.json"))
    table = pd.concat([pd.read_csv(file.with_suffix(".csv")) for file in files], ignore_index=True)
    accuracies(table).to_csv(HERE / "accuracy.csv", index=False)
    table.round(4).to_csv(HERE / "predictions.csv", index=False)
    made = {file.stem: json.loads(file.read_text()) for file in files}
    (HERE / "manifest.json").write_text(json.dumps(made, indent=2) + "\n")


def accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """The accuracy of each fold and of all images, in percent, with 95 % intervals over places, and the mean confidence."""
    records = []
    for name, part in [*((str(fold), part) for fold, part in table.groupby("fold")), ("all", table)]:
        right = 100.0 * (part["label"] == part["predicted"])
        places = Grouping([place(image_id) for image_id in part["image_id"]])
        low, high = metric_interval(right, "wilson", groups=places)
        found = {"fold": name, "accuracy": right.mean(), "accuracy_low": low, "accuracy_high": high}
        found |= {"confidence": part["confidence"].mean(), "n_images": len(right), "n_groups": places.count}
        records.append(found)
    return pd.DataFrame(records).round(4)


def place(image_id: str) -> str:
    """The block of ten neighbouring file numbers that an image belongs to.

    Example:
        >>> place("airplane/airplane37.tif")
        'airplane/airplane3'
    """
    return image_id.rpartition(".")[0][:-1]


if __name__ == "__main__":
    app()
