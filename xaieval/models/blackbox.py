"""Models that are plain functions, without layers and gradients."""

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
    """A function of images as a model, such as an ONNX session, a scikit-learn pipeline or a remote service.

    `xaieval.score` and `xaieval.explain` wrap functions automatically. RISE, occlusion, maps from files and the controls can
    explain such models; methods that need layers or gradients cannot.

    A function that returns probabilities needs `Protocol(confidence="identity")`, since softmax would be applied again.

    Args:
        function: A function from images `[N, C, H, W]` to scores `[N, K]`, as a tensor or an array. Other outputs that a task
            reads, such as detections, are passed on with their arrays as tensors.
        numpy: Whether the function takes arrays instead of tensors.

    Raises:
        ModelError: The function is not callable, or is a class.

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
        """Import path of the function, for manifests."""
        named = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        return f"{named.__module__}.{named.__qualname__}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """Output of the function, with tensors instead of arrays, on the device of the images.

        Raises:
            ModelError: The output is a tensor that is not one row of scores per image.
        """
        batch: Any = images.cpu().numpy() if self.numpy else images
        output = tree_map(lambda leaf: _tensor(leaf, images.device), self.function(batch))
        if isinstance(output, Tensor):
            _check(output, len(images), self.function_name)
        return output


def as_module(model: nn.Module | Function) -> nn.Module:
    """A module unchanged, or a function as a `BlackBox`.

    Raises:
        ModelError: The model is neither.
    """
    return model if isinstance(model, nn.Module) else BlackBox(model)


def _tensor(leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, np.ndarray):
        leaf = torch.from_numpy(np.ascontiguousarray(leaf))
    return leaf.to(device) if isinstance(leaf, Tensor) else leaf


def _check(scores: Tensor, images: int, name: str) -> None:
    if scores.ndim < 1 or len(scores) != images or not scores.is_floating_point():
        raise ModelError(
            f"the function {name} gave {scores.dtype} {list(scores.shape)} for {images} images; scores [{images}, K] of a "
            "floating type are expected, one row an image"
        )
