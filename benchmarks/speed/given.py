"""What every contestant of the comparison of metrics gets: the model, images, classes, and maps and masks in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from networks import Network
from torch import Tensor

import xaieval
from xaieval.explainers import Context
from xaieval.explainers.precomputed import Precomputed

__all__ = ["Draw", "Given", "given_of", "saved_maps"]

Draw = Callable[..., Tensor]
NOISE = 1e-3  # of maps in [0, 1]: makes all pixels different, since libraries order equal pixels differently


@dataclass(frozen=True)
class Given:
    """The inputs of a metric.

    Attributes:
        network: The model.
        images: Images of one channel, `[N, 1, side, side]`, normalised.
        targets: The predicted classes `[N]`.
        maps: Finished maps in [0, 1], `[N, side, side]`.
        masks: What maps are compared with, bool `[N, side, side]`.
    """

    network: Network
    images: Tensor
    targets: Tensor
    maps: Tensor
    masks: Tensor

    def first(self, count: int) -> Given:
        """The first images alone; repeated in turn if there are fewer."""
        chosen = torch.arange(count) % len(self.images)
        return Given(self.network, *(part[chosen] for part in (self.images, self.targets, self.maps, self.masks)))

    def batches(self, size: int) -> Iterator[Given]:
        """The images, `size` at a time."""
        parts = (self.images, self.targets, self.maps, self.masks)
        for batch in zip(*(part.split(size) for part in parts), strict=True):
            yield Given(self.network, *batch)

    @property
    def draw(self) -> Draw:
        """Random numbers as a run of xaieval draws them for these images."""
        ids = [str(number) for number in range(len(self.images))]
        return Context(self.network.model, self.images, self.targets, None, ids).draw

    def confidences(self, images: Tensor, targets: Tensor) -> Tensor:
        """The probabilities of the classes, without gradients."""
        with torch.no_grad():
            return self.network.model(images).softmax(dim=1).gather(1, targets[:, None])[:, 0]

    @property
    def confidence(self) -> np.ndarray:
        """The confidences of the images themselves."""
        return self.confidences(self.images, self.targets).double().numpy()


def given_of(network: Network, seed: int) -> Given:
    """Grad-CAM maps of the deepest layer, in which all pixels differ, and the left half of each image as its mask."""
    explain = partial(xaieval.explain, network.model, layers=network.layers(1), method="gradcam")
    raw = torch.cat([next(iter(explain(part).values())) for part in network.images.split(8)])
    large = torch.nn.functional.interpolate(raw[:, None].float(), network.images.shape[2:], mode="bilinear")[:, 0]
    noise = NOISE * torch.rand(large.shape, generator=torch.Generator().manual_seed(seed))
    maps = _unit(_unit(large) + noise)
    masks = torch.zeros(maps.shape, dtype=torch.bool)
    masks[..., : maps.shape[-1] // 2] = True
    return Given(network, network.images, network.targets, maps, masks)


def _unit(maps: Tensor) -> Tensor:
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)


@contextmanager
def saved_maps(given: Given) -> Iterator[Precomputed]:
    """The maps in files, as xaieval reads those of other tools."""
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(given.maps):
            np.save(Path(folder) / f"{number}.npy", one.numpy())
        yield Precomputed(folder)
