"""The choices that change Average Drop and Increase in Confidence, in one frozen object, and the named protocols."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from xaieval.errors import ProtocolError, choose_from

__all__ = ["PROTOCOLS", "Denominator", "Drops", "Protocol", "Ties", "plain", "resolve_protocol"]

Gradient = Literal["logit", "confidence"]
Normalisation = Literal["minmax", "max", "percentile", "none"]
Place = Literal["image", "layer"]
Masking = Literal["soft", "top", "top_binary", "threshold", "otsu"]
Fill = Literal[
    "zero", "black", "mean", "blur", "blur-by-mask", "border", "delaunay", "linear", "navier-stokes", "nearest", "telea"
]
Space = Literal["model", "pixels"]
Images = Literal["all", "correct"]
ConstantMap = Literal["zeros", "leave_out", "error"]
Invalid = Literal["status", "error"]
Denominator = Literal["confidence", "none"]
Drops = Literal["all", "dropping"]
Ties = Literal["no_increase", "increase"]

SIMILAR = re.compile(r"similar(-[1-9][0-9]*)?")  # classes with the logits nearest to that of the target; three by default

_CHOICES: dict[str, tuple[str, ...]] = {
    "gradient": get_args(Gradient),
    "normalisation": get_args(Normalisation),
    "normalise_at": get_args(Place),
    "masking": get_args(Masking),
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
    """How a map becomes numbers. Every manifest records it, because each choice changes the numbers.

    Args:
        confidence: The model's score of the target class: "softmax", "sigmoid", "identity" (the raw logit; images where it is
            not positive have no Average Drop), or a function from logits `[N, K]` to scores `[N, K]`. For a model of one
            output, "softmax" becomes "sigmoid", the probability of class 1; otherwise the output is a number.
        target: The class to explain: "predicted", "label", "each" (every class that the image shows, one row for each; see
            `xaieval.score`), a class index (0 is a class), or a function `(logits [N, K], labels) -> classes [N]`. It is fixed
            on the original image. In multi-label data, labels are zeros and ones `[N, K]`; "label" is refused then, and "each"
            or a function can choose the class. Labels that are no classes reach the function as the loader gave them, and
            without any it gets None. `explain` also takes one class per image, `[N]`. Integers can be those of NumPy and torch.
        gradient: The score that gradients are taken of: the "logit" of the target or its "confidence".
        against: What the score of the class is compared with, in a classifier: "similar" for the three classes with the logits
            nearest to its own, "similar-1" or another number of them, a class index, or several. The score that methods explain
            then is its logit minus `against_weight` times the mean of theirs; the target itself is left out, and confidences
            stay as they are. None for the logit alone.
        against_weight: How much the other classes count, in [0, 10].
        normalisation: Scaling of maps to [0, 1]: "minmax", "max" (divided by the maximum), "percentile" (min-max between
            `percentiles`), "none" (only clipped to [0, 1]).
        normalise_at: "image": after bilinear upsampling to the size of the image (half-pixel centres); "layer": before it.
        absolute: Take the absolute value of the map before normalisation.
        percentiles: The low and high percentile for "percentile", in [0, 100].
        masking: From the map to the mask m: "soft" (m is the map), "top" (the `keep_percent` % largest pixels keep the value of
            the map), "top_binary" (they are 1), "threshold" (1 where the map is at least `threshold`), "otsu" (1 above Otsu's
            threshold of the map). The masked image is `x * m + b * (1 - m)`.
        keep_percent: The share of pixels that "top" and "top_binary" keep, in percent.
        threshold: The threshold for "threshold", in [0, 1].
        inverse: Mask with `1 - m`.
        fill: The baseline b that replaces masked pixels: "zero" in the chosen space, "black" pixels, the "mean" colour of the
            image, or a "blur" of the image (Gaussian, sigma a tenth of the shorter side). Made of what the mask keeps:
            "blur-by-mask" (the blur of the kept pixels), "border" (each hole has the mean colour around it), "delaunay" (linear
            interpolation on triangles), "linear" (the imputation of ROAD without noise), "navier-stokes" and "telea" (OpenCV's
            inpainting), "nearest" (the nearest kept pixel); but for the first, a pixel counts as kept if half of it is. Or a
            function of the images `[N, C, H, W]`, or of the images and the masks `[N, H, W]`, to values for the images.
        space: Where "zero" lies: in the input space of the "model" (the mean colour, for normalised input) or in raw [0, 1]
            "pixels" before normalisation (black). The other fills are the same in both, since normalisation is affine.
        mean: The mean that the images were normalised with, per channel; needed for black fills. The command line
            and timm models set it.
        std: The standard deviation that the images were normalised with, per channel.
        images: "all", or only the "correct" ones (predicted class = label).
        minimum_confidence: Leave out images with a lower confidence, in the unit of `confidence`.
        constant_map: A map that cannot be normalised becomes "zeros" and its row counts; or "leave_out"; or "error".
        invalid: For NaN or infinity in a map or a confidence, and for a confidence that is not positive if a metric divides by
            it: a row with a "status" and NaN values, which no mean contains; or "error".
        denominator: What a drop is divided by: the "confidence" on the original image, or "none" (percentage points).
        drops: The images that Average Drop is the mean of: "all", or only the "dropping" ones, whose confidence fell.
        ties: Whether an equal confidence is "no_increase" or an "increase".
        epsilon: Added to the denominator of a drop; 0 except in protocols of tools that add one.
        map_epsilon: Added to the range that a map is divided by; 0 except in protocols of tools that add one.

    Raises:
        ProtocolError: A choice is unknown or out of range, or two choices contradict each other.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1, for the numbers; Zhang et al.,
        "Finer-CAM", CVPR 2025 (arXiv 2501.11309), eq. 5 and 6, for `against`.

    Example:
        >>> Protocol(masking="top_binary", keep_percent=15).keep_percent
        15
    """

    confidence: str | Callable[..., Any] = "softmax"
    target: str | int | Sequence[int] | Callable[..., Any] = "predicted"
    gradient: Gradient = "logit"
    against: str | int | Sequence[int] | None = None
    against_weight: float = 0.6
    normalisation: Normalisation = "minmax"
    normalise_at: Place = "image"
    absolute: bool = False
    percentiles: tuple[float, float] = (1.0, 99.0)
    masking: Masking = "soft"
    keep_percent: float = 50.0
    threshold: float = 0.5
    inverse: bool = False
    fill: Fill | Callable[..., Any] = "zero"
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
        object.__setattr__(self, "target", _plain_integers(self.target))
        object.__setattr__(self, "against", _against(self.against, self.gradient))
        object.__setattr__(self, "mean", _numbers(self.mean))
        object.__setattr__(self, "std", _numbers(self.std))
        for name, options in _CHOICES.items():
            _check_choice(name, getattr(self, name), options)
        if not callable(self.fill):
            _check_choice("fill", self.fill, get_args(Fill))
        if not callable(self.confidence):
            _check_choice("confidence", self.confidence, ("softmax", "sigmoid", "identity"))
        if isinstance(self.target, str):
            _check_choice("target", self.target, ("predicted", "label", "each"))
        _check_range("against_weight", self.against_weight, 0, 10)
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
        """Whether masked pixels become black. Black in the model's input space depends on `mean` and `std`."""
        return self.fill == "black" or (self.fill == "zero" and self.space == "pixels")

    def to_dict(self) -> dict[str, Any]:
        """The choices as values for a manifest; functions are recorded by their import path."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def resolve_protocol(protocol: str | Protocol) -> Protocol:
    """Look up a protocol by name; a `Protocol` is returned unchanged.

    Raises:
        ProtocolError: No protocol has that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ProtocolError(f"no protocol {protocol!r}; {choose_from(protocol, PROTOCOLS)}; or give a Protocol(...)")
    return PROTOCOLS[protocol]


def _plain_integers(target: Any) -> Any:
    """A target with integers of NumPy and torch converted to Python's; one class per image as a tuple."""
    if hasattr(target, "tolist") and not callable(target):  # an array or a tensor; one of a single number is that number
        values = target.tolist()
        return _plain_integers(values[0] if isinstance(values, list) and len(values) == 1 else values)
    if isinstance(target, list | tuple | range):
        return tuple(_plain_integers(one) for one in target)
    return target


def _numbers(given: Any) -> tuple[float, ...] | None:
    """The numbers of a list, an array or a tensor, so that a manifest can record them."""
    return None if given is None else tuple(map(float, given))


def _against(against: Any, gradient: Gradient) -> str | tuple[int, ...] | None:
    """What a score is compared with: classes as a tuple; they may be text, as on the command line: "7,8".

    Raises:
        ProtocolError: It is of another kind, or the gradient is not that of logits.
    """
    if against is not None and gradient == "confidence":
        raise ProtocolError("against= compares logits, and gradient='confidence' takes none; leave one of them out")
    plain = _plain_integers(against)
    if plain is None or (isinstance(plain, str) and SIMILAR.fullmatch(plain)):
        return plain
    words = plain.split(",") if isinstance(plain, str) else plain if isinstance(plain, tuple) else [plain]
    classes: tuple[Any, ...] = tuple(int(one) if isinstance(one, str) and one.strip().isdigit() else one for one in words)
    if not classes or len(set(classes)) < len(classes) or not all(type(one) is int and one >= 0 for one in classes):
        raise ProtocolError(
            f"against is 'similar', 'similar-N' for the N most similar classes, a class index or several; got {against!r}"
        )
    return classes


def _check_choice(name: str, value: object, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ProtocolError(f"{name}={value!r} is not a choice of a protocol; {choose_from(value, options)}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ProtocolError(f"{name} lies in [{low}, {high}], got {value}")


def plain(value: Any) -> Any:
    """A value as a manifest can hold it: a function by its import path, a tuple as a list, also inside a mapping."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if callable(value):
        return f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"
    return list(value) if isinstance(value, tuple) else value


# Sources and known faults of each are in presets.py.
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
