"""New random values of parameters whose types have no random numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval.inference.randomisation import draw_anew, swapped

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Packed(nn.Module):
    """A linear layer with packed weights."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        values = torch.arange(8 * 4).reshape(4, 8) % 7
        self.weight = nn.Parameter(values.to(dtype), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.linear(features, self.weight.to(features.dtype) * self.scale)


class Linear8Bit(nn.Linear):
    """As those of other libraries, with the `reset_parameters` of `Linear`, which cannot fill integers."""

    def __init__(self) -> None:
        super().__init__(8, 4, bias=False)
        self.weight = nn.Parameter((self.weight * 300).to(torch.int8), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.linear(features, self.weight.to(features.dtype))


TYPES = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.bool, torch.uint16, torch.float8_e4m3fn]


@pytest.mark.parametrize("head", [*(Packed(dtype) for dtype in TYPES), Linear8Bit()], ids=[*map(str, TYPES), "Linear8Bit"])
def test_values_without_random_numbers_are_shuffled(head):
    before = head.weight.clone().float()
    swaps = draw_anew(nn.Sequential(head), ["0"], seed=0)["0"]
    drawn = next(values for tensor, values in swaps if tensor is head.weight)
    assert drawn.dtype == head.weight.dtype
    assert drawn.shape == head.weight.shape
    assert not torch.equal(drawn.float(), before)
    assert torch.equal(drawn.float().flatten().sort().values, before.flatten().sort().values)
    with swapped(swaps):
        assert torch.equal(head.weight.float(), drawn.float())
    assert torch.equal(head.weight.float(), before)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_model_with_quantised_weights_and_a_scripted_one_have_a_sanity_check():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    xaieval.sanity_check(nn.Sequential(*body, Packed(torch.int8)), [IMAGES], "1", progress=False)
    scripted = torch.jit.script(nn.Sequential(*body, nn.Linear(8, 4)).eval())
    check = xaieval.sanity_check(scripted, [IMAGES], methods="captum:Saliency", progress=False)
    assert set(check.rows["randomised"]) >= {"0", "4"}


def test_parts_can_be_given_as_modules():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    rows = [
        xaieval.sanity_check(model, [IMAGES], "1", modules=part, progress=False).rows for part in (model[4], [model[4]], "4")
    ]
    assert all(one.equals(rows[0]) for one in rows)
