"""What a metric is: a function of some of the known facts about each image, with a name, a unit and a direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from xaieval.errors import MetricError, choose_from

__all__ = ["FAMILIES", "NEEDS", "Inspection", "Lent", "Metric"]

Values = Tensor | tuple[Tensor, Tensor]

FAMILIES = {
    "faithfulness": "do the pixels that the map names matter to the model",
    "robustness": "does the map stay the same when the image hardly changes",
    "localisation": "does the map lie on the object",
    "complexity": "is the map small, or concentrated",
    "randomisation": "does the map depend on the model and on the class",
    "axioms": "does the map have a property that its authors require",
    "agreement": "do two methods give the same map",
}

NEEDS = {
    "confidence": "Y, the confidence of the target on the original image, [N]",
    "masked_confidence": "O, the confidence of the target on the image masked by its map, [N]",
    "inverse_confidence": "D, the confidence of the target on the image masked by 1 - map, [N]; costs one more forward pass",
    "maps": "explanation maps in [0, 1], [N, H, W]; a map without anything to normalise is all zeros",
    "attributions": "the method's maps before normalisation, at the size of the image, [N, H, W]",
    "masked_maps": "maps of the masked images for the same targets, in [0, 1], [N, H, W]; runs the method once more",
    "masks": "ground truth: which pixels belong to objects of the class of the target, by the masks or boxes of the data, "
    "bool [N, H, W]; of any class where the data has no classes",
    "boxes": "ground truth: for each image the boxes around its objects, [k, 4], (x1, y1, x2, y2): those of the data, else one "
    "around its mask",
    "images": "the input of the model, [N, C, H, W]",
    "ask": "a function that takes blocks (images [G, C, H, W], indices [G] into the batch) and returns the confidences of the "
    "batch's targets on all these images; it fills forward passes as far as memory allows",
    "ask_hits": "the same as ask, but it returns 1 where the target is the class that the model predicts, and 0 elsewhere",
    "explain": "a function that takes changed images [N, C, H, W], one for each image of the batch, and returns their maps "
    "[N, H, W] in [0, 1] for the same targets",
    "attribute": "the same as explain, but the maps are not normalised; they have the size of the image",
    "inspect": "a function that takes changed images as explain does, and returns an `Inspection`: their maps, with what the "
    "model says of them, from the same passes",
    "inspect_maps": "the same as inspect, for a metric that reads only the maps: a method that makes its passes itself then "
    "needs no other one",
    "inspect_layer": "the same as inspect, and the `Inspection` has the output of the method's layer",
    "targets": "the explained classes, [N]; 0 for an image of a classifier that has none",
    "logits": "the model's logits on the original images, [N, K]; only of classifiers",
    "explain_class": "a function that takes classes [N] and returns the maps of the original images for these classes, "
    "[N, H, W] in [0, 1], NaN where a map has NaN; only of classifiers",
    "explain_by": "a function that takes a method and returns its maps of the original images for the same targets at the same "
    "layer, not normalised, [N, H, W] of the size of the image",
    "randomise": "a function (order, modules, look) that sets parameters of the model to random values step by step, calls "
    "look(inspect) in each step, and returns a list of what it gave; inspect is that of the random model",
    "lend": "a function that lends the model to another library: it takes a function (lent, number) -> float, calls it for "
    "each image after its own seed, with a `Lent` and its number in the batch, and returns the values, [N]; of classifiers",
    "attribute_shifted": "a function that takes a number and returns the maps, not normalised, of the images plus this number, "
    "of the model that takes it away first, so that its outputs are the same",
    "draw": "a function that takes a shape and a name and returns random numbers [N, *shape], uniform in [0, 1), which depend "
    "on the run's seed and the image ids and not on the batch",
    "segment": "a function that takes a segmentation, as `segments=` of the curves, and returns the number of each pixel's "
    "segment, [N, H, W]; it makes each segmentation once for a batch",
    "protocol": "the run's `Protocol`",
}

# A metric of these inputs can judge any map in the place of the method's own; one of the first line sees altered images, one of
# the second line the map or what it masks.
MASKED = {"masked_confidence", "inverse_confidence", "ask", "ask_hits"}
OF_MAPS = {"maps", "masked_confidence", "inverse_confidence"}
REPLACEABLE = {"confidence", "maps", "images", "draw", "segment", "protocol", *MASKED}

NUMBERS = {"confidence", "masked_confidence", "inverse_confidence", "protocol"}  # small, and known after each batch


class Inputs(Protocol):
    """The inputs of metrics by the names of `NEEDS`, computed when they are read."""

    def __getitem__(self, name: str, /) -> Any:
        """Return the input of this name."""


class Inspection(Protocol):
    """What the method and the model say about images, computed when it is read."""

    @property
    def attributions(self) -> Tensor:
        """The maps before normalisation, at the size of the images, `[N, H, W]`."""

    @property
    def maps(self) -> Tensor:
        """The maps in [0, 1], `[N, H, W]`; NaN where a map has NaN or inf."""

    @property
    def predicted(self) -> Tensor:
        """The predicted classes, `[N]`; -1 for none.

        Raises:
            MetricError: The metric needs neither "inspect" nor "inspect_layer", which keep them.
        """

    @property
    def logits(self) -> Tensor:
        """The logits, `[N, K]`.

        Raises:
            MetricError: The model is not a classifier, or the logits were not kept, as for `predicted`.
        """

    @property
    def activation(self) -> Tensor | None:
        """The output of the method's layer, `[N, C, h, w]`; None for a method without a layer, and where `inspect` looked."""


class Lent(Protocol):
    """One image with what another library needs."""

    @property
    def model(self) -> Any:
        """A torch module from images `[G, C, H, W]` to logits `[G, K]`."""

    @property
    def image(self) -> Tensor:
        """The image, `[1, C, H, W]`."""

    @property
    def target(self) -> Tensor:
        """The explained class, `[1]`."""

    @property
    def attribution(self) -> Tensor:
        """The map before normalisation, at the size of the image, `[1, H, W]`."""

    @property
    def explain(self) -> Callable[[Tensor, Tensor], Tensor]:
        """A function from altered images `[G, C, H, W]` and classes `[G]` to maps like this one, `[G, H, W]`."""


@dataclass(frozen=True)
class Metric:
    """A metric for `score(metrics=...)`: one number for each image; the result of a run is the mean over images.

    Attributes:
        name: Name of its column in `rows` and `summary`.
        per_image: Function of the inputs in `needs`, in that order. It returns values `[N]`, NaN for an image without a value;
            or values and the curves they were computed from, `[N, S]`, which the rows keep as `<name>_curve`.
        higher_is_better: Its direction; None for a number that only describes a map.
        interval: "mean" for means; "wilson" if the values are 0 and 100, so that the mean is a proportion in percent.
        label: Short name with its unit, for tables and figures.
        needs: Names of its inputs, keys of `NEEDS`. Inputs are on the device of the images; confidences are float64.
        settings: Further settings that define the metric, for the manifest.
        passes: Forward passes for each image and map beyond the masked one, in words.
        paper: The source.
        family: The question that it answers about a map, a key of `FAMILIES`; empty for none of these.
        bounds: Smallest and largest value for one image, which early stopping and `xaieval.search` need; None if it has none.
        altered_by: How images are altered before a pass, such as "noise", if they are the same for every map. They then pass
            through the model once for all maps of a batch, and metrics with the same word share them. Default: images depend on
            the map.
        rounding_decides: Whether it compares confidences that are nearly equal, so that it is not fit for passes of fewer
            digits than float32, such as those of `precision="bf16"`.
        divides: Whether it divides by the confidence Y. Its values are NaN where Y is not positive, because a negative
            denominator would reverse it. Default: whether it needs "confidence".

    Raises:
        MetricError: It needs an input that does not exist, its family is not one of `FAMILIES`, or its bounds are reversed.

    Example:
        A metric of your own is a function with declared needs:

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
    family: str = ""
    altered_by: str = ""
    rounding_decides: bool = False
    divides: bool | None = None
    bounds: tuple[float, float] | None = (0.0, 100.0)

    def __post_init__(self) -> None:
        if isinstance(self.needs, str):
            raise MetricError(f"metric {self.name!r}: needs is a sequence of names, such as ({self.needs!r},); got a string")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise MetricError(f"metric {self.name!r}: bounds are a smallest and a largest value, got {self.bounds}")
        if self.family and self.family not in FAMILIES:
            raise MetricError(f"metric {self.name!r}: no family {self.family!r}; {choose_from(self.family, FAMILIES)}")
        unknown = [need for need in self.needs if need not in NEEDS]
        if unknown:
            raise MetricError(
                f"metric {self.name!r} needs {unknown[0]!r}, which is not an input; {choose_from(unknown[0], NEEDS)}"
            )

    @property
    def is_of_numbers(self) -> bool:
        """Whether it is a function of confidences alone."""
        return set(self.needs) <= NUMBERS

    @property
    def is_quotient(self) -> bool:
        """Whether it has no value where the confidence is not positive."""
        return "confidence" in self.needs if self.divides is None else self.divides

    @property
    def has_matched_controls(self) -> bool:
        """Whether it judges maps by confidences on altered images, so that it can judge matched controls too."""
        needs = set(self.needs)
        return bool(MASKED & needs) and bool(OF_MAPS & needs) and needs <= REPLACEABLE

    def judge(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """Return values `[N]`, and curves `[N, S]` or None.

        Raises:
            MetricError: Its function does not return one value for each image.
        """
        result: Any = self.per_image(*(inputs[need] for need in self.needs))
        values, curves = result if isinstance(result, tuple) else (result, None)
        count = len(inputs["confidence"])
        if not isinstance(values, Tensor) or values.shape != (count,):
            came = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise MetricError(f"metric {self.name!r} gave {came} for {count} images; values [{count}] are expected")
        return values.double(), curves

    def to_dict(self) -> dict[str, Any]:
        """Return what tables of a saved run show about it, for the manifest."""
        return {
            "name": self.name,
            "higher_is_better": self.higher_is_better,
            "interval": self.interval,
            "label": self.label or self.name,
            "needs": list(self.needs),
            **({} if self.bounds is None else {"bounds": list(self.bounds)}),
            **({"settings": dict(self.settings)} if self.settings else {}),
        }
