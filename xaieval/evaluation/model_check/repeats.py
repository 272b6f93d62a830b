"""Whether an image gives the same numbers twice: in other company, and in the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xaieval.evaluation.model_check.look import Look
from xaieval.results.findings import Finding

__all__ = ["find_in_repeats"]

CHANGED = {torch.float16: 0.05, torch.bfloat16: 0.05}  # largest relative change of a confidence by rounding
BY_ROUNDING = 0.01  # in float32, on GPUs with TF32 too

Confidences = Callable[[Tensor, Tensor], Tensor]


def find_in_repeats(model: nn.Module, look: Look, confidences: Confidences) -> list[Finding]:
    """Run the images once more in two halves. If that changes a confidence, run the first half once more as it was.

    Args:
        model: The model.
        look: The forward pass of all images.
        confidences: Runs the model on images `[n, C, H, W]`, the images of these numbers `[n]`, and gives the confidences of
            what is followed on them.
    """
    images, numbers = look.images, torch.arange(len(look.images), device=look.images.device)
    if len(images) > 1:
        halves = [half for half in (numbers[: len(images) // 2], numbers[len(images) // 2 :]) if len(half)]
        apart = torch.cat([confidences(images[half], half) for half in halves])
    else:  # one image: with its mirror image as company
        halves = [numbers]
        apart = confidences(torch.cat([images, images.flip(-1)]), numbers.repeat(2))[:1]
    tolerance = CHANGED.get(images.dtype, BY_ROUNDING)
    change = _change(apart, look.confidence)
    if change <= tolerance:
        return []
    again = _change(confidences(images[halves[0]], halves[0]), apart[halves[0]]) if len(images) > 1 else 0.0
    return [_random(again) if again > tolerance else _coupled(model, change)]


def _change(after: Tensor, before: Tensor) -> float:
    """The largest change of a confidence, relative to it; NaN is no change of NaN."""
    change = (after - before).abs() / before.abs().clamp(min=torch.finfo(before.dtype).tiny)
    return float(change.nan_to_num(nan=0.0).max()) if len(change) else 0.0


def _random(change: float) -> Finding:
    return Finding(
        "nondeterministic",
        f"two passes of the same images differ: confidences change by up to {100 * change:.3g} %, which looks like an effect "
        "of the mask; look for dropout or random crops that eval mode does not switch off",
        {"relative_change": change},
    )


def _coupled(model: nn.Module, change: float) -> Finding:
    norms = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    ]
    reason = f" ({norms[0]!r} is a BatchNorm without running statistics)" if norms else ""
    return Finding(
        "batch_coupled",
        f"the numbers of an image depend on the other images of its batch: confidences change by up to {100 * change:.3g} % in "
        f"another batch{reason}; use running statistics, or deterministic=True, which runs one image at a time",
        {"relative_change": change, "modules": norms},
    )
