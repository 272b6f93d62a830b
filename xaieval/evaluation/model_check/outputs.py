"""What the outputs of the first images say: probabilities instead of logits, values that are not finite, a uniform guess."""

from __future__ import annotations

import torch
from torch import Tensor

from xaieval.evaluation.model_check.look import Look
from xaieval.inference.targets import Confidence
from xaieval.results.findings import Finding

__all__ = ["find_in_outputs"]

SUM = 1e-3  # largest difference of a sum of probabilities from 1
UNIFORM = 0.99  # share of the largest possible entropy
FEWEST = 16  # outputs that have to lie in [0, 1] before they are taken for probabilities of independent classes


def find_in_outputs(look: Look, kind: Confidence) -> list[Finding]:
    """Check the outputs `[N, K, ...]` of a classifier or a segmentation network.

    Args:
        look: The forward pass.
        kind: The confidence of the protocol. Of a function nothing is known, and the identity takes the outputs as they are.
    """
    if not isinstance(look.read, Tensor):
        return []
    outputs = look.read.detach().float()
    broken = int((~outputs.flatten(1).isfinite().all(dim=1)).sum())
    if broken:
        return [_not_finite(broken, len(outputs))]
    if kind not in ("softmax", "sigmoid"):
        return []
    if outputs.shape[1] == 2 and torch.equal(outputs[:, 0], -outputs[:, 1]):
        outputs = outputs[:, 1:]  # one output, which the task has read as two
    return [*_probabilities(outputs, str(kind)), *(_uniform(outputs) if kind == "softmax" else [])]


def _not_finite(broken: int, images: int) -> Finding:
    return Finding(
        "nan_outputs",
        f"the model's output is NaN or infinite on {broken} of the first {images} images, which will have no values; look for "
        "images out of range, a division by zero in the model, or float16 that overflows",
        {"broken": broken, "images": images},
    )


def _probabilities(outputs: Tensor, kind: str) -> list[Finding]:
    lowest, highest = float(outputs.min()), float(outputs.max())
    if lowest < 0 or highest > 1:
        return []
    sums = outputs.sum(dim=1)
    add_up = outputs.shape[1] > 1 and bool(((sums - 1).abs() < SUM).all())
    if not add_up and outputs.numel() < FEWEST:
        return []
    shape = "between 0 and 1 with a sum of 1 over the classes" if add_up else "between 0 and 1"
    return [
        Finding(
            "probabilities_for_logits",
            f"the model's outputs look like probabilities ({shape}, {outputs.numel()} values), and the protocol takes the "
            f"{kind} of them once more, which makes all confidences alike; give the logits by output= (before the model's own "
            "softmax or sigmoid), or take the outputs unchanged by the protocol's confidence='identity'",
            {"minimum": lowest, "maximum": highest, "sum": float(sums.mean()), "classes": outputs.shape[1]},
        )
    ]


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
            f"the model can hardly tell its {classes} classes apart (the entropy of its softmax is {100 * entropy:.1f} % of "
            "the largest possible), as with random weights or logits without their temperature; load trained weights, or scale "
            "the logits by output=",
            {"entropy": entropy, "classes": classes},
        )
    ]
