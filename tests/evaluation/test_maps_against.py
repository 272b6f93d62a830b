"""Scores that compare the class with others: Finer-CAM of torch-cam and pytorch-grad-cam, and any other method."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval import Protocol, explain
from xaieval.errors import ExplainerError, ProtocolError, TargetError
from xaieval.explainers import Precomputed, PytorchGradCam, TorchCam
from xaieval.inference.targets import compared_classes, compared_score

IMAGES = torch.randn(3, 3, 20, 24, generator=torch.Generator().manual_seed(8))


@cache
def network() -> nn.Module:
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU()]
    model = nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 6)).eval()
    model[-1].weight.data *= 5
    return model


def maps(method: object, layer: str = "3", **protocol: object) -> Tensor:
    (found,) = explain(network(), IMAGES, layer, method, protocol=Protocol(normalisation="max", **protocol)).values()
    assert (found.flatten(1).amax(dim=1) > 0).all()
    return found


@pytest.mark.parametrize("method", ["gradcam", "torch-cam:GradCAM", "pytorch-grad-cam:GradCAM"])
def test_gradcam_against_similar_classes_is_the_finer_cam_of_torch_cam(method):
    finer = maps("torch-cam:FinerCAM")
    found = maps(method, against="similar")
    tolerance = 5e-2 if method.startswith("pytorch") else 1e-4  # it resizes by OpenCV before the protocol does
    torch.testing.assert_close(found, finer, rtol=0, atol=tolerance)
    assert (maps(method) - finer).abs().max() > 0.05  # without the comparison it is another map


def test_the_weight_and_the_number_of_classes_are_those_of_torch_cam():
    finer = maps(TorchCam("FinerCAM", settings={"gamma": 0.9, "num_references": 2}))
    torch.testing.assert_close(maps("gradcam", against="similar-2", against_weight=0.9), finer, rtol=0, atol=1e-4)


def test_with_one_class_it_is_the_finer_cam_of_pytorch_grad_cam():
    # With several, that library weights them by probabilities, and differentiates these too.
    finer = maps(PytorchGradCam("FinerCAM", smooth={"comparison_categories": [1], "alpha": 0.6}))
    torch.testing.assert_close(maps("pytorch-grad-cam:GradCAM", against="similar-1"), finer, rtol=0, atol=1e-4)


def test_scores_of_methods_are_those_of_the_comparison():
    # Gradient times input of this network is linear in the score.
    weight, classes = 0.7, [5, 1]
    protocol = Protocol(normalisation="none", absolute=False)

    def signed(target: int, **against: object) -> Tensor:
        model = nn.Sequential(network(), nn.Identity())
        context = {}

        class Keep:
            name, needs_layer, needs_gradient, needs_model = "keep", True, True, False

            def __call__(self, given: xaieval.explainers.Context) -> Tensor:
                context["gradient"] = given.gradient.clone()
                context["asked"] = given.ask([(given.images, given.everywhere)])
                return given.activation[:, 0]

        explain(model, IMAGES, "0.3", Keep(), target, protocol=Protocol(**against))
        torch.testing.assert_close(context["asked"], asked(target, **against))
        return context["gradient"]

    def asked(target: int, **against: object) -> Tensor:
        with torch.no_grad():
            logits = network()(IMAGES)
        return logits[:, target] - (weight * logits[:, classes].mean(dim=1) if against else 0)

    expected = signed(2) - weight / 2 * (signed(5) + signed(1))
    torch.testing.assert_close(signed(2, against=classes, against_weight=weight), expected)
    assert protocol.against is None


def test_similar_classes_are_those_of_the_original_image():
    logits = torch.tensor([[3.0, 2.5, 0.0, 3.1], [0.0, 1.0, 2.0, 9.0]])
    classes, weights = compared_classes(logits, torch.tensor([0, 3]), "similar-2", 0.6)
    assert classes.tolist() == [[3, 1], [2, 1]]
    torch.testing.assert_close(weights, torch.full((2, 2), 0.3))
    torch.testing.assert_close(compared_score(logits, classes, weights), torch.tensor([1.68, 0.9]))
    everyone, _ = compared_classes(logits, torch.tensor([0, -1]), "similar-9", 0.6)
    assert everyone.shape == (2, 3)


def test_the_target_is_left_out_of_named_classes():
    classes, weights = compared_classes(torch.zeros(2, 4), torch.tensor([1, 0]), (1, 3), 0.6)
    assert classes.tolist() == [[1, 3], [1, 3]]
    torch.testing.assert_close(weights, torch.tensor([[0.0, 0.6], [0.3, 0.3]]))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"against": "simlar"}, r"against is 'similar', 'similar-N' for the N most similar classes, .* got 'simlar'"),
        ({"against": [2, 2]}, r"got \[2, 2\]"),
        ({"against": -1}, "got -1"),
        ({"against": True}, "got True"),
        ({"against": []}, r"got \[\]"),
        ({"against": "similar-0"}, "got 'similar-0'"),
        ({"against": 1, "gradient": "confidence"}, "against= compares logits, and gradient='confidence' takes none"),
        ({"against_weight": 20}, r"against_weight lies in \[0, 10\], got 20"),
    ],
)
def test_bad_comparisons_are_refused_at_once(choices, message):
    with pytest.raises(ProtocolError, match=message):
        Protocol(**choices)


def test_classes_may_be_text_as_on_the_command_line():
    assert Protocol(against="7").against == (7,)
    assert Protocol(against="7, 8").against == (7, 8)
    assert Protocol(against=torch.tensor([1, 2])).against == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 2, "protocol": Protocol(against=2)}, "against= has class 2 alone, which is the target of an image"),
        ({"protocol": Protocol(against=(1, 12))}, "against= has class 12, but the model has 6 classes, 0 to 5"),
        ({"protocol": Protocol(against=2), "task": "detection"}, "against= compares the classes of a classifier"),
    ],
)
def test_bad_comparisons_of_a_model_are_refused(options, message):
    with pytest.raises(TargetError, match=message):
        explain(network(), IMAGES, "3", **options)


def test_one_class_has_nothing_to_be_compared_with():
    one = nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(TargetError, match="against= compares classes, and the model has one only"):
        explain(one, IMAGES, "0", protocol=Protocol(against="similar", confidence="identity"), target=0)


@pytest.mark.parametrize("method", ["cam", "torch-cam:CAM", "torch-cam:FinerCAM", "pytorch-grad-cam:FinerCAM"])
def test_methods_of_one_class_are_refused(method):
    with pytest.raises(ExplainerError, match="explains a class by itself, and the protocol compares it with others"):
        explain(network(), IMAGES, "3", method, protocol=Protocol(against="similar"))


def test_altered_images_are_compared_with_the_classes_of_the_originals_and_confidences_stay():
    metrics = ["average_drop", "max_sensitivity"]
    plain, compared = (
        xaieval.score(network(), [IMAGES], "3", "edges", metrics=metrics, protocol=protocol, progress=False).rows
        for protocol in (Protocol(), Protocol(against="similar"))
    )
    assert (plain["average_drop"] == compared["average_drop"]).all()
    assert (plain["confidence"] == compared["confidence"]).all()
    rows = xaieval.score(network(), [IMAGES], "3", metrics=metrics, protocol=Protocol(against=[0, 1]), progress=False).rows
    assert rows["max_sensitivity"].notna().all()


def ones(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return images[:, 0] + targets[:, None, None]


def test_a_function_and_maps_from_files_are_refused_with_what_to_do(tmp_path):
    for number in range(len(IMAGES)):
        np.save(tmp_path / f"{number}.npy", np.eye(4))
    protocol = Protocol(against="similar")
    with pytest.raises(ExplainerError, match=r"^method 'ones' explains a class by .* \(against=\); a function is not told"):
        explain(network(), IMAGES, method=ones, protocol=protocol)
    with pytest.raises(ExplainerError, match=r"^method 'precomputed' explains .* \(against=\); maps .* leave against= out"):
        xaieval.score(network(), [IMAGES], methods=[Precomputed(tmp_path)], protocol=protocol, progress=False)
