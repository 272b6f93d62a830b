"""Maps and objects
================

Do maps lie on the object? The pointing game and related metrics, with masks of the objects. Any loader works if its batches are
mappings with ``masks`` or ``boxes``.

``python examples/localisation.py [FOLDER]`` prints the table and writes ``localisation.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.metrics import best_mask_iou, energy_inside, pointing_game, pointing_hit

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
LAYERS = ["fpn[p3]", "fpn[p4]"]
METHODS = ("gradcam", "layercam", "center")
METRICS = (pointing_game(tolerance=0), "energy_pointing_game", "relevance_rank_accuracy", "best_iou", "average_drop")
SHOWN = 3

# %%
# The generated scenes come with masks of their objects.

model = xaieval.models.fpn_scenes()
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
loader = scenes(prepare, size=60, masks=True).loader(batch_size=20)
scores = xaieval.score(model, loader, layers=LAYERS, methods=METHODS, metrics=METRICS, progress=False)
names = [metric["name"] for metric in scores.manifest["metrics"]]
print(scores.summary()[[*names, "n_images"]].round(1).to_string())

# %%
# Maps with the outline of the object. A cross marks the maximum of a map, which is all that the pointing game uses.


def pointed_at(saliency: Tensor) -> tuple[int, int]:
    """Column and row of the largest value."""
    row, column = divmod(int(saliency.argmax()), saliency.shape[1])
    return column, row


def caption(saliency: Tensor, mask: Tensor) -> str:
    """The metrics of one map, as text."""
    maps, masks = saliency[None], mask[None]
    hit = "hit" if pointing_hit(maps, masks, tolerance=0).item() else "miss"
    return f"{hit}, energy {energy_inside(maps, masks).item():.0f} %\nbest IoU {best_mask_iou(maps, masks).item():.0f} %"


batch = next(iter(loader))
images, masks = batch["image"][:SHOWN], batch["mask"][:SHOWN]
columns = {
    f"{layer}, {method}": xaieval.explain(model, images, layer, method)[layer]
    for layer in LAYERS
    for method in ("gradcam", "layercam")
}
figure = Figure(figsize=(1.6 * (1 + len(columns)), 1.9 * SHOWN), layout="constrained")
for row, places in enumerate(figure.subplots(SHOWN, 1 + len(columns))):
    pixels = prepare.to_pixels(images)[row].permute(1, 2, 0).numpy()
    places[0].imshow(pixels)
    for axes, (title, maps) in zip(places[1:], columns.items(), strict=True):
        axes.imshow(pixels.mean(axis=2), cmap="gray", vmin=0, vmax=1)
        axes.imshow(maps[row].numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.65)
        axes.plot(*pointed_at(maps[row]), "x", color="cyan")
        axes.set_xlabel(caption(maps[row], masks[row]), fontsize="x-small")
        axes.set_title(title if row == 0 else "", fontsize="small")
    for axes in places:
        axes.contour(masks[row].float().numpy(), levels=[0.5], colors="white", linewidths=1)
        axes.set(xticks=[], yticks=[])
figure.savefig(folder / "localisation.png", dpi=72)
