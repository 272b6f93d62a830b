"""Detections of networks of ultralytics: those of its own post-processing, with logits, and unchanged networks."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor

import xaieval
from tests.borrowing import differences, state_of
from tests.ultralytics_networks import HEIGHT, WIDTH, detector, evaluating, pictures, yolo
from xaieval.errors import ModelError, UsageError
from xaieval.explainers.detectors import DRISE
from xaieval.inference.options import Inference
from xaieval.inference.queries import with_known_output
from xaieval.inference.tasks import Detection
from xaieval.inference.yolo_detections import Suppression, grid_detections, grid_detector
from xaieval.models.ultralytics import others_kept


@pytest.fixture
def yolo11():
    return _copy("yolo11n.yaml")


@pytest.fixture
def end_to_end():
    model = _copy("yolo26n.yaml")
    model.model.end2end = True
    return model


_detector = lru_cache(detector)


def _copy(name):
    """A network that a test may change without changing that of the next one."""
    return deepcopy(_detector(name))


def _rows(found: dict[str, Tensor]) -> Tensor:
    """The detections `[D, 6]`, best first, as ultralytics gives them."""
    rows = torch.cat([found["boxes"], found["scores"][:, None], found["labels"][:, None].float()], dim=1)[found["found"]]
    return rows[rows[:, 4].argsort(descending=True)]


@pytest.mark.parametrize(
    "settings", [{}, {"conf": 0.4, "iou": 0.2}, {"conf": 0.0, "max_det": 7}, {"iou": 0.5, "agnostic_nms": True}]
)
@pytest.mark.parametrize("kind", ["yolo11", "end_to_end", "masks"])
def test_detections_are_those_of_ultralytics(kind, settings, request):
    with others_kept():
        from ultralytics.utils.nms import non_max_suppression

    network = (_segmenter() if kind == "masks" else request.getfixturevalue(kind)).model
    images = pictures()
    with torch.no_grad():
        output = evaluating(network)(images)
        found = replace(grid_detector(network), suppression=Suppression(**settings))(network, images)
    predicted = output[0][0] if kind == "masks" else output[0]
    wanted = {"conf": 0.25, "iou": 0.7, "max_det": 300, "agnostic_nms": False} | settings
    own = non_max_suppression(
        predicted.clone(),
        wanted["conf"],
        wanted["iou"],
        max_det=wanted["max_det"],
        agnostic=wanted["agnostic_nms"],
        nc=4,
        end2end=kind == "end_to_end",
    )
    for one, expected in zip(found, own, strict=True):
        assert len(expected) > 2
        torch.testing.assert_close(_rows(one), expected[:, :6])


def _segmenter():
    return _copy("yolo11n-seg.yaml")


def test_logits_are_those_of_the_head(yolo11, end_to_end):
    for model in (yolo11, end_to_end):
        images = pictures()
        with torch.no_grad():
            _, raw = model.model(images)
            logits = raw.get("one2one", raw)["scores"]
            found = grid_detector(model.model)(model.model, images)
        for one, of_image in zip(found, logits, strict=True):
            torch.testing.assert_close(one["logits"], of_image[one["labels"], one["queries"]])
            torch.testing.assert_close(one["logits"].sigmoid(), one["scores"])
            torch.testing.assert_close(one["probabilities"], of_image.sigmoid().T)
            assert one["scores"].min() > 0.001
            assert one["logits"].min() > one["floor"]
            torch.testing.assert_close(one["floor"].sigmoid(), torch.tensor(0.001))


def test_the_gradient_is_that_of_the_logit(yolo11):
    network, task, images = yolo11.model, Detection(), pictures(1).requires_grad_()
    read = task.read(grid_detector(network)(network, images))
    followed = task.follow(read, "predicted", None)
    [score] = task.score(read, followed)
    [found] = torch.autograd.grad(score, images)
    again = pictures(1).requires_grad_()
    highest = network(again)[1]["scores"].max()
    [expected] = torch.autograd.grad(highest, again)
    torch.testing.assert_close(score, highest)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(task.confidence(read, followed, "softmax")[0].float(), highest.sigmoid())


def _two(logits: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Two boxes that hardly overlap, with logits of two classes."""
    scores = torch.tensor(logits)
    boxes = torch.tensor([[8.0, 24.0], [8.0, 8.0], [16.0, 16.0], [16.0, 16.0]])
    return torch.cat([boxes, scores.sigmoid()])[None], scores[None]


def test_a_detection_is_found_again_below_the_threshold_and_under_another_class():
    task = Detection()
    original = grid_detections(*_two([[2.0, -3.0], [-9.0, 1.0]]), Suppression())
    followed = task.follow(task.read(original), 0, None)
    assert followed.details[0].tolist() == [[0.0, 0.0, 16.0, 16.0]]
    masked = task.read(grid_detections(*_two([[-2.0, 3.0], [1.0, 1.0]]), Suppression()))
    assert task.score(masked, followed).item() == -2
    assert task.confidence(masked, followed, "softmax").item() == pytest.approx(torch.tensor(-2.0).sigmoid().item())
    assert task.predicted(masked).tolist() == [0]  # the second box; the first one is below the threshold
    lost = task.read(grid_detections(*_two([[-8.0, 3.0], [-8.0, 1.0]]), Suppression()))
    assert task.score(lost, followed).item() == pytest.approx(torch.tensor(0.001).logit().item())
    assert task.confidence(lost, followed, "softmax").item() == 0


def test_candidates_are_not_followed():
    task = Detection()
    read = task.read(grid_detections(*_two([[2.0, -3.0], [-9.0, -2.0]]), Suppression()))
    assert read[0]["labels"].tolist() == [0, 0, 1]
    assert task.follow(read, 1, None).has_target.tolist() == [False]
    assert task.follow(read, "predicted", None).classes.tolist() == [0]
    nothing = task.read(grid_detections(*_two([[-2.0, -3.0], [-9.0, -2.0]]), Suppression()))
    assert task.predicted(nothing).tolist() == [-1]


def test_runs_leave_the_object_unchanged_and_start_no_training(yolo11, monkeypatch):
    monkeypatch.setattr(type(yolo11), "train", lambda *_, **__: pytest.fail("a training was started"))
    evaluating(yolo11.model).train()
    images, held = pictures(), dict(vars(yolo11))
    images[1] = 0
    methods = ["gradcam", "gradcam++", "eigencam", "odam", "ssgrad-cam", DRISE(8, grid=2), "occlusion"]
    before = state_of(yolo11.model, versions=False)
    scores = xaieval.score(yolo11, [images], "auto", methods, task="detection", progress=False)
    changed = differences(before, state_of(yolo11.model, versions=False))
    assert {*changed} <= {f"model.23|{name}" for name in ("anchors", "strides", "shape")}  # the head's table for an image size
    assert vars(yolo11) == held
    assert not yolo11.model.is_fused()
    assert all(module.training for module in yolo11.model.modules())
    rows = scores.rows
    neck = [f"model.{number}" for number in yolo11.model.model[-1].f]
    assert list(dict.fromkeys(rows["layer"])) == [*neck, "input"]
    assert set(rows["status"]) <= {"ok", "constant_map"}
    assert rows[rows["status"] == "ok"]["method"].nunique() == len(methods)


def test_centres_that_the_head_keeps_have_gradients_in_the_next_run(yolo11):
    for _ in range(2):  # the last pass of the first run, of two masked images, is one of inference mode
        rows = xaieval.score(
            yolo11, [pictures(2), pictures(1)], ["model.16", "model.19"], task="detection", progress=False
        ).rows
        assert set(rows["status"]) <= {"ok", "constant_map"}
    assert not yolo11.model.model[-1].anchors.is_inference()
    evaluating(yolo11.model)(pictures(2).requires_grad_())[0].sum().backward()


def test_an_image_without_detections_has_its_status(yolo11):
    network = yolo11.model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "args", {"conf": 0.9999})
        rows = xaieval.score(yolo11, [pictures()], methods="edges", task="detection", progress=False).rows
    assert set(rows["status"]) == {"no_target"}


def test_scores_that_are_rounded_to_1_have_a_gradient():
    model = detector("yolov8n.yaml")
    with torch.no_grad():
        for block in model.model.model[-1].cv3:
            block[-1].bias += 60
    images = pictures(1)
    [found] = grid_detector(model.model)(evaluating(model.model), images)
    assert found["scores"].max() == 1
    layer = f"model.{model.model.model[-1].f[0]}"
    logit = xaieval.explain(model, images, "auto", task="detection")
    saturated = xaieval.explain(model, images, "auto", task="detection", protocol=xaieval.Protocol(gradient="confidence"))
    assert layer in logit
    assert max(one.max() for one in logit.values()) == 1
    assert max(one.max() for one in saturated.values()) == 0


@pytest.mark.parametrize("kind", ["masks", "key points"])
def test_prototypes_of_masks_are_no_level(kind):
    model = _segmenter() if kind == "masks" else detector("yolo11n-pose.yaml")
    maps = xaieval.explain(model, pictures(1), "auto", "eigencam", task="detection")
    assert list(maps) == [f"model.{number}" for number in model.model.model[-1].f]


def test_classifiers_are_explained_by_their_logits():
    model = yolo("yolo11n-cls.yaml", nc=5)
    images = pictures()
    with torch.no_grad():
        probabilities, logits = evaluating(model.model)(images)
    rows = xaieval.score(model, [images], methods="edges", progress=False).rows
    assert rows["confidence"].tolist() == pytest.approx(probabilities.max(dim=1).values.tolist(), rel=1e-5)
    assert rows["predicted"].tolist() == logits.argmax(dim=1).tolist()


def test_what_cannot_be_followed_is_refused(yolo11):
    rotated = yolo("yolo11n-obb.yaml")
    with pytest.raises(ModelError, match="rotated boxes"):
        xaieval.explain(rotated, pictures(1), method="edges", task="detection")
    with pytest.raises(ModelError, match=f"images are {HEIGHT} x {WIDTH - 2} pixels.* multiples of 32"):
        xaieval.explain(yolo11, pictures(1)[..., 2:], method="edges", task="detection")
    for wrong in ({"conf": 25}, {"iou": -0.1}, {"max_det": 0}):
        with pytest.raises(UsageError, match="conf and iou of detections"):
            Suppression(**wrong)
    boxes = {"boxes": torch.zeros(1, 4), "labels": torch.zeros(1).long(), "scores": torch.ones(1), "logits": torch.ones(1)}
    with pytest.raises(ModelError, match="'logits' without 'floor'"):
        Detection().read([boxes])


def test_only_detectors_with_strides_and_classes_are_decoded(yolo11):
    task = Detection()
    assert with_known_output(Inference(), task, torch.nn.Conv2d(3, 3, 3, 2)) == (Inference(), task)
    assert with_known_output(Inference(), Detection(output=0), yolo11.model)[0] == Inference()
    found = with_known_output(Inference(), task, torch.nn.DataParallel(yolo11.model))[0].forward
    assert found == grid_detector(yolo11.model)
    assert found.stride == 32
