"""Score a model
=============

Score layers of a classifier with two methods and a control. The same lines work with any PyTorch classifier and any loader.

``python examples/score_a_model.py [FOLDER]`` prints the summary and writes ``maps.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.report import maps_figure

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()

# %%
# A model, and a loader of images normalised as the model expects. Here both are built in: a small classifier with a feature
# pyramid, and generated scenes that were not used in its training.

model = xaieval.models.fpn_scenes()
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
loader = scenes(prepare, size=60).loader(batch_size=20)

# %%
# One call scores all layers and methods. ``random`` is a control: a map that does not depend on the model. Lower is better for
# Average Drop, higher is better for Increase in Confidence.

layers = ["fpn[p2]", "fpn[p5]", "backbone[3]"]
scores = xaieval.score(model, loader, layers=layers, methods=["gradcam", "layercam", "random"])
print(scores.summary().round(1).to_string())

# %%
# The maps behind these numbers.

images = next(iter(loader))["image"][:4]
maps = xaieval.explain(model, images, layers, method="layercam")
maps_figure(prepare.to_pixels(images), maps).savefig(folder / "maps.png", dpi=120)
