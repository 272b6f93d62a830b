"""Settings of methods by name, as the command line and run files give them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from xaieval.config.setting_names import check_owners, full_setting
from xaieval.errors import ExplainerError
from xaieval.explainers.adapters.base import LibraryMethod
from xaieval.explainers.base import COMMON_FIELDS, Explainer
from xaieval.explainers.resolve import Method, resolve_methods

__all__ = ["setting_names", "with_settings"]

NO_SETTINGS = {"method", "settings"}  # fields of the methods of libraries that are none themselves


def with_settings(methods: Method | Sequence[Method], settings: Mapping[str, Mapping[str, Any]]) -> list[Explainer]:
    """The explainers of `methods=`, with the given settings instead of the defaults.

    A setting is a field of the explainer, such as `n_masks` of `rise`, or a keyword of a library's class. Its name may have
    dashes instead of underscores, and omit a leading `n_`.

    Args:
        methods: See `resolve_methods`.
        settings: By the name of a method, its settings by their names.

    Raises:
        ExplainerError: There is no such method among `methods`, it has no such setting, or it cannot take the value.

    Example:
        >>> [rise, _] = with_settings(["rise", "occlusion"], {"rise": {"masks": 500, "grid": 5}})
        >>> rise.n_masks, rise.grid
        (500, 5)
        >>> [lime] = with_settings("captum:Lime", {"captum:Lime": {"segments": "slic-50", "n-samples": 200}})
        >>> lime.segments, lime.settings
        ('slic-50', {'n_samples': 200})
    """
    explainers = resolve_methods(methods)
    names = [explainer.name for explainer in explainers]
    check_owners(settings, names, "methods", ExplainerError)
    return [_set(explainer, settings.get(explainer.name, {})) for explainer in explainers]


def setting_names(explainer: Explainer) -> list[str]:
    """The names of a method's settings, in alphabetical order; empty if it has none.

    Example:
        >>> setting_names(resolve_methods("rise")[0])
        ['grid', 'n_masks', 'probability', 'wanted']
    """
    return sorted({*_own(explainer), *_of_library(explainer)})


def _own(explainer: Explainer) -> set[str]:
    if not is_dataclass(explainer):
        return set()
    return {field.name for field in fields(explainer) if field.init} - COMMON_FIELDS - NO_SETTINGS


def _of_library(explainer: Explainer) -> set[str]:
    """Keywords of the functions of the library that the method calls."""
    if not isinstance(explainer, LibraryMethod):
        return set()
    parameters = [one for call in explainer.calls() for one in inspect.signature(call).parameters.values()]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name for one in parameters if one.kind in kinds} - set(explainer.given)


def _set(explainer: Explainer, settings: Mapping[str, Any]) -> Explainer:
    if not settings:
        return explainer
    own, known = _own(explainer), setting_names(explainer)
    if not known:
        raise ExplainerError(f"method '{explainer.name}' has no settings, got {', '.join(settings)}")
    owner = f"method '{explainer.name}'"
    named = {full_setting(name, known, owner, ExplainerError): value for name, value in settings.items()}
    changes: Any = {name: value for name, value in named.items() if name in own}
    for_library = {name: value for name, value in named.items() if name not in own}
    if for_library:
        changes["settings"] = {**getattr(explainer, "settings", {}), **for_library}
    try:
        return replace(explainer, **changes)  # type: ignore[type-var]  # one with settings is a dataclass
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        raise ExplainerError(f"{owner} cannot take {given}: {error}") from error
