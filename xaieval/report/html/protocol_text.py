"""The protocol of a run in words: a sentence for each choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from xaieval.config.presets import PRESETS
from xaieval.config.protocol import Protocol

__all__ = ["Sentence", "preset_of", "protocol_sentences"]

Choices = Mapping[str, Any]

_OF_THE_DATA = ("target", "mean", "std")  # choices that a preset does not fix


class Sentence(NamedTuple):
    """A step of the measurement.

    Attributes:
        title: Name of the step.
        text: What was done.
        differs: Whether the choice differs from the default protocol.
    """

    title: str
    text: str
    differs: bool


def protocol_sentences(choices: Choices) -> list[Sentence]:
    """A sentence for each choice of a protocol, in the order of the steps.

    Args:
        choices: The result of `Protocol.to_dict`; missing choices have their defaults.

    Example:
        >>> protocol_sentences({"masking": "top", "keep_percent": 15})[4].text
        'The mask is the map in the 15 % of the pixels with the largest map values, and 0 elsewhere.'
    """
    default = Protocol().to_dict()
    chosen = default | dict(choices)
    return [Sentence(title, say(chosen), any(chosen[name] != default[name] for name in names)) for title, names, say in _STEPS]


def preset_of(choices: Choices) -> tuple[str, str] | None:
    """Name and description of the named protocol with these choices, None if there is none.

    Example:
        >>> preset_of({})[0], preset_of({"keep_percent": 50.0, "masking": "top"})[0], preset_of({"fill": "blur"})
        ('default', 'score-cam', None)
    """
    chosen = _without(Protocol().to_dict() | dict(choices))
    return next(((one.name, one.does) for one in PRESETS if _without(one.protocol.to_dict()) == chosen), None)


def _without(choices: Choices) -> dict[str, Any]:
    return {name: value for name, value in choices.items() if name not in _OF_THE_DATA}


def _class(chosen: Choices) -> str:
    target = chosen["target"]
    whose = {
        "predicted": "the class that the model predicts for the original image",
        "label": "the label of the image",
        "each": "each class that the image shows, in a row of its own",
    }.get(target, f"class {target}" if isinstance(target, int) else f"chosen by the function {target}")
    return f"The target class is {whose}; it is the same for the masked image."


def _confidence(chosen: Choices) -> str:
    what = {
        "softmax": "the softmax probability of the target class",
        "sigmoid": "the sigmoid of the logit of the target class",
        "identity": "the raw logit of the target class",
    }.get(chosen["confidence"], f"the function {chosen['confidence']} of the logits")
    return f"Confidence is {what}."


def _gradient(chosen: Choices) -> str:
    what = "logit" if chosen["gradient"] == "logit" else "confidence"
    return f"Methods that use gradients differentiate the {what} of the target class{_compared(chosen)}."


def _compared(chosen: Choices) -> str:
    """The classes that the target class is compared with."""
    against = chosen["against"]
    if against is None:
        return ""
    if isinstance(against, str):
        who = f"the {against.partition('-')[2] or 3} most similar classes"
    else:
        who = f"class{'es' if len(against) > 1 else ''} {', '.join(map(str, against))}"
    return f" minus {chosen['against_weight']:g} times the mean logit of {who}"


def _map(chosen: Choices) -> str:
    scaled = {
        "minmax": "scaled so that its minimum is 0 and its maximum 1",
        "max": "divided by its maximum",
        "percentile": "scaled so that its {:g}th percentile is 0 and its {:g}th percentile 1".format(*chosen["percentiles"]),
        "none": "clipped to [0, 1] without scaling",
    }[chosen["normalisation"]]
    first = "The absolute value of each map is" if chosen["absolute"] else "Each map is"
    resized = "resized to the size of the image"
    order = f"{resized}, then {scaled}" if chosen["normalise_at"] == "image" else f"{scaled}, then {resized}"
    added = f"; {chosen['map_epsilon']:g} is added to the divisor" if chosen["map_epsilon"] else ""
    return f"{first} {order}{added}."


def _mask(chosen: Choices) -> str:
    kept = f"in the {chosen['keep_percent']:g} % of the pixels with the largest map values, and 0 elsewhere"
    text = {
        "soft": "The map itself is the mask",
        "top": f"The mask is the map {kept}",
        "top_binary": f"The mask is 1 {kept}",
        "threshold": f"The mask is 1 where the map is at least {chosen['threshold']:g}, and 0 elsewhere",
        "otsu": "The mask is 1 where the map is above Otsu's threshold, and 0 elsewhere",
    }[chosen["masking"]]
    return text + ("; then the mask is inverted." if chosen["inverse"] else ".")


def _fill(chosen: Choices) -> str:
    zero = "zeros in the input space of the model, the mean colour if images are normalised"
    what = {
        "zero": zero if chosen["space"] == "model" else "black pixels",
        "black": "black pixels",
        "mean": "the mean colour of the image",
        "blur": "a blurred copy of the image",
        "blur-by-mask": "a blurred copy of what the mask keeps",
        "border": "the mean colour of the kept pixels around each hole",
        "delaunay": "linear interpolation between kept pixels, on triangles",
        "linear": "imputed pixels, the weighted means of their neighbours (ROAD without noise)",
        "navier-stokes": "what OpenCV's Navier-Stokes inpainting makes of the kept pixels",
        "nearest": "the nearest kept pixel",
        "telea": "what Telea's inpainting makes of the kept pixels",
    }.get(chosen["fill"], f"what the function {chosen['fill']} returns")
    return f"What the mask hides is replaced by {what}."


def _images(chosen: Choices) -> str:
    who = "All images are used" if chosen["images"] == "all" else "Only correctly classified images are used"
    least = chosen["minimum_confidence"]
    return f"{who}, if the confidence is at least {least:g}." if least else f"{who}."


def _constant(chosen: Choices) -> str:
    then = {
        "zeros": "becomes a map of zeros, and its row counts",
        "leave_out": "is left out of the means and counted as failed",
        "error": "ends the run",
    }[chosen["constant_map"]]
    return f"A constant map, which cannot be scaled, {then}."


def _invalid(chosen: Choices) -> str:
    then = "sets the status of its row, which is left out of the means" if chosen["invalid"] == "status" else "ends the run"
    return f"A value that is not finite, or a confidence that is not positive, {then}."


def _drop(chosen: Choices) -> str:
    added = f" plus {chosen['epsilon']:g}" if chosen["epsilon"] else ""
    divided = f"divided by the confidence on the original image{added}"
    by = divided if chosen["denominator"] == "confidence" else "not divided by anything, so it is in percentage points"
    over = "all images" if chosen["drops"] == "all" else "the images whose confidence falls"
    return f"The drop in confidence is {by}{added}; Average Drop is the mean over {over}."


def _increase(chosen: Choices) -> str:
    counts = "does not count" if chosen["ties"] == "no_increase" else "counts"
    return f"A confidence that stays exactly the same {counts} as an increase."


_STEPS: tuple[tuple[str, tuple[str, ...], Callable[[Choices], str]], ...] = (
    ("Target class", ("target",), _class),
    ("Confidence", ("confidence",), _confidence),
    ("Gradient", ("gradient", "against", "against_weight"), _gradient),
    ("Map", ("normalisation", "normalise_at", "absolute", "percentiles", "map_epsilon"), _map),
    ("Mask", ("masking", "keep_percent", "threshold", "inverse"), _mask),
    ("Fill", ("fill", "space"), _fill),
    ("Images", ("images", "minimum_confidence"), _images),
    ("Constant maps", ("constant_map",), _constant),
    ("Invalid values", ("invalid",), _invalid),
    ("Average Drop", ("denominator", "drops", "epsilon"), _drop),
    ("Increase", ("ties",), _increase),
)
