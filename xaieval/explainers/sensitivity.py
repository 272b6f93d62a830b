"""Maps from a sensitivity analysis of the score: Sobol indices, and dependence by HSIC, of the cells of a grid over the image.

Both show all images of all batches the same masks, which depend only on the seed of the run, and neither look inside the model
nor take gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # whose `stats` takes long to import, and is loaded when it is used
import torch
from torch import Tensor
from torch.nn import functional

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context, Wanted, size_of_images
from xaieval.explainers.perturbation import check_wanted, masked_scores

__all__ = ["HSIC", "SENSITIVITY", "Sobol"]


@dataclass(frozen=True)
class Sobol:
    """Total Sobol indices: the share of the score's variance under random masks that involves a cell.

    `S_i = sum_j (f(A_j) - f(C_ij))^2 / (2 n Var f(A))`: A holds n masks of quasi-random numbers in [0, 1], one for each cell,
    and C_i is A with cell i from n other masks. Where no mask changes the score, the map is undefined and becomes NaN.

    Args:
        n_designs: Number n of masks in A, a power of two.
        grid: Cells along each side.
        fill: Value of covered pixels, in the model's input space; 0 is the mean colour of normalised images.
        wanted: "score" (the logit) or "confidence".

    Raises:
        ExplainerError: A number is out of range.

    Reference:
        Fel et al., "Look at the Variance!", NeurIPS 2021 (arXiv 2111.04138), with the estimator of Jansen as in Xplique.

    Example:
        >>> import xaieval
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 5))
        >>> xaieval.explain(model, torch.rand(2, 3, 16, 16), method=Sobol(n_designs=4, grid=4))["input"].shape
        torch.Size([2, 16, 16])
    """

    n_designs: int = 32
    grid: int = 8
    fill: float = 0.0
    wanted: Wanted = "score"
    name: str = "sobol"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = False
    paper: str = "Fel et al. 2021, arXiv 2111.04138"

    def __post_init__(self) -> None:
        if self.n_designs < 2 or self.n_designs & (self.n_designs - 1) or self.grid < 1:
            raise ExplainerError(
                "method 'sobol' takes a power of two of at least 2 for n_designs and a grid of at least 1, got "
                f"n_designs={self.n_designs}, grid={self.grid}"
            )
        check_wanted(self.wanted)

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        return f"{self.n_designs * (self.grid**2 + 1)}, {self.n_designs} per cell and {self.n_designs} more"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, grid, grid]`."""
        size, cells = size_of_images(context, self.name), self.grid**2
        numbers = scipy.stats.qmc.Sobol(2 * cells, rng=np.random.default_rng(context.seed)).random(self.n_designs)
        first, other = torch.from_numpy(numbers).float().to(context.images.device).split(cells, dim=1)

        def masks(start: int, stop: int) -> Tensor:
            numbers = torch.arange(start, stop, device=first.device)
            made, cell = first[numbers % self.n_designs], numbers // self.n_designs - 1  # the first n masks are those of A
            rows = (cell >= 0).nonzero()[:, 0]
            made[rows, cell[rows]] = other[numbers[rows] % self.n_designs, cell[rows]]
            return _cells_to_pixels(made, self.grid, size)

        count = self.n_designs * (cells + 1)
        scores = masked_scores(context, masks, count, self.wanted, self.fill).double().view(cells + 1, self.n_designs, -1)
        changes = (scores[0] - scores[1:]).square().mean(dim=1)
        indices = changes / (2 * scores[0].var(dim=0))
        return indices.T.reshape(-1, self.grid, self.grid).float()


@dataclass(frozen=True)
class HSIC:
    """HSIC: how much the score depends on whether a cell is visible, by the Hilbert-Schmidt independence criterion.

    `tr(K_i H L H) / (n - 1)^2` with `H = I - 1/n`, over n masks of zeros and ones: K_i compares two masks at cell i by
    `1/2 - (x - x')^2`, and L two scores by a Gaussian, its width the median of the scores. Where that median is 0, the map is
    undefined and becomes NaN.

    Args:
        n_masks: Number n of masks.
        grid: Cells along each side.
        fill: Value of covered pixels, in the model's input space; 0 is the mean colour of normalised images.
        wanted: "confidence", or "score" (the logit); the median of logits may be near 0.

    Raises:
        ExplainerError: A number is out of range.

    Reference:
        Novello et al., "Making Sense of Dependence", NeurIPS 2022 (arXiv 2206.06219); the masks are a Latin hypercube,
        the kernels those of Xplique.

    Example:
        >>> import xaieval
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 5))
        >>> xaieval.explain(model, torch.rand(2, 3, 16, 16), method=HSIC(n_masks=50, grid=4))["input"].shape
        torch.Size([2, 16, 16])
    """

    n_masks: int = 500
    grid: int = 8
    fill: float = 0.0
    wanted: Wanted = "confidence"
    name: str = "hsic"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = False
    paper: str = "Novello et al. 2022, arXiv 2206.06219"

    def __post_init__(self) -> None:
        if self.n_masks < 2 or self.grid < 1:
            raise ExplainerError(
                "method 'hsic' takes n_masks of at least 2 and a grid of at least 1, got "
                f"n_masks={self.n_masks}, grid={self.grid}"
            )
        check_wanted(self.wanted)

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        return f"{self.n_masks}, 1 per mask"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, grid, grid]`."""
        size = size_of_images(context, self.name)
        numbers = scipy.stats.qmc.LatinHypercube(self.grid**2, rng=np.random.default_rng(context.seed)).random(self.n_masks)
        shown = torch.from_numpy(numbers > 0.5).float().to(context.images.device)

        def masks(start: int, stop: int) -> Tensor:
            return _cells_to_pixels(shown[start:stop], self.grid, size)

        scores = masked_scores(context, masks, self.n_masks, self.wanted, self.fill).double()
        # Of zeros and ones, 1/2 - (x - x')^2 is 2 x x' and terms of x or x' alone, which centring takes away.
        centred = (shown - shown.mean(dim=0)).double()
        maps = [2 * (centred * (_gaussian(one) @ centred)).sum(dim=0) / (self.n_masks - 1) ** 2 for one in scores.T]
        return torch.stack(maps).view(-1, self.grid, self.grid).float()


def _gaussian(scores: Tensor) -> Tensor:
    """How alike scores `[n]` are, `[n, n]`, in (0, 1]."""
    width = scores.quantile(0.5)
    return (-(scores[:, None] - scores).square() / (2 * width**2)).exp()


def _cells_to_pixels(cells: Tensor, grid: int, size: tuple[int, int]) -> Tensor:
    """Masks `[G, H, W]` of the values of cells, `[G, grid * grid]`."""
    return functional.interpolate(cells.view(-1, 1, grid, grid), size, mode="nearest")[:, 0]


SENSITIVITY = (Sobol(), HSIC())
