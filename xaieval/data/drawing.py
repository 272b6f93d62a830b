"""Drawing of generated scenes: the ground, distractors, outlines of shapes, and colours.

All functions work on planes of `SIDE x SIDE` pixels; images are floats in [0, 1], `[SIDE, SIDE, 3]`. The order in which they
draw random numbers is part of the data set: changing it changes the images.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CLASSES",
    "DIAMETERS",
    "SIDE",
    "Colour",
    "Mask",
    "Plane",
    "blend",
    "grain",
    "ground",
    "noise",
    "object_anywhere",
    "shape",
    "surface",
    "to_bytes",
]

Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]
Colour = NDArray[np.float64]

SIDE = 128
DIAMETERS = (26.0, 72.0)  # diameter of the object's circumscribed circle in pixels: 1.5 octaves
SUBPIXELS = 3  # samples per pixel and axis, for smooth outlines


# ---- the ground: smooth noise at several scales between two earthy colours


def ground(rng: np.random.Generator) -> Plane:
    """A ground with soft patches and sometimes a road, in any colours: everything of a scene that belongs to no class."""
    image = _background(rng)
    for _ in range(rng.integers(2, 6)):
        blend(image, _patch(rng), _colour(rng))
    if rng.random() < 0.4:
        blend(image, _road(rng), _colour(rng))
    return image


def noise(rng: np.random.Generator, cells: int) -> NDArray[np.float64]:
    """Random values on a `cells x cells` lattice, interpolated to the image: `[128, 128]` in [0, 1]."""
    lattice = rng.random((cells + 1, cells + 1))
    place = (np.arange(SIDE) + 0.5) / SIDE * cells
    low = np.minimum(place.astype(int), cells - 1)
    fraction = place - low
    fraction = fraction * fraction * (3 - 2 * fraction)
    rows = lattice[low] * (1 - fraction)[:, None] + lattice[low + 1] * fraction[:, None]
    return rows[:, low] * (1 - fraction) + rows[:, low + 1] * fraction


def _background(rng: np.random.Generator) -> NDArray[np.float64]:
    scales = ((3, 0.4), (8, 0.25), (20, 0.2), (64, 0.15))
    height = sum(weight * noise(rng, cells) for cells, weight in scales)
    ends = _GROUNDS[rng.integers(len(_GROUNDS))] + 0.12 * (rng.random((2, 3)) - 0.5)
    return ends[0] + np.asarray(height)[..., None] * (ends[1] - ends[0])


_GROUNDS = np.array(
    [
        [[0.18, 0.28, 0.14], [0.48, 0.56, 0.34]],  # fields
        [[0.45, 0.38, 0.28], [0.75, 0.68, 0.55]],  # bare soil
        [[0.30, 0.30, 0.32], [0.58, 0.58, 0.58]],  # tarmac
        [[0.08, 0.20, 0.30], [0.28, 0.42, 0.50]],  # water
        [[0.10, 0.20, 0.10], [0.30, 0.38, 0.22]],  # wood
    ]
)


# ---- distractors: soft patches without a clear outline, and straight roads


def _patch(rng: np.random.Generator) -> NDArray[np.float64]:
    centre, radius = rng.random(2) * SIDE, 6 + 16 * rng.random()
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    distance = np.sqrt((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / radius
    return 0.85 * (1.4 - distance - 1.2 * (noise(rng, 14) - 0.5)).clip(0, 1)


def _road(rng: np.random.Generator) -> NDArray[np.float64]:
    angle, width = math.pi * rng.random(), 2 + 4 * rng.random()
    through = SIDE * (0.2 + 0.6 * rng.random(2))
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    distance = np.abs((y - through[0]) * math.cos(angle) - (x - through[1]) * math.sin(angle))
    return 0.7 * (width - distance).clip(0, 1)


# ---- the object: the points of the unit disc that belong to a shape


def object_anywhere(rng: np.random.Generator, name: str) -> Plane:
    """The share of each pixel that an object of random size, place and rotation covers, in [0, 1]. It lies inside the image."""
    low, high = DIAMETERS
    radius = low * (high / low) ** rng.random() / 2
    centre = radius + 1 + rng.random(2) * (SIDE - 2 * radius - 2)
    return shape(name, centre, radius, 2 * math.pi * rng.random())


def shape(name: str, centre: Plane, radius: float, angle: float) -> Plane:
    """The share of each pixel that a shape covers, `[128, 128]` in [0, 1].

    Args:
        name: One of `CLASSES`.
        centre: Row and column of the centre of its circumscribed circle, in pixels.
        radius: The radius of that circle, in pixels.
        angle: Its rotation in radians.
    """
    fine = (np.arange(SIDE * SUBPIXELS) + 0.5) / SUBPIXELS
    y, x = (fine - centre[0])[:, None] / radius, (fine - centre[1])[None, :] / radius
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    inside = _covers(name, along, across)
    return inside.reshape(SIDE, SUBPIXELS, SIDE, SUBPIXELS).mean(axis=(1, 3))


def _inside(corners: list[tuple[float, float]], x: Plane, y: Plane) -> Mask:
    """Which points lie inside a simple polygon, by the even-odd rule."""
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def _regular(corners: int, *, inner: float = 1.0) -> list[tuple[float, float]]:
    """A regular polygon in the unit circle; with an `inner` radius every second corner is pulled in (a star)."""
    count = corners if inner == 1.0 else 2 * corners
    radii = [1.0 if i % 2 == 0 else inner for i in range(count)]
    return [(r * math.cos(2 * math.pi * i / count), r * math.sin(2 * math.pi * i / count)) for i, r in enumerate(radii)]


def _mirrored(half: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Close an outline that is symmetric about the x axis."""
    return half + [(x, -y) for x, y in reversed(half)]


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": _regular(4),
    "triangle": _regular(3),
    "star": _regular(5, inner=0.42),
    "cross": [
        (0.3, 0.3), (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3),
        (-0.3, -0.3), (-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3),
    ],
    "ell": [(-0.6, -0.8), (0.6, -0.8), (0.6, -0.3), (-0.05, -0.3), (-0.05, 0.8), (-0.6, 0.8)],
    "chevron": _mirrored([(0.95, 0.0), (-0.35, 0.9), (-0.75, 0.6), (0.2, 0.0)]),
    "airplane": _mirrored(
        [
            (0.99, 0.0), (0.85, 0.13), (0.35, 0.15), (-0.2, 0.9), (-0.42, 0.9), (-0.15, 0.15),
            (-0.65, 0.12), (-0.8, 0.42), (-0.9, 0.42), (-0.85, 0.0),
        ]
    ),
}  # fmt: skip


def _covers(name: str, x: Plane, y: Plane) -> Mask:
    """Which points of the plane the shape `name` covers; it fits the unit circle."""
    if name in _POLYGONS:
        return _inside(_POLYGONS[name], x, y)
    disc = x * x + y * y <= 0.95**2
    if name == "ring":
        return disc & (x * x + y * y > 0.55**2)
    if name == "crescent":
        return disc & ((x - 0.55) ** 2 + y * y > 0.75**2)
    return disc


CLASSES = ("disc", "ring", "crescent", "square", "triangle", "star", "cross", "ell", "chevron", "airplane")


# ---- colours


def surface(rng: np.random.Generator, image: Plane, coverage: Plane) -> Plane:
    """A random colour that contrasts with the ground below an object, slightly uneven, `[128, 128, 3]`."""
    return _contrasting(rng, image[coverage > 0.5].mean(axis=0)) + 0.08 * (noise(rng, 32) - 0.5)[..., None]


def grain(rng: np.random.Generator) -> Plane:
    """Weak noise in every pixel and channel, as of a camera."""
    return 0.02 * (rng.random((SIDE, SIDE, 3)) - 0.5)


def to_bytes(image: Plane) -> NDArray[np.uint8]:
    """An image of floats as 8 bits for each channel; values out of [0, 1] are clipped."""
    return np.round(image.clip(0, 1) * 255).astype(np.uint8)


def _colour(rng: np.random.Generator) -> Colour:
    return 0.1 + 0.8 * rng.random(3)


def _contrasting(rng: np.random.Generator, ground: Colour) -> Colour:
    """A random colour that is distinct from the ground; drawing again avoids a bias to very bright or dark colours."""
    while True:
        colour = _colour(rng)
        if np.abs(colour - ground).mean() > 0.22:
            return colour


def blend(image: Plane, coverage: Plane, colour: Colour | Plane) -> None:
    """Blend `colour` into the image in place, weighted by `coverage`."""
    image += coverage[..., None] * (colour - image)
