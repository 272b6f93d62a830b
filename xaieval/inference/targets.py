"""Choose the target class, and turn a model's output into logits and confidences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xaieval.errors import ModelError, TargetError

__all__ = [
    "Confidence",
    "Output",
    "Target",
    "check_labels",
    "choose_targets",
    "confidences",
    "describe_value",
    "find",
    "logits_of",
    "named_classes",
    "take",
]

Output = str | int | Callable[[Any], Tensor] | None
Target = str | int | Callable[..., Tensor]
Confidence = str | Callable[..., Any]

_CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(dim=1),
    "sigmoid": torch.sigmoid,
    "identity": lambda logits: logits,
}


def logits_of(output: Any, where: Output = None, *, single: bool = False) -> Float[Tensor, "n k"]:
    """Find the logits in a model's output.

    Args:
        output: A tensor, an object with `.logits`, a mapping with "logits", "out" or a single entry, or a tuple or list whose
            first item is used.
        where: Where the logits are instead: a key, an index, or a function from the output to logits.
        single: Whether the model has one output per image, which may be `[N]` then, or one number of one image.

    Raises:
        ModelError: The output has no logits `[N, K]` in that place.

    Example:
        >>> logits_of({"logits": torch.zeros(2, 5), "features": torch.zeros(2, 8)}).shape
        torch.Size([2, 5])
    """
    logits = find(output, where)
    if single and isinstance(logits, Tensor) and logits.ndim < 2:
        logits = logits.reshape(-1, 1)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        raise ModelError(
            f"the model's output has no logits [N, K]: got {describe_value(logits)}; say where they are with output= (a key, "
            "an index, or a function of the output)"
        )
    return logits


def confidences(logits: Float[Tensor, "n k"], kind: Confidence = "softmax") -> Float[Tensor, "n k"]:
    """Compute the confidences of all classes: "softmax" and "sigmoid" in [0, 1], "identity" for the logits, or a function.

    They are computed in float64 where the device supports it. Float32 cannot distinguish confidences near 1, so an increase
    between them would be rounding noise.

    Raises:
        ModelError: The function changed the shape.
    """
    wide = logits if logits.device.type == "mps" else logits.double()
    scores: Tensor = _CONFIDENCES[kind](wide) if isinstance(kind, str) else kind(wide)
    if scores.shape != logits.shape:
        raise ModelError(f"the confidence function returned {list(scores.shape)} for logits {list(logits.shape)}")
    return scores


def choose_targets(
    target: Target, logits: Float[Tensor, "n k"], labels: Int[Tensor, " n *classes"] | None = None
) -> Int[Tensor, " n"]:
    """Choose the target class of each image, from the model's output for the original image.

    Args:
        target: "predicted" (the class of the highest logit), "label", a class index, or a function
            `(logits, labels) -> classes [N]`.
        logits: The logits of the original images.
        labels: The true classes `[N]`, or zeros and ones for each class `[N, K]`, which do not work with "label". Only needed
            if the target uses them.

    Raises:
        TargetError: Labels are missing or not one class per image, or a class is outside `0..K-1`.

    Example:
        >>> choose_targets(0, torch.tensor([[0.1, 0.9], [0.8, 0.2]]))
        tensor([0, 0])
    """
    classes = logits.shape[1]
    chosen = named_classes(target, logits, labels, len(logits), logits.device)
    if chosen is None:
        return logits.argmax(dim=1)
    if isinstance(target, int):
        if not 0 <= target < classes:
            raise TargetError(f"no class {target}; the model has {classes} classes, 0 to {classes - 1}")
        return chosen
    return check_labels(chosen, classes, "the data has label" if target == "label" else "the target function returned class")


def named_classes(target: Any, read: Any, labels: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    """Return the classes `[N]` that a target names, without checking that the model has them; None for "predicted".

    Raises:
        TargetError: The target is of an unknown kind, labels are missing, or a function does not return one class per image.
    """
    if callable(target):
        chosen = torch.as_tensor(target(read, labels), device=device)
        if chosen.shape != (count,) or chosen.is_floating_point():
            raise TargetError(f"a target function returns one class index per image, got {chosen.dtype} {list(chosen.shape)}")
        return chosen.long()
    if target == "predicted":
        return None
    if target == "label":
        return _one_label_each(labels)
    if not isinstance(target, int) or isinstance(target, bool):
        raise TargetError(f"target {target!r} is not 'predicted', 'label', a class index or a function")
    return torch.full((count,), target, device=device)


def _one_label_each(labels: Tensor | None) -> Tensor:
    """The labels `[N]`, if each image has exactly one class."""
    if labels is None:
        raise TargetError("target 'label' needs labels, but the data has none; use target='predicted' or a class index")
    if labels.ndim > 1:
        raise TargetError(
            "target 'label' needs one class per image, but the labels are zeros and ones for each class, "
            f"{list(labels.shape)}; give target= as a class index, or as a function of logits and labels"
        )
    return labels


def check_labels(labels: Int[Tensor, " n"], classes: int, what: str) -> Int[Tensor, " n"]:
    """Return the labels if all of them are classes of the model.

    Raises:
        TargetError: A label is not a class of the model.
    """
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise TargetError(f"{what} {int(outside[0])}, but the model has {classes} classes, 0 to {classes - 1}")
    return labels


def take(scores: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Select each image's score of its own target class."""
    return scores.gather(1, targets[:, None]).squeeze(1)


def find(output: Any, where: Output = None) -> Any:
    """Return the part of an output at a key, at an index or by a function. Default: where models usually have their logits.

    An index may be text, as on the command line: "1" is the key of that name, or else the index 1.
    """
    if callable(where):
        return where(output)
    if where is not None:
        try:
            return output[_key(output, where)]
        except (KeyError, IndexError, TypeError) as error:
            raise ModelError(f"the model's output has no {where!r}: it is {_describe_container(output)}") from error
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        only = next(iter(output.values())) if len(output) == 1 else None
        return output.get("logits", output.get("out", only))
    return output[0] if isinstance(output, tuple | list) and output else output


def _key(output: Any, where: str | int) -> str | int:
    named = isinstance(output, Mapping) and where in output
    return int(where) if isinstance(where, str) and not named and where.lstrip("-").isdecimal() else where


def describe_value(value: Any) -> str:
    """Describe a value in an error message: the dtype and shape of a tensor, else the type."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _describe_container(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a mapping with {', '.join(map(repr, output))}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
