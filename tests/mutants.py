"""Wrong formulas on purpose: a check that no mistake can fail proves nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def executed(module: ModuleType, source: str) -> SimpleNamespace:
    """What a module would be with this source."""
    namespace: dict[str, Any] = {"__name__": module.__name__}
    exec(compile(source, f"{module.__name__}.py", "exec", dont_inherit=True), namespace)
    return SimpleNamespace(**namespace)


def mutated(module: ModuleType, old: str, new: str) -> SimpleNamespace:
    """The module with a piece of its code replaced; docstrings, which quote the formulas, stay as they are."""
    parts = inspect.getsource(module).split('"""')
    code = [part.replace(old, new) if index % 2 == 0 else part for index, part in enumerate(parts)]
    assert code != parts, f"the source has no {old!r} any more; the mutant has to follow it"
    return executed(module, '"""'.join(code))


def noticed(checks: Iterable[Callable[[Any], None]], wrong: SimpleNamespace, *also: type[Exception]) -> list[str]:
    """Names of the checks that fail for a wrong module, also by other errors that a mistake may lead to."""
    found = []
    for check in checks:
        try:
            check(wrong)
        except (AssertionError, pytest.fail.Exception, RuntimeError, *also):
            found.append(check.__name__)
    return found
