"""Win percentage: how often one method's drop is smaller than another's.

It compares two methods, so it is not a metric of a run: `Scores.win_percentages` computes it from the rows.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.metrics.confidence import checked_vectors, mean_of
from xaieval.metrics.metric import Metric

__all__ = ["win", "win_percentage"]

PAPER = "Chattopadhay et al. 2018, arXiv 1710.11063"


def win(drops: Float[Tensor, " n"], other_drops: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Win of one method over another, 100 if its drop is smaller (a tie is not a win) and 0 otherwise, in percent.

    NaN if a value is not finite.

    Args:
        drops: Drops of one method's maps, one an image, `[N]`.
        other_drops: Drops of the other method's maps on the same images, `[N]`.

    Raises:
        MetricError: The two are not vectors of the same length.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018, section 4.1: the summand of Win %.

    Example:
        >>> win(torch.tensor([10.0, 0.0, 30.0]), torch.tensor([20.0, 0.0, 5.0]))
        tensor([100.,   0.,   0.], dtype=torch.float64)
    """
    ours, theirs = checked_vectors(drops, other_drops, "drops and other_drops")
    return (100 * (ours < theirs).to(ours.dtype)).masked_fill(~(ours.isfinite() & theirs.isfinite()), torch.nan)


def win_percentage(drops: Float[Tensor, " n"], other_drops: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Win percentage, in percent, higher is better: how often one method's drop is smaller than the other's.

    A tie is a win of neither, and both drops are 0 on every image whose confidence does not fall. So the percentages of the two
    methods add up to 100 minus the share of ties. `Scores.win_percentages` gives a table for any number of methods.

    NaN if any value is invalid, as for `average_drop`.

    Args:
        drops: Drops of one method's maps, one an image, `[N]`, N at least 1.
        other_drops: Drops of the other method's maps on the same images, `[N]`.

    Raises:
        MetricError: The two are not vectors of the same length, or are empty.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> win_percentage(torch.tensor([10.0, 0.0, 30.0, 1.0]), torch.tensor([20.0, 0.0, 5.0, 2.0]))
        tensor(50., dtype=torch.float64)
    """
    return mean_of(win(drops, other_drops))


WIN_PERCENTAGE = Metric("win_percentage", win, higher_is_better=True, interval="wilson", label="win %", needs=(), paper=PAPER)
