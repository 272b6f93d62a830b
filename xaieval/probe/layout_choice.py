"""Settle the layouts of a model's layers: by what the user says, or else by a test where the shapes leave them open."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from xaieval.config.axes import FORMS, check_layout
from xaieval.errors import AddressError
from xaieval.inference.options import LayerLayout
from xaieval.probe.addresses import Layer, Trace, expand
from xaieval.probe.evidence import follow_places, is_doubtful
from xaieval.probe.layouts import Layout, worded

__all__ = ["settled"]

# What a test has shown of the layers of a model, by their shapes: it need not be repeated for the next images.
_known: WeakKeyDictionary[nn.Module, dict[Any, Layout]] = WeakKeyDictionary()


def settled(
    traced: Trace,
    model: nn.Module,
    images: Tensor,
    wanted: Iterable[Layer],
    *,
    forward: Callable[[Tensor], Any] | None = None,
    grid: tuple[int, ...] | None = None,
    prefix_tokens: int | None = None,
    layout: LayerLayout | Mapping[str, LayerLayout] | None = None,
    strict: bool = True,
) -> Trace:
    """The trace, with the layouts of its layers settled.

    Passes for a test are made only if the shapes leave the layout of a wanted layer open.

    Args:
        traced: The trace of one pass.
        model: The borrowed model.
        images: Images on its device.
        wanted: The layers whose layouts are needed.
        forward: Runs the model on images. Default: `model(images)`.
        grid: Height and width of the token grid, if the user gave it.
        prefix_tokens: Number of tokens before it, if the user gave it.
        layout: Words for the axes or a function, for all wanted layers or by address.
        strict: Whether one `layout` has to fit all wanted layers; otherwise those that it does not fit are inferred.

    Raises:
        AddressError: A given layout does not fit a layer, or is given for a layer that there is none of.
        UsageError: The words are no layout.
    """
    check_layout(layout)
    wanted = list(wanted)
    given: dict[str, Layout | str] = {}
    named = isinstance(layout, Mapping)
    for pattern, one in layout.items() if isinstance(layout, Mapping) else [] if layout is None else [("", layout)]:
        for layer in expand([pattern], traced) if named else wanted:
            fitting = _given(layer, one, traced, grid, prefix_tokens)
            if fitting is not None:
                given[layer.address] = fitting
            elif strict or named:
                raise AddressError(_misfit(layer, one, traced))
    found: dict[str, Layout | str] = {}
    doubtful = [layer for layer in wanted if layer.address not in given and is_doubtful(layer, traced)]
    if doubtful:
        known = _known.setdefault(model, {})
        keys = {one.address: (one.address, one.shape[1:], traced.inner_size, grid, prefix_tokens) for one in doubtful}
        found = {address: known[key] for address, key in keys.items() if key in known}
        if len(found) < len(doubtful):
            tested = _relatives(doubtful, traced)
            found = follow_places(model, images, traced, tested, doubtful, forward=forward, grid=grid, prefix=prefix_tokens)
            # Other weights may show what these do not: only what was found is kept.
            known.update({keys[a]: one for a, one in found.items() if a in keys and isinstance(one, Layout)})
    return replace(traced, found={**found, **given})


def _relatives(wanted: list[Layer], traced: Trace) -> list[Layer]:
    """Doubtful layers that say something about the wanted ones: of its stage or the one before, and blocks around."""

    def tokens(layer: Layer) -> int:
        return math.prod(layer.shape[:2]) // traced.batch if len(layer.shape) == 3 else 0

    numbers = {tokens(layer) for layer in wanted} - {0}
    around = {layer.path[: at.start()] for layer in wanted for at in re.finditer(r"\.|$", layer.path)}
    near = [layer for layer in traced.layers if is_doubtful(layer, traced)]
    return [
        layer
        for layer in near
        if layer in wanted or layer.path in around or any(number <= tokens(layer) <= 4 * number for number in numbers)
    ]


def _given(layer: Layer, layout: LayerLayout, traced: Trace, grid: tuple[int, ...] | None, prefix: int | None) -> Layout | None:
    """The layout that the user gave for a layer; None if it does not fit."""
    if isinstance(layout, str):
        return worded(layout, layer.shape, traced.batch, traced.inner_size, grid, prefix)
    try:
        shape = layout(torch.zeros(layer.shape)).shape
    except Exception:  # the user's function can raise anything on a layer that it was not written for
        return None
    fits = len(shape) == 2 + len(traced.image_size) and shape[0] == traced.batch
    return Layout("function", tuple(shape[2:]), function=layout) if fits else None


def _misfit(layer: Layer, layout: LayerLayout, traced: Trace) -> str:
    images = f"{traced.batch} images of {' x '.join(map(str, traced.image_size))}"
    if isinstance(layout, str):
        return (
            f"layout={layout!r} does not fit layer '{layer.address}', whose output is {list(layer.shape)} for {images}; known "
            f"forms are {FORMS}; grid=(height, width) says which grid the tokens are"
        )
    places = ", ".join(("d", "h", "w")[-len(traced.image_size) :])
    return (
        f"the function layout= has to turn the output {list(layer.shape)} of layer '{layer.address}' for {images} into "
        f"[N, C, {places}]; it raised an error or returned another shape"
    )
