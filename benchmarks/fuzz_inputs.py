"""Fuzzing of user input: the command line must answer with a result or one clear line, and exit with status 0, 1 or 2.

    python benchmarks/fuzz_inputs.py toml manifests rows names --minutes 10 --out fuzz

Each target is a Hypothesis test; `tests/end_to_end/test_fuzz_inputs.py` runs some examples of each. Here Atheris (libFuzzer)
drives it by code coverage for the given number of minutes (`pip install atheris`). Each finding is written once to
OUT/TARGET.txt, with the traceback and the input. The exit status is 1 if there are findings.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ |= {"HF_HUB_OFFLINE": "1"}  # otherwise names of models that look like those of the Hub would be looked up there

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

if "--inside" in sys.argv:  # before the package is imported, so that Atheris can trace its lines
    import atheris

    with atheris.instrument_imports(include=["xaieval", "cyclopts", "tomllib"]):
        import tomllib  # noqa: F401, RUF100, I001  # instrumented

        import cyclopts  # noqa: F401  # instrumented

        import xaieval
        import xaieval.cli
        import xaieval.evaluation.distributed
        import xaieval.training.fal
        import xaieval.evaluation.distributed.launch
else:
    import xaieval
    import xaieval.cli
    import xaieval.evaluation.distributed
    import xaieval.evaluation.distributed.launch

from xaieval.config.fal_options import FalOptions
from xaieval.config.options import ModelOptions, ProtocolOptions, ScoreOptions
from xaieval.config.protocol import PROTOCOLS
from xaieval.data import Preprocessing, coco, truth
from xaieval.errors import RunError, XaievalError
from xaieval.explainers.precomputed import Precomputed
from xaieval.models import LoadedModel, loading, read_weights
from xaieval.probe.addresses import expand, trace
from xaieval.results.checkpoints import part_path
from xaieval.results.files import check_folder
from xaieval.results.part_files import write_part
from xaieval.results.run_folder import RunFolder

__all__ = ["TARGETS", "FindingError"]

HOME = Path(tempfile.mkdtemp(prefix="fuzz-"))
DAMAGED = re.compile(r"'.*/parts/.*' is damaged, and what it held is .*")  # a log message about a checkpoint
SECONDS = 20.0  # limit for each input, even on a busy machine


class FindingError(AssertionError):
    """An answer that is neither a result nor one clear line."""


# ---- the command line in this process, without slow parts and without network


def bench(*arguments: str) -> None:
    """Run the command line.

    Raises:
        FindingError: It took too long, crashed, or did not explain its failure in one clear line.
    """
    start = time.monotonic()
    status, out, err = _main(arguments)
    if time.monotonic() - start > SECONDS:
        raise FindingError(f"took more than {SECONDS} s: {arguments}")
    if "--debug shows where" in err:
        _main([*arguments, "--debug"])  # raises the error itself
    lines = [line for line in err.splitlines() if not DAMAGED.fullmatch(line)]
    clear = len(lines) == 1 and lines[0].startswith("xaieval-bench: ") and lines[0].isprintable()
    if status not in (0, 1, 2) or (status and not clear) or "Traceback" in out + err:
        raise FindingError(f"status {status} after {arguments}, stderr {err!r}")


def _main(arguments: Any) -> tuple[int, str, str]:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))  # strict, like those of a terminal
    status = 0
    with _without_the_rest(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            xaieval.cli.main(list(arguments))
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 99
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "replace"))
    return status, texts[0], texts[1]


def clear(call: Callable[[], Any]) -> Any:
    """The result of a function, or None if it raises one of the package's errors."""
    try:
        return call()
    except XaievalError as error:
        if not str(error):
            raise FindingError("an error without a message") from error
        return None


@contextlib.contextmanager
def _without_the_rest() -> Iterator[None]:
    """No network, no other processes, a tiny model instead of the built-in one, and no training."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RunError("not run under fuzzing")

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no network under fuzzing")

    def load(spec: str, *options: Any) -> LoadedModel:
        return tiny() if spec == "xaieval:fpn-scenes" and not any(options) else loading.load_model(spec, *options)

    with contextlib.ExitStack() as undo:
        for target, replacement in {
            "xaieval.evaluation.distributed.launch.launch": refuse,
            "xaieval.models.load_model": load,
            "xaieval.data.download.fetch": offline,
            "torch.hub.download_url_to_file": offline,
        }.items():
            undo.enter_context(mock.patch(target, replacement))
        yield


class Tiny(nn.Module):
    """A classifier of ten classes with the four levels that are the default layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fpn, self.head = nn.Conv2d(3, 4, 3, padding=1), Levels(), nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(sum(level.mean(dim=(2, 3)) for level in self.fpn(self.conv(images)).values()))


class Levels(nn.Module):
    """A mapping of tensors, like the output of a feature pyramid."""

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: features * scale for scale, name in enumerate(("p2", "p3", "p4", "p5"), start=1)}


@cache
def tiny() -> LoadedModel:
    """The tiny model with preprocessing to 8 x 8 pixels."""
    torch.manual_seed(0)
    return LoadedModel(Tiny().eval(), Preprocessing(8, 8))


def folder(name: str) -> Path:
    """An empty folder."""
    path = HOME / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


# ---- values in TOML and JSON

TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", " ", "\0", "$x^$", "../x", "/", "a,b", ",", "nan", "-1", "\x1b[2J", "é" * 200, "x" * 300, "\u202e"]),
)
NUMBER = st.one_of(
    st.integers(-3, 100),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**30, 0.5, 1e308, -0.0, float("nan"), float("inf")]),
    st.floats(),
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DEEP = st.builds(
    lambda depth, pair: pair[0] * depth + pair[1] * depth,
    st.sampled_from([1, 50, 3000, 100_000]),
    st.sampled_from([("[", "]"), ('{"a":', "}"), ("(", ")"), ("-", "1")]),
)


def dumps(value: Any) -> str:
    """A value as JSON."""
    return json.dumps(value)


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dumps(str(key))} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return str(value)
    return (
        "1979-05-27"
        if value is None
        else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        if isinstance(value, str)
        else dumps(value)
    )


WORDS = {
    "model": ["xaieval:fpn-scenes", "timm:nothing", "timm:", "mine:make", "hf:./nowhere", "os:abort", "scenes:x"],
    "data": ["scenes", "folder:nowhere", "ucmerced:nowhere", "scenes:make", "folder:"],
    "layers": ["fpn[*]", ["fpn[p5]", "conv"], "auto", "*", "nothing", "fpn[p5]#1"],
    "methods": [
        "gradcam",
        ["gradcam", "random"],
        "rise",
        "captum:Saliency",
        "captum:nothing",
        "precomputed:nowhere",
        "torchcam:x",
    ],
    "metrics": ["average_drop", "iou", "insertion", ["average_drop", "average_drop"]],
    "protocol": [*PROTOCOLS, "nothing"],
    "stop": ["best", "ranking", "sometimes"],
    "stop-args": [{"k": 2}, {"k": "()" * 3}, {"error": "0.05"}, {"rule": "x"}, {"by": "average_drop"}],
    "weights": ["nowhere.pth", ".", "\0"],
    "model-args": [{"trained": "False"}, {"colour": 3}],
    "precision": ["bf16", "float32", "half"],
    "task": ["classification", "detection", "other"],
    "target": ["label", "3", -1, "predicted", 10**30],
    "out": ["fuzz-out", "/dev/null/x", "\0", ""],
    "arms": ["selected", "nothing"],
}
HARMLESS = {"max_images": 2, "max-images": 2}
OPTIONS = sorted(
    {
        name.replace("_", "-")
        for kind in (ScoreOptions, ModelOptions, ProtocolOptions, FalOptions)
        for name in kind.__dataclass_fields__
    }
)
KEYS = (
    st.sampled_from([*OPTIONS, "no-progress", "no-fast", "debug", "no-", "max_images", "help", "score", "run_file", "run-file"])
    | TEXT
)
SETTINGS = st.dictionaries(KEYS, st.none(), max_size=5).flatmap(
    lambda keys: st.fixed_dictionaries({key: _value(key) for key in keys})
)


def _value(key: str) -> Any:
    fitting = st.sampled_from(WORDS[key]) if key in WORDS else NUMBER | st.booleans()
    return st.one_of(fitting, fitting, fitting, JSON)


RUN_FILES = st.one_of(
    SETTINGS.map(lambda settings: "\n".join(f"{dumps(key)} = {toml(value)}" for key, value in settings.items()).encode()),
    st.tuples(SETTINGS, DEEP).map(lambda pair: f"layers = {pair[1]}\n".encode()),
    st.binary(max_size=200),
    st.sampled_from([b"seed = " + b"1" * 5000, b"layers = '\xff'", b"a" * 5000 + b" = 1", b"\n[" * 999]),
    st.lists(
        st.sampled_from(
            [*OPTIONS, " = ", "\n", "[", "]", "[[", "'", '"""', "1", "true", "1979-05-27T07:32:00Z", ".", "{", "}", "#"]
        ),
        max_size=20,
    ).map(lambda words: "".join(words).encode()),
)


@given(RUN_FILES, st.sampled_from(["score", "fal"]))
def run_files(content: bytes, command: str) -> None:
    """TOML run files."""
    place = folder("toml")
    (place / "run.toml").write_bytes(content)

    def scored(model: Any, loader: Any, *, output_dir: Any, **_: Any) -> Any:
        check_folder(output_dir, {})
        raise RunError("not run under fuzzing")

    def prepared(_: Any) -> Any:
        raise RunError("not run under fuzzing")

    with (
        contextlib.chdir(place),
        mock.patch("xaieval.evaluation.distributed.score", scored),
        mock.patch("xaieval.training.fal.prepare", prepared),
    ):
        bench(command, "run.toml")


# ---- files of runs with changes


@cache
def run() -> Path:
    """A finished run of six images, two layers, a method and two controls."""
    path = HOME / "run"
    batch = {
        "image": torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        "id": [f"a/{i}.png" for i in range(6)],
    }
    metrics = ["average_drop", "increase_in_confidence", "coherency"]
    scores = xaieval.score(tiny().model, [batch], ["conv", "fpn[p5]"], metrics=metrics, controls=True, progress=False)
    kept = scores.rows[scores.rows["method"].isin(["gradcam", "random"])]  # all controls would take too long
    xaieval.Scores(kept.reset_index(drop=True), scores.manifest | {"controls": ["random"], "run": {"seed": 0}}).save(path)
    return path


def look(path: Path) -> None:
    """Use a run in every way, from the command line and from Python."""
    bench("compare", str(path), str(run()), "--out", str(HOME / "table.csv"))
    scores = clear(lambda: xaieval.Scores.load(path))
    if scores is None:
        return
    names = [metric["name"] for metric in scores.manifest.get("metrics", [])]
    for use in (
        scores.summary,
        scores.warnings,
        scores.controls_table,
        scores.select_layers,
        scores.win_percentages,
        lambda: scores.compare(scores, across_protocols=True),
        lambda: scores.rank(names[0] if names else "none", "both"),
        lambda: scores.save(HOME / "again"),
    ):
        clear(use)
    clear(lambda: _go_on(path))


def _go_on(path: Path) -> None:
    """Read the checkpoints of a run as if it were resumed."""
    with RunFolder.joined(path, {"run": {"seed": 0}, "versions": {}}, True, "", None) as run:
        for number in run.before:
            run.rows(number)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a JSON value, as tuples of keys."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [place for key, part in inner for place in _places(part, (*path, key))]


@cache
def _manifest() -> tuple[str, list[tuple[Any, ...]]]:
    text = (run() / "manifest.json").read_text()
    return text, _places(json.loads(text))


def _changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """The content with another value at a path, or without that entry if the value is `...`."""
    if not place:
        return value
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return content


CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.just(...) | JSON), min_size=1, max_size=3)
LONG = st.sampled_from([b'{"seed": ' + b"1" * 5000 + b"}", b'{"seed": 1e999}', b"\xff", b'{"a": "\\ud800"}'])
MANIFESTS = st.one_of(CHANGES, CHANGES, st.binary(max_size=100), DEEP.map(str.encode), LONG)


def _manifest_of(change: Any) -> bytes:
    text, places = _manifest()
    if isinstance(change, bytes):
        return change
    content = json.loads(text)
    for number, value in change:
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change removed that path
            content = _changed(content, places[number % len(places)], value)
    return dumps(content if content is not ... else None).encode()


@given(MANIFESTS, st.booleans())
def manifests(change: Any, unfinished: bool) -> None:
    """Manifests of finished and unfinished runs."""
    place = folder("manifest")
    if unfinished:
        (place / "parts").mkdir()
        rows = pq.read_table(run() / "rows.parquet").to_pandas()
        write_part(part_path(place, 0), rows, {"check": "6:00000000", "ids": ["a"], "failed": []})
        (place / "parts" / "manifest.json").write_bytes(_manifest_of(change))
    else:
        shutil.copy(run() / "rows.parquet", place)
        (place / "manifest.json").write_bytes(_manifest_of(change))
    look(place)


COLUMN = st.one_of(
    st.lists(
        st.none() | NUMBER.filter(lambda value: abs(value) < 2**63 if value == value else True).map(float),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.none() | TEXT.filter(lambda text: text.isprintable() or text.isascii()), min_size=1, max_size=6),
    st.lists(st.none() | st.booleans(), min_size=1, max_size=6),
    st.lists(st.binary(max_size=3), min_size=1, max_size=6),
    st.lists(st.lists(st.floats(), max_size=2), min_size=1, max_size=6),
    st.just([None]),
)
ROW_CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("drop"), st.integers(0, 30)),
        st.tuples(st.just("name"), st.integers(0, 30), TEXT | st.sampled_from(["layer", "status", "image_id"])),
        st.tuples(st.just("put"), st.integers(0, 30), COLUMN),
        st.tuples(
            st.just("cast"),
            st.integers(0, 30),
            st.sampled_from(["string", "float16", "int8", "bool", "dict", "date32[day]", "binary", "large_string"]),
        ),
        st.tuples(st.just("rows"), st.lists(st.integers(0, 41), max_size=10)),
        st.tuples(st.just("cell"), st.integers(0, 30), st.integers(0, 41), NUMBER | TEXT | st.none()),
        st.tuples(st.just("metadata"), st.binary(max_size=20)),
    ),
    max_size=3,
)
EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4)
CUT = st.none() | st.integers(0, 10**6)


def _table(changes: Any) -> pa.Table:
    table = pq.read_table(run() / "rows.parquet")
    for change in changes:
        with contextlib.suppress(pa.ArrowException, OverflowError, TypeError, ValueError, UnicodeEncodeError, IndexError):
            table = _altered(table, *change)
    return table


def _altered(table: pa.Table, what: str, *how: Any) -> pa.Table:
    if what == "rows":
        return table.take(how[0])
    if what == "metadata":
        return table.replace_schema_metadata({b"pandas": how[0]})
    number = how[0] % table.num_columns
    name = table.column_names[number]
    if what == "drop":
        return table.remove_column(number)
    if what == "name":
        return table.rename_columns([how[1] if index == number else old for index, old in enumerate(table.column_names)])
    if what == "put":
        return table.set_column(number, name, pa.array([how[1][index % len(how[1])] for index in range(len(table))]))
    if what == "cell":
        values = table.column(number).to_pylist()
        values[how[1] % len(values)] = how[2]
        return table.set_column(number, name, pa.array(values))
    column = table.column(number)
    return table.set_column(number, name, column.dictionary_encode() if how[1] == "dict" else column.cast(how[1], safe=False))


@given(ROW_CHANGES, EDITS, CUT, st.booleans())
def rows(changes: Any, edits: Any, cut: int | None, unfinished: bool) -> None:
    """Files of rows with other columns, other types, missing values, truncated, or with changed bytes."""
    place = folder("rows")
    (place / "parts").mkdir()
    path = part_path(place, 0) if unfinished else place / "rows.parquet"
    table = _table(changes)
    with contextlib.suppress(pa.ArrowException, ValueError, TypeError):  # a table that the file cannot hold
        if unfinished:
            write_part(path, table.to_pandas(), {"check": "6:00000000", "ids": ["a"], "failed": [["b", None, "gone"]]})
        else:
            pq.write_table(table, path)
    content = bytearray(path.read_bytes() if path.exists() else b"")
    for position, value in edits if content else ():
        content[position % len(content)] = value
    if cut is not None and content:
        content = content[: cut % len(content)]
    path.write_bytes(content)
    shutil.copy(run() / "manifest.json", place / "parts" if unfinished else place)
    look(place)


# ---- names


NAME = st.one_of(
    st.binary(min_size=1, max_size=60),
    TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"$\\frac$", b"a$b$", b"<script>alert(1)</script>", b"\xff\xfe", b"\n", b"-", b"\x1b]0;x\x07", "👩‍👩‍👧".encode()]
    ),
)


@given(st.lists(st.tuples(NAME, NAME), min_size=1, max_size=3))
def names(files: list[tuple[bytes, bytes]]) -> None:
    """Names of classes (folders) and images, from the disk to the table, figure and files of a run."""
    place = folder("names")
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 50)).save(pixels, "PNG")
    for kind, name in files:
        with contextlib.suppress(OSError, ValueError):  # not a valid name on this file system
            inside, own = (os.fsdecode(part.replace(b"/", b"_")) for part in (kind, name))
            path = place / "data" / inside / f"{own}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pixels.getvalue())
    with contextlib.chdir(place):
        bench("score", "--out", "run", "--layers", "fpn[p5]", "--data", "folder:data", "--max-images", "2", "--no-progress")
        bench("compare", "run", "run")


@given(st.lists(TEXT | NAME.map(os.fsdecode), min_size=2, max_size=2))
def ids(given_ids: list[str]) -> None:
    """Image ids from a loader, in the rows of a run and as names of map files."""
    place = folder("ids")
    batch = {"image": torch.zeros(2, 3, 8, 8), "id": given_ids}
    context = SimpleNamespace(ids=given_ids, images=batch["image"], protocol=xaieval.Protocol())
    clear(lambda: Precomputed(place)(context))
    scores = clear(lambda: xaieval.score(tiny().model, [batch], ["conv"], output_dir=place / "run", progress=False))
    if scores is not None:
        xaieval.Scores.load(place / "run").summary()
        bench("compare", str(place / "run"), str(place / "run"))


@cache
def _traced() -> Any:
    return trace(tiny().model, torch.zeros(2, 3, 8, 8))


ADDRESS = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            ["fpn", "conv", "*", "?", "[", "]", "[*]", "[p5]", "#", "#*", "#0", "#" + "9" * 5000, ".", "a", "²", "٣"]
        ),
        max_size=40,
    ).map("".join),
)


@given(ADDRESS)
def addresses(text: str) -> None:
    """Layer addresses and patterns."""
    start = time.monotonic()
    clear(lambda: expand([text], _traced()))
    if time.monotonic() - start > SECONDS:
        raise FindingError(f"took more than {SECONDS} s: {text!r}")


CHOICES = st.lists(st.sampled_from(OPTIONS).flatmap(lambda name: st.tuples(st.just(name), _value(name))), max_size=4)


@given(CHOICES, st.sampled_from(["score", "fal", "layers", "compare", "methods"]))
def options(choices: list[tuple[str, Any]], command: str) -> None:
    """Options on the command line."""

    def scored(model: Any, loader: Any, *, output_dir: Any, **_: Any) -> Any:
        raise RunError("not run under fuzzing")

    words = [
        f"--{name}={value if not isinstance(value, list) else ','.join(map(str, value))}"[:400]
        for name, value in choices
        if value is not None and not isinstance(value, int | float)
    ]
    words += [f"--{name}={dumps(value)}" for name, value in choices if isinstance(value, int | float)]
    with (
        contextlib.chdir(folder("options")),
        mock.patch("xaieval.evaluation.distributed.score", scored),
        mock.patch("xaieval.training.fal.prepare", lambda _: (_ for _ in ()).throw(RunError("not run under fuzzing"))),
    ):
        bench(command, *words)


# ---- other files


@given(st.sampled_from([".npy", ".png"]), EDITS, CUT, st.binary(max_size=60), st.booleans())
def maps(ending: str, edits: Any, cut: int | None, header: bytes, made_up: bool) -> None:
    """Precomputed maps."""
    place, buffer = folder("maps"), io.BytesIO()
    if ending == ".npy":
        np.save(buffer, np.ones((4, 4), dtype=np.float32))
    else:
        Image.new("L", (4, 4)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    if made_up and ending == ".npy":
        content[10 : 10 + len(header)] = header
    for position, value in edits:
        content[position % len(content)] = value
    (place / f"a{ending}").write_bytes(content if cut is None else content[: cut % len(content)])
    clear(lambda: Precomputed(place)(SimpleNamespace(ids=["a"], images=torch.zeros(1, 3, 4, 4), protocol=xaieval.Protocol())))


COCO = {
    "images": [{"id": 1, "file_name": "a/1.png"}, {"id": 2, "file_name": "2.png"}],
    "annotations": [{"image_id": 1, "bbox": [1, 1, 3, 3], "iscrowd": 0}, {"image_id": 2, "bbox": [0, 0, 2, 2]}],
}


@given(st.one_of(CHANGES, st.binary(max_size=80), DEEP.map(str.encode)))
def boxes(change: Any) -> None:
    """Boxes around objects in COCO format."""
    content, place = json.loads(json.dumps(COCO)), folder("boxes")
    places = _places(COCO)
    for number, value in change if isinstance(change, list) else ():
        with contextlib.suppress(KeyError, IndexError, TypeError):
            content = _changed(content, places[number % len(places)], value)
    (place / "boxes.json").write_bytes(
        change if isinstance(change, bytes) else dumps(None if content is ... else content).encode()
    )
    boxes_of_images = clear(lambda: coco.coco_boxes(place / "boxes.json", ["a/1.png", "b/2.png"]))
    for one in boxes_of_images or ():
        Preprocessing(8, 8).boxes(one, (8, 8))


@given(JSON, JSON)
def ground_truth(masks: Any, around: Any) -> None:
    """Masks and boxes in batches of a loader."""
    clear(lambda: truth.read_masks(masks, 2, (4, 4)))
    clear(lambda: truth.read_boxes(around, 2))


@cache
def _weights() -> dict[str, bytes]:
    from safetensors.torch import save

    content = {"weight": torch.rand(3, 2), "bias": torch.rand(3)}
    zipped, old = io.BytesIO(), io.BytesIO()
    torch.save(content, zipped)
    torch.save(content, old, _use_new_zipfile_serialization=False)
    return {".pth": zipped.getvalue(), ".pt": old.getvalue(), ".safetensors": save(content)}


@given(st.sampled_from([".pth", ".pt", ".safetensors"]), EDITS, CUT)
def weights(ending: str, edits: Any, cut: int | None) -> None:
    """Weights files."""
    content = bytearray(_weights()[ending])
    for position, value in edits:
        content[position % len(content)] = value
    path = folder("weights") / f"a{ending}"
    path.write_bytes(content if cut is None else content[: cut % len(content)])
    clear(lambda: read_weights(path))


TARGETS: dict[str, Callable[..., None]] = {
    "toml": run_files,
    "manifests": manifests,
    "rows": rows,
    "names": names,
    "ids": ids,
    "addresses": addresses,
    "options": options,
    "maps": maps,
    "boxes": boxes,
    "truth": ground_truth,
    "weights": weights,
}


# ---- fuzzing by Atheris


def _inside(name: str, minutes: float, out: Path) -> None:
    """Fuzz a target in this process, which then exits."""
    test, findings, counts = TARGETS[name], {}, {"executions": 0, "inputs": 0}
    start = time.monotonic()

    def one(data: bytes) -> None:
        counts["executions"] += 1
        try:
            counts["inputs"] += test.hypothesis.fuzz_one_input(data) is not None  # type: ignore[attr-defined]  # Hypothesis adds it
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            message = str(error)[:80] if isinstance(error, FindingError) else ""
            key = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} {message}"
            if key not in findings:
                findings[key] = "".join(traceback.format_exception(error))
                text = "\n\n".join(f"{head}\n{body}" for head, body in findings.items())
                (out / f"{name}.txt").write_text(text, "utf-8", "backslashreplace")
        if counts["executions"] % 20 == 0:
            counts["findings"], counts["seconds"] = len(findings), round(time.monotonic() - start)
            (out / f"{name}.json").write_text(json.dumps(counts))

    corpus = out / f"{name}-corpus"  # initial inputs, long enough for Hypothesis to build values from
    corpus.mkdir(exist_ok=True)
    for number, size in enumerate((50, 200, 1000, 4000) * 5):
        (corpus / str(number)).write_bytes(np.random.default_rng(number).bytes(size))
    limits = [f"-max_total_time={60 * minutes:.0f}", "-max_len=4096", "-len_control=0", "-rss_limit_mb=4096", "-timeout=120"]
    atheris.Setup([name, *limits, f"-artifact_prefix={out}/", str(corpus)], one)
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Fuzz targets one after the other, each in a new process; returns 1 if there are findings."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes for each target")
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given_options = parser.parse_args(arguments)
    given_options.out.mkdir(parents=True, exist_ok=True)
    if given_options.inside:
        warnings.simplefilter("error")
        _inside(given_options.targets[0], given_options.minutes, given_options.out)
        return 0
    findings = 0
    for name in given_options.targets:
        command = [
            sys.executable,
            __file__,
            name,
            "--inside",
            "--minutes",
            str(given_options.minutes),
            "--out",
            str(given_options.out),
        ]
        status = subprocess.run(command, capture_output=True, check=False).returncode  # noqa: S603  # this script
        counts = json.loads((given_options.out / f"{name}.json").read_text())
        findings += counts["findings"] + (status != 0)
        print(f"{name}: {counts}, libFuzzer ended with {status}")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
