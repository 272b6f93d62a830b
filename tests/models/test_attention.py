"""Attention branches, ABN and FAL, their overhead, and pretrained backbones."""

from __future__ import annotations

import gc
import itertools
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

import xaieval
from xaieval.errors import AddressError, ExplainerError, ModelError, WeightsError
from xaieval.models import (
    FAL,
    LEVELS,
    ABNClassifier,
    AttentionBranch,
    AttentionOutput,
    FPNClassifier,
    attend,
    attention_loss,
    overhead,
    read_weights,
)
from xaieval.models.fpn import stages
from xaieval.models.weights import check_fit
from xaieval.probe.hooks import probe

SUBSETS = [levels for count in (1, 2, 3, 4) for levels in itertools.combinations(LEVELS, count)]


def _shuffle(model):
    """Random numbers for every weight and statistic, so that none of them can be left out without a difference."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.normal_(0, 0.3)
    return model


def _fal(levels=("p2", "p3"), **options):
    return _shuffle(FAL("test_resnet", 10, levels, channels=16, **options)).eval()


def _abn(backbone="test_resnet", **options):
    return _shuffle(ABNClassifier(backbone, 10, **options)).eval()


def _images(count=2):
    return torch.rand(count, 3, 64, 64)


# The attention branch


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    exponent=st.floats(-6, 6),
    size=st.tuples(st.integers(2, 3), st.integers(1, 6), st.integers(1, 6)),
    training=st.booleans(),
)
def test_a_map_lies_between_0_and_1_whatever_the_features(seed, exponent, size, training):
    torch.manual_seed(seed)
    branch = _shuffle(AttentionBranch(3, 2)).train(training)
    found = branch(10**exponent * torch.randn(size[0], 3, *size[1:]))
    maps = found["map"]
    assert maps.shape == (size[0], 1, *size[1:])
    assert found["logits"].shape == (size[0], 2)
    assert 0 <= maps.min() <= maps.max() <= 1  # false for NaN too


@pytest.mark.parametrize("training", [True, False])
def test_attention_logits_of_zero_are_a_map_of_one_half(training):
    branch, features = _shuffle(AttentionBranch(6, 4)).train(training), torch.randn(3, 6, 5, 5)
    nn.init.zeros_(branch.attention[1].weight), nn.init.zeros_(branch.attention[1].bias)
    maps = branch(features)["map"]
    assert (maps == 0.5).all()
    assert torch.equal(attend(features, maps), 1.5 * features)


@pytest.mark.parametrize("training", [True, False])
def test_a_branch_starts_near_the_identity_only_if_it_is_told_to(training):
    features = torch.rand(4, 16, 9, 9)
    near, opened = (AttentionBranch(16, 5, near_identity=near).train(training)(features)["map"] for near in (True, False))
    assert 0 < near.median() < 0.05
    assert 0.4 < opened.median() < 0.6


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("blocks", "residual"), [(0, True), (1, True), (1, False), (2, True), (2, False)])
def test_a_branch_is_what_its_formula_says(blocks, residual, training):
    branch = _shuffle(AttentionBranch(6, 4, blocks=blocks, residual=residual)).train(training)
    weights, features = {name: tensor.clone() for name, tensor in branch.state_dict().items()}, torch.randn(3, 6, 5, 7)

    def norm(maps, name):
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        if training:
            mean, variance = maps.mean(dim=(0, 2, 3)), maps.var(dim=(0, 2, 3), correction=0)
        scale = weights[f"{name}.weight"] / (variance + 1e-5).sqrt()
        return (maps - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + weights[f"{name}.bias"].view(1, -1, 1, 1)

    maps = features
    for block in range(blocks):
        new = norm(functional.conv2d(maps, weights[f"blocks.{block}.convolution.weight"], padding=1), f"blocks.{block}.norm")
        maps = (new + maps if residual else new).clamp(min=0)
    classes = torch.einsum("kc,nchw->nkhw", weights["classes.0.weight"][:, :, 0, 0], norm(maps, "norm"))
    classes = norm(classes, "classes.1").clamp(min=0)
    logits = classes.mean(dim=(2, 3)) @ weights["classifier.weight"][:, :, 0, 0].T + weights["classifier.bias"]
    attention = norm(functional.conv2d(classes, weights["attention.0.weight"], padding=1), "attention.1")
    given_to_it = features.clone()
    found = branch(features)
    assert_close(found["logits"], logits)
    assert_close(found["map"], 1 / (1 + (-attention).exp()))
    assert torch.equal(features, given_to_it)


def _held(model):
    """What every module holds (containers by their content), and all weights and statistics."""
    attributes = {(path, name): value for path, module in model.named_modules() for name, value in vars(module).items()}
    held = {at: [(k, id(v)) for k, v in x.items()] if isinstance(x, dict) else id(x) for at, x in attributes.items()}
    return held, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _in_graphs():
    gc.collect()
    return {id(thing) for thing in gc.get_objects() if type(thing) is torch.Tensor and thing.grad_fn is not None}


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: AttentionBranch(3, 10), {}),
        (lambda: FAL("test_resnet", 10, ("p2", "p4"), channels=16), {"details": True}),
        (lambda: ABNClassifier("test_resnet", 10), {"details": True}),
    ],
)
def test_nothing_is_kept_on_a_model(make, options, training):
    model = make().train(training)
    (held, values), alive = _held(model), _in_graphs()
    found = model(_images(), **options)
    assert _in_graphs() > alive
    assert _held(model)[0] == held
    changed = {name.rsplit(".", 1)[1] for name, value in model.state_dict().items() if not torch.equal(value, values[name])}
    assert changed == ({"running_mean", "running_var", "num_batches_tracked"} if training else set())
    del found
    assert _in_graphs() <= alive


@pytest.mark.parametrize("make", [lambda: _fal(SUBSETS[-1]), lambda: _fal(("p3",), place="before", blocks=2), _abn])
def test_the_loss_has_a_gradient_at_every_parameter(make):
    model = make().train()
    attention_loss(model(_images(4), details=True), torch.tensor([0, 3, 9, 3])).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("weight", [1.0, 0.0, 0.3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("branches", [1, 3])
def test_the_loss_is_that_of_hand_computed_entropies(weight, smoothing, branches):
    rng, labels = np.random.default_rng(0), [2, 0, 4, 4]
    logits = rng.normal(0, 2, (1 + branches, 4, 5))

    def entropy(of):
        losses = []
        for row, label in zip(of, labels, strict=True):
            logs = [x - math.log(sum(math.exp(y) for y in row)) for x in row]
            wanted = [(1 - smoothing) * (k == label) + smoothing / 5 for k in range(5)]
            losses.append(-sum(q * log for q, log in zip(wanted, logs, strict=True)))
        return sum(losses) / 4

    first, *others = torch.from_numpy(logits)
    output = AttentionOutput(first, {str(index): other for index, other in enumerate(others)})
    expected = entropy(logits[0]) + weight * sum(entropy(other) for other in logits[1:]) / branches
    options = {} if (weight, smoothing) == (1, 0) else {"weight": weight, "label_smoothing": smoothing}
    assert attention_loss(output, torch.tensor(labels), **options).item() == pytest.approx(expected, rel=1e-12)


# FAL


@pytest.mark.parametrize("levels", SUBSETS, ids="-".join)
def test_attention_changes_the_chosen_levels_alone(levels):
    model, images = _fal(reversed(levels)), _images()
    seen = probe(model, images, ["fpn[*]", "levels[*]", "attention.*[map]"]).activations
    assert [address for address in seen if address.startswith("attention")] == [f"attention.{name}[map]" for name in levels]
    for level in LEVELS:
        fpn, after = seen[f"fpn[{level}]"], seen[f"levels[{level}]"]
        if level not in levels:
            assert torch.equal(after, fpn)
            continue
        maps = seen[f"attention.{level}[map]"]
        assert maps.shape == (2, 1, 64 // LEVELS[level], 64 // LEVELS[level])
        assert_close(after, fpn + maps * fpn)
        assert ((after - fpn).abs() > 0.01 * fpn.abs()).any()


@pytest.mark.parametrize("place", ["after", "before"])
@pytest.mark.parametrize("head", ["mean", "concat"])
@torch.no_grad()
def test_details_go_with_the_same_logits(head, place):
    model, images = _fal(("p4", "p2"), head=head, place=place), _images()
    output, seen = model(images, details=True), probe(model, images, ["levels[*]", "attention.*[map]"]).activations
    assert isinstance(output, AttentionOutput)
    assert torch.equal(output.logits, model(images))
    assert list(output.attention_maps) == list(output.attention_logits) == ["p2", "p4"]
    for level, maps in output.attention_maps.items():
        assert torch.equal(maps, seen[f"attention.{level}[map]"][:, 0])
    pooled = [seen[f"levels[{level}]"].mean(dim=(2, 3)) for level in LEVELS]
    if head == "mean":
        linear = [model.head.classifiers[level] for level in LEVELS]
        expected = sum(vector @ one.weight.T + one.bias for one, vector in zip(linear, pooled, strict=True)) / 4
    else:
        expected = torch.cat(pooled, dim=1) @ model.head.classifier.weight.T + model.head.classifier.bias
    assert_close(output.logits, expected)


@torch.no_grad()
def test_attention_before_the_merge_is_on_the_backbone_s_features():
    model, images = _fal(("p3", "p5"), place="before"), _images()
    seen = probe(model, images, ["fpn[*]", "levels[*]"]).activations
    plain = dict(zip(LEVELS, model.backbone(images), strict=True))
    found = {level: model.attention[level](plain[level]) for level in ("p3", "p5")}
    attended = {level: maps * (1 + found[level]["map"]) if level in found else maps for level, maps in plain.items()}
    for level, expected in model.fpn(attended).items():
        assert_close(seen[f"fpn[{level}]"], expected)
        assert torch.equal(seen[f"levels[{level}]"], seen[f"fpn[{level}]"])
    assert_close(model(images, details=True).attention_logits["p5"], found["p5"]["logits"])
    # The merge goes from coarse to fine: attention at p3 changes p2 and p3 and no other.
    only, without = _fal(("p3",), place="before"), _fal(("p3",), place="before")
    without.load_state_dict(only.state_dict())
    nn.init.constant_(without.attention["p3"].attention[1].bias, -1000.0)
    levels = [probe(each, images, ["fpn[*]"]).activations for each in (only, without)]
    assert [torch.equal(levels[0][name], levels[1][name]) for name in levels[0]] == [False, False, True, True]


def test_the_levels_and_the_maps_have_addresses():
    listing = xaieval.list_layers(_fal(), _images()).set_index("address")["stride"]
    assert dict(listing[["fpn[p2]", "levels[p2]", "attention.p2[map]", "attention.p3[map]", "levels[p5]"]]) == {
        "fpn[p2]": 4, "levels[p2]": 4, "attention.p2[map]": 4, "attention.p3[map]": 8, "levels[p5]": 32,
    }  # fmt: skip
    assert "attention.p4[map]" not in listing


def _fpn(head="mean", **options):
    return _shuffle(FPNClassifier("test_resnet", 10, channels=16, head=head, **options)).eval()


@pytest.mark.parametrize("head", ["mean", "concat"])
@torch.no_grad()
def test_fal_from_an_fpn_has_its_weights_and_nearly_its_predictions(head):
    fpn, images = _fpn(head), _images(4)
    before = {name: tensor.clone() for name, tensor in fpn.state_dict().items()}
    fal = FAL.from_fpn(fpn, ["p2", "p3"]).eval()
    weights = fal.state_dict()
    assert {name for name in weights if not name.startswith("attention.")} == before.keys()
    for name, tensor in before.items():
        assert torch.equal(weights[name], tensor)
        assert torch.equal(fpn.state_dict()[name], tensor)
        assert weights[name].data_ptr() != fpn.state_dict()[name].data_ptr()
    opened = FAL.from_fpn(fpn, ["p2", "p3"], near_identity=False).eval()
    near, far = ((model(images) - fpn(images)).norm() / fpn(images).norm() for model in (fal, opened))
    assert 0 < near < 0.05
    assert far > 4 * near


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_fal_from_an_fpn_is_on_its_device():
    assert {p.device.type for p in FAL.from_fpn(_fpn().cuda(), ["p2"]).parameters()} == {"cuda"}


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
    fpn = _fpn()
    fal = FAL.from_scores(fpn, _scores(layer=layer), blocks=2)
    assert list(fal.attention) == ["p2", "p3"]
    assert len(fal.attention["p2"].blocks) == 2
    assert all(torch.equal(fal.state_dict()[name], tensor) for name, tensor in fpn.state_dict().items())
    turned = _scores((15, 80, 16, 85), (18, 0, 16, 0), layer)
    assert list(FAL.from_scores(fpn, turned).attention) == ["p3", "p5"]
    assert list(FAL.from_scores(fpn, turned, k=1).attention) == ["p5"]
    assert list(FAL.from_scores(fpn, turned, k=3).attention) == ["p3", "p4", "p5"]


def test_fal_from_scores_without_a_bad_level_is_refused_unless_k_asks():
    alike = _scores((50, 51, 49, 50), (9, 10, 9, 8))
    with pytest.raises(ModelError, match=r"(?s)no layer is significantly worse than the best.*give k= to ask for the k worst"):
        FAL.from_scores(_fpn(), alike)
    assert len(FAL.from_scores(_fpn(), alike, k=2).attention) == 2


@pytest.mark.parametrize("layer", ["backbone.layer{}", "levels.p{}", "fpn[{}]", "p{}"])
def test_fal_from_scores_of_other_layers_is_refused(layer):
    with pytest.raises(AddressError, match=re.escape(f"layer '{layer.format(2)}' is no pyramid level; 'fpn[p2]' to")):
        FAL.from_scores(_fpn(), _scores(layer=layer))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_levels": ["p2", "p6"]}, "no pyramid level 'p6'; known: p2, p3, p4, p5"),
        ({"attention_levels": "p2,p3"}, "no pyramid level 'p2,p3'; "),
        ({"attention_levels": ()}, "attention levels are one or more of p2, p3, p4, p5, each once; got []"),
        ({"attention_levels": ["p3", "p3"]}, "attention levels are one or more of p2, p3, p4, p5, each once; got ['p3', 'p3']"),
        ({"place": "befor"}, "no place 'befor' for attention; did you mean 'before'? known: after, before"),
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


def test_training_a_fal_lowers_its_loss():
    model = FAL("test_resnet", 2, ["p2", "p3"], channels=16).train()
    labels = torch.tensor([0, 1] * 4)
    images = 0.2 * torch.randn(8, 3, 64, 64) + (2.0 * labels - 1).view(-1, 1, 1, 1)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(10):
        losses.append(attention_loss(model(images, details=True), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


# The attention maps as explanations


def _expected_maps(maps):
    """Bilinear, half-pixel centres, then min-max map by map."""
    large = functional.interpolate(maps[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    return torch.stack([(one - one.min()) / (one.max() - one.min()) for one in large])


@pytest.mark.slow
@pytest.mark.parametrize(("make", "layers"), [(_fal, "attention.*[map]"), (_abn, "attention[map]")])
@torch.no_grad()
def test_the_method_attention_gives_the_model_s_own_maps(make, layers):
    model, images = make(), _images(3)
    output = model(images, details=True)
    address = "attention.{}[map]" if "*" in layers else "{}[map]"
    expected = {address.format(name): _expected_maps(maps) for name, maps in output.attention_maps.items()}
    found = xaieval.explain(model, images, layers, method="attention")
    assert list(found) == list(expected)
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
        xaieval.explain(_fal(), _images(), "fpn[p2]", method="attention")


# ABN

STAGES = {"test_resnet": "layer3", "resnet18": "layer3", "mobilenetv2_035": "blocks.4", "convnext_atto": "stages.2"}


@pytest.mark.parametrize("backbone", STAGES)
@torch.no_grad()
def test_an_abn_has_its_attention_before_the_last_stage(backbone):
    model, images = _abn(backbone), _images()
    output = model(images, details=True)
    assert model.stage == STAGES[backbone]
    assert output.logits.shape == output.attention_logits["attention"].shape == (2, 10)
    assert output.attention_maps["attention"].shape == (2, 4, 4)
    assert torch.equal(model(images), output.logits)


@torch.no_grad()
def test_an_abn_is_its_stages_run_by_hand():
    model, images = _abn(), _images()
    b = model.backbone
    features = b.layer3(b.layer2(b.layer1(b.maxpool(b.act1(b.bn1(b.conv1(images)))))))
    found = model.attention(features)
    last = b.layer4(features + found["map"] * features)
    output = model(images, details=True)
    assert_close(output.logits, last.mean(dim=(2, 3)) @ b.fc.weight.T + b.fc.bias)
    assert_close(output.attention_logits["attention"], found["logits"])
    assert_close(output.attention_maps["attention"], found["map"][:, 0])
    assert not torch.allclose(output.logits, b(images), atol=1e-3)  # the backbone alone is a plain classifier again


@pytest.mark.parametrize("broken", [None, "conv1", "attention", "layer4"])
def test_an_abn_leaves_no_hooks(broken, monkeypatch):
    model = _abn()
    if broken:
        part = model.attention if broken == "attention" else getattr(model.backbone, broken)
        monkeypatch.setattr(part, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(_images())
    else:
        model(_images())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    assert not any(getattr(module, kind) for module in model.modules() for kind in hooks)


@pytest.mark.parametrize("backbone", ["test_vit", "test_mambaout", "mixer_s32_224"])
def test_an_abn_of_a_backbone_without_stages_of_maps_is_refused(backbone):
    with pytest.raises(ModelError, match=rf"backbone '{backbone}' has no stages of maps \[N, C, H, W\] to put attention"):
        ABNClassifier(backbone, 10)


@pytest.mark.parametrize("backbone", ["levit_128s", "twins_pcpvt_small", "coat_tiny"])
def test_an_abn_of_a_backbone_whose_stages_cannot_be_used_is_refused(backbone):
    # Tokens; a module that is not there; one that never runs as a whole, so that there would be no attention at all.
    with pytest.raises(ModelError, match=backbone):
        ABNClassifier(backbone, 10).eval()(torch.rand(1, 3, 224, 224))


@pytest.mark.parametrize("make", [_abn, _fal])
@torch.no_grad()
def test_a_model_with_attention_comes_back_from_its_state(make, tmp_path):
    first, second, images = make(), make(), _images()
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    assert not torch.allclose(first(images), second(images), atol=1e-3)
    second.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(first(images), second(images))


# What a model costs


def _chain(*widths):
    return nn.Sequential(*(nn.Conv2d(first, second, 1) for first, second in itertools.pairwise(widths)))


class KeepsAll(nn.Sequential):
    def forward(self, images):
        kept = [images]
        for module in self:
            kept.append(module(kept[-1]))
        return kept[-1]


def test_parameters_and_multiply_adds_are_those_counted_by_hand():
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    cost = overhead(model, _chain(3, 4), torch.rand(3, 3, 8, 8), repeats=1)
    assert cost.parameters == (3 * 9 * 4 + 4) + (4 + 4) + 2 * 9 * 8 + (128 * 5 + 5)
    assert cost.multiply_adds == 64 * 4 * 27 + 16 * 8 * 18 + 128 * 5  # of one image
    assert cost.parameters_ratio == cost.parameters / (3 * 4 + 4)
    assert cost.multiply_adds_ratio == cost.multiply_adds / (64 * 4 * 3)
    assert set(cost.to_dict()) == set(vars(cost))


def test_a_model_costs_as_much_as_itself():
    model = _fal()
    cost = overhead(model, model, _images(), repeats=3)
    assert cost.parameters_ratio == cost.multiply_adds_ratio == cost.memory_ratio == 1
    assert 0 < cost.latency_low <= cost.latency_ratio <= cost.latency_high


@pytest.mark.parametrize(
    ("model", "channels"),
    [
        (_chain(3, 4, 8), 4 + 8),
        (_chain(3, 8, 4, 4, 4), 8 + 4),
        (KeepsAll(*_chain(3, 4, 4, 4, 4)), 4 * 4),
        (nn.Sequential(*_chain(3, 4), nn.ReLU()), 4 + 4),
        (nn.Sequential(*_chain(3, 4), nn.ReLU(inplace=True), nn.Flatten()), 4),
        (nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (8, 8)), *_chain(3, 4)), 4),  # what only looks at the images is no memory
    ],
)
def test_the_peak_of_memory_is_that_of_the_tensors_alive(model, channels):
    assert overhead(model, _chain(3, 4, 4), torch.rand(2, 3, 8, 8), repeats=1).memory_ratio == channels / (4 + 4)


class Clocked(nn.Module):
    def __init__(self, clock, *seconds):
        super().__init__()
        self.convolution, self.clock, self.seconds = nn.Conv2d(3, 4, 1), clock, iter(seconds)

    def forward(self, images):
        self.clock.now += next(self.seconds)
        return self.convolution(images)


def test_latency_is_the_median_of_ratios_after_a_pass_that_does_not_count(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(sys.modules["xaieval.models.overhead"], "time", SimpleNamespace(perf_counter=lambda: clock.now))
    model = Clocked(clock, 70, 70, 70, 6, 12, 3)  # operations, memory and warm-up first
    cost = overhead(model, Clocked(clock, *[2] * 6), torch.rand(1, 3, 8, 8), repeats=3)
    assert (cost.latency_low, cost.latency_ratio, cost.latency_high) == (1.5, 3, 6)


@pytest.mark.parametrize("fails", [False, True])
def test_the_modes_of_both_models_come_back(fails):
    model, reference = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()) for _ in range(2))
    model[1].eval(), reference.eval(), reference[2].train()
    seen = []
    reference[1].register_forward_hook(lambda *_: seen.append([module.training for module in reference.modules()]))
    images = torch.rand(2, 3, 8, 8)
    if fails:
        reference.append(nn.Linear(3, 3)).eval()[2].train()
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            overhead(model, reference, images)
    else:
        overhead(model, reference, images)
    assert seen
    assert not any(itertools.chain(*seen))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert [module.training for module in reference.modules()] == [False, False, False, True] + [False] * fails
    assert reference[1].num_batches_tracked == 0


@pytest.mark.parametrize("repeats", [0, -1])
def test_costs_without_repeats_are_refused(repeats):
    with pytest.raises(ModelError, match=f"on at least one image in at least one repeat, got 1 and {repeats}"):
        overhead(_chain(3, 4), _chain(3, 4), torch.rand(1, 3, 8, 8), repeats=repeats)


# Trained backbones


def _source(weights, kind, tmp_path):
    if kind == "mapping":
        return weights
    save_file(weights, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors" if kind == "path" else str(tmp_path / "weights.safetensors")


def _body(plain):
    """The weights but for the classifier's."""
    classifier = plain.pretrained_cfg["classifier"]
    return {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith(f"{classifier}.")}


@pytest.mark.parametrize("make", [FPNClassifier, FAL])
@pytest.mark.parametrize(
    ("backbone", "kind", "head"),
    [
        ("test_resnet", "mapping", "mean"),
        ("test_resnet", "path", "concat"),
        ("test_resnet", "text", "mean"),
        ("convnext_atto", "mapping", "concat"),  # the names of its feature extractor are others
        ("convnext_atto", "path", "mean"),
        ("test_mambaout", "mapping", "mean"),
    ],
)
@torch.no_grad()
def test_a_pyramid_on_a_trained_backbone_has_its_features_and_a_head_of_zeros(make, backbone, kind, head, tmp_path):
    plain, images = _shuffle(timm.create_model(backbone, num_classes=7)).eval(), _images()
    weights = _body(plain) if kind == "mapping" else timm.create_model(backbone).state_dict() | _body(plain)
    model = make(backbone, 10, channels=16, head=head, pretrained=_source(weights, kind, tmp_path)).eval()
    expected = plain.forward_intermediates(images, intermediates_only=True)[-4:]
    for ours, theirs in zip(stages(model.backbone, images).values(), expected, strict=True):
        assert_close(ours, theirs)
    assert (model(images) == 0).all()
    assert (make(backbone, 10, channels=16, head=head).eval()(images) != 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["test_resnet", "convnext_atto", "repvit_m0_9"])
@torch.no_grad()
def test_an_abn_on_a_trained_backbone_has_its_weights_and_a_head_of_zeros(backbone, tmp_path):
    plain, images = _shuffle(timm.create_model(backbone)).eval(), _images()
    model = ABNClassifier(backbone, 10, pretrained=_source(plain.state_dict(), "path", tmp_path)).eval()
    assert_close(model.backbone.forward_features(images), plain.forward_features(images))
    assert model(images).shape == (2, 10)
    assert (model(images) == 0).all()


@pytest.mark.parametrize("kind", ["mapping", "path"])
@pytest.mark.parametrize("make", [FPNClassifier, FAL, ABNClassifier])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"layer1.0.conv1.weight": None}, "missing: layer1.0.conv1.weight"),
        ({"layer5.weight": torch.ones(1)}, "left over: layer5.weight"),
        ({"bn1.weight": torch.ones(3)}, "of another shape: bn1.weight [3] instead of [32]"),
    ],
)
def test_weights_of_another_backbone_are_refused(make, change, fault, kind, tmp_path):
    weights = {**timm.create_model("test_resnet").state_dict(), **change}
    source = _source({name: tensor for name, tensor in weights.items() if tensor is not None}, kind, tmp_path)
    with pytest.raises(WeightsError) as caught:
        make("test_resnet", 10, pretrained=source)
    place = "the mapping" if kind == "mapping" else "'weights.safetensors'"
    assert str(caught.value) == f"{place} does not fit backbone 'test_resnet': {fault}"


def test_a_fit_names_a_few_of_all_faults():
    wanted = {name: torch.zeros(2) for name in "abcdef"}
    check_fit({name: torch.ones(2) for name in "fedcba"}, wanted, "the file", "the model")
    with pytest.raises(WeightsError) as caught:
        check_fit({"f": torch.zeros(2, 1), "x": torch.zeros(1)}, wanted, "the file", "the model")
    assert str(caught.value) == (
        "the file does not fit the model: missing: a, b, c and 2 more; left over: x; of another shape: f [2, 1] instead of [2]"
    )


def test_weights_are_read_by_name(tmp_path):
    wanted, content = {"a": torch.rand(2), "b.c": torch.rand(1)}, {}
    content["nested.pth"], content["plain.pth"] = {"epoch": 1, "model": wanted}, wanted
    for name, saved in content.items():
        torch.save(saved, tmp_path / name)
    save_file(wanted, tmp_path / "plain.safetensors")
    for name in (*content, "plain.safetensors"):
        found = read_weights(tmp_path / name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    with pytest.raises(WeightsError, match=r"no weights file '.*none\.pth'"):
        FPNClassifier("test_resnet", 10, pretrained=str(tmp_path / "none.pth"))


@pytest.mark.parametrize("pretrained", [False, {}])
@pytest.mark.parametrize("make", [FPNClassifier, FAL, ABNClassifier])
def test_arguments_that_a_backbone_does_not_take_are_named(make, pretrained):
    with pytest.raises(ModelError, match=r"backbone 'test_resnet' cannot be built with \{'depht': 3.*unexpected.* 'depht'"):
        make("test_resnet", 10, pretrained=pretrained, backbone_args={"depht": 3})


@pytest.mark.shared
@torch.no_grad()
def test_real_weights_give_the_features_of_timm_s_own_extractor(imagenet_weights):
    images = torch.rand(2, 3, 96, 96) * 2 - 1
    timms = timm.create_model("mobilenetv2_100", pad_type="same", features_only=True).eval()
    assert timms.load_state_dict(load_file(imagenet_weights), strict=False).missing_keys == []
    options = {"channels": 8, "pretrained": imagenet_weights}
    model = FPNClassifier("mobilenetv2_100", 21, **options, backbone_args={"pad_type": "same"}).eval()
    other = FPNClassifier("mobilenetv2_100", 21, **options).eval()  # padded otherwise, with the same weights
    for ours, unlike, theirs in zip(model.backbone(images), other.backbone(images), timms(images)[1:], strict=True):
        assert_close(ours, theirs)
        assert not torch.allclose(unlike, theirs, atol=1e-2)
    assert (model(images) == 0).all()
