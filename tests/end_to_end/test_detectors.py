"""Detectors of torchvision from end to end, with random weights: rows, gradients and maps beside those made by hand."""

from __future__ import annotations

import warnings
from functools import cache

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from xaieval import explain, list_layers, score
from xaieval.cli import main
from xaieval.config.protocol import Protocol
from xaieval.errors import AddressError
from xaieval.explainers.detectors import DRISE
from xaieval.explainers.perturbation import RandomMasks
from xaieval.inference.tasks import Detection
from xaieval.models import load_model
from xaieval.probe.detector_frames import Frame, frame_of
from xaieval.probe.hooks import probe

pytestmark = pytest.mark.slow

SMALL = {"min_size": 64, "max_size": 96}
FEW = {"box_score_thresh": 0.0, "box_detections_per_img": 10, "rpn_post_nms_top_n_test": 40}
ONE_STAGE = {"score_thresh": 0.0, "detections_per_img": 20, "topk_candidates": 60}

DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": SMALL | FEW,
    "fasterrcnn_resnet50_fpn": SMALL | FEW,
    "retinanet_resnet50_fpn": SMALL | ONE_STAGE,
    "fcos_resnet50_fpn": SMALL | ONE_STAGE,
    "ssdlite320_mobilenet_v3_large": ONE_STAGE,
}


@cache  # every test gives it back as it was
def _detector(name, **changes):
    """Small, with classes that are told apart and boxes that have an area, although nothing was learned."""
    torch.manual_seed(0)
    options = DETECTORS[name] | changes
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=4, **options).eval()
    with torch.no_grad():
        for path, module in model.named_modules():
            if path.endswith("cls_score"):
                module.weight.normal_(0, 0.2)
            if "classification_head.module_list" in path and isinstance(module, nn.Conv2d):
                module.weight.normal_(0, 0.05)
            if path.endswith("bbox_reg"):
                module.bias.fill_(1.0)
    return model


def _images(count=2, size=(64, 64)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(3))


def _levels(name):
    return "backbone[*]" if name.startswith("ssd") else "backbone.fpn[*]"


@pytest.mark.parametrize("name", DETECTORS)
def test_every_level_of_a_detector_is_scored(name):
    model, images = _detector(name), _images()
    before = [(key, tensor.clone()) for key, tensor in model.state_dict().items()]
    scores = score(model, [images], _levels(name), task="detection", progress=False)
    rows = scores.rows
    levels = list(dict.fromkeys(rows["layer"]))
    assert len(levels) >= 3
    assert len(rows) == 2 * len(levels)
    assert set(rows["status"]) <= {"ok", "constant_map", "nan_map"}
    assert (rows["status"] == "ok").any(), "a gradient reaches a level"
    assert rows["target"].between(1, 3).all()
    assert rows["confidence"].between(0, 1, inclusive="right").all()
    assert rows["masked_confidence"].dropna().between(0, 1).all()
    # The level that only proposes regions is none that the score depends on: it is said, not counted.
    assert set(rows.loc[rows["layer"].str.endswith("[pool]"), "status"]) <= {"nan_map"}
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in before)


@pytest.mark.parametrize("name", DETECTORS)
def test_auto_takes_the_levels_that_detections_are_made_of(name):
    images = _images()
    maps = explain(_detector(name), images, "auto", task="detection")
    path = _levels(name).removesuffix("[*]")
    assert all(address.startswith(f"{path}[") for address in maps)
    assert f"{path}[pool]" not in maps
    assert all(one.shape == (2, 64, 64) for one in maps.values())


# ---- by hand


def _best(found: dict[str, Tensor]) -> tuple[list[float], int, float]:
    """Box, class and score of the best detection."""
    at = max(range(len(found["scores"])), key=lambda i: found["scores"][i].item())
    return found["boxes"][at].tolist(), int(found["labels"][at]), found["scores"][at].item()


def _overlap(a: list[float], b: list[float]) -> float:
    wide, high = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return wide * high / (area - wide * high)


def _again(found: dict[str, Tensor], box: list[float], label: int) -> float:
    """The score of the same class at the same place."""
    scores = [0.0]
    for other, kind, value in zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True):
        if kind == label and _overlap(other, box) >= 0.5:
            scores.append(value)
    return max(scores)


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "fcos_resnet50_fpn"])
def test_masked_confidences_are_those_of_a_loop_over_single_images(name):
    model, images = _detector(name), _images()
    level = "backbone.fpn[0]"
    rows = score(model, [images], level, task="detection", fast=False, progress=False).rows
    maps = explain(model, images, level, task="detection")[level]
    for index, row in rows.iterrows():
        with torch.no_grad():
            box, label, confidence = _best(model(images[index][None])[0])
            masked = model((images[index] * maps[index])[None])[0]
        assert row["target"] == label
        assert row["confidence"] == pytest.approx(confidence, abs=1e-5)
        assert row["masked_confidence"] == pytest.approx(_again(masked, box, label), abs=1e-4)


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_d_rise_weighs_masks_by_the_best_overlap_times_score_of_the_class(name):
    model, images, method = _detector(name), _images(1), DRISE(n_masks=8, grid=4)
    expected = torch.zeros(64, 64)
    with torch.no_grad():
        box, label, _ = _best(model(images)[0])
        for mask in RandomMasks.draw(method, 0, (64, 64), images.device).make(0, 8):
            found = model(images * mask)[0]
            every = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
            weight = max(score * _overlap(other, box) for other, kind, score in every if kind == label)
            assert weight > 0
            expected += weight * mask
    maps = explain(model, images, method=method, task="detection")["input"][0]
    torch.testing.assert_close(maps, _scaled(expected), rtol=0, atol=1e-3)


def _grad_cam_by_hand(model: nn.Module, image: Tensor, layer: nn.Module) -> Tensor:
    """Grad-CAM of the best detection's score at a module that runs once, in plain autograd."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        found = model(image[None])[0]
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(found["scores"].max(), kept[0])
    return (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1).clamp(min=0).detach()


def _scaled(maps: Tensor) -> Tensor:
    low, high = maps.amin(), maps.amax()
    return (maps - low) / (high - low)


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn"])
def test_grad_cam_at_a_level_is_that_of_plain_autograd(name):
    model, images = _detector(name), _images(1)
    found = explain(model, images, "backbone.fpn[0]", task="detection")["backbone.fpn[0]"][0]
    raw = _grad_cam_by_hand(model, images[0], model.backbone.fpn.layer_blocks[0])
    assert raw.any()
    expected = nn.functional.interpolate(raw[None], (64, 64), mode="bilinear", align_corners=False)[0, 0]
    assert (found - _scaled(expected)).abs().max() < 1e-3


def test_grad_cam_at_a_level_is_that_of_pytorch_grad_cam():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what that library imports
        from pytorch_grad_cam import GradCAM
    model, images = _detector("retinanet_resnet50_fpn"), _images(1)
    box, label, _ = _best(model(images)[0])

    def followed(output):
        boxes, labels = output["boxes"].tolist(), output["labels"].tolist()
        same = [i for i in range(len(boxes)) if labels[i] == label and _overlap(boxes[i], box) > 0.5]
        return output["scores"][same].max()

    with GradCAM(model, [model.backbone.fpn.layer_blocks[1]]) as cam:
        foreign = torch.from_numpy(cam(input_tensor=images, targets=[followed]))[0]
    with GradCAM(model, [model.backbone.fpn.layer_blocks[0]]) as cam:
        other = torch.from_numpy(cam(input_tensor=images, targets=[followed]))[0]
    maps = explain(model, images, "backbone.fpn[*]", task="detection", protocol=Protocol(normalise_at="layer"))
    compared = 0
    for address, theirs in (("backbone.fpn[1]", foreign), ("backbone.fpn[0]", other)):
        if theirs.any():
            assert (_scaled(maps[address][0]) - _scaled(theirs)).abs().max() < 2e-2, address
            compared += 1
        else:
            assert not maps[address].any()
    assert compared


def test_gradients_at_an_output_do_not_depend_on_what_else_is_looked_at():
    # The body returns tensors that it goes on with: what the output is used for counts, not what the body does with them.
    model, images = _detector("fasterrcnn_mobilenet_v3_large_320_fpn"), _images(1)
    inner = next(iter(model.backbone.body.return_layers))

    def score_of(output):
        return torch.stack([one["scores"].max() for one in output])

    alone = probe(model, images, ["backbone.body[0]"], score=score_of).gradients["backbone.body[0]"]
    beside = probe(model, images, [f"backbone.body.{inner}", "backbone.body[0]"], score=score_of).gradients
    assert torch.allclose(beside["backbone.body[0]"], alone, atol=1e-6)


def test_a_level_that_the_score_does_not_reach_is_an_error_by_name_and_a_failed_row_by_pattern():
    model, images = _detector("fasterrcnn_mobilenet_v3_large_320_fpn"), _images(1)
    with pytest.raises(AddressError, match=r"the target does not depend on layer 'backbone.fpn\[pool\]': it has no gradient"):
        explain(model, images, "backbone.fpn[pool]", task="detection")
    with pytest.raises(AddressError, match="does not depend on layer"):  # nor does a pattern help that fits nothing else
        explain(model, images, "backbone.fpn[p*]", task="detection")
    rows = score(model, [images], "backbone.fpn[*]", task="detection", progress=False).rows.set_index("layer")
    assert rows.loc["backbone.fpn[pool]", "status"] == "nan_map"
    free = score(model, [images], "backbone.fpn[pool]", "eigencam", task="detection", progress=False).rows
    assert set(free["status"]) <= {"ok", "constant_map"}  # a method without gradients can look there


# ---- images that are padded inside


def test_maps_of_padded_images_show_the_image_alone():
    frame = Frame((64, 96), (48, 96))
    maps = torch.zeros(1, 4, 6)
    maps[0, 2, 0] = 1  # of 4 rows of 16 pixels the lowest is padding: this is the lowest that shows the image
    shown = frame.cut(maps)
    assert shown.shape == (1, 48, 96)
    row, column = divmod(int(shown.argmax()), 96)
    assert row >= 36
    assert column < 12
    assert Frame((4, 6), (4, 6)).cut(maps) is maps
    assert frame_of(torch.zeros(2)) is None


def test_an_object_in_a_padded_image_is_where_it_is():
    # 48 x 64 pixels become 64 x 85, and 64 x 96 with padding on the right.
    model = _detector("fasterrcnn_resnet50_fpn")
    images = torch.full((1, 3, 48, 64), 0.5)
    images[0, :, 20:28, 54:62] = 1.0  # of the whole width as much as 8 pixels before the end
    listing = list_layers(model, images).set_index("address")
    assert listing.loc["backbone.fpn[0]", "output_shape"][2:] == (16, 24)
    assert listing.loc["backbone.fpn[0]", "stride"] == 4

    class Brightness:
        name, needs_layer, needs_gradient = "brightness", True, False

        def __call__(self, context):
            return (context.activation - context.activation.mean(dim=(2, 3), keepdim=True)).norm(dim=1)

    class Planted(nn.Module):
        """The detector's own resizing, and a layer that sees what it makes."""

        def __init__(self):
            super().__init__()
            self.transform = model.transform
            self.layer = nn.AvgPool2d(4)

        def forward(self, images):
            batch, _ = self.transform(list(images))
            return self.layer(batch.tensors).mean(dim=(2, 3))

    maps = explain(Planted(), images, "layer", method=Brightness())["layer"][0]
    assert maps.shape == (48, 64)
    inside = maps[22:26, 56:60].mean()
    assert inside > maps[22:26, 44:50].mean() + 0.2
    assert inside > maps[:10, 56:60].mean() + 0.2


def test_detectors_of_other_proportions_have_layers():
    maps = explain(_detector("fasterrcnn_resnet50_fpn"), _images(2, (48, 64)), "auto", task="detection")
    assert list(maps) == [f"backbone.fpn[{i}]" for i in range(4)]


# ---- calls, and images on which nothing is found


def test_the_calls_of_a_shared_head_have_addresses():
    model = _detector("fasterrcnn_mobilenet_v3_large_320_fpn")
    listing = list_layers(model, _images(1))["address"].tolist()
    calls = [address for address in listing if address.startswith("rpn.head.cls_logits#")]
    assert calls == [f"rpn.head.cls_logits#{i}" for i in range(3)]
    seen = probe(model, _images(1), calls)
    assert list(seen.activations) == calls
    with pytest.raises(AddressError, match="runs several times"):
        probe(model, _images(1), "rpn.head.cls_logits")


def test_nothing_found_is_a_status_of_every_row():
    model = _detector("fasterrcnn_mobilenet_v3_large_320_fpn", box_score_thresh=0.9999)
    rows = score(model, [_images()], "backbone.fpn[0]", task="detection", progress=False).rows
    assert rows["status"].tolist() == ["no_target", "no_target"]


def test_equal_boxes_overlap_also_where_they_have_no_area():
    found = {"boxes": torch.tensor([[3.0, 3, 3, 3]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.7])}
    task = Detection()
    assert task.confidence([found], task.follow([found], "predicted", None), "softmax").tolist() == pytest.approx([0.7])


# ---- by name and on the command line


def test_images_of_a_detector_are_not_normalised_twice():
    loaded = load_model("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", model_args={"num_classes": 2})
    assert loaded.preprocessing.mean == (0, 0, 0)
    assert loaded.preprocessing.std == (1, 1, 1)


def test_a_detector_on_the_command_line(tmp_path, capsys):
    arguments = ["--model-args.num_classes", "3", "--model-args.box_score_thresh", "0.0", "--model-args.min_size", "64"]
    model = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"
    what = ["--task", "detection", "--layers", "backbone.fpn[*]", "--data", "scenes", "--image-size", "64"]
    main(
        [
            "score",
            "--model",
            model,
            "--random-weights",
            *arguments,
            *what,
            "--max-images",
            "2",
            "--out",
            str(tmp_path),
            "--no-progress",
        ]
    )
    rows = pd.read_parquet(tmp_path / "rows.parquet")
    assert list(dict.fromkeys(rows["layer"])) == ["backbone.fpn[0]", "backbone.fpn[1]", "backbone.fpn[pool]"]
    assert set(rows["status"]) <= {"ok", "constant_map", "nan_map"}
    assert (tmp_path / "maps.png").exists()
    capsys.readouterr()
    main(["layers", model, *arguments, "--image-size", "64"])
    assert "rpn.head.cls_logits#0" in capsys.readouterr().out
