"""BatchNorm folding: the model computes the same function, only allowed pairs are folded, and folding is undone."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from types import MethodType

import pytest
import timm
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from xaieval.inference.batchnorm_folding import find_foldable_pairs, folded
from xaieval.inference.borrowing import borrow
from xaieval.models.builtin import fpn_scenes
from xaieval.probe.hooks import locate, run

NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d


def _lively(model: nn.Module) -> nn.Module:
    """Random statistics and weights for BatchNorms, so that folding must use each of them."""
    for norm in model.modules():
        if isinstance(norm, NORMS) and norm.running_var is not None:
            nn.init.uniform_(norm.running_var, 0.1, 4)
            nn.init.normal_(norm.running_mean)
        if isinstance(norm, NORMS) and norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            norm.weight.data[::4] *= -1
            nn.init.normal_(norm.bias)
    return model.eval()


def _logits(output: object) -> torch.Tensor:
    """The output of the model as one tensor."""
    return torch.cat([level.flatten() for level in output.values()]) if isinstance(output, dict) else output


def _assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert expected.isfinite().all()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def _state(model: nn.Module) -> list[object]:
    """Everything that folding could leave behind, so that two states can be compared bit by bit."""
    found: list[object] = []
    for name, module in model.named_modules():
        found += [name, sorted(vars(module)), module.training, module.forward.__func__, dict(module._forward_hooks)]
        tensors = module._parameters | module._buffers
        for own, tensor in tensors.items():
            found.append((own, id(tensor), type(tensor)))
            if tensor is not None:
                found.append((tensor.data_ptr(), tensor.stride(), tensor.dtype, tensor.requires_grad, hash(_bytes(tensor))))
    return found


def _check(model: nn.Module, images: torch.Tensor, count: int, probed: tuple[str, ...] = (), tolerance: float = 1e-5) -> None:
    """Check the number of pairs, the output, the replaced forward of each folded BatchNorm, and that everything is restored."""
    with torch.no_grad():
        expected = _logits(model(images))
    before = _state(model)
    pairs = find_foldable_pairs(model, images[:1], probed)
    assert len(pairs) == count
    assert _state(model) == before
    with torch.no_grad(), folded(pairs):
        assert all(pair.convolution.bias is not None and "forward" in vars(pair.norm) for pair in pairs)
        _assert_same(_logits(model(images)), expected, tolerance)
    assert _state(model) == before
    with torch.no_grad():
        assert _logits(model(images)).equal(expected)


# Real architectures.


def _same_padding() -> nn.Module:
    return timm.create_model("mobilenetv2_050", pad_type="same", num_classes=5)


def _googlenet() -> nn.Module:
    return torchvision.models.googlenet(num_classes=5, init_weights=False, aux_logits=False)


REAL = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 20),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=5), 52),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5), 56),
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=5), 59),
    "googlenet": (_googlenet, 57),
    "mobilenetv2 with same padding": (_same_padding, 52),
    "timm efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=5), 13),
    "timm resnet": (lambda: timm.create_model("test_resnet", num_classes=5), 15),
    "timm byobnet": (lambda: timm.create_model("test_byobnet", num_classes=5), 14),
    "timm xception": (lambda: timm.create_model("xception41", num_classes=5), 84),
    "pyramid": (fpn_scenes, 15),
    "pyramid with BatchNorm": (
        lambda: resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d),
        20,
    ),
    "pyramid with frozen BatchNorm": (lambda: resnet_fpn_backbone(backbone_name="resnet18", weights=None), 0),
    "vision transformer": (lambda: timm.create_model("test_vit", img_size=64, num_classes=5), 0),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=5), 0),
}


def _adjacent(model: nn.Module, images: torch.Tensor) -> int:
    """Count the BatchNorms whose input is the output of a convolution: by modules, where folding observes functions."""
    given: dict[int, torch.Tensor] = {}
    count = 0

    def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        given[id(output)] = output

    def look(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        nonlocal count
        count += id(inputs[0]) in given

    handles = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, CONVOLUTIONS)]
    handles += [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, NORMS)]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return count


@pytest.mark.parametrize("name", REAL)
def test_real_networks_are_the_same_function_with_every_pair_folded(name):
    make, count = REAL[name]
    model, images = _lively(make()), torch.rand(2, 3, 64, 64)
    assert _adjacent(model, images) == count
    _check(model, images, count)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_as_many_pairs_are_found_as_torch_fx_fuses(name):
    model = _lively(REAL[name][0]())
    left = sum(isinstance(m, NORMS) for m in fuse(model).modules())
    pairs = find_foldable_pairs(model, torch.rand(1, 3, 64, 64))
    assert len(pairs) == sum(isinstance(m, NORMS) for m in model.modules()) - left


def test_the_pairs_are_convolutions_with_their_own_norms():
    model = _lively(torchvision.models.resnet18())
    names = {module: name for name, module in model.named_modules()}
    found = {names[pair.convolution]: names[pair.norm] for pair in find_foldable_pairs(model, torch.rand(1, 3, 64, 64))}
    assert found["conv1"] == "bn1"
    assert found["layer2.0.conv2"] == "layer2.0.bn2"
    assert found["layer2.0.downsample.0"] == "layer2.0.downsample.1"
    assert all(norm == path.replace("conv", "bn").replace("downsample.0", "downsample.1") for path, norm in found.items())


def test_it_comes_back_after_an_error_inside():
    model = _lively(torchvision.models.resnet18())
    before, pairs = _state(model), find_foldable_pairs(model, torch.rand(1, 3, 64, 64))
    with pytest.raises(KeyboardInterrupt), folded(pairs):
        raise KeyboardInterrupt
    assert _state(model) == before


def test_it_comes_back_after_an_error_on_the_way_in():
    model = _lively(torchvision.models.resnet18())
    before, pairs = _state(model), find_foldable_pairs(model, torch.rand(1, 3, 64, 64))
    pairs[7].norm.running_var = pairs[7].norm.running_var[:3]  # which cannot be folded
    with pytest.raises(RuntimeError), folded(pairs):
        pytest.fail("this one cannot be folded")
    pairs[7].norm.running_var = pairs[7].norm.running_mean.clone()
    assert all("forward" not in vars(pair.norm) and pair.convolution.bias is None for pair in pairs)
    after = _state(model)
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 2  # the variance that this test put there


def test_an_error_of_the_model_while_pairs_are_looked_for_leaves_nothing_behind():
    model = _lively(torchvision.models.resnet18())
    before = _state(model)
    with pytest.raises(RuntimeError, match="channels"):
        find_foldable_pairs(model, torch.rand(1, 4, 64, 64))
    assert _state(model) == before
    assert len(find_foldable_pairs(model, torch.rand(1, 3, 64, 64))) == 20


def test_gradients_at_activations_are_those_of_the_model_as_it_is():
    model, images = _lively(torchvision.models.resnet18(num_classes=5)), torch.rand(2, 3, 64, 64)
    paths = ["bn1", "layer1", "layer2.0.conv1", "layer2.0.bn2", "layer3.0.relu#1", "layer4"]
    with borrow(model):
        layers = locate(model, images, paths)
        expected = run(model, images, layers)
        expected_gradients = expected.gradients(expected.output[:, 1])
        pairs = find_foldable_pairs(model, images, [item.layer.path for item in layers])
        assert len(pairs) == 19
        with folded(pairs):
            seen = run(model, images, layers)
            gradients = seen.gradients(seen.output[:, 1])
    for path in paths:
        _assert_same(seen.activations[path], expected.activations[path])
        _assert_same(gradients[path], expected_gradients[path])


# What may be folded: one pair each, and the same output.


class Net(nn.Module):
    """A convolution, a BatchNorm, and a head; what happens between them is up to `between`."""

    def __init__(self, convolution=None, norm=None, between=None):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, bias=False) if convolution is None else convolution
        self.norm = nn.BatchNorm2d(8) if norm is None else norm
        self.other = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        self.between = between or (lambda net, x: net.norm(net.convolution(x)))

    def forward(self, x):
        return self.head(self.between(self, x).flatten(2).mean(dim=2))


IMAGES = (2, 3, 12, 12)
FOLDED = {
    "plain": lambda: Net(),
    "bias": lambda: Net(nn.Conv2d(3, 8, 3)),
    "stride, padding, dilation": lambda: Net(nn.Conv2d(3, 8, 3, stride=2, padding=3, dilation=2)),
    "padding by name": lambda: Net(nn.Conv2d(3, 8, 3, padding="same")),
    "reflecting": lambda: Net(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")),
    "circular": lambda: Net(nn.Conv2d(3, 8, 3, padding=2, padding_mode="circular")),
    "groups": lambda: Net(nn.Conv2d(3, 9, 3, groups=3), nn.BatchNorm2d(9), lambda n, x: n.norm(n.convolution(x))[:, :8]),
    "no affine": lambda: Net(norm=nn.BatchNorm2d(8, affine=False)),
    "large eps": lambda: Net(norm=nn.BatchNorm2d(8, eps=0.5)),
    "SyncBatchNorm": lambda: Net(norm=nn.SyncBatchNorm(8)),
    "timm's norm": lambda: Net(norm=BatchNormAct2d(8)),
    "timm's norm, SiLU": lambda: Net(norm=BatchNormAct2d(8, act_layer=nn.SiLU, inplace=False)),
    "timm's norm without activation": lambda: Net(norm=BatchNormAct2d(8, apply_act=False)),
    "identity between": lambda: Net(between=lambda n, x: n.norm(nn.Identity()(n.convolution(x)))),
    "in place afterwards": lambda: Net(between=lambda n, x: n.norm(n.convolution(x)).relu_().add_(1)),
    "used twice afterwards": lambda: Net(between=lambda n, x: (y := n.norm(n.convolution(x))) + y.sigmoid()),
    "sizes are no use": lambda: Net(between=lambda n, x: n.norm(y := n.convolution(x)) * y.size(2) * y.dim()),
    "a shape is no use": lambda: Net(between=lambda n, x: n.norm(y := n.convolution(x)) * y.shape[2]),
    "another BatchNorm after it": lambda: Net(between=lambda n, x: n.other(n.norm(n.convolution(x)))),
    "hook on the norm": lambda: _hooked_norm(),
    "hook before the convolution": lambda: _hooked_before(),
}


def _hooked_norm() -> Net:
    net = Net()
    net.norm.register_forward_hook(lambda module, inputs, output: 2 * output + 1)
    return net


def _hooked_before() -> Net:
    net = Net()
    net.convolution.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0] + 1,))
    return net


@pytest.mark.parametrize("name", FOLDED)
def test_one_pair_is_folded(name):
    _check(_lively(FOLDED[name]()), torch.randn(IMAGES), 1)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_of_any_dimension_are_folded_group_by_group(dims, groups):
    convolution = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1](4, 8, 3, groups=groups)
    model = _lively(Net(convolution, [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims - 1](8)))
    _check(model, torch.randn(2, 4, *[6] * dims), 1)


def test_double_precision_is_folded_in_double_precision():
    model = _lively(torchvision.models.resnet18(num_classes=5)).double()
    _check(model, torch.randn(2, 3, 64, 64, dtype=torch.float64), 20, tolerance=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_left_alone(dtype):
    _check(_lively(Net()).to(dtype), torch.randn(IMAGES, dtype=dtype), 0)


def test_extreme_statistics_are_folded_exactly():
    model = Net().eval()
    model.norm.running_var[:] = torch.logspace(-8, 8, 8)
    model.norm.running_mean[:] = torch.linspace(-100, 100, 8)
    model.norm.weight.data[3] = 0
    _check(model, torch.randn(IMAGES), 1, tolerance=1e-4)


def test_weights_with_channels_last_come_back_with_channels_last():
    model = _lively(torchvision.models.resnet18(num_classes=5)).to(memory_format=torch.channels_last)
    _check(model, torch.rand(2, 3, 64, 64), 20)


def test_the_trained_scales_of_zero_are_no_trouble():
    model = _lively(torchvision.models.resnet18(num_classes=5, zero_init_residual=True))
    for module in model.modules():
        if isinstance(module, torchvision.models.resnet.BasicBlock):
            nn.init.zeros_(module.bn2.weight)
    _check(model, torch.rand(2, 3, 64, 64), 20)


# What must be left alone: no pair, though a BatchNorm follows a convolution.


class Scaled(nn.BatchNorm2d):
    """A forward other than BatchNorm's own."""

    def forward(self, x):
        return 3 * super().forward(x)


class Kept(nn.BatchNorm2d):
    """The same forward in an unknown class."""


def _net_with(change) -> Net:
    net = Net()
    change(net)
    return net


def _patched(net: Net) -> None:
    net.norm.forward = MethodType(lambda norm, x: 3 * nn.BatchNorm2d.forward(norm, x), net.norm)


def _tied(net: Net) -> None:
    net.twin = nn.Conv2d(3, 8, 3, bias=False)
    net.twin.weight = net.convolution.weight
    net.between = lambda n, x: n.norm(n.convolution(x)) + n.twin(x)


def _tied_statistics(net: Net) -> None:
    net.second = nn.Conv2d(3, 8, 3)
    net.other.running_mean, net.other.running_var = net.norm.running_mean, net.norm.running_var
    net.between = lambda n, x: n.norm(n.convolution(x)) + n.other(n.second(x))


def _written(n: Net, x: torch.Tensor) -> torch.Tensor:
    given = n.convolution(x)
    buffer = torch.zeros_like(x[:, :1, :10, :10]).repeat(1, 8, 1, 1)
    buffer[:, :4] = given[:, :4]
    return n.norm(given) + buffer


def _put(n: Net, x: torch.Tensor) -> torch.Tensor:
    given = n.convolution(x)
    buffer = torch.zeros(len(x), 8, 10, 10)
    buffer[:] = given
    return n.norm(given) + buffer


def _row_by_row(n: Net, x: torch.Tensor) -> torch.Tensor:
    given = n.convolution(x)
    return n.norm(given) + torch.stack(list(iter(given)))


def _by_numpy(n: Net, x: torch.Tensor) -> torch.Tensor:
    given = n.convolution(x)
    return n.norm(given) + torch.from_numpy(given.numpy() + 1)


def _two_branches(n: Net, x: torch.Tensor) -> torch.Tensor:
    given = n.convolution(x)
    return n.norm(given) + n.other(given)


def _twice(n: Net, x: torch.Tensor) -> torch.Tensor:
    return n.norm(n.convolution(x)) + n.other(n.convolution(x.flip(3)))


LEFT_ALONE = {
    "skip": lambda: Net(between=lambda n, x: n.norm(y := n.convolution(x)) + y),
    "skip before": lambda: Net(between=lambda n, x: (y := n.convolution(x)).sigmoid() * n.norm(y)),
    "in place between": lambda: Net(between=lambda n, x: n.norm(n.convolution(x).relu_())),
    "in place between, functional": lambda: Net(between=lambda n, x: n.norm(functional.relu(n.convolution(x), inplace=True))),
    "in place by an operator": lambda: Net(between=lambda n, x: n.norm(n.convolution(x).__iadd__(1))),
    "in place after the norm": lambda: Net(between=lambda n, x: (y := n.convolution(x), z := n.norm(y), y.add_(z))[2]),
    "a view of it": lambda: Net(between=lambda n, x: n.norm(y := n.convolution(x)) + y.detach()),
    "in a list": lambda: Net(between=lambda n, x: torch.stack([n.norm(y := n.convolution(x)), y]).sum(dim=0)),
    "by keyword": lambda: Net(between=lambda n, x: torch.add(n.norm(y := n.convolution(x)), other=y)),
    "part of it is written elsewhere": lambda: Net(between=_written),
    "written elsewhere": lambda: Net(between=_put),
    "row by row": lambda: Net(between=_row_by_row),
    "by numpy": lambda: Net(between=_by_numpy),
    "two norms": lambda: Net(between=_two_branches),
    "convolution twice": lambda: Net(between=_twice),
    "norm twice": lambda: Net(
        between=lambda n, x: n.norm(n.convolution(x)) + n.norm(x.mean(1, keepdim=True).repeat(1, 8, 1, 1))[:, :, 1:-1, 1:-1]
    ),
    "weight norm": lambda: Net(parametrizations.weight_norm(nn.Conv2d(3, 8, 3))),
    "spectral norm": lambda: Net(parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))),
    "pruned": lambda: Net(prune.l1_unstructured(nn.Conv2d(3, 8, 3), "weight", amount=0.3)),
    "pruned bias": lambda: Net(prune.l1_unstructured(nn.Conv2d(3, 8, 3), "bias", amount=0.3)),
    "standardised weights": lambda: Net(StdConv2d(3, 8, 3, padding=0)),
    "transposed": lambda: Net(nn.ConvTranspose2d(3, 8, 3)),
    "linear": lambda: Net(nn.Conv2d(3, 8, 1), nn.BatchNorm1d(8), lambda n, x: n.norm(n.convolution(x).mean((2, 3)))[..., None]),
    "hook on the convolution": lambda: _net_with(lambda n: n.convolution.register_forward_hook(lambda m, i, o: None)),
    "hook that changes": lambda: _net_with(lambda n: n.convolution.register_forward_hook(lambda m, i, o: o * 2)),
    "hook before the norm": lambda: _net_with(lambda n: n.norm.register_forward_pre_hook(lambda m, i: (i[0] * 2,))),
    "no statistics": lambda: Net(norm=nn.BatchNorm2d(8, track_running_stats=False)),
    "in training mode": lambda: _net_with(lambda n: setattr(n, "norm", _Training(8))),
    "batch_norm without statistics": lambda: Net(between=lambda n, x: functional.instance_norm(n.convolution(x))),
    "GroupNorm": lambda: Net(norm=nn.GroupNorm(2, 8)),
    "InstanceNorm": lambda: Net(norm=nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    "subclass with another forward": lambda: Net(norm=Scaled(8)),
    "unknown subclass": lambda: Net(norm=Kept(8)),
    "patched norm": lambda: _net_with(_patched),
    "tied weights": lambda: _net_with(_tied),
    "tied statistics": lambda: _net_with(_tied_statistics),
}


class _Training(nn.BatchNorm2d):
    """Stays in training mode, as some models force theirs to."""

    def __init__(self, *arguments):
        super().__init__(*arguments, momentum=0.0)

    def train(self, mode=True):
        return super().train(True)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_nothing_is_folded(name):
    model = _lively(LEFT_ALONE[name]())
    with torch.no_grad():
        found = find_foldable_pairs(model, torch.randn(IMAGES))
    assert found == []


def test_a_norm_that_is_in_training_mode_when_it_runs_is_left_alone():
    model = _lively(Net(norm=nn.BatchNorm2d(8, momentum=0.0)))
    model.norm.train()
    assert find_foldable_pairs(model, torch.randn(IMAGES)) == []


def test_only_the_pair_that_is_used_elsewhere_is_left_alone():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.first_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.second, self.second_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            first = self.first(x)
            second = self.second_norm(self.second(self.first_norm(first).relu()))
            return self.head((second + first).mean((2, 3)))

    model = _lively(Two())
    images = torch.randn(IMAGES)
    assert [pair.norm for pair in find_foldable_pairs(model, images)] == [model.second_norm]
    _check(model, images, 1)


def test_probed_convolutions_are_left_alone():
    model, images = _lively(torchvision.models.resnet18(num_classes=5)), torch.rand(2, 3, 64, 64)
    _check(model, images, 18, probed=("conv1", "layer3.0.downsample.0", "layer4"))
    _check(model, images, 20, probed=("bn1", "layer3.0.bn2"))


class Separable(nn.Module):
    """As in Xception: the module whose output is a convolution's is not the convolution."""

    def __init__(self):
        super().__init__()
        self.separable = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 8, 1))
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(self.separable(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("path", ["separable", "separable.1"])
def test_a_probed_block_that_ends_in_a_convolution_shows_what_the_convolution_gives(path):
    model, images = _lively(Separable()), torch.randn(IMAGES)
    with borrow(model):
        layers = locate(model, images, [path])
        expected = run(model, images, layers).activations[path]
        with folded(find_foldable_pairs(model, images, [path])):
            _assert_same(run(model, images, layers).activations[path], expected)


def test_what_the_model_gives_besides_is_left_alone():
    class Two(Separable):
        def forward(self, x):
            features = self.separable(x)
            return {"logits": self.head(self.norm(features).relu().mean((2, 3))), "features": features}

    model, images = _lively(Two()), torch.randn(IMAGES)
    expected = model(images)["features"]
    with folded(find_foldable_pairs(model, images)):
        _assert_same(model(images)["features"], expected)


def test_a_network_without_convolutions_or_norms_is_not_even_run():
    def never(x):
        pytest.fail("there is nothing to look for")

    for model in (nn.Linear(2, 2), nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3)), nn.Identity()):
        model.forward = never
        assert find_foldable_pairs(model, torch.rand(1, 3, 8, 8)) == []


def test_a_convolution_that_the_model_holds_under_two_names_is_folded_once():
    model = _lively(Net())
    model.alias, model.norm_alias = model.convolution, model.norm
    _check(model, torch.randn(IMAGES), 1)


def test_the_modes_of_other_people_see_the_pass_as_it_is():
    seen: list[str] = []

    class Listening(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    with Listening():
        assert len(find_foldable_pairs(_lively(Net()), torch.randn(IMAGES))) == 1
    assert {"conv2d", "batch_norm", "linear"} <= set(seen)


def test_folding_again_inside_is_undone_from_the_inside_out():
    model, images = _lively(torchvision.models.resnet18(num_classes=5)), torch.rand(2, 3, 64, 64)
    before, pairs = _state(model), find_foldable_pairs(model, images)
    with torch.no_grad(), folded(pairs):
        expected, within = model(images), _state(model)
        assert find_foldable_pairs(model, images) == []
        with folded(find_foldable_pairs(model, images)):
            assert model(images).equal(expected)
        assert _state(model) == within
    assert _state(model) == before


def test_a_copy_that_is_made_meanwhile_is_folded_too_and_stands_alone():
    model, images = _lively(torchvision.models.resnet18(num_classes=5)), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        with folded(find_foldable_pairs(model, images)):
            twin = copy.deepcopy(model)
        _assert_same(twin(images), expected)
        assert model(images).equal(expected)


# Random networks.

STEPS = st.sampled_from(
    ["pair", "pair without bias", "depthwise", "convolution", "norm", "relu", "relu_", "skip", "branch", "twin"]
)


class Recipe(nn.Module):
    """A network after a list of steps, all of them on the same number of channels."""

    def __init__(self, steps: list[str], channels: int = 4):
        super().__init__()
        self.steps = steps
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        parts = OrderedDict()
        for index, step in enumerate(steps):
            groups = channels if step == "depthwise" else 1
            bias = step != "pair without bias"
            parts[f"c{index}"] = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=bias)
            parts[f"n{index}"] = nn.BatchNorm2d(channels)
        self.parts = nn.ModuleDict(parts)
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        x = self.stem(x)
        earlier = x
        for index, step in enumerate(self.steps):
            convolution, norm = self.parts[f"c{index}"], self.parts[f"n{index}"]
            x = {
                "pair": lambda x, c=convolution, n=norm: n(c(x)),
                "pair without bias": lambda x, c=convolution, n=norm: n(c(x)),
                "depthwise": lambda x, c=convolution, n=norm: n(c(x)),
                "convolution": lambda x, c=convolution: c(x),
                "norm": lambda x, n=norm: n(x),
                "relu": lambda x: functional.relu(x),
                "relu_": lambda x, e=earlier: functional.relu(x + 0, inplace=True) if x is e else functional.relu_(x),
                "skip": lambda x, e=earlier: x + e,
                "branch": lambda x, c=convolution, n=norm: n(y := c(x)) + torch.tanh(y),
                "twin": lambda x, c=convolution, n=norm: torch.maximum(n(c(x)), c(x)),
            }[step](x)
            if index % 2:
                earlier = x
        return self.head(x.mean(dim=(2, 3)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=1, max_size=8), seed=st.integers(0, 2**16))
def test_any_network_is_the_same_function_when_it_is_folded(steps, seed):
    torch.manual_seed(seed)
    model = _lively(Recipe(steps)).double()
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    before = _state(model)
    with torch.no_grad():
        expected = model(images)
        pairs = find_foldable_pairs(model, images)
        with folded(pairs):
            _assert_same(model(images), expected, 1e-11)
    assert _state(model) == before
    # Each plain pair is found unless its input or its output is looked at, which these never are.
    assert len(pairs) >= sum(step in ("pair", "pair without bias", "depthwise") for step in steps)
    assert all(math.isfinite(float(value)) for value in expected.flatten())


@settings(max_examples=30, deadline=None)
@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    affine=st.booleans(),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    seed=st.integers(0, 2**16),
)
def test_any_convolution_is_folded_exactly(dims, groups, kernel, stride, bias, affine, mode, seed):
    torch.manual_seed(seed)
    shape = {
        "kernel_size": kernel,
        "stride": stride,
        "padding": kernel // 2,
        "padding_mode": mode,
        "groups": groups,
        "bias": bias,
    }
    convolution = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1](4, 8, **shape)
    norm = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims - 1](8, affine=affine)
    model = _lively(Net(convolution, norm)).double()
    _check(model, torch.randn(2, 4, *[5] * dims, dtype=torch.float64), 1, tolerance=1e-12)
