"""The promises of an explainer, one check each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from xaieval.errors import ConformanceError
from xaieval.inference.reproducibility import random_states, same_random_numbers
from xaieval.testing.state import dead, equal, model_state, put_back, seed_everything
from xaieval.testing.subjects import Subject, looking, maps_of, takes

__all__ = [
    "CHECKS",
    "Check",
    "check_batch",
    "check_deterministic",
    "check_device",
    "check_finite",
    "check_floating",
    "check_inputs_kept",
    "check_modes",
    "check_nan_image",
    "check_random_numbers",
    "check_shapes",
    "check_state_after_error",
    "check_state_kept",
    "check_zero_gradient",
]

TOLERANCE = 1e-4  # of a map's range: float32 sums in another order
REPEATED = 1e-5  # likewise, of the very same computation
ELSEWHERE = 1e-2  # likewise, on a device with other arithmetic
INPUTS = ("images", "targets", "logits", "activation", "gradient")
SHOWN = 6  # changes that a message names


class Check(Protocol):
    """Raises a `ConformanceError` if the explainer does not keep one promise."""

    __name__: str

    def __call__(self, tried: Subject) -> None:
        """Try it."""


def check_shapes(tried: Subject) -> None:
    """One map `[h, w]` an image, for one image, two and all, and lying like the image where that is not square."""
    for part in (tried.part(0), tried.part(0, 1), tried, *_flat_and_upright(tried)):
        maps, images = maps_of(part), part.images
        came = f"got {list(maps.shape)} for images {list(images.shape)}"
        if maps.ndim != 3 or len(maps) != len(images) or 0 in maps.shape:
            raise ConformanceError(f"expected maps [N, h, w], {came}")
        if (maps.shape[1] - maps.shape[2]) * (images.shape[2] - images.shape[3]) < 0:
            raise ConformanceError(f"expected maps that lie like the images, height first, {came}")


def check_floating(tried: Subject) -> None:
    """Maps are of a floating-point type."""
    maps = maps_of(tried)
    if not maps.is_floating_point():
        raise ConformanceError(f"expected maps of a floating-point type, got {str(maps.dtype).removeprefix('torch.')}")


def check_finite(tried: Subject) -> None:
    """Maps of ordinary images are finite."""
    bad = int((~maps_of(tried).isfinite()).flatten(1).any(dim=1).sum())
    if bad:
        count = len(tried.images)
        raise ConformanceError(f"expected finite values for ordinary images, got NaN or inf in {bad} of {count} maps")


def check_deterministic(tried: Subject) -> None:
    """The same seed gives the same maps, whatever the global random numbers are."""
    maps = []
    with same_random_numbers():
        for seed in (1, 2):
            seed_everything(seed)
            maps.append(maps_of(tried))
    _expect_close(maps[1], maps[0], "the same maps from the same seed", REPEATED)


def check_random_numbers(tried: Subject) -> None:
    """The global random numbers of torch, NumPy and Python go on as if nothing had been."""
    with looking(tried) as context:  # the model is given back with the numbers of before
        seed_everything(3)
        before = random_states()
        tried.explainer(context)
        changed = [name for name, state in random_states().items() if not equal(state, before[name])]
    if changed:
        raise ConformanceError(
            f"expected the global random numbers to be left alone, got those of {', '.join(changed)} changed; draw from a "
            "torch.Generator of your own, seeded by context.seed and the image's id"
        )


def check_batch(tried: Subject) -> None:
    """An image's map does not depend on the batch that the image is in."""
    single = [maps_of(tried.part(number)) for number in range(len(tried.images))]
    if len({maps.shape for maps in single}) > 1:
        raise ConformanceError(f"expected maps of one size, got {' and '.join(str(list(maps.shape)) for maps in single[:2])}")
    _expect_close(maps_of(tried), torch.cat(single), "the same maps for a batch as for its images one by one")


def check_state_kept(tried: Subject) -> None:
    """Nothing is left in the model: modes, hooks, gradients, flags, buffers, parameters, in-place settings."""
    _expect_same_model(tried, "afterwards")


def check_state_after_error(tried: Subject) -> None:
    """Nothing is left in the model either when the model raises while the explainer runs it."""
    _expect_same_model(tried, "after it raised at once", tried.model.register_forward_pre_hook)
    _expect_same_model(tried, "after it raised in the end", tried.model.register_forward_hook)


def check_device(tried: Subject) -> None:
    """It works where the model is, on a GPU if there is one, and gives the same maps there."""
    expected = maps_of(tried).cpu()
    for device in _devices():
        _expect_close(maps_of(tried, device).cpu(), expected, f"the same maps on {device}", ELSEWHERE)


def check_nan_image(tried: Subject) -> None:
    """An image of NaN leaves the maps of the other images of its batch alone."""
    spoilt = tried.images.clone()
    spoilt[1] = torch.nan
    others = [number for number in range(len(spoilt)) if number != 1]
    beside = maps_of(replace(tried, images=spoilt))[others]
    _expect_close(beside, maps_of(tried)[others], "the same maps beside an image of NaN")


def check_inputs_kept(tried: Subject) -> None:
    """What an explainer is given belongs to others too: images, targets, logits, activation, gradient."""
    with looking(tried) as context:
        given: dict[str, Any] = {name: getattr(context, name) for name in INPUTS}
        before = {name: tensor.clone() for name, tensor in given.items() if tensor is not None}
        tried.explainer(context)
        changed = [name for name, tensor in before.items() if not equal(given[name], tensor)]
        changed += [f"requires_grad of {name}" for name in before if given[name].requires_grad]
    if changed:
        raise ConformanceError(f"expected what it is given to stay as it is, got changes of {', '.join(changed)}")


def check_modes(tried: Subject) -> None:
    """It works whatever mode the caller is in, and leaves torch in the mode in which it was called."""
    expected = maps_of(tried)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            _expect_close(maps_of(tried), expected, f"the same maps under an outer torch.{mode.__name__}", REPEATED)
    with looking(tried) as context:
        tried.explainer(context)
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise ConformanceError("expected torch to compute gradients afterwards as before, got that switched off")


def check_zero_gradient(tried: Subject) -> None:
    """Where the score does not change there is nothing to see: a constant map (or NaN), and no crash."""
    if tried.explainer.needs_gradient:
        with looking(tried) as context:
            zeros = None if context.gradient is None else torch.zeros_like(context.gradient)
            maps = tried.explainer(replace(context, gradient=zeros)).detach().flatten(1)
        low, high = maps.amin(dim=1), maps.amax(dim=1)
        if not ((high - low <= 1e-6 * high.abs()) | low.isnan()).all():
            raise ConformanceError(
                f"expected constant maps from zero gradients, got a range of {float((high - low).max()):.3g}"
            )
    with dead(tried.model):
        maps = maps_of(tried)
    if maps.ndim != 3 or len(maps) != len(tried.images):
        raise ConformanceError(f"expected maps [N, h, w] also of a model that always gives the same, got {list(maps.shape)}")


CHECKS: Sequence[Check] = (
    check_shapes,
    check_floating,
    check_finite,
    check_deterministic,
    check_random_numbers,
    check_batch,
    check_state_kept,
    check_state_after_error,
    check_device,
    check_nan_image,
    check_inputs_kept,
    check_modes,
    check_zero_gradient,
)


def _flat_and_upright(tried: Subject) -> list[Subject]:
    """The images cut to half their height and to half their width, as far as the model takes that."""
    height, width = tried.images.shape[2:]
    cut = (tried.images[..., : height // 2, :], tried.images[..., : width // 2])
    return [replace(tried, images=images) for images in cut if takes(tried.model, images)]


def _devices() -> list[str]:
    """Where explainers are tried beside the model's own device."""
    return ["cuda"] if torch.cuda.is_available() else []


def _expect_close(maps: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Whether maps agree to a share of each map's range; what is NaN in both agrees."""
    if maps.shape != expected.shape:
        raise ConformanceError(f"expected {what}, got {list(maps.shape)} and {list(expected.shape)}")
    wanted, came = expected.flatten(1).double(), maps.flatten(1).double()
    both = wanted.isnan() & came.isnan()
    wanted, came = wanted.masked_fill(both, 0), came.masked_fill(both, 0)
    spread = wanted.amax(dim=1) - wanted.amin(dim=1)
    apart = (came - wanted).abs().amax(dim=1)
    if not (apart <= tolerance * spread + 1e-6 * wanted.abs().amax(dim=1)).all():
        share = float((apart / spread).nan_to_num(torch.inf, torch.inf).max())
        raise ConformanceError(f"expected {what} to {tolerance:g} of a map's range, got a difference of {share:.2g} of it")


def _expect_same_model(tried: Subject, when: str, register: Callable[..., Any] | None = None) -> None:
    """Run the explainer and compare the model, as it is while it is borrowed, before and after.

    Args:
        tried: the explainer.
        when: for the message.
        register: puts a hook on the model, by which it is made to raise.
    """
    with looking(tried) as context, ExitStack() as undo:
        if register is not None:
            undo.callback(register(_fail).remove)
        before = model_state(tried.model)
        try:
            tried.explainer(context)
        except Exception:  # whatever an explainer makes of what the model raised
            if register is None:
                raise
        after = model_state(tried.model)
        put_back(tried.model, before)
    changed = [name for name in before | after if not equal(before.get(name), after.get(name))]
    if changed:
        most = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise ConformanceError(f"expected the model as it was {when}, got changes in {', '.join(changed[:SHOWN])}{most}")


def _fail(*_: Any) -> None:
    raise RuntimeError("this model was made to raise")
