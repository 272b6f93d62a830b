"""Every method passes the checks of all explainers, and each check fails on an explainer that breaks its rule."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import xaieval
from tests.explainers.test_attention_gradients import _clip
from xaieval.errors import ConformanceError, DataError, ExplainerError
from xaieval.explainers import LIBRARY_METHODS, METHODS, Captum, Context, Explainer, cam, describe_method
from xaieval.explainers.detectors import DETECTORS
from xaieval.explainers.sensitivity import Sobol
from xaieval.models import ZeroShot
from xaieval.testing import CHECKS, Subject, check_explainer, checks, small_model, subject
from xaieval.testing.state import model_state

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_type_checks_that_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The type checks that tests install look at a random item of a list, drawn from Python's random numbers."""
    monkeypatch.setattr(cam, "_linear_layers", inspect.unwrap(cam._linear_layers))


# ---- all methods


def _attention_model() -> nn.Module:
    """A model with a layer of one channel, like the map of an attention branch."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 5)
    )


def _transformer() -> nn.Module:
    return timm.create_model("test_vit", img_size=64, num_classes=5)


class _Flattened(nn.Module):
    """A small network that flattens by a function, since captum has no rule of LRP for the module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(4), nn.Linear(64, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.relu(self.conv(images))).flatten(1))


def _torchvision_transformer() -> nn.Module:
    model = torchvision.models.VisionTransformer(64, 16, 2, 2, 16, 32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it with zeros
    return model


def _prompts() -> nn.Module:
    return ZeroShot(_clip("CLIP").model, ["a", "b"], torch.tensor([[0, 3, 4, 19, 1, 1], [0, 5, 6, 19, 1, 1]]))


# Methods for one kind of model: the model, the side of its images, and a layer.
SPECIAL: dict[str, tuple[Callable[[], nn.Module], int, str | None]] = {
    "attention": (_attention_model, 24, "2"),
    "attention-rollout": (_transformer, 64, None),
    "raw-attention": (_transformer, 64, None),
    "generic-attention": (_transformer, 64, None),
    "gradient-rollout": (_transformer, 64, None),
    "legrad": (_transformer, 64, None),
    "transformer-attribution": (_transformer, 64, None),
    "attn-lrp": (_transformer, 64, None),
    "grad-eclip": (_transformer, 64, None),
    "maskclip": (_prompts, 32, None),
    "clip-surgery": (_prompts, 32, None),
    "captum:LRP": (_Flattened, 24, None),
    "torch-cam:LeGrad": (_torchvision_transformer, 64, "encoder.layers.encoder_layer_1"),
}

# Settings that decide how much work a method does.
SMALLER = {
    "n_masks": 24,
    "samples": 4,
    "window": 16,
    "stride": 8,
    "n_steps": 2,
    "n_designs": 2,
    "steps": 4,
    "side": 48,
    "scales": (250,),
}
STEPS, SAMPLES = {"n_steps": 8}, {"nt_samples": 4}
LIBRARY_SMALLER: dict[str, dict[str, Any]] = {
    "captum:IntegratedGradients": STEPS,
    "captum:InternalInfluence": STEPS,
    "captum:LayerConductance": STEPS,
    "captum:Occlusion": {"sliding_window_shapes": (3, 16, 16), "strides": (3, 8, 8)},
    "captum:SmoothGrad": SAMPLES,
    "captum:SmoothGradSquared": SAMPLES,
    "captum:VarGrad": SAMPLES,
    "shap:Partition": {"max_evals": 30},
    "torch-cam:ISCAM": {"num_samples": 3},
    "torch-cam:SSCAM": {"num_samples": 3},
}
SMALLER_SETTINGS = {"n_samples": 2}  # of the library

OF_DETECTORS = {method.name for method in DETECTORS}  # with tests of their own, on a detector
EVERY = {name: method for name, method in {**METHODS, **LIBRARY_METHODS}.items() if name not in OF_DETECTORS}


def _smaller(explainer: Explainer) -> Explainer:
    if not is_dataclass(explainer):
        return explainer
    smaller: dict[str, Any] = {field.name: SMALLER[field.name] for field in fields(explainer) if field.name in SMALLER}
    if explainer.name in LIBRARY_SMALLER:
        smaller |= {"settings": {**explainer.settings, **LIBRARY_SMALLER[explainer.name]}}
    elif SMALLER_SETTINGS.keys() & describe_method(explainer).get("settings", {}).keys():
        smaller |= {"settings": SMALLER_SETTINGS}
    if isinstance(explainer, Sobol):
        smaller |= {"grid": 3}
    if isinstance(explainer, Captum) and explainer.kinds[explainer.method].segmented:
        smaller |= {"segments": 12}
    return replace(explainer, **smaller)


@pytest.mark.parametrize("name", EVERY)
def test_every_method_keeps_what_all_explainers_promise(name):
    explainer = _smaller(EVERY[name])
    if name in SPECIAL:
        make, side, layer = SPECIAL[name]
        check_explainer(explainer, make(), torch.rand(3, 3, side, side), layer)
    else:
        check_explainer(explainer)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_checks_can_be_run_one_by_one(check):
    check(subject("layercam"))


def brightness(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return images.mean(dim=1)


def input_gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    images = images.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(images).gather(1, targets[:, None]).sum(), images)
    return gradient.abs().amax(dim=1)


@pytest.mark.parametrize("function", [brightness, input_gradient])
def test_functions_are_checked_too(function):
    check_explainer(function)


# ---- explainers that break a promise


@dataclass(frozen=True)
class Made:
    """An explainer around a function of the context."""

    function: Callable[[Context], Any]
    name: str = "made"
    needs_layer: bool = True
    needs_gradient: bool = True

    def __call__(self, context: Context) -> Any:
        return self.function(context)


def _good(context: Context) -> Tensor:
    return (context.gradient * context.activation).sum(dim=1)


def _after(change: Callable[[Context], Any]) -> Made:
    """Good maps, with a side effect."""

    def explain(context: Context) -> Tensor:
        maps = _good(context)
        change(context)
        return maps

    return Made(explain)


def _integers(context: Context) -> Tensor:
    return (context.images.mean(dim=1) > 0.5).long()


def _hole(context: Context) -> Tensor:
    maps = _good(context)
    return maps.masked_fill(maps == maps.amax(dim=(1, 2), keepdim=True), torch.nan)


def _noise(context: Context) -> Tensor:
    # Random numbers without a seed, which nothing else draws from.
    return _good(context) * random.SystemRandom().random()


def _global_noise(context: Context) -> Tensor:
    return _good(context) * torch.rand(())


def _spreading(context: Context) -> Tensor:
    return _good(context) / _good(context).amax()


def _zero_beside_nan(context: Context) -> Tensor:
    return _good(context) * (not context.images.isnan().any())


def _with_hook(context: Context) -> Tensor:
    """Removes its hook, but not if the model raises."""
    handle = context.model[3].register_forward_hook(lambda *_: None)
    context.model(context.images)
    handle.remove()
    return _good(context)


def _dividing(context: Context) -> Tensor:
    if not context.activation.any():
        raise ZeroDivisionError("nothing there")
    return _good(context)


def _idle(*_: Any) -> None:
    """A hook that does nothing."""


def _flatten(features: Tensor) -> Tensor:
    return features.flatten(1)


def _grow(context: Context) -> None:
    with torch.no_grad():
        context.model.head.bias.add_(1)


def _count(context: Context) -> None:
    context.model.norm.num_batches_tracked.add_(1)


def _leave_gradient(context: Context) -> None:
    context.model.head.bias.grad = torch.ones(5)


STATE = {"check_state_kept", "check_state_after_error"}

BROKEN: dict[str, tuple[Made, set[str], str]] = {
    "turned": (Made(lambda c: c.images.mean(dim=1).mT, needs_gradient=False), {"check_shapes"}, "lie like the images"),
    "one dimension too many": (
        Made(lambda c: c.images, needs_gradient=False),
        {"check_shapes", "check_zero_gradient"},
        "expected maps [N, h, w], got [1, 3, 32, 40] for images [1, 3, 32, 40]",
    ),
    "one map too few": (
        Made(lambda c: c.images.mean(dim=1)[:3], needs_gradient=False),
        {"check_shapes", "check_batch", "check_zero_gradient", "check_nan_image"},
        "got [3, 32, 40] for images [4, 3, 32, 40]",
    ),
    "integers": (Made(_integers, needs_gradient=False), {"check_floating"}, "floating-point type, got int64"),
    "hole": (Made(_hole), {"check_finite"}, "got NaN or inf in 4 of 4 maps"),
    "noise": (
        Made(_noise),
        {"check_deterministic", "check_batch", "check_nan_image", "check_modes"},
        "expected the same maps from the same seed",
    ),
    "global noise": (
        Made(_global_noise),
        {"check_deterministic", "check_random_numbers", "check_batch", "check_nan_image", "check_modes"},
        "got those of torch changed",
    ),
    "seeding": (_after(lambda c: torch.manual_seed(c.seed)), {"check_random_numbers"}, "got those of torch changed"),
    "numpy": (_after(lambda c: np.random.rand()), {"check_random_numbers"}, "got those of NumPy changed"),  # noqa: NPY002  # the point
    "python": (_after(lambda c: random.random()), {"check_random_numbers"}, "got those of Python changed"),
    "size of the batch": (Made(lambda c: _good(c) * len(c.images)), {"check_batch"}, "as for its images one by one"),
    "normalised over the batch": (Made(_spreading), {"check_batch", "check_nan_image"}, "one by one"),
    "mode": (_after(lambda c: c.model.drop.train()), STATE, "changes in drop: training"),
    "hook": (_after(lambda c: c.model.pool.register_forward_hook(_idle)), STATE, "changes in pool: _forward_hooks"),
    "flag": (_after(lambda c: c.model.body.weight.requires_grad_()), STATE, "changes in body.weight: requires_grad"),
    "gradient left": (_after(_leave_gradient), STATE, "changes in head.bias: grad"),
    "buffer": (_after(_count), STATE, "changes in norm.num_batches_tracked: value"),
    "parameter": (_after(_grow), STATE, "changes in head.bias: value"),
    "in place": (_after(lambda c: setattr(c.model.last, "inplace", False)), STATE, "changes in last: inplace"),
    "another module": (_after(lambda c: setattr(c.model, "drop", nn.Identity())), STATE, "changes in drop: kind"),
    "forward": (_after(lambda c: setattr(c.model.flat, "forward", _flatten)), STATE, "changes in flat: forward"),
    "hook after an error": (
        Made(_with_hook),
        {"check_state_after_error"},
        "it raised at once, got changes in pool: _for",
    ),
    "spoilt by NaN": (Made(_zero_beside_nan), {"check_nan_image"}, "beside an image of NaN"),
    "images": (_after(lambda c: c.images.mul_(2)), {"check_inputs_kept"}, "got changes of images"),
    "activation": (_after(lambda c: c.activation.mul_(2)), {"check_inputs_kept"}, "got changes of activation"),
    "images that want gradients": (
        _after(lambda c: c.images.requires_grad_()),
        {"check_inputs_kept"},
        "got changes of requires_grad of images",
    ),
    "gradients off": (_after(lambda c: torch.set_grad_enabled(False)), {"check_modes"}, "got that switched off"),
    "something out of nothing": (
        Made(lambda c: c.activation.sum(dim=1)),
        {"check_zero_gradient"},
        "from zero gradients, got",
    ),
    "crash at nothing": (Made(_dividing), {"check_zero_gradient"}, "raised ZeroDivisionError: nothing there"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_promise_is_found_and_no_other(broken):
    explainer, expected, message = BROKEN[broken]
    with pytest.raises(ConformanceError) as caught:
        check_explainer(explainer)
    first, *lines = str(caught.value).splitlines()
    assert {line.split(":")[0].removeprefix("- ") for line in lines} == expected
    assert first == f"method 'made' fails {len(expected)} of {len(CHECKS)} checks:"
    assert message in str(caught.value)


def test_the_good_explainer_that_the_broken_ones_are_made_of_passes():
    check_explainer(Made(_good))


def test_every_check_can_fail():
    # The check of devices has a test of its own.
    failing = {name for _, names, _ in BROKEN.values() for name in names} | {"check_device"}
    assert failing == {check.__name__ for check in CHECKS}


def test_other_maps_on_another_device_are_found(monkeypatch):
    # The "other device" is the same one; the explainer gives other maps the second time.
    maps = []

    def explain(context: Context) -> Tensor:
        maps.append(None)
        return _good(context) if len(maps) == 1 else -_good(context)

    monkeypatch.setattr(checks, "_devices", lambda: ["cpu"])
    with pytest.raises(
        ConformanceError, match=r"^expected the same maps on cpu to 0\.01 of a map's range, got a difference of "
    ):
        checks.check_device(subject(Made(explain)))
    checks.check_device(subject(Made(_good)))


def test_every_check_is_listed():
    defined = [name for name in vars(checks) if name.startswith("check_")]
    assert [check.__name__ for check in CHECKS] == defined


# ---- how it is called


def test_the_model_and_the_random_numbers_are_left_as_they_were():
    model = small_model().train()
    model.body.weight.requires_grad_(False)
    before = model_state(model)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    check_explainer("gradcam", model, layer="last")
    with pytest.raises(ConformanceError):
        check_explainer(Made(_global_noise), model, layer="last")
    assert torch.equal(torch.rand(2), expected)
    after = model_state(model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name], name


def test_what_a_broken_explainer_changed_is_put_back_as_far_as_it_are_numbers():
    model = small_model()
    bias = model.head.bias.detach().clone()
    with pytest.raises(ConformanceError):
        checks.check_state_kept(replace(subject(BROKEN["parameter"][0]), model=model))
    assert torch.equal(model.head.bias, bias)


def test_a_small_model_is_always_the_same():
    one, other = small_model(), small_model()
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    assert one(torch.rand(1, 3, 17, 90)).shape == (1, 5)


def test_models_of_one_size_are_checked_without_the_other_sizes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    seen = set()

    def explain(context: Context) -> Tensor:
        seen.add(context.images.shape[2:])
        return _good(context)

    check_explainer(Made(explain), model, torch.rand(2, 3, 16, 16), "1")
    assert seen == {(16, 16)}
    seen.clear()
    check_explainer(Made(explain))
    assert seen == {(32, 40), (16, 40), (32, 20)}


def test_ones_own_subject_can_be_cut():
    tried = subject("random", images=torch.rand(3, 1, 4, 4))
    part = tried.part(2, 0)
    assert isinstance(part, Subject)
    assert part.ids == ["image 2", "image 0"]
    assert torch.equal(part.images, tried.images[[2, 0]])
    assert tried.layer is None


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (("gradcm",), ExplainerError, "no method 'gradcm'; did you mean 'gradcam'"),
        (
            ("gradcam", nn.Identity()),
            ExplainerError,
            "method 'gradcam' needs layer=, an address such as 'layer4', with a model of yours",
        ),
        (("random", None, torch.rand(1, 3, 8, 8)), DataError, "explainers are checked on at least 2 images, got 1"),
        (("random", None, torch.rand(3, 8, 8)), DataError, "images are a floating-point tensor [N, C, H, W]"),
        (("attention",), ExplainerError, "method 'attention' reads the map of an attention branch, one channel; layer 'last'"),
        (
            (Made(lambda c: c.nonsense),),
            ConformanceError,
            "method 'made' gives no maps: it raised AttributeError: 'Context' object has no attribute 'nonsense'",
        ),
        (
            (Made(lambda c: np.zeros((4, 2, 2))),),
            ConformanceError,
            "method 'made' gives a ndarray; a tensor [N, h, w] is expected",
        ),
    ],
)
def test_what_cannot_be_checked_is_refused_word_for_word(given, error, message):
    with pytest.raises(error) as caught:
        check_explainer(*given)
    assert str(caught.value).startswith(message)


def test_the_checks_are_public():
    assert xaieval.testing.check_explainer is check_explainer
