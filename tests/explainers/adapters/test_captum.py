"""Maps of the adapter equal captum's own, for any task and in any batch, and the model is not changed."""

from __future__ import annotations

import warnings
from dataclasses import replace

import captum.attr
import numpy as np
import pytest
import timm
import torch
import torchvision
from captum._utils.models.linear_model import SkLearnLasso, SkLearnLinearRegression
from torch import Tensor, nn

import xaieval
from tests.borrowing import context_of, unchanged
from xaieval.errors import ExplainerError
from xaieval.explainers import Captum, CaptumObject, describe_method, resolve_methods
from xaieval.explainers.adapters.base import seeded
from xaieval.explainers.adapters.captum import LIBRARY, REDUCTIONS
from xaieval.inference.tasks import Detection, Segmentation
from xaieval.masking.segments import label_maps
from xaieval.probe.layouts import Layout

FEWER = {"Lime": 40, "KernelShap": 30, "ShapleyValueSampling": 2}  # samples, to be fast
# The scores of the network below change so little that Lime's own lasso would find nothing in them.
MAKING = {"Lime": {"interpretable_model": SkLearnLasso(alpha=1e-4)}}
CAPTUM = {
    name: replace(method, settings={"n_samples": FEWER[method.method], **MAKING.get(method.method, {})})
    if method.method in FEWER
    else method
    for name, method in LIBRARY.methods.items()
}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
RAW = xaieval.Protocol(normalisation="none")


class Flat(nn.Sequential):
    """A sequence that is flattened by a function, since captum's LRP has no rule for a module that flattens."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).flatten(1)


def small() -> nn.Module:
    torch.manual_seed(3)
    return Flat(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(8, 5, 1),
    ).eval()


def out_of_place() -> nn.Module:
    """The same network without in-place modules, as captum needs it."""
    model = small()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model.requires_grad_(False)


IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
TARGETS = [4, 0, 2]


def tiles() -> Tensor:
    """Numbers of 8 x 8 tiles of 2 x 2 pixels, by a slow loop."""
    return torch.tensor([[row // 2 * 8 + column // 2 for column in range(16)] for row in range(16)])[None, None]


def plain_images(images: Tensor) -> Tensor:
    """Eight images in colours of an image, those of the pixels that the random numbers choose."""
    (image,) = images
    places = torch.randint(256, (8,)).tolist()
    return torch.stack([image[:, place // 16, place % 16, None, None].expand(3, 16, 16) for place in places])


def directly(name: str, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Captum, called as its documentation does."""
    kind = getattr(captum.attr, name)
    attribution = kind(model, *([model[4]] if CAPTUM[f"captum:{name}"].needs_layer else []), **MAKING.get(name, {}))
    settings = {
        "GradientShap": {"baselines": torch.zeros(1, 3, 16, 16)},
        "Occlusion": {"sliding_window_shapes": (3, 2, 2), "strides": (3, 1, 1)},
        "FeatureAblation": {"feature_mask": tiles()},
        "LayerGradCam": {"relu_attributions": True},
        **{sampled: {"feature_mask": tiles(), "n_samples": number} for sampled, number in FEWER.items()},
        "DeepLiftShap": {"baselines": plain_images(images) if name == "DeepLiftShap" else None},
    }.get(name, {})
    target = {} if name == "LayerActivation" else {"target": targets}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's notes on hooks and gradients
        found = attribution.attribute(images.clone().requires_grad_(), **target, **settings)
    return found.detach()


REDUCED = {
    "Saliency": "abs_max",
    "GuidedBackprop": "abs_max",
    "Deconvolution": "abs_max",
    "Occlusion": "mean",
    "FeatureAblation": "mean",
}
RANDOM = ["GradientShap", "DeepLiftShap", *FEWER]
PLAIN = sorted(set(CAPTUM) - {"captum:SmoothGrad", "captum:VarGrad", "captum:LRP"} - {f"captum:{name}" for name in RANDOM})


def context(model: nn.Module, name: str, **options: object):
    found = context_of(model, IMAGES, TARGETS, **options)
    return replace(found, layer="4", layout=Layout("channels_first", (6, 6))) if CAPTUM[name].needs_layer else found


@pytest.mark.parametrize("name", [*PLAIN, "captum:LRP"])
def test_maps_are_those_that_captum_gives_when_it_is_called_directly(name):
    word = name.removeprefix("captum:")
    expected = REDUCTIONS[REDUCED.get(word, "sum")](directly(word, out_of_place(), IMAGES, torch.tensor(TARGETS)))
    model = small()
    found = CAPTUM[name](context(model, name))
    scale = expected.abs().amax()
    assert scale > 1e-6, "maps of zeros would be equal too"
    torch.testing.assert_close(found / scale, expected / scale, **CLOSE)


@pytest.mark.parametrize("name", ["Saliency", "InputXGradient", "GuidedBackprop", "Deconvolution", "GuidedGradCam"])
def test_maps_of_a_residual_network_are_captums(name):
    torch.manual_seed(0)
    networks, images = (torchvision.models.resnet18(num_classes=4) for _ in range(2)), torch.rand(2, 3, 64, 64)
    model, theirs = networks
    theirs.load_state_dict(model.state_dict())
    for module in theirs.eval().modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # as captum asks for
    layers = [theirs.layer4] if name == "GuidedGradCam" else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's notes on hooks
        method = getattr(captum.attr, name)(theirs, *layers)
        attribution = method.attribute(images.clone().requires_grad_(), target=torch.tensor([1, 3]))
    expected = REDUCTIONS[REDUCED.get(name, "sum")](attribution).detach()
    found = replace(context_of(model, images, [1, 3]), layer="layer4", layout=Layout("channels_first", (2, 2)))
    scale = expected.abs().amax()
    torch.testing.assert_close(CAPTUM[f"captum:{name}"](found) / scale, expected / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(CAPTUM))
def test_a_map_does_not_depend_on_the_batch_or_on_the_callers_random_numbers(name):
    method, model = CAPTUM[name], small()
    whole = method(context(model, name, seed=7, size=2))
    one = context(model, name, seed=7, size=5)
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002  # captum draws from it too
    for number in range(3):
        here = slice(number, number + 1)
        alone = replace(one, images=IMAGES[here], targets=one.targets[here], logits=one.logits[here], ids=[str(number)])
        torch.testing.assert_close(method(alone)[0], whole[number], **CLOSE)


@pytest.mark.parametrize("name", [*(f"captum:{name}" for name in RANDOM), "captum:SmoothGrad", "captum:VarGrad"])
def test_random_methods_go_by_the_seed(name):
    first, again, other = (CAPTUM[name](context(small(), name, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_are_captums_from_the_image_s_own_seed(name):
    method = CAPTUM[f"captum:{name}"]
    found, theirs = method(context(small(), method.name, seed=4, size=6)), out_of_place()
    for number in range(3):
        with seeded(4, str(number), torch.device("cpu")):
            here = slice(number, number + 1)
            expected = directly(name, theirs, IMAGES[here], torch.tensor(TARGETS)[here])[0]
        assert expected.abs().amax() > 1e-6, "maps of zeros would be equal too"
        expected = expected[0] if name in FEWER else expected.sum(dim=0)  # all channels of a tile have the same number
        torch.testing.assert_close(found[number], expected, **CLOSE)


def quarters(images: Tensor) -> Tensor:
    """Upper left, upper right, lower left, lower right, under numbers with gaps; the halves alone on the second image."""
    side = images.shape[-1] // 2
    rows, columns = torch.arange(2 * side)[:, None] // side, torch.arange(2 * side) // side
    return torch.stack([(5 * rows if image.mean() > 0 else rows * 0) + 3 * columns for image in images])


def additive() -> nn.Module:
    """A model whose score is a sum over pixels, and whose Shapley values are known: the sums over the segments."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2, bias=False)).eval()
    nn.init.normal_(model[1].weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("name", ["ShapleyValueSampling", "KernelShap", "FeatureAblation"])
@pytest.mark.parametrize("segments", [4, "slic-9", quarters], ids=["4", "slic-9", "quarters"])
def test_segments_have_their_shapley_values_in_an_additive_model(name, segments):
    model, bright_and_dark = additive(), torch.tensor([1.0, -1.0])[:, None, None, None]
    images = nn.functional.interpolate(IMAGES[:2, :, :4, :4], (16, 16), mode="bicubic") + bright_and_dark
    settings = {} if name == "FeatureAblation" else {"n_samples": 200 if name == "KernelShap" else 2}
    found = Captum(name, segments=segments, settings=settings)(context_of(model, images, [0, 1], size=50))
    labels = label_maps(images, segments)
    parts = (model[1].weight.detach().view(2, 3, 16, 16) * images).sum(dim=1)
    for label, part, one in zip(labels, parts, found, strict=True):
        assert len(label.unique()) > 1, "or there is nothing to see"
        for number in label.unique():
            here = label == number
            torch.testing.assert_close(one[here], part[here].sum().expand(int(here.sum())), atol=2e-3, rtol=1e-3)


def test_an_image_of_one_segment_has_a_map_of_zeros():
    found = Captum("KernelShap", segments=100)(context(small(), "captum:KernelShap"))
    assert torch.equal(found, torch.zeros(3, 16, 16))


def test_arguments_of_the_constructor_are_settings_too():
    plain, shaped = (
        Captum("Lime", settings={"n_samples": 40, **more})(context_of(additive(), IMAGES, [0, 1, 0]))
        for more in ({}, {"interpretable_model": SkLearnLinearRegression()})
    )
    assert not torch.allclose(plain, shaped)


@pytest.mark.parametrize(("name", "kind", "reduce"), [("SmoothGrad", "smoothgrad", "abs_max"), ("VarGrad", "vargrad", "sum")])
def test_smoothing_is_captums_noise_tunnel_around_the_signed_gradient(name, kind, reduce):
    found = CAPTUM[f"captum:{name}"](context(small(), f"captum:{name}", seed=4, size=25))
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(out_of_place()))
    for number in range(3):
        image = IMAGES[number : number + 1]
        with seeded(4, str(number), torch.device("cpu")):
            expected = tunnel.attribute(
                image.clone().requires_grad_(),
                target=TARGETS[number],
                abs=False,
                nt_type=kind,
                nt_samples=25,
                stdevs=0.15 * (image.max() - image.min()).item(),
            )
        torch.testing.assert_close(found[number], REDUCTIONS[reduce](expected)[0].detach(), **CLOSE)


def test_numpys_random_numbers_come_back_too():
    before = np.random.get_state()[1:3]  # noqa: NPY002  # captum draws from it
    CAPTUM["captum:GradientShap"](context(small(), "captum:GradientShap"))
    after = np.random.get_state()[1:3]  # noqa: NPY002  # as above
    assert (after[0] == before[0]).all()
    assert after[1] == before[1]


@pytest.mark.parametrize("name", sorted(CAPTUM))
def test_the_model_comes_back_as_it_was(name):
    model = small()
    found = context(model, name)
    with unchanged(model):
        CAPTUM[name](found)
    assert model[1].inplace


@pytest.mark.parametrize("name", sorted(CAPTUM))
def test_the_model_comes_back_as_it_was_after_an_error(name):
    model, passes = small(), []

    def second_time_raising(images: Tensor) -> Tensor:
        found = model(images)
        passes.append(found)
        if len(passes) > (name.startswith("captum:DeepLift")):  # it makes a pass to see which modules run twice
            raise ValueError("not these images")
        return found

    found = replace(context(model, name), call=second_time_raising)
    with unchanged(model), pytest.raises(ExplainerError, match="ValueError: not these images; captum names the reason"):
        CAPTUM[name](found)
    assert model[1].inplace


def test_modules_that_run_twice_do_not_stop_deep_lift():
    torch.manual_seed(0)
    model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.uniform_(-0.5, 0.5)
    found = context_of(model, images, [1, 3])
    with unchanged(model):
        maps = CAPTUM["captum:DeepLift"](found)
    # What DeepLift promises: contributions add up to the difference from the baseline's score.
    difference = (found.logits - model(torch.zeros(1, 3, 32, 32)))[[0, 1], [1, 3]]
    torch.testing.assert_close(maps.sum(dim=(1, 2)), difference, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_integrated_gradients_add_up_to_the_difference_from_the_baseline():
    found = context(small(), "captum:IntegratedGradients")
    maps = Captum("IntegratedGradients", settings={"n_steps": 300})(found)
    difference = (found.logits - found.model(torch.zeros(1, 3, 16, 16)))[range(3), TARGETS]
    torch.testing.assert_close(maps.sum(dim=(1, 2)), difference, atol=2e-3, rtol=0)


@pytest.mark.parametrize("reduce", list(REDUCTIONS))
def test_channels_are_reduced_as_told(reduce):
    attribution = directly("InputXGradient", out_of_place(), IMAGES, torch.tensor(TARGETS)).numpy()
    expected = {
        "sum": attribution.sum(1),
        "mean": attribution.mean(1),
        "max": attribution.max(1),
        "abs_sum": np.abs(attribution).sum(1),
        "abs_max": np.abs(attribution).max(1),
    }[reduce]
    found = Captum("InputXGradient", reduce=reduce)(context(small(), "captum:InputXGradient"))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_passes_hold_no_more_than_the_size_of_the_run():
    counts: list[int] = []

    def counting(images: Tensor) -> Tensor:
        counts.append(len(images))
        return model(images)

    model = small()
    CAPTUM["captum:Saliency"](context(model, "captum:Saliency"))  # the first method tries the model out of place, once
    for name in ("IntegratedGradients", "Occlusion", "FeatureAblation", "SmoothGrad"):
        CAPTUM[f"captum:{name}"](replace(context(model, f"captum:{name}"), size=6, call=counting))
    assert max(counts) == 6
    # 50 steps, 15 x 15 windows and 8 x 8 tiles of 3 images, and 25 noisy copies of each.
    assert sum(counts) == 3 * (50 + (225 + 1) + (64 + 1) + 25)


# ---- other tasks and layouts


class Finder(nn.Module):
    """A detector: one box whose score is the mean of a squared map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        box, one = torch.tensor([[0.0, 0, 4, 4]]), torch.ones(1, dtype=torch.long)
        return [
            {"boxes": box, "labels": one, "scores": score[None]} for score in self.conv(images).square().mean(dim=(1, 2, 3))
        ]


@pytest.mark.parametrize("method", ["captum:Saliency", "captum:IntegratedGradients", "captum:Occlusion", "captum:SmoothGrad"])
def test_detectors_are_explained(method):
    model, images = Finder(), IMAGES[:2]
    maps = xaieval.explain(model, images, method=method, task=Detection(), protocol=RAW)["input"]
    assert maps.shape == (2, 16, 16)
    assert (maps.amax(dim=(1, 2)) > 0).all()
    if method == "captum:Saliency":
        weight = model.conv.weight.detach()[0]
        expected = (2 / 256 * (images * weight).sum(dim=1, keepdim=True) * weight).abs().amax(dim=1)
        torch.testing.assert_close(maps, expected, **CLOSE)


@pytest.mark.parametrize("method", ["captum:Saliency", "captum:InputXGradient", "captum:FeatureAblation"])
def test_segmentation_networks_are_explained(method):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3, padding=1)
    maps = xaieval.explain(model, IMAGES, method=method, task=Segmentation(), protocol=RAW)["input"]
    assert maps.shape == (3, 16, 16)
    assert (maps.abs().amax(dim=(1, 2)) > 0).all()


def test_layers_of_tokens_are_laid_out():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3).eval()
    side = model.patch_embed.img_size[0]
    images = torch.rand(2, 3, side, side)
    maps = xaieval.explain(model, images, "blocks.1", "captum:LayerActivation", protocol=replace(RAW, normalise_at="layer"))
    seen = xaieval.explain(model, images, "blocks.1", Summed(), protocol=replace(RAW, normalise_at="layer"))
    torch.testing.assert_close(maps["blocks.1"], seen["blocks.1"], **CLOSE)
    with pytest.raises(
        ExplainerError, match=r"takes axis 1 for the channels, and the output of 'blocks.1' is not \[N, C, H, W\]"
    ):
        xaieval.explain(model, images, "blocks.1", "captum:LayerGradCam")


class Summed:
    """The sum of a layer's channels."""

    name = "summed"
    needs_layer = True
    needs_gradient = False

    def __call__(self, context: object) -> Tensor:
        return context.activation.sum(dim=1)


# ---- objects


def test_captums_objects_are_taken_as_they_are():
    model = small()
    methods = [
        captum.attr.IntegratedGradients(model),
        captum.attr.LayerGradCam(model, model[3]),
        captum.attr.NoiseTunnel(captum.attr.InputXGradient(model)),
        captum.attr.Occlusion(model),
    ]
    found = resolve_methods(methods)
    assert [one.name for one in found] == [
        "captum:IntegratedGradients",
        "captum:LayerGradCam(3)",
        "captum:NoiseTunnel",
        "captum:Occlusion",
    ]
    scores = xaieval.score(model, [IMAGES], methods=methods, progress=False)
    assert set(scores.rows["status"]) <= {"ok", "constant_map"}
    given = context(model, "captum:IntegratedGradients")
    torch.testing.assert_close(found[0](given), CAPTUM["captum:IntegratedGradients"](given), **CLOSE)
    assert resolve_methods(methods[0])[0].name == "captum:IntegratedGradients"
    assert CaptumObject(methods[0], label="mine").name == "mine"


def test_an_object_of_another_model_is_refused():
    with pytest.raises(ExplainerError, match="was made for another model than the one that is scored"):
        xaieval.explain(small(), IMAGES, method=captum.attr.Saliency(small()))


def test_an_object_explains_classifiers_alone():
    model = nn.Conv2d(3, 4, 1)
    with pytest.raises(ExplainerError, match="explains only classifiers, and the task is segmentation"):
        xaieval.explain(model, IMAGES, method=captum.attr.Saliency(model), task=Segmentation())


# ---- wrong use


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Captum("Salency"), "captum: no method 'Salency'; did you mean 'Saliency'?"),
        (lambda: Captum("Saliency", reduce="maximum"), "captum: no reduce 'maximum'; did you mean 'max'?"),
        (lambda: Captum("Saliency", noise="smooth"), "captum: no noise 'smooth'; did you mean 'smoothgrad'"),
        (lambda: resolve_methods("captum:Salency"), "no method 'captum:Salency'; did you mean 'Saliency'?"),
        (lambda: resolve_methods("saliency"), "no method 'saliency'; did you mean 'captum:Saliency'? known: gradcam"),
        (lambda: xaieval.explain(small(), IMAGES, method="captum:LayerGradCam"), "needs layers=, and none were given"),
        (
            lambda: xaieval.explain(small(), IMAGES, method=Captum("IntegratedGradients", settings={"n_step": 3})),
            "method 'captum:IntegratedGradients' does not work here: TypeError: IntegratedGradients.attribute() got an "
            "unexpected keyword argument 'n_step'",
        ),
        (
            lambda: xaieval.explain(nn.Sequential(small(), nn.GELU()), IMAGES, method="captum:LRP"),
            "TypeError: Module of type <class 'torch.nn.modules.activation.GELU'> has no rule defined",
        ),
        (
            lambda: xaieval.explain(nn.Sequential(nn.Conv2d(3, 2, 16), nn.Flatten()), IMAGES, method="captum:GuidedBackprop"),
            "changes what ReLUs pass back, and the model has none, so it would be the plain gradient",
        ),
    ],
)
def test_wrong_use_is_named(make, message):
    with pytest.raises(ExplainerError) as caught:
        make()
    assert message in str(caught.value)


def test_a_layer_that_is_a_part_of_an_output_is_refused():
    class Pair(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images, -images

    class Paired(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.body = Pair(), small()

        def forward(self, images: Tensor) -> Tensor:
            return self.body(self.pair(images)[0])

    with pytest.raises(ExplainerError, match=r"gives one tensor and runs once, and 'pair\[0\]' is none"):
        xaieval.explain(Paired(), IMAGES, "pair[0]", "captum:LayerGradCam")


def test_a_missing_library_is_named_with_its_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.delitem(sys.modules, "captum")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExplainerError, match="needs the package captum, which is missing: pip install captum"):
        resolve_methods("captum:Saliency")


# ---- in the manifest


def test_settings_are_in_the_manifest():
    methods = ["captum:Saliency", Captum("IntegratedGradients", settings={"n_steps": 4}, reduce="abs_sum"), "captum:SmoothGrad"]
    run = xaieval.score(small(), [IMAGES], "4", [*methods, "gradcam"], progress=False).manifest["run"]
    assert run["methods"] == ["gradcam", "captum:Saliency", "captum:IntegratedGradients", "captum:SmoothGrad"]
    assert run["method settings"] == {
        "captum:Saliency": {"method": "Saliency", "reduce": "abs_max", "settings": {}},
        "captum:IntegratedGradients": {"method": "IntegratedGradients", "reduce": "abs_sum", "settings": {"n_steps": 4}},
        "captum:SmoothGrad": {
            "method": "Saliency",
            "reduce": "abs_max",
            "noise": "smoothgrad",
            "noise of range": 0.15,
            "settings": {"abs": False, "nt_type": "smoothgrad", "nt_samples": 25},
        },
    }
    assert "method settings" not in xaieval.score(small(), [IMAGES], "4", "gradcam", progress=False).manifest["run"]


def test_tensors_in_settings_are_told_apart_by_their_content():
    baselines = [torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)]
    first, second = (describe_method(Captum("DeepLift", settings={"baselines": one}))["settings"] for one in baselines)
    assert first["baselines"].startswith("float32 [1, 3, 2, 2] ")
    assert first != second


def test_an_object_explains_class_1_of_a_model_of_one_output():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 1)
    ).eval()
    images = torch.rand(2, 3, 8, 8)
    made, named = (
        xaieval.explain(model, images, method=method, target=1)["input"]
        for method in (captum.attr.Saliency(model), "captum:Saliency")
    )
    torch.testing.assert_close(made, named)
    with pytest.raises(ExplainerError, match="class 0 of a model of one output has none; give target=1"):
        xaieval.explain(model, images, method=captum.attr.Saliency(model), target=0)
