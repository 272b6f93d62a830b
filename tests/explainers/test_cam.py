"""The class activation maps equal those of pytorch-grad-cam, torch-cam and captum, and of slow loops over their formulas."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import pytorch_grad_cam
import timm
import torch
import torchcam.methods
import torchvision
from captum.attr import LayerGradCam
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import xaieval
from xaieval.data import Preprocessing, scenes, ucmerced
from xaieval.errors import ExplainerError
from xaieval.explainers import METHODS, Context
from xaieval.explainers.cam import (
    CAMS,
    ClassifierCAM,
    eigen_cam,
    eigen_grad_cam,
    element_wise_grad_cam,
    grad_cam,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
    xgrad_cam,
)
from xaieval.masking import finish
from xaieval.models.builtin import fpn_scenes
from xaieval.probe.hooks import probe

HALF = (0.5, 0.5, 0.5)
CLOSE = 1e-4  # of a map's range, which is [0, 1]; float32 gives 1e-5 and better
AT_LAYER = xaieval.Protocol(normalise_at="layer")  # where torch-cam normalises; pytorch-grad-cam: after upsampling, the default


@dataclass(frozen=True)
class Network:
    """A model, images, and the class that every library explains, layer by layer."""

    model: nn.Module
    images: Tensor
    targets: list[int]
    layers: dict[str, str]  # our address -> the module whose output it is, which is all that the peers can name
    last: str  # the layer that feeds global average pooling, or ""

    def module(self, address: str) -> nn.Module:
        return self.model.get_submodule(self.layers[address])

    def target(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        return torch.tensor(self.targets)

    def explain(self, method: str, layers: list[str] | None = None, **options: object) -> dict[str, Tensor]:
        return xaieval.explain(self.model, self.images, layers or list(self.layers), method, self.target, **options)


def _stacked(pictures: object, count: int) -> Tensor:
    return torch.stack([pictures[index]["image"] for index in range(count)])


@cache
def _resnet18() -> Network:
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    images = _stacked(scenes(Preprocessing(128, 128, mean=HALF, std=HALF)), 3)
    # With random weights one class wins for every image, so other classes are explained, among them 0.
    return Network(model, images, [0, 999, 381], {name: name for name in ("layer2", "layer3", "layer4")}, "layer4")


@cache
def _fpn() -> Network:
    model = fpn_scenes().eval()
    images = _stacked(scenes(Preprocessing(128, 128, mean=HALF, std=HALF)), 4)
    levels = {f"fpn[p{2 + index}]": f"fpn.layer_blocks.{index}" for index in range(4)}
    return Network(model, images, model(images).argmax(dim=1).tolist(), levels, "")


@cache
def _mobilenet(weights: Path, photos: Path) -> Network:
    model = timm.create_model("mobilenetv2_100", pad_type="same")
    model.load_state_dict(load_file(weights))
    model.eval()
    pictures = ucmerced(photos, Preprocessing(160, 183, mean=HALF, std=HALF)).spread(21)
    # A field and a freeway: Grad-CAM++ gives maps that are not constant at every layer, also where activations are negative.
    images = torch.stack([pictures[index]["image"] for index in (0, 8)])
    layers = {name: name for name in ("blocks.3", "blocks.5", "bn2")}
    return Network(model, images, model(images).argmax(dim=1).tolist(), layers, "bn2")


def _network(name: str, request: pytest.FixtureRequest) -> Network:
    if name == "mobilenetv2":
        return _mobilenet(request.getfixturevalue("imagenet_weights"), request.getfixturevalue("ucmerced_folder"))
    return {"resnet18": _resnet18, "fpn_scenes": _fpn}[name]()


REAL = pytest.param("mobilenetv2", marks=pytest.mark.shared)


@pytest.fixture(params=["resnet18", "fpn_scenes", REAL])
def network(request: pytest.FixtureRequest) -> Network:
    return _network(request.param, request)


@pytest.fixture(params=["resnet18", REAL])
def pooled(request: pytest.FixtureRequest) -> Network:
    """Networks whose last layer feeds global average pooling and a linear classifier."""
    return _network(request.param, request)


@pytest.fixture
def precise(network: Network) -> Network:
    """In float64, for Grad-CAM++: with negative activations its denominator 2 + S G has a root, near which float32 is too
    coarse for an agreement to four digits."""
    return replace(network, model=deepcopy(network.model).double(), images=network.images.double())


def _same(ours: Tensor, theirs: object) -> None:
    theirs = torch.as_tensor(theirs).to(ours.dtype)
    assert ours.shape == theirs.shape
    # Maps of zeros would be equal too.
    assert (theirs.amax(dim=(1, 2)) - theirs.amin(dim=(1, 2)) > 0.5).all()
    torch.testing.assert_close(ours, theirs, atol=CLOSE, rtol=0)


def _grad_cam_package(peer: type, network: Network, address: str, model: nn.Module | None = None) -> np.ndarray:
    with peer(network.model if model is None else model, [network.module(address)]) as cam:
        return cam(network.images, [ClassifierOutputTarget(target) for target in network.targets])


@pytest.mark.parametrize(
    ("method", "peer"),
    [
        ("gradcam", pytorch_grad_cam.GradCAM),
        ("xgradcam", pytorch_grad_cam.XGradCAM),
        ("hirescam", pytorch_grad_cam.HiResCAM),
        ("layercam", pytorch_grad_cam.LayerCAM),
        ("elementwise-gradcam", pytorch_grad_cam.GradCAMElementWise),
    ],
)
def test_maps_equal_those_of_pytorch_grad_cam(network, method, peer):
    for address, maps in network.explain(method).items():
        _same(maps, _grad_cam_package(peer, network, address))


class Signed:
    """The peer, with the sign for which the projection correlates with the mean of the decomposed values."""

    def get_cam_image(self, images, layer, targets, activations, gradients, eigen_smooth):
        projected = super().get_cam_image(images, layer, targets, activations, gradients, eigen_smooth)
        decomposed = activations * gradients if self.uses_gradients else activations
        # The projection's mean is zero, so its product with anything is a covariance.
        sign = np.sign((projected * decomposed.mean(axis=1)).sum(axis=(1, 2)))
        return sign[:, None, None] * projected


class SignedEigenCAM(Signed, pytorch_grad_cam.EigenCAM):
    """Eigen-CAM."""


class SignedEigenGradCAM(Signed, pytorch_grad_cam.EigenGradCAM):
    """Eigen-Grad-CAM."""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "peer"), [("eigencam", SignedEigenCAM), ("eigengradcam", SignedEigenGradCAM)])
def test_eigen_maps_equal_those_of_pytorch_grad_cam_but_for_its_arbitrary_sign(network, method, peer):
    # The peer takes the arbitrary sign that LAPACK gives, and loses the object where it is the wrong one. Our sign is defined;
    # with it the peer's maps equal ours. (Its full SVD is slow for maps with many cells, hence only the last layers.)
    for address, maps in network.explain(method, list(network.layers)[-2:]).items():
        _same(maps, _grad_cam_package(peer, network, address))


def _score(network: Network):
    return lambda logits: logits[torch.arange(len(logits)), torch.tensor(network.targets)]


def _plus_plus(activation: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    """Grad-CAM++ as in eq. 19, with an epsilon in the denominator."""
    activation, gradient = activation.double(), gradient.double()
    total = activation.sum(dim=(2, 3), keepdim=True)
    alpha = gradient**2 / (2 * gradient**2 + total * gradient**3 + epsilon)
    weights = (torch.where(gradient != 0, alpha, 0) * gradient.clamp(min=0)).sum(dim=(2, 3), keepdim=True)
    return (weights * activation).sum(dim=1).clamp(min=0).float()


@pytest.mark.slow
def test_grad_cam_plus_plus_differs_from_pytorch_grad_cam_by_its_epsilon_alone(precise):
    # The peer adds 1e-6 to the denominator 2 G^2 + S G^3 of alpha. Gradients here are at most 1e-2, so G^2 is about as large as
    # the epsilon or far smaller, and the epsilon decides most of the peer's weights. Eq. 19 without epsilon gives our map, with
    # epsilon the peer's: nothing else differs.
    seen = probe(precise.model, precise.images, precise.layers, _score(precise))
    ours = precise.explain("gradcam++")
    size = tuple(precise.images.shape[2:])
    for address, gradient in seen.gradients.items():
        theirs = _grad_cam_package(pytorch_grad_cam.GradCAMPlusPlus, precise, address)
        for epsilon, expected in [(0, ours[address]), (1e-6, theirs)]:
            raw = _plus_plus(seen.activations[address], gradient, epsilon)
            _same(finish(raw, size, xaieval.Protocol()).maps, expected)


class Louder(nn.Module):
    """A model with all logits times a factor."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model = model
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)


@pytest.mark.slow
def test_grad_cam_plus_plus_equals_pytorch_grad_cam_where_its_epsilon_is_negligible(precise):
    # Logits times a million have gradients times a million; compared with their squares, the peer's epsilon of 1e-6 vanishes.
    louder = Louder(precise.model, 1e6)
    for address in precise.layers:
        ours = xaieval.explain(louder, precise.images, f"model.{address}", "gradcam++", precise.target)
        theirs = _grad_cam_package(pytorch_grad_cam.GradCAMPlusPlus, precise, address, louder)
        _same(ours[f"model.{address}"], theirs)


def _torch_cam(peer: type, network: Network, address: str, normalised: bool = True) -> Tensor:
    """The peer's maps at the size of the layer."""
    with peer(network.model, network.layers[address]) as cam:
        scores = network.model(network.images)
        return cam(network.targets, scores, normalized=normalised)[0]


def _upsampled(maps: Tensor, network: Network) -> Tensor:
    """As in torch-cam's documentation: half-pixel centres."""
    size = network.images.shape[2:]
    return functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


@pytest.mark.parametrize(
    ("method", "peer"),
    [
        ("gradcam", torchcam.methods.GradCAM),
        ("xgradcam", torchcam.methods.XGradCAM),
        ("layercam", torchcam.methods.LayerCAM),
    ],
)
def test_maps_equal_those_of_torch_cam(network, method, peer):
    for address, maps in network.explain(method, protocol=AT_LAYER).items():
        _same(maps, _upsampled(_torch_cam(peer, network, address), network))


class PaperPlusPlus(torchcam.methods.GradCAMpp):
    """torch-cam's Grad-CAM++ with the weights of the paper's eq. 19."""

    def _get_weights(self, class_idx, scores, **kwargs):
        self._backprop(scores, class_idx, **kwargs)
        (gradient,), (activation,) = self.hook_g, self.hook_a
        total = activation.sum(dim=(2, 3), keepdim=True)
        alpha = gradient**2 / (2 * gradient**2 + total * gradient**3)
        return [torch.where(gradient > 0, alpha * gradient, 0).sum(dim=(2, 3))]


@pytest.mark.slow
def test_grad_cam_plus_plus_differs_from_torch_cam_by_the_weights_alone(precise):
    # torch-cam's Grad-CAM++ has other weights than the paper. Instead of eq. 19's denominator 2 G^2 + sum(A) G^3 it has
    # 2 G^2 + sum(A G^3) + 1e-8; and up to 0.5.0 it divides a copy (`alpha[mask].div_(...)`), so that alpha stays G^2. With the
    # weights of eq. 19 in its own code, its maps equal ours.
    seen = probe(precise.model, precise.images, precise.layers, _score(precise))
    for address, maps in precise.explain("gradcam++", protocol=AT_LAYER).items():
        _same(maps, _upsampled(_torch_cam(PaperPlusPlus, precise, address), precise))
        activation, gradient = seen.activations[address], seen.gradients[address]
        joint = (activation * gradient**3).sum(dim=(2, 3), keepdim=True)
        undivided = gradient**2
        divided = torch.where(undivided > 0, undivided / (2 * undivided + joint + 1e-8), undivided)
        theirs = _torch_cam(torchcam.methods.GradCAMpp, precise, address, normalised=False)
        candidates = [
            ((alpha * gradient.clamp(min=0)).sum(dim=(2, 3), keepdim=True) * activation).sum(dim=1).clamp(min=0)
            for alpha in (undivided, divided)
        ]
        # One of the two, so that a release which repairs the division does not break this test.
        assert min(float((theirs - ours).abs().max() / theirs.max()) for ours in candidates) < CLOSE


def test_grad_cam_equals_captums(network):
    seen = probe(network.model, network.images, network.layers, _score(network))
    for address, maps in network.explain("gradcam").items():
        peer = LayerGradCam(network.model, network.module(address))
        theirs = peer.attribute(network.images, torch.tensor(network.targets), relu_attributions=True)[:, 0].detach()
        raw = grad_cam(seen.activations[address], seen.gradients[address])
        torch.testing.assert_close(raw / raw.max(), theirs / theirs.max(), atol=CLOSE, rtol=0)
        _same(maps, finish(theirs, tuple(network.images.shape[2:]), xaieval.Protocol()).maps)


def test_cam_equals_torch_cams(pooled):
    # Neither takes the positive part, so normalisation uses the minimum of the whole map.
    maps = pooled.explain("cam", [pooled.last], protocol=AT_LAYER)[pooled.last]
    classifier = "fc" if pooled.last == "layer4" else "classifier"
    with torchcam.methods.CAM(pooled.model, pooled.last, classifier) as cam:
        pooled.model(pooled.images)
        _same(maps, _upsampled(cam(pooled.targets)[0], pooled))


def test_cam_is_grad_cam_before_its_positive_part_and_times_the_number_of_cells(pooled):
    # The gradient of a logit behind global average pooling is the classifier's weight over the number of cells, everywhere.
    lowest = int(pooled.model(pooled.images[:1]).argmin())  # its map has a negative part
    pooled = replace(pooled, targets=[lowest, *pooled.targets[1:]])
    seen = probe(pooled.model, pooled.images, [pooled.last], _score(pooled))
    activation, gradient = seen.activations[pooled.last], seen.gradients[pooled.last]
    original = ClassifierCAM()(_context(pooled.model, pooled.images, pooled.targets, pooled.last, activation))
    assert (original < 0).any()
    cells = activation.shape[2] * activation.shape[3]
    torch.testing.assert_close(original.clamp(min=0), cells * grad_cam(activation, gradient), rtol=1e-4, atol=1e-4)


def _context(model: nn.Module, images: Tensor, targets: list[int], layer: str, activation: Tensor) -> Context:
    with torch.no_grad():
        return Context(
            model=model,
            images=images,
            targets=torch.tensor(targets),
            logits=model(images),
            ids=[str(index) for index in range(len(images))],
            layer=layer,
            activation=activation,
        )


def test_mean_of_a_cam_and_the_bias_make_the_logit():
    network = _resnet18()
    activation = probe(network.model, network.images, ["layer4"]).activations["layer4"]
    context = _context(network.model, network.images, network.targets, "layer4", activation)
    logits = ClassifierCAM()(context).mean(dim=(1, 2)) + network.model.fc.bias[network.targets]
    torch.testing.assert_close(logits, context.logits[range(3), network.targets], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", ["layer3", "layer4.1.conv2"])
def test_cam_names_the_layer_that_does_not_feed_the_classifier(layer):
    # conv2 of the last block has the right number of channels, but its output passes a norm, a sum and a ReLU first.
    network = _resnet18()
    with pytest.raises(ExplainerError) as caught:
        xaieval.explain(network.model, network.images, layer, "cam")
    assert str(caught.value) == (
        "method 'cam' needs a layer that feeds global average pooling and then the linear classifier, and "
        f"'{layer}' does not: take the last layer before the pooling, or method 'gradcam'"
    )


def test_cam_refuses_a_pyramid_whose_levels_are_averaged_with_others():
    network = _fpn()
    with pytest.raises(ExplainerError, match=r"'fpn\[p5\]' does not: take the last layer before the pooling"):
        xaieval.explain(network.model, network.images, "fpn[p5]", "cam")


def test_cam_explains_a_single_image_of_a_model_with_a_single_logit():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)).eval()
    maps = xaieval.explain(model, torch.rand(1, 3, 8, 8), "0", "cam")["0"]
    assert maps.max() == 1


def _cells(array: np.ndarray) -> list[tuple[int, int]]:
    return [(i, j) for i in range(array.shape[-2]) for j in range(array.shape[-1])]


def _slow_weighted(weights: list[float], a: np.ndarray) -> np.ndarray:
    """The positive part of the sum of channels, each times its weight."""
    out = np.zeros(a.shape[1:])
    for i, j in _cells(a):
        out[i, j] = max(0.0, sum(weights[k] * float(a[k, i, j]) for k in range(len(a))))
    return out


def _slow_grad_cam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    cells = _cells(a)
    return _slow_weighted([sum(float(channel[at]) for at in cells) / len(cells) for channel in g], a)


def _slow_grad_cam_plus_plus(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    weights = []
    for channel, slope in zip(a, g, strict=True):
        total = sum(float(channel[at]) for at in _cells(a))
        weight = 0.0
        for at in _cells(a):
            d = float(slope[at])
            if d > 0:  # relu(G) is 0 elsewhere, whatever alpha is
                weight += d**2 / (2 * d**2 + total * d**3) * d
        weights.append(weight)
    return _slow_weighted(weights, a)


def _slow_xgrad_cam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    weights = []
    for channel, slope in zip(a, g, strict=True):
        total = sum(float(channel[at]) for at in _cells(a))
        silent = all(float(channel[at]) == 0 for at in _cells(a))
        weights.append(0.0 if silent else sum(float(slope[at]) * float(channel[at]) for at in _cells(a)) / total)
    return _slow_weighted(weights, a)


def _slow_by_cell(a: np.ndarray, cell) -> np.ndarray:
    out = np.zeros(a.shape[1:])
    for i, j in _cells(a):
        out[i, j] = cell(i, j)
    return out


def _slow_hires_cam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    return _slow_by_cell(a, lambda i, j: max(0.0, sum(float(g[k, i, j]) * float(a[k, i, j]) for k in range(len(a)))))


def _slow_layer_cam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    return _slow_by_cell(a, lambda i, j: max(0.0, sum(max(0.0, float(g[k, i, j])) * float(a[k, i, j]) for k in range(len(a)))))


def _slow_element_wise(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    return _slow_by_cell(a, lambda i, j: sum(max(0.0, float(g[k, i, j]) * float(a[k, i, j])) for k in range(len(a))))


def _slow_principal(a: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Cells projected on the first right singular vector of the centred table of cells by channels."""
    table = np.array([[float(a[k, i, j]) for k in range(len(a))] for i, j in _cells(a)])
    table -= table.mean(axis=0)
    projected = table @ np.linalg.svd(table, full_matrices=False)[2][0]
    agreement = sum(p * float(direction[at]) for p, at in zip(projected, _cells(a), strict=True))
    return np.maximum(projected if agreement >= 0 else -projected, 0).reshape(a.shape[1:])


SLOW = {
    grad_cam: _slow_grad_cam,
    grad_cam_plus_plus: _slow_grad_cam_plus_plus,
    xgrad_cam: _slow_xgrad_cam,
    hires_cam: _slow_hires_cam,
    layer_cam: _slow_layer_cam,
    element_wise_grad_cam: _slow_element_wise,
    eigen_cam: lambda a, g: _slow_principal(a, a.mean(axis=0)),
    eigen_grad_cam: lambda a, g: _slow_principal(a * g, (a * g).sum(axis=0)),
}
GRADIENT_FREE = (eigen_cam,)


def _random(seed: int, shape: tuple[int, ...], rectified: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Activations (of any sign, or positive with a channel of zeros, as after a ReLU) and gradients with exact zeros."""
    generator = torch.Generator().manual_seed(seed)
    activation = torch.randn(shape, generator=generator, dtype=torch.float64)
    activation = activation.clamp(min=0) if rectified else activation + 1.5
    if rectified:
        activation[:, 0] = 0
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradient[torch.rand(shape, generator=generator) < 0.2] = 0
    return activation.to(dtype), gradient.to(dtype)


def _agree(function, activation: Tensor, gradient: Tensor) -> None:
    ours = function(activation) if function in GRADIENT_FREE else function(activation, gradient)
    assert ours.dtype == activation.dtype
    for image, (a, g) in enumerate(zip(activation.double().numpy(), gradient.double().numpy(), strict=True)):
        slow = SLOW[function](a, g)
        np.testing.assert_allclose(ours[image].double().numpy(), slow, rtol=0, atol=1e-5 * max(1.0, float(slow.max())))


@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 12, 3, 2), (1, 2, 1, 1)], ids=str)
@pytest.mark.parametrize("function", SLOW, ids=lambda function: function.__name__)
def test_float32_maps_equal_a_loop_over_images_channels_and_cells(function, shape, rectified):
    _agree(function, *_random(1, shape, rectified, torch.float32))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    rectified=st.booleans(),
)
@pytest.mark.parametrize("function", SLOW, ids=lambda function: function.__name__)
def test_maps_of_any_shape_equal_a_loop_over_images_channels_and_cells(function, seed, shape, rectified):
    _agree(function, *_random(seed, shape, rectified, torch.float64))


def test_the_loops_cover_every_method_but_the_original_cam():
    assert {explainer.function for explainer in CAMS if not isinstance(explainer, ClassifierCAM)} == set(SLOW)
    assert [METHODS[explainer.name] for explainer in CAMS] == list(CAMS)


@pytest.mark.parametrize("method", [explainer.name for explainer in CAMS])
def test_an_image_of_nan_leaves_the_maps_of_the_others_alone(method):
    network = _resnet18()
    broken = network.images.clone()
    broken[1] = torch.nan
    expected = network.explain(method, ["layer4"])["layer4"]
    maps = replace(network, images=broken).explain(method, ["layer4"])["layer4"]
    torch.testing.assert_close(maps[[0, 2]], expected[[0, 2]], atol=CLOSE, rtol=0)
    assert (maps[1] == 0).all()
    assert (expected.amax(dim=(1, 2)) > 0.99).all()


@pytest.mark.parametrize("function", SLOW, ids=lambda function: function.__name__)
def test_nan_in_an_activation_makes_that_images_map_invalid_and_no_others(function):
    activation, gradient = _random(2, (3, 4, 5, 5), False, torch.float32)
    arguments = (activation,) if function in GRADIENT_FREE else (activation, gradient)
    expected = function(*arguments)
    activation[1, 2, 3, 3] = torch.nan
    maps = function(*arguments)
    assert torch.equal(maps[[0, 2]], expected[[0, 2]])
    assert maps[1].isnan().any()
    assert finish(maps, (8, 8), xaieval.Protocol()).invalid.tolist() == [False, True, False]


@pytest.mark.parametrize("function", [f for f in SLOW if f not in GRADIENT_FREE], ids=lambda function: function.__name__)
def test_nan_in_a_gradient_makes_that_images_map_invalid_and_no_others(function):
    # A NaN in the gradient that became a weight of 0 would look like a valid map.
    activation, gradient = _random(3, (3, 4, 5, 5), False, torch.float32)
    expected = function(activation, gradient)
    gradient[1] = torch.nan
    maps = function(activation, gradient)
    assert torch.equal(maps[[0, 2]], expected[[0, 2]])
    assert finish(maps, (8, 8), xaieval.Protocol()).invalid.tolist() == [False, True, False]


def test_xgrad_cam_is_invalid_where_a_channel_that_is_not_zero_sums_to_zero():
    # The formula divides by that sum, and there is no epsilon.
    activation = torch.tensor([[[[1.0, -1.0]]]])
    assert not xgrad_cam(activation, torch.ones(1, 1, 1, 2)).isfinite().all()
