"""A class that is held out: networks are trained on the other classes, and tested on all images of this one."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from xaieval.cli import main
from xaieval.config.fal_options import FalOptions
from xaieval.data import Preprocessing, scenes
from xaieval.errors import ConfigError, DataError
from xaieval.training.fal.experiment import prepare
from xaieval.training.fal.held_out import held_out_fold, without_class
from xaieval.training.fal.rows import pack, read_rows
from xaieval.training.fal.runs import ROWS, SELECTION, Cell
from xaieval.training.fal.statistics.run_table import run_table

TINY = FalOptions(max_images=100, image_size=32, channels=8, epochs=1, held_out_class="cross", progress=False)


def test_the_other_classes_keep_their_names_and_order():
    pictures = scenes(Preprocessing(32, 32), size=40)
    others = without_class(pictures, "cross")
    assert others.classes == [name for name in pictures.classes if name != "cross"]
    for image_id, before, after in zip(pictures.ids, pictures.labels, others.labels, strict=True):
        name = pictures.classes[before]
        assert (None if after is None else others.classes[after]) == (None if name == "cross" else name), image_id


def test_training_has_all_images_of_the_other_classes_and_the_test_all_of_this_one():
    pictures = scenes(Preprocessing(32, 32), size=40)
    cross = pictures.classes.index("cross")
    fold = held_out_fold(without_class(pictures, "cross"))
    assert fold.test == [number for number, label in enumerate(pictures.labels) if label == cross]
    assert fold.train == [number for number, label in enumerate(pictures.labels) if label != cross]
    assert fold.selection == []


def test_the_network_has_the_other_classes_and_the_rows_have_no_label(tmp_path):
    experiment = prepare(TINY)
    assert list(experiment.run_folds) == [0]
    assert experiment.num_classes == experiment.fpn().config["num_classes"] == 9
    cell = Cell(experiment, tmp_path, 0, 1)
    assert cell.run("fpn")
    rows = pd.read_parquet(cell.place("fpn") / ROWS)
    assert set(rows["image_id"]) == {experiment.pictures.ids[number] for number in cell.images.test}
    assert len(rows) == 4 * 10
    assert rows["label"].isna().all()
    assert set(rows["predicted"]) <= set(range(9))
    assert rows["average_drop"].notna().all()
    assert not (cell.place("fpn") / SELECTION).exists()
    pack(tmp_path, experiment.groups)
    packed = read_rows(tmp_path)
    assert packed["label"].isna().all()
    assert packed["group"].nunique() == 10
    assert packed["average_drop"].notna().all()
    run = run_table(packed).iloc[0]
    assert np.isnan(run["accuracy"]), "not 0: no answer could have been right"
    assert run["n_images"] == 10
    assert run["average_drop"] == pytest.approx(packed["average_drop"].mean())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 3}, "held-out-class makes one split, all images of 'cross' for the test; leave out folds, got 3"),
        (
            {"run_folds": (1,)},
            "held-out-class makes one split, all images of 'cross' for the test; leave out run-folds, got (1,)",
        ),
    ],
)
def test_options_of_folds_are_refused(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        replace(TINY, **changes)


def test_arms_that_need_a_selection_are_refused():
    message = (
        r"^the arm 'selected' follows from a selection of levels, and held-out-class leaves no images for that; name the levels"
    )
    with pytest.raises(ConfigError, match=message):
        prepare(replace(TINY, arms=("fpn", "selected")))


def test_one_class_of_the_test_images_is_refused():
    with pytest.raises(ConfigError, match=r"^with held-out-class all test images are of 'cross'; leave out class$"):
        replace(TINY, class_name="ring")


@pytest.mark.parametrize("blocks", [0, 11])
def test_more_blocks_than_images_are_refused(blocks):
    message = rf"^the 10 images of the class held out cannot be cut into {blocks} blocks$"
    with pytest.raises(DataError, match=message):
        prepare(replace(TINY, blocks=blocks))


def test_a_class_that_is_not_in_the_data_is_one_line():
    with pytest.raises(DataError, match=r"^the data has no class 'crss' to hold out; did you mean 'cross'\?"):
        prepare(replace(TINY, held_out_class="crss"))


def test_one_other_class_is_not_enough():
    pictures = replace(scenes(Preprocessing(32, 32), size=2), classes=["cross", "ring"], labels=[0, 1])
    with pytest.raises(DataError, match=r"^without the class 'ring' at least two others are needed, got 1$"):
        without_class(pictures, "ring")


@pytest.mark.slow
def test_the_command_reports_without_an_accuracy(tmp_path, capsys):
    words = "fal --held-out-class cross --max-images 60 --image-size 32 --channels 8 --epochs 1 --seeds 2 --blocks 5"
    main([*words.split(), "--arms", "fpn,fal-p2-p3", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "AD % [95% interval]" in printed
    assert "accuracy" not in printed
    page = (tmp_path / "report.md").read_text()
    assert "6 test images, of the class cross, which no network was trained on, none of which was used for training" in page
    assert "nan" not in page.lower()
    main(["fal", "--remake", "--out", str(tmp_path), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert [arm["accuracy"] for arm in document["arms"]] == [None, None]
