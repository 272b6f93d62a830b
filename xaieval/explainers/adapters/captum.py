"""Attribution methods of captum as explainers: by name, with settings, or as an object that the user has made."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.errors import ExplainerError
from xaieval.explainers.adapters.base import (
    CalledModel,
    Library,
    LibraryMethod,
    batch_maps,
    calling,
    check_choice,
    leaf,
    library_errors,
    module_at,
    object_name,
    object_targets,
    reshaping,
)
from xaieval.explainers.adapters.captum_kinds import (
    KINDS,
    NOISE_PAPERS,
    REDUCTIONS,
    UNKNOWN,
    CaptumKind,
    defaults,
    value_range,
)
from xaieval.explainers.adapters.function_calls import ACTIVATIONS, ADDITIONS, POOLINGS, RELUS, functions_as_modules
from xaieval.explainers.adapters.lending import split_repeated_calls
from xaieval.explainers.base import Context, Wanted
from xaieval.inference.reproducibility import ONE_AT_A_TIME
from xaieval.masking.segments import Segments, check_segments, label_maps

__all__ = ["LIBRARY", "Captum", "CaptumObject"]

NAME = "captum"
NOISE = 0.15  # standard deviation as a share of an image's range; the paper takes 0.1 to 0.2
# On hooks that captum removes again, and on passes that it has to make larger.
WARNINGS = (
    "Setting backward hooks on ReLU",
    r"\s*Setting forward, backward hooks",
    "This method computes finite differences",
)


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
        segments: What `Lime`, `KernelShap`, `ShapleyValueSampling` and `FeatureAblation` leave out at once: the side of square
            patches in pixels, "slic" for about 100 superpixels, "slic-25" for about 25, or a function from images to
            label maps `[N, H, W]`. Default: 8 x 8 tiles.
        settings: Keywords for captum's `attribute`, and for the constructor of the class.
        label: The name in tables and rows. Default: library and class.

    Raises:
        ExplainerError: There is no such method, reduction or noise, or the method has no segments; when called: captum cannot
            explain this model here.
        UsageError: `segments` is not a segmentation, or needs a missing package.

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
    given = frozenset(
        {
            *("self", "forward_func", "model", "layer", "device_ids", "inputs", "target", "additional_forward_args"),
            *("feature_mask", "return_convergence_delta", "return_input_shape", "show_progress", "verbose"),
        }
    )
    method: str
    reduce: str | None = None
    noise: str | None = None
    segments: Segments = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(NAME, "reduce", self.reduce, REDUCTIONS)
        check_choice(NAME, "noise", self.noise, NOISE_PAPERS)
        check_segments(self.segments)
        if self.segments is not None and not KINDS[self.method].segmented:
            able = ", ".join(name for name, kind in KINDS.items() if kind.segmented)
            raise ExplainerError(f"method '{self.name}' does not take segments; these do: {able}")

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
        segments = {} if self.segments is None else {"segments": self.segments}
        return {"method": self.method, "reduce": self._reduce, **noise, **segments, "settings": self._settings}

    def calls(self) -> list[Callable[..., Any]]:
        """The functions of captum that take the settings."""
        from captum import attr

        made = getattr(attr, self.method)
        return [made, made.attribute, *([attr.NoiseTunnel.attribute] if self.noise else [])]

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
        calling_model = _calling(self.name, context, kind) if self.needs_model else _asking(self.name, context)
        with calling_model as (functions, score):
            from captum import attr

            finite = _FiniteScores(score)
            called = CalledModel(context, finite if kind.fits else score)
            if len(functions):  # captum's LRP has no rule for an empty list
                called.functions = functions
            made = getattr(attr, self.method)
            making = inspect.signature(made).parameters
            attribution = made(called, *layer, **{name: one for name, one in self._settings.items() if name in making})
            if self.noise:
                attribution = attr.NoiseTunnel(attribution)

            def maps(images: Tensor, of: Tensor) -> Tensor:
                keywords = self._keywords(images, making)
                if kind.fits and not images.isfinite().all():
                    return torch.full_like(images[:, 0], torch.nan)
                if kind.fits and not keywords.get("feature_mask", images).any():  # one segment: all pixels are equal
                    return torch.zeros_like(images[:, 0])
                raw = _attribute(attribution, kind, keywords, context, images, additional_forward_args=(of,))
                return finite.only(_reduced(raw, kind, self._reduce, context))

            return batch_maps(context, maps, kind.one_by_one or self.noise is not None)

    def _keywords(self, images: Tensor, making: Iterable[str]) -> dict[str, Any]:
        """Keywords of `attribute` for these images: the settings that are none of the constructor."""
        noise = {"stdevs": NOISE * value_range(images)} if self.noise else {}
        segments = {} if self.segments is None else {"feature_mask": label_maps(images, self.segments)[:, None]}
        return {**noise, **segments, **{name: one for name, one in self._settings.items() if name not in making}}


class _FiniteScores:
    """Scores in which a method that fits a model to them finds no NaN and inf, and which remember whether there was one."""

    def __init__(self, score: Callable[..., Tensor]) -> None:
        self.score = score
        self.all_finite = True

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The scores, with 0 for NaN and inf."""
        scores = self.score(*inputs)
        self.all_finite &= bool(scores.isfinite().all())
        return scores.nan_to_num(0, 0, 0)

    def only(self, maps: Tensor) -> Tensor:
        """The maps; NaN if a score since the last call was not finite."""
        all_finite, self.all_finite = self.all_finite, True
        return maps if all_finite else torch.full_like(maps, torch.nan)


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
            raw = _attribute(self.attribution, self._kind, self.settings, context, images, **target)
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


@contextmanager
def _asking(name: str, context: Context) -> Iterator[tuple[nn.ModuleList, Callable[..., Tensor]]]:
    """For methods that leave out parts of the image: no modules, and scores without gradients, as fast as the run can."""
    wanted: Wanted = "score" if context.protocol.gradient == "logit" else "confidence"
    with library_errors(NAME, name):
        yield nn.ModuleList(), lambda images, of: context.ask([(images, of)], wanted)


def _changed(kind: CaptumKind) -> Mapping[Any, type[nn.Module]]:
    """The functions whose modules a method changes."""
    if not kind.adds:
        return ACTIVATIONS if kind.stores else RELUS if kind.changes_relus else {}
    from captum.attr._utils.custom_modules import Addition_Module

    return {**POOLINGS, **dict.fromkeys(ADDITIONS, Addition_Module)}


def _check_relus(name: str, kind: CaptumKind, context: Context, functions: nn.ModuleList) -> None:
    if kind.changes_relus and not any(isinstance(module, nn.ReLU) for module in (*context.model.modules(), *functions)):
        raise ExplainerError(
            f"method '{name}' changes what ReLUs pass back, and the model has none, so it would be the plain gradient; "
            "use 'captum:Saliency'"
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


def _attribute(
    attribution: Any, kind: CaptumKind, settings: Mapping[str, Any], context: Context, images: Tensor, **target: Any
) -> Tensor:
    """Captum's attribution of images, with default settings that captum lacks or that save passes."""
    size = context.size or len(context.images)
    settings = {**defaults(_parameters(attribution), kind, images, size), **settings, **target}
    attributions = attribution.attribute(leaf(images), **settings)
    if not isinstance(attributions, Tensor):
        raise TypeError(f"expected one tensor, got a {type(attributions).__name__}")
    return attributions.detach()


def _reduced(attributions: Tensor, kind: CaptumKind, reduce: str, context: Context) -> Tensor:
    """One number per place."""
    to_maps = reshaping(context.layout) if kind.needs_layer else None
    return REDUCTIONS[reduce](attributions if to_maps is None else to_maps(attributions))
