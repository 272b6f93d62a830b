"""Some images of a run, kept with their maps for its report."""

from __future__ import annotations

import hashlib
from bisect import insort
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch
from xaieval.errors import UsageError
from xaieval.evaluation.job import Job, in_parts
from xaieval.evaluation.maps import finished_maps, raw_maps, run_batch
from xaieval.masking import filling, mask, occlude

if TYPE_CHECKING:
    from xaieval.report import Maps

__all__ = ["KeptImages"]

SIDE = 224  # pixels of the longer side of what is kept; a report shows no more
COLOURS = (1, 3)  # channels of grey images and of RGB


class KeptImages:
    """Images whose maps are kept: those with the smallest digests of seed and id, whatever the order of the batches.

    The images of a run are not known before its end, so that its best and worst ones cannot be kept; these are drawn at random.

    Args:
        count: The largest number of images.
        seed: Seed of the draw.

    Raises:
        UsageError: The count is negative.
    """

    def __init__(self, count: int, seed: int) -> None:
        if count < 0:
            raise UsageError(f"keep_maps is a number of images, at least 0; got {count}")
        self.count, self.seed = count, seed
        self.found: list[tuple[str, Batch]] = []

    def add(self, batch: Batch) -> None:
        """Keep those images of a batch that are among the drawn ones so far."""
        for place, name in enumerate(batch.ids if self.count else ()):
            digest = hashlib.sha256(f"{self.seed} {name}".encode()).hexdigest()
            if len(self.found) < self.count or digest < self.found[-1][0]:
                insort(self.found, (digest, batch.part(place, place + 1, []).copied()), key=lambda one: one[0])
                del self.found[self.count :]

    def explained(self, job: Job, controls: Sequence[str] = ()) -> Maps | None:
        """The maps of the kept images by the methods of a job; None if there are no images.

        Images of another size than the first one are left out, as a report shows maps of one size.

        Args:
            job: What was measured.
            controls: Methods to leave out.

        Raises:
            RunError: A single image does not fit in memory.
        """
        from xaieval.report import Maps

        batches = [batch for _, batch in self.found if batch.images.shape == self.found[0][1].images.shape]
        if not batches:
            return None
        job = job.of([pair for pair in job.names if pair[1] not in controls])
        images = torch.cat([batch.images for batch in batches]).cpu()
        low, span = _scale(images, job.protocol)
        shown = images.shape[1] in COLOURS
        maps: dict[str, dict[str, list[Tensor]]] = {}
        masked: dict[str, dict[str, list[Tensor]]] = {}
        for batch in batches:
            [made] = in_parts(job, batch, lambda part: list(_maps_and_masked(job, part)))
            for (layer, method), (one, hidden) in zip(job.names, made, strict=True):
                maps.setdefault(method, {}).setdefault(layer, []).append(_small(one[:, None])[:, 0])
                if shown:
                    pixels = ((hidden - low) / span).clamp(0, 1)
                    masked.setdefault(method, {}).setdefault(layer, []).append((255 * _small(pixels)).round().byte())
        pixels = _small(((images - low) / span).clamp(0, 1) if shown else images)
        ids = [name for batch in batches for name in batch.ids]
        return Maps(ids, pixels, _joined(maps), masked=_joined(masked))


def _maps_and_masked(job: Job, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """The map of each pair, and the images masked by it, on the CPU."""
    passed = run_batch(job, batch)
    images = passed.context.images
    fill = filling(images, job.protocol)
    explained = passed.has_target.view(-1, *[1] * (images.ndim - 2))
    for raw in raw_maps(job, passed):
        maps = finished_maps(raw, images, job.protocol).maps * explained
        masks = mask(maps, job.protocol).to(images.dtype)
        yield maps.float().cpu(), occlude(images, masks, fill(masks)).float().cpu()


def _scale(images: Tensor, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """What is black, and how far white is from it, per channel.

    By the mean and standard deviation of the protocol, if it has them. Else pixels are taken for pixels if they lie in [0, 1],
    and otherwise the lowest and the highest values of all these images for black and white.
    """
    axes = [1] * (images.ndim - 2)
    if protocol.mean is not None and protocol.std is not None:
        mean, std = (images.new_tensor(numbers).view(-1, *axes) for numbers in (protocol.mean, protocol.std))
        return -mean / std, 1 / std
    if images.min() >= 0 and images.max() <= 1:
        return images.new_zeros(1), images.new_ones(1)
    by_channel = images.transpose(0, 1).flatten(1)
    low, high = by_channel.min(dim=1).values.view(-1, *axes), by_channel.max(dim=1).values.view(-1, *axes)
    return low, (high - low).clamp(min=torch.finfo(images.dtype).tiny)


def _small(images: Tensor) -> Tensor:
    """Images `[N, C, H, W]` whose longer side is at most `SIDE`; volumes and smaller images are unchanged."""
    share = SIDE / max(images.shape[-2:])
    if images.ndim != 4 or share >= 1:
        return images
    size = [max(1, round(side * share)) for side in images.shape[-2:]]
    return interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def _joined(parts: dict[str, dict[str, list[Tensor]]]) -> dict[str, dict[str, Tensor]]:
    return {method: {layer: torch.cat(ones) for layer, ones in layers.items()} for method, layers in parts.items()}
