"""ONNX files as functions of images, which onnxruntime runs."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xaieval.data import Preprocessing
from xaieval.errors import ModelError, UsageError, choose_from

__all__ = ["CPU", "ImageInput", "OnnxFunction", "Providers", "is_session", "onnx_function"]

CPU = ("CPUExecutionProvider",)
TYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
COLOURS = (1, 3, 4)  # channels of grey images, RGB and RGBA; an axis of this length is no side of an image
# How a file names another one that holds weights: `location` as the key of an entry, and the value after it.
LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])")

Array = NDArray[Any]
Providers = Sequence[str | tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class ImageInput:
    """The input of an ONNX model that takes the images.

    Attributes:
        name: Its name.
        dtype: The type of its values.
        shape: Lengths of its axes, in the model's order; None for an axis of any length.
        channels_last: Whether that order is `[N, H, W, C]`.
    """

    name: str
    dtype: type[np.generic]
    shape: tuple[int | None, ...]
    channels_last: bool

    @property
    def images(self) -> tuple[int | None, ...]:
        """Lengths of the axes of images in the order `[N, C, H, W]`."""
        return (self.shape[0], self.shape[-1], *self.shape[1:-1]) if self.channels_last else self.shape

    @property
    def preprocessing(self) -> Preprocessing:
        """The size and the channels of its images, as far as they are fixed, with the normalisation of ImageNet.

        Whole numbers are pixels from 0 to 255.
        """
        _, channels, *sides = self.images
        found = Preprocessing().with_channels(channels or 3)
        if self.dtype is np.uint8:
            found = Preprocessing(mean=(0.0,) * found.channels, std=(1 / 255,) * found.channels)
        if len(sides) != 2 or not (sides[0] and sides[1]):
            return found
        return found.with_size(sides[0] if sides[0] == sides[1] else (sides[0], sides[1]))


@dataclass(frozen=True, eq=False)
class OnnxFunction:
    """An ONNX model as a function of arrays; `xaieval.models.onnx_model` makes a model of it.

    Attributes:
        session: The `onnxruntime.InferenceSession`.
        name: The name of the file, or of the session's graph.
        image_input: Where the images go.
        fingerprint: A hash of the file and of the files with weights that it names; None of a session.
    """

    session: Any
    name: str
    image_input: ImageInput
    fingerprint: str | None = None

    def __call__(self, images: Array) -> Array | dict[str, Array]:
        """The output for images `[N, C, H, W]`, or a mapping of all outputs by name if there are several.

        Raises:
            ModelError: The images do not suit the file, it cannot be run on them, or groups of images cannot be joined.
        """
        given = self._prepared(images)
        size = self.image_input.shape[0] or len(given)
        missing = -len(given) % size
        filled = np.concatenate([given, np.repeat(given[-1:], missing, axis=0)]) if missing else given
        groups = [self._run(filled[start : start + size]) for start in range(0, len(filled), size)]
        outputs = groups[0] if len(groups) == 1 and not missing else self._joined(groups, size, len(given))
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def _prepared(self, images: Array) -> Array:
        """Images in the file's type and order of axes."""
        wanted = self.image_input.images
        if len(images.shape) != len(wanted) or any(
            length not in (None, came) for length, came in zip(wanted[1:], images.shape[1:], strict=True)
        ):
            last = "" if self.image_input.channels_last else "; channels_last=True is for files that take [N, H, W, C]"
            raise ModelError(
                f"{self.name} takes images {_shown(wanted)}, got {list(images.shape)}; resize the images, or export the file "
                f"with axes of any length{last}"
            )
        if self.image_input.dtype is np.uint8:
            images = self._pixels(images)
        ordered = np.moveaxis(images, 1, -1) if self.image_input.channels_last else images
        return np.ascontiguousarray(ordered, dtype=self.image_input.dtype)

    def _pixels(self, images: Array) -> Array:
        """Images rounded to whole numbers, if they are in [0, 255]."""
        low, high = float(images.min()), float(images.max())
        if not (low >= -0.5 and high < 255.5) or (high <= 1 and (images != images.round()).any()):
            raise ModelError(
                f"{self.name} takes whole numbers (uint8) from 0 to 255, and the images have values from {low:.3g} to "
                f"{high:.3g}; give images in [0, 255]: Preprocessing(mean=(0, 0, 0), std=(1 / 255,) * 3)"
            )
        return images.round()

    def _run(self, batch: Array) -> dict[str, Array]:
        try:
            values = self.session.run(None, {self.image_input.name: batch})
        except Exception as error:  # onnxruntime has many types
            raise ModelError(
                f"{self.name} cannot be run on images {_shown(batch.shape)}: {' '.join(str(error).split())[:300]}"
            ) from error
        outputs = {output.name: value for output, value in zip(self.session.get_outputs(), values, strict=True)}
        odd = next((name for name, value in outputs.items() if not isinstance(value, np.ndarray)), None)
        if odd is not None:
            raise ModelError(
                f"output {odd!r} of {self.name} is a {type(outputs[odd]).__name__} and no tensor; export the file without it "
                "(of scikit-learn: options={'zipmap': False})"
            )
        return {name: _single(value) for name, value in outputs.items()}

    def _joined(self, groups: Sequence[Mapping[str, Array]], size: int, count: int) -> dict[str, Array]:
        """The outputs for all images of groups of a fixed size."""
        for name, value in groups[0].items():
            if value.ndim < 1 or len(value) != size:
                raise ModelError(
                    f"{self.name} takes {size} images at a time, and its output {name!r} has the shape {list(value.shape)} "
                    "for them, so that groups of images cannot be joined; export it with a batch axis of any length"
                )
        return {name: np.concatenate([group[name] for group in groups])[:count] for name in groups[0]}


def is_session(model: Any) -> bool:
    """Whether an object is an `onnxruntime.InferenceSession`, by what it offers."""
    return all(callable(getattr(model, name, None)) for name in ("run", "get_inputs", "get_outputs", "get_modelmeta"))


def onnx_function(
    file: Any, *, providers: Providers = CPU, threads: int | None = None, channels_last: bool | None = None
) -> OnnxFunction:
    """An ONNX file, or a session, as a function; arguments and errors are those of `xaieval.models.onnx_model`."""
    if is_session(file):
        session, name, known = file, f"the ONNX model '{file.get_modelmeta().graph_name}'", None
    else:
        path = Path(file)
        name, known = path.name, _fingerprint(path)
        session = _session(path, providers, threads)
    return OnnxFunction(session, name, _image_input(session, name, channels_last), known)


def _session(path: Path, providers: Providers, threads: int | None) -> Any:
    onnxruntime = _onnxruntime()
    providers = [providers] if isinstance(providers, str) else [*providers]
    wanted = [one if isinstance(one, str) else one[0] for one in providers]
    available = onnxruntime.get_available_providers()
    missing = next((one for one in wanted if one not in available), None)
    if missing is not None or not wanted:
        raise UsageError(f"onnxruntime has no provider {missing!r} here; {choose_from(missing, available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors; they are raised, too
    try:
        return onnxruntime.InferenceSession(str(path), options, providers)
    except Exception as error:  # onnxruntime has many types
        raise ModelError(f"onnxruntime cannot read {path}: {' '.join(str(error).split())[:300]}") from error


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UsageError("ONNX files need onnxruntime, which is missing: pip install 'xaieval[onnx]'") from error
    return onnxruntime


def _image_input(session: Any, name: str, channels_last: bool | None) -> ImageInput:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ModelError(
            f"{name} has {len(inputs)} inputs ({', '.join(one.name for one in inputs)}), and a model takes images only; give a "
            "function of images that runs it: lambda images: session.run(None, {...})[0]"
        )
    found = inputs[0]
    shape = tuple(length if isinstance(length, int) and length > 0 else None for length in found.shape)
    if found.type not in TYPES or len(shape) not in (4, 5):
        raise ModelError(
            f"{name} takes {found.type} {_shown(shape)}, and images [N, C, H, W] of {', '.join(TYPES)} are expected; give a "
            "function of images that runs it"
        )
    inferred = shape[-1] in COLOURS and shape[1] not in COLOURS
    if channels_last is None and inferred:
        warnings.warn(
            f"{name} takes images {_shown(shape)}, with the channels last; images [N, C, H, W] are transposed for it. "
            "channels_last=True says so without this warning",
            stacklevel=4,
        )
    return ImageInput(found.name, TYPES[found.type], shape, inferred if channels_last is None else channels_last)


def _fingerprint(path: Path) -> str:
    """A hash of a file and of the files in its folder that it names as those of its weights."""
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    content = path.read_bytes()
    names = {content[at.end() : at.end() + at[1][0]].decode(errors="replace") for at in LOCATION.finditer(content)}
    found = hashlib.sha256(content)
    for other in sorted(name for name in names if (path.parent / name).is_file()):
        with (path.parent / other).open("rb") as weights:
            found.update(hashlib.file_digest(weights, "sha256").digest())
    return found.hexdigest()[:16]  # as long as the fingerprints of networks


def _single(value: Array) -> Array:
    """Half precision as single, in which scores are computed."""
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _shown(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if length is None else str(length) for length in shape)}]"
