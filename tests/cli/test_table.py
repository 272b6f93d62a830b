"""The commands `table` and `published`: forms, files, several runs, and published numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.report.latex import read_latex
from xaieval import Scores
from xaieval.cli import main
from xaieval.config.protocol import PROTOCOLS
from xaieval.report import models_table

METRICS = [
    {"name": "average_drop", "label": "AD %", "higher_is_better": False, "interval": "mean"},
    {"name": "increase_in_confidence", "label": "IC %", "higher_is_better": True, "interval": "wilson"},
]
Command = Callable[..., tuple[int, str, str]]


def saved(folder: Path, seed: int, model: str) -> Scores:
    """A run of two layers of a network, on the same images as the others."""
    rng, parts = np.random.default_rng(seed), []
    for layer, mean in (("layer3", 50.0), ("layer4", 30.0)):
        drops = mean + rng.normal(0, 5, 30)
        parts.append(pd.DataFrame({"image_id": [f"i{n}" for n in range(30)], "layer": layer, "average_drop": drops}))
    rows = pd.concat(parts, ignore_index=True).assign(method="gradcam", status="ok", confidence=0.9, mask_area=0.25)
    rows["increase_in_confidence"] = 100.0 * (rows["average_drop"] < 30)
    choices = {f"protocol.{name}": value for name, value in PROTOCOLS["opti-cam"].to_dict().items()}
    options = {"model": model, "data": "folder:val"}
    scores = Scores(rows, {"schema": 1, "complete": True, "seed": 0, "metrics": METRICS, "run": choices, "options": options})
    scores.save(folder)
    return scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    saved(root / "a", 0, "torchvision:resnet50")
    saved(root / "b", 1, "torchvision:vgg16_bn")
    saved(root / "c", 2, "torchvision:vgg16_bn")
    return root


@pytest.fixture
def command(folder, monkeypatch, capsys) -> Command:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        status = 0
        try:
            main([*words])
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return run


def test_several_runs_are_rows_by_the_names_of_their_models(command, folder):
    status, out, _ = command("table", "a", "b", "c", "--format", "latex", "--label", "tab:models")
    assert status == 0
    found = read_latex("".join(line for line in out.splitlines(keepends=True) if not line.startswith("%")))
    assert [row[:3] for row in found.rows[1:]] == [
        ["torchvision:resnet50", "layer4", "gradcam"],
        ["torchvision:vgg16_bn (b)", "layer4", "gradcam"],
        ["torchvision:vgg16_bn (c)", "layer4", "gradcam"],
    ]
    runs = {name: Scores.load(folder / name) for name in "abc"}
    assert [row[3:] for row in found.rows] == [row[3:] for row in models_table(runs).lines(counts=False)]


def test_a_layer_for_each_run_and_a_metric_are_taken(command):
    _, out, _ = command("table", "a", "b", "--layer", "layer3", "layer4", "--by", "IC", "--format", "csv")
    table = pd.read_csv(pd.io.common.StringIO(out))
    assert table["layer"].tolist() == ["layer3", "layer4"]
    assert table["n_pairs"].tolist() == [1, 1]


@pytest.mark.parametrize(("name", "start"), [("t.tex", "% needs"), ("t.md", "| layer |"), ("t.html", "<table>")])
def test_the_ending_of_a_file_is_its_form(command, folder, name, start):
    assert command("table", "a", "--out", name)[:2] == (0, f"written to {name}\n")
    assert (folder / name).read_text().startswith(start)
    form = {".tex": "latex", ".md": "markdown", ".html": "html"}[Path(name).suffix]
    assert command("table", "a", "--format", form)[1] == (folder / name).read_text()


def test_an_excel_file_is_written(command, folder):
    pytest.importorskip("openpyxl")
    assert command("table", "a", "b", "--out", "t.xlsx")[0] == 0
    assert pd.read_excel(folder / "t.xlsx", sheet_name="results")["layer"].tolist() == ["layer4", "layer4"]


def test_printed_numbers_stand_beside_a_run(command):
    _, out, _ = command("table", "a", "--published", "opti-cam")
    assert "note: published: Zhang et al." in out
    assert re.search(r"^layer4 +gradcam +\S+ \[.*\] a +36\.4 ", out, re.MULTILINE)
    status, out, _ = command("table", "a", "--published", "Opti-CAM/vgg16")
    assert status == 0
    assert re.search(r"note: the layers: the table is measured again at features\.42; here \S+, \S+, so a printed number", out)


NO_RUN = [
    (
        ["--published", "grad-cam++"],
        "grad-cam++ has the networks VGG-16 (Caffe), VGG-16 fine-tuned, and the run's model is xaieval:",
    ),
    (["--published", "score-cam/VGG-19"], "no network 'VGG-19' in score-cam"),
    (["--published", "grad-cam++/VGG-16 fine-tuned"], "no row of grad-cam++/VGG-16 fine-tuned can be measured again"),
    (
        ["--published", "score-cam", "--methods", "layercam"],
        "has the methods rise, gradcam, gradcam++, score-cam, and the run none",
    ),
    (["--published", "score-cam", "--json"], "leave out --json, or take it from 'table' later"),
]


@pytest.mark.parametrize(("words", "message"), NO_RUN, ids=[" ".join(words) for words, _ in NO_RUN])
def test_a_table_that_a_run_cannot_be_put_beside_is_refused_before_it_is_measured(command, folder, words, message):
    status, _, err = command("score", "--out", "new", *words)
    assert status == 2
    assert message in err
    assert not (folder / "new").exists()


def test_published_tables_are_listed_and_printed(command):
    _, out, _ = command("published")
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == [
        *("grad-cam++", "score-cam", "opti-cam-normalised", "opti-cam", "torch-cam")
    ]
    _, out, _ = command("published", "torch-cam")
    assert re.search(r"resnet18 +LayerCAM +17\.12 +28\.19 .*torchvision:resnet18 layer4 layercam", out)
    assert "protocol: min-max with 1e-8 added to the range, then upsampled;" in out
    assert (
        "measured again: xaieval-bench score --model torchvision:resnet18 --pretrained --data folder:DIR --protocol torch-cam "
        "--layers layer4 --methods gradcam,gradcam++," in out
    )
    assert "average_gain" not in out
    assert command("published", "opti-cam")[1].count(" --metrics average_drop,increase_in_confidence,average_gain\n") == 2
    _, out, _ = command("published", "torch-cam/ResNet18")
    assert "resnet18" in out
    assert "mobilenet" not in out
    [document] = json.loads(command("published", "score-cam", "--json")[1])["published"]
    assert document["rows"][-1]["average_drop"] == 31.5


WRONG = [
    (["a", "--by", "AD"], "--by chooses the row of each of several runs, and here is one; give more folders"),
    (["a", "b", "--published", "opti-cam"], "--published goes with one run, and here are 2"),
    (["a", "b", "--letters"], "--letters goes with one run, and here are 2"),
    (["a", "a"], "a folder is given twice; give each run once"),
    (["a", "--format", "excel"], "an Excel file takes --out, such as --out table.xlsx"),
    (["a", "--out", "t.doc"], "a table is written to a file that ends in .txt, .md, .tex, .csv, .html, .xlsx; got 't.doc'"),
    (["a", "--out", "none/t.md"], "cannot write 'none/t.md': No such file or directory; choose another file"),
    (["a", "--label", "a#b", "--format", "latex"], "a label of LaTeX has letters"),
    (["a", "--published", "optikam"], "no published table 'optikam'; did you mean 'opti-cam'"),
    (["none"], "'none' holds no run"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_use_is_one_line(command, words, message):
    status, out, err = command("table", *words)
    assert status == 2
    assert out == ""
    assert re.fullmatch(r"xaieval-bench: [^\n]+\n", err)
    assert message in err
