"""Average Drop and Increase in Confidence by layer and method with each library, in its fastest documented way.

A contestant is a function of a network, batches, layers and methods. It returns its results by (layer, method), so that the
numbers can be compared before any time is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import captum.attr
import numpy as np
import pytorch_grad_cam
import torch
import torchcam.methods
from networks import METHODS, Batches, Network
from pytorch_grad_cam.metrics.cam_mult_image import (
    CamMultImageConfidenceChange,
    DropInConfidence,
    IncreaseInConfidence,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from torch import Tensor
from torchcam.metrics import ClassificationMetric

import xaieval
from xaieval import Protocol

__all__ = ["PEERS", "Found", "Peer", "available_variants", "ours"]

Layers = Sequence[str]
Names = Sequence[str]


class Found(NamedTuple):
    """The drop as a share of the confidence, and whether the confidence rose; summed over each batch."""

    drop: np.ndarray
    increase: np.ndarray


Results = dict[tuple[str, str], Found]
Contestant = Callable[[Network, Batches, Layers, Names], Results]


@dataclass(frozen=True)
class Peer:
    """Another library.

    Attributes:
        name: Name in tables.
        run: The contestant.
        methods: Its methods among `METHODS`.
        tokens: Whether it explains transformers.
        protocol: The protocol with which xaieval measures the same numbers.
        deviations: By method, the reason why its numbers still differ, if they do.
    """

    name: str
    run: Contestant
    methods: tuple[str, ...]
    tokens: bool
    protocol: Protocol
    deviations: Mapping[str, str]

    def serves(self, network: Network, methods: Names) -> bool:
        """Whether the library has all these methods for this network."""
        return set(methods) <= set(self.methods) and (self.tokens or network.reshape is None)


VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {},
    "model unchanged": {"fast": False},  # the order of the passes only, without folding and memory layout
    "bf16": {"precision": "bf16"},
    "compile": {"compile": True},
}


def available_variants() -> dict[str, dict[str, Any]]:
    """Options of `xaieval.score` by variant, without bf16 if this machine has no instructions for it."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return {name: options for name, options in VARIANTS.items() if name != "bf16" or native}


def ours(
    network: Network,
    batches: Batches,
    layers: Layers,
    methods: Names,
    protocol: Protocol | str = "default",
    **variant: Any,
) -> Results:
    """xaieval: one call for all layers and methods."""
    rows = xaieval.score(
        network.model, batches, layers, methods, target="label", protocol=protocol, progress=False, **variant
    ).rows
    return {
        pair: Found(part["average_drop"].to_numpy() / 100, part["increase_in_confidence"].to_numpy() / 100)
        for pair, part in rows.groupby(["layer", "method"])
    }


# ---- pytorch-grad-cam

GRAD_CAM = {
    "gradcam": pytorch_grad_cam.GradCAM,
    "gradcam++": pytorch_grad_cam.GradCAMPlusPlus,
    "xgradcam": pytorch_grad_cam.XGradCAM,
    "layercam": pytorch_grad_cam.LayerCAM,
}


Measured = Callable[[Network, Any, Tensor, Tensor], tuple[np.ndarray, np.ndarray]]


def grad_cam(measure: Measured, network: Network, batches: Batches, layers: Layers, methods: Names) -> Results:
    """pytorch-grad-cam: one CAM object per layer and method for all batches."""
    results = {}
    for layer, method in product(layers, methods):
        with GRAD_CAM[method](network.model, [network.module(layer)], reshape_transform=network.reshape) as cam:
            parts = [measure(network, cam, images, targets) for images, targets in batches]
        results[layer, method] = _joined(parts)
    return results


def _by_its_metrics(network: Network, cam: Any, images: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Its metric classes as documented; each runs the original and the masked images."""
    maps = cam(images, [ClassifierOutputTarget(target) for target in targets.tolist()])
    before = _confidence(cam.outputs.detach(), targets).cpu().numpy()  # the drop is absolute and has to be divided
    wanted = [ClassifierOutputSoftmaxTarget(target) for target in targets.tolist()]
    drop = DropInConfidence()(images, maps, wanted, network.model)
    return drop / before, IncreaseInConfidence()(images, maps, wanted, network.model) > 0


def _by_hand(network: Network, cam: Any, images: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The class behind both metrics, called once with `return_diff=False`.

    The logits of the original images are reused from the CAM. That leaves one of four forward passes.
    """
    maps = cam(images, [ClassifierOutputTarget(target) for target in targets.tolist()])
    before = _confidence(cam.outputs.detach(), targets).cpu().numpy()
    wanted = [ClassifierOutputSoftmaxTarget(target) for target in targets.tolist()]
    after = CamMultImageConfidenceChange()(images, maps, wanted, network.model, return_diff=False)
    return np.maximum(before - after, 0) / before, after > before


# ---- torch-cam

TORCH_CAM = {
    "gradcam": torchcam.methods.GradCAM,
    "gradcam++": torchcam.methods.GradCAMpp,
    "xgradcam": torchcam.methods.XGradCAM,
    "layercam": torchcam.methods.LayerCAM,
}


def torch_cam(network: Network, batches: Batches, layers: Layers, methods: Names) -> Results:
    """torch-cam: its ClassificationMetric with one extractor per layer and method, with one forward pass for map and Y."""
    results = {}
    for layer, method in product(layers, methods):
        with TORCH_CAM[method](network.model, layer, reshape_transform=network.reshape) as extractor:
            metric = ClassificationMetric(extractor, partial(torch.softmax, dim=-1))
            parts = [_torch_cam_batch(metric, images, targets) for images, targets in batches]
        results[layer, method] = _joined(parts)
    return results


def _torch_cam_batch(metric: ClassificationMetric, images: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What an update adds; NaN for a map of NaN, which the metric leaves out."""
    before = metric.drop, metric.increase, metric.total
    metric.update(images, targets.tolist())
    if metric.total == before[2]:
        return np.array([np.nan]), np.array([np.nan])
    return np.array([metric.drop - before[0]]), np.array([metric.increase - before[1]])


def torch_cam_by_hand(network: Network, batches: Batches, layers: Layers, methods: Names) -> Results:
    """torch-cam: its extractor on all layers at once, and a user's loop over the maps instead of its metric."""
    parts_of: dict[tuple[str, str], list[Any]] = {pair: [] for pair in product(layers, methods)}
    for method in methods:
        with TORCH_CAM[method](network.model, list(layers), reshape_transform=network.reshape) as extractor:
            for images, targets in batches:
                logits = network.model(images)
                maps = extractor(targets.tolist(), logits)
                before = _confidence(logits.detach(), targets)
                for layer, layer_maps in zip(layers, maps, strict=True):
                    large = _upsampled(layer_maps[:, None], images)
                    parts_of[layer, method].append(_masked(network, images, targets, large, before))
    return {pair: _joined(parts) for pair, parts in parts_of.items()}


# ---- captum


def captum_loop(network: Network, batches: Batches, layers: Layers, methods: Names) -> Results:
    """captum: LayerGradCam, its interpolation, and a loop over masked images, since captum has neither metric."""
    before = [_quick_confidence(network, images, targets) for images, targets in batches]
    results = {}
    for layer, method in product(layers, methods):
        explainer = captum.attr.LayerGradCam(network.model, network.module(layer))
        parts = [
            _masked(network, images, targets, _captum_maps(explainer, images, targets), original)
            for (images, targets), original in zip(batches, before, strict=True)
        ]
        results[layer, method] = _joined(parts)
    return results


def _captum_maps(explainer: captum.attr.LayerGradCam, images: Tensor, targets: Tensor) -> Tensor:
    raw = explainer.attribute(images, targets, relu_attributions=True).detach()
    large = captum.attr.LayerAttribution.interpolate(raw, images.shape[2:], "bilinear")
    low, high = large.amin(dim=(2, 3), keepdim=True), large.amax(dim=(2, 3), keepdim=True)
    return (large - low) / (high - low)


# ---- code that users write around libraries without the metrics


def _confidence(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.softmax(dim=-1).gather(1, targets[:, None])[:, 0]


def _quick_confidence(network: Network, images: Tensor, targets: Tensor) -> Tensor:
    with torch.inference_mode():
        return _confidence(network.model(images), targets)


def _upsampled(maps: Tensor, images: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)


def _masked(network: Network, images: Tensor, targets: Tensor, maps: Tensor, before: Tensor) -> tuple[np.ndarray, np.ndarray]:
    after = _quick_confidence(network, images * maps, targets)
    return ((before - after).clamp(min=0) / before).cpu().numpy(), (after > before).cpu().numpy()


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Found:
    drops, increases = zip(*parts, strict=True)
    return Found(np.concatenate(drops), np.concatenate(increases).astype(float))


# ---- the libraries

PLUS_PLUS_GRAD_CAM = "adds 1e-6 to the denominator of alpha, which is of the size of the squared gradients and larger"
PLUS_PLUS_TORCH_CAM = "weighs channels with alpha = G^2: its division goes to a copy"
SOFTMAX = Protocol(gradient="confidence", normalise_at="layer")  # the metric uses gradients of the probability

PEERS = (
    Peer(
        "pytorch-grad-cam",
        partial(grad_cam, _by_its_metrics),
        METHODS,
        True,
        Protocol(),
        {"gradcam++": PLUS_PLUS_GRAD_CAM},
    ),
    Peer(
        "pytorch-grad-cam (own loop)",
        partial(grad_cam, _by_hand),
        METHODS,
        True,
        Protocol(),
        {"gradcam++": PLUS_PLUS_GRAD_CAM},
    ),
    Peer("torch-cam", torch_cam, METHODS, True, SOFTMAX, {"gradcam++": PLUS_PLUS_TORCH_CAM}),
    Peer(
        "torch-cam (own loop)",
        torch_cam_by_hand,
        METHODS,
        True,
        Protocol(normalise_at="layer"),
        {"gradcam++": PLUS_PLUS_TORCH_CAM},
    ),
    Peer("captum (own loop)", captum_loop, ("gradcam",), False, Protocol(), {}),
)
