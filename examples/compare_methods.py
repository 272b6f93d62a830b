"""Compare methods
===============

One image, one classifier, and eight methods from four sources side by side, with their Average Drop and Increase in
Confidence.

``python examples/compare_methods.py [FOLDER]`` prints the table and writes ``compare_methods.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

import xaieval
from xaieval.data import Preprocessing, scenes

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()

LAYER = "fpn.layer_blocks.2"  # the module whose output is fpn[p4]; other libraries need a module
IMAGES = 8
METHODS = (
    "gradcam",
    "layercam",
    "captum:Saliency",
    "captum:IntegratedGradients",
    "captum:Occlusion",
    "pytorch-grad-cam:ScoreCAM",
    "torch-cam:GradCAMpp",
    "random",
)

# %%
# Methods of other libraries have a name too, and are scored in the same way as xaieval's own.

model = xaieval.models.fpn_scenes()
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
loader = scenes(prepare, size=IMAGES).loader(batch_size=IMAGES)
scores = xaieval.score(model, loader, layers=[LAYER], methods=METHODS, batch_size=32, progress=False)
table = scores.summary().droplevel("layer").loc[list(METHODS), ["average_drop", "increase_in_confidence", "n_images"]]
print(table.round(1).to_string())

# %%
# Eight images are too few for conclusions; the table only shows the procedure. The maps of the first image:

image = next(iter(loader))["image"][:1]
figure = Figure(figsize=(6.6, 7.6), layout="constrained")
first, *others = figure.subplots(3, 3).flat
pixels = prepare.to_pixels(image)[0].permute(1, 2, 0).numpy()
first.imshow(pixels)
first.set_title("image", fontsize="small")
for axes, method in zip(others, METHODS, strict=True):
    (saliency,) = xaieval.explain(model, image, [LAYER], method).values()
    row = table.loc[method]
    title = f"{method.replace(':', chr(10))}\nAD {row['average_drop']:.0f}  IC {row['increase_in_confidence']:.0f}"
    axes.imshow(pixels.mean(axis=2), cmap="gray", vmin=0, vmax=1)
    axes.imshow(saliency[0].numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.65)
    axes.set_title(title, fontsize="small")
for axes in (first, *others):
    axes.set(xticks=[], yticks=[])
figure.supxlabel(f"AD (lower is better) and IC (higher is better) in percent, over {IMAGES} images", fontsize="small")
figure.savefig(folder / "compare_methods.png", dpi=72)
