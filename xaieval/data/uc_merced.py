"""The UC Merced Land Use data set."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from xaieval.data.download import fetch, unpack
from xaieval.data.images import Pictures, image_folder
from xaieval.data.preprocessing import Preprocessing
from xaieval.errors import DataError, advice

__all__ = ["ucmerced"]

# The archive that torchgeo and TensorFlow Datasets use.
UCMERCED_URL = "https://huggingface.co/datasets/torchgeo/ucmerced/resolve/main/UCMerced_LandUse.zip"
UCMERCED_SHA256 = "06c539ef28703a58fb07bd2837991ac7c48b813b00bb12ac197efd813a18daeb"
ARCHIVE = "UCMerced_LandUse"
MOST_FETCHED, MOST_UNPACKED = 500_000_000, 1_000_000_000  # bytes; it has 317 MB


def ucmerced(root: str | Path, preprocessing: Preprocessing, download: bool = False) -> Pictures:
    """Load the UC Merced Land Use data set: 21 classes with 100 aerial images each, in .tif or .jpg files.

    Args:
        root: The unpacked archive (`UCMerced_LandUse`, which contains `Images/`) or its `Images` folder.
        preprocessing: Turns an image into the model's input.
        download: Download the archive (317 MB) into the folder if the images are missing.

    Raises:
        DataError: The folder is missing or does not have the 21 classes; the download failed or is not the data set.

    Reference:
        Yang and Newsam, "Bag-of-visual-words and spatial extensions for land-use classification", ACM GIS 2010.
    """
    root = Path(root)
    if download and _ucmerced_images(root) is None:
        _download_ucmerced(root)
    if not root.is_dir():
        download_it = advice("download=True", "--download")
        raise DataError(f"no folder '{root}'; give the folder that contains UC Merced, or download it with {download_it}")
    pictures = image_folder(_ucmerced_images(root) or root, preprocessing)
    if len(pictures.classes) != 21 or "airplane" not in pictures.classes:
        raise DataError(f"'{root}' has {len(pictures.classes)} classes, UC Merced has 21; for other images use 'folder:{root}'")
    return pictures


def _ucmerced_images(root: Path) -> Path | None:
    """The folder of the images, in the unpacked archive or in the folder around it."""
    return next((inner for inner in (root / "Images", root / ARCHIVE / "Images") if inner.is_dir()), None)


def _download_ucmerced(root: Path) -> None:
    """Download the archive of UC Merced into a folder, verify it, and unpack it there.

    Raises:
        DataError: The download failed, the checksum is wrong, or the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{ARCHIVE}.lock"):  # only one of several processes downloads, the others wait
            if _ucmerced_images(root) is None:
                archive = fetch(UCMERCED_URL, root / f"{ARCHIVE}.zip", UCMERCED_SHA256, MOST_FETCHED)
                unpack(archive, root / ARCHIVE, MOST_UNPACKED)
                archive.unlink()
    except OSError as error:
        raise DataError(f"cannot download into '{root}': {error}; choose another folder") from error
