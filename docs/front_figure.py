"""The figure at the top of the README: maps of a real network on a real image, with the number of each layer.

    python docs/front_figure.py --weights FILE --data DIR

draws Grad-CAM maps of MobileNetV2 on an image of UC Merced into `docs/front.png`. FILE and the numbers are those of
`benchmarks/ucmerced_mobilenetv2.toml`, DIR is the folder of the data set.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import cyclopts
import pandas as pd
import torch
from PIL import Image
from timm.data import ImageNetInfo

import xaieval
from xaieval.data import Preprocessing

IMAGES = ("airplane23",)
LAYERS = ("blocks.2", "blocks.4", "blocks.6")
RUN = Path(__file__).parents[1] / "benchmarks" / "ucmerced_mobilenetv2"


def main(weights: str, data: Path) -> None:
    """Draw the figure."""
    options = tomllib.loads(RUN.with_suffix(".toml").read_text())
    model = xaieval.models.load_model(options["model"], weights=weights, model_args=options["model-args"]).model
    prepare = Preprocessing(224, 224, tuple(options["mean"]), tuple(options["std"]), interpolation=options["interpolation"])
    files = [next(data.rglob(f"{name}.*")) for name in IMAGES]
    images = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files])
    with torch.inference_mode():
        confidences, classes = model.eval()(images).softmax(dim=1).max(dim=1)
    names = [ImageNetInfo().index_to_description(index, detailed=False).split(",")[0] for index in classes.tolist()]
    titles = [f"{name} {confidence:.2f}" for name, confidence in zip(names, confidences.tolist(), strict=True)]
    drops = pd.read_csv(RUN / "summary.csv").query("method == 'gradcam'").set_index("layer")["average_drop"]
    maps = xaieval.explain(model, images, LAYERS)
    shown = {f"{layer}\nAD {drops[layer]:.0f} %": maps[layer] for layer in LAYERS}
    figure = xaieval.show(images, shown, titles, preprocessing=prepare, size=7)
    figure.savefig(Path(__file__).with_name("front.png"), dpi=120)


if __name__ == "__main__":
    cyclopts.run(main)
