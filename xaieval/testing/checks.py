"""What every explainer must do, one check for each requirement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from xaieval.errors import ConformanceError
from xaieval.explainers import Context
from xaieval.inference.reproducibility import random_states, same_random_numbers
from xaieval.testing.state import equal, model_state, restore, seed_everything, zero_weights
from xaieval.testing.subjects import Subject, accepts, borrowed_context, maps_of

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

# Tolerances as shares of a map's range.
TOLERANCE = 1e-4  # float32 sums in another order
REPEATED = 1e-5  # the same computation again
OTHER_DEVICE = 1e-2  # another device, with other arithmetic
INPUTS = ("images", "targets", "logits", "activation", "gradient")
SHOWN = 6  # changes that a message lists


class Check(Protocol):
    """Raises a `ConformanceError` if the explainer does not meet one requirement."""

    __name__: str

    def __call__(self, subject: Subject) -> None:
        """Check a subject."""


def check_shapes(subject: Subject) -> None:
    """There is one map `[h, w]` per image, for one image, two and all; maps of wide images are wide, of tall images tall."""
    for part in (subject.part(0), subject.part(0, 1), subject, *_flat_and_upright(subject)):
        maps, images = maps_of(part), part.images
        came = f"got {list(maps.shape)} for images {list(images.shape)}"
        if maps.ndim != 3 or len(maps) != len(images) or 0 in maps.shape:
            raise ConformanceError(f"expected maps [N, h, w], {came}")
        if (maps.shape[1] - maps.shape[2]) * (images.shape[2] - images.shape[3]) < 0:
            raise ConformanceError(f"expected maps that lie like the images, height first, {came}")


def check_floating(subject: Subject) -> None:
    """Maps are of a floating-point type."""
    maps = maps_of(subject)
    if not maps.is_floating_point():
        raise ConformanceError(f"expected maps of a floating-point type, got {str(maps.dtype).removeprefix('torch.')}")


def check_finite(subject: Subject) -> None:
    """Maps of ordinary images are finite."""
    bad = int((~maps_of(subject).isfinite()).flatten(1).any(dim=1).sum())
    if bad:
        count = len(subject.images)
        raise ConformanceError(f"expected finite values for ordinary images, got NaN or inf in {bad} of {count} maps")


def check_deterministic(subject: Subject) -> None:
    """The same seed gives the same maps, in any state of the global random numbers."""
    maps = []
    with same_random_numbers():
        for seed in (1, 2):
            seed_everything(seed)
            maps.append(maps_of(subject))
    _expect_close(maps[1], maps[0], "the same maps from the same seed", REPEATED)


def check_random_numbers(subject: Subject) -> None:
    """The global random numbers of torch, NumPy and Python are not changed."""
    with borrowed_context(subject) as context:  # restores the random numbers, so they are compared inside
        seed_everything(3)
        before = random_states()
        subject.explainer(context)
        changed = [name for name, state in random_states().items() if not equal(state, before[name])]
    if changed:
        raise ConformanceError(
            f"expected unchanged global random numbers, got those of {', '.join(changed)} changed; draw from a "
            "torch.Generator of your own, seeded by context.seed and the image's id"
        )


def check_batch(subject: Subject) -> None:
    """A map does not depend on the other images of the batch."""
    single = [maps_of(subject.part(number)) for number in range(len(subject.images))]
    if len({maps.shape for maps in single}) > 1:
        raise ConformanceError(f"expected maps of one size, got {' and '.join(str(list(maps.shape)) for maps in single[:2])}")
    _expect_close(maps_of(subject), torch.cat(single), "the same maps for a batch as for its images one by one")


def check_state_kept(subject: Subject) -> None:
    """The model is not changed: modes, hooks, gradients, flags, buffers, parameters, in-place settings."""
    _expect_same_model(subject, "afterwards")


def check_state_after_error(subject: Subject) -> None:
    """The model is not changed if it raises an error while the explainer runs it."""
    _expect_same_model(subject, "after it raised at once", subject.model.register_forward_pre_hook)
    _expect_same_model(subject, "after it raised in the end", subject.model.register_forward_hook)


def check_device(subject: Subject) -> None:
    """The explainer works on the model's device, also on a GPU if there is one, and gives the same maps there."""
    expected = maps_of(subject).cpu()
    for device in _devices():
        _expect_close(maps_of(subject, device).cpu(), expected, f"the same maps on {device}", OTHER_DEVICE)


def check_nan_image(subject: Subject) -> None:
    """An image of NaN does not change the maps of the other images of its batch."""
    images = subject.images.clone()
    images[1] = torch.nan
    others = [number for number in range(len(images)) if number != 1]
    maps = maps_of(replace(subject, images=images))[others]
    _expect_close(maps, maps_of(subject)[others], "the same maps beside an image of NaN")


def check_inputs_kept(subject: Subject) -> None:
    """The explainer does not change its inputs, which others share: images, targets, logits, activation, gradient."""
    with borrowed_context(subject) as context:
        inputs: dict[str, Any] = {name: getattr(context, name) for name in INPUTS}
        inputs |= {f"{name} of {at.layer}": getattr(at, name) for at in context.layers for name in ("activation", "gradient")}
        before = {name: tensor.clone() for name, tensor in inputs.items() if tensor is not None}
        subject.explainer(context)
        changed = [name for name, tensor in before.items() if not equal(inputs[name], tensor)]
        changed += [f"requires_grad of {name}" for name in before if inputs[name].requires_grad]
    if changed:
        raise ConformanceError(f"expected unchanged inputs, got changes of {', '.join(changed)}")


def check_modes(subject: Subject) -> None:
    """The explainer works in every gradient mode of the caller, and does not change the mode."""
    expected = maps_of(subject)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            _expect_close(maps_of(subject), expected, f"the same maps under an outer torch.{mode.__name__}", REPEATED)
    with borrowed_context(subject) as context:
        subject.explainer(context)
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise ConformanceError("expected torch to compute gradients afterwards as before, got that switched off")


def check_zero_gradient(subject: Subject) -> None:
    """Where the score does not depend on the image, the map is constant or NaN, and nothing is raised."""
    if subject.explainer.needs_gradient:
        with borrowed_context(subject) as context:
            without = replace(_without_gradient(context), layers=tuple(map(_without_gradient, context.layers)))
            maps = subject.explainer(without).detach().flatten(1)
        low, high = maps.amin(dim=1), maps.amax(dim=1)
        if not ((high - low <= 1e-6 * high.abs()) | low.isnan()).all():
            raise ConformanceError(
                f"expected constant maps from zero gradients, got a range of {float((high - low).max()):.3g}"
            )
    with zero_weights(subject.model):
        maps = maps_of(subject)
    if maps.ndim != 3 or len(maps) != len(subject.images):
        raise ConformanceError(f"expected maps [N, h, w] also of a model with a constant output, got {list(maps.shape)}")


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


def _flat_and_upright(subject: Subject) -> list[Subject]:
    """The images cut to half their height and to half their width, if the model accepts such images."""
    height, width = subject.images.shape[2:]
    cut = (subject.images[..., : height // 2, :], subject.images[..., : width // 2])
    return [replace(subject, images=images) for images in cut if accepts(subject.model, images)]


def _without_gradient(context: Context) -> Context:
    """The context of a score that does not depend on the layer."""
    return replace(context, gradient=None if context.gradient is None else torch.zeros_like(context.gradient))


def _devices() -> list[str]:
    """Devices to check beyond the model's own."""
    return ["cuda"] if torch.cuda.is_available() else []


def _expect_close(maps: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Raise unless maps agree to a share of each map's range; NaN in both agrees."""
    if maps.shape != expected.shape:
        raise ConformanceError(f"expected {what}, got {list(maps.shape)} and {list(expected.shape)}")
    first, second = expected.flatten(1).double(), maps.flatten(1).double()
    both_nan = first.isnan() & second.isnan()
    first, second = first.masked_fill(both_nan, 0), second.masked_fill(both_nan, 0)
    spread = first.amax(dim=1) - first.amin(dim=1)
    difference = (second - first).abs().amax(dim=1)
    if not (difference <= tolerance * spread + 1e-6 * first.abs().amax(dim=1)).all():
        share = float((difference / spread).nan_to_num(torch.inf, torch.inf).max())
        raise ConformanceError(
            f"expected {what} to {tolerance:g} of a map's range, got a difference of {share:.2g} of that range"
        )


def _expect_same_model(subject: Subject, when: str, register: Callable[..., Any] | None = None) -> None:
    """Run the explainer, and compare the borrowed model before and after.

    Args:
        subject: The subject of the check.
        when: The end of the message.
        register: Registers a hook on the model that makes it raise. Default: the model does not raise.
    """
    with borrowed_context(subject) as context, ExitStack() as undo:
        if register is not None:
            undo.callback(register(_fail).remove)
        before = model_state(subject.model)
        try:
            subject.explainer(context)
        except Exception:  # an explainer may turn the model's error into another
            if register is None:
                raise
        after = model_state(subject.model)
        restore(subject.model, before)
    changed = [name for name in before | after if not equal(before.get(name), after.get(name))]
    if changed:
        most = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise ConformanceError(f"expected an unchanged model {when}, got changes in {', '.join(changed[:SHOWN])}{most}")


def _fail(*_: Any) -> None:
    raise RuntimeError("this model was made to raise")
