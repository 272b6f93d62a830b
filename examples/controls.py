"""Controls
========

Grad-CAM compared with control maps, which do not depend on the model: the maps, and their Average Drop and Increase in
Confidence.

``python examples/controls.py [FOLDER]`` prints the table with its warnings, and writes ``controls.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

import xaieval
from xaieval.data import Preprocessing, scenes

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
IMAGES = 60

# %%
# ``controls=True`` adds all control maps to the run.

model = xaieval.models.fpn_scenes()
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
loader = scenes(prepare, size=IMAGES).loader(batch_size=20)
scores = xaieval.score(model, loader, ["fpn[p3]", "fpn[p5]"], controls=True, progress=False)
summary = scores.summary()
print(summary[["average_drop", "increase_in_confidence", "n_images"]].round(1).to_string())

# %%
# Is Grad-CAM significantly better than the controls? No method can beat ``fake-cam`` in Average Drop: ``fake-cam`` masks a
# single pixel.

tests = scores.controls_table()
print(tests.pivot_table(index=["metric", "layer"], columns="control", values="beats", sort=False).astype(bool).to_string())
print(*(f"\nwarning: {reason}" for reason in scores.warnings()), sep="")

# %%
# The maps of one image.

image = next(iter(loader))["image"][:1]
pixels = prepare.to_pixels(image)[0].permute(1, 2, 0).numpy()
figure = Figure(figsize=(9, 5), layout="constrained")
first, *others = figure.subplots(2, 4).flat
first.imshow(pixels)
first.set_title("image", fontsize="small")
for axes, (layer, method) in zip(others, summary.index, strict=True):
    (saliency,) = xaieval.explain(model, image, [layer] if layer != "input" else [], method).values()
    row = summary.loc[(layer, method)]
    axes.imshow(pixels.mean(axis=2), cmap="gray", vmin=0, vmax=1)
    axes.imshow(saliency[0].numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.65)
    name = method if layer == "input" else f"{method} at {layer}"
    axes.set_title(f"{name}\nAD {row['average_drop']:.1f}  IC {row['increase_in_confidence']:.1f}", fontsize="small")
for axes in (first, *others):
    axes.set(xticks=[], yticks=[])
figure.supxlabel(f"AD (lower is better) and IC (higher is better) in percent, over {IMAGES} images", fontsize="small")
figure.savefig(folder / "controls.png", dpi=72)
