"""Metrics of the confidences alone: Average Gain, drop in deletion and the confidence ratio.

Y is the confidence on the original image, O the confidence on the image masked by its explanation map `m`, and D the confidence
on the image masked by `1 - m`; all of the target that was fixed on the original image. The functions know neither models nor
maps. Average Drop and Increase in Confidence are in `xaieval.metrics.drop_and_increase`.

To add a metric, write its function and its `Metric`, and if you want one its class in `torchmetrics_classes`; list the public
names in `__all__` and the `Metric` in `METRICS`. `xaieval.metrics`, `score` and the command line take them from there.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.errors import MetricError
from xaieval.metrics.metric import Metric

__all__ = [
    "average_gain",
    "confidence_ratio",
    "drop_in_deletion",
    "gain",
]

OPTI_CAM = "Zhang et al. 2024, arXiv 2301.07002"
LIFT_CAM = "Jung and Oh 2021, arXiv 2102.05228"


def gain(confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Gain of each image, `100 * max(0, O - Y) / (1 - Y)`, in percent, 0 to 100, higher is better.

    0 if Y is 1, because there is nothing to gain. NaN if Y is not positive, if Y or O is above 1 (not a probability), or if a
    value is not finite.

    Args:
        confidence: Y, `[N]`.
        masked_confidence: O, `[N]`.

    Raises:
        MetricError: The two are not vectors of the same length.

    Reference:
        Zhang et al., "Opti-CAM", CVIU 2024 (arXiv 2301.07002), section 4.2: the summand of Average Gain.

    Example:
        >>> gain(torch.tensor([0.5, 0.5, 1.0]), torch.tensor([0.6, 0.4, 1.0]))
        tensor([20.0000,  0.0000,  0.0000], dtype=torch.float64)
    """
    y, o = checked_vectors(confidence, masked_confidence)
    share = torch.where(y < 1, (o - y).clamp(min=0) / (1 - y), torch.zeros_like(y))
    return (100 * share).masked_fill(~valid(y, o) | (y > 1) | (o > 1), torch.nan)


def average_gain(confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Average Gain, in percent, higher is better: the mean of `gain` over all images, the counterpart of Average Drop.

    NaN if any value is invalid, as for `average_drop`.

    Args:
        confidence: Y, `[N]`, N at least 1.
        masked_confidence: O, `[N]`.

    Raises:
        MetricError: The two are not vectors of the same length, or are empty.

    Reference:
        Zhang et al., "Opti-CAM", CVIU 2024 (arXiv 2301.07002), section 4.2.

    Example:
        >>> average_gain(torch.tensor([0.5, 0.5]), torch.tensor([0.6, 0.4]))
        tensor(10.0000, dtype=torch.float64)
    """
    return mean_of(gain(confidence, masked_confidence))


AVERAGE_GAIN = Metric("average_gain", gain, higher_is_better=True, label="AG %", paper=OPTI_CAM, family="faithfulness")


def confidence_ratio(confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Share of each image's confidence that its map keeps, `100 * O / Y`, in percent, 0 or more, higher is better.

    Above 100 if the confidence rises. `drop` is `100 - ratio`, but at least 0. One image with a small Y can have a ratio of
    thousands and dominate the mean; the bound of `drop` prevents that. NaN if Y is not positive or a value is not finite.

    Args:
        confidence: Y, `[N]`.
        masked_confidence: O, `[N]`.

    Raises:
        MetricError: The two are not vectors of the same length.

    Reference:
        We know of no paper that defines it under this name. Chattopadhay et al., "Grad-CAM++", WACV 2018, section 4.1, subtract
        this quotient from 1 and clip at 0.

    Example:
        >>> confidence_ratio(torch.tensor([0.8, 0.5, 0.0]), torch.tensor([0.6, 0.75, 0.1]))
        tensor([ 75.0000, 150.0000,      nan], dtype=torch.float64)
    """
    y, o = checked_vectors(confidence, masked_confidence)
    return (100 * o / y).masked_fill(~valid(y, o), torch.nan)


CONFIDENCE_RATIO = Metric(
    "confidence_ratio", confidence_ratio, higher_is_better=True, label="O / Y %", family="faithfulness", bounds=None
)


def drop_in_deletion(confidence: Float[Tensor, " n"], inverse_confidence: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Drop of each image after its map is deleted, `100 * (Y - D) / Y`, in percent, at most 100, higher is better.

    D is the confidence on the image masked by `1 - m`, which removes what the map shows. Unlike `drop` it is not clipped at 0:
    an image whose confidence rises counts against the map. NaN if Y is not positive or a value is not finite.

    Args:
        confidence: Y, `[N]`.
        inverse_confidence: D, `[N]`.

    Raises:
        MetricError: The two are not vectors of the same length.

    Reference:
        Jung and Oh, "Towards Better Explanations of Class Activation Mapping" (LIFT-CAM), ICCV 2021 (arXiv 2102.05228): the
        summand of Average Drop in Deletion (ADD).

    Example:
        >>> drop_in_deletion(torch.tensor([0.8, 0.5, 0.0]), torch.tensor([0.2, 0.75, 0.1]))
        tensor([ 75., -50.,  nan], dtype=torch.float64)
    """
    y, d = checked_vectors(confidence, inverse_confidence, "confidence and inverse_confidence")
    return (100 * (y - d) / y).masked_fill(~valid(y, d), torch.nan)


DROP_IN_DELETION = Metric(
    "drop_in_deletion",
    drop_in_deletion,
    higher_is_better=True,
    label="ADD %",
    needs=("confidence", "inverse_confidence"),
    passes="1",
    paper=LIFT_CAM,
    family="faithfulness",
    bounds=None,
)


METRICS = (AVERAGE_GAIN, DROP_IN_DELETION, CONFIDENCE_RATIO)


def checked_vectors(
    confidence: Tensor, other: Tensor, names: str = "confidence and masked_confidence"
) -> tuple[Tensor, Tensor]:
    """Return both in float64.

    Raises:
        MetricError: They are not vectors of the same length; `names` says in the message what they are.
    """
    if confidence.ndim != 1 or confidence.shape != other.shape:
        raise MetricError(f"{names} are vectors [N] of one length, got {list(confidence.shape)} and {list(other.shape)}")
    return confidence.double(), other.double()


def valid(y: Tensor, other: Tensor) -> Tensor:
    """Return which images have a positive, finite Y and a finite other confidence."""
    return (y > 0) & y.isfinite() & other.isfinite()


def mean_of(values: Tensor) -> Tensor:
    """Return the mean over images.

    Raises:
        MetricError: There are no images.
    """
    if not len(values):
        raise MetricError("a mean needs at least one image, got none; give at least one confidence")
    return values.mean()
