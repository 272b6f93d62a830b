"""Folders with one sub-folder of files per class: which files they hold, and of which classes these are."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xaieval.data.decoding import readable_name
from xaieval.errors import DataError, advice, choose_from

__all__ = ["ClassFolder", "ClassOrder", "read_class_folder"]

ClassOrder = Literal["name", "number"] | Sequence[str]

MOST_CLASSES = 1_000_000  # a folder of a larger number is named by something else
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # folders that are no classes


@dataclass(frozen=True)
class ClassFolder:
    """The files of a folder.

    Attributes:
        root: The folder.
        names: The id of each file, its path below the folder as text.
        paths: Their paths.
        labels: The class index of each file; None without classes.
        classes: Names of the classes.
        left_out: How many other files of each kind it contains.
    """

    root: Path
    names: list[str]
    paths: list[Path]
    labels: list[int | None]
    classes: list[str]
    left_out: dict[str, int]

    @property
    def inside(self) -> list[str]:
        """The paths below the folder; their bytes may be invalid text."""
        return [path.relative_to(self.root).as_posix() for path in self.paths]


def read_class_folder(root: str | Path, endings: Sequence[str], classes: ClassOrder | None = None) -> ClassFolder:
    """List a folder with one sub-folder of files per class, or a folder of files without classes.

    Args:
        root: The folder.
        endings: Endings of the names of the files that count, in lower case.
        classes: Which class of the model a folder is; see `xaieval.data.image_folder`.

    Raises:
        DataError: The folder is missing, a sub-folder cannot be read, or no file counts; its sub-folders are splits, not
            classes; or it is not known which class they are.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no folder '{root}'; {_near(root)}give a folder that has one sub-folder of images for each class")
    files, left_out = _image_files(root, endings)
    names, paths = [name for name, _ in files], [path for _, path in files]
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    if not names:
        raise DataError(
            f"no images in '{root}'; expected {root.name}/CLASS/IMAGE, or {root.name}/IMAGE without classes, with one of the "
            f"extensions {', '.join(endings)}"
        )
    if len(folders) > 1 and {name.lower() for name in folders} <= SPLITS:
        raise DataError(f"the folders of '{root}' are {', '.join(folders)}: splits, not classes; give one of them")
    ordered = _ordered(folders, classes, root) if folders else []
    numbers = {name: number for number, name in enumerate(ordered)}
    labels = [numbers[name.split("/")[0]] if folders else None for name in names]
    return ClassFolder(root, names, paths, labels, ordered, left_out)


def _near(missing: Path) -> str:
    """Folders with a similar name beside one that there is not."""
    with suppress(OSError):
        beside = [path.name for path in missing.parent.iterdir() if path.is_dir()]
        near = difflib.get_close_matches(missing.name, beside)
        if near:
            return f"did you mean {' or '.join(repr(str(missing.parent / name)) for name in near)}? "
    return ""


def _ordered(folders: Sequence[str], classes: ClassOrder | None, root: Path) -> list[str]:
    """The names of the classes by their number in the model; a class without a folder has one too, if folders are numbers."""
    numbers = {int(name): name for name in folders if name.isdecimal()}
    named_by_numbers = len(numbers) == len(folders)
    if classes is None and named_by_numbers and list(folders) != [numbers[number] for number in sorted(numbers)]:
        some, place = next((name, place) for place, name in enumerate(folders) if int(name) != place)
        order = advice('classes="name" or classes="number"', "--classes name or --classes number")
        raise DataError(
            f"the class folders of '{root}' are named by numbers, whose order by name is another: folder '{some}' is class "
            f"{place} by name, as torchvision's ImageFolder counts, and class {int(some)} by number; give "
            f"{order}, as the model was trained"
        )
    if classes in (None, "name"):
        return list(folders)
    if classes == "number":
        if not named_by_numbers or max(numbers) >= MOST_CLASSES:
            odd = next((name for name in folders if numbers.get(int(name) if name.isdecimal() else -1) != name), max(folders))
            raise DataError(
                f"classes by number are folders named 0, 1, ... below {MOST_CLASSES:,}, each once; got '{odd}' in '{root}'"
            )
        return [numbers.get(number, str(number)) for number in range(max(numbers) + 1)]
    given = [classes] if isinstance(classes, str) else [str(name) for name in classes or ()]
    missing = next((name for name in folders if name not in given), None)
    if missing is not None or len(set(given)) < len(given):
        raise DataError(
            f"classes is 'name', 'number' or the names of all folders in the order of the model's classes, each once; "
            f"{'a name stands twice' if missing is None else f'the folder {missing!r} is missing'}; "
            f"{choose_from(missing or given[0], given)}"
        )
    return given


def _image_files(root: Path, endings: Sequence[str]) -> tuple[list[tuple[str, Path]], dict[str, int]]:
    """The ids and paths of all image files, sorted by id, and how many files of each kind are left out.

    Images directly in the folder count if no sub-folder has any.
    """
    left_out: Counter[str] = Counter()
    top: list[Path] = []
    files: list[Path] = []
    for entry in root.iterdir():
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif entry.is_dir():
            found = list(_images_below(entry, endings, left_out))
            left_out["folder without images"] += not found
            files += found
        elif not _sort_out(entry, endings, left_out):
            top.append(entry)
    left_out["image beside the class folders"] = len(top) if files else 0
    named = sorted((_id_of(path, root), path) for path in files or top)
    return named, {kind: count for kind, count in sorted(left_out.items()) if count}


def _images_below(class_folder: Path, endings: Sequence[str], left_out: Counter[str]) -> Iterator[Path]:
    """The image files in a class folder, with its sub-folders."""
    for folder, inner, names in os.walk(class_folder, onerror=_refuse_folder):
        left_out["hidden"] += sum(name.startswith(".") for name in inner)
        inner[:] = [name for name in inner if not name.startswith(".")]
        left_out["link to a folder"] += sum(Path(folder, name).is_symlink() for name in inner)
        yield from (path for name in names if not _sort_out(path := Path(folder, name), endings, left_out))


def _sort_out(path: Path, endings: Sequence[str], left_out: Counter[str]) -> bool:
    """Whether a file is no image; it is then counted by its kind."""
    name = path.name.lower()
    ending = next((known for known in endings if name.endswith(known) and name != known), path.suffix.lower())
    kind = "hidden" if name.startswith(".") else readable_name(ending) or "without extension"
    is_image = kind in endings
    left_out[kind] += not is_image
    return not is_image


def _id_of(path: Path, root: Path) -> str:
    return readable_name(path.relative_to(root).as_posix())


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"cannot read the folder '{error.filename}': {error.strerror}; its images would be missing") from error
