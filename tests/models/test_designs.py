"""The designs of the attention: each of them, at any set of levels, with any head."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.models.attended import SUBSETS, all_designs, gated, shuffled, small_fpn, some_images
from xaieval.errors import ModelError
from xaieval.models import DESIGNS, FAL, Design, amplify, attention_loss, focus
from xaieval.models.designs import design_of

ALL = list(all_designs())
LABELS = torch.tensor([0, 3, 9, 3])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(-30, 0), size=st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_focus_makes_pooling_a_weighted_average(seed, scale, size):
    torch.manual_seed(seed)
    features, maps = torch.randn(2, 3, *size, dtype=torch.float64), 10**scale * torch.rand(2, 1, *size, dtype=torch.float64)
    pooled = focus(features, maps).mean(dim=(2, 3))
    for n in range(2):
        for c in range(3):
            cells = [(maps[n, 0, y, x], features[n, c, y, x]) for y in range(size[0]) for x in range(size[1])]
            expected = sum(m * g for m, g in cells) / sum(m for m, _ in cells)
            assert pooled[n, c].item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("value", [1.0, 0.3, 1e-30, 1e-40, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_constant_attention_leaves_features_unchanged_in_focus(value, dtype):
    features = torch.randn(2, 3, 5, 7).to(dtype).requires_grad_()
    maps = torch.full((2, 1, 5, 7), value, dtype=dtype, requires_grad=True)
    found = focus(features, maps)
    assert_close(found, features, rtol=1e-6 if dtype == torch.float32 else 2e-2, atol=0)
    found.sum().backward()
    assert features.grad.isfinite().all()
    assert maps.grad.isfinite().all() or value < 1e-20  # the slope of so small a map is beyond any number
    assert torch.equal(focus(features, torch.ones(2, 1, 5, 7, dtype=dtype)), features)


def test_no_attention_leaves_features_unchanged_in_amplify():
    features = torch.randn(2, 3, 5, 7)
    assert torch.equal(amplify(features, torch.zeros(2, 1, 5, 7)), features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"place": "feature"},
            "no place 'feature' for attention; did you mean 'features'? known: backbone, features, ",
        ),
        ({"gate": "multiply"}, "no gate 'multiply' for attention; known: amplify, focus"),
        ({"branch": "stages"}, "no branch 'stages' for attention; did you mean 'stage'? known: block, stage"),
        ({"branch": "stage"}, "a branch of a stage needs place 'backbone' or 'features', got 'levels'"),
        ({"shared": True, "place": "laterals"}, "a shared map needs place 'levels', got 'laterals'"),
    ],
)
def test_a_design_that_cannot_be_is_refused(options, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        Design(**options)


def test_a_design_has_a_name_or_is_one():
    design = Design(gate="focus", perception=True)
    assert design_of(design) is design
    assert design_of("focus-perception") == design
    with pytest.raises(ModelError, match=r"no design 'fokus' of attention; did you mean 'focus'\? known: amplify, "):
        design_of("fokus")
    assert len(set(DESIGNS.values())) == len(DESIGNS)
    assert set(DESIGNS.values()) <= set(ALL)


def _fal(design, levels, head="mean", twin=False, seed=0):
    torch.manual_seed(seed)
    return shuffled(FAL("test_resnet", 10, levels, channels=8, head=head, design=design, auxiliary_only=twin))


def _map_layers(model):
    """The names of the parameters that only the map depends on."""
    return {name for name, _ in model.named_parameters() if re.match(r"attention\.p\d\.attention\.", name)}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    design=st.sampled_from(ALL),
    levels=st.sampled_from(SUBSETS),
    head=st.sampled_from(["mean", "concat"]),
    twin=st.booleans(),
)
def test_any_design_at_any_levels_gives_maps_and_gradients(design, levels, head, twin):
    model = _fal(design, levels, head, twin).train()
    output = model(some_images(4), details=True)
    assert output.logits.shape == (4, 10)
    expected = levels[-1:] if design.shared else levels
    assert tuple(output.attention_maps) == tuple(output.attention_logits) == expected
    for level, maps in output.attention_maps.items():
        assert output.attention_logits[level].shape == (4, 10)
        assert maps.shape == (4, *(64 // {"p2": 4, "p3": 8, "p4": 16, "p5": 32}[level],) * 2)
        assert 0 <= maps.min() <= maps.max() <= 1
    attention_loss(output, LABELS).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without == (_map_layers(model) if twin else set())


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(design=st.sampled_from(ALL), levels=st.sampled_from(SUBSETS), head=st.sampled_from(["mean", "concat"]))
def test_a_twin_is_the_network_with_maps_that_do_nothing(design, levels, head):
    model, twin, images = _fal(design, levels, head).train(), _fal(design, levels, head, twin=True).train(), some_images(4)
    assert model.state_dict().keys() == twin.state_dict().keys()
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in model.state_dict().items())
    nothing = torch.zeros_like if design.gate == "amplify" else torch.ones_like
    for branch in model.attention.values():
        branch.register_forward_hook(lambda module, inputs, output: output | {"map": nothing(output["map"])})
    losses = [attention_loss(each(images, details=True), LABELS) for each in (model, twin)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    gradients = [{name: p.grad for name, p in each.named_parameters() if p.grad is not None} for each in (model, twin)]
    assert gradients[0].keys() == gradients[1].keys() == dict(twin.named_parameters()).keys() - _map_layers(twin)
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name])


@pytest.mark.parametrize("design", DESIGNS)
@torch.no_grad()
def test_a_new_twin_predicts_as_its_fpn_and_fal_does_not(design):
    fpn, images = small_fpn(), some_images()
    twin = FAL.from_fpn(fpn, ["p2", "p4"], design=design, auxiliary_only=True)
    assert torch.equal(twin(images), fpn(images))
    for branch in twin.attention.values():
        if branch.attention is not None:
            torch.nn.init.normal_(branch.attention[0].weight, 0, 10)
    assert torch.equal(twin(images), fpn(images))
    assert not torch.allclose(FAL.from_fpn(fpn, ["p2", "p4"], design=design)(images), fpn(images), atol=1e-3)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_design_works_in_bfloat16_and_at_odd_sizes(design):
    model, images = _fal(design, ("p2", "p4")).train(), torch.rand(4, 3, 70, 90)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images, details=True)
        loss = attention_loss(output, LABELS)
    assert tuple(output.attention_maps["p4"].shape) == (4, 5, 6)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        exact, rough = model.eval()(images), model.bfloat16()(images.bfloat16())
    assert_close(rough.float(), exact, atol=0.1 * exact.std().item() + 0.1, rtol=0)


# The places, by hand


def _perceived(model, level, maps):
    return model.perception[level](maps) if model.design.perception else maps


def _attended(model, features, levels, found):
    """Features by level after attention at the chosen ones, coarsest first."""
    for level in reversed(levels):
        if level in model.attention:
            found[level] = model.attention[level](features[level])
        maps = found.get(level, found[levels[-1]])["map"]
        features[level] = _perceived(model, level, gated(model.design.gate, features[level], maps))
    return features


def _merged(model, features):
    """The pyramid from its laterals: top-down additions, then a convolution of each level."""
    names = list(features)
    inner = features[names[-1]]
    levels = {names[-1]: model.fpn.layer_blocks[3](inner)}
    for index in (2, 1, 0):
        side = features[names[index]].shape[2:]
        inner = features[names[index]] + torch.nn.functional.interpolate(inner, size=side, mode="nearest")
        levels[names[index]] = model.fpn.layer_blocks[index](inner)
    return {name: levels[name] for name in names}


def _stages(model, images, levels, found):
    """The features of the backbone, stage by stage, with attention in between if the design wants it."""
    maps, features = images, {}
    for name, module in model.backbone.named_children():
        maps = module(maps)
        if name.startswith("layer"):
            level = f"p{int(name.removeprefix('layer')) + 1}"
            if model.design.place == "backbone" and level in levels:
                found[level] = model.attention[level](maps)
                maps = _perceived(model, level, gated(model.design.gate, maps, found[level]["map"]))
            features[level] = maps
    return features


@pytest.mark.slow
@pytest.mark.parametrize("levels", [("p2", "p3"), ("p3", "p5"), ("p4",)], ids="-".join)
@pytest.mark.parametrize("design", ALL, ids=str)
@torch.no_grad()
def test_a_design_is_the_network_run_by_hand(design, levels):
    model, images, found = _fal(design, levels).eval(), some_images(), {}
    features = _stages(model, images, levels, found)
    if design.place == "features":
        features = _attended(model, features, levels, found)
    laterals = {level: model.fpn.inner_blocks[index](maps) for index, (level, maps) in enumerate(features.items())}
    if design.place == "laterals":
        laterals = _attended(model, laterals, levels, found)
    merged = _merged(model, laterals)
    if design.place == "levels":
        merged = _attended(model, merged, levels, found)
    output = model(images, details=True)
    assert_close(output.logits, model.head(merged))
    assert list(output.attention_maps) == sorted(found)
    for level, branch in found.items():
        assert_close(output.attention_maps[level], branch["map"][:, 0])
        assert_close(output.attention_logits[level], branch["logits"])
