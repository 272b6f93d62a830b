"""Whether an image gives the same numbers twice: in other company, and in the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xaieval.evaluation.model_check.look import Look
from xaieval.inference.reproducibility import random_states, same_states
from xaieval.results.findings import Finding

__all__ = ["find_in_repeats"]

CHANGED = {torch.float16: 0.05, torch.bfloat16: 0.05}  # largest relative change of a confidence by rounding
BY_ROUNDING, ON_CPU = 0.01, 0.003  # in float32; GPUs may use TF32
REPEATED = 0.01  # share of that change which the same images in the same batch can have

MOST = 4  # images that run again: what couples or changes images does so with all of them

Confidences = Callable[[Tensor, Tensor], Tensor]


def find_in_repeats(model: nn.Module, look: Look, confidences: Confidences, alone: bool = False) -> list[Finding]:
    """Run half of the images, at most `MOST`, once more by themselves. If that changes a confidence, run them again so.

    Args:
        model: The model.
        look: The forward pass of all images.
        confidences: Runs the model on images `[n, C, H, W]`, the images of these numbers `[n]`, and gives the confidences of
            what is followed on them.
        alone: Whether the run never has two images in a pass.
    """
    images, numbers = look.images, torch.arange(len(look.images), device=look.images.device)
    tolerance = CHANGED.get(images.dtype, ON_CPU if images.device.type == "cpu" else BY_ROUNDING)
    before = random_states()
    # From the second half, in reverse: no image stays the first or the last of its batch, unless there are two.
    halves = numbers.flip(0).split(min(len(images) - len(images) // 2, MOST))
    parts = halves[:1] if len(images) > 2 else halves
    if len(images) > 1 or alone:
        other = torch.cat([confidences(images[part], part) for part in parts])
    else:  # in company of another image: its mirror image, brighter, because an equal one changes no statistics
        other = confidences(torch.cat([images, 3 * images.flip(-1)]), numbers.repeat(2))[:1]
    change, drawn = _change(other, look.confidence[torch.cat(parts)]), not same_states(before, random_states())
    if change <= tolerance and not drawn:
        return []
    if change > tolerance and (alone or drawn):
        return [_random(change)]
    part = parts[0]
    same = (other if len(images) > 1 else look.confidence)[: len(part)]  # of the same images in the same batch
    again = max(_change(confidences(images[part], part), same) for _ in range(2 if drawn and len(images) > 2 else 1))
    if drawn:  # the numbers may have been the same by chance
        return [_random(again)] if again > tolerance else []
    return [_random(again) if again > REPEATED * tolerance else _coupled(model, change)]


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
