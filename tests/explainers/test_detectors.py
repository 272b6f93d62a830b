"""D-RISE, ODAM and SSGrad-CAM equal loops over their formulas, keep to one object, and refuse models that find none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor, nn

import xaieval
from tests.explainers.finder import Finder, context_of, some_images
from xaieval.errors import ExplainerError, ModelError
from xaieval.explainers import METHODS
from xaieval.explainers.detectors import DRISE, ODAM, SSGradCAM, smoothed, spatial_grad_cam
from xaieval.explainers.perturbation import RandomMasks
from xaieval.inference.query_detections import query_detections
from xaieval.inference.tasks import Detection
from xaieval.testing import check_explainer

RAW = xaieval.Protocol(normalisation="none")
KINDS = ("scores", "probabilities", "objectness", "queries")


# ---- D-RISE


def _iou(first: list[float], second: list[float]) -> float:
    sides = [min(first[2 + axis], second[2 + axis]) - max(first[axis], second[axis]) for axis in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (areas[0] + areas[1] - shared)


def _row(one: dict[str, Tensor], number: int) -> np.ndarray:
    return one["probabilities"][one["queries"][number] if "queries" in one else number].numpy()


def _weight(kind: str, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """The weight of a mask by the paper, and by the score where only that is known."""
    best, weights = int(wanted["scores"].argmax()), [0.0]
    for number, box in enumerate(found["boxes"].tolist()):
        if kind == "scores":
            alike = found["scores"][number].item() * float(found["labels"][number] == wanted["labels"][best])
        else:
            a, b = _row(wanted, best), _row(found, number)
            alike = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            alike *= found["objectness"][number].item() if kind == "objectness" else 1
        weights.append(alike * _iou(wanted["boxes"][best].tolist(), box))
    return max(weights)


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_d_rise_equals_a_loop_over_masks_and_detections(kind, size):
    model, images, method = Finder(kind), some_images(), DRISE(n_masks=10, grid=3, probability=0.4)
    masks = RandomMasks.draw(method, 4, (10, 16), images.device).make(0, 10)
    expected, weights = torch.zeros(3, 10, 16), []
    with torch.no_grad():
        for number, image in enumerate(images):
            (wanted,) = model(image[None])
            for mask in masks:
                (found,) = model((image * mask)[None])
                weights.append(_weight(kind, wanted, found))
                expected[number] += weights[-1] * mask / (10 * 0.4)
    assert np.std(weights) > 0.05
    torch.testing.assert_close(method(context_of(model, images, size)), expected)


def test_a_masked_image_without_detections_has_no_weight_and_an_image_without_a_target_a_map_of_zeros():
    def model(images: Tensor) -> list[dict[str, Tensor]]:
        said = {"boxes": torch.tensor([[0.0, 0, 8, 8]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
        return [{name: tensor[: int(one.mean() > 0.4)] for name, tensor in said.items()} for one in images]

    images, method = torch.stack([torch.full((3, 8, 8), 0.7), torch.zeros(3, 8, 8)]), DRISE(n_masks=30, grid=2)
    masks = RandomMasks.draw(method, 4, (8, 8), images.device).make(0, 30)
    shown = masks[masks.mean(dim=(1, 2)) * 0.7 > 0.4]
    assert 0 < len(shown) < 30
    maps = method(context_of(model, images, 4))
    torch.testing.assert_close(maps[0], 0.5 * shown.sum(dim=0) / 15)
    assert (maps[1] == 0).all()


def test_queries_of_transformers_give_the_probabilities_of_their_boxes():
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    boxes = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)) / 2 + 0.2
    found = query_detections(boxes, logits, (20, 30), classes=3)
    spelled = []
    for one in found:
        torch.testing.assert_close(one["probabilities"][one["queries"], one["labels"]], one["scores"])
        rows = one["probabilities"][one["queries"]]
        spelled.append({key: one[key] for key in ("boxes", "labels", "scores")} | {"probabilities": rows})
    task = Detection()
    followed = [task.follow(said, 1, None) for said in (found, spelled)]
    torch.testing.assert_close(followed[0].details, followed[1].details)
    for said in (found, spelled):
        torch.testing.assert_close(task.similarity(task.read(said), followed[0]), torch.ones(2))
    other = [task.similarity(task.read(said[::-1]), followed[0]) for said in (found, spelled)]
    torch.testing.assert_close(*other)
    assert ((other[0] > 0) & (other[0] < 0.99)).all()


# ---- maps of a layer


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_odam_is_the_smoothed_gradient_times_the_activation(sigma):
    activation, gradient = torch.randn(2, 2, 4, 6, 5, generator=torch.Generator().manual_seed(5)).double()
    expected = np.zeros((2, 6, 5))
    for number in range(2):
        for channel in range(4):
            weights = scipy.ndimage.gaussian_filter(gradient[number, channel].numpy(), sigma, mode="constant", truncate=3)
            expected[number] += weights * activation[number, channel].numpy()
    context = replace(context_of(Finder(), some_images(2), 2), activation=activation, gradient=gradient)
    torch.testing.assert_close(ODAM(sigma)(context), torch.from_numpy(expected.clip(min=0)))
    torch.testing.assert_close(ODAM(0)(context), METHODS["hirescam"](context))


def test_volumes_are_smoothed_along_all_their_axes():
    maps = torch.randn(1, 1, 4, 5, 6, generator=torch.Generator().manual_seed(5))
    expected = scipy.ndimage.gaussian_filter(maps[0, 0].numpy(), 1, mode="constant", truncate=3)
    torch.testing.assert_close(smoothed(maps, 1)[0, 0], torch.from_numpy(expected))


def test_ssgrad_cam_weighs_each_cell_by_the_size_of_its_gradient():
    activation, gradient = torch.randn(2, 2, 4, 3, 5, generator=torch.Generator().manual_seed(6))
    gradient[1, 2] = 0
    expected = torch.zeros(2, 3, 5)
    for number in range(2):
        for row in range(3):
            for column in range(5):
                for channel in range(4):
                    of = gradient[number, channel]
                    space = of[row, column].abs() / of.abs().max() if of.any() else 0
                    expected[number, row, column] += of.mean() * space * activation[number, channel, row, column]
    torch.testing.assert_close(spatial_grad_cam(activation, gradient), expected.clamp(min=0))


class Pair(nn.Module):
    """An object of the same class in each half of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        boxes, labels = torch.tensor([[0.0, 0, 10, 20], [10, 0, 20, 20]]), torch.tensor([1, 1])
        halves = self.layer(images).tensor_split(2, dim=3)
        scores = torch.stack([half.mean(dim=(1, 2, 3)) for half in halves], dim=1)
        return [{"boxes": boxes, "labels": labels, "scores": score} for score in scores]


@pytest.mark.parametrize("box", [(0, 0, 10, 20), (10, 0, 20, 20)])
def test_maps_of_one_of_two_equal_objects_stay_with_it(box):
    maps = xaieval.explain(
        Pair(), torch.full((1, 3, 20, 20), 0.5), "layer", list(LAYERED), task=Detection(box=box), protocol=RAW
    )
    for name, share in LAYERED.items():
        found = maps["layer", name][0]
        assert (found[:, box[0] : box[2]].sum() / found.sum()).item() == pytest.approx(share, abs=0.05)


LAYERED = {"gradcam": 0.5, "odam": 0.97, "ssgrad-cam": 1.0}  # and the share of a map that lies in the box


# ---- promises and refusals


@pytest.mark.parametrize("method", [DRISE(n_masks=20, grid=4), ODAM(), SSGradCAM()], ids=lambda method: method.name)
def test_they_keep_what_all_explainers_promise(method):
    check_explainer(method, Finder("objectness"), torch.rand(3, 3, 16, 24), "layer", task="detection")


def test_d_rise_explains_a_function_like_the_network_in_it():
    model = Finder().eval()
    methods = {"method": DRISE(20), "task": "detection"}
    inside, outside = (xaieval.explain(it, some_images(), **methods)["input"] for it in (model, lambda images: model(images)))
    torch.testing.assert_close(outside, inside)


@pytest.mark.parametrize(
    ("name", "task", "other"),
    [
        ("d-rise", "classification", "rise"),
        ("odam", "classification", "hirescam"),
        ("ssgrad-cam", "segmentation", "gradcam"),
    ],
)
def test_other_models_are_refused_with_what_fits(name, task, other):
    layers = [nn.Conv2d(3, 2, 1), *([nn.AdaptiveAvgPool2d(1), nn.Flatten()] if task == "classification" else [])]
    message = rf"^method '{name}' explains a detection, and the task is {task}; take '{other}', or task='detection' if"
    with pytest.raises(ExplainerError, match=message):
        xaieval.explain(nn.Sequential(*layers), some_images(), "0", name, task=task)


def _read(boxes: int, *probabilities: int | None) -> None:
    one = {"boxes": torch.rand(boxes, 4), "labels": torch.zeros(boxes, dtype=torch.long), "scores": torch.rand(boxes)}
    Detection().read([one if rows is None else one | {"probabilities": torch.rand(rows, 5)} for rows in probabilities])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DRISE(n_masks=0), ExplainerError, "method 'd-rise' takes n_masks and grid of at least 1"),
        (lambda: ODAM(-1), ExplainerError, "a smoothing of 0 or more cells, got -1"),
        (lambda: ODAM(float("nan")), ExplainerError, "a smoothing of 0 or more cells, got nan"),
        (lambda: _read(2, 3), ModelError, r"an image has 2 boxes and 'probabilities' \[3, 5\]; one row for each box"),
        (lambda: _read(2, 2, None), ModelError, "some images have 'probabilities' and some have none"),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
