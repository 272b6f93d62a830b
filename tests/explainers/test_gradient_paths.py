"""Gradients along paths equal those of PAIR's package, slow loops over their formulas, and sums that have to be complete."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval.errors import ExplainerError, ModelError
from xaieval.explainers import Context
from xaieval.explainers.gradient_paths import (
    GRADIENT_PATHS,
    BlurIntegratedGradients,
    ExpectedGradients,
    GuidedIntegratedGradients,
)
from xaieval.inference.reproducibility import seed_from

CLOSE = 1e-4  # of the range of a map
TARGETS = [1, 3]


@cache
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 6, 5)]
    return nn.Sequential(*layers).eval()


def context_of(count: int = 2, size: int | None = 8, **options: Any) -> Context:
    images = torch.rand(count, 3, 14, 18, generator=torch.Generator().manual_seed(3))
    targets, ids = torch.tensor(TARGETS * count)[:count], [f"image {number}" for number in range(count)]
    return Context(network(), images, targets, None, ids, size=size, **options)


def gradient_at(point: np.ndarray, target: int) -> np.ndarray:
    """The gradient of a score at one image `[H, W, C]`, as PAIR's package lays images out."""
    image = torch.from_numpy(np.moveaxis(np.asarray(point), -1, 0)).float()[None].requires_grad_()
    (gradient,) = torch.autograd.grad(network()(image)[0, target], image)
    return np.moveaxis(gradient[0].numpy(), 0, -1)


def as_pair_asks(target: int) -> Callable[..., dict[str, np.ndarray]]:
    """The function from images to gradients that PAIR's package calls."""
    key = pair().INPUT_OUTPUT_GRADIENTS
    return lambda points, call_model_args=None, expected_keys=None: {
        key: np.stack([gradient_at(point, target) for point in points])
    }


@cache
def pair() -> Any:
    """PAIR's package, whose own warnings are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("saliency.core")


@pytest.fixture
def _old_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """PAIR's package calls `np.quantile` as NumPy had it before 2.4."""
    quantile = np.quantile
    monkeypatch.setattr(np, "quantile", lambda *args, interpolation="linear", **kw: quantile(*args, method=interpolation, **kw))


def same(ours: Tensor, theirs: list[np.ndarray]) -> None:
    for one, other in zip(ours.numpy(), theirs, strict=True):
        assert one.shape == other.shape
        assert np.ptp(other) > 0  # maps of zeros would be equal too
        assert np.abs(one - other).max() < CLOSE * np.ptp(other)


@pytest.mark.usefixtures("_old_numpy")
@pytest.mark.parametrize(
    ("ours", "settings"),
    [
        (GuidedIntegratedGradients(steps=12), {"x_steps": 12}),
        (
            GuidedIntegratedGradients(steps=12, fraction=0.5, max_distance=0.3, baseline=0.4),
            {"x_steps": 12, "fraction": 0.5, "max_dist": 0.3, "x_baseline": np.full((14, 18, 3), 0.4)},
        ),
        (GuidedIntegratedGradients(steps=5, max_distance=1), {"x_steps": 5, "max_dist": 1}),
        (BlurIntegratedGradients(steps=12, max_sigma=7.0), {"steps": 12, "max_sigma": 7.0}),
        (BlurIntegratedGradients(steps=4), {"steps": 4}),
    ],
    ids=str,
)
def test_maps_are_those_of_pairs_package(ours, settings):
    context = context_of()
    method = pair().GuidedIG() if ours.name == "guided-ig" else pair().BlurIG()
    pictures = [np.moveaxis(image.double().numpy(), 0, -1) for image in context.images]
    theirs = [
        method.GetMask(picture, as_pair_asks(target), **settings).sum(axis=-1)
        for picture, target in zip(pictures, TARGETS, strict=True)
    ]
    same(ours(context), theirs)


def test_without_a_distance_the_guided_path_is_straight():
    context = context_of()
    steps = 9
    expected = []
    for image, target in zip(context.images, TARGETS, strict=True):
        picture = np.moveaxis(image.numpy(), 0, -1)
        total = sum(gradient_at(picture * step / steps, target) for step in range(steps))
        expected.append((total * picture / steps).sum(axis=-1))
    same(GuidedIntegratedGradients(steps=steps, max_distance=0)(context), expected)


def test_attributions_of_a_guided_path_add_up_to_the_difference_of_scores():
    context = context_of()
    maps = GuidedIntegratedGradients(steps=150)(context)
    with torch.no_grad():
        difference = context.score(context.images) - context.score(torch.zeros_like(context.images))
    torch.testing.assert_close(maps.sum(dim=(1, 2)).float(), difference, rtol=0.02, atol=0.002)


def test_expected_gradients_are_a_loop_over_samples_of_references():
    references = torch.rand(5, 3, 14, 18, generator=torch.Generator().manual_seed(4))
    context = context_of(seed=6)
    method = ExpectedGradients(samples=7, references=references)

    def drawn(image_id: str, name: str, count: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed_from(6, image_id, name))
        return torch.rand(count, generator=generator).tolist()

    expected = []
    for image, image_id, target in zip(context.images, context.ids, TARGETS, strict=True):
        total = np.zeros((14, 18, 3))
        for sample, along in enumerate(drawn(image_id, "places", 7)):
            reference = references[int(drawn(image_id, f"reference {sample}", 1)[0] * 5)]
            way = np.moveaxis((image - reference).numpy(), 0, -1)
            total += gradient_at(np.moveaxis(reference.numpy(), 0, -1) + along * way, target) * way
        expected.append(total.sum(axis=-1) / 7)
    same(method(context), expected)


def test_expected_gradients_without_references_use_noise_in_the_range_of_each_channel():
    images = torch.rand(2, 3, 14, 18) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1) + 2
    noise = ExpectedGradients()._references(Context(network(), images, torch.tensor([0, 1]), None, ["a", "b"]), 3)
    assert noise.shape == images.shape
    assert (noise.amin(dim=(2, 3)) >= images.amin(dim=(2, 3))).all()
    assert (noise.amax(dim=(2, 3)) <= images.amax(dim=(2, 3))).all()
    assert (noise.amax(dim=(2, 3)) - noise.amin(dim=(2, 3)) > 0.9 * (images.amax(dim=(2, 3)) - images.amin(dim=(2, 3)))).all()
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize(
    "method",
    [GuidedIntegratedGradients(steps=5), BlurIntegratedGradients(steps=5), ExpectedGradients(samples=5)],
    ids=lambda method: method.name,
)
def test_steps_and_images_share_passes_of_the_runs_size(method):
    expected = method(context_of(3, size=None))
    seen: list[int] = []

    def count(images: Tensor) -> Tensor:
        seen.append(len(images))
        return network()(images)

    for size, most in ((2, 2), (3, 3), (7, 6), (64, 15)):  # whole steps of 3 images
        seen.clear()
        torch.testing.assert_close(method(context_of(3, size=size, call=count)), expected, rtol=1e-4, atol=1e-6)
        assert sum(seen) == 5 * 3
        assert max(seen) == (min(most, 3) if method.name == "guided-ig" else most)  # each step follows from the one before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuidedIntegratedGradients(steps=0), "method 'guided-ig' takes steps of at least 1, a fraction in"),
        (lambda: GuidedIntegratedGradients(fraction=0), r"got steps=200, fraction=0, max_distance=0.02"),
        (lambda: GuidedIntegratedGradients(max_distance=1.5), "max_distance=1.5"),
        (lambda: BlurIntegratedGradients(max_sigma=0), "method 'blur-ig' takes steps of at least 1, and a max_sigma"),
        (lambda: ExpectedGradients(samples=0), "method 'expected-gradients' takes samples of at least 1, got 0"),
        (
            lambda: ExpectedGradients(references=torch.rand(2, 3, 9, 9))(context_of()),
            r"has references \[2, 3, 9, 9\], and the images are \[2, 3, 14, 18\]",
        ),
        (
            lambda: BlurIntegratedGradients(steps=2)(Context(network(), torch.rand(1, 1, 4, 4, 4), TARGETS, None, ["a"])),
            "method 'blur-ig' explains images",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(make, message):
    with pytest.raises(ExplainerError, match=message):
        make()


def test_a_score_without_a_gradient_is_refused():
    class Cut(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.detach().mean(dim=(2, 3))

    with pytest.raises(ExplainerError, match="the score has no gradient at the images"):
        xaieval.explain(Cut(), torch.rand(1, 3, 8, 8), method="guided-ig")
    with pytest.raises(ExplainerError, match=r"the model is a function, .* needs layers, gradients or the inside of the model"):
        xaieval.explain(lambda images: images.mean(dim=(2, 3)), torch.rand(1, 3, 8, 8), method="blur-ig")


def test_an_operation_without_a_derivative_is_an_error_of_the_model():
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Tensor) -> Tensor:
            return values.round()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            raise NotImplementedError("the derivative for 'rounded' is not implemented")

    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    context = Context(model, torch.rand(1, 3, 8, 8), torch.tensor([0]), None, ["a"], call=lambda x: Rounded.apply(model(x)))
    with pytest.raises(ModelError, match="no gradient"):
        context.image_gradient(context.images)


def test_a_nan_image_ends_and_leaves_the_others_alone():
    context = context_of()
    images = context.images.clone()
    images[0, 0, 0, 0] = torch.nan
    for method in GRADIENT_PATHS:
        small = type(method)(5)
        broken = small(Context(network(), images, context.targets, None, context.ids, size=8))
        assert broken[0].isnan().any()
        torch.testing.assert_close(broken[1], small(context)[1])
