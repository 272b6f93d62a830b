"""The metrics that are functions of confidences alone, by name, with the conventions that a protocol may ask for."""

from __future__ import annotations

import torch  # noqa: F401  # for the examples
from jaxtyping import Float
from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.metrics.functional import confidence_ratio, drop, drop_in_deletion, gain, increase, win
from xaieval.metrics.metric import Metric

__all__ = [
    "AVERAGE_DROP",
    "AVERAGE_GAIN",
    "CONFIDENCE_METRICS",
    "CONFIDENCE_RATIO",
    "DROP_IN_DELETION",
    "INCREASE_IN_CONFIDENCE",
    "WIN_PERCENTAGE",
    "drop_by",
    "increase_by",
]

DEFAULT = Protocol()
BY_PROTOCOL = ("confidence", "masked_confidence", "protocol")


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


GRAD_CAM_PP = "Chattopadhay et al. 2018, arXiv 1710.11063"
OPTI_CAM = "Zhang et al. 2024, arXiv 2301.07002"
LIFT_CAM = "Jung and Oh 2021, arXiv 2102.05228"

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
DROP_IN_DELETION = Metric(
    "drop_in_deletion",
    drop_in_deletion,
    higher_is_better=True,
    label="ADD %",
    needs=("confidence", "inverse_confidence"),
    passes="1",
    paper=LIFT_CAM,
)
CONFIDENCE_RATIO = Metric("confidence_ratio", confidence_ratio, higher_is_better=True, label="O / Y %")

# Of two methods, so it is not among the metrics of a run: `Scores.win_percentages` takes it from the rows.
WIN_PERCENTAGE = Metric(
    "win_percentage", win, higher_is_better=True, interval="wilson", label="win %", needs=(), paper=GRAD_CAM_PP
)

CONFIDENCE_METRICS = (AVERAGE_DROP, INCREASE_IN_CONFIDENCE, AVERAGE_GAIN, DROP_IN_DELETION, CONFIDENCE_RATIO)
