"""The matched controls of the maps of a batch, and the maps of other images that some of them need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch
from xaieval.data.each_class import EACH, image_of
from xaieval.evaluation.job import Job, in_parts
from xaieval.evaluation.maps import BatchPass, finished_maps, raw_maps, run_batch
from xaieval.explainers.matched import blurred, choose_donors, dimmed, distances, shifted, varies, with_values_of
from xaieval.masking import finish, mask

__all__ = ["DONORS", "Donors", "MatchedControls", "Replacement", "make_donors"]

DONORS = 16  # images of a run whose maps give the places of `swapped`


class Replacement(NamedTuple):
    """Maps or masks `[N, H, W]` in the place of a method's own, and which of them exist, bool `[N]`."""

    values: Tensor
    exists: Tensor


@dataclass(frozen=True)
class Donors:
    """The raw maps of the first images of a run, by all methods at all layers.

    Attributes:
        ids: Ids of the D images.
        maps: For each of P pairs, its maps: one tensor `[d, h, w]` for each batch of donors.
        usable: Whether there is a map that is not constant, `[P, D]`.
    """

    ids: Sequence[str]
    maps: Sequence[Sequence[Tensor]]
    usable: Tensor

    def at(self, number: int, size: Sequence[int], protocol: Protocol) -> Tensor:
        """The finished maps of a pair, `[D, H, W]`, at any size."""
        return torch.cat([finish(part, size, protocol).maps for part in self.maps[number]])


def make_donors(job: Job, batches: Sequence[Batch]) -> Donors:
    """The maps of the images of some batches.

    Raises:
        RunError: A single image does not fit in memory.
    """
    parts = [part for batch in batches for part in in_parts(job, batch, lambda images: _donor_maps(job, images))]
    maps, usable = zip(*parts, strict=True)
    return Donors(
        [image_id for batch in batches for image_id in batch.ids], list(zip(*maps, strict=True)), torch.cat(usable, 1)
    )


def _donor_maps(job: Job, batch: Batch) -> tuple[list[Tensor], Tensor]:
    """The raw maps of each pair, and which can be used, `[P, N]`."""
    passed = run_batch(job, batch)
    maps = [raw.clone() for raw in raw_maps(job, passed)]  # without the tensors that they may be parts of
    finished = [finished_maps(raw, passed.context.images, job.protocol) for raw in maps]
    usable = [passed.has_target & ~one.invalid & varies(one.maps) for one in finished]
    return maps, torch.stack(usable)


@dataclass(frozen=True)
class MatchedControls:
    """Makes the matched controls of the maps of one batch.

    Attributes:
        job: What is measured.
        batch_pass: Of the original images.
        donors: Of the control `swapped`; None if the run does not have it.
    """

    job: Job
    batch_pass: BatchPass
    donors: Donors | None = None
    _made: dict[int, dict[str, Replacement]] = field(default_factory=dict)

    def maps(self, number: int, maps: Tensor) -> dict[str, Replacement]:
        """The controls that are maps, by name: all but `dimmed`. A constant map has none.

        Those of a pair are made once, and kept if a metric judges them by more than the confidence on masked images.

        Args:
            number: The number of the pair of layer and method.
            maps: Its finished maps, `[N, H, W]`.
        """
        if number in self._made:
            return self._made[number]
        made = self._make(number, maps)
        if any(not metric.is_of_numbers for metric in self.job.matched_metrics):
            self._made[number] = made
        return made

    def _make(self, number: int, maps: Tensor) -> dict[str, Replacement]:
        exists, made = varies(maps), {}
        for name in self.job.matched:
            if name == "shifted":
                made[name] = Replacement(shifted(maps, self._offsets), exists)
            elif name == "swapped" and self.donors is not None:
                chosen, found = choose_donors(self._numbers, self._others & self.donors.usable[number])
                places = self.donors.at(number, maps.shape[1:], self.job.protocol)[chosen]
                made[name] = Replacement(with_values_of(maps, places), exists & found)
            elif name == "blurred":
                made[name] = Replacement(with_values_of(maps, self._low_pass), exists)
        return made

    def masks(self, number: int, maps: Tensor, masks: Tensor) -> dict[str, Replacement]:
        """The masks of all controls, by name. A mask that is the same everywhere has none.

        Args:
            number: The number of the pair of layer and method.
            maps: Its finished maps, `[N, H, W]`.
            masks: Their masks.
        """
        made = {
            name: Replacement(mask(control.values, self.job.protocol), control.exists)
            for name, control in self.maps(number, maps).items()
        }
        made["dimmed"] = Replacement(dimmed(masks), varies(maps))
        exists = varies(masks)
        return {name: Replacement(made[name].values.to(masks.dtype), made[name].exists & exists) for name in self.job.matched}

    @cached_property
    def _offsets(self) -> Tensor:
        """By how much the maps of each image are shifted; the same for all methods and layers."""
        context = self.batch_pass.context
        sides = tuple(context.images.shape[2:])
        return distances(context.draw((len(sides),), "shifted"), sides)

    @cached_property
    def _low_pass(self) -> Tensor:
        return blurred(self.batch_pass.context.images)

    @cached_property
    def _numbers(self) -> Tensor:
        """A random number for each image and donor."""
        return self.batch_pass.context.draw((len(self._donor_ids),), "swapped")

    @cached_property
    def _others(self) -> Tensor:
        """Whether a donor is another image, `[N, D]`."""
        context = self.batch_pass.context
        name = image_of if self.job.protocol.target == EACH else str  # another class of an image is not another image
        donors = [name(one) for one in self._donor_ids]
        return torch.tensor([[donor != name(own) for donor in donors] for own in context.ids]).to(context.images.device)

    @property
    def _donor_ids(self) -> Sequence[str]:
        return () if self.donors is None else self.donors.ids
