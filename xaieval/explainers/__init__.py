"""Explainers by name: the CAM family, control maps, and anything that follows the `Explainer` protocol."""

from __future__ import annotations

from collections.abc import Sequence

from xaieval.errors import ExplainerError, choose_from
from xaieval.explainers.ablation import ABLATION
from xaieval.explainers.base import Context, Explainer, FunctionExplainer, MapFunction, needs_model
from xaieval.explainers.cam import CAMS
from xaieval.explainers.controls import CONTROLS
from xaieval.explainers.intrinsic import INTRINSIC
from xaieval.explainers.perturbation import PERTURBATIONS
from xaieval.explainers.precomputed import PREFIX, Precomputed, precomputed
from xaieval.explainers.rollout import ROLLOUT

__all__ = [
    "METHODS",
    "Context",
    "Explainer",
    "FunctionExplainer",
    "Method",
    "Precomputed",
    "check_black_box",
    "needs_model",
    "resolve_methods",
]

Method = str | Explainer | MapFunction

METHODS: dict[str, Explainer] = {
    explainer.name: explainer for explainer in (*CAMS, *PERTURBATIONS, *ABLATION, *ROLLOUT, *INTRINSIC, *CONTROLS)
}


def resolve_methods(methods: Method | Sequence[Method]) -> list[Explainer]:
    """Explainers by name, explainer objects as they are, and functions `(model, images, targets) -> maps` wrapped.

    Raises:
        ExplainerError: no method has that name, one comes twice, or there is none.

    Example:
        >>> def brightness(model, images, targets):
        ...     return images.mean(dim=1)
        >>> [method.name for method in resolve_methods(["gradcam", brightness])]
        ['gradcam', 'brightness']
    """
    if isinstance(methods, str) or callable(methods):
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
        if method not in METHODS:
            raise ExplainerError(f"no method {method!r}; {choose_from(method, METHODS)}; or give a function")
        return METHODS[method]
    if isinstance(method, Explainer) and not isinstance(method, type):
        return method
    if callable(method) and not isinstance(method, type):
        return FunctionExplainer(method, getattr(method, "__name__", type(method).__name__))
    raise ExplainerError(f"a method is a name, an Explainer or a function (model, images, targets), got {method!r}")
