"""Methods of pytorch-grad-cam as explainers: by name, with settings, or as the object that somebody has made.

The library gives maps in [0, 1] of the image's size, upsampled by OpenCV and scaled between its own minimum and maximum. They
are taken as they are, so that what the protocol does to them changes little more.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
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

__all__ = ["GRAD_CAM", "GradCamObject", "PytorchGradCam"]

LIBRARY = "pytorch-grad-cam"
MEND = f"{LIBRARY} names the reason; take another layer or method (docs/methods.md)"


@dataclass(frozen=True)
class _Kind:
    """What is to be known of one of the library's classes."""

    passes: str = "1"
    paper: str = "none (pytorch-grad-cam)"
    needs_layer: bool = True
    gradients: bool = True
    alone: bool = False  # images one by one: it draws numbers, or holds all masked images of all channels at a time


KINDS: dict[str, _Kind] = {
    "GradCAM": _Kind(paper="Selvaraju et al. 2017, arXiv 1610.02391"),
    "GradCAMPlusPlus": _Kind(paper="Chattopadhay et al. 2018, arXiv 1710.11063"),
    "XGradCAM": _Kind(paper="Fu et al. 2020, arXiv 2008.02312"),
    "HiResCAM": _Kind(paper="Draelos and Carin 2020, arXiv 2011.08891"),
    "GradCAMElementWise": _Kind(),
    "LayerCAM": _Kind(paper="Jiang et al. 2021, IEEE TIP 30"),
    "EigenCAM": _Kind(paper="Muhammad and Yeasin 2020, arXiv 2008.00299", gradients=False),
    "EigenGradCAM": _Kind(),
    "SegEigenCAM": _Kind(paper="Chung and Ying 2025, Appl. Sci. 15(13)"),
    "KPCA_CAM": _Kind(paper="Karmani et al. 2024, arXiv 2410.00267", alone=True, gradients=False),
    "FEM": _Kind(paper="Fuad et al. 2020, IPTA", gradients=False),
    "ShapleyCAM": _Kind(paper="Cai 2025, arXiv 2501.06261"),
    "FinerCAM": _Kind(paper="Zhang et al. 2025, arXiv 2501.11309", alone=True),
    "ScoreCAM": _Kind("channels + 1", "Wang et al. 2020, arXiv 1910.01279", alone=True, gradients=False),
    "AblationCAM": _Kind("channels + 2", "Desai and Ramaswamy 2020, WACV", alone=True, gradients=False),
    "RandomCAM": _Kind(alone=True),
    "FullGrad": _Kind(paper="Srinivas and Fleuret 2019, arXiv 1905.00780", needs_layer=False),
}


@dataclass(frozen=True)
class PytorchGradCam:
    """A method of pytorch-grad-cam.

    Args:
        method: name of the library's class.
        settings: for its constructor, beside model, layers and reshape transform.
        smooth: the keywords of its call: `aug_smooth`, `eigen_smooth`.
        label: a name of one's own for tables and rows.

    Raises:
        ExplainerError: there is no such method; when called: it cannot explain this model at this layer.

    Reference:
        Gildenblat et al., "PyTorch library for CAM methods", 2021. Where a method is from: `paper`.

    Example:
        >>> import torchvision, xaieval
        >>> images, method = torch.rand(2, 3, 64, 64), PytorchGradCam("KPCA_CAM", settings={"kernel": "rbf"})
        >>> maps = xaieval.explain(torchvision.models.resnet18(), images, ["layer4"], method)
        >>> maps["layer4"].shape
        torch.Size([2, 64, 64])
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    smooth: Mapping[str, bool] = field(default_factory=dict)
    label: str = ""
    needs_gradient: bool = False

    def __post_init__(self) -> None:
        if self.method not in KINDS:
            raise ExplainerError(f"{LIBRARY}: no method {self.method!r}; {choose_from(self.method, KINDS)}")

    @property
    def name(self) -> str:
        """In tables and rows."""
        return self.label or f"{LIBRARY}:{self.method}"

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
        return KINDS[self.method].passes

    @property
    def paper(self) -> str:
        """Where the method is from."""
        return KINDS[self.method].paper

    def to_dict(self) -> dict[str, Any]:
        """For the manifest; nothing where nothing was chosen."""
        return {key: value for key, value in (("settings", self.settings), ("smooth", self.smooth)) if value}

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]` in [0, 1]."""
        layers = [module_at(context, self.name)] if self.needs_layer else []
        with _working(context, self.name, layers):
            import pytorch_grad_cam

            made = getattr(pytorch_grad_cam, self.method)
            arguments = (ReadModel(context), layers), self._arguments(context)
            inspect.signature(made).bind(*arguments[0], **arguments[1])  # or what is half made would complain once more
            cam = made(*arguments[0], **arguments[1])
            if self.method == "ScoreCAM":
                cam.batch_size = context.size or len(context.images)
            try:
                return _maps(cam, context, self.name, KINDS[self.method], self.smooth)
            finally:
                _release(_inner(cam))

    def _arguments(self, context: Context) -> dict[str, Any]:
        """Of the constructor."""
        reshape = reshaping(context.layout)
        found: dict[str, Any] = {"reshape_transform": reshape}
        if self.method == "AblationCAM":
            from pytorch_grad_cam import AblationLayer, AblationLayerVit

            found["batch_size"] = context.size or len(context.images)
            found["ablation_layer"] = AblationLayer() if reshape is None else AblationLayerVit()
        return {**found, **self.settings}


GRAD_CAM: dict[str, PytorchGradCam] = {f"{LIBRARY}:{name}": PytorchGradCam(name) for name in KINDS}


@dataclass(frozen=True)
class GradCamObject:
    """A CAM object of pytorch-grad-cam, as somebody has made it for the model and its layers.

    Args:
        cam: of the library, made with the model that is scored.
        label: a name of one's own.

    Raises:
        ExplainerError: when called: it was made for another model, or the model is no classifier.
    """

    cam: Any
    label: str = ""
    needs_layer: bool = False
    needs_gradient: bool = False

    @property
    def name(self) -> str:
        """In tables and rows."""
        one = _inner(self.cam)
        return self.label or name_of(LIBRARY, self.cam, one.model, [] if type(one).__name__ == "FullGrad" else self._layers)

    @property
    def _layers(self) -> list[nn.Module]:
        parts = getattr(self.cam, "base_cam_per_layer", [_inner(self.cam)])
        return [layer for part in parts for layer in part.target_layers]

    def to_dict(self) -> dict[str, Any]:
        """For the manifest: what was chosen that is a number or a word."""
        chosen = {key: value for key, value in vars(self.cam).items() if isinstance(value, str | int | float)}
        return {"class": type(self.cam), **chosen}

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]` in [0, 1]."""
        class_targets(context, self.name)
        one = _inner(self.cam)
        check_model(one.model, context, self.name)
        kind = KINDS.get(type(self.cam).__name__, _Kind(alone=True))
        with _working(context, self.name, self._layers), _differentiating_images(one):
            return _maps(self.cam, context, self.name, kind, {})


def _release(cam: Any) -> None:
    """Take the hooks of a CAM away, which it would fail to do where it has kept a view."""
    cam.activations_and_grads.activations = []
    cam.activations_and_grads.gradients = []
    cam.activations_and_grads.release()


@contextmanager
def _differentiating_images(cam: Any) -> Iterator[None]:
    """Have a CAM start the graph at the images, since the parameters take no gradients; SESS cuts what we start."""
    own, cam.compute_input_gradient = cam.compute_input_gradient, True
    try:
        yield
    finally:
        cam.compute_input_gradient = own


@contextmanager
def _weights_in_the_graph(cam: Any, model: nn.Module) -> Iterator[None]:
    """Parameters that take gradients, for a CAM of second derivatives, which else finds no graph behind the last layer."""
    frozen = [] if cam.detach else [one for one in model.parameters() if not one.requires_grad and one.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_()
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _inner(cam: Any) -> Any:
    """The CAM that a wrapping one asks."""
    inner = getattr(cam, "base_cam_per_layer", None) or [getattr(cam, "base_cam", cam)]
    return inner[0]


def _maps(cam: Any, context: Context, name: str, kind: _Kind, smooth: Mapping[str, bool]) -> Tensor:
    finer = type(cam).__name__ == "FinerCAM"
    classes = class_targets(context, name) if finer else None

    def maps(images: Tensor, of: Tensor) -> Tensor:
        if classes is not None:  # it makes targets itself, of the class and those that are most like it
            found = cam(leaf(images), target_idx=int(classes[of]), **smooth)
        else:
            found = cam(leaf(images), targets=image_targets(context, of), **smooth)
        return torch.from_numpy(found).to(images.device)

    with _weights_in_the_graph(_inner(cam), context.model):
        return one_by_one(context, maps) if kind.alone else maps(context.images, context.everywhere)


@contextmanager
def _working(context: Context, name: str, layers: Sequence[nn.Module]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(guarded(context.model))
        stack.enter_context(refused(name, MEND))
        stack.enter_context(_without_bars())
        stack.enter_context(outputs_kept(layers))
        yield


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of the library's on stderr, which it has no setting for."""
    modules = [importlib.import_module(f"pytorch_grad_cam.{name}") for name in ("ablation_cam", "score_cam")]
    own = [module.tqdm for module in modules]
    try:
        for module in modules:
            module.tqdm = SimpleNamespace(tqdm=lambda values: values)  # type: ignore[attr-defined]  # a module's global
        yield
    finally:
        for module, bar in zip(modules, own, strict=True):
            module.tqdm = bar  # type: ignore[attr-defined]  # likewise
