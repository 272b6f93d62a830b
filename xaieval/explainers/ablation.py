"""Ablation-CAM: each channel of a layer is set to zero in turn, and only the part of the model after the layer runs again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context
from xaieval.inference.batch_limit import BatchLimit, is_out_of_memory
from xaieval.inference.tasks import Classification
from xaieval.probe.addresses import parse, pick
from xaieval.probe.capturing import InPlaceWatch, put

__all__ = ["ABLATION", "AblationCAM"]

TOLERANCE = 1e-4  # largest difference of scores between the two ways of running, as a share of the largest score


@dataclass(frozen=True)
class AblationCAM:
    """Ablation-CAM: `relu(sum_k (y - y_k) / y A_k)`, where y_k is the score with channel k of the layer set to zero.

    The part before the layer depends only on the image, so the model runs on one copy of the image, and the layer's output is
    expanded on the way to one ablated output per channel. Three of them are tried first: a model that joins the layer's output
    with another tensor of the image's batch size cannot be run that way, and gets whole passes.

    A channel of a token layer is set to zero in all tokens, also those before the grid. The layer may have any address, such
    as `fpn[p2]` or `layer3.0.relu#2`. Where the score is 0, the map is undefined and becomes NaN.

    Args:
        expand: False makes whole passes without a trial.

    Reference:
        Desai and Ramaswamy, "Ablation-CAM", WACV 2020, eq. 4 and 5.

    Example:
        >>> import xaieval
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> xaieval.explain(model, torch.rand(2, 3, 8, 8), "1", AblationCAM())["1"].shape
        torch.Size([2, 8, 8])
    """

    expand: bool = True
    name: str = "ablation-cam"
    needs_layer: bool = True
    needs_gradient: bool = False
    # It runs the model, but reads only the layer's output, which is right also if batch norms around the layer are folded.
    needs_model: bool = False
    passes: str = "1 per channel, from the layer on"
    paper: str = "Desai and Ramaswamy 2020, WACV"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        activation: Any = context.activation
        if context.layout is not None and context.layout.kind not in ("channels_first", "channels_last", "tokens"):
            raise ExplainerError(
                f"method '{self.name}' sets channels of single images to zero, and the output of layer '{context.layer}' does "
                "not have the images first and channels on one axis; take 'gradcam' or another layer"
            )
        channels = torch.arange(activation.shape[1] + 1, device=activation.device)  # the last number ablates nothing
        expand = self.expand and _can_expand(context)
        size = context.size or len(context.images)
        batch_limit = BatchLimit(_outputs_per_pass(context)) if expand else context.batch_limit or BatchLimit(size)

        def scores_of(image: int) -> Tensor:
            return torch.cat(batch_limit.parts(len(channels), lambda part: _ablated(context, image, channels[part], expand)))

        with torch.no_grad():
            scores = torch.stack([scores_of(image) for image in range(len(context.images))]).to(activation.dtype)
        whole, without = scores[:, -1:], scores[:, :-1]
        return torch.einsum("nc,nc...->n...", (whole - without) / whole, activation).clamp(min=0)


ABLATION = (AblationCAM(),)


def _outputs_per_pass(context: Context) -> int:
    """How many ablated outputs run together: in a classifier, as many as take no more memory than the images of a pass.

    The maps of a classifier do not get larger on the way to the logits; other models run on the usual number of images.
    """
    size = context.size or len(context.images)
    if not isinstance(context.task, Classification) or context.activation is None:
        return size
    return max(size, size * context.images[0].numel() // context.activation[0].numel())


def _can_expand(context: Context) -> bool:
    """Whether the model gives the same scores when only the layer's output is expanded."""
    activation: Any = context.activation
    strongest = activation[0].abs().flatten(1).mean(dim=1).topk(min(2, activation.shape[1])).indices
    size = context.size or len(context.images)
    few = torch.cat([strongest, strongest.new_tensor([activation.shape[1]])])
    with torch.no_grad():
        expected = torch.cat([_ablated(context, 0, some, False) for some in few.split(size)])
        try:
            scores = _ablated(context, 0, few, True)
        except Exception as error:  # a model in which two batch sizes meet may raise anything
            if is_out_of_memory(error) and size > 1:
                raise
            return False
    return scores.shape == expected.shape and torch.allclose(
        scores, expected, rtol=0, atol=TOLERANCE * float(expected.abs().nan_to_num().max()), equal_nan=True
    )


def _ablated(context: Context, image: int, channels: Tensor, expand: bool) -> Tensor:
    """Scores `[G]` of an image of the batch with each of these channels `[G]` set to zero."""
    activation: Any = context.activation
    ones = torch.ones_like(channels)

    def ablate(output: Tensor) -> Tensor:
        if context.layout is not None:
            axis = context.layout.channel_axis or 0
        else:  # the channels of tokens and of maps with channels last are on the last axis
            axis = 1 if output.shape[1:] == activation.shape[1:] else -1
        many = torch.cat([output] * len(channels)) if len(output) < len(channels) else output.clone()
        rows = (channels < activation.shape[1]).nonzero()[:, 0]
        many.movedim(axis, 1)[rows, channels[rows]] = 0
        return many

    with _OutputChanged(context, ablate):
        images = context.images[image : image + 1]
        return context.score(images if expand else torch.cat([images] * len(channels)), image * ones)


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
