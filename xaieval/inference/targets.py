"""Which class is followed, and how a model's output becomes logits and confidences."""

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
    "find",
    "logits_of",
    "named_classes",
    "one_label_each",
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


def logits_of(output: Any, where: Output = None) -> Float[Tensor, "n k"]:
    """The logits in a model's output.

    Args:
        output: a tensor, an object with `.logits`, a mapping with "logits" or "out" or one entry, a tuple or list (its first).
        where: overrides this: a key, an index, or a function from the output to logits.

    Raises:
        ModelError: there are no logits `[N, K]` to be found.

    Example:
        >>> logits_of({"logits": torch.zeros(2, 5), "features": torch.zeros(2, 8)}).shape
        torch.Size([2, 5])
    """
    found = find(output, where)
    if not isinstance(found, Tensor) or found.ndim != 2 or not found.is_floating_point():
        came = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(
            f"the model's output holds no logits [N, K]: got {came}; say where they are by output= (a key, an index, or a "
            "function of the output)"
        )
    return found


def confidences(logits: Float[Tensor, "n k"], kind: Confidence = "softmax") -> Float[Tensor, "n k"]:
    """Scores of all classes: "softmax" and "sigmoid" lie in [0, 1], "identity" is the logits, or a function of them.

    In float64, where the device has it: float32 cannot tell two confidences near 1 from one another, and whether one of them is
    an increase would be rounding noise.

    Raises:
        ModelError: the function changed the shape.
    """
    wide = logits if logits.device.type == "mps" else logits.double()
    scores: Tensor = _CONFIDENCES[kind](wide) if isinstance(kind, str) else kind(wide)
    if scores.shape != logits.shape:
        raise ModelError(f"the confidence function gave {list(scores.shape)} for logits {list(logits.shape)}")
    return scores


def choose_targets(
    target: Target, logits: Float[Tensor, "n k"], labels: Int[Tensor, " n *classes"] | None = None
) -> Int[Tensor, " n"]:
    """The class to follow for each image, fixed on the original image.

    Args:
        target: "predicted" (the class of the highest logit), "label", a class index, or a function
            `(logits, labels) -> classes [N]`.
        logits: of the original images.
        labels: true classes `[N]`, or zeros and ones of all classes `[N, K]`, of which "label" names none; may be missing
            unless the target needs them.

    Raises:
        TargetError: labels are missing or not one class an image, or a class is outside `0..K-1`.

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
    return check_labels(chosen, classes, "the data has label" if target == "label" else "the target function gave class")


def named_classes(target: Any, read: Any, labels: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    """The classes `[N]` that a target names, whether the model has them or not; None for what is predicted.

    Raises:
        TargetError: the target is of no known kind, labels are missing, or a function does not give one class an image.
    """
    if callable(target):
        chosen = torch.as_tensor(target(read, labels), device=device)
        if chosen.shape != (count,) or chosen.is_floating_point():
            raise TargetError(f"a target function gives one class index an image, got {chosen.dtype} {list(chosen.shape)}")
        return chosen.long()
    if target == "predicted":
        return None
    if target == "label":
        return one_label_each(labels)
    if not isinstance(target, int) or isinstance(target, bool):
        raise TargetError(f"target {target!r} is not 'predicted', 'label', a class index or a function")
    return torch.full((count,), target, device=device)


def one_label_each(labels: Tensor | None) -> Tensor:
    """The labels `[N]`, if there is one class an image.

    Raises:
        TargetError: there are none, or several classes can be true of an image.

    Example:
        >>> one_label_each(torch.tensor([2, 0]))
        tensor([2, 0])
    """
    if labels is None:
        raise TargetError("target 'label' needs labels, but the data has none; use target='predicted' or a class index")
    if labels.ndim > 1:
        raise TargetError(
            f"target 'label' needs one class an image, but the data has zeros and ones of each class, {list(labels.shape)}; "
            "give target= as a class index, or as a function of logits and labels"
        )
    return labels


def check_labels(labels: Int[Tensor, " n"], classes: int, what: str) -> Int[Tensor, " n"]:
    """The labels, if all of them are classes of the model.

    Raises:
        TargetError: one is not.
    """
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise TargetError(f"{what} {int(outside[0])}, but the model has {classes} classes, 0 to {classes - 1}")
    return labels


def take(scores: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Each image's score of its own target."""
    return scores.gather(1, targets[:, None]).squeeze(1)


def find(output: Any, where: Output = None) -> Any:
    """What an output holds at a key, an index or by a function; else where models have their logits."""
    if callable(where):
        return where(output)
    if where is not None:
        try:
            return output[where]
        except (KeyError, IndexError, TypeError) as error:
            raise ModelError(f"the model's output has no {where!r}: it is {_describe(output)}") from error
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        only = next(iter(output.values())) if len(output) == 1 else None
        return output.get("logits", output.get("out", only))
    return output[0] if isinstance(output, tuple | list) and output else output


def _describe(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a mapping with {', '.join(map(repr, output))}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
