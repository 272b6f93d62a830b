"""Custom metric
=============

Write a metric in five lines and use it together with Average Drop. It measures how much of a map lies near the border of the
image, where the padding of convolutions causes artefacts. A metric is a function of the inputs that it needs, here the maps;
``xaieval.metrics.NEEDS`` lists the other inputs: confidences, ground-truth masks, maps of altered images, and the model's
scores of any images.

``python examples/custom_metric.py [FOLDER]`` prints the summary and writes ``custom_metric.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.metrics import Metric
from xaieval.report import maps_figure

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


def on_the_frame(maps: torch.Tensor) -> torch.Tensor:
    """Share of each map on a frame, an eighth of each side wide, in percent; NaN for a map of zeros."""
    height, width = maps.shape[1] // 8, maps.shape[2] // 8
    inside = maps[:, height:-height, width:-width].sum(dim=(1, 2))
    return 100 * (1 - inside / maps.sum(dim=(1, 2)))


frame = Metric("frame", on_the_frame, higher_is_better=False, label="on the frame %", needs=("maps",))

# %%
# It gets an interval like any other metric. The frame covers 43.75 % of the image, and ``random`` has
# about as much of its map there.

LAYER = "fpn[p3]"
model = xaieval.models.fpn_scenes()
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
loader = scenes(prepare, size=60).loader(batch_size=20)
methods = ["gradcam", "layercam", "random"]
scores = xaieval.score(model, loader, LAYER, methods, metrics=["average_drop", frame], progress=False)
print(scores.summary().round(1).to_string())

# %%
# The maps that were scored.

images = next(iter(loader))["image"][:4]
maps = {name: next(iter(xaieval.explain(model, images, LAYER, name).values())) for name in methods[:2]}
maps_figure(prepare.to_pixels(images), maps, subtitle=f"layer {LAYER}").savefig(folder / "custom_metric.png", dpi=100)
