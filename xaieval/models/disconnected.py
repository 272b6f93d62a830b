"""Classifiers of mosaics with independent or almost independent cells, so that it is known where relevance is wrong."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from xaieval.errors import ModelError

__all__ = ["DisconnectedCells"]


class DisconnectedCells(nn.Module):
    """A classifier with a head for each cell of a mosaic (DiFull, and DiPart).

    Every cell passes separately through the same features and the same head. The outputs of all heads are concatenated, so
    class k of the cell at a place, counted row by row, is output `place * classes + k`. No pixel of another cell can change it,
    so relevance in other cells is wrong, whatever the model has learned. Use a protocol with a confidence of its own for each
    output ("identity" or "sigmoid"): a softmax over all outputs would connect the cells again.

    Args:
        features: From images to maps `[N, D, h, w]`, such as the convolutions of a network. `nn.Identity()` leaves the whole
            model to `head`, which any model allows; only methods that explain the input can then be compared.
        head: From these maps to scores `[N, classes]`.
        side: Cells along a side of the mosaics.
        partly: The features see the whole mosaic, and only the heads are separate (DiPart): near its borders a cell is seen by
            the heads of its neighbours, as far as receptive fields reach. Default: each cell has features of its own (DiFull).

    Attributes:
        stitched: The layer at which the features of all cells lie side by side, as the cells do in the image: explain it by
            methods that take a layer.

    Raises:
        ModelError: When it runs: the sides of the images or of the features are no multiple of `side`.

    Reference:
        Rao et al., "Towards Better Understanding Attribution Methods", CVPR 2022 (arXiv 2205.10435), DiFull and DiPart.

    Example:
        >>> import torch
        >>> net = DisconnectedCells(nn.Conv2d(3, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), side=2)
        >>> net(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5, 16])
    """

    def __init__(self, features: nn.Module, head: nn.Module, side: int = 2, partly: bool = False) -> None:
        super().__init__()
        self.features, self.head, self.side, self.partly = features, head, side, partly
        self.stitched = nn.Identity()

    def forward(self, images: Float[Tensor, "n c height width"]) -> Float[Tensor, "n outputs"]:
        """Return the scores of all classes at all cells."""
        maps = self.features(images) if self.partly else self._join(self.features(self._split(images)))
        scores = self.head(self._split(self.stitched(maps)))
        return scores.reshape(len(images), -1)

    def _split(self, whole: Tensor) -> Tensor:
        """The cells of each image as images, `[N * cells, C, H, W]`."""
        count, channels, height, width = whole.shape
        side = self.side
        if height % side or width % side:
            raise ModelError(
                f"mosaics of {side} x {side} cells have sides that are multiples of {side}; got {height} x {width}"
            )
        cells = whole.reshape(count, channels, side, height // side, side, width // side)
        return cells.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // side, width // side)

    def _join(self, cells: Tensor) -> Tensor:
        """The reverse of `_split`."""
        side = self.side
        _, channels, height, width = cells.shape
        rows = cells.reshape(-1, side, side, channels, height, width).permute(0, 3, 1, 4, 2, 5)
        return rows.reshape(-1, channels, side * height, side * width)
