"""Explainers from the values of `methods=`: names, explainers, objects of other libraries, functions."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from xaieval.config.spelling import plain_name
from xaieval.errors import ExplainerError, advice, choose_from
from xaieval.explainers.adapters.base import Library
from xaieval.explainers.base import Explainer, FunctionExplainer, MapFunction, needs_model
from xaieval.explainers.catalogue import LIBRARIES, LIBRARY_METHODS, METHODS
from xaieval.explainers.precomputed import PREFIX, precomputed

__all__ = ["Method", "check_black_box", "resolve_methods"]

Method = str | Explainer | MapFunction

WITHOUT_LAYERS = ("auto", "input")  # what layers= may name where there are none


def resolve_methods(methods: Method | Sequence[Method]) -> list[Explainer]:
    """The explainers that `methods=` names.

    Names are looked up, those of xaieval in any spelling, such as "GradCAM" or "grad_cam". Explainers are taken unchanged, and
    functions `(model, images, targets) -> maps` are wrapped, as are attribution objects of captum, CAM objects of
    pytorch-grad-cam and extractors of torch-cam. `Captum`, `PytorchGradCam` and `TorchCam` give their methods with settings.

    Raises:
        ExplainerError: There is no method of that name, its library is not installed, a name comes twice, or there is none.

    Example:
        >>> def brightness(model, images, targets):
        ...     return images.mean(dim=1)
        >>> [method.name for method in resolve_methods(["gradcam", "captum:Saliency", brightness])]
        ['gradcam', 'captum:Saliency', 'brightness']
    """
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        methods = [methods]
    explainers = [_resolve(method) for method in methods]
    names = [explainer.name for explainer in explainers]
    if not names or len(set(names)) < len(names):
        raise ExplainerError(f"methods are one or more, each name once; got {names}")
    return explainers


def check_black_box(explainers: Sequence[Explainer], addresses: Sequence[str], what: str) -> None:
    """Refuse explainers that need more than a call of the model, which is all that a function as a model offers, and layers.

    A method that is a function itself is assumed to need no more.

    Args:
        explainers: Of the run.
        addresses: The layers that the user names.
        what: What the model is, such as "a function".

    Raises:
        ExplainerError: With the methods that work.
    """
    inside = next((one.name for one in explainers if not isinstance(one, FunctionExplainer) and _looks_inside(one)), None)
    named = [address for address in addresses if address not in WITHOUT_LAYERS]
    if inside is None and not named:
        return
    able = ", ".join(name for name, known in {**METHODS, **LIBRARY_METHODS}.items() if not _looks_inside(known))
    if inside is None:
        asked = f"layers= names '{named[0]}'; leave it out"
    else:
        asked = f"method '{inside}' needs layers, gradients or the inside of the model"
    raise ExplainerError(
        f"the model is {what}, which has no layers to look into, and {asked}; these methods look at the input: {able}, "
        f"{PREFIX}DIR; so does a function (model, images, targets)"
    )


def _looks_inside(explainer: Explainer) -> bool:
    return explainer.needs_layer or explainer.needs_gradient or needs_model(explainer)


def _resolve(method: Method) -> Explainer:
    if isinstance(method, str):
        return precomputed(method) if method.startswith(PREFIX) else _by_name(method)
    if isinstance(method, Explainer) and not isinstance(method, type):
        return method
    library = _library_of(method)
    if library is not None:
        return library.adapt(method)
    if callable(method) and not isinstance(method, type):
        return FunctionExplainer(method, getattr(method, "__name__", type(method).__name__))
    raise ExplainerError(f"a method is a name, an Explainer or a function (model, images, targets), got {method!r}")


def _library_of(method: Any) -> Library | None:
    """The library whose explainer an object is."""
    for base in type.mro(type(method)):
        for library in LIBRARIES:
            if base.__module__.split(".")[0] == library.package and base.__name__ in library.classes:
                return library
    return None


OWN = {plain_name(name): explainer for name, explainer in METHODS.items()}


def _by_name(name: str) -> Explainer:
    own = METHODS.get(name) or OWN.get(plain_name(name))
    if own is not None:
        return own
    prefix, _, kind = name.rpartition(":")
    library = next((library for library in LIBRARIES if library.name == prefix), None)
    if library is None:
        raise ExplainerError(
            f"no method {name!r}; {_in_libraries(name)}{choose_from(name, METHODS)}; "
            + advice("xaieval.explainers.LIBRARY_METHODS has", "'xaieval-bench methods' lists")
            + " those of other libraries; or give a function"
        )
    if name not in library.methods:
        known = [method.removeprefix(f"{prefix}:") for method in library.methods]
        raise ExplainerError(f"no method {name!r}; {choose_from(kind, known)}; or give an object of {prefix}")
    if library.package not in sys.modules and importlib.util.find_spec(library.package) is None:
        raise ExplainerError(f"method '{name}' needs the package {library.package}, which is missing: {library.install}")
    return library.methods[name]


def _in_libraries(name: str) -> str:
    """Near matches among the methods of other libraries, if there are none among our own."""
    if difflib.get_close_matches(name, METHODS):
        return ""
    lower = {other.rpartition(":")[2].lower(): other for other in reversed(LIBRARY_METHODS)}
    near = difflib.get_close_matches(name.rpartition(":")[2].lower(), lower, n=2, cutoff=0.8)
    return f"did you mean {' or '.join(repr(lower[word]) for word in near)}? " if near else ""
