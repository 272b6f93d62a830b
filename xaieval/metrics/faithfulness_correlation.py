"""Faithfulness by correlation: does the sum of a map over some pixels grow with the effect of replacing them.

The four metrics differ in the subsets: pixels at random of one size or of several, pixels in the order of the map, or cells of
a grid. Attributions keep their signs; a correlation does not depend on their scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xaieval.config.protocol import Protocol, plain
from xaieval.errors import MetricError
from xaieval.metrics.metric import Metric
from xaieval.metrics.perturbation import Baseline, Steps, check_baseline, check_steps, filling_by, perturbed_pixels, pixel_ranks
from xaieval.metrics.similarity import pearson, spearman
from xaieval.metrics.subsets import (
    cells,
    check_least,
    check_subset,
    correlation,
    grid_cells,
    pixels_of,
    random_pixels,
    ranked_groups,
    sums_and_falls,
)

__all__ = ["faithfulness_correlation", "faithfulness_estimate", "mu_fidelity", "sensitivity_n"]

BHATT = "Bhatt et al. 2020, arXiv 2005.00631"
SHARES = (0.01, 0.03, 0.1, 0.3, 0.8)


def faithfulness_correlation(
    samples: int = 100, subset: float = 1 / 224, baseline: Baseline = "zero", *, name: str = "faithfulness_correlation"
) -> Metric:
    """Faithfulness correlation: attribution against the fall of the confidence, random pixels, -1 to 1, higher is better.

    `corr_k (sum of phi over S_k, f(x) - f(x with S_k replaced))`: Pearson's correlation over random subsets of one size. NaN if
    the sums or the falls are all equal.

    Args:
        samples: Subsets for each image, each of which takes a forward pass.
        subset: Their size: a number of pixels (an int), or a share of them in (0, 1), at least one pixel. The default, Quantus'
            224 of 224 x 224, is so small that the falls are tiny; `mu_fidelity` replaces larger regions.
        baseline: Values that replace pixels, as in `insertion`: "zero", "black", "mean", "blur", "noise" or a function.
        name: Name of the column.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Bhatt et al., "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020 (arXiv 2005.00631), definition
        of faithfulness; samples and size as in Quantus' `FaithfulnessCorrelation`.

    Example:
        >>> faithfulness_correlation(subset=0.1).settings["subset"]
        0.1
    """
    check_least(samples=(samples, 2))
    check_subset(subset)
    judge = partial(_faithfulness_correlation, samples=samples, subset=subset, baseline=baseline)
    settings = {"samples": samples, "subset": subset}
    return _metric(name, judge, "faithfulness corr.", settings, baseline, f"{samples}", BHATT, "random pixels")


def faithfulness_estimate(
    steps: Steps = 32,
    baseline: Baseline = "zero",
    *,
    pixels_per_step: int | None = None,
    name: str = "faithfulness_estimate",
) -> Metric:
    """Faithfulness estimate: attribution against the fall of the confidence, ranked groups, -1 to 1, higher is better.

    The pixels are sorted by the map and cut into groups; each group alone is replaced. The value is Pearson's correlation over
    the groups between the sum of the map in it and the fall of the confidence. NaN if one of the two does not vary.

    In the paper each group is one feature. An image has too many pixels, so the default is 32 groups.

    Args:
        steps: Number of equal groups, or the shares of pixels at which they are cut, as in `insertion`.
        baseline: As in `faithfulness_correlation`.
        pixels_per_step: Pixels of each group, instead of `steps` (Quantus' `features_in_step`, whose default is 1).
        name: Name of the column.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Alvarez-Melis and Jaakkola, "Towards Robust Interpretability with Self-Explaining Neural Networks", NeurIPS 2018 (arXiv
        1806.07538), the estimate of faithfulness; Quantus' `FaithfulnessEstimate`.

    Example:
        >>> faithfulness_estimate(pixels_per_step=224).settings["pixels_per_step"]
        224
    """
    check_steps(steps, pixels_per_step)
    judge = partial(_faithfulness_estimate, steps=steps, pixels_per_step=pixels_per_step, baseline=baseline)
    settings = {"steps": plain(steps), "pixels_per_step": pixels_per_step}
    paper = "Alvarez-Melis and Jaakkola 2018, arXiv 1806.07538"
    return _metric(name, judge, "faithfulness est.", settings, baseline, "steps", paper)


def sensitivity_n(
    subsets: Sequence[float] = SHARES,
    samples: int = 100,
    baseline: Baseline = "zero",
    keep_curve: bool = False,
    *,
    name: str = "sensitivity_n",
) -> Metric:
    """Sensitivity-n: faithfulness correlation for several sizes n, -1 to 1, higher is better; the mean over the sizes.

    For each n, Pearson's correlation over random subsets of n pixels between the sum of the map and the fall of the confidence.
    It is 1 for all n if the confidence is linear in the pixels and the map is exact. NaN if a size has no correlation.

    Args:
        subsets: The sizes: numbers of pixels (ints) or shares in (0, 1). The paper goes up to 80 % in logarithmic steps.
        samples: Subsets for each size, 100 as in the paper.
        baseline: As in `faithfulness_correlation`; "zero" as in the paper.
        keep_curve: Keep each image's correlations over the sizes in the rows, as `<name>_curve`.
        name: Name of the column.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Ancona et al., "Towards better understanding of gradient-based attribution methods for Deep Neural Networks", ICLR 2018
        (arXiv 1711.06104), the definition of sensitivity-n.

    Example:
        >>> sensitivity_n((1, 0.1), samples=20).passes
        '20 for each size'
    """
    check_least(samples=(samples, 2))
    subsets = tuple(subsets)
    if not subsets:
        raise MetricError("subsets is one or more sizes, such as (0.01, 0.1), got none")
    for subset in subsets:
        check_subset(subset)
    judge = partial(_sensitivity_n, subsets=subsets, samples=samples, baseline=baseline, keep_curve=keep_curve)
    settings = {"subsets": list(subsets), "samples": samples, "keep_curve": keep_curve}
    paper = "Ancona et al. 2018, arXiv 1711.06104"
    return _metric(name, judge, "sensitivity-n", settings, baseline, f"{samples} for each size", paper, "random pixels")


def mu_fidelity(
    grid_size: int = 9, share: float = 0.2, samples: int = 200, baseline: Baseline = "zero", *, name: str = "mu_fidelity"
) -> Metric:
    """MuFidelity: attribution against the fall of the confidence, random cells of a grid, -1 to 1, higher is better.

    As `faithfulness_correlation`, but with Spearman's rank correlation, and subsets of cells: each cell of the grid is in a
    subset with the probability `share`. NaN if the sums or the falls are all equal.

    Args:
        grid_size: Cells along each side of the image; a side with fewer pixels has a cell for each.
        share: Probability that a cell is replaced, in (0, 1); Xplique's `subset_percent`.
        samples: Subsets for each image, each of which takes a forward pass.
        baseline: As in `faithfulness_correlation`.
        name: Name of the column.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Bhatt et al., IJCAI 2020 (arXiv 2005.00631), definition of faithfulness; grid, rank correlation and defaults as in
        Xplique's `MuFidelity`.

    Example:
        >>> mu_fidelity(grid_size=7).settings["grid_size"]
        7
    """
    check_least(samples=(samples, 2), grid_size=(grid_size, 1))
    if not 0 < share < 1:
        raise MetricError(f"share is the probability of a cell, in (0, 1), got {share}")
    judge = partial(_mu_fidelity, grid_size=grid_size, share=share, samples=samples, baseline=baseline)
    settings = {"grid_size": grid_size, "share": share, "samples": samples}
    return _metric(name, judge, "mu-fidelity", settings, baseline, f"{samples}", BHATT, "random cells")


def _faithfulness_correlation(
    confidence: Tensor,
    attributions: Tensor,
    images: Tensor,
    ask: Any,
    protocol: Protocol,
    draw: Any,
    *,
    samples: int,
    subset: float,
    baseline: Baseline,
) -> Tensor:
    count = pixels_of(subset, attributions[0].numel())
    fill = filling_by(baseline, images, protocol, draw)
    changes = ((random_pixels(draw, images, count, f"pixels {number}"), fill) for number in range(samples))
    return correlation(pearson, *sums_and_falls(confidence, attributions, images, ask, changes))


def _faithfulness_estimate(
    confidence: Tensor,
    attributions: Tensor,
    images: Tensor,
    ask: Any,
    protocol: Protocol,
    draw: Any,
    *,
    steps: Steps,
    pixels_per_step: int | None,
    baseline: Baseline,
) -> Tensor:
    counts = perturbed_pixels(attributions[0].numel(), steps, pixels_per_step)
    fill = filling_by(baseline, images, protocol, draw)
    changes = ((group, fill) for group in ranked_groups(pixel_ranks(attributions), counts))
    return correlation(pearson, *sums_and_falls(confidence, attributions, images, ask, changes))


def _sensitivity_n(
    confidence: Tensor,
    attributions: Tensor,
    images: Tensor,
    ask: Any,
    protocol: Protocol,
    draw: Any,
    *,
    subsets: Sequence[float],
    samples: int,
    baseline: Baseline,
    keep_curve: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    counts = [pixels_of(subset, attributions[0].numel()) for subset in subsets]
    fill = filling_by(baseline, images, protocol, draw)
    chosen = (random_pixels(draw, images, n, f"{n} pixels {number}") for n in counts for number in range(samples))
    changes = ((subset, fill) for subset in chosen)
    sums, falls = sums_and_falls(confidence, attributions, images, ask, changes)
    pairs = zip(sums.split(samples, dim=1), falls.split(samples, dim=1), strict=True)
    curves = torch.stack([correlation(pearson, *pair) for pair in pairs], dim=1)
    return (curves.mean(dim=1), curves) if keep_curve else curves.mean(dim=1)


def _mu_fidelity(
    confidence: Tensor,
    attributions: Tensor,
    images: Tensor,
    ask: Any,
    protocol: Protocol,
    draw: Any,
    *,
    grid_size: int,
    share: float,
    samples: int,
    baseline: Baseline,
) -> Tensor:
    numbers = grid_cells(images.shape[2:], grid_size, images.device)
    chosen = draw((samples, int(numbers.max()) + 1), "cells") < share
    fill = filling_by(baseline, images, protocol, draw)
    changes = ((cells(one, numbers), fill) for one in chosen.unbind(dim=1))
    return correlation(spearman, *sums_and_falls(confidence, attributions, images, ask, changes))


def _metric(
    name: str,
    judge: Any,
    label: str,
    settings: dict[str, Any],
    baseline: Baseline,
    passes: str,
    paper: str,
    altered_by: str = "",
) -> Metric:
    check_baseline(baseline)
    return Metric(
        name,
        judge,
        higher_is_better=True,
        label=label,
        needs=("confidence", "attributions", "images", "ask", "protocol", "draw"),
        settings=settings | {"baseline": plain(baseline)},
        passes=passes,
        paper=paper,
        family="faithfulness",
        altered_by=altered_by,
        divides=False,
        bounds=(-1.0, 1.0),
    )


METRICS = (faithfulness_correlation(), faithfulness_estimate(), sensitivity_n(), mu_fidelity())
