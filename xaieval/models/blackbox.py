"""Models that are functions and nothing else: no layers, no gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from xaieval.errors import ModelError

__all__ = ["BlackBox", "Function", "as_module"]

Function = Callable[[Tensor], Any]


class BlackBox(nn.Module):
    """A function of images as a model: an ONNX session, a pipeline of scikit-learn, a remote service.

    `xaieval.score` and `xaieval.explain` wrap functions by themselves. Methods that look at layers or gradients cannot explain
    them; RISE, occlusion, maps from files and the controls can.

    Scores that are probabilities already need `Protocol(confidence="identity")`, or softmax is taken of them once more.

    Args:
        function: from images `[N, C, H, W]` to scores `[N, K]`, as a tensor or an array; whatever else a task reads, such as
            detections, is handed on, its arrays as tensors.
        numpy: give it arrays instead of tensors.

    Raises:
        ModelError: the function is none.

    Example:
        >>> model = BlackBox(lambda images: images.mean(axis=(2, 3)), numpy=True)
        >>> model(torch.ones(2, 3, 8, 8))
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """

    def __init__(self, function: Function, *, numpy: bool = False) -> None:
        super().__init__()
        if not callable(function) or isinstance(function, type):
            raise ModelError(f"a model is a torch.nn.Module or a function of images, got {function!r}")
        self.function = function
        self.numpy = numpy

    @property
    def function_name(self) -> str:
        """Where the function is defined, for manifests."""
        named = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        return f"{named.__module__}.{named.__qualname__}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """What the function gives, with tensors in place of arrays, on the images' device.

        Raises:
            ModelError: it gave no score for each image.
        """
        given: Any = images.cpu().numpy() if self.numpy else images
        output = tree_map(lambda leaf: _tensor(leaf, images.device), self.function(given))
        if isinstance(output, Tensor):
            _check(output, len(images), self.function_name)
        return output


def as_module(model: nn.Module | Function) -> nn.Module:
    """The model itself, or a function as a `BlackBox`.

    Raises:
        ModelError: it is neither.
    """
    return model if isinstance(model, nn.Module) else BlackBox(model)


def _tensor(leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, np.ndarray):
        leaf = torch.from_numpy(np.ascontiguousarray(leaf))
    return leaf.to(device) if isinstance(leaf, Tensor) else leaf


def _check(scores: Tensor, images: int, name: str) -> None:
    if scores.ndim < 2 or len(scores) != images or not scores.is_floating_point():
        raise ModelError(
            f"the function {name} gave {scores.dtype} {list(scores.shape)} for {images} images; scores [{images}, K] of a "
            "floating type are expected, one row an image"
        )
