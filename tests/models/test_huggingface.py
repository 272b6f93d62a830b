"""Models of transformers: loaded from folders, probed at their layers, and scored equal to direct calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_convert, box_iou

from xaieval import Protocol, explain, list_layers, score
from xaieval.cli import main
from xaieval.data import Preprocessing
from xaieval.errors import AddressError, ModelError, TargetError, UsageError, WeightsError
from xaieval.explainers.detectors import DRISE
from xaieval.explainers.perturbation import RandomMasks
from xaieval.inference.query_detections import query_detections
from xaieval.inference.tasks import Detection
from xaieval.models import ZeroShot, load_model
from xaieval.models.image_processors import preprocessing_of
from xaieval.probe.hooks import probe

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

HEIGHT, WIDTH, CLASSES = 64, 96, 5
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FOUR = {"hidden_sizes": [8, 12, 20, 24], "depths": [1, 1, 1, 1]}
TEXT = SMALL | {"vocab_size": 50, "max_position_embeddings": 12, "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 0}
VISION = SMALL | {"image_size": 64, "patch_size": 16}
PROMPTS = ["a photo of a cat", "a photo of a dog", "a street"]
TOKENS = torch.tensor([[48, 3, 4, 49, 0], [48, 3, 5, 7, 49], [48, 9, 49, 0, 0]])


def _config(kind: str, **more: object) -> transformers.PretrainedConfig:
    return getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **more)


def _vit(kind: str = "ViT") -> transformers.PretrainedConfig:
    return _config(kind, **SMALL, image_size=[HEIGHT, WIDTH], patch_size=16)


def _swin() -> transformers.PretrainedConfig:
    # Windows of 4 x 4 divide the first two grids, 16 x 24 and 8 x 12; the third, 4 x 6, is padded.
    sizes = {"embed_dim": 16, "depths": [2, 1, 1], "num_heads": [1, 2, 2], "window_size": 4}
    return _config("Swin", image_size=[HEIGHT, WIDTH], patch_size=4, **sizes)


def _segformer() -> transformers.PretrainedConfig:
    return _config("Segformer", **FOUR, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16)


def _clip() -> transformers.CLIPModel:
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))


def _siglip() -> transformers.SiglipModel:
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VISION))


Maps = Callable[[object], Tensor]


def _tokens(height: int, width: int, before: int = 0) -> Maps:
    """Tokens `[N, T, C]` as maps, one cell after another."""

    def maps(output: object) -> Tensor:
        tokens = output[0] if isinstance(output, tuple) else output
        found = torch.empty(len(tokens), tokens.shape[2], height, width)
        for row in range(height):
            for column in range(width):
                found[:, :, row, column] = tokens[:, before + row * width + column]
        return found

    return maps


def _as_it_is(output: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class Case:
    """A model, addresses at which it is looked at, and what the first of them is by hand."""

    make: Callable[[], nn.Module]
    layers: dict[str, tuple[int, int]]  # address to size of its map
    module: str  # of the first address
    maps: Maps  # from what the module returns
    size: tuple[int, int] = (HEIGHT, WIDTH)


VIT_LAYERS = {"embeddings": (4, 6), "layers.0": (4, 6), "layernorm": (4, 6), "embeddings.patch_embeddings.projection": (4, 6)}

CASES = {
    "ViT": Case(
        lambda: transformers.ViTForImageClassification(_vit()),
        {"vit.layers.1.layernorm_before": (4, 6), "vit[last_hidden_state]": (4, 6), "vit.layers.1.mlp": (4, 6)}
        | {f"vit.{name}": size for name, size in VIT_LAYERS.items()},
        "vit.layers.1.layernorm_before",
        _tokens(4, 6, before=1),
    ),
    "DeiT": Case(
        lambda: transformers.DeiTForImageClassificationWithTeacher(_vit("DeiT")),
        {"deit.layers.1.layernorm_before": (4, 6)} | {f"deit.{name}": size for name, size in VIT_LAYERS.items()},
        "deit.layers.1.layernorm_before",
        _tokens(4, 6, before=2),
    ),
    "Swin": Case(
        lambda: transformers.SwinForImageClassification(_swin()),
        {
            "swin.encoder.layers.1.blocks.0[0]": (8, 12),
            "swin.embeddings[0]": (16, 24),
            "swin.encoder.layers.0.blocks.1[0]": (16, 24),
            "swin.encoder.layers.0[0]": (8, 12),
            "swin.encoder.layers.0[1]": (8, 12),
            "swin.encoder.layers.1[0]": (4, 6),
            "swin.encoder.layers.2.blocks.0.mlp": (4, 6),
            "swin.layernorm": (4, 6),
        },
        "swin.encoder.layers.1.blocks.0",
        _tokens(8, 12),
    ),
    "ConvNeXt": Case(
        lambda: transformers.ConvNextForImageClassification(_config("ConvNext", **FOUR)),
        {
            "convnext.encoder.stages.2": (4, 6),
            "convnext.encoder.stages.0": (16, 24),
            "convnext.encoder.stages.1.layers.0.pwconv2": (8, 12),
            "convnext.encoder.stages.3": (2, 3),
        },
        "convnext.encoder.stages.2",
        _as_it_is,
    ),
    "ResNet": Case(
        lambda: transformers.ResNetForImageClassification(
            _config("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
        {"resnet.encoder.stages.1": (8, 12), "resnet.embedder": (16, 24), "resnet.encoder.stages.0": (16, 24)},
        "resnet.encoder.stages.1",
        _as_it_is,
    ),
    "SegFormer": Case(
        lambda: transformers.SegformerForImageClassification(_segformer()),
        {
            "segformer.stages.2": (4, 6),
            "segformer.stages.0": (16, 24),
            "segformer.stages.1.blocks.0": (8, 12),
            "segformer.stages.3.layer_norm": (2, 3),
            "segformer[last_hidden_state]": (2, 3),
        },
        "segformer.stages.2",
        _as_it_is,
    ),
    "CLIP": Case(
        lambda: ZeroShot(_clip(), PROMPTS, TOKENS),
        {
            "model.vision_model.encoder.layers.0": (4, 4),
            "model.vision_model.embeddings": (4, 4),
            "model.vision_model.encoder.layers.1": (4, 4),
        },
        "model.vision_model.encoder.layers.0",
        _tokens(4, 4, before=1),
        (64, 64),
    ),
    "SigLIP": Case(
        lambda: ZeroShot(_siglip(), PROMPTS, TOKENS),
        {"model.vision_model.encoder.layers.1": (4, 4), "model.vision_model.post_layernorm": (4, 4)},
        "model.vision_model.encoder.layers.1",
        _tokens(4, 4),
        (64, 64),
    ),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _model(case: Case) -> nn.Module:
    """With random weights large enough that images make a difference to the logits."""
    torch.manual_seed(0)
    model = case.make().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embedding" not in name:
                parameter.mul_(4 if "classifier" in name else 1.5)
    return model


# ---- where the layers are


@cases
def test_a_bright_square_lights_up_where_it_is_at_every_layer(case):
    model, (height, width) = _model(case), case.size
    images = torch.full((2, 3, height, width), 0.4)
    images[1, :, :32, width - 32 :] = 1.0  # the upper right corner, as wide as two patches
    seen = probe(model, images, list(case.layers)).activations
    assert {address: tuple(maps.shape[2:]) for address, maps in seen.items()} == case.layers
    for address, maps in seen.items():
        difference = (maps[1] - maps[0]).abs().mean(dim=0)
        row, column = divmod(int(difference.argmax()), difference.shape[1])
        stride = height / difference.shape[0]
        # What is seen of the square may reach one cell further, by the kernels on the way.
        assert row * stride < 32 + stride, address
        assert (column + 1) * stride > width - 32 - stride, address


@cases
def test_every_listed_layer_with_a_map_can_be_explained_or_says_why_not(case):
    model = _model(case)
    images = torch.rand(2, 3, *case.size)
    listing = list_layers(model, images)
    assert set(case.layers) <= set(listing["address"])
    with_map = listing[listing["stride"].notna()]["address"]
    refused = 0
    for address in list(with_map)[:: max(1, len(with_map) // 6)]:
        try:
            maps = explain(model, images, address)[address]
        except AddressError as error:  # off the way to the prediction, such as a table of positions
            assert "does not depend on" in str(error)  # noqa: PT017  # not the only way it may end
            refused += 1
        else:
            assert maps.shape == (2, *case.size)
    assert refused < 3


def test_windows_of_swin_are_no_maps():
    listing = list_layers(_model(CASES["Swin"]), torch.rand(2, 3, HEIGHT, WIDTH)).set_index("address")
    assert listing["stride"].isna()["swin.encoder.layers.0.blocks.0.attention[0]"]


# ---- the numbers, by hand


def _logits(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _grad_cam_by_hand(case: Case, model: nn.Module, image: Tensor, wanted: Callable[[Tensor], Tensor]) -> Tensor:
    """The finished map `[H, W]` of one image, by a hook of our own and one call of the model."""
    kept = []
    handle = model.get_submodule(case.module).register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = wanted(_logits(model(image[None])))
    handle.remove()
    tensor = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    (gradient,) = torch.autograd.grad(score, tensor)
    activation, gradient = case.maps(tensor.detach())[0], case.maps(gradient)[0]
    cam = torch.zeros(activation.shape[1:])
    for channel in range(len(activation)):
        cam += gradient[channel].mean() * activation[channel]
    cam = functional.interpolate(cam.clamp(min=0)[None, None], tuple(image.shape[1:]), mode="bilinear")[0, 0]
    return (cam - cam.min()) / (cam.max() - cam.min()) if cam.max() > cam.min() else torch.zeros_like(cam)


@cases
def test_rows_are_those_of_a_loop_that_calls_the_model_by_hand(case):
    model, images = _model(case), torch.rand(3, 3, *case.size)
    address = next(iter(case.layers))
    rows = score(model, [images], address, progress=False).rows
    for number, image in enumerate(images):
        logits = _logits(model(image[None])).detach()
        target = int(logits.argmax())
        cam = _grad_cam_by_hand(case, model, image, lambda found, target=target: found[0, target])
        before = logits.double().softmax(1)[0, target].item()
        with torch.no_grad():
            after = _logits(model((image * cam)[None])).double().softmax(1)[0, target].item()
        row = rows.iloc[number]
        assert row["target"] == target
        assert row["confidence"] == pytest.approx(before, abs=1e-5)
        assert row["masked_confidence"] == pytest.approx(after, abs=1e-4)
        assert row["average_drop"] == pytest.approx(100 * max(0, before - after) / before, abs=2e-2)
        assert row["mask_area"] == pytest.approx(cam.mean().item(), abs=1e-4)
    assert (rows["masked_confidence"] - rows["confidence"]).abs().max() > 1e-4, "the masks made no difference"


def test_semantic_segmentation_is_scored_on_logits_of_their_own_size():
    case = Case(lambda: transformers.SegformerForSemanticSegmentation(_segformer()), {}, "segformer.stages.2", _as_it_is)
    model, images = _model(case), torch.rand(2, 3, HEIGHT, WIDTH)
    assert model(images).logits.shape == (2, CLASSES, HEIGHT // 4, WIDTH // 4)
    rows = score(model, [images], case.module, task="segmentation", target=3, progress=False).rows
    counted = 0
    for number, image in enumerate(images):
        with torch.no_grad():
            logits = model(image[None]).logits
        region = logits.argmax(dim=1)[0] == 3
        if not region.any():
            assert rows["status"].iloc[number] == "no_target"
            continue
        counted += 1
        cam = _grad_cam_by_hand(case, model, image, lambda found, region=region: found[0, 3][region].mean())
        with torch.no_grad():
            masked = model((image * cam)[None]).logits
        before, after = (found.double().softmax(1)[0, 3][region].mean().item() for found in (logits, masked))
        assert rows["confidence"].iloc[number] == pytest.approx(before, abs=1e-5)
        assert rows["masked_confidence"].iloc[number] == pytest.approx(after, abs=1e-4)
    assert counted


class Remembering(nn.Module):
    """A model whose head uses what a hook kept on the way, as transformers' models do with hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.top, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(8, CLASSES)
        self.kept: list[Tensor] = []
        self.body.register_forward_hook(lambda module, inputs, output: self.kept.append(output))

    def forward(self, images: Tensor) -> Tensor:
        self.kept.clear()
        last = self.top(self.body(images))
        return self.head(torch.cat([self.kept[0].mean(dim=(2, 3)), last.mean(dim=(2, 3))], dim=1))


def test_gradients_take_the_way_by_what_another_hook_kept():
    model, images = Remembering(), torch.rand(2, 3, 8, 8)
    found = probe(model, images, "body", score=lambda logits: logits[:, 0]).gradients["body"]
    body = model.body(images).detach().requires_grad_()
    last = model.top(body)
    logits = model.head(torch.cat([body.mean(dim=(2, 3)), last.mean(dim=(2, 3))], dim=1))
    torch.testing.assert_close(found, torch.autograd.grad(logits[:, 0].sum(), body)[0])


# ---- a detector


def _detections(output: object) -> list[dict[str, Tensor]]:
    """The last class of such detectors is "nothing"; boxes are centres and sizes in shares of the image."""
    scores, labels = output.logits.softmax(dim=-1)[..., :-1].max(dim=-1)
    boxes = box_convert(output.pred_boxes, "cxcywh", "xyxy") * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    return [{"boxes": b, "labels": k, "scores": s} for b, k, s in zip(boxes, labels, scores, strict=True)]


def _yolos() -> nn.Module:
    config = _vit("Yolos")
    config.num_detection_tokens = 4
    return transformers.YolosForObjectDetection(config)


def test_a_detector_is_scored_by_a_function_of_its_output():
    model, images = _model(Case(_yolos, {}, "", _as_it_is)), torch.rand(2, 3, HEIGHT, WIDTH)
    layer = "vit.embeddings.patch_embeddings.projection"
    rows = score(model, [images], layer, task=Detection(output=_detections), progress=False).rows
    best = [found["scores"].max().item() for found in _detections(model(images))]
    assert rows["confidence"].to_list() == pytest.approx(best, abs=1e-6)
    assert set(rows["status"]) <= {"ok", "constant_map"}


DETR = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 12,
}


def _detr(kind: str = "Detr", stages: tuple[str, ...] = ("stage4",), **more: object) -> transformers.PretrainedConfig:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1] * 4, "layer_type": "basic"}
    return _config(kind, backbone_config=transformers.ResNetConfig(**sizes, out_features=list(stages)), **DETR, **more)


def _conditional() -> nn.Module:
    return transformers.ConditionalDetrForObjectDetection(_detr("ConditionalDetr"))


def _deformable() -> nn.Module:
    stages = ("stage2", "stage3", "stage4")
    config = _detr("DeformableDetr", stages, num_feature_levels=3)
    config.decoder_layers = 2  # transformers cannot build it with one
    return transformers.DeformableDetrForObjectDetection(config)


class Wrapped(nn.Module):
    """A detector inside of a module without a configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = transformers.DetrForObjectDetection(_detr())

    def forward(self, images: Tensor) -> object:
        return self.inner(images)


@pytest.mark.parametrize(
    ("make", "layer", "processor"),
    [
        (lambda: transformers.DetrForObjectDetection(_detr()), "model.backbone[0][0]", transformers.DetrImageProcessor),
        (Wrapped, "inner.model.backbone[0][0]", transformers.DetrImageProcessor),
        (_yolos, "vit.embeddings.patch_embeddings.projection", transformers.YolosImageProcessor),
        (_conditional, "model.backbone[0][0]", transformers.ConditionalDetrImageProcessor),
        (_deformable, "model.backbone[1][0]", transformers.DeformableDetrImageProcessor),
    ],
    ids=["DETR", "wrapped", "YOLOS", "Conditional DETR", "Deformable DETR"],
)
def test_detectors_decode_their_boxes_as_their_processor_does(make, layer, processor):
    model, images = _model(Case(make, {}, "", _as_it_is)), torch.rand(2, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        output = model(images)
    expected = processor().post_process_object_detection(output, threshold=0, target_sizes=[(HEIGHT, WIDTH)] * 2)
    best = [int(one["scores"].argmax()) for one in expected]
    rows = score(model, [images], layer, task="detection", progress=False).rows
    assert rows["confidence"].to_list() == pytest.approx([e["scores"][b].item() for e, b in zip(expected, best, strict=True)])
    assert rows["target"].to_list() == [e["labels"][b].item() for e, b in zip(expected, best, strict=True)]
    assert set(rows["status"]) <= {"ok", "constant_map"}
    # Followed by its place in pixels, it is the same detection.
    box = tuple(expected[0]["boxes"][best[0]].tolist())
    again = score(model, [images[:1]], layer, task=Detection(box=box, iou=0.999), progress=False).rows
    assert again["confidence"].item() == pytest.approx(rows["confidence"][0])


def test_gradients_of_a_decoded_detection_are_those_by_hand():
    model = _model(Case(lambda: transformers.DetrForObjectDetection(_detr()), {}, "", _as_it_is))
    images, layer = torch.rand(1, 3, HEIGHT, WIDTH), "model.backbone.model.encoder.stages.3"
    found = explain(model, images, layer, task="detection")[layer]
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    best = model(images.requires_grad_()).logits.softmax(dim=2)[..., :-1].max()
    handle.remove()
    (gradient,) = torch.autograd.grad(best, kept[0])
    cam = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0].detach()).sum(dim=1).clamp(min=0)
    cam = functional.interpolate(cam[None], (HEIGHT, WIDTH), mode="bilinear")[0]
    assert cam.max() > cam.min()
    torch.testing.assert_close(found, (cam - cam.min()) / (cam.max() - cam.min()), rtol=0, atol=1e-4)


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities of classes, without that of no object."""
    return logits.softmax(dim=2)[..., :-1]


@pytest.mark.parametrize(("make", "read"), [(_yolos, _softmax), (_deformable, torch.sigmoid)], ids=["softmax", "sigmoid"])
def test_d_rise_compares_all_probabilities_of_the_queries(make, read):
    model, images = _model(Case(make, {}, "", _as_it_is)), torch.rand(1, 3, HEIGHT, WIDTH)
    method = DRISE(n_masks=6, grid=3)
    expected = torch.zeros(HEIGHT, WIDTH)
    with torch.no_grad():
        output = model(images)
        wanted = read(output.logits)[0]
        best = int(wanted.amax(dim=1).argmax())
        box = box_convert(output.pred_boxes[0, best], "cxcywh", "xyxy")
        for mask in RandomMasks.draw(method, 0, (HEIGHT, WIDTH), images.device).make(0, 6):
            output = model(images * mask)
            found = read(output.logits)[0]
            alike = [float(one @ wanted[best] / one.norm() / wanted[best].norm()) for one in found]
            shared = box_iou(box_convert(output.pred_boxes[0], "cxcywh", "xyxy"), box[None])[:, 0].tolist()
            expected += max(a * b for a, b in zip(alike, shared, strict=True)) * mask
    maps = explain(model, images, method=method, task="detection")["input"][0]
    low, high = expected.amin(), expected.amax()
    torch.testing.assert_close(maps, (expected - low) / (high - low), rtol=0, atol=1e-3)


def test_a_detector_whose_logits_do_not_fit_its_classes_is_refused():
    with pytest.raises(ModelError, match=r"its configuration 5 classes; 5 logits for each query are expected, or 6 with "):
        query_detections(torch.rand(1, 2, 4), torch.rand(1, 2, 9), (8, 8), classes=5)


def test_tokens_after_the_grid_are_dropped_when_grid_and_prefix_are_given():
    # One class token, 4 x 6 patches, four detection tokens: nothing says which of them the grid is.
    model, images = _model(Case(_yolos, {}, "", _as_it_is)), torch.full((2, 3, HEIGHT, WIDTH), 0.4)
    images[1, :, 48:, :16] = 1.0  # the lower left patch
    layer = "vit.encoder.layer.0"
    maps = probe(model, images, layer, grid=(4, 6), prefix_tokens=1).activations[layer]
    assert maps.shape[2:] == (4, 6)
    assert int((maps[1] - maps[0]).abs().mean(dim=0).argmax()) == 3 * 6
    rows = score(model, [images], layer, task=Detection(output=_detections), grid=(4, 6), prefix_tokens=1, progress=False).rows
    assert len(rows) == 2


# ---- zero-shot


@pytest.mark.parametrize("make", [_clip, _siglip])
def test_zero_shot_logits_are_those_of_the_whole_model(make):
    whole, images = make().eval(), torch.rand(2, 3, 64, 64)
    classifier = ZeroShot(whole, PROMPTS, TOKENS)
    with torch.no_grad():
        expected = whole(input_ids=TOKENS, pixel_values=images).logits_per_image
    torch.testing.assert_close(classifier(images).detach(), expected, rtol=1e-5, atol=1e-5)
    assert not [name for name, _ in classifier.model.text_model.named_modules() if classifier.model.text_model.training]


def test_zero_shot_asks_a_tokenizer_for_the_full_length_and_leaves_the_model_as_it_was():
    asked = {}

    def tokenizer(prompts, **options):
        asked.update(options, prompts=prompts)
        return {"input_ids": TOKENS, "attention_mask": (TOKENS > 0).long(), "token_type_ids": TOKENS}

    whole = _clip().train()
    classifier = ZeroShot(whole, tuple(PROMPTS), tokenizer)
    assert asked == {
        "prompts": PROMPTS,
        "padding": "max_length",
        "max_length": TEXT["max_position_embeddings"],
    }
    assert whole.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in whole.parameters())
    assert not classifier.text_features.requires_grad
    assert "text_features" in classifier.state_dict()


def test_a_prompt_is_a_target():
    classifier, images = _model(CASES["CLIP"]), torch.rand(2, 3, 64, 64)
    row = score(classifier, [images], target=classifier.index("a street"), methods="center", progress=False).rows.iloc[0]
    assert row["target"] == 2
    assert row["confidence"] == pytest.approx(classifier(images).double().softmax(1)[0, 2].item(), abs=1e-6)
    with pytest.raises(TargetError, match=r"no prompt 'a photo of a cow'; did you mean 'a photo of a dog'"):
        classifier.index("a photo of a cow")


def test_siglip_is_scored_by_sigmoids():
    classifier, images = _model(CASES["SigLIP"]), torch.rand(2, 3, 64, 64)
    protocol = Protocol(confidence="sigmoid")
    rows = score(classifier, [images], target=1, methods="center", protocol=protocol, progress=False).rows
    expected = classifier(images).double().sigmoid()[:, 1].tolist()
    assert rows["confidence"].to_list() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "prompts", "tokens", "error", "message"),
    [
        (
            nn.Linear(1, 1),
            PROMPTS,
            TOKENS,
            ModelError,
            "a Linear has no get_text_features; a CLIPModel or SiglipModel of transformers or a model of OpenCLIP is expected",
        ),
        (_clip, [], TOKENS, TargetError, "prompts are one or more, each once; got []"),
        (_clip, ["a", "a"], TOKENS, TargetError, "prompts are one or more, each once; got ['a', 'a']"),
        (_clip, PROMPTS[:2], TOKENS, ModelError, "2 prompts come with the tokens of 3; one row each is expected"),
    ],
)
def test_wrong_zero_shot_is_refused(model, prompts, tokens, error, message):
    with pytest.raises(error) as caught:
        ZeroShot(model if isinstance(model, nn.Module) else model(), prompts, tokens)
    assert str(caught.value) == message


# ---- loading


def _saved(folder, config, kind=transformers.ViTForImageClassification):
    torch.manual_seed(1)
    model = kind(config)
    model.save_pretrained(folder)
    return model


def _same_weights(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
@pytest.mark.parametrize("pretrained", [False, True])
def test_a_folder_with_weights_is_that_model(tmp_path, pretrained):
    saved = _saved(tmp_path, _vit())
    loaded = load_model(f"hf:{tmp_path}", pretrained=pretrained)
    assert type(loaded.model) is transformers.ViTForImageClassification
    assert not loaded.model.training
    assert _same_weights(loaded.model, saved)


def test_a_folder_with_a_configuration_alone_is_a_random_model_of_that_kind(tmp_path):
    _swin().save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}", model_args={"num_labels": 7})
    assert type(loaded.model) is transformers.SwinForImageClassification
    assert loaded.model.classifier.out_features == 7
    with pytest.raises(WeightsError, match=r"cannot get the weights of hf:.* \(OSError"):
        load_model(f"hf:{tmp_path}", pretrained=True)


def test_weights_from_a_file_go_into_a_folder_of_random_ones(tmp_path):
    saved = _saved(tmp_path / "a", _vit())
    _vit().save_pretrained(tmp_path / "b")
    loaded = load_model(f"hf:{tmp_path / 'b'}", weights=tmp_path / "a" / "model.safetensors")
    assert _same_weights(loaded.model, saved)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (_vit("DeiT"), transformers.DeiTForImageClassificationWithTeacher),
        (_segformer(), transformers.SegformerForSemanticSegmentation),
        (_vit("Yolos"), transformers.YolosForObjectDetection),
    ],
)
def test_the_head_is_the_one_that_the_configuration_names(tmp_path, config, kind):
    _saved(tmp_path, config, kind)
    assert type(load_model(f"hf:{tmp_path}").model) is kind


def test_weights_of_a_trained_module_are_found_below_its_prefix(tmp_path):
    saved = _saved(tmp_path, _vit())
    state = {f"model._orig_mod.{name}": tensor for name, tensor in saved.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "trained.ckpt")
    assert _same_weights(load_model(f"hf:{tmp_path}", weights=tmp_path / "trained.ckpt").model, saved)


def test_half_precision_weights_are_read_in_float32(tmp_path):
    transformers.ViTForImageClassification(_vit()).half().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in load_model(f"hf:{tmp_path}").model.parameters()} == {torch.float32}


@pytest.mark.parametrize("options", [{}, {"pretrained": True}])
def test_a_backbone_without_a_trained_head_is_refused(tmp_path, options):
    _saved(tmp_path, _vit(), transformers.ViTModel)
    with pytest.raises(
        WeightsError, match=r"do not make the whole model: classifier\.bias, classifier\.weight would be random"
    ):
        load_model(f"hf:{tmp_path}", **options)


def test_another_number_of_classes_than_the_weights_have_is_refused(tmp_path):
    _saved(tmp_path, _vit())
    with pytest.raises(WeightsError, match=r"classifier\.bias, classifier\.weight would be random"):
        load_model(f"hf:{tmp_path}", model_args={"num_labels": 9})


def test_weights_of_another_model_are_refused(tmp_path):
    _saved(tmp_path / "a", _swin(), transformers.SwinForImageClassification)
    _vit().save_pretrained(tmp_path / "b")
    with pytest.raises(WeightsError, match=r"do not make the whole model: classifier\.weight, .* more would be random"):
        load_model(f"hf:{tmp_path / 'b'}", weights=tmp_path / "a" / "model.safetensors")
    with pytest.raises(WeightsError, match="no weights file"):
        load_model(f"hf:{tmp_path / 'b'}", weights=tmp_path / "missing.safetensors")


def test_pickled_weights_are_refused_unless_the_file_is_named(tmp_path):
    saved = _saved(tmp_path, _vit())
    (tmp_path / "model.safetensors").unlink()
    torch.save(saved.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        WeightsError, match=r"has its weights in pytorch_model\.bin, which can hold code; save them as safetensors"
    ):
        load_model(f"hf:{tmp_path}")
    loaded = load_model(f"hf:{tmp_path}", weights=tmp_path / "pytorch_model.bin")  # read as tensors alone
    assert _same_weights(loaded.model, saved)


def test_code_that_a_folder_brings_is_not_run(tmp_path):
    _vit().save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    custom = '{"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil", ' + text.lstrip()[1:].replace(
        '"model_type"', '"was"'
    )
    (tmp_path / "config.json").write_text(custom)
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match=r"^cannot get the configuration of hf:"):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "hf:./nowhere is no folder; a folder with config.json is expected, or a model of the Hub as OWNER/NAME"),
        ("a/b/c", "hf:a/b/c is no folder; a folder with config.json is expected, or a model of the Hub as OWNER/NAME"),
    ],
)
def test_a_path_that_is_no_folder(name, message):
    with pytest.raises(ModelError) as caught:
        load_model(f"hf:{name}")
    assert str(caught.value) == message


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"is a folder without config\.json; one written by a model's save_pretrained"):
        load_model(f"hf:{tmp_path}")


def test_an_unknown_setting_is_refused(tmp_path):
    _vit().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no 'num_label'; did you mean 'num_labels'.*its config\.json lists all$"):
        load_model(f"hf:{tmp_path}", model_args={"num_label": 3})
    with pytest.raises(ModelError, match=r"has no 'trust_remote_code'"):
        load_model(f"hf:{tmp_path}", model_args={"trust_remote_code": True})


def test_what_the_hub_answers_without_network_becomes_one_line(monkeypatch):
    seen = {}

    def fail(name, **options):
        seen.update(options, name=name)
        raise OSError("We couldn't connect to the Hub.\nCheck your connection.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(ModelError) as caught:
        load_model("hf:owner/name", pretrained=True)
    assert str(caught.value) == (
        "cannot get the configuration of hf:owner/name from the Hugging Face Hub; without network give a folder that "
        "save_pretrained wrote (OSError: We couldn't connect to the Hub. Check your connection.)"
    )
    assert seen == {"name": "owner/name", "local_files_only": False, "trust_remote_code": False}


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"^models hf:NAME need transformers, which is missing: pip install 'xaieval\[hf\]'$"):
        load_model("hf:owner/name")


# ---- preprocessing

PROCESSORS = {
    "ViT": lambda: transformers.ViTImageProcessor(size={"height": 48, "width": 48}),
    "DeiT": lambda: transformers.DeiTImageProcessor(size={"height": 60, "width": 60}, crop_size={"height": 48, "width": 48}),
    "ConvNeXt": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 56}, crop_pct=0.875),
    "ConvNeXt, large": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
    "CLIP": lambda: transformers.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 48, "width": 48}),
    "no mean": lambda: transformers.ViTImageProcessor(size={"height": 48, "width": 48}, do_normalize=False),
    "in 0 to 255": lambda: transformers.ViTImageProcessor(size={"height": 48, "width": 48}, do_rescale=False),
}


@pytest.mark.parametrize("make", PROCESSORS.values(), ids=PROCESSORS)
def test_images_are_prepared_as_by_the_processor(make):
    processor = make()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (11, 16, 3), dtype=np.uint8)).resize((160, 110))
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    ours = preprocessing_of(processor)(picture)
    assert ours.shape == theirs.shape
    # Both interpolate, on bytes or on floats: a level or two of 255.
    assert (ours - theirs).abs().max() < 0.02 * (theirs.max() - theirs.min())


def test_a_folder_brings_its_preprocessing(tmp_path):
    _saved(tmp_path, _vit())
    assert load_model(f"hf:{tmp_path}").preprocessing == Preprocessing((64, 96), (64, 96))
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    expected = Preprocessing(64, 64, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), squash=True)
    assert load_model(f"hf:{tmp_path}").preprocessing == expected


def test_images_without_one_size_are_refused():
    with pytest.raises(ModelError, match=r"makes images of .*64.*; a height and a width are expected"):
        preprocessing_of(SimpleNamespace(size={"longest_edge": 64}))


def test_sizes_and_channels_follow_the_settings(tmp_path):
    _saved(tmp_path, _vit())
    transformers.ViTImageProcessor(size={"height": 64, "width": 96}).save_pretrained(tmp_path)
    assert load_model(f"hf:{tmp_path}").preprocessing.input_shape == (3, 64, 96)
    _vit().save_pretrained(tmp_path / "new")
    loaded = load_model(f"hf:{tmp_path / 'new'}", model_args={"num_channels": 13, "image_size": [32, 48]})
    assert loaded.preprocessing.input_shape == (13, 32, 48)
    loaded.model(torch.rand(1, 13, 32, 48))


def test_oblong_images_are_prepared_as_by_the_processor():
    processor = transformers.ViTImageProcessor(size={"height": 48, "width": 64})
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (11, 16, 3), dtype=np.uint8)).resize((160, 110))
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    ours = preprocessing_of(processor)(picture)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 0.02 * (theirs.max() - theirs.min())


@pytest.mark.parametrize("config", [_detr(), _vit("Yolos"), _segformer()], ids=["DETR", "YOLOS", "SegFormer"])
def test_a_configuration_without_a_head_is_a_model_of_the_first_task_that_it_has(tmp_path, config):
    config.save_pretrained(tmp_path)
    expected = "ImageClassification" if config.model_type == "segformer" else "ObjectDetection"
    assert type(load_model(f"hf:{tmp_path}").model).__name__.endswith(f"For{expected}")


def test_the_command_scores_a_detector(tmp_path, capsys):
    _saved(tmp_path / "model", _detr(), transformers.DetrForObjectDetection)
    words = ["--task", "detection", "--data", "scenes", "--max-images", "2", "--image-size", "64,96", "--no-progress"]
    layer = "model.backbone[0][0]"
    main(["score", "--model", f"hf:{tmp_path / 'model'}", *words, "--layers", layer, "--out", str(tmp_path / "run")])
    assert layer in capsys.readouterr().out
    assert (tmp_path / "run" / "maps.png").is_file()


def test_the_command_scores_a_folder(tmp_path, capsys):
    _saved(tmp_path / "model", _config("ViT", **SMALL, image_size=64, patch_size=16))
    words = [
        "--data",
        "scenes",
        "--max-images",
        "4",
        "--layers",
        "vit.layers.*",
        "--no-progress",
        "--out",
        str(tmp_path / "run"),
    ]
    main(["score", "--model", f"hf:{tmp_path / 'model'}", *words])
    printed = capsys.readouterr()
    assert "vit.layers.1" in printed.out
    assert "transformers" not in printed.err
    assert (tmp_path / "run" / "maps.png").is_file()
