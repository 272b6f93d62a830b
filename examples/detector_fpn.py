"""Feature pyramid of a detector
=============================

Which level of a feature pyramid explains the boxes of a detector? The example is an FCOS detector of the shapes in generated
scenes. The package has no detector weights, so one is trained here: for sixty steps, on the feature pyramid of the built-in
classifier, which was trained on such scenes. This is enough to find most of the shapes, but it is not a good detector.

``python examples/detector_fpn.py [FOLDER]`` prints the scores of the levels and writes ``detector_fpn.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import masks_to_boxes

import xaieval
from xaieval.data.scenes import make_scene
from xaieval.report import maps_figure

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
STEPS, BATCH = 60, 8
LEVELS = "backbone.fpn[*]"

# %%
# The detector is torchvision's, with the backbone and the pyramid of the built-in classifier.


class Pyramid(nn.Module):
    """The backbone and the pyramid of the built-in classifier, with the interface of torchvision's detectors."""

    def __init__(self) -> None:
        super().__init__()
        classifier = xaieval.models.fpn_scenes()
        self.body, self.fpn, self.out_channels = classifier.backbone, classifier.fpn, 64

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps at strides 4, 8, 16 and 32."""
        return self.fpn(dict(zip(("p2", "p3", "p4", "p5"), self.body(images), strict=True)))


def detector() -> FCOS:
    """A detector of one class; each level detects larger objects than the one before."""
    anchors = AnchorGenerator(sizes=((2,), (3,), (6,), (10,)), aspect_ratios=((1.0,),) * 4)
    half = [0.5, 0.5, 0.5]
    return FCOS(Pyramid(), 2, min_size=128, max_size=128, image_mean=half, image_std=half, anchor_generator=anchors)


# %%
# Train it on scenes and the boxes of their objects.


def load(first: int, count: int, split: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Scenes in [0, 1] and the boxes of their objects."""
    drawn = [make_scene(index, split) for index in range(first, first + count)]
    images = [torch.from_numpy(scene.image).permute(2, 0, 1) / 255 for scene in drawn]
    boxes = [masks_to_boxes(torch.from_numpy(scene.mask)[None]) for scene in drawn]
    return images, [{"boxes": box, "labels": torch.ones(1, dtype=torch.long)} for box in boxes]


def train(model: FCOS) -> None:
    """Train for sixty steps."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=STEPS)
    for step in range(STEPS):
        loss = torch.stack([*model(*load(step * BATCH, BATCH, "train")).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


torch.manual_seed(0)
model = detector()
train(model)

# %%
# Each detection comes from one level, and its gradient at the other levels is zero. Without the constant maps, each level is
# scored only on its own boxes.

images = torch.stack(load(0, 24, "test")[0])
protocol = xaieval.Protocol(constant_map="leave_out")
scores = xaieval.score(
    model, images.split(8), LEVELS, ["gradcam", "layercam"], task="detection", protocol=protocol, progress=False
)
print(scores.summary()[["average_drop", "increase_in_confidence", "n_images", "n_failed"]].round(1).to_string())

# %%
# The maps, one column per level.

maps = xaieval.explain(model, images[:5], LEVELS, method="layercam", task="detection")
with torch.no_grad():
    found = model(images[:5])
titles = [f"{one['scores'].max():.2f}" if len(one["scores"]) else "nothing" for one in found]
figure = maps_figure(images[:5], maps, titles, "score of the box at the left; LayerCAM at each level")
figure.savefig(folder / "detector_fpn.png", dpi=70)
