"""Black boxes
===========

A model that is only a function is explained by its outputs for perturbed images. The function here wraps the built-in
classifier; it could just as well call an ONNX session, a scikit-learn pipeline or a web service.

``python examples/black_box.py [FOLDER]`` prints the summary and writes ``black_box.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.explainers.perturbation import RISE, Occlusion
from xaieval.models import BlackBox, fpn_scenes
from xaieval.report import maps_figure

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
hidden = fpn_scenes().eval()


def probabilities(images: np.ndarray) -> np.ndarray:
    """Probabilities `[N, 10]` of images `[N, 3, 128, 128]`; this is all that xaieval sees of the model."""
    with torch.inference_mode():
        return hidden(torch.from_numpy(images)).softmax(dim=1).numpy()


model = BlackBox(probabilities, numpy=True)

# %%
# The function returns probabilities, so softmax must not be applied to them.

protocol = xaieval.Protocol(confidence="identity")
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
loader = scenes(prepare, size=10).loader(batch_size=10)
methods = [RISE(n_masks=200), Occlusion(window=24, stride=12), "random"]
scores = xaieval.score(model, loader, methods=methods, protocol=protocol, batch_size=64, progress=False)
print(scores.summary().round(1).to_string())

# %%
# Make maps with the same methods.

images = next(iter(loader))["image"][:3]
columns = {
    name: xaieval.explain(model, images, method=method, protocol=protocol)["input"]
    for name, method in zip(["rise", "occlusion", "random"], methods, strict=True)
}
maps_figure(prepare.to_pixels(images), columns, subtitle="a black box").savefig(folder / "black_box.png", dpi=80)
