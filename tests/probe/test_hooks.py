"""Activations and gradients compared with a slow reference, and the model restored afterwards."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple

import pytest
import timm
import torch
import torchvision
from torch import nn

import xaieval
from xaieval.errors import AddressError, DataError, ModelError
from xaieval.inference.borrowing import borrow
from xaieval.probe.hooks import list_layers, locate, probe, run

Pair = namedtuple("Pair", ["left", "right"])


def _first(output):
    return output[:, 0]


def _reference(model, images, path, score, call=0):
    """The output of one call of a module and the score's gradient there, from a pass with gradients everywhere."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    tensors, values = [], []

    def keep(_, __, output):
        output.retain_grad()
        tensors.append(output)
        values.append(output.detach().clone())

    model.get_submodule(path).register_forward_hook(keep)
    score(model(images)).sum().backward()
    return values[call], tensors[call].grad


def _assert_same(found, expected):
    """Check equality to 1e-5 of the largest value: gradients of random networks are tiny."""
    largest = expected.abs().max()
    assert found.shape == expected.shape
    assert not found.requires_grad
    assert largest > 0
    assert (found - expected).abs().max() <= 1e-5 * largest


def _plain(tensor):
    return tensor


def _turned(tensor):
    return tensor.permute(0, 3, 1, 2)


def _grid_after_class_token(tensor):
    side = round((tensor.shape[1] - 1) ** 0.5)
    return tensor[:, 1:].transpose(1, 2).reshape(len(tensor), -1, side, side)


def _swin():
    sizes = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 2)}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **sizes)


REAL = {
    "resnet18": (
        lambda: torchvision.models.resnet18(num_classes=3),
        {"conv1": _plain, "bn1": _plain, "layer1.0.relu#1": _plain, "layer2.0.bn2": _plain, "layer3": _plain, "layer4": _plain},
    ),
    "convnext": (
        lambda: timm.create_model("test_convnext", num_classes=3),
        {
            "stem": _plain,
            "stages.0.blocks.0.conv_dw": _plain,
            "stages.1": _plain,
            "stages.3.blocks.0": _plain,
            "stages": _plain,
        },
    ),
    "vit": (
        lambda: timm.create_model("test_vit", img_size=64, num_classes=3),
        {"patch_embed.proj": _plain, "blocks.0": _grid_after_class_token, "blocks.3.norm1": _grid_after_class_token},
    ),
    "swin": (
        _swin,
        {"patch_embed.proj": _plain, "layers.0": _turned, "layers.1.blocks.1": _turned, "layers.1": _turned, "norm": _turned},
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_activations_and_gradients_are_those_of_a_slow_reference(name):
    make, layers = REAL[name]
    model, images = make(), torch.rand(2, 3, 64, 64)
    seen = probe(model, images, layers, score=_first)
    assert list(seen.activations) == list(layers)
    assert seen.gradients.keys() == layers.keys()
    _assert_same(seen.output.detach(), model.eval()(images).detach())
    for address, to_maps in layers.items():
        path, _, call = address.partition("#")
        activation, gradient = _reference(model, images, path, _first, int(call or 0))
        _assert_same(seen.activations[address], to_maps(activation))
        _assert_same(seen.gradients[address], to_maps(gradient))


def test_levels_and_repeated_heads_of_a_detector_are_those_that_its_modules_gave():
    options = {"weights": None, "weights_backbone": None, "min_size": 64, "max_size": 64, "rpn_post_nms_top_n_test": 10}
    model, images = torchvision.models.detection.fasterrcnn_resnet50_fpn(**options), torch.rand(2, 3, 64, 64)
    seen = probe(model, images, ["backbone.fpn[pool]", "backbone.fpn[*]", "rpn.head.conv#2", "rpn.head.conv#*"])
    levels, calls = [], []
    model.backbone.fpn.register_forward_hook(lambda _, __, output: levels.append({k: v.clone() for k, v in output.items()}))
    model.rpn.head.conv.register_forward_hook(lambda _, __, output: calls.append(output.clone()))
    with torch.no_grad():
        model.eval()(images)
    expected = {f"backbone.fpn[{key}]": level for key, level in levels[0].items()}
    expected |= {f"rpn.head.conv#{call}": output for call, output in enumerate(calls)}
    assert list(seen.activations) == [
        "backbone.fpn[pool]",
        *[f"backbone.fpn[{level}]" for level in range(4)],
        "rpn.head.conv#2",
        *[f"rpn.head.conv#{call}" for call in (0, 1, 3, 4)],
    ]
    assert seen.activations.keys() == expected.keys()
    assert seen.gradients == {}
    for address, activation in seen.activations.items():
        _assert_same(activation, expected[address])


def test_nested_layers_at_once_are_the_same_as_each_alone():
    model, images = torchvision.models.resnet18(num_classes=3), torch.rand(2, 3, 64, 64)
    layers = ["layer4", "layer4.1", "layer4.1.bn2", "layer3", "layer4.1.relu#*", "layer4.0"]
    together = probe(model, images, layers, score=_first)
    assert len(together.gradients) == 7
    for address in together.gradients:
        alone = probe(model, images, [address], score=_first)
        assert list(alone.gradients) == [address]
        assert torch.equal(together.activations[address], alone.activations[address])
        _assert_same(together.gradients[address], alone.gradients[address])
    # A block, the stage that ends with it and the block's last call give one and the same tensor.
    assert torch.equal(together.gradients["layer4"], together.gradients["layer4.1.relu#1"])


# Outputs of several tensors


class Forks(nn.Module):
    """A model with two maps in one container, and a head that unpacks them."""

    def __init__(self, pack, unpack):
        super().__init__()
        self.body = Body(pack)
        self.unpack = unpack
        self.head = nn.Linear(4, 3)
        self.came = None

    def forward(self, images):
        self.came = self.body(images)
        left, right = self.unpack(self.came)
        return self.head((torch.relu_(left) * torch.sigmoid(right)).mean((2, 3)))


class Body(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.pack = pack
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.pack(self.left(images), self.right(images))


def _names(first, second):
    return lambda output: (output[first], output[second])


PACKS = {
    "dict": (lambda a, b: {"a": a, "b": b}, _names("a", "b"), ("[a]", "[b]")),
    "ordered": (lambda a, b: OrderedDict(a=a, b=b), _names("a", "b"), ("[a]", "[b]")),
    "numbered": (lambda a, b: {2: a, 3: b}, _names(2, 3), ("[2]", "[3]")),
    "list": (lambda a, b: [a, b], _names(0, 1), ("[0]", "[1]")),
    "tuple": (lambda a, b: (a, b), _names(0, 1), ("[0]", "[1]")),
    "namedtuple": (Pair, lambda output: (output.left, output.right), ("[0]", "[1]")),
    "nested": (lambda a, b: {"x": [None, (a, "text")], "y": b}, lambda o: (o["x"][1][0], o["y"]), ("[x][1][0]", "[y]")),
}


@pytest.mark.parametrize("kind", PACKS)
def test_each_tensor_of_an_output_has_its_own_activation_and_gradient(kind):
    pack, unpack, keys = PACKS[kind]
    model, images = Forks(pack, unpack), torch.rand(2, 3, 8, 8)
    addresses = [f"body{key}" for key in keys]
    seen = probe(model, images, addresses, score=_first)
    assert type(model.came) is type(pack(1, 2))
    # The head works in place on the left map, so the reference spells it out from what goes into the packing.
    left, right = (conv(images).detach().requires_grad_() for conv in (model.body.left, model.body.right))
    _assert_same(seen.activations[addresses[0]], left.detach())
    _assert_same(seen.activations[addresses[1]], right.detach())
    _first(model.head((left.relu() * right.sigmoid()).mean((2, 3)))).sum().backward()
    _assert_same(seen.gradients[addresses[0]], left.grad)
    _assert_same(seen.gradients[addresses[1]], right.grad)
    one = probe(model, images, [addresses[1]], score=_first)
    _assert_same(one.gradients[addresses[1]], right.grad)


def test_an_output_that_the_module_keeps_is_not_changed():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.kept = nn.Conv2d(3, 4, 3), {}

        def forward(self, images):
            self.kept = {"a": self.conv(images)}
            return self.kept

    body = Keeps()
    images = torch.rand(2, 3, 8, 8)
    probe(nn.Sequential(body), images, ["0[a]"])
    with torch.no_grad():
        expected = body.conv(images)
    assert torch.equal(body.kept["a"], expected)
    seen = probe(nn.Sequential(body), images, ["0[a]"], score=lambda output: output["a"].sum((1, 2, 3)))
    assert torch.equal(seen.gradients["0[a]"], torch.ones_like(expected))
    assert not body.kept["a"].requires_grad


class Repeats(nn.Module):
    """One convolution that runs three times, with in-place changes of its result in between."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, images):
        maps = torch.cat([images, images[:, :1]], dim=1)
        for _ in range(3):
            maps = self.act(self.conv(maps))
        return self.head(maps.mean((2, 3)))


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        (["conv#1"], ["conv#1"]),
        (["conv#*"], ["conv#0", "conv#1", "conv#2"]),
        (["conv#2", "conv#0", "act#0"], ["conv#2", "conv#0", "act#0"]),
    ],
)
def test_each_call_of_a_module_has_its_own_activation_and_gradient(layers, found):
    model, images = Repeats(), torch.rand(2, 3, 8, 8)
    seen = probe(model, images, layers, score=_first)
    assert list(seen.activations) == found
    assert seen.gradients.keys() == seen.activations.keys()
    for address in seen.gradients:
        path, call = address.split("#")
        activation, gradient = _reference(model, images, path, _first, int(call))
        _assert_same(seen.activations[address], activation)
        _assert_same(seen.gradients[address], gradient)


# In-place operations


@pytest.mark.parametrize("after", [nn.ReLU(inplace=True), nn.Hardswish(inplace=True), nn.Dropout(inplace=True)])
@pytest.mark.parametrize("score", [None, _first])
def test_the_activation_is_the_value_before_an_in_place_operation(after, score):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), after, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = model[0](images)
    assert (expected < 0).any()
    assert torch.equal(probe(model, images, ["0"], score).activations["0"], expected)


def test_an_in_place_sum_does_not_change_the_activation():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, images):
            maps = self.conv(images)
            maps += images
            return maps.mul_(2).mean((2, 3))

    model, images = Adds(), torch.rand(2, 3, 8, 8)
    seen = probe(model, images, ["conv"], score=_first)
    with torch.no_grad():
        assert torch.equal(seen.activations["conv"], model.conv(images))
    expected = torch.zeros(2, 3, 8, 8)
    expected[:, 0] = 2 / 64
    assert torch.allclose(seen.gradients["conv"], expected)


def test_the_activation_of_a_module_that_gives_its_input_back_is_safe_too():
    # In eval mode a Dropout returns its input itself, which the model may change afterwards under the other name.
    class Aliases(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop = nn.Conv2d(3, 4, 1), nn.Dropout()

        def forward(self, images):
            maps = self.conv(images)
            dropped = self.drop(maps)
            return (dropped * maps.mul_(0)).mean((2, 3))

    model, images = Aliases(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(probe(model, images, ["drop"]).activations["drop"], model.conv(images))


# Nothing is spent before the shallowest layer


class Spy(torch.autograd.Function):
    """The identity; counts its backward passes."""

    backwards = 0

    @staticmethod
    def forward(ctx, maps):
        return maps.clone()

    @staticmethod
    def backward(ctx, gradient):
        Spy.backwards += 1
        return gradient


class Spied(nn.Module):
    """A convolution, the spy, and two more convolutions."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, images):
        return self.c(self.b(Spy.apply(self.a(images)))).mean((2, 3))


@pytest.mark.parametrize(("layers", "backwards"), [(["c"], 0), (["b", "c"], 0), (["a"], 1), (["a", "c"], 1)])
def test_the_backward_pass_ends_at_the_shallowest_layer(layers, backwards):
    Spy.backwards = 0
    probe(Spied(), torch.rand(2, 3, 16, 16).requires_grad_(), layers, score=_first)
    assert Spy.backwards == backwards


def test_no_graph_is_kept_before_the_shallowest_layer_and_none_without_a_score():
    model, images = Spied(), torch.rand(2, 3, 16, 16)
    seen = []
    for module in (model.a, model.b, model.c):
        module.register_forward_hook(lambda _, __, output: seen.append(output.requires_grad))
    probe(model, images, ["b"], score=_first)
    # The first three are of the pass that finds the layers; a caller's hook on `b` is given what the probe hands on.
    assert seen == [False, False, False, False, True, True]
    seen.clear()
    assert not probe(model, images, ["b"]).output.requires_grad
    assert seen == [False] * 6


# The model is given back as it was


def _small():
    return nn.Sequential(
        OrderedDict(
            body=nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            drop=nn.Dropout(0.5),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(4, 3),
        )
    )


def _mixed(model):
    """Modes, flags, gradients and hooks that differ from module to module."""
    model.train()
    model.body[1].eval()
    model.drop.eval()
    model.body[0].bias.requires_grad_(False)
    model.head.weight.requires_grad_(False)
    model.body[0].weight.grad = torch.full_like(model.body[0].weight, 3.0)
    model.head.weight.grad = torch.full_like(model.head.weight, 5.0)
    model.body.register_forward_hook(lambda *_: None)
    return model


def _state(model):
    return {
        "modes": [module.training for module in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [(id(p.grad), None if p.grad is None else p.grad.unique().tolist()) for p in model.parameters()],
        "hooks": [
            [len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks)]
            for m in model.modules()
        ],
        "values": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "tensor_ids": [id(tensor) for tensor in [*model.parameters(), *model.buffers()]],
    }


def test_the_model_is_given_back_as_it_was():
    model = _mixed(_small())
    before = _state(model)
    assert len({*before["modes"]}) == len({*before["flags"]}) == 2
    probe(model, torch.rand(2, 3, 8, 8), ["body.0", "body"], score=_first)
    assert _state(model) == before
    probe(model, torch.rand(2, 3, 8, 8), ["body.0", "body"])
    list_layers(model, torch.rand(2, 3, 8, 8))
    assert _state(model) == before


def test_parameters_get_no_gradients():
    model = _small()
    probe(model, torch.rand(2, 3, 8, 8), ["body.0"], score=_first)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_works_in_eval_mode_while_it_is_borrowed():
    model = _mixed(_small())
    with borrow(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(images)
    assert torch.equal(probe(model, images, ["body"], score=_first).output.detach(), expected)


class Fails(nn.Module):
    """Raises in its call number `at`."""

    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, maps):
        self.calls += 1
        if self.calls > self.at:
            raise RuntimeError("broken model")
        return maps


@pytest.mark.parametrize("at", [0, 1])
def test_the_model_is_given_back_if_it_raises(at):
    model = _small()
    model.body.append(Fails(at))
    before = _state(_mixed(model))
    with pytest.raises(RuntimeError, match="broken model"):
        probe(model, torch.rand(2, 3, 8, 8), ["body.0", "body.1"], score=_first)
    assert model.body[3].calls == at + 1
    assert _state(model) == before


def test_the_model_is_given_back_if_listing_its_layers_raises():
    model = _small()
    model.body.append(Fails(0))
    before = _state(_mixed(model))
    with pytest.raises(ModelError, match="RuntimeError: broken model"):
        list_layers(model, torch.rand(2, 3, 8, 8))
    assert _state(model) == before


def test_the_model_is_given_back_if_the_score_raises():
    def score(_):
        raise ZeroDivisionError("broken score")

    model = _mixed(_small())
    before = _state(model)
    with pytest.raises(ZeroDivisionError, match="broken score"):
        probe(model, torch.rand(2, 3, 8, 8), ["body"], score=score)
    assert _state(model) == before


@pytest.mark.parametrize("layers", [["body", "nowhere"], ["head"], ["#1"], ["body.2#7"]])
def test_the_model_is_given_back_if_a_layer_cannot_be_probed(layers):
    model = _mixed(_small())
    before = _state(model)
    with pytest.raises(AddressError):
        probe(model, torch.rand(2, 3, 8, 8), layers, score=_first)
    assert _state(model) == before


def test_images_are_left_alone():
    images = torch.rand(2, 3, 8, 8).requires_grad_()
    before = images.detach().clone()
    probe(nn.Sequential(nn.ReLU(inplace=True), _small()), images, ["1.body"], score=_first)
    assert torch.equal(images, before)
    assert images.grad is None


# What the caller has switched on


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode])
def test_gradients_do_not_depend_on_the_caller_s_gradient_mode(outer):
    model, images = _small().eval(), torch.rand(2, 3, 8, 8)
    expected = probe(model, images, ["body"], score=_first)
    with outer():
        seen = probe(model, images, ["body"], score=_first)
        assert torch.is_grad_enabled() is False
    assert torch.equal(seen.gradients["body"], expected.gradients["body"])
    assert torch.equal(seen.activations["body"], expected.activations["body"])


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode])
def test_maps_do_not_depend_on_the_caller_s_gradient_mode(outer):
    model, images = _small().eval(), torch.rand(2, 3, 8, 8)
    expected = xaieval.explain(model, images, ["body"])["body"]
    with outer():
        assert torch.equal(xaieval.explain(model, images, ["body"])["body"], expected)


def test_images_made_in_inference_mode_can_be_probed():
    with torch.inference_mode():
        images = torch.rand(2, 3, 8, 8)
    assert probe(_small(), images, ["body"], score=_first).gradients["body"].abs().max() > 0


def test_a_model_that_keeps_a_tensor_from_its_first_pass_can_be_differentiated():
    # Position grids and rotary tables are made once; made in inference mode they would bar every later gradient.
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.ramp = nn.Conv2d(3, 4, 3), None

        def forward(self, images):
            maps = self.conv(images)
            if self.ramp is None:
                self.ramp = torch.linspace(0, 1, maps.shape[-1])
            return (maps * self.ramp).mean((2, 3))

    model = Caches()
    seen = probe(model, torch.rand(2, 3, 6, 6), ["conv"], score=_first)
    assert torch.allclose(seen.gradients["conv"][0, 0, 0], torch.linspace(0, 1, 4) / 16)
    # Nor may the caller be left with such a tensor.
    model(torch.rand(2, 3, 6, 6)).sum().backward()
    assert model.conv.weight.grad is not None


# Scores and layers without a gradient


class Sides(nn.Module):
    """A convolution that the output depends on, and two that it does not."""

    def __init__(self):
        super().__init__()
        self.main, self.side, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, images):
        self.side(images)
        self.other(images)
        return self.main(images).mean((2, 3))


@pytest.mark.parametrize(
    ("layers", "named"), [(["main", "side"], "layer 'side'"), (["side", "other"], "layers 'side', 'other'")]
)
def test_a_layer_that_the_score_does_not_depend_on_is_an_error_not_zeros(layers, named):
    with pytest.raises(AddressError) as caught:
        probe(Sides(), torch.rand(2, 3, 8, 8), layers, score=_first)
    assert str(caught.value) == (
        f"the target does not depend on {named}: it has no gradient there; choose a layer that the prediction depends "
        "on, or a method that needs no gradient"
    )


def test_a_score_that_depends_on_nothing_is_the_same_error():
    with pytest.raises(AddressError, match="the target does not depend on layer 'main': it has no gradient there"):
        probe(Sides(), torch.rand(2, 3, 8, 8), ["main"], score=lambda output: torch.ones(len(output)))


def test_activations_need_no_dependence():
    assert list(probe(Sides(), torch.rand(2, 3, 8, 8), ["side", "main"]).activations) == ["side", "main"]


def test_a_gradient_that_is_zero_is_no_error():
    seen = probe(Sides(), torch.rand(2, 3, 8, 8), ["main"], score=lambda output: 0 * output[:, 0])
    assert torch.equal(seen.gradients["main"], torch.zeros(2, 4, 6, 6))


def test_the_gradient_of_each_image_is_its_own():
    images = torch.rand(3, 3, 8, 8)
    model = Repeats()
    together = probe(model, images, ["conv#0"], score=_first).gradients["conv#0"]
    for index in range(3):
        alone = probe(model, images[index : index + 1], ["conv#0"], score=_first).gradients["conv#0"]
        _assert_same(together[index : index + 1], alone)


class Counts(nn.Module):
    """Converts maps to integers."""

    def forward(self, maps):
        return (maps * 10).long()


def test_a_layer_of_whole_numbers_has_activations_but_no_gradient():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Counts())
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(probe(model, images, ["1"]).activations["1"], model(images))
    with pytest.raises(AddressError) as caught:
        probe(model, images, ["1"], score=lambda output: output[:, 0, 0, 0].float())
    assert str(caught.value) == "layer '1' returns torch.int64, which has no gradient"


# Batches


def test_a_layer_that_runs_only_for_the_first_images_is_an_error():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.extra = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, images):
            maps = self.always(images)
            return (self.extra(maps) if len(images) <= 2 else maps).mean((2, 3))

    model = Sometimes()
    assert list(probe(model, torch.rand(2, 3, 8, 8), ["extra"]).activations) == ["extra"]
    with pytest.raises(AddressError) as caught:
        probe(model, torch.rand(3, 3, 8, 8), ["extra"])
    assert str(caught.value) == "layer 'extra' ran on the first images of the data, but not on these images"
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_found_once_serve_further_batches_and_runs():
    model = _small()
    with borrow(model):
        found = locate(model, torch.rand(2, 3, 8, 8), ["body"])
        for size in (1, 5):
            images = torch.rand(size, 3, 8, 8)
            seen = run(model, images, found, forward=lambda x: model(2 * x))
            _assert_same(seen.activations["body"], model.body(2 * images))
            assert seen.gradients(_first(seen.output))["body"].shape == (size, 4, 6, 6)


def test_grid_and_prefix_tokens_are_passed_on():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(3, 5)

        def forward(self, images):
            return self.mix(images.flatten(2).transpose(1, 2)).mean(1)

    model = Tokens()
    images = torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        tokens = model.mix(images.flatten(2).transpose(1, 2))
    _assert_same(probe(model, images, ["mix"]).activations["mix"], tokens.transpose(1, 2).reshape(2, 5, 4, 4))
    wide = probe(model, images, ["mix"], score=_first, grid=(2, 7), prefix_tokens=2)
    _assert_same(wide.activations["mix"], tokens[:, 2:].transpose(1, 2).reshape(2, 5, 2, 7))
    assert wide.gradients["mix"].shape == (2, 5, 2, 7)


@pytest.mark.parametrize("images", [torch.rand(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [[1]]])
def test_what_is_no_batch_of_images_is_refused(images):
    for job in (lambda: probe(_small(), images, ["body"]), lambda: list_layers(_small(), images)):
        with pytest.raises(DataError, match=r"images are a floating-point tensor \[N, C, H, W\]"):
            job()


def test_a_model_without_parameters_can_be_probed():
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
    images = torch.rand(2, 3, 4, 4)
    seen = probe(model, images, ["0"], score=lambda output: output.sum(1))
    assert torch.equal(seen.gradients["0"], torch.ones(2, 3, 2, 2))


def test_double_precision_is_kept():
    model = _small().double()
    seen = probe(model, torch.rand(2, 3, 8, 8, dtype=torch.float64), ["body"], score=_first)
    assert seen.activations["body"].dtype == seen.gradients["body"].dtype == torch.float64
