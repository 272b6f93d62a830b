"""Metrics as pure functions of confidences.

With Y the confidence on the original image and O the confidence on the image masked by its own explanation map, both of the
class that was fixed on the original image. The functions know neither models nor maps.
"""

from __future__ import annotations

from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.errors import MetricError, choose_from
from xaieval.metrics.metric import Metric
from xaieval.protocol import Denominator, Drops, Protocol, Ties

__all__ = [
    "AVERAGE_DROP",
    "AVERAGE_GAIN",
    "CONFIDENCE_METRICS",
    "INCREASE_IN_CONFIDENCE",
    "average_drop",
    "average_gain",
    "drop",
    "drop_by",
    "gain",
    "increase",
    "increase_by",
    "increase_in_confidence",
]

DEFAULT = Protocol()
BY_PROTOCOL = ("confidence", "masked_confidence", "protocol")


def drop(
    confidence: Float[Tensor, " n"],
    masked_confidence: Float[Tensor, " n"],
    *,
    denominator: Denominator = "confidence",
    drops: Drops = "all",
    epsilon: float = 0.0,
) -> Float[Tensor, " n"]:
    """Drop of each image, `100 * max(0, Y - O) / Y`, in percent, 0 to 100 for O >= 0, lower is better.

    NaN where Y is not positive (there is no epsilon to hide it) or a value is not finite. The options are for numbers that have
    to be compared with those of a tool that computes them otherwise (`xaieval.presets`).

    Args:
        confidence: Y, `[N]`.
        masked_confidence: O, `[N]`.
        denominator: "none" for the absolute drop `100 * max(0, Y - O)`, in percent points.
        drops: "dropping" for NaN where the confidence does not fall.
        epsilon: added to the denominator Y.

    Raises:
        MetricError: the two are not vectors of one length, or an option is unknown.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018, section 4.1: the summand of Average Drop.

    Example:
        >>> drop(torch.tensor([0.8, 0.5, 0.0]), torch.tensor([0.6, 0.9, 0.1]))
        tensor([25.0000,  0.0000,     nan], dtype=torch.float64)
    """
    y, o = _checked(confidence, masked_confidence)
    _check_option("denominator", denominator, get_args(Denominator))
    _check_option("drops", drops, get_args(Drops))
    below = torch.ones_like(y) if denominator == "none" else y + epsilon
    left_out = (o >= y) & (drops == "dropping")
    return (100 * (y - o).clamp(min=0) / below).masked_fill(~_valid(y, o) | left_out, torch.nan)


def increase(
    confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"], *, ties: Ties = "no_increase"
) -> Float[Tensor, " n"]:
    """Increase of each image, 100 where `O > Y` (strictly: a tie is no increase) and 0 elsewhere, in percent, higher is better.

    NaN where Y is not positive or a value is not finite, so that all metrics count the same images.

    Args:
        confidence: Y, `[N]`.
        masked_confidence: O, `[N]`.
        ties: "increase" for 100 where the two are equal.

    Raises:
        MetricError: the two are not vectors of one length, or the option is unknown.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018, section 4.1: the summand of Increase in Confidence.

    Example:
        >>> increase(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.4, 0.5, 0.6]))
        tensor([  0.,   0., 100.], dtype=torch.float64)
    """
    y, o = _checked(confidence, masked_confidence)
    _check_option("ties", ties, get_args(Ties))
    rises = (o >= y) if ties == "increase" else (o > y)
    return (100 * rises.to(y.dtype)).masked_fill(~_valid(y, o), torch.nan)


def drop_by(
    confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"], protocol: Protocol = DEFAULT
) -> Float[Tensor, " n"]:
    """`drop` as a protocol has it: in percent of Y, or in percent points without a denominator; lower is better.

    Args:
        confidence: Y, `[N]`.
        masked_confidence: O, `[N]`.
        protocol: `denominator`, `drops`, `epsilon`.

    Raises:
        MetricError: the two are not vectors of one length.

    Example:
        >>> drop_by(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]), Protocol(denominator="none")).round(decimals=3)
        tensor([20.,  0.], dtype=torch.float64)
    """
    return drop(
        confidence,
        masked_confidence,
        denominator=protocol.denominator,
        drops=protocol.drops,
        epsilon=protocol.epsilon,
    )


def increase_by(
    confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"], protocol: Protocol = DEFAULT
) -> Float[Tensor, " n"]:
    """`increase` as a protocol has it: 100 or 0, in percent, higher is better.

    Args:
        confidence: Y, `[N]`.
        masked_confidence: O, `[N]`.
        protocol: `ties`.

    Raises:
        MetricError: the two are not vectors of one length.

    Example:
        >>> increase_by(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.6]), Protocol(ties="increase"))
        tensor([100., 100.], dtype=torch.float64)
    """
    return increase(confidence, masked_confidence, ties=protocol.ties)


def gain(confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Gain of each image, `100 * max(0, O - Y) / (1 - Y)`, in percent, 0 to 100, higher is better.

    0 where Y is 1, since there is nothing to gain. NaN where Y is not positive, where one of the two is above 1 (they are
    no probabilities then), or a value is not finite.

    Args:
        confidence: Y, `[N]`.
        masked_confidence: O, `[N]`.

    Raises:
        MetricError: the two are not vectors of one length.

    Reference:
        Zhang et al., "Opti-CAM", CVIU 2024 (arXiv 2301.07002), section 4.2: the summand of Average Gain.

    Example:
        >>> gain(torch.tensor([0.5, 0.5, 1.0]), torch.tensor([0.6, 0.4, 1.0]))
        tensor([20.0000,  0.0000,  0.0000], dtype=torch.float64)
    """
    y, o = _checked(confidence, masked_confidence)
    share = torch.where(y < 1, (o - y).clamp(min=0) / (1 - y), torch.zeros_like(y))
    return (100 * share).masked_fill(~_valid(y, o) | (y > 1) | (o > 1), torch.nan)


def average_drop(
    confidence: Float[Tensor, " n"],
    masked_confidence: Float[Tensor, " n"],
    *,
    denominator: Denominator = "confidence",
    drops: Drops = "all",
    epsilon: float = 0.0,
) -> Float[Tensor, ""]:
    """Average Drop, in percent, lower is better: the mean of `drop` over all images.

    NaN if one of the values cannot be used: leave such images out by name, not by accident.

    Args:
        confidence: Y, `[N]`, N at least 1.
        masked_confidence: O, `[N]`.
        denominator: "none" for the absolute drop, in percent points.
        drops: "dropping" for the mean over the images alone whose confidence falls; NaN if there is none.
        epsilon: added to the denominator Y.

    Raises:
        MetricError: the two are not vectors of one length, or are empty, or an option is unknown.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> average_drop(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]))
        tensor(12.5000, dtype=torch.float64)
    """
    values = drop(confidence, masked_confidence, denominator=denominator, epsilon=epsilon)
    _check_option("drops", drops, get_args(Drops))
    if drops == "dropping" and len(values):
        return values[values != 0].mean()  # which keeps NaN, and is NaN where no confidence falls
    return _mean(values)


def increase_in_confidence(
    confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"], *, ties: Ties = "no_increase"
) -> Float[Tensor, ""]:
    """Increase in Confidence, in percent, higher is better: the share of images with `O > Y`.

    NaN if one of the values cannot be used: leave such images out by name, not by accident.

    Args:
        confidence: Y, `[N]`, N at least 1.
        masked_confidence: O, `[N]`.
        ties: "increase" for the share of images with `O >= Y`.

    Raises:
        MetricError: the two are not vectors of one length, or are empty, or the option is unknown.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> increase_in_confidence(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]))
        tensor(50., dtype=torch.float64)
    """
    return _mean(increase(confidence, masked_confidence, ties=ties))


def average_gain(confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Average Gain, in percent, higher is better: the mean of `gain` over all images, the counterpart of Average Drop.

    NaN if one of the values cannot be used: leave such images out by name, not by accident.

    Args:
        confidence: Y, `[N]`, N at least 1.
        masked_confidence: O, `[N]`.

    Raises:
        MetricError: the two are not vectors of one length, or are empty.

    Reference:
        Zhang et al., "Opti-CAM", CVIU 2024 (arXiv 2301.07002), section 4.2.

    Example:
        >>> average_gain(torch.tensor([0.5, 0.5]), torch.tensor([0.6, 0.4]))
        tensor(10.0000, dtype=torch.float64)
    """
    return _mean(gain(confidence, masked_confidence))


def _check_option(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise MetricError(f"{name}={value!r} is not a choice; {choose_from(value, options)}")


def _checked(confidence: Tensor, masked_confidence: Tensor) -> tuple[Tensor, Tensor]:
    if confidence.ndim != 1 or confidence.shape != masked_confidence.shape:
        raise MetricError(
            "confidence and masked_confidence are vectors [N] of one length, "
            f"got {list(confidence.shape)} and {list(masked_confidence.shape)}"
        )
    return confidence.double(), masked_confidence.double()


def _valid(y: Tensor, o: Tensor) -> Tensor:
    return (y > 0) & y.isfinite() & o.isfinite()


def _mean(values: Tensor) -> Tensor:
    if not len(values):
        raise MetricError("a mean over no images was asked for; give at least one confidence")
    return values.mean()


GRAD_CAM_PP = "Chattopadhay et al. 2018, arXiv 1710.11063"
OPTI_CAM = "Zhang et al. 2024, arXiv 2301.07002"

AVERAGE_DROP = Metric("average_drop", drop_by, higher_is_better=False, label="AD %", needs=BY_PROTOCOL, paper=GRAD_CAM_PP)
INCREASE_IN_CONFIDENCE = Metric(
    "increase_in_confidence",
    increase_by,
    higher_is_better=True,
    interval="wilson",
    label="IC %",
    needs=BY_PROTOCOL,
    paper=GRAD_CAM_PP,
)
AVERAGE_GAIN = Metric("average_gain", gain, higher_is_better=True, label="AG %", paper=OPTI_CAM)

CONFIDENCE_METRICS = (AVERAGE_DROP, INCREASE_IN_CONFIDENCE, AVERAGE_GAIN)
