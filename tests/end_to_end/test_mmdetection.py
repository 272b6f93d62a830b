"""The wrapper of docs/models.md around a detector with the interface of mmdetection, which is not installed here."""

from __future__ import annotations

import doctest
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

import xaieval
from tests import ROOT
from tests.borrowing import unchanged

CLASSES, STRIDES = 3, (8, 16, 32)


class DetDataSample:
    """As mmdet's: facts of an image are attributes, and so are the predictions."""

    def __init__(self, *, metainfo: dict | None = None) -> None:
        for name, value in (metainfo or {}).items():
            setattr(self, name, value)
        self.pred_instances = None


class Backbone(nn.Module):
    """Stages, as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in STRIDES)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs, x = [], self.stem(images).relu()
        for layer in self.layers:
            x = layer(x).relu()
            outputs.append(x)
        return tuple(outputs)


class Neck(nn.Module):
    """A feature pyramid, as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in STRIDES)

    def forward(self, stages: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        levels = [conv(stage) for conv, stage in zip(self.lateral_convs, stages, strict=True)]
        for fine in (1, 0):
            levels[fine] = levels[fine] + nn.functional.interpolate(levels[fine + 1], scale_factor=2)
        return tuple(levels)


class BoxHead(nn.Module):
    """A head without anchors, shared by all levels."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_conv, self.reg_conv = nn.Conv2d(8, CLASSES, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, levels: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        return [self.cls_conv(level) for level in levels], [self.reg_conv(level) for level in levels]

    def predict(self, levels: tuple[Tensor, ...], samples: list[DetDataSample], rescale: bool) -> list[SimpleNamespace]:
        all_scores, all_sides = self(levels)
        found = []
        for number, sample in enumerate(samples):
            boxes, scores = [], []
            for stride, one, sides in zip(STRIDES, all_scores, all_sides, strict=True):
                height, width = one.shape[-2:]
                y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
                centre = (torch.stack([x, y, x, y], dim=-1).flatten(0, 1) + 0.5) * stride
                reach = sides[number].exp().flatten(1).T * stride * torch.tensor([-1, -1, 1, 1])
                boxes.append(centre + reach)
                scores.append(one[number].sigmoid().flatten(1).T)
            best, labels = torch.cat(scores).max(dim=1)
            limits = torch.tensor(sample.img_shape[::-1] * 2)
            corners = torch.minimum(torch.cat(boxes).clamp(min=0), limits)
            if rescale:
                corners = corners / torch.tensor(sample.scale_factor * 2)
            kept = batched_nms(corners, best, labels, 0.5)[:20]
            found.append(SimpleNamespace(bboxes=corners[kept], scores=best[kept], labels=labels[kept]))
        return found


class Detector(nn.Module):
    """With the methods of mmdet's single-stage detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck, self.bbox_head = Backbone(), Neck(), BoxHead()

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return self.neck(self.backbone(inputs))

    def forward(self, inputs: Tensor, data_samples: list[DetDataSample] | None = None, mode: str = "tensor"):
        if mode == "tensor":
            return self.bbox_head(self.extract_feat(inputs))
        assert mode == "predict"
        return self.predict(inputs, data_samples)

    def predict(self, inputs: Tensor, data_samples: list[DetDataSample], rescale: bool = True) -> list[DetDataSample]:
        for sample, found in zip(
            data_samples, self.bbox_head.predict(self.extract_feat(inputs), data_samples, rescale), strict=True
        ):
            sample.pred_instances = found
        return data_samples

    def test_step(self, data: dict) -> list[DetDataSample]:
        with torch.no_grad():  # as mmengine's loops call it
            return self(data["inputs"], data["data_samples"], mode="predict")


def _documented() -> type:
    """The class in docs/models.md."""
    page = (ROOT / "docs/models.md").read_text()
    example = next(one for one in doctest.DocTestParser().get_examples(page) if "class FromMMDetection" in one.source)
    names = {"torch": torch}
    exec(example.source, names)
    return names["FromMMDetection"]


@pytest.fixture(scope="module")
def wrapped() -> nn.Module:
    torch.manual_seed(0)
    return _documented()(Detector().eval(), DetDataSample)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_detections_are_those_of_the_detector(wrapped, images):
    facts = {"img_shape": (64, 96), "ori_shape": (64, 96), "scale_factor": (1.0, 1.0)}
    data = {"inputs": images, "data_samples": [DetDataSample(metainfo=facts) for _ in images]}
    for one, sample in zip(wrapped(images), wrapped.detector.test_step(data), strict=True):
        assert torch.equal(one["boxes"], sample.pred_instances.bboxes)
        assert torch.equal(one["scores"], sample.pred_instances.scores)
        assert torch.equal(one["labels"], sample.pred_instances.labels)
        assert one["scores"].requires_grad
        assert len(one["boxes"]) > 1


def test_auto_takes_the_levels_of_the_neck_and_all_have_addresses(wrapped, images):
    with unchanged(wrapped):
        chosen = list(xaieval.explain(wrapped, images, "auto", task="detection"))
    assert chosen == [f"detector.neck[{level}]" for level in range(3)]
    listed = set(xaieval.list_layers(wrapped, images)["address"])
    assert listed >= {*chosen, *(f"detector.backbone[{stage}]" for stage in range(3)), "detector.bbox_head.cls_conv#2"}


def test_maps_are_gradients_of_the_score_of_the_best_detection(wrapped, images):
    """Grad-CAM with the definition at hand: the level is a leaf, and what follows it runs again."""
    found = xaieval.explain(wrapped, images, "detector.neck[*]", task="detection")
    detector = wrapped.detector
    seen = 0
    for number in range(2):
        levels = [level.detach().requires_grad_() for level in detector.extract_feat(images[number : number + 1])]
        facts = {"img_shape": (64, 96), "scale_factor": (1.0, 1.0)}
        (best,) = detector.bbox_head.predict(tuple(levels), [DetDataSample(metainfo=facts)], rescale=True)
        gradients = torch.autograd.grad(best.scores[0], levels)
        for level, (features, gradient) in enumerate(zip(levels, gradients, strict=True)):
            raw = (gradient.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True).relu()
            large = nn.functional.interpolate(raw, (64, 96), mode="bilinear", align_corners=False)[0, 0]
            span = large.max() - large.min()
            expected = (large - large.min()) / span if span > 0 else torch.zeros_like(large)
            seen += bool(span > 0)
            torch.testing.assert_close(found[f"detector.neck[{level}]"][number], expected, rtol=0, atol=1e-4)
    assert seen > 0


def test_rows_follow_the_best_detection(wrapped, images):
    rows = xaieval.score(wrapped, [images], "auto", ["gradcam", "occlusion"], task="detection", progress=False).rows
    best = [one["scores"].max().item() for one in wrapped(images)]
    for number, of_image in rows.groupby("image_id"):
        assert of_image["confidence"].tolist() == pytest.approx([best[int(number)]] * len(of_image), abs=1e-6)
    assert set(rows["layer"].dropna()) >= {f"detector.neck[{level}]" for level in range(3)}
