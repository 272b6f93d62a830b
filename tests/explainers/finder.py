"""A small detector, and contexts of methods that explain it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xaieval.explainers import Context
from xaieval.inference.tasks import Detection


class Finder(nn.Module):
    """One box in each half of the image, which moves with the image; what it says of them depends on the kind."""

    def __init__(self, kind: str = "scores") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.kind = kind
        self.layer = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.ReLU())
        self.head, self.found = nn.Linear(5, 3), nn.Linear(5, 1)
        for linear in (self.head, self.found):
            nn.init.normal_(linear.weight, std=6)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        features, wide = self.layer(images), images.shape[3]
        halves = torch.stack([half.mean(dim=(2, 3)) for half in features.tensor_split(2, dim=3)], dim=1)
        probabilities, objectness = self.head(halves).softmax(dim=2), self.found(halves).sigmoid()[..., 0]
        return [self._said(*each, wide) for each in zip(halves, probabilities, objectness, strict=True)]

    def _said(self, half: Tensor, probabilities: Tensor, objectness: Tensor, wide: int) -> dict[str, Tensor]:
        places = torch.tensor([[0.0, 1, wide / 2, 7], [wide / 2, 0, wide, 6]], device=half.device)
        boxes = places + half.detach()[:, :1] * torch.tensor([16.0, 8, 2, 12], device=half.device)
        scores, labels = probabilities.max(dim=1)
        said = {"boxes": boxes, "labels": labels, "scores": scores}
        if self.kind == "queries":  # the first box twice
            twice = torch.tensor([1, 0, 0], device=half.device)
            said = {name: tensor[twice] for name, tensor in said.items()} | {"queries": twice}
        if self.kind != "scores":
            said["probabilities"] = probabilities
        if self.kind == "objectness":
            said["objectness"] = objectness
        return said


def some_images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 10, 16, generator=torch.Generator().manual_seed(2))


def context_of(model: Callable[[Tensor], list[dict[str, Tensor]]], images: Tensor, size: int) -> Context:
    task = Detection()
    with torch.no_grad():
        followed = task.follow(model(images), "predicted", None)
    ids = [str(number) for number in range(len(images))]
    return Context(nn.Identity(), images, followed.classes, None, ids, 4, task=task, followed=followed, size=size, call=model)
