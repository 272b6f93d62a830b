"""Options that belong together, given to a function as one object, as keyword arguments, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from inspect import Parameter, signature
from typing import Any, TypeVar

from xaieval.errors import UsageError, choose_from

__all__ = ["with_keywords"]

Options = TypeVar("Options", bound=Any)


def with_keywords(function: Callable[..., Any], options: Options, keywords: Mapping[str, Any]) -> Options:
    """The options of a call: an object, and keyword arguments that override its fields.

    Args:
        function: The function that is called, for messages.
        options: A dataclass object.
        keywords: The function's further keyword arguments.

    Raises:
        UsageError: A keyword is neither a parameter of the function nor a field of the options.
    """
    names = [field.name for field in fields(options)]
    unknown = next((name for name in keywords if name not in names), None)
    if unknown is not None:
        own = [each.name for each in signature(function).parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
        raise UsageError(f"{function.__name__}() takes no {unknown!r}; {choose_from(unknown, [*own, *names])}")
    return replace(options, **keywords)
