"""The model, images and layer that an explainer is checked on, and the context that a run would give it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch, check_images
from xaieval.errors import ConformanceError, DataError, ExplainerError
from xaieval.evaluation.job import Job, make_pairs
from xaieval.evaluation.maps import run_batch
from xaieval.explainers import Context, Explainer, Method, joins_layers, resolve_methods
from xaieval.inference.batch_limit import BatchLimit
from xaieval.inference.borrowing import borrow
from xaieval.inference.forward_passes import Runner
from xaieval.inference.tasks import Classification, Task, resolve_task
from xaieval.probe.hooks import locate

__all__ = ["Subject", "accepts", "borrowed_context", "maps_of", "small_model", "subject"]

LAYER, JOINED = "last", ("pool", "last")  # of the small model


@dataclass(frozen=True)
class Subject:
    """An explainer, and what it is checked on.

    Attributes:
        explainer: The explainer under test.
        model: The model to explain.
        images: At least two images, `[N, C, H, W]`.
        layer: The address of a layer; several for an explainer that joins layers, None for one that needs none.
        ids: Ids of the images.
        task: How the model's output is read.
    """

    explainer: Explainer
    model: nn.Module
    images: Tensor
    layer: str | Sequence[str] | None
    ids: Sequence[str]
    task: Task = field(default_factory=Classification)

    @property
    def addresses(self) -> list[str]:
        """The addresses of the layers, as a list."""
        return [self.layer] if isinstance(self.layer, str) else list(self.layer or ())

    def part(self, *numbers: int) -> Subject:
        """The same subject with only these images, which keep their ids."""
        return replace(self, images=self.images[list(numbers)], ids=[self.ids[number] for number in numbers])


def small_model() -> nn.Sequential:
    """A classifier of 5 classes for images of any size, with everything that an explainer may change by mistake.

    It has in-place activations, running means and dropout. Its layer "last" has 12 channels and an eighth of the image's
    height and width; global average pooling and a linear layer follow. The weights are always the same.

    Example:
        >>> small_model()(torch.zeros(2, 3, 32, 40)).shape
        torch.Size([2, 5])
    """
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay unchanged
        torch.manual_seed(1)
        layers = OrderedDict[str, nn.Module](
            first=nn.Conv2d(3, 8, 3, stride=2, padding=1),
            norm=nn.BatchNorm2d(8),
            relu=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(2),
            body=nn.Conv2d(8, 12, 3, stride=2, padding=1),
            last=nn.ReLU(inplace=True),
            mean=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            drop=nn.Dropout(0.5),
            head=nn.Linear(12, 5),
        )
    return nn.Sequential(layers).eval()


def subject(
    explainer: Method,
    model: nn.Module | None = None,
    images: Tensor | None = None,
    layer: str | Sequence[str] | None = None,
    task: str | Task = "classification",
) -> Subject:
    """An explainer, and what it is checked on.

    Args:
        explainer: A name, an `Explainer` or a function `(model, images, targets) -> maps`.
        model: The model, an image classifier unless `task` says otherwise. Default: `small_model()`.
        images: At least two images, `[N, C, H, W]`. Default: four of noise, 32 x 40 pixels.
        layer: The address of a layer, or several for an explainer that joins layers. Default: the layer before the pooling of
            the small model, and an earlier one.
        task: How the model's output is read: "classification", "detection", "segmentation", or an object of these.

    Raises:
        ExplainerError: There is no such method, or it needs a layer of the given model.
        DataError: The images are not a batch of two or more.

    Example:
        >>> subject("gradcam").layer
        'last'
    """
    (method,) = resolve_methods([explainer])
    if layer is None and method.needs_layer:
        if model is not None:
            raise ExplainerError(f"method {method.name!r} needs layer=, an address such as 'layer4', with a model of yours")
        layer = JOINED if joins_layers(method) else LAYER
    if images is None:
        images = torch.rand(4, 3, 32, 40, generator=torch.Generator().manual_seed(7))
    images = check_images(images)
    if len(images) < 2:
        raise DataError(f"explainers are checked on at least 2 images, got {len(images)}")
    ids = [f"image {number}" for number in range(len(images))]
    used = small_model() if model is None else model
    return Subject(method, used, images, layer if method.needs_layer else None, ids, resolve_task(task))


@contextmanager
def borrowed_context(subject: Subject, device: str | None = None) -> Iterator[Context]:
    """The context that a run gives the explainer for one batch; the model is borrowed meanwhile."""
    with borrow(subject.model, device) as used_device:
        images = subject.images.detach().clone().to(used_device)
        layers = locate(subject.model, images, subject.addresses)
        runner = Runner(subject.model, subject.model, subject.model, BatchLimit(len(images)))
        job = Job(runner, used_device, layers, make_pairs([subject.explainer], layers), Protocol(), subject.task)
        originals = run_batch(job, Batch(images, None, list(subject.ids), []))
        yield originals.for_explainer(*job.pairs[0])


def maps_of(subject: Subject, device: str | None = None) -> Tensor:
    """The maps of the explainer, detached.

    Raises:
        ConformanceError: The explainer does not return a tensor.
    """
    with borrowed_context(subject, device) as context:
        maps: Any = subject.explainer(context)
    if not isinstance(maps, Tensor):
        raise ConformanceError(
            f"method {subject.explainer.name!r} gives a {type(maps).__name__}; a tensor [N, h, w] is expected"
        )
    return maps.detach()


def accepts(model: nn.Module, images: Tensor) -> bool:
    """Whether the model runs on images of this size."""
    try:
        with borrow(model) as device, torch.no_grad():
            model(images.to(device))
    except Exception:  # a model for images of one size may raise anything
        return False
    return True
