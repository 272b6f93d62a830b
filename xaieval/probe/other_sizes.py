"""Layouts on images of other sizes than the first: what a pass shows of the sizes inside the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from xaieval.errors import AddressError
from xaieval.probe.addresses import Layer, Trace, layout_of
from xaieval.probe.detector_frames import Frame, frame_of
from xaieval.probe.layouts import FITS, Layout, misfits, on_other_images

__all__ = ["Origin", "Sizes", "layout_now", "origin_of", "sizes_seen"]


@dataclass(frozen=True)
class Origin:
    """The images on which a layer's layout was found.

    Attributes:
        image_size: Their height and width.
        frame: Their position in the model's padded input, for detectors that resize and pad images themselves.
        frame_path: Path of the module that gives the frame.
        anchor: A layer that returns maps `[N, C, h, w]`, of which a token grid is a fixed share; None without tokens.
    """

    image_size: tuple[int, ...]
    frame: Frame | None = None
    frame_path: str | None = None
    anchor: Layer | None = None


@dataclass
class Sizes:
    """What one pass shows.

    Attributes:
        image_size: Height and width of its images.
        frame: Their position in the model's padded input, if it pads them.
        maps: Sizes of the anchors' maps, by path.
    """

    image_size: tuple[int, ...]
    frame: Frame | None = None
    maps: dict[str, tuple[int, ...]] = field(default_factory=dict)


def origin_of(layer: Layer, layout: Layout, traced: Trace) -> Origin:
    """The origin of a layer's layout."""
    anchor = None if layout.token_axis is None else _anchor(layer, layout, traced)
    return Origin(traced.image_size, traced.frame, traced.frame_path, anchor)


@contextmanager
def sizes_seen(model: nn.Module, origins: Iterable[Origin], images: Tensor) -> Iterator[Sizes]:
    """Record what a pass in this context shows. On images of the first size nothing is watched: layouts are the first ones."""
    seen = Sizes(tuple(images.shape[2:]))
    origins = [origin for origin in origins if origin.image_size != seen.image_size]

    def frame(module: nn.Module, _: Any, output: Any) -> None:
        seen.frame = frame_of(output)

    padding = {origin.frame_path for origin in origins if origin.frame_path is not None}
    handles = [model.get_submodule(path).register_forward_hook(frame) for path in padding]
    for path in {origin.anchor.path for origin in origins if origin.anchor}:

        def size(module: nn.Module, _: Any, output: Any, path: str = path) -> None:
            seen.maps.setdefault(path, tuple(output.shape[2:]))

        handles.append(model.get_submodule(path).register_forward_hook(size))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def layout_now(layer: Layer, layout: Layout, origin: Origin, seen: Sizes, tensor: Tensor, batch: int) -> Layout:
    """The layout of a layer's output in a pass.

    Raises:
        AddressError: The tokens fit no grid of these images.
    """
    if seen.image_size == origin.image_size and tensor.shape[1:] == layer.shape[1:]:
        return layout
    anchor = origin.anchor
    if anchor is not None and anchor.path in seen.maps:
        sizes = tuple(anchor.shape[2:]), seen.maps[anchor.path]
    else:
        sizes = _inner(origin), seen.frame.outer if seen.frame else seen.image_size
    found = on_other_images(layout, layer.shape, tuple(tensor.shape), sizes, batch)
    # As many tokens as before are the same grid if the model resizes images itself, and another one if it does not.
    as_many = anchor is None and tensor.shape[1:] == layer.shape[1:] and found is not None and found.size != layout.size
    if found is None or as_many or tensor.ndim != len(layer.shape):
        raise AddressError(
            f"layer '{layer.address}' returns {list(tensor.shape)} for images of {_by(seen.image_size)}, and its grid of "
            f"{_by(layout.size)} on the first images, of {_by(origin.image_size)}, does not say which grid that is; give "
            "layout= as a function to [N, C, h, w], or images of one size"
        )
    return found


def _inner(origin: Origin) -> tuple[int, ...]:
    return origin.frame.outer if origin.frame else origin.image_size


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _anchor(layer: Layer, layout: Layout, traced: Trace) -> Layer | None:
    """The map next before a layer that has its grid; or else the first map of the model that fits the image."""
    earlier = traced.layers[: traced.layers.index(layer)]
    maps = [one for one in earlier if _is_map(one, traced)]
    same = [one for one in maps if one.shape[2:] == layout.size]
    fitting = [one for one in maps if misfits(one.shape, traced.inner_size)[0] < len(FITS) and min(one.shape[2:]) > 1]
    return same[-1] if same else fitting[0] if fitting else None


def _is_map(layer: Layer, traced: Trace) -> bool:
    if layer.keys or not layer.path or "#" in layer.address or len(layer.shape) != 2 + len(traced.image_size):
        return False
    try:
        return layout_of(layer, traced).kind == "channels_first"
    except AddressError:
        return False
