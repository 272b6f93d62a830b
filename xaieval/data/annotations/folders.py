"""Objects from data sets that have one file for each image: ImageNet-S, CUB-200, FunnyBirds and CLEVR-XAI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from xaieval.data.annotations.listing import Listing, ReadTruth, Size, label_picture, read_lines
from xaieval.data.truth_by_class import ANY_CLASS, Truth
from xaieval.errors import DataError

__all__ = ["PARTS_OF_BIRDS", "clevr_xai", "cub", "funnybirds", "imagenet_s"]

NOT_LABELLED = 1000  # the value of ignored pixels in ImageNet-S
HALF = 127  # of 255: at least three of the five people who outlined a bird of CUB-200

PARTS_OF_BIRDS = {  # by their colours in FunnyBirds
    (255, 255, 253): "eye",
    (255, 255, 254): "eye",
    (255, 255, 0): "beak",
    (255, 0, 1): "foot",
    (255, 0, 2): "foot",
    (0, 255, 1): "wing",
    (0, 255, 2): "wing",
    (0, 0, 255): "tail",
}


def imagenet_s(place: Path, listing: Listing) -> ReadTruth:
    """Read segmentations of ImageNet-S, a PNG file at the path of each image with the category R + 256 G of each pixel.

    Pixels of 1000 are ignored, those of 0 are of other categories. The i-th category is the i-th folder.

    Args:
        place: The folder `validation-segmentation` or `train-semi-segmentation`, with the folders of all categories.
        listing: The images.

    Raises:
        DataError: An image has no file, or no category has a number.

    Reference:
        Gao et al., "Large-scale Unsupervised Semantic Segmentation", TPAMI 2022 (arXiv 2106.03149).
    """
    files = listing.files(place, ".png", "a segmentation")
    categories = sorted(folder.name for folder in place.iterdir() if folder.is_dir())
    numbers = listing.numbers_of(dict(enumerate(categories, start=1)), f"'{place}'")

    def read(number: int, size: Size) -> Truth:
        colours = label_picture(files[number])
        _check_size(colours, size)
        values = colours[..., 0] + 256 * colours[..., 1]
        kept = [value for value in np.unique(values).tolist() if value in numbers]
        return Truth(
            torch.tensor([numbers[value] for value in kept], dtype=torch.long),
            torch.from_numpy(np.stack([values == value for value in kept])) if kept else None,
            ignored=torch.from_numpy(values == NOT_LABELLED),
        )

    return read


def cub(place: Path, listing: Listing) -> ReadTruth:
    """Read CUB-200-2011: the segmentation of each bird if the folder has them, else its box.

    A pixel belongs to the bird if at least three of the five people who outlined it included the pixel.

    Args:
        place: The folder `CUB_200_2011`, with `images.txt`, `image_class_labels.txt`, `classes.txt`, `bounding_boxes.txt` and
            perhaps `segmentations`.
        listing: The images, in `images`. In a folder without classes, classes are numbered from 0.

    Raises:
        DataError: A file is missing, or an image is not listed.

    Reference:
        Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011.
    """
    ids = {name: number for number, name in read_lines(place / "images.txt", "images")}
    by_end = {name.rpartition("/")[2]: number for name, number in ids.items()}
    found = [ids.get(name, by_end.get(name.rpartition("/")[2], "")) for name in listing.names]
    if "" in found:
        raise DataError(f"'{place / 'images.txt'}' does not list the image {listing.names[found.index('')]!r}")
    classes = dict(read_lines(place / "image_class_labels.txt", "classes"))
    boxes = {number: [*map(float, sides)] for number, *sides in read_lines(place / "bounding_boxes.txt", "boxes")}
    named = {int(key) - 1: name for key, name in read_lines(place / "classes.txt", "the names of classes")}
    numbers = listing.numbers_of(named, f"'{place}'")
    outlines, paths = place / "segmentations", {number: name for name, number in ids.items()}

    def read(number: int, size: Size) -> Truth:
        key = found[number]
        wanted = numbers.get(int(classes[key]) - 1)
        if wanted is None:
            return Truth(torch.zeros(0, dtype=torch.long))
        left, top, width, height = boxes[key]
        around = torch.tensor([[left, top, left + width, top + height]])
        if not outlines.is_dir():
            return Truth(torch.tensor([wanted]), boxes=around)
        values = label_picture((outlines / paths[key]).with_suffix(".png"))
        values = values if values.ndim == 2 else values.max(axis=2)
        _check_size(values, size)
        return Truth(torch.tensor([wanted]), torch.from_numpy(values > HALF)[None], around)

    return read


def funnybirds(place: Path, listing: Listing) -> ReadTruth:
    """Read the part maps of FunnyBirds: `test_part_map/0/000000.png` for `test/0/000000.png`.

    The object is what makes the class: eyes, beak, feet, wings and tail, without the body, which all classes share.

    Args:
        place: The folder `test_part_map` or `train_part_map`.
        listing: The images, in class folders. With parts, only these: "eye", "beak", "foot", "wing", "tail".

    Raises:
        DataError: An image has no map or no class, or there is no such part.

    Reference:
        Hesse et al., "FunnyBirds", ICCV 2023 (arXiv 2308.06248).
    """
    files = listing.files(place, ".png", "a part map")
    parts = listing.wanted(sorted({*PARTS_OF_BIRDS.values()}))
    colours = [colour for colour, part in PARTS_OF_BIRDS.items() if part in parts]
    classes = listing.labels
    if not classes or None in classes:
        raise DataError("the images of FunnyBirds are in class folders; give its folder 'test' or 'train'")

    def read(number: int, size: Size) -> Truth:
        values = label_picture(files[number])
        _check_size(values, size)
        mask = np.any([(values == colour).all(axis=2) for colour in colours], axis=0)
        return Truth(torch.tensor([classes[number]]), torch.from_numpy(mask)[None])

    return read


def clevr_xai(place: Path, listing: Listing) -> ReadTruth:
    """Read the masks of CLEVR-XAI: `17.npy` for the question 17, with the image `17.png` or `000017.png`.

    They count for every explained answer. Questions without a mask have no object. Masks have their own size, often 128 x 128,
    whatever the proportions of the image, and are resized to it.

    Args:
        place: The folder of one kind of ground truth, with a bool array `[H, W]` for each question.
        listing: One image for each question, named by the number of the question.

    Raises:
        DataError: The folder is missing, or an image is not named by a number.

    Reference:
        Arras et al., "CLEVR-XAI", Information Fusion 81, 2022 (arXiv 2003.07258).
    """
    stems = [Path(name).stem for name in listing.names]
    odd = next((stem for stem in stems if not stem.isdecimal()), None)
    if odd is not None:
        raise DataError(f"an image of CLEVR-XAI is named by the number of its question, got {odd!r}")
    if not place.is_dir():
        raise DataError(f"no folder '{place}'; give a folder of CLEVR-XAI's ground truth, with a .npy file for each question")

    def read(number: int, size: Size) -> Truth:
        file = place / f"{int(stems[number])}.npy"
        if not file.is_file():
            return Truth(torch.zeros(0, dtype=torch.long))
        mask = np.load(file, allow_pickle=False)
        if mask.ndim != 2:
            raise ValueError(f"'{file.name}' is an array {list(mask.shape)}; a mask [H, W] is expected")
        resized = np.array(Image.fromarray(mask > 0).resize(size, Image.Resampling.NEAREST))
        return Truth(torch.tensor([ANY_CLASS]), torch.from_numpy(resized)[None])

    return read


def _check_size(values: Any, size: Size) -> None:
    if values.shape[:2] != size[::-1]:
        raise ValueError(f"its labels have {values.shape[:2][::-1]} pixels, the image {size}")
