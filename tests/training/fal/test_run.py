"""The FAL experiment from end to end on a few generated images: its files, resuming, no image in two parts."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from xaieval.analysis.selection import Selection
from xaieval.analysis.stats.intervals import difference_interval, mean_interval
from xaieval.cli import main
from xaieval.config.fal_options import ARMS, FalOptions
from xaieval.errors import ConfigError, DataError, ModelError, OutputError
from xaieval.evaluation.scores import Scores
from xaieval.models import LEVELS
from xaieval.training.fal import prepare, read_results, run_experiment, write_report
from xaieval.training.fal.run import arms_of
from xaieval.training.fal.tables import comparison_table, level_table, macro_f1, subset_table

pytestmark = pytest.mark.slow

TINY = FalOptions(
    max_images=100,
    image_size=32,
    channels=8,
    epochs=1,
    further_epochs=1,
    run_folds=(0,),
    k=2,
    class_name="cross",
    methods=("gradcam", "layercam"),
    arms=("selected", "random", "best", "abn", "open-start", "random-split"),
)


class Broken(Exception):
    """Simulates a kill."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run that was interrupted once, before the second compared model was trained."""
    folder = tmp_path_factory.mktemp("fal")
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if line.startswith("fold0: train fal"):
            raise Broken

    experiment = prepare(TINY)
    with pytest.raises(Broken):
        run_experiment(experiment, folder, stop)
    again: list[str] = []
    run_experiment(experiment, folder, again.append)
    return experiment, folder, lines, again


def test_an_interrupted_run_is_resumed_where_it_stopped(finished):
    experiment, folder, lines, again = finished
    assert [line for line in lines if "train" in line][:2] == [
        "fold0: train fpn, 1 epochs on 70 images",
        "fold0: train fpn-control, 1 epochs on 70 images",
    ]
    assert not set(lines[:-1]) & set(again), "nothing is done twice"
    assert again[0] == lines[-1]
    third: list[str] = []
    run_experiment(experiment, folder, third.append)
    assert third == []


def test_no_image_is_in_two_parts(finished):
    experiment, folder, _, _ = finished
    fold = experiment.folds[0]
    parts = {name: {experiment.pictures.ids[i] for i in getattr(fold, name)} for name in ("train", "selection", "test")}
    assert sum(map(len, parts.values())) == 100 == len(set().union(*parts.values()))
    chosen_by = set(Scores.load(folder / "fold0/fpn/selection").rows["image_id"])
    assert chosen_by == parts["selection"]
    for name in ("fpn", "fpn-control", "abn"):
        assert set(Scores.load(folder / f"fold0/{name}/test").rows["image_id"]) == parts["test"]


def test_the_selection_is_that_of_the_scores(finished):
    _, folder, _, _ = finished
    choice = json.loads((folder / "fold0/arms.json").read_text())
    selection = Scores.load(folder / "fold0/fpn/selection").select_layers(2, method="gradcam")
    assert choice["selection"]["layers"] == selection.layers
    assert choice["selection"]["reasons"] == repr(selection)
    levels = "-".join(sorted(layer[7:9] for layer in selection))
    assert choice["arms"]["selected"] == f"fal-{levels}"
    assert choice["arms"]["open-start"] == f"fal-{levels}-open"
    assert choice["arms"]["random"] != choice["arms"]["selected"]


def test_the_tables_are_the_means_of_the_rows(finished):
    _, folder, _, _ = finished
    results = read_results(folder)
    rows = Scores.load(folder / "fold0/fpn/test").rows
    table = level_table(results)
    for (method, level), row in table.iterrows():
        own = rows[(rows["method"] == method) & (rows["layer"] == f"levels[{level}]")]
        assert row["average_drop"] == pytest.approx(own["average_drop"].mean())
        assert row["mask_area"] == pytest.approx(own["mask_area"].mean())
    assert list(table.index) == [(method, level) for method in ("gradcam", "layercam") for level in LEVELS]
    cross = results.classes.index("cross")
    assert (level_table(results, cross)["n_images"] == (rows["label"] == cross).sum() / 8).all()

    compared = comparison_table(results)
    own, control = (Scores.load(folder / f"fold0/{name}/test").rows for name in ("abn", "fpn-control"))
    assert compared.loc["abn", "average_drop"] == pytest.approx(own["average_drop"].mean())
    difference = own["average_drop"].mean() - control["average_drop"].mean()
    assert compared.loc["abn", "average_drop_difference"] == pytest.approx(difference)
    right = own.drop_duplicates("image_id").eval("predicted == label").mean()
    assert compared.loc["abn", "accuracy"] == pytest.approx(100 * right)
    assert compared.loc["abn", "accuracy_difference_low"] <= compared.loc["abn", "accuracy_difference"]
    drops = [rows.groupby("image_id")["average_drop"].mean() for rows in (own, control)]
    ends = compared.loc["abn", ["average_drop_difference_low", "average_drop_difference_high"]]
    assert list(ends) == pytest.approx(difference_interval(*drops))
    means = compared.loc["abn", ["average_drop_low", "average_drop_high"]]
    assert list(means) == pytest.approx(mean_interval(drops[0]))
    assert list(compared.index) == ["fpn-control", "selected", "random", "best", "abn", "open-start"]


def test_the_report_has_all_tables_and_figures(finished):
    experiment, folder, _, _ = finished
    files = write_report(experiment, folder)
    page = (folder / "report.md").read_text()
    assert {"report.md", "table1.csv", "table2.csv", "table1_cross.csv", "accuracy.csv", "figure4.png", "figure5.png"} <= set(
        files
    )
    assert all((folder / name).stat().st_size for name in files)
    for said in (
        "by mean rank, worst first",
        "random images",
        "Cost of a forward pass",
        "class cross only",
        "1 of 5 folds",
        "Versions: xaieval",
    ):
        assert said in page
    table = pd.read_csv(folder / "table2.csv").set_index("arm")
    assert f"{table.loc['selected', 'accuracy']:.1f} [" in page


def test_another_experiment_in_the_folder_is_refused(finished):
    _, folder, _, _ = finished
    with pytest.raises(OutputError, match=r"holds another run: its epochs is 1, this run's is 2"):
        run_experiment(prepare(replace(TINY, epochs=2)), folder)


def test_subsets_are_ranked(finished):
    _, folder, _, _ = finished
    results = read_results(folder)
    assert subset_table(results).empty
    rows = results.compared[results.compared["arm"] == "fpn-control"]
    better = rows.assign(arm="subset p2", average_drop=rows["average_drop"] / 2, increase_in_confidence=100.0)
    arms = {"fpn-control": "fpn-control", "subset p2": "fal-p2", "selected": "fal-p2"}
    table = subset_table(replace(results, compared=pd.concat([rows, better]), choices={0: results.choices[0] | {"arms": arms}}))
    assert list(table.index) == ["p2", ""]
    assert list(table["selected"]) == [1, 0]
    assert table.loc["p2", "average_drop_rank"] == 1
    assert table.loc["p2", "accuracy_rank"] == 1.5  # a tie


def _selection(count: int) -> Selection:
    worst_first = ["levels[p5]", "levels[p2]", "levels[p4]", "levels[p3]"]
    return Selection(worst_first[:count], pd.DataFrame(index=worst_first), pd.DataFrame(), None, 10, "gradcam", 0.95)


@pytest.mark.parametrize(
    ("count", "selected", "best"),
    [
        (0, "fpn-control", "fpn-control"),
        (1, "fal-p5", "fal-p3"),
        (2, "fal-p2-p5", "fal-p3-p4"),
        (3, "fal-p2-p4-p5", "fal-p2-p3-p4"),
        (4, "fal-p2-p3-p4-p5", "fal-p2-p3-p4-p5"),
    ],
)
def test_arms_follow_from_the_selection(count, selected, best):
    arms = arms_of(_selection(count), ["selected", "best", "random", "all"], np.random.default_rng(0))
    assert (arms["selected"], arms["best"], arms["all"]) == (selected, best, "fal-p2-p3-p4-p5")
    assert arms["random"].count("p") == selected.count("p")
    assert (arms["random"] == selected) == (count in (0, 4))


def test_all_subsets_are_sixteen_with_the_control():
    arms = arms_of(_selection(1), ["subsets"], np.random.default_rng(0))
    assert len(set(arms.values())) == 16
    assert arms_of(_selection(1), ["none", "random-split"], np.random.default_rng(0)) == {}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_that_can_be_chosen_is_one_that_the_experiment_knows(arm):
    models = arms_of(_selection(1), [arm], np.random.default_rng(0))
    assert (len(models) > 1) == (arm not in ("none", "random-split"))  # with the control


def test_macro_f1_by_hand():
    # class 0: 1 right, 1 missed, 0 false: 2/3; class 1: 1 right, 0 missed, 1 false: 2/3; class 2: none at all
    assert macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1]), 3) == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"class_name": "crss"}, DataError, r"no class 'crss'; did you mean 'cross'"),
        ({"max_images": 50}, DataError, r"class 0 has 5 images, too few for 10 blocks"),
        ({"folds": 3}, DataError, r"divides the number of blocks, 10; got 3"),
        ({"run_folds": (5,)}, DataError, r"the folds are 0 to 4; got run-folds"),
        ({"backbone": "nope"}, ModelError, r"timm has no backbone 'nope'"),
        ({"backbone": "vit_tiny_patch16_224"}, ModelError, r"a pyramid needs \[4, 8, 16, 32\]"),
        ({"data": "os:getcwd"}, DataError, r"splits its images itself"),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(changes, error, message):
    with pytest.raises(error, match=message):
        prepare(replace(TINY, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"arms": ("selectd",)}, r"no arm 'selectd'.*did you mean 'selected'"), ({"epochs": 0}, r"epochs is at least 1, got 0")],
)
def test_options_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **changes)


def test_a_folder_without_a_finished_fold_says_so(tmp_path):
    with pytest.raises(OutputError, match=r"holds no experiment"):
        read_results(tmp_path)
    with pytest.raises(Broken):
        run_experiment(prepare(TINY), tmp_path, _break)
    with pytest.raises(OutputError, match=r"no fold of the experiment .* is finished"):
        read_results(tmp_path)


def _break(line: str) -> None:
    raise Broken


def test_the_command_prints_the_comparison(tmp_path, capsys):
    words = (
        "fal --max-images 100 --image-size 32 --channels 8 --epochs 1 --further-epochs 1 --run-folds 0 --k 1 --arms selected"
    )
    main([*words.split(), "--methods", "gradcam", "--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert "fold0: train fpn, 1 epochs on 70 images" in printed.err
    assert "fpn-control" in printed.out
    assert "to control [95% interval]" in printed.out
    assert "report.md" in printed.out
    main([*words.split(), "--methods", "gradcam", "--out", str(tmp_path), "--json"])  # every step is done already
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == str(tmp_path)
    assert "report.md" in document["files"]
    control, selected = document["comparison"]
    assert (control["arm"], selected["arm"], selected["n_images"]) == ("fpn-control", "selected", 20)
    assert selected["accuracy_difference"] == pytest.approx(selected["accuracy"] - control["accuracy"])
    assert control["accuracy_difference"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "crss"], "no class 'crss'"),
        (["--backbone-args.pad_type", "same", "--backbone", "test_resnet"], "cannot be built with"),
        (["--weights", "missing.safetensors"], "no weights file 'missing.safetensors'"),
        (["--level", "2"], "probability in (0, 1)"),
    ],
)
def test_wrong_use_of_the_command_is_one_line(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        main(["fal", *words, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
