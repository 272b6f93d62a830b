"""The command `search`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xaieval.cli import main
from xaieval.evaluation.scores import Scores
from xaieval.evaluation.search import SearchResult

QUICK = {
    "--max-images": "24",
    "--batch-size": "8",
    "--by": "average_drop",
    "--layers": "fpn[p2],fpn[p5]",
    "--methods": "gradcam,layercam",
}


def run(capsys, folder: Path, *switches: str, **others: str) -> tuple[int, str, str]:
    options = QUICK | {f"--{name}": value for name, value in others.items()} | {"--out": str(folder)}
    try:
        main(["search", *(word for option in options.items() for word in option), *switches])
        status = 0
    except SystemExit as stopped:
        status = int(stopped.code)
    out, err = capsys.readouterr()
    return status, out, err


def test_the_table_the_document_and_the_folder_say_the_same(capsys, tmp_path):
    status, out, _ = run(capsys, tmp_path)
    assert status == 0
    status, document, _ = run(capsys, tmp_path, "--json")  # from the finished folder
    said = json.loads(document)
    found = SearchResult(Scores.load(tmp_path))
    assert tuple(said["best"]) == found.best
    assert f"{said['reason']}; {100 * said['spent']:.1f} % of the full grid was measured" in out
    assert [(row["layer"], row["method"]) for row in said["table"]] == list(found.table().index)
    assert f"written to {tmp_path}" in out


def test_methods_that_do_not_fit_are_named(capsys, tmp_path):
    status, out, _ = run(capsys, tmp_path, layers="fpn[p5]", methods="fast")
    assert status == 0
    assert "left out: cam at fpn[p5]: method 'cam' needs a layer that feeds global average pooling" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": "gradcma,layercam"}, "no method 'gradcma'; did you mean 'gradcam'"),
        ({"by": "infidelity"}, "the values of 'infidelity' have no bounds"),
        ({"by": "sparsness"}, "no metric 'sparsness'"),
        ({"error": "2"}, "error is a probability in (0, 1)"),
        ({"methods": "gradcam", "layers": "fpn[p5]"}, "a race needs two pairs of layer and method"),
    ],
)
def test_wrong_use_is_one_line(capsys, tmp_path, arguments, message):
    status, _, err = run(capsys, tmp_path / "run", **arguments)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
