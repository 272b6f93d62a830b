"""The images that annotations belong to, and the numbers of their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from xaieval.data.decoding import read_picture
from xaieval.data.truth_by_class import Truth
from xaieval.errors import DataError, choose_from

__all__ = ["Listing", "ReadTruth", "Reader", "Size", "label_picture", "read_lines"]

Size = tuple[int, int]  # width and height of the upright image
ReadTruth = Callable[[int, Size], Truth]  # the truth of an image's number, in its pixels


@dataclass(frozen=True)
class Listing:
    """The images of a folder, and the annotations that are needed.

    Attributes:
        names: Their paths below the folder.
        classes: The names of the class folders, in the order of their numbers; empty in a folder without classes.
        labels: The class of each image; None without classes.
        numbers: The model's number of each class by its name in the annotations; None to find them.
        parts: The names of the parts that count, for annotations of parts; all where it is empty.
    """

    names: Sequence[str]
    classes: Sequence[str] = ()
    labels: Sequence[int | None] = ()
    numbers: Mapping[str, int] | None = None
    parts: Sequence[str] = ()

    @property
    def by_name(self) -> Mapping[str, int] | None:
        """The number of each class that has one, by name; None if the annotations number them."""
        if self.numbers is None and self.classes:
            return {name: number for number, name in enumerate(self.classes)}
        return self.numbers

    def numbers_of(self, known: Mapping[Any, str], source: str) -> dict[Any, int]:
        """The model's number of each class, by its key in the annotations; a class without a number is left out.

        The numbers are the given ones; else those of the class folders of the same names; in a folder without classes they are
        the keys.

        Args:
            known: The names by key.
            source: Of the annotations, for messages.

        Raises:
            DataError: No class has a number.
        """
        by_name = self.by_name
        if by_name is None:
            return {key: int(key) for key in known}
        found = {key: by_name[name] for key, name in known.items() if name in by_name}
        if known and not found:
            what = "class folder" if self.numbers is None else "key of classes="
            raise DataError(
                f"none of the classes of {source} ({_some(known.values())}) is a {what} ({_some(by_name)}); give "
                "Annotations(..., classes={name: number}), or images in a folder without classes, whose numbers are those of "
                "the annotations"
            )
        return found

    def files(self, folder: Path, ending: str, what: str, *, flat: bool = False, needed: bool = True) -> list[Path]:
        """The file of each image in another folder, at the path of the image.

        Args:
            folder: The other folder.
            ending: Of the files, such as ".png".
            what: The content of the files, for messages.
            flat: The files are not in sub-folders.
            needed: Refuse an image without a file.

        Raises:
            DataError: The folder or a file is missing.
        """
        if not folder.is_dir():
            raise DataError(f"no folder '{folder}'; give the folder that has {what}")
        paths = [PurePosixPath(name) for name in self.names]
        found = [folder / (path.with_suffix(ending).name if flat else path.with_suffix(ending)) for path in paths]
        missing = [(name, file) for name, file in zip(self.names, found, strict=True) if not file.is_file()]
        if needed and missing:
            name, file = missing[0]
            raise DataError(
                f"'{folder}' lacks {what} for {len(missing)} of {len(self.names)} images; the first, {name!r}, needs "
                f"'{file}'; move images without it to another folder"
            )
        return found

    def wanted(self, known: Sequence[str]) -> Sequence[str]:
        """The parts that count: the chosen ones of those that the annotations know.

        Raises:
            DataError: A chosen part is not known.
        """
        unknown = [part for part in self.parts if part not in known]
        if unknown:
            raise DataError(f"no part {unknown[0]!r}; {choose_from(unknown[0], known)}")
        return self.parts or known


Reader = Callable[[Path, Listing], ReadTruth]


def label_picture(path: Path) -> Any:
    """The numbers in an image of labels: those of its palette, `[H, W]`, or of its colours, `[H, W, 3]`."""

    def unchanged(picture: Image.Image) -> Image.Image:
        return picture.convert("RGB") if picture.mode in ("RGBA", "RGBX") else picture.copy()

    return np.asarray(read_picture(path, unchanged)).astype(np.int64)


def read_lines(path: Path, what: str) -> list[list[str]]:
    """The words of each line of a text file.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {what} from '{path}': {type(error).__name__}: {error}") from error


def _some(names: Any) -> str:
    first = list(names)[:3]
    return ", ".join(map(str, first)) + (", ..." if len(list(names)) > len(first) else "")
