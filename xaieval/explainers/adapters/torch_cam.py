"""Extractors of torch-cam as explainers: by name, with settings, or as an object that the user has made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    class_targets,
    image_targets,
    leaf,
    module_at,
    object_name,
    object_targets,
    plain_attributes,
    reshaping,
)
from xaieval.explainers.adapters.lending import outputs_copied
from xaieval.explainers.base import Context

__all__ = ["LIBRARY", "TorchCam", "TorchCamObject"]

NAME = "torch-cam"


@dataclass(frozen=True, kw_only=True)
class TorchCamKind(Kind):
    """How the adapter handles one of the library's classes.

    Attributes:
        classes: Whether it takes the classes to explain instead of scores.
        batches: Whether its constructor takes a batch size.
    """

    classes: bool = False
    batches: bool = False


KINDS: dict[str, TorchCamKind] = {
    "CAM": TorchCamKind(paper="Zhou et al. 2016, CVPR", classes=True, takes_gradients=False),
    "GradCAM": TorchCamKind(paper="Selvaraju et al. 2017, arXiv 1610.02391"),
    "GradCAMpp": TorchCamKind(paper="Chattopadhay et al. 2018, arXiv 1710.11063"),
    "SmoothGradCAMpp": TorchCamKind(paper="Omeiza et al. 2019, arXiv 1908.01224", passes="5", one_by_one=True),
    "XGradCAM": TorchCamKind(paper="Fu et al. 2020, arXiv 2008.02312"),
    "LayerCAM": TorchCamKind(paper="Jiang et al. 2021, IEEE TIP 30"),
    "FinerCAM": TorchCamKind(paper="Zhang et al. 2025, arXiv 2501.11309", classes=True),
    "LeGrad": TorchCamKind(paper="Bousselham et al. 2024, arXiv 2404.03214", classes=True),
    "ScoreCAM": TorchCamKind(
        paper="Wang et al. 2020, arXiv 1910.01279", passes="channels + 2", batches=True, takes_gradients=False
    ),
    "SSCAM": TorchCamKind(
        paper="Wang et al. 2020, arXiv 2006.14255",
        passes="35 channels + 2",
        one_by_one=True,
        batches=True,
        takes_gradients=False,
    ),
    "ISCAM": TorchCamKind(
        paper="Naidu et al. 2020, arXiv 2010.03023", passes="10 channels + 2", batches=True, takes_gradients=False
    ),
}
UNKNOWN = TorchCamKind(paper="", one_by_one=True)  # a class of the user's own, which may draw random numbers


@dataclass(frozen=True)
class TorchCam(LibraryMethod):
    """A method of torch-cam; maps are taken before the library's own normalisation.

    Args:
        method: The name of the library's class.
        settings: Keywords for its constructor, beyond model and layer.
        label: The name in tables and rows. Default: library and class.

    Raises:
        ExplainerError: There is no such method; when called: it cannot explain this model at this layer.

    Reference:
        Fernandez, "TorchCAM: class activation explorer", 2020. The paper of each method: `paper`.

    Example:
        >>> import torchvision, xaieval
        >>> images, method = torch.rand(2, 3, 64, 64), TorchCam("SmoothGradCAMpp", settings={"num_samples": 2})
        >>> maps = xaieval.explain(torchvision.models.resnet18(), images, ["layer4"], method)
        >>> maps["layer4"].shape
        torch.Size([2, 64, 64])
    """

    library = NAME
    kinds = KINDS
    given = frozenset({"model", "target_layer", "reshape_transform", "input_shape", "enable_hooks"})
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Settings for the manifest; empty by default."""
        return {"settings": self.settings} if self.settings else {}

    def calls(self) -> list[Callable[..., Any]]:
        """The constructor, with the settings that it hands on to its base class."""
        import torchcam.methods

        return list(getattr(torchcam.methods, self.method).__mro__[:-1])

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, h, w]`."""
        kind, layer = KINDS[self.method], module_at(context, self.name)
        classes = class_targets(context, self.name) if kind.classes else None
        with calling(NAME, self.name, context), torch.enable_grad():
            import torchcam.methods

            extractor = getattr(torchcam.methods, self.method)
            model = context.model if self.method == "LeGrad" else CalledModel(context, context.read)
            with extractor(model, layer, **self._arguments(context)) as cam, outputs_copied([layer]):

                def maps(images: Tensor, of: Tensor) -> Tensor:
                    read = model(leaf(images))
                    if classes is not None:
                        return _only(cam(class_idx=classes[of].tolist(), scores=read, normalized=False))
                    return _only(cam(scores=read, targets=image_targets(context, of), normalized=False))

                return batch_maps(context, maps, kind.one_by_one)

    def _arguments(self, context: Context) -> dict[str, Any]:
        """Keywords of the constructor."""
        layout = context.layout
        arguments: dict[str, Any] = {}
        if self.method == "LeGrad":
            if layout is not None and layout.kind == "tokens":
                arguments = {"prefix_tokens": layout.prefix, "grid_shape": layout.size}
            return {**arguments, **self.settings}
        if KINDS[self.method].batches:
            arguments["batch_size"] = context.size or len(context.images)
        if self.method == "CAM":
            linear = [module for module in context.model.modules() if isinstance(module, nn.Linear)]
            arguments |= {"fc_layer": linear[0]} if len(linear) == 1 else {}
        return {"reshape_transform": reshaping(layout), **arguments, **self.settings}


@dataclass(frozen=True)
class TorchCamObject:
    """An extractor of torch-cam that the user has made for the model and its layers.

    Args:
        extractor: An object of the library, made with the model that is scored, its hooks in place.
        label: The name in tables and rows. Default: library, class and layers.

    Raises:
        ExplainerError: It is a LeGrad; when called: it was made for another model, or the model is no classifier.
    """

    extractor: Any
    label: str = ""
    needs_layer: bool = False
    needs_gradient: bool = False

    def __post_init__(self) -> None:
        if type(self.extractor).__name__ == "LeGrad":
            raise ExplainerError(
                "a LeGrad object breaks passes without gradients, so nothing can be scored; remove its hooks, and "
                "give 'torch-cam:LeGrad' or TorchCam('LeGrad', settings=...) instead"
            )

    @property
    def name(self) -> str:
        """Name in tables and rows."""
        return self.label or object_name(NAME, self.extractor, self.extractor.model, self._layers)

    @property
    def _layers(self) -> Sequence[nn.Module]:
        return [self.extractor.model.get_submodule(name) for name in self.extractor.target_names]

    def to_dict(self) -> dict[str, Any]:
        """Settings for the manifest: those that are numbers or words."""
        return plain_attributes(self.extractor)

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, h, w]`."""
        classes = object_targets(context, self.name, self.extractor.model)
        kind = KINDS.get(type(self.extractor).__name__, UNKNOWN)

        def maps(images: Tensor, of: Tensor) -> Tensor:
            read = context.read(leaf(images))
            return _only(self.extractor(class_idx=classes[of].tolist(), scores=read, normalized=False))

        with calling(NAME, self.name, context), torch.enable_grad(), outputs_copied(self._layers):
            try:
                return batch_maps(context, maps, kind.one_by_one)
            finally:
                self.extractor.reset_hooks()  # they hold the graph of the last pass


LIBRARY = Library(
    name=NAME,
    package="torchcam",
    install="pip install 'xaieval[torchcam]'",
    methods={f"{NAME}:{name}": TorchCam(name) for name in KINDS},
    classes=frozenset({"_CAM", "_CAMWrapper"}),
    adapt=TorchCamObject,
)


def _only(maps: list[Tensor]) -> Tensor:
    if len(maps) != 1:
        raise ValueError(f"it gave maps of {len(maps)} layers, and one is expected: make an extractor for each")
    return maps[0]
