"""ABN: one attention branch before the last stage of any timm classifier."""

from __future__ import annotations

import copy
import re

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from tests.models.attended import shuffled, small_abn, some_images
from xaieval.errors import ModelError
from xaieval.models import ABNClassifier, SeparableBlock, attention_loss

STAGES = {"test_resnet": "layer3", "resnet18": "layer3", "mobilenetv2_035": "blocks.4", "convnext_atto": "stages.2"}
SIDES = {"convnext_atto": 3}  # of the map; convolutions with an even kernel lose a pixel


@pytest.mark.parametrize("branch", ["stage", "block"])
@pytest.mark.parametrize("backbone", STAGES)
@torch.no_grad()
def test_an_abn_has_its_attention_before_the_last_stage(backbone, branch):
    model, images = small_abn(backbone, branch=branch), some_images()
    output = model(images, details=True)
    assert model.stage == STAGES[backbone]
    assert output.logits.shape == output.attention_logits["attention"].shape == (2, 10)
    side = SIDES.get(backbone, 4) if branch == "stage" else 4
    assert output.attention_maps["attention"].shape == (2, side, side)
    assert torch.equal(model(images), output.logits)


def _normed(maps, norm):
    return functional.batch_norm(maps, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def _resnet_stage(stage, maps):
    """Basic blocks in eval mode, all with stride 1."""
    for block in stage[0]:
        shortcut = maps
        if block.downsample is not None:
            convolution, norm = (part for part in block.downsample if not isinstance(part, nn.AvgPool2d | nn.Identity))
            shortcut = _normed(functional.conv2d(maps, convolution.weight), norm)
        new = _normed(functional.conv2d(maps, block.conv1.weight, padding=1), block.bn1).clamp(min=0)
        maps = (shortcut + _normed(functional.conv2d(new, block.conv2.weight, padding=1), block.bn2)).clamp(min=0)
    return maps


def _mobilenet_stage(stage, maps):
    """Inverted residuals in eval mode, all with stride 1; only those that had stride 1 before have a shortcut."""
    for blocks in stage:
        for block in blocks:
            new = _normed(functional.conv2d(maps, block.conv_pw.weight), block.bn1).clamp(0, 6)
            new = _normed(functional.conv2d(new, block.conv_dw.weight, padding=1, groups=new.shape[1]), block.bn2).clamp(0, 6)
            new = _normed(functional.conv2d(new, block.conv_pwl.weight), block.bn3)
            maps = maps + new if block.has_skip else new
    return maps


def _convnext_stage(stage, maps):
    """A norm and a 2x2 convolution without its stride, then the blocks."""
    norm, convolution = stage[0].downsample
    channels_last = functional.layer_norm(maps.permute(0, 2, 3, 1), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    maps = functional.conv2d(channels_last.permute(0, 3, 1, 2), convolution.weight, convolution.bias)
    return stage[0].blocks(maps)


def _branch(attention, features, stage):
    """The branch of the original in eval mode, from its published layers."""
    maps = _normed(stage(attention.stage, features), attention.norm)
    classes = _normed(functional.conv2d(maps, attention.classes[0].weight), attention.classes[1]).clamp(min=0)
    logits = functional.conv2d(classes, attention.classifier.weight).mean(dim=(2, 3))
    convolution, norm, _ = attention.attention
    return logits, _normed(functional.conv2d(classes, convolution.weight, padding=1), norm).sigmoid()


@pytest.mark.parametrize("backbone", ["test_resnet", "resnet18"])
@torch.no_grad()
def test_an_abn_on_a_resnet_is_the_original_run_by_hand(backbone):
    model, images = small_abn(backbone), some_images()
    b = model.backbone
    features = b.layer3(b.layer2(b.layer1(b.maxpool(b.act1(b.bn1(b.conv1(images)))))))
    logits, maps = _branch(model.attention, features, _resnet_stage)
    last = b.layer4(features + maps * features)
    output = model(images, details=True)
    assert_close(output.logits, last.mean(dim=(2, 3)) @ b.fc.weight.T + b.fc.bias)
    assert_close(output.attention_logits["attention"], logits)
    assert_close(output.attention_maps["attention"], maps[:, 0])
    assert not torch.allclose(output.logits, b(images), atol=1e-3)  # the backbone alone is a plain classifier again


@torch.no_grad()
def test_an_abn_on_mobilenet_is_its_stages_run_by_hand():
    model, images = small_abn("mobilenetv2_035"), some_images()
    b = model.backbone
    features = b.blocks[:5](b.bn1(b.conv_stem(images)))
    logits, maps = _branch(model.attention, features, _mobilenet_stage)
    last = b.blocks[5:](features + maps * features)
    output = model(images, details=True)
    assert_close(output.logits, b.classifier(b.bn2(b.conv_head(last)).mean(dim=(2, 3))))
    assert_close(output.attention_logits["attention"], logits)
    assert_close(output.attention_maps["attention"], maps[:, 0])


@torch.no_grad()
def test_an_abn_on_convnext_resizes_its_maps():
    model, images = small_abn("convnext_atto"), some_images()
    b = model.backbone
    features = b.stages[:3](b.stem(images))
    logits, maps = _branch(model.attention, features, _convnext_stage)
    assert maps.shape == (2, 1, 3, 3)
    large = functional.interpolate(maps, (4, 4), mode="bilinear", align_corners=False)
    output = model(images, details=True)
    assert_close(output.logits, b.head(b.norm_pre(b.stages[3](features + large * features))))
    assert_close(output.attention_logits["attention"], logits)
    assert_close(output.attention_maps["attention"], maps[:, 0])


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2_035"])
def test_the_branch_begins_with_a_copy_of_the_last_stage(backbone):
    model = ABNClassifier(backbone, 10)
    layers = [model.backbone.layer4] if backbone == "resnet18" else list(model.backbone.blocks[5:])
    theirs = nn.Sequential(*layers).state_dict()
    ours = model.attention.stage.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert not {tensor.data_ptr() for tensor in ours.values()} & {tensor.data_ptr() for tensor in theirs.values()}
    assert {module.stride for module in model.attention.stage.modules() if isinstance(module, nn.Conv2d)} == {(1, 1)}
    assert {m.stride for layer in layers for m in layer.modules() if isinstance(m, nn.Conv2d)} == {(1, 1), (2, 2)}
    assert {module.training for module in model.modules()} == {True}


def test_the_layers_of_the_branch_are_those_of_the_original():
    """The parameters of the branch in the authors' code for ResNet-18 and 1000 classes, counted from its text."""
    stage = (256 * 512 * 9 + 512 * 512 * 9 + 256 * 512 + 3 * 1024) + (2 * 512 * 512 * 9 + 2 * 1024)
    rest = 2 * 512 + (512 * 1000 + 2 * 1000) + 1000 * 1000 + (1000 * 9 + 2)
    attention = ABNClassifier("resnet18", 1000).attention
    assert sum(parameter.numel() for parameter in attention.parameters()) == stage + rest


def test_a_branch_of_one_block_is_small():
    attention = ABNClassifier("resnet18", 10, branch="block").attention
    assert isinstance(attention.stage, SeparableBlock)
    assert sum(parameter.numel() for parameter in attention.parameters()) < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["stage", "block"])
@pytest.mark.parametrize("backbone", STAGES)
def test_the_loss_has_a_gradient_at_every_parameter(backbone, branch):
    model = small_abn(backbone, branch=branch).train()
    attention_loss(model(some_images(4), details=True), torch.tensor([0, 3, 9, 3])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("broken", [None, "conv1", "attention", "layer4"])
def test_an_abn_leaves_no_hooks(broken, monkeypatch):
    model = small_abn()
    if broken:
        part = model.attention if broken == "attention" else getattr(model.backbone, broken)
        monkeypatch.setattr(part, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(some_images())
    else:
        model(some_images())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    assert not any(getattr(module, kind) for module in model.modules() for kind in hooks)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_abn_computes_the_same():
    model, images = small_abn(), some_images()
    assert_close(torch.compile(model, backend="eager")(images), model(images))


@pytest.mark.parametrize("arguments", [{"in_chans": 5}, {"drop_path_rate": 0.2}])
def test_an_abn_takes_the_arguments_of_its_backbone(arguments):
    model = ABNClassifier("test_resnet", 10, backbone_args=arguments).eval()
    assert model(torch.rand(2, arguments.get("in_chans", 3), 64, 64)).shape == (2, 10)


@pytest.mark.parametrize("backbone", ["test_vit", "test_mambaout", "mixer_s32_224"])
def test_an_abn_of_a_backbone_without_stages_of_maps_is_refused(backbone):
    with pytest.raises(ModelError, match=rf"backbone '{backbone}' has no stages of maps \[N, C, H, W\] to put attention"):
        ABNClassifier(backbone, 10)


@pytest.mark.parametrize("backbone", ["levit_128s", "twins_pcpvt_small", "coat_tiny"])
def test_an_abn_of_a_backbone_whose_stages_cannot_be_used_is_refused(backbone):
    # Tokens; a module that is not there; one that never runs as a whole, so that there would be no attention at all.
    with pytest.raises(ModelError, match=backbone):
        ABNClassifier(backbone, 10)


def test_an_abn_whose_last_stage_cannot_be_copied_is_refused_unless_its_branch_is_a_block(monkeypatch):
    create = timm.create_model

    def detour(*args, **options):
        model = create(*args, **options)
        model.layer4, rest = nn.Identity(), model.layer4  # the last stage is elsewhere
        model.layer4.register_forward_hook(lambda module, inputs, output: rest(output))
        return model

    monkeypatch.setattr(timm, "create_model", detour)
    message = (
        "the modules after 'layer3' up to 'layer4' cannot be the stage of a branch: they cannot run with stride 1 on maps "
        "[N, C, H, W]; take branch='block'"
    )
    with pytest.raises(ModelError, match=re.escape(message)):
        ABNClassifier("test_resnet", 10)
    assert ABNClassifier("test_resnet", 10, branch="block").eval()(some_images()).shape == (2, 10)


def test_an_unknown_branch_is_refused():
    with pytest.raises(ModelError, match=r"no branch 'blocks' for attention; did you mean 'block'\? known: block, stage"):
        ABNClassifier("test_resnet", 10, branch="blocks")


@torch.no_grad()
def test_copies_of_an_abn_do_what_it_does(tmp_path):
    first, second, images = small_abn(), small_abn(), some_images()
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    assert not torch.allclose(first(images), second(images), atol=1e-3)
    second.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(first(images), second(images))
    assert torch.equal(first(images), copy.deepcopy(first)(images))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["test_resnet", "convnext_atto", "repvit_m0_9"])
@torch.no_grad()
def test_an_abn_on_a_trained_backbone_has_its_weights_and_a_head_of_zeros(backbone, tmp_path):
    plain, images = shuffled(timm.create_model(backbone)).eval(), some_images()
    save_file(plain.state_dict(), tmp_path / "weights.safetensors")
    model = ABNClassifier(backbone, 10, pretrained=tmp_path / "weights.safetensors").eval()
    assert_close(model.backbone.forward_features(images), plain.forward_features(images))
    assert model(images).shape == (2, 10)
    assert (model(images) == 0).all()
    path = "layer4" if backbone == "test_resnet" else "stages.3"
    for name, tensor in model.attention.stage.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[path + name.removeprefix("0")])
