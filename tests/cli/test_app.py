"""The command line: files that it writes, errors, exit statuses, and run files."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import xaieval
from tests.documented import ROW_COLUMNS
from xaieval.cli import main
from xaieval.config.options import ModelOptions, ProtocolOptions, ScoreOptions
from xaieval.data import load_data
from xaieval.errors import AddressError
from xaieval.evaluation.scores import Scores
from xaieval.models import load_model

SUMMARY_COLUMNS = [
    "layer",
    "method",
    "average_drop",
    "average_drop_low",
    "average_drop_high",
    "increase_in_confidence",
    "increase_in_confidence_low",
    "increase_in_confidence_high",
    "mask_area",
    "n_images",
    "n_failed",
]

# Two images at the coarsest level: the least that is a run.
QUICK = ("--max-images", "2", "--layers", "fpn[p5]", "--out", "run")


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Result]]:
    """Run the command line in an empty working directory, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    known = set(sys.modules)

    def run(*arguments: str) -> Result:
        status = 0
        try:
            main(list(arguments))
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Result(status, *capsys.readouterr())

    yield run
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]  # the next test's module of that name is another file


def _python(program: str, *arguments: str) -> Result:
    """Run a program in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def _manifest(folder: str = "run") -> dict[str, Any]:
    return json.loads((Path(folder) / "manifest.json").read_text())


def _rows(folder: str = "run") -> pd.DataFrame:
    return pd.read_parquet(Path(folder) / "rows.parquet")


def _images(folder: Path, classes: dict[str, int], broken: int = 0) -> None:
    """An image folder; the first `broken` files of each class are no images."""
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            path = folder / name / f"{index}.png"
            if index < broken:
                path.write_bytes(b"no image")
            else:
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)


# ---- light to start


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["layers", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    program = """
import sys
from xaieval.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "torchvision", "timm", "pandas", "numpy", "scipy", "matplotlib", "torchmetrics"} & set(sys.modules)
    print("heavy:", sorted(heavy), file=sys.stderr)
"""
    result = _python(program, *arguments)
    assert result.status == 0
    assert result.err.strip() == "heavy: []"
    assert result.out


def test_importing_the_package_imports_neither_torch_nor_pandas_nor_numpy():
    result = _python("import sys, xaieval; print({'torch', 'pandas', 'numpy', 'timm'} & set(sys.modules))")
    assert result == (0, "set()\n", "")


def test_what_reads_finished_runs_imports_no_torch(tmp_path):
    # Most of the memory and time that a summary of a large run takes would be that of torch.
    rng = np.random.default_rng(0)
    metrics = [{"name": "average_drop", "label": "AD %", "higher_is_better": False, "interval": "mean"}]
    for name in ("one", "other"):
        rows = pd.DataFrame({"image_id": [*"abcdefgh"] * 2, "layer": ["p4"] * 8 + ["p5"] * 8, "method": "gradcam"})
        rows = rows.assign(average_drop=rng.uniform(0, 50, 16), confidence=rng.random(16), mask_area=0.5, status="ok")
        Scores(rows, {"schema": 1, "seed": 0, "metrics": metrics}).save(tmp_path / name)
    program = """
import sys
from xaieval import Scores
from xaieval.cli import main
one, other = sys.argv[1:]
print(len(Scores.load(one).summary()))
for words in (["table", one], ["table", one, other], ["compare", one, other], ["report", one, "--no-maps"]):
    try:
        main(words)
    except SystemExit as stop:
        assert not stop.code, words
print({"torch", "torchvision", "timm"} & set(sys.modules))
"""
    result = _python(program, str(tmp_path / "one"), str(tmp_path / "other"))
    assert result.status == 0, result.err
    assert result.out.startswith("2\n")
    assert result.out.endswith("\nset()\n")
    assert (tmp_path / "one" / "report.html").exists()


def test_the_package_runs_as_the_command():
    result = subprocess.run([sys.executable, "-m", "xaieval", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == xaieval.__version__


def test_help_names_every_option_and_both_commands(bench):
    listed = bench("--help").out
    assert "score" in listed
    assert "layers" in listed
    words = set(re.findall(r"--[a-z][a-z-]*", bench("score", "--help").out))
    for options in (ScoreOptions, ModelOptions, ProtocolOptions):
        assert {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)} <= words
    assert {"--no-progress", "--debug"} <= words


def test_options_are_the_parameters_of_score_with_dashes():
    parameters = set(inspect.signature(xaieval.score).parameters) - {"inference", "options"}
    parameters |= {field.name for field in dataclasses.fields(xaieval.Inference)}
    options = {field.name for field in dataclasses.fields(ScoreOptions)} | {"protocol"}
    # A loader and a folder have names of their own: --data and --out; how to run a model is a function.
    assert parameters - {"loader", "output_dir", "forward"} <= options


def test_the_version_is_that_of_the_package(bench):
    assert bench("--version") == (0, f"{xaieval.__version__}\n", "")


# ---- what a run writes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two layers and two methods: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    program = "import sys; from xaieval.cli import main; main(sys.argv[1:])"
    arguments = ["--layers", "fpn[p4],fpn[p5]", "--methods", "gradcam, random", "--max-images", "6", "--batch-size", "4"]
    result = _python(program, "score", *arguments, "--seed", "3", "--out", str(folder))
    assert result.status == 0, result.err
    assert result.err == "", "no progress bar where stderr is no terminal, and no warnings"
    return folder, result.out


@pytest.mark.slow
def test_rows_have_the_documented_columns_and_one_row_for_each_image_layer_and_method(finished):
    rows = _rows(finished[0])
    assert list(rows.columns) == ROW_COLUMNS
    assert len(rows) == 6 * (2 + 1)
    assert not rows.duplicated(["image_id", "layer", "method"]).any()
    assert (rows["status"] == "ok").all()
    assert sorted(rows["image_id"].unique()) == [f"test/{index:05d}" for index in range(6)]


@pytest.mark.slow
def test_the_summary_has_the_documented_columns_and_is_the_mean_of_the_rows(finished):
    summary = pd.read_csv(finished[0] / "summary.csv")
    assert list(summary.columns) == SUMMARY_COLUMNS
    assert list(zip(summary["layer"], summary["method"], strict=True)) == [
        ("fpn[p4]", "gradcam"),
        ("fpn[p5]", "gradcam"),
        ("input", "random"),
    ]
    means = _rows(finished[0]).groupby(["layer", "method"])[["average_drop", "increase_in_confidence"]].mean()
    for row in summary.to_dict("records"):
        for metric in ("average_drop", "increase_in_confidence"):
            assert row[metric] == pytest.approx(means.loc[(row["layer"], row["method"]), metric])
            assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]
    assert (summary["n_images"] == 6).all()
    assert (summary["n_failed"] == 0).all()


def test_weights_of_a_second_network_judge(bench, tmp_path):
    model = load_model("xaieval:fpn-scenes").model
    with torch.no_grad():
        last = [value for name, value in model.named_parameters() if name.endswith("bias")][-1]
        last += torch.arange(len(last))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "judge.safetensors")
    words = ["--layers", "fpn[p5]", "--max-images", "4", "--no-progress"]
    assert bench("score", *words, "--out", "own").status == 0
    assert bench("score", *words, "--judge", "judge.safetensors", "--out", "judged").status == 0
    own, judged = _rows(tmp_path / "own"), _rows(tmp_path / "judged")
    assert own["predicted"].equals(judged["predicted"])
    assert (own["confidence"] != judged["confidence"]).all()
    assert _manifest(tmp_path / "judged")["judge"]["fingerprint"] != _manifest(tmp_path / "own")["model"]["fingerprint"]


@pytest.mark.slow
def test_the_manifest_says_what_the_run_was(finished):
    manifest = _manifest(finished[0])
    model = load_model("xaieval:fpn-scenes").model
    assert manifest["complete"]
    assert manifest["seed"] == 3
    assert manifest["versions"]["xaieval"] == xaieval.__version__
    started, ended = (datetime.strptime(manifest["dates"][name], "%Y-%m-%dT%H:%M:%S%z") for name in ("started", "ended"))
    assert timedelta(0) <= ended - started < timedelta(minutes=5)
    assert ended.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - ended) < timedelta(hours=1)
    assert "dates" not in manifest["run"], "the same run at another time"
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"python", "torchvision", "timm", "numpy", "pandas"} <= set(manifest["versions"])
    assert manifest["model"]["class"] == "xaieval.models.fpn.FPNClassifier"
    assert manifest["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert re.fullmatch(r"[0-9a-f]{16}", manifest["model"]["fingerprint"])
    assert manifest["data"]["images"] == 6
    assert re.fullmatch(r"[0-9a-f]{16}", manifest["data"]["fingerprint"])
    assert manifest["unreadable"] == []
    assert manifest["run"]["layers"] == ["fpn[p4]", "fpn[p5]"]
    assert manifest["run"]["methods"] == ["gradcam", "random"]
    assert manifest["run"]["metrics"] == ["average_drop", "increase_in_confidence"]
    for name, choice in xaieval.Protocol().to_dict().items():
        assert manifest["run"][f"protocol.{name}"] == choice
    assert manifest["options"]["model"] == "xaieval:fpn-scenes"
    assert manifest["options"]["data"] == "scenes"
    assert manifest["options"]["max_images"] == 6


@pytest.mark.slow
def test_the_table_and_the_list_of_files_are_printed(finished):
    folder, printed = finished
    for word in ("fpn[p4]", "fpn[p5]", "gradcam", "random", "AD %", "IC %", "95% interval", "lower is better"):
        assert word in printed
    summary = pd.read_csv(folder / "summary.csv")
    assert f"{summary['average_drop'][0]:.1f} [{summary['average_drop_low'][0]:.1f}, " in printed
    written = {path.name for path in folder.iterdir()}
    assert written == {"rows.parquet", "summary.csv", "manifest.json", "maps.png"}
    assert all(name in printed for name in written)


@pytest.mark.slow
def test_the_rows_are_those_of_the_python_call(finished):
    loaded = load_model("xaieval:fpn-scenes")
    data = load_data("scenes", loaded.preprocessing, batch_size=4, max_images=6)
    scores = xaieval.score(
        loaded.model, data.loader, ["fpn[p4]", "fpn[p5]"], ["gradcam", "random"], seed=3, batch_size=4, progress=False
    )
    # Another process may add up in another order.
    pd.testing.assert_frame_equal(_rows(finished[0]), scores.rows, check_dtype=False, rtol=1e-4, atol=1e-6)
    assert _manifest(finished[0])["run"] == json.loads(json.dumps(scores.manifest["run"] | {"max_images": 6}))


@pytest.mark.slow
def test_the_same_command_twice_works_and_gives_the_same(bench):
    assert bench("score", *QUICK).status == 0
    first = _rows()
    again = bench("score", *QUICK)
    assert again.status == 0
    assert again.err == ""
    pd.testing.assert_frame_equal(_rows(), first)


@pytest.mark.slow
def test_without_a_folder_the_same_command_gets_the_same_one_and_another_command_another(bench):
    arguments = QUICK[:-2]
    for extra in ((), (), ("--no-progress",), ("--seed", "1")):
        assert bench("score", *arguments, *extra).status == 0
    assert len(list(Path("xaieval-runs").iterdir())) == 2


TWO = "fpn[p4]", "fpn[p5]"
LISTS = {
    "commas": ["--layers", "fpn[p4],fpn[p5]"],
    "commas and spaces": ["--layers", "fpn[p4], fpn[p5]"],
    "repetition": ["--layers", TWO[0], "--layers", TWO[1]],
    "several words": ["--layers", *TWO, "--seed", "3"],
    "several words at the end": ["--seed", "3", "--layers", *TWO],
    "a run file after several words": ["--layers", *TWO, "run.toml"],
    "a run file after one word": ["--layers", "fpn[p4],fpn[p5]", "run.toml"],
    "a run file between": ["--layers", *TWO, "run.toml", "--methods", "gradcam"],
}


@pytest.mark.parametrize("words", LISTS.values(), ids=LISTS)
def test_lists_take_commas_spaces_repetition_and_several_words(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text("seed = 3\n")
    seen = []
    monkeypatch.setattr(sys.modules["xaieval.cli.score"], "_score", lambda options, *_: seen.append(options))
    main(["score", *words])
    [options] = seen
    assert options.layers == TWO
    assert options.methods == ("gradcam",)
    assert options.seed == (3 if "3" in words or "run.toml" in words else 0)


def test_folders_may_follow_a_list(bench):
    assert bench("score", *QUICK).status == 0
    expected = bench("compare", "run", "run", "--metrics", "AD", "ic").out
    assert "IC %" in expected
    assert bench("compare", "--metrics", "AD", "ic", "run", "run").out == expected


def test_a_folder_that_is_no_run_is_a_word_like_others(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("dog").mkdir()
    seen = []
    monkeypatch.setattr(sys.modules["xaieval.cli.score"], "_score", lambda options, *_: seen.append(options))
    main(["score", "--data", "folder:x", "--classes", "cat", "dog"])
    assert seen[0].classes == ("cat", "dog")


def test_completion_is_installed_where_the_shell_looks(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # whose .bashrc it is added to
    done = bench("--install-completion", "--shell", "bash", "--output", str(tmp_path / "complete"))
    assert done.status == 0
    written = (tmp_path / "complete").read_text()
    assert all(name in written for name in ("xaieval-bench", "published", "--max-images"))


def test_completion_for_an_unknown_shell_is_one_line(bench):
    _refused(bench("--install-completion", "--shell", "csh"), 2, "csh")


def test_choices_of_the_protocol_reach_the_run(bench):
    choices = ["--masking", "top-binary", "--keep-percent", "25", "--inverse"]
    assert bench("score", *QUICK, *[word.replace("top-b", "top_b") for word in choices], "--space", "pixels").status == 0
    run = _manifest()["run"]
    assert run["protocol.masking"] == "top_binary"
    assert run["protocol.keep_percent"] == 25
    assert run["protocol.inverse"] is True
    assert run["protocol.mean"] == [0.5, 0.5, 0.5], "black takes the numbers that the model's images are normalised with"
    assert _rows()["mask_area"].to_numpy() == pytest.approx(0.75)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "expected"), [("0", [0, 0]), ("9", [9, 9]), ("label", [0, 1])])
def test_a_target_is_an_index_or_a_word(bench, target, expected):
    assert bench("score", *QUICK, "--target", target).status == 0
    assert _rows()["target"].tolist() == expected


@pytest.mark.slow
def test_the_level_of_the_printed_and_of_the_written_intervals_is_the_one_asked_for(bench):
    result = bench("score", "--max-images", "10", "--layers", "fpn[p2]", "--out", "run", "--level", "0.5")
    assert result.status == 0
    assert "50% interval" in result.out
    expected = xaieval.Scores.load("run").summary(level=0.5).reset_index()
    written = pd.read_csv("run/summary.csv")
    for name in ("average_drop_low", "average_drop_high", "increase_in_confidence_low", "increase_in_confidence_high"):
        assert written[name].to_numpy() == pytest.approx(expected[name].to_numpy(dtype=float)), name


@pytest.mark.slow
def test_broken_images_are_counted_and_the_run_goes_on(bench):
    _images(Path("data"), {"a": 3, "b": 3}, broken=1)
    result = bench("score", "--data", "folder:data", "--layers", "fpn[p5]", "--batch-size", "1", "--out", "run")
    assert result.status == 0
    assert result.err == ""
    summary = pd.read_csv("run/summary.csv")
    assert summary["n_images"].tolist() == [4]
    assert summary["n_failed"].tolist() == [2]
    assert "unreadable 2" in result.out
    assert [entry["id"] for entry in _manifest()["unreadable"]] == ["a/0.png", "b/0.png"]


def test_a_model_of_ones_own_with_weights_is_scored_on_data_of_ones_own(bench):
    Path("mine.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def model(width=4):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))\n"
        "def data():\n"
        "    return [(torch.rand(2, 3, 16, 16), torch.tensor([0, 2]))]\n"
    )
    weights = {
        "0.weight": torch.rand(6, 3, 3, 3),
        "0.bias": torch.rand(6),
        "3.weight": torch.rand(3, 6),
        "3.bias": torch.rand(3),
    }
    save_file(weights, "mine.safetensors")
    arguments = ["--model", "mine:model", "--model-args.width", "6", "--weights", "mine.safetensors"]
    result = bench("score", *arguments, "--data", "mine:data", "--layers", "0", "--out", "run", "--target", "label")
    assert result.status == 0, result.err
    assert _rows()["target"].tolist() == [0, 2]
    assert _manifest()["model"]["parameters"] == sum(tensor.numel() for tensor in weights.values())


# ---- run files


@pytest.mark.slow
def test_a_run_file_says_the_same_in_the_same_words(bench):
    words = {
        "layers": "fpn[p4],fpn[p5]",
        "methods": "gradcam,layercam",
        "metrics": "average_drop",
        "target": "3",
        "batch-size": "2",
        "max-images": "3",
        "seed": "5",
        "level": "0.9",
        "mean": "0.4,0.5,0.6",
        "std": "0.5,0.5,0.5",
        "image-size": "64",
        "masking": "top",
        "keep-percent": "20",
        "fill": "black",
        "constant-map": "leave_out",
    }
    assert (
        bench("score", *[word for pair in words.items() for word in (f"--{pair[0]}", pair[1])], "--out", "options").status == 0
    )
    Path("words.toml").write_text('out = "words"\n' + "".join(f'{name} = "{value}"\n' for name, value in words.items()))
    assert bench("score", "words.toml").status == 0
    Path("values.toml").write_text(
        """
        out = "values"
        layers = ["fpn[p4]", "fpn[p5]"]
        methods = ["gradcam", "layercam"]
        metrics = ["average_drop"]
        target = 3
        batch-size = 2
        max-images = 3
        seed = 5
        level = 0.9
        mean = [0.4, 0.5, 0.6]
        std = [0.5, 0.5, 0.5]
        image-size = 64
        masking = "top"
        keep-percent = 20
        fill = "black"
        constant-map = "leave_out"
        """
    )
    assert bench("score", "values.toml").status == 0
    manifests = [_manifest(folder) for folder in ("options", "words", "values")]
    assert all(manifest["run"] == manifests[0]["run"] for manifest in manifests)
    assert all(manifest["options"] | {"out": ""} == manifests[0]["options"] | {"out": ""} for manifest in manifests)
    for folder in ("words", "values"):
        pd.testing.assert_frame_equal(_rows(folder), _rows("options"))


@pytest.mark.slow
def test_the_command_line_wins_over_the_run_file(bench):
    Path("run.toml").write_text('layers = ["fpn[p4]"]\nmax-images = 4\nseed = 2\nout = "run"\n')
    assert bench("score", "run.toml", "--layers", "fpn[p5]", "--max-images", "2").status == 0
    manifest = _manifest()
    assert manifest["run"]["layers"] == ["fpn[p5]"]
    assert manifest["data"]["images"] == 2
    assert manifest["seed"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("line", ["progress = false", "no-progress = true"])
def test_a_run_file_switches_progress_off_in_the_words_of_the_command_line(bench, line):
    Path("run.toml").write_text(f'{line}\nlayers = "fpn[p5]"\nmax-images = 2\nout = "run"\n')
    result = bench("score", "run.toml")
    assert result.status == 0
    assert _manifest()["options"]["progress"] is False


@pytest.mark.slow
def test_a_run_file_gives_the_arguments_of_the_model(bench):
    model = 'model = "timm:test_resnet"\nrandom-weights = true\nlayers = "conv1"\n'
    Path("run.toml").write_text(model + 'max-images = 2\nout = "run"\n[model-args]\nnum_classes = 5\n')
    assert bench("score", "run.toml").status == 0
    assert bench("score", "run.toml", "--target", "5", "--out", "other") == (
        2,
        "",
        "xaieval-bench: no class 5; the model has 5 classes, 0 to 4\n",
    )


@pytest.mark.slow
def test_false_in_a_run_file_is_false_for_the_model(bench):
    fingerprints = []
    for trained in ("true", "false"):
        Path("run.toml").write_text(
            f"layers = 'fpn[p5]'\nmax-images = 2\nout = '{trained}'\n[model-args]\ntrained = {trained}\n"
        )
        assert bench("score", "run.toml").status == 0
        fingerprints.append(_manifest(trained)["model"]["fingerprint"])
    assert fingerprints[0] != fingerprints[1]


# ---- wrong use, and runs that fail


def _refused(result: Result, status: int, message: str) -> None:
    assert "Traceback" not in result.err
    assert re.fullmatch(r"xaieval-bench: [^\n]+\n", result.err), "exactly one line"
    assert message in result.err
    assert result.status == status


# What is given, and what the answer has to say of it.
WRONG_USE = [
    (
        ["--layers", "fpn[p9]"],
        "no layer 'fpn[p9]'; did you mean 'fpn[p2]' or 'fpn[p3]' or 'fpn[p4]' or 'fpn[p5]'? 'xaieval-bench layers'",
    ),
    (["--layers", "fpn"], "layer 'fpn' returns several tensors: fpn[p2]"),
    (["--layers", "fpn[p5"], "'fpn[p5' is not a layer address"),
    (["--layers", ""], "takes one or more words separated by commas, got none"),
    (["--methods", "gradcm"], "no method 'gradcm'; did you mean 'gradcam'"),
    (["--methods", "gradcam,gradcam"], "methods are one or more, each name once"),
    (["--metrics", "averagedrp"], "no metric 'averagedrp'; did you mean 'average_drop' or 'average_gain'? known: "),
    (["--model", "nope"], "no model 'nope'; a model is 'timm:NAME'"),
    (["--model", "timm:resnt18"], "timm has no model 'resnt18'; did you mean 'resnet18'"),
    (["--model", "torchvision:resnet19"], "torchvision has no model 'resnet19'; did you mean 'resnet1"),
    (["--model", "xaieval:fpn"], "xaieval has no model 'fpn'; "),
    (["--model", "nosuchpackage.x:make"], "no model 'nosuchpackage.x:make': there is no module 'nosuchpackage'"),
    (["--model", "json:make"], "no model 'json:make': module 'json' has no 'make'"),
    (["--model", "builtins:dict"], "builtins:dict gave a dict; a function that returns a torch.nn.Module is expected"),
    (["--model", ":make"], "no model ':make'"),
    (["--methods", "rise", "--method-args.rise.maskz", "3"], "method 'rise' has no setting 'maskz'; did you mean 'n_masks'"),
    (["--method-args.rise.masks", "3"], "there are settings for 'rise', which is none of the methods"),
    (["--metrics", "road", "--metric-args.road.fraction", "0.5"], "has no setting 'fraction'; did you mean 'fractions'"),
    (["--metrics", "road", "--metric-args.road.noise", "loud"], "metric 'road': noise is a number; got 'loud'"),
    (["--metric-args.road.noise", "0"], "there are settings for 'road', which is none of the metrics"),
    (["--keep-maps=-1"], "keep_maps is a number of images, at least 0; got -1"),
    (["--model-args.colour", "3"], "xaieval:fpn-scenes cannot be built with {'colour': 3}"),
    (["--target", "10"], "no class 10; the model has 10 classes, 0 to 9"),
    (["--target=-1"], "no class -1; the model has 10 classes, 0 to 9"),
    (["--target", "best"], "target='best' is not a choice of a protocol; known: predicted, label, each"),
    (["--weights", "nowhere.safetensors"], "no weights file 'nowhere.safetensors'"),
    (["--data", "nope"], "no data 'nope'; data is 'scenes'"),
    (["--data", "folder:nowhere"], "no folder 'nowhere'; give a folder"),
    (["--data", "ucmerced"], "UCMerced_LandUse'; give the folder that contains UC Merced"),
    (["--data", "nosuchpackage.x:make"], "no data 'nosuchpackage.x:make'"),
    (["--batch-size", "0"], "batch_size is at least 1, got 0"),
    (["--max-images", "0"], "max_images is at least 1, got 0"),
    (["--max-images", "many"], "--max-images"),
    (["--image-size", "0"], "an image is resized to at least its crop"),
    (["--mean", "0.5,0.5"], "mean and std are one number per channel each"),
    (["--mean", "a,b,c"], "takes numbers separated by commas"),
    (["--interpolation", "cubic"], "no interpolation 'cubic'; did you mean 'bicubic'?"),
    (["--protocol", "defualt"], "no protocol 'defualt'; did you mean 'default'?"),
    (["--masking", "hard"], "masking='hard' is not a choice of a protocol; known: soft"),
    (["--keep-percent", "101"], "keep_percent lies in [0, 100], got 101.0"),
    (["--level", "2"], "the level of an interval is a probability in (0, 1)"),
    (["--seed=-1"], "seed"),
    (["--device", "gpu"], "gpu"),
    (["--nonsense"], "--nonsense"),
    (["--max-imges", "2"], "--max-imges"),
    (["nowhere.toml"], "no run file 'nowhere.toml'; give a TOML file with the same words as the options"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_USE, ids=[" ".join(arguments) for arguments, _ in WRONG_USE])
def test_wrong_use_is_one_line_and_status_two_and_nothing_is_written(bench, arguments, message):
    given = {"--max-images": "2", "--layers": "fpn[p5]", "--out": "run"}
    rest = [word for name, value in given.items() if name not in arguments for word in (name, value)]
    result = bench("score", *arguments, *rest)
    _refused(result, 2, message)
    assert result.out == ""
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers = [", "'run.toml' is not TOML"),
        ("nonsense = 3", "nonsense"),
        ("max-imges = 3", "max-imges"),
        ('max-images = "two"', "max-images"),
        ("[score]\nmax-images = 2", "score"),
        ("layers = []", "layers"),
        ('model = "nope"', "no model 'nope'"),
        ('masking = "hard"', "masking='hard' is not a choice of a protocol"),
        ('methods = ["rise"]\n[method-args.rise]\nmaskz = 3', "method 'rise' has no setting 'maskz'; did you mean 'n_masks'"),
        ('methods = ["rise"]\n[method-args.rise]\nmasks = [3]', "method 'rise' cannot take n_masks=(3,)"),
        ("[method-args.rise.masks]\nmany = 3", "text, a number, true or false, or a list or table of these"),
        (
            'metrics = ["road"]\n[metric-args.road]\nfractions = ["few"]',
            "fractions is numbers separated by commas; got ('few',)",
        ),
        ("[model-args]\ncolour = 3", "xaieval:fpn-scenes cannot be built with {'colour': 3}"),
    ],
)
def test_a_wrong_run_file_is_one_line_and_status_two(bench, text, message):
    Path("run.toml").write_text(text)
    result = bench("score", "run.toml", "--out", "run")
    _refused(result, 2, message)
    assert result.out == ""
    assert not Path("run").exists()


def test_labels_that_are_missing_are_named(bench):
    Path("unlabelled.py").write_text("import torch\ndef make():\n    return [torch.rand(2, 3, 128, 128)]\n")
    for option in (["--target", "label"], ["--images", "correct"]):
        result = bench("score", *QUICK, "--data", "unlabelled:make", *option)
        _refused(result, 2, "needs labels, but the data has none")
        assert not Path("run").exists()


def test_labels_that_the_model_does_not_have_are_named(bench):
    Path("mislabelled.py").write_text(
        "import torch\ndef make():\n    return [(torch.rand(2, 3, 128, 128), torch.tensor([1, 10]))]\n"
    )
    result = bench("score", *QUICK, "--data", "mislabelled:make", "--target", "label")
    _refused(result, 2, "the data has label 10, but the model has 10 classes, 0 to 9")


@pytest.mark.slow
def test_weights_that_do_not_fit_are_named(bench):
    save_file({"some.weight": torch.zeros(3)}, "other.safetensors")
    result = bench("score", *QUICK, "--weights", "other.safetensors")
    _refused(result, 2, "'other.safetensors' does not fit xaieval:fpn-scenes: missing: ")
    assert "left over: some.weight" in result.err
    Path("broken.safetensors").write_bytes(b"nothing")
    _refused(bench("score", *QUICK, "--weights", "broken.safetensors"), 2, "cannot read 'broken.safetensors'")
    Path("broken.pth").write_bytes(b"nothing")
    _refused(bench("score", *QUICK, "--weights", "broken.pth"), 2, "cannot read 'broken.pth'")


@pytest.mark.slow
def test_a_folder_that_holds_another_run_is_left_alone(bench):
    assert bench("score", *QUICK).status == 0
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    _refused(bench("score", *QUICK, "--seed", "1"), 2, "'run' holds another run: its seed is 0, this run's is 1")
    _refused(bench("score", *QUICK, "--methods", "layercam"), 2, "'run' holds another run: its methods is [\"gradcam\"]")
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


def test_a_file_is_no_folder(bench):
    Path("run").write_text("a file")
    _refused(bench("score", *QUICK), 2, "'run' is a file; choose another folder")
    assert Path("run").read_text() == "a file"


def test_an_unknown_command_is_one_line(bench):
    _refused(bench("scor"), 2, "scor")
    _refused(bench("layers", "nope"), 2, "no model 'nope'")
    _refused(bench("layers", "--nonsense"), 2, "--nonsense")


def test_a_run_over_nothing_but_broken_images_fails(bench):
    _images(Path("data"), {"a": 2, "b": 2}, broken=2)
    result = bench("score", "--data", "folder:data", "--layers", "fpn[p5]", "--out", "run")
    _refused(result, 1, "none of the 4 images could be read; the first, 'a/0.png': UnidentifiedImageError")
    assert not Path("run").exists()


def test_a_run_in_which_no_row_counts_fails_and_says_where_the_reasons_are(bench):
    result = bench("score", *QUICK, "--minimum-confidence", "2")
    _refused(result, 1, f"no row could be counted; the column 'status' in '{Path('run/rows.parquet')}' says why")
    assert set(_rows()["status"]) == {"excluded"}


def test_a_value_that_the_protocol_refuses_fails(bench):
    result = bench("score", *QUICK, "--methods", "uniform", "--constant-map", "error")
    _refused(result, 1, "image 'test/00000' has the status constant_map, which the protocol refuses")


def test_any_other_error_is_one_line_too(bench):
    Path("failing.py").write_text(
        "from torch import nn\n"
        "class Failing(nn.Module):\n"
        "    def forward(self, images):\n"
        "        raise ZeroDivisionError('two\\nlines')\n"
    )
    result = bench("score", *QUICK, "--model", "failing:Failing", "--methods", "random")
    _refused(result, 1, "ZeroDivisionError: two lines (--debug shows where)")


def test_an_interrupted_run_keeps_what_there_is(bench):
    Path("interrupting.py").write_text(
        "import torch\ndef make():\n    yield torch.rand(2, 3, 128, 128)\n    raise KeyboardInterrupt\n"
    )
    result = bench("score", "--layers", "fpn[p5]", "--out", "run", "--data", "interrupting:make")
    assert result.status == 130
    assert result.err.startswith("xaieval-bench: interrupted; rows of finished batches, if any, are kept, and the ")
    assert re.search(r"^ fpn\[p5\]  gradcam .* 2 +0 *$", result.out, re.MULTILINE)
    kept = Scores.load("run")
    assert (len(kept.rows), kept.manifest["complete"]) == (2, False)


def test_debug_raises_what_happened(bench):
    with pytest.raises(AddressError, match=r"^no layer 'nope'"):
        bench("score", "--layers", "nope", "--max-images", "2", "--debug")


@pytest.mark.parametrize("debug", [False, True])
def test_a_process_shows_a_traceback_only_if_asked_to(debug):
    program = "import sys; from xaieval.cli import main; main(sys.argv[1:])"
    result = _python(program, "score", "nowhere.toml", *(["--debug"] if debug else []))
    message = "no run file 'nowhere.toml'; give a TOML file with the same words as the options\n"
    assert result.out == ""
    if debug:
        assert result.status != 0
        assert result.err.startswith("Traceback (most recent call last):\n")
        assert result.err.endswith(f"ConfigError: {message}")
    else:
        assert (result.status, result.err) == (2, f"xaieval-bench: {message}")


# ---- layers


@pytest.mark.slow
@pytest.mark.parametrize("model", ["xaieval:fpn-scenes", "timm:test_vit"])
def test_layers_lists_every_address_with_its_stride(bench, model):
    result = bench("layers", model)
    assert (result.status, result.err) == (0, "")
    lines = {line.split()[0]: line.split() for line in result.out.splitlines()[2:]}
    loaded = load_model(model)
    size = loaded.preprocessing.image_size
    listing = xaieval.list_layers(loaded.model, torch.zeros(1, 3, size, size))
    assert list(lines) == list(listing["address"])
    strides = 0
    for row in listing.to_dict("records"):
        line = lines[row["address"]]
        assert line[1] == row["module_type"]
        assert line[-1] == f"{row['parameters']:,}"
        if pd.isna(row["stride"]):
            assert line[-2].endswith("]"), "no stride for what is no map"
        else:
            assert line[-2] == f"{row['stride']:g}"
            strides += 1
    assert strides > 5


def test_layers_of_the_built_in_model_are_listed_by_default_with_the_levels_of_its_pyramid(bench):
    printed = bench("layers").out
    for level, stride in (("p2", 4), ("p3", 8), ("p4", 16), ("p5", 32)):
        assert re.search(rf"^ *fpn\[{level}\] +FeaturePyramidNetwork +\[1, 64, \d+, \d+\] +{stride} +[\d,]+ *$", printed, re.M)


def test_layers_follow_the_image_size(bench):
    assert "[1, 64, 16, 16]" in bench("layers", "--image-size", "64").out.split("fpn[p2]")[1].splitlines()[0]


# ---- the methods that there are


def test_methods_lists_every_name_with_what_it_needs(bench):
    result = bench("methods")
    assert result.status == 0
    rows = {line.split()[0]: line for line in result.out.splitlines()[1:]}
    assert list(rows) == [*xaieval.explainers.METHODS, *xaieval.explainers.LIBRARY_METHODS]
    assert len(rows) > 50
    assert re.search(r"gradcam +layer, gradients +1, shared +Selvaraju", rows["gradcam"])
    assert re.search(r"captum:IntegratedGradients +gradients, model +50 +Sundararajan", rows["captum:IntegratedGradients"])
    assert re.search(r"pytorch-grad-cam:ScoreCAM +layer, model +channels \+ 1 +Wang", rows["pytorch-grad-cam:ScoreCAM"])
    assert re.search(r"random +nothing +0 +a control", rows["random"])


def test_methods_of_other_libraries_are_scored_by_name(bench):
    result = bench("score", *QUICK, "--methods", "captum:Saliency,gradcam", "--no-progress")
    assert result.status == 0, result.err
    assert list(pd.read_csv("run/summary.csv")["method"]) == ["gradcam", "captum:Saliency"]
    run = json.loads(Path("run/manifest.json").read_text())["run"]
    assert run["method settings"]["captum:Saliency"]["reduce"] == "abs_max"


# ---- models of several inputs and outputs, and layers by default

TWO_INPUTS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 4)
    def forward(self, images, month):
        return {"features": images}, self.head(self.conv(images).mean((2, 3))) + month

def make():
    torch.manual_seed(0)
    return Two()

def run(model, images):
    return model(images, 7.0)
"""


def test_a_model_of_several_inputs_and_outputs(bench):
    Path("two_inputs.py").write_text(TWO_INPUTS)
    model = ["--forward", "two_inputs:run", "--output", "1", "--image-size", "32"]
    listed = bench("layers", "two_inputs:make", *model, "--json")
    assert [layer["address"] for layer in json.loads(listed.out)["layers"]][:2] == ["conv", "head"]
    _refused(
        bench("layers", "two_inputs:make", *model[:2], "--output", "3"), 2, "the model's output has no '3': it is a tuple of 2"
    )
    scored = ["--model", "two_inputs:make", *model, "--layers", "conv", "--max-images", "2", "--out", "run"]
    assert bench("score", *scored).status == 0
    assert Scores.load("run").rows["status"].eq("ok").all()
    assert "no maps: they need code from 'two_inputs:make'" in bench("report", "run").out
    assert "no maps" not in bench("report", "run", "--import-code").out


def test_what_runs_a_model_is_named_on_the_command_line_only(bench):
    Path("run.toml").write_text('forward = "two_inputs:run"\n')
    _refused(
        bench("score", "run.toml", *QUICK), 2, "'run.toml' names the forward 'two_inputs:run', which would import and run code"
    )
    _refused(bench("layers", "--forward", "two_inputs"), 2, "--forward takes package.module:function")
    _refused(bench("layers", "--forward", "math:pi"), 2, "--forward math:pi is a float; a function of the model")


def test_without_layers_the_stages_of_the_model_are_taken(bench):
    model = ["--model", "timm:test_resnet", "--random-weights"]
    assert bench("score", *model, "--max-images", "2", "--out", "run").status == 0
    assert _manifest("run")["run"]["layers"] == ["layer1", "layer2", "layer3", "layer4"]


def test_the_strides_of_a_list_follow_the_grid(bench):
    model = ["timm:test_vit", "--prefix-tokens", "1", "--json"]
    strides = [
        {layer["address"]: layer["stride"] for layer in json.loads(bench("layers", *model, *grid).out)["layers"]}["blocks.0"]
        for grid in ([], ["--grid", "5,20"])
    ]
    assert strides == [16, 32]
