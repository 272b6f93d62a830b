"""Figures of maps over their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["maps_figure"]

COLOURS = "inferno"  # perceptually uniform, and told apart by people who are colour-blind
CELL = 1.35  # inches


def maps_figure(
    pixels: Float[Tensor, "n 3 h w"],
    maps: Mapping[str, Float[Tensor, "n h w"]],
    titles: Sequence[str] = (),
    subtitle: str = "",
) -> Figure:
    """Images in the left column, and to the right of each its maps laid over it in grey, one column a layer, one colour scale.

    Args:
        pixels: images in [0, 1], `[N, 3, H, W]`.
        maps: by column title, `[N, H, W]` in [0, 1].
        titles: of the rows, N of them.
        subtitle: below the figure.

    Returns:
        A figure that belongs to no window; save it by `savefig`.

    Example:
        >>> import torch
        >>> figure = maps_figure(torch.rand(2, 3, 32, 32), {"layer4": torch.rand(2, 32, 32)})
        >>> len(figure.axes)
        5
    """
    rows, columns = len(pixels), 1 + len(maps)
    figure = Figure(figsize=(CELL * columns + 1.1, CELL * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    shown = None
    for row in range(rows):
        picture = pixels[row].permute(1, 2, 0).numpy()
        grid[row, 0].imshow(picture)
        grid[row, 0].set_ylabel(titles[row] if titles else "", fontsize="small")
        for column, (name, layer_maps) in enumerate(maps.items(), start=1):
            axes = grid[row, column]
            axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=1)
            shown = axes.imshow(layer_maps[row].numpy(), cmap=COLOURS, vmin=0, vmax=1, alpha=0.65)
            if row == 0:
                axes.set_title(name, fontsize="small")
    grid[0, 0].set_title("image", fontsize="small")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    if shown is not None:
        figure.colorbar(shown, ax=grid, label="explanation map", fraction=0.04, shrink=0.8)
    if subtitle:
        figure.supxlabel(subtitle, fontsize="small")
    return figure
