"""Features of levels in memory, and a column of scores made from them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import xaieval
from tests.training.fal.rules.features import batches, small_fpn
from xaieval.errors import DataError
from xaieval.evaluation.scores import Scores
from xaieval.models.fpn import LEVELS
from xaieval.training.fal.rules.level_features import level_features, with_column

ENTRY = {"name": "gain", "label": "Gain, nats", "higher_is_better": False, "interval": "mean"}


# ---- features


def test_a_cell_is_the_average_of_its_positions():
    fpn, images = small_fpn(), torch.cat([image for image, _ in batches(4)])
    actual = level_features(fpn, batches(4), "p4")
    assert actual.ids == ["0", "1", "2", "3"]
    assert actual.labels.tolist() == [0, 1, 2, 3]
    levels = {name: maps.detach() for name, maps in fpn.pyramid(images).items()}
    for name, step in (("p2", 4), ("p3", 2), ("p4", 1)):
        expected = levels[name].unfold(2, step, step).unfold(3, step, step).mean(dim=(4, 5))
        torch.testing.assert_close(actual.levels[name], expected)
    torch.testing.assert_close(actual.levels["p5"], levels["p5"])  # coarser than the grid
    assert not any(maps.requires_grad for maps in actual.levels.values())


def test_features_are_those_of_the_eval_mode_in_float32():
    fpn = small_fpn()
    expected = level_features(fpn, batches(), "p5").levels
    training = level_features(fpn.train(), batches(), "p5").levels
    double = level_features(fpn.double(), [(images.double(), labels) for images, labels in batches()], "p5").levels
    assert fpn.training
    for level in LEVELS:
        torch.testing.assert_close(training[level], expected[level])
        torch.testing.assert_close(double[level], expected[level], atol=1e-4, rtol=1e-4)


def test_images_need_not_be_square():
    features = level_features(small_fpn(), [(torch.rand(2, 3, 64, 96), torch.tensor([0, 1]))], "p5").levels
    assert {tuple(maps.shape[2:]) for maps in features.values()} == {(2, 3)}


def test_an_image_that_cannot_be_read_is_refused_word_for_word():
    batch = {"images": torch.rand(1, 3, 64, 64), "labels": torch.tensor([1]), "failed": [("b.png", 0, "it is empty")]}
    with pytest.raises(DataError) as error:
        level_features(small_fpn(), [batch], "p5")
    assert str(error.value) == "'b.png' cannot be read: it is empty; repair or remove the file"


# ---- a column


@pytest.fixture
def scores() -> Scores:
    """Two images at two levels and by a method without layer; one row does not count."""
    rows = pd.DataFrame(
        {"image_id": image, "layer": layer, "method": method, "status": "ok"}
        for image in "ab"
        for layer, method in (("fpn[p3]", "gradcam"), ("levels[p5]", "gradcam"), ("input", "random"))
    )
    rows.loc[3, "status"] = "nan_map"
    return Scores(rows, {"metrics": [{"name": "average_drop", "higher_is_better": False, "interval": "mean"}], "seed": 4})


def test_values_go_to_the_rows_of_their_image_and_level(scores):
    values = {level: torch.tensor([10.0 * number, 10.0 * number + 1]) for number, level in enumerate(LEVELS)}
    actual = with_column(scores, ["b", "a"], values, ENTRY)
    assert actual.rows["gain"].to_list() == pytest.approx([11, 31, np.nan, np.nan, 30, np.nan], nan_ok=True)
    assert [metric["name"] for metric in actual.metrics] == ["average_drop", "gain"]
    assert actual.seed == 4
    assert "gain" not in scores.rows
    again = with_column(actual, ["b", "a"], {level: 2 * numbers for level, numbers in values.items()}, ENTRY)
    assert again.rows["gain"].to_list() == pytest.approx([22, 62, np.nan, np.nan, 60, np.nan], nan_ok=True)
    assert len(again.metrics) == 2


def test_a_row_that_does_not_count_needs_no_value(scores):
    rows = scores.rows.assign(status=["ok", "ok", "ok", "unreadable", "unreadable", "unreadable"])
    actual = with_column(Scores(rows, scores.manifest), ["a"], dict.fromkeys(LEVELS, torch.tensor([1.0])), ENTRY)
    assert actual.rows["gain"].notna().tolist() == [True, True, False, False, False, False]


def test_scores_with_a_column_are_saved_summarised_and_read_again(tmp_path):
    fpn = small_fpn()
    scores = xaieval.score(fpn, batches(8), layers=["fpn[*]"], methods=["gradcam"], controls=["random"], progress=False)
    values = {level: torch.arange(8) * 0.5 + number for number, level in enumerate(LEVELS)}
    found = with_column(scores, [str(number) for number in range(8)], values, ENTRY)
    assert found.summary().loc[("fpn[p4]", "gradcam"), "gain"] == pytest.approx(1.75 + 2)
    found.save(tmp_path)
    read = Scores.load(tmp_path)
    pd.testing.assert_frame_equal(read.rows, found.rows, check_dtype=False)
    assert read.select_layers(1, by="gain").to_dict() == found.select_layers(1, by="gain").to_dict()
    assert list(read.select_layers(1, by="gain")) == ["fpn[p5]"]
