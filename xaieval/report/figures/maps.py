"""Figures of explanation maps over their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from xaieval.data.preprocessing import Preprocessing
from xaieval.errors import DataError
from xaieval.report.figures.map_colours import COLOURS, OPAQUE
from xaieval.report.figures.overlays import check_maps, to_pixels
from xaieval.report.figures.slices import Slices, check_slices, strips
from xaieval.report.figures.style import Size, font_points, new_figure, plain, text_inches

__all__ = ["grid_figure", "maps_figure", "show"]

CELL = 1.35  # inches, the width of an image if no size is given
WIDE, WIDE_CELLS = 2, 4  # how much wider than high an image is below which its maps stand; its width in those of others


def show(
    images: Tensor,
    maps: Mapping[str, Tensor] | Tensor,
    titles: Sequence[str] = (),
    subtitle: str = "",
    *,
    preprocessing: Preprocessing | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bands: Sequence[int] | None = None,
    slices: Slices | None = None,
    colours: str = COLOURS,
    size: Size = None,
) -> Figure:
    """Draw images in the left column and their explanation maps over them in the others, with one colour bar.

    Volumes `[N, C, D, H, W]` are drawn as a row of slices each, with their maps over the same slices below.

    Args:
        images: Images `[N, 3, H, W]` or `[N, 1, H, W]` in [0, 1], or model inputs with `preprocessing`, or with `mean` and
            `std`. Of images with other numbers of channels, in any unit, some channels are shown; see `bands`. Also volumes
            `[N, C, D, H, W]`; scans of one channel can be in any unit.
        maps: Maps `[N, H, W]` (for volumes `[N, D, H, W]`) in [0, 1]: one tensor, or a mapping from layers to tensors as
            `xaieval.explain` returns.
        titles: Titles of the N rows; if one is too long for its row, its end is shown.
        subtitle: Text below the figure.
        preprocessing: The preprocessing of the images, whose normalisation is undone.
        mean: Mean of the normalisation per channel, instead of `preprocessing`.
        std: Standard deviation of the normalisation per channel.
        bands: The channels shown as red, green and blue, from 0, or one that is shown in grey. Default: the first three; of one
            or two channels, the first. Images with other numbers of channels than 1 and 3 are stretched from black to white.
        slices: What is shown of volumes: "frames", six of a video, evenly spaced; "planes", three orthogonal slices through the
            voxel that is brightest in the mean of the maps; "anatomy", the same upright and named axial, coronal and sagittal
            by radiologists, of scans whose axes lead to the right, to the front and up (RAS, as `xaieval.data.scan_folder` and
            MONAI give them). Default: frames of volumes of three channels, else planes. Voxels are drawn as squares.
        colours: Name of a matplotlib colour map.
        size: Width, or width and height, in inches.

    Returns:
        A new figure that is not shown in a window; a notebook displays it, `savefig` or `xaieval.report.save_figure` saves it.

    Raises:
        DataError: Images, maps and titles do not match in number or size, or values are not in [0, 1].
        UsageError: The size is not positive.

    Example:
        >>> import torch
        >>> figure = show(torch.rand(2, 3, 32, 32), {"layer4": torch.rand(2, 32, 32)}, titles=["cat", "dog"])
        >>> [axes.get_title() for axes in figure.axes][:2]
        ['image', 'layer4']
    """
    pixels = to_pixels(images, preprocessing, mean, std, bands)
    named = {"map": maps} if isinstance(maps, Tensor) else maps
    if not named:
        raise DataError("there are no maps to show; pass {layer: maps [N, H, W]}, as xaieval.explain returns")
    fitting: Mapping[str, Tensor] = {name: check_maps(name, values, images) for name, values in named.items()}
    if titles and len(titles) != len(pixels):
        raise DataError(f"{len(titles)} titles for {len(pixels)} images; pass one title per image, or none")
    if images.ndim == 5:
        pixels, fitting = strips(pixels, fitting, check_slices(slices, images.shape[1]))
    return maps_figure(pixels, fitting, titles, subtitle, colours=colours, size=size)


def maps_figure(
    pixels: Float[Tensor, "n 3 h w"],
    maps: Mapping[str, Float[Tensor, "n h w"]],
    titles: Sequence[str] = (),
    subtitle: str = "",
    *,
    colours: str = COLOURS,
    size: Size = None,
) -> Figure:
    """Draw images in the left column and their maps over them in grey in the others, one column per layer, one colour scale.

    Maps of images that are more than twice as wide as high, such as frames side by side, stand below them instead.

    `xaieval.show` accepts more kinds of images, and checks its arguments.

    Args:
        pixels: Images in [0, 1], `[N, 3, H, W]`.
        maps: Maps `[N, H, W]` in [0, 1] by title of their column.
        titles: Titles of the N rows.
        subtitle: Text below the figure.
        colours: Name of a matplotlib colour map.
        size: Width, or width and height, in inches.

    Returns:
        A new figure that is not shown in a window.

    Raises:
        UsageError: The size is not positive.

    Example:
        >>> import torch
        >>> figure = maps_figure(torch.rand(2, 3, 32, 32), {"layer4": torch.rand(2, 32, 32)})
        >>> len(figure.axes)
        5
    """
    wide = pixels.shape[3] > WIDE * pixels.shape[2]
    columns, names = (1 if wide else 1 + len(maps)), ["image", *maps]
    figure = new_figure(size, CELL * (WIDE_CELLS if wide else columns) + 1.1, layout="compressed")
    grid = figure.subplots(len(pixels) * len(names) // columns, columns, squeeze=False).reshape(len(pixels), len(names))
    shown: Any = None
    for row in range(len(pixels)):
        picture = pixels[row].permute(1, 2, 0).numpy()
        grid[row, 0].imshow(picture)
        for axes, layer_maps in zip(grid[row, 1:], maps.values(), strict=True):
            shown = _draw_map(axes, picture, layer_maps[row], colours)
    width = (figure.get_figwidth() - 1.1) / columns
    height = width * pixels.shape[2] / pixels.shape[3]
    _add_scale(figure, grid, shown, grid.size // columns * height)
    if wide:
        _name_stacks(grid, names, titles, height)
    else:
        _name_columns(list(grid[0]), names, width)
        _name_rows(list(grid[:, 0]), titles, height)
    _end(figure, subtitle, size)
    return figure


def grid_figure(
    pixels: Float[Tensor, "3 h w"],
    maps: Mapping[tuple[str, str], Float[Tensor, "h w"]],
    subtitle: str = "",
    *,
    colours: str = COLOURS,
    size: Size = None,
) -> Figure:
    """Draw an image on the left, and its maps over it in grey as a grid: a column per layer, a row per method.

    Of an image that is more than twice as wide as high, such as frames side by side, the maps stand below it instead.

    Args:
        pixels: An image in [0, 1], `[3, H, W]`.
        maps: Maps `[H, W]` in [0, 1] by layer and method, as `xaieval.explain` names them. A place without a map stays empty.
        subtitle: Text below the figure.
        colours: Name of a matplotlib colour map.
        size: Width, or width and height, in inches.

    Returns:
        A new figure that is not shown in a window.

    Raises:
        UsageError: The size is not positive.

    Example:
        >>> import torch
        >>> pairs = [(layer, method) for layer in ("layer3", "layer4") for method in ("gradcam", "layercam")]
        >>> figure = grid_figure(torch.rand(3, 32, 32), {pair: torch.rand(32, 32) for pair in pairs})
        >>> [axes.get_title() for axes in figure.axes][:3], figure.axes[1].get_ylabel()
        (['image', 'layer3', 'layer4'], 'gradcam')
    """
    if pixels.shape[2] > WIDE * pixels.shape[1]:
        stack = {", ".join(pair): one[None] for pair, one in maps.items()}
        return maps_figure(pixels[None], stack, (), subtitle, colours=colours, size=size)
    layers, methods = (list(dict.fromkeys(pair[place] for pair in maps)) for place in (0, 1))
    figure = new_figure(size, CELL * (1 + len(layers)) + 1.1, layout="compressed")
    grid = figure.subplots(len(methods), 1 + len(layers), squeeze=False)
    picture: Any = pixels.permute(1, 2, 0).numpy()
    shown: Any = None
    for (row, method), (column, layer) in product(enumerate(methods), enumerate(["", *layers])):
        if (layer, method) in maps:
            shown = _draw_map(grid[row, column], picture, maps[layer, method], colours)
        else:
            is_image = row == column == 0
            grid[row, column].imshow(picture if is_image else np.ones_like(picture))  # which keeps the cell's shape
            grid[row, column].spines[:].set_visible(is_image)
    width = (figure.get_figwidth() - 1.1) / (1 + len(layers))
    height = width * pixels.shape[1] / pixels.shape[2]
    _add_scale(figure, grid, shown, len(methods) * height)
    _name_columns(list(grid[0]), ["image", *layers], width)
    _name_rows(list(grid[:, 1]), methods, height)
    _end(figure, subtitle, size)
    return figure


def _draw_map(axes: Axes, picture: Any, one: Tensor, colours: str) -> Any:
    """Draw a map over its image in grey; returns what a colour bar is of."""
    axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=1)
    return axes.imshow(one.numpy(), cmap=colours, vmin=0, vmax=1, alpha=OPAQUE)


def _add_scale(figure: Figure, grid: Any, shown: Any, height: float) -> None:
    """Draw the colour bar beside all cells, which stand as high as this, and remove their ticks."""
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.xaxis.set_visible(False)  # so that the layout does not measure it
        axes.yaxis.set_visible(False)
    if shown is not None:
        bar = figure.colorbar(shown, ax=grid, fraction=0.04, shrink=0.8)
        fits = text_inches("explanation map", font_points("small")) < 0.8 * height
        bar.set_label("explanation map" if fits else "map", fontsize="small")


def _end(figure: Figure, subtitle: str, size: Size) -> None:
    """Fit the height of a figure to what is drawn, unless it is given, and write the text below it."""
    if not isinstance(size, tuple):
        layout: Any = figure.get_layout_engine()
        layout.execute(figure)
        figure.set_figheight(figure.get_tightbbox().height + (0.35 if subtitle else 0.1))
        layout.execute(figure)  # once more at the new height, until nothing is cut off
    if subtitle:
        figure.supxlabel(plain(subtitle, int(12 * figure.get_figwidth())), fontsize="small")


def _name_stacks(grid: Any, names: Sequence[str], titles: Sequence[str], height: float) -> None:
    """Write the names beside the cells, and the title of each stack above it."""
    for stack, title in zip(grid, titles or [""] * len(grid), strict=True):
        _name_rows(list(stack), names, height)
        if title:
            stack[0].set_title(plain(title), fontsize="small")


def _name_columns(top: Sequence[Axes], names: Sequence[str], width: float) -> None:
    """Write titles above the columns, rotated if they do not fit side by side."""
    points = font_points("small")
    broken = [plain(name, 16) for name in names]
    upright = max(text_inches(name, points) for name in broken) > 0.95 * width
    for axes, lying, name in zip(top, broken, names, strict=True):
        axes.set_title(plain(name) if upright else lying, fontsize="small", rotation=90 if upright else 0)


def _name_rows(left: Sequence[Axes], names: Sequence[str], height: float) -> None:
    """Write titles beside the rows, horizontally if they are longer than an image is high; of longer ones only the end."""
    points = font_points("small")
    broken = [plain(name, 16) for name in names]
    lying = max((text_inches(name, points) for name in broken), default=0) > 0.95 * height
    fitting = max(1, int(72 * height / (1.3 * points)))
    for axes, name in zip(left, broken, strict=False):
        lines = name.split("\n")
        text = name if len(lines) <= fitting else "\u2026" + "\n".join(lines[-fitting:])
        side: Any = {"rotation": 0, "ha": "right", "va": "center"} if lying else {}
        axes.set_ylabel(text, fontsize="small", **side)
        axes.yaxis.set_visible(True)
