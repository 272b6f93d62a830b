"""Maps from the scores of perturbed images: Score-CAM, RISE, occlusion.

These methods neither look inside the model nor take gradients. The perturbed images of all images of a batch go to
`Context.ask`, which groups them into full passes, for any task. They are made block by block, so memory does not grow with the
number of masks. No denominator has an epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Asked, Context, Wanted, size_of_images
from xaieval.masking import LINEAR

__all__ = [
    "PERTURBATIONS",
    "RISE",
    "Masking",
    "Occlusion",
    "RandomMasks",
    "ScoreCAM",
    "check_masks",
    "check_wanted",
    "masked_scores",
    "mean_of_masks",
]

Size = tuple[int, int]
At = Literal["image", "layer"]

MASKS_AT_ONCE = 64  # masks in memory at a time when they are added up


@dataclass(frozen=True)
class ScoreCAM:
    """Score-CAM: `relu(sum_k w_k A_k)`, w the softmax over channels of the scores of the image masked by each channel.

    A channel becomes a mask by bilinear upsampling to the image's size and min-max normalisation. A constant channel masks the
    whole image, as a channel of zeros does in other tools; the masked image is the same for all constant channels, so it takes
    one pass. The baseline score that the paper subtracts cancels in the softmax.

    Args:
        align_corners: Option of the upsampling; pytorch-grad-cam uses True.
        normalise_at: "image" (after upsampling, as in the paper) or "layer" (before upsampling, as in torch-cam).
        wanted: "score" (the logit, as in both libraries) or "confidence".

    Raises:
        ExplainerError: A choice is unknown.

    Reference:
        Wang et al., "Score-CAM", CVPR Workshops 2020 (arXiv 1910.01279), eq. 1 to 3 and algorithm 1.

    Example:
        >>> import xaieval
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> xaieval.explain(model, torch.rand(2, 3, 8, 8), "0", ScoreCAM())["0"].shape
        torch.Size([2, 8, 8])
    """

    align_corners: bool = False
    normalise_at: At = "image"
    wanted: Wanted = "score"
    name: str = "score-cam"
    needs_layer: bool = True
    needs_gradient: bool = False
    needs_model: bool = False
    passes: str = "1 per channel that is not constant"
    paper: str = "Wang et al. 2020, arXiv 1910.01279"

    def __post_init__(self) -> None:
        _check_choice("normalise_at", self.normalise_at, At)
        check_wanted(self.wanted)

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        activation: Any = context.activation
        images = context.images
        kept = self._kept(context)
        varied = kept & (activation.flatten(2).amax(dim=2) > activation.flatten(2).amin(dim=2))

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            for pairs in varied.nonzero().split(context.size or len(images)):
                of, channel = pairs.unbind(dim=1)
                yield images[of] * self._masks(activation[of, channel], context)[:, None], of
            yield torch.zeros_like(images), context.everywhere  # an image masked by a constant channel

        masked_scores = context.ask(blocks(), self.wanted, total=int(varied.sum()) + len(images)).to(activation.dtype)
        scores = masked_scores[-len(images) :, None].repeat(1, activation.shape[1])
        scores[varied] = masked_scores[: -len(images)]
        weights = scores.masked_fill(~kept, -torch.inf).softmax(dim=1).masked_fill(~kept, 0)  # NaN if none is kept
        return torch.einsum("nc,nc...->n...", weights, activation).clamp(min=0)

    def _kept(self, context: Context) -> Tensor:
        """Which channels take part, `[N, C]`."""
        activation: Any = context.activation
        return torch.ones(activation.shape[:2], dtype=torch.bool, device=activation.device)

    def _masks(self, channels: Tensor, context: Context) -> Tensor:
        """Masks `[G, H, W]` in [0, 1] from channels `[G, h, w]`; for volumes with one more axis."""
        small = _unit(channels) if self.normalise_at == "layer" else channels
        large = _upsampled(small, context.images.shape[2:], self.align_corners)
        return (_unit(large) if self.normalise_at == "image" else large).to(context.images.dtype)


@dataclass(frozen=True)
class RISE:
    """RISE: the mean of random masks, each weighted by the model's confidence on the image that it masks.

    `1 / (p n) sum_i f(x * M_i) M_i`: the masks M are grids of zeros and ones, bilinearly upsampled to slightly more than the
    image's size and cropped at a random place. They depend only on the seed of the run, so all images of all batches get the
    same masks.

    Args:
        n_masks: Number n of masks; the noise of a map falls with its square root.
        grid: Cells along each side.
        probability: Probability p, in (0, 1), that a cell is visible.
        wanted: "confidence" (as in the paper; which one is the protocol's choice) or "score" (the logit).

    Raises:
        ExplainerError: A number is out of range.

    Reference:
        Petsiuk et al., "RISE", BMVC 2018 (arXiv 1806.07421), eq. 6, and section 3.2 for the masks. For a detector, masks are
        weighted by the score of the detection at the same place; by how well all detections match in `d-rise`.

    Example:
        >>> import xaieval
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 5))
        >>> xaieval.explain(model, torch.rand(2, 3, 16, 16), method=RISE(n_masks=50))["input"].shape
        torch.Size([2, 16, 16])
    """

    n_masks: int = 4000
    grid: int = 7
    probability: float = 0.5
    wanted: Wanted = "confidence"
    name: str = "rise"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = False
    paper: str = "Petsiuk et al. 2018, arXiv 1806.07421"

    def __post_init__(self) -> None:
        check_masks(self)
        check_wanted(self.wanted)

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        return f"{self.n_masks}, 1 per mask"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, H, W]`."""
        return mean_of_masks(context, self, self.wanted)


class Masking(Protocol):
    """A method that shows the model an image under random masks: `RISE`, and `DRISE` for detectors."""

    @property
    def name(self) -> str:
        """Name of the method."""

    @property
    def n_masks(self) -> int:
        """Number of masks."""

    @property
    def grid(self) -> int:
        """Cells along each side."""

    @property
    def probability(self) -> float:
        """Probability that a cell is visible."""


def check_masks(method: Masking) -> None:
    """Refuse numbers that are out of range.

    Raises:
        ExplainerError: With the range.
    """
    if method.n_masks < 1 or method.grid < 1 or not 0 < method.probability < 1:
        raise ExplainerError(
            f"method '{method.name}' takes n_masks and grid of at least 1 and a probability in (0, 1), got "
            f"n_masks={method.n_masks}, grid={method.grid}, probability={method.probability}"
        )


def mean_of_masks(context: Context, method: Masking, wanted: Asked) -> Tensor:
    """The means `[N, H, W]` of random masks, each weighted by a score of the image that it masks.

    Raises:
        ExplainerError: The context has volumes.
    """
    images = context.images
    n, (height, width) = len(images), size_of_images(context, method.name)
    masks = RandomMasks.draw(method, context.seed, (height, width), images.device)
    scores = masked_scores(context, masks.make, method.n_masks, wanted).float()
    total = torch.zeros(n, height * width, device=images.device)
    for start in range(0, method.n_masks, MASKS_AT_ONCE):
        some = masks.make(start, min(start + MASKS_AT_ONCE, method.n_masks))
        total += scores[start : start + len(some)].T @ some.flatten(1)
    return (total / (method.probability * method.n_masks)).view(n, height, width)


def masked_scores(
    context: Context, masks: Callable[[int, int], Tensor], count: int, wanted: Asked, fill: float = 0.0
) -> Tensor:
    """Scores `[count, N]` of all images of the batch under the same masks.

    Args:
        context: The context of the batch.
        masks: Makes the masks `[stop - start, H, W]` with the numbers `start` to `stop`; 1 shows a pixel, 0 covers it.
        count: Number of masks.
        wanted: Which score.
        fill: Value of covered pixels, in the model's input space.
    """
    images, n = context.images, len(context.images)

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        size = context.size or n
        for start in range(0, count * n, size):  # all images with the first mask, then with the next one
            stop, first = min(start + size, count * n), start // n
            pairs = torch.arange(start, stop, device=images.device)
            shown = masks(first, (stop - 1) // n + 1).to(images.dtype)[pairs // n - first, None]
            yield images[pairs % n] * shown + (fill * (1 - shown) if fill else 0), pairs % n

    return context.ask(blocks(), wanted, total=count * n).view(count, n)


@dataclass(frozen=True)
class RandomMasks:
    """The random masks of RISE, made when needed: the grids `[n, s, s]` need little memory, the masks much.

    Attributes:
        grids: Zeros and ones, `[n, s, s]`.
        corners: Where each mask is cropped, as a share of a cell, `[n, 2]`.
        size: Height and width of the images.
    """

    grids: Tensor
    corners: list[tuple[float, float]]
    size: Size

    @classmethod
    def draw(cls, method: Masking, seed: int, size: Size, device: torch.device) -> RandomMasks:
        """The masks for a seed, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        grids = torch.rand(method.n_masks, method.grid, method.grid, generator=generator) < method.probability
        corners = torch.rand(method.n_masks, 2, generator=generator).tolist()
        return cls(grids.to(device, torch.float32), [(y, x) for y, x in corners], size)

    def make(self, start: int, stop: int) -> Tensor:
        """The masks with the numbers `start` to `stop`, `[stop - start, H, W]`."""
        cells = self.grids.shape[1]
        cell = [math.ceil(side / cells) for side in self.size]
        large = _upsampled(self.grids[start:stop], ((cells + 1) * cell[0], (cells + 1) * cell[1]))
        corners = [(int(y * cell[0]), int(x * cell[1])) for y, x in self.corners[start:stop]]
        height, width = self.size
        return torch.stack([mask[y : y + height, x : x + width] for mask, (y, x) in zip(large, corners, strict=True)])


@dataclass(frozen=True)
class Occlusion:
    """Occlusion: the drop of the score when a window of the image is covered, averaged over the windows that cover a pixel.

    Windows move by the stride from the upper left corner until the image is covered; the last ones are cut off at the edge.

    Args:
        window: Side in pixels. Default: a seventh of the image's shorter side, rounded up.
        stride: Pixels from one window to the next, at most `window`. Default: half of the window, rounded up.
        fill: Value of covered pixels, in the model's input space; 0 is the mean colour of normalised images.
        wanted: "score" (the logit) or "confidence".

    Raises:
        ExplainerError: `window` or `stride` is out of range.

    Reference:
        Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014 (arXiv 1311.2901), section 4.2; the
        average over windows is captum's.

    Example:
        A model that sees only the upper half of the image:

        >>> import xaieval
        >>> upper = lambda images: torch.stack([images[:, 0, :2].sum(dim=(1, 2)), images.sum(dim=(1, 2, 3))], dim=1)
        >>> xaieval.explain(upper, torch.ones(1, 1, 4, 4), method=Occlusion(window=2, stride=2), target=0)["input"][0]
        tensor([[1., 1., 1., 1.],
                [1., 1., 1., 1.],
                [0., 0., 0., 0.],
                [0., 0., 0., 0.]])
    """

    window: int | None = None
    stride: int | None = None
    fill: float = 0.0
    wanted: Wanted = "score"
    name: str = "occlusion"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = False
    passes: str = "1 per window, about 150 by default"
    paper: str = "Zeiler and Fergus 2014, arXiv 1311.2901"

    def __post_init__(self) -> None:
        given = [number for number in (self.window, self.stride) if number is not None]
        if min(given, default=1) < 1 or (len(given) == 2 and given[1] > given[0]):
            raise ExplainerError(
                "method 'occlusion' takes a window and a stride of at least 1 pixel, the stride at most the window, got "
                f"window={self.window}, stride={self.stride}"
            )
        check_wanted(self.wanted)

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, H, W]`; negative where covering a pixel raises the score."""
        images = context.images
        n, (height, width) = len(images), size_of_images(context, self.name)
        window, corners = self._windows((height, width))
        y, x = (torch.arange(side, device=images.device) for side in (height, width))

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            for pairs in torch.arange(len(corners) * n, device=images.device).split(context.size or n):
                top, left = corners.to(images.device)[pairs // n].T[:, :, None]
                rows, columns = (y >= top) & (y < top + window), (x >= left) & (x < left + window)
                covered = (rows[:, :, None] & columns[:, None, :])[:, None]
                yield images[pairs % n].masked_fill(covered, self.fill), pairs % n
            yield images, context.everywhere

        scores = context.ask(blocks(), self.wanted, total=(len(corners) + 1) * n).view(-1, n)
        drops = (scores[-1] - scores[:-1]).to(torch.float32)
        total, count = torch.zeros(n, height, width, device=images.device), torch.zeros(height, width, device=images.device)
        for (top, left), drop in zip(corners.tolist(), drops, strict=True):
            total[:, top : top + window, left : left + window] += drop[:, None, None]
            count[top : top + window, left : left + window] += 1
        return total / count

    def _windows(self, size: Size) -> tuple[int, Tensor]:
        """Side of the windows, and their upper left corners `[K, 2]`."""
        window = math.ceil(min(size) / 7) if self.window is None else self.window
        stride = math.ceil(window / 2) if self.stride is None else self.stride
        if window > min(size) or stride > window:
            raise ExplainerError(
                f"method 'occlusion' has windows of {window} pixels with a stride of {stride}, which do not fit an image of "
                f"{size[0]} x {size[1]} pixels; give a smaller window= or stride="
            )
        starts = [torch.arange(math.ceil((side - window) / stride) + 1) * stride for side in size]
        return window, torch.cartesian_prod(*starts)


def check_wanted(wanted: object) -> None:
    """Refuse an unknown kind of score.

    Raises:
        ExplainerError: With the known ones.
    """
    _check_choice("wanted", wanted, Wanted)


def _check_choice(name: str, given: object, choices: Any) -> None:
    if given not in get_args(choices):
        raise ExplainerError(f"{name} is one of {', '.join(get_args(choices))}, got {given!r}")


def _upsampled(maps: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    return functional.interpolate(maps[:, None], tuple(size), mode=LINEAR[len(size)], align_corners=align_corners)[:, 0]


def _unit(maps: Tensor) -> Tensor:
    """Maps scaled to [0, 1]; zeros for a constant map."""
    cells = tuple(range(1, maps.ndim))
    low, high = maps.amin(dim=cells, keepdim=True), maps.amax(dim=cells, keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), 0)


PERTURBATIONS = (ScoreCAM(), RISE(), Occlusion())
