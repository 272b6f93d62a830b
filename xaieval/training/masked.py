"""Training on masked images, for a network that is to judge masked images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from xaieval.errors import UsageError

__all__ = ["mask_cells", "masked_loss"]

GRIDS = (2, 4, 7, 14)  # cells along each side


def mask_cells(images: Float[Tensor, "n c h w"], most: float = 1.0, grids: Sequence[int] = GRIDS) -> Float[Tensor, "n c h w"]:
    """Set random cells of each image to 0, which is the mean colour of normalised images.

    Every second image, by chance, stays whole. Of the others, a share of the cells that is uniform between 0 and `most` is
    removed; the grid of a batch is drawn among `grids`. Random numbers are those of torch on the CPU.

    Args:
        images: Images, `[N, C, H, W]`, normalised.
        most: Largest expected share of the cells that an image loses, in (0, 1].
        grids: Numbers of cells along each side.

    Raises:
        UsageError: `most` is out of range, or there is no grid.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> mask_cells(torch.ones(4, 1, 8, 8), grids=[4]).mean(dim=(1, 2, 3))
        tensor([1.0000, 0.8750, 1.0000, 0.6875])
    """
    if not 0 < most <= 1:
        raise UsageError(f"most is a share of the cells, in (0, 1], got {most}")
    if not grids or min(grids) < 1:
        raise UsageError(f"grids are numbers of cells along a side, each at least 1; got {list(grids)}")
    side = grids[int(torch.randint(len(grids), ()))]
    shares = most * torch.rand(len(images)) * (torch.rand(len(images)) < 0.5)
    kept = torch.rand(len(images), 1, side, side) >= shares.view(-1, 1, 1, 1)
    cells = functional.interpolate(kept.to(images.dtype), images.shape[2:], mode="nearest-exact")
    return images * cells.to(images.device)


def masked_loss(
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor], most: float = 1.0, grids: Sequence[int] = GRIDS
) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """A loss on images whose cells are masked at random, for `fit(loss=...)`; `fit(masked=True)` is the same with the defaults.

    Metrics of masked images measure two things: what the mask leaves, and how well the network bears a masked image. A network
    that has seen masked images in training bears them better, so it can be the `judge` of `xaieval.score`.

    Args:
        loss: Function of model, images and labels that returns a scalar.
        most: As in `mask_cells`.
        grids: As in `mask_cells`.

    Reference:
        Zheng et al., "F-Fidelity", 2024 (arXiv 2410.02970), and Hesse et al., "Benchmarking the Attribution Quality of Vision
        Models" (IDSDS), NeurIPS 2024 (arXiv 2407.11910): networks that are fine-tuned on masked images judge explanations.
        Shares and grids are our own choice.

    Example:
        >>> from xaieval.training import cross_entropy
        >>> model, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), torch.rand(4, 3, 4, 4)
        >>> masked_loss(cross_entropy, grids=[2])(model, images, torch.tensor([0, 1, 1, 0])).ndim
        0
    """

    def judged(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return loss(model, mask_cells(images, most, grids), labels)

    return judged
