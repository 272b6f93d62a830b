"""FAL: which levels it attends to, what it starts from, and what its maps say."""

from __future__ import annotations

import copy
import io
import re

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

import xaieval
from tests.models.attended import SUBSETS, gated, small_abn, small_fal, small_fpn, some_images
from xaieval.errors import AddressError, ExplainerError, ModelError
from xaieval.models import FAL, LEVELS, AttentionOutput, FPNClassifier, attention_loss
from xaieval.models.branch_stages import stage_between
from xaieval.probe.hooks import probe

ONE_OF_EACH_PLACE = ["focus", "laterals", "features", "backbone", "stage", "shared", "evidence"]


@pytest.mark.parametrize("gate", ["amplify", "focus"])
@pytest.mark.parametrize("levels", SUBSETS, ids="-".join)
def test_attention_on_levels_changes_the_chosen_ones_alone(levels, gate):
    model, images = small_fal(reversed(levels), design=gate), some_images()
    seen = probe(model, images, ["fpn[*]", "levels[*]", "attention.*[map]"]).activations
    assert [address for address in seen if address.startswith("attention")] == [f"attention.{name}[map]" for name in levels]
    for level in LEVELS:
        fpn, after = seen[f"fpn[{level}]"], seen[f"levels[{level}]"]
        if level not in levels:
            assert torch.equal(after, fpn)
            continue
        maps = seen[f"attention.{level}[map]"]
        assert maps.shape == (2, 1, 64 // LEVELS[level], 64 // LEVELS[level])
        assert_close(after, gated(gate, fpn, maps))
        assert ((after - fpn).abs() > 0.01 * fpn.abs()).any()


@pytest.mark.parametrize(
    ("design", "changed"),
    [
        ("laterals", ("p2", "p3")),  # the merge goes from coarse to fine
        ("features", ("p2", "p3")),
        ("backbone", ("p2", "p3", "p4", "p5")),  # the later stages see it too
    ],
)
@torch.no_grad()
def test_attention_before_the_levels_changes_those_that_depend_on_it(design, changed):
    model, twin = (small_fal(("p3",), design=design, auxiliary_only=only) for only in (False, True))
    twin.load_state_dict(model.state_dict())
    levels = [probe(each, images, ["fpn[*]"]).activations for images in [some_images()] for each in (model, twin)]
    assert tuple(name[4:6] for name in levels[0] if not torch.equal(levels[0][name], levels[1][name])) == changed


@pytest.mark.parametrize("design", ONE_OF_EACH_PLACE)
@pytest.mark.parametrize("head", ["mean", "concat"])
@torch.no_grad()
def test_details_go_with_the_same_logits(head, design):
    model, images = small_fal(("p4", "p2"), head=head, design=design), some_images()
    output, seen = model(images, details=True), probe(model, images, ["levels[*]", "attention.*[map]"]).activations
    assert isinstance(output, AttentionOutput)
    assert torch.equal(output.logits, model(images))
    assert list(output.attention_maps) == list(output.attention_logits) == (["p4"] if design == "shared" else ["p2", "p4"])
    for level, maps in output.attention_maps.items():
        assert torch.equal(maps, seen[f"attention.{level}[map]"][:, 0])
    pooled = [seen[f"levels[{level}]"].mean(dim=(2, 3)) for level in LEVELS]
    if head == "mean":
        linear = [model.head.classifiers[level] for level in LEVELS]
        expected = sum(vector @ one.weight.T + one.bias for one, vector in zip(linear, pooled, strict=True)) / 4
    else:
        expected = torch.cat(pooled, dim=1) @ model.head.classifier.weight.T + model.head.classifier.bias
    assert_close(output.logits, expected)


def test_the_levels_and_the_maps_have_addresses():
    listing = xaieval.list_layers(small_fal(), some_images()).set_index("address")["stride"]
    assert dict(listing[["fpn[p2]", "levels[p2]", "attention.p2[map]", "attention.p3[map]", "levels[p5]"]]) == {
        "fpn[p2]": 4, "levels[p2]": 4, "attention.p2[map]": 4, "attention.p3[map]": 8, "levels[p5]": 32,
    }  # fmt: skip
    assert "attention.p4[map]" not in listing


# Other backbones


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["amplify", "focus"])
@torch.no_grad()
def test_attention_within_a_backbone_with_channels_last_is_that_run_by_hand(gate):
    design = xaieval.models.Design(place="backbone", gate=gate, perception=True)
    model, images = small_fal(("p3", "p4"), "test_mambaout", design=design), some_images()
    maps, features, found = images, {}, {}
    for name, module in model.backbone.named_children():
        maps = module(maps)  # [N, h, w, C]
        if name.startswith("stages"):
            level = f"p{int(name[-1]) + 2}"
            first = maps.permute(0, 3, 1, 2)
            if level in ("p3", "p4"):
                found[level] = model.attention[level](first)
                first = model.perception[level](gated(gate, first, found[level]["map"]))
                maps = first.permute(0, 2, 3, 1)
            features[level] = first
    output = model(images, details=True)
    assert_close(output.logits, model.head(model.fpn(features)))
    for level, branch in found.items():
        assert_close(output.attention_maps[level], branch["map"][:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("design", ["backbone", "stage"])
@pytest.mark.parametrize("backbone", ["mobilenetv2_035", "convnext_atto", "resnet18"])
def test_designs_within_other_backbones_reach_every_parameter(backbone, design):
    model = small_fal(("p2", "p4", "p5"), backbone, design=design).train()
    output = model(some_images(4), details=True)
    assert [tuple(maps.shape[1:]) for maps in output.attention_maps.values()][-1] == (2, 2)
    attention_loss(output, torch.tensor([0, 3, 9, 3])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "design", "message"),
    [
        (
            "hrnet_w18_small",
            "backbone",
            "attention cannot act within backbone 'hrnet_w18_small', whose features are not the outputs of stage2, stage3; "
            "take another place, such as 'features'",
        ),
        (
            "hrnet_w18_small",
            "stage",
            "the modules after 'stage2' up to 'stage3' cannot be the stage of a branch: they do not follow each other in a "
            "sequence; take branch='block'",
        ),
        (
            "test_mambaout",
            "stage",
            "the modules after 'stages_1' up to 'stages_2' cannot be the stage of a branch: they cannot run with stride 1 on "
            "maps [N, C, H, W]; take branch='block'",
        ),
        ("xception41", "backbone", "attention cannot act within backbone 'xception41', whose features are not the outputs of"),
    ],
)
def test_a_design_that_does_not_suit_the_backbone_is_refused(backbone, design, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        FAL(backbone, 10, ["p3", "p4"], design=design)


# From a trained pyramid


@pytest.mark.parametrize("design", ONE_OF_EACH_PLACE)
@pytest.mark.parametrize("head", ["mean", "concat"])
@torch.no_grad()
def test_fal_from_an_fpn_has_its_weights(head, design):
    fpn = small_fpn(head)
    before = {name: tensor.clone() for name, tensor in fpn.state_dict().items()}
    fal = FAL.from_fpn(fpn, ["p2", "p3"], design=design)
    weights = fal.state_dict()
    assert {name for name in weights if not name.startswith(("attention.", "perception."))} == before.keys()
    for name, tensor in before.items():
        assert torch.equal(weights[name], tensor)
        assert torch.equal(fpn.state_dict()[name], tensor)
        assert weights[name].data_ptr() != fpn.state_dict()[name].data_ptr()


@torch.no_grad()
def test_branches_of_stages_begin_with_those_of_the_fpn():
    fpn, maps = small_fpn(), torch.rand(2, 96, 8, 8)
    fal = FAL.from_fpn(fpn, ["p2", "p3", "p5"], design="stage")
    for level, before, last in (("p2", "layer1", "layer2"), ("p3", "layer2", "layer3")):
        expected = stage_between(fpn.backbone, before, last, some_images()).eval()
        own = fal.attention[level].stage
        assert torch.equal(own(maps[:, : own[0][0].conv1.in_channels]), expected(maps[:, : own[0][0].conv1.in_channels]))
        mine, theirs = next(own.parameters()), next(fpn.backbone.get_submodule(last).parameters())
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()


def test_the_same_seed_gives_an_fpn_and_fal_from_it_the_same_shared_weights():
    torch.manual_seed(7)
    plain = FPNClassifier("test_resnet", 10, channels=16).state_dict()
    models = []
    for options in ({}, {"auxiliary_only": True}, {"design": "backbone"}):
        torch.manual_seed(7)
        models.append(FAL.from_fpn(FPNClassifier("test_resnet", 10, channels=16), ["p2"], **options).state_dict())
        assert all(torch.equal(models[-1][name], tensor) for name, tensor in plain.items())
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


@pytest.mark.parametrize("training", [True, False])
def test_fal_from_an_fpn_has_its_dtype_and_mode(training):
    fal = FAL.from_fpn(small_fpn().double().train(training), ["p2"], design="focus-perception")
    assert {parameter.dtype for parameter in fal.parameters()} == {torch.float64}
    assert {module.training for module in fal.modules()} == {training}
    assert fal(some_images().double()).dtype == torch.float64


@pytest.mark.gpu
def test_fal_from_an_fpn_is_on_its_device():
    assert {p.device.type for p in FAL.from_fpn(small_fpn().cuda(), ["p2"]).parameters()} == {"cuda"}


def _scores(drops=(85, 80, 16, 15), increases=(0, 0, 16, 18), layer="fpn[p{}]"):
    """Scores of 40 images: drops, give or take 10, and how many images increase, level by level."""
    tables = []
    for index, (drop, increase) in enumerate(zip(drops, increases, strict=True)):
        up = [100.0] * increase + [0.0] * (40 - increase)
        table = {"image_id": range(40), "layer": layer.format(index + 2), "method": "gradcam", "status": "ok"}
        table |= {"average_drop": drop + np.roll(np.linspace(-10, 10, 40), 17 * index), "increase_in_confidence": up}
        tables.append(pd.DataFrame(table))
    metrics = [
        {"name": "average_drop", "higher_is_better": False, "interval": "mean"},
        {"name": "increase_in_confidence", "higher_is_better": True, "interval": "wilson"},
    ]
    return xaieval.Scores(pd.concat(tables, ignore_index=True), {"metrics": metrics})


@pytest.mark.parametrize("layer", ["fpn[p{}]", "levels[p{}]"])
def test_fal_from_scores_puts_attention_on_the_levels_that_need_it(layer):
    fpn = small_fpn()
    fal = FAL.from_scores(fpn, _scores(layer=layer), design="perception", auxiliary_only=True)
    assert list(fal.attention) == list(fal.perception) == ["p2", "p3"]
    assert fal.gate is None
    assert all(torch.equal(fal.state_dict()[name], tensor) for name, tensor in fpn.state_dict().items())
    turned = _scores((15, 80, 16, 85), (18, 0, 16, 0), layer)
    assert list(FAL.from_scores(fpn, turned).attention) == ["p3", "p5"]
    assert list(FAL.from_scores(fpn, turned, k=1).attention) == ["p5"]
    assert list(FAL.from_scores(fpn, turned, k=3).attention) == ["p3", "p4", "p5"]


def test_fal_from_scores_without_a_bad_level_is_refused_unless_k_asks():
    alike = _scores((50, 51, 49, 50), (9, 10, 9, 8))
    with pytest.raises(ModelError, match=r"(?s)no layer is significantly worse than the best.*give k= to ask for the k worst"):
        FAL.from_scores(small_fpn(), alike)
    assert len(FAL.from_scores(small_fpn(), alike, k=2).attention) == 2


@pytest.mark.parametrize("layer", ["backbone.layer{}", "levels.p{}", "fpn[{}]", "p{}"])
def test_fal_from_scores_of_other_layers_is_refused(layer):
    with pytest.raises(AddressError, match=re.escape(f"layer '{layer.format(2)}' is no pyramid level; 'fpn[p2]' to")):
        FAL.from_scores(small_fpn(), _scores(layer=layer))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_levels": ["p2", "p6"]}, "no pyramid level 'p6'; known: p2, p3, p4, p5"),
        ({"attention_levels": "p2,p3"}, "no pyramid level 'p2,p3'; "),
        ({"attention_levels": ()}, "attention levels are one or more of p2, p3, p4, p5, each once; got []"),
        ({"attention_levels": ["p3", "p3"]}, "attention levels are one or more of p2, p3, p4, p5, each once; got ['p3', 'p3']"),
        (
            {"design": "lateral"},
            "no design 'lateral' of attention; did you mean 'laterals' or 'focus-laterals'? known: amplify, ",
        ),
        ({"backbone": "resnet81"}, "timm has no backbone 'resnet81'"),
        (
            {"backbone": "test_vit"},
            "backbone 'test_vit' has features at reductions [16, 16, 16], but a pyramid needs [4, 8",
        ),
    ],
)
def test_a_fal_that_cannot_be_is_refused(options, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        FAL(**{"backbone": "test_resnet", "num_classes": 10, **options})


# Use


@pytest.mark.parametrize("design", ["focus", "perception", "backbone"])
def test_training_a_fal_lowers_its_loss(design):
    model = FAL("test_resnet", 2, ["p2", "p3"], channels=16, design=design).train()
    labels = torch.tensor([0, 1] * 4)
    images = 0.2 * torch.randn(8, 3, 64, 64) + (2.0 * labels - 1).view(-1, 1, 1, 1)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(10):
        losses.append(attention_loss(model(images, details=True), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def _pickled(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("design", ONE_OF_EACH_PLACE)
@torch.no_grad()
def test_copies_of_a_fal_do_what_it_does_and_no_more(design, tmp_path):
    model, images = small_fal(("p2", "p4"), design=design), some_images()
    expected = model(images)
    fresh = small_fal(("p2", "p4"), design=design)
    assert not torch.allclose(fresh(images), expected, atol=1e-3)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    fresh.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    for other in (fresh, copy.deepcopy(model), _pickled(model)):
        assert torch.equal(other(images), expected)
        nn.init.zeros_(next(other.attention["p4"].parameters()))
        nn.init.ones_(next(other.backbone.parameters()))
        assert torch.equal(model(images), expected)


@pytest.mark.parametrize("design", ONE_OF_EACH_PLACE)
@torch.no_grad()
def test_a_fal_with_channels_last_computes_the_same(design):
    model, images = small_fal(("p2", "p4"), design=design), some_images()
    expected = model(images, details=True)
    found = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last), details=True)
    assert_close(found.logits, expected.logits)
    for level, maps in expected.attention_maps.items():
        assert_close(found.attention_maps[level], maps)


@pytest.mark.slow
@pytest.mark.parametrize("design", ["laterals", "backbone"])
@torch.no_grad()
def test_a_compiled_fal_computes_the_same(design):
    model, images = small_fal(("p2", "p4"), design=design), some_images()
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        assert_close(compiled(images), model(images))
    output = compiled(images, details=True)
    assert_close(output.attention_maps, model(images, details=True).attention_maps)


@pytest.mark.parametrize("broken", ["attention", "backbone"])
@pytest.mark.parametrize("design", ["backbone", "laterals"])
def test_a_fal_leaves_no_hooks(design, broken, monkeypatch):
    model = small_fal(("p2", "p3"), design=design)
    model(some_images())
    part = model.attention["p3"] if broken == "attention" else model.backbone.layer3
    monkeypatch.setattr(part, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(some_images())
    assert not any(module._forward_hooks for module in model.modules())


def _expected_maps(maps):
    """Bilinear, half-pixel centres, then min-max map by map."""
    large = functional.interpolate(maps[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    return torch.stack([(one - one.min()) / (one.max() - one.min()) for one in large])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (small_fal, "attention.*[map]"),
        (lambda: small_fal(design="backbone"), "attention.*[map]"),
        (small_abn, "attention[map]"),
    ],
    ids=["levels", "backbone", "abn"],
)
@torch.no_grad()
def test_the_method_attention_gives_the_model_s_own_maps(make, layers):
    model, images = make(), some_images(3)
    output = model(images, details=True)
    address = "attention.{}[map]" if "*" in layers else "{}[map]"
    expected = {address.format(name): _expected_maps(maps) for name, maps in output.attention_maps.items()}
    found = xaieval.explain(model, images, layers, method="attention")
    assert sorted(found) == sorted(expected)  # found as they are computed
    rows = xaieval.score(model, [images], layers, methods="attention", progress=False).rows
    confidence, classes = output.logits.softmax(dim=1).max(dim=1)
    for layer, maps in expected.items():
        assert_close(found[layer], maps, atol=1e-5, rtol=0)
        masked = model(images * maps[:, None]).softmax(dim=1)[torch.arange(3), classes]
        measured = rows[rows["layer"] == layer]
        np.testing.assert_allclose(measured["mask_area"], maps.mean(dim=(1, 2)), atol=1e-5)
        np.testing.assert_allclose(measured["masked_confidence"], masked, atol=1e-5)
        drop = 100 * (confidence - masked).clamp(min=0) / confidence
        np.testing.assert_allclose(measured["average_drop"], drop, atol=1e-2)


def test_a_layer_of_many_channels_is_no_attention_map():
    message = "layer 'fpn[p2]' gives [2, 16, 16, 16]: name the map, such as 'attention.*[map]' of a FAL"
    with pytest.raises(ExplainerError, match=re.escape(message)):
        xaieval.explain(small_fal(), some_images(), "fpn[p2]", method="attention")
