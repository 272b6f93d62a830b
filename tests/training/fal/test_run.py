"""The whole experiment on a few generated images: resuming, several processes, no image in two parts, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from tests.training.fal.conftest import TINY
from xaieval.errors import ConfigError, DataError, ModelError, OutputError
from xaieval.training.fal import prepare, read_results, read_rows, run_experiment, write_figures, write_report
from xaieval.training.fal.run import arms_of, shown_arm
from xaieval.training.fal.runs import Cell

SMALL = replace(TINY, seeds=2, arms=("selected", "selected-twin", "abn"), methods=("gradcam", "layercam"), class_name="cross")
KEYS = ["arm", "fold", "seed", "image_id", "level"]


class Broken(Exception):
    """Simulates a kill."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished experiment that was interrupted once, before the second network."""
    folder = tmp_path_factory.mktemp("fal")
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise Broken

    experiment = prepare(SMALL)
    with pytest.raises(Broken):
        run_experiment(experiment, folder, stop)
    again: list[str] = []
    run_experiment(experiment, folder, again.append)
    return experiment, folder, lines, again


@pytest.mark.slow
def test_an_interrupted_experiment_is_continued_where_it_stopped(finished):
    experiment, folder, lines, again = finished
    assert lines[0] == "fold 0, seed 0: fpn"
    assert again[0] == lines[1]
    assert lines[0] not in again
    assert len(set(again)) == len(again) == 4 * 4 - 1 + 2 + 1  # 4 networks in 4 cells, 2 swaps, the costs
    third: list[str] = []
    run_experiment(experiment, folder, third.append)
    assert third == []


@pytest.mark.slow
def test_no_image_is_in_two_parts_and_all_arms_have_the_same(finished):
    experiment, folder, _, _ = finished
    rows = read_rows(folder)
    for number in (0, 1):
        fold = experiment.folds[number]
        parts = {name: {experiment.pictures.ids[i] for i in getattr(fold, name)} for name in ("train", "selection", "test")}
        assert sum(map(len, parts.values())) == 100 == len(set().union(*parts.values()))
        for seed in (0, 1):
            cell = Cell(experiment, folder, number, seed)
            chosen_by = pd.read_parquet(cell.place("fpn") / "selection.parquet")
            assert set(chosen_by["image_id"]) == parts["selection"]
            for arm in arms_of(cell):
                own = rows[(rows["arm"] == arm) & (rows["fold"] == number) & (rows["seed"] == seed)]
                assert set(own["image_id"]) == parts["test"]
        blocks = {name: {experiment.groups[image] for image in images} for name, images in parts.items()}
        assert not blocks["test"] & (blocks["train"] | blocks["selection"])


@pytest.mark.slow
def test_a_network_that_is_trained_again_has_the_same_rows(finished, tmp_path):
    experiment, folder, _, _ = finished
    cell = Cell(experiment, tmp_path, 1, 1)
    arm = arms_of(Cell(experiment, folder, 1, 1))[1]
    assert cell.run(arm)
    again = pd.read_parquet(cell.place(arm) / "rows.parquet")
    before = pd.read_parquet(folder / "fold1-seed1" / arm / "rows.parquet")
    pd.testing.assert_frame_equal(again, before, atol=1e-3)
    assert not (cell.place(arm) / "model.safetensors").exists()


@pytest.mark.slow
def test_weights_are_kept_where_they_are_needed(finished):
    experiment, folder, _, _ = finished
    cell = Cell(experiment, folder, 0, 0)
    kept = {path.parent.name for path in (folder / "fold0-seed0").glob("*/model.safetensors")}
    assert kept == {"fpn", shown_arm(cell)}
    assert {path.parent.name for path in folder.glob("fold*-seed1/*/model.safetensors")} == {"fpn"}


@pytest.mark.slow
def test_the_report_needs_the_rows_alone(finished, tmp_path):
    experiment, folder, _, _ = finished
    write_figures(experiment, folder)
    files = write_report(folder, class_name="cross")
    expected = {"report.md", "table1.csv", "table2.csv", "differences.csv", "table1_cross.csv", "gates.csv", "swap.csv"}
    assert expected | {"swap_parts.csv", "selection.csv", "costs.csv", "levels.png", "arms.png"} <= set(files)
    assert all((folder / name).stat().st_size for name in files)
    for path in folder.iterdir():
        if path.is_file() and path.suffix in (".json", ".parquet", ".png"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert write_report(tmp_path, class_name="cross") == files
    for name in files:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    page = (folder / "report.md").read_text()
    for said in ("What was found", "class cross only", "2 folds x 2 seeds, 16 networks", "selected minus selected-twin"):
        assert said in page
    with pytest.raises(DataError, match=r"^the data has no class 'crss'; did you mean 'cross'"):
        write_report(folder, class_name="crss")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 2}, "holds another run: its epochs is 1, this run's is 2"),
        ({"design": "amplify"}, "its design is "),
        ({"seed": 1}, "its seed is 0, this run's is 1"),
        ({"max_images": 110}, "its max_images is 100, this run's is 110"),
        ({"methods": ("layercam",)}, "its methods is "),
        ({"k": 1}, "holds levels that were selected with k 2, this run's is 1"),
        ({"by": ("excess",)}, "this run's is ['excess']"),
        ({"level": 0.9}, "holds levels that were selected with level 0.95, this run's is 0.9"),
    ],
)
def test_other_options_than_those_of_the_folder_are_refused(finished, changes, said):
    _, folder, _, _ = finished
    with pytest.raises(OutputError) as error:
        run_experiment(prepare(replace(SMALL, **changes)), folder)
    assert said in str(error.value)


@pytest.mark.slow
def test_arms_and_seeds_can_be_added(finished, tmp_path):
    experiment = prepare(replace(TINY, run_folds=(0,), arms=("twin-p5",)))
    run_experiment(experiment, tmp_path)
    first = read_rows(tmp_path).set_index(KEYS)
    lines: list[str] = []
    more = replace(TINY, run_folds=(0,), arms=("twin-p5", "fal-p5"), run_seeds=(0, 3), level=0.9)  # no levels were selected
    run_experiment(prepare(more), tmp_path, lines.append)
    assert [line for line in lines if ": " in line and "masks" not in line] == [
        "fold 0, seed 0: fal-p5",
        "fold 0, seed 3: fpn",
        "fold 0, seed 3: twin-p5",
        "fold 0, seed 3: fal-p5",
    ]
    rows = read_rows(tmp_path).set_index(KEYS)
    pd.testing.assert_frame_equal(rows.loc[first.index], first)
    assert read_results(tmp_path).cells == [(0, 0), (0, 3)]


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path):
    words = "fal --max-images 100 --image-size 32 --channels 8 --epochs 1 --run-folds 0,1 --seeds 1 --k 2 --methods gradcam"
    command = [sys.executable, "-m", "xaieval.cli", *words.split(), "--arms", "selected,abn", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    trained = [line for _, errors in outputs for line in errors.decode().splitlines() if line.startswith("fold")]
    assert len(trained) == len(set(trained)) == 2 * 3 + 2
    assert all("selected minus fpn" in printed.decode() for printed, _ in outputs)
    assert len(read_rows(tmp_path)) == 2 * 3 * 20 * 4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"class_name": "crss"}, DataError, r"no class 'crss'; did you mean 'cross'"),
        ({"max_images": 50}, DataError, r"class 0 has 5 images, too few for 10 blocks"),
        ({"folds": 3, "run_folds": None}, DataError, r"divides the number of blocks, 10; got 3"),
        ({"run_folds": (5,)}, DataError, r"the folds are 0 to 4; got run-folds"),
        ({"backbone": "nope"}, ModelError, r"timm has no backbone 'nope'"),
        ({"backbone": "vit_tiny_patch16_224"}, ModelError, r"a pyramid needs \[4, 8, 16, 32\]"),
        ({"data": "os:getcwd"}, DataError, r"splits its images itself"),
        ({"arms": ("selectd",)}, ConfigError, r"no arm 'selectd' of the experiment; did you mean 'selected'"),
        ({"design": "fcus"}, ModelError, r"no design 'fcus' of attention; did you mean 'focus'"),
        ({"by": ("exces",)}, ConfigError, r"no rule or metric 'exces' to select levels by; did you mean 'excess'"),
        ({"by": ("excess", "average_drop")}, ConfigError, r"no rule or metric 'excess' to select levels by"),
        ({"by": ("insertion",)}, ConfigError, r"no rule or metric 'insertion' to select levels by; .*average_drop_excess"),
        ({"k": 5}, ConfigError, r"k is the number of levels that get attention, 1 to 4; got 5"),
        (
            {"held_out_class": "cross", "run_folds": None, "arms": ("selected",)},
            ConfigError,
            r"the arm 'selected' follows from a selection of levels, and held-out-class leaves no images for that; name ",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(changes, error, message):
    with pytest.raises(error, match=message) as raised:
        prepare(replace(TINY, **changes))
    assert "\n" not in str(raised.value)


def test_options_below_one_are_refused():
    with pytest.raises(ConfigError, match=r"^epochs is at least 1, got 0$"):
        replace(TINY, epochs=0)


@pytest.mark.slow
def test_the_command_prints_what_was_found(tmp_path, capsys):
    from xaieval.cli import main

    words = "fal --max-images 100 --image-size 32 --channels 8 --epochs 1 --run-folds 0 --seeds 1 --k 1 --arms selected"
    main([*words.split(), "--methods", "gradcam", "--out", str(tmp_path), "--no-progress"])
    printed = capsys.readouterr()
    assert "fold 0, seed 0: fpn" in printed.err
    assert "selected minus fpn: too few or equal runs to tell" in printed.out
    assert "report.md" in printed.out
    main(["fal", "--remake", "--out", str(tmp_path), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == str(tmp_path)
    assert "report.md" in document["files"]
    assert [arm["arm"] for arm in document["arms"]] == ["fpn", "selected"]
    assert {row["outcome"] for row in document["differences"]} >= {"accuracy", "average_drop"}
    assert any(line.startswith("selected minus fpn") for line in document["found"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "crss"], "no class 'crss'"),
        (["--backbone-args.pad_type", "same", "--backbone", "test_resnet"], "cannot be built with"),
        (["--weights", "missing.safetensors"], "no weights file 'missing.safetensors'"),
        (["--level", "2"], "probability in (0, 1)"),
        (["--arms", "selectd"], "no arm 'selectd'"),
        (["--remake"], "holds no experiment that can be read"),
    ],
)
def test_wrong_use_of_the_command_is_one_line(tmp_path, capsys, words, message):
    from xaieval.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["fal", *words, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_experiment_is_finished_after_its_process_was_killed(tmp_path):
    words = "fal --max-images 100 --image-size 32 --channels 8 --epochs 1 --run-folds 0 --seeds 1 --k 2 --methods gradcam"
    command = [sys.executable, "-m", "xaieval.cli", *words.split(), "--arms", "fal-p2,fal-p3", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("fold 0, seed 0: fal-p2"):
            process.kill()  # while it holds the lock of this run
            break
    process.wait(timeout=60)
    process.stderr.close()
    assert not (tmp_path / "rows-seed0.parquet").exists()
    lines: list[str] = []
    run_experiment(prepare(replace(TINY, batch_size=8, run_folds=(0,), arms=("fal-p2", "fal-p3"))), tmp_path, lines.append)
    assert lines[:2] == ["fold 0, seed 0: fal-p2", "fold 0, seed 0: fal-p3"]
    assert set(read_rows(tmp_path)["arm"]) == {"fpn", "fal-p2", "fal-p3"}
