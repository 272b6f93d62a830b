"""Stages of a backbone, which attention branches copy or act on: where they are, and what they give."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from xaieval.errors import ModelError
from xaieval.models.modes import evaluating

__all__ = ["check_features", "example_image", "hooked", "module_path", "outputs_of", "resized", "stage_between"]


def example_image(backbone: Any, arguments: Mapping[str, Any] | None = None) -> Float[Tensor, "1 c h w"]:
    """An image of the size that a timm model was built for, to try its modules on; always the same.

    Args:
        backbone: The model.
        arguments: The arguments that it was built with, of which `in_chans` and `img_size` count.
    """
    given = dict(arguments or {})
    channels, *sides = backbone.pretrained_cfg["input_size"]
    channels, size = given.get("in_chans", channels), given.get("img_size", sides)
    height, width = (size, size) if isinstance(size, int) else size
    like = next(backbone.parameters())
    wave = torch.arange(math.prod((channels, height, width)), device=like.device).sin()  # a constant image hides differences
    return wave.view(1, channels, height, width).to(like.dtype)


def module_path(backbone: nn.Module, path: str) -> str:
    """The path of a module in a timm feature extractor, which has other paths than the model it is made from.

    Example:
        >>> import timm
        >>> module_path(timm.create_model("convnext_atto", features_only=True), "stages.1")
        'stages_1'
    """
    modules = dict(backbone.named_modules())
    return next((known for known in (path, path.replace(".", "_", 1), f"model.{path}") if known in modules), path)


def outputs_of(backbone: nn.Module, paths: Iterable[str], images: Tensor) -> dict[str, list[Any]]:
    """What modules give in eval mode, by their path, call by call; nothing for paths that the model lacks."""
    modules = dict(backbone.named_modules())
    outputs: dict[str, list[Any]] = {path: [] for path in paths}

    def keep(path: str) -> Any:
        # A copy, because the next module may work in place.
        return lambda module, inputs, output: outputs[path].append(output.clone() if isinstance(output, Tensor) else output)

    with evaluating(backbone), torch.no_grad():
        hooked(backbone, images, {modules[path]: keep(path) for path in outputs if path in modules})
    return outputs


def check_features(backbone: nn.Module, name: str, paths: Sequence[str], images: Tensor) -> None:
    """Check that some features of an extractor are what modules give, so that a hook on these modules changes them.

    Args:
        backbone: A timm feature extractor.
        name: Its name, for the error.
        paths: The paths of the modules, in the order of the features.
        images: A batch to try it on.

    Raises:
        ModelError: A module does not run once, or gives no feature `[N, C, H, W]` or `[N, H, W, C]`.
    """
    modules, given = dict(backbone.named_modules()), []

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        given.append(output.clone() if isinstance(output, Tensor) else output)
        return given[-1]

    with evaluating(backbone), torch.no_grad():
        features = hooked(backbone, images, {modules[path]: replace for path in paths if path in modules})
    places = {maps.data_ptr() for maps in features}
    maps = [output for output in given if isinstance(output, Tensor) and output.ndim == 4 and output.data_ptr() in places]
    if not len(maps) == len(given) == len(paths):
        raise ModelError(
            f"attention cannot act within backbone {name!r}, whose features are not the outputs of {', '.join(paths)}; "
            "take another place, such as 'features'"
        )


# A compiled pass leaves out hooks that are registered within it, without a word.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def hooked(run: Callable[..., Any], inputs: Any, hooks: Mapping[nn.Module, Callable[..., Any]]) -> Any:
    """Run a module or a function of modules with forward hooks for the duration of the call."""
    with ExitStack() as stack:
        for module, hook in hooks.items():
            stack.enter_context(module.register_forward_hook(hook))
        return run(inputs)


def stage_between(backbone: nn.Module, before: str, last: str, images: Tensor) -> nn.Sequential:
    """A copy of the modules that follow `before` up to `last`, with stride 1, so that the maps keep their size.

    Convolutions and poolings get stride 1; poolings that only halve the maps become the identity. Where a convolution has an
    even kernel, as in ConvNeXt, the maps become one pixel smaller.

    Args:
        backbone: The network.
        before: Path of the module whose output the stage takes.
        last: Path of the module whose output the stage gives.
        images: A batch to try the copy on.

    Raises:
        ModelError: The modules between the two do not lead from the one's output to the other's, or they cannot run with stride
            1.

    Example:
        >>> import timm
        >>> backbone = timm.create_model("test_resnet")
        >>> stage = stage_between(backbone, "layer3", "layer4", torch.rand(1, 3, 64, 64))
        >>> stage(torch.rand(1, 192, 4, 4)).shape
        torch.Size([1, 96, 4, 4])
    """
    (maps, *_), (expected, *_) = ([*found, None] for found in outputs_of(backbone, (before, last), images).values())
    stage = copy.deepcopy(nn.Sequential(*_modules_between(backbone, before, last)))
    found = _try(stage, maps)
    if (
        found is None
        or not isinstance(expected, Tensor)
        or found.shape != expected.shape
        or not torch.allclose(found, expected)
    ):
        raise ModelError(_refusal(before, last, "they do not follow each other in a sequence"))
    _remove_strides(stage)
    found = _try(stage, maps)
    if found is None or found.shape[1] != expected.shape[1] or found.shape[2] <= expected.shape[2]:
        raise ModelError(_refusal(before, last, "they cannot run with stride 1 on maps [N, C, H, W]"))
    return stage


def _refusal(before: str, last: str, reason: str) -> str:
    return f"the modules after '{before}' up to '{last}' cannot be the stage of a branch: {reason}; take branch='block'"


def _modules_between(backbone: nn.Module, before: str, last: str) -> list[nn.Module]:
    """The modules after `before` up to `last` if both are in one module, else none."""
    parent = backbone.get_submodule(before.rpartition(".")[0])
    names = [name for name, _ in parent.named_children()]
    ends = [path.rpartition(".")[2] for path in (before, last)]
    if before.rpartition(".")[0] != last.rpartition(".")[0] or not set(ends) <= set(names):
        return []
    return [parent.get_submodule(name) for name in names[names.index(ends[0]) + 1 : names.index(ends[1]) + 1]]


def _try(stage: nn.Module, maps: Any) -> Tensor | None:
    """The output of a stage in eval mode if it is a tensor of four axes."""
    try:
        with evaluating(stage), torch.no_grad():
            output = stage(maps.clone())
    except Exception:  # a module can raise anything on maps that it was not written for
        return None
    return output if isinstance(output, Tensor) and output.ndim == 4 else None


def _remove_strides(stage: nn.Module) -> None:
    for module in stage.modules():
        if isinstance(module, nn.AvgPool2d | nn.MaxPool2d) and module.kernel_size == module.stride:
            module.kernel_size = 1
        if isinstance(module, nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d):
            module.stride = (1, 1)


def resized(maps: Float[Tensor, "n 1 h w"], features: Float[Tensor, "n c H W"]) -> Float[Tensor, "n 1 H W"]:
    """Maps at the size of the features, bilinear with half-pixel centres; maps of this size are returned as they are."""
    if maps.shape[2:] == features.shape[2:]:
        return maps
    return functional.interpolate(maps, features.shape[2:], mode="bilinear", align_corners=False)
