"""Data sets of pictures with stable ids: image folders, UC Merced, the generated scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from xaieval.data.preprocessing import Preprocessing
from xaieval.data.scenes import CLASSES, Split, make_scene
from xaieval.errors import DataError

__all__ = ["ENDINGS", "Pictures", "image_folder", "scenes", "ucmerced"]

ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm")

# What Pillow raises for a file that is no image, or only a part of one.
UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Pictures(Dataset[dict[str, Any]]):
    """Pictures that are read one by one.

    Attributes:
        ids: stable names, one a picture.
        labels: index of each picture's class.
        classes: names of the classes.
        read: from a picture's number to an RGB picture.
        preprocessing: from the picture to the model's input.
    """

    ids: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]
    read: Callable[[int], Image.Image]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"id": self.ids[index], "label": self.labels[index]}
        try:
            sample["image"] = self.preprocessing(self.read(index))
        except UNREADABLE as error:
            sample["failed"] = f"{type(error).__name__}: {error}"
        return sample

    def spread(self, most: int | None) -> Pictures:
        """At most so many pictures: as evenly over the classes as can be, evenly spaced within each, in the same order.

        Example:
            >>> pictures = scenes(Preprocessing(128, 128), size=40)
            >>> pictures.spread(3).ids
            ['test/00000', 'test/00001', 'test/00002']
        """
        if most is None or most >= len(self):
            return self
        if most < 1:
            raise DataError(f"at least one image is needed, got {most}")
        members: dict[int, list[int]] = {}
        for index, label in enumerate(self.labels):
            members.setdefault(label, []).append(index)
        quota = dict.fromkeys(members, 0)
        while sum(quota.values()) < most:
            for label in quota:
                if quota[label] < len(members[label]) and sum(quota.values()) < most:
                    quota[label] += 1
        kept = sorted(group[i * len(group) // quota[label]] for label, group in members.items() for i in range(quota[label]))
        return replace(
            self,
            ids=[self.ids[i] for i in kept],
            labels=[self.labels[i] for i in kept],
            read=lambda number: self.read(kept[number]),
        )

    def loader(self, batch_size: int) -> DataLoader[dict[str, Any]]:
        """Batches for `xaieval.score`: mappings with `image`, `label`, `id`, and `failed` for what could not be read."""
        return DataLoader(self, batch_size=batch_size, collate_fn=collate)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Join samples to a batch; those without an image go to `failed`, a list of `(id, label, reason)`."""
    good = [sample for sample in samples if "image" in sample]
    batch: dict[str, Any] = {
        "failed": [(sample["id"], sample["label"], sample["failed"]) for sample in samples if "failed" in sample],
        "id": [sample["id"] for sample in good],
        "label": torch.tensor([sample["label"] for sample in good], dtype=torch.long),
    }
    if good:
        batch["image"] = torch.stack([sample["image"] for sample in good])
    return batch


def image_folder(root: str | Path, preprocessing: Preprocessing) -> Pictures:
    """Images in one sub-folder a class; classes and files in alphabetical order, ids are paths below the folder.

    Raises:
        DataError: the folder is missing, or has no sub-folders with images.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no folder '{root}'; give a folder that has one sub-folder of images for each class")
    files = sorted(
        (path.relative_to(root).as_posix(), path)
        for path in root.glob("*/**/*")
        if path.suffix.lower() in ENDINGS and path.is_file()
    )
    classes = sorted({name.split("/")[0] for name, _ in files})
    if not classes:
        raise DataError(f"no images in '{root}'; expected {root.name}/CLASS/IMAGE with one of the endings {', '.join(ENDINGS)}")
    paths = [path for _, path in files]

    def read(index: int) -> Image.Image:
        with Image.open(paths[index]) as picture:
            return _to_rgb(picture)

    return Pictures(
        ids=[name for name, _ in files],
        labels=[classes.index(name.split("/")[0]) for name, _ in files],
        classes=classes,
        read=read,
        preprocessing=preprocessing,
    )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # which Pillow would cut off at 255
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8)).convert("RGB")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")  # or Pillow warns about a palette's transparent colours
    return picture.convert("RGB")


def ucmerced(root: str | Path, preprocessing: Preprocessing) -> Pictures:
    """The UC Merced Land Use data set: 21 classes x 100 aerial images, in .tif or .jpg files.

    Args:
        root: the unpacked archive (`UCMerced_LandUse`, with `Images/` in it) or its `Images` folder.
        preprocessing: from the picture to the model's input.

    Raises:
        DataError: the folder is missing or does not hold the 21 classes.

    Reference:
        Yang and Newsam, "Bag-of-visual-words and spatial extensions for land-use classification", ACM GIS 2010.
    """
    root = Path(root)
    inner = root / "Images"
    pictures = image_folder(inner if inner.is_dir() else root, preprocessing)
    if len(pictures.classes) != 21 or "airplane" not in pictures.classes:
        raise DataError(f"'{root}' has {len(pictures.classes)} classes, UC Merced has 21; for other images use 'folder:{root}'")
    return pictures


def scenes(preprocessing: Preprocessing, size: int = 200, split: Split = "test", seed: int = 0) -> Pictures:
    """Generated images with one object each, told apart by shape: see `xaieval.data.scenes`."""

    def read(index: int) -> Image.Image:
        return Image.fromarray(make_scene(index, split, seed).image)

    return Pictures(
        ids=[f"{split}/{index:05d}" for index in range(size)],
        labels=[index % len(CLASSES) for index in range(size)],
        classes=CLASSES,
        read=read,
        preprocessing=preprocessing,
    )
