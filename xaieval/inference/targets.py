"""Choose the target class, and turn a model's output into logits and confidences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from xaieval.config.labels import IGNORED
from xaieval.data.labels import Labels, OtherLabels, one_class_each
from xaieval.errors import ModelError, TargetError

__all__ = [
    "Confidence",
    "Output",
    "Target",
    "check_target",
    "choose_targets",
    "compared_classes",
    "compared_score",
    "confidences",
    "describe_value",
    "find",
    "given_classes",
    "is_class_of_each_image",
    "known_classes",
    "logits_of",
    "named_classes",
    "take",
]

Output = str | int | Callable[[Any], Tensor] | None
Target = str | int | Sequence[int] | Callable[..., Tensor]
Confidence = str | Callable[..., Any]

SIMILAR_CLASSES = 3  # of "similar", as in torch-cam

SOFTMAX = 1e-3  # how much probabilities may differ from the softmax of logits, which were rounded to half precision

BY_LABEL = ("label", "each")  # for the latter, every image comes once for each of its classes, with that class as its label

_CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(dim=1),
    "sigmoid": torch.sigmoid,
    "identity": lambda logits: logits,
}


def logits_of(output: Any, where: Output = None, *, single: bool = False) -> Float[Tensor, "n k"]:
    """Find the logits in a model's output.

    Args:
        output: A tensor, an object with `.logits`, a mapping with "logits", "out" or a single entry, or a tuple or list whose
            first item is used, or the one whose softmax it is; these may be nested.
        where: Where the logits are instead: a key, the name of an attribute, an index, or a function from the output to logits.
        single: Whether the model has one output per image, which may be `[N]` then, or one number of one image.

    Raises:
        ModelError: The output has no logits `[N, K]` in that place.

    Example:
        >>> logits_of({"logits": torch.zeros(2, 5), "features": torch.zeros(2, 8)}).shape
        torch.Size([2, 5])
    """
    logits = find(output, where)
    if where is None and isinstance(output, tuple | list):
        logits = next((one for one in output[1:] if _is_softmax(logits, one)), logits)
    if single and isinstance(logits, Tensor) and logits.ndim < 2:
        logits = logits.reshape(-1, 1)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        raise ModelError(
            f"the model's output has no logits [N, K]: got {describe_value(logits if isinstance(logits, Tensor) else output)}; "
            f"say where they are with output= (a key, an index, or a function of the output){_other_task(output, logits)}"
        )
    return logits


def _is_softmax(probabilities: Any, logits: Any) -> bool:
    """Whether one tensor is the softmax of another, as in the output of classifiers of ultralytics."""
    pair = [one for one in (probabilities, logits) if isinstance(one, Tensor) and one.ndim == 2 and one.is_floating_point()]
    if len(pair) < 2 or pair[0].shape != pair[1].shape or pair[0].shape[1] < 2:
        return False
    return torch.allclose(pair[0].detach().float(), pair[1].detach().float().softmax(dim=1), atol=SOFTMAX)


def _other_task(output: Any, logits: Any) -> str:
    """The task that an output looks like."""
    if isinstance(logits, Tensor) and logits.ndim == 4:
        return ", or give task='segmentation'"
    parts = output if isinstance(output, list | tuple) else [output]
    detects = any({"boxes", "pred_boxes"} & one.keys() for one in parts if isinstance(one, Mapping))
    return ", or give task='detection'" if detects else ""


def confidences(logits: Float[Tensor, "n k"], kind: Confidence = "softmax") -> Float[Tensor, "n k"]:
    """Compute the confidences of all classes: "softmax" and "sigmoid" in [0, 1], "identity" for the logits, or a function.

    They are computed in float64 where the device supports it. Float32 cannot distinguish confidences near 1, so an increase
    between them would be rounding noise.

    Raises:
        ModelError: The function changed the shape.
    """
    wide = logits if logits.device.type == "mps" else logits.double()
    wide = wide.clone() if wide is logits and not isinstance(kind, str) else wide  # a function may write into it
    scores: Tensor = _CONFIDENCES[kind](wide) if isinstance(kind, str) else kind(wide)
    if scores.shape != logits.shape:
        raise ModelError(f"the confidence function returned {list(scores.shape)} for logits {list(logits.shape)}")
    return scores


def choose_targets(target: Target, logits: Float[Tensor, "n k"], labels: Labels = None) -> Int[Tensor, " n"]:
    """Choose the target class of each image, from the model's output for the original image.

    Args:
        target: "predicted" (the class of the highest logit), "label", a class index, or a function
            `(logits, labels) -> classes [N]`.
        logits: The logits of the original images.
        labels: The true classes `[N]`, or zeros and ones for each class `[N, K]`, which do not work with "label". Only needed
            if the target uses them.

    Returns:
        The classes; -1 for an image without a label, if the target is "label": one that is negative, or 255 where the model
        does not have that class.

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
    if isinstance(target, int) and not 0 <= target < classes:
        raise TargetError(f"no class {target}; the model has {classes} classes, 0 to {classes - 1}")
    return known_classes(target, chosen, classes)


def check_target(target: Any) -> None:
    """Check that a target is of a known kind, before there is anything to choose from.

    Raises:
        TargetError: It is not.
    """
    known = callable(target) or (isinstance(target, str) and target in ("predicted", *BY_LABEL))
    if not (known or _is_class(target) or is_class_of_each_image(target)):
        raise TargetError(f"target {target!r} is not 'predicted', 'label', a class index or a function")


def named_classes(target: Any, read: Any, labels: Labels, count: int, device: torch.device) -> Tensor | None:
    """Return the classes `[N]` that a target names, without checking that the model has them; None for "predicted".

    Raises:
        TargetError: The target is of an unknown kind, labels are missing, or a function does not return one class per image.
    """
    if callable(target):
        given = labels.given if isinstance(labels, OtherLabels) else labels
        own = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, read)  # it may write into them
        chosen = torch.as_tensor(target(own, given), device=device)
        if chosen.shape != (count,) or chosen.is_floating_point():
            raise TargetError(f"a target function returns one class index per image, got {chosen.dtype} {list(chosen.shape)}")
        return chosen.long()
    if isinstance(target, str) and target == "predicted":
        return None
    if isinstance(target, str) and target in BY_LABEL:
        return one_class_each(labels, f"target {target!r}", _remedy(labels)).to(device)
    check_target(target)
    return torch.full((count,), target, device=device)


def known_classes(target: Any, chosen: Int[Tensor, " n"], classes: int) -> Int[Tensor, " n"]:
    """Return the classes that a target named if the model has all of them; -1 where an image has no label.

    Args:
        target: The target.
        chosen: The classes that it named.
        classes: The number of classes of the model.

    Raises:
        TargetError: The model does not have a class.
    """
    unlabelled = torch.zeros_like(chosen, dtype=torch.bool)
    what = "the target is class"
    if target is given_classes:
        what = "target= has class"
    elif callable(target):
        what = "the target function returned class"
    elif isinstance(target, str):
        unlabelled, what = (chosen < 0) | ((chosen == IGNORED) & (classes <= IGNORED)), "the data has label"
    outside = chosen[((chosen < 0) | (chosen >= classes)) & ~unlabelled]
    if len(outside):
        raise TargetError(f"{what} {int(outside[0])}, but the model has {classes} classes, 0 to {classes - 1}")
    return chosen.masked_fill(unlabelled, -1)


def given_classes(read: Any, labels: Tensor) -> Tensor:
    """A target function for one class per image, which takes the place of the labels."""
    return labels


def is_class_of_each_image(target: Any) -> TypeGuard[tuple[int, ...]]:
    """Whether a target is a sequence of class indices, one per image."""
    return isinstance(target, tuple) and all(_is_class(one) for one in target)


def _is_class(target: Any) -> bool:
    return isinstance(target, int) and not isinstance(target, bool)


def _remedy(labels: Labels) -> str:
    if labels is None:
        return "use target='predicted' or a class index"
    return "give target= as a class index, or as a function of logits and labels"


def take(scores: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Select each image's score of its own target class; 0 for the class -1, which is none."""
    chosen = scores.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    return chosen.where(targets >= 0, 0)


def compared_classes(
    logits: Float[Tensor, "n k"], targets: Int[Tensor, " n"], against: str | int | Sequence[int], weight: float
) -> tuple[Int[Tensor, "n t"], Float[Tensor, "n t"]]:
    """Choose the classes that the score of each image's target is compared with, and the weight of each.

    Args:
        logits: The logits of the original images.
        targets: The classes that are explained; -1 for none.
        against: "similar", "similar-5", or class indices, as in `Protocol`.
        weight: The sum of the weights of an image; the target itself has weight 0.

    Raises:
        TargetError: The model has no other class, or not the one that is named.

    Example:
        >>> compared_classes(torch.tensor([[3.0, 2.5, 0.0, 3.1]]), torch.tensor([0]), "similar-2", 1.0)
        (tensor([[3, 1]]), tensor([[0.5000, 0.5000]]))
    """
    count, own = logits.shape[1], targets.clamp(min=0)[:, None]
    against = [against] if isinstance(against, int) else against
    if isinstance(against, str):
        wanted = min(int(against.partition("-")[2] or SIMILAR_CLASSES), count - 1)
        if wanted == 0:
            raise TargetError("against= compares classes, and the model has one only; leave it out")
        distances = (logits.detach() - logits.detach().gather(1, own)).abs().scatter(1, own, torch.inf)
        classes = distances.topk(wanted, dim=1, largest=False).indices
    else:
        unknown = [one for one in against if one >= count]
        if unknown:
            raise TargetError(f"against= has class {unknown[0]}, but the model has {count} classes, 0 to {count - 1}")
        classes = torch.tensor(against, device=logits.device).expand(len(logits), -1)
    counted = classes != targets[:, None]
    if not counted.any(dim=1).all():
        raise TargetError(
            f"against= has class {int(classes[~counted.any(dim=1)][0, 0])} alone, which is the target of an image and would be "
            "compared with itself; choose another target= or class"
        )
    return classes, weight * counted / counted.sum(dim=1, keepdim=True)


def compared_score(
    scores: Float[Tensor, "n k"], classes: Int[Tensor, "n t"] | None = None, weights: Float[Tensor, "n t"] | None = None
) -> Float[Tensor, " n"] | float:
    """What the score of the target loses by the comparison: the weighted sum of the scores of the other classes.

    Args:
        scores: Scores of all classes.
        classes: The other classes, as of `compared_classes`; None for no comparison.
        weights: The weight of each.
    """
    if classes is None or weights is None:
        return 0.0
    return (scores.gather(1, classes) * weights.to(scores.dtype)).sum(dim=1)


def find(output: Any, where: Output = None) -> Any:
    """Return the part of an output at a key, attribute or index, or by a function. Default: where models usually have logits.

    An index may be text, as on the command line: "1" is the key of that name, or else the index 1.
    """
    if callable(where):
        # It may write into the output, which tensors of inference mode allow only there.
        inference = any(leaf.is_inference() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        with torch.inference_mode() if inference else nullcontext():
            return where(output)
    if where is not None:
        if isinstance(where, str) and where in _attributes(output):
            return getattr(output, where)
        try:
            return output[_key(output, where)]
        except (KeyError, IndexError, TypeError) as error:
            raise ModelError(f"the model's output has no {where!r}: it is {_describe_container(output)}") from error
    if hasattr(output, "logits"):
        return find(output.logits)
    if isinstance(output, Mapping):
        only = next(iter(output.values())) if len(output) == 1 else None
        return find(output.get("logits", output.get("out", only)))
    return find(output[0]) if isinstance(output, tuple | list) and output else output


def _key(output: Any, where: str | int) -> str | int:
    named = isinstance(output, Mapping) and where in output
    return int(where) if isinstance(where, str) and not named and where.lstrip("-").isdecimal() else where


def _attributes(output: Any) -> list[str]:
    """The names of the fields of a named tuple, or of any other object that is no container."""
    if isinstance(output, Mapping | Tensor):
        return []
    return [*getattr(output, "_fields", vars(output) if hasattr(output, "__dict__") else getattr(output, "__slots__", ()))]


def describe_value(value: Any) -> str:
    """Describe a value in an error message: the dtype and shape of a tensor, else the type and the names in it."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else _describe_container(value)


def _describe_container(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a mapping with {', '.join(map(repr, output))}"
    names = _attributes(output)
    if names:
        return f"a {type(output).__name__} with {', '.join(map(repr, names))}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
