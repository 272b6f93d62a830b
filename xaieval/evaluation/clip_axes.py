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

    Args:
        model: The borrowed model.
        call: Runs it.
        images: Images; of those with four axes nothing is checked, and nothing is run.

    Raises:
        DataError: The convolution takes as many channels as axis 2 has, and not as many as axis 1.
    """
    # Slices of one channel may be the channels of a convolution.
    if images.ndim != 5 or images.shape[1] in (1, images.shape[2]):
        return
    channels: list[int] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        channels.append(inputs[0].shape[-3 if isinstance(module, nn.Conv2d) else -4])

    handles = [module.register_forward_pre_hook(record) for module in model.modules() if isinstance(module, CONVOLUTIONS)]
    try:
        with torch.no_grad(), suppress(Exception):  # a model can raise anything; its errors show when the run begins
            call(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    if channels[:1] == [images.shape[2]]:
        raise DataError(
            f"images are {list(images.shape)}, and the model's first convolution takes {channels[0]} channels, as axis 2 has: "
            "frames come before channels; volumes and clips are [N, C, D, H, W] here, so give them with channels first, and "
            "forward=lambda model, clips: model(clips.transpose(1, 2))"
        )
