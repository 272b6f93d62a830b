"""Networks of ultralytics with random weights whose boxes have scores that differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xaieval.models.ultralytics import others_kept

HEIGHT, WIDTH = 64, 96


def yolo(name: str, **arguments: Any) -> Any:
    """A `YOLO` in evaluation mode."""
    with others_kept():
        from ultralytics import YOLO
    model = YOLO(name)
    if arguments:
        names = model.model.names
        model.model = type(model.model)(name, verbose=False, **arguments)
        model.model.args, model.model.task = {}, model.task
        assert names
    return model


def pictures(count: int = 2) -> Tensor:
    """Images of noise with a bright square each."""
    images = torch.rand(count, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    for number, image in enumerate(images):
        image[:, 8:24, 16 * number : 16 * number + 24] += 2
    return images / 3


def detector(name: str, classes: int = 4, **args: Any) -> Any:
    """A `YOLO` of so many classes whose logits are spread by 2 around -2, with these settings of its detections."""
    model = yolo(name, nc=classes)
    network = model.model
    network.args = args
    head, generator, outputs = network.model[-1], torch.Generator().manual_seed(1), {}
    lasts = [block[-1] for heads in (head.cv3, getattr(head, "one2one_cv3", None) or ()) for block in heads]
    with torch.no_grad():
        _normalise(network)
        for last in lasts:
            last.weight.copy_(torch.randn(last.weight.shape, generator=generator))
            last.bias.zero_()
            last.register_forward_hook(lambda module, _, output: outputs.__setitem__(module, output))
        evaluating(network)(pictures(4))
        for last in lasts:
            last._forward_hooks.clear()
            scale = 2 / outputs[last].std()
            last.weight.mul_(scale)
            last.bias.copy_(-2 - scale * outputs[last].mean(dim=(0, 2, 3)))
    return model


def _normalise(network: Any) -> None:
    """Set the statistics of BatchNorms to those of pictures; otherwise deep layers would hardly depend on them."""
    norms = [module for module in evaluating(network).modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    network(pictures(4))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.training, norm.momentum = False, momentum


def evaluating(network: Any) -> Any:
    """The network with all its modules in evaluation mode."""
    for module in network.modules():
        module.training = False
    return network
