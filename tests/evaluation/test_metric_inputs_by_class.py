"""Maps are compared with the class or the object that is followed, and not with all that is in the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval.data.truth_by_class import Truth
from xaieval.errors import DataError, MetricError
from xaieval.metrics import Metric, box_accuracy, pointing_game

SIDE = 12
LEFT, RIGHT = [1.0, 1, 5, 11], [7.0, 1, 11, 11]
CAT, DOG = 1, 2
TARGET = {"boxes": torch.tensor([LEFT, RIGHT]), "labels": torch.tensor([CAT, DOG])}
AREA = Metric("area", lambda masks: masks.flatten(1).double().sum(dim=1), None, needs=("masks",))
POINT = [pointing_game(tolerance=0), "energy_pointing_game", "iou", AREA]


class Network(nn.Module):
    """Logits of three classes, all different on each image."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(2).mean(dim=2) * torch.tensor([1.0, 2.0, 3.0])


def at_left(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """A map that is bright on the left object, whatever is asked."""
    maps = torch.zeros(len(images), SIDE, SIDE)
    maps[:, 1:11, 1:5] = 1
    return maps


def rows(truth: Any, target: Any, count: int = 2, **options: Any) -> pd.DataFrame:
    item = {"image": torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), "truth": truth}
    settings = {"methods": at_left, "metrics": POINT, "target": target, "progress": False} | options
    return xaieval.score(Network(), [item], **settings).rows


def test_a_map_of_the_cat_hits_the_cat_and_misses_the_dog():
    cat, dog = (rows([TARGET] * 2, target) for target in (CAT, DOG))
    assert (cat[["pointing_game", "energy_pointing_game", "iou"]] == 100).all(axis=None)
    assert (dog[["pointing_game", "energy_pointing_game", "iou"]] == 0).all(axis=None)


def test_boxes_are_those_of_the_class():
    label_map = torch.zeros(SIDE, SIDE, dtype=torch.long)
    label_map[1:11, 1:5], label_map[1:11, 7:11] = CAT, DOG
    for truth in ([TARGET] * 2, [label_map] * 2):
        cat, dog = (rows(truth, target, metrics=[box_accuracy(threshold=0.5)])["box_accuracy"] for target in (CAT, DOG))
        assert (cat == 100).all()
        assert (dog == 0).all()


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_numbers_of_two_values_are_asked_about(value, dtype):
    masks = torch.zeros(2, SIDE, SIDE, dtype=dtype)
    masks[:, 1:11, 1:5] = value
    item = {"image": torch.rand(2, 3, SIDE, SIDE), "masks": masks}
    with pytest.raises(MetricError, match=r"'masks' \(bool \[N, H, W\]; of numbers, masks != 0\)"):
        xaieval.score(Network(), [item], methods=at_left, metrics=["iou"], target=CAT, progress=False)
    found = xaieval.score(
        Network(), [item | {"masks": masks != 0}], methods=at_left, metrics=["iou"], target=CAT, progress=False
    )
    assert (found.rows["iou"] == 100).all()


def test_what_an_image_lacks_has_no_value_and_is_counted():
    truth = [TARGET, {"boxes": torch.tensor([LEFT]), "labels": torch.tensor([CAT])}, {"image_id": 3}]
    found = rows(truth, DOG, count=3)
    assert found["pointing_game"].isna().tolist() == [False, True, True]
    assert found["area"].tolist() == [40, 0, 0]
    assert (found["status"] == "ok").all(), "other metrics have values"
    images = torch.rand(3, 3, SIDE, SIDE)
    summary = xaieval.score(
        Network(),
        [{"image": images, "truth": truth}],
        methods=at_left,
        metrics=["average_drop", *POINT[:1]],
        target=DOG,
        progress=False,
    ).summary()
    assert summary["pointing_game_n"].item() == 1
    assert summary["n_images"].item() == 3


def test_ignored_pixels_are_neither_hit_nor_missed():
    label_map = torch.zeros(SIDE, SIDE, dtype=torch.long)
    label_map[1:11, 1:5] = CAT
    label_map[1:11, 3:5] = 255
    counted, ignored = (
        rows([one], CAT, count=1, metrics=[*POINT, "average_drop"]).iloc[0] for one in (label_map % 255, label_map)
    )
    assert counted["energy_pointing_game"] == 50
    assert counted["iou"] == 50
    assert (ignored[["pointing_game", "energy_pointing_game", "iou"]] == 100).all()
    assert ignored["area"] == counted["area"] == 20
    same = ["average_drop", "mask_area", "masked_confidence"]
    assert (ignored[same] == counted[same]).all(), "metrics that look at no masks see the whole map"


def test_classes_come_before_plain_masks_and_stay_with_their_images_in_any_batch():
    images = torch.rand(4, 3, SIDE, SIDE)
    truth = [TARGET, {"boxes": torch.tensor([RIGHT]), "labels": torch.tensor([CAT])}] * 2
    item = {"image": images, "truth": truth, "mask": torch.ones(4, SIDE, SIDE, dtype=torch.bool)}
    one, several = (
        xaieval.score(Network(), [item], methods=at_left, metrics=POINT, target=CAT, progress=False, batch_size=size).rows
        for size in (4, 1)
    )
    pd.testing.assert_frame_equal(one, several)
    assert one["iou"].tolist() == [100, 0, 100, 0]


def test_a_truth_of_another_size_ends_the_run_before_it_gives_numbers():
    with pytest.raises(DataError, match=r"the truth has masks of \[4, 4\] pixels for an image of \[12, 12\]"):
        rows([Truth(torch.tensor([CAT]), torch.ones(1, 4, 4, dtype=torch.bool))], CAT, count=1)
    assert len(rows([Truth(torch.tensor([CAT]), torch.ones(1, 4, 4, dtype=torch.bool))], CAT, count=1, metrics="average_drop"))


class Detector(nn.Module):
    """Two cats, a dog, and a cat far from any object; their scores depend on the image."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        boxes = torch.tensor([[1.0, 1, 5, 10], [6, 1, 11, 11], [7, 1, 11, 11], [0, 0, 12, 3]])
        labels = torch.tensor([CAT, CAT, DOG, CAT])
        return [{"boxes": boxes, "labels": labels, "scores": self.scores * one.mean().clamp(0.1, 1)} for one in images]


@pytest.mark.parametrize(
    ("scores", "target", "area"),
    [
        ((0.9, 0.5, 0.4, 0.3), CAT, 40),  # the cat at the left
        ((0.5, 0.9, 0.4, 0.3), CAT, 20),  # the one at the right, whose mask has half of its box
        ((0.5, 0.9, 0.4, 0.3), DOG, 0),  # no dog is in the truth
        ((0.5, 0.4, 0.3, 0.9), CAT, 0),  # a cat where none is
        ((0.5, 0.9, 0.4, 0.3), 7, None),  # nothing detected
    ],
)
def test_the_object_of_a_detector_is_the_one_that_it_detects(scores, target, area):
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    masks[0, 1:11, 1:5] = True
    masks[1, 1:11, 7:11] = torch.arange(4) % 2 == 0
    truth = Truth(torch.tensor([CAT, CAT]), masks, boxes=torch.tensor([LEFT, RIGHT]))
    item = {"image": torch.rand(2, 3, SIDE, SIDE), "truth": [truth] * 2}
    found = xaieval.score(
        Detector(*scores), [item], methods=at_left, metrics=POINT, target=target, task="detection", progress=False
    ).rows
    if area is None:
        assert (found["status"] == "no_target").all()
        assert found["area"].isna().all()
    else:
        assert found["area"].tolist() == [area] * 2
        assert np.isnan(found["pointing_game"]).all() == (area == 0)
