"""D-CLOSE: what a detection depends on, from random masks of superpixels at several levels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from xaieval.errors import ExplainerError, UsageError
from xaieval.explainers.base import Context, check_detector, size_of_images
from xaieval.inference.detections import overlap, similarity
from xaieval.inference.reproducibility import seed_from
from xaieval.inference.tasks import Followed
from xaieval.masking.segments import slic_segments

__all__ = ["DCLOSE", "SegmentMasks", "fused"]

MASKS_AT_ONCE = 64  # made at a time: a mask takes the memory of a channel of the image


@dataclass(frozen=True)
class DCLOSE:
    """D-CLOSE: means of random masks at several levels of superpixels, weighted by the best match, and multiplied together.

    At each level a mask shows about half of the superpixels. It is enlarged and cropped at a random place, and weighted by how
    well the detections on the masked image match the explained one. The map of a level is `sum_m w_m M_m / sum_m M_m` over its
    masks `M_m` with the weights `w_m`, scaled to [0, 1]. Levels are joined from the finest to the coarsest one: the map so far
    plus that of the level, times that of the level.

    The weight is the largest product of the boxes' intersection over union, `exp(-d^2 / (2 * width^2))` with the cosine
    distance d of the class probabilities, and the objectness, among boxes of the same class. Where detections give the score
    of one class only, as in torchvision, it is the intersection over union times the score, as in `DRISE`.

    Args:
        n_masks: Number of masks, of all levels together.
        segments: About how many superpixels the coarsest level has; each further one has twice as many.
        levels: Number of levels.
        probability: Probability, in (0, 1), that a superpixel is visible.
        resize: By what share of its sides a mask is enlarged before it is cropped; 0 keeps superpixels in their places.
        width: Width of the kernel of class probabilities.

    Raises:
        ExplainerError: A number is out of range; when called: the model is no detector, the images are volumes, or scikit-image
            is not installed.

    Reference:
        Truong et al., "Towards Better Explanations for Object Detection", ACML 2023 (arXiv 2306.02744), with the formulas and
        numbers of the authors' script. There a draw of superpixels is cropped at 32 places; here each mask has its own draw.

    Example:
        >>> DCLOSE(n_masks=100).passes
        '100, 1 per mask'
    """

    n_masks: int = 4000
    segments: int = 150
    levels: int = 5
    probability: float = 0.5
    resize: float = 2.2
    width: float = 0.25
    name: str = "d-close"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = False
    paper: str = "Truong et al. 2023, arXiv 2306.02744"

    def __post_init__(self) -> None:
        counts = self.levels >= 1 and self.segments >= 1 and self.n_masks >= self.levels
        if not counts or not 0 < self.probability < 1 or not 0 <= self.resize < math.inf or not 0 < self.width < math.inf:
            raise ExplainerError(
                "method 'd-close' takes levels and segments of at least 1, at least one mask for each level, a probability in "
                f"(0, 1), a resize of 0 or more and a positive width, got n_masks={self.n_masks}, segments={self.segments}, "
                f"levels={self.levels}, probability={self.probability}, resize={self.resize}, width={self.width}"
            )

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        return f"{self.n_masks}, 1 per mask"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, H, W]`."""
        check_detector(context, self.name, "rise")
        size_of_images(context, self.name)
        images, masks = context.images, self._masks(context)
        levels = [(number, at, of) for number, of_image in enumerate(masks) for at, of in enumerate(of_image)]
        parts = [(number, at, start) for number, at, of in levels for start in of.starts()]

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            for number, at, start in parts:
                shown = masks[number][at].make(start)[:, None].to(images.dtype)
                yield images[number] * shown, torch.full((len(shown),), number, device=images.device)

        weights = context.ask(blocks(), partial(_weights, width=self.width), total=self.n_masks * len(images))
        found = torch.zeros(len(images), self.levels, *images.shape[2:], device=images.device)
        density, first = torch.zeros_like(found), 0
        for number, at, start in parts:
            some = masks[number][at].make(start)
            found[number, at] += torch.einsum("m,mhw->hw", weights[first : first + len(some)].float(), some)
            density[number, at] += some.sum(dim=0)
            first += len(some)
        return fused(found / torch.where(density > 0, density, 1))

    def _masks(self, context: Context) -> list[list[SegmentMasks]]:
        """The masks of each image at each level."""
        labels = [self._segments(context.images, self.segments * 2**level) for level in range(self.levels)]
        counts = [self.n_masks // self.levels + (level < self.n_masks % self.levels) for level in range(self.levels)]

        def draw(number: int, level: int) -> SegmentMasks:
            seed = seed_from(context.seed, context.ids[number], f"{self.name} {level}")
            return SegmentMasks.draw(labels[level][number], counts[level], self.probability, self.resize, seed)

        return [[draw(number, level) for level in range(self.levels)] for number in range(len(context.images))]

    def _segments(self, images: Tensor, count: int) -> Tensor:
        try:
            return slic_segments(images, count, sigma=1.0)
        except UsageError as error:
            raise ExplainerError("method 'd-close' needs scikit-image: pip install 'xaieval[segments]'") from error


@dataclass(frozen=True)
class SegmentMasks:
    """Random masks of superpixels, enlarged and cropped, made when needed.

    Attributes:
        labels: The number of the superpixel of each pixel, `[H, W]`.
        shown: Which superpixels each mask shows, `[M, S]`.
        corners: Where each mask is cropped, in pixels of the enlarged one, `[M, 2]`.
        frame: Height and width of the enlarged mask.
    """

    labels: Tensor
    shown: Tensor
    corners: Tensor
    frame: tuple[int, int]

    @classmethod
    def draw(cls, labels: Tensor, count: int, probability: float, resize: float, seed: int) -> SegmentMasks:
        """The masks for a seed, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        more = [math.floor(resize * side) for side in labels.shape]
        shown = torch.rand(count, int(labels.max()) + 1, generator=generator) < probability
        corners = (torch.rand(count, 2, generator=generator) * (torch.tensor(more) + 1)).floor()
        frame = (labels.shape[0] + more[0], labels.shape[1] + more[1])
        return cls(labels, shown.to(labels.device), corners.to(labels.device), frame)

    def starts(self) -> range:
        """The first masks of the parts in which they are made."""
        return range(0, len(self.shown), MASKS_AT_ONCE)

    def make(self, start: int) -> Tensor:
        """The masks of a part, `[m, H, W]`, in [0, 1]: bilinear with half-pixel centres."""
        some = slice(start, start + MASKS_AT_ONCE)
        masks = self.shown[some][:, self.labels].float()
        sides = zip(self.labels.shape, self.frame, self.corners[some].T, strict=True)
        pixels = [2 * (torch.arange(side, device=masks.device) + 0.5 + at[:, None]) / frame - 1 for side, frame, at in sides]
        rows, columns = pixels[0][:, :, None], pixels[1][:, None, :]
        grid = torch.stack(torch.broadcast_tensors(columns, rows), dim=-1)
        return functional.grid_sample(masks[:, None], grid, padding_mode="border", align_corners=False)[:, 0].clamp(0, 1)


def fused(levels: Tensor) -> Tensor:
    """Join the maps of levels, the coarsest first, `[N, L, H, W]`: each is scaled to [0, 1]; a constant one becomes zeros.

    Example:
        >>> fused(torch.tensor([[[[0.0, 1.0, 2.0]], [[0.0, 3.0, 3.0]]]]))
        tensor([[[0.0000, 0.7500, 2.0000]]])
    """
    low, high = levels.amin(dim=(2, 3), keepdim=True), levels.amax(dim=(2, 3), keepdim=True)
    coarsest, *finer = torch.where(low == high, 0, (levels - low) / (high - low)).unbind(dim=1)
    maps, *rest = [coarsest, *finer][::-1]
    for one in rest:
        maps = (maps + one) * one
    return maps


def _weights(read: Any, followed: Followed, width: float) -> Tensor:
    """The weights of images, `[G]`, by how well their detections match those that are followed."""
    known = zip(read, followed.classes, *followed.details, strict=True)
    return torch.stack([_weight(one, *wanted, width=width) for one, *wanted in known])


def _weight(one: dict[str, Tensor], label: Tensor, box: Tensor, probabilities: Tensor | None = None, *, width: float) -> Tensor:
    if probabilities is None or not len(one["labels"]):
        return similarity(one, label, box)
    distance = 1 - functional.cosine_similarity(one["probabilities"], probabilities[None], dim=1)
    alike = (-0.5 * (distance / width).square()).exp()
    alike = (alike[one["queries"]] if "queries" in one else alike) * (one["labels"] == label) * one.get("objectness", 1)
    return (overlap(one["boxes"], box) * alike).max()
