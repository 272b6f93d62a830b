"""Explainers by name, as objects and as functions, and the control maps, which do not depend on the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor, nn

import xaieval
from xaieval.errors import ExplainerError
from xaieval.explainers import METHODS, Context, Explainer, FunctionExplainer, resolve_methods
from xaieval.explainers.controls import center, edges, fake_cam, random, uniform

ALL = (
    "gradcam, gradcam++, xgradcam, hirescam, layercam, eigencam, eigengradcam, elementwise-gradcam, cam, layercam-fusion, "
    "poly-cam, score-cam, rise, occlusion, gscorecam, sobol, hsic, extremal-perturbation, ablation-cam, recipro-cam, opti-cam, "
    "d-rise, d-close, odam, ssgrad-cam, g-came, guided-ig, blur-ig, expected-gradients, xrai, attention-rollout, "
    "raw-attention, generic-attention, gradient-rollout, legrad, transformer-attribution, attn-lrp, grad-eclip, maskclip, "
    "clip-surgery, attention, random, uniform, center, edges, fake-cam"
)

KNOWN = f"known: {ALL}; xaieval.explainers.LIBRARY_METHODS has those of other libraries; or give a function"


def small_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)
    ).eval()


@pytest.fixture
def model() -> nn.Module:
    model = small_model()
    model(torch.zeros(1, 3, 16, 16))  # settles the lazy layer
    return model


def context_of(images: Tensor, ids: list[str] | None = None, seed: int = 0) -> Context:
    count = len(images)
    return Context(
        model=nn.Identity(),
        images=images,
        targets=torch.zeros(count, dtype=torch.long),
        logits=torch.zeros(count, 2),
        ids=ids or [str(index) for index in range(count)],
        seed=seed,
    )


# The control maps.


def test_random_is_the_same_for_an_id_and_a_seed_whatever_the_batch():
    images = torch.rand(5, 3, 8, 12)
    together = random(context_of(images, ["a", "b", "c", "d", "e"], seed=3))
    assert together.shape == (5, 8, 12)
    turned = random(context_of(images[[3, 1]], ["d", "b"], seed=3))
    assert torch.equal(turned, together[[3, 1]])
    assert torch.equal(random(context_of(torch.zeros(1, 1, 8, 12), ["c"], seed=3))[0], together[2])


def test_random_differs_for_another_id_or_seed():
    images = torch.rand(1, 3, 8, 8)
    maps = [random(context_of(images, [name], seed)) for name, seed in [("a", 0), ("b", 0), ("a", 1), ("1", 11), ("11", 1)]]
    for first in range(len(maps)):
        for second in range(first):
            assert not torch.equal(maps[first], maps[second])


def test_random_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    random(context_of(torch.rand(2, 3, 4, 4, generator=torch.Generator())))
    assert torch.equal(torch.rand(3), expected)


def test_random_is_uniform_in_0_to_1_pixel_by_pixel():
    values = random(context_of(torch.zeros(1, 3, 200, 200)))[0]
    counts = torch.histc(values, bins=10, min=0, max=1)
    assert counts.sum() == 40_000
    # The standard deviation of a bin's count is 60; neighbours are independent, so their correlation is about 1/200.
    assert (counts - 4000).abs().max() < 300
    assert abs(np.corrcoef(values[:, :-1].flatten(), values[:, 1:].flatten())[0, 1]) < 0.03


def test_random_maps_of_a_run_do_not_depend_on_batches(model):
    images = torch.rand(5, 3, 16, 16)
    runs = [
        xaieval.score(model, loader, methods="random", batch_size=size, progress=False, seed=4).rows
        for loader, size in [([images], None), ([images[:2], images[2:]], None), ([images], 3)]
    ]
    for run in runs[1:]:
        np.testing.assert_allclose(run["mask_area"], runs[0]["mask_area"], rtol=1e-6)
        np.testing.assert_allclose(run["masked_confidence"], runs[0]["masked_confidence"], rtol=1e-5)
    other = xaieval.score(model, [images], methods="random", progress=False, seed=5).rows
    assert (abs(other["mask_area"] - runs[0]["mask_area"]) > 1e-6).all()


@pytest.mark.parametrize("size", [(9, 13), (8, 6), (1, 5)], ids=str)
def test_edges_is_the_magnitude_of_scipys_sobel(size):
    images = torch.randn(2, 3, *size)
    grey = images.double().mean(dim=1).numpy()
    for ours, image in zip(edges(context_of(images)), grey, strict=True):
        slopes = [scipy.ndimage.sobel(image, axis=axis, mode="nearest") for axis in (0, 1)]
        np.testing.assert_allclose(ours, np.hypot(*slopes), rtol=1e-5, atol=1e-5)


def test_edges_of_a_flat_image_are_a_constant_map():
    assert (edges(context_of(torch.full((1, 3, 6, 6), 0.3))).abs() < 1e-6).all()


@pytest.mark.parametrize("size", [(9, 13), (8, 6)], ids=str)
def test_center_is_symmetric_and_peaks_in_the_middle(size):
    maps = center(context_of(torch.rand(2, 3, *size)))
    assert maps.shape == (2, *size)
    torch.testing.assert_close(maps, maps.flip(1))
    torch.testing.assert_close(maps, maps.flip(2))
    middle = [slice((side - 1) // 2, side // 2 + 1) for side in size]  # one row or column, or the two beside the middle
    peak = maps[:, *middle]
    torch.testing.assert_close(peak, maps.amax(dim=(1, 2))[:, None, None].expand_as(peak))
    # It falls from the centre outwards, in both directions.
    across, down = maps[0, size[0] // 2, size[1] // 2 :], maps[0, size[0] // 2 :, size[1] // 2]
    assert (across.diff() < 0).all()
    assert (down.diff() < 0).all()


def test_center_falls_by_a_quarter_of_each_side():
    # 17 pixels span 4 standard deviations, so that 4 pixels are one.
    maps = center(context_of(torch.rand(1, 3, 17, 33)))[0]
    expected = torch.tensor([1.0, 1.0, 2.0]).square().mul(-0.5).exp()
    torch.testing.assert_close(torch.stack([maps[12, 16], maps[8, 24], maps[8, 32]]), expected)


@pytest.mark.parametrize("normalisation", ["minmax", "max", "percentile", "none"])
def test_uniform_masks_the_whole_image_whatever_the_normalisation(model, normalisation):
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(uniform(context_of(images)), torch.zeros(3, 16, 16))
    how = xaieval.Protocol(normalisation=normalisation)
    rows = xaieval.score(model, [images], methods="uniform", protocol=how, progress=False).rows
    assert set(rows["status"]) == {"ok" if normalisation == "none" else "constant_map"}
    assert (rows["mask_area"] == 0).all()
    with torch.no_grad():
        empty = model(torch.zeros_like(images)).double().softmax(dim=1)[range(3), model(images).argmax(dim=1)]
    np.testing.assert_allclose(rows["masked_confidence"], empty, rtol=1e-5)


def test_fake_cam_is_ones_but_for_the_first_pixel_and_stays_so_in_a_run(model):
    images = torch.rand(3, 3, 16, 16)
    expected = torch.ones(3, 16, 16)
    expected[:, 0, 0] = 0
    assert torch.equal(fake_cam(context_of(images)), expected)
    assert torch.equal(xaieval.explain(model, images, method="fake-cam")["input"], expected)
    scores = xaieval.score(model, [images], methods=["fake-cam"], progress=False)
    assert set(scores.rows["status"]) == {"ok"}
    np.testing.assert_allclose(scores.rows["mask_area"], 255 / 256, rtol=1e-6)
    masked = images.clone()
    masked[:, :, 0, 0] = 0
    with torch.no_grad():
        confidence = model(masked).double().softmax(dim=1)[range(3), model(images).argmax(dim=1)]
    np.testing.assert_allclose(scores.rows["masked_confidence"], confidence, rtol=1e-5)


def test_fake_cam_of_volumes_is_zero_at_the_first_voxel_alone():
    maps = fake_cam(context_of(torch.rand(2, 1, 3, 4, 5)))
    assert maps.shape == (2, 3, 4, 5)
    assert (maps[:, 0, 0, 0] == 0).all()
    assert maps.sum() == 2 * (60 - 1)


@pytest.mark.parametrize("name", ["random", "uniform", "center", "edges", "fake-cam"])
def test_controls_know_nothing_of_the_model_and_need_no_layer(model, name):
    images = torch.rand(2, 3, 16, 16)
    maps = xaieval.explain(model, images, method=name)
    other = small_model()
    other(images)
    assert list(maps) == ["input"]
    assert torch.equal(maps["input"], xaieval.explain(other, images, method=name, target=2)["input"])


# Methods by name, object and function.


def test_methods_are_found_by_name_and_keep_their_order():
    found = resolve_methods(["layercam", "random", "gradcam"])
    assert [explainer.name for explainer in found] == ["layercam", "random", "gradcam"]
    assert resolve_methods("gradcam") == [METHODS["gradcam"]]
    assert ", ".join(METHODS) == ALL
    assert all(isinstance(explainer, Explainer) and explainer.name == name for name, explainer in METHODS.items())


def brightness(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return images.mean(dim=1)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            "gradcm",
            f"no method 'gradcm'; did you mean 'gradcam' or 'xgradcam' or 'gradcam++'? {KNOWN}",
        ),
        (["gradcam", "zzz"], f"no method 'zzz'; {KNOWN}"),
        ([], "methods are one or more, each name once; got []"),
        (["gradcam", "gradcam"], "methods are one or more, each name once; got ['gradcam', 'gradcam']"),
        ([brightness, brightness], "methods are one or more, each name once; got ['brightness', 'brightness']"),
        ([7], "a method is a name, an Explainer or a function (model, images, targets), got 7"),
    ],
)
def test_wrong_methods_are_refused_word_for_word(methods, message):
    with pytest.raises(ExplainerError) as caught:
        resolve_methods(methods)
    assert str(caught.value) == message


def test_a_method_that_needs_a_layer_asks_for_it(model):
    message = "method 'gradcam' needs layers=, and none were given; xaieval.list_layers(model, images) lists all"
    for call in (
        lambda: xaieval.score(model, [torch.rand(1, 3, 16, 16)], progress=False),
        lambda: xaieval.explain(model, torch.rand(1, 3, 16, 16)),
    ):
        with pytest.raises(ExplainerError) as caught:
            call()
        assert str(caught.value) == message


def test_a_function_is_a_method_and_gets_model_images_and_targets(model):
    images = torch.rand(4, 3, 16, 16)
    given = []

    def saliency(a_model: nn.Module, some_images: Tensor, targets: Tensor) -> Tensor:
        given.append((a_model, some_images.clone(), targets))
        return some_images.mean(dim=1)

    scores = xaieval.score(model, [images], methods=saliency, target=0, progress=False)
    assert list(scores.rows["method"]) == ["saliency"] * 4
    assert list(scores.rows["layer"]) == ["input"] * 4
    (a_model, some_images, targets), *more = given
    assert a_model is model
    assert torch.equal(some_images, images)
    assert torch.equal(targets, torch.zeros(4, dtype=torch.long))
    assert not more
    assert isinstance(resolve_methods(saliency)[0], FunctionExplainer)
    # The map is normalised like every other.
    maps = xaieval.explain(model, images, method=saliency)["input"]
    grey = images.mean(dim=1)
    low, high = grey.amin(dim=(1, 2), keepdim=True), grey.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(maps, (grey - low) / (high - low))


def test_an_object_that_can_be_called_is_a_function_named_after_its_class(model):
    class Darkness:
        def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            return -images.mean(dim=1)

    assert list(xaieval.explain(model, torch.rand(1, 3, 16, 16), method=Darkness())) == ["input"]
    assert resolve_methods(Darkness())[0].name == "Darkness"


@dataclass(frozen=True)
class MeanActivation:
    """An explainer as a user would write it."""

    name: str = "mean-activation"
    needs_layer: bool = True
    needs_gradient: bool = False

    def __call__(self, context: Context) -> Tensor:
        return context.activation.mean(dim=1)


def test_an_explainer_object_is_asked_at_every_layer(model):
    images = torch.rand(2, 3, 16, 16)
    scores = xaieval.score(model, [images], ["1", "4"], [MeanActivation(), brightness, "gradcam"], progress=False)
    assert list(scores.summary().index) == [
        ("1", "mean-activation"),
        ("1", "gradcam"),
        ("4", "mean-activation"),
        ("4", "gradcam"),
        ("input", "brightness"),
    ]
    maps = xaieval.explain(model, images, ["1"], MeanActivation())["1"]
    with torch.no_grad():
        raw = model[1](model[0](images)).mean(dim=1)
    low, high = raw.amin(dim=(1, 2), keepdim=True), raw.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(maps, (raw - low) / (high - low))


def test_an_explainer_is_given_what_the_context_promises(model):
    images = torch.rand(3, 3, 16, 16)
    seen: list[Context] = []

    def keep(context: Context) -> Tensor:
        seen.append(context)
        assert not context.model.training
        assert not any(parameter.requires_grad for parameter in context.model.parameters())
        return context.gradient.sum(dim=1)

    keeper = Asking(keep, needs_gradient=True)
    batch = {"image": images, "id": ["x", "y", "z"]}
    xaieval.score(model, [batch], "1", keeper, target=1, seed=11, progress=False)
    (context,) = seen
    assert (context.layer, context.seed, list(context.ids)) == ("1", 11, ["x", "y", "z"])
    assert context.activation.shape == context.gradient.shape == (3, 6, 16, 16)
    torch.testing.assert_close(context.logits, model(images).detach())
    assert not context.logits.requires_grad
    assert context.targets.tolist() == [1, 1, 1]
    # The gradient is that of the target's logit.
    model.requires_grad_(False)
    activation = model[1](model[0](images)).requires_grad_()
    model[2:](activation)[:, 1].sum().backward()
    torch.testing.assert_close(context.gradient, activation.grad)


@dataclass(frozen=True)
class Asking:
    """An explainer around a function of the context."""

    function: object
    name: str = "asking"
    needs_layer: bool = True
    needs_gradient: bool = False

    def __call__(self, context: Context) -> Tensor:
        return self.function(context)


@pytest.mark.parametrize(
    ("maps", "came"),
    [
        (torch.zeros(4, 3, 16, 16), "[4, 3, 16, 16]"),
        (torch.zeros(3, 16, 16), "[3, 16, 16]"),
        (torch.zeros(16, 16), "[16, 16]"),
        (np.zeros((4, 16, 16)), "ndarray"),
        (None, "NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_maps_of_a_wrong_shape_are_refused_word_for_word(model, maps, came):
    def odd(model: nn.Module, images: Tensor, targets: Tensor) -> object:
        return maps

    images = torch.rand(4, 3, 16, 16)
    for call in (
        lambda: xaieval.score(model, [images], methods=odd, progress=False),
        lambda: xaieval.explain(model, images, method=odd),
    ):
        with pytest.raises(ExplainerError) as caught:
            call()
        assert str(caught.value) == f"method 'odd' gave {came} for 4 images; maps [N, h, w] are expected"


def test_maps_of_any_size_and_type_are_accepted(model):
    def coarse(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor([[[0, 0], [0, 9]]]).expand(len(images), 2, 2)  # integers

    maps = xaieval.explain(model, torch.rand(2, 3, 16, 16), method=coarse)["input"]
    assert maps.shape == (2, 16, 16)
    assert maps.dtype == torch.float32
    assert maps[0, -1, -1] == 1
    assert maps[0, 0, 0] == 0


def input_gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Differentiates with respect to the images, as saliency maps and integrated gradients do."""
    images = images.detach().clone().requires_grad_()
    score = model(images).gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, images)
    return gradient.abs().amax(dim=1)


@pytest.mark.parametrize("outer", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_an_explainer_may_differentiate_with_respect_to_the_images_under_any_outer_mode(model, outer):
    images = torch.rand(3, 3, 16, 16)
    expected = xaieval.score(model, [images], "1", [input_gradient, "gradcam"], progress=False).rows
    assert (expected["mask_area"] > 0).all()
    with outer():
        rows = xaieval.score(model, [images], "1", [input_gradient, "gradcam"], progress=False).rows
        assert torch.is_grad_enabled() == (outer is torch.enable_grad)
    np.testing.assert_array_equal(rows["masked_confidence"], expected["masked_confidence"])
    assert images.grad is None
    assert not images.requires_grad


def test_an_explainer_may_differentiate_images_that_were_made_in_inference_mode(model):
    with torch.inference_mode():
        images = torch.rand(2, 3, 16, 16)
        maps = xaieval.explain(model, images, method=input_gradient)["input"]
    assert (maps.amax(dim=(1, 2)) == 1).all()


def test_maps_that_still_hang_on_a_graph_are_taken_as_numbers(model):
    def attached(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        images = images.clone().requires_grad_()
        return images.square().mean(dim=1)

    scores = xaieval.score(model, [torch.rand(2, 3, 16, 16)], methods=attached, progress=False)
    assert set(scores.rows["status"]) == {"ok"}


def test_a_context_can_be_changed_by_nobody():
    context = context_of(torch.zeros(1, 3, 2, 2))
    with pytest.raises(AttributeError):
        context.seed = 1
    assert replace(context, seed=1).seed == 1
