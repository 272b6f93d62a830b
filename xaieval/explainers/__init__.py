"""Explainers by name: the CAM family, control maps, and anything that follows the `Explainer` protocol."""

from __future__ import annotations

from collections.abc import Sequence

from xaieval.errors import ExplainerError, choose_from
from xaieval.explainers.base import Context, Explainer, FunctionExplainer, MapFunction, needs_model
from xaieval.explainers.cam import CAMS
from xaieval.explainers.controls import CONTROLS
from xaieval.explainers.intrinsic import INTRINSIC

__all__ = ["METHODS", "Context", "Explainer", "FunctionExplainer", "Method", "needs_model", "resolve_methods"]

Method = str | Explainer | MapFunction

METHODS: dict[str, Explainer] = {explainer.name: explainer for explainer in (*CAMS, *INTRINSIC, *CONTROLS)}


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


def _resolve(method: Method) -> Explainer:
    if isinstance(method, str):
        if method not in METHODS:
            raise ExplainerError(f"no method {method!r}; {choose_from(method, METHODS)}; or give a function")
        return METHODS[method]
    if isinstance(method, Explainer) and not isinstance(method, type):
        return method
    if callable(method) and not isinstance(method, type):
        return FunctionExplainer(method, getattr(method, "__name__", type(method).__name__))
    raise ExplainerError(f"a method is a name, an Explainer or a function (model, images, targets), got {method!r}")
