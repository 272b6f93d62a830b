"""What replaces masked pixels: a value, a function of the image, or a function of the pixels that the mask keeps.

A fill is a name or a function. It gives the b of `x * m + b * (1 - m)`, where x is the image and m the mask, the share of each
pixel that is kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xaieval.config.protocol import Protocol
from xaieval.errors import ProtocolError
from xaieval.masking.blur import SHARE, blur_of_kept, gaussian_blur
from xaieval.masking.inpainting import border, delaunay, navier_stokes, nearest, telea
from xaieval.masking.linear_imputation import linear_imputation
from xaieval.masking.maps import spread

__all__ = ["FILLS", "KEPT", "baseline", "filling", "occlude"]

Filling = Callable[[Tensor], Tensor]

KEPT = 0.5  # a fill that tells known pixels from missing ones takes a pixel for known if at least this share of it is kept


def _inpainted(inpaint: Callable[[Tensor, Tensor], Tensor], images: Tensor, masks: Tensor) -> Tensor:
    """The images with missing pixels inpainted; an image without known pixels becomes its mean colour."""
    missing = masks < KEPT
    empty = missing.flatten(1).all(dim=1)
    if not empty.any():
        return inpaint(images, missing)
    made = images.mean(dim=tuple(range(2, images.ndim)), keepdim=True).expand_as(images).clone()
    if not empty.all():
        made[~empty] = inpaint(images[~empty], missing[~empty])
    return made


# Fills by name that depend on the mask: functions of images [N, C, H, W] and masks [N, H, W].
_OF_MASKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "blur-by-mask": blur_of_kept,
    "border": partial(_inpainted, border),
    "delaunay": partial(_inpainted, delaunay),
    "linear": partial(_inpainted, linear_imputation),
    "navier-stokes": partial(_inpainted, navier_stokes),
    "nearest": partial(_inpainted, nearest),
    "telea": partial(_inpainted, telea),
}
FILLS = ("zero", "black", "mean", "blur", *_OF_MASKS)


def filling(images: Float[Tensor, "n c *space"], protocol: Protocol) -> Filling:
    """A function from masks `[N, H, W]` to the values that replace the masked pixels, which broadcast to the images.

    What depends on the images alone is computed once, for all masks.

    Args:
        images: Images, normalised as the model expects, `[N, C, H, W]`.
        protocol: Its `fill` is used, and what `baseline` uses.

    Raises:
        ProtocolError: As `baseline`; or a function returns something that does not broadcast to the images.

    Example:
        >>> images = torch.tensor([[[[1.0, 5.0, 3.0]]]])
        >>> filling(images, Protocol(fill="border"))(torch.tensor([[[1.0, 0.0, 1.0]]]))
        tensor([[[[1., 2., 3.]]]])
    """
    fill: Any = _OF_MASKS.get(protocol.fill, protocol.fill) if isinstance(protocol.fill, str) else protocol.fill
    if callable(fill) and _sees_masks(fill):
        return lambda masks: _values(fill, images, masks)
    values = _values(fill, images) if callable(fill) else baseline(images, protocol)
    return lambda masks: values


def _sees_masks(fill: Callable[..., Any]) -> bool:
    """Whether a function takes images and masks: it has two arguments without a default.

    A function whose arguments are unknown, as those of many that are written in C, takes the images.
    """
    try:
        arguments = inspect.signature(fill.forward if isinstance(fill, nn.Module) else fill).parameters.values()
    except ValueError:
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is one.empty for one in arguments) == 2


def _values(fill: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """What a function returns for images, and for masks if it takes them, without gradients."""
    images = given[0]
    with torch.no_grad():
        values: Any = fill(*given)
    fits = isinstance(values, Tensor) and values.ndim == images.ndim
    if not fits or any(one not in (1, side) for one, side in zip(values.shape, images.shape, strict=True)):
        came = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ProtocolError(
            f"the fill {fill!r} gave {came} for images {list(images.shape)}; it has to give a tensor with as many axes, which "
            "broadcasts to them"
        )
    return values.to(images)


def baseline(images: Float[Tensor, "n c *space"], protocol: Protocol) -> Float[Tensor, "#n c *#space"]:
    """The values that replace masked pixels, in the model's input space, broadcastable to the images.

    For the fills that depend on the image alone; `filling` knows all of them.

    Args:
        images: Images, normalised as the model expects, `[N, C, H, W]`.
        protocol: Its `fill` and `space` are used, and for black its `mean` and `std`.

    Raises:
        ProtocolError: The fill is black, and the protocol has no `mean` and `std` or they do not fit the channels; or it is
            a function, or depends on the mask.
    """
    channels, space = images.shape[1], range(2, images.ndim)
    if protocol.fills_black:
        return _black(images, protocol)
    if protocol.fill == "zero":
        return images.new_zeros(1, channels, *(1 for _ in space))
    if protocol.fill == "mean":
        return images.mean(dim=tuple(space), keepdim=True)
    if protocol.fill == "blur":
        return gaussian_blur(images, SHARE)
    raise ProtocolError(f"fill={protocol.fill!r} is more than a function of the images; use filling(images, protocol)(masks)")


def _black(images: Tensor, protocol: Protocol) -> Tensor:
    if protocol.mean is None or protocol.std is None:
        raise ProtocolError(
            f"fill={protocol.fill!r} in space={protocol.space!r} means black pixels, which needs the mean and std that the "
            "images were normalised with: give Protocol(mean=(...), std=(...))"
        )
    if not len(protocol.mean) == len(protocol.std) == images.shape[1]:
        raise ProtocolError(f"mean and std need one number for each of the images' {images.shape[1]} channels")
    mean, std = images.new_tensor(protocol.mean), images.new_tensor(protocol.std)
    return spread(-mean / std, images[0])[None]


def occlude(
    images: Float[Tensor, "n c *space"], masks: Float[Tensor, " n *space"], replacement: Float[Tensor, "#n c *#space"]
) -> Float[Tensor, "n c *space"]:
    """The masked images, `images * mask + replacement * (1 - mask)`.

    Pixels whose mask is exactly 1 keep their values bit by bit.
    """
    masks = masks[:, None]
    return (images * masks).addcmul_(replacement, 1 - masks)
