"""How a model is run: keywords and object are the same, and options that cannot work are refused at once."""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

import pytest
import torch

import xaieval
from xaieval.errors import UsageError
from xaieval.inference.options import Inference, InferenceOptions


def test_every_field_can_be_given_as_a_keyword():
    assert list(InferenceOptions.__annotations__) == [field.name for field in fields(Inference)]
    assert get_type_hints(InferenceOptions) == get_type_hints(Inference)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is at least 1, got 0"),
        ({"memory": "much"}, "memory is a number of bytes"),
        ({"precision": "fp8"}, "no precision 'fp8'; known: float32, bf16, fp16, tf32, auto"),
        ({"task": "detektion"}, "no task 'detektion'; did you mean 'detection'?"),
        ({"deterministic": True, "compile": True}, "deterministic=True "),
    ],
)
def test_options_that_cannot_work_are_refused_when_the_object_is_made(options, message):
    with pytest.raises(UsageError) as caught:
        Inference(**options)
    assert str(caught.value).startswith(message)


def test_the_limit_is_the_batch_size_or_the_given_one():
    assert Inference().limit(5).size == 5
    assert Inference(batch_size=3, memory="1 KiB").limit(5) == Inference(batch_size=3, memory=1024).limit(3)
    assert Inference(deterministic=True, batch_size=3).limit(5).size == 1


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda model, images, **options: xaieval.score(model, [images], "0", progress=False, **options).rows, "score"),
        (lambda model, images, **options: xaieval.explain(model, images, "0", **options)["0"], "explain"),
        (
            lambda model, images, **options: xaieval.sanity_check(model, [images], "0", progress=False, **options).rows,
            "sanity_check",
        ),
    ],
    ids=["score", "explain", "sanity_check"],
)
def test_one_object_serves_all_functions_and_equals_its_keywords(call, name):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    images = torch.rand(3, 3, 16, 16)
    how = {"batch_size": 2, "deterministic": True}
    assert str(call(model, images, **how)) == str(call(model, images, inference=Inference(**how)))
    with pytest.raises(UsageError, match=rf"^{name}\(\) takes no 'taks'; did you mean 'task'"):
        call(model, images, taks="detection")
