"""Metrics as pure functions of confidences.

With Y the confidence on the original image and O the confidence on the image masked by its own explanation map, both of the
class that was fixed on the original image. The functions know neither models nor maps.
"""

from __future__ import annotations

from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.config.protocol import Denominator, Drops, Ties
from xaieval.errors import MetricError, choose_from

__all__ = [
    "average_drop",
    "average_gain",
    "confidence_ratio",
    "drop",
    "drop_in_deletion",
    "gain",
    "increase",
    "increase_in_confidence",
    "win",
    "win_percentage",
]


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
    to be compared with those of a tool that computes them otherwise (`xaieval.config.presets`).

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


def confidence_ratio(confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Share of each image's confidence that its map keeps, `100 * O / Y`, in percent, 0 or more, higher is better.

    Above 100 where the confidence rises. `drop` is `100 - ratio`, but at least 0. One image with a small Y can have a ratio
    of thousands and rule the mean, which is what the bound of `drop` is for. NaN where Y is not positive or a value is not
    finite.

    Args:
        confidence: Y, `[N]`.
        masked_confidence: O, `[N]`.

    Raises:
        MetricError: the two are not vectors of one length.

    Reference:
        No paper that we know of defines it by this name: it is the quotient that Chattopadhay et al., "Grad-CAM++", WACV 2018,
        section 4.1, take from 1 and cut off at 0.

    Example:
        >>> confidence_ratio(torch.tensor([0.8, 0.5, 0.0]), torch.tensor([0.6, 0.75, 0.1]))
        tensor([ 75.0000, 150.0000,      nan], dtype=torch.float64)
    """
    y, o = _checked(confidence, masked_confidence)
    return (100 * o / y).masked_fill(~_valid(y, o), torch.nan)


def drop_in_deletion(confidence: Float[Tensor, " n"], inverse_confidence: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Drop of each image once its map is deleted, `100 * (Y - D) / Y`, in percent, at most 100, higher is better.

    D is the confidence on the image masked by `1 - m`: what the map shows is taken away. Unlike `drop` it is not cut off at 0,
    so that an image whose confidence rises counts against the map. NaN where Y is not positive or a value is not finite.

    Args:
        confidence: Y, `[N]`.
        inverse_confidence: D, `[N]`.

    Raises:
        MetricError: the two are not vectors of one length.

    Reference:
        Jung and Oh, "Towards Better Explanations of Class Activation Mapping" (LIFT-CAM), ICCV 2021 (arXiv 2102.05228): the
        summand of Average Drop in Deletion (ADD).

    Example:
        >>> drop_in_deletion(torch.tensor([0.8, 0.5, 0.0]), torch.tensor([0.2, 0.75, 0.1]))
        tensor([ 75., -50.,  nan], dtype=torch.float64)
    """
    y, d = _checked(confidence, inverse_confidence, "confidence and inverse_confidence")
    return (100 * (y - d) / y).masked_fill(~_valid(y, d), torch.nan)


def win(drops: Float[Tensor, " n"], other_drops: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Win of one method over another, 100 where its drop is smaller (a tie is no win) and 0 elsewhere, in percent.

    NaN where a value is not finite.

    Args:
        drops: of one method's maps, by image, `[N]`.
        other_drops: of the other's on the same images, `[N]`.

    Raises:
        MetricError: the two are not vectors of one length.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018, section 4.1: the summand of Win %.

    Example:
        >>> win(torch.tensor([10.0, 0.0, 30.0]), torch.tensor([20.0, 0.0, 5.0]))
        tensor([100.,   0.,   0.], dtype=torch.float64)
    """
    ours, theirs = _checked(drops, other_drops, "drops and other_drops")
    return (100 * (ours < theirs).to(ours.dtype)).masked_fill(~(ours.isfinite() & theirs.isfinite()), torch.nan)


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


def win_percentage(drops: Float[Tensor, " n"], other_drops: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Win percentage, in percent, higher is better: how often one method's drop is smaller than the other's.

    Ties are wins of neither, and both drops are 0 on every image whose confidence does not fall. So the percentages of the two
    add up to 100 less the share of ties. `Scores.win_percentages` gives a table for any number of methods.

    NaN if one of the values cannot be used: leave such images out by name, not by accident.

    Args:
        drops: of one method's maps, by image, `[N]`, N at least 1.
        other_drops: of the other's on the same images, `[N]`.

    Raises:
        MetricError: the two are not vectors of one length, or are empty.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> win_percentage(torch.tensor([10.0, 0.0, 30.0, 1.0]), torch.tensor([20.0, 0.0, 5.0, 2.0]))
        tensor(50., dtype=torch.float64)
    """
    return _mean(win(drops, other_drops))


def _check_option(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise MetricError(f"{name}={value!r} is not a choice; {choose_from(value, options)}")


def _checked(
    confidence: Tensor, masked_confidence: Tensor, names: str = "confidence and masked_confidence"
) -> tuple[Tensor, Tensor]:
    if confidence.ndim != 1 or confidence.shape != masked_confidence.shape:
        raise MetricError(
            f"{names} are vectors [N] of one length, got {list(confidence.shape)} and {list(masked_confidence.shape)}"
        )
    return confidence.double(), masked_confidence.double()


def _valid(y: Tensor, o: Tensor) -> Tensor:
    return (y > 0) & y.isfinite() & o.isfinite()


def _mean(values: Tensor) -> Tensor:
    if not len(values):
        raise MetricError("a mean over no images was asked for; give at least one confidence")
    return values.mean()
