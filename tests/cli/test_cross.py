"""The command `cross`: two runs are all it takes, its numbers are those of `cross_score`, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

import xaieval
from tests import ROOT
from tests.cli.test_tables import FIELDS, _paths
from xaieval.cli import main
from xaieval.data import Preprocessing, scenes

IMAGES = ("--max-images", "8", "--layers", "fpn[p4],fpn[p5]", "--no-progress")
SIZE = ("--image-size", "128", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
CODE = "--import-code"
FACTORY = """
import torch
from xaieval.models import fpn_scenes

def plain():
    return fpn_scenes()

def soft():
    model = fpn_scenes()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(0.25)
    return model
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: of the built-in model, and of a softer copy of it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "softer.py").write_text(FACTORY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name in ("plain", "soft"):
            main(["score", "--model", f"softer:{name}", *SIZE, *IMAGES, "--out", str(folder / name)])
        yield folder / "plain", folder / "soft"


def _refused(arguments, capsys, *more: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["cross", *map(str, arguments), "--no-progress", *more])
    return stopped.value.code, capsys.readouterr().err.strip()


@pytest.mark.slow
def test_the_command_gives_the_cross_scores_of_two_runs(runs, tmp_path, capsys):
    import softer

    words = ["cross", *map(str, runs), CODE, "--no-progress"]
    main([*words, "--out", str(tmp_path / "cross")])
    printed = capsys.readouterr().out
    found = xaieval.CrossScores.load(tmp_path / "cross")
    loader = scenes(Preprocessing(224, 256, mean=(0.5,) * 3, std=(0.5,) * 3).with_size(128), size=8).loader(batch_size=32)
    models = {"plain": softer.plain(), "soft": softer.soft()}
    expected = xaieval.cross_score(models, loader, ["fpn[p4]", "fpn[p5]"], controls="center", progress=False)
    pd.testing.assert_frame_equal(found.table(), expected.table(), atol=1e-4)
    for name, folder in zip(("plain", "soft"), runs, strict=True):
        own = found.rows[(found.rows["masks_of"] == name) & (found.rows["model"] == name)]
        scored = xaieval.Scores.load(folder).rows
        assert own["average_drop"].tolist() == pytest.approx(scored["average_drop"].tolist(), abs=1e-3)
    row = found.table().loc[("fpn[p5]", "gradcam", "average_drop", "plain", "soft")]
    assert re.search(rf"fpn\[p5\] +gradcam +AD % +plain .* {row['mean']:.1f} \[", printed)
    assert re.search(r"fpn\[p5\] +gradcam +AD % +difference +[-+]", printed)
    main([*words, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["models"] == ["plain", "soft"]
    assert len(document["table"]) == len(found.table())
    assert [part["part"] for part in document["parts"]][:3] == ["difference", "map", "model"]
    document.pop("xaieval")
    listed = set(FIELDS.findall((ROOT / "docs/json.md").read_text().split("## `cross`")[1].split("## `")[0]))
    assert document.pop("notes") == [], "every image counts"
    assert {path.removesuffix("[]") for path in _paths(document)} | {"notes"} == listed


@pytest.mark.slow
def test_what_cannot_be_crossed_is_refused(runs, tmp_path, capsys):
    plain, soft = runs
    status, error = _refused([plain, soft], capsys)
    assert status == 1
    assert error == "xaieval-bench: they need code from 'softer:plain', which is imported only with --import-code"
    assert _refused([plain, plain], capsys, CODE) == (2, f"xaieval-bench: cross takes two runs, got '{plain}' twice")
    other = _changed(plain, tmp_path / "other", methods=["layercam"])
    status, error = _refused([plain, other], capsys, CODE)
    assert status == 2
    assert "the runs were made with different options: methods is ['gradcam'] in plain and ['layercam'] in other" in error
    grouped = _changed(plain, tmp_path / "grouped", groups="class")
    error = "the runs were made with different options: groups is None in plain and 'class' in grouped; all models of cross are"
    assert error in _refused([plain, grouped], capsys, CODE)[1]
    assert _refused([plain, soft], capsys, CODE, "--max-images", "0") == (2, "xaieval-bench: max_images is at least 1, got 0")
    python = _changed(plain, tmp_path / "python", drop=True)
    assert (
        "the run python was made from Python; give its model to xaieval.cross_score there"
        in _refused([python, plain], capsys, CODE)[1]
    )
    small = _changed(plain, tmp_path / "small", image_size=64)
    assert (
        "the images are prepared differently: image_size is 128 in plain and 64 in small"
        in _refused([plain, small], capsys, CODE)[1]
    )
    changed = _changed(plain, tmp_path / "changed")
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["model"]["fingerprint"] = "0" * 16
    (changed / "manifest.json").write_text(json.dumps(manifest))
    assert "the model 'softer:plain' is not the one that changed scored" in _refused([plain, changed], capsys, CODE)[1]


@pytest.mark.slow
def test_a_run_from_before_an_option_has_its_default(runs, tmp_path, capsys):
    plain, soft = runs
    scores = xaieval.Scores.load(soft)
    scores.manifest["options"] = {
        name: value for name, value in scores.manifest["options"].items() if name not in ("group_weights", "methods")
    }
    scores.save(tmp_path / "older")
    main(["cross", str(plain), str(tmp_path / "older"), CODE, "--no-progress", "--max-images", "4"])
    assert "gradcam" in capsys.readouterr().out


def _changed(folder: Path, new: Path, drop: bool = False, **options: object) -> Path:
    """A copy of a run with other options in its manifest, or with none."""
    scores = xaieval.Scores.load(folder)
    manifest = dict(scores.manifest)
    manifest["options"] = {} if drop else manifest["options"] | options
    xaieval.Scores(scores.rows, manifest).save(new)
    return new
