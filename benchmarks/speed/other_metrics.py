"""Metrics of captum and of pytorch-grad-cam as documented there, and Xplique's formulas in torch.

Xplique needs TensorFlow. Its formulas are written here for torch in the way that it computes them: as many passes, the images
of a step in one batch, and one number for each image where it returns the mean. With `draw` each contestant gets xaieval's
random numbers in the place of its own, so that the values can be compared; times are taken without.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import captum.attr
import captum.metrics
import numpy as np
import torch
from given import Draw, Given
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from scipy.stats import rankdata
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from xaieval.metrics.changes import noise_like

__all__ = [
    "captum_infidelity",
    "captum_max_sensitivity",
    "grad_cam_road",
    "xplique_causal_fidelity",
    "xplique_model_randomisation",
    "xplique_random_logit",
    "xplique_sparseness",
]

Found = Callable[..., Any]


# ---- captum


def captum_max_sensitivity(samples: int, radius: float) -> Found:
    """`sensitivity_max` of its Saliency; all samples of a batch in one pass, its default."""

    def found(given: Given, size: int, draw: Draw | None = None) -> np.ndarray:
        method = captum.attr.Saliency(given.network.model)
        own = {} if draw is None else {"perturb_func": _added(given, draw, samples, radius)}
        return _joined(
            captum.metrics.sensitivity_max(
                method.attribute, part.images, perturb_radius=radius, n_perturb_samples=samples, target=part.targets, **own
            )
            for part in given.batches(size)
        )

    return found


def _added(given: Given, draw: Draw, samples: int, radius: float) -> Callable[[Tensor], Tensor]:
    """Xaieval's noise on images that are repeated for each sample, all in one batch."""
    noises = [noise_like(given.images, draw, "uniform", radius, f"max-sensitivity {number}") for number in range(samples)]
    return lambda images: images + torch.stack(noises, dim=1).flatten(0, 1)


def captum_infidelity(samples: int, size: float) -> Found:
    """`infidelity` with the Gaussian noise of its documentation, fitted (`normalize`)."""
    deviation = size

    def found(given: Given, size: int, draw: Draw | None = None) -> np.ndarray:
        def predicted(images: Tensor) -> Tensor:
            return given.network.model(images).softmax(dim=1)

        def perturb(images: Tensor) -> tuple[Tensor, Tensor]:
            noise = torch.randn_like(images) * deviation
            return noise, images - noise

        def perturb_equally(images: Tensor) -> tuple[Tensor, Tensor]:
            names = (f"infidelity {number}" for number in range(samples))
            noises = [noise_like(given.images, draw, "gaussian", deviation, name) for name in names]
            noise = torch.stack(noises, dim=1).flatten(0, 1)
            return noise, images - noise

        return _joined(
            captum.metrics.infidelity(
                predicted,
                perturb if draw is None else perturb_equally,
                part.images,
                part.maps[:, None],
                target=part.targets,
                n_perturb_samples=samples,
                normalize=True,
            )
            for part in given.batches(size)
        )

    return found


# ---- pytorch-grad-cam


def grad_cam_road(percentiles: list[int]) -> Found:
    """`ROADCombined`; its values are compared without noise."""

    def found(given: Given, size: int, draw: Draw | None = None) -> np.ndarray:
        metric = ROADCombined(percentiles)
        settings = NoisyLinearImputer.__init__.__defaults__
        with patch.object(NoisyLinearImputer.__init__, "__defaults__", settings if draw is None else (0.0, *settings[1:])):
            return _joined(
                metric(
                    part.images,
                    part.maps.numpy(),
                    [ClassifierOutputSoftmaxTarget(target) for target in part.targets.tolist()],
                    part.network.model,
                )
                for part in given.batches(size)
            )

    return found


# ---- Xplique's formulas


def xplique_causal_fidelity(steps: int, inserts: bool) -> Found:
    """`Insertion` and `Deletion`: from one end to the other in equal steps, and the area by the trapezoidal rule."""

    def found(given: Given, size: int, draw: Draw | None = None) -> np.ndarray:
        images = given.images.flatten(2)
        start, end = (torch.zeros_like(images), images) if inserts else (images, torch.zeros_like(images))
        order = np.ascontiguousarray(np.argsort(given.maps.flatten(1).numpy(), axis=1)[:, ::-1])
        curve = []
        for count in np.linspace(0, images.shape[2], steps + 1, dtype=int):
            changed = start.clone()
            for number, pixels in enumerate(torch.from_numpy(order[:, :count])):
                changed[number, :, pixels] = end[number, :, pixels]
            shaped = changed.view(given.images.shape)
            curve.append(_joined(map(given.confidences, shaped.split(size), given.targets.split(size))))
        curves = np.stack(curve, axis=1)
        return (curves[:, :-1] + curves[:, 1:]).mean(axis=1) / 2

    return found


def xplique_sparseness(given: Given, size: int, draw: Draw | None = None) -> np.ndarray:
    """`Sparseness`: the Gini index of absolute values that are divided by their sum."""
    found = []
    for part in given.batches(size):
        values = part.maps.abs().flatten(1)
        ordered = (values / (values.sum(dim=1, keepdim=True) + 1e-8)).sort(dim=1).values
        count = ordered.shape[1]
        ranks = torch.arange(1, count + 1, dtype=ordered.dtype)
        found.append(2 * (ordered * ranks).sum(dim=1) / (count * ordered.sum(dim=1) + 1e-8) - (count + 1) / count)
    return _joined(found)


def xplique_random_logit(given: Given, size: int, draw: Draw | None = None) -> np.ndarray:
    """`RandomLogitMetric`: SSIM of the maps of two classes, here of maps in [0, 1] of captum's Saliency."""
    classes = given.network.model(given.images[:1]).shape[1]
    others = (torch.rand(len(given.images)) if draw is None else draw((), "random-logit")) * (classes - 1)
    others = others.long() + (others.long() >= given.targets)
    found = []
    for part, other in zip(given.batches(size), others.split(size), strict=True):
        maps = [_saliency(part.network.model, part.images, targets) for targets in (part.targets, other)]
        found += [_ssim(*pair) for pair in zip(*(_unit(one) for one in maps), strict=True)]
    return np.array(found)


def _ssim(first: Tensor, second: Tensor) -> float:
    """Mean over the windows inside the images, as `tf.image.ssim`; torchmetrics has those over the edge, too."""
    pair = (first[None, None], second[None, None])
    spread = float(torch.cat(pair).max() - torch.cat(pair).min())
    _, windows = structural_similarity_index_measure(*pair, data_range=spread, return_full_image=True)
    edge = 11 // 2
    return float(windows[..., edge:-edge, edge:-edge].mean())


def xplique_model_randomisation(given: Given, size: int, draw: Draw | None = None) -> np.ndarray:
    """`ModelRandomizationMetric`: Spearman's correlation with the map when the last quarter of the layers is random."""
    model = copy.deepcopy(given.network.model)
    layers = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    found = []
    for part in given.batches(size):
        before = _saliency(given.network.model, part.images, part.targets)
        _randomise(layers[::-1][: len(layers) // 4])
        after = _saliency(model, part.images, part.targets)
        ranks = [rankdata(maps.flatten(1).numpy(), axis=1) for maps in (before, after)]
        centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
        deviations = [rank.std(axis=1) for rank in ranks]
        found.append((centred[0] * centred[1]).mean(axis=1) / (deviations[0] * deviations[1] + 1e-8))
    return np.concatenate(found)


def _randomise(layers: list[nn.Module]) -> None:
    """Every weight uniform in [0, 1]."""
    with torch.no_grad():
        for layer in layers:
            for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.uniform_()


def _saliency(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return captum.attr.Saliency(model).attribute(images, targets)[:, 0].detach()


def _unit(maps: Tensor) -> Tensor:
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low)


def _joined(parts: Any) -> np.ndarray:
    return np.concatenate([np.asarray(part.detach() if isinstance(part, Tensor) else part) for part in parts])
