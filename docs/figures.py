"""The figures and numbers of concepts.md, from runs of the built-in model on generated scenes.

    python docs/figures.py [FOLDER] [IMAGES]

writes four PNG files and numbers.csv into the folder (default: docs/concepts), from 200 images by default. Takes about three
minutes on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.explainers import Context
from xaieval.explainers.cam import grad_cam
from xaieval.metrics import deletion

FULL = 200
PREPARE = Preprocessing(image_size=128, resize=128, mean=(0.5,) * 3, std=(0.5,) * 3)
BOTH = ("average_drop", "increase_in_confidence")
EXPONENTS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1)
PROTOCOLS = {
    "default": xaieval.Protocol(),
    "fill: black": xaieval.Protocol(fill="black", mean=PREPARE.mean, std=PREPARE.std),
    "fill: blur": xaieval.Protocol(fill="blur"),
    "fill: mean": xaieval.Protocol(fill="mean"),
    "keep the top half": xaieval.Protocol(masking="top", keep_percent=50),
    "keep the top 15 %": xaieval.Protocol(masking="top", keep_percent=15),
    "not divided by Y": xaieval.Protocol(denominator="none"),
}
SHOWN = ("gradcam", "center", "random", "fake-cam")


@dataclass(frozen=True)
class Stretched:
    """Grad-CAM to a power: the same order of pixels in a larger or smaller map."""

    exponent: float
    needs_layer: bool = True
    needs_gradient: bool = True
    needs_model: bool = False

    @property
    def name(self) -> str:
        """Name with the exponent."""
        return f"gradcam^{self.exponent:g}"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        maps = grad_cam(context.activation, context.gradient)
        low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
        return ((maps - low) / (high - low)).nan_to_num() ** self.exponent  # a constant map becomes zeros


def main(folder: Path, images: int) -> None:
    """Draw the figures and write the numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {}
    for draw in (two_numbers, map_size, fooled, choices):
        figure, tables[draw.__name__] = draw(images)
        figure.savefig(folder / f"{draw.__name__}.png", dpi=95)
    numbers = pd.concat(tables, names=["figure", "what"])
    print(numbers.round(2).to_string())
    numbers.round(4).to_csv(folder / "numbers.csv")


def scored(images: int, layer: str, methods: Iterable[Any], metrics: Iterable[Any] = BOTH, **options: Any) -> xaieval.Scores:
    """Score the built-in model on the first images of the test split."""
    loader = scenes(PREPARE, size=images).loader(batch_size=20)
    model = xaieval.models.fpn_scenes()
    return xaieval.score(model, loader, [layer], list(methods), list(metrics), progress=False, **options)


def two_numbers(images: int) -> tuple[Figure, pd.DataFrame]:
    """The image that loses most confidence when masked by its map, and the one that gains most."""
    layer = "fpn[p4]"
    scores = scored(images, layer, ["gradcam"])
    rows = scores.rows
    change = (rows["masked_confidence"] - rows["confidence"]) / rows["confidence"]
    figure = Figure(figsize=(7.2, 5), layout="constrained")
    grid = figure.subplots(2, 3)
    for line, row in zip(grid, (int(change.argmin()), int(change.argmax())), strict=True):
        _draw_example(line, layer, rows.iloc[row])
    return figure, _numbers(scores, {"gradcam": "gradcam at fpn[p4]"})


def _draw_example(line: Iterable[Axes], layer: str, row: pd.Series) -> None:
    """Image, map and masked image, with their confidences in the titles."""
    image, saliency = _example(str(row["image_id"]), layer, "gradcam", int(row["target"]))
    y, o = row["confidence"], row["masked_confidence"]
    ic = "yes" if o > y else "no"
    titles = (
        f"image, Y = {y:.2f}",
        "its map",
        f"masked by the map, O = {o:.2f}\ndrop {100 * max(0, y - o) / y:.0f} %, increase: {ic}",
    )
    shown = (image, saliency, image * saliency)
    for axes, image, title in zip(line, shown, titles, strict=True):
        _show(axes, image, title)


def map_size(images: int) -> tuple[Figure, pd.DataFrame]:
    """Maps with the same order of pixels and different sizes: Average Drop follows the size."""
    scores = scored(images, "fpn[p3]", [Stretched(exponent) for exponent in EXPONENTS], (*BOTH, deletion(steps=8)))
    table = _numbers(scores, {Stretched(exponent).name: f"map to the power {exponent:g}" for exponent in EXPONENTS})
    areas = scores.rows.groupby("method", sort=False)["mask_area"].mean()
    table["mask_area"] = 100 * areas.loc[[Stretched(exponent).name for exponent in EXPONENTS]].to_numpy()
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for metric, label in zip((*BOTH, "deletion"), ("AD %", "IC %", "100 x deletion"), strict=True):
        scale = 100 if metric == "deletion" else 1
        means = scale * table[metric]
        ends = [means - scale * table[f"{metric}_low"], scale * table[f"{metric}_high"] - means]
        axes.errorbar(table["mask_area"], means, yerr=ends, marker="o", capsize=3, label=label)
    axes.set(xlabel="mean of the map, percent", ylabel=f"with 95 % intervals, n = {images}", ylim=(0, None))
    axes.legend()
    return figure, table


def fooled(images: int) -> tuple[Figure, pd.DataFrame]:
    """Grad-CAM and three maps that do not depend on the model, with their scores."""
    scores = scored(images, "fpn[p5]", SHOWN, (*BOTH, "average_gain", "adcc"))
    table = _numbers(scores, {name: name for name in SHOWN})
    row = scores.rows.iloc[0]
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    grid = figure.subplots(2, len(SHOWN))
    for axes, method in zip(grid.T, SHOWN, strict=True):
        image, saliency = _example(str(row["image_id"]), "fpn[p5]", method, int(row["target"]))
        means = table.loc[method]
        _show(axes[0], saliency, method)
        _show(axes[1], image * saliency, "")
        axes[1].set_xlabel(
            f"AD {means['average_drop']:.1f}, IC {means['increase_in_confidence']:.1f}\n"
            f"AG {means['average_gain']:.1f}, ADCC {means['adcc']:.1f}",
            fontsize="small",
        )
    return figure, table


def choices(images: int) -> tuple[Figure, pd.DataFrame]:
    """One method at one layer under several protocols."""
    tables = {
        name: _numbers(scored(images, "fpn[p4]", ["gradcam"], protocol=protocol), {"gradcam": name})
        for name, protocol in PROTOCOLS.items()
    }
    table = pd.concat(tables.values())
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    for axes, metric, label in zip(figure.subplots(1, 2, sharey=True), BOTH, ("AD %", "IC %"), strict=True):
        ends = [table[metric] - table[f"{metric}_low"], table[f"{metric}_high"] - table[metric]]
        axes.barh(range(len(table)), table[metric], xerr=ends, color="0.7", ecolor="0.2", capsize=3)
        axes.set(yticks=range(len(table)), yticklabels=table.index, xlabel=f"{label}, 95 % intervals")
    axes.invert_yaxis()  # of both, which share it
    return figure, table


def _numbers(scores: xaieval.Scores, names: Mapping[str, str]) -> pd.DataFrame:
    """The summary with a row for each method, with readable names."""
    table = scores.summary().droplevel("layer").loc[list(names)].rename(index=dict(names))
    return table.drop(columns=["n_failed"])


def _example(image_id: str, layer: str, method: str, target: int) -> tuple[Tensor, Tensor]:
    """An image and its map."""
    index = int(image_id.split("/")[-1])
    image = scenes(PREPARE, size=index + 1)[index]["image"]
    maps = xaieval.explain(xaieval.models.fpn_scenes(), image[None], [layer], method, target, ids=[image_id])
    return image, next(iter(maps.values()))[0]


def _show(axes: Axes, image: Tensor, title: str) -> None:
    """An image, or a map."""
    if image.ndim == 3:
        axes.imshow(PREPARE.to_pixels(image[None])[0].permute(1, 2, 0).clamp(0, 1).numpy())
    else:
        axes.imshow(image.numpy(), cmap="inferno", vmin=0, vmax=1)
    axes.set_title(title, fontsize="small")
    axes.set(xticks=[], yticks=[])


if __name__ == "__main__":
    torch.manual_seed(0)
    words = sys.argv[1:]
    main(Path(words[0]) if words else Path(__file__).parent / "concepts", int(words[1]) if len(words) > 1 else FULL)
