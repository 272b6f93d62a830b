"""Sanity check with random parameters
===================================

Does a map change when the model's parameters are randomised? Parameters are randomised from the output down, and the maps are
compared with those of the trained model: for two methods, and for two controls that do not depend on the model.

``python examples/sanity_check.py [FOLDER]`` prints the scores of the maps and their similarity when all parameters are random,
and writes ``sanity_check.png``: the maps of one image step by step, and the similarity over all images.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor, nn

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.evaluation.sanity_check import SanityCheck
from xaieval.inference.randomisation import draw_anew, find_parts, swapped

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
LAYER, IMAGES, SHOWN = "fpn[p3]", 30, 7
METHODS = ("gradcam", "layercam", "edges", "center")
MODULES = ("head", "fpn", "backbone.layer*", "backbone.conv1")  # each with all its submodules

# %%
# Functions for the table and the parts of the figure.


def table(check: SanityCheck, scores: xaieval.Scores) -> pd.DataFrame:
    """For each method: Average Drop, and the similarities when all parameters are random, with intervals."""
    alike = check.summary().xs(("complete", "*"), level=("mode", "randomised")).droplevel("layer")
    found = scores.summary().droplevel("layer").loc[list(METHODS), ["average_drop"]].round(1)
    for name in ("ssim", "spearman"):
        ends = [f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]" for _, row in alike.iterrows()]
        found[name] = pd.Series(ends, alike.index)
    return found.assign(n=alike["n_images"])


def cascade(model: nn.Module, image: Tensor) -> dict[str, dict[str, Tensor]]:
    """The maps that `sanity_check` compares: by step and method, for one image and its predicted class."""
    model = model.eval()
    target = int(model(image).argmax())
    parts = find_parts(model, image, model, MODULES)
    drawn = draw_anew(model, {holder for part in parts for holder in part.holders}, seed=0)
    found = {}
    for count in range(len(parts) + 1):
        changed = [swap for part in parts[:count] for holder in part.holders for swap in drawn[holder]]
        with swapped(changed):
            maps = {method: xaieval.explain(model, image, LAYER, method, target) for method in METHODS}
        name = parts[count - 1].name if count else "trained"
        found[name] = {method: next(iter(given.values()))[0] for method, given in maps.items()}
    return found


def draw_maps(figure: Any, pixels: Any, steps: dict[str, dict[str, Tensor]]) -> None:
    """A row for each method, a column for each step of the cascade."""
    grid = figure.subplots(len(METHODS), len(steps))
    for row, method in zip(grid, METHODS, strict=True):
        row[0].set_ylabel(method, fontsize="small")
        for axes, (step, maps) in zip(row, steps.items(), strict=True):
            axes.imshow(pixels.mean(axis=2), cmap="gray", vmin=0, vmax=1)
            axes.imshow(maps[method].numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.7)
            axes.set(xticks=[], yticks=[])
            if method == METHODS[0]:
                axes.set_title(short(step), fontsize="small")


def draw_curves(figure: Any, check: SanityCheck) -> None:
    """Similarity after each step of the cascade, with 95 % intervals."""
    summary = check.summary().xs("cascading", level="mode").droplevel("layer")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("ssim", "spearman"), strict=True):
        for method in METHODS:
            rows = summary.loc[method]
            places = range(len(rows))
            axes.fill_between(places, rows[f"{name}_low"], rows[f"{name}_high"], alpha=0.2)
            axes.plot(places, rows[name], marker=".", label=method)
        axes.set_xticks(places, [short(step) for step in rows.index], rotation=30, fontsize="small")
        axes.set_title(f"{name} with the map of the trained model, n = {IMAGES}", fontsize="small")
    axes.legend(fontsize="small", loc="upper right", bbox_to_anchor=(1, 0.93))


def short(step: str) -> str:
    """A step's name without the prefix that most steps share."""
    return step.removeprefix("backbone.")


# %%
# The model and the images.

model = xaieval.models.fpn_scenes()
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
loader = scenes(prepare, size=IMAGES).loader(batch_size=15)

# %%
# Similarity is measured after each step. A method whose maps stay similar when all parameters are random does not depend on
# the model.

check = xaieval.sanity_check(model, loader, LAYER, METHODS, modules=MODULES, modes="cascading", progress=False)
print(table(check, xaieval.score(model, loader, LAYER, METHODS, progress=False)).to_string())
print(f"data-independent: {', '.join(method for _, method in check.data_independent)}")

# %%
# One image, step by step.

image = scenes(prepare, size=IMAGES)[SHOWN]["image"][None]
steps = cascade(model, image)
figure = Figure(figsize=(8.4, 7.2), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(1.7, 1))
draw_maps(above, prepare.to_pixels(image)[0].permute(1, 2, 0).numpy(), steps)
draw_curves(below, check)
figure.savefig(folder / "sanity_check.png", dpi=72)
