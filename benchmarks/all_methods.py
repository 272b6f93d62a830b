"""One image under all methods: what their maps look like, and why the others do not take the network.

    python benchmarks/all_methods.py --weights FILE --data ucmerced:DIR

Every method that has a name explains the class that MobileNetV2 predicts on one image of UC Merced, at its last layer where it
explains a layer. Writes the picture and the table of `docs/all_methods.md`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from matplotlib.figure import Figure
from page_tables import filled
from PIL import Image
from torch import Tensor

import xaieval
from xaieval.data import load_pictures
from xaieval.errors import XaievalError
from xaieval.explainers import with_settings
from xaieval.explainers.catalogue import LIBRARY_METHODS, METHODS
from xaieval.models import load_model

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs/all_methods.md", ROOT / "docs/gallery/all_methods.png"
MODEL, LAYER = "timm:mobilenetv2_100", "blocks.6"
JOINED = ("blocks.4", "blocks.6")  # of methods that join layers
# Fewer passes than by default, so that the picture takes minutes.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "rise": {"n_masks": 1000},
    "sobol": {"n_designs": 8},
    "captum:ShapleyValueSampling": {"n_samples": 8},
    "torch-cam:SSCAM": {"num_samples": 2},
    "torch-cam:ISCAM": {"num_samples": 3},
}
COLUMNS = 8

app = cyclopts.App(help=__doc__)


@app.default
def main(weights: Path, data: str, image: str = "airplane", size: int = 224, methods: str = "") -> None:
    """Explain the image and write the page.

    Args:
        weights: ImageNet weights of mobilenetv2_100, safetensors.
        data: ucmerced:DIR.
        image: The first image whose id contains this word is explained.
        size: Side of the image in pixels.
        methods: Names, separated by commas. Default: all.
    """
    loaded = load_model(MODEL, weights)
    shown = loaded.preprocessing.with_size(size)
    pictures = load_pictures(data, shown)
    number = next(number for number, name in enumerate(pictures.ids) if image in name)
    pixels = pictures[number]["image"][None]
    names = methods.split(",") if methods else [*METHODS, *LIBRARY_METHODS]
    maps: dict[str, Tensor] = {}
    refused: list[tuple[str, str]] = []
    for name in names:
        begin = time.process_time()
        try:
            maps[name] = _explained(loaded.model, pixels, name)
        except XaievalError as error:
            refused.append((name, str(error)))
        print(f"{name}: {time.process_time() - begin:.1f} s", flush=True)
    _draw(shown.to_pixels(pixels), maps)
    lines = ["| method | message |", "|---|---|", *(f"| `{name}` | {reason} |" for name, reason in refused)]
    PAGE.write_text(filled(PAGE.read_text(), {"refused": lambda: lines}))


def _explained(model: torch.nn.Module, pixels: Tensor, name: str) -> Tensor:
    """The map `[H, W]` of a method."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        [method] = with_settings(name, {name: SETTINGS[name]} if name in SETTINGS else {})
        layers = JOINED if getattr(method, "joins_layers", False) else [LAYER]
        [found] = xaieval.explain(model, pixels, layers if method.needs_layer else (), method).values()
    return found[0]


def _draw(picture: Tensor, maps: Mapping[str, Tensor]) -> None:
    """The image, and each map over it."""
    rows = -(-(len(maps) + 1) // COLUMNS)
    figure = Figure(figsize=(1.4 * COLUMNS, 1.62 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS)
    visible = np.asarray(picture[0].permute(1, 2, 0))
    for place, name, found in zip(axes.flat, ["image", *maps], [None, *maps.values()], strict=False):
        place.imshow(visible)
        if found is not None:
            place.imshow(found, cmap="inferno", alpha=0.65, vmin=0, vmax=1)
        place.set_title(name.replace(":", ":\n", 1), fontsize=6.5)
    for place in axes.flat:
        place.axis("off")
    figure.savefig(PICTURE, dpi=110)
    with Image.open(PICTURE) as written:
        written.convert("RGB").quantize(256).save(PICTURE, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    app()
