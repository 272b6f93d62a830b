"""How much it matters which of several equal maxima the pointing game takes: Grad-CAM on the 200 generated test images.

    python benchmarks/localisation_ties.py

writes benchmarks/localisation/ties.csv: for each level of the built-in classifier and two tolerances, how many maps have
several largest values, and the share of hits if all of them have to hit (which is xaieval's rule), if the first in reading
order decides (as `argmax` does), and if any may (as in Quantus).
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
    """One row: every rule is the metric on maps that have only the maxima in question."""
    largest = maps.flatten(1) == maps.flatten(1).amax(dim=1, keepdim=True)
    one_each = torch.eye(largest.shape[1])
    found: dict[str, object] = {"layer": layer, "tolerance": tolerance, "n": len(maps), "tied": int((largest.sum(1) > 1).sum())}
    hits = {
        "all": pointing_hit(maps, masks, tolerance),
        "first": pointing_hit(one_each[maps.flatten(1).argmax(dim=1)].view_as(maps), masks, tolerance),
        "any": torch.stack([any_hit(one, mask, tolerance) for one, mask in zip(largest, masks, strict=True)]),
    }
    for rule, values in hits.items():
        low, high = wilson_interval(int((values > 0).sum()), len(values))
        found |= {rule: values.mean().item(), f"{rule}_low": 100 * low, f"{rule}_high": 100 * high}
    return found


def any_hit(largest: Tensor, mask: Tensor, tolerance: float) -> Tensor:
    """The best of the maxima of one image, each by itself."""
    places = torch.nn.functional.one_hot(largest.nonzero()[:, 0], largest.numel()).float().view(-1, *mask.shape)
    return pointing_hit(places, mask.expand_as(places), tolerance).max()


if __name__ == "__main__":
    main()
