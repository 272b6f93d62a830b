"""Custom explainer
================

Write an explainer in ten lines, check it, and compare it with Grad-CAM.

``python examples/custom_explainer.py [FOLDER]`` prints the summary and writes ``custom_explainer.png``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.explainers import Context
from xaieval.report import maps_figure
from xaieval.testing import check_explainer

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()

# %%
# An explainer declares its needs and computes raw maps from the context. The protocol determines upsampling and normalisation.


@dataclass(frozen=True)
class PositiveGradCAM:
    """Grad-CAM whose channel weights are sums of positive gradients only."""

    name: str = "positive-gradcam"
    needs_layer: bool = True
    needs_gradient: bool = True
    needs_model: bool = False  # activation and gradient in the context are enough

    def __call__(self, context: Context) -> torch.Tensor:
        """Raw maps `[N, h, w]`."""
        weights = context.gradient.clamp(min=0).sum(dim=(2, 3))
        return torch.einsum("nc,nchw->nhw", weights, context.activation).clamp(min=0)


# %%
# Does it pass the checks that every explainer has to pass?

own = PositiveGradCAM()
check_explainer(own)
print(f"{own.name} passes all checks")

# %%
# Compare it with other methods on the same images.

model, layer = xaieval.models.fpn_scenes(), "fpn[p3]"
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
loader = scenes(prepare, size=60).loader(batch_size=20)
scores = xaieval.score(model, loader, layer, ["gradcam", own, "random"], progress=False)
print(scores.summary().round(1).to_string())

# %%
# The maps of both methods.

images = next(iter(loader))["image"][:4]
maps = {
    name: xaieval.explain(model, images, layer, method)[layer] for name, method in (("gradcam", "gradcam"), (own.name, own))
}
maps_figure(prepare.to_pixels(images), maps, subtitle=f"layer {layer}").savefig(folder / "custom_explainer.png", dpi=100)
