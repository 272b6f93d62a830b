"""Scenes: generated, aerial-like images of one object each, with the object's pixel mask as ground truth.

The class is the object's shape, independent of its colour, size, position and rotation; or, with a cue, what
`xaieval.data.cues` says. Image `index` of a split depends only on `(seed, split, index, cue)`, so a longer data set starts with
the images of a shorter one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from xaieval.data.cues import CUES, Cue, Drawn, draw_with_cue
from xaieval.data.drawing import CLASSES, blend, grain, ground, object_anywhere, surface, to_bytes
from xaieval.errors import DataError

__all__ = ["CLASSES", "CUES", "Scene", "classes_of", "make_scene"]

Split = Literal["train", "validation", "test"]
Version = Literal["whole", "without_cue", "cue_only"]
VERSIONS = get_args(Version)


@dataclass(frozen=True)
class Scene:
    """One generated image.

    Attributes:
        image: RGB image, `uint8 [128, 128, 3]`.
        mask: Pixels that the object covers by at least half, `bool [128, 128]`; of a scene with a cue, those of the cue.
        label: Index of the class in `CLASSES`; of a scene with a cue, in `CUES[cue]`.
        distractor: With a cue, the pixels of an object that says nothing about the class. They are never those of the cue.
        without_cue: With a cue, the same image without it.
        cue_only: With a cue, its pixels on a grey ground.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    label: int
    distractor: NDArray[np.bool_] | None = None
    without_cue: NDArray[np.uint8] | None = None
    cue_only: NDArray[np.uint8] | None = None

    def version(self, name: Version) -> NDArray[np.uint8]:
        """The image, or one of its versions."""
        return {"whole": self.image, "without_cue": self.without_cue, "cue_only": self.cue_only}[name]  # type: ignore[return-value]


def classes_of(cue: Cue | None = None) -> tuple[str, ...]:
    """The names of the classes of scenes without or with a cue.

    Raises:
        DataError: There is no such cue.

    Example:
        >>> classes_of("object")
        ('ring', 'triangle', 'star', 'cross')
    """
    if cue is not None and cue not in CUES:
        raise DataError(f"no cue {cue!r} of scenes; known: {', '.join(CUES)}")
    return CLASSES if cue is None else CUES[cue]


def check_version(version: str, cue: Cue | None) -> None:
    """Refuse versions that scenes do not have.

    Raises:
        DataError: With the versions or cues that there are.
    """
    if version not in VERSIONS:
        raise DataError(f"no version {version!r} of scenes; known: {', '.join(VERSIONS)}")
    if cue is None and version != "whole":
        raise DataError(f"version {version!r} is of scenes with a cue; give cue= one of {', '.join(CUES)}")


def make_scene(index: int, split: Split = "test", seed: int = 0, cue: Cue | None = None) -> Scene:
    """Draw scene number `index` of a split; the same arguments give the same bytes.

    Args:
        index: Number of the image, from 0; consecutive images have different classes.
        split: "train", "validation" or "test".
        seed: The seed of the whole data set, from 0.
        cue: What decides the class instead of the object's shape; see `xaieval.data.cues`.

    Raises:
        DataError: The split or the cue is unknown, or a number is negative.

    Example:
        >>> scene = make_scene(7)
        >>> scene.image.shape, CLASSES[scene.label], bool(scene.mask.any())
        ((128, 128, 3), 'ell', True)
        >>> CUES["colour"][make_scene(7, cue="colour").label]
        'violet'
    """
    if split not in get_args(Split):
        raise DataError(f"no split {split!r} of scenes; known: {', '.join(get_args(Split))}")
    if index < 0 or seed < 0:
        raise DataError(f"scenes are numbered from 0, got index {index} and seed {seed}")
    label = index % len(classes_of(cue))
    numbers = [seed, get_args(Split).index(split), index]
    return _plain(numbers, label) if cue is None else _with_cue(draw_with_cue(cue, label, numbers), label)


def _plain(numbers: list[int], label: int) -> Scene:
    rng = np.random.default_rng(numbers)
    image = ground(rng)
    coverage = object_anywhere(rng, CLASSES[label])
    blend(image, coverage, surface(rng, image, coverage))
    return Scene(to_bytes(image + grain(rng)), coverage > 0.5, label)


def _with_cue(drawn: Drawn, label: int) -> Scene:
    return Scene(
        image=to_bytes(drawn.image),
        mask=drawn.mask,
        label=label,
        distractor=drawn.distractor,
        without_cue=to_bytes(drawn.without_cue),
        cue_only=to_bytes(drawn.cue_only),
    )
