"""Effect of ties on the pointing game, when a map has several equal maxima: Grad-CAM on the 200 generated test images.

    python benchmarks/localisation_ties.py

writes benchmarks/localisation/ties.csv. For each level of the built-in classifier and two tolerances: how many maps have more
than one maximum, and the share of hits if all maxima must hit (xaieval's rule), if the first in reading order decides (as with
`argmax`), and if any may hit (as in Quantus).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import xaieval
from xaieval.analysis.stats.intervals import wilson_interval
from xaieval.data import Preprocessing, scenes
from xaieval.metrics import pointing_hit

IMAGES = 200
RESULTS = Path(__file__).parent / "localisation/ties.csv"


def main() -> None:
    """Write the table and print it."""
    prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    (batch,) = scenes(prepare, size=IMAGES, masks=True).loader(batch_size=IMAGES)
    maps = xaieval.explain(xaieval.models.fpn_scenes(), batch["image"], "fpn[*]")
    records = [record(layer, maps[layer], batch["mask"], tolerance) for layer in maps for tolerance in (0, 15)]
    table = pd.DataFrame(records)
    table.to_csv(RESULTS, index=False)
    print(table.round(1).to_string(index=False))


def record(layer: str, maps: Tensor, masks: Tensor, tolerance: float) -> dict[str, object]:
    """One row of the table; each rule applies the metric to maps that contain only the maxima it uses."""
    largest = maps.flatten(1) == maps.flatten(1).amax(dim=1, keepdim=True)
    one_each = torch.eye(largest.shape[1])
    row: dict[str, object] = {"layer": layer, "tolerance": tolerance, "n": len(maps), "tied": int((largest.sum(1) > 1).sum())}
    hits = {
        "all": pointing_hit(maps, masks, tolerance),
        "first": pointing_hit(one_each[maps.flatten(1).argmax(dim=1)].view_as(maps), masks, tolerance),
        "any": torch.stack([any_hit(one, mask, tolerance) for one, mask in zip(largest, masks, strict=True)]),
    }
    for rule, values in hits.items():
        low, high = wilson_interval(int((values > 0).sum()), len(values))
        row |= {rule: values.mean().item(), f"{rule}_low": 100 * low, f"{rule}_high": 100 * high}
    return row


def any_hit(largest: Tensor, mask: Tensor, tolerance: float) -> Tensor:
    """The best result over the maxima of one image, each tested separately."""
    single = torch.nn.functional.one_hot(largest.nonzero()[:, 0], largest.numel()).float().view(-1, *mask.shape)
    return pointing_hit(single, mask.expand_as(single), tolerance).max()


if __name__ == "__main__":
    main()
