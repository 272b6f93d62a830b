"""Ablation-CAM: channels of a layer are silenced one by one, and only what comes after the layer runs again for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.explainers.base import Context
from xaieval.inference.batch_limit import BatchLimit, is_out_of_memory
from xaieval.inference.tasks import Classification
from xaieval.probe.addresses import parse, pick
from xaieval.probe.hooks import put

__all__ = ["ABLATION", "AblationCAM"]

SAME = 1e-4  # share of the largest score by which both ways of running may differ


@dataclass(frozen=True)
class AblationCAM:
    """Ablation-CAM: `relu(sum_k (y - y_k) / y A_k)`, y_k the score when channel k of the layer is zero.

    What comes before the layer depends on the image alone, so the model runs on one copy of the image, and the layer's output
    is expanded to many ablated ones on the way. Whether the rest of the model takes that is tried on three of them; where it
    does not, because it joins that output with something of the image's batch size, whole passes are made.

    A channel of a token layer is silenced in all tokens, also those before the grid. The layer may have any address, such as
    `fpn[p2]` or `layer3.0.relu#2`. Where the score is 0 the map is not defined, and comes out as NaN.

    Args:
        expand: False makes whole passes without trying.

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
    # It runs the model, but finds the layer's own output there whatever was done to the weights before and after it.
    needs_model: bool = False
    passes: str = "one a channel, of what comes after the layer"
    paper: str = "Desai and Ramaswamy 2020, WACV"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        activation: Any = context.activation
        channels = torch.arange(activation.shape[1] + 1, device=activation.device)  # the last one silences nothing
        expand = self.expand and _can_expand(context)
        size = context.size or len(context.images)
        batch_limit = BatchLimit(_most(context)) if expand else context.batch_limit or BatchLimit(size)

        def scores_of(image: int) -> Tensor:
            return torch.cat(batch_limit.parts(len(channels), lambda part: _ablated(context, image, channels[part], expand)))

        with torch.no_grad():
            scores = torch.stack([scores_of(image) for image in range(len(context.images))]).to(activation.dtype)
        whole, without = scores[:, -1:], scores[:, :-1]
        return torch.einsum("nc,nc...->n...", (whole - without) / whole, activation).clamp(min=0)


ABLATION = (AblationCAM(),)


def _most(context: Context) -> int:
    """How many ablated outputs run together: as many as take no more memory than the images of a pass.

    In a classifier, that is, whose maps do not get larger on the way to the logits.
    """
    size = context.size or len(context.images)
    if not isinstance(context.task, Classification) or context.activation is None:
        return size
    return max(size, size * context.images[0].numel() // context.activation[0].numel())


def _can_expand(context: Context) -> bool:
    """Whether the model gives the same scores when the layer's output alone is many."""
    activation: Any = context.activation
    strongest = activation[0].abs().flatten(1).mean(dim=1).topk(min(2, activation.shape[1])).indices
    size = context.size or len(context.images)
    few = torch.cat([strongest, strongest.new_tensor([activation.shape[1]])])
    with torch.no_grad():
        expected = torch.cat([_ablated(context, 0, some, False) for some in few.split(size)])
        try:
            found = _ablated(context, 0, few, True)
        except Exception as error:  # whatever a model can raise in which two batch sizes meet
            if is_out_of_memory(error) and size > 1:
                raise
            return False
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=0, atol=SAME * float(expected.abs().nan_to_num().max()), equal_nan=True
    )


def _ablated(context: Context, image: int, channels: Tensor, expand: bool) -> Tensor:
    """Scores `[G]` of an image of the batch with each of these channels `[G]` silenced."""
    activation: Any = context.activation
    ones = torch.ones_like(channels)

    def silenced(output: Tensor) -> Tensor:
        # Tokens, and maps with channels last, are turned around to become an activation `[N, C, h, w]`.
        axis = 1 if output.shape[1:] == activation.shape[1:] else -1
        many = torch.cat([output] * len(channels)) if len(output) < len(channels) else output.clone()
        rows = (channels < activation.shape[1]).nonzero()[:, 0]
        many.movedim(axis, 1)[rows, channels[rows]] = 0
        return many

    with _Changed(context, silenced):
        images = context.images[image : image + 1]
        return context.score(images if expand else torch.cat([images] * len(channels)), image * ones)


class _Changed:
    """While it is entered, the model's modules get a layer's output changed."""

    def __init__(self, context: Context, change: Callable[[Tensor], Tensor]) -> None:
        self.address = parse(context.layer or "")
        self.module: nn.Module = context.model.get_submodule(self.address.path)
        self.change = change
        self.calls = 0

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(self._hook)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _hook(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        call, self.calls = self.calls, self.calls + 1
        if call != int(self.address.call or 0):
            return output
        return put(output, self.address.keys, self.change(pick(output, self.address.keys)))
