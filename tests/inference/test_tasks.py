"""The tasks of classifiers, detectors and segmentation networks: what is followed, its score and its confidence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xaieval import score
from xaieval.errors import ModelError, TargetError, UsageError
from xaieval.inference.tasks import TASKS, Classification, Detection, Followed, Segmentation, Task, describe, resolve_task

# ---- by hand


def _detections(*rows: tuple[tuple[float, ...], int, float]) -> dict[str, Tensor]:
    boxes, labels, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


SEEN = [
    _detections(((0, 0, 10, 10), 3, 0.9), ((20, 20, 30, 30), 5, 0.8), ((0, 0, 10, 11), 3, 0.2)),
    _detections(((0, 0, 4, 4), 5, 0.6), ((50, 50, 60, 60), 3, 0.5)),
    _detections(),
]


def test_the_best_detection_of_all_is_followed():
    followed = Detection().follow(SEEN, "predicted", None)
    assert followed.classes.tolist() == [3, 5, -1]
    assert followed.has_target.tolist() == [True, True, False]
    assert followed.details[0].tolist() == [[0, 0, 10, 10], [0, 0, 4, 4], [0, 0, 0, 0]]


def test_the_best_detection_of_a_class_is_followed():
    followed = Detection().follow(SEEN, 3, None)
    assert followed.classes.tolist() == [3, 3, -1]
    assert followed.details[0][1].tolist() == [50, 50, 60, 60]
    by_label = Detection().follow(SEEN, "label", torch.tensor([5, 7, 3]))
    assert by_label.classes.tolist() == [5, -1, -1]
    by_function = Detection().follow(SEEN, lambda read, labels: torch.tensor([5, 5, 5]), None)
    assert by_function.classes.tolist() == [5, 5, -1]


def test_a_given_box_picks_the_detection_at_it():
    followed = Detection(box=(19, 20, 30, 30)).follow(SEEN, "predicted", None)
    assert followed.classes.tolist() == [5, -1, -1]


def test_confidence_is_that_of_the_same_class_at_the_same_place():
    task = Detection(iou=0.5)
    followed = task.follow(SEEN, "predicted", None)
    later = [
        # The same class elsewhere, another class at the same place, and the same object twice, once less sure.
        _detections(((40, 40, 50, 50), 3, 0.99), ((0, 0, 10, 10), 4, 0.95), ((0, 0, 10, 6), 3, 0.3), ((0, 0, 10, 9), 3, 0.4)),
        _detections(((0, 0, 4, 1), 5, 0.7)),  # a quarter of the box
        _detections(((0, 0, 4, 4), 5, 0.7)),
    ]
    assert task.confidence(later, followed, "softmax").tolist() == pytest.approx([0.4, 0, 0])
    assert task.confidence(later, followed, "softmax").dtype == torch.float64


def test_the_score_of_a_detection_is_differentiable_also_where_there_is_none():
    scores = torch.tensor([0.9, 0.3], requires_grad=True)
    read = [{**SEEN[1], "scores": scores}, {**SEEN[2], "scores": scores[:0]}]
    task = Detection()
    task.score(read, task.follow(read, "predicted", None)).sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [1, 0]


def test_a_class_is_followed_where_it_is_predicted():
    # Two pixels: class 2 is predicted on the first, the background on the second.
    logits = torch.tensor([[[[0.0, 5.0]], [[1.0, 4.0]], [[3.0, 1.0]]]])
    task = Segmentation()
    assert task.predicted(logits).tolist() == [2]
    followed = task.follow(logits, "predicted", None)
    assert task.score(logits, followed).tolist() == [3]
    assert task.confidence(logits, followed, "softmax").item() == pytest.approx(
        logits[0, :, 0, 0].double().softmax(0)[2].item()
    )
    everywhere = Segmentation(region="all")
    assert everywhere.score(logits, everywhere.follow(logits, 2, None)).tolist() == [2]


def test_background_alone_is_nothing_to_follow_unless_it_is_a_class_too():
    logits = torch.tensor([[[[5.0, 5.0]], [[1.0, 1.0]]]])
    followed = Segmentation().follow(logits, "predicted", None)
    assert (followed.classes.tolist(), followed.has_target.tolist()) == ([-1], [False])
    assert Segmentation().score(logits, followed).tolist() == [0]
    assert Segmentation(background=None).predicted(logits).tolist() == [0]
    assert Segmentation().follow(logits, 1, None).has_target.tolist() == [False]


def test_what_is_followed_can_be_asked_of_images_in_any_order():
    followed = Followed(torch.tensor([3, 4]), torch.tensor([True, False]), (torch.tensor([[1.0], [2.0]]),))
    turned = followed.of(torch.tensor([1, 1, 0]))
    assert turned.classes.tolist() == [4, 4, 3]
    assert turned.has_target.tolist() == [False, False, True]
    assert turned.details[0].tolist() == [[2], [2], [1]]


# ---- wrong use


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resolve_task("detecting"), "no task 'detecting'; did you mean 'detection'?"),
        (lambda: resolve_task(Detection), "a task is a name"),
        (lambda: resolve_task(Detection(), "out"), "with a task object, give output= to the object itself"),
        (lambda: Detection(iou=0), "iou lies in"),
        (lambda: Detection(box=(3, 0, 1, 2)), "box is"),
        (lambda: Segmentation(region="some"), "no region 'some'; known: predicted, all"),
        (lambda: Detection().read(torch.zeros(1, 3)), "has no detections: got torch.float32 [1, 3]"),
        (lambda: Segmentation().read(torch.zeros(1, 3)), "has no logits [N, K, h, w]: got torch.float32 [1, 3]"),
        (lambda: Classification().read(SEEN), "has no logits [N, K]"),
    ],
)
def test_wrong_use_is_named(make, message):
    with pytest.raises((UsageError, ModelError)) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize("target", ["label", -1, True, 1.5])
@pytest.mark.parametrize(("task", "read"), [(Detection(), SEEN), (Segmentation(), torch.zeros(3, 4, 2, 2))])
def test_a_target_that_there_cannot_be(task, read, target):
    with pytest.raises(TargetError):
        task.follow(read, target, None)


def test_segmentation_refuses_a_class_outside_the_model():
    with pytest.raises(TargetError, match="the target is class 4, but the model has 4 classes"):
        Segmentation().follow(torch.zeros(1, 4, 2, 2), 4, None)


def test_a_function_of_logits_is_no_confidence_of_a_detection():
    with pytest.raises(TargetError, match="cannot be a function for detectors"):
        Detection().confidence(SEEN, Detection().follow(SEEN, "predicted", None), lambda logits: logits)


# ---- as part of a run


class Finder(nn.Module):
    """A detector of bright images: one box of class 1 whose score is the mean of a convolution's map, none of dark images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 3)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        means = self.conv(images).mean(dim=(1, 2, 3))
        box = torch.tensor([[0.0, 0, 4, 4]])
        one = torch.ones(1, dtype=torch.long)
        return [
            {"boxes": box[: int(mean > 0.2)], "labels": one[: int(mean > 0.2)], "scores": mean[None][: int(mean > 0.2)]}
            for mean in means
        ]


def test_a_detector_is_scored_and_images_without_detections_are_counted():
    images = torch.stack([torch.full((3, 4, 4), 0.8), torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.5)])
    images[0, :, :, 2:] = 0.4  # mean 0.6; the map is the left half, whose mean over the image is 0.4
    images[2, :, :2] = 0.6  # mean 0.55
    scores = score(Finder(), [images], "conv", task="detection", progress=False)
    rows = scores.rows.set_index("image_id")
    assert rows["status"].tolist() == ["ok", "no_target", "ok"]
    assert rows.loc["0", "confidence"] == pytest.approx(0.6)
    assert rows.loc["0", "masked_confidence"] == pytest.approx(0.4)
    assert rows.loc["0", "average_drop"] == pytest.approx(100 * 0.2 / 0.6)
    assert rows["target"].isna().tolist() == [False, True, False]
    assert rows["predicted"].isna().tolist() == [False, True, False]
    assert scores.summary().iloc[0][["n_images", "n_failed"]].tolist() == [2, 1]
    assert scores.manifest["run"]["task"] == {"name": "detection", "iou": 0.5, "box": None, "output": None, "threshold": 0.0}


def test_a_batch_in_which_nothing_is_found():
    rows = score(Finder(), [torch.zeros(2, 3, 4, 4)], "conv", task="detection", progress=False).rows
    assert set(rows["status"]) == {"no_target"}


class Painter(nn.Module):
    """A segmentation network of two classes, whose logits are the image's first two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:2, :, None, None])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(images), "aux": images}


def test_a_segmentation_network_is_scored():
    images = torch.zeros(1, 3, 2, 2)
    images[0, 1] = torch.tensor([[4.0, 2.0], [-1.0, -1.0]])  # class 1 in the upper row
    row = score(Painter(), [images], "conv", task="segmentation", protocol="default", progress=False).rows.iloc[0]
    # Of the logits 4 and 2 of two pixels beside 0 and 0 of the background.
    expected = torch.tensor([[0.0, 4], [0, 2]], dtype=torch.float64).softmax(1)[:, 1].mean().item()
    assert row["confidence"] == pytest.approx(expected)
    # Gradients are 1/2 in the upper row, so the map is (4, 2, -1, -1) scaled, which relu and min-max make (1, 0.5, 0, 0).
    masked = torch.tensor([[0.0, 4], [0, 1]], dtype=torch.float64).softmax(1)[:, 1].mean().item()
    assert row["masked_confidence"] == pytest.approx(masked)


def test_every_task_has_a_name_and_follows_the_protocol():
    for name, kind in TASKS.items():
        assert isinstance(kind(), Task)
        assert describe(kind())["name"] == name


class TwoInputs(nn.Module):
    """A model that takes more than images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor, scale: Tensor) -> Tensor:
        return self.conv(images).mean(dim=(2, 3)) * scale


@pytest.mark.parametrize("options", [{}, {"fast": False}, {"precision": "bf16"}])
def test_a_model_of_several_inputs_is_run_by_a_function(options):
    torch.manual_seed(0)
    model, images = TwoInputs(), torch.rand(2, 3, 8, 8)
    scores = score(model, [images], "conv", forward=lambda m, x: m(x, torch.tensor(2.0)), progress=False, **options)
    assert set(scores.rows["status"]) <= {"ok", "constant_map"}
    assert scores.manifest["run"]["forward"].endswith("<lambda>")
    doubled = 2 * model.conv(images).mean(dim=(2, 3))
    expected = doubled.softmax(1).max(dim=1).values
    tolerance = 1e-2 if "precision" in options else 1e-5
    assert scores.rows["confidence"].to_numpy() == pytest.approx(expected.detach().numpy(), abs=tolerance)
