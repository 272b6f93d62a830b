"""Score a model's layers by two methods and a control, and draw the maps of a few images.

    python examples/score_a_model.py [FOLDER]

runs without network in under a minute, and writes `maps.png` into the folder (the working directory unless told). The same
lines work with any PyTorch classifier and any loader.
"""

from __future__ import annotations

import sys
from pathlib import Path

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.report import maps_figure


def main(folder: Path) -> None:
    """Print the summary and draw the maps."""
    model = xaieval.models.fpn_scenes()
    prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    loader = scenes(prepare, size=60).loader(batch_size=20)

    layers = ["fpn[p2]", "fpn[p5]", "backbone[3]"]
    scores = xaieval.score(model, loader, layers=layers, methods=["gradcam", "layercam", "random"])
    print(scores.summary().round(1).to_string())

    images = next(iter(loader))["image"][:4]
    maps = xaieval.explain(model, images, layers, method="layercam")
    maps_figure(prepare.to_pixels(images), maps).savefig(folder / "maps.png", dpi=120)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
