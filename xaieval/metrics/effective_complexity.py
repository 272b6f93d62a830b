"""Effective complexity: how few pixels of a map are enough for the model, and how many have an attribution at all."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.config.protocol import Protocol, plain
from xaieval.errors import MetricError
from xaieval.metrics.metric import Metric
from xaieval.metrics.perturbation import Baseline, Steps, check_baseline, check_steps, filling_by, perturbed_pixels, pixel_ranks
from xaieval.metrics.subsets import Filling, Subset, check_least, sums_and_falls

__all__ = ["attributed_area", "effective_complexity"]

NGUYEN = "Nguyen and Martinez 2020, arXiv 2007.07584"


def effective_complexity(
    tolerance: float = 0.1,
    steps: Steps = 32,
    samples: int = 10,
    baseline: Baseline = "noise",
    *,
    name: str = "effective_complexity",
) -> Metric:
    """Effective complexity: pixels that are enough to keep the confidence, 0 to 100 percent, lower is better.

    The smallest share of pixels, highest absolute attribution first, that keeps the confidence within `tolerance` of itself
    while all others are replaced (root mean square over the samples). To a step of the axis. NaN where the confidence on the
    image is 0.

    Args:
        tolerance: Largest relative change. The paper leaves it to the user.
        steps: Number of equal steps of the share, or the shares, increasing, in [0, 1].
        samples: Replacements for each step, each a forward pass; 1 is enough for a baseline without noise.
        baseline: As in `insertion`; "noise" is uniform between the smallest and the largest value of each channel.
        name: Name of the column.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Nguyen and Martinez, "On quantitative aspects of model interpretability", 2020 (arXiv 2007.07584), effective complexity.

    Example:
        >>> effective_complexity(tolerance=0.05).settings["tolerance"]
        0.05
    """
    if not tolerance > 0:
        raise MetricError(f"tolerance is positive, got {tolerance}")
    check_steps(steps, None)
    check_least(samples=(samples, 1))
    check_baseline(baseline)
    return Metric(
        name,
        partial(_effective_complexity, tolerance=tolerance, steps=steps, samples=samples, baseline=baseline),
        higher_is_better=False,
        label="effective complexity %",
        needs=("confidence", "attributions", "images", "ask", "protocol", "draw"),
        settings={"tolerance": tolerance, "steps": plain(steps), "samples": samples, "baseline": plain(baseline)},
        passes=f"{samples} for each step",
        paper=NGUYEN,
        divides=False,
        family="complexity",
    )


def attributed_area(threshold: float = 1e-5, *, name: str = "attributed_area") -> Metric:
    """Pixels with an attribution: above a share of the largest absolute one, 0 to 100 percent, lower is better.

    It is what Quantus calls effective complexity, as a share of the pixels. It does not use the model. NaN for a map of zeros.

    Args:
        threshold: The share, in [0, 1).
        name: Name of the column.

    Raises:
        MetricError: The threshold is out of range.

    Reference:
        Quantus' `EffectiveComplexity`, which counts the pixels.

    Example:
        >>> attributed_area(0.2).per_image(torch.tensor([[[5.0, -2.0], [0.5, 0.0]]]))
        tensor([50.], dtype=torch.float64)
    """
    if not 0 <= threshold < 1:
        raise MetricError(f"threshold is a share of the largest attribution, in [0, 1), got {threshold}")
    return Metric(
        name,
        partial(_attributed_area, threshold=threshold),
        higher_is_better=False,
        label="attributed area %",
        needs=("attributions",),
        settings={"threshold": threshold},
        paper="",
        family="complexity",
    )


def _effective_complexity(
    confidence: Tensor,
    attributions: Tensor,
    images: Tensor,
    ask: Any,
    protocol: Protocol,
    draw: Any,
    *,
    tolerance: float,
    steps: Steps,
    samples: int,
    baseline: Baseline,
) -> Tensor:
    ranks, pixels = pixel_ranks(attributions.abs()), attributions[0].numel()
    kept = perturbed_pixels(pixels, steps)

    def changes() -> Iterator[tuple[Subset, Filling]]:
        for number in range(samples):
            noise = filling_by(baseline, images, protocol, draw, f"noise {number}")
            for count in kept.tolist():
                yield ranks >= count, noise

    _, falls = sums_and_falls(confidence, attributions, images, ask, changes())
    squares = falls.view(-1, samples, len(kept)).square().mean(dim=1)
    enough = squares.sqrt() <= tolerance * confidence.double().abs()[:, None]
    return _first(enough, kept / pixels).masked_fill((confidence == 0) | squares.isnan().any(dim=1), torch.nan)


def _first(enough: Tensor, shares: Tensor) -> Float[Tensor, " n"]:
    """The first share that is enough, in percent; 100 if none is, since all pixels are."""
    shares = torch.cat([shares.to(enough.device), shares.new_ones(1).to(enough.device)]).double()
    places = torch.cat([enough, enough.new_ones(len(enough), 1)], dim=1).long().argmax(dim=1)
    return 100 * shares[places]


def _attributed_area(attributions: Tensor, *, threshold: float) -> Tensor:
    sizes = attributions.double().abs().flatten(1)
    largest = sizes.amax(dim=1, keepdim=True)
    found = 100 * (sizes > threshold * largest).double().mean(dim=1)
    return found.masked_fill(~((largest > 0) & largest.isfinite())[:, 0], torch.nan)


METRICS = (effective_complexity(), attributed_area())
