"""The command `check`, and networks of random weights on the command line."""

from __future__ import annotations

import json

import pytest

from xaieval.cli import main


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        main([*arguments])
        status = 0
    except SystemExit as stopped:
        status = int(stopped.code)
    out, err = capsys.readouterr()
    return status, out, err


def test_check_says_that_nothing_was_found(capsys):
    status, out, _ = run(capsys, "check", "--max-images", "16")
    assert status == 0
    assert out.startswith("accuracy 100.0 % (16 of 16 labels), mean confidence")
    assert "nothing found on 16 images; this does not prove that all is right" in out


def test_check_finds_the_wrong_normalisation(capsys):
    plain = ("--mean", "0,0,0", "--std", "1,1,1", "--max-images", "16")
    status, out, _ = run(capsys, "check", *plain)
    assert status == 0
    assert "[wrong_normalisation]" in out
    status, out, _ = run(capsys, "check", *plain, "--json")
    document = json.loads(out)
    assert [finding["name"] for finding in document["findings"]] == ["wrong_normalisation"]
    assert document["images"] == 16
    status, _, err = run(capsys, "check", *plain, "--strict")
    assert status == 1
    assert "strict: 1 finding" in err


def test_check_looks_at_the_maps_of_layers(capsys):
    status, out, _ = run(capsys, "check", "--layers", "fpn[*]", "--max-images", "8", "--json")
    assert status == 0
    assert json.loads(out)["findings"] == []


RANDOM = ("--model", "timm:test_resnet", "--data", "scenes", "--max-images", "2", "--image-size", "32")


@pytest.mark.parametrize("command", ["score", "check"])
def test_random_weights_are_refused(capsys, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, command, *RANDOM)
    assert status == 2
    assert "timm:test_resnet without --weights FILE or --pretrained has random weights" in err
    assert "--random-weights" in err
    assert not any(tmp_path.iterdir())


def test_random_weights_on_request_are_those_of_the_seed_and_said(capsys, tmp_path):
    fingerprints = []
    for folder, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        out = str(tmp_path / folder)
        arguments = ("--random-weights", "--seed", seed, "--no-progress", "--out", out, "--layers", "conv1")
        status, text, _ = run(capsys, "score", *RANDOM, *arguments)
        assert status == 0
        assert "[random_weights]" in text
        fingerprints.append(json.loads((tmp_path / folder / "manifest.json").read_text())["model"]["fingerprint"])
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_strict_run_fails_with_one_line(capsys, tmp_path):
    arguments = ("score", "--mean", "0,0,0", "--std", "1,1,1", "--max-images", "8", "--strict", "--no-progress", "--out")
    status, _, err = run(capsys, *arguments, str(tmp_path / "run"))
    assert status == 1
    assert err.count("\n") == 1
    assert "[wrong_normalisation]" in err
