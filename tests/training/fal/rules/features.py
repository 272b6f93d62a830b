"""Small pyramids and features for the tests of rules."""

from __future__ import annotations

import torch

from xaieval.models.fpn import LEVELS, FPNClassifier, LevelHead
from xaieval.training.fal.rules.level_features import LevelFeatures


def small_fpn(head: str = "mean", classes: int = 4, seed: int = 0) -> FPNClassifier:
    """An untrained FPN whose head is large enough that features matter."""
    torch.manual_seed(seed)
    fpn = FPNClassifier("test_resnet", num_classes=classes, channels=8, head=head).eval()
    for parameter in fpn.head.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    return fpn


def batches(count: int = 6, side: int = 64, classes: int = 4, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of two images with labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, side, side, generator=generator)
    return list(zip(images.split(2), (torch.arange(count) % classes).split(2), strict=True))


def planted(count: int, level: str, seed: int, classes: int = 3) -> LevelFeatures:
    """Noise at every level, and at one level the pattern of the class in a marked cell among cells with patterns of any class.

    Channel 0 marks the cell and channel 1 + k has the pattern of class k; the average over cells says little about the class.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    levels = {name: torch.randn(count, 1 + classes, 4, 4, generator=generator) for name in LEVELS}
    cells = torch.randint(classes, (count, 16), generator=generator)
    marked = torch.randint(16, (count,), generator=generator)
    cells[torch.arange(count), marked] = labels
    patterns = torch.nn.functional.one_hot(cells, classes).float() * 3
    marks = torch.nn.functional.one_hot(marked, 16).float()[..., None] * 3
    levels[level] = torch.cat([marks, patterns], dim=2).transpose(1, 2).reshape(count, 1 + classes, 4, 4)
    return LevelFeatures(levels, labels, [f"image {number:03d}" for number in range(count)])


def zero_head(classes: int = 3, kind: str = "mean") -> LevelHead:
    """An untrained head of zeros for planted features."""
    return LevelHead(kind, channels=1 + classes, num_classes=classes, start_at_zero=True)
