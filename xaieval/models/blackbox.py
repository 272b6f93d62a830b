"""Models that are plain functions or ONNX files, without layers and gradients, and exported programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from xaieval.errors import ModelError
from xaieval.inference.borrowing import is_exported
from xaieval.inference.plain_passes import network_of
from xaieval.models.onnx_file import CPU, OnnxFunction, Providers, is_session, onnx_function

__all__ = ["BlackBox", "ExportedModel", "Function", "as_module", "onnx_model"]

Function = Callable[[Any], Any]


class BlackBox(nn.Module):
    """A function of images as a model, such as an ONNX session, a scikit-learn pipeline or a remote service.

    `xaieval.score` and `xaieval.explain` wrap functions and sessions automatically. Methods that ask only for scores of images
    can explain such models: RISE, occlusion, Sobol, HSIC, captum's perturbation methods such as LIME, PartitionSHAP, maps from
    files and the controls. Methods that need layers or gradients cannot.

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
    def without_layers(self) -> str:
        """What it is, as an error says that it has no layers."""
        return "an ONNX file" if isinstance(self.function, OnnxFunction) else "a function"

    @property
    def fingerprint(self) -> str | None:
        """A hash of what it computes, as far as there is one."""
        return self.function.fingerprint if isinstance(self.function, OnnxFunction) else None

    @property
    def function_name(self) -> str:
        """Import path of the function, or the name of the file, for manifests."""
        if isinstance(self.function, OnnxFunction):
            return self.function.name
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


def onnx_model(
    file: str | Path | Any,
    *,
    providers: Providers = CPU,
    threads: int | None = None,
    channels_last: bool | None = None,
) -> BlackBox:
    """Make a model of an ONNX file: a black box, without layers and gradients.

    A file for a fixed number of images gets them in groups of that number, the last one filled up with copies of its last
    image. A file of several outputs gives a mapping by name, in which `output=` names the logits if none is called "logits" or
    "out". Nothing of a file is run but the operators of onnxruntime.

    Images are cast to the type of the file: one that takes whole numbers (uint8) gets images in [0, 255], rounded. Where the
    input has its channels last, `[N, H, W, C]`, images are transposed for it, which a warning says.

    Args:
        file: The file, or an `onnxruntime.InferenceSession`, which has its own providers and threads.
        providers: What runs the file, first choice first, as onnxruntime names it. Default: the CPU.
        threads: Number of threads. Default: that of torch.
        channels_last: Whether the input is `[N, H, W, C]`. Default: it is if only its last axis has a length of 1, 3 or 4.

    Raises:
        ModelError: There is no such file, onnxruntime cannot read it, or its input is not one of images; when called: the
            images do not suit it.
        UsageError: The extra [onnx] is not installed, or a provider is not available.

    Example:
        A function that explains images by a file:

        >>> import xaieval
        >>> def explained(file, images):
        ...     return xaieval.explain(onnx_model(file, threads=4), images, method="rise")["input"]
    """
    return BlackBox(onnx_function(file, providers=providers, threads=threads, channels_last=channels_last), numpy=True)


class ExportedModel(nn.Module):
    """An exported program for a fixed number of images, as a model that takes any number.

    `xaieval.score` and `xaieval.explain` wrap such programs automatically: images go through in groups of that number, and the
    last group is filled with copies of its last image.

    Args:
        program: What `torch.export.export(...).module()` gives.
        size: The number of images that it takes.

    Raises:
        ModelError: When called: the output is not one tensor, so that groups cannot be joined.
    """

    def __init__(self, program: nn.Module, size: int) -> None:
        super().__init__()
        self.program = program
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Output of the program for all images."""
        missing = -len(images) % self.size
        filled = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
        outputs = [self.program(group) for group in filled.split(self.size)]
        if not all(isinstance(output, Tensor) for output in outputs):
            raise ModelError(
                f"the exported program takes {self.size} images at a time and returns a {type(outputs[0]).__name__}; export it "
                "with a dynamic batch size: dynamic_shapes=({0: torch.export.Dim('batch')},)"
            )
        return torch.cat(outputs)[: len(images)]


def as_module(model: Any) -> nn.Module:
    """The network of a model, or a function or an ONNX session as a `BlackBox`.

    Raises:
        ModelError: The model is neither.
    """
    if type(model).__name__ == "ExportedProgram":
        model = model.module()
    model = network_of(model)
    if is_session(model):
        return onnx_model(model)
    if not isinstance(model, nn.Module):
        return BlackBox(model)
    size = _fixed_size(model) if is_exported(model) else None
    return model if size is None else ExportedModel(model, size)


def _fixed_size(program: Any) -> int | None:
    """The number of images that an exported program takes; None if it takes any number."""
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    sizes = [value.shape[0] for value in values if isinstance(value, Tensor) and value.ndim > 3]
    return sizes[0] if sizes and isinstance(sizes[0], int) else None


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
