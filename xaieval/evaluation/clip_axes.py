"""Clips and bags whose frames come before their channels, which would be taken for volumes of three slices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.errors import DataError

__all__ = ["check_clip_axes"]

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


def check_clip_axes(model: nn.Module, call: Callable[[Tensor], Any], images: Tensor) -> None:
    """Check that axis 1 of images with five axes is that of the channels, which the first convolution takes.

    Lengths alone do not tell for a clip of three frames and three channels. So one image runs whose values differ along axis 1
    alone: if that is the axis of the channels, the convolution's channels differ.

    Args:
        model: The borrowed model.
        call: Runs it.
        images: Images; of those with four axes nothing is checked, and nothing is run.

    Raises:
        DataError: The convolution takes as many channels as axis 2 has, and they do not come from axis 1.
    """
    # Slices of one channel may be the channels of a convolution.
    if images.ndim != 5 or images.shape[1] == 1:
        return
    found: list[tuple[int, bool]] = []  # number of channels, and whether they differ

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given, axis = inputs[0], -3 if isinstance(module, nn.Conv2d) else -4
        found.append((given.shape[axis], bool((given != given.narrow(axis, 0, 1)).any())))

    places = torch.arange(images.shape[1], device=images.device, dtype=images.dtype)
    marked = places.view(-1, 1, 1, 1).expand_as(images[:1]).clone()
    handles = [module.register_forward_pre_hook(record) for module in model.modules() if isinstance(module, CONVOLUTIONS)]
    try:
        with torch.no_grad(), suppress(Exception):  # a model can raise anything; its errors show when the run begins
            call(marked)
    finally:
        for handle in handles:
            handle.remove()
    if found[:1] == [(images.shape[2], False)]:
        raise DataError(
            f"images are {list(images.shape)}, and the {images.shape[2]} channels of the model's first convolution are those "
            "of axis 2: frames come before channels; volumes and clips are [N, C, D, H, W] here, so give them with channels "
            "first, and forward=lambda model, clips: model(clips.transpose(1, 2))"
        )
