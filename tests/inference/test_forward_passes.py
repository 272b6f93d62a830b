"""Faster forward passes: the same numbers with every speed-up, and the model restored afterwards."""

from __future__ import annotations

import functools
import json
import threading
import warnings
from collections.abc import Callable

import lightning
import pandas as pd
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import xaieval
from xaieval.config.protocol import Protocol
from xaieval.data import Preprocessing, scenes
from xaieval.errors import ModelError, OutputError, UsageError
from xaieval.evaluation.scores import Scores
from xaieval.inference.batch_limit import BatchLimit
from xaieval.inference.borrowing import borrow
from xaieval.inference.forward_passes import Runner, sped_up
from xaieval.models.builtin import fpn_scenes

NUMBERS = ["confidence", "masked_confidence", "mask_area", "average_drop"]
UNMASKED = Protocol(normalisation="none")  # under which the control map of ones masks nothing
COMPILE = torch.compile


def score(*arguments: object, **options: object) -> Scores:
    return xaieval.score(*arguments, progress=False, **options)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without a compiler."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(COMPILE, backend="eager"))


def _compile_with(monkeypatch: pytest.MonkeyPatch, backend: Callable[..., object]) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(COMPILE, backend=backend))


def _lively(model: nn.Module, size: int = 64) -> nn.Module:
    """BatchNorms with statistics that look trained, and logits about 1 apart, so that no confidence is near 0 or 1."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.running_var, 0.3, 2)
        nn.init.normal_(norm.running_mean, std=0.3)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        logits = model.eval()(torch.rand(4, 3, size, size))
        head.weight /= logits.std()
        head.bias /= logits.std()
    return model


class Small(nn.Module):
    """Convolution, norm, convolution, norm, head: one of everything that is sped up."""

    def __init__(self):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.second, self.second_norm = nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.first_norm(self.first(x)).relu()
        x = self.second_norm(self.second(x)).relu()
        return self.head(x.mean((2, 3)))


def _small() -> nn.Module:
    return _lively(Small(), 16)


IMAGES = (4, 3, 16, 16)

MODELS = {
    "small": (_small, 16, ["first_norm", "second", "second_norm"]),
    "resnet18": (
        lambda: _lively(torchvision.models.resnet18(num_classes=5)),
        64,
        ["bn1", "layer2.0.conv1", "layer3", "layer4"],
    ),
    "mobilenet": (
        lambda: _lively(timm.create_model("mobilenetv2_050", num_classes=5)),
        64,
        ["blocks.1.0.bn1", "blocks.2.1.conv_dw", "blocks.4"],
    ),
    "vit": (lambda: _lively(timm.create_model("test_vit", img_size=64, num_classes=5)), 64, ["patch_embed.proj", "blocks.1"]),
}


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


MARKS = {"_compile_kwargs", "_is_torch_compile"}  # which torch.compile puts on a model; one test looks at them


def _state(model: nn.Module) -> list[object]:
    """All state that could stay changed, so that two states can be compared bit by bit."""
    found: list[object] = []
    for name, module in model.named_modules():
        hooks = dict(module._forward_hooks), dict(module._forward_pre_hooks)
        found += [name, sorted(vars(module).keys() - MARKS), module.training, hooks]
        for own, tensor in (module._parameters | module._buffers).items():
            found.append((own, id(tensor), type(tensor)))
            if tensor is not None:
                found.append((tensor.data_ptr(), tensor.stride(), tensor.dtype, tensor.requires_grad, hash(_bytes(tensor))))
    return found


def _differ(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """The largest difference of any number; percentages count as shares."""
    assert first.drop(columns=[*NUMBERS, "increase_in_confidence"]).equals(
        second.drop(columns=[*NUMBERS, "increase_in_confidence"])
    )
    shares = [frame[NUMBERS].assign(average_drop=frame["average_drop"] / 100) for frame in (first, second)]
    return float((shares[0] - shares[1]).abs().max().max())


# The runner.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fast", "compile"),
    [
        ("small", True, True),
        ("small", False, True),
        *((name, fast, False) for name in ("small", "mobilenet") for fast in (True, False)),
    ],
)
def test_the_output_is_the_models_own(name, fast, compile, eager):
    make, size, _ = MODELS[name]
    model, images = make(), torch.rand(4, 3, size, size)
    with torch.no_grad():
        expected = model(images)
    before = _state(model)
    with sped_up(model, images, [], BatchLimit(4), fast=fast, compile=compile) as runner:
        assert runner.compiled == compile
        assert (runner.folded > 0) == fast
        assert (_state(model) == before) != fast
        for count in (1, 3, 4):
            found = runner.output(images[:count])[:count]
            torch.testing.assert_close(found, expected[:count], atol=1e-5, rtol=1e-4)
        assert not found.requires_grad
    assert _state(model) == before
    assert model(images).equal(expected)


def test_bf16_is_near_and_not_the_same():
    model, images = _small(), torch.rand(IMAGES)
    with torch.no_grad(), sped_up(model, images, [], BatchLimit(4), precision="bf16") as runner:
        found = runner.output(images)
    assert found.dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(found.float(), model(images), atol=0.1, rtol=0.05)
    assert not found.float().equal(model(images))


@pytest.mark.parametrize("fast", [True, False])
def test_memory_is_laid_out_with_channels_last_meanwhile(fast):
    model, images = _small(), torch.rand(IMAGES)
    own = {name: (parameter.stride(), parameter.data_ptr()) for name, parameter in model.named_parameters()}
    with sped_up(model, images, [], BatchLimit(4), fast=fast) as runner:
        assert model.second.weight.is_contiguous(memory_format=torch.channels_last) == fast
        assert runner.lay_out(images).is_contiguous(memory_format=torch.channels_last) == fast
    assert own == {name: (parameter.stride(), parameter.data_ptr()) for name, parameter in model.named_parameters()}


def test_a_model_without_convolutions_is_left_as_it_is():
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval(), torch.rand(2, 3, 4, 4)
    before = _state(model)
    with sped_up(model, images, [], BatchLimit(2)) as runner:
        assert _state(model) == before
        assert runner == Runner(model, model, model, BatchLimit(2))


def test_a_folding_that_changes_the_logits_is_taken_back():
    class Sly(Small):
        """A module that reads its own weights, which observing functions cannot show."""

        def forward(self, x):
            return super().forward(x) + self.first.weight.sum() + (self.first.bias is None)

    model, images = Sly().eval(), torch.rand(IMAGES)
    before = _state(model)
    with sped_up(model, images, [], BatchLimit(4)) as runner:
        assert runner.folded == 0
        assert model.first.bias is None
        torch.testing.assert_close(runner.output(images), model(images))
    assert _state(model) == before


# Compiled models.


def test_a_compiled_model_sees_full_batches_alone(eager, monkeypatch):
    seen: list[tuple[int, ...]] = []

    def backend(graph, inputs):
        seen.extend(tuple(i.shape) for i in inputs if isinstance(i, Tensor) and i.ndim == 4 and i.shape[1:] == (3, 16, 16))

        def run(*arguments):
            calls.append(next(a.shape[0] for a in arguments if isinstance(a, Tensor) and a.shape[1:] == (3, 16, 16)))
            return graph(*arguments)

        return run

    calls: list[int] = []
    _compile_with(monkeypatch, backend)
    images = torch.rand(7, 3, 16, 16)
    scores = score(_small(), [images[:5], images[5:]], "second", ["gradcam", "eigencam"], compile=True)
    assert scores.manifest["speed"]["compiled"]
    assert seen == [(5, 3, 16, 16)]  # compiled once
    # One trial; then the images themselves and two maps of each, which are 15 images, and 6, which are filled up to 10.
    assert calls == [5] + [5] * 3 + [5] * 2


def test_compiling_leaves_nothing_on_the_model(eager):
    model = _small()
    before = sorted(vars(model))
    assert score(model, [torch.rand(IMAGES)], "second", compile=True).manifest["speed"]["compiled"]
    assert sorted(vars(model)) == before


@pytest.mark.slow
@pytest.mark.parametrize("message", ["boom", "\nboom", ""])
def test_a_model_that_does_not_compile_runs_as_it_is(message, monkeypatch):
    def backend(graph, inputs):
        raise ValueError(message)

    _compile_with(monkeypatch, backend)
    model, images = _small(), torch.rand(IMAGES)
    before = _state(model)
    with pytest.warns(RuntimeWarning, match=r"^the model runs without torch\.compile, which failed: \w+.*") as caught:
        found = score(model, [images], "second", compile=True)
    assert len(caught) == 1
    assert found.manifest["speed"]["compiled"] is False
    assert found.rows.equals(score(model, [images], "second").rows)
    assert _state(model) == before


def test_the_warning_says_why_the_model_did_not_compile(monkeypatch):
    def backend(graph, inputs):
        raise ValueError("there is no kernel for this")

    _compile_with(monkeypatch, backend)
    with pytest.warns(RuntimeWarning, match="there is no kernel for this"):
        score(_small(), [torch.rand(IMAGES)], "second", compile=True)


def test_a_compiled_model_with_other_logits_is_not_used(monkeypatch):
    def backend(graph, inputs):
        return lambda *arguments: tuple(1.01 * tensor for tensor in graph(*arguments))

    _compile_with(monkeypatch, backend)
    model, images = _small(), torch.rand(IMAGES)
    message = r"^the model runs without torch\.compile, which failed: its logits differ$"
    with pytest.warns(RuntimeWarning, match=message):
        found = score(model, [images], "second", compile=True)
    assert found.rows.equals(score(model, [images], "second").rows)


def everywhere(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """A map of ones, which masks nothing unless it is normalised."""
    return torch.ones_like(images[:, 0])


@pytest.mark.slow
def test_inductor_gives_the_same_rows():
    torch._dynamo.reset()
    model, images = _small(), torch.rand(6, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of torch's own
        found = score(model, [images[:4], images[4:]], "second", ["gradcam", "layercam"], compile=True)
        ones = score(model, [images[:4], images[4:]], methods=everywhere, protocol=UNMASKED, compile=True).rows
    assert found.manifest["speed"]["compiled"]
    assert _differ(found.rows, score(model, [images[:4], images[4:]], "second", ["gradcam", "layercam"]).rows) < 1e-4
    assert ones["masked_confidence"].equals(ones["confidence"])


# The same arithmetic on both sides: an image that nothing was masked of has exactly the confidence of the image.


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    ("name", "fast", "compile"),
    [("small", True, True), ("resnet18", True, False), ("vit", True, False), ("vit", False, False)],
)
def test_a_map_of_ones_changes_nothing_at_all(name, fast, compile, precision, batch_size, eager):
    make, size, _ = MODELS[name]
    images = torch.rand(5, 3, size, size)
    loader = [images[:4], images[4:]]
    options = {"fast": fast, "compile": compile, "precision": precision, "batch_size": batch_size}
    scores = score(make(), loader, methods=everywhere, protocol=UNMASKED, **options)
    assert scores.rows["masked_confidence"].equals(scores.rows["confidence"])
    assert scores.rows["confidence"].between(0.1, 0.95).all()
    assert scores.summary()["average_drop"].tolist() == [0]
    assert scores.summary()["increase_in_confidence"].tolist() == [0]


# Rows.


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_rows_are_those_of_the_model_as_it_is(name):
    make, size, layers = MODELS[name]
    model, images = make(), torch.randn(5, 3, size, size)
    before = _state(model)
    runs = [
        score(model, [images[:3], images[3:]], layers, ["gradcam", "layercam", "eigencam"], fast=fast) for fast in (True, False)
    ]
    assert _differ(*(run.rows for run in runs)) < 1e-4
    assert runs[0].rows["confidence"].between(0.05, 0.95).all()
    assert (runs[0].rows["confidence"] - runs[0].rows["masked_confidence"]).abs().max() > 1e-3
    assert _state(model) == before
    assert runs[0].manifest["speed"]["channels_last"] != runs[1].manifest["speed"]["channels_last"]


@pytest.mark.slow
def test_rows_of_the_built_in_model_on_scenes_are_those_of_the_model_as_it_is():
    pictures = scenes(Preprocessing(128, 128, mean=(0.5,) * 3, std=(0.5,) * 3))
    images = torch.stack([pictures[index]["image"] for index in range(6)])
    runs = [
        score(fpn_scenes(), [images], ["fpn[*]", "backbone.layer2"], ["gradcam", "hirescam"], fast=fast)
        for fast in (True, False)
    ]
    assert _differ(*(run.rows for run in runs)) < 1e-4
    assert runs[0].manifest["speed"]["folded_batch_norms"] == 15


class Shown:
    """An explainer that stores its context."""

    name = "shown"
    needs_layer = True
    needs_gradient = True

    def __init__(self):
        self.contexts = []

    def __call__(self, context):
        self.contexts.append(context)
        return (context.activation * context.gradient).sum(dim=1)


def _shown(model: nn.Module, images: Tensor, layers: list[str], **options: object) -> Shown:
    shown = Shown()
    score(model, [images], layers, shown, **options)
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_probed_layers_show_what_they_show_in_the_model_as_it_is(name):
    make, size, layers = MODELS[name]
    model, images = make(), torch.randn(3, 3, size, size)
    fast, slow = (_shown(model, images, layers, fast=fast).contexts for fast in (True, False))
    for found, expected in zip(fast, slow, strict=True):
        assert found.layer == expected.layer
        for ours, theirs in ((found.activation, expected.activation), (found.gradient, expected.gradient)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


class Separable(Small):
    """A block that ends in a convolution, whose output goes into a BatchNorm outside the block."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 1))

    def forward(self, x):
        x = self.first_norm(self.first(x)).relu()
        return self.head(self.second_norm(self.block(x)).relu().mean((2, 3)))


def test_a_block_that_ends_in_a_convolution_shows_what_it_shows_in_the_model_as_it_is():
    model, images = _lively(Separable(), 16), torch.randn(IMAGES)
    fast, slow = (_shown(model, images, ["block"], fast=fast).contexts[0] for fast in (True, False))
    torch.testing.assert_close(fast.activation, slow.activation, rtol=1e-3, atol=1e-5)


def test_a_function_that_looks_inside_the_model_sees_it_as_it_is():
    def inside(model, images, targets):
        seen = []
        handle = model.second.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        model(images)
        handle.remove()
        return seen[0].relu().sum(dim=1)

    model, images = _small(), torch.randn(IMAGES)
    assert _differ(*(score(model, [images], methods=inside, fast=fast).rows for fast in (True, False))) < 1e-4


def test_a_function_that_reads_weights_finds_the_models_own():
    model, images = _small(), torch.randn(IMAGES)
    own = model.first.weight.clone()
    read = []

    def weights(model, images, targets):
        read.append((model.first.weight.clone(), model.first.bias))
        return images.mean(dim=1)

    score(model, [images], methods=weights)
    assert read[0][0].equal(own)
    assert read[0][1] is None


# Models that take their memory as it lies.


class Viewing(nn.Module):
    """As in many tutorials: the output of a convolution is flattened with view."""

    def __init__(self):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6 * 7 * 7, 4)

    def forward(self, x):
        x = functional.max_pool2d(self.convolution(x).relu(), 2)
        return self.head(x.view(-1, 6 * 7 * 7))


class Placed(nn.Module):
    """A parameter with four axes that belongs to no convolution."""

    def __init__(self):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 4)
        self.places = nn.Parameter(torch.randn(1, 4, 4, 6))

    def forward(self, x):
        tokens = self.convolution(x).flatten(2).transpose(1, 2) + self.places.view(1, 16, 6)
        return self.head(tokens.mean(dim=1))


@pytest.mark.parametrize("make", [Viewing, Placed])
def test_models_that_view_their_tensors_work_as_they_did(make):
    model, images = make(), torch.randn(IMAGES)
    before = _state(model)
    runs = [score(model, [images], "convolution", fast=fast).rows for fast in (False, True)]
    assert _differ(*runs) < 1e-4
    assert _state(model) == before


def test_functions_that_view_images_and_explainers_that_view_activations_work_as_they_did():
    class Viewer(Shown):
        def __call__(self, context):
            n, channels = context.activation.shape[:2]
            return context.activation.view(n, channels, -1).mean(dim=1).view(n, *context.activation.shape[2:])

    def viewing(model, images, targets):
        return images.view(len(images), -1).view(images.shape).mean(dim=1)

    runs = [score(_same_small(), [torch.ones(IMAGES)], "second", [viewing, Viewer()], fast=fast).rows for fast in (False, True)]
    assert _differ(*runs) < 1e-4


def _same_small() -> nn.Module:
    torch.manual_seed(3)
    return _small()


def test_a_model_for_one_size_of_batch_works_as_it_did():
    class Fixed(Small):
        def forward(self, x):
            assert len(x) == 4
            return super().forward(x)

    runs = [score(Fixed(), [torch.rand(IMAGES)], methods=everywhere, fast=fast) for fast in (False, True)]
    assert [len(run.rows) for run in runs] == [4, 4]


# bf16.


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", ["small", "vit"])
def test_bf16_gives_nearly_the_same_rows(name, fast):
    make, size, layers = MODELS[name]
    model, images = make(), torch.randn(4, 3, size, size)
    half, full = (score(model, [images], layers, target=1, precision=p, fast=fast).rows for p in ("bf16", "float32"))
    assert half["status"].eq("ok").all()
    assert half[NUMBERS].notna().all(axis=None)
    assert (half["confidence"] - full["confidence"]).abs().max() < 0.02
    assert (half["masked_confidence"] - full["masked_confidence"]).abs().max() < 0.05
    assert not half["confidence"].equals(full["confidence"])


def test_explainers_are_given_float32_whatever_passes_compute_in():
    model, images = _small(), torch.randn(IMAGES)
    for context in _shown(model, images, ["first", "second_norm"], precision="bf16").contexts:
        for tensor in (context.images, context.activation, context.gradient, context.logits):
            assert tensor.dtype == torch.float32
            assert tensor.isfinite().all()


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("bf-16", "no precision 'bf-16'; did you mean 'bf16' or 'fp16'? known: float32, bf16, fp16, tf32, auto"),
        ("float16", "no precision 'float16'; did you mean 'float32'? known: float32, bf16, fp16, tf32, auto"),
        ("half", "no precision 'half'; known: float32, bf16, fp16, tf32, auto"),
        (None, "no precision None; known: float32, bf16, fp16, tf32, auto"),
        (torch.bfloat16, "no precision torch.bfloat16; known: float32, bf16, fp16, tf32, auto"),
    ],
)
def test_an_unknown_precision_is_refused(precision, message):
    model = _small()
    before = _state(model)
    with pytest.raises(UsageError) as caught:
        score(model, [torch.rand(IMAGES)], "second", precision=precision)
    assert str(caught.value) == message
    assert _state(model) == before


# What a run says of itself.


def test_the_manifest_says_how_passes_were_made(eager):
    images = torch.rand(IMAGES)
    plain = {"batch_size": 4, "folded_batch_norms": 0, "channels_last": False, "compiled": False, "autocast": None}
    quick = plain | {"folded_batch_norms": 2, "channels_last": True}
    assert score(_small(), [images], "second_norm", fast=False).manifest["speed"] == plain
    assert score(_small(), [images], "second_norm").manifest["speed"] == quick
    assert score(_small(), [images], "second").manifest["speed"] == quick | {"folded_batch_norms": 1}
    options = {"precision": "bf16", "compile": True, "batch_size": 7}
    changed = {"batch_size": 7, "compiled": True, "autocast": "bfloat16"}
    assert score(_small(), [images], "second_norm", **options).manifest["speed"] == quick | changed
    assert score(_small(), [images], "second_norm", **options).manifest["run"]["precision"] == "bf16"


def test_a_folder_of_another_precision_is_refused_and_speed_alone_makes_no_other_run(tmp_path, eager):
    torch.manual_seed(1)
    model, images = _small(), torch.rand(IMAGES)
    score(model, [images], "second", output_dir=tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["run"]["precision"] == "float32"
    before = _state(model)
    with pytest.raises(OutputError, match="""holds another run: its precision is "float32", this run's is "bf16";"""):
        score(model, [images], "second", output_dir=tmp_path, precision="bf16")
    assert _state(model) == before
    for options in ({"fast": False}, {"compile": True}, {"batch_size": 2}):
        score(model, [images], "second", output_dir=tmp_path, **options)


# Errors.


class _Stop(Exception):
    """An error that only these tests raise."""


def _stopping(*arguments: object) -> Tensor:
    raise _Stop


def _breaking_loader(images: Tensor):
    yield images
    raise _Stop


def _interrupted(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    ("loader", "options"),
    [
        (lambda images: [images], {"methods": _stopping}),
        (lambda images: [images], {"methods": _interrupted}),
        (_breaking_loader, {"methods": "gradcam"}),
        (lambda images: [images], {"methods": "gradcam", "target": _stopping}),
        (lambda images: [images, images[:, :2]], {"methods": "gradcam"}),
        (lambda images: [images], {"methods": "gradcam", "protocol": Protocol(fill="black", space="pixels")}),
    ],
)
def test_the_model_comes_back_after_an_error(loader, options, compile, eager):
    model, images = _small().train(), torch.rand(IMAGES)
    before = _state(model)
    with pytest.raises((_Stop, KeyboardInterrupt, RuntimeError, UsageError)):
        score(model, loader(images), "second_norm", compile=compile, **options)
    assert _state(model) == before
    assert not torch.is_autocast_enabled("cpu")


def test_the_model_comes_back_whichever_pass_fails():
    for last in range(1, 9):
        model = _small()
        passes = []

        def stop(module, inputs, passes=passes, last=last):
            passes.append(len(inputs[0]))
            if len(passes) == last:
                raise _Stop

        handle = model.register_forward_pre_hook(stop)
        before = _state(model)
        images = torch.rand(IMAGES)
        try:
            score(model, [images, images + 1], "second_norm", ["gradcam", "eigencam"])
        except _Stop:
            assert len(passes) >= last  # a first pass that fails is tried with other numbers of images
        assert _state(model) == before
        handle.remove()


def test_an_output_that_is_not_understood_is_the_error_that_is_heard_of(eager):
    class Two(Small):
        def forward(self, x):
            return {"a": super().forward(x), "b": x}

    model, images = Two(), torch.rand(IMAGES)
    for options in ({}, {"compile": True}, {"fast": False}):
        with pytest.raises(ModelError, match=r"has no logits"):
            score(model, [images], "second_norm", **options)
        assert len(score(model, [images], "second_norm", output="a", **options).rows) == 4


# Loaders.


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("batch_size", [None, 3, 64])
@pytest.mark.parametrize("cuts", [[7], [4, 3], [1, 6], [1] * 7])
def test_rows_do_not_depend_on_how_images_are_batched(cuts, batch_size, compile, eager):
    torch.manual_seed(2)
    model, images = _small(), torch.randn(7, 3, 16, 16)
    expected = score(model, [images], ["second", "second_norm"], ["gradcam", "eigencam"], fast=False).rows
    found = score(
        model, images.split(cuts), ["second", "second_norm"], ["gradcam", "eigencam"], batch_size=batch_size, compile=compile
    ).rows
    order = ["image_id", "layer", "method"]
    first, second = (frame.sort_values(order, ignore_index=True) for frame in (found, expected))
    assert _differ(first, second) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
def test_images_of_different_sizes_in_different_batches(compile, eager):
    torch.manual_seed(2)
    model, loader = _small(), [torch.randn(3, 3, 16, 16), torch.randn(2, 3, 20, 24), torch.randn(3, 3, 16, 16) - 1]
    runs = [score(model, loader, "second", fast=fast, compile=compile and fast).rows for fast in (True, False)]
    assert len(runs[0]) == 8
    assert _differ(*runs) < 1e-4


@pytest.mark.parametrize("compile", [False, True])
def test_one_image(compile, eager):
    model, image = _small(), torch.randn(1, 3, 16, 16)
    assert _differ(*(score(model, [image], "second", fast=f, compile=compile and f).rows for f in (True, False))) < 1e-4


# Models of all kinds.


class Wrapped(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Small()

    def forward(self, x):
        return self.net(x)


class Counting(Small):
    """A model that counts its passes and stores its own state."""

    def __init__(self):
        super().__init__()
        self.passes = 0
        self.cache: dict[tuple[int, ...], Tensor] = {}
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        self.seen += 1
        if x.shape[2:] not in self.cache:
            self.cache[x.shape[2:]] = torch.linspace(0, 1, x.shape[3])
        return super().forward(x + self.cache[x.shape[2:]])


class Shared(Small):
    """One convolution that runs twice, and two names for one norm."""

    def __init__(self):
        super().__init__()
        self.middle, self.middle_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.again = self.middle
        self.alias = self.middle_norm

    def forward(self, x):
        x = self.first_norm(self.first(x)).relu()
        x = self.alias(self.again(self.middle(x).relu()))
        return self.head(self.second_norm(self.second(x)).relu().mean((2, 3)))


class Choosing(Small):
    """A model whose control flow depends on the images."""

    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x) * (1 if x.shape[0] > 1 else 1.0)


class Parallel(Small):
    def __init__(self):
        super().__init__()
        self.inside = nn.DataParallel(Small())

    def forward(self, x):
        return self.inside(x)


def _hooked() -> nn.Module:
    model = Small()
    model.first.register_forward_hook(lambda module, inputs, output: output * 2 + 1)
    model.second_norm.register_forward_hook(lambda module, inputs, output: output - inputs[0].mean())
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.1,))
    return model


def _double() -> nn.Module:
    return Small().double()


KINDS = {
    "lightning": (Wrapped, "net.second_norm"),
    "counting and caching": (Counting, "second_norm"),
    "shared": (Shared, "second_norm"),
    "choosing": (Choosing, "second_norm"),
    "parallel": (Parallel, "inside.module.second_norm"),
    "hooks that change outputs": (_hooked, "second_norm"),
    "double": (_double, "second_norm"),
    "synchronised norms": (lambda: nn.SyncBatchNorm.convert_sync_batchnorm(Small()), "second"),
}


@pytest.mark.parametrize("name", KINDS)
def test_models_of_all_kinds_give_the_same_rows(name):
    make, layer = KINDS[name]
    torch.manual_seed(4)
    model = make()
    images = torch.randn(5, 3, 16, 16, dtype=next(model.parameters()).dtype)
    runs = [score(model, [images[:3], images[3:]], layer, ["gradcam", "eigencam"], fast=fast).rows for fast in (False, True)]
    assert _differ(*runs) < 1e-4


def test_a_model_without_parameters(eager):
    class Bare(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    for options in ({}, {"fast": False}, {"compile": True}, {"precision": "bf16"}):
        scores = score(Bare(), [torch.rand(IMAGES)], methods="center", **options)
        assert len(scores.rows) == 4
        assert not scores.manifest["speed"]["channels_last"]


@pytest.mark.slow
def test_a_model_that_the_caller_compiled():
    torch._dynamo.reset()
    torch.manual_seed(4)
    own, images = _small(), torch.rand(IMAGES)
    before = _state(own)
    runs = [score(model, [images], methods="center").rows for model in (torch.compile(own, backend="eager"), own)]
    assert _differ(*runs) < 1e-4
    assert _state(own) == before


@pytest.mark.slow
def test_a_model_that_the_caller_compiled_in_place():
    torch._dynamo.reset()
    torch.manual_seed(4)
    model, images = _small(), torch.rand(IMAGES)
    expected = score(model, [images], methods="center").rows
    model.compile(backend="eager")
    assert _differ(score(model, [images], methods="center").rows, expected) < 1e-4


def test_a_traced_model():
    model, images = _small(), torch.rand(IMAGES)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.trace", category=FutureWarning)
        traced = torch.jit.trace(model, images)
    assert _differ(*(score(m, [images], methods="center").rows for m in (traced, model))) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision(dtype):
    model, images = _small().to(dtype), torch.rand(IMAGES, dtype=dtype)
    scores = score(model, [images], "second_norm")
    assert scores.rows["status"].isin(["ok", "constant_map"]).all()
    assert scores.manifest["speed"]["folded_batch_norms"] == 0
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_modes_of_the_caller_change_nothing(mode):
    model, images = _small(), torch.randn(IMAGES)
    expected = score(model, [images], "second_norm").rows
    with mode():
        assert score(model, [images], "second_norm").rows.equals(expected)


def test_two_runs_of_two_models_at_once():
    models, images = [_small() for _ in range(4)], torch.randn(IMAGES)
    expected = [score(model, [images], "second").rows for model in models]
    before = [_state(model) for model in models]
    found: dict[int, list[pd.DataFrame]] = {index: [] for index in range(4)}

    def go(index: int) -> None:
        for _ in range(5):
            found[index].append(score(models[index], [images], "second").rows)

    threads = [threading.Thread(target=go, args=(index,)) for index in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(rows) == 5 for rows in found.values())
    assert all(rows.equals(expected[index]) for index, runs in found.items() for rows in runs)
    assert [_state(model) for model in models] == before


def test_a_run_inside_a_run_of_the_same_model():
    def inside(model, images, targets):
        score(model, [images], "second_norm")
        return next(iter(xaieval.explain(model, images, ["second_norm"]).values()))

    model, images = _small(), torch.randn(IMAGES)
    before = _state(model)
    assert _differ(*(score(model, [images], methods=inside, fast=fast).rows for fast in (True, False))) < 1e-4
    assert _state(model) == before


def test_the_same_run_gives_the_same_bits():
    model, images = _small(), torch.randn(IMAGES)
    for options in ({}, {"precision": "bf16"}):
        first, second = (score(model, [images], "second", **options).rows for _ in range(2))
        assert first.equals(second)


def test_the_model_is_put_back_before_it_goes_home():
    model, images = _small(), torch.rand(IMAGES)
    before = _state(model)
    with borrow(model, "cpu"), sped_up(model, images, [], BatchLimit(4)):
        pass
    assert _state(model) == before
