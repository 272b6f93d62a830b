"""How the package is built: what may import what, what is public, and rules that no linter knows."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import xaieval

ROOT = Path(xaieval.__file__).parent

# Data flows one way: a room imports only from rooms that stand before it here. docs/design.md says what each is for.
ROOMS = (
    "errors",
    "config",
    "data",
    "inference",
    "probe",
    "masking",
    "explainers",
    "metrics",
    "models",
    "results",
    "analysis",
    "report",
    "evaluation",
    "training",
    "testing",
    "cli",
)
MOST_ROOMS = 18  # with benchmarks/ and the package itself
MOST_FLOORS = 10

PUBLIC = [
    "CrossScores",
    "Groups",
    "Inference",
    "Protocol",
    "ScoreCallback",
    "Scores",
    "SearchResult",
    "Stop",
    "XaievalError",
    "check",
    "cross_score",
    "data",
    "explain",
    "explainers",
    "list_layers",
    "metrics",
    "models",
    "overlay",
    "report",
    "sanity_check",
    "save_maps",
    "score",
    "search",
    "show",
    "testing",
]


@cache
def _modules() -> dict[str, ast.Module]:
    """The source of every module as a tree, by its full name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


NAMES = sorted(_modules())


def _room(module: str) -> str:
    """The part of the package that a module belongs to: `xaieval.data.images` to `data`, `xaieval` itself to none.

    `python -m xaieval` is the command line.
    """
    room = module.removeprefix("xaieval").removeprefix(".").split(".")[0]
    return "cli" if room == "__main__" else room


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below a node, also inside functions, except code under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if not _type_checking(child):
            yield child
            yield from _running(child)
        else:
            for other in child.orelse:
                yield other
                yield from _running(other)


def _imports(tree: ast.AST, running: bool = False) -> set[str]:
    """Full names of the imports of a module; `from a import b` is `a.b` if that is a module, else `a`.

    Imports under TYPE_CHECKING count too, since readers follow them, unless only `running` code is wanted.
    """
    names = set()
    for node in _running(tree) if running else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in _modules() else str(node.module) for name in full}
    return names


def _own_imports(name: str) -> set[str]:
    return {other for other in _imports(_modules()[name]) if other == "xaieval" or other.startswith("xaieval.")}


def test_imports_in_functions_and_under_type_checking_are_found():
    tree = ast.parse(
        "import torch.nn\n"
        "if TYPE_CHECKING:\n    import pandas\nelse:\n    import numpy\n"
        "def late():\n    from xaieval.data import images, load_data\n"
    )
    assert _imports(tree, running=True) == {"torch.nn", "numpy", "xaieval.data.images", "xaieval.data"}
    assert _imports(tree) == _imports(tree, running=True) | {"pandas"}


def _room_imports(room: str) -> set[str]:
    """The other rooms that a room imports from."""
    names = {other for name in NAMES if _room(name) == room for other in _own_imports(name)}
    return {_room(other) for other in names} - {room}


def test_the_rooms_are_those_of_the_design():
    assert {_room(name) for name in NAMES} - {""} == set(ROOMS)
    assert len(ROOMS) + len(("benchmarks", "xaieval")) <= MOST_ROOMS


@pytest.mark.parametrize("name", NAMES)
def test_a_module_imports_only_from_its_own_room_and_the_rooms_above(name):
    room = _room(name)
    if not room:
        assert not {other for other in _imports(_modules()[name], running=True) if other.startswith("xaieval.")}, "all is lazy"
        return
    for other in sorted(_own_imports(name)):
        assert _room(other), f"{name} imports from the package itself, which loads lazily from all rooms"
        assert ROOMS.index(_room(other)) <= ROOMS.index(room), f"{name} imports {other}, whose room is below its own"


def test_the_house_is_low():
    floors: dict[str, int] = {}
    for room in ROOMS:
        floors[room] = 1 + max((floors[other] for other in _room_imports(room)), default=0)
    floors["xaieval"] = floors["cli"]  # the package itself hands on names of rooms below the command line
    assert max(floors.values()) + len(["benchmarks"]) <= MOST_FLOORS, floors


def test_no_modules_import_each_other_in_a_circle():
    # Within a room the rule above allows it. A package's __init__ that hands on names is imported with each of its modules.
    waiting = {name: _own_imports(name) - {name} for name in NAMES}
    while waiting:
        ready = [name for name, needs in waiting.items() if not needs & waiting.keys()]
        assert ready, f"a circle among {sorted(waiting)}"
        for name in ready:
            del waiting[name]


@pytest.mark.parametrize("name", [n for n in NAMES if _room(n) in ("errors", "config") or n.endswith("distributed.rank")])
def test_what_the_command_line_reads_first_does_without_torch_and_other_heavy_packages(name):
    first = {other.split(".")[0] for other in _imports(_modules()[name], running=True)}
    assert not first & {"torch", "torchvision", "timm", "numpy", "pandas", "scipy", "matplotlib"}


@pytest.mark.parametrize("module", [n for n in NAMES if _room(n) == "cli"])
def test_the_command_line_imports_heavy_packages_only_inside_its_commands(module):
    top = [node for node in _modules()[module].body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = _imports(ast.Module(list(top), []))
    own = {name for name in names if name.startswith("xaieval.")} - {"xaieval.evaluation.distributed.rank"}
    assert {_room(name) for name in own} <= {"errors", "config", "cli"}
    assert not {name.split(".")[0] for name in names} & {"torch", "timm", "numpy", "pandas", "matplotlib", "rich"}


@pytest.mark.parametrize("name", [n for n in NAMES if _room(n) in ("metrics", "results", "analysis")])
def test_metrics_results_and_analysis_never_see_a_model(name):
    assert not {_room(other) for other in _own_imports(name)} & {"inference", "probe", "explainers", "models", "evaluation"}
    seen = {node.id for node in ast.walk(_modules()[name]) if isinstance(node, ast.Name)}
    assert "nn" not in seen


COMMANDS = re.compile(r"(?<![\w-])--[a-z]|xaieval-bench [a-z]")
OF_COMMANDS = ("report.html.provenance", "training.fal")  # write commands, and belong to one


def _texts(node: ast.AST) -> Iterator[str]:
    """The texts of a module but its documentation, and those that `advice` chooses between."""
    for child in ast.iter_child_nodes(node):
        called = child.func if isinstance(child, ast.Call) else None
        documents = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        if documents or (isinstance(called, ast.Name) and called.id == "advice"):
            continue
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        yield from _texts(child)


@pytest.mark.parametrize("name", [n for n in NAMES if _room(n) not in ("cli", "config", "errors", "")])
def test_messages_recommend_commands_only_on_the_command_line(name):
    if name.removeprefix("xaieval.").startswith(OF_COMMANDS):
        return
    told = [text for text in _texts(_modules()[name]) if COMMANDS.search(text)]
    assert not told, "advice(python, command) of xaieval.errors says either"


TESTS = Path(__file__).parent
FREE = ("docs", "end_to_end", "release")  # tests of no single room


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_a_test_file_stands_in_the_room_of_the_module_that_it_names(path):
    *rooms, file = path.relative_to(TESTS).with_suffix("").parts
    if rooms and rooms[0] in FREE:
        return
    folder = ROOT.joinpath(*rooms)
    known = {module.stem for module in folder.glob("*.py")} | {folder.name, "rooms"}
    words = file.removeprefix("test_").split("_")
    assert {"_".join(words[:count]) for count in range(1, len(words) + 1)} & known, f"{path.name} names no module of {folder}"


# ---- what is public


def test_the_public_names_are_the_documented_ones_in_order():
    assert xaieval.__all__ == PUBLIC
    assert xaieval.__all__ == sorted(xaieval.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported_and_is_listed(name):
    value = getattr(xaieval, name)
    assert name in dir(xaieval)
    if hasattr(value, "__module__"):
        assert value.__module__.startswith("xaieval.")
        assert value.__doc__
    else:
        assert value is importlib.import_module(f"xaieval.{name}")


def test_completion_lists_what_there_is_without_loading_it():
    program = (
        "import sys, xaieval; listed = dir(xaieval); assert 'torch' not in sys.modules; "
        "names = {'data', 'report', 'training', 'callbacks', 'models', 'score'}; assert names <= {*listed}, listed; "
        "assert xaieval.callbacks.ScoreLayers is xaieval.training.ScoreLayers; assert xaieval.data.scenes"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_names_of_the_report_are_loaded_late_and_none_is_that_of_a_module_beside_them():
    program = """
import sys
from xaieval import report
assert report.models_table
assert not {"torch", "matplotlib"} & set(sys.modules)
import xaieval.report.html, xaieval.report.table_of_models
assert callable(report.models_table)
assert report.show
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    modules = {name.removeprefix("xaieval.report.") for name in NAMES if name.startswith("xaieval.report.")}
    assert not modules & {*importlib.import_module("xaieval.report").__all__}  # importing such a module would hide the name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'xaieval' has no attribute 'nonsense'$"):
        _ = xaieval.nonsense


def _defined(tree: ast.Module | ast.If) -> set[str]:
    """Names that a module defines or imports at its top."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
    return names


def _listed(tree: ast.Module) -> list[str]:
    """What `__all__` lists."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def _is_docstring_alone(tree: ast.Module) -> bool:
    """As the __init__ of a room that hands nothing on."""
    return len(tree.body) == 1 and ast.get_docstring(tree) is not None


def _section(name: str) -> int:
    """Constants first, then classes, then functions, as ruff sorts them."""
    return 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2


@pytest.mark.parametrize("name", [n for n in NAMES if n != "xaieval"])
def test_every_module_lists_its_public_names_in_order_and_has_them(name):
    tree = _modules()[name]
    if _is_docstring_alone(tree):
        return
    if name == "xaieval.metrics":  # its list is made of those of its modules
        module = importlib.import_module(name)
        listed, defined = list(module.__all__), set(dir(module)) | {*module.CLASSES}  # which are loaded late
        assert listed == sorted(set(listed))
    else:
        listed, defined = _listed(tree), _defined(tree)
        assert listed == sorted(listed, key=lambda word: (_section(word), word))
    assert listed, "public means in __all__"
    if "__getattr__" in defined:  # it hands on some names late, and names them for type checkers
        defined = defined | {leaf for node in tree.body if _type_checking(node) for leaf in _defined(node)}
    assert set(listed) <= defined
    assert not [word for word in listed if word.startswith("_")]


# ---- rules


@pytest.mark.parametrize("name", NAMES)
def test_every_module_says_what_it_is(name):
    assert ast.get_docstring(_modules()[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_package_neither_asserts_nor_prints_nor_exits_outside_the_command_line(name):
    tree = _modules()[name]
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)], "assert is for tests"
    if _room(name) != "cli":
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not called & {"print", "sys.exit", "exit", "quit", "os._exit"}
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Raise) and "SystemExit" in ast.unparse(node)]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


def test_no_module_is_called_helper_or_utils():
    assert not [
        name for name in NAMES if name.split(".")[-1].strip("_") in ("helper", "helpers", "util", "utils", "misc", "common")
    ]


def _exceptions() -> list[str]:
    return [node.name for node in _modules()["xaieval.errors"].body if isinstance(node, ast.ClassDef)]


def _raised() -> set[str]:
    """The names in all `raise X` and `raise X(...)`, and in what functions return to be raised."""
    names = set()
    for tree in _modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None:
                raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                names.add(ast.unparse(raised))
    return names


@pytest.mark.parametrize("name", [name for name in _exceptions() if name != "XaievalError"])
def test_every_exception_is_raised_somewhere(name):
    assert name in _raised()


def test_the_base_of_all_exceptions_is_never_raised_itself():
    # It would not say whether the call was wrong or the run failed.
    assert "XaievalError" not in _raised()


def test_exceptions_tell_wrong_use_from_failed_runs():
    errors = importlib.import_module("xaieval.errors")
    kinds = {name: getattr(errors, name) for name in _exceptions()}
    for name, kind in kinds.items():
        assert issubclass(kind, errors.XaievalError)
        assert kind.__doc__
        assert name in errors.__all__
        if not issubclass(kind, errors.RunError) and name != "XaievalError":
            assert issubclass(kind, errors.UsageError), name
            assert issubclass(kind, ValueError), "what a caller expects of a wrong argument"
    assert not issubclass(errors.RunError, errors.UsageError)
