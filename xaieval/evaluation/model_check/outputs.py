"""What the outputs of the first images say: probabilities, values that are not finite, a uniform guess, several outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xaieval.evaluation.model_check.look import Look
from xaieval.inference.one_output import Single
from xaieval.inference.targets import Confidence
from xaieval.inference.tasks import Classification, Segmentation, Task
from xaieval.results.findings import Finding

__all__ = ["find_in_outputs", "find_several_outputs"]

SUM = 1e-3  # largest difference of a sum of probabilities from 1
UNIFORM = 0.99  # share of the largest possible entropy
FEWEST = 16  # outputs that have to lie in [0, 1] before they are taken for probabilities of independent classes


def find_in_outputs(look: Look, kind: Confidence, single: Single | None = None) -> list[Finding]:
    """Check the outputs `[N, K, ...]` of a classifier or a segmentation network.

    Args:
        look: The forward pass.
        kind: The confidence of the protocol. Of a function nothing is known, and the identity takes the outputs as they are.
        single: How the task reads one output.
    """
    if not isinstance(look.read, Tensor):
        return []
    outputs = look.read.detach().float()
    broken = int((~outputs.flatten(1).isfinite().all(dim=1)).sum())
    if broken:
        return [_not_finite(broken, look.images)]
    if kind not in ("softmax", "sigmoid"):
        return []
    if single == "binary":
        outputs = outputs[:, 1:]  # one output, which the task has read as two
    shape = _shape_of_probabilities(outputs, look.made_by, str(kind))
    if shape:
        return [_probabilities(outputs, shape, str(kind), look.logits_at)]
    return _uniform(outputs) if kind == "softmax" else []


def _not_finite(broken: int, images: Tensor) -> Finding:
    inputs = int((~images.flatten(1).isfinite().all(dim=1)).sum())
    reason = (
        f"{inputs} of these images contain NaN or infinite values themselves, as where pixels have no data; replace them "
        "before the model sees them, for example by the mean of their channel (0 after normalisation)"
        if inputs
        else "look for images out of range, a division by zero in the model, or float16 that overflows"
    )
    return Finding(
        "nan_outputs",
        f"the model's output is NaN or infinite on {broken} of the first {len(images)} images, which will have no values; "
        f"{reason}",
        {"broken": broken, "images": len(images), "broken_images": inputs},
    )


def _shape_of_probabilities(outputs: Tensor, made_by: str | None, kind: str) -> str:
    """Why outputs are probabilities, or their logarithms where those are no logits; "" if they are neither.

    Logarithms of a softmax are logits for the softmax, and for nothing else.
    """
    sums, total = outputs.sum(dim=1), 1
    if float(outputs.min()) < 0 or float(outputs.max()) > 1:
        logs = float(outputs.max()) <= 0 and outputs.shape[1] > 1 and bool(((outputs.exp().sum(dim=1) - 1).abs() < SUM).all())
        if made_by == "log_sigmoid" or (kind == "sigmoid" and (logs or made_by == "log_softmax")):
            return "the logarithms of numbers between 0 and 1"
        if float(outputs.min()) < 0 or outputs.shape[1] < 2 or not bool(((sums - 100).abs() < 100 * SUM).all()):
            return ""
        total = 100
    if outputs.shape[1] > 1 and bool(((sums - total).abs() < total * SUM).all()):
        return f"between 0 and {total} with a sum of {total} over the classes"
    if made_by == "probabilities":
        return "between 0 and 1, from a sigmoid or softmax"
    return "between 0 and 1" if made_by != "logits" and outputs.numel() >= FEWEST else ""


def _probabilities(outputs: Tensor, shape: str, kind: str, logits_at: int | str | None) -> Finding:
    lowest, highest, classes = float(outputs.min()), float(outputs.max()), outputs.shape[1]
    return Finding(
        "probabilities_for_logits",
        f"the model's outputs look like probabilities ({shape}, {outputs.numel()} values), and the protocol takes the {kind} "
        f"of them once more, which makes all confidences alike; {_way_out(classes, lowest, highest, logits_at)}",
        {"minimum": lowest, "maximum": highest, "sum": float(outputs.sum(dim=1).mean()), "classes": classes},
    )


def _way_out(classes: int, lowest: float, highest: float, logits_at: int | str | None) -> str:
    """How to get at the logits of probabilities."""
    if logits_at is not None:
        return f"output={logits_at!r} has their logits"
    if classes == 1 and lowest >= 0 and highest <= 1:
        return "turn them back into logits by output=lambda o: o.logit(), or give the model without its sigmoid"
    return (
        "give the logits by output= (before the model's own softmax or sigmoid), or take the outputs unchanged by the "
        "protocol's confidence='identity'"
    )


def _uniform(outputs: Tensor) -> list[Finding]:
    """Whether the softmax of every image is nearly uniform."""
    classes = outputs.shape[1]
    if classes < 2:
        return []
    logs = outputs.log_softmax(dim=1)
    entropy = float((-(logs.exp() * logs).sum(dim=1)).mean() / torch.tensor(classes).log())
    if entropy < UNIFORM:
        return []
    return [
        Finding(
            "near_uniform_outputs",
            f"the model gives its {classes} classes nearly equal confidences (the entropy of its softmax is "
            f"{100 * entropy:.1f} % of the largest possible), as with random weights or logits without their temperature; load "
            "trained weights, or scale the logits by output=",
            {"entropy": entropy, "classes": classes},
        )
    ]


def find_several_outputs(look: Look, task: Task, call: Callable[[Tensor], Any]) -> list[Finding]:
    """Whether a model returns several tensors that may be the logits, of which the run takes the first.

    Nothing is found where the first is computed from the others, which are features then.

    Args:
        look: The forward pass.
        task: How the output is read.
        call: Runs the model; called with one image, only where there are several.
    """
    if not isinstance(task, Classification | Segmentation) or task.output is not None or len(_candidates(look.output)) < 2:
        return []
    with torch.enable_grad():
        first, *others = _candidates(call(look.images[:1].clone().requires_grad_())).values()
    if all(_feeds(other, first) for other in others):
        return []
    shapes = {number: list(one.shape) for number, one in _candidates(look.output).items()}
    listed = ", ".join(f"{shape} at {number}" for number, shape in shapes.items())
    from_it = "; the others are computed from it, so that it may be features" if all(_feeds(first, o) for o in others) else ""
    return [
        Finding(
            "several_outputs",
            f"the model returns several tensors that may be its logits ({listed}), and the run takes the first one{from_it}; "
            f"output={next(number for number in shapes if number)} takes another, and output=0 the first without this warning",
            {"shapes": list(shapes.values())},
        )
    ]


def _candidates(output: Any) -> dict[int, Tensor]:
    """The items of a tuple or list that have as many axes as the first one, by their place; no `[N, 1]`."""
    items = dict(enumerate(output)) if isinstance(output, tuple | list) and not hasattr(output, "logits") else {}
    found = {number: one for number, one in items.items() if isinstance(one, Tensor) and one.is_floating_point()}
    axes = found[0].ndim if 0 in found else None
    return {number: one for number, one in found.items() if one.ndim == axes and (axes > 2 or one.shape[1:].numel() > 1)}


def _feeds(source: Tensor, result: Tensor) -> bool:
    """Whether a tensor is computed from another."""
    if not (source.requires_grad and result.requires_grad):
        return False
    [gradient] = torch.autograd.grad(result.sum(), source, retain_graph=True, allow_unused=True)
    return gradient is not None
