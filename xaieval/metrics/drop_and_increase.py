"""Average Drop and Increase in Confidence, the two metrics of Grad-CAM++, with the conventions that a protocol may choose.

Y is the confidence on the original image and O the confidence on the image masked by its explanation map; both of the target
that was fixed on the original image. The functions know neither models nor maps.
"""

from __future__ import annotations

from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.config.protocol import Denominator, Drops, Protocol, Ties
from xaieval.errors import MetricError, choose_from
from xaieval.metrics.confidence import checked_vectors, mean_of, valid
from xaieval.metrics.metric import Metric

__all__ = [
    "average_drop",
    "drop",
    "drop_by",
    "increase",
    "increase_by",
    "increase_in_confidence",
]

PAPER = "Chattopadhay et al. 2018, arXiv 1710.11063"

BY_PROTOCOL = ("confidence", "masked_confidence", "protocol")
DEFAULT = Protocol()


def drop(
    confidence: Float[Tensor, " n"],
    masked_confidence: Float[Tensor, " n"],
    *,
    denominator: Denominator = "confidence",
    drops: Drops = "all",
    epsilon: float = 0.0,
) -> Float[Tensor, " n"]:
    """Drop of each image, `100 * max(0, Y - O) / Y`, in percent, 0 to 100 for O >= 0, lower is better.

    NaN if Y is not positive (no epsilon hides it) or if a value is not finite. The options reproduce the numbers of other tools
    (`xaieval.config.presets`).

    Args:
        confidence: Y, `[N]`.
        masked_confidence: O, `[N]`.
        denominator: "none" for the absolute drop `100 * max(0, Y - O)`, in percentage points.
        drops: "dropping" for NaN where the confidence does not fall.
        epsilon: Added to the denominator Y.

    Raises:
        MetricError: The two are not vectors of the same length, or an option is unknown.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018, section 4.1: the summand of Average Drop.

    Example:
        >>> drop(torch.tensor([0.8, 0.5, 0.0]), torch.tensor([0.6, 0.9, 0.1]))
        tensor([25.0000,  0.0000,     nan], dtype=torch.float64)
    """
    y, o = checked_vectors(confidence, masked_confidence)
    _check_option("denominator", denominator, get_args(Denominator))
    _check_option("drops", drops, get_args(Drops))
    below = torch.ones_like(y) if denominator == "none" else y + epsilon
    left_out = (o >= y) & (drops == "dropping")
    return (100 * (y - o).clamp(min=0) / below).masked_fill(~valid(y, o) | left_out, torch.nan)


def drop_by(
    confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"], protocol: Protocol = DEFAULT
) -> Float[Tensor, " n"]:
    """`drop` with the options of a protocol: in percent of Y, or in percentage points without a denominator; lower is better.

    Args:
        confidence: Y, `[N]`.
        masked_confidence: O, `[N]`.
        protocol: Its `denominator`, `drops` and `epsilon` are used.

    Raises:
        MetricError: The two are not vectors of the same length.

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


def average_drop(
    confidence: Float[Tensor, " n"],
    masked_confidence: Float[Tensor, " n"],
    *,
    denominator: Denominator = "confidence",
    drops: Drops = "all",
    epsilon: float = 0.0,
) -> Float[Tensor, ""]:
    """Average Drop, in percent, lower is better: the mean of `drop` over all images.

    NaN if any value is invalid; select the valid images explicitly, or use the class `AverageDrop`, which counts the others.

    Args:
        confidence: Y, `[N]`, N at least 1.
        masked_confidence: O, `[N]`.
        denominator: "none" for the absolute drop, in percentage points.
        drops: "dropping" for the mean over only those images whose confidence falls; NaN if there are none.
        epsilon: Added to the denominator Y.

    Raises:
        MetricError: The two are not vectors of the same length, are empty, or an option is unknown.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> average_drop(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]))
        tensor(12.5000, dtype=torch.float64)
    """
    values = drop(confidence, masked_confidence, denominator=denominator, epsilon=epsilon)
    _check_option("drops", drops, get_args(Drops))
    if drops == "dropping" and len(values):
        return values[values != 0].mean()  # keeps NaN, and is NaN if no confidence falls
    return mean_of(values)


AVERAGE_DROP = Metric(
    "average_drop", drop_by, higher_is_better=False, label="AD %", needs=BY_PROTOCOL, paper=PAPER, family="faithfulness"
)


def increase(
    confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"], *, ties: Ties = "no_increase"
) -> Float[Tensor, " n"]:
    """Increase of each image, 100 if `O > Y` (strictly: a tie is not an increase) and 0 otherwise, in percent, higher is
    better.

    NaN if a value is not finite. It only compares, so it has a value even if Y is not positive, unlike `drop`.

    Args:
        confidence: Y, `[N]`.
        masked_confidence: O, `[N]`.
        ties: "increase" for 100 where the two are equal.

    Raises:
        MetricError: The two are not vectors of the same length, or the option is unknown.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018, section 4.1: the summand of Increase in Confidence.

    Example:
        >>> increase(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.4, 0.5, 0.6]))
        tensor([  0.,   0., 100.], dtype=torch.float64)
    """
    y, o = checked_vectors(confidence, masked_confidence)
    _check_option("ties", ties, get_args(Ties))
    rises = (o >= y) if ties == "increase" else (o > y)
    return (100 * rises.to(y.dtype)).masked_fill(~(y.isfinite() & o.isfinite()), torch.nan)


def increase_by(
    confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"], protocol: Protocol = DEFAULT
) -> Float[Tensor, " n"]:
    """`increase` with the options of a protocol: 100 or 0, in percent, higher is better.

    Args:
        confidence: Y, `[N]`.
        masked_confidence: O, `[N]`.
        protocol: Its `ties` is used.

    Raises:
        MetricError: The two are not vectors of the same length.

    Example:
        >>> increase_by(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.6]), Protocol(ties="increase"))
        tensor([100., 100.], dtype=torch.float64)
    """
    return increase(confidence, masked_confidence, ties=protocol.ties)


def increase_in_confidence(
    confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"], *, ties: Ties = "no_increase"
) -> Float[Tensor, ""]:
    """Increase in Confidence, in percent, higher is better: the share of images with `O > Y`.

    NaN if any value is not finite.

    Args:
        confidence: Y, `[N]`, N at least 1.
        masked_confidence: O, `[N]`.
        ties: "increase" for the share of images with `O >= Y`.

    Raises:
        MetricError: The two are not vectors of the same length, are empty, or the option is unknown.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> increase_in_confidence(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]))
        tensor(50., dtype=torch.float64)
    """
    return mean_of(increase(confidence, masked_confidence, ties=ties))


INCREASE_IN_CONFIDENCE = Metric(
    "increase_in_confidence",
    increase_by,
    True,
    interval="wilson",
    label="IC %",
    needs=BY_PROTOCOL,
    paper=PAPER,
    divides=False,
    family="faithfulness",
)


METRICS = (AVERAGE_DROP, INCREASE_IN_CONFIDENCE)


def _check_option(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise MetricError(f"{name}={value!r} is not a choice; {choose_from(value, options)}")
