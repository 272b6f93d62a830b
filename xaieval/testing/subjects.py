"""What an explainer is tried on: a model, images, a layer, and what a run would give it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch, check_images
from xaieval.errors import ConformanceError, DataError, ExplainerError
from xaieval.evaluation.job import Job, make_pairs
from xaieval.evaluation.maps import run_batch
from xaieval.explainers import Context, Explainer, Method, needs_model, resolve_methods
from xaieval.inference.batch_limit import BatchLimit
from xaieval.inference.borrowing import borrow
from xaieval.inference.forward_passes import Runner
from xaieval.probe.hooks import locate

__all__ = ["Subject", "looking", "maps_of", "small_model", "subject", "takes"]

LAYER = "last"  # of the small model


@dataclass(frozen=True)
class Subject:
    """An explainer with what it is tried on.

    Attributes:
        explainer: under test.
        model: that it explains.
        images: at least two, `[N, C, H, W]`.
        layer: address; None for an explainer that needs none.
        ids: of the images.
    """

    explainer: Explainer
    model: nn.Module
    images: Tensor
    layer: str | None
    ids: Sequence[str]

    def part(self, *numbers: int) -> Subject:
        """The same with these images alone, which keep their ids."""
        return replace(self, images=self.images[list(numbers)], ids=[self.ids[number] for number in numbers])


def small_model() -> nn.Sequential:
    """A classifier of 5 classes for images of any size that has what explainers may leave changed.

    It has in-place activations, running means, dropout, and at its layer "last" 12 channels of an eighth of the image's sides,
    which global average pooling and a linear layer follow. Its weights are always the same.

    Example:
        >>> small_model()(torch.zeros(2, 3, 32, 40)).shape
        torch.Size([2, 5])
    """
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as if nothing had been
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
    layer: str | None = None,
) -> Subject:
    """An explainer with what it is tried on.

    Args:
        explainer: a name, an `Explainer` or a function `(model, images, targets) -> maps`.
        model: an image classifier; `small_model()` unless told.
        images: at least two, `[N, C, H, W]`; four of noise, of 32 x 40 pixels, unless told.
        layer: address of a layer; that before the pooling in the small model.

    Raises:
        ExplainerError: there is no such method, or it needs a layer of the model given.
        DataError: the images are no batch of two or more.

    Example:
        >>> subject("gradcam").layer
        'last'
    """
    (found,) = resolve_methods([explainer])
    if layer is None and found.needs_layer:
        if model is not None:
            raise ExplainerError(f"method {found.name!r} needs layer=, an address such as 'layer4', with a model of yours")
        layer = LAYER
    if images is None:
        images = torch.rand(4, 3, 32, 40, generator=torch.Generator().manual_seed(7))
    images = check_images(images)
    if len(images) < 2:
        raise DataError(f"explainers are tried on at least 2 images, got {len(images)}")
    ids = [f"image {number}" for number in range(len(images))]
    return Subject(found, small_model() if model is None else model, images, layer if found.needs_layer else None, ids)


@contextmanager
def looking(tried: Subject, device: str | None = None) -> Iterator[Context]:
    """What a run gives an explainer for one batch, while the model is borrowed."""
    with borrow(tried.model, device) as there:
        images = tried.images.detach().clone().to(there)
        layers = locate(tried.model, images, [] if tried.layer is None else [tried.layer])
        runner = Runner(tried.model, tried.model, tried.model, BatchLimit(len(images)))
        job = Job(runner, there, layers, make_pairs([tried.explainer], layers), Protocol())
        passed = run_batch(job, Batch(images, None, list(tried.ids), []))
        yield passed.at(layers[0].address if layers else None, contiguous=needs_model(tried.explainer))


def maps_of(tried: Subject, device: str | None = None) -> Tensor:
    """What the explainer gives, detached.

    Raises:
        ConformanceError: it gives no tensor.
    """
    with looking(tried, device) as context:
        maps: Any = tried.explainer(context)
    if not isinstance(maps, Tensor):
        raise ConformanceError(f"method {tried.explainer.name!r} gives a {type(maps).__name__}; a tensor [N, h, w] is expected")
    return maps.detach()


def takes(model: nn.Module, images: Tensor) -> bool:
    """Whether a model takes images of this size."""
    try:
        with borrow(model) as there, torch.no_grad():
            model(images.to(there))
    except Exception:  # whatever a model can raise that takes one size alone
        return False
    return True
