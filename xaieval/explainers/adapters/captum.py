"""Attribution methods of captum as explainers: by name, with settings, or as an object that the user has made."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.errors import ExplainerError
from xaieval.explainers.adapters.base import (
    CalledModel,
    Kind,
    Library,
    LibraryMethod,
    batch_maps,
    calling,
    check_choice,
    leaf,
    module_at,
    object_name,
    object_targets,
    reshaping,
)
from xaieval.explainers.adapters.function_calls import ACTIVATIONS, ADDITIONS, POOLINGS, RELUS, functions_as_modules
from xaieval.explainers.adapters.lending import split_repeated_calls
from xaieval.explainers.base import Context
from xaieval.inference.reproducibility import ONE_AT_A_TIME

__all__ = ["LIBRARY", "Captum", "CaptumObject"]

NAME = "captum"
TILES = 8  # per side, for methods that leave out parts of the image
NOISE = 0.15  # standard deviation as a share of an image's range; the paper takes 0.1 to 0.2
# On hooks that captum removes again, and on passes that it has to make larger.
WARNINGS = (
    "Setting backward hooks on ReLU",
    r"\s*Setting forward, backward hooks",
    "This method computes finite differences",
)
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
    """

    needs_layer: bool = False
    reduce: str = "sum"
    settings: Mapping[str, Any] = field(default_factory=dict)
    pools: bool = False
    changes_relus: bool = False
    stores: bool = False
    adds: bool = False


GUIDED = "Springenberg et al. 2015, arXiv 1412.6806"
GRAD_CAM = "Selvaraju et al. 2017, arXiv 1610.02391"
KINDS: dict[str, CaptumKind] = {
    "Saliency": CaptumKind(reduce="abs_max", paper="Simonyan et al. 2014, arXiv 1312.6034"),
    "InputXGradient": CaptumKind(paper="Shrikumar et al. 2016, arXiv 1605.01713"),
    "IntegratedGradients": CaptumKind(passes="50", paper="Sundararajan et al. 2017, arXiv 1703.01365"),
    "GuidedBackprop": CaptumKind(reduce="abs_max", paper=GUIDED, changes_relus=True),
    "Deconvolution": CaptumKind(reduce="abs_max", paper="Zeiler and Fergus 2014, arXiv 1311.2901", changes_relus=True),
    "DeepLift": CaptumKind(passes="2", paper="Shrikumar et al. 2017, arXiv 1704.02685", stores=True),
    "GradientShap": CaptumKind(passes="5", paper="Lundberg and Lee 2017, arXiv 1705.07874", one_by_one=True),
    "Occlusion": CaptumKind(
        reduce="mean", passes="about 226", paper="Zeiler and Fergus 2014, arXiv 1311.2901", takes_gradients=False
    ),
    "FeatureAblation": CaptumKind(reduce="mean", passes="65", paper="none (captum)", takes_gradients=False),
    "LRP": CaptumKind(passes="2", paper="Bach et al. 2015, PLoS ONE 10(7)", adds=True),
    "GuidedGradCam": CaptumKind(passes="2", paper=GRAD_CAM, needs_layer=True, pools=True, changes_relus=True),
    "LayerGradCam": CaptumKind(paper=GRAD_CAM, needs_layer=True, pools=True, settings={"relu_attributions": True}),
    "LayerActivation": CaptumKind(paper="none (captum)", needs_layer=True, takes_gradients=False),
    "LayerGradientXActivation": CaptumKind(paper="none (captum)", needs_layer=True),
    "LayerConductance": CaptumKind(passes="50", paper="Dhamdhere et al. 2019, arXiv 1805.12233", needs_layer=True),
    "InternalInfluence": CaptumKind(passes="50", paper="Leino et al. 2018, arXiv 1802.03788", needs_layer=True),
}
UNKNOWN = CaptumKind(paper="", one_by_one=True)  # a class of the user's own, which may draw random numbers


@dataclass(frozen=True)
class Captum(LibraryMethod):
    """A method of captum.

    Captum gives a number for each channel of each pixel; `reduce` makes one number of them. Baselines are 0 in the model's
    input space, unless `settings` has others. Images, perturbed images and steps share passes of the run's batch size.

    Args:
        method: The name of captum's class, without its module.
        reduce: Reduction over channels: "sum", "mean", "max", or "abs_sum" and "abs_max" of absolute values. Default:
            "abs_max" for gradients of the input, "mean" for methods that leave out parts of it, and "sum" for
            contributions, which add up to the score.
        noise: "smoothgrad", "smoothgrad_sq" or "vargrad" for the mean, mean square or variance under noise on the image.
            Default standard deviation: 0.15 of the image's range, and 25 samples; `stdevs` and `nt_samples` in `settings`
            change them.
        settings: Keywords for captum's `attribute`.
        label: The name in tables and rows. Default: library and class.

    Raises:
        ExplainerError: There is no such method, reduction or noise; when called: captum cannot explain this model here.

    Reference:
        Kokhlikyan et al., "Captum" (arXiv 2009.07896). The paper of each method: `paper`.

    Example:
        >>> import torchvision, xaieval
        >>> method = Captum("IntegratedGradients", settings={"n_steps": 8}, label="ig-8")
        >>> maps = xaieval.explain(torchvision.models.resnet18(), torch.rand(2, 3, 64, 64), method=method)
        >>> maps["input"].shape
        torch.Size([2, 64, 64])
    """

    library = NAME
    kinds = KINDS
    method: str
    reduce: str | None = None
    noise: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(NAME, "reduce", self.reduce, REDUCTIONS)
        check_choice(NAME, "noise", self.noise, NOISE_PAPERS)

    @property
    def name(self) -> str:
        """Name in tables and rows."""
        return self.label or f"{NAME}:{self.noise + ':' if self.noise else ''}{self.method}"

    @property
    def passes(self) -> str:
        """Forward passes per image."""
        passes = KINDS[self.method].passes
        return passes if self.noise is None else "25" if passes == "1" else f"25 times {passes}"

    @property
    def paper(self) -> str:
        """Reference of the method."""
        return NOISE_PAPERS[self.noise] if self.noise else KINDS[self.method].paper

    def to_dict(self) -> dict[str, Any]:
        """Settings for the manifest."""
        noise = {"noise": self.noise, "noise of range": NOISE} if self.noise else {}
        return {"method": self.method, "reduce": self._reduce, **noise, "settings": self._settings}

    @property
    def _reduce(self) -> str:
        return self.reduce or ("sum" if self.noise and self.noise != "smoothgrad" else KINDS[self.method].reduce)

    @property
    def _settings(self) -> dict[str, Any]:
        noise = {"nt_type": self.noise, "nt_samples": 25} if self.noise else {}
        # The mean under noise is that of signed gradients; its absolute value is taken afterwards.
        signed = {"abs": False} if self.noise and self.method == "Saliency" else {}
        return {**KINDS[self.method].settings, **signed, **noise, **self.settings}

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]`, or `[N, h, w]` of a layer."""
        kind = KINDS[self.method]
        _check_layout(self.name, kind, context)
        layer = [module_at(context, self.name)] if kind.needs_layer else []
        with _calling(self.name, context, kind) as (functions, score):
            from captum import attr

            called = CalledModel(context, score)
            if len(functions):  # captum's LRP has no rule for an empty list
                called.functions = functions
            attribution = getattr(attr, self.method)(called, *layer)
            if self.noise:
                attribution = attr.NoiseTunnel(attribution)

            def maps(images: Tensor, of: Tensor) -> Tensor:
                noise = {"stdevs": NOISE * _range(images)} if self.noise else {}
                raw = _attribute(attribution, noise | self._settings, context, images, additional_forward_args=of)
                return _reduced(raw, kind, self._reduce, context)

            return batch_maps(context, maps, kind.one_by_one or self.noise is not None)


@dataclass(frozen=True)
class CaptumObject:
    """An attribution object of captum that the user has made, with its class's settings; the target is the class to explain.

    Args:
        attribution: An object of captum, made with the model that is scored (and with a module of it).
        reduce: Reduction over channels, as of `Captum`.
        settings: Keywords for its `attribute`.
        label: The name in tables and rows. Default: library, class and layer.

    Raises:
        ExplainerError: When called: the object was made for another model, or the model is no classifier.
    """

    attribution: Any
    reduce: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    needs_layer: bool = False
    needs_gradient: bool = False

    @property
    def name(self) -> str:
        """Name in tables and rows."""
        layer = getattr(self.attribution, "layer", None)
        layers = [layer] if isinstance(layer, nn.Module) else []
        return self.label or object_name(NAME, self.attribution, self.attribution.forward_func, layers)

    def to_dict(self) -> dict[str, Any]:
        """Settings for the manifest."""
        return {"class": type(self._inner), "reduce": self._reduce, "settings": self.settings}

    @property
    def _inner(self) -> Any:
        """The object itself, or the one that a NoiseTunnel runs."""
        return getattr(self.attribution, "attribution_method", self.attribution)

    @property
    def _kind(self) -> CaptumKind:
        return KINDS.get(type(self._inner).__name__, UNKNOWN)

    @property
    def _reduce(self) -> str:
        return self.reduce or self._kind.reduce

    def _columns(self, context: Context, targets: Tensor) -> Tensor:
        """The columns of the model's output that captum explains, `[N]`: the classes, unless the model has one output."""
        if getattr(context.task, "single", None) != "binary":
            return targets
        if (targets == 0).any():
            raise ExplainerError(
                f"method '{self.name}' explains outputs of the model, and class 0 of a model of one output has none; give "
                f"target=1, or the method by name ('{NAME}:{type(self._inner).__name__}')"
            )
        return targets - 1

    def _check_functions(self, functions: nn.ModuleList) -> None:
        """The object has the model, which cannot be given modules in place of the functions that it calls."""
        if len(functions):
            raise ExplainerError(
                f"method '{self.name}' changes what modules pass back, and this model calls functions ({len(functions)}, the "
                f"first one as {functions[0]}); give the method by name ('{NAME}:{type(self._inner).__name__}'), which makes "
                "modules of them"
            )

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]`, or `[N, h, w]` of its layer."""
        targets = self._columns(context, object_targets(context, self.name, self.attribution.forward_func))

        def maps(images: Tensor, of: Tensor) -> Tensor:
            target = {"target": targets[of]} if "target" in _parameters(self.attribution) else {}
            raw = _attribute(self.attribution, self.settings, context, images, **target)
            return _reduced(raw, self._kind, self._reduce, context)

        with _calling(self.name, context, self._kind) as (functions, _):
            self._check_functions(functions)
            return batch_maps(context, maps, self._kind.one_by_one or self._inner is not self.attribution)


LIBRARY = Library(
    name=NAME,
    package="captum",
    install="pip install captum",
    methods={
        method.name: method
        for method in (
            *(Captum(name) for name in KINDS),
            Captum("Saliency", noise="smoothgrad", label="captum:SmoothGrad"),
            Captum("Saliency", noise="vargrad", label="captum:VarGrad"),
        )
    },
    classes=frozenset({"Attribution"}),
    adapt=CaptumObject,
)


@contextmanager
def _calling(name: str, context: Context, kind: CaptumKind) -> Iterator[tuple[nn.ModuleList, Callable[..., Tensor]]]:
    """Lend the model to captum, without captum's warnings.

    Yields modules in place of the functions that the method changes, and the scores of `Context.score` that call them.
    """
    # The filters of warnings are those of all threads.
    with calling(NAME, name, context), ONE_AT_A_TIME, warnings.catch_warnings():
        for message in WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        if kind.stores:
            split_repeated_calls(context.model, lambda: context.read(context.images[:1]))
        first = (leaf(context.images[:1]), context.everywhere[:1])
        functions, score = functions_as_modules(context.model, _changed(kind), context.score, *first)
        _check_relus(name, kind, context, functions)
        yield functions, score


def _changed(kind: CaptumKind) -> Mapping[Any, type[nn.Module]]:
    """The functions whose modules a method changes."""
    if not kind.adds:
        return ACTIVATIONS if kind.stores else RELUS if kind.changes_relus else {}
    from captum.attr._utils.custom_modules import Addition_Module

    return {**POOLINGS, **dict.fromkeys(ADDITIONS, Addition_Module)}


def _check_relus(name: str, kind: CaptumKind, context: Context, functions: nn.ModuleList) -> None:
    if kind.changes_relus and not any(isinstance(module, nn.ReLU) for module in (*context.model.modules(), *functions)):
        raise ExplainerError(
            f"method '{name}' changes what ReLUs pass back, and the model has none, so that it would be the plain gradient; "
            "take 'captum:Saliency'"
        )


def _check_layout(name: str, kind: CaptumKind, context: Context) -> None:
    if kind.pools and reshaping(context.layout) is not None:
        raise ExplainerError(
            f"method '{name}' takes axis 1 for the channels, and the output of '{context.layer}' is not [N, C, H, W]; take "
            "'gradcam' or 'pytorch-grad-cam:GradCAM', which reshape it"
        )


def _parameters(attribution: Any) -> Mapping[str, inspect.Parameter]:
    """Parameters of `attribute`, with those that a NoiseTunnel passes on to its inner method."""
    own = dict(inspect.signature(attribution.attribute).parameters)
    inner = getattr(attribution, "attribution_method", None)
    return own if inner is None else {**_parameters(inner), **own}


def _attribute(attribution: Any, settings: Mapping[str, Any], context: Context, images: Tensor, **target: Any) -> Tensor:
    """Captum's attribution of images, with default settings that captum lacks or that save passes."""
    size = context.size or len(context.images)
    settings = {**_defaults(_parameters(attribution), images, size), **settings, **target}
    attributions = attribution.attribute(leaf(images), **settings)
    if not isinstance(attributions, Tensor):
        raise TypeError(f"expected one tensor, got a {type(attributions).__name__}")
    return attributions.detach()


def _defaults(parameters: Mapping[str, inspect.Parameter], images: Tensor, size: int) -> dict[str, Any]:
    """Settings that depend on the images: passes of the run's size, a zero baseline, windows and tiles."""
    count, channels, *sides = images.shape
    at_once = max(1, size // count)
    defaults: dict[str, Any] = {
        "internal_batch_size": max(size, count),
        "perturbations_per_eval": at_once,
        "nt_samples_batch_size": at_once,
        "sliding_window_shapes": (channels, *(max(1, side // TILES) for side in sides)),
        "strides": (channels, *(max(1, side // (2 * TILES)) for side in sides)),
        "feature_mask": _tiles(images),
    }
    baselines = parameters.get("baselines")
    if baselines is not None and baselines.default is inspect.Parameter.empty:
        defaults["baselines"] = torch.zeros_like(images[:1])
    return {name: value for name, value in defaults.items() if name in parameters}


def _range(images: Tensor) -> float:
    """Highest minus lowest value; 0 for an image of NaN, whose map is NaN with any noise."""
    return (images.max() - images.min()).nan_to_num(0, 0, 0).item()


def _tiles(images: Tensor) -> Tensor:
    """Numbers of tiles, `[1, 1, H, W]`; for volumes `[1, 1, D, H, W]`."""
    sides = [torch.arange(side, device=images.device) * TILES // side for side in images.shape[2:]]
    numbers = functools.reduce(lambda number, along: number * TILES + along, torch.meshgrid(*sides, indexing="ij"))
    return numbers[None, None].unique(return_inverse=True)[1]


def _reduced(attributions: Tensor, kind: CaptumKind, reduce: str, context: Context) -> Tensor:
    """One number per place."""
    to_maps = reshaping(context.layout) if kind.needs_layer else None
    return REDUCTIONS[reduce](attributions if to_maps is None else to_maps(attributions))
