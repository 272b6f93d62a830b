"""Methods of pytorch-grad-cam as explainers: by name, with settings, or as an object that the user has made.

The library gives maps in [0, 1] at the size of the image, upsampled by OpenCV and scaled between their minimum and maximum.
They are used unchanged, so the protocol's normalisation changes little more.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
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

__all__ = ["LIBRARY", "GradCamObject", "PytorchGradCam"]

NAME = "pytorch-grad-cam"
NO_PAPER = f"none ({NAME})"

# One by one go the classes that draw random numbers, and those that hold the masked images of all channels at once.
KINDS: dict[str, Kind] = {
    "GradCAM": Kind(paper="Selvaraju et al. 2017, arXiv 1610.02391"),
    "GradCAMPlusPlus": Kind(paper="Chattopadhay et al. 2018, arXiv 1710.11063"),
    "XGradCAM": Kind(paper="Fu et al. 2020, arXiv 2008.02312"),
    "HiResCAM": Kind(paper="Draelos and Carin 2020, arXiv 2011.08891"),
    "GradCAMElementWise": Kind(paper=NO_PAPER),
    "LayerCAM": Kind(paper="Jiang et al. 2021, IEEE TIP 30"),
    "EigenCAM": Kind(paper="Muhammad and Yeasin 2020, arXiv 2008.00299", takes_gradients=False),
    "EigenGradCAM": Kind(paper=NO_PAPER),
    "SegEigenCAM": Kind(paper="Chung and Ying 2025, Appl. Sci. 15(13)"),
    "KPCA_CAM": Kind(paper="Karmani et al. 2024, arXiv 2410.00267", one_by_one=True, takes_gradients=False),
    "FEM": Kind(paper="Fuad et al. 2020, IPTA", takes_gradients=False),
    "ShapleyCAM": Kind(paper="Cai 2025, arXiv 2501.06261"),
    "FinerCAM": Kind(paper="Zhang et al. 2025, arXiv 2501.11309", one_by_one=True),
    "ScoreCAM": Kind(passes="channels + 1", paper="Wang et al. 2020, arXiv 1910.01279", one_by_one=True, takes_gradients=False),
    "AblationCAM": Kind(passes="channels + 2", paper="Desai and Ramaswamy 2020, WACV", one_by_one=True, takes_gradients=False),
    "RandomCAM": Kind(paper=NO_PAPER, one_by_one=True),
    "FullGrad": Kind(paper="Srinivas and Fleuret 2019, arXiv 1905.00780", needs_layer=False),
}
UNKNOWN = Kind(paper="", one_by_one=True)  # a class of the user's own, or one that joins several layers or crops


@dataclass(frozen=True)
class PytorchGradCam(LibraryMethod):
    """A method of pytorch-grad-cam.

    Args:
        method: The name of the library's class.
        settings: Keywords for its constructor, beyond model, layers and reshape transform.
        smooth: Keywords for its call: `aug_smooth`, `eigen_smooth`.
        label: The name in tables and rows. Default: library and class.

    Raises:
        ExplainerError: There is no such method; when called: it cannot explain this model at this layer.

    Reference:
        Gildenblat et al., "PyTorch library for CAM methods", 2021. The paper of each method: `paper`.

    Example:
        >>> import torchvision, xaieval
        >>> images, method = torch.rand(2, 3, 64, 64), PytorchGradCam("KPCA_CAM", settings={"kernel": "rbf"})
        >>> maps = xaieval.explain(torchvision.models.resnet18(), images, ["layer4"], method)
        >>> maps["layer4"].shape
        torch.Size([2, 64, 64])
    """

    library = NAME
    kinds = KINDS
    given = frozenset({"model", "target_layers", "reshape_transform"})
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    smooth: Mapping[str, bool] = field(default_factory=dict)
    label: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Settings for the manifest; empty by default."""
        return {key: value for key, value in (("settings", self.settings), ("smooth", self.smooth)) if value}

    def calls(self) -> list[Callable[..., Any]]:
        """The constructor."""
        import pytorch_grad_cam

        return [getattr(pytorch_grad_cam, self.method)]

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]` in [0, 1]."""
        layers = [module_at(context, self.name)] if self.needs_layer else []
        with calling(NAME, self.name, context), _without_progress_bars():
            cam = self._make(context, layers)
            try:
                with outputs_copied(layers):
                    return _maps(cam, context, self.name, KINDS[self.method], self.smooth)
            finally:
                _release(_inner(cam))

    def _make(self, context: Context, layers: Sequence[nn.Module]) -> Any:
        import pytorch_grad_cam

        kind = getattr(pytorch_grad_cam, self.method)
        model, arguments = CalledModel(context, context.read), self._arguments(context)
        inspect.signature(kind).bind(model, layers, **arguments)  # raises before there is an object that fails to be deleted
        cam = kind(model, layers, **arguments)
        if self.method == "ScoreCAM":
            cam.batch_size = context.size or len(context.images)
        return cam

    def _arguments(self, context: Context) -> dict[str, Any]:
        """Keywords of the constructor."""
        reshape = reshaping(context.layout)
        arguments: dict[str, Any] = {"reshape_transform": reshape}
        if self.method == "AblationCAM":
            from pytorch_grad_cam import AblationLayer, AblationLayerVit

            arguments["batch_size"] = context.size or len(context.images)
            arguments["ablation_layer"] = AblationLayer() if reshape is None else AblationLayerVit()
        return {**arguments, **self.settings}


@dataclass(frozen=True)
class GradCamObject:
    """A CAM object of pytorch-grad-cam that the user has made for the model and its layers.

    Args:
        cam: An object of the library, made with the model that is scored.
        label: The name in tables and rows. Default: library, class and layers.

    Raises:
        ExplainerError: When called: the object was made for another model, or the model is no classifier.
    """

    cam: Any
    label: str = ""
    needs_layer: bool = False
    needs_gradient: bool = False

    @property
    def name(self) -> str:
        """Name in tables and rows."""
        inner = _inner(self.cam)
        layers = [] if type(inner).__name__ == "FullGrad" else self._layers
        return self.label or object_name(NAME, self.cam, inner.model, layers)

    @property
    def _layers(self) -> list[nn.Module]:
        cams = getattr(self.cam, "base_cam_per_layer", [_inner(self.cam)])
        return [layer for cam in cams for layer in cam.target_layers]

    def to_dict(self) -> dict[str, Any]:
        """Settings for the manifest: those that are numbers or words."""
        return plain_attributes(self.cam)

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]` in [0, 1]."""
        inner = _inner(self.cam)
        object_targets(context, self.name, inner.model)
        kind = KINDS.get(type(self.cam).__name__, UNKNOWN)
        with (
            calling(NAME, self.name, context),
            _without_progress_bars(),
            outputs_copied(self._layers),
            _differentiating_images(inner),
        ):
            return _maps(self.cam, context, self.name, kind, {})


LIBRARY = Library(
    name=NAME,
    package="pytorch_grad_cam",
    install="pip install grad-cam",
    methods={f"{NAME}:{name}": PytorchGradCam(name) for name in KINDS},
    classes=frozenset({"BaseCAM", "FinerCAM", "RefineCAM", "SESS"}),
    adapt=GradCamObject,
)


def _release(cam: Any) -> None:
    """Remove the hooks of a CAM, which its own method fails to do where it has stored a view."""
    cam.activations_and_grads.activations = []
    cam.activations_and_grads.gradients = []
    cam.activations_and_grads.release()


@contextmanager
def _differentiating_images(cam: Any) -> Iterator[None]:
    """Have a CAM start the graph at the images, since parameters take no gradients and SESS detaches its images."""
    before, cam.compute_input_gradient = cam.compute_input_gradient, True
    try:
        yield
    finally:
        cam.compute_input_gradient = before


@contextmanager
def _weights_in_the_graph(cam: Any, model: nn.Module) -> Iterator[None]:
    """Let parameters take gradients for a CAM of second derivatives, which would find no graph behind the last layer."""
    frozen = [] if cam.detach else [one for one in model.parameters() if not one.requires_grad and one.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_()
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _inner(cam: Any) -> Any:
    """The CAM that a wrapper such as SESS or RefineCAM calls, or the CAM itself."""
    inner = getattr(cam, "base_cam_per_layer", None) or [getattr(cam, "base_cam", cam)]
    return inner[0]


def _maps(cam: Any, context: Context, name: str, kind: Kind, smooth: Mapping[str, bool]) -> Tensor:
    if type(_inner(cam)).__name__ == "FullGrad":
        _check_full_gradient(name, context.model)
    finer = type(cam).__name__ == "FinerCAM"
    classes = class_targets(context, name) if finer else None

    def maps(images: Tensor, of: Tensor) -> Tensor:
        if classes is not None:  # FinerCAM makes its targets itself, from the class and those most similar to it
            array = cam(leaf(images), target_idx=int(classes[of]), **smooth)
        else:
            array = cam(leaf(images), targets=image_targets(context, of), **smooth)
        return torch.from_numpy(array).to(images.device)

    with _weights_in_the_graph(_inner(cam), context.model):
        return batch_maps(context, maps, kind.one_by_one)


def _check_full_gradient(name: str, model: nn.Module) -> None:
    """Refuse a model whose output is not the sum of what FullGrad adds up.

    Raises:
        ExplainerError: It has layer norms or attention, which are not piecewise linear; their biases would be left out.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) or "LayerNorm" in type(module).__name__:
            raise ExplainerError(
                f"method '{name}' adds up gradients times biases of convolutions and batch norms, and this model has a "
                f"{type(module).__name__} at '{path}', for which that sum is not defined; 'guided-ig' and "
                "'captum:IntegratedGradients' explain the pixels of any model, 'attention-rollout' a vision transformer"
            )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Switch off the library's progress bars on stderr, for which it has no setting."""
    modules = [importlib.import_module(f"pytorch_grad_cam.{name}") for name in ("ablation_cam", "score_cam")]
    before = [module.tqdm for module in modules]
    try:
        for module in modules:
            module.tqdm = SimpleNamespace(tqdm=lambda values: values)  # type: ignore[attr-defined]  # a module's global
        yield
    finally:
        for module, bar in zip(modules, before, strict=True):
            module.tqdm = bar  # type: ignore[attr-defined]  # a module's global
