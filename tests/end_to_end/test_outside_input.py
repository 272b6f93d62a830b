"""Nothing that is loaded runs code: weights, checkpoints, maps, rows; and what user code is imported from where."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import xaieval
from xaieval.cli import main
from xaieval.cli.loading import names_code
from xaieval.data import Preprocessing, load_data
from xaieval.errors import DataError, ModelError, OutputError, WeightsError
from xaieval.explainers.precomputed import Precomputed
from xaieval.models import ABNClassifier, FPNClassifier, load_model, load_weights, read_weights
from xaieval.models.loading import MODEL_SOURCES
from xaieval.models.weights import SAFE, UNSAFE, tensors_only
from xaieval.training.fit import fit

ROOT = Path(xaieval.__file__).parents[1]


class Plants:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "ran")


@pytest.fixture
def marker(tmp_path):
    """A file that must not come to be."""
    path = tmp_path / "planted"
    yield path
    assert not path.exists(), "code in a file was run"


def _saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


KINDS_OF_FILE = {
    "torch.save": lambda marker: _saved({"weight": torch.ones(1), "evil": Plants(marker)}),
    "torch.save, the old format": lambda marker: _old({"evil": Plants(marker)}),
    "pickle": lambda marker: pickle.dumps({"evil": Plants(marker)}),
    "a whole module": lambda marker: _saved(nn.Sequential(nn.Linear(2, 2))),
}


def _old(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def test_the_planted_code_runs_where_nobody_looks(tmp_path):
    content = KINDS_OF_FILE["pickle"](tmp_path / "ran")
    pickle.loads(content)
    assert (tmp_path / "ran").read_text() == "ran"
    torch.load(io.BytesIO(KINDS_OF_FILE["torch.save"](tmp_path / "too")), weights_only=False)
    assert (tmp_path / "too").exists()


def _fit(path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    data = DataLoader(TensorDataset(torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])), batch_size=2)
    path.rename(path.with_name("last.ckpt"))
    fit(model, data, data, num_classes=2, epochs=1, log_dir=path.parent, checkpoint_dir=path.parent, progress=False)


def _hf(path: Path) -> object:
    transformers = pytest.importorskip("transformers")
    folder = path.parent / "hf"
    transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8).save_pretrained(
        folder
    )
    return load_model(f"hf:{folder}", weights=path)


def _openclip(path: Path, weights: Path | None) -> object:
    """A tiny model of OpenCLIP with weights from a file, or from its folder."""
    pytest.importorskip("open_clip")
    vision = {"image_size": 8, "patch_size": 4, "width": 8, "layers": 1, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    folder = path.parent / "openclip"
    folder.mkdir()
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if weights is None:
        path.rename(folder / "open_clip_pytorch_model.bin")
    return load_model(f"openclip:{folder}", weights=weights, prompts=["a cat"])


READERS = {
    "read_weights": read_weights,
    "load_weights": lambda path: load_weights(nn.Linear(1, 1), path),
    "timm:": lambda path: load_model("timm:test_resnet", weights=path),
    "torchvision:": lambda path: load_model("torchvision:squeezenet1_1", weights=path),
    "xaieval:": lambda path: load_model("xaieval:fpn-scenes", weights=path),
    "hf:": _hf,
    "openclip:": lambda path: _openclip(path, path),
    "backbone of FPNClassifier": lambda path: FPNClassifier("test_resnet", 2, channels=4, pretrained=path),
    "backbone of ABNClassifier": lambda path: ABNClassifier("test_resnet", 2, pretrained=path),
    "checkpoint of a training": _fit,
}


@pytest.mark.parametrize(
    ("reader", "kind", "ending"),
    [
        *(("read_weights", kind, ending) for kind in KINDS_OF_FILE for ending in (".pth", ".safetensors")),
        *((reader, "torch.save", ".pth") for reader in READERS if reader != "read_weights"),
    ],
)
def test_weights_that_hold_code_are_refused_wherever_weights_are_read(tmp_path, marker, reader, kind, ending):
    path = tmp_path / f"weights{ending}"
    path.write_bytes(KINDS_OF_FILE[kind](marker))
    with pytest.raises(
        WeightsError, match=r"^cannot read '[a-z]+\.[a-z]+': it is damaged, or holds more than tensors, "
    ) as caught:
        READERS[reader](path)
    assert "\n" not in str(caught.value)


def _bomb() -> bytes:
    """A .pth of a kilobyte whose one tensor would take 64 MB."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_saved({"weight": torch.zeros(2**24)}))) as plain, zipfile.ZipFile(packed, "w") as archive:
        for entry in plain.infolist():
            archive.writestr(entry.filename, plain.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    return packed.getvalue()


TORN = {
    "a header as long as can be declared": (".safetensors", lambda: struct.pack("<Q", 2**64 - 1) + b"{}"),
    "a header longer than the file": (".safetensors", lambda: struct.pack("<Q", 90_000_000) + b"{}"),
    "a header that is no JSON": (".safetensors", lambda: struct.pack("<Q", 8) + b"[" * 8),
    "a tensor larger than the file": (
        ".safetensors",
        lambda: _header({"dtype": "F32", "shape": [10**6], "data_offsets": [0, 4 * 10**6]}),
    ),
    "half of a .pth": (".pth", lambda: _saved({"weight": torch.rand(1000)})[:2000]),
    "a compressed .pth": (".pth", _bomb),
}


def _header(tensor) -> bytes:
    text = json.dumps({"weight": tensor}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize("case", TORN)
def test_torn_files_and_bombs_are_refused_without_filling_memory(tmp_path, case):
    ending, content = TORN[case]
    path = tmp_path / f"weights{ending}"
    path.write_bytes(content())
    before = _peak(reset=True)
    with pytest.raises(WeightsError, match=r"^cannot read 'weights\."):
        read_weights(path)
    assert _peak() - before < 32 << 20


def _peak(reset: bool = False) -> int:
    """The most memory that this process has had since the last reset, in bytes; 0 where there is no Linux to tell."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10


def test_the_bomb_would_fill_memory(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(_bomb())
    assert path.stat().st_size < 1 << 20
    before = _peak(reset=True)
    assert torch.load(path, weights_only=True)["weight"].nbytes == 64 << 20
    assert not before or _peak() - before > 60 << 20


@pytest.mark.parametrize("content", [torch.ones(2).to_sparse(), torch.ones(2, device="meta")])
def test_tensors_without_their_numbers_are_no_weights(tmp_path, content):
    torch.save({"weight": content}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"holds no state dict|cannot read 'weights\.pth'"):
        read_weights(tmp_path / "weights.pth")


# ---- what other libraries read for us


def test_a_planted_file_in_torchvision_s_cache_is_refused(tmp_path, marker, monkeypatch):
    # torchvision checks a download, not what lies in its cache, and asks torch.load for any object.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.url
    cached = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[-1]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(KINDS_OF_FILE["torch.save"](marker))
    with pytest.raises(
        WeightsError, match=r"^torchvision:squeezenet1_1 takes weights from a file that is damaged, or holds more"
    ):
        load_model("torchvision:squeezenet1_1", pretrained=True)


@pytest.fixture
def careless_timm(monkeypatch):
    """timm as it was: load_checkpoint asked torch.load for any object."""

    def load(path, map_location="cpu", weights_only=False, mmap=False):
        return torch.load(path, map_location=map_location, weights_only=False)

    monkeypatch.setattr(timm.models._helpers, "_torch_load", load, raising=False)  # old releases have no such function


CHECKPOINT = {
    "timm:": lambda path: load_model("timm:test_resnet", model_args={"checkpoint_path": str(path)}),
    "backbone": lambda path: FPNClassifier("test_resnet", 2, channels=4, backbone_args={"checkpoint_path": str(path)}),
    "hf:": lambda path: _wrapped(path),
    "openclip:": lambda path: _openclip(path, None),
}


def _wrapped(path: Path) -> object:
    """A folder whose configuration has timm read a file."""
    pytest.importorskip("transformers")
    folder = path.parent / "hf"
    folder.mkdir()
    numbers = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 160, 160], "interpolation": "bicubic", "crop_pct": 1.0}
    config = {"model_type": "timm_wrapper", "architecture": "test_resnet", "num_classes": 4, "pretrained_cfg": numbers}
    config |= {"architectures": ["TimmWrapperForImageClassification"], "model_args": {"checkpoint_path": str(path)}}
    (folder / "config.json").write_text(json.dumps(config))
    return load_model(f"hf:{folder}")


@pytest.mark.parametrize("reader", CHECKPOINT)
def test_a_checkpoint_that_timm_would_read_without_care_is_refused(tmp_path, marker, careless_timm, reader):
    path = tmp_path / "evil.pth"
    path.write_bytes(KINDS_OF_FILE["torch.save"](marker))
    with pytest.raises(WeightsError, match=r" takes weights from a file that is damaged, or holds more than tensors, "):
        CHECKPOINT[reader](path)


def test_what_torch_load_heeds_is_as_it_was_afterwards(monkeypatch):
    monkeypatch.setenv(UNSAFE, "1")
    monkeypatch.delenv(SAFE, raising=False)
    with tensors_only("a model"):
        assert os.environ[SAFE] == "1"
        assert UNSAFE not in os.environ
        with tensors_only("a part of it"):
            pass
        assert os.environ[SAFE] == "1"
    with pytest.raises(ZeroDivisionError), tensors_only("a model"):
        raise ZeroDivisionError
    assert os.environ[UNSAFE] == "1"
    assert SAFE not in os.environ


def test_attention_that_is_code_of_the_hub_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8).save_pretrained(
        tmp_path
    )
    config = json.loads((tmp_path / "config.json").read_text()) | {"attn_implementation": "someone/kernel"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"asks for the attention 'someone/kernel', which is code of the Hub and is not run; "):
        load_model(f"hf:{tmp_path}")


# ---- maps and rows


def _context(ids):
    from xaieval.explainers import Context

    targets = torch.zeros(len(ids), dtype=torch.long)
    return Context(nn.Identity(), torch.rand(len(ids), 3, 8, 8), targets, None, ids, 0)


def _object_array(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[Plants(marker)]]), allow_pickle=True)
    return buffer.getvalue()


def _archive() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.zeros((4096, 4096), dtype=np.float32))
    return buffer.getvalue()


def _declared(shape) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(16)


MAPS = {
    "an array of objects": _object_array,
    "a pickle": lambda marker: pickle.dumps(Plants(marker)),
    "an archive": lambda _: _archive(),
    "more than the file holds": lambda _: _declared((10**6, 10**6)),
    "more than there can be": lambda _: _declared((10**30, 10**30)),
}


@pytest.mark.parametrize("case", MAPS)
def test_maps_that_hold_code_or_are_bombs_are_refused(tmp_path, marker, case):
    (tmp_path / "a.npy").write_bytes(MAPS[case](marker))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.npy' cannot be read as an array: "):
        Precomputed(tmp_path)(_context(["a"]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_code_in_a_parquet_file_does_not_run(tmp_path, marker):
    # A column's type could once be a pickled class (CVE-2023-47248 of pyarrow, before 14.0.1).
    evil = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Plants(marker))}
    schema = pa.schema([pa.field("image_id", pa.string(), metadata=evil)])
    pq.write_table(pa.table({"image_id": ["a"]}, schema=schema), tmp_path / "rows.parquet")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(OutputError):
        xaieval.Scores.load(tmp_path)


# ---- the source: no other way in


def _calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


SOURCES = sorted([*(ROOT / "xaieval").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
RUN_CODE = {"eval", "exec", "compile", "__import__"}
UNPICKLE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
UNSAFE_READERS = {"read_pickle", "unsafe_load", "full_load", "load_module", "run_path", "run_module"}
OWN_IMPORTS = {  # the first is what `module:factory` comes to; the others import modules by names that stand there
    "xaieval/data/loading.py",
    "xaieval/__init__.py",
    "xaieval/explainers/adapters/pytorch_grad_cam.py",
    "xaieval/metrics/__init__.py",
    "xaieval/report/__init__.py",
    "benchmarks/peers.py",
}


def faults_of(path: Path) -> list[str]:
    """What a source file does that could run code out of data."""
    found = []
    for call in _calls(path):
        name, given = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
        last = name.split(".")[-1]
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append(f"{call.lineno}: torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            found.append(f"{call.lineno}: {name} without allow_pickle=False")
        if name in RUN_CODE or last in UNSAFE_READERS or name.split(".")[0] in UNPICKLE or name == "torch.jit.load":
            found.append(f"{call.lineno}: {name}")
        unsafe = {"trust_remote_code": "True", "allow_pickle": "True", "weights_only": "False"}
        found += [f"{call.lineno}: {word}={value}" for word, value in unsafe.items() if given.get(word) == value]
        if last == "import_module" and path.relative_to(ROOT).as_posix() not in OWN_IMPORTS:
            found.append(f"{call.lineno}: {name}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_file_reads_what_could_run_code(path):
    assert not faults_of(path)


def test_the_look_at_the_source_sees_each_of_them(monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    lines = [
        "torch.load(file)", "torch.load(file, weights_only=False)", "np.load(file)", "numpy.load(file, allow_pickle=True)",
        "eval(text)", "exec(text)", "pickle.loads(data)", "yaml.load(text)", "pd.read_pickle(file)", "torch.jit.load(file)",
        "kind.from_pretrained(name, trust_remote_code=True)", "importlib.import_module(name)",
    ]  # fmt: skip
    (tmp_path / "a.py").write_text("\n".join(lines))
    assert {int(fault.split(":")[0]) for fault in faults_of(tmp_path / "a.py")} == set(range(1, len(lines) + 1))
    (tmp_path / "a.py").write_text("model.eval()\ntorch.load(file, weights_only=True)\ntorch.compile(model)\n")
    assert not faults_of(tmp_path / "a.py")


# ---- what user code is imported, and from where


QUICK = ["--max-images", "2", "--layers", "fpn[p5]", "--no-progress"]
EVIL = "from pathlib import Path\nPath('{marker}').write_text('ran')\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, and the import path as it was before."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return folder


def _refusal(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("option", ["model", "data"])
def test_a_run_file_does_not_name_code(here, marker, capsys, option):
    (here / "mine.py").write_text(EVIL.format(marker=marker))
    (here / "run.toml").write_text(f'{option} = "mine:make"\n')
    assert _refusal(["score", "run.toml", *QUICK], capsys) == (
        f"xaieval-bench: 'run.toml' names the {option} 'mine:make', which would import and run code; run files must not do "
        f"that, so give it on the command line: --{option} mine:make\n"
    )


@pytest.mark.parametrize(
    "text", ['"--model" = "{}"', 'MODEL = "{}"', '"options.model" = "{}"', '[options]\nmodel = "{}"', '"*".model = "{}"']
)
def test_no_other_spelling_of_the_key_gets_around_that(here, marker, capsys, text):
    (here / "mine.py").write_text(EVIL.format(marker=marker))
    (here / "run.toml").write_text(text.format("mine:make"))
    assert _refusal(["score", "run.toml", *QUICK], capsys)


def test_a_run_file_is_no_command_of_the_shell(here, marker, capsys):
    (here / "run.toml").write_text(f"model = \"subprocess:check_call\"\n[model-args]\nargs = \"['touch', '{marker}']\"\n")
    assert "names the model 'subprocess:check_call', which would import and run code" in _refusal(["score", "run.toml"], capsys)


def test_the_command_line_names_code_beside_a_run_file(here, capsys):
    (here / "made_here.py").write_text("import xaieval\ndef make():\n    return xaieval.models.fpn_scenes()\n")
    (here / "run.toml").write_text('model = "other:make"\nbatch-size = 2\n')
    with pytest.raises(
        ModelError, match=r"^no model 'made_here:nothing': module 'made_here' has no 'nothing' \(.*made_here\.py\)$"
    ):
        main(["score", "run.toml", "--model", "made_here:nothing", "--debug", *QUICK])


def test_a_file_called_as_the_command_line_is_in_cyclopts_is_a_run_file_too(here, marker, capsys):
    (here / "mine.py").write_text(EVIL.format(marker=marker))
    (here / "cli").write_text('model = "mine:make"\n')
    assert "'cli' names the model 'mine:make'" in _refusal(["score", "cli", *QUICK], capsys)


def test_what_names_code_is_what_is_imported():
    assert MODEL_SOURCES
    for kind in MODEL_SOURCES:
        assert not names_code("model", f"{kind}:anything")
        with pytest.raises((ModelError, WeightsError, xaieval.XaievalError)) as caught:
            load_model(f"{kind}:no.such.thing:here" if kind != "hf" else "hf:./nowhere")
        assert "there is no module" not in str(caught.value)
    for spec in ("scenes", "scenes:colour", "folder:x", "ucmerced", "ucmerced:x", "mosaics:mine:make", "focus:mine:make"):
        assert not names_code("data", spec)
    assert names_code("data", "scenes:make")  # a module that is called scenes
    assert names_code("model", "Timm:resnet18")
    assert not names_code("layers", "a:b")


@pytest.mark.parametrize("spec", ["scenes:make", "Folder:make", "mine:make"])
def test_data_that_names_code_is_data_that_is_imported(here, spec):
    # What `names_code` lets through must never reach the import, and what it stops would have reached it.
    with pytest.raises(DataError, match=f"no data '{spec}': there is no module"):
        load_data(spec, Preprocessing(), 1)
    assert names_code("data", spec)


def test_no_file_that_happens_to_lie_there_is_a_run_file(here, capsys):
    for name in ("run.toml", "xaieval.toml", "xaieval-bench.toml", ".xaieval.toml", "pyproject.toml", "score", "score.toml"):
        (here / name).write_text("nonsense = 1\n[tool.xaieval-bench]\nnonsense = 1\n[tool.xaieval]\nnonsense = 1\n")
    main(["score", *QUICK, "--out", "run"])  # an unknown setting would be an error
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["score", "run.toml", *QUICK])
    assert "nonsense" in capsys.readouterr().err


def test_the_working_directory_comes_last_on_the_path(here, marker):
    for name in ("json", "timm", "wave"):  # the last one was not imported before
        (here / f"{name}.py").write_text(EVIL.format(marker=marker))
    (here / "last_on_the_path.py").write_text("import wave\ndef make():\n    raise KeyError(wave.__file__)\n")
    with pytest.raises(KeyError, match=r"wave\.py"):
        load_model("last_on_the_path:make")
    assert sys.path[-1] == str(here)


STARTS = {  # how the command is started, and whether a file beside it may stand in for a library
    "console script": (["-c", "import sys; sys.path.pop(0); from xaieval.cli import main; main()"], False),
    "python -P -m": (["-P", "-m", "xaieval.cli"], False),
    "python -m": (["-m", "xaieval.cli"], True),  # which is what Python does, and what docs/security.md says
}


@pytest.mark.parametrize("start", STARTS)
def test_a_file_called_as_a_library_is_imported_only_where_python_itself_would(here, tmp_path, start):
    imported = tmp_path / "imported"
    (here / "cyclopts.py").write_text(EVIL.format(marker=imported) + "raise SystemExit(3)\n")
    arguments, expected = STARTS[start]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments, "--version"], capture_output=True, text=True, check=False, env=environment
    )
    assert imported.exists() == expected
    assert done.returncode == (3 if expected else 0), done.stderr


def test_the_processes_of_nproc_are_started_without_the_working_directory(monkeypatch, tmp_path):
    from xaieval.evaluation.distributed import launch as launcher

    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    launcher._start(["score"], 0, 1, 0.0, tmp_path)
    assert started == [[sys.executable, *STARTS["python -P -m"][0], "score"]]


def test_help_says_what_imports_code(capsys):
    for command in ("score", "layers"):
        main([command, "--help"])
        assert "package.module:factory, the only form that imports your code and runs it" in " ".join(
            capsys.readouterr().out.replace("│", " ").split()
        )


def test_a_good_file_is_still_read(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pth")
    np.save(tmp_path / "a.npy", np.eye(8))
    for name in ("a.safetensors", "a.pth"):
        assert read_weights(tmp_path / name)["weight"].tolist() == [1, 1]
    assert Precomputed(tmp_path)(_context(["a"])).sum() == 8
