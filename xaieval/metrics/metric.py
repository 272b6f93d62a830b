"""What a metric is: a function of what it needs to know of each image, which the run then finds out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from xaieval.errors import MetricError, choose_from

__all__ = ["NEEDS", "NUMBERS", "Metric", "Values"]

Values = Tensor | tuple[Tensor, Tensor]

NEEDS = {
    "confidence": "Y, the confidence of the target on the original image, [N]",
    "masked_confidence": "O, the confidence on the image masked by its map, [N]",
    "inverse_confidence": "the confidence on the image masked by 1 - m, [N]; takes one more forward pass",
    "maps": "explanation maps in [0, 1], [N, H, W]; zeros where there was nothing to normalise",
    "attributions": "the maps as the method gave them, at the image's size, not normalised, [N, H, W]",
    "masked_maps": "maps of the masked images for the same targets, in [0, 1], [N, H, W]; takes the method once more",
    "masks": "the ground truth: where the object is by the data's masks or boxes, bool [N, H, W]",
    "images": "as the model sees them, [N, C, H, W]",
    "ask": "a function of blocks (images [G, C, H, W], of [G]) to the confidences, on all of them, of what is followed on the "
    "batch's image number `of`; in passes as full as can be",
    "explain": "a function of altered images [N, C, H, W], one for each of the batch's, to their maps [N, H, W] in [0, 1] for "
    "the same targets",
    "attribute": "likewise, to maps as the method gives them, at the image's size, not normalised",
    "draw": "a function of a shape and a name to random numbers [N, *shape], uniform in [0, 1), by the run's seed and the "
    "images' ids, whatever the batch",
    "protocol": "the run's `Protocol`",
}

NUMBERS = {"confidence", "masked_confidence", "inverse_confidence", "protocol"}  # small: known once a batch is done


class Known(Protocol):
    """What is known, by the names of `NEEDS`."""

    def __getitem__(self, name: str, /) -> Any:
        """It, found out if need be."""


@dataclass(frozen=True)
class Metric:
    """A metric for `score(metrics=...)`: one number an image, whose mean over the images is the result.

    Attributes:
        name: of the column in `rows` and `summary`.
        per_image: a function of what `needs` names, in that order, to values `[N]`, NaN where there is none; or to values and
            the curve that they were taken of, `[N, S]`, which the rows hold as `<name>_curve`.
        higher_is_better: its direction; None for a number that describes a map.
        interval: "mean" for means; "wilson" if the values are 0 and 100, so that the mean is a proportion in percent.
        label: short name with its unit, for tables and figures.
        needs: keys of `NEEDS`, which say what each is. Everything is on the device of the images, confidences in float64.
        settings: what else says which metric it is, for the manifest.
        passes: how many forward passes an image and map it takes beyond the masked one, in words.
        paper: where it comes from.

    Raises:
        MetricError: it needs something that there is not.

    Example:
        A metric of your own is a function with a declared need:

        >>> gain = Metric("gain", lambda y, o: 100 * (o - y).clamp(min=0), higher_is_better=True)
        >>> bright = Metric("bright", lambda maps: (maps > 0.5).flatten(1).double().mean(1), None, needs=("maps",))
        >>> gain.needs, bright.is_of_numbers
        (('confidence', 'masked_confidence'), False)
    """

    name: str
    per_image: Callable[..., Values]
    higher_is_better: bool | None
    interval: Literal["mean", "wilson"] = "mean"
    label: str = ""
    needs: Sequence[str] = ("confidence", "masked_confidence")
    settings: Mapping[str, Any] = field(default_factory=dict)
    passes: str = "0"
    paper: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.needs, str):
            raise MetricError(f"metric {self.name!r}: needs is a sequence of names, such as ({self.needs!r},); got a string")
        unknown = [need for need in self.needs if need not in NEEDS]
        if unknown:
            raise MetricError(
                f"metric {self.name!r} needs {unknown[0]!r}, which there is not; {choose_from(unknown[0], NEEDS)}"
            )

    @property
    def is_of_numbers(self) -> bool:
        """Whether it is a function of confidences alone."""
        return set(self.needs) <= NUMBERS

    def judge(self, evidence: Known) -> tuple[Tensor, Tensor | None]:
        """Values `[N]` and curves `[N, S]` or None, from all that is known.

        Raises:
            MetricError: its function does not give one value an image.
        """
        known = [evidence[need] for need in self.needs]
        found: Any = self.per_image(*known)
        values, curves = found if isinstance(found, tuple) else (found, None)
        count = len(evidence["confidence"])
        if not isinstance(values, Tensor) or values.shape != (count,):
            came = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise MetricError(f"metric {self.name!r} gave {came} for {count} images; values [{count}] are expected")
        return values.double(), curves

    def to_dict(self) -> dict[str, Any]:
        """What a table has to know of it, for the manifest."""
        return {
            "name": self.name,
            "higher_is_better": self.higher_is_better,
            "interval": self.interval,
            "label": self.label or self.name,
            **({"settings": dict(self.settings)} if self.settings else {}),
        }
