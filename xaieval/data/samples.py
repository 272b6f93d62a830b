"""Samples of single images, and the batches that they are joined to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from xaieval.data.batches import check_images
from xaieval.data.decoding import reason_of
from xaieval.errors import DataError, UsageError

__all__ = ["collate", "sample_of"]


def sample_of(image_id: str, label: int | None, prepare: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a sample with an id, a label, and the result of `prepare`, or the reason why the image cannot be read."""
    sample = {"id": image_id, "label": label}
    try:
        return sample | prepare()
    except UsageError:  # would occur for every image
        raise
    except Exception as error:
        reason = reason_of(error)
        if reason is None:
            raise
        return sample | {"failed": f"{type(reason).__name__}: {reason}"}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Join samples to a batch. Samples without an image go to `failed`, a list of `(id, label, reason)`.

    Raises:
        DataError: Only some samples have a label, or the images have different sizes.
    """
    good = [sample for sample in samples if "image" in sample]
    labels = [sample["label"] for sample in good]
    batch: dict[str, Any] = {
        "failed": [(sample["id"], sample["label"], sample["failed"]) for sample in samples if "failed" in sample],
        "id": [sample["id"] for sample in good],
    }
    if None not in labels:
        batch["label"] = torch.tensor(labels, dtype=torch.long)
    elif any(label is not None for label in labels):
        raise DataError(f"some images have labels and others, such as '{good[labels.index(None)]['id']}', have none")
    if good:
        batch["image"] = check_images([sample["image"] for sample in good])
        truth = {key: [sample[key] for sample in good] for key in ("mask", "boxes", "truth") if key in good[0]}
        batch |= truth | ({"mask": torch.stack(truth["mask"])} if "mask" in truth else {})
    return batch
