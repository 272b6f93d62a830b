"""The table of captum's classes: how the adapter handles each, and what its settings are by default."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xaieval.explainers.adapters.base import Kind

__all__ = ["KINDS", "NOISE_PAPERS", "REDUCTIONS", "UNKNOWN", "CaptumKind", "defaults", "tiles", "value_range"]

TILES = 8  # per side, for methods that leave out parts of the image
COLOURS = 8  # of the image, in the plain images that DeepLiftShap compares it with

NOISE_PAPERS = {
    "smoothgrad": "Smilkov et al. 2017, arXiv 1706.03825",
    "smoothgrad_sq": "Hooker et al. 2019, arXiv 1806.10758",
    "vargrad": "Adebayo et al. 2018, arXiv 1810.03307",
}
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda attribution: attribution.sum(dim=1),
    "mean": lambda attribution: attribution.mean(dim=1),
    "max": lambda attribution: attribution.amax(dim=1),
    "abs_sum": lambda attribution: attribution.abs().sum(dim=1),
    "abs_max": lambda attribution: attribution.abs().amax(dim=1),
}


@dataclass(frozen=True, kw_only=True)
class CaptumKind(Kind):
    """How the adapter handles one of captum's classes.

    Attributes:
        needs_layer: Whether the method explains a layer; the others explain the image.
        reduce: How the channels become one number.
        settings: Settings that differ from captum's defaults.
        pools: Whether captum takes axis 1 of the layer's output for the channels.
        changes_relus: Whether it changes only what ReLUs pass back.
        stores: Whether it stores tensors on modules, so that no module may run twice in a pass.
        adds: Whether it has a rule of its own for additions, as a module.
        segmented: Whether it leaves out segments of the image, which `segments` chooses.
        fits: Whether it fits a model to scores, which must be finite.
        colours: Whether it takes baselines from a distribution: plain images in colours of the image itself.
    """

    needs_layer: bool = False
    reduce: str = "sum"
    settings: Mapping[str, Any] = field(default_factory=dict)
    pools: bool = False
    changes_relus: bool = False
    stores: bool = False
    adds: bool = False
    segmented: bool = False
    fits: bool = False
    colours: bool = False


GUIDED = "Springenberg et al. 2015, arXiv 1412.6806"
GRAD_CAM = "Selvaraju et al. 2017, arXiv 1610.02391"
KINDS: dict[str, CaptumKind] = {
    "Saliency": CaptumKind(reduce="abs_max", paper="Simonyan et al. 2014, arXiv 1312.6034"),
    "InputXGradient": CaptumKind(paper="Shrikumar et al. 2016, arXiv 1605.01713"),
    "IntegratedGradients": CaptumKind(passes="50", paper="Sundararajan et al. 2017, arXiv 1703.01365"),
    "GuidedBackprop": CaptumKind(reduce="abs_max", paper=GUIDED, changes_relus=True),
    "Deconvolution": CaptumKind(reduce="abs_max", paper="Zeiler and Fergus 2014, arXiv 1311.2901", changes_relus=True),
    "DeepLift": CaptumKind(passes="2", paper="Shrikumar et al. 2017, arXiv 1704.02685", stores=True),
    "DeepLiftShap": CaptumKind(
        passes="16", paper="Lundberg and Lee 2017, arXiv 1705.07874", stores=True, one_by_one=True, colours=True
    ),
    "GradientShap": CaptumKind(passes="5", paper="Lundberg and Lee 2017, arXiv 1705.07874", one_by_one=True),
    "Occlusion": CaptumKind(
        reduce="mean", passes="about 226", paper="Zeiler and Fergus 2014, arXiv 1311.2901", takes_gradients=False
    ),
    "FeatureAblation": CaptumKind(reduce="mean", passes="65", paper="none (captum)", takes_gradients=False, segmented=True),
    "Lime": CaptumKind(
        reduce="mean",
        settings={"n_samples": 1000},
        passes="1000",
        paper="Ribeiro et al. 2016, arXiv 1602.04938",
        takes_gradients=False,
        one_by_one=True,
        segmented=True,
        fits=True,
    ),
    "KernelShap": CaptumKind(
        reduce="mean",
        settings={"n_samples": 1000},
        passes="1000",
        paper="Lundberg and Lee 2017, arXiv 1705.07874",
        takes_gradients=False,
        one_by_one=True,
        segmented=True,
        fits=True,
    ),
    "ShapleyValueSampling": CaptumKind(
        reduce="mean",
        settings={"n_samples": 25},
        passes="1601, 25 times 1 per segment",
        paper="Castro et al. 2009, Comput. Oper. Res. 36(5)",
        takes_gradients=False,
        one_by_one=True,
        segmented=True,
    ),
    "LRP": CaptumKind(passes="2", paper="Bach et al. 2015, PLoS ONE 10(7)", adds=True),
    "GuidedGradCam": CaptumKind(passes="2", paper=GRAD_CAM, needs_layer=True, pools=True, changes_relus=True),
    "LayerGradCam": CaptumKind(paper=GRAD_CAM, needs_layer=True, pools=True, settings={"relu_attributions": True}),
    "LayerActivation": CaptumKind(paper="none (captum)", needs_layer=True, takes_gradients=False),
    "LayerGradientXActivation": CaptumKind(paper="none (captum)", needs_layer=True),
    "LayerConductance": CaptumKind(passes="50", paper="Dhamdhere et al. 2019, arXiv 1805.12233", needs_layer=True),
    "InternalInfluence": CaptumKind(passes="50", paper="Leino et al. 2018, arXiv 1802.03788", needs_layer=True),
}
UNKNOWN = CaptumKind(paper="", one_by_one=True)  # a class of the user's own, which may draw random numbers


def defaults(parameters: Mapping[str, inspect.Parameter], kind: CaptumKind, images: Tensor, size: int) -> dict[str, Any]:
    """Settings that depend on the images: passes of the run's size, baselines, windows and tiles."""
    count, channels, *sides = images.shape
    at_once = max(1, size // count)
    found: dict[str, Any] = {
        "internal_batch_size": max(size, count),
        "perturbations_per_eval": at_once,
        "nt_samples_batch_size": at_once,
        "sliding_window_shapes": (channels, *(max(1, side // TILES) for side in sides)),
        "strides": (channels, *(max(1, side // (2 * TILES)) for side in sides)),
        "feature_mask": tiles(images),
    }
    baselines = parameters.get("baselines")
    if baselines is not None and baselines.default is inspect.Parameter.empty:
        found["baselines"] = _plain_images(images) if kind.colours else torch.zeros_like(images[:1])
    return {name: value for name, value in found.items() if name in parameters}


def value_range(images: Tensor) -> float:
    """Highest minus lowest value; 0 for an image of NaN, whose map is NaN with any noise."""
    return (images.max() - images.min()).nan_to_num(0, 0, 0).item()


def _plain_images(images: Tensor) -> Tensor:
    """Images of one colour each, that of a random pixel, `[COLOURS, C, H, W]`, by the global random numbers."""
    pixels = images.flatten(2).movedim(1, 2).flatten(0, 1)
    chosen = pixels[torch.randint(len(pixels), (COLOURS,)).to(pixels.device)]
    return chosen.view(COLOURS, -1, *[1] * (images.ndim - 2)).repeat(1, 1, *images.shape[2:])


def tiles(images: Tensor) -> Tensor:
    """Numbers of tiles, `[1, 1, H, W]`; for volumes `[1, 1, D, H, W]`."""
    sides = [torch.arange(side, device=images.device) * TILES // side for side in images.shape[2:]]
    numbers = functools.reduce(lambda number, along: number * TILES + along, torch.meshgrid(*sides, indexing="ij"))
    return numbers[None, None].unique(return_inverse=True)[1]
