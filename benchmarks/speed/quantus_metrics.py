"""Metrics of Quantus, called as its documentation shows: arrays in, and maps that are finished or a function that makes them.

Every metric gets the images in batches of a given size. With `draw`, it gets xaieval's random numbers in the place of its own,
so that the values can be compared; times are taken without.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from given import Draw, Given
from torch import Tensor

from xaieval.metrics.changes import noise_like
from xaieval.metrics.subsets import random_pixels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    import quantus

__all__ = ["by_explaining", "by_maps", "by_maps_and_masks", "same_noise", "same_pixels"]

Found = Callable[..., Any]


def by_maps(name: str, draws: Callable[[Given, Draw], Any] | None = None, **made: Any) -> Found:
    """A metric of finished maps, `a_batch`.

    Args:
        name: Its class.
        draws: From xaieval's random numbers to a context in which the metric uses them.
        made: What the object is made with.
    """

    def found(given: Given, size: int, draw: Draw | None = None) -> Any:
        if draw is None or draws is None:
            return _called(name, made, given, size, a_batch=_maps(given))
        with draws(given, draw):
            return _called(name, made, given, size, a_batch=_maps(given))

    return found


def by_maps_and_masks(name: str, **made: Any) -> Found:
    """A metric that compares finished maps with masks, `s_batch`."""

    def found(given: Given, size: int, draw: Draw | None = None) -> Any:
        return _called(name, made, given, size, a_batch=_maps(given), s_batch=given.masks[:, None].numpy())

    return found


def by_explaining(name: str, noise: Callable[[Given, Draw, int], Iterator[Tensor]] | None = None, **made: Any) -> Found:
    """A metric that explains images itself, by Quantus' own function with captum's Saliency.

    Args:
        name: Its class.
        noise: From xaieval's random numbers and the batch size to the noises that are added to the images of a batch.
        made: What the object is made with.
    """

    def found(given: Given, size: int, draw: Draw | None = None) -> Any:
        own = made
        if draw is not None and noise is not None:
            waiting = noise(given, draw, made["nr_samples"])
            own = made | {"perturb_func": lambda arr, **_: arr + next(waiting).numpy().reshape(arr.shape)}
        explaining = {"explain_func": quantus.explain, "explain_func_kwargs": {"method": "Saliency", "channel_first": True}}
        return _called(name, own, given, size, **explaining)

    return found


def same_noise(kind: str, radius: float, name: str) -> Callable[[Given, Draw, int], Iterator[Tensor]]:
    """The noises that xaieval draws by this name, for all images in one batch."""

    def noises(given: Given, draw: Draw, samples: int) -> Iterator[Tensor]:
        return (noise_like(given.images, draw, kind, radius, f"{name} {number}") for number in range(samples))

    return noises


@contextmanager
def same_pixels(given: Given, draw: Draw) -> Iterator[None]:
    """Quantus draws the pixels that xaieval draws for `faithfulness_correlation`, of all images in one batch."""
    number = 0

    def chosen(features: int, count: int, replace: bool) -> np.ndarray:
        nonlocal number
        repeat, image = divmod(number, len(given.images))
        number += 1
        subset = random_pixels(draw, given.images, count, f"pixels {repeat}")[image]
        return subset.flatten().nonzero()[:, 0].numpy()

    with patch.object(np.random, "choice", chosen):
        yield


def _maps(given: Given) -> np.ndarray:
    return given.maps[:, None].numpy()


def _called(name: str, made: dict[str, Any], given: Given, size: int, **called: Any) -> Any:
    settings = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False} | made
    call = {"x_batch": given.images.numpy(), "y_batch": given.targets.numpy(), "channel_first": True, "softmax": True}
    with patch.object(np, "trapz", np.trapezoid, create=True):  # which numpy 2.4 no longer has
        metric = getattr(quantus, name)(**settings)
        return metric(model=given.network.model, **call, **called, device="cpu", batch_size=size)
