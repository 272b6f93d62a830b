"""Monotonicity: do pixels of a higher attribution matter more to the model, one group after another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xaieval.config.protocol import Protocol, plain
from xaieval.metrics.curves import Curve
from xaieval.metrics.metric import Metric
from xaieval.metrics.perturbation import (
    Baseline,
    Perturbation,
    Steps,
    check_baseline,
    check_steps,
    filling_by,
    perturbed_pixels,
    pixel_ranks,
)
from xaieval.metrics.similarity import spearman
from xaieval.metrics.subsets import ROUNDING, check_least, correlation, ranked_groups, sums_and_falls

__all__ = ["monotonicity", "monotonicity_correlation"]


def monotonicity(
    steps: Steps = 32,
    baseline: Baseline = "zero",
    keep_curve: bool = False,
    *,
    pixels_per_step: int | None = None,
    name: str = "monotonicity",
) -> Metric:
    """Monotonicity: steps in which the confidence does not fall as pixels are inserted, 0 to 100 percent, higher is better.

    The pixels are inserted into the baseline in increasing order of the map. 100 is what the paper calls monotonic, a yes or
    no; with many steps this is rare, so the share is given. A fall within float32's rounding, a millionth of the confidence on
    the image, does not count.

    Args:
        steps: Number of equal steps, or shares of pixels, as in `insertion`; each takes a forward pass.
        baseline: As in `insertion`; "zero" is the mean colour where images are normalised by it.
        keep_curve: Keep each image's curve (confidences) in the rows, as `<name>_curve`.
        pixels_per_step: Pixels of each step, instead of `steps`; the paper inserts features one by one.
        name: Name of the column.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Arya et al., "One Explanation Does Not Fit All", 2019 (arXiv 1909.03012), monotonicity, after Luss et al. 2019 (arXiv
        1905.12698); `monotonicity_metric` of AIX360.

    Example:
        >>> monotonicity(steps=8).label
        'monotonicity %'
    """
    made = Perturbation(steps, baseline, pixels_per_step=pixels_per_step)
    curve = Curve(made, keep_curve=True, least_first=True, inserts=True)
    return Metric(
        name,
        _Monotonicity(curve, keep_curve),
        higher_is_better=True,
        label="monotonicity %",
        rounding_decides=True,  # a step falls or not, and many steps hardly change anything
        needs=("confidence", "maps", "images", "ask", "protocol", "draw"),
        settings={
            "steps": plain(steps),
            "pixels_per_step": pixels_per_step,
            "baseline": plain(baseline),
            "keep_curve": keep_curve,
        },
        passes="steps + 1",
        paper="Arya et al. 2019, arXiv 1909.03012",
        divides=False,
        family="faithfulness",
    )


def monotonicity_correlation(
    steps: Steps = 32,
    samples: int = 10,
    baseline: Baseline = "noise",
    *,
    pixels_per_step: int | None = None,
    name: str = "monotonicity_correlation",
) -> Metric:
    """Monotonicity by rank correlation: attribution against the effect of the pixels, -1 to 1, higher is better.

    The pixels are sorted by their absolute attribution and cut into groups. The effect of a group is the mean square of the
    change of the confidence over samples of noise in its place. The value is Spearman's correlation over the groups between the
    sum of the absolute attributions and the effect. NaN if one of the two does not vary.

    Args:
        steps: Number of equal groups, or the shares of pixels at which they are cut; the paper has one feature in a group.
        samples: Replacements of each group, each a forward pass; 1 is enough for a baseline without noise.
        baseline: As in `insertion`; "noise" is uniform between the smallest and the largest value of each channel.
        pixels_per_step: Pixels of each group, instead of `steps`.
        name: Name of the column.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Nguyen and Martinez, "On quantitative aspects of model interpretability", 2020 (arXiv 2007.07584), monotonicity;
        Quantus' `MonotonicityCorrelation`.

    Example:
        >>> monotonicity_correlation(samples=3).passes
        '3 for each step'
    """
    check_steps(steps, pixels_per_step)
    check_least(samples=(samples, 1))
    check_baseline(baseline)
    return Metric(
        name,
        partial(_monotonicity_correlation, steps=steps, samples=samples, baseline=baseline, pixels_per_step=pixels_per_step),
        higher_is_better=True,
        label="monotonicity corr.",
        needs=("confidence", "attributions", "images", "ask", "protocol", "draw"),
        settings={
            "steps": plain(steps),
            "pixels_per_step": pixels_per_step,
            "samples": samples,
            "baseline": plain(baseline),
        },
        passes=f"{samples} for each step",
        paper="Nguyen and Martinez 2020, arXiv 2007.07584",
        divides=False,
        bounds=(-1.0, 1.0),
        family="faithfulness",
    )


@dataclass(frozen=True)
class _Monotonicity:
    curve: Curve
    keep_curve: bool

    def __call__(self, confidence: Tensor, *inputs: Any) -> Tensor | tuple[Tensor, Tensor]:
        _, curves = self.curve(confidence, *inputs)
        tolerance = ROUNDING * confidence.double().abs()[:, None]
        rises = (curves.diff(dim=1) >= -tolerance).double().mean(dim=1)
        values = (100 * rises).masked_fill(curves.isnan().any(dim=1), torch.nan)
        return (values, curves) if self.keep_curve else values


def _monotonicity_correlation(
    confidence: Tensor,
    attributions: Tensor,
    images: Tensor,
    ask: Any,
    protocol: Protocol,
    draw: Any,
    *,
    steps: Steps,
    samples: int,
    baseline: Baseline,
    pixels_per_step: int | None,
) -> Tensor:
    sizes = attributions.abs()
    ranks, counts = pixel_ranks(sizes), perturbed_pixels(sizes[0].numel(), steps, pixels_per_step)
    noises = (filling_by(baseline, images, protocol, draw, f"noise {number}") for number in range(samples))
    changes = ((group, noise) for noise in noises for group in ranked_groups(ranks, counts))
    sums, falls = sums_and_falls(confidence, sizes, images, ask, changes)
    groups = sums.shape[1] // samples
    return correlation(spearman, sums[:, :groups], falls.view(-1, samples, groups).square().mean(dim=1))


METRICS = (monotonicity(), monotonicity_correlation())
