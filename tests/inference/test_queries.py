"""Detectors and segmenters of transformers by queries: decoded as their image processors do, with layers the right way up."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import xaieval
from tests import ROOT
from xaieval.cli import main
from xaieval.errors import ModelError, UsageError
from xaieval.inference.options import Inference
from xaieval.inference.queries import with_known_output
from xaieval.inference.query_masks import query_instances, query_segmentation
from xaieval.inference.tasks import Detection, Segmentation, resolve_task
from xaieval.models import load_model
from xaieval.probe.hooks import probe

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SIZE = (128, 192)
CLASSES = 5
SMALL = {
    **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 12, "num_labels": CLASSES},
}
ALONE = {"use_timm_backbone": False, "use_pretrained_backbone": False}
STAGES = ("stage1", "stage2", "stage3", "stage4")
WIDTHS = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1] * 4}


def _resnet(*stages: str) -> transformers.PretrainedConfig:
    return transformers.ResNetConfig(**WIDTHS, layer_type="basic", out_features=list(stages))


def _detr(name: str, *stages: str, **more: object) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(backbone_config=_resnet(*stages), **ALONE, **(SMALL | more))
    return getattr(transformers, f"{name}ForObjectDetection")(config)


def _dab() -> nn.Module:
    sizes = {name: value for name, value in SMALL.items() if name != "d_model"}
    config = transformers.DabDetrConfig(backbone_config=_resnet("stage4"), **ALONE, **sizes, hidden_size=32)
    return transformers.DabDetrForObjectDetection(config)


REAL_TIME = SMALL | {
    **{"encoder_hidden_dim": 32, "encoder_in_channels": [12, 16, 24], "feat_strides": [8, 16, 32], "num_feature_levels": 3},
    **{"decoder_in_channels": [32] * 3, "decoder_n_points": 2, "num_denoising": 0},
}


def _rt_detr(name: str) -> nn.Module:
    backbone = transformers.RTDetrResNetConfig(**WIDTHS, layer_type="basic", out_features=list(STAGES[1:]))
    config = getattr(transformers, f"{name}Config")(backbone_config=backbone, **ALONE, **REAL_TIME)
    return getattr(transformers, f"{name}ForObjectDetection")(config)


def _d_fine() -> nn.Module:
    stages = {
        **{"stem_channels": [3, 8, 8], "stage_in_channels": [8, 8, 12, 16], "stage_mid_channels": [8] * 4},
        **{"stage_out_channels": [8, 12, 16, 24], "stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4},
        **{"stage_downsample": [False, True, True, True], "stage_light_block": [False] * 4, "stage_kernel_size": [3] * 4},
    }
    backbone = transformers.HGNetV2Config(**WIDTHS, **stages, out_features=list(STAGES[1:]))
    config = transformers.DFineConfig(backbone_config=backbone, **REAL_TIME | {"decoder_n_points": [2, 2, 2]})
    return transformers.DFineForObjectDetection(config)


VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}


def _rf_detr() -> nn.Module:
    sizes = {"mlp_ratio": 2, "image_size": 64, "patch_size": 16, "num_windows": 2, "out_indices": [1, 3]}
    backbone = transformers.RfDetrDinov2Config(**VIT, **sizes)
    heads = {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2}
    names = ("d_model", "decoder_layers", "decoder_ffn_dim", "num_queries", "num_labels")
    config = transformers.RfDetrConfig(backbone_config=backbone, **heads, **{name: SMALL[name] for name in names})
    return transformers.RfDetrForObjectDetection(config)


def _yolos() -> nn.Module:
    sizes = {"image_size": list(SIZE), "patch_size": 16, "num_detection_tokens": 4, "intermediate_size": 64}
    return transformers.YolosForObjectDetection(transformers.YolosConfig(**VIT, **sizes, num_labels=CLASSES))


def _mask2former() -> nn.Module:
    widths = ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward")
    layers = {"encoder_layers": 1, "decoder_layers": 4, "num_attention_heads": 2, "num_queries": 10, "num_labels": CLASSES}
    config = transformers.Mask2FormerConfig(backbone_config=_resnet(*STAGES), **dict.fromkeys(widths, 32), **layers)
    return transformers.Mask2FormerForUniversalSegmentation(config)


def _maskformer() -> nn.Module:
    decoder = transformers.DetrConfig(backbone_config=_resnet("stage4"), **ALONE, **SMALL)
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": CLASSES}
    config = transformers.MaskFormerConfig(backbone_config=_resnet(*STAGES), decoder_config=decoder, **sizes)
    return transformers.MaskFormerForInstanceSegmentation(config)


def _eomt() -> nn.Module:
    sizes = {"mlp_ratio": 2, "image_size": 128, "patch_size": 16, "num_blocks": 1, "num_queries": 10, "num_upscale_blocks": 1}
    return transformers.EomtForUniversalSegmentation(transformers.EomtConfig(**VIT, **sizes, num_labels=CLASSES))


def _detr_masks() -> nn.Module:
    config = transformers.DetrConfig(backbone_config=_resnet(*STAGES), **ALONE, **SMALL | {"encoder_attention_heads": 8})
    return transformers.DetrForSegmentation(config)


ENCODER = [f"model.backbone.model.encoder.stages.{stage}" for stage in (0, 1, 2)]
IN_CONV = [name.replace("backbone.model", "backbone.conv_encoder.model") for name in ENCODER]
HYBRID = [f"model.encoder[last_hidden_state][{level}]" for level in (0, 1, 2)]
DETECTORS: dict[str, tuple[Callable[[], nn.Module], str, list[str]]] = {  # the processor, and layers that "auto" takes
    "DETR": (partial(_detr, "Detr", "stage4"), "Detr", ENCODER),
    "Table Transformer": (partial(_detr, "TableTransformer", "stage4"), "Detr", IN_CONV),
    "Conditional DETR": (partial(_detr, "ConditionalDetr", "stage4"), "ConditionalDetr", ENCODER),
    "Deformable DETR": (
        partial(_detr, "DeformableDetr", *STAGES[1:], num_feature_levels=3),
        "DeformableDetr",
        [ENCODER[0], *(f"model.input_proj.{level}" for level in (0, 1, 2))],
    ),
    "DAB-DETR": (_dab, "ConditionalDetr", IN_CONV),
    "RT-DETR": (partial(_rt_detr, "RTDetr"), "RTDetr", HYBRID),
    "RT-DETRv2": (partial(_rt_detr, "RTDetrV2"), "RTDetr", HYBRID),
    "D-FINE": (_d_fine, "RTDetr", HYBRID),
    "RF-DETR": (_rf_detr, "RfDetr", [f"model.backbone.projector.projector_layer.bottlenecks.{block}" for block in (0, 1)]),
    "YOLOS": (_yolos, "Yolos", ["vit.encoder.layer.0", "vit.encoder.layer.1"]),
}
PIXELS = "model.pixel_level_module"
SEGMENTERS: dict[str, tuple[Callable[[], nn.Module], str, list[str]]] = {
    "Mask2Former": (_mask2former, "Mask2Former", [f"{PIXELS}.decoder[multi_scale_features][{level}]" for level in (0, 1, 2)]),
    "MaskFormer": (_maskformer, "MaskFormer", [f"{PIXELS}[{part}coder_last_hidden_state]" for part in ("en", "de")]),
    "EoMT": (_eomt, "Eomt", ["layers.0", "layers.1", "layers.2"]),
    "DETR": (_detr_masks, "Detr", [f"detr.{name}" for name in ENCODER]),
}
ALL = {**DETECTORS, **{f"{name}, masks": of for name, of in SEGMENTERS.items()}}


def _benchmark():
    spec = importlib.util.spec_from_file_location("architectures", ROOT / "benchmarks/architectures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["architectures"] = module
    spec.loader.exec_module(module)
    return module


architectures = _benchmark()


def _size(name: str) -> tuple[int, int]:
    return {"RF-DETR": (64, 64), "EoMT, masks": (128, 128)}.get(name, SIZE)


@cache
def model_of(name: str) -> nn.Module:
    """A model with random weights, whose deep layers depend on the image."""
    torch.manual_seed(0)
    normalised = sys.modules["architecture_models"].normalised  # which the benchmark imports
    return normalised(ALL[name][0]().eval(), architectures.planted(_size(name)))


@cache
def output_of(name: str) -> tuple[Tensor, object]:
    """Two images, and what the model itself gives for them."""
    images = torch.rand(2, 3, *_size(name), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, model_of(name)(images)


def _decoded(name: str, task: str):
    """What the task reads from the model's output."""
    inference, resolved = with_known_output(Inference(task=task), resolve_task(task), model_of(name))
    with torch.no_grad():
        return resolved, resolved.read(inference.forward(model_of(name), output_of(name)[0]))


@pytest.mark.parametrize("name", DETECTORS)
def test_detections_are_those_of_the_processor(name):
    processor = getattr(transformers, f"{DETECTORS[name][1]}ImageProcessor")()
    images, output = output_of(name)
    sizes = [(300, 500), (640, 427)]  # of the pictures that the user has
    expected = processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
    _, found = _decoded(name, "detection")
    for one, theirs, (height, width) in zip(found, expected, sizes, strict=True):
        scale = torch.tensor([width / images.shape[3], height / images.shape[2]] * 2)
        for score, label, box in zip(theirs["scores"], theirs["labels"], theirs["boxes"], strict=True):
            same = (one["labels"] == label) & ((one["scores"] - score).abs() < 1e-5)
            assert ((one["boxes"][same] * scale - box).abs().amax(dim=1) < 2e-3).any()  # 1e-5 of the picture
        at = int(one["scores"].argmax())
        assert one["scores"][at] == pytest.approx(theirs["scores"].max().item(), abs=1e-6)
        assert one["labels"][at] == theirs["labels"][theirs["scores"].argmax()]


def _masks(name: str) -> tuple[Tensor, Tensor]:
    _, output = output_of(f"{name}, masks")
    fields = ("pred_masks", "logits") if name == "DETR" else ("masks_queries_logits", "class_queries_logits")
    return tuple(getattr(output, field) for field in fields)


def _semantic(name: str) -> tuple[Tensor, Tensor]:
    """The processor's scores `[N, K, h, w]` and ours, at the size at which the processor makes them."""
    processor = getattr(transformers, f"{SEGMENTERS[name][1]}ImageProcessor")()
    _, output = output_of(f"{name}, masks")
    masks, logits = _masks(name)
    options: dict[str, object] = {"return_segmentation_scores": True}
    if name == "EoMT":  # which takes the size of the masks from its own
        height, width = masks.shape[2:]
        options |= {"target_sizes": [(height, width)] * 2, "size": {"shortest_edge": height, "longest_edge": width}}
    theirs = processor.post_process_semantic_segmentation(output, **options)
    if name == "Mask2Former":  # which enlarges the masks first, to 384 pixels whatever the size of the image
        masks = functional.interpolate(masks, (384, 384), mode="bilinear")
    return torch.stack([one["segmentation_scores"] for one in theirs]), query_segmentation(masks, logits)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_classes_of_pixels_are_those_of_the_processor(name):
    theirs, ours = _semantic(name)
    torch.testing.assert_close(ours.exp(), theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.softmax(dim=1), theirs / theirs.sum(dim=1, keepdim=True), rtol=0, atol=1e-5)
    assert (ours.argmax(dim=1) == theirs.argmax(dim=1)).all()
    task, read = _decoded(f"{name}, masks", "segmentation")
    torch.testing.assert_close(read, query_segmentation(*_masks(name)))
    assert task.background is None  # class 0 is a class like any other


@pytest.mark.parametrize("name", ["Mask2Former", "MaskFormer", "EoMT"])
def test_objects_are_those_of_the_processor(name):
    processor = getattr(transformers, f"{SEGMENTERS[name][1]}ImageProcessor")()
    images, output = output_of(f"{name}, masks")
    masks, logits = _masks(name)
    size, options = masks.shape[2:], {}
    if name == "EoMT":
        options = {"target_sizes": [tuple(size)] * 2, "size": {"shortest_edge": size[0], "longest_edge": size[1]}}
    else:
        options = {"return_binary_maps": True}
    theirs = processor.post_process_instance_segmentation(output, threshold=0.0, **options)
    large = functional.interpolate(masks, (384, 384), mode="bilinear") if name == "Mask2Former" else masks
    for number, one in enumerate(query_instances(large, logits, large.shape[2:])):
        assert theirs[number]["segments_info"]
        for at, segment in enumerate(theirs[number]["segments_info"]):
            close = (one["labels"] == segment["label_id"]) & ((one["scores"] - segment["score"]).abs() < 1e-5)
            assert close.any()
            if name != "EoMT":
                rows, columns = theirs[number]["segmentation"][at].nonzero().T
                box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
                assert (one["boxes"][close] == box).all(dim=1).any()
    _, read = _decoded(f"{name}, masks", "detection")
    cells = images.shape[3] / masks.shape[3]
    expected = query_instances(masks, logits, tuple(images.shape[2:]))
    for one, wanted in zip(read, expected, strict=True):
        torch.testing.assert_close(one["boxes"], wanted["boxes"])
        assert (one["boxes"] % cells == 0).all()


def test_a_query_without_a_mask_is_no_object():
    masks, logits = torch.full((1, 3, 4, 6), -1.0), torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0))
    masks[0, 1, 1:3, 2:5] = 2.0
    (found,) = query_instances(masks, logits, (8, 12))
    assert found["boxes"].tolist() == [[4.0, 2.0, 10.0, 6.0]] * 2
    expected = logits.softmax(dim=2)[0, 1, :2] * torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(found["probabilities"][0], expected)
    torch.testing.assert_close(found["scores"], expected.sort(descending=True).values)
    task, (none,) = Detection(), query_instances(-masks.abs(), logits, (8, 12))
    assert not task.follow(task.read([none]), "predicted", None).has_target.any()


# Models wired as others of them; all of them take a while.
ALIKE = ("Table Transformer", "Conditional DETR", "DAB-DETR", "RT-DETRv2", "D-FINE")
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in ALL]


@pytest.mark.parametrize("name", EACH)
def test_automatic_layers_are_stages_the_right_way_up(name):
    task = "segmentation" if name.endswith("masks") else "detection"
    maps = xaieval.explain(model_of(name), output_of(name)[0], "auto", task=task)
    assert set(ALL[name][2]) <= set(maps)
    assert all(one.isfinite().all() for one in maps.values())
    assert sum(bool((one.flatten(1).amax(dim=1) > 0).any()) for one in maps.values()) >= 2
    found = probe(model_of(name), architectures.planted(_size(name)), ALL[name][2]).activations
    assert [address for address, activation in found.items() if not architectures.is_upright(activation)] == []


def test_the_tokens_of_an_encoder_are_read_row_by_row():
    address = "model.encoder[last_hidden_state]"
    images, output = output_of("DETR")
    tokens = output.encoder_last_hidden_state
    found = probe(model_of("DETR"), images, address).activations[address]
    torch.testing.assert_close(found, tokens.transpose(1, 2).unflatten(2, (4, 6)), rtol=1e-4, atol=1e-5)


def test_scores_of_a_segmenter_are_shares_of_the_region_that_is_predicted():
    name = "MaskFormer, masks"
    images, _ = output_of(name)
    scores, _ = _semantic("MaskFormer")
    labels = scores.argmax(dim=1)
    layer = f"{PIXELS}[encoder_last_hidden_state]"
    rows = xaieval.score(model_of(name), [images], layer, task="segmentation", progress=False).rows
    for number, row in rows.iterrows():
        target = labels[number].flatten().bincount().argmax()
        share = (scores[number, target] / scores[number].sum(dim=0))[labels[number] == target]
        assert row["target"] == target
        assert row["confidence"] == pytest.approx(share.mean().item(), abs=1e-5)


def test_the_gradient_of_a_segmenter_is_that_of_the_logarithms():
    name, layer = "MaskFormer, masks", f"{PIXELS}[decoder_last_hidden_state]"
    images, _ = output_of(name)
    kept: list[Tensor] = []
    module = model_of(name).get_submodule(PIXELS)
    handle = module.register_forward_hook(lambda *given: kept.append(given[2].decoder_last_hidden_state))
    logits = _log_scores(model_of(name)(images))
    handle.remove()
    labels = logits.argmax(dim=1)
    targets = [one.flatten().bincount().argmax() for one in labels]
    score = torch.stack([logits[n, k][labels[n] == k].mean() for n, k in enumerate(targets)])
    (gradient,) = torch.autograd.grad(score.sum(), kept[0])
    cam = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0].detach()).sum(dim=1).clamp(min=0)
    cam = functional.interpolate(cam[:, None], images.shape[2:], mode="bilinear")[:, 0]
    expected = (cam - cam.amin((1, 2), keepdim=True)) / (cam.amax((1, 2), keepdim=True) - cam.amin((1, 2), keepdim=True))
    ours = xaieval.explain(model_of(name), images, layer, task="segmentation")[layer]
    torch.testing.assert_close(ours, expected.detach(), rtol=0, atol=1e-3)


def _log_scores(output: object) -> Tensor:
    classes, masks = output.class_queries_logits.softmax(dim=2)[..., :-1], output.masks_queries_logits.sigmoid()
    return (classes.transpose(1, 2) @ masks.flatten(2)).view(len(masks), -1, *masks.shape[2:]).log()


def test_detections_below_the_threshold_are_not_followed():
    images, _ = output_of("RT-DETR")
    _, read = _decoded("RT-DETR", "detection")
    best = sorted(one["scores"].max().item() for one in read)
    task = Detection(threshold=(best[0] + best[1]) / 2)
    rows = xaieval.score(model_of("RT-DETR"), [images], HYBRID[0], task=task, progress=False).rows
    assert sorted(rows["status"] == "no_target") == [False, True]
    with pytest.raises(UsageError, match=r"threshold in \[0, 1\), got 0.5 and 1"):
        Detection(threshold=1)


def test_an_explicit_task_keeps_its_background():
    chosen = Segmentation()
    _, task = with_known_output(Inference(task=chosen), chosen, model_of("EoMT, masks"))
    assert task.background == 0


def test_a_segmenter_of_one_class_and_one_without_no_object_are_refused():
    with pytest.raises(ModelError, match=r"has one class and that of no object, torch.float32 \[1, 3, 2\], "):
        query_segmentation(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 2))

    class Sigmoids(nn.Module):
        config = transformers.DetrConfig(num_labels=4, backbone_config=_resnet("stage4"), **ALONE)

        def forward(self, images: Tensor) -> object:
            return transformers.utils.ModelOutput(logits=torch.rand(1, 3, 4), pred_masks=torch.rand(1, 3, 8, 8))

    model = Sigmoids()
    inference, _ = with_known_output(Inference(task="segmentation"), Segmentation(), model)
    with pytest.raises(ModelError, match="has 4 logits for each query and 4 classes; of a segmenter by queries"):
        inference.forward(model, torch.rand(1, 3, 8, 8))


def test_each_text_of_a_detector_by_texts_is_a_class():
    class Texts(nn.Module):
        config = transformers.OwlViTConfig()

        def forward(self, images: Tensor) -> object:
            logits, boxes = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0)), torch.full((1, 2, 4), 0.5)
            return transformers.models.owlvit.modeling_owlvit.OwlViTObjectDetectionOutput(
                logits=logits, pred_boxes=boxes, text_embeds=torch.zeros(1, 3, 4)
            )

    model = Texts()
    inference, task = with_known_output(Inference(task="detection"), Detection(), model)
    (found,) = task.read(inference.forward(model, torch.rand(1, 3, 8, 8)))
    expected = model(torch.rand(1, 3, 8, 8)).logits.sigmoid()  # three texts, not two and no object
    torch.testing.assert_close(found["probabilities"], expected[0])


def test_one_former_is_run_with_its_task():
    swin = {"embed_dim": 12, "depths": [1] * 4, "num_heads": [1, 2, 3, 4], "window_size": 4, "out_features": list(STAGES)}
    widths = dict.fromkeys(("hidden_dim", "mask_dim", "conv_dim", "encoder_feedforward_dim", "dim_feedforward"), 32)
    layers = {"encoder_layers": 1, "decoder_layers": 2, "query_dec_layers": 1, "num_attention_heads": 2, "num_queries": 10}
    text = {f"text_encoder_{name}": value for name, value in (("width", 32), ("num_layers", 1), ("vocab_size", 50))}
    text |= {"text_encoder_context_length": 16, "text_encoder_n_ctx": 4, "task_seq_len": 16, "max_seq_len": 16}
    backbone = transformers.SwinConfig(image_size=64, **swin)
    config = transformers.OneFormerConfig(backbone_config=backbone, num_labels=CLASSES, **widths, **layers, **text)
    model = transformers.OneFormerForUniversalSegmentation(config).eval()
    images, tokens = torch.rand(2, 3, 64, 96), torch.randint(0, 50, (1, 16))
    with pytest.raises(ModelError, match=r"needs more than images: forward\(pixel_values, task_inputs\); say .* forward="):
        xaieval.explain(model, images, "auto", task="segmentation")

    def semantic(model: nn.Module, images: Tensor) -> object:
        return model(images, task_inputs=tokens.expand(len(images), -1))

    with torch.no_grad():
        output = semantic(model, images)
    processor = transformers.OneFormerImageProcessor()
    theirs = processor.post_process_semantic_segmentation(output, return_segmentation_scores=True)
    inference, task = with_known_output(Inference(task="segmentation", forward=semantic), Segmentation(), model)
    with torch.no_grad():
        read = task.read(inference.forward(model, images))
    torch.testing.assert_close(read.exp(), torch.stack([one["segmentation_scores"] for one in theirs]), rtol=0, atol=1e-5)
    layer = f"{PIXELS}.decoder.input_projections.0"
    maps = xaieval.explain(model, images, layer, task="segmentation", forward=semantic)[layer]
    assert maps.shape == (2, 64, 96)


# ---- the command line


def _picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def _folder(place, name: str):
    """A folder as `save_pretrained` writes it, and pictures of two shapes."""
    model_of(name).save_pretrained(place / "model")
    kind = (DETECTORS | SEGMENTERS)[name.removesuffix(", masks")][1]
    edges = {"shortest_edge": 48, "longest_edge": 80}
    getattr(transformers, f"{kind}ImageProcessor")(size=edges).save_pretrained(place / "model")
    for number, size in enumerate([(60, 40), (50, 50), (60, 40)]):
        (place / "pictures").mkdir(exist_ok=True)
        _picture(*size).save(place / "pictures" / f"{number}.png")
    return [f"hf:{place / 'model'}", "--data", f"folder:{place / 'pictures'}", "--no-progress", "--out", str(place / "run")]


@pytest.mark.parametrize(
    ("name", "task", "layer"),
    [("DETR", "detection", ENCODER[2]), ("Mask2Former, masks", "segmentation", ALL["Mask2Former, masks"][2][1])],
    ids=["a detector", "a segmenter"],
)
def test_the_command_scores_a_folder_of_a_model_with_its_processor(tmp_path, capsys, name, task, layer):
    main(["score", "--model", *_folder(tmp_path, name), "--task", task, "--layers", layer])
    assert layer in capsys.readouterr().out
    assert (tmp_path / "run" / "maps.png").is_file()
    rows = xaieval.Scores.load(tmp_path / "run").rows
    assert len(rows) == 3
    loaded = load_model(f"hf:{tmp_path / 'model'}")
    assert type(loaded.model) is type(model_of(name))
    images = [loaded.preprocessing(Image.open(tmp_path / "pictures" / f"{number}.png"))[None] for number in range(3)]
    assert len({one.shape for one in images}) == 2
    for number, one in enumerate(images):
        inference, resolved = with_known_output(Inference(task=task), resolve_task(task), loaded.model)
        with torch.no_grad():
            read = resolved.read(inference.forward(loaded.model, one))
        followed = resolved.follow(read, "predicted", None)
        assert rows["target"][number] == followed.classes.item()
        assert rows["confidence"][number] == pytest.approx(resolved.confidence(read, followed, "softmax").item(), abs=1e-5)


def test_a_model_that_finds_what_texts_name_is_refused_by_name(tmp_path):
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32}
    transformers.OwlViTConfig(text_config=text, vision_config=vision).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"a model of the kind 'owlvit' finds what texts name, .* a forward= that passes"):
        load_model(f"hf:{tmp_path}")
