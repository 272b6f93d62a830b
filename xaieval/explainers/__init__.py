"""Explainers, which make maps: our own, adapters of other libraries, and the interface that both follow."""

from __future__ import annotations

from xaieval.explainers.adapters.captum import Captum, CaptumObject
from xaieval.explainers.adapters.pytorch_grad_cam import GradCamObject, PytorchGradCam
from xaieval.explainers.adapters.shap import Shap
from xaieval.explainers.adapters.torch_cam import TorchCam, TorchCamObject
from xaieval.explainers.adapters.zennit import Zennit
from xaieval.explainers.base import (
    Context,
    Explainer,
    FunctionExplainer,
    describe_method,
    joins_layers,
    needs_logits,
    needs_model,
)
from xaieval.explainers.catalogue import LIBRARY_METHODS, METHODS
from xaieval.explainers.precomputed import Precomputed
from xaieval.explainers.resolve import Method, check_black_box, resolve_methods
from xaieval.explainers.settings import setting_names, with_settings

__all__ = [
    "LIBRARY_METHODS",
    "METHODS",
    "Captum",
    "CaptumObject",
    "Context",
    "Explainer",
    "FunctionExplainer",
    "GradCamObject",
    "Method",
    "Precomputed",
    "PytorchGradCam",
    "Shap",
    "TorchCam",
    "TorchCamObject",
    "Zennit",
    "check_black_box",
    "describe_method",
    "joins_layers",
    "needs_logits",
    "needs_model",
    "resolve_methods",
    "setting_names",
    "with_settings",
]
