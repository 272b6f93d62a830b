"""Rows of images whose confidence is not positive, of which only quotients have no value; labels in rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval import Protocol, score
from xaieval.errors import RunError, TargetError
from xaieval.metrics import Metric

IDENTITY = Protocol(confidence="identity")
WITHOUT = ["pointing_game", "energy_pointing_game", "sparseness", "insertion", "deletion", "increase_in_confidence", "road"]
QUOTIENTS = ["average_drop", "average_gain", "confidence_ratio", "drop_in_deletion", "adcc"]


class Regression(nn.Module):
    """One number per image, negative for half of the images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(4, 1)
        with torch.no_grad():
            self.head.bias -= self(images()).median()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def images() -> Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def data() -> list[dict[str, Tensor]]:
    masks = torch.zeros(6, 16, 16, dtype=torch.bool)
    masks[:, 4:9, 3:12] = True
    return [{"image": images(), "mask": masks}]


def run(metrics: list[str | Metric], protocol: Protocol = IDENTITY) -> xaieval.Scores:
    return score(Regression(), data(), "body", metrics=metrics, protocol=protocol, progress=False)


def test_metrics_without_a_quotient_have_values_of_negative_outputs():
    scores = run(WITHOUT)
    y = scores.rows["confidence"]
    assert (y <= 0).sum() >= 2
    assert set(scores.rows["status"]) == {"ok"}
    assert scores.rows[WITHOUT].notna().all(axis=None)
    assert scores.rows["increase_in_confidence"].tolist() == (100.0 * (scores.rows["masked_confidence"] > y)).tolist()
    assert scores.summary()[["n_images", "n_failed"]].to_numpy().tolist() == [[6, 0]]
    assert not scores.warnings()


def test_quotients_have_none_and_the_summary_counts_both():
    scores = run([*WITHOUT, *QUOTIENTS])
    rows, bad = scores.rows, (scores.rows["confidence"] <= 0).to_numpy()
    assert (rows["status"].isin(["negative_confidence", "zero_confidence"]).to_numpy() == bad).all()
    assert rows[WITHOUT].equals(run(WITHOUT).rows[WITHOUT])
    assert rows.loc[bad, QUOTIENTS].isna().all(axis=None)
    assert rows.loc[~bad, ["average_drop", "confidence_ratio", "drop_in_deletion"]].notna().all(axis=None)
    summary = scores.summary().iloc[0]
    assert summary[["n_images", "n_failed"]].tolist() == [(~bad).sum(), bad.sum()]
    assert summary["pointing_game_n"] == 6
    assert "average_drop_n" not in summary
    assert summary["pointing_game"] == pytest.approx(rows["pointing_game"].mean())
    assert summary["average_drop"] == pytest.approx(rows.loc[~bad, "average_drop"].mean())


def test_a_metric_of_ones_own_says_whether_it_divides():
    difference = Metric("difference", lambda y, o: y - o, True)
    safe = replace(difference, name="safe", divides=False)
    rows = run([difference, safe]).rows
    bad = rows["confidence"] <= 0
    assert (rows["difference"].isna() == bad).all()
    assert rows["safe"].to_numpy() == pytest.approx((rows["confidence"] - rows["masked_confidence"]).to_numpy())


def test_an_error_is_raised_only_where_a_metric_divides():
    strict = replace(IDENTITY, invalid="error")
    assert len(run(["pointing_game"], strict).rows) == 6
    with pytest.raises(RunError, match="has the status negative_confidence, which the protocol refuses"):
        run(["average_drop"], strict)


def test_a_map_of_nan_has_no_value_of_a_negative_output_either():
    def nowhere(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return torch.full((len(images), 16, 16), torch.nan)

    scores = score(Regression(), data(), methods=nowhere, metrics=[*WITHOUT, "average_drop"], protocol=IDENTITY, progress=False)
    assert set(scores.rows["status"]) == {"nan_map"}
    assert np.isnan(scores.rows[WITHOUT].to_numpy(float)).all()


# ---- labels


class Classes(nn.Module):
    """Four classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


NAN = float("nan")


def labelled(labels: object, **options: object) -> xaieval.Scores:
    return score(Classes(), [(images()[:3], labels)], "body", progress=False, **options)


@pytest.mark.parametrize(
    ("labels", "column"),
    [
        (torch.tensor([3, 0, 2]), [3, 0, 2]),
        (torch.tensor([3.0, 0.0, NAN]), [3, 0, None]),
        (torch.tensor([[3], [0], [2]]), [3, 0, 2]),
        ([3, None, -1], [3, None, None]),
        (torch.tensor([255, 0, -100]), [255, 0, None]),
        (torch.eye(3), [None] * 3),
        (torch.tensor([23.5, 40.1, 7.0]), [None] * 3),
        (torch.zeros(3, 16, 16, dtype=torch.long), [None] * 3),
        ([{"boxes": torch.tensor([[2.0, 3, 9, 8]])}] * 3, [None] * 3),
        (["a", "b", "c"], [None] * 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_rows_have_the_labels_that_are_classes(labels, column, batch_size):
    expected = labelled(None, target=1, batch_size=batch_size).rows.drop(columns="label")
    rows = labelled(labels, target=1, batch_size=batch_size).rows
    assert [None if label is pd.NA else label for label in rows["label"]] == column
    pd.testing.assert_frame_equal(rows.drop(columns="label"), expected)


@pytest.mark.parametrize("ignored", [-1, -100, 255, NAN, None])
def test_an_image_without_a_label_is_a_status(ignored):
    scores = labelled([3, ignored, 0], target="label", methods=["gradcam", "score-cam", "cam", "random"])
    rows = scores.rows.set_index(["image_id", "method"])
    others = labelled([3, 1, 0], target="label", methods=["gradcam", "score-cam", "cam", "random"]).rows
    others = others.set_index(["image_id", "method"])
    assert rows.xs("1")["status"].tolist() == ["no_target"] * 4
    assert rows.xs("1")[["target", "confidence", "masked_confidence", "average_drop"]].isna().all(axis=None)
    for image in "02":
        pd.testing.assert_frame_equal(rows.xs(image), others.xs(image), rtol=1e-5)
    assert scores.summary()[["n_images", "n_failed"]].to_numpy().tolist() == [[2, 1]] * 4


def test_labels_that_the_model_does_not_have_are_refused():
    with pytest.raises(TargetError, match="the data has label 4, but the model has 4 classes, 0 to 3"):
        labelled([3, 4, 0], target="label")
    with pytest.raises(TargetError, match="no image has one: a label that is negative, NaN, None or 255 is none"):
        labelled([-1, None, 255], target="label")
    with pytest.raises(TargetError, match=r"images='correct' needs one class per image: .* the labels are a list of str"):
        labelled(["a", "b", "c"], protocol=Protocol(images="correct"))


def test_an_image_without_a_label_has_a_map_of_zeros():
    for method in ("elementwise-gradcam", "eigencam", "random"):
        maps = xaieval.explain(Classes(), images()[:3], "body", method, target="label", labels=torch.tensor([1, -1, 1]))
        assert next(iter(maps.values())).flatten(1).amax(dim=1).gt(0).tolist() == [True, False, True]
    check = xaieval.sanity_check(
        Classes(), [(images()[:3], [3, -1, 0])], "body", target="label", modes=(), progress=False
    ).rows.set_index("image_id")
    assert check["ssim"].isna().to_dict() == {"0": False, "1": True, "2": False}


def test_a_target_function_is_given_other_labels_as_they_came():
    soft = torch.tensor([[0.1, 0.7, 0.2, 0], [0, 0, 0.1, 0.9], [0.5, 0.2, 0.2, 0.1]])
    rows = labelled(soft, target=lambda logits, labels: labels.argmax(dim=1)).rows
    assert rows["target"].tolist() == [1, 3, 0]


def test_segmentation_and_detection_loaders_need_no_other_labels():
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    torch.manual_seed(0)
    maps = torch.randint(0, 3, (6, 16, 16))
    bare = score(net, [images()], "0", task="segmentation", progress=False).rows
    for batch in ((images(), maps), {"image": images(), "mask": maps}, {"image": images(), "mask": maps[:, None]}):
        pd.testing.assert_frame_equal(score(net, [batch], "0", task="segmentation", progress=False).rows, bare)
    targets = [{"boxes": torch.tensor([[3.0, 4, 12, 9]]), "labels": torch.tensor([1])}] * 6
    of_boxes = score(
        Regression(), [(tuple(images()), targets)], "body", metrics="pointing_game", protocol=IDENTITY, progress=False
    )
    assert of_boxes.rows["pointing_game"].tolist() == run(["pointing_game"]).rows["pointing_game"].tolist()


# ---- targets


@pytest.mark.parametrize(
    "target", [np.int64(2), np.array(2), np.array([2]), torch.tensor(2), torch.tensor([2]), np.uint8(2)], ids=repr
)
def test_a_class_can_be_an_integer_of_numpy_and_torch(target):
    scores = labelled(None, target=target)
    assert scores.rows["target"].tolist() == [2, 2, 2]
    assert scores.manifest["run"]["protocol.target"] == 2
    assert Protocol(target=target) == Protocol(target=2)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda one: [np.int64(i) for i in one]])
def test_explain_takes_one_class_per_image(kind, batch_size):
    x = images()[:3]
    maps = xaieval.explain(Classes(), x, "body", target=kind([3, 0, 2]), batch_size=batch_size)["body"]
    for number, target in enumerate([3, 0, 2]):
        right = xaieval.explain(Classes(), x, "body", target=target)["body"][number]
        torch.testing.assert_close(maps[number], right, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([1, 2], "target= has 2 classes for 3 images; give one class for all images, or one per image"),
        ([1, 4, 0], "target= has class 4, but the model has 4 classes, 0 to 3"),
        ([1, -1, 0], "target= has class -1, but the model has 4 classes, 0 to 3"),
        (np.int64(-1), "no class -1; the model has 4 classes, 0 to 3"),
        (torch.tensor(True), "target True is not 'predicted', 'label', a class index or a function"),
        ([True, False, True], "target (True, False, True) is not 'predicted', 'label', a class index or a function"),
        (np.float32(1), "target 1.0 is not 'predicted', 'label', a class index or a function"),
    ],
    ids=repr,
)
def test_targets_that_are_no_classes_are_refused_word_for_word(target, message):
    with pytest.raises(TargetError) as caught:
        xaieval.explain(Classes(), images()[:3], "body", target=target)
    assert str(caught.value) == message


def test_score_refuses_one_class_per_image_with_the_ways_to_say_it():
    for call in (labelled, lambda labels, target: xaieval.sanity_check(Classes(), [images()], "body", target=target)):
        with pytest.raises(TargetError, match=r"target= has 2 classes, one per image, .* target='label', or a function"):
            call(None, target=[1, 2])
