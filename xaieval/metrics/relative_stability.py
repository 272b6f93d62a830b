"""Relative stability: how much the map changes for each change of the image, of the model's output, or of what a layer holds.

A map may change where the model itself changes. Relative stability divides by that change.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.errors import MetricError, choose_from
from xaieval.metrics.changes import check_noise, check_samples, noise_like, relative_change
from xaieval.metrics.metric import Inspection, Metric

__all__ = [
    "relative_input_stability",
    "relative_output_stability",
    "relative_representation_stability",
]

AGARWAL = "Agarwal et al. 2022, arXiv 2203.06877"

Inspect = Callable[[Tensor], Inspection]
Change = Callable[[Tensor, Tensor], Tensor]
Of = Callable[[Change, Tensor, Tensor, Inspection, Inspection], Tensor]


def relative_input_stability(samples: int = 10, radius: float = 0.05, noise: str = "gaussian", change: str = "norm") -> Metric:
    """Relative input stability: the largest change of the map per change of the image, 0 or more, lower is better.

    `max_k change(phi, phi_k) / change(x, x_k)` over the noisy images `x_k` that the model gives the same class. With `change`
    "norm" the change of v is `|v_k - v| / |v|`, with Euclidean norms; with "elements" it is `|(v_k - v) / v|`, divided element
    by element before the norm. NaN if no noisy image has the class, if a denominator is 0, or a map has NaN.

    A map of the CAM family is 0 at many pixels, and there a share of its value means nothing: "elements" is NaN for it. Other
    tools replace 0 by 1e-6, so these pixels dominate the number.

    Args:
        samples: Noisy images for each image.
        radius: Standard deviation of Gaussian noise, or half the width of uniform noise, in the unit of the model's input.
        noise: "gaussian" or "uniform".
        change: "norm" as in the authors' code (OpenXAI), or "elements" as printed in the paper and in Quantus.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Agarwal et al., "Rethinking Stability for Attribution-based Explanations", 2022 (arXiv 2203.06877), definition 1.

    Example:
        >>> relative_input_stability().settings["change"]
        'norm'
    """
    return _metric("relative_input_stability", "input stability", _of_input, samples, radius, noise, change)


def relative_representation_stability(
    samples: int = 10, radius: float = 0.05, noise: str = "gaussian", change: str = "norm"
) -> Metric:
    """Relative representation stability: the largest change of the map per change at its layer, 0 or more, lower is better.

    As `relative_input_stability`, with the change of the layer's output in the denominator: `max_k change(phi, phi_k) /
    change(L(x), L(x_k))`. L is the layer that is explained, so every layer of a run is measured by its own representation. NaN
    for a method that needs no layer. The paper leaves the layer open; OpenXAI takes the first hidden one of its small network,
    Quantus by default all modules' outputs in a row.

    Args:
        samples: Noisy images for each image.
        radius: Standard deviation of Gaussian noise, or half the width of uniform noise, in the unit of the model's input.
        noise: "gaussian" or "uniform".
        change: "norm" or "elements". After a ReLU many elements are 0, and "elements" is NaN then.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Agarwal et al., "Rethinking Stability for Attribution-based Explanations", 2022 (arXiv 2203.06877), definition 2.

    Example:
        >>> relative_representation_stability().passes
        'the method 11 times'
    """
    name = "relative_representation_stability"
    return _metric(name, "representation stability", _of_layer, samples, radius, noise, change)


def relative_output_stability(samples: int = 10, radius: float = 0.05, noise: str = "gaussian", change: str = "norm") -> Metric:
    """Relative output stability: the largest change of the map per change of the logits, per logit, 0 or more, lower is better.

    As `relative_input_stability`, with the distance of the logits in the denominator: `max_k change(phi, phi_k) / |h(x_k) -
    h(x)|`. As in the paper the distance is not divided by the norm of the logits, so the number depends on their scale:
    compare methods on one model. Only of classifiers.

    Args:
        samples: Noisy images for each image.
        radius: Standard deviation of Gaussian noise, or half the width of uniform noise, in the unit of the model's input.
        noise: "gaussian" or "uniform".
        change: Of the map: "norm" or "elements".

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Agarwal et al., "Rethinking Stability for Attribution-based Explanations", 2022 (arXiv 2203.06877), definition 3.

    Example:
        >>> relative_output_stability(samples=3).settings["samples"]
        3
    """
    return _metric("relative_output_stability", "output stability", _of_output, samples, radius, noise, change)


def _metric(name: str, label: str, of: Of, samples: int, radius: float, noise: str, change: str) -> Metric:
    check_samples(samples=samples, radius=radius)
    check_noise(noise)
    if change not in CHANGES:
        raise MetricError(f"no change {change!r}; {choose_from(change, CHANGES)}")
    return Metric(
        name,
        partial(_stability, of=of, samples=samples, radius=radius, noise=noise, change=CHANGES[change]),
        higher_is_better=False,
        label=f"relative {label}",
        needs=("images", "inspect_layer" if of is _of_layer else "inspect", "draw"),
        settings={"samples": samples, "radius": radius, "noise": noise, "change": change},
        passes=f"the method {samples + 1} times",
        paper=AGARWAL,
        family="robustness",
        bounds=None,
        altered_by="noise of relative stability",
    )


def elementwise_change(values: Float[Tensor, " n *space"], changed: Float[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Euclidean norm of the relative changes of all elements; NaN if an element is 0.

    Example:
        >>> elementwise_change(torch.tensor([[2.0, -1.0], [2.0, 0.0]]), torch.tensor([[8.0, 3.0], [8.0, 3.0]]))
        tensor([5., nan], dtype=torch.float64)
    """
    before, after = values.double().flatten(1), changed.double().flatten(1)
    return ((after - before) / before).norm(dim=1).masked_fill((before == 0).any(dim=1), torch.nan)


CHANGES: dict[str, Change] = {"norm": relative_change, "elements": elementwise_change}


def _stability(
    images: Tensor,
    inspect: Inspect,
    draw: Callable[..., Tensor],
    *,
    of: Of,
    samples: int,
    radius: float,
    noise: str,
    change: Change,
) -> Tensor:
    before = inspect(images)
    quotients = []
    for number in range(samples):  # the same noisy images for the three metrics
        changed = images + noise_like(images, draw, noise, radius, f"relative-stability {number}")
        after = inspect(changed)
        denominator = of(change, images, changed, before, after)
        quotient = change(before.attributions, after.attributions) / denominator.masked_fill(denominator == 0, torch.nan)
        quotients.append(quotient.masked_fill(after.predicted != before.predicted, -torch.inf))
    largest = reduce(torch.maximum, quotients)
    return largest.masked_fill(largest == -torch.inf, torch.nan)


def _of_input(change: Change, images: Tensor, changed: Tensor, before: Inspection, after: Inspection) -> Tensor:
    return change(images, changed)


def _of_layer(change: Change, images: Tensor, changed: Tensor, before: Inspection, after: Inspection) -> Tensor:
    if before.activation is None or after.activation is None:
        return torch.full((len(images),), torch.nan, dtype=torch.float64, device=images.device)
    return change(before.activation, after.activation)


def _of_output(change: Change, images: Tensor, changed: Tensor, before: Inspection, after: Inspection) -> Tensor:
    return (after.logits.double() - before.logits.double()).norm(dim=1)


METRICS = (relative_input_stability(), relative_representation_stability(), relative_output_stability())
