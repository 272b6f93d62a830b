"""Axioms: properties that authors of explanation methods require of a map, each as a number that measures the violation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.config.protocol import Protocol, plain
from xaieval.errors import MetricError
from xaieval.metrics.changes import relative_change
from xaieval.metrics.metric import Metric
from xaieval.metrics.perturbation import Baseline, check_baseline, filling_by
from xaieval.metrics.subsets import cells, check_least, grid_cells, sums_and_falls

__all__ = ["completeness", "completeness_error", "input_invariance", "non_sensitivity"]

NEEDED = ("confidence", "attributions", "images", "ask", "protocol", "draw")


def completeness(baseline: Baseline = "zero", *, name: str = "completeness") -> Metric:
    """Completeness: does the map add up to the change of the confidence, as a relative error, 0 or more, lower is better.

    `|sum of phi - (f(x) - f(x'))| / |f(x) - f(x')|` with the baseline x'. It suits methods with maps in the unit of the
    confidence, such as integrated gradients, with signs and at the size of the image. Gradients are those of the logit by
    default: score them with `Protocol(confidence="identity")`, or take them of the confidence,
    `Protocol(gradient="confidence")`.

    Args:
        baseline: The baseline of the method: "zero" as captum's, or as in `insertion`.
        name: Name of the column.

    Raises:
        MetricError: The baseline is unknown.

    Reference:
        Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017 (arXiv 1703.01365), the axiom of completeness;
        `completeness_error` is the formula.

    Example:
        >>> completeness(baseline="mean").settings
        {'baseline': 'mean'}
    """
    check_baseline(baseline)
    return Metric(
        name,
        partial(_completeness, baseline=baseline),
        higher_is_better=False,
        label="completeness error",
        rounding_decides=True,  # it divides by a difference of scores that may be small
        needs=NEEDED,
        settings={"baseline": plain(baseline)},
        passes="1",
        paper="Sundararajan et al. 2017, arXiv 1703.01365",
        divides=False,
        family="axioms",
        bounds=None,
        altered_by="a baseline",
    )


def completeness_error(attributions: Float[Tensor, " n *space"], change: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Relative error of the sum of each map, 0 or more, lower is better; NaN if the confidence does not change.

    Args:
        attributions: Maps with their signs, `[N, H, W]`.
        change: The confidence on the image minus that on the baseline, `[N]`.

    Raises:
        MetricError: There is not one change for each map.

    Reference:
        Sundararajan et al., ICML 2017 (arXiv 1703.01365).

    Example:
        >>> completeness_error(torch.tensor([[[0.5, 0.25]], [[0.5, -0.5]]]), torch.tensor([0.5, 0.0]))
        tensor([0.5000,    nan], dtype=torch.float64)
    """
    if len(attributions) != len(change) or change.ndim != 1:
        raise MetricError(
            f"maps [N, H, W] and changes [N] are compared, got {list(attributions.shape)} and {list(change.shape)}"
        )
    total, change = attributions.double().flatten(1).sum(dim=1), change.double()
    return ((total - change).abs() / change.abs()).masked_fill(change == 0, torch.nan)


def non_sensitivity(
    grid_size: int = 9, threshold: float = 1e-5, baseline: Baseline = "zero", *, name: str = "non_sensitivity"
) -> Metric:
    """Non-sensitivity: cells in which map and model disagree on whether they matter, 0 to 100 percent, lower is better.

    The image is cut into a grid. A cell has no attribution if no absolute value in it exceeds `threshold` times the largest of
    the map; it has no effect if its replacement changes the confidence by at most `threshold`. NaN for a map with NaN.

    Args:
        grid_size: Cells along each side of the image, each of which takes a forward pass; as large as a side for single pixels,
            as in the paper.
        threshold: What counts as zero.
        baseline: As in `insertion`.
        name: Name of the column.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Nguyen and Martinez, "On quantitative aspects of model interpretability", 2020 (arXiv 2007.07584), non-sensitivity;
        Quantus' `NonSensitivity`, which counts pixels.

    Example:
        >>> non_sensitivity(grid_size=4).passes
        '16 (64 of volumes)'
    """
    check_least(grid_size=(grid_size, 1), threshold=(threshold, 0))
    check_baseline(baseline)
    return Metric(
        name,
        partial(_non_sensitivity, grid_size=grid_size, threshold=threshold, baseline=baseline),
        higher_is_better=False,
        label="non-sensitivity %",
        needs=NEEDED,
        settings={"grid_size": grid_size, "threshold": threshold, "baseline": plain(baseline)},
        passes=f"{grid_size**2} ({grid_size**3} of volumes)",
        paper="Nguyen and Martinez 2020, arXiv 2007.07584",
        divides=False,
        family="axioms",
        altered_by="cells",
    )


def input_invariance(shift: float = -1.0, *, name: str = "input_invariance") -> Metric:
    """Input invariance: relative change of the map under a shift that the model undoes, 0 or more, lower is better.

    A constant is added to every pixel, and the model first subtracts it, so all its outputs stay the same; so should the map.
    `|phi_2(x + m) - phi_1(x)| / |phi_1(x)|` with Euclidean norms. NaN if the map is zero everywhere.

    The first layer sees the same numbers as before; the paper changes its bias instead. Maps of activations and gradients
    cannot change, so the metric suits methods that use the values of the input or a baseline: gradient times input, integrated
    gradients, occlusion, RISE.

    Args:
        shift: The constant m, in the unit of the model's input.
        name: Name of the column.

    Raises:
        MetricError: The shift is 0.

    Reference:
        Kindermans et al., "The (Un)reliability of Saliency Methods", 2017 (arXiv 1711.00867), input invariance; the shift of -1
        as in Quantus' `InputInvariance`.

    Example:
        >>> input_invariance(shift=0.5).needs
        ('attributions', 'attribute_shifted')
    """
    if not shift:
        raise MetricError("shift is a number other than 0, since a shift by 0 changes nothing")
    return Metric(
        name,
        partial(_input_invariance, shift=shift),
        higher_is_better=False,
        label="input invariance error",
        needs=("attributions", "attribute_shifted"),
        settings={"shift": shift},
        passes="the method once more, and 1",
        paper="Kindermans et al. 2017, arXiv 1711.00867",
        family="axioms",
        bounds=None,
        altered_by="a shift of values",
    )


def _completeness(
    confidence: Tensor, attributions: Tensor, images: Tensor, ask: Any, protocol: Protocol, draw: Any, *, baseline: Baseline
) -> Tensor:
    nothing = images.new_zeros(len(images), *images.shape[2:])
    replaced = filling_by(baseline, images, protocol, draw)(nothing).expand_as(images).contiguous()
    before = ask(iter([(replaced, torch.arange(len(images), device=images.device))]))
    return completeness_error(attributions, confidence.double() - before.double())


def _non_sensitivity(
    confidence: Tensor,
    attributions: Tensor,
    images: Tensor,
    ask: Any,
    protocol: Protocol,
    draw: Any,
    *,
    grid_size: int,
    threshold: float,
    baseline: Baseline,
) -> Tensor:
    numbers = grid_cells(images.shape[2:], grid_size, images.device)
    sizes = attributions.double().abs()
    largest = sizes.flatten(1).amax(dim=1)
    marked = (sizes > threshold * largest.view(-1, *(1 for _ in numbers.shape))).double()
    fill = filling_by(baseline, images, protocol, draw)
    each = torch.eye(int(numbers.max()) + 1, dtype=torch.bool, device=images.device)
    changes = ((cells(one.expand(len(images), -1), numbers), fill) for one in each)
    counts, falls = sums_and_falls(confidence, marked, images, ask, changes)
    disagree = (counts > 0) != (falls.abs() > threshold)
    found = 100 * disagree.double().mean(dim=1)
    return found.masked_fill(~largest.isfinite() | falls.isnan().any(dim=1), torch.nan)


def _input_invariance(
    attributions: Tensor, attribute_shifted: Callable[[float], Tensor], *, shift: float
) -> Float[Tensor, " n"]:
    return relative_change(attributions, attribute_shifted(shift))


METRICS = (completeness(), non_sensitivity(), input_invariance())
