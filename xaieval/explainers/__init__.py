"""Explainers by name, our own and those of captum, pytorch-grad-cam and torch-cam, and whatever follows `Explainer`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from xaieval.errors import ExplainerError, choose_from
from xaieval.explainers.ablation import ABLATION
from xaieval.explainers.adapters.base import check_installed
from xaieval.explainers.adapters.captum import CAPTUM, Captum, CaptumObject
from xaieval.explainers.adapters.pytorch_grad_cam import GRAD_CAM, GradCamObject, PytorchGradCam
from xaieval.explainers.adapters.torch_cam import TORCH_CAM, TorchCam, TorchCamObject
from xaieval.explainers.base import Context, Explainer, FunctionExplainer, MapFunction, describe_method, needs_model
from xaieval.explainers.cam import CAMS
from xaieval.explainers.controls import CONTROLS
from xaieval.explainers.intrinsic import INTRINSIC
from xaieval.explainers.perturbation import PERTURBATIONS
from xaieval.explainers.precomputed import PREFIX, Precomputed, precomputed
from xaieval.explainers.rollout import ROLLOUT

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
    "TorchCam",
    "TorchCamObject",
    "check_black_box",
    "describe_method",
    "needs_model",
    "resolve_methods",
]

Method = str | Explainer | MapFunction

METHODS: dict[str, Explainer] = {
    explainer.name: explainer for explainer in (*CAMS, *PERTURBATIONS, *ABLATION, *ROLLOUT, *INTRINSIC, *CONTROLS)
}

LIBRARY_METHODS: dict[str, Explainer] = {**CAPTUM, **GRAD_CAM, **TORCH_CAM}

# By the word before the colon: the package to import, and how it is installed.
PACKAGES = {
    "captum": ("captum", "pip install captum"),
    "pytorch-grad-cam": ("pytorch_grad_cam", "pip install grad-cam"),
    "torch-cam": ("torchcam", "pip install 'xaieval[torchcam]'"),
}

# By the package that an object's class comes from, or one that it derives from: the class's name there, and what takes it.
OBJECTS: dict[str, tuple[set[str], Callable[[Any], Explainer]]] = {
    "captum": ({"Attribution"}, CaptumObject),
    "pytorch_grad_cam": ({"BaseCAM", "FinerCAM", "RefineCAM", "SESS"}, GradCamObject),
    "torchcam": ({"_CAM", "_CAMWrapper"}, TorchCamObject),
}


def resolve_methods(methods: Method | Sequence[Method]) -> list[Explainer]:
    """Explainers by name, explainer objects as they are, and functions `(model, images, targets) -> maps` wrapped.

    Attribution objects of captum, CAM objects of pytorch-grad-cam and extractors of torch-cam are taken as they are too; see
    `Captum`, `PytorchGradCam` and `TorchCam` for their methods with settings.

    Raises:
        ExplainerError: no method has that name, its library is missing, one comes twice, or there is none.

    Example:
        >>> def brightness(model, images, targets):
        ...     return images.mean(dim=1)
        >>> [method.name for method in resolve_methods(["gradcam", "captum:Saliency", brightness])]
        ['gradcam', 'captum:Saliency', 'brightness']
    """
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        methods = [methods]
    found = [_resolve(method) for method in methods]
    names = [explainer.name for explainer in found]
    if not names or len(set(names)) < len(names):
        raise ExplainerError(f"methods are one or more, each name once; got {names}")
    return found


def check_black_box(explainers: Sequence[Explainer]) -> None:
    """Refuse what cannot explain a model that is a function and nothing else.

    A function that is a method itself is taken at its word.

    Raises:
        ExplainerError: with the methods that can.
    """
    for explainer in explainers:
        if not isinstance(explainer, FunctionExplainer) and _looks_inside(explainer):
            able = ", ".join(name for name, known in METHODS.items() if not _looks_inside(known))
            raise ExplainerError(
                f"method '{explainer.name}' needs layers, gradients or the inside of the model, and the model is a function; "
                f"these need none: {able}, {PREFIX}DIR; so does a function (model, images, targets)"
            )


def _looks_inside(explainer: Explainer) -> bool:
    return explainer.needs_layer or explainer.needs_gradient or needs_model(explainer)


def _resolve(method: Method) -> Explainer:
    if isinstance(method, str) and method.startswith(PREFIX):
        return precomputed(method)
    if isinstance(method, str):
        return _named(method)
    if isinstance(method, Explainer) and not isinstance(method, type):
        return method
    for base in type.mro(type(method)):
        names, taken = OBJECTS.get(base.__module__.split(".")[0], (set(), None))
        if taken is not None and base.__name__ in names:
            return taken(method)
    if callable(method) and not isinstance(method, type):
        return FunctionExplainer(method, getattr(method, "__name__", type(method).__name__))
    raise ExplainerError(f"a method is a name, an Explainer or a function (model, images, targets), got {method!r}")


def _named(name: str) -> Explainer:
    if name in METHODS:
        return METHODS[name]
    library, _, kind = name.rpartition(":")
    if name in LIBRARY_METHODS:
        package, command = PACKAGES[library]
        check_installed(package, name, command)
        return LIBRARY_METHODS[name]
    if library in PACKAGES:
        known = [other.removeprefix(f"{library}:") for other in LIBRARY_METHODS if other.startswith(f"{library}:")]
        raise ExplainerError(f"{library} has no method {kind!r} for us; {choose_from(kind, known)}; or give its object")
    raise ExplainerError(
        f"no method {name!r}; {_elsewhere(name)}{choose_from(name, METHODS)}; 'xaieval-bench methods' lists those of other "
        "libraries too; or give a function"
    )


def _elsewhere(name: str) -> str:
    """A hint at what other libraries have under nearly that name, if we have nothing like it."""
    if difflib.get_close_matches(name, METHODS):
        return ""
    lower = {other.rpartition(":")[2].lower(): other for other in reversed(LIBRARY_METHODS)}
    near = difflib.get_close_matches(name.rpartition(":")[2].lower(), lower, n=2, cutoff=0.8)
    return f"{' or '.join(repr(lower[word]) for word in near)} is there; " if near else ""
