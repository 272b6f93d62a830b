"""Which masked passes could be shared: maps of several methods at one layer that are nearly the same mask.

    python benchmarks/speed/same_masks.py --weights FILE --data ucmerced:DIR

prints, for each tolerance and layer, the share of masks that differ from an earlier mask of the same image by less than the
tolerance at every pixel. MobileNetV2; docs/speed.md has the table.
"""

from __future__ import annotations

from collections import Counter

import cyclopts
import torch
from torch import Tensor

import xaieval
from xaieval.data import load_data
from xaieval.data.batches import read_batches
from xaieval.models import load_model

LAYERS = ("blocks.1", "blocks.2", "blocks.4", "blocks.5", "blocks.6", "bn2")
METHODS = ("gradcam", "gradcam++", "xgradcam", "layercam", "hirescam")
TOLERANCES = (1e-4, 1e-3, 1e-2)


def main(weights: str, data: str, images: int = 42) -> None:
    """Print the shares in percent."""
    loaded = load_model("timm:mobilenetv2_100", weights, False, {"pad_type": "same"})
    half = (0.5, 0.5, 0.5)
    preprocessing = type(loaded.preprocessing)(image_size=224, resize=256, mean=half, std=half, interpolation="bilinear")
    shared, count = Counter[tuple[float, str]](), 0
    for batch in read_batches(load_data(data, preprocessing, batch_size=14, max_images=images).loader):
        by_method = [xaieval.explain(loaded.model, batch.images, LAYERS, method) for method in METHODS]
        count += len(METHODS) * len(batch)
        for layer in LAYERS:
            maps = torch.stack([maps[layer] for maps in by_method], dim=1)  # images, methods, height, width
            for tolerance in TOLERANCES:
                shared[tolerance, layer] += sum(len(one) - distinct(one, tolerance) for one in maps)
    for tolerance in TOLERANCES:
        shares = {layer: round(100 * shared[tolerance, layer] / count, 1) for layer in LAYERS}
        print(tolerance, shares, "all:", round(sum(shares.values()) / len(LAYERS), 1))


def distinct(masks: Tensor, tolerance: float) -> int:
    """The number of masks `[M, H, W]` that need a pass of their own."""
    kept: list[Tensor] = []
    for one in masks:
        if not any((one - other).abs().max() < tolerance for other in kept):
            kept.append(one)
    return len(kept)


if __name__ == "__main__":
    cyclopts.run(main)
