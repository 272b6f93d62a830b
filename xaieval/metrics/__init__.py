"""Metrics of explanations: pure functions, torchmetrics classes, and `METRICS`, the metrics by name for `score(metrics=...)`.

Each family is one module that declares its functions, `Metric` objects and classes, and lists what is public in its `__all__`.
What a module lists can be imported from here, too.
"""

# ruff: noqa: F403  # a star import takes what the module lists in its own `__all__`

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from xaieval.config.metric_names import own_name
from xaieval.errors import MetricError, choose_from
from xaieval.metrics.adcc import *
from xaieval.metrics.arcc import *
from xaieval.metrics.axioms import *
from xaieval.metrics.box_accuracy import *
from xaieval.metrics.confidence import *
from xaieval.metrics.continuity import *
from xaieval.metrics.curves import *
from xaieval.metrics.description import *
from xaieval.metrics.drop_and_increase import *
from xaieval.metrics.effective_complexity import *
from xaieval.metrics.faithfulness_correlation import *
from xaieval.metrics.information_curves import *
from xaieval.metrics.lipschitz import *
from xaieval.metrics.localisation import *
from xaieval.metrics.map_agreement import *
from xaieval.metrics.metric import FAMILIES as FAMILIES
from xaieval.metrics.metric import NEEDS as NEEDS
from xaieval.metrics.metric import Metric as Metric
from xaieval.metrics.monotonicity import *
from xaieval.metrics.object_share import *
from xaieval.metrics.parameter_randomisation import *
from xaieval.metrics.perturbation import *
from xaieval.metrics.pixel_classification import *
from xaieval.metrics.pixel_ranking import *
from xaieval.metrics.pointing_game import *
from xaieval.metrics.quantus_adapter import from_quantus as from_quantus
from xaieval.metrics.quantus_adapter import is_of_quantus
from xaieval.metrics.random_logit import *
from xaieval.metrics.relative_stability import *
from xaieval.metrics.removed_regions import *
from xaieval.metrics.road import *
from xaieval.metrics.robustness import *
from xaieval.metrics.saco import *
from xaieval.metrics.segments import *
from xaieval.metrics.similarity import *
from xaieval.metrics.sufficiency import *
from xaieval.metrics.symmetric_relevance_gain import *
from xaieval.metrics.win_percentage import *

if TYPE_CHECKING:
    from xaieval.metrics.torchmetrics_classes import *

# Modules with metrics of a run, in the order of the table of metrics; and modules with public functions only.
MODULES = (
    "drop_and_increase",
    "confidence",
    "adcc",
    "description",
    "curves",
    "road",
    "faithfulness_correlation",
    "monotonicity",
    "saco",
    "effective_complexity",
    "arcc",
    "removed_regions",
    "symmetric_relevance_gain",
    "information_curves",
    "pointing_game",
    "localisation",
    "object_share",
    "pixel_ranking",
    "pixel_classification",
    "box_accuracy",
    "robustness",
    "lipschitz",
    "continuity",
    "relative_stability",
    "random_logit",
    "parameter_randomisation",
    "map_agreement",
    "axioms",
)
OTHERS = ("perturbation", "segments", "similarity", "sufficiency", "win_percentage")
CLASSES = (  # of torchmetrics, which takes long to import: loaded when one is asked for
    "ADCC",
    "AreaAboveHalf",
    "AverageDrop",
    "AverageGain",
    "AveragePrecision",
    "BestF1",
    "BestMaskIoU",
    "CenterX",
    "CenterY",
    "Coherency",
    "Complexity",
    "ConfidenceRatio",
    "DropInDeletion",
    "EnergyPointingGame",
    "Entropy",
    "F1",
    "IncreaseInConfidence",
    "MaskIoU",
    "MeanIoU",
    "MeanOverImages",
    "MeanOverSet",
    "PixelAccuracy",
    "PointingGame",
    "RelevanceMassAccuracy",
    "RelevanceRankAccuracy",
    "RocAUC",
    "Sparseness",
    "TwoClassAveragePrecision",
    "WinPercentage",
)
OF_SETS = ("sufficiency", "consistency")  # of the maps of many images, so no columns of a run

METRICS: dict[str, Metric] = {
    metric.name: metric for module in MODULES for metric in import_module(f"{__name__}.{module}").METRICS
}

if not TYPE_CHECKING:  # type checkers take the public names from the imports above
    __all__ = ["FAMILIES", "METRICS", "NEEDS", "Metric", "from_quantus", "resolve_metrics", *CLASSES]
    __all__ += [name for module in (*MODULES, *OTHERS) for name in import_module(f"{__name__}.{module}").__all__]
    __all__.sort()


def __getattr__(name: str) -> Any:
    if name not in CLASSES:
        raise AttributeError(f"module 'xaieval.metrics' has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.torchmetrics_classes"), name)
    globals()[name] = value
    return value


def resolve_metrics(metrics: Any) -> list[Metric]:
    """Return the metrics of one or more names and objects.

    Names can be in any spelling, such as "AverageDrop", or those of `xaieval.config.metric_names`, such as "AD". A `Metric` is
    returned unchanged, and a metric of Quantus is adapted.

    Raises:
        MetricError: A name is unknown or is given twice, or no metric is given.
    """
    if isinstance(metrics, str) or not isinstance(metrics, Iterable):
        metrics = [metrics]
    resolved = [_resolved(metric) for metric in metrics]
    names = [metric.name for metric in resolved]
    if not names or len(set(names)) < len(names):
        raise MetricError(f"metrics are one or more, each once; got {names}")
    return resolved


def _resolved(metric: Any) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if is_of_quantus(metric):
        return from_quantus(metric)
    name = own_name(metric, (*METRICS, *OF_SETS)) if isinstance(metric, str) else metric
    if name in OF_SETS:
        raise MetricError(
            f"{metric!r} compares the maps of many images, so it is no column of a run: "
            f"call xaieval.metrics.{name}(maps, predicted) with the maps of all images"
        )
    if name not in METRICS:
        raise MetricError(f"no metric {metric!r}; {choose_from(metric, METRICS)}; or give a Metric(...)")
    return METRICS[name]
