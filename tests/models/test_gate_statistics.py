"""Statistics of attention maps, next to slow loops over images, levels and cells."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.attended import small_abn, small_fal, small_fpn, some_images
from xaieval.errors import DataError, ModelError
from xaieval.models import DESIGNS, GateStatistics, gate_statistics
from xaieval.models.attention import AttentionBranch

MODELS = {
    "amplify": lambda: small_fal(("p2", "p4"), design="amplify"),
    "focus": lambda: small_fal(("p2", "p4"), design="focus-perception"),
    "backbone": lambda: small_fal(("p2", "p4"), design="backbone"),
    "shared": lambda: small_fal(("p2", "p4"), design="shared"),
    "abn": small_abn,
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_values_are_those_of_a_slow_loop(name):
    model, images = MODELS[name](), some_images(5)
    found = gate_statistics(model, images.split(2))
    assert found.n_images == 5
    maps = {level: [] for level in found.values}
    for image in images:
        for level, one in model(image[None], details=True).attention_maps.items():
            maps[level].append([value.item() for row in one[0] for value in row])
    assert list(maps) == list(model(images, details=True).attention_maps)
    for level, of_images in maps.items():
        cells = sorted(cell for one in of_images for cell in one)
        contrasts = []
        for one in of_images:
            mean = sum(one) / len(one)
            contrasts.append((sum((cell - mean) ** 2 for cell in one) / len(one)) ** 0.5 / mean)
        expected = {"contrast": sum(contrasts) / len(contrasts)}
        for label, share in {"low": 0.05, "median": 0.5, "high": 0.95}.items():
            place = share * (len(cells) - 1)
            low = int(place)
            high = min(low + 1, len(cells) - 1)
            expected[label] = cells[low] + (place - low) * (cells[high] - cells[low])
        assert found.values[level] == pytest.approx(expected, rel=1e-4)


class _Given(nn.Module):
    """A branch whose map was computed before."""

    def __init__(self, branch, change):
        super().__init__()
        self.branch, self.change = branch, change

    def forward(self, features):
        found = self.branch(features)
        return found | {"map": self.change(found["map"])}


def _with_maps(model, changes):
    """The model with other maps, by modules in the place of its branches."""
    if hasattr(model, "design"):
        for level in list(model.attention):
            model.attention[level] = _Given(model.attention[level], changes[level])
    else:
        model.attention = _Given(model.attention, changes["attention"])
    return model


def _balanced(name, images):
    """A network that favours no class, so that predictions depend on what is in the images; always the same."""
    torch.manual_seed(1)
    model = MODELS[name]()
    heads = [model.backbone.fc] if name == "abn" else model.head.classifiers.values()
    offset = model(images).mean(dim=0)
    for head in heads:
        head.bias -= offset
    return model


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_predictions_that_change_are_counted_with_other_maps(name):
    images = some_images(24)
    predicted = _balanced(name, images)(images).argmax(dim=1)
    found = gate_statistics(_balanced(name, images), [images], seed=3)
    assert found.changed_without > 0
    assert found.changed_shuffled > 0
    branches = list(found.values)

    nothing = torch.ones_like if name == "focus" else torch.zeros_like
    without = _with_maps(_balanced(name, images), dict.fromkeys(branches, nothing))(images).argmax(dim=1)
    assert found.changed_without == (without != predicted).double().mean().item()

    def shuffling():
        generator = torch.Generator().manual_seed(3)

        def shuffle(maps):
            others = maps.clone()
            orders = torch.rand(len(maps), maps.shape[2] * maps.shape[3], generator=generator)
            for index, order in enumerate(orders):
                cells = [maps[index, 0].flatten()[place] for place in sorted(range(len(order)), key=order.__getitem__)]
                others[index, 0] = torch.stack(cells).view(maps.shape[2:])
            return others

        return shuffle

    shuffled = _with_maps(_balanced(name, images), {branch: shuffling() for branch in branches})(images).argmax(dim=1)
    assert found.changed_shuffled == (shuffled != predicted).double().mean().item()


def test_maps_matter_in_a_network_that_depends_on_them_and_not_in_its_twin():
    model, twin = (small_fal(("p2", "p3", "p4"), design="backbone", auxiliary_only=only) for only in (False, True))
    twin.load_state_dict(model.state_dict())
    images = some_images(40)
    found, of_twin = gate_statistics(model, [images]), gate_statistics(twin, [images])
    assert found.changed_without > 0
    assert of_twin.changed_without == of_twin.changed_shuffled == 0


@pytest.mark.parametrize("design", DESIGNS)
@torch.no_grad()
def test_maps_that_do_nothing_give_the_network_without_gates(design):
    model, twin = (small_fal(("p2", "p4"), design=design, auxiliary_only=only) for only in (False, True))
    twin.load_state_dict(model.state_dict())
    images, logits = some_images(6), []
    with model.head.register_forward_hook(lambda module, inputs, output: logits.append(output)):
        gate_statistics(model, [images])
    as_it_is, without, _ = logits
    assert torch.equal(without, twin(images))
    assert not torch.allclose(as_it_is, without, atol=1e-3)


@pytest.mark.parametrize("name", ["focus", "abn"])
def test_how_images_are_batched_changes_nothing(name):
    model, images = MODELS[name](), some_images(7)
    whole, parts = (gate_statistics(model, batches).to_dict() for batches in ([images], images.split((3, 1, 3))))
    for level, values in whole.pop("values").items():
        assert parts["values"][level] == pytest.approx(values, rel=1e-4)
    assert parts.pop("values").keys()
    assert parts == whole


def test_batches_come_in_any_form():
    model, images = small_fal(), some_images(4)
    expected = gate_statistics(model, [images])
    for batches in (
        [(images, torch.zeros(4, dtype=torch.int64))],
        [{"image": images, "label": torch.zeros(4, dtype=torch.int64), "id": list("abcd")}],
        iter([images.numpy()]),
        [{"image": images, "failed": [("e", None, "cannot be read")]}],
        [{"image": images}, {"failed": [("e", None, "cannot be read")]}],
        [images.double()],
    ):
        assert gate_statistics(model, batches) == expected


def test_statistics_are_plain_numbers():
    found = gate_statistics(small_fal(), [some_images()])
    assert isinstance(found, GateStatistics)
    numbers = found.to_dict()
    assert set(numbers) == {"values", "changed_without", "changed_shuffled", "n_images"}
    assert {type(value) for level in numbers["values"].values() for value in level.values()} == {float}
    assert dataclasses.replace(found) == found


def test_a_map_of_zeros_has_no_contrast():
    model = small_fal(("p2",), design="focus")
    model.attention["p2"].attention[1].weight.data.zero_()
    model.attention["p2"].attention[1].bias.data.fill_(-1000.0)
    found = gate_statistics(model, [some_images()])
    assert found.values["p2"] == {"low": 0, "median": 0, "high": 0, "contrast": 0}
    assert found.changed_without == found.changed_shuffled == 0


def _broken(*given, **more):
    raise RuntimeError("broken")


@pytest.mark.parametrize("fails", [None, "model", "loader", "shuffling"])
def test_the_model_is_given_back_as_it_was(fails, monkeypatch):
    model = small_fal(design="backbone").train()
    model.backbone.layer2.eval()
    before, modes = {name: tensor.clone() for name, tensor in model.state_dict().items()}, [m.training for m in model.modules()]
    images = some_images()
    state = torch.get_rng_state()

    def batches():
        yield images
        if fails == "loader":
            _broken()
        if fails == "model":
            monkeypatch.setattr(model.head, "forward", _broken)
        if fails == "shuffling":
            monkeypatch.setattr(torch, "rand", _broken)
        yield images

    with pytest.raises(RuntimeError, match="broken") if fails else nullcontext():
        gate_statistics(model, batches())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_models_and_loaders_without_anything_to_measure_are_refused():
    with pytest.raises(ModelError, match="attention maps are those of an FAL or an ABNClassifier, got FPNClassifier"):
        gate_statistics(small_fpn(), [some_images()])
    with pytest.raises(ModelError, match="attention maps are those of an FAL or an ABNClassifier, got AttentionBranch"):
        gate_statistics(AttentionBranch(3, 2), [some_images()])
    with pytest.raises(DataError, match="the loader is empty: it yielded no images"):
        gate_statistics(small_fal(), [])
    message = "statistics of attention maps need an image, but none of the loader's images could be read"
    with pytest.raises(DataError, match=message):
        gate_statistics(small_fal(), [{"failed": [("e", None, "cannot be read")]}])
    with pytest.raises(DataError, match="images are a floating-point tensor"):
        gate_statistics(small_fal(), [torch.zeros(2, 3, 64, 64, dtype=torch.uint8)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_get_the_dtype_of_the_model(dtype):
    found = gate_statistics(small_fal().to(dtype), [some_images(3)])
    assert all(np.isfinite(value) and value >= 0 for level in found.values.values() for value in level.values())


@pytest.mark.gpu
def test_images_are_brought_to_the_model_s_device():
    assert gate_statistics(small_fal().cuda(), [some_images(3)]).n_images == 3
