"""Scores of a model whose output at a layer is changed in many ways: only the part of the model after the layer runs on many.

The part before the layer depends only on the image, so the model runs on one copy of the image, and the layer's output is
expanded on the way to one changed output per change. A few of them are tried first: this does not work if the model joins the
layer's output with another tensor of the original batch size; then full passes are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context, Wanted
from xaieval.inference.batch_limit import BatchLimit, is_out_of_memory
from xaieval.inference.tasks import Classification
from xaieval.probe.addresses import parse, pick
from xaieval.probe.capturing import InPlaceWatch, put

__all__ = ["Change", "changed_scores", "check_single_images"]

Change = Callable[[Tensor, Tensor], Tensor]

TOLERANCE = 1e-4  # largest difference of scores between the two ways of running, as a share of the largest score


def check_single_images(context: Context, name: str, does: str) -> None:
    """Refuse a layer whose output does not have the images first and each axis for one thing.

    Raises:
        ExplainerError: With what the method does to the output.
    """
    layout = context.layout
    if layout is not None and (layout.channel_axis is None or layout.axes[0] != ("N",)):
        raise ExplainerError(
            f"method '{name}' {does}, and the output of layer '{context.layer}' does not have the images first and channels on "
            "one axis; take 'gradcam' or another layer"
        )


def changed_scores(
    context: Context, change: Change, count: int, tried: Tensor, wanted: Wanted | None = None, expand: bool = True
) -> Tensor:
    """Scores `[N, count]` of the targets with each change of the layer's output, without gradients.

    Args:
        context: The context of the batch at a layer.
        change: From outputs of the layer for one image, one for each change, and the numbers of the changes `[G]`, to the
            changed outputs; it may write into the outputs.
        count: The number of changes.
        tried: The numbers of a few changes with different scores.
        wanted: "score", "confidence", or None for what the protocol takes gradients of.
        expand: False uses full passes without a trial.
    """
    expand = expand and _can_expand(context, change, tried, wanted)
    numbers = torch.arange(count, device=context.images.device)
    size = context.size or len(context.images)
    limit = BatchLimit(_outputs_per_pass(context)) if expand else context.batch_limit or BatchLimit(size)

    def scores_of(image: int) -> Tensor:
        return torch.cat(limit.parts(count, lambda part: _scores(context, change, image, numbers[part], wanted, expand)))

    with torch.no_grad():
        return torch.stack([scores_of(image) for image in range(len(context.images))])


def _outputs_per_pass(context: Context) -> int:
    """How many changed outputs run together: in a classifier, as many as take no more memory than the images of a pass.

    The maps of a classifier do not get larger on the way to the logits; other models run on the usual number of images.
    """
    size = context.size or len(context.images)
    if not isinstance(context.task, Classification) or context.activation is None:
        return size
    return max(size, size * context.images[0].numel() // context.activation[0].numel())


def _can_expand(context: Context, change: Change, tried: Tensor, wanted: Wanted | None) -> bool:
    """Whether the model gives the same scores when only the layer's output is expanded."""
    size = context.size or len(context.images)
    with torch.no_grad():
        expected = torch.cat([_scores(context, change, 0, some, wanted, False) for some in tried.split(size)])
        try:
            scores = _scores(context, change, 0, tried, wanted, True)
        except Exception as error:  # a model in which two batch sizes meet may raise anything
            if is_out_of_memory(error) and size > 1:
                raise
            return False
    return scores.shape == expected.shape and torch.allclose(
        scores, expected, rtol=0, atol=TOLERANCE * float(expected.abs().nan_to_num().max()), equal_nan=True
    )


def _scores(context: Context, change: Change, image: int, numbers: Tensor, wanted: Wanted | None, expand: bool) -> Tensor:
    """Scores `[G]` of an image of the batch with the changes of these numbers `[G]`."""

    def many(output: Tensor) -> Tensor:
        return change(torch.cat([output] * len(numbers)) if len(output) < len(numbers) else output.clone(), numbers)

    with _OutputChanged(context, many):
        images = context.images[image : image + 1]
        read = context.read(images if expand else torch.cat([images] * len(numbers)))
        return context.score_of(read, torch.full_like(numbers, image), wanted)


class _OutputChanged:
    """Context manager: the rest of the model gets a changed output of the layer."""

    def __init__(self, context: Context, change: Callable[[Tensor], Tensor]) -> None:
        self.address = parse(context.layer or "")
        self.module: nn.Module = context.model.get_submodule(self.address.path)
        self.change = change
        self.calls = 0
        self.in_place = InPlaceWatch()

    def __enter__(self) -> None:
        hooks = self.module.register_forward_pre_hook(self.in_place.before), self.module.register_forward_hook(self._hook)
        self.handles = hooks

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        call, self.calls = self.calls, self.calls + 1
        if call != int(self.address.call or 0):
            return output
        tensor = pick(output, self.address.keys)
        changed = self.change(tensor)
        if changed.shape == tensor.shape and self.in_place.changed(tensor):
            return put(output, self.address.keys, tensor.copy_(changed))  # the model may not use what the module returns
        return put(output, self.address.keys, changed)
