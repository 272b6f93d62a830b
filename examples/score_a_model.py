"""Score a model
=============

Layers of a classifier by two methods and a control. The same lines work with any PyTorch classifier and any loader.

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
# A model, and a loader of images as the model expects them. Both are built in here: a small classifier with a feature
# pyramid, and generated scenes that took no part in its training.

model = xaieval.models.fpn_scenes()
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
loader = scenes(prepare, size=60).loader(batch_size=20)

# %%
# One call scores all layers and methods. ``random`` is a control: a map that knows nothing of the model. Average Drop is
# better the lower it is, Increase in Confidence the higher.

layers = ["fpn[p2]", "fpn[p5]", "backbone[3]"]
scores = xaieval.score(model, loader, layers=layers, methods=["gradcam", "layercam", "random"])
print(scores.summary().round(1).to_string())

# %%
# The maps that these numbers are about.

images = next(iter(loader))["image"][:4]
maps = xaieval.explain(model, images, layers, method="layercam")
maps_figure(prepare.to_pixels(images), maps).savefig(folder / "maps.png", dpi=120)
