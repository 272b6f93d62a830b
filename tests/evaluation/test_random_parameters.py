"""Random parameters: which are random in each step, drawn once for a run, and never mixed with folded or compiled models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.noisy_images import pictures, tiny
from xaieval.evaluation import random_parameters
from xaieval.evaluation.random_parameters import RandomParameters
from xaieval.inference.batch_limit import BatchLimit
from xaieval.inference.borrowing import borrow
from xaieval.inference.forward_passes import Runner, sped_up


def of(model: nn.Module) -> Runner:
    return Runner(model, model, model, BatchLimit(4))


def paths(model: nn.Module, steps: Any) -> list[set[str]]:
    """The modules whose tensors are swapped in each step."""
    owner = {id(tensor): name.rpartition(".")[0] for name, tensor in model.named_parameters()}
    return [{owner[id(tensor)] for tensor, _ in swaps} for swaps in steps]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("top_down", [{"6"}, {"6", "2"}, {"6", "2", "0"}]),
        ("bottom_up", [{"0"}, {"0", "2"}, {"0", "2", "6"}]),
        ("independent", [{"6"}, {"2"}, {"0"}]),
        ("complete", [{"0", "2", "6"}]),
    ],
)
def test_the_parts_that_are_random_in_each_step(order, expected):
    model = tiny()
    assert paths(model, RandomParameters().steps(of(model), pictures(2), 0, order, None)) == expected


def test_values_are_drawn_once_and_depend_on_the_seed(monkeypatch):
    model, calls = tiny(), []

    def find(model: nn.Module, images: Tensor, *rest: Any) -> Any:
        calls.append(len(images))
        return found(model, images, *rest)

    found = random_parameters.find_parts
    monkeypatch.setattr(random_parameters, "find_parts", find)
    parameters = RandomParameters()
    first = parameters.steps(of(model), pictures(3), 0, "complete", None)
    again = parameters.steps(of(model), pictures(2, 3), 0, "complete", None)
    assert calls == [2], "the order of the modules is decided on the first images"
    assert all(one is other for (_, one), (_, other) in zip(first[0], again[0], strict=True))
    other = RandomParameters().steps(of(model), pictures(3), 1, "complete", None)
    assert not any(torch.equal(one, two) for (_, one), (_, two) in zip(first[0], other[0], strict=True))


def test_a_compiled_and_folded_model_is_used_with_its_own_modules():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(400, 3)).eval()
    model[1].running_var.fill_(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, parameters = pictures(2), RandomParameters()
    with borrow(model, None), sped_up(model, images, [], BatchLimit(2)) as fast:
        assert fast.folded == 1
        fast = replace(fast, forward=lambda images: torch.zeros(len(images), 3))  # stands for a compiled model
        folded = model[0].weight.clone()
        [swaps] = parameters.steps(fast, images, 0, "complete", None)
        with parameters.in_place(fast, swaps) as runner:
            found = runner.output(images)
            assert torch.equal(model[1].running_var, torch.ones(4)), "what a new BatchNorm has"
            torch.testing.assert_close(found, runner.inside(images))
            assert found.abs().sum() > 0
        assert torch.equal(model[0].weight, folded)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
