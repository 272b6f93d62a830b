"""The model parameter randomisation test (MPRT) as metrics: whether the map depends on what the model has learned.

`xaieval.sanity_check` shows the test part by part, and says which methods fail it. The metrics have one number per image, so a
run reports them like other metrics, with intervals and controls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.errors import MetricError, choose_from
from xaieval.metrics.changes import check_samples, noise_like
from xaieval.metrics.metric import Inspection, Metric
from xaieval.metrics.similarity import fits, resolve_similarity

__all__ = ["discrete_entropy", "efficient_mprt", "mprt", "smooth_mprt"]

ADEBAYO = "Adebayo et al. 2018, arXiv 1810.03292"
HEDSTROEM = "Hedström et al. 2024, arXiv 2401.06465"
ORDERS = ("top_down", "bottom_up", "independent", "complete")

Maps = Float[Tensor, " n *space"]
Inspect = Callable[[Tensor], Inspection]
Randomise = Callable[[str, Sequence[str] | None, Callable[[Inspect], Tensor]], list[Tensor]]
Draw = Callable[..., Tensor]


def mprt(
    order: str = "top_down",
    similarity: str = "spearman",
    modules: str | Sequence[str] | None = None,
    absolute: bool = False,
) -> Metric:
    """Parameter randomisation test: mean similarity of the map to those of random models, -1 to 1, lower is better.

    Parameters become random part by part, and after each step the map for the same target is compared with that of the trained
    model. The value is the mean over the steps with a similarity, and `rows` keep all steps as `mprt_curve`. NaN if no step has
    one: constant maps and maps with NaN or inf have no correlation. Random values depend on the seed and the path of the
    module, and the model is returned unchanged.

    Args:
        order: "top_down" from the output, as in the paper, or "bottom_up", one part more in each step; "independent", one part
            at a time; or "complete", one step in which all are random, the cheapest.
        similarity: "spearman" or "pearson" of maps as the method returns them, or "ssim" of maps in [0, 1].
        modules: The parts, as paths or patterns such as "layer*", each with everything inside it. Default: each module with its
            own parameters. A deep model has many, and the method runs once for each.
        absolute: Compare absolute values, as Quantus does, so that a change of the sign does not count.

    Raises:
        MetricError: A setting is unknown.

    Reference:
        Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv 1810.03292), section 3; Quantus' `MPRT` with
        `return_average_correlation`.

    Example:
        >>> mprt("complete", similarity="ssim").passes
        'the method once'
    """
    return _similarity_metric("mprt", "MPRT", order, similarity, modules, absolute, smooth=None)


def smooth_mprt(
    order: str = "bottom_up",
    similarity: str = "spearman",
    modules: str | Sequence[str] | None = None,
    absolute: bool = False,
    samples: int = 10,
    noise_level: float = 0.1,
) -> Metric:
    """Smooth MPRT: as `mprt`, of maps that are means over noisy images, -1 to 1, lower is better.

    Gradient maps are noisy, and noise lowers every similarity, so `mprt` prefers noisy methods. The mean over noisy
    images removes it before maps are compared. The noise is the same for the trained and for the random models.

    Args:
        order: As for `mprt`; from the input, as in the paper.
        similarity: As for `mprt`.
        modules: As for `mprt`.
        absolute: As for `mprt`.
        samples: Images for each image: itself and noisy ones. The paper and Quantus take 50.
        noise_level: Standard deviation of the Gaussian noise, as a share of the range of the image's values.

    Raises:
        MetricError: A setting is unknown or out of range.

    Reference:
        Hedström et al., "Sanity Checks Revisited: An Exploration to Repair the Model Parameter Randomisation Test", 2024 (arXiv
        2401.06465), sMPRT; Quantus' `SmoothMPRT`.

    Example:
        >>> smooth_mprt("complete", samples=50).passes
        'the method 100 times'
    """
    check_samples(samples=samples, noise_level=noise_level)
    return _similarity_metric("smooth_mprt", "smooth MPRT", order, similarity, modules, absolute, _Smooth(samples, noise_level))


def efficient_mprt(bins: int = 100) -> Metric:
    """Efficient MPRT: rise of the map's complexity when all parameters are random, -1 or more, higher is better.

    `(H(phi') - H(phi)) / H(phi)`, where H is the entropy of the histogram of the map's values, phi the map of the trained model
    and phi' that of the random one. 1 means twice the entropy, 0 no change. Maps are not compared pixel by pixel, so noise does
    not matter, and one random model is enough. NaN if the map of the trained model is constant, because its entropy is 0.

    Args:
        bins: Bins of equal width from the smallest to the largest value of each map.

    Raises:
        MetricError: There are fewer than two bins.

    Reference:
        Hedström et al., "Sanity Checks Revisited", 2024 (arXiv 2401.06465), eMPRT, with 100 bins; Quantus' `EfficientMPRT`.

    Example:
        >>> efficient_mprt().higher_is_better
        True
    """
    if bins < 2:
        raise MetricError(f"bins is at least 2, got {bins}")
    return Metric(
        "efficient_mprt",
        partial(_efficient_mprt, bins=bins),
        higher_is_better=True,
        label="efficient MPRT",
        needs=("attributions", "images", "randomise"),
        settings={"bins": bins},
        passes="the method once",
        paper=HEDSTROEM,
        family="randomisation",
        bounds=None,
        altered_by="random parameters at once",
    )


def discrete_entropy(maps: Maps, bins: int = 100) -> Float[Tensor, " n"]:
    """Entropy of the histogram of each map's values, in nats, 0 to the logarithm of the number of bins.

    A constant map has entropy 0. NaN if a map has NaN or inf.

    Args:
        maps: Maps, `[N, H, W]`.
        bins: Bins of equal width from the smallest to the largest value of each map; the last one includes its upper end.

    Example:
        >>> discrete_entropy(torch.tensor([[[0.0, 0.1, 0.9, 1.0]], [[2.0, 2.0, 2.0, 2.0]]]), bins=2)
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    flat = maps.double().flatten(1)
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    places = ((flat - low) / (high - low) * bins).nan_to_num(0, 0, 0).long().clamp(max=bins - 1)
    counts = torch.zeros(len(flat), bins, dtype=torch.float64, device=flat.device)
    counts.scatter_add_(1, places, torch.ones_like(flat))
    entropy = torch.special.entr(counts / flat.shape[1]).sum(dim=1)
    return entropy.masked_fill(~flat.isfinite().all(dim=1), torch.nan)


@dataclass(frozen=True)
class _Smooth:
    samples: int
    level: float


def _similarity_metric(
    name: str,
    label: str,
    order: str,
    similarity: str,
    modules: str | Sequence[str] | None,
    absolute: bool,
    smooth: _Smooth | None,
) -> Metric:
    if order not in ORDERS:
        raise MetricError(f"no order {order!r}; {choose_from(order, ORDERS)}")
    resolve_similarity(similarity)
    named = modules if modules is None else (modules,) if isinstance(modules, str) else tuple(modules)
    times = 1 if smooth is None else smooth.samples
    return Metric(
        name,
        partial(_mprt, order=order, similarity=similarity, modules=named, absolute=absolute, smooth=smooth),
        higher_is_better=False,
        label=label,
        needs=("maps", "attributions", "images", "inspect_maps", "draw", "randomise"),
        settings={"order": order, "similarity": similarity, "modules": named, "absolute": absolute}
        | ({} if smooth is None else {"samples": smooth.samples, "noise_level": smooth.level}),
        passes=_cost(order, times, smooth is not None),
        paper=ADEBAYO if smooth is None else HEDSTROEM,
        family="randomisation",
        bounds=(-1.0, 1.0),
        altered_by=f"random parameters of {name}",
    )


def _cost(order: str, times: int, again: bool) -> str:
    if order == "complete":
        count = times * (1 + again)
        return "the method once" if count == 1 else f"the method {count} times"
    each = "once" if times == 1 else f"{times} times"
    return f"the method {each} for each part of the model" + (", and for the model" if again else "")


def _mprt(
    maps: Tensor,
    attributions: Tensor,
    images: Tensor,
    inspect: Inspect,
    draw: Draw,
    randomise: Randomise,
    *,
    order: str,
    similarity: str,
    modules: Sequence[str] | None,
    absolute: bool,
    smooth: _Smooth | None,
) -> tuple[Tensor, Tensor]:
    def explained(inspect: Inspect) -> Tensor:
        if smooth is None:
            return _compared(inspect(images), similarity)
        return torch.stack([_compared(inspect(each), similarity) for each in _noisy(images, draw, smooth)]).mean(dim=0)

    before = explained(inspect) if smooth is not None else _compared(_Own(maps, attributions), similarity)
    steps = randomise(order, modules, lambda random: _similar(before, explained(random), similarity, absolute))
    curve = torch.stack(steps, dim=1)
    return curve.nanmean(dim=1), curve


class _Own(NamedTuple):
    """What is known of the images themselves."""

    maps: Tensor
    attributions: Tensor


def _compared(known: Inspection | _Own, similarity: str) -> Tensor:
    """The maps that are compared; those that are constant up to rounding, which have no order, are constant to the last bit."""
    if similarity == "ssim":
        return known.maps.double()
    constant = (known.maps == 0).flatten(1).all(dim=1)
    return known.attributions.double().masked_fill(constant.view(-1, *[1] * (known.maps.ndim - 1)), 0)


def _noisy(images: Tensor, draw: Draw, smooth: _Smooth) -> Iterator[Tensor]:
    """The images themselves, and all but one of the samples with noise."""
    yield images
    flat = images.flatten(1)
    scale = (smooth.level * (flat.amax(dim=1) - flat.amin(dim=1))).view(-1, *[1] * (images.ndim - 1))
    for number in range(1, smooth.samples):
        yield images + scale * noise_like(images, draw, "gaussian", 1.0, f"smooth-mprt {number}")


def _similar(before: Maps, after: Maps, similarity: str, absolute: bool) -> Float[Tensor, " n"]:
    if not fits(similarity, before):
        return torch.full((len(before),), torch.nan, dtype=torch.float64, device=before.device)
    pair = (before.abs(), after.abs()) if absolute else (before, after)
    return resolve_similarity(similarity)(*pair)


def _efficient_mprt(attributions: Tensor, images: Tensor, randomise: Randomise, *, bins: int) -> Tensor:
    before = discrete_entropy(attributions, bins)
    [after] = randomise("complete", None, lambda inspect: discrete_entropy(inspect(images).attributions, bins))
    return ((after - before) / before).masked_fill(before == 0, torch.nan)


METRICS = (mprt(), smooth_mprt(), efficient_mprt())
