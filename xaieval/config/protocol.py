"""The choices that change Average Drop and Increase in Confidence, frozen in one object, and the presets by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from xaieval.errors import ProtocolError, choose_from

__all__ = ["PROTOCOLS", "Denominator", "Drops", "Protocol", "Ties", "plain", "resolve_protocol"]

Gradient = Literal["logit", "confidence"]
Normalisation = Literal["minmax", "max", "percentile", "none"]
Place = Literal["image", "layer"]
Masking = Literal["soft", "top", "top_binary", "threshold", "otsu"]
Fill = Literal["zero", "black", "mean", "blur"]
Space = Literal["model", "pixels"]
Images = Literal["all", "correct"]
ConstantMap = Literal["zeros", "leave_out", "error"]
Invalid = Literal["status", "error"]
Denominator = Literal["confidence", "none"]
Drops = Literal["all", "dropping"]
Ties = Literal["no_increase", "increase"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "gradient": get_args(Gradient),
    "normalisation": get_args(Normalisation),
    "normalise_at": get_args(Place),
    "masking": get_args(Masking),
    "fill": get_args(Fill),
    "space": get_args(Space),
    "images": get_args(Images),
    "constant_map": get_args(ConstantMap),
    "invalid": get_args(Invalid),
    "denominator": get_args(Denominator),
    "drops": get_args(Drops),
    "ties": get_args(Ties),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a map is turned into two numbers; every manifest records it, because each choice changes the numbers.

    Args:
        confidence: the model's score of the target class: "softmax", "sigmoid", "identity" (the raw logit; images where it is
            not positive get a status), or a function from logits `[N, K]` to scores `[N, K]`.
        target: the class that is followed: "predicted", "label", a class index (0 is a class), or a function
            `(logits [N, K], labels [N] or None) -> classes [N]`. It is fixed on the original image. Where several labels can
            be true of an image, labels are zeros and ones `[N, K]`, "label" is refused, and a function says which class it is.
        gradient: the score that gradients are taken of: the target's "logit" or its "confidence".
        normalisation: of the map to [0, 1]: "minmax", "max" (divided by the maximum), "percentile" (min-max between
            `percentiles`), "none" (only clipped to [0, 1]).
        normalise_at: "image": after bilinear upsampling to the image's size (half-pixel centres); "layer": before it.
        absolute: take the map's absolute value before normalisation.
        percentiles: low and high percentile for "percentile", in [0, 100].
        masking: from the map to the mask m: "soft" (m is the map), "top" (the `keep_percent` % largest pixels keep the map's
            value), "top_binary" (they are 1), "threshold" (1 where the map is at least `threshold`), "otsu" (1 above Otsu's
            threshold of the map). The masked image is `x * m + b * (1 - m)`.
        keep_percent: share of pixels kept by "top" and "top_binary", in percent.
        threshold: of "threshold", in [0, 1].
        inverse: mask with `1 - m`.
        fill: what replaces what is masked (b): "zero" in the chosen space, "black" pixels, the "mean" colour of the image,
            or a "blur" of the image (Gaussian, sigma a tenth of the shorter side).
        space: where "zero" lies: in the "model"'s input space (the mean colour, for normalised input) or in raw [0, 1]
            "pixels" before normalisation (black). The other fills are the same in both, since normalisation is affine.
        mean: the mean that the images were normalised with, per channel; needed by black fills. The command line and timm
            models fill it in.
        std: the standard deviation that the images were normalised with, per channel.
        images: "all", or the "correct" ones only (predicted class = label).
        minimum_confidence: leave out images whose confidence is below, in the unit of `confidence`.
        constant_map: a map that cannot be normalised becomes "zeros" and its row counts; or "leave_out"; or "error".
        invalid: NaN or inf in a map or a confidence, or a confidence that is not positive: a row with a "status" and NaN
            values that no mean contains; or "error".
        denominator: what a drop is divided by: the "confidence" on the original image, or "none" (percent points then).
        drops: what Average Drop is the mean of: "all" images, or the "dropping" ones alone, whose confidence fell.
        ties: whether an equal confidence is "no_increase" or an "increase".
        epsilon: added to the denominator of a drop. 0 but under the name of a tool that adds one.
        map_epsilon: added to the range that a map is divided by. 0 but under the name of a tool that adds one.

    Raises:
        ProtocolError: a choice is unknown or out of range, or two contradict each other.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1, for the numbers.

    Example:
        >>> Protocol(masking="top_binary", keep_percent=15).keep_percent
        15
    """

    confidence: str | Callable[..., Any] = "softmax"
    target: str | int | Callable[..., Any] = "predicted"
    gradient: Gradient = "logit"
    normalisation: Normalisation = "minmax"
    normalise_at: Place = "image"
    absolute: bool = False
    percentiles: tuple[float, float] = (1.0, 99.0)
    masking: Masking = "soft"
    keep_percent: float = 50.0
    threshold: float = 0.5
    inverse: bool = False
    fill: Fill = "zero"
    space: Space = "model"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    images: Images = "all"
    minimum_confidence: float = 0.0
    constant_map: ConstantMap = "zeros"
    invalid: Invalid = "status"
    denominator: Denominator = "confidence"
    drops: Drops = "all"
    ties: Ties = "no_increase"
    epsilon: float = 0.0
    map_epsilon: float = 0.0

    def __post_init__(self) -> None:
        for name, options in _CHOICES.items():
            _check_choice(name, getattr(self, name), options)
        if not callable(self.confidence):
            _check_choice("confidence", self.confidence, ("softmax", "sigmoid", "identity"))
        if isinstance(self.target, str):
            _check_choice("target", self.target, ("predicted", "label"))
        _check_range("keep_percent", self.keep_percent, 0, 100)
        _check_range("threshold", self.threshold, 0, 1)
        _check_range("epsilon", self.epsilon, 0, 1)
        _check_range("map_epsilon", self.map_epsilon, 0, 1)
        if len(self.percentiles) != 2 or not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ProtocolError(f"percentiles are two rising numbers in [0, 100], got {self.percentiles}")
        if (self.mean is None) != (self.std is None):
            raise ProtocolError("give the input's mean and std together")
        if self.std is not None and min(self.std) <= 0:
            raise ProtocolError(f"the input's std is positive, got {self.std}")

    @property
    def fills_black(self) -> bool:
        """Whether masked pixels become black, which takes the input's mean and std to say in the model's input space."""
        return self.fill == "black" or (self.fill == "zero" and self.space == "pixels")

    def to_dict(self) -> dict[str, Any]:
        """The choices as plain values for a manifest; functions by their import path."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def resolve_protocol(protocol: str | Protocol) -> Protocol:
    """A protocol by name, or the object itself.

    Raises:
        ProtocolError: no protocol has that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ProtocolError(f"no protocol {protocol!r}; {choose_from(protocol, PROTOCOLS)}; or give a Protocol(...)")
    return PROTOCOLS[protocol]


def _check_choice(name: str, value: object, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ProtocolError(f"{name}={value!r} is not a choice of a protocol; {choose_from(value, options)}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ProtocolError(f"{name} lies in [{low}, {high}], got {value}")


def plain(value: Any) -> Any:
    """A value as a manifest can hold it: functions by their import path."""
    if callable(value):
        return f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"
    return list(value) if isinstance(value, tuple) else value


# What each is taken from, and which faults of a tool it repeats, is in `presets.py`.
PROTOCOLS: dict[str, Protocol] = {
    "default": Protocol(),
    "grad-cam++": Protocol(normalisation="max", normalise_at="layer"),
    "score-cam": Protocol(masking="top", keep_percent=50),
    "opti-cam": Protocol(target="label", space="pixels"),
    "opti-cam-normalised": Protocol(target="label"),
    "tame-100": Protocol(normalise_at="layer", space="pixels"),
    "tame-50": Protocol(normalise_at="layer", space="pixels", masking="top", keep_percent=50),
    "tame-15": Protocol(normalise_at="layer", space="pixels", masking="top", keep_percent=15),
    "relevance-cam": Protocol(masking="top_binary", keep_percent=50, drops="dropping", ties="increase"),
    "adcc": Protocol(),
    "torch-cam": Protocol(gradient="confidence", normalise_at="layer", map_epsilon=1e-8, epsilon=1e-7),
    "pytorch-grad-cam": Protocol(denominator="none"),
    "xplique": Protocol(absolute=True, map_epsilon=1e-8, epsilon=1e-8),
}
