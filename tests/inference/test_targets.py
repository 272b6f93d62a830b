"""Logits found in a model's output, their confidences, and the choice of the target class."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch import Tensor, nn

from xaieval import Protocol, score
from xaieval.errors import ModelError, TargetError
from xaieval.inference.targets import choose_targets, confidences, logits_of, take

LOGITS = torch.tensor([[0.0, 2.0, -1.0], [5.0, 4.0, 3.0]])
OTHER = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        SimpleNamespace(logits=LOGITS, hidden=OTHER),
        {"features": OTHER, "logits": LOGITS},
        OrderedDict(out=LOGITS, aux=OTHER),
        {"scores": LOGITS},
        (LOGITS, OTHER),
        [LOGITS],
    ],
    ids=["tensor", "object", "mapping with logits", "mapping with out", "mapping of one", "tuple", "list"],
)
def test_logits_are_found_in_the_usual_outputs(output):
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize(
    ("output", "where"),
    [({"a": OTHER, "b": LOGITS}, "b"), ((OTHER, LOGITS), 1), ((OTHER, [LOGITS]), lambda output: output[1][0])],
    ids=["key", "index", "function"],
)
def test_output_says_where_the_logits_are(output, where):
    assert logits_of(output, where) is LOGITS


@dataclass
class Output:
    """As those of libraries that return records."""

    features: Tensor
    scores: Tensor


class Named(NamedTuple):
    features: Tensor
    scores: Tensor


@pytest.mark.parametrize(
    "output",
    [Output(OTHER, LOGITS), Named(OTHER, LOGITS), SimpleNamespace(scores=LOGITS)],
    ids=["dataclass", "named tuple", "namespace"],
)
def test_logits_can_be_an_attribute(output):
    assert logits_of(output, "scores") is LOGITS


@pytest.mark.parametrize(
    "output",
    [
        {"head": {"logits": LOGITS}},
        {"out": {"logits": LOGITS, "aux": OTHER}, "aux": OTHER},
        ({"logits": LOGITS}, OTHER),
        SimpleNamespace(logits=(LOGITS, OTHER)),
    ],
    ids=["entry", "out", "first", "attribute"],
)
def test_containers_may_be_nested(output):
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_of_the_user_may_write_into_what_they_are_given(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).to(dtype)
    images = torch.rand(3, 3, 8, 8)

    def columns(**choices):
        rows = score(model, [images], "1", ("gradcam", "occlusion"), progress=False, **choices).rows
        return rows[["target", "confidence", "masked_confidence", "mask_area"]].to_numpy(dtype=float)

    def lowest(logits, labels):
        return logits.argmin(dim=1)

    def lowest_in_place(logits, labels):
        return logits.argmin(dim=1) + logits.zero_()[:, 0].long()

    pairs = [
        ({"output": lambda output: output * 2}, {"output": lambda output: output.mul_(2)}),
        ({"target": lowest}, {"target": lowest_in_place}),
        (
            {"protocol": Protocol(confidence=lambda logits: (logits * 2).softmax(1))},
            {"protocol": Protocol(confidence=lambda logits: logits.mul_(2).softmax(1))},
        ),
    ]
    for right, in_place in pairs:
        np.testing.assert_allclose(columns(**in_place), columns(**right), atol=1e-6)


@pytest.mark.parametrize(
    ("output", "where", "message"),
    [
        (
            {"a": OTHER, "b": LOGITS},
            None,
            "the model's output has no logits [N, K]: got a mapping with 'a', 'b'; say where they are with output=",
        ),
        (torch.zeros(2, 3, 4), None, "the model's output has no logits [N, K]: got torch.float32 [2, 3, 4]; say"),
        (torch.zeros(2, 3, dtype=torch.long), None, "the model's output has no logits [N, K]: got torch.int64 [2, 3]; say"),
        ((), None, "the model's output has no logits [N, K]: got a tuple of 0; say"),
        ({"a": OTHER}, "b", "the model's output has no 'b': it is a mapping with 'a'"),
        ((OTHER,), 1, "the model's output has no 1: it is a tuple of 1"),
        (SimpleNamespace(a=OTHER), "b", "the model's output has no 'b': it is a SimpleNamespace with 'a'"),
        (SimpleNamespace(a=OTHER), None, "the model's output has no logits [N, K]: got a SimpleNamespace with 'a'; say"),
    ],
)
def test_an_output_without_logits_is_refused_with_what_came(output, where, message):
    with pytest.raises(ModelError) as caught:
        logits_of(output, where)
    assert message in str(caught.value)


def test_confidences_equal_those_of_scipy():
    torch.testing.assert_close(confidences(LOGITS), torch.from_numpy(softmax(LOGITS.double().numpy(), axis=1)))
    torch.testing.assert_close(confidences(LOGITS, "sigmoid"), torch.from_numpy(expit(LOGITS.double().numpy())))
    assert torch.equal(confidences(LOGITS, "identity"), LOGITS.double())
    assert torch.equal(confidences(LOGITS, lambda logits: logits / 2), LOGITS.double() / 2)


def test_confidences_near_one_are_told_apart():
    # In float32 both are 1, and an increase from one to the other would be rounding noise.
    lower, higher = confidences(torch.tensor([[18.0, 0.0], [20.0, 0.0]]))[:, 0]
    assert higher > lower


def test_a_confidence_function_keeps_the_shape():
    with pytest.raises(ModelError, match=r"the confidence function returned \[2\] for logits \[2, 3\]"):
        confidences(LOGITS, lambda logits: logits[:, 0])


def test_targets_are_the_predicted_class_the_label_or_one_class():
    labels = torch.tensor([2, 0])
    assert choose_targets("predicted", LOGITS).tolist() == [1, 0]
    assert choose_targets("label", LOGITS, labels).tolist() == [2, 0]
    assert choose_targets(0, LOGITS).tolist() == [0, 0]
    assert choose_targets(lambda logits, labels: logits.argmin(dim=1), LOGITS).tolist() == [2, 2]
    assert take(LOGITS, labels).tolist() == [-1.0, 5.0]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "no class 3; the model has 3 classes, 0 to 2"),
        (-1, "no class -1; the model has 3 classes, 0 to 2"),
        (True, "target True is not 'predicted', 'label', a class index or a function"),
        ("label", "target 'label' needs labels, but the data has none; use target='predicted' or a class index"),
        (lambda logits, labels: logits[:, 0], "a target function returns one class index per image, got torch.float32 [2]"),
        (
            lambda logits, labels: torch.tensor([0, 7]),
            "the target function returned class 7, but the model has 3 classes, 0 to 2",
        ),
    ],
)
def test_a_target_that_is_no_class_is_refused_word_for_word(target, message):
    with pytest.raises(TargetError) as caught:
        choose_targets(target, LOGITS)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("output", "task"),
    [
        ({"out": torch.zeros(2, 5, 8, 8)}, "segmentation"),
        ([{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}], "detection"),
        ({"logits": torch.zeros(2, 10, 6), "pred_boxes": torch.zeros(2, 10, 4)}, "detection"),
    ],
)
def test_an_output_of_another_task_is_refused_with_its_name(output, task):
    with pytest.raises(ModelError, match=rf"say where they are with output=.*, or give task='{task}'$"):
        logits_of(output)
