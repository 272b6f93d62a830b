"""Metrics of Quantus as metrics of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from xaieval.config.metric_names import PREFIX, QUANTUS
from xaieval.errors import MetricError
from xaieval.metrics.metric import Lent, Metric

__all__ = ["from_quantus", "is_of_quantus"]

CATEGORIES = {
    "Faithfulness": "faithfulness",
    "Robustness": "robustness",
    "Randomisation": "randomisation",
    "Complexity": "complexity",
    "Localisation": "localisation",
    "Axiomatic": "axioms",
}
REFUSED = {
    **dict.fromkeys(("Consistency", "Sufficiency"), "compares images with each other, and a run judges each alone"),
    "Focus": "judges mosaics, which xaieval.data.mosaics(layout='focus') makes",
    "SmoothMPRT": "explains by a method of Quantus, whatever function it is given",
}
SILENT = ("disable_warnings", "display_progressbar")  # settings that change no number
HEDSTROM = "Hedström et al. 2023, JMLR 24(34)"


class NoMapError(Exception):
    """A map is zero everywhere or not finite; Quantus would refuse it, and the whole run with it."""


def is_of_quantus(given: object) -> bool:
    """Whether an object is a metric of Quantus, or of a class derived from one; Quantus is not imported for it."""
    return any(kind.__module__ == "quantus.metrics.base" and kind.__name__ == "Metric" for kind in type(given).__mro__)


def from_quantus(metric: Any, name: str = "", **call: Any) -> Metric:
    """A metric of Quantus as a metric of a run, in its own unit and direction.

    `score(metrics=[...])` also takes the object itself. Each image is judged alone, after its own seed, by the map before
    normalisation, which most metrics of Quantus divide by its maximum, as their settings say; an image with a map of
    zeros or NaN has no value. It takes the time that Quantus takes.

    Args:
        metric: An object of a class of Quantus, or of a class of your own that derives from `quantus.metrics.base.Metric`. It
            gives one number for an image.
        name: Name of the column. Default: "quantus:" and the name of the class.
        **call: Keywords of its call, such as `softmax=True`, whose default differs between the classes.

    Raises:
        MetricError: The object is not a metric of Quantus, or it compares images with each other or makes its own explanations.
            In a run: it gives more than one number for an image, explains a model other than the scored one, or fails.

    Reference:
        Hedström et al., "Quantus: An Explainable AI Toolkit for Responsible Evaluation of Neural Network Explanations", JMLR
        24(34), 2023.

    Example:
        >>> import quantus
        >>> metric = from_quantus(quantus.Sparseness(disable_warnings=True))
        >>> metric.name, metric.higher_is_better
        ('quantus:Sparseness', True)
    """
    if not is_of_quantus(metric):
        raise MetricError(f"from_quantus takes an object of a class of Quantus, got {type(metric).__name__}")
    kind = type(metric).__name__
    if kind in REFUSED:
        raise MetricError(f"Quantus' {kind} {REFUSED[kind]}; '{QUANTUS[kind]}' of xaieval measures that")
    category = metric.evaluation_category.value
    located = category == "Localisation"

    def per_image(lend: Any, *masks: Tensor) -> Tensor:
        def judge(one: Lent, number: int) -> float:
            mask = masks[0][number].cpu().numpy()[None, None] if masks else None
            try:
                return _value(kind, _called(metric, kind, one, mask, call))
            except NoMapError:
                return float("nan")

        return lend(judge)

    return Metric(
        name or f"{PREFIX}{kind}",
        per_image,
        metric.score_direction.value == "higher",
        label=kind,
        needs=("lend", "masks") if located else ("lend",),
        settings={"library": "quantus", **_plain(metric), **call},
        passes="as Quantus needs",
        paper=HEDSTROM,
        family=CATEGORIES.get(category, ""),
    )


def _called(metric: Any, kind: str, one: Lent, mask: Any, call: dict[str, Any]) -> Any:
    """What the metric says of one image."""

    def explain_func(model: Any, inputs: Any, targets: Any, **_: Any) -> Any:
        if getattr(model, "model", model) is not one.model and model is not one.model:
            known = QUANTUS.get(kind)
            instead = f"; '{known}' does that in a run" if known else ""
            raise MetricError(f"Quantus' {kind} explains another model than the one that is scored{instead}")
        images = torch.as_tensor(np.asarray(inputs), dtype=one.image.dtype, device=one.image.device)
        images = images.reshape(-1, *one.image.shape[1:])
        classes = torch.as_tensor(np.asarray(targets), device=one.image.device).reshape(-1).long().expand(len(images))
        return _usable(one.explain(images, classes))

    return metric(
        model=one.model,
        x_batch=one.image.cpu().numpy(),
        y_batch=one.target.cpu().numpy(),
        a_batch=_usable(one.attribution),
        s_batch=mask,
        explain_func=explain_func,
        channel_first=True,
        device=str(one.image.device),
        batch_size=1,
        **call,
    )


def _usable(maps: Tensor) -> Any:
    """Maps as Quantus takes them, `[G, 1, H, W]`.

    Raises:
        NoMapError: One of them is zero everywhere or not finite.
    """
    if not maps.isfinite().all() or not maps.flatten(1).any(dim=1).all():
        raise NoMapError
    return maps[:, None].cpu().numpy()


def _value(kind: str, found: Any) -> float:
    """The one number of one image.

    Raises:
        MetricError: There are several, such as those of a curve.
    """
    numbers = np.asarray(list(found.values()) if isinstance(found, dict) else found)
    if numbers.size != 1 or numbers.dtype == object:
        came = f"a {type(found).__name__}" if numbers.dtype == object else f"{numbers.size} numbers"
        raise MetricError(
            f"Quantus' {kind} gave {came} for one image, and a metric of a run is one number; look for a setting such as "
            "return_auc_per_sample=True or return_aggregate=True"
        )
    return float(numbers.reshape(()))


def _plain(metric: Any) -> dict[str, Any]:
    """The settings of an object that are numbers or words."""
    return {
        name: value
        for name, value in vars(metric).items()
        if isinstance(value, str | int | float) and not name.startswith("_") and name not in SILENT
    }
