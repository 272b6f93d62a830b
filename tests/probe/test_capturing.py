"""Tensors captured in parts that a model runs under no_grad or inference_mode, and what has no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import xaieval
from xaieval.errors import AddressError
from xaieval.probe.hooks import probe

IMAGES = torch.rand(2, 3, 16, 16)


class Probe(nn.Module):
    """A backbone and a trained head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.b = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
        self.h = nn.Linear(8, 5)

    def forward(self, images):
        return self.h(self.features(images).mean((2, 3)))

    def features(self, images):
        return self.b(images)


class Frozen(Probe):
    def features(self, images):
        with torch.no_grad():
            return self.b(images)


class Decorated(Probe):
    @torch.no_grad()
    def features(self, images):
        return self.b(images)


class Inference(Probe):
    def features(self, images):
        with torch.inference_mode():
            return self.b(images)


class Detached(Probe):
    def features(self, images):
        return self.b(images).detach()


def _gradients(model, layers):
    return probe(model, IMAGES, layers, lambda logits: logits[:, 0]).gradients


@pytest.mark.parametrize("kind", [Frozen, Decorated])
def test_layers_of_a_frozen_backbone_have_the_gradients_of_one_that_is_not(kind):
    layers = ["b", "b.0", "b.2"]
    expected = _gradients(Probe(), layers)
    for address, gradient in _gradients(kind(), layers).items():
        assert torch.allclose(gradient, expected[address])
        assert torch.allclose(_gradients(kind(), address)[address], expected[address])
    assert list(xaieval.explain(kind(), IMAGES, "auto")) == list(xaieval.explain(Probe(), IMAGES, "auto"))


@pytest.mark.parametrize("layer", ["b", "b.3"])
def test_the_output_of_a_part_in_inference_mode_has_a_gradient(layer):
    assert torch.allclose(_gradients(Inference(), layer)[layer], _gradients(Probe(), layer)[layer])


def test_layers_inside_inference_mode_are_one_clear_error():
    with pytest.raises(
        AddressError, match=r"^the target does not depend on layer 'b.0': it has no gradient there \(the model itself"
    ):
        _gradients(Inference(), "b.0")


def test_layers_before_a_detach_are_one_clear_error():
    with pytest.raises(
        AddressError, match=r"^the target does not depend on layer 'b': it has no gradient there; choose a layer"
    ):
        _gradients(Detached(), "b")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch moves its quantisation elsewhere
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:quantized..linear_dynamic:UserWarning")
def test_a_quantised_head_is_named():
    model = torch.ao.quantization.quantize_dynamic(Probe().eval(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(AddressError, match=r"\(the model has quantised layers, such as 'h', without derivatives\)"):
        _gradients(model, "b")
    assert xaieval.explain(model, IMAGES, "b", "eigencam")["b"].shape == (2, 16, 16)
