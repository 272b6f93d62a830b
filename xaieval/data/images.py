"""Data sets of pictures with stable ids: image folders, UC Merced, the generated scenes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xaieval.data.batches import check_images
from xaieval.data.decoding import UNREADABLE, read_picture, readable_name, to_rgb
from xaieval.data.download import fetch, unpack
from xaieval.data.preprocessing import Preprocessing
from xaieval.data.scenes import CLASSES, Split, make_scene
from xaieval.data.truth import coco_boxes, mask_files
from xaieval.errors import DataError, UsageError

__all__ = ["ENDINGS", "Pictures", "collate", "download_ucmerced", "image_folder", "sample_of", "scenes", "ucmerced"]

ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm")

# As torchgeo and TensorFlow Datasets publish them.
UCMERCED_URL = "https://huggingface.co/datasets/torchgeo/ucmerced/resolve/main/UCMerced_LandUse.zip"
UCMERCED_SHA256 = "06c539ef28703a58fb07bd2837991ac7c48b813b00bb12ac197efd813a18daeb"
ARCHIVE = "UCMerced_LandUse"
MOST_FETCHED, MOST_UNPACKED = 500_000_000, 1_000_000_000  # bytes; it has 317 MB


@dataclass(frozen=True)
class Pictures(Dataset[dict[str, Any]]):
    """Pictures that are read one by one.

    Attributes:
        ids: stable names, one a picture.
        labels: index of each picture's class.
        classes: names of the classes.
        read: from a picture's number to an RGB picture.
        preprocessing: from the picture to the model's input; `Preprocessing`, or a transform with augmentation, which leaves
            masks and boxes out since it does not say where it moves them.
        mask: from a picture's number to the mask of its object, of the picture's size, white on black; None if unknown.
        boxes: around the objects of each picture, `[k, 4]`, `(x1, y1, x2, y2)` in its pixels; None if unknown.
    """

    ids: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]
    read: Callable[[int], Image.Image]
    preprocessing: Callable[[Image.Image], Tensor]
    mask: Callable[[int], Image.Image] | None = None
    boxes: Sequence[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return sample_of(self.ids[index], self.labels[index], lambda: self._prepared(index))

    def _prepared(self, index: int) -> dict[str, Any]:
        """The image, and where its objects are."""
        picture = self.read(index)
        found: dict[str, Any] = {"image": self.preprocessing(picture)}
        if not isinstance(self.preprocessing, Preprocessing):
            return found
        if self.mask is not None:
            mask = self.mask(index)
            if mask.size != picture.size:  # an unreadable picture rather than a wrong call, so that one does not end a run
                raise ValueError(f"its mask has {mask.size} pixels, the picture {picture.size}")
            found["mask"] = self.preprocessing.mask(mask)
        if self.boxes is not None:
            found["boxes"] = self.preprocessing.boxes(self.boxes[index], picture.size)
        return found

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
        return self.subset(
            sorted(group[i * len(group) // quota[label]] for label, group in members.items() for i in range(quota[label]))
        )

    def subset(self, numbers: Sequence[int]) -> Pictures:
        """The pictures of these numbers, in this order.

        Example:
            >>> scenes(Preprocessing(128, 128), size=40).subset([7, 3]).ids
            ['test/00007', 'test/00003']
        """
        numbers, mask = list(numbers), self.mask  # the caller's numbers may change
        return replace(
            self,
            ids=[self.ids[i] for i in numbers],
            labels=[self.labels[i] for i in numbers],
            read=lambda number: self.read(numbers[number]),
            mask=None if mask is None else lambda number: mask(numbers[number]),
            boxes=None if self.boxes is None else [self.boxes[i] for i in numbers],
        )

    def kept_in_memory(self) -> Pictures:
        """The same pictures, each read once: for those that take longer to make than to keep."""
        return replace(self, read=cache(self.read), mask=None if self.mask is None else cache(self.mask))

    def loader(self, batch_size: int, workers: int = 0, pin_memory: bool = False) -> DataLoader[dict[str, Any]]:
        """Batches for `xaieval.score`: mappings with `image`, `label`, `id`, `mask` and `boxes` where they are known, and
        `failed` for what could not be read.

        Args:
            batch_size: pictures a batch.
            workers: processes that read ahead; 0 reads in this one.
            pin_memory: as a GPU takes it fastest.
        """
        return DataLoader(self, batch_size=batch_size, collate_fn=collate, num_workers=workers, pin_memory=pin_memory)


def sample_of(image_id: str, label: int | None, prepare: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One sample: an id, a label, and what `prepare` gives of the image, or why it cannot be read."""
    sample = {"id": image_id, "label": label}
    try:
        return sample | prepare()
    except UsageError:  # wrong for every picture
        raise
    except UNREADABLE as error:
        return sample | {"failed": f"{type(error).__name__}: {error}"}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Join samples to a batch; those without an image go to `failed`, a list of `(id, label, reason)`.

    Raises:
        DataError: some have a label and others have none, or the images are of several sizes.
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
        truth = {key: [sample[key] for sample in good] for key in ("mask", "boxes") if key in good[0]}
        batch |= truth | ({"mask": torch.stack(truth["mask"])} if "mask" in truth else {})
    return batch


def image_folder(
    root: str | Path,
    preprocessing: Preprocessing,
    *,
    masks: str | Path | None = None,
    boxes: str | Path | None = None,
) -> Pictures:
    """Images in one sub-folder a class; classes and files in alphabetical order, ids are paths below the folder.

    Whatever has an ending of an image and is no folder is listed; what cannot be read then becomes a row with that status. A
    class may be a link to a folder; further in, links to folders are not followed, since they can go round in circles. Pictures
    are turned upright as their EXIF data says. Masks and boxes go through the same resizing and cropping as the images.

    Args:
        root: the folder.
        preprocessing: from the picture to the model's input.
        masks: a folder with the mask of each image, a PNG file under the same path (`masks/cat/1.png` for `cat/1.jpg`) of the
            same size; whatever is not 0 in it belongs to the object. A mask that cannot be read makes its image unreadable.
        boxes: a JSON file in the format of COCO, whose `file_name` are paths below `root`, or file names that are unique.

    Raises:
        DataError: the folder is missing, a sub-folder cannot be read, or none has images; masks or boxes are missing, or are
            those of other images.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no folder '{root}'; give a folder that has one sub-folder of images for each class")
    files = _image_files(root)
    names, paths = [name for name, _ in files], [path for _, path in files]
    classes = sorted({name.split("/")[0] for name in names})
    if not classes:
        raise DataError(f"no images in '{root}'; expected {root.name}/CLASS/IMAGE with one of the endings {', '.join(ENDINGS)}")
    return Pictures(
        ids=names,
        labels=[classes.index(name.split("/")[0]) for name in names],
        classes=classes,
        read=lambda index: read_picture(paths[index], to_rgb),
        preprocessing=preprocessing,
        mask=None if masks is None else mask_files(masks, [path.relative_to(root).as_posix() for path in paths]),
        boxes=None if boxes is None else coco_boxes(boxes, names),
    )


def _image_files(root: Path) -> list[tuple[str, Path]]:
    """The files of all classes by their ids, in order."""
    found: list[tuple[str, Path]] = []
    for folder in filter(Path.is_dir, root.iterdir()):
        for place, _, names in os.walk(folder, onerror=_refuse_folder):
            paths = [Path(place, name) for name in names]
            found += [(_id_of(path, root), path) for path in paths if path.suffix.lower() in ENDINGS]
    return sorted(found)


def _id_of(path: Path, root: Path) -> str:
    return readable_name(path.relative_to(root).as_posix())


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"cannot read the folder '{error.filename}': {error.strerror}; its images would be missing") from error


def ucmerced(root: str | Path, preprocessing: Preprocessing, download: bool = False) -> Pictures:
    """The UC Merced Land Use data set: 21 classes x 100 aerial images, in .tif or .jpg files.

    Args:
        root: the unpacked archive (`UCMerced_LandUse`, with `Images/` in it) or its `Images` folder.
        preprocessing: from the picture to the model's input.
        download: fetch the archive (317 MB) into the folder, if the images are not there.

    Raises:
        DataError: the folder is missing or does not hold the 21 classes; the download failed or is not the data set.

    Reference:
        Yang and Newsam, "Bag-of-visual-words and spatial extensions for land-use classification", ACM GIS 2010.
    """
    root = Path(root)
    if download and _ucmerced_images(root) is None:
        download_ucmerced(root)
    if not root.is_dir():
        raise DataError(f"no folder '{root}'; give the one that holds UC Merced, or have it downloaded by --download")
    pictures = image_folder(_ucmerced_images(root) or root, preprocessing)
    if len(pictures.classes) != 21 or "airplane" not in pictures.classes:
        raise DataError(f"'{root}' has {len(pictures.classes)} classes, UC Merced has 21; for other images use 'folder:{root}'")
    return pictures


def _ucmerced_images(root: Path) -> Path | None:
    """The folder of the images, as the archive has it or one or two folders further in."""
    return next((inner for inner in (root / "Images", root / ARCHIVE / "Images") if inner.is_dir()), None)


def download_ucmerced(root: str | Path) -> None:
    """Fetch the archive of UC Merced into a folder, check it, and unpack it there.

    Raises:
        DataError: it cannot be fetched, its checksum is not the published one, or the folder cannot be written.
    """
    root = Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{ARCHIVE}.lock"):  # of several processes the others wait, and find it
            if _ucmerced_images(root) is None:
                archive = fetch(UCMERCED_URL, root / f"{ARCHIVE}.zip", UCMERCED_SHA256, MOST_FETCHED)
                unpack(archive, root / ARCHIVE, MOST_UNPACKED)
                archive.unlink()
    except OSError as error:
        raise DataError(f"cannot download into '{root}': {error}; choose another folder") from error


def scenes(
    preprocessing: Preprocessing, size: int = 200, split: Split = "test", seed: int = 0, *, masks: bool = False
) -> Pictures:
    """Generated images with one object each, told apart by shape, with the object's mask if wanted: see `xaieval.data.scenes`.

    Example:
        >>> batch = next(iter(scenes(Preprocessing(128, 128), size=4, masks=True).loader(batch_size=4)))
        >>> batch["mask"].shape, batch["mask"].dtype
        (torch.Size([4, 128, 128]), torch.bool)
    """
    draw = lru_cache(maxsize=1)(make_scene)  # its picture and its mask are asked for one after the other

    def read(index: int) -> Image.Image:
        return Image.fromarray(draw(index, split, seed).image)

    def mask(index: int) -> Image.Image:
        return Image.fromarray(draw(index, split, seed).mask.astype(np.uint8) * 255)

    return Pictures(
        ids=[f"{split}/{index:05d}" for index in range(size)],
        labels=[index % len(CLASSES) for index in range(size)],
        classes=CLASSES,
        read=read,
        preprocessing=preprocessing,
        mask=mask if masks else None,
    )
