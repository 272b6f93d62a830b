"""Models of one output per image or pixel: a binary classifier, a one-channel segmentation network, or a regression."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.errors import ModelError, UsageError, choose_from
from xaieval.inference.targets import describe_value

__all__ = ["Single", "as_classes", "check_single", "has_one_output", "two_sided"]

Single = Literal["binary", "value"]


def check_single(single: str | None) -> None:
    """Check the name of a way to read one output.

    Raises:
        UsageError: There is no such way.
    """
    if single is not None and single not in get_args(Single):
        raise UsageError(f"no single {single!r}; {choose_from(single, get_args(Single))}")


def has_one_output(logits: Any, images: int, axes: int) -> bool:
    """Whether a model's output has no axis of classes, or only one class.

    Args:
        logits: The output.
        images: The number of images that it is of.
        axes: The number of axes of logits of several classes.

    Example:
        >>> [has_one_output(torch.zeros(shape), images=2, axes=2) for shape in ((2, 1), (2,), (2, 3))]
        [True, True, False]
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        return False
    squeezed = logits.ndim == axes - 1 and len(logits) == images
    alone = images == 1 and logits.ndim == axes - 2 <= 2  # squeeze() of a batch of one image; of a volume it says nothing
    return alone or squeezed or (logits.ndim == axes and logits.shape[1] == 1)


def as_classes(logits: Float[Tensor, "n k *space"], single: Single | None) -> Float[Tensor, "n c *space"]:
    """The logits of the classes: unchanged, or for one output that is read as "binary" those of its two classes.

    Raises:
        ModelError: There are several outputs, but `single` says that there is one.
    """
    if single is not None and logits.shape[1] != 1:
        raise ModelError(f"one output is expected (single={single!r}), but the model's output is {describe_value(logits)}")
    return two_sided(logits) if single == "binary" else logits


def two_sided(logits: Float[Tensor, "n 1 *space"]) -> Float[Tensor, "n 2 *space"]:
    """One logit z as the logits (-z, z) of the classes 0 and 1: their sigmoids are 1 - p and p, and z > 0 predicts class 1.

    Example:
        >>> two_sided(torch.tensor([[2.0]]))
        tensor([[-2.,  2.]])
    """
    return torch.cat([-logits, logits], dim=1)
