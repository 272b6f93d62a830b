"""Extractors of torch-cam as explainers: by name, with settings, or as the object that somebody has made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.errors import ExplainerError, choose_from
from xaieval.explainers.adapters.base import (
    ReadModel,
    check_model,
    class_targets,
    guarded,
    image_targets,
    leaf,
    module_at,
    name_of,
    one_by_one,
    outputs_kept,
    refused,
    reshaping,
)
from xaieval.explainers.base import Context

__all__ = ["TORCH_CAM", "TorchCam", "TorchCamObject"]

LIBRARY = "torch-cam"
MEND = f"{LIBRARY} names the reason; take another layer or method (docs/methods.md)"


@dataclass(frozen=True)
class _Kind:
    """What is to be known of one of the library's classes."""

    paper: str
    passes: str = "1"
    gradients: bool = True
    drawn: bool = False  # random
    classes: bool = False  # wants a class, not a score
    batches: bool = False  # takes the size of its passes


KINDS: dict[str, _Kind] = {
    "CAM": _Kind("Zhou et al. 2016, CVPR", classes=True, gradients=False),
    "GradCAM": _Kind("Selvaraju et al. 2017, arXiv 1610.02391"),
    "GradCAMpp": _Kind("Chattopadhay et al. 2018, arXiv 1710.11063"),
    "SmoothGradCAMpp": _Kind("Omeiza et al. 2019, arXiv 1908.01224", passes="5", drawn=True),
    "XGradCAM": _Kind("Fu et al. 2020, arXiv 2008.02312"),
    "LayerCAM": _Kind("Jiang et al. 2021, IEEE TIP 30"),
    "FinerCAM": _Kind("Zhang et al. 2025, arXiv 2501.11309", classes=True),
    "LeGrad": _Kind("Bousselham et al. 2024, arXiv 2404.03214", classes=True),
    "ScoreCAM": _Kind("Wang et al. 2020, arXiv 1910.01279", passes="channels + 2", batches=True, gradients=False),
    "SSCAM": _Kind("Wang et al. 2020, arXiv 2006.14255", passes="35 channels + 2", drawn=True, batches=True, gradients=False),
    "ISCAM": _Kind("Naidu et al. 2020, arXiv 2010.03023", passes="10 channels + 2", batches=True, gradients=False),
}


@dataclass(frozen=True)
class TorchCam:
    """A method of torch-cam; its maps before its own normalisation.

    Args:
        method: name of the library's class.
        settings: for its constructor, beside model and layer.
        label: a name of one's own for tables and rows.

    Raises:
        ExplainerError: there is no such method; when called: it cannot explain this model at this layer.

    Reference:
        Fernandez, "TorchCAM: class activation explorer", 2020. Where a method is from: `paper`.

    Example:
        >>> import torchvision, xaieval
        >>> images, method = torch.rand(2, 3, 64, 64), TorchCam("SmoothGradCAMpp", settings={"num_samples": 2})
        >>> maps = xaieval.explain(torchvision.models.resnet18(), images, ["layer4"], method)
        >>> maps["layer4"].shape
        torch.Size([2, 64, 64])
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    needs_layer: bool = True
    needs_gradient: bool = False

    def __post_init__(self) -> None:
        if self.method not in KINDS:
            raise ExplainerError(f"{LIBRARY}: no method {self.method!r}; {choose_from(self.method, KINDS)}")

    @property
    def name(self) -> str:
        """In tables and rows."""
        return self.label or f"{LIBRARY}:{self.method}"

    @property
    def takes_gradients(self) -> bool:
        """Whether it takes gradients, by itself."""
        return KINDS[self.method].gradients

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        return KINDS[self.method].passes

    @property
    def paper(self) -> str:
        """Where the method is from."""
        return KINDS[self.method].paper

    def to_dict(self) -> dict[str, Any]:
        """For the manifest; nothing where nothing was chosen."""
        return {"settings": self.settings} if self.settings else {}

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, h, w]`."""
        kind, layer = KINDS[self.method], module_at(context, self.name)
        classes = class_targets(context, self.name) if kind.classes else None
        with _working(context, self.name):
            import torchcam.methods

            extractor = getattr(torchcam.methods, self.method)
            model = context.model if self.method == "LeGrad" else ReadModel(context)
            with extractor(model, layer, **self._arguments(context)) as cam, outputs_kept([layer]):

                def maps(images: Tensor, of: Tensor) -> Tensor:
                    read = model(leaf(images))
                    if classes is not None:
                        return _only(cam(class_idx=classes[of].tolist(), scores=read, normalized=False))
                    return _only(cam(scores=read, targets=image_targets(context, of), normalized=False))

                return one_by_one(context, maps) if kind.drawn else maps(context.images, context.everywhere)

    def _arguments(self, context: Context) -> dict[str, Any]:
        """Of the constructor."""
        layout, found = context.layout, {}
        if self.method == "LeGrad":
            if layout is not None and layout.kind == "tokens":
                found = {"prefix_tokens": layout.prefix, "grid_shape": layout.size}
            return {**found, **self.settings}
        if KINDS[self.method].batches:
            found["batch_size"] = context.size or len(context.images)
        if self.method == "CAM":
            linear = [module for module in context.model.modules() if isinstance(module, nn.Linear)]
            found |= {"fc_layer": linear[0]} if len(linear) == 1 else {}
        return {"reshape_transform": reshaping(layout), **found, **self.settings}


TORCH_CAM: dict[str, TorchCam] = {f"{LIBRARY}:{name}": TorchCam(name) for name in KINDS}


@dataclass(frozen=True)
class TorchCamObject:
    """An extractor of torch-cam, as somebody has made it for the model and its layers.

    Args:
        extractor: of the library, made with the model that is scored, its hooks in place.
        label: a name of one's own.

    Raises:
        ExplainerError: it is a LeGrad; when called: it was made for another model, or the model is no classifier.
    """

    extractor: Any
    label: str = ""
    needs_layer: bool = False
    needs_gradient: bool = False

    def __post_init__(self) -> None:
        if type(self.extractor).__name__ == "LeGrad":
            raise ExplainerError(
                "a LeGrad object keeps any pass without gradients from running, so that nothing could be scored; remove its "
                "hooks, and give 'torch-cam:LeGrad' or TorchCam('LeGrad', settings=...) instead"
            )

    @property
    def name(self) -> str:
        """In tables and rows."""
        return self.label or name_of(LIBRARY, self.extractor, self.extractor.model, self._layers)

    @property
    def _layers(self) -> Sequence[nn.Module]:
        return [self.extractor.model.get_submodule(name) for name in self.extractor.target_names]

    def to_dict(self) -> dict[str, Any]:
        """For the manifest: what was chosen that is a number or a word."""
        chosen = {key: value for key, value in vars(self.extractor).items() if isinstance(value, str | int | float)}
        return {"class": type(self.extractor), **{key: value for key, value in chosen.items() if not key.startswith("_")}}

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, h, w]`."""
        classes = class_targets(context, self.name)
        check_model(self.extractor.model, context, self.name)
        kind = KINDS.get(type(self.extractor).__name__, _Kind("", drawn=True))

        def maps(images: Tensor, of: Tensor) -> Tensor:
            read = context.read(leaf(images))
            return _only(self.extractor(class_idx=classes[of].tolist(), scores=read, normalized=False))

        with _working(context, self.name), outputs_kept(self._layers):
            try:
                return one_by_one(context, maps) if kind.drawn else maps(context.images, context.everywhere)
            finally:
                self.extractor.reset_hooks()  # which hold the graph of the last pass


def _only(maps: list[Tensor]) -> Tensor:
    if len(maps) != 1:
        raise ValueError(f"it gave maps of {len(maps)} layers, and one is expected: make an extractor for each")
    return maps[0]


@contextmanager
def _working(context: Context, name: str) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(guarded(context.model))
        stack.enter_context(refused(name, MEND))
        stack.enter_context(torch.enable_grad())
        yield
