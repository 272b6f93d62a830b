"""timm models
===========

The layers that ``auto`` picks in three kinds of networks: a convolutional network, a transformer with windows, and a plain
vision transformer. The weights are random, so the numbers mean nothing; use ``timm.create_model(NAME, pretrained=True)`` for
real ones.

``python examples/timm_models.py [FOLDER]`` prints the scores and writes ``timm_models.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import timm
import torch

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.report import maps_figure

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()

MODELS = {
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {"img_size": 128, "window_size": 4},
    "vit_tiny_patch16_224": {"img_size": 128},
}

# %%
# The same two calls work for each network. Tokens and channels-last outputs are converted to maps automatically.

prepare = Preprocessing(image_size=128, resize=128)
loader = scenes(prepare, size=8).loader(batch_size=8)
images = next(iter(loader))["image"][:3]
tables, columns = {}, {}
for name, options in MODELS.items():
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **options)
    scores = xaieval.score(model, loader, layers="auto", methods=["layercam"], progress=False)
    tables[name] = scores.summary()[["average_drop", "increase_in_confidence", "n_images"]]
    maps = xaieval.explain(model, images, "auto", method="layercam")
    columns |= {f"{name.split('_')[0]} {layer}": one for layer, one in maps.items()}
print(pd.concat(tables, names=["model"]).round(1).to_string())

# %%
# Maps of untrained networks can look plausible too.

maps_figure(prepare.to_pixels(images), columns).savefig(folder / "timm_models.png", dpi=50)
