"""Robustness: whether a map is stable under small changes of the image, and whether it predicts changes of the confidence.

Each metric changes the images and runs the method or the model again. A function with settings makes each metric; `METRICS` has
those with the default settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, reduce
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from xaieval.errors import MetricError, choose_from
from xaieval.metrics.changes import NOISE, changes_under_noise, check_noise, check_samples, noise_like
from xaieval.metrics.metric import Metric
from xaieval.metrics.similarity import resolve_similarity

__all__ = [
    "infidelity",
    "max_sensitivity",
    "stability_flip",
    "stability_shift",
]

YEH = "Yeh et al. 2019, arXiv 1901.09392"
CRABBE = "after Crabbe and van der Schaar 2023, arXiv 2304.06715"

Maps = Float[Tensor, " n *space"]
Explain = Callable[[Tensor], Tensor]
Draw = Callable[..., Tensor]
Ask = Callable[[Iterator[tuple[Tensor, Tensor]]], Tensor]


def max_sensitivity(samples: int = 10, radius: float = 0.02, noise: str = "uniform", normalised: bool = False) -> Metric:
    """Max-sensitivity: the largest relative change of the map under noise on the image, 0 or more, lower is better.

    `max_k |phi(x + e_k) - phi(x)| / |phi(x)|` over the drawn noises, with the Euclidean norm over all pixels. NaN if the map of
    the image is zero everywhere. The maximum over a few samples is a lower bound of the maximum over the whole ball.

    By default maps are compared before normalisation, at the size of the image, as in the paper and in captum; the division by
    the norm removes the scale. Normalisation to [0, 1] would hide a change of the whole map, and would depend on its extremes;
    `normalised=True` compares normalised maps, which is what a viewer sees.

    Args:
        samples: Noisy images for each image.
        radius: Half the width of uniform noise in each pixel (a ball of the maximum norm), or the standard deviation of
            Gaussian noise; in the unit of the model's input.
        noise: "uniform" or "gaussian".
        normalised: Compare maps normalised to [0, 1].

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019 (arXiv 1901.09392), the definition of
        max-sensitivity; divided by the norm as in the authors' code and in `captum.metrics.sensitivity_max`.

    Example:
        >>> max_sensitivity(samples=20).settings["samples"]
        20
    """
    check_samples(samples=samples, radius=radius)
    check_noise(noise)
    return Metric(
        "max_sensitivity",
        partial(_max_sensitivity, samples=samples, radius=radius, noise=noise),
        higher_is_better=False,
        label="max-sensitivity",
        needs=("maps", "images", "explain", "draw") if normalised else ("attributions", "images", "attribute", "draw"),
        settings={"samples": samples, "radius": radius, "noise": noise, "normalised": normalised},
        passes=f"the method {samples} times",
        paper=YEH,
        family="robustness",
        bounds=None,
        altered_by="noise",
    )


def infidelity(samples: int = 10, size: float = 0.25, perturbation: str = "square", scaled: bool = True) -> Metric:
    """Infidelity: squared error of the confidence changes that the map predicts, in confidence squared, lower is better.

    `mean_k (b I_k . phi - (f(x) - f(x_k)))^2` over changed images `x_k`, 0 or more. f is the confidence, and the product runs
    over all pixels and channels, with the map's value in each channel. With noise, `x_k = x - I_k`. With squares, `I_k` is 1
    inside a square and 0 outside, and the pixels inside are set to 0: the map predicts a change by its sum over the square. b
    is 1, or with `scaled` the factor that minimises the mean. Maps of the CAM family have no unit, so without b infidelity
    would compare their scales.

    Args:
        samples: Changed images for each image.
        size: Side of the squares as a share of each side of the image, in (0, 1]; or the standard deviation of Gaussian noise,
            or half the width of uniform noise, in the unit of the model's input.
        perturbation: "square", "gaussian" or "uniform".
        scaled: Fit b, as in the paper's experiments; False for maps in the unit of the confidence, such as gradients.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019 (arXiv 1901.09392), the definition of
        infidelity in section 2, and square removal; `captum.metrics.infidelity`, with `normalize=True` for `scaled`.

    Example:
        >>> infidelity(scaled=False).settings["scaled"]
        False
    """
    check_samples(samples=samples, size=size)
    if perturbation not in (known := ("square", *NOISE)):
        raise MetricError(f"no perturbation {perturbation!r}; {choose_from(perturbation, known)}")
    if perturbation == "square" and size > 1:
        raise MetricError(f"size of a square is a share of a side, in (0, 1], got {size}")
    return Metric(
        "infidelity",
        partial(_infidelity, samples=samples, size=size, perturbation=perturbation, scaled=scaled),
        higher_is_better=False,
        needs=("confidence", "attributions", "images", "ask", "draw"),
        divides=False,
        settings={"samples": samples, "size": size, "perturbation": perturbation, "scaled": scaled},
        passes=str(samples),
        paper=YEH,
        family="faithfulness",
        bounds=None,
        altered_by="infidelity",
    )


def stability_shift(share: float = 1 / 16, similarity: str = "pearson") -> Metric:
    """Stability under shifts: similarity of the map to the map of the shifted image, shifted back, -1 to 1, higher is better.

    The image is shifted by a share of its side in both directions along each axis; its edge is repeated to fill the gap. The
    map of the shifted image is shifted back and compared with the map of the image in the region that both show. The value is
    the mean over the directions; NaN if a map is constant in such a region.

    Args:
        share: Share of a side to shift by, in (0, 0.5); at least one pixel.
        similarity: "pearson", which does not depend on the normalisation of the two maps, "spearman" or "ssim".

    Raises:
        MetricError: A setting is out of range, or the similarity is unknown.

    Reference:
        Crabbe and van der Schaar, "Evaluating the Robustness of Interpretability Methods through Explanation Invariance and
        Equivariance", NeurIPS 2023 (arXiv 2304.06715): explanation equivariance, of which this is the case of small shifts.

    Example:
        >>> stability_shift(similarity="spearman").settings["similarity"]
        'spearman'
    """
    if not 0 < share < 0.5:
        raise MetricError(f"share of a side lies in (0, 0.5), got {share}")
    alike = resolve_similarity(similarity)
    return Metric(
        "stability_shift",
        partial(_stability_shift, share=share, alike=alike),
        higher_is_better=True,
        label="shift stability",
        needs=("maps", "images", "explain"),
        settings={"share": share, "similarity": similarity},
        passes="the method 4 times (6 of volumes)",
        paper=CRABBE,
        family="robustness",
        bounds=(-1.0, 1.0),
        altered_by="shifts",
    )


def stability_flip(similarity: str = "pearson") -> Metric:
    """Stability under a flip: similarity of the map to the map of the flipped image, flipped back, -1 to 1, higher is better.

    Left and right are exchanged. NaN if one of the two maps is constant.

    Args:
        similarity: "pearson", "spearman" or "ssim".

    Raises:
        MetricError: The similarity is unknown.

    Reference:
        Crabbe and van der Schaar, NeurIPS 2023 (arXiv 2304.06715): explanation equivariance, of which this is one case.

    Example:
        >>> stability_flip().passes
        'the method once'
    """
    alike = resolve_similarity(similarity)
    return Metric(
        "stability_flip",
        partial(_stability_flip, alike=alike),
        higher_is_better=True,
        label="flip stability",
        needs=("maps", "images", "explain"),
        settings={"similarity": similarity},
        passes="the method once",
        paper=CRABBE,
        family="robustness",
        bounds=(-1.0, 1.0),
        altered_by="a flip",
    )


def _squared_error(predicted: Float[Tensor, "n s"], actual: Float[Tensor, "n s"], scaled: bool = True) -> Float[Tensor, " n"]:
    """Mean squared difference over S samples, 0 or more; with `scaled` after the predictions are scaled by the best factor.

    The factor of an image is `sum_k predicted_k actual_k / sum_k predicted_k^2`; 1 if all its predictions are 0.

    Args:
        predicted: Changes predicted by the map, `[N, S]`.
        actual: Changes of the model's confidence, `[N, S]`.
        scaled: Fit the factor.

    Example:
        >>> _squared_error(torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 2.0]]))
        tensor([0.], dtype=torch.float64)
        >>> _squared_error(torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 2.0]]), scaled=False)
        tensor([2.5000], dtype=torch.float64)
    """
    predicted, actual = predicted.double(), actual.double()
    if scaled:
        size = predicted.square().sum(dim=1, keepdim=True)
        factor = (predicted * actual).sum(dim=1, keepdim=True) / size
        predicted = predicted * factor.masked_fill(size == 0, 1)
    return (predicted - actual).square().mean(dim=1)


def _max_sensitivity(
    maps: Tensor, images: Tensor, again: Explain, draw: Draw, *, samples: int, radius: float, noise: str
) -> Tensor:
    return reduce(torch.maximum, changes_under_noise(maps, images, again, draw, samples, radius, noise))


def _infidelity(
    confidence: Tensor,
    attributions: Tensor,
    images: Tensor,
    ask: Ask,
    draw: Draw,
    *,
    samples: int,
    size: float,
    perturbation: str,
    scaled: bool,
) -> Tensor:
    indices = torch.arange(len(images), device=images.device)
    predicted: list[Tensor] = []

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(samples):
            change, changed = _perturbed(draw, images, perturbation, size, f"infidelity {number}")
            predicted.append((change.double().sum(dim=1) * attributions).flatten(1).sum(dim=1))
            yield changed, indices

    confidences = ask(blocks()).double().view(samples, len(images))
    return _squared_error(torch.stack(predicted, dim=1), confidence[:, None] - confidences.T, scaled)


def _perturbed(draw: Draw, images: Tensor, perturbation: str, size: float, name: str) -> tuple[Tensor, Tensor]:
    """I and the changed image, for each image."""
    if perturbation == "square":
        inside = _square(draw, images, size, name)
        return inside.expand_as(images), images * (1 - inside)
    change = noise_like(images, draw, perturbation, size, name)
    return change, images - change


def _square(draw: Draw, images: Tensor, size: float, name: str) -> Tensor:
    """1 inside a square at a random position of each image and 0 outside, `[N, 1, H, W]`; a cube for volumes."""
    sides = images.shape[2:]
    corners = draw((len(sides),), name)
    inside = images.new_ones(len(images), 1, *(1 for _ in sides))
    for axis, side in enumerate(sides):
        length = max(1, round(size * side))
        start = (corners[:, axis, None] * (side - length + 1)).floor()
        places = torch.arange(side, device=images.device)
        line = (places >= start) & (places < start + length)
        inside = inside * line.view(len(images), 1, *(side if other == axis else 1 for other in range(len(sides))))
    return inside


def _stability_shift(
    maps: Tensor, images: Tensor, explain: Explain, *, share: float, alike: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    similarities = [
        alike(_moved(maps, axis, -step), _moved(explain(shifted(images, axis, step)), axis, step))
        for axis, step in _steps(images, share)
    ]
    return torch.stack(similarities).mean(dim=0)


def _steps(images: Tensor, share: float) -> list[tuple[int, int]]:
    """The directions: an axis, counted from the last, and the number of pixels to shift by."""
    axes = range(2 - images.ndim, 0)
    return [(axis, sign * max(1, round(share * images.shape[axis]))) for axis, sign in product(axes, (1, -1))]


def shifted(images: Tensor, axis: int, step: int, fill: Tensor | None = None) -> Tensor:
    """The images shifted towards larger indices by `step`, with their edge repeated, or with a value of each image, `[N]`."""
    pads = [0] * (2 * (images.ndim - 2))
    pads[2 * (-axis - 1) + (step < 0)] = abs(step)
    padded = functional.pad(images, pads, mode="replicate")
    moved = padded.narrow(axis, max(-step, 0), images.shape[axis])
    if fill is None:
        return moved
    places = torch.arange(images.shape[axis], device=images.device) - step
    outside = ((places < 0) | (places >= images.shape[axis])).view(-1, *[1] * (-axis - 1))
    return torch.where(outside, fill.view(-1, *[1] * (images.ndim - 1)), moved)


def _moved(maps: Tensor, axis: int, step: int) -> Tensor:
    """The maps without their first `step` cells along an axis, or without their last ones if it is negative."""
    return maps.narrow(axis, max(step, 0), maps.shape[axis] - abs(step))


def _stability_flip(maps: Tensor, images: Tensor, explain: Explain, *, alike: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return alike(maps, explain(images.flip(-1)).flip(-1))


METRICS = (max_sensitivity(), infidelity(), stability_shift(), stability_flip())
