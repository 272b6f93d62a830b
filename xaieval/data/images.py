"""Data sets of images with stable ids: image folders, UC Merced, and generated scenes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xaieval.config.counts import check_count
from xaieval.data.annotations import Annotations, read_annotations
from xaieval.data.class_folders import ClassOrder, read_class_folder
from xaieval.data.coco import coco_boxes
from xaieval.data.cues import Cue
from xaieval.data.decoding import ENDINGS, picture_size, read_bands, read_picture, readable_name, to_rgb
from xaieval.data.preprocessing import Preprocessing, size_of
from xaieval.data.samples import collate, sample_of
from xaieval.data.scenes import Split, Version, check_version, classes_of, make_scene
from xaieval.data.truth import mask_files
from xaieval.data.truth_by_class import Truth
from xaieval.errors import DataError, printable

__all__ = ["Pictures", "describe_left_out", "image_files", "image_folder", "scenes"]

MOST_SHOWN = 10  # classes in the text of a data set


@dataclass(frozen=True, repr=False)
class Pictures(Dataset[dict[str, Any]]):
    """A data set of images that are read one by one.

    Attributes:
        ids: A stable name for each image.
        labels: The class index of each image; None for images without classes.
        classes: Names of the classes.
        read: Reads the RGB image of a number; for models of several bands, a tensor `[C, H, W]`, of scans `[C, D, H, W]`.
        preprocessing: Turns an image into the model's input: a `Preprocessing` or `ScanPreprocessing`, or a transform with
            augmentation. With a transform, masks and boxes are left out, because it does not say where it moves them.
        mask: Reads the object mask of a number, of the image's size, white on black, of scans a tensor; None if masks are
            unknown.
        boxes: Boxes around the objects of each image, `[k, 4]`, `(x1, y1, x2, y2)` in its pixels; None if unknown.
        left_out: What else a folder contains: the number of files of each kind.
        truth: Reads the objects of a number with their classes, in the image's pixels, from its width and height; None if
            they are unknown.
    """

    ids: Sequence[str]
    labels: Sequence[int | None]
    classes: Sequence[str]
    read: Callable[[int], Image.Image | Tensor]
    preprocessing: Callable[[Any], Tensor]
    mask: Callable[[int], Image.Image | Tensor] | None = None
    boxes: Sequence[Tensor] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    truth: Callable[[int, tuple[int, int]], Truth] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        """The numbers of pictures, of classes and of what was left out, and the first classes in the order of their labels."""
        shown = [*map(printable, self.classes[:MOST_SHOWN]), *(["..."] if len(self.classes) > MOST_SHOWN else [])]
        count = f"{len(self.classes)} {'class' if len(self.classes) == 1 else 'classes'}"
        known = f"{count}: {', '.join(shown)}" if self.classes else "no classes"
        pictures = f"{len(self)} {'picture' if len(self) == 1 else 'pictures'}"
        return f"<{'; '.join(filter(None, [f'{pictures}, {known}', describe_left_out(self.left_out)]))}>"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return sample_of(self.ids[index], self.labels[index], lambda: self._prepared(index))

    def _prepared(self, index: int) -> dict[str, Any]:
        """The preprocessed image, with its mask and boxes if they are known."""
        picture = self.read(index)
        prepared: dict[str, Any] = {"image": self.preprocessing(picture)}
        if self.mask is not None and hasattr(self.preprocessing, "mask"):
            mask = self.mask(index)
            if _sides(mask) != _sides(picture):  # counts as an unreadable image, so that it does not end a run
                raise ValueError(f"its mask has {_sides(mask)} pixels, the image {_sides(picture)}")
            prepared["mask"] = self.preprocessing.mask(mask)
        if not isinstance(self.preprocessing, Preprocessing):
            return prepared
        size = size_of(picture)
        if self.boxes is not None:
            prepared["boxes"] = self.preprocessing.boxes(self.boxes[index], size)
        if self.truth is not None:
            prepared["truth"] = self.preprocessing.truth(self.truth(index, size), size)
        return prepared

    def spread(self, most: int | None) -> Pictures:
        """Select at most `most` images: spread evenly over the classes, evenly spaced within each class, in the same order.

        Example:
            >>> pictures = scenes(Preprocessing(128, 128), size=40)
            >>> pictures.spread(3).ids
            ['test/00000', 'test/00001', 'test/00002']
        """
        check_count("max_images", most, optional=True, kind=DataError)
        if most is None or most >= len(self):
            return self
        members: dict[int | None, list[int]] = {}
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
        """Select the images of these numbers, in this order.

        Example:
            >>> scenes(Preprocessing(128, 128), size=40).subset([7, 3]).ids
            ['test/00007', 'test/00003']
        """
        numbers, mask, truth = list(numbers), self.mask, self.truth  # the caller's numbers may change
        return replace(
            self,
            ids=[self.ids[i] for i in numbers],
            labels=[self.labels[i] for i in numbers],
            read=lambda number: self.read(numbers[number]),
            mask=None if mask is None else lambda number: mask(numbers[number]),
            boxes=None if self.boxes is None else [self.boxes[i] for i in numbers],
            truth=None if truth is None else lambda number, size: truth(numbers[number], size),
        )

    def kept_in_memory(self) -> Pictures:
        """Read each image only once and keep it in memory, for images that are slow to create."""
        return replace(self, read=cache(self.read), mask=None if self.mask is None else cache(self.mask))

    def loader(self, batch_size: int, workers: int = 0, pin_memory: bool = False) -> DataLoader[dict[str, Any]]:
        """Return a loader for `xaieval.score`.

        Its batches are mappings with `image`, `label`, `id`, `mask`, `boxes` and `truth` if they are known, and `failed` for
        images that could not be read.

        Args:
            batch_size: Images in a batch; always one if whole images make images of several sizes.
            workers: Number of processes that load images; 0 loads in this process.
            pin_memory: Put batches into pinned memory, for faster transfer to a GPU.
        """
        check_count("batch_size", batch_size, kind=DataError)
        check_count("workers", workers, 0, kind=DataError)
        batch_size = 1 if getattr(self.preprocessing, "whole", None) else batch_size
        return DataLoader(self, batch_size=batch_size, collate_fn=collate, num_workers=workers, pin_memory=pin_memory)


def image_folder(
    root: str | Path,
    preprocessing: Preprocessing,
    *,
    masks: str | Path | None = None,
    boxes: str | Path | None = None,
    annotations: str | Annotations | None = None,
    classes: ClassOrder | None = None,
) -> Pictures:
    """Load a folder with one sub-folder of images per class, or a folder of images without classes.

    Classes and files are in alphabetical order, and the ids are paths below the folder. All files with an image extension are
    listed, in any case; those that cannot be read become rows with the status "unreadable". Other files, hidden ones, and
    images next to class folders are counted in `left_out`. A class folder can be a symbolic link; deeper links to folders are
    not followed, because they can form cycles. Images are rotated as their EXIF data says. Masks and boxes are resized and
    cropped like the images.

    For a model of other than one or three channels, the files are `.npy` arrays and images with that many bands; see
    `xaieval.data.decoding.read_bands`. For one or three channels they can also be `.npy` arrays alone.

    Args:
        root: The folder.
        preprocessing: Turns an image into the model's input.
        masks: A folder with the mask of each image, a PNG file with the same path (`masks/cat/1.png` for `cat/1.jpg`) and size;
            non-zero pixels belong to the object. If a mask cannot be read, its image counts as unreadable.
        boxes: A JSON file in COCO format that lists all images; its `file_name` entries are paths below `root`, or unique file
            names. Its categories and segmentations are not read.
        annotations: The objects with their classes: "KIND:PLACE", such as "coco:instances.json", or
            `xaieval.data.Annotations`. Metrics then compare a map with the objects of the explained class.
        classes: Which class of the model a folder is. "name": its place in the order of names, as torchvision's `ImageFolder`
            counts. "number": the number that is its name, as in FunnyBirds. Or the names of the folders in the order of the
            model's classes. Default: "name"; folders named by whole numbers are an error if sorting by name gives another order
            (0, 1, 10, 2).

    Raises:
        DataError: The folder is missing, a sub-folder cannot be read, or there are no images; its sub-folders are splits, not
            classes; it is not known which class they are; masks or boxes are missing or belong to other images.
    """
    endings = _endings(preprocessing, (name for _, _, names in os.walk(root) for name in names))
    found = read_class_folder(root, endings, classes)
    names, paths, inside = found.names, found.paths, found.inside
    return Pictures(
        ids=names,
        labels=found.labels,
        classes=found.classes,
        read=_reader(paths, preprocessing, endings),
        preprocessing=preprocessing,
        mask=None if masks is None else mask_files(masks, inside),
        boxes=None if boxes is None else coco_boxes(boxes, names, lambda number: picture_size(paths[number])),
        left_out=found.left_out,
        truth=None if annotations is None else read_annotations(annotations, inside, found.classes, found.labels),
    )


def _sides(picture: Image.Image | Tensor) -> tuple[int, ...]:
    """Width and height of an image or of a tensor of bands; of a scan all sides, the last one first."""
    return picture.size if isinstance(picture, Image.Image) else tuple(picture.shape[:0:-1])


def _endings(preprocessing: Any, names: Iterable[str]) -> Sequence[str]:
    """Endings of the names of the files that count as images: arrays count for models of bands, and where they are alone.

    Beside images of one or three channels they would be something else than images.
    """
    known = {Path(name).suffix.lower() for name in names if not name.startswith(".")}
    alone = ".npy" in known and not known.intersection(ENDINGS)
    return ENDINGS if getattr(preprocessing, "channels", 3) in (1, 3) and not alone else (*ENDINGS, ".npy")


def _reader(paths: Sequence[Path], preprocessing: Any, endings: Sequence[str]) -> Callable[[int], Image.Image | Tensor]:
    """A function that reads the image of a number, or its bands if arrays count."""
    channels = getattr(preprocessing, "channels", 3)
    return lambda index: read_bands(paths[index], channels) if ".npy" in endings else read_picture(paths[index], to_rgb)


def image_files(places: str | Path | Sequence[str | Path], preprocessing: Preprocessing) -> Pictures:
    """Load images without classes from files, from folders with all that is below them, and from patterns of paths.

    Args:
        places: A file, a folder, a pattern such as `photos/*.jpg` or `photos/**/*.png`, or several of them.
        preprocessing: Turns an image into the model's input.

    Returns:
        The images, named by their paths below the folder that all have in common; of folders the images alone, in the order
        of their names.

    Raises:
        DataError: There is nothing at a place, or no image.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30)).save(f"{folder}/cat.png")
        ...     image_files(f"{folder}/*.png", Preprocessing(32, 32)).ids
        ['cat.png']
    """
    several = [places] if isinstance(places, str | Path) else list(places)
    files = list(dict.fromkeys(path for place in several for path in _files_at(str(place), preprocessing)))
    if not files:
        raise DataError(f"no images were named: {places!r}; give a file, a folder or a pattern such as 'photos/*.jpg'")
    common = Path(os.path.commonpath([path.parent.absolute() for path in files]))
    return Pictures(
        ids=[readable_name(path.absolute().relative_to(common).as_posix()) for path in files],
        labels=[None] * len(files),
        classes=[],
        read=_reader(files, preprocessing, _endings(preprocessing, (path.name for path in files))),
        preprocessing=preprocessing,
    )


def _files_at(place: str, preprocessing: Any) -> list[Path]:
    """The files of a place: the file itself, the images below a folder, or what fits a pattern.

    Raises:
        DataError: There are none.
    """
    path = Path(place)
    if path.is_file():
        return [path]
    found = path.rglob("*") if path.is_dir() else map(Path, glob(place, recursive=True))  # noqa: PTH207  # which takes absolute paths too
    start = len(path.parts) if path.is_dir() else 0
    files = sorted(one for one in found if one.is_file() and not any(part.startswith(".") for part in one.parts[start:]))
    endings = _endings(preprocessing, (one.name for one in files))
    images = [one for one in files if one.name.lower().endswith(tuple(endings))]
    if not images:
        what = f"the folder '{place}' has no image" if path.is_dir() else f"there is no image at '{place}'"
        raise DataError(
            f"{what}; a file, a folder or a pattern such as 'photos/*.jpg' is expected, with one of the extensions "
            f"{', '.join(endings)}"
        )
    return images


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """What a folder contains besides its images, in words; empty if nothing.

    Example:
        >>> describe_left_out({".txt": 2, "hidden": 1})
        'left out: 2 .txt, 1 hidden'
    """
    return f"left out: {', '.join(f'{count} {kind}' for kind, count in left_out.items())}" if left_out else ""


def scenes(
    preprocessing: Preprocessing,
    size: int = 200,
    split: Split = "test",
    seed: int = 0,
    *,
    masks: bool = False,
    cue: Cue | None = None,
    version: Version = "whole",
) -> Pictures:
    """Generate images of one object each, classified by shape, or of two, classified by a cue; see `xaieval.data.scenes`.

    Args:
        preprocessing: Turns an image into the model's input.
        size: Number of images.
        split: "train", "validation" or "test".
        seed: The seed of the whole data set.
        masks: Add the object's mask to each image; with a cue, the mask of the cue.
        cue: What decides the class: "watermark", "colour", "texture" or "object"; see `xaieval.data.cues`. Default: the shape
            of the only object.
        version: "whole"; with a cue also "without_cue", the same images without it, and "cue_only", nothing but the cue on grey
            ground.

    Raises:
        DataError: There is no such cue or version, or a version other than "whole" is asked for without a cue.

    Example:
        >>> batch = next(iter(scenes(Preprocessing(128, 128), size=4, masks=True).loader(batch_size=4)))
        >>> batch["mask"].shape, batch["mask"].dtype
        (torch.Size([4, 128, 128]), torch.bool)
        >>> scenes(Preprocessing(128, 128), cue="object").classes
        ('ring', 'triangle', 'star', 'cross')
    """
    check_count("size", size, kind=DataError)
    classes = classes_of(cue)
    check_version(version, cue)
    draw = lru_cache(maxsize=1)(make_scene)  # the image and the mask of a scene are read one after the other

    def read(index: int) -> Image.Image:
        return Image.fromarray(draw(index, split, seed, cue).version(version))

    def mask(index: int) -> Image.Image:
        return Image.fromarray(draw(index, split, seed, cue).mask.astype(np.uint8) * 255)

    return Pictures(
        ids=[f"{split}/{index:05d}" for index in range(size)],
        labels=[index % len(classes) for index in range(size)],
        classes=classes,
        read=read,
        preprocessing=preprocessing,
        mask=mask if masks else None,
    )
