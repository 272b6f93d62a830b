"""Passes of a borrowed model: their own images, outside autocast, uncompiled, without checkpoints, with hooks that stay."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import xaieval
from tests.borrowing import all_unchanged
from xaieval.errors import ExplainerError, ModelError
from xaieval.inference.borrowing import borrow
from xaieval.inference.plain_passes import floating_type, network_of
from xaieval.models import BlackBox

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class Network(nn.Module):
    """Three stages and a head; `run` says how a stage is run, `prepare` what happens to the images."""

    def __init__(self, run=lambda stage, x: stage(x), prepare=lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(6, 8, 3, 2), nn.ReLU())
        self.c = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 4)
        self.run, self.prepare = run, prepare

    def forward(self, images: Tensor) -> Tensor:
        x = self.prepare(images)
        for stage in (self.a, self.b, self.c):
            x = self.run(stage, x)
        return self.head(x.mean((2, 3)))


def score(model, images=IMAGES, layers=("b",), methods="gradcam", **options):
    return xaieval.score(model, [images], layers, methods, progress=False, **options)


def numbers(scores):
    return scores.rows[["confidence", "masked_confidence", "mask_area"]].to_numpy()


def test_the_map_is_that_of_a_pass_by_hand():
    model = Network().eval()
    kept: list[Tensor] = []
    handle = model.b.register_forward_hook(lambda _, __, output: kept.append(output))
    gradient = torch.autograd.grad(model(IMAGES).amax(dim=1).sum(), kept[0])[0]
    handle.remove()
    raw = (gradient.mean((2, 3), keepdim=True) * kept[0].detach()).sum(1).clamp(min=0)
    up = nn.functional.interpolate(raw[:, None], (16, 16), mode="bilinear", align_corners=False)[:, 0]
    low, high = up.amin((1, 2), keepdim=True), up.amax((1, 2), keepdim=True)
    assert torch.allclose(xaieval.explain(model, IMAGES, "b")["b"], (up - low) / (high - low), atol=1e-4)


# ---- models that write into their input

WRITERS = {
    "normalisation": (lambda x: (x - 0.45) / 0.25, lambda x: x.sub_(0.45).div_(0.25)),
    "activation": (torch.relu, lambda x: torch.relu_(x)),
    "assignment": (lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1), lambda x: _assigned(x)),
}


def _assigned(x):
    x[:, 0] = 0
    return x


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("methods", "options"),
    [
        (("gradcam", "score-cam", "ablation-cam"), {}),
        (("captum:Saliency", "captum:Occlusion", "pytorch-grad-cam:GradCAM", "torch-cam:GradCAM", "occlusion"), {}),
        ("gradcam", {"fast": False}),
        ("gradcam", {"precision": "bf16"}),
        ("gradcam", {"metrics": ["average_drop", "max_sensitivity"], "controls": True}),
    ],
)
def test_models_that_write_into_their_input_have_the_same_rows_and_leave_it(kind, methods, options):
    out_of_place, in_place = (Network(prepare=prepare).eval() for prepare in WRITERS[kind])
    images = IMAGES.clone()
    rows = numbers(score(in_place, images, methods=methods, **options))
    assert torch.equal(images, IMAGES)
    np.testing.assert_allclose(rows, numbers(score(out_of_place, methods=methods, **options)), atol=1e-5)


def test_arrays_and_all_other_functions_leave_the_images():
    model, array = Network(prepare=WRITERS["normalisation"][1]), IMAGES.numpy().copy()
    score(model, array, forward=lambda model, images: model(images.mul_(2)))
    xaieval.explain(model, array, "b")
    xaieval.list_layers(model, array)
    xaieval.sanity_check(model, [array], ["b"], modules=["head"], progress=False)
    score(BlackBox(lambda images: np.subtract(images, 1, out=images).mean((2, 3)), numpy=True), array, (), "occlusion")
    score(BlackBox(lambda images: images.sub_(1).mean((2, 3))), array, (), "occlusion")
    assert np.array_equal(array, IMAGES.numpy())


@pytest.mark.slow
def test_a_compiled_pass_leaves_the_images():
    expected = numbers(score(Network(prepare=WRITERS["normalisation"][0])))
    images = IMAGES.clone()
    rows = numbers(score(Network(prepare=WRITERS["normalisation"][1]), images, compile=True))
    assert torch.equal(images, IMAGES)
    np.testing.assert_allclose(rows, expected, atol=1e-4)


# ---- modes and types


@pytest.mark.parametrize("mode", [lambda: torch.autocast("cpu", torch.bfloat16), torch.no_grad, torch.inference_mode])
def test_the_callers_modes_change_no_bit(mode):
    model = Network()
    expected = numbers(score(model, methods=("gradcam", "captum:Saliency")))
    with mode():
        assert np.array_equal(numbers(score(model, IMAGES.clone(), methods=("gradcam", "captum:Saliency"))), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("images", [torch.float32, torch.float64, torch.bfloat16])
def test_images_follow_the_type_of_the_model(dtype, images):
    expected = xaieval.explain(Network(), IMAGES.to(images).float(), "b")["b"]
    maps = xaieval.explain(Network().to(dtype), IMAGES.to(images), "b")["b"]
    assert torch.allclose(maps.float(), expected, atol=0.1 if dtype.itemsize == 2 else 1e-3)


def test_a_model_of_two_types_gets_images_as_they_are():
    assert floating_type(Network()) is torch.float32
    assert floating_type(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double())) is None


# ---- compiled models


def _compiled(kind):
    model = Network().eval()
    if kind == "whole":
        return torch.compile(model, backend="eager")
    if kind == "module in place":
        model.b.compile(backend="eager")
    elif kind == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    else:
        setattr(model, kind, torch.compile(getattr(model, kind), backend="eager"))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "b", "c", "module in place", "forward"])
def test_compiled_models_have_the_maps_and_addresses_of_the_plain_model(kind):
    methods = ("gradcam", "captum:LayerGradCam", "pytorch-grad-cam:GradCAM")
    expected, plain = numbers(score(Network(), layers=["a", "b"], methods=methods)), Network()
    model = _compiled(kind)
    modules = dict(model.named_modules())
    np.testing.assert_allclose(numbers(score(model, layers=["a", "b"], methods=methods)), expected, atol=1e-5)
    assert list(xaieval.list_layers(model, IMAGES)["address"]) == list(xaieval.list_layers(plain, IMAGES)["address"])
    assert dict(model.named_modules()) == modules
    assert torch.compiler.set_stance("default").prev.stance == "default"
    prefix = "_orig_mod." if kind == "whole" else ""
    inner = f"{prefix}b._orig_mod.0" if kind == "b" else f"{prefix}b.0"
    assert torch.allclose(xaieval.explain(model, IMAGES, inner)["b.0"], xaieval.explain(plain, IMAGES, "b.0")["b.0"], atol=1e-5)


# ---- checkpoints

CHECKPOINTS = {
    "reentrant": lambda stage, x: checkpoint(stage, x, use_reentrant=True),
    "not reentrant": lambda stage, x: checkpoint(stage, x, use_reentrant=False),
    "sequential": lambda stage, x: checkpoint_sequential(stage, 2, x, use_reentrant=False),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("method", ["gradcam", "pytorch-grad-cam:GradCAM", "captum:LayerGradCam", "torch-cam:GradCAM"])
def test_maps_inside_checkpointed_parts_are_those_without(kind, method):
    layers = ["a.2", "b.0", "c.1"]
    expected = xaieval.explain(Network(), IMAGES, layers, method)
    for address, maps in xaieval.explain(Network(CHECKPOINTS[kind]), IMAGES, layers, method).items():
        assert torch.allclose(maps, expected[address], atol=1e-5)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the first pass
def test_checkpoints_work_after_a_borrow():
    for kind in ("reentrant", "not reentrant"):
        model = Network(CHECKPOINTS[kind])
        score(model)
        calls: list[int] = []
        model.b.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model.b[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with torch.no_grad():
            model(IMAGES)
        once = len(calls)
        model(IMAGES.clone().requires_grad_()).sum().backward()
        assert len(calls) > 2 * once  # once more, in the backward pass


# ---- hooks and modes


class Recording(Network):
    """Registers hooks in its first pass and relies on them from then on, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[Tensor] = []
        self.hooked = False

    def forward(self, images: Tensor) -> Tensor:
        if not self.hooked:
            for stage in (self.a, self.b):
                stage.register_forward_hook(lambda _, inputs, output: self.states.append(output))
                stage.register_forward_hook(lambda _, inputs, kwargs, output: None, with_kwargs=True, always_call=True)
            self.hooked = True
        self.states.clear()
        super().forward(images)
        return self.head(self.states[-1].mean((2, 3)))


@pytest.mark.parametrize("methods", ["gradcam", ("captum:DeepLift", "pytorch-grad-cam:GradCAM"), "occlusion"])
def test_hooks_that_a_model_registers_in_a_pass_stay(methods):
    model = Recording()
    score(model, methods=methods)
    assert model(IMAGES).shape == (3, 4)
    assert [len(stage._forward_hooks) for stage in (model.a, model.b, model.c)] == [2, 2, 0]
    assert len(model.a._forward_hooks_always_called) == 1
    with all_unchanged(model.head):
        score(model, methods=methods)
    assert len(model.a._forward_hooks) == 2


def test_hooks_that_a_method_leaves_go_and_those_of_its_passes_stay():
    def method(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        model.c.register_forward_hook(lambda *_: None)
        model.hooked = False
        model(images)  # registers hooks again
        model.a.register_forward_hook(lambda *_: None)
        return images.mean(dim=1)

    model = Recording()
    score(model, methods=method)
    assert [len(stage._forward_hooks) for stage in (model.a, model.b, model.c)] == [4, 4, 0]


class Trains(Network):
    """Its `train` is no mode switch."""

    def train(self, mode: bool = True) -> Trains:
        raise SystemError("train was called")

    def eval(self) -> Trains:
        raise SystemError("eval was called")


@pytest.mark.parametrize(
    "methods", ["gradcam", "captum:DeepLift", "pytorch-grad-cam:GradCAM", "torch-cam:ScoreCAM", "pytorch-grad-cam:FullGrad"]
)
def test_train_and_eval_of_the_users_classes_are_never_called(methods):
    model = Trains()
    with all_unchanged(model, versions=False):
        score(model, methods=methods)
        xaieval.list_layers(model, IMAGES)
    assert all(module.training for module in model.modules())


def test_an_error_names_the_train_that_was_not_called():
    class Fused(Trains):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) if self.training else self.fused(images)

    with pytest.raises(AttributeError) as caught:
        score(Fused())
    assert caught.value.__notes__ == ["xaieval does not call train() of Fused; if it has to, call model.eval() first"]


class Wrapper(nn.Module):
    """Like ultralytics' YOLO: holds the network, takes files, and its `train` trains."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Network()

    def train(self, trainer: object = None, **settings: object) -> None:
        raise SystemError("it trains")

    def predict(self, source: object = None, **settings: object) -> object:
        raise TypeError(f"{source} is no file")


class CallsPredict(Wrapper):
    def __call__(self, source: object = None, **settings: object) -> object:
        return self.predict(source, **settings)


class ForwardsFiles(Wrapper):
    def forward(self, source: object = None, **settings: object) -> object:
        return self.predict(source, **settings)


class ForwardsAll(Wrapper):
    def forward(self, *args: object, **kwargs: object) -> object:
        return self.predict(*args, **kwargs)


@pytest.mark.parametrize("kind", [CallsPredict, ForwardsFiles, ForwardsAll])
def test_a_wrapper_is_taken_by_the_network_inside(kind):
    model = kind()
    assert network_of(model) is model.model
    assert numbers(score(model)).tolist() == numbers(score(Network())).tolist()
    assert "b" in set(xaieval.list_layers(model, IMAGES)["address"])


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, ModelEmaV3])
def test_wrappers_that_run_the_network_have_its_maps(wrap):
    found = xaieval.explain(wrap(Network().eval()), IMAGES, "module.b")["module.b"]
    assert torch.allclose(found, xaieval.explain(Network(), IMAGES, "b")["b"], atol=1e-6)


def test_the_mean_of_several_networks_has_the_sum_of_their_gradients():
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList([Network(), Network()])

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([member(images) for member in self.members]).mean(0)

    expected = xaieval.explain(Network(), IMAGES, "b")["b"]
    for found in xaieval.explain(Ensemble(), IMAGES, "members.*.b").values():
        assert torch.allclose(found, expected, atol=1e-5)


def test_images_of_a_class_of_their_own_are_images():
    class TensorImage(Tensor):
        pass

    for method in ("gradcam", "captum:SmoothGrad", "pytorch-grad-cam:GradCAM"):
        [expected] = xaieval.explain(Network(), IMAGES, "b", method=method).values()
        [found] = xaieval.explain(Network(), IMAGES.as_subclass(TensorImage), "b", method=method).values()
        assert torch.equal(found.as_subclass(Tensor), expected)


def test_hooks_of_another_library_stay_and_the_map_is_right():
    torchcam = pytest.importorskip("torchcam.methods")
    model = Network().eval()
    with torchcam.GradCAM(model, "b") as extractor:
        found = xaieval.explain(model, IMAGES, "b")["b"]
        assert len(extractor(0, model(IMAGES[:1]))) == 1
    assert torch.equal(found, xaieval.explain(Network(), IMAGES, "b")["b"])


def test_a_wrapper_that_looks_like_a_network_is_one_clear_error():
    class Looks(Wrapper):
        def forward(self, images: object) -> object:
            return self.predict(images)

    with pytest.raises(
        ModelError, match=r"^a Looks seems to be no network \(TypeError\); give the network inside it, its attribute"
    ):
        score(Looks(), layers=["model.b"])


def test_a_network_with_a_predict_of_its_own_is_no_wrapper():
    class Helpful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Network()

        def predict(self, images: Tensor) -> Tensor:
            return self(images).argmax(dim=1)

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images * 2)

    model = Helpful()
    assert network_of(model) is model
    assert "model.b" in set(xaieval.list_layers(model, IMAGES)["address"])


# ---- in-place modules whose result is not used


def _ignoring(inplace: bool):
    def run(stage, x):
        x = stage[0](x)
        if inplace:
            stage[-1](x)
            return x
        return stage[-1](x)

    model = Network(run).eval()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = inplace
    return model


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "ablation-cam", "score-cam"])
def test_in_place_modules_whose_result_is_not_used_have_the_right_maps(method):
    layers = ["a.0", "a.2", "b.1", "c.1"]
    expected = xaieval.explain(_ignoring(False), IMAGES, layers, method)
    for address, maps in xaieval.explain(_ignoring(True), IMAGES, layers, method).items():
        assert torch.allclose(maps, expected[address], atol=1e-5), address


@pytest.mark.parametrize("method", ["captum:Saliency", "pytorch-grad-cam:GradCAM", "torch-cam:GradCAM"])
def test_methods_that_run_out_of_place_refuse_such_models(method):
    with pytest.raises(ExplainerError, match="this model ignores what they return"):
        xaieval.explain(_ignoring(True), IMAGES, () if "Saliency" in method else "b.1", method)


# ---- recurrent parts on a GPU


def test_recurrent_parts_are_in_training_without_dropout_on_a_gpu(monkeypatch):
    # cuDNN differentiates them only so; here the device is made believe, since there may be no GPU.
    from xaieval.inference import borrowing

    model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3, num_layers=2, dropout=0.5), nn.GRU(3, 3)).eval()
    real = borrowing._prepare_recurrent
    monkeypatch.setattr(borrowing, "_prepare_recurrent", lambda undo, model, _: real(undo, model, torch.device("cuda")))
    images = torch.randn(2, 5, 3)
    expected = copy.deepcopy(model)[1](images)[0]
    with all_unchanged(model), borrow(model):
        assert [module.training for module in model] == [False, True, True]
        assert model[1].dropout == 0
        assert torch.equal(model[1](images)[0], expected)
