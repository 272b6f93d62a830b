"""The protocol of a run in words: a sentence for each choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from xaieval.config.presets import PRESETS
from xaieval.config.protocol import Protocol

__all__ = ["Sentence", "preset_of", "protocol_sentences"]

Choices = Mapping[str, Any]

_OF_THE_DATA = ("target", "mean", "std")  # what a preset leaves to the run


class Sentence(NamedTuple):
    """What was done at one step.

    Attributes:
        title: of the step.
        text: what was done.
        differs: whether that is another choice than the default protocol's.
    """

    title: str
    text: str
    differs: bool


def protocol_sentences(choices: Choices) -> list[Sentence]:
    """A sentence for each choice of a protocol, in the order of the steps.

    Args:
        choices: as `Protocol.to_dict` gives them. A run that is older than a choice was measured by its default.

    Example:
        >>> protocol_sentences({"masking": "top", "keep_percent": 15})[4].text
        'The 15 % of the pixels where the map is largest keep the map as mask, the others get 0.'
    """
    default = Protocol().to_dict()
    chosen = default | dict(choices)
    return [Sentence(title, say(chosen), any(chosen[name] != default[name] for name in names)) for title, names, say in _STEPS]


def preset_of(choices: Choices) -> tuple[str, str] | None:
    """Name and description of the named protocol that has these choices, if there is one.

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
        "predicted": "the one that the model predicts on the original image",
        "label": "the image's label",
    }.get(target, f"class {target}" if isinstance(target, int) else f"what the function {target} says")
    return f"The class that is followed is {whose}; it stays the same on the masked image."


def _confidence(chosen: Choices) -> str:
    what = {
        "softmax": "the softmax probability of that class",
        "sigmoid": "the sigmoid of that class's logit",
        "identity": "that class's raw logit",
    }.get(chosen["confidence"], f"what the function {chosen['confidence']} makes of the logits")
    return f"Confidence is {what}."


def _gradient(chosen: Choices) -> str:
    what = "logit" if chosen["gradient"] == "logit" else "confidence"
    return f"Methods that use gradients take those of the class's {what}."


def _map(chosen: Choices) -> str:
    scaled = {
        "minmax": "scaled from its minimum and maximum to 0 and 1",
        "max": "divided by its maximum",
        "percentile": "scaled from its {:g}th and {:g}th percentile to 0 and 1".format(*chosen["percentiles"]),
        "none": "cut off at 0 and 1, not scaled",
    }[chosen["normalisation"]]
    first = "Of each map the absolute value is taken; it is" if chosen["absolute"] else "Each map is"
    place = "enlarged to the image's size and then {}" if chosen["normalise_at"] == "image" else "{}, then enlarged"
    added = f"; {chosen['map_epsilon']:g} is added to what it is divided by" if chosen["map_epsilon"] else ""
    return f"{first} {place.format(scaled)}{added}."


def _mask(chosen: Choices) -> str:
    kept = f"The {chosen['keep_percent']:g} % of the pixels where the map is largest"
    text = {
        "soft": "The map itself is the mask",
        "top": f"{kept} keep the map as mask, the others get 0",
        "top_binary": f"{kept} are kept as they are, the others get 0",
        "threshold": f"Pixels where the map is at least {chosen['threshold']:g} are kept as they are, the others get 0",
        "otsu": "Pixels where the map is above Otsu's threshold are kept as they are, the others get 0",
    }[chosen["masking"]]
    return text + (", and the mask is turned around." if chosen["inverse"] else ".")


def _fill(chosen: Choices) -> str:
    zero = "zero of the model's input space, which is the mean colour of normalised images"
    what = {
        "zero": zero if chosen["space"] == "model" else "black pixels",
        "black": "black pixels",
        "mean": "the image's mean colour",
        "blur": "a blurred copy of the image",
    }[chosen["fill"]]
    return f"What the mask hides becomes {what}."


def _images(chosen: Choices) -> str:
    who = "All images take part" if chosen["images"] == "all" else "Only images that the model gets right take part"
    least = chosen["minimum_confidence"]
    return f"{who}, if the confidence is at least {least:g}." if least else f"{who}."


def _constant(chosen: Choices) -> str:
    then = {
        "zeros": "becomes a map of zeros, and its row counts",
        "leave_out": "is left out of the means, and counted as failed",
        "error": "ends the run",
    }[chosen["constant_map"]]
    return f"A constant map, which has nothing to scale, {then}."


def _invalid(chosen: Choices) -> str:
    then = "keeps its row with a status, outside of the means" if chosen["invalid"] == "status" else "ends the run"
    return f"A value that is not finite, or a confidence that is not positive, {then}."


def _drop(chosen: Choices) -> str:
    of = "the confidence on the original image" if chosen["denominator"] == "confidence" else "nothing, so it is in points"
    added = f" plus {chosen['epsilon']:g}" if chosen["epsilon"] else ""
    over = "all images" if chosen["drops"] == "all" else "the images whose confidence falls alone"
    return f"A drop is divided by {of}{added}; Average Drop is the mean over {over}."


def _increase(chosen: Choices) -> str:
    return f"A confidence that stays exactly the same counts as {'no ' if chosen['ties'] == 'no_increase' else ''}increase."


_STEPS: tuple[tuple[str, tuple[str, ...], Callable[[Choices], str]], ...] = (
    ("Class", ("target",), _class),
    ("Confidence", ("confidence",), _confidence),
    ("Gradient", ("gradient",), _gradient),
    ("Map", ("normalisation", "normalise_at", "absolute", "percentiles", "map_epsilon"), _map),
    ("Mask", ("masking", "keep_percent", "threshold", "inverse"), _mask),
    ("Fill", ("fill", "space"), _fill),
    ("Images", ("images", "minimum_confidence"), _images),
    ("Constant maps", ("constant_map",), _constant),
    ("Invalid values", ("invalid",), _invalid),
    ("Average Drop", ("denominator", "drops", "epsilon"), _drop),
    ("Increase", ("ties",), _increase),
)
