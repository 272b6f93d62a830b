"""Performance information curves: confidence (SIC) or accuracy (AIC) over how much information the shown pixels hold."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from xaieval.config.protocol import Protocol, plain
from xaieval.errors import MetricError, choose_from
from xaieval.masking import FILLS, filling
from xaieval.metrics.metric import Metric
from xaieval.metrics.perturbation import Baseline, perturbed_pixels
from xaieval.metrics.segments import Order, order_of

__all__ = ["aic", "compressed_size", "sic"]

XRAI = "Kapishnikov et al. 2019, arXiv 1906.02825"
SHARES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.13, 0.21, 0.34, 0.5, 0.75)
POINTS = 101  # of a curve that is kept
COLOURS = {1: "L", 3: "RGB"}  # modes of images by the number of channels

Array = NDArray[np.float64]


@dataclass(frozen=True)
class InformationCurve:
    """The function of `sic` and `aic`.

    Attributes:
        fractions: Shares of pixels to show.
        seeded: Share of pixels, drawn at random, that is always shown.
        baseline: What replaces the others.
        minimum: Images whose confidence is lower have no value.
        monotonic: Take at each point the highest value so far.
        keep_curve: Return the curves with the values.
    """

    fractions: Sequence[float]
    seeded: float
    baseline: Baseline
    minimum: float
    monotonic: bool
    keep_curve: bool

    def __post_init__(self) -> None:
        rising = list(self.fractions) == sorted(set(self.fractions))
        if not self.fractions or not rising or not 0 < self.fractions[0] <= self.fractions[-1] < 1:
            raise MetricError(f"fractions are increasing shares of pixels, each above 0 and below 1; got {self.fractions}")
        if not 0 <= self.seeded < 1:
            raise MetricError(f"seeded is a share of the pixels, at least 0 and below 1; got {self.seeded}")
        if not callable(self.baseline) and self.baseline not in FILLS:
            raise MetricError(f"no baseline {self.baseline!r}; {choose_from(self.baseline, FILLS)}; or give a function")

    def __call__(self, maps: Tensor, images: Tensor, ask: Any, protocol: Protocol, draw: Any) -> Any:
        """Return values `[N]`, and with `keep_curve` the curves `[N, 101]` over equal steps of information."""
        if images.ndim != 4 or images.shape[1] not in COLOURS:
            raise MetricError(f"the information of grey or RGB images is measured, [N, 1 or 3, H, W]; got {list(images.shape)}")
        sizes: list[list[int]] = []
        scores = ask(self._blocks(order_of(maps, None), images, protocol, draw, sizes))
        table = scores.view(len(sizes), len(images)).T.double().cpu().numpy()
        found = [self._curve(np.array(size, float), score) for size, score in zip(zip(*sizes, strict=True), table, strict=True)]
        values, curves = (torch.from_numpy(np.array(one)).to(images.device) for one in zip(*found, strict=True))
        return (values, curves) if self.keep_curve else values

    def _blocks(
        self, order: Order, images: Tensor, protocol: Protocol, draw: Any, sizes: list[list[int]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images, the images of random pixels alone, and with more and more pixels; their sizes are noted."""
        fill: Any = self.baseline
        made, numbers = (
            filling(images, replace(protocol, fill=fill, space="model")),
            torch.arange(len(images)).to(images.device),
        )
        seeds = order_of(draw(images.shape[2:], "seed of an information curve"), None)
        pixels = images[0, 0].numel()
        always = seeds.first(torch.full_like(seeds.units, int(self.seeded * pixels)))
        yield images, _note(images, images, sizes, numbers)
        for count in [0, *perturbed_pixels(pixels, self.fractions).tolist()]:
            kept = order.first(torch.full_like(order.units, count)) | always
            shown = torch.where(kept[:, None], images, made(kept.to(images.dtype)))
            yield shown, _note(shown, images, sizes, numbers)

    def _curve(self, sizes: Array, scores: Array) -> tuple[float, Array]:
        """The area under the curve of one image, and the curve at equal steps; NaN if the image is not suited."""
        (whole, empty), (best, worst) = sizes[:2], scores[:2]
        if not (np.isfinite(scores).all() and best >= self.minimum and best > worst and whole > empty):
            return np.nan, np.full(POINTS, np.nan)
        heights = ((scores[2:] - worst) / (best - worst)).clip(0, 1)
        heights = np.maximum.accumulate(heights) if self.monotonic else heights
        widths = ((sizes[2:] - empty) / (whole - empty)).clip(0, 1)
        order = np.argsort(widths, kind="stable")
        x, y = (np.concatenate([[0], column[order], [1]]) for column in (widths, heights))
        return float(np.trapezoid(y, x)), np.interp(np.linspace(0, 1, POINTS), x, y)


def sic(
    fractions: Sequence[float] = SHARES,
    minimum: float = 0.8,
    baseline: Baseline = "delaunay",
    monotonic: bool = True,
    seeded: float = 0.01,
    keep_curve: bool = False,
    *,
    name: str = "sic",
) -> Metric:
    """Softmax information curve (SIC): area under the confidence over the information shown, 0 to 1, higher is better.

    The most relevant pixels and a few random ones are shown, and the rest is interpolated. The information of such an image is
    its size after lossless compression. Both axes are scaled so that random pixels alone are 0 and the image is 1. NaN where
    the image's confidence is below `minimum`, or where the random pixels alone have no lower confidence or size than the image.

    Args:
        fractions: Shares of the most relevant pixels to show; each takes one forward pass, and two more are made.
        minimum: Least confidence of an image that is measured, in the confidence's unit.
        baseline: What replaces pixels that are not shown, as in `insertion`, but not "noise".
        monotonic: Take at each point the highest confidence so far.
        seeded: Share of the pixels that is always shown, drawn for each image by the run's seed.
        keep_curve: Keep each image's curve, at 101 equal steps of information, in the rows, as `<name>_curve`.
        name: Name of the column.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Kapishnikov et al., "XRAI: Better Attributions Through Regions", ICCV 2019 (arXiv 1906.02825), with the settings of the
        authors' `saliency.metrics.pic`. They report the area under the median curve of all images; a run here has the mean of
        the areas, which is the area under the mean curve.

    Example:
        >>> sic(baseline="linear").settings["minimum"]
        0.8
    """
    curve = InformationCurve(tuple(fractions), seeded, baseline, minimum, monotonic, keep_curve)
    return _metric(name, curve, "ask", "SIC")


def aic(
    fractions: Sequence[float] = SHARES,
    baseline: Baseline = "delaunay",
    monotonic: bool = True,
    seeded: float = 0.01,
    keep_curve: bool = False,
    *,
    name: str = "aic",
) -> Metric:
    """Accuracy information curve (AIC): area under hit or miss over the information shown, 0 to 1, higher is better.

    As `sic`, but instead of the confidence it uses 1 if the target is the predicted class, and 0 otherwise. NaN where the
    target is not what is predicted for the image, or is predicted from the random pixels alone.

    Args:
        fractions: As in `sic`.
        baseline: As in `sic`.
        monotonic: Once the target is predicted, it counts as predicted.
        seeded: As in `sic`.
        keep_curve: As in `sic`.
        name: Name of the column.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Kapishnikov et al., ICCV 2019 (arXiv 1906.02825).

    Example:
        >>> aic().needs[2]
        'ask_hits'
    """
    curve = InformationCurve(tuple(fractions), seeded, baseline, 1, monotonic, keep_curve)
    return _metric(name, curve, "ask_hits", "AIC")


def compressed_size(images: Float[Tensor, "n c h w"], like: Float[Tensor, "n c h w"]) -> list[int]:
    """How much information each image holds: the bytes of a lossless WebP file of it, in 256 steps of each channel.

    Args:
        images: Images of one or three channels, `[N, C, H, W]`.
        like: Images whose smallest and largest value of each channel become 0 and 255. Values beyond are cut off.
    """
    images, flat = images.double(), like.double().flatten(2)
    low, span = flat.amin(dim=2)[..., None, None], (flat.amax(dim=2) - flat.amin(dim=2))[..., None, None]
    scaled = ((images - low) / torch.where(span > 0, span, 1) * 255).nan_to_num(0).round().clamp(0, 255)
    return [_bytes(one) for one in scaled.to(torch.uint8).movedim(1, -1).cpu().numpy()]


def _bytes(pixels: NDArray[np.uint8]) -> int:
    file = io.BytesIO()
    mode = COLOURS[pixels.shape[2]]
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(file, format="webp", lossless=True, quality=100)
    return len(file.getvalue())


def _note(shown: Tensor, images: Tensor, sizes: list[list[int]], numbers: Tensor) -> Tensor:
    """The numbers, after the sizes of what is shown are added to the list."""
    sizes.append(compressed_size(shown, images))
    return numbers


def _metric(name: str, curve: InformationCurve, asked: str, label: str) -> Metric:
    settings = {choice: plain(value) for choice, value in vars(curve).items() if choice != "minimum" or asked == "ask"}
    return Metric(
        name,
        curve,
        True,
        label=label,
        needs=("maps", "images", asked, "protocol", "draw"),
        settings=settings,
        passes="fractions + 2",
        paper=XRAI,
        divides=False,
        family="faithfulness",
        bounds=(0.0, 1.0),
    )


METRICS = (sic(), aic())
