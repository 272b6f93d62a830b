"""Every named method: those of xaieval, and those of other libraries."""

from __future__ import annotations

from typing import NamedTuple

from xaieval.explainers.ablation import ABLATION
from xaieval.explainers.adapters import captum, pytorch_grad_cam, shap, torch_cam, zennit
from xaieval.explainers.attention_gradients import ATTENTION_GRADIENTS
from xaieval.explainers.attention_relevance import ATTENTION_RELEVANCE
from xaieval.explainers.base import Explainer, joins_layers, needs_model
from xaieval.explainers.cam import CAMS
from xaieval.explainers.controls import CONTROLS
from xaieval.explainers.dense_prompts import DENSE_PROMPTS
from xaieval.explainers.detectors import DETECTORS
from xaieval.explainers.extremal import EXTREMAL
from xaieval.explainers.grad_eclip import GRAD_ECLIP
from xaieval.explainers.gradient_paths import GRADIENT_PATHS
from xaieval.explainers.gscore_cam import GSCORE
from xaieval.explainers.intrinsic import INTRINSIC
from xaieval.explainers.layer_fusion import FUSIONS
from xaieval.explainers.opti_cam import OPTI
from xaieval.explainers.perturbation import PERTURBATIONS
from xaieval.explainers.recipro_cam import RECIPRO
from xaieval.explainers.rollout import ROLLOUT
from xaieval.explainers.sensitivity import SENSITIVITY
from xaieval.explainers.xrai import REGIONS

__all__ = ["LIBRARIES", "LIBRARY_METHODS", "METHODS", "Entry", "catalogue"]

# A method goes into the tuple of its module, which is here; nothing else lists the methods.
FAMILIES = (
    CAMS,
    FUSIONS,
    PERTURBATIONS,
    GSCORE,
    SENSITIVITY,
    EXTREMAL,
    ABLATION,
    RECIPRO,
    OPTI,
    DETECTORS,
    GRADIENT_PATHS,
    REGIONS,
    ROLLOUT,
    ATTENTION_GRADIENTS,
    ATTENTION_RELEVANCE,
    GRAD_ECLIP,
    DENSE_PROMPTS,
    INTRINSIC,
    CONTROLS,
)

METHODS: dict[str, Explainer] = {explainer.name: explainer for family in FAMILIES for explainer in family}

LIBRARIES = (captum.LIBRARY, pytorch_grad_cam.LIBRARY, torch_cam.LIBRARY, zennit.LIBRARY, shap.LIBRARY)

LIBRARY_METHODS: dict[str, Explainer] = {name: method for library in LIBRARIES for name, method in library.methods.items()}


class Entry(NamedTuple):
    """A row of the table of methods.

    Attributes:
        name: The name for `methods=`.
        needs: What the method needs: a layer or several, gradients, or the model itself, to run it or to look inside.
        passes: Forward passes per image; "shared" where all such methods and layers share one.
        paper: Reference of the method.
    """

    name: str
    needs: str
    passes: str
    paper: str


def catalogue() -> list[Entry]:
    """Every method by name: those of xaieval, then those of other libraries, installed or not.

    Example:
        >>> [entry for entry in catalogue() if entry.name == "captum:IntegratedGradients"][0]
        Entry(name='captum:IntegratedGradients', needs='gradients, model', passes='50',
              paper='Sundararajan et al. 2017, arXiv 1703.01365')
    """
    return [
        Entry(name, _needs(explainer), str(getattr(explainer, "passes", "")), str(getattr(explainer, "paper", "")))
        for name, explainer in {**METHODS, **LIBRARY_METHODS}.items()
    ]


def _needs(explainer: Explainer) -> str:
    needs = {
        "several layers" if joins_layers(explainer) else "layer": explainer.needs_layer,
        "gradients": explainer.needs_gradient or getattr(explainer, "takes_gradients", False),
        "model": needs_model(explainer),
    }
    return ", ".join(what for what, needed in needs.items() if needed) or "nothing"
