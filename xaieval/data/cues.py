"""Scenes with a known mark that decides the class: for a model that uses it, the true explanation is known pixel by pixel.

The mark that decides the class, and the distractor, which is unrelated to it:

- `watermark`: the two dots of a small sign, each up or down; the distractor is an object.
- `colour`: the colour of an object, while all else is nearly grey; a grey object.
- `texture`: the texture of an object, in any two colours; a plain object.
- `object`: the shape of one of two objects; the other one, whose shape is never a class.

Place, size, and all colours and shapes that are not the cue are independent of the class. Cue and distractor lie inside the
image and do not touch. Half of a watermark leaves two of the four classes possible; half of a colour or a texture is as good as
the whole.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from xaieval.data.drawing import CLASSES, SIDE, Mask, Plane, blend, grain, ground, noise, shape, surface

__all__ = ["CUES", "Cue", "Drawn", "draw_with_cue"]

Cue = Literal["watermark", "colour", "texture", "object"]

# The classes of each cue.
CUES: dict[Cue, tuple[str, ...]] = {
    "watermark": ("up-up", "up-down", "down-up", "down-down"),
    "colour": ("red", "green", "cyan", "violet"),
    "texture": ("rows", "columns", "checks", "dots"),
    "object": ("ring", "triangle", "star", "cross"),
}
RADII = (14.0, 24.0)  # of the circles around the cue and the distractor, in pixels
GAP = 8.0  # between the circles; corners of a watermark lie outside its circle, by at most 6 pixels
BLOCKS = 8  # of a watermark, along each side
HUES = {"red": 0.0, "green": 0.29, "cyan": 0.5, "violet": 0.79}
PERIODS = (6.0, 9.0)  # of a texture, in pixels


@dataclass(frozen=True)
class Drawn:
    """A scene with a cue, before it is rounded to bytes.

    Attributes:
        image: The image, floats `[128, 128, 3]`.
        without_cue: The same without the cue.
        cue_only: Nothing but the cue, on grey ground.
        mask: Pixels of the cue, `bool [128, 128]`.
        distractor: Pixels of the other object.
    """

    image: Plane
    without_cue: Plane
    cue_only: Plane
    mask: Mask
    distractor: Mask


@dataclass(frozen=True)
class Circle:
    """Where an object is drawn: the circle around it, in pixels, and its rotation in radians."""

    centre: Plane
    radius: float
    angle: float

    def shape(self, name: str) -> Plane:
        """The share of each pixel that a shape in this circle covers."""
        return shape(name, self.centre, self.radius, self.angle)


@dataclass(frozen=True)
class Mark:
    """A drawn cue: the share of each pixel that it covers, its colours, and those of the same place without the cue."""

    coverage: Plane
    colours: Plane
    without: Plane


def draw_with_cue(cue: Cue, label: int, numbers: list[int]) -> Drawn:
    """Draw the scene that belongs to these numbers.

    Args:
        cue: What decides the class.
        label: The class, an index in `CUES[cue]`.
        numbers: Seed, split and index of the scene.
    """
    rng = np.random.default_rng([*numbers, 1 + get_args(Cue).index(cue)])
    image = _greyish(ground(rng)) if cue == "colour" else ground(rng)
    place, other_place = _apart(rng)
    distractor = other_place.shape(_any_shape(rng, cue))
    colours = surface(rng, image, distractor)
    blend(image, distractor, _grey(colours) if cue == "colour" else colours)
    mark = MARKS[cue](rng, place, image, CUES[cue][label])
    speckle = grain(rng)
    whole, without = image.copy(), image.copy()
    blend(whole, mark.coverage, mark.colours)
    blend(without, mark.coverage, mark.without)
    whole, without = whole + speckle, without + speckle
    only = 0.5 + mark.coverage[..., None] * (whole - 0.5)
    return Drawn(whole, without, only, mark.coverage > 0.5, distractor > 0.5)


def _apart(rng: np.random.Generator) -> tuple[Circle, Circle]:
    """Two circles inside the image that do not touch."""
    while True:
        one, other = (_circle(rng) for _ in range(2))
        if np.hypot(*(one.centre - other.centre)) > one.radius + other.radius + GAP:
            return one, other


def _circle(rng: np.random.Generator) -> Circle:
    radius = RADII[0] * (RADII[1] / RADII[0]) ** rng.random()
    centre = radius + 1 + rng.random(2) * (SIDE - 2 * radius - 2)
    return Circle(centre, radius, 2 * math.pi * rng.random())


def _any_shape(rng: np.random.Generator, cue: Cue) -> str:
    """A shape that is no class of the cue."""
    allowed = [name for name in CLASSES if name not in CUES[cue]]
    return allowed[rng.integers(len(allowed))]


# ---- the marks


def _watermark(_: np.random.Generator, place: Circle, image: Plane, name: str) -> Mark:
    """A black square with two white dots, of whole pixels and without rotation."""
    block = round(place.radius / 5)  # 3 to 5 pixels
    side = BLOCKS * block
    row, column = np.round(place.centre - side / 2).astype(int)
    where = slice(row, row + side), slice(column, column + side)
    blocks = np.zeros((BLOCKS, BLOCKS))
    for left, word in zip((1, 5), name.split("-"), strict=True):
        top = 1 if word == "up" else 5
        blocks[top : top + 2, left : left + 2] = 1
    coverage, colours = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE, 3))
    coverage[where] = 1
    colours[where] = 0.05 + 0.9 * np.kron(blocks, np.ones((block, block)))[..., None]
    return Mark(coverage, colours, without=image)


def _colour(rng: np.random.Generator, place: Circle, image: Plane, name: str) -> Mark:
    coverage = place.shape(_any_shape(rng, "colour"))
    hue = HUES[name] + 0.06 * (rng.random() - 0.5)
    colour = np.array(colorsys.hsv_to_rgb(hue % 1, 0.75 + 0.25 * rng.random(), 0.55 + 0.45 * rng.random()))
    colours = colour + 0.08 * (noise(rng, 32) - 0.5)[..., None]
    return Mark(coverage, colours, without=_grey(colours))


def _texture(rng: np.random.Generator, place: Circle, image: Plane, name: str) -> Mark:
    coverage = place.shape(_any_shape(rng, "texture"))
    colours = surface(rng, image, coverage)
    other = np.where(colours > 0.5, colours - 0.45, colours + 0.45)
    share = _pattern(rng, name)[..., None]
    return Mark(coverage, colours + share * (other - colours), without=colours + share.mean() * (other - colours))


def _pattern(rng: np.random.Generator, name: str) -> Plane:
    """The share of the second colour in each pixel, `[128, 128]`, without rotation and with a random period and phase."""
    period, phase = PERIODS[0] + (PERIODS[1] - PERIODS[0]) * rng.random(), rng.random(2)
    along = (np.arange(SIDE) + 0.5) / period
    down, across = (np.sin(2 * math.pi * (along + start)) for start in phase)
    down, across = np.broadcast_arrays(down[:, None], across[None, :])
    wave = {"rows": down, "columns": across, "checks": 2 * down * across, "dots": down + across - 1}[name]
    return (0.5 + 2 * wave).clip(0, 1)


def _one_of_two(rng: np.random.Generator, place: Circle, image: Plane, name: str) -> Mark:
    coverage = place.shape(name)
    return Mark(coverage, surface(rng, image, coverage), without=image)


MARKS: dict[Cue, Callable[[np.random.Generator, Circle, Plane, str], Mark]] = {
    "watermark": _watermark,
    "colour": _colour,
    "texture": _texture,
    "object": _one_of_two,
}


# ---- grey


def _grey(image: Plane) -> Plane:
    """Each pixel's mean over the colours, in all three."""
    return np.broadcast_to(image.mean(axis=-1, keepdims=True), image.shape)


def _greyish(image: Plane) -> Plane:
    """An image at a quarter of its saturation."""
    return _grey(image) + 0.25 * (image - _grey(image))
