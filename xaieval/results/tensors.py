"""What the files of a run say of its tensors. What only reads finished runs does without this module, and without torch."""

from __future__ import annotations

import json
import zlib
from typing import Any

import torch
from torch import Tensor

from xaieval.data.batches import Batch
from xaieval.data.labels import OtherLabels
from xaieval.data.truth_by_class import tensors_of
from xaieval.results.checkpoints import Checkpoint

__all__ = ["check_of", "checkpoint_of", "describe_image", "tensor_bytes"]


def checkpoint_of(batch: Batch) -> Checkpoint:
    """The checkpoint of a batch that is measured."""
    return Checkpoint(check_of(batch), batch.ids, batch.failed)


def check_of(batch: Batch) -> str:
    """The checksum of a batch: the number of its images, and a CRC-32 of images, ids, labels, ground truth and groups."""
    truth = [batch.masks, *(batch.boxes or []), *(tensor for one in batch.truth or [] for tensor in tensors_of(one))]
    labels = batch.labels.given if isinstance(batch.labels, OtherLabels) else batch.labels
    tensors = [tensor for tensor in (batch.images, labels, *truth) if isinstance(tensor, Tensor)]
    check = zlib.crc32(json.dumps(batch.ids if batch.group is None else [batch.ids, batch.group]).encode())
    for tensor in tensors:
        check = zlib.crc32(tensor_bytes(tensor), check)
    return f"{len(batch)}:{check:08x}"


def describe_image(image_id: str, image: Tensor) -> dict[str, Any]:
    """What is seen of an image's preprocessing: its shape, and the values of its channels, in their unit.

    Args:
        image_id: The id of the image.
        image: `[C, H, W]` or `[C, D, H, W]`, as the model gets it.

    Example:
        >>> described = describe_image("0", torch.tensor([[[0.0, 1.0]], [[-1.0, 1.0]]]))
        >>> described["shape"], described["minimum"], described["mean"]
        ([2, 1, 2], [0.0, -1.0], [0.5, 0.0])
    """
    with torch.no_grad():
        channels = image.cpu().double().flatten(1)
        statistics = {
            "minimum": channels.amin(1),
            "maximum": channels.amax(1),
            "mean": channels.mean(1),
            "std": channels.std(1, correction=0),
        }
    described = {name: [float(f"{value:.6g}") for value in values.tolist()] for name, values in statistics.items()}
    return {"id": image_id, "shape": list(image.shape), **described}


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's values as bytes, on any device and of any dtype."""
    with torch.no_grad():
        flat = tensor.clone().cpu().contiguous().reshape(-1)  # tensors made in inference mode cannot always be detached
    return flat.view(torch.uint8).numpy().tobytes()
