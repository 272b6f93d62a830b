"""Measure how good the visual explanations of an image model are, layer by layer.

Everything here is loaded when it is first used: `import xaieval` imports neither torch nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from xaieval import data, explainers, metrics, models, report, testing
    from xaieval.config.groups import Groups
    from xaieval.config.protocol import Protocol
    from xaieval.errors import XaievalError
    from xaieval.evaluation.check import check
    from xaieval.evaluation.cross_result import CrossScores
    from xaieval.evaluation.cross_score import cross_score
    from xaieval.evaluation.early_stopping import Stop
    from xaieval.evaluation.explain import explain
    from xaieval.evaluation.loop import score
    from xaieval.evaluation.sanity_check import sanity_check
    from xaieval.evaluation.save_maps import save_maps
    from xaieval.evaluation.score_callback import ScoreCallback
    from xaieval.evaluation.scores import Scores
    from xaieval.evaluation.search import SearchResult, search
    from xaieval.inference.options import Inference
    from xaieval.probe.hooks import list_layers
    from xaieval.report.figures.maps import show
    from xaieval.report.figures.overlays import overlay

_HOMES = {
    "CrossScores": "xaieval.evaluation.cross_result",
    "Groups": "xaieval.config.groups",
    "Inference": "xaieval.inference.options",
    "Protocol": "xaieval.config.protocol",
    "ScoreCallback": "xaieval.evaluation.score_callback",
    "Scores": "xaieval.evaluation.scores",
    "SearchResult": "xaieval.evaluation.search",
    "Stop": "xaieval.evaluation.early_stopping",
    "XaievalError": "xaieval.errors",
    "check": "xaieval.evaluation.check",
    "cross_score": "xaieval.evaluation.cross_score",
    "explain": "xaieval.evaluation.explain",
    "list_layers": "xaieval.probe.hooks",
    "overlay": "xaieval.report.figures.overlays",
    "sanity_check": "xaieval.evaluation.sanity_check",
    "save_maps": "xaieval.evaluation.save_maps",
    "score": "xaieval.evaluation.loop",
    "search": "xaieval.evaluation.search",
    "show": "xaieval.report.figures.maps",
}
_MODULES = ("data", "explainers", "metrics", "models", "report", "testing", "training")
_OTHERS = {"callbacks": "xaieval.training.callbacks"}  # like training it needs an extra, and is listed all the same

__all__ = [
    "CrossScores",
    "Groups",
    "Inference",
    "Protocol",
    "ScoreCallback",
    "Scores",
    "SearchResult",
    "Stop",
    "XaievalError",
    "check",
    "cross_score",
    "data",
    "explain",
    "explainers",
    "list_layers",
    "metrics",
    "models",
    "overlay",
    "report",
    "sanity_check",
    "save_maps",
    "score",
    "search",
    "show",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES or name in _OTHERS:
        value = importlib.import_module(_OTHERS.get(name, f"xaieval.{name}"))
    else:
        raise AttributeError(f"module 'xaieval' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, *_OTHERS, "__version__"})
