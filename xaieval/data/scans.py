"""Scans of the body in NIfTI files, as volumes: upright, with a known spacing, and with scaled intensities."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from xaieval.data.class_folders import ClassOrder, read_class_folder
from xaieval.data.decoding import MOST_BYTES, UNREADABLE
from xaieval.data.images import Pictures
from xaieval.data.preprocessing import to_visible
from xaieval.errors import DataError, UsageError, advice, choose_from

__all__ = ["SCAN_ENDINGS", "Intensity", "ScanPreprocessing", "read_scan", "scan_folder"]

SCAN_ENDINGS = (".nii", ".nii.gz")
WAYS = ("file", "zscore", "zscore-nonzero")
MOST_VOXELS = MOST_BYTES // 4  # of float32, such as 512 x 512 x 512
SAME_SPACING = 0.01  # relative difference of voxel sizes that rounding in files explains
SAME_PLACE = 1e-2  # of affine matrices of a scan and its mask, in mm

Intensity = Literal["file", "zscore", "zscore-nonzero"] | tuple[float, float]
Sizes = tuple[float, float, float]


@dataclass(frozen=True)
class ScanPreprocessing:
    """Scale the intensities of a scan, and crop and pad it to a size.

    Attributes:
        intensity: How intensities are scaled; there is no default, because it depends on how the model was trained. "file"
            takes them as they are; "zscore" subtracts the mean of the scan and divides by its standard deviation, for each
            channel; "zscore-nonzero" takes these of the voxels that are not 0, which stay 0; `(low, high)` clips to this
            window, and scales it to [0, 1], as for the Hounsfield units of CT.
        size: Size of the volume in voxels, to the right, to the front and up: what is larger is cropped to its middle, what is
            smaller is padded with its lowest value. One number for a cube. Default: as the file.
        spacing: Size of the voxels in mm that scans are resampled to, in the same order, or one number. Default: that of the
            files, which has to be the same for all.

    Raises:
        DataError: A choice is unknown or out of range.
    """

    intensity: Intensity
    size: int | tuple[int, int, int] | None = None
    spacing: float | Sizes | None = None
    slices: ClassVar[str] = "anatomy"  # what figures show
    channels: ClassVar[int] = 1  # of most scans; a fourth axis of a file may have more

    def __post_init__(self) -> None:
        way = self.intensity
        if isinstance(way, str):
            if way not in WAYS:
                raise DataError(f"no intensity {way!r}; {choose_from(way, WAYS)}; or a window (low, high)")
        elif not (isinstance(way, tuple | list) and len(way) == 2 and float(way[0]) < float(way[1])):
            raise DataError(f"intensity is a window (low, high), or one of {', '.join(WAYS)}; got {way!r}")
        for name, given, least in (("size", self.size, 1), ("spacing", self.spacing, 1e-3)):
            sides = _three(given)
            if sides is not None and (len(sides) != 3 or min(sides) < least):
                raise DataError(f"{name} is one positive number or three; got {given!r}")

    @property
    def mean(self) -> tuple[float, ...] | None:
        """0 where the scans are scaled to [0, 1]; None for other intensities, for which no value is known to be black."""
        return None if isinstance(self.intensity, str) else (0.0,)

    @property
    def std(self) -> tuple[float, ...] | None:
        """1 where the scans are scaled to [0, 1]; None for other intensities."""
        return None if isinstance(self.intensity, str) else (1.0,)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Channels and sides of a volume of one channel.

        Raises:
            DataError: The size is not known.
        """
        sides = _three(self.size)
        if sides is None:
            raise DataError("the size of the scans is not known without the files; give ScanPreprocessing(size=...)")
        return (self.channels, *sides)

    @property
    def image_size(self) -> tuple[int, int, int]:
        """The sides of a volume; see `input_shape`."""
        return self.input_shape[1:]

    def __call__(self, scan: Float[Tensor, "c x y z"]) -> Float[Tensor, "c d h w"]:
        """Convert a scan in the units of its file to the model's input."""
        way = self.intensity
        if not isinstance(way, str):
            low, high = way
            scan = ((scan - low) / (high - low)).clamp(0, 1)
        elif way != "file":
            scan = torch.stack([_standardised(channel, nonzero=way == "zscore-nonzero") for channel in scan])
        return self._cropped(scan, float(scan.min()))

    def mask(self, mask: Float[Tensor, "1 x y z"]) -> Bool[Tensor, "d h w"]:
        """Crop and pad a mask like its scan: True where it is not 0."""
        return self._cropped(mask != 0, False)[0]

    def _cropped(self, scan: Tensor, ground: float) -> Tensor:
        sides = _three(self.size)
        for axis, side in enumerate(sides or (), start=1):
            start = max(0, (scan.shape[axis] - int(side)) // 2)
            scan = scan.narrow(axis, start, min(int(side), scan.shape[axis]))
        missing = [int(side) - length for side, length in zip(sides or scan.shape[1:], scan.shape[1:], strict=True)]
        pads = [pad for less in reversed(missing) for pad in (less // 2, less - less // 2)]
        return functional.pad(scan, pads, value=ground) if any(pads) else scan

    def to_pixels(self, images: Float[Tensor, "n c d h w"], bands: Sequence[int] | None = None) -> Float[Tensor, "n 3 d h w"]:
        """Convert volumes to pixels in [0, 1] for figures; see `xaieval.data.preprocessing.to_visible`."""
        return to_visible(images, bands)


def scan_folder(
    root: str | Path,
    preprocessing: Any,
    *,
    masks: str | Path | None = None,
    classes: ClassOrder | None = None,
) -> Pictures:
    """Load a folder of NIfTI files (`.nii`, `.nii.gz`): one sub-folder per class, or all scans in one without classes.

    The axes of each scan are turned and flipped to point right, to the front and up (RAS, "closest canonical"),
    as MONAI's `Orientation("RAS")` and TorchIO's `ToCanonical` do: volumes are `[C, right, front, up]`. The fourth axis of a
    file, if there is one, holds the channels. Files that cannot be read, or without the orientation of their axes, become rows
    with the status "unreadable".

    Args:
        root: The folder.
        preprocessing: A `ScanPreprocessing`, which scales the intensities, and crops.
        masks: A folder with the mask of each scan, a NIfTI file with the same path and geometry; voxels that are not 0 belong
            to the object.
        classes: As in `image_folder`.

    Raises:
        DataError: The folder has no scans, a mask is missing, or the scans have voxels of different sizes and the preprocessing
            has no `spacing`.
        UsageError: nibabel is not installed.
    """
    nibabel = _nibabel()
    if not isinstance(preprocessing, ScanPreprocessing):
        raise DataError(
            f"scans are prepared by {advice('a ScanPreprocessing(intensity=...)', '--scan-args.intensity')}, which says how "
            f"their intensities are scaled; got a {type(preprocessing).__name__}"
        )
    found = read_class_folder(root, SCAN_ENDINGS, classes)
    spacing = _three(preprocessing.spacing)
    if spacing is None:
        _check_spacings(nibabel, found.names, found.paths)
    at = None if masks is None else _mask_paths(Path(masks), found.inside)
    return Pictures(
        ids=found.names,
        labels=found.labels,
        classes=found.classes,
        read=lambda number: read_scan(found.paths[number], spacing),
        preprocessing=preprocessing,
        mask=None if at is None else lambda number: _read_mask(at[number], found.paths[number], spacing),
        left_out=found.left_out,
    )


def read_scan(path: str | Path, spacing: Sizes | None = None) -> Float[Tensor, "c x y z"]:
    """Read a NIfTI file as float32 `[C, X, Y, Z]`, with axes to the right, to the front and up, in the units of the file.

    Args:
        path: The file.
        spacing: Size of the voxels in mm to resample to, linearly. Default: that of the file.

    Raises:
        OSError: The file does not exist or cannot be decoded.
        ValueError: It is too large, has no or too many axes, or does not say where they lead.
        UsageError: nibabel is not installed.
    """
    return _values(_upright(_nibabel(), Path(path)), spacing, order=1)


def _read_mask(path: Path, scan: Path, spacing: Sizes | None) -> Tensor:
    """The mask of a scan `[1, X, Y, Z]`."""
    nibabel = _nibabel()
    image, other = _upright(nibabel, path), _upright(nibabel, scan)
    if image.shape[:3] != other.shape[:3] or not np.allclose(image.affine, other.affine, atol=SAME_PLACE):
        raise ValueError(f"its mask {path.name!r} has another size, spacing or place in the body")
    return _values(image, spacing, order=0)[:1]


def _upright(nibabel: Any, path: Path) -> Any:
    """The image of a file, its axes in order, without its values."""
    try:
        image = nibabel.load(path)
        if image.ndim not in (3, 4) or not 0 < np.prod(image.shape) <= MOST_VOXELS:
            came = " x ".join(map(str, image.shape))
            raise ValueError(f"it has {came} voxels; three axes, or four with channels, of at most {MOST_VOXELS} are read")
        if isinstance(image, nibabel.Nifti1Pair) and not image.header["sform_code"] and not image.header["qform_code"]:
            raise ValueError("it does not say where its axes lead (sform and qform are 0); save it with an affine matrix")
        return nibabel.as_closest_canonical(image)
    except UNREADABLE:
        raise
    except Exception as error:  # nibabel has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error


def _values(image: Any, spacing: Sizes | None, order: int) -> Tensor:
    """The values of an image, float32 `[C, X, Y, Z]`."""
    try:
        values = image.get_fdata(dtype=np.float32)
    except UNREADABLE:
        raise
    except Exception as error:  # of decompression
        raise OSError(f"{type(error).__name__}: {error}") from error
    channels = [values] if values.ndim == 3 else list(np.moveaxis(values, 3, 0))
    if spacing is not None:
        channels = [_resampled(channel, image.affine, spacing, order) for channel in channels]
    return torch.from_numpy(np.stack(channels))


def _resampled(values: np.ndarray, affine: np.ndarray, spacing: Sizes, order: int) -> np.ndarray:
    from nibabel import Nifti1Image, processing

    made = processing.resample_to_output(Nifti1Image(values, affine), spacing, order=order, mode="nearest")
    return np.asarray(made.dataobj, dtype=np.float32)


def _standardised(channel: Tensor, nonzero: bool) -> Tensor:
    """A channel with mean 0 and standard deviation 1; of one value, zeros."""
    counted = channel[channel != 0] if nonzero else channel
    if not counted.numel():
        return channel
    spread = counted.std(correction=0)
    scaled = (channel - counted.mean()) / torch.where(spread > 0, spread, 1)
    return torch.where(channel != 0, scaled, 0) if nonzero else scaled


def _check_spacings(nibabel: Any, names: Sequence[str], paths: Sequence[Path]) -> None:
    """Refuse scans whose voxels have different sizes, by the headers of the files; those that cannot be read are rows later."""
    sizes = {name: _spacing_of(nibabel, path) for name, path in zip(names, paths, strict=True)}
    known = [(name, size) for name, size in sizes.items() if size is not None]
    for name, size in known:
        if not np.allclose(size, known[0][1], rtol=SAME_SPACING):
            raise DataError(
                f"the voxels of '{known[0][0]}' are {_millimetres(known[0][1])}, and those of '{name}' {_millimetres(size)}; "
                f"give the size to resample to, {advice('ScanPreprocessing(spacing=...)', '--scan-args.spacing')}"
            )


def _spacing_of(nibabel: Any, path: Path) -> np.ndarray | None:
    """The size of the voxels in mm, by the header; None if it cannot be read."""
    with suppress(Exception):  # the reason is in the row of the scan
        return np.array(nibabel.as_closest_canonical(nibabel.load(path)).header.get_zooms()[:3], dtype=float)
    return None


def _millimetres(sizes: np.ndarray) -> str:
    return f"{' x '.join(f'{size:.3g}' for size in sizes)} mm"


def _mask_paths(folder: Path, names: Sequence[str]) -> list[Path]:
    paths = [folder / name for name in names]
    missing = [(name, path) for name, path in zip(names, paths, strict=True) if not path.is_file()]
    if missing:
        name, path = missing[0]
        raise DataError(f"no mask for {len(missing)} of {len(names)} scans; the first, {name!r}, needs '{path}'")
    return paths


def _three(given: float | Sequence[float] | None) -> Any:
    """Three numbers from three or one; None for none."""
    return given if given is None else (given,) * 3 if isinstance(given, int | float) else tuple(given)


def _nibabel() -> Any:
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise UsageError("NIfTI files need nibabel, which is missing: pip install 'xaieval[medical]'") from error
    return nibabel
