"""What a model costs, next to another."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.models.attended import small_fal, some_images
from xaieval.errors import ModelError
from xaieval.models import overhead


def _chain(*widths):
    return nn.Sequential(*(nn.Conv2d(first, second, 1) for first, second in itertools.pairwise(widths)))


class KeepsAll(nn.Sequential):
    def forward(self, images):
        kept = [images]
        for module in self:
            kept.append(module(kept[-1]))
        return kept[-1]


def test_parameters_and_multiply_adds_are_those_counted_by_hand():
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    cost = overhead(model, _chain(3, 4), torch.rand(3, 3, 8, 8), repeats=1)
    assert cost.parameters == (3 * 9 * 4 + 4) + (4 + 4) + 2 * 9 * 8 + (128 * 5 + 5)
    assert cost.multiply_adds == 64 * 4 * 27 + 16 * 8 * 18 + 128 * 5  # of one image
    assert cost.parameters_ratio == cost.parameters / (3 * 4 + 4)
    assert cost.multiply_adds_ratio == cost.multiply_adds / (64 * 4 * 3)
    assert set(cost.to_dict()) == set(vars(cost))


def test_a_model_costs_as_much_as_itself():
    model = small_fal()
    cost = overhead(model, model, some_images(), repeats=3)
    assert cost.parameters_ratio == cost.multiply_adds_ratio == cost.memory_ratio == 1
    assert 0 < cost.latency_low <= cost.latency_ratio <= cost.latency_high


@pytest.mark.parametrize(
    ("model", "channels"),
    [
        (_chain(3, 4, 8), 4 + 8),
        (_chain(3, 8, 4, 4, 4), 8 + 4),
        (KeepsAll(*_chain(3, 4, 4, 4, 4)), 4 * 4),
        (nn.Sequential(*_chain(3, 4), nn.ReLU()), 4 + 4),
        (nn.Sequential(*_chain(3, 4), nn.ReLU(inplace=True), nn.Flatten()), 4),
        (nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (8, 8)), *_chain(3, 4)), 4),  # what only looks at the images is no memory
    ],
)
def test_the_peak_of_memory_is_that_of_the_tensors_alive(model, channels):
    assert overhead(model, _chain(3, 4, 4), torch.rand(2, 3, 8, 8), repeats=1).memory_ratio == channels / (4 + 4)


class Clocked(nn.Module):
    def __init__(self, clock, *seconds):
        super().__init__()
        self.convolution, self.clock, self.seconds = nn.Conv2d(3, 4, 1), clock, iter(seconds)

    def forward(self, images):
        self.clock.now += next(self.seconds)
        return self.convolution(images)


def test_latency_is_the_median_of_ratios_after_a_pass_that_does_not_count(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(sys.modules["xaieval.models.overhead"], "time", SimpleNamespace(perf_counter=lambda: clock.now))
    model = Clocked(clock, 70, 70, 70, 6, 12, 3)  # operations, memory and warm-up first
    cost = overhead(model, Clocked(clock, *[2] * 6), torch.rand(1, 3, 8, 8), repeats=3)
    assert (cost.latency_low, cost.latency_ratio, cost.latency_high) == (1.5, 3, 6)


@pytest.mark.parametrize("fails", [False, True])
def test_the_modes_of_both_models_come_back(fails):
    model, reference = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()) for _ in range(2))
    model[1].eval(), reference.eval(), reference[2].train()
    seen = []
    reference[1].register_forward_hook(lambda *_: seen.append([module.training for module in reference.modules()]))
    images = torch.rand(2, 3, 8, 8)
    if fails:
        reference.append(nn.Linear(3, 3)).eval()[2].train()
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            overhead(model, reference, images)
    else:
        overhead(model, reference, images)
    assert seen
    assert not any(itertools.chain(*seen))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert [module.training for module in reference.modules()] == [False, False, False, True] + [False] * fails
    assert reference[1].num_batches_tracked == 0


@pytest.mark.parametrize("repeats", [0, -1])
def test_costs_without_repeats_are_refused(repeats):
    with pytest.raises(ModelError, match=f"on at least one image in at least one repeat, got 1 and {repeats}"):
        overhead(_chain(3, 4), _chain(3, 4), torch.rand(1, 3, 8, 8), repeats=repeats)
