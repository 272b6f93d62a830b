"""README and examples say what the code does: commands, numbers, and scripts that run."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from typing import Any

import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image

import xaieval
from tests import ROOT
from xaieval.cli import main

README = (ROOT / "README.md").read_text()
CELL = re.compile(r"([\d.]+) \[([\d.]+), ([\d.]+)\]")


def test_readme_has_the_commands_that_continuous_integration_runs():
    script = (ROOT / ".ci/run").read_text()
    for command in ("pip install . && xaieval-bench score", 'pip install -e ".[dev]" && pytest'):
        assert f"\n{command}\n" in README
        assert f"\n{command}\n" in script


@pytest.mark.slow
def test_readme_shows_what_the_first_run_gives(tmp_path):
    main(["score", "--out", str(tmp_path), "--no-progress"])
    summary = pd.read_csv(tmp_path / "summary.csv").set_index("layer")
    printed = {line.split()[0]: line for line in README.splitlines() if line.startswith(" fpn[")}
    assert list(printed) == list(summary.index)
    for layer, line in printed.items():
        drop, increase = (float(mean) for mean, _, _ in CELL.findall(line))
        # One image more or less than on the author's machine is rounding of the processor, more is another result.
        assert summary.loc[layer, "average_drop"] == pytest.approx(drop, abs=0.6)
        assert summary.loc[layer, "increase_in_confidence"] == pytest.approx(increase, abs=0.6)


def test_the_readers_own_case_runs_as_written(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (80, 64), "red").save(tmp_path / "photos" / name / "1.png")
    small = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=2)
    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights: small)  # "DEFAULT" would be downloaded
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {"images": torch.rand(1, 3, 64, 64)}
    first, second = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    exec(first, known)  # the README's own lines
    exec(second, known)
    assert set(known["scores"].rows["layer"]) == {"layer3", "layer4"}
    assert (tmp_path / "report.html").exists()


def test_readme_table_of_the_real_case_is_the_benchmark_result():
    scores = xaieval.Scores.load(ROOT / "benchmarks/ucmerced_mobilenetv2")
    shown = scores.rows["layer"].isin(["blocks.2", "blocks.4", "blocks.6"]) & scores.rows["method"].isin(
        ["gradcam", "layercam"]
    )
    table = str(xaieval.Scores(scores.rows[shown], scores.manifest).table()).splitlines()
    assert f"\n{chr(10).join(table)}\n```" in README


def test_benchmark_run_file_is_read_by_the_command(tmp_path, capsys):
    settings = tomllib.loads((ROOT / "benchmarks/ucmerced_mobilenetv2.toml").read_text())
    assert settings["max-images"] == 210
    with pytest.raises(SystemExit) as stopped:
        main(["score", str(ROOT / "benchmarks/ucmerced_mobilenetv2.toml"), "--weights", str(tmp_path / "missing.safetensors")])
    assert stopped.value.code == 2
    assert "no weights file" in capsys.readouterr().err


@pytest.mark.parametrize("run_file", sorted((ROOT / "benchmarks/fal").glob("*.toml")), ids=lambda path: path.stem)
def test_run_files_of_the_experiment_are_read_by_the_command(run_file, tmp_path, capsys):
    option = "--held-out-class" if "held-out-class" in tomllib.loads(run_file.read_text()) else "--class"
    words = ["--weights", str(tmp_path / "missing.safetensors"), "--data", "scenes", option, "cross", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main(["fal", str(run_file), *words])
    assert stopped.value.code == 2
    assert "no weights file" in capsys.readouterr().err


def test_tables_of_the_experiment_are_those_of_its_reports():
    page = (ROOT / "docs/fal.md").read_text()
    parts = re.split(r"<!-- from (benchmarks/fal/\w+/\w+\.md) -->\n", page)
    assert len(parts) > 4
    for report, text in zip(parts[1::2], parts[2::2], strict=True):
        known = (ROOT / report).read_text().splitlines()
        table = text.split("\n\n")[0].splitlines()
        assert len(table) > 2
        assert [line for line in table if line not in known] == []


# Less work than on the page, in the words of the scripts: all of their lines run, on fewer images.
LESS: dict[str, dict[str, str]] = {
    "black_box": {"size=10": "size=3", "n_masks=200": "n_masks=8", "stride=12": "stride=24"},
    "compare_methods": {"IMAGES = 8": "IMAGES = 2"},
    "controls": {"IMAGES = 60": "IMAGES = 12"},
    "cross_score": {"size=100": "size=20", "epochs=2": "epochs=1", "size=80": "size=10"},
    "custom_explainer": {"size=60": "size=10"},
    "custom_metric": {"size=60": "size=10"},
    "detector_fpn": {"STEPS, BATCH = 60, 8": "STEPS, BATCH = 20, 4", "load(0, 24": "load(0, 6"},
    "distributed_run": {"--max-images 40": "--max-images 6", "--batch-size 10": "--batch-size 3", "size=40": "size=6"},
    "fal_in_thirty_lines": {"size=160": "size=20", "epochs=4": "epochs=1", "size=60": "size=12", "size=80": "size=10"},
    "figures": {"IMAGES = 60": "IMAGES = 12", "max_images=20": "max_images=4"},
    "huggingface_vit": {"size=24": "size=8"},
    "insertion_deletion": {"IMAGES = 40": "IMAGES = 4"},
    "lightning_callback": {"size=80": "size=20", "size=40": "size=8", "max_images=40": "max_images=8", "epochs=6": "epochs=2"},
    "localisation": {"size=60": "size=8"},
    "rank_layers": {"size=100": "size=12"},
    "sanity_check": {'"fpn[p3]", 30, 7': '"fpn[p3]", 6, 3'},
    "score_a_model": {"size=60": "size=8"},
    "timm_models": {"size=8": "size=3"},
}


@pytest.mark.slow
# Remarks of Lightning's on its own old parts, and on a logger that nobody asked for.
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec", "ignore:.*litlogger")
@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(script, tmp_path, monkeypatch, capsys):
    text = script.read_text()
    for page, here in LESS.get(script.stem, {}).items():
        assert page in text, f"{script.name} does not say {page!r} any more"
        text = text.replace(page, here)
    quick = tmp_path / script.name
    quick.write_text(text)
    monkeypatch.setattr(sys, "argv", [str(quick), str(tmp_path)])
    runpy.run_path(str(quick), run_name="__main__")
    assert "average_drop" in capsys.readouterr().out
    assert list(tmp_path.glob("*.png"))


def _cell(row: dict[str, float], metric: str) -> str:
    return f"{row[metric]:.1f} [{row[f'{metric}_low']:.1f}, {row[f'{metric}_high']:.1f}]"


@pytest.mark.slow
def test_tables_of_the_page_on_speed_are_the_benchmark_results(tmp_path):
    for results in (ROOT / "benchmarks/speed/results").glob("*.csv"):
        shutil.copy(results, tmp_path)
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks/speed"), "tables", "--out", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs/speed.md").read_text()
    tables = re.findall(r"^<!-- from (\w+\.csv) -->\n((?:\|.*\n)+)", printed, re.MULTILINE)
    assert {name for name, _ in tables} >= TABLES
    for _, table in tables:
        assert table in page


def test_the_table_of_bf16_is_the_benchmark_result():
    rows = pd.read_csv(ROOT / "benchmarks/bf16.csv").to_dict("records")
    wanted = [f"| `{row['layer']}` | {row['n']} | {_change(row, 'average_drop')} | {_change(row, METRIC)} |" for row in rows]
    assert [line for line in (ROOT / "docs/speed.md").read_text().splitlines() if line.startswith("| `blocks.")] == wanted


def test_the_table_of_faults_is_the_benchmark_result():
    rows = pd.read_csv(ROOT / "benchmarks/faults.csv").to_dict("records")
    wanted = [f"| {row['fault']} | {row['tried']} | {row['most_lost']} | {row['ended']} | {row['same_rows']} |" for row in rows]
    assert len(wanted) == 9
    assert wanted == [line for line in (ROOT / "docs/reliability.md").read_text().splitlines() if line in wanted]


def test_the_table_of_agreement_is_that_of_its_simulation():
    page = (ROOT / "docs/statistics.md").read_text()
    lines = page.split("<!-- from benchmarks/agreement.csv -->\n")[1].split("\n\n")[0].splitlines()
    rows = pd.read_csv(ROOT / "benchmarks/agreement.csv").to_dict("records")
    cells = [line.strip("| ").split(" | ") for line in lines]
    shown = {
        (*name.split(", "), *line[:2]): value for line in cells[2:] for name, value in zip(cells[0][2:], line[2:], strict=True)
    }
    assert {
        (f"{row['spread']:g}", f"{row['likeness']:g}", str(row["pairs"]), str(row["images"])): f"{row['coverage']:.1f}"
        for row in rows
    } == shown


def test_the_table_of_perturbation_is_the_benchmark_result():
    rows = pd.read_csv(ROOT / "benchmarks/perturbation.csv").to_dict("records")
    wanted = [
        f"| `{row['method']}` | {row['tool']} | {row['score_is_faster']:.1f} "
        f"[{row['score_is_faster_low']:.1f}, {row['score_is_faster_high']:.1f}] |"
        for row in rows
        if not row["tool"].startswith("xaieval")
    ]
    assert set(wanted) <= set((ROOT / "docs/perturbation.md").read_text().splitlines())


def test_the_tables_of_concepts_are_what_its_script_measured():
    numbers = pd.read_csv(ROOT / "docs/concepts/numbers.csv").set_index("figure")
    page = (ROOT / "docs/concepts.md").read_text().splitlines()
    wanted = [
        [
            str(row["what"]).removeprefix("map to the power "),
            f"{row['mask_area']:.1f}",
            _cell(row, "average_drop"),
            _cell(row, METRIC),
            f"{row['deletion']:.2f} [{row['deletion_low']:.2f}, {row['deletion_high']:.2f}]",
        ]
        for row in numbers.loc["map_size"].to_dict("records")
    ]
    wanted += [
        [f"`{row['what']}`", *[_cell(row, name) for name in ("average_drop", METRIC, "average_gain", "adcc")]]
        for row in numbers.loc["fooled"].to_dict("records")
    ]
    wanted += [
        [row["what"], _cell(row, "average_drop"), _cell(row, METRIC)] for row in numbers.loc["choices"].to_dict("records")
    ]
    assert len(wanted) == 17
    for cells in wanted:
        assert f"| {' | '.join(cells)} |" in page
    assert set(numbers["n_images"]) == {200}


@pytest.mark.slow
def test_the_figures_of_concepts_are_made_by_their_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["figures.py", str(tmp_path), "2"])
    runpy.run_path(str(ROOT / "docs/figures.py"), run_name="__main__")
    committed = {path.name for path in (ROOT / "docs/concepts").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == committed
    assert "average_drop" in capsys.readouterr().out


TABLES = {f"{name}.csv" for name in ("peers", "agreement", "batch_trials", "calls", "startup")}
METRIC = "increase_in_confidence"


def _change(row: dict[str, float], metric: str) -> str:
    change = f"{row[f'{metric}_difference']:+.2f} [{row[f'{metric}_low']:+.2f}, {row[f'{metric}_high']:+.2f}]"
    return f"{row[f'{metric}_float32']:.1f} | {change}"
