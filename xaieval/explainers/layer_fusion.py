"""Maps that join several layers: the maps of a method fused, and Poly-CAM.

Such a method is called once for all layers of a run, and its rows have the layer `layer3+layer4`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context, Explainer, describe_method, needs_model
from xaieval.explainers.cam import CAM, layer_cam
from xaieval.masking import LINEAR

__all__ = ["FUSIONS", "Fusion", "PolyCAM", "fuse"]

Sides = Literal["+", "-", "+-"]


@dataclass(frozen=True)
class Fusion:
    """The maps of a method at several layers, fused: the element-wise maximum of the scaled maps.

    Each map is divided by its maximum, which makes layers comparable, and goes through `tanh(gamma m)`, which raises its weak
    parts. The maps are upsampled to the largest of them. One that is zero everywhere adds nothing.

    Args:
        method: An explainer that needs a layer and gives maps that are not negative, such as those of the CAM family.
        gamma: Strength of the scaling, above 0.
        name: Name in tables and rows. Default: that of the method with "-fusion".

    Raises:
        ExplainerError: The method needs no layer, or gamma is not above 0; when called: there is one layer only.

    Reference:
        Jiang et al., "LayerCAM", IEEE TIP 2021, eq. 9 for the scaling and section III.C for the maximum.

    Example:
        >>> import torchvision, xaieval
        >>> from xaieval.explainers import METHODS
        >>> model, images = torchvision.models.resnet18(), torch.rand(2, 3, 64, 64)
        >>> maps = xaieval.explain(model, images, ["layer2", "layer4"], Fusion(METHODS["gradcam"]))
        >>> maps["layer2+layer4"].shape
        torch.Size([2, 64, 64])
    """

    method: Explainer
    gamma: float = 2.0
    name: str = ""
    needs_layer: bool = True
    joins_layers: bool = True

    def __post_init__(self) -> None:
        if not self.method.needs_layer or not self.gamma > 0:
            raise ExplainerError(
                "a fusion takes a method that explains layers, and a gamma above 0; got "
                f"method '{self.method.name}' and gamma={self.gamma}"
            )
        if not self.name:
            object.__setattr__(self, "name", f"{self.method.name}-fusion")

    @property
    def needs_gradient(self) -> bool:
        """Whether the method needs gradients."""
        return self.method.needs_gradient

    @property
    def needs_model(self) -> bool:
        """Whether the method needs the model."""
        return needs_model(self.method)

    @property
    def passes(self) -> str:
        """Forward passes an image: those of the method for each layer."""
        return str(getattr(self.method, "passes", ""))

    @property
    def paper(self) -> str:
        """Reference of the fusion."""
        return "Jiang et al. 2021, IEEE TIP 30"

    def to_dict(self) -> dict[str, Any]:
        """Settings for the manifest."""
        return {"method": self.method.name, **describe_method(self.method), "gamma": self.gamma}

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`, as large as the largest layer."""
        return fuse([self.method(at) for at in _several(context, self.name)], self.gamma)


@dataclass(frozen=True)
class PolyCAM:
    """Poly-CAM: maps of all layers by masked scores as in Score-CAM, each refining the coarser map of the deeper layers.

    From the deepest layer, whose map has the fewest cells, to the shallowest: the map of a layer is `relu(sum_k w_k A_k)`, its
    local mean is divided out, and it is multiplied by the upsampled map so far. The local mean is that over a cell of the map
    so far. A channel becomes a mask by min-max normalisation and upsampling.

    Args:
        sides: The weight of a channel: "+" is the confidence on the image masked by it, "-" the loss of confidence if it is
            removed, "+-" their sum, which needs both passes.

    Raises:
        ExplainerError: A choice is unknown; when called: there is one layer only.

    Reference:
        Englebert et al., "Poly-CAM", ICPR 2022 (arXiv 2204.13359), section 3. Masks have the full range of a channel, where the
        authors' code leaves out 0.1 % of its values at each end.

    Example:
        >>> import torchvision, xaieval
        >>> model, images = torchvision.models.resnet18(width_per_group=64), torch.rand(1, 3, 32, 32)
        >>> xaieval.explain(model, images, ["relu", "layer1"], PolyCAM("+"))["relu+layer1"].shape
        torch.Size([1, 32, 32])
    """

    sides: Sides = "+-"
    name: str = "poly-cam"
    needs_layer: bool = True
    needs_gradient: bool = False
    needs_model: bool = False
    joins_layers: bool = True
    paper: str = "Englebert et al. 2022, arXiv 2204.13359"

    def __post_init__(self) -> None:
        if self.sides not in get_args(Sides):
            raise ExplainerError(f"sides is one of {', '.join(get_args(Sides))}, got {self.sides!r}")

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        return f"{len(self.sides)} per channel of all layers + 1"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`, as large as the largest layer."""
        found: Tensor | None = None
        for at in sorted(_several(context, self.name), key=_cells):
            activation: Any = at.activation
            maps = torch.einsum("nc,nc...->n...", self._weights(at, activation), activation).clamp(min=0)
            found = maps if found is None else _resized(found, maps.shape[1:]) * _without_local_mean(maps, found.shape[1:])
        return found if found is not None else context.images[:, 0]

    def _weights(self, at: Context, activation: Tensor) -> Tensor:
        """Weights of the channels, `[N, C]`."""
        images, channels = at.images, activation.shape[1]
        size = at.size or len(images)

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            for side in self.sides:
                for pairs in torch.arange(len(images) * channels, device=images.device).split(size):
                    of, channel = pairs // channels, pairs % channels
                    masks = _resized(_unit(activation[of, channel]), images.shape[2:]).to(images.dtype)[:, None]
                    yield images[of] * (masks if side == "+" else 1 - masks), of
            yield images, at.everywhere

        scores = at.ask(blocks(), "confidence").to(activation.dtype)
        whole, masked = scores[-len(images) :, None], scores[: -len(images)].view(len(self.sides), len(images), channels)
        parts = [one if side == "+" else whole - one for side, one in zip(self.sides, masked, strict=True)]
        return torch.stack(parts).sum(dim=0).clamp(min=0)


FUSIONS = (
    Fusion(CAM("layercam", layer_cam)),
    PolyCAM(),
)


def fuse(maps: Sequence[Tensor], gamma: float = 2.0) -> Tensor:
    """The element-wise maximum of scaled maps `[N, h, w]` of several sizes, as large as the largest.

    Example:
        >>> fuse([torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[4.0]]])])
        tensor([[[0.9640, 0.9640]]])
    """
    largest = max((one.shape[1:] for one in maps), key=lambda size: size.numel())
    return torch.stack([_resized(_scaled(one, gamma), largest) for one in maps]).amax(dim=0)


def _several(context: Context, name: str) -> tuple[Context, ...]:
    """The contexts of the layers.

    Raises:
        ExplainerError: There are not several.
    """
    if len(context.layers) < 2:
        raise ExplainerError(
            f"method '{name}' joins several layers, and the run has {context.layer or 'none'} alone; name more of them in "
            "layers=, such as a layer of each size, or take a method of one layer"
        )
    return context.layers


def _cells(at: Context) -> int:
    return 0 if at.activation is None else at.activation[0, 0].numel()


def _scaled(maps: Tensor, gamma: float) -> Tensor:
    """`tanh(gamma m / max m)`; zeros for a map of zeros."""
    highest = maps.flatten(1).amax(dim=1).view(-1, *[1] * (maps.ndim - 1))
    return torch.tanh(gamma * maps / torch.where(highest == 0, 1, highest))


def _unit(maps: Tensor) -> Tensor:
    """Maps scaled to [0, 1]; zeros for a constant map."""
    cells = tuple(range(1, maps.ndim))
    low, high = maps.amin(dim=cells, keepdim=True), maps.amax(dim=cells, keepdim=True)
    return (maps - low) / torch.where(high == low, 1, high - low)


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(maps[:, None], tuple(size), mode=LINEAR[len(size)], align_corners=False)[:, 0]


def _without_local_mean(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps divided by their means over the cells of a coarser map of this size; 0 where all around is 0."""
    pool: Any = functional.adaptive_avg_pool2d if len(size) == 2 else functional.adaptive_avg_pool3d
    means = _resized(pool(maps[:, None], tuple(size))[:, 0], maps.shape[1:])
    return maps / torch.where(means == 0, 1, means)
