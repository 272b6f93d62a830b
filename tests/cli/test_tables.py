"""Output of the commands on wide and narrow terminals, in a pipe, and as JSON."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.table import Table

import xaieval
from tests import ROOT
from xaieval.cli import main
from xaieval.cli.json_output import records, render, score_document
from xaieval.cli.tables import print_pooled, print_summary, print_table, print_text
from xaieval.config.presets import PRESETS
from xaieval.metrics.catalogue import catalogue
from xaieval.results.metric_display import interval_text

COMMAND = [sys.executable, "-m", "xaieval.cli"]
COLOUR = re.compile(r"\x1b\[[\d;]*(?:3[0-8]|4[0-8]|9[0-7])[\d;]*m")
STYLE = re.compile(r"\x1b\[[\d;]*m")
QUICK = ("score", "--max-images", "4", "--batch-size", "2", "--layers", "fpn[p4],fpn[p5]", "--out")
FEW = ("--max-images", "2", "--layers", "fpn[p5]", "--no-progress")
FIELDS = re.compile(r"^\| `([\w\[\].]+)` \|", re.MULTILINE)


def _environment(**variables: str) -> dict[str, str]:
    """This process's, without what a terminal or a user may have said about colours and width."""
    told = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TERM", "COLORTERM")
    return {name: value for name, value in os.environ.items() if name not in told} | variables


def _on_terminal(*arguments: str, columns: int, **variables: str) -> str:
    """What the command shows on a terminal of its own: standard output and errors, as they come."""
    ours, theirs = pty.openpty()
    os.set_inheritable(theirs, True)
    variables = {"TERM": "xterm-256color", "COLUMNS": str(columns)} | variables
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=_environment(**variables)
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # what Linux says at the end
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode().replace("\r\n", "\n")


def _in_pipe(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, env=_environment(**variables))


@cache
def _document(*arguments: str) -> dict[str, Any]:
    """The document of a command in this process, which has to be all that it writes."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        main([*arguments, "--json"])
    assert err.getvalue() == ""
    document = json.loads(out.getvalue(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert document.pop("xaieval") == xaieval.__version__
    return document


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run with controls, and what a terminal of 60 columns showed of it."""
    folder = tmp_path_factory.mktemp("shown") / "run"
    return folder, _on_terminal(*QUICK, str(folder), "--controls", columns=60)


# ---- terminals


@pytest.mark.slow
def test_a_narrow_terminal_shows_a_block_for_each_row_with_everything_in_it(run):
    folder, shown = run
    text = STYLE.sub("", shown.split("\x1b[2K")[-1])  # behind the progress bar, which is wiped out
    summary = pd.read_csv(folder / "summary.csv")
    blocks = dict(re.findall(r"^(\S+  \S+)\n((?:  .*\n)+)", text, re.MULTILINE))
    assert list(blocks) == [f"{row.layer}  {row.method}" for row in summary.itertuples()]
    for row, block in zip(summary.itertuples(), blocks.values(), strict=True):
        drop = f"{row.average_drop:z.1f} {interval_text(row.average_drop_low, row.average_drop_high, 'z.1f')}"
        assert f"AD % [95% interval], lower is better: {drop}" in block
        assert re.search(rf"mask, area %: {100 * row.mask_area:.1f} .*n: 4 .*failed: 0 ", " ".join(block.split()) + " ")
        assert "controls beaten" in block
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 60


@pytest.mark.slow
def test_progress_shows_a_rate_and_the_time_left_and_is_wiped_out(run):
    shown = run[1]
    assert re.search(r"scoring .*\d+\.\d images/s .*\d:\d\d:\d\d", shown)
    assert shown.index("images/s") < shown.rindex("\x1b[2K") < shown.index("fpn[p4]")


def test_a_wide_terminal_shows_a_table():
    shown = STYLE.sub("", _on_terminal("protocols", columns=2000))
    heading, *rows = [line for line in shown.splitlines() if line.startswith(" ")]
    assert heading.split()[0] == "protocol"
    assert [row.split()[0] for row in rows] == [preset.name for preset in PRESETS]


@pytest.mark.slow
def test_colours_are_left_out_where_that_is_asked_for_and_nothing_else_changes(run):
    folder, shown = run
    without = _on_terminal(*QUICK, str(folder), "--controls", columns=60, NO_COLOR="1")
    assert COLOUR.search(shown), "of the progress bar"
    assert not COLOUR.search(without)
    assert STYLE.sub("", without.split("\x1b[2K")[-1]) == STYLE.sub("", shown.split("\x1b[2K")[-1])


def test_a_terminal_that_understands_no_control_characters_gets_none():
    shown = _on_terminal("protocols", columns=60, TERM="dumb")
    assert "\x1b" not in shown
    assert shown == STYLE.sub("", _on_terminal("protocols", columns=60))


# ---- pipes


@pytest.mark.parametrize("variables", [{}, {"COLUMNS": "60"}, {"FORCE_COLOR": "1"}, {"PYTHONIOENCODING": "ascii"}])
def test_a_pipe_gets_one_whole_line_for_each_row(variables):
    done = _in_pipe("protocols", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    lines = STYLE.sub("", done.stdout).splitlines()
    assert len(lines) == 1 + len(PRESETS) + 1
    for line, preset in zip(lines[1:], PRESETS, strict=False):
        assert line.split()[0] == preset.name
        for part in (preset.does, preset.source, preset.open_choices, preset.faults):
            assert part in line


def test_a_long_name_is_never_cut_off(capsys):
    name = "backbone." + "layer." * 60 + "conv"
    table = Table("address", "type", box=None)
    table.add_row(name, "Conv2d")
    print_table(table)
    assert name in capsys.readouterr().out


def test_what_looks_like_markup_is_shown_as_it_is(capsys):
    table = Table("layer", "method", "n", box=None)
    table.add_row("fpn[p5]", "[bold]", "1")
    print_table(table, names=2)
    print_text("[red]5[/red]")
    out = capsys.readouterr().out
    assert re.search(r"fpn\[p5\] +\[bold\] +1", out)
    assert "[red]5[/red]\n" in out


# ---- machines


def test_a_document_has_null_for_what_is_no_number_and_tables_with_the_names_of_their_index():
    table = pd.DataFrame({"mean": [1.5, float("nan")], "n": [2, 0]}, index=pd.Index(["p4", "p5"], name="layer"))
    assert list(records(table)[0]) == list(records(table.reset_index())[0]) == ["layer", "mean", "n"]
    assert json.loads(render({"rows": records(table), "most": float("inf")})) == {
        "xaieval": xaieval.__version__,
        "rows": [{"layer": "p4", "mean": 1.5, "n": 2}, {"layer": "p5", "mean": None, "n": 0}],
        "most": None,
    }


@pytest.mark.slow
def test_the_document_of_a_run_says_what_its_files_say(run):
    folder, _ = run
    document = _document(*QUICK, str(folder), "--controls")
    scores = xaieval.Scores.load(folder)
    assert document["folder"] == str(folder)
    assert sorted(document["files"]) == sorted(path.name for path in folder.iterdir())
    assert [metric["name"] for metric in document["metrics"]] == ["average_drop", "increase_in_confidence"]
    summary = scores.summary()
    assert [(row["layer"], row["method"]) for row in document["summary"]] == list(summary.index)
    for name in summary.columns:
        expected = [None if pd.isna(value) else value for value in summary[name]]
        assert [row[name] for row in document["summary"]] == pytest.approx(expected), name
    assert document["statuses"] == scores.rows["status"].value_counts().to_dict()
    assert document["warnings"] == scores.warnings()
    assert document["stopped"] is None
    ranking = scores.rank("average_drop", "both")
    assert document["rankings"][0]["n_images"] == ranking.n_images == 4
    assert [item["method"] for item in document["rankings"][0]["items"]] == list(ranking.table["method"])


@pytest.mark.slow
def test_the_document_of_a_comparison_is_the_table(run):
    folder = str(run[0])
    document = _document("compare", folder, folder)
    assert (document["first"], document["second"]) == (folder, folder)
    assert len(document["comparison"]) == 2 * (2 + 5)
    assert document["comparison"][0]["difference"] == 0
    assert document["comparison"][0]["effect_size"] is None, "there is none where nothing differs"


def test_numbers_over_all_images_are_printed_written_and_in_the_document(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"image_id": [*range(30)] * 2, "layer": ["p4"] * 30 + ["p5"] * 30, "method": "gradcam", "status": "ok"})
    rows = rows.assign(
        boxes=10.0, boxes_curve=list(rng.uniform(0, 100, (60, 5))), seg=20.0, seg_curve=list(rng.random((60, 4)))
    )
    known = {"higher_is_better": True, "interval": "mean"}
    boxes = {"pooled": "max_box_accuracy", "iou": [0.5], "components": "largest"}
    metrics = [
        {"name": "boxes", "label": "box accuracy %", **known, "settings": boxes},
        {"name": "seg", "label": "mean IoU %", **known, "settings": {"pooled": "mean_iou"}},
    ]
    scores = xaieval.Scores(rows, {"metrics": metrics, "seed": 0})
    pooled = scores.pooled(level=0.9)
    print_pooled(scores, 0.9)
    printed = capsys.readouterr().out
    assert "MaxBoxAcc % [90% interval]" in printed
    for (layer, method), row in pooled.iterrows():
        cells = [
            f"{row[name]:.1f} [{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}] 30"
            for name in ("max_box_accuracy", "mean_iou")
        ]
        assert f"{layer} {method} {' '.join(cells)}" in " ".join(printed.split())
    scores.save(tmp_path, 0.9)
    written = pd.read_csv(tmp_path / "pooled.csv", index_col=["layer", "method"])
    pd.testing.assert_frame_equal(written, pooled)
    document = score_document(scores, scores.summary(0.9), [], 0.9, [], tmp_path)
    assert document["pooled"] == records(pooled)
    few = xaieval.Scores(rows.groupby("layer").head(9), scores.manifest)
    print_pooled(few, 0.9)
    assert "[-]: no interval: a percentile bootstrap interval takes at least 20 images" in capsys.readouterr().out


def test_documents_list_what_the_tables_list():
    layers = _document("layers")["layers"]
    assert "fpn[p5]" in [layer["address"] for layer in layers]
    assert {type(layer["parameters"]) for layer in layers} == {int}
    assert any(layer["stride"] is None for layer in layers)
    methods = _document("methods")["methods"]
    assert [entry["name"] for entry in methods] == [*xaieval.explainers.METHODS, *xaieval.explainers.LIBRARY_METHODS]
    names = [entry["name"] for entry in _document("metrics")["metrics"]]
    assert names == [entry.name for entry in catalogue()]
    assert set(names) == set(xaieval.metrics.METRICS)
    protocols = _document("protocols")["protocols"]
    assert [entry["name"] for entry in protocols] == [preset.name for preset in PRESETS]
    assert protocols[1]["choices"] == {"normalisation": "max", "normalise_at": "layer"}


@pytest.mark.slow
def test_nothing_but_the_document_gets_to_stdout(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "chatty.py").write_text(
        "from xaieval.models import fpn_scenes\ndef make():\n    print('loading')\n    return fpn_scenes()\n"
    )
    size = ("--image-size", "64", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    main(["score", "--model", "chatty:make", *size, *QUICK[1:], str(tmp_path / "run"), "--json"])
    written = capsys.readouterr()
    assert json.loads(written.out)["statuses"] == {"ok": 8}
    assert "loading" in written.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("score", "--layers", "nope", "--max-images", "2"), 2, "no layer 'nope'"),
        (("methods", "--markdown"), 2, "--json and --markdown are two forms of the same table; choose one"),
        (("metrics", "--markdown"), 2, "--json and --markdown are two forms of the same table; choose one"),
        ((*QUICK, "run", "--minimum-confidence", "2"), 1, "no row could be counted"),
    ],
)
def test_errors_stay_one_line_on_stderr(arguments, status, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--json"])
    written = capsys.readouterr()
    assert stopped.value.code == status
    assert written.out == ""
    assert re.fullmatch(rf"xaieval-bench: {re.escape(message)}[^\n]*\n", written.err)


def _paths(value: Any, before: str = "") -> set[str]:
    """The fields of a document as the page writes them: `summary[].layer`, with `METRIC` for the name of a metric."""
    if isinstance(value, list):
        return set().union(*(_paths(item, f"{before}[]") for item in value))
    if not isinstance(value, dict):
        return {before} if before else set()
    inner = set().union(*(_paths(item, f"{before}.{name}".lstrip(".")) for name, item in value.items()))
    return {re.sub("(average_drop|increase_in_confidence)(_excess)?", "METRIC", path) for path in inner}


@pytest.mark.slow
def test_the_page_lists_the_fields_of_every_document(run, tmp_path):
    folder = str(run[0])
    parts = re.split(r"^## `(\w+)`\n", (ROOT / "docs/json.md").read_text(), flags=re.MULTILINE)
    listed = {command: set(FIELDS.findall(text)) for command, text in zip(parts[1::2], parts[2::2], strict=True)}
    commands = {
        "score": (*QUICK, folder, "--controls"),
        "compare": ("compare", folder, folder),
        "agreement": ("agreement", str(ROOT / "benchmarks/ucmerced_mobilenetv2")),
        "report": ("report", folder, "--no-maps", "--out", str(tmp_path / "report.html")),
        "check": ("check", "--mean", "0,0,0", "--std", "1,1,1", "--max-images", "16"),
        "explain": ("explain", *FEW, "--figure", "png", "--out", str(tmp_path / "maps")),
        "search": ("search", *FEW, "--by", "average_drop", "--methods", "fast", "--out", str(tmp_path / "search")),
        **{command: (command,) for command in ("layers", "methods", "metrics", "protocols", "published")},
    }
    found = {command: _paths(_document(*arguments)) for command, arguments in commands.items()}
    odd = ("--controls", "matched", "--mean", "0,0,0", "--std", "1,1,1")  # a run with matched controls and a finding
    found["score"] |= _paths(_document(*QUICK, str(tmp_path / "matched"), *odd))
    found["score"] = {re.sub(r"^statuses\..*", "statuses.STATUS", path) for path in found["score"]}
    for command in ("score", "check"):  # the evidence has other numbers for each finding
        found[command] = {re.sub(r"(evidence)\..*", r"\1", path) for path in found[command]}
    found["protocols"] = {re.sub(r"(choices)\..*", r"\1.NAME", path) for path in found["protocols"]}
    found["explain"] = {re.sub(r"^files\..*", "files.KIND", path) for path in found["explain"]}
    assert listed.keys() == {*found, "fal", "cross"}, "these have tests of their own"
    for command, paths in found.items():
        assert {path.removesuffix("[]") for path in paths} == listed[command], command


def test_every_command_that_shows_a_table_has_a_document(capsys):
    # The experiment takes long: its document is looked at beside its other tests.
    for command in (
        "score",
        "explain",
        "search",
        "check",
        "fal",
        "compare",
        "cross",
        "agreement",
        "layers",
        "methods",
        "metrics",
        "protocols",
        "published",
        "report",
    ):
        main([command, "--help"])
        assert "--json" in capsys.readouterr().out, command


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "csv"])
def test_the_table_of_a_run_is_printed_in_each_form(run, form, capsys):
    found = xaieval.Scores.load(run[0]).table(0.9)
    main(["table", str(run[0]), "--format", form, "--level", "0.9", "--label", "tab:one"])
    expected = {
        "text": f"{found}\n\n{found.caption}\n\n{found.in_words()}",
        "markdown": found.to_markdown(),
        "latex": found.to_latex("tab:one"),
        "csv": found.to_csv().rstrip(),
    }
    assert capsys.readouterr().out == expected[form] + "\n"


def test_more_pairs_than_fit_into_a_line_have_their_letters_in_the_table(capsys):
    drops = {"name": "average_drop", "label": "AD %", "higher_is_better": False, "interval": "mean"}
    image, noise = np.arange(30), np.random.default_rng(0).normal(0, 1, (9, 30))
    parts = [
        pd.DataFrame({"image_id": image, "layer": f"p{layer}", "method": "gradcam", "average_drop": 20 * layer + noise[layer]})
        for layer in range(9)
    ]
    rows = pd.concat(parts, ignore_index=True).assign(status="ok", mask_area=0.5)
    scores = xaieval.Scores(rows, {"metrics": [drops], "seed": 0})
    print_summary(scores, scores.summary(), None, 0.95)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    marked = {line.split()[0]: re.search(r"\] +([a-z]+) ", line)[1] for line in lines if re.match(r"p\d ", line)}
    assert marked == {f"p{layer}": "abcdefghi"[layer] for layer in range(9)}
    assert "items that share a letter in a column cannot be told apart at 95%" in lines
    assert scores.table().in_words().splitlines() == lines[-2:]
    assert len({line.index("]") for line in lines if re.match(r"p\d ", line)}) == 1, "numbers line up"
    few = xaieval.Scores(rows[rows["layer"] < "p8"], scores.manifest)
    print_summary(few, few.summary(), None, 0.95)
    assert "letter" not in capsys.readouterr().out
