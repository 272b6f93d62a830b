"""Models and process are restored: by each function that borrows a model, after errors, and with several threads.

XAIEVAL_EXAMPLES=20 in the environment tries twenty times as many examples; with --hypothesis-profile=default they are other
ones each time.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

import xaieval
from tests.borrowing import all_unchanged, differences, state_of, version
from xaieval.errors import ModelError, RunError, UsageError
from xaieval.explainers.perturbation import RISE
from xaieval.inference.borrowing import borrow
from xaieval.metrics import Metric
from xaieval.probe.hooks import probe

EXAMPLES = int(os.environ.get("XAIEVAL_EXAMPLES", "1"))
SETTINGS: dict[str, Any] = {  # an example takes long, so that what fails is shown as it is
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
    "phases": [Phase.explicit, Phase.generate],
}
METHODS = ("gradcam", "score-cam", RISE(n_masks=4), "captum:GradientShap", "pytorch-grad-cam:GradCAM", "random")
IMAGES = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(5))


class Network(nn.Module):
    """A network with a bit of everything that could stay changed; a ReLU and a convolution (with two names) run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.again = self.second
        self.spectral = parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))
        # torch before 2.12 itself writes the same statistics again in each pass of evaluation.
        tracks = torch.__version__ >= "2.12"
        self.norms = nn.Sequential(nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=tracks))
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.act(self.norm(self.first(images)))
        maps = self.act(self.second(maps) + self.again(maps))
        return self.head(self.drop(self.norms(self.spectral(maps)).mean((2, 3))))


def quiet_hook(*_: Any) -> None:
    """A user's hook that changes nothing."""


HOOKS: tuple[Callable[[nn.Module], Any], ...] = (
    lambda module: module.register_forward_hook(quiet_hook),
    lambda module: module.register_forward_hook(lambda *_, **__: None, with_kwargs=True, always_call=True),
    lambda module: module.register_forward_pre_hook(quiet_hook),
    lambda module: module.register_state_dict_pre_hook(quiet_hook),
    lambda module: module.register_full_backward_pre_hook(quiet_hook),
)


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """Networks in mixed modes, partly frozen, with gradients, hooks, and memory in either order."""
    torch.manual_seed(draw(st.integers(0, 3)))
    with torch.inference_mode(draw(st.sampled_from([False, False, False, True]))):
        model = Network()
    if draw(st.booleans()):
        model = model.to(memory_format=torch.channels_last)
    if draw(st.booleans()):
        model = model.double()
    lot = random.Random(draw(st.integers(0, 1000)))
    for module in model.modules():
        module.training = lot.random() < 0.6
        if lot.random() < 0.3:
            # torch itself has no backward hooks where something works in place on what the module gives.
            lot.choice(HOOKS if module is model.head else HOOKS[:-1])(module)
    for parameter in model.parameters():
        if version(parameter) is not None:
            parameter.requires_grad_(lot.random() < 0.5)
            parameter.grad = torch.randn_like(parameter) if lot.random() < 0.5 else None
            if parameter.requires_grad and lot.random() < 0.3:
                parameter.register_hook(quiet_hook)
    return model


def loader_for(model: nn.Module) -> DataLoader[Any]:
    """A loader that shuffles with global random numbers."""
    images = IMAGES.to(next(model.parameters()).dtype)
    return DataLoader(TensorDataset(images, torch.tensor([0, 1, 2])), batch_size=2, shuffle=True)


def images_for(model: nn.Module) -> Tensor:
    return IMAGES.to(next(model.parameters()).dtype)


def score(model: nn.Module, loader: Any = None, layers: Any = ("norm",), methods: Any = METHODS, **options: Any) -> Any:
    loader = loader_for(model) if loader is None else loader
    return xaieval.score(model, loader, layers, methods, progress=False, **options)


USES: dict[str, Callable[[nn.Module], Any]] = {
    "score": score,
    "score, auto": lambda model: score(model, layers="auto", methods="layercam"),
    "score, controls": lambda model: score(model, methods="gradcam", controls=True, metrics=["coherency"]),
    "score, stop": lambda model: score(model, layers=["norm", "norms"], methods="gradcam", stop="best"),
    "score, deterministic": lambda model: score(model, methods=("gradcam", "captum:Saliency"), deterministic=True),
    "score, elsewhere": lambda model: score(model, methods="gradcam", device="cpu:0"),
    "explain": lambda model: xaieval.explain(model, images_for(model), ["norm", "spectral"], "gradcam++"),
    "explain, captum": lambda model: xaieval.explain(model, images_for(model), method="captum:GuidedBackprop"),
    "probe": lambda model: probe(model, images_for(model), ["act#0", "norms"], lambda logits: logits[:, 0]),
    "list_layers": lambda model: xaieval.list_layers(model, images_for(model)),
    "sanity_check": lambda model: xaieval.sanity_check(
        model, [images_for(model)], ["norm"], ["gradcam"], modules=["head", "second"], progress=False
    ),
}


WRITING = {"sanity_check"}  # the same values again, so that a tensor's version is another one


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_loaded() -> None:
    """Import libraries that add warning filters and environment variables when they are imported."""
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # which old releases of torch say when they look for a GPU
    score(Network())


@settings(max_examples=10 * EXAMPLES, **SETTINGS)
@given(models(), st.sampled_from(sorted(USES)))
def test_whatever_borrows_a_model_gives_it_back_as_it_was(model, use):
    with all_unchanged(model, versions=use not in WRITING):
        USES[use](model)


@pytest.mark.parametrize("use", USES)
def test_every_use_gives_back_a_network_in_training(use):
    model = Network()
    model(IMAGES).sum().backward()
    with all_unchanged(model, versions=use not in WRITING):
        USES[use](model)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_callers_modes_stay(mode):
    model = Network()
    with mode(), all_unchanged(model):
        score(model, methods="gradcam")


def test_the_callers_switches_stay():
    model = Network()
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(2)
    try:
        with all_unchanged(model):
            score(model, methods="gradcam", deterministic=True)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before[0])
        torch.backends.cudnn.benchmark = before[1]


def test_random_numbers_that_another_thread_draws_meanwhile_are_drawn_once_more():
    def drawing(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        random.random(), np.random.random()  # noqa: NPY002  # these are the ones that come back
        return torch.rand(len(images), 4, 4)

    model = Network()
    with all_unchanged(model):
        score(model, methods=drawing)


# ---- models that are not like others


class Counting(nn.Module):
    """Updates statistics in every pass, in any mode: in place, and with a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("table", torch.zeros(0))
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        self.passes += 1
        self.mean = 0.9 * self.mean + 0.1 * maps.detach().mean((0, 2, 3))
        self.table = torch.arange(images.shape[2])
        return self.head(maps.mean((2, 3)))


def test_statistics_of_a_module_that_ignores_its_mode_are_put_back():
    model = Counting().eval()
    kept = model.mean
    score(model, layers=["conv"])
    assert (float(model.passes), model.mean is kept, model.mean.tolist()) == (0, True, [0] * 4)
    # What has another shape is a table made for these images, of which the model may have notes elsewhere.
    assert len(model.table) == IMAGES.shape[2]


class Merging(nn.Module):
    """Merges a correction into the weight for evaluation and removes it for training, as adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.correction = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(4, 3, 3, 3) / 3)
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += -self.correction.data if mode else self.correction.data
            self.merged = not mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight if self.merged else self.weight + self.correction
        return nn.functional.conv2d(images, weight)


class Caching(nn.Module):
    """Caches a value computed from a parameter until the next training, like the attention biases of LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.kept = nn.Parameter(torch.randn(4, 1, 1)), {}

    def train(self, mode: bool = True) -> Caching:
        super().train(mode)
        if mode:
            self.kept.clear()
        return self

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return images + self.bias
        return images + self.kept.setdefault("bias", self.bias * 1)


@pytest.mark.parametrize("training", [True, False])
def test_a_module_with_a_train_of_its_own_works_without_a_call_of_it_and_its_caches_are_put_back(training):
    model = nn.Sequential(Merging(), Caching(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).train(training)
    expected = copy.deepcopy(model).eval()(IMAGES).argmax(dim=1).tolist()
    with all_unchanged(model, versions=False) if training else nullcontext():
        rows = score(model, [IMAGES], ["0", "1"], "gradcam").rows
    assert rows["predicted"].tolist() == [label for label in expected for _ in range(2)]
    assert model[0].merged is not training
    assert ("bias" in model[1].kept) is not training


def test_a_frozen_part_that_stays_in_evaluation_is_not_asked_to_train():
    model = nn.Sequential(Merging(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model[0].eval()
    with all_unchanged(model):
        score(model, [IMAGES], ["0"], "gradcam")


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")  # which is what is tried
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_normalised_weights_of_the_old_kind_come_back_but_for_what_each_pass_computes(norm):
    model = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    before, values = state_of(model), model[0].weight.detach().clone()
    score(model, layers=["0"], methods="gradcam")
    assert differences(before, state_of(model)).keys() <= {"0|weight"}
    assert torch.allclose(model[0].weight, values) or norm is nn.utils.spectral_norm  # which has had no pass before


def test_a_model_of_inference_tensors_can_be_explained_and_keeps_them():
    with torch.inference_mode():
        model = Network().eval()
        expected = model(IMAGES)
    with all_unchanged(model):
        maps = xaieval.explain(model, IMAGES, ["norm"])
        seen = probe(model, IMAGES, ["norm"], lambda logits: logits[:, 0])
    assert torch.equal(seen.output, expected)
    assert (maps["norm"].amax((1, 2)) > 0).any()


@pytest.mark.parametrize("use", [*(use for use in USES if use.startswith(("score, a", "l", "p"))), "sanity_check"])
def test_a_lazy_model_is_one_clear_error(use):
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ModelError, match=r"^'0.weight' of the model has no shape before its first pass; run the model on a"):
        USES[use](_like_network(model))


def _like_network(model: nn.Module) -> nn.Module:
    model.double()  # which lazy parameters bear
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # such models are about still
def test_a_model_of_torchscript_is_one_clear_error():
    model = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), IMAGES)
    with pytest.raises(ModelError, match=r"^the layers of a TorchScript model cannot be probed; give the nn.Module"):
        score(model, [IMAGES], ["0"], "gradcam")
    assert len(score(lambda images: model(images), [IMAGES], (), "occlusion").rows) == 3


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_scripted_part_is_no_reason_to_refuse_a_model():
    plain = nn.Sequential(Network(), nn.Sequential(nn.Linear(5, 5), nn.Hardswish())).eval()
    model = copy.deepcopy(plain)
    model[1] = torch.jit.script(model[1])
    methods = ("gradcam", "captum:Saliency", "captum:DeepLift", "pytorch-grad-cam:GradCAM")
    rows = [score(net, [IMAGES], ["0.norm"], methods).rows["masked_confidence"] for net in (plain, model)]
    assert np.allclose(*rows, atol=1e-5)
    xaieval.sanity_check(model, [IMAGES], ["0.norm"], progress=False)
    with pytest.raises(
        ModelError, match=r"^layer '1.0' is in a part of TorchScript, and the layers of a TorchScript model cannot"
    ):
        score(model, [IMAGES], ["1.0"])


SPARSE = {
    "coo": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch: their support is in beta state
@pytest.mark.parametrize("layout", SPARSE)
def test_sparse_buffers_are_restored(layout):
    class Sparse(Network):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", SPARSE[layout](torch.eye(3)))

        def forward(self, images: Tensor) -> Tensor:
            self.table.values().mul_(2) if layout != "coo" else self.table._values().mul_(2)
            return super().forward(images)

    model = Sparse().eval()
    table = model.table
    score(model, methods="gradcam")
    assert model.table is table
    assert torch.equal(table.to_dense(), torch.eye(3))


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_a_sparse_parameter_is_randomised_in_its_places():
    class Sparse(Network):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Parameter(torch.eye(5).to_sparse())

        def forward(self, images: Tensor) -> Tensor:
            return torch.sparse.mm(self.mix, super().forward(images).T).T

    model = Sparse()
    xaieval.sanity_check(model, [IMAGES], ["norm"], modules=["head"], progress=False)
    assert torch.equal(model.mix.detach().to_dense(), torch.eye(5))


def test_a_model_on_the_meta_device_is_one_clear_error():
    with pytest.raises(ModelError, match=r"^'first.weight' of the model is on the meta device and has no values; load the"):
        score(Network().to("meta"), [IMAGES])


def test_a_model_that_fsdp_has_sharded_is_one_clear_error():
    class DTensor(Tensor):  # as FSDP's, which need a process group
        pass

    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.register_buffer("shard", torch.ones(2).as_subclass(DTensor))
    with pytest.raises(
        ModelError, match="'shard' of the model is a DTensor, as FSDP makes them; give a model with whole weights"
    ):
        xaieval.list_layers(model, IMAGES)


SHARDED = """
import os, torch, xaieval
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", GLOO_SOCKET_IFNAME="lo")
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
images = torch.rand(2, 3, 8, 8)
for run in (lambda: xaieval.score(model, [images], "0"), lambda: xaieval.explain(model, images, "0")):
    try:
        run()
    except xaieval.XaievalError as error:
        print(error)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_model_that_is_really_sharded_is_refused_and_the_process_lives():
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'0.weight' of the model is a DTensor, as FSDP makes them; give a model with whole weights") == 2


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_buffers_are_restored_and_in_the_fingerprint(layout):
    def nested(last: float) -> Network:
        torch.manual_seed(0)
        model = Network()
        model.register_buffer(
            "ragged", torch.nested.nested_tensor([torch.ones(2), torch.tensor([1.0, 2, last])], layout=layout)
        )
        return model

    model = nested(3.0)
    prints = [score(one, [IMAGES]).manifest["model"]["fingerprint"] for one in (model, nested(3.0), nested(4.0))]
    assert prints[0] == prints[1] != prints[2]
    with borrow(model):
        model.ragged.mul_(2)
    assert model.ragged.unbind()[1].tolist() == [1, 2, 3]


def test_a_model_that_is_borrowed_may_be_borrowed_once_more_in_its_thread():
    def inside(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return xaieval.explain(model, images, ["spectral"])["spectral"]

    model = Network()
    with all_unchanged(model):
        rows = score(model, methods=inside).rows
    assert (rows["status"] == "ok").all()


# ---- errors


class Passing(nn.Module):
    """The identity, with a place where the forward or backward pass can fail."""

    def __init__(self) -> None:
        super().__init__()
        self.happens: Callable[[], None] = quiet_hook
        self.happens_backwards: Callable[[], None] = quiet_hook

    def forward(self, maps: Tensor) -> Tensor:
        self.happens()
        if maps.requires_grad:
            maps = maps * 1
            maps.register_hook(lambda _: self.happens_backwards())
        return maps


class Explosive(Network):
    """The network with a place where it can fail."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Passing()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.place(images) if images.requires_grad else self.place(images.clone()))


class Broken(Exception):
    """The error of an injected failure."""


KINDS = (Broken, RuntimeError, KeyboardInterrupt, SystemExit, torch.OutOfMemoryError)


class Fuse:
    """Raises from its n-th call on."""

    def __init__(self, kind: type[BaseException], at: int = 1) -> None:
        self.kind, self.at, self.count = kind, at, 0

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.count += 1
        if self.count >= self.at:
            raise self.kind("made to fail")


def _untidy(fuse: Fuse) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """A user's method that leaves everything changed when it fails."""

    def untidy(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        model.train()
        model.zero_grad()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        for register in HOOKS:
            register(model.second)
        model(images).sum().backward()
        torch.rand(3), random.random()
        fuse()
        return images.mean(dim=1)

    return untidy


def _breaking_loader(fuse: Fuse) -> Iterator[Tensor]:
    for image in IMAGES:
        fuse()
        yield image[None]


def _mean(fuse: Fuse) -> Metric:
    def mean(maps: Tensor) -> Tensor:
        fuse()
        return maps.mean((1, 2))

    return Metric("mean", mean, None, needs=("maps",))


def _at_place(fuse: Fuse, name: str = "happens") -> nn.Module:
    model = Explosive()
    setattr(model.place, name, fuse)
    return model


def _hooked(fuse: Fuse, register: str) -> nn.Module:
    model = Explosive()
    getattr(model.second, register)(fuse)
    return model


def _forward(fuse: Fuse) -> Callable[[nn.Module, Tensor], Tensor]:
    def forward(model: nn.Module, images: Tensor) -> Tensor:
        output = model(images)
        fuse()
        return output

    return forward


def _removed_under_way(folder: Path) -> Iterator[Tensor]:
    """Batches; before the last one the folder of the run becomes a file."""
    yield IMAGES[:2]
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("in the way")
    yield IMAGES[2:]


# Where something fails: from a fuse to a model and what is done with it.
PLACES: dict[str, Callable[[Fuse], tuple[nn.Module, Callable[[nn.Module], Any]]]] = {
    "the model": lambda fuse: (_at_place(fuse), score),
    "the model, captum": lambda fuse: (
        _at_place(fuse),
        lambda m: score(m, methods=("captum:GuidedBackprop", "captum:DeepLift")),
    ),
    "the model, auto": lambda fuse: (_at_place(fuse), lambda m: score(m, layers="auto", methods="gradcam")),
    "the model, robustness": lambda fuse: (_at_place(fuse), lambda m: score(m, methods="gradcam", metrics=["max_sensitivity"])),
    "the model, deterministic": lambda fuse: (_at_place(fuse), lambda m: score(m, methods="gradcam", deterministic=True)),
    "the model, sanity": lambda fuse: (_at_place(fuse), USES["sanity_check"]),
    "the model, explain": lambda fuse: (_at_place(fuse), USES["explain"]),
    "the model, probe": lambda fuse: (_at_place(fuse), USES["probe"]),
    "the model, list_layers": lambda fuse: (_at_place(fuse), USES["list_layers"]),
    "the backward pass": lambda fuse: (_at_place(fuse, "happens_backwards"), lambda m: score(m, layers=["place"])),
    "a hook": lambda fuse: (_hooked(fuse, "register_forward_hook"), score),
    "a hook before": lambda fuse: (_hooked(fuse, "register_forward_pre_hook"), score),
    "a function that runs the model": lambda fuse: (
        Explosive(),
        lambda m: score(m, methods="gradcam", forward=_forward(fuse)),
    ),
    "the method": lambda fuse: (Explosive(), lambda m: score(m, methods=("gradcam", _untidy(fuse)))),
    "the metric": lambda fuse: (Explosive(), lambda m: score(m, metrics=["average_drop", _mean(fuse)])),
    "the target": lambda fuse: (Explosive(), lambda m: score(m, methods="gradcam", target=lambda *_: fuse() or [0])),
    "the score of a probe": lambda fuse: (
        Explosive(),
        lambda m: probe(m, IMAGES, ["norm"], lambda logits: fuse() or logits[:, 0]),
    ),
    "the loader": lambda fuse: (Explosive(), lambda m: score(m, _breaking_loader(fuse))),
}


@pytest.mark.parametrize("place", PLACES)
def test_models_come_back_where_something_fails(place):
    for kind in (Broken, KeyboardInterrupt):
        model, use = PLACES[place](Fuse(kind))
        with all_unchanged(model, versions=False), pytest.raises(kind):
            use(model)


@settings(max_examples=10 * EXAMPLES, **SETTINGS)
@given(st.sampled_from(sorted(PLACES)), st.integers(1, 30), st.sampled_from(KINDS))
def test_models_come_back_wherever_something_fails(place, at, kind):
    model, use = PLACES[place](Fuse(kind, at))
    # If a single image does not fit in memory either, a RunError says so.
    ours = (UsageError, RunError) if kind is torch.OutOfMemoryError else (UsageError,)
    with all_unchanged(model, versions=False), suppress(kind, *ours):
        use(model)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_models_come_back_where_there_is_no_such_device(device):
    model = Network()
    with all_unchanged(model), pytest.raises(UsageError, match=f"^device '{device}' cannot be used: "):
        score(model, device=device)


def test_models_come_back_where_rows_cannot_be_written(tmp_path):
    model, folder = Network(), tmp_path / "run"
    with all_unchanged(model), pytest.raises(RunError, match="cannot write into"):
        score(model, _removed_under_way(folder), methods="gradcam", output_dir=folder)


# ---- threads


def _rows(model: nn.Module, methods: Any) -> pd.DataFrame:
    images = [{"image": IMAGES[at][None], "id": str(at)} for at in range(3)]
    return score(model, images, methods=methods).rows


@pytest.mark.parametrize("methods", [METHODS, ("captum:GuidedBackprop", "captum:GradientShap")])
def test_two_models_in_two_threads_get_the_rows_that_each_gets_alone(methods):
    pair = [Network(), Network()]
    alone = [_rows(model, methods) for model in pair]
    begin = threading.Barrier(2)

    def work(model: nn.Module) -> pd.DataFrame:
        begin.wait(60)
        return pd.concat([_rows(model, methods) for _ in range(EXAMPLES)])

    with all_unchanged(*pair), ThreadPoolExecutor(2) as pool:
        together = list(pool.map(work, pair))
    for rows, expected in zip(together, alone, strict=True):
        pd.testing.assert_frame_equal(rows, pd.concat([expected] * EXAMPLES), check_exact=True)


def test_deterministic_runs_in_two_threads_leave_the_switches_as_they_were():
    pair = [Network(), Network()]
    with all_unchanged(*pair), ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda model: [score(model, methods="gradcam", deterministic=True) for _ in range(3)], pair))


@pytest.mark.parametrize("shared", ["model", "module", "parameter"])
def test_a_model_that_another_thread_has_is_refused_and_the_other_one_goes_on(shared):
    model = Explosive()
    other = model
    if shared == "module":
        other = nn.Sequential(model.first, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if shared == "parameter":
        other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        other[0].weight = model.first.weight
    expected = _rows(model, "gradcam")
    under_way, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        under_way.set()
        assert go_on.wait(60)

    model.place.happens = wait
    before = state_of(model)
    with ThreadPoolExecutor(1) as pool:
        rows = pool.submit(_rows, model, "gradcam")
        try:
            assert under_way.wait(60)
            with pytest.raises(ModelError, match=r"^another thread is using this model, or one that shares parts with it"):
                score(other, layers=["0"] if other is not model else ["norm"], methods="gradcam")
        finally:
            go_on.set()
        pd.testing.assert_frame_equal(rows.result(60), expected, check_exact=True)
    assert not differences(before, state_of(model))
    score(other, layers=["0"] if other is not model else ["norm"], methods="gradcam")  # it is free again


def test_a_thread_that_failed_does_not_keep_the_model():
    model = Explosive()

    def fail() -> None:
        with suppress(Broken), borrow(model):
            raise Broken

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    with borrow(model):
        pass
