"""Attribution methods of captum as explainers: by name, with settings, or as the object that somebody has made."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.errors import ExplainerError, choose_from
from xaieval.explainers.adapters.base import (
    check_model,
    class_targets,
    each_call_apart,
    guarded,
    leaf,
    module_at,
    name_of,
    one_by_one,
    refused,
    reshaping,
)
from xaieval.explainers.base import Context
from xaieval.inference.reproducibility import ONE_AT_A_TIME

__all__ = ["CAPTUM", "REDUCTIONS", "Captum", "CaptumObject"]

MEND = "captum names the reason; take another method, or a model that this one can read (docs/methods.md)"
TILES = 8  # a side, for methods that leave parts of the image out
NOISE = 0.15  # standard deviation as a share of an image's range; its paper takes 0.1 to 0.2
# On hooks that it removes again, and on passes that it makes larger because it has to.
NOTES = ("Setting backward hooks on ReLU", r"\s*Setting forward, backward hooks", "This method computes finite differences")
NOISES = ("smoothgrad", "smoothgrad_sq", "vargrad")

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda attribution: attribution.sum(dim=1),
    "mean": lambda attribution: attribution.mean(dim=1),
    "max": lambda attribution: attribution.amax(dim=1),
    "abs_sum": lambda attribution: attribution.abs().sum(dim=1),
    "abs_max": lambda attribution: attribution.abs().amax(dim=1),
}


@dataclass(frozen=True)
class _Kind:
    """What is to be known of one of captum's classes."""

    reduce: str = "sum"
    passes: str = "1"
    paper: str = ""
    needs_layer: bool = False
    gradients: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    drawn: bool = False  # random
    pools: bool = False  # takes axis 1 of a layer for its channels
    relus: bool = False  # changes nothing but ReLUs
    notes: bool = False  # keeps notes on modules, so that none may run twice in a pass


GUIDED = "Springenberg et al. 2015, arXiv 1412.6806"
GRAD_CAM = "Selvaraju et al. 2017, arXiv 1610.02391"
KINDS: dict[str, _Kind] = {
    "Saliency": _Kind("abs_max", paper="Simonyan et al. 2014, arXiv 1312.6034"),
    "InputXGradient": _Kind(paper="Shrikumar et al. 2016, arXiv 1605.01713"),
    "IntegratedGradients": _Kind(passes="50", paper="Sundararajan et al. 2017, arXiv 1703.01365"),
    "GuidedBackprop": _Kind("abs_max", paper=GUIDED, relus=True),
    "Deconvolution": _Kind("abs_max", paper="Zeiler and Fergus 2014, arXiv 1311.2901", relus=True),
    "DeepLift": _Kind(passes="2", paper="Shrikumar et al. 2017, arXiv 1704.02685", notes=True),
    "GradientShap": _Kind(passes="5", paper="Lundberg and Lee 2017, arXiv 1705.07874", drawn=True),
    "Occlusion": _Kind("mean", passes="about 226", paper="Zeiler and Fergus 2014, arXiv 1311.2901", gradients=False),
    "FeatureAblation": _Kind("mean", passes="65", paper="none (captum)", gradients=False),
    "LRP": _Kind(passes="2", paper="Bach et al. 2015, PLoS ONE 10(7)"),
    "GuidedGradCam": _Kind(passes="2", paper=GRAD_CAM, needs_layer=True, pools=True, relus=True),
    "LayerGradCam": _Kind(paper=GRAD_CAM, needs_layer=True, pools=True, settings={"relu_attributions": True}),
    "LayerActivation": _Kind(paper="none (captum)", needs_layer=True, gradients=False),
    "LayerGradientXActivation": _Kind(paper="none (captum)", needs_layer=True),
    "LayerConductance": _Kind(passes="50", paper="Dhamdhere et al. 2019, arXiv 1805.12233", needs_layer=True),
    "InternalInfluence": _Kind(passes="50", paper="Leino et al. 2018, arXiv 1802.03788", needs_layer=True),
}
UNKNOWN = _Kind(drawn=True)  # somebody's own class, which may draw numbers


@dataclass(frozen=True)
class Captum:
    """A method of captum.

    Captum gives a number for each channel of each pixel, and `reduce` makes one of them. Baselines are 0 in the model's input
    space, unless `settings` say otherwise. Images, perturbed images and steps share passes of the run's size.

    Args:
        method: name of captum's class, without its module.
        reduce: over channels: "sum", "mean", "max", or "abs_sum" and "abs_max" of absolute values. Unless told, "abs_max" for
            gradients of the input, "mean" where parts of it were left out, and "sum" for all that add up to the score.
        noise: "smoothgrad", "smoothgrad_sq" or "vargrad" for mean, mean square or variance under noise on the image, of
            standard deviation 0.15 of its range and 25 times, unless `settings` have `stdevs` and `nt_samples`.
        settings: for captum's `attribute`.
        label: a name of one's own for tables and rows.

    Raises:
        ExplainerError: there is no such method, reduction or noise; when called: captum cannot explain this model here.

    Reference:
        Kokhlikyan et al., "Captum" (arXiv 2009.07896). Where a method is from: `paper`.

    Example:
        >>> import torchvision, xaieval
        >>> method = Captum("IntegratedGradients", settings={"n_steps": 8}, label="ig-8")
        >>> maps = xaieval.explain(torchvision.models.resnet18(), torch.rand(2, 3, 64, 64), method=method)
        >>> maps["input"].shape
        torch.Size([2, 64, 64])
    """

    method: str
    reduce: str | None = None
    noise: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    needs_gradient: bool = False

    def __post_init__(self) -> None:
        for what, known in (("method", KINDS), ("reduce", REDUCTIONS), ("noise", NOISES)):
            value = getattr(self, what)
            if value is not None and value not in known:
                raise ExplainerError(f"captum: no {what} {value!r}; {choose_from(value, known)}")

    @property
    def name(self) -> str:
        """In tables and rows."""
        return self.label or f"captum:{self.noise + ':' if self.noise else ''}{self.method}"

    @property
    def needs_layer(self) -> bool:
        """Whether it is asked at every layer."""
        return KINDS[self.method].needs_layer

    @property
    def takes_gradients(self) -> bool:
        """Whether it takes gradients, by itself."""
        return KINDS[self.method].gradients

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        passes = KINDS[self.method].passes
        return passes if self.noise is None else "25" if passes == "1" else f"25 times {passes}"

    @property
    def paper(self) -> str:
        """Where the method is from."""
        return NOISE_PAPERS[self.noise] if self.noise else KINDS[self.method].paper

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        noise = {"noise": self.noise, "noise of range": NOISE} if self.noise else {}
        return {"method": self.method, "reduce": self._reduce, **noise, "settings": self._settings}

    @property
    def _reduce(self) -> str:
        return self.reduce or ("sum" if self.noise and self.noise != "smoothgrad" else KINDS[self.method].reduce)

    @property
    def _settings(self) -> dict[str, Any]:
        noisy = {"nt_type": self.noise, "nt_samples": 25} if self.noise else {}
        # The mean under noise is that of signed gradients, of which the absolute value is taken then.
        signed = {"abs": False} if self.noise and self.method == "Saliency" else {}
        return {**KINDS[self.method].settings, **signed, **noisy, **self.settings}

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]`, or `[N, h, w]` of a layer."""
        kind = KINDS[self.method]
        _check_suits(self.name, kind, context)
        layer = [module_at(context, self.name)] if kind.needs_layer else []
        with _working(context, self.name):
            from captum import attr

            if kind.notes:
                each_call_apart(context.model, lambda: context.read(context.images[:1]))
            attribution = getattr(attr, self.method)(_Scored(context), *layer)
            if self.noise:
                attribution = attr.NoiseTunnel(attribution)

            def maps(images: Tensor, of: Tensor) -> Tensor:
                noise = {"stdevs": NOISE * _range(images)} if self.noise else {}
                raw = _explain(attribution, noise | self._settings, context, images, additional_forward_args=of)
                return _reduced(raw, kind, self._reduce, context)

            if kind.drawn or self.noise:
                return one_by_one(context, maps)
            return maps(context.images, context.everywhere)


NOISE_PAPERS = {
    "smoothgrad": "Smilkov et al. 2017, arXiv 1706.03825",
    "smoothgrad_sq": "Hooker et al. 2019, arXiv 1806.10758",
    "vargrad": "Adebayo et al. 2018, arXiv 1810.03307",
}

CAPTUM: dict[str, Captum] = {f"captum:{name}": Captum(name) for name in KINDS} | {
    method.name: method
    for method in (
        Captum("Saliency", noise="smoothgrad", label="captum:SmoothGrad"),
        Captum("Saliency", noise="vargrad", label="captum:VarGrad"),
    )
}


@dataclass(frozen=True)
class CaptumObject:
    """An attribution object of captum, as somebody has made it for the model: its class's settings, asked for the target class.

    Args:
        attribution: of captum, made with the model that is scored (and with a module of it).
        reduce: over channels, as of `Captum`.
        settings: for its `attribute`.
        label: a name of one's own.

    Raises:
        ExplainerError: when called: it was made for another model, or the model is no classifier.
    """

    attribution: Any
    reduce: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    needs_layer: bool = False
    needs_gradient: bool = False

    @property
    def name(self) -> str:
        """In tables and rows."""
        layer = getattr(self.attribution, "layer", None)
        layers = [layer] if isinstance(layer, nn.Module) else []
        return self.label or name_of("captum", self.attribution, self.attribution.forward_func, layers)

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        inner = getattr(self.attribution, "attribution_method", self.attribution)
        return {"class": type(inner), "reduce": self._reduce, "settings": self.settings}

    @property
    def _kind(self) -> _Kind:
        inner = getattr(self.attribution, "attribution_method", self.attribution)
        return KINDS.get(type(inner).__name__, UNKNOWN)

    @property
    def _reduce(self) -> str:
        return self.reduce or self._kind.reduce

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]`, or `[N, h, w]` of its layer."""
        targets = class_targets(context, self.name)
        check_model(self.attribution.forward_func, context, self.name)
        noisy = hasattr(self.attribution, "attribution_method")

        def maps(images: Tensor, of: Tensor) -> Tensor:
            told = {"target": targets[of]} if "target" in _parameters(self.attribution) else {}
            raw = _explain(self.attribution, self.settings, context, images, **told)
            return _reduced(raw, self._kind, self._reduce, context)

        with _working(context, self.name):
            if self._kind.notes:
                each_call_apart(context.model, lambda: context.read(context.images[:1]))
            return one_by_one(context, maps) if noisy or self._kind.drawn else maps(context.images, context.everywhere)


class _Scored(nn.Module):
    """The model as captum takes it: a number for each image, and no classes, so that every task works."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.model = context.model
        self.context = context
        self.training = False

    def forward(self, images: Tensor, of: Tensor) -> Tensor:
        return self.context.score(images, of)


@contextmanager
def _working(context: Context, name: str) -> Iterator[None]:
    """The model guarded, captum's complaints as ours, and none of its notes."""
    with ExitStack() as stack:
        stack.enter_context(guarded(context.model))
        stack.enter_context(ONE_AT_A_TIME)  # the filters of warnings are those of all threads
        stack.enter_context(warnings.catch_warnings())
        for note in NOTES:
            warnings.filterwarnings("ignore", message=note)
        stack.enter_context(refused(name, MEND))
        yield


def _check_suits(name: str, kind: _Kind, context: Context) -> None:
    if kind.relus and not any(isinstance(module, nn.ReLU) for module in context.model.modules()):
        raise ExplainerError(
            f"method '{name}' changes what nn.ReLU modules pass back, and the model has none, so that it would be the plain "
            "gradient; take 'captum:Saliency'"
        )
    if kind.pools and reshaping(context.layout) is not None:
        raise ExplainerError(
            f"method '{name}' takes axis 1 for the channels, and the output of '{context.layer}' is no [N, C, H, W]; take "
            "'gradcam', or 'pytorch-grad-cam:GradCAM', which are given maps"
        )


def _parameters(attribution: Any) -> Mapping[str, inspect.Parameter]:
    """What `attribute` takes, with what it passes on to the method that is put under noise."""
    own = dict(inspect.signature(attribution.attribute).parameters)
    inner = getattr(attribution, "attribution_method", None)
    return own if inner is None else {**_parameters(inner), **own}


def _explain(attribution: Any, settings: Mapping[str, Any], context: Context, images: Tensor, **told: Any) -> Tensor:
    """What captum gives for images, with what it needs to be told, or takes too long without."""
    settings = {**_defaults(_parameters(attribution), images, context.size or len(context.images)), **settings, **told}
    found = attribution.attribute(leaf(images), **settings)
    if not isinstance(found, Tensor):
        raise TypeError(f"one tensor is expected, and it gave a {type(found).__name__}")
    return found.detach()


def _defaults(takes: Mapping[str, inspect.Parameter], images: Tensor, size: int) -> dict[str, Any]:
    """Settings that depend on the images: passes of the run's size, a zero baseline, windows and tiles."""
    count, channels, *sides = images.shape
    at_once = max(1, size // count)
    baselines = takes.get("baselines")
    found: dict[str, Any] = {
        "internal_batch_size": max(size, count),
        "perturbations_per_eval": at_once,
        "nt_samples_batch_size": at_once,
        "sliding_window_shapes": (channels, *(max(1, side // TILES) for side in sides)),
        "strides": (channels, *(max(1, side // (2 * TILES)) for side in sides)),
        "feature_mask": _tiles(images),
    }
    if baselines is not None and baselines.default is inspect.Parameter.empty:
        found["baselines"] = torch.zeros_like(images[:1])
    return {name: value for name, value in found.items() if name in takes}


def _range(images: Tensor) -> float:
    """From the lowest to the highest value; 0 of an image that has none, whose map is NaN with any noise."""
    return (images.max() - images.min()).nan_to_num(0, 0, 0).item()


def _tiles(images: Tensor) -> Tensor:
    """Numbers of tiles, `[1, 1, H, W]`, of volumes `[1, 1, D, H, W]`."""
    sides = [torch.arange(side, device=images.device) * TILES // side for side in images.shape[2:]]
    numbers = functools.reduce(lambda number, along: number * TILES + along, torch.meshgrid(*sides, indexing="ij"))
    return numbers[None, None].unique(return_inverse=True)[1]


def _reduced(attribution: Tensor, kind: _Kind, reduce: str, context: Context) -> Tensor:
    """A number for each place."""
    to_maps = reshaping(context.layout) if kind.needs_layer else None
    return REDUCTIONS[reduce](attribution if to_maps is None else to_maps(attribution))
