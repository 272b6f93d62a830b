"""Tensors captured in parts that a model runs under no_grad or inference_mode, in objects, and what has no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import xaieval
from xaieval import explain
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*reduce_range:UserWarning")
def test_methods_without_gradients_see_the_values_of_quantised_layers():
    ao = torch.ao.quantization

    class Stubs(Probe):
        def __init__(self):
            super().__init__()
            self.start, self.end = ao.QuantStub(), ao.DeQuantStub()

        def features(self, images):
            return self.end(self.b(self.start(images)))

    model = Stubs().eval()
    model.b.qconfig = model.start.qconfig = model.end.qconfig = ao.get_default_qconfig("x86")
    ao.prepare(model, inplace=True)(IMAGES)
    ao.convert(model, inplace=True)
    found, right = (probe(one, IMAGES, ["b"]).activations["b"] for one in (model, Probe()))
    assert found.dtype == torch.float32
    assert torch.allclose(found, right, atol=0.1)
    for method in ("eigencam", "score-cam"):
        maps = explain(model, IMAGES, "auto", method) | explain(model, IMAGES, "b", method)
        assert all(torch.isfinite(one).all() for one in maps.values())
    with pytest.raises(AddressError, match=r"layer 'b' returns torch.quint8, which has no gradient"):
        explain(model, IMAGES, "b")


# ---- outputs with attributes and other keys


@dataclass
class Features:
    deep: torch.Tensor
    other: torch.Tensor | None = None


@dataclass(frozen=True)
class Frozen2:
    deep: torch.Tensor


class Holding(nn.Module):
    def __init__(self, inner, hold):
        super().__init__()
        self.inner, self.hold = inner, hold

    def forward(self, images):
        return self.hold(self.inner(images))


HOLDERS = {
    "dataclass": (Features, lambda out: out.deep, "b[deep]"),
    "frozen dataclass": (Frozen2, lambda out: out.deep, "b[deep]"),
    "namespace": (lambda x: SimpleNamespace(deep=x), lambda out: out.deep, "b[deep]"),
    "nested": (lambda x: {"levels": [Features(x)]}, lambda out: out["levels"][0].deep, "b[levels][0][deep]"),
    "tuple as key": (lambda x: {(0, 1): x}, lambda out: out[0, 1], "b[(0, 1)]"),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_outputs_with_attributes_have_addresses_and_gradients(kind):
    hold, take, address = HOLDERS[kind]

    class Model(Probe):
        def __init__(self):
            super().__init__()
            self.b = Holding(self.b, hold)

        def features(self, images):
            return take(self.b(images))

    assert address in list(xaieval.list_layers(Model(), IMAGES)["address"])
    expected = _gradients(Probe(), "b")["b"]
    for name in (address, "b"):
        assert torch.equal(_gradients(Model(), name)[address], expected)


# ---- modules that run more often than on the first images


def test_a_model_that_takes_its_batch_in_parts_is_refused_for_larger_batches():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Probe()

        def forward(self, images):
            return torch.cat([self.net(part) for part in images.split(2)])

    images = torch.cat([IMAGES, IMAGES])
    for method in ("gradcam", "score-cam", "eigencam"):
        with pytest.raises(
            AddressError, match=r"layer 'net.b' ran 2 times on these images, but once on the first ones; .* bat"
        ):
            explain(Parts(), images, "net.b", method)
    assert torch.equal(
        explain(Parts(), images, "net.b", batch_size=2)["net.b"], explain(Probe(), images, "b", batch_size=2)["b"]
    )
