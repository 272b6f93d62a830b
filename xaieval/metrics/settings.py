"""Settings of metrics by name, as the command line and run files give them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from xaieval import metrics as catalogue
from xaieval.config.metric_names import own_name
from xaieval.config.setting_names import check_owners, full_setting
from xaieval.errors import MetricError
from xaieval.metrics.metric import Metric

__all__ = ["setting_names", "with_settings"]

WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a word", NoneType: "None"}


def with_settings(metrics: Any, settings: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """The metrics of `metrics=`, with the given settings instead of the defaults.

    A setting is a parameter of the function that makes the metric, such as `steps` of `xaieval.metrics.insertion`. Its name may
    have dashes instead of underscores. A single number is taken where several are expected.

    Args:
        metrics: See `resolve_metrics`.
        settings: By the name of a metric, its settings by their names.

    Raises:
        MetricError: There is no such metric among `metrics`, it has no such setting, or it cannot take the value.

    Example:
        >>> [road, _] = with_settings(["road", "average_drop"], {"road": {"fractions": (0.2, 0.5), "keep-curve": True}})
        >>> road.settings["fractions"], road.settings["keep_curve"]
        ([0.2, 0.5], True)
    """
    resolved = catalogue.resolve_metrics(metrics)
    names = [metric.name for metric in resolved]
    own = {own_name(name, names): given for name, given in settings.items()}
    check_owners(own, names, "metrics", MetricError)
    return [_set(metric, own.get(metric.name, {})) for metric in resolved]


def setting_names(metric: Metric) -> list[str]:
    """The names of a metric's settings; empty if it has none.

    Example:
        >>> setting_names(catalogue.METRICS["irof"]), setting_names(catalogue.METRICS["adcc"])
        (['segments', 'baseline', 'keep_curve', 'name'], [])
    """
    maker = _maker(metric)
    return [] if maker is None else list(inspect.signature(maker).parameters)


def _maker(metric: Metric) -> Callable[..., Metric] | None:
    """The function of the metric's name that makes it, if there is one: others are functions of maps, or of confidences."""
    maker = getattr(catalogue, metric.name, None) if catalogue.METRICS.get(metric.name) is metric else None
    return maker if callable(maker) and get_type_hints(maker).get("return") is Metric else None


def _set(metric: Metric, settings: Mapping[str, Any]) -> Metric:
    if not settings:
        return metric
    maker, known = _maker(metric), setting_names(metric)
    if maker is None:
        raise MetricError(f"metric '{metric.name}' has no settings, got {', '.join(settings)}")
    kinds = get_type_hints(maker)
    changes: dict[str, Any] = {}
    for given, value in settings.items():
        name = full_setting(given, known, f"metric '{metric.name}'", MetricError)
        fitting = [one for one in (value, [value]) if _fits(one, kinds[name])]
        if not fitting:
            raise MetricError(f"metric '{metric.name}': {name} is {' or '.join(_words(kinds[name]))}; got {value!r}")
        changes[name] = fitting[0]
    return maker(**changes)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that a parameter is annotated with."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    if origin is Callable:
        return callable(value)
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, int | float if kind is float else kind)


def _words(kind: Any) -> list[str]:
    """A kind in words, as far as the command line can give it."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return [word for part in parts for word in _words(part)]
    if origin is Literal:
        return [repr(part) for part in parts]
    if origin is Sequence:
        return [f"{'numbers' if parts[0] in (int, float) else 'words'} separated by commas"]
    return [WORDS[kind]] if kind in WORDS else []
