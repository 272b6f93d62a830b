"""What an explainer is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = ["Context", "Explainer", "FunctionExplainer", "MapFunction", "needs_model"]

MapFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Context:
    """Everything that an explainer may use to make the maps of one batch at one layer.

    Attributes:
        model: in eval mode, its parameters without gradients.
        images: `[N, C, H, W]`, normalised as the model expects.
        targets: the class to explain, `[N]`.
        logits: on the original images, `[N, K]`, detached.
        ids: of the images, stable over runs.
        seed: of the run.
        layer: address, for explainers that need one.
        activation: of the layer, `[N, C, h, w]`, if the explainer needs a layer.
        gradient: of the target's score there, of the same shape, if the explainer needs gradients.
    """

    model: nn.Module
    images: Tensor
    targets: Tensor
    logits: Tensor
    ids: Sequence[str]
    seed: int = 0
    layer: str | None = None
    activation: Tensor | None = None
    gradient: Tensor | None = None


@runtime_checkable
class Explainer(Protocol):
    """Makes one saliency map an image.

    Attributes:
        name: in tables and rows.
        needs_layer: it is asked once for each layer, and gets the layer's activation; else it is asked once.
        needs_gradient: it gets the gradient at the layer too.

    A further attribute is optional: `needs_model = False` says that the explainer works from what the context holds beside the
    model (maps of a layer, logits, images), so that nothing has to be done to the model for somebody to look inside it.

    Called with a `Context`, it returns raw maps `[N, h, w]` of any size and range: upsampling and normalisation follow by
    the protocol. A map with NaN marks an image that could not be explained.

    Example:
        >>> class MeanActivation:
        ...     name = "mean-activation"
        ...     needs_layer = True
        ...     needs_gradient = False
        ...
        ...     def __call__(self, context):
        ...         return context.activation.mean(dim=1)
        >>> isinstance(MeanActivation(), Explainer)
        True
    """

    @property
    def name(self) -> str:
        """In tables and rows."""

    @property
    def needs_layer(self) -> bool:
        """Whether it is asked at every layer, or once."""

    @property
    def needs_gradient(self) -> bool:
        """Whether it gets gradients at the layer."""

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""


def needs_model(explainer: Explainer) -> bool:
    """Whether an explainer runs the model itself, or looks inside it; so it is unless it says that it does not."""
    return bool(getattr(explainer, "needs_model", True))


@dataclass(frozen=True)
class FunctionExplainer:
    """A function `(model, images, targets) -> maps [N, h, w]` as an explainer."""

    function: MapFunction
    name: str
    needs_layer: bool = False
    needs_gradient: bool = False

    def __call__(self, context: Context) -> Tensor:
        """What the function gives."""
        return self.function(context.model, context.images, context.targets)
