"""Hugging Face transformers
=========================

Score the blocks of a vision transformer from the library transformers. ``MODEL`` is a folder written by ``save_pretrained`` or
the name of a model on the Hub, whose weights are used. Without it, a small transformer with random weights is used: this needs
no network and shows the calls, but the numbers mean nothing. The example needs ``pip install 'xaieval[hf]'``.

``python examples/huggingface_vit.py [FOLDER] [MODEL]`` prints the summary and writes ``maps.png``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import xaieval
from xaieval.data import scenes
from xaieval.models import LoadedModel, load_model
from xaieval.report import maps_figure

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
name = sys.argv[2] if len(sys.argv) > 2 else None


def random_vit() -> LoadedModel:
    """A small transformer with random weights, loaded from a folder like any other model."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    with tempfile.TemporaryDirectory() as saved:
        ViTForImageClassification(ViTConfig(image_size=128, patch_size=16, num_labels=10, **sizes)).save_pretrained(saved)
        ViTImageProcessor(size={"height": 128, "width": 128}).save_pretrained(saved)
        return load_model(f"hf:{saved}")


# %%
# A loaded model comes with the preprocessing that it was trained with.

loaded = random_vit() if name is None else load_model(f"hf:{name}", pretrained=True)
loader = scenes(loaded.preprocessing, size=24).loader(batch_size=8)

# %%
# The layers are the inputs of each block's attention. Their tokens are converted to maps automatically.

layers = ["vit.layers.*.layernorm_before"]
scores = xaieval.score(loaded.model, loader, layers=layers, methods=["gradcam", "random"], progress=False)
print(scores.summary().round(1).to_string())

images = next(iter(loader))["image"][:4]
maps = xaieval.explain(loaded.model, images, layers)
maps_figure(loaded.preprocessing.to_pixels(images), maps).savefig(folder / "maps.png", dpi=80)
