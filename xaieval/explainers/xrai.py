"""XRAI: integrated gradients, averaged over the regions of several segmentations of the image."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context, size_of_images
from xaieval.explainers.gradient_paths import path_attribution
from xaieval.inference.reproducibility import ONE_AT_A_TIME

__all__ = ["REGIONS", "XRAI", "rank_regions"]

SIGMA = 0.8  # of the blur before the segmentation
LEAST = 150  # pixels of a region
DILATION = 5  # pixels by which a region grows, so that it has the edge around it


@dataclass(frozen=True)
class XRAI:
    """XRAI: regions in the order of the mean attribution that each adds to those before, which is their value on the map.

    The attribution is the mean of integrated gradients from two baselines, the lowest and the highest value of the image; of
    the channels it takes the largest. Regions come from Felzenszwalb's segmentation at six scales, each grown by 5 pixels.
    Pixels that no region adds have their mean attribution.

    Args:
        steps: Steps of each of the two integrations, one pass each.
        min_pixels: Regions that add fewer pixels are left out.
        scales: Scales of the segmentations; larger ones make larger regions.
        side: Height and width of the image while it is segmented, which the scales are made for.

    Raises:
        ExplainerError: A number is out of range, or scikit-image is not installed; when called: the images are volumes.

    Reference:
        Kapishnikov et al., "XRAI: Better Attributions Through Regions", ICCV 2019 (arXiv 1906.02825), algorithm 1, with the
        defaults of the authors' package `saliency`.

    Example:
        >>> import xaieval
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> xaieval.explain(model, torch.rand(2, 3, 24, 24), method=XRAI(steps=5))["input"].shape
        torch.Size([2, 24, 24])
    """

    steps: int = 100
    min_pixels: int = 50
    scales: tuple[float, ...] = (50, 100, 150, 250, 500, 1200)
    side: int = 224
    name: str = "xrai"
    needs_layer: bool = False
    needs_gradient: bool = False
    takes_gradients: bool = True
    paper: str = "Kapishnikov et al. 2019, arXiv 1906.02825"

    def __post_init__(self) -> None:
        if self.steps < 2 or min(self.min_pixels, self.side) < 1 or not self.scales or min(self.scales) <= 0:
            raise ExplainerError(
                "method 'xrai' takes steps of at least 2, min_pixels and side of at least 1, and positive scales, got "
                f"steps={self.steps}, min_pixels={self.min_pixels}, side={self.side}, scales={self.scales}"
            )

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        return str(2 * self.steps)

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, H, W]`."""
        size_of_images(context, self.name)
        segment = self._segmenter()
        attributions = self._integrated_gradients(context).amax(dim=1)
        maps = []
        for image, attribution in zip(context.images, attributions, strict=True):
            if attribution.isfinite().all():
                regions = torch.from_numpy(segment(image.detach().double().cpu().movedim(0, -1).numpy()))
                attribution = rank_regions(attribution, regions.to(attribution.device), self.min_pixels)
            maps.append(attribution)
        return torch.stack(maps)

    def _integrated_gradients(self, context: Context) -> Tensor:
        """The mean from both baselines, `[N, C, H, W]`."""
        images = context.images
        inside = tuple(range(1, images.ndim))
        ends = torch.stack([images.amin(dim=inside), images.amax(dim=inside)]).view(2, -1, 1, 1, 1)

        def step(numbers: Tensor) -> tuple[Tensor, Tensor]:
            starts, along = ends[numbers // self.steps], (numbers % self.steps / (self.steps - 1)).to(images.dtype)
            return starts + along.view(-1, 1, 1, 1, 1) * (images - starts), (images - starts) / (2 * self.steps)

        return path_attribution(context, 2 * self.steps, step)

    def _segmenter(self) -> Any:
        """A function from an image `[H, W, C]` to its regions `[R, H, W]`.

        Raises:
            ExplainerError: scikit-image is not installed.
        """
        try:
            from skimage.morphology import dilation, disk
            from skimage.segmentation import felzenszwalb
            from skimage.transform import resize
        except ImportError as error:
            raise ExplainerError("method 'xrai' needs scikit-image: pip install 'xaieval[segments]'") from error

        def segment(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            scaled = (image - image.min()) / (np.ptp(image) or 1) * 2 - 1
            large = resize(scaled, (self.side, self.side), order=3, mode="constant", anti_aliasing=True)
            regions = []
            for scale in self.scales:
                with ONE_AT_A_TIME, warnings.catch_warnings():  # the filters of warnings are those of all threads
                    warnings.filterwarnings("ignore", message="Got image with third dimension")
                    numbers = felzenszwalb(large, scale=scale, sigma=SIGMA, min_size=LEAST)
                numbers = resize(numbers, image.shape[:2], order=0, preserve_range=True, mode="constant", anti_aliasing=False)
                regions += [dilation(numbers == number, disk(DILATION)) for number in np.unique(numbers)]
            return np.stack(regions)

        return segment


REGIONS = (XRAI(),)


def rank_regions(attribution: Tensor, regions: Tensor, min_pixels: int = 1) -> Tensor:
    """Give each region the mean attribution of the pixels that it adds, the region of the largest mean first.

    Args:
        attribution: `[H, W]`.
        regions: Which pixels belong to each region, `[R, H, W]`; regions may overlap.
        min_pixels: Regions that add fewer pixels are left out; pixels of no region have their own mean.

    Returns:
        The map `[H, W]`.

    Example:
        Two regions overlap in the middle pixel, which belongs to the stronger one:

        >>> rank_regions(torch.tensor([[1.0, 3.0, 4.0]]), torch.tensor([[[True, True, False]], [[False, True, True]]]))
        tensor([[1.0000, 3.5000, 3.5000]])
    """
    values, inside = attribution.double().flatten(), regions.flatten(1).clone()
    sums, counts = inside.double() @ values, inside.sum(dim=1)
    ranked, free = torch.empty_like(values), torch.ones_like(values, dtype=torch.bool)
    while True:
        means = torch.where(counts >= min_pixels, sums / counts, -torch.inf)
        best = means.argmax() if len(means) else None
        if best is None or means[best] == -torch.inf:
            break
        added = inside[best].nonzero()[:, 0]
        ranked[added] = means[best]
        free[added] = False
        taken = inside[:, added]
        sums, counts = sums - taken.double() @ values[added], counts - taken.sum(dim=1)  # each pixel is taken away once
        inside[:, added] = False
    ranked[free] = values[free].mean()
    return ranked.view_as(attribution).to(attribution.dtype)
