"""Noise on images, and how much a map changes: the basis of several robustness metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.errors import MetricError, choose_from

__all__ = ["NOISE", "changes_under_noise", "check_noise", "check_samples", "noise_like", "relative_change"]

Maps = Float[Tensor, " n *space"]
Draw = Callable[..., Tensor]
Explain = Callable[[Tensor], Tensor]


def _uniform(drawn: Tensor) -> Tensor:
    return 2 * drawn - 1


def _gaussian(drawn: Tensor) -> Tensor:
    """Standard normal numbers from numbers uniform in [0, 1), by the inverse of the distribution function.

    The drawn numbers are multiples of 2^-24. Half a step is added, because 0 would become minus infinity.
    """
    return torch.special.ndtri(drawn.double() + 2.0**-25)


NOISE: dict[str, Callable[[Tensor], Tensor]] = {"gaussian": _gaussian, "uniform": _uniform}


def noise_like(images: Tensor, draw: Draw, noise: str, size: float, name: str) -> Tensor:
    """Noise for each image, of the images' shape and type.

    Args:
        images: Images, `[N, C, H, W]`.
        draw: Gives numbers uniform in [0, 1); see `NEEDS`.
        noise: A key of `NOISE`.
        size: Half the width of uniform noise, or the standard deviation of Gaussian noise.
        name: Of the numbers that are drawn.
    """
    return (size * NOISE[noise](draw(images.shape[1:], name))).to(images.dtype)


def relative_change(maps: Maps, changed: Maps) -> Float[Tensor, " n"]:
    """Relative change of each map, `|changed - map| / |map|` with Euclidean norms, 0 or more.

    NaN if the map is zero everywhere.

    Args:
        maps: Maps, `[N, H, W]`.
        changed: Maps of the same shape.

    Example:
        >>> relative_change(torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]]), torch.tensor([[[3.0, 3.0]], [[1.0, 0.0]]]))
        tensor([0.2000,    nan], dtype=torch.float64)
    """
    before, after = maps.double().flatten(1), changed.double().flatten(1)
    norm = before.norm(dim=1)
    return ((after - before).norm(dim=1) / norm).masked_fill(norm == 0, torch.nan)


def changes_under_noise(
    maps: Tensor, images: Tensor, again: Explain, draw: Draw, samples: int, radius: float, noise: str
) -> Iterator[Tensor]:
    """The relative change of each map under one noise after the other, `[N]` each.

    All metrics based on these changes share the name of the noise, so they see the same images.

    Args:
        maps: Maps of the images, `[N, H, W]`.
        images: Images, `[N, C, H, W]`.
        again: Gives the maps of changed images.
        draw: Gives numbers uniform in [0, 1).
        samples: Noises for each image.
        radius: The size of the noise.
        noise: A key of `NOISE`.
    """
    for number in range(samples):
        changed = images + noise_like(images, draw, noise, radius, f"max-sensitivity {number}")
        yield relative_change(maps, again(changed))


def check_samples(samples: int, **sizes: Any) -> None:
    """Refuse less than one sample, and sizes that are not positive.

    Raises:
        MetricError: With the name and the value.
    """
    if samples < 1:
        raise MetricError(f"samples is at least 1, got {samples}")
    for name, size in sizes.items():
        if not size > 0:
            raise MetricError(f"{name} is positive, got {size}")


def check_noise(noise: str) -> None:
    """Refuse an unknown noise.

    Raises:
        MetricError: With the known ones.
    """
    if noise not in NOISE:
        raise MetricError(f"no noise {noise!r}; {choose_from(noise, NOISE)}")
