"""Mutation tests: checks of formulas pass for the real modules and fail for modules with a wrong formula.

A test module writes `check_*` functions, which take the functions under test as the attributes of one object, and a table of
mutants. `mutation_tests` makes the two tests from them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Check = Callable[[Any], None]


def mutation_tests(
    namespace: Mapping[str, Any], modules: Sequence[str], mutants: Mapping[str, tuple[str, str]], *also: type[Exception]
) -> tuple[Callable[[Check], None], Callable[[str], None]]:
    """Return a test that every check passes for the modules, and a test that some check fails for every mutant.

    Args:
        namespace: `globals()` of the test module, which has the checks.
        modules: Full names of the modules under test, each after the modules that it imports.
        mutants: By description, a piece of code and its wrong replacement.
        also: Further exceptions by which a check may fail.
    """
    checks: list[Check] = [value for name, value in sorted(namespace.items()) if name.startswith("check_")]
    real = [import_module(module) for module in modules]

    @pytest.mark.parametrize("check", checks, ids=lambda check: check.__name__)
    def test_checks_pass(check: Check) -> None:
        check(SimpleNamespace(**{name: value for module in real for name, value in vars(module).items()}))
        check(_executed(real, [inspect.getsource(module) for module in real]))  # what mutants are made of

    @pytest.mark.parametrize("mutant", mutants)
    def test_mutants_are_noticed(mutant: str) -> None:
        assert _noticed(checks, _mutated(real, *mutants[mutant]), *also), f"no check notices: {mutant}"

    return test_checks_pass, test_mutants_are_noticed


def _mutated(modules: Sequence[ModuleType], old: str, new: str) -> SimpleNamespace:
    """The modules with a piece of code replaced; docstrings, which quote the formulas, are not changed."""
    sources = [inspect.getsource(module) for module in modules]
    mutants = [_replaced(source, old, new) for source in sources]
    assert mutants != sources, f"the source has no {old!r} any more; the mutant has to follow it"
    return _executed(modules, mutants)


def _replaced(source: str, old: str, new: str) -> str:
    parts = source.split('"""')
    return '"""'.join(part.replace(old, new) if index % 2 == 0 else part for index, part in enumerate(parts))


def _executed(modules: Sequence[ModuleType], sources: Sequence[str]) -> SimpleNamespace:
    """The names of the modules with these sources; a later module uses the functions of an earlier one that it imports."""
    names: dict[str, Any] = {}
    for module, source in zip(modules, sources, strict=True):
        own: dict[str, Any] = {"__name__": module.__name__}
        exec(compile(source, f"{module.__name__}.py", "exec", dont_inherit=True), own)
        imported = {name for name, value in own.items() if getattr(value, "__module__", module.__name__) != module.__name__}
        own.update({name: names[name] for name in imported & names.keys()})
        names.update(own)
    return SimpleNamespace(**names)


def _noticed(checks: Iterable[Check], wrong: SimpleNamespace, *also: type[Exception]) -> list[str]:
    """Names of the checks that fail."""
    failed = []
    for check in checks:
        try:
            check(wrong)
        except (AssertionError, pytest.fail.Exception, RuntimeError, *also):
            failed.append(check.__name__)
    return failed
