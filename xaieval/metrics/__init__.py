"""Metrics of explanations: pure functions, torchmetrics classes, and `METRICS`, the metrics by name for `score(metrics=...)`.

Each family is one module that declares its functions, `Metric` objects and classes, and lists what is public in its `__all__`.
What a module lists can be imported from here, too.
"""

# ruff: noqa: F403  # a star import takes what the module lists in its own `__all__`

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from xaieval.errors import MetricError, choose_from
from xaieval.metrics.adcc import *
from xaieval.metrics.box_accuracy import *
from xaieval.metrics.confidence import *
from xaieval.metrics.curves import *
from xaieval.metrics.description import *
from xaieval.metrics.drop_and_increase import *
from xaieval.metrics.localisation import *
from xaieval.metrics.metric import FAMILIES as FAMILIES
from xaieval.metrics.metric import NEEDS as NEEDS
from xaieval.metrics.metric import Metric as Metric
from xaieval.metrics.object_share import *
from xaieval.metrics.pixel_classification import *
from xaieval.metrics.pixel_ranking import *
from xaieval.metrics.pointing_game import *
from xaieval.metrics.road import *
from xaieval.metrics.robustness import *
from xaieval.metrics.similarity import *
from xaieval.metrics.torchmetrics_classes import MeanOverImages as MeanOverImages
from xaieval.metrics.win_percentage import *

# Modules with metrics of a run, in the order of the table of metrics; and modules with public functions only.
MODULES = (
    "drop_and_increase",
    "confidence",
    "adcc",
    "description",
    "curves",
    "road",
    "pointing_game",
    "localisation",
    "object_share",
    "pixel_ranking",
    "pixel_classification",
    "box_accuracy",
    "robustness",
)
OTHERS = ("similarity", "win_percentage")

METRICS: dict[str, Metric] = {
    metric.name: metric for module in MODULES for metric in import_module(f"{__name__}.{module}").METRICS
}

if not TYPE_CHECKING:  # type checkers take the public names from the imports above
    __all__ = ["FAMILIES", "METRICS", "NEEDS", "MeanOverImages", "Metric", "resolve_metrics"]
    __all__ += [name for module in (*MODULES, *OTHERS) for name in import_module(f"{__name__}.{module}").__all__]
    __all__.sort()


def resolve_metrics(metrics: str | Metric | Sequence[str | Metric]) -> list[Metric]:
    """Return the metrics of these names; objects are returned unchanged.

    Raises:
        MetricError: A name is unknown or is given twice, or no metric is given.
    """
    if isinstance(metrics, str | Metric):
        metrics = [metrics]
    resolved = []
    for metric in metrics:
        if not isinstance(metric, Metric):
            if metric not in METRICS:
                raise MetricError(f"no metric {metric!r}; {choose_from(metric, METRICS)}; or give a Metric(...)")
            metric = METRICS[metric]
        resolved.append(metric)
    names = [metric.name for metric in resolved]
    if not names or len(set(names)) < len(names):
        raise MetricError(f"metrics are one or more, each once; got {names}")
    return resolved
