"""What an explainer is, and what it is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, runtime_checkable
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from xaieval.config.protocol import Protocol, plain
from xaieval.errors import ExplainerError
from xaieval.inference.batch_limit import BatchLimit
from xaieval.inference.forward_passes import in_groups
from xaieval.inference.reproducibility import seed_from
from xaieval.inference.tasks import Classification, Followed, Task
from xaieval.probe.layouts import Layout

__all__ = ["Context", "Explainer", "FunctionExplainer", "MapFunction", "describe_method", "needs_model", "size_of_images"]

MapFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
Blocks = Iterable[tuple[Tensor, Tensor]]
Wanted = Literal["score", "confidence"]


@dataclass(frozen=True)
class Context:
    """Everything that an explainer may use to make the maps of one batch at one layer.

    Attributes:
        model: in eval mode, its parameters without gradients.
        images: `[N, C, H, W]`, normalised as the model expects.
        targets: the class to explain, `[N]`.
        logits: on the original images, `[N, K]`, detached; None of a model that is no classifier.
        ids: of the images, stable over runs.
        seed: of the run.
        layer: address, for explainers that need one.
        activation: of the layer, `[N, C, h, w]`, if the explainer needs a layer.
        gradient: of the target's score there, of the same shape, if the explainer needs gradients.
        layout: where the model itself has height and width in the layer's output; the activation is laid out already.
        task: how the model's output is read.
        protocol: of the run.
        followed: what is explained, of which `targets` are the classes.
        call: runs the model on images; `model(images)` unless told.
        output: likewise without gradients, as fast as the run knows how.
        size: images in such a pass; the batch's number unless told.
        batch_limit: what has become of that size since, as memory has room for; the size unless told.
    """

    model: nn.Module
    images: Tensor
    targets: Tensor
    logits: Tensor | None
    ids: Sequence[str]
    seed: int = 0
    layer: str | None = None
    activation: Tensor | None = None
    gradient: Tensor | None = None
    layout: Layout | None = None
    task: Task = field(default_factory=Classification)
    protocol: Protocol = field(default_factory=Protocol)
    followed: Followed | None = None
    call: Callable[[Tensor], Any] | None = None
    output: Callable[[Tensor], Any] | None = None
    size: int | None = None
    batch_limit: BatchLimit | None = None

    @property
    def everywhere(self) -> Tensor:
        """Numbers of the batch's images in order, `[N]`."""
        return torch.arange(len(self.images), device=self.images.device)

    def draw(self, shape: Sequence[int], name: str = "") -> Tensor:
        """Random numbers `[N, *shape]`, uniform in [0, 1).

        The seed, each image's id and the name decide them, so that they are the same in whatever batch an image is.
        """
        numbers = []
        for image_id in self.ids:
            parts = (self.seed, image_id, name) if name else (self.seed, image_id)
            generator = torch.Generator().manual_seed(seed_from(*parts))
            numbers.append(torch.rand(tuple(shape), generator=generator))
        return torch.stack(numbers).to(self.images.device)

    def score(self, images: Tensor, of: Tensor | None = None) -> Tensor:
        """Scores `[G]` of the targets on any images `[G, C, H, W]`, differentiable: what the protocol takes gradients of.

        Args:
            images: whatever was made of the batch's images.
            of: for each of them the number of the batch's image whose target is meant, `[G]`; in order unless told.
        """
        return self.score_of(self.read(images), self.everywhere if of is None else of)

    def read(self, images: Tensor) -> Any:
        """What matters of the model's output on any images, by the task; differentiable, one item an image."""
        return self.task.read(self.model(images) if self.call is None else self.call(images))

    def score_of(self, read: Any, of: Tensor) -> Tensor:
        """Likewise `score`, from what was read of the output on images `[G]`."""
        wanted: Wanted = "score" if self.protocol.gradient == "logit" else "confidence"
        return self._scored(read, of, wanted)

    def ask(self, blocks: Blocks, wanted: Wanted = "score") -> Tensor:
        """Scores of the targets on any number of images, without gradients, in passes of the run's size, or less if need be.

        Args:
            blocks: images `[G, C, H, W]`, and for each the number of the batch's image whose target is meant, `[G]`. What a
                generator gives is held one block at a time.
            wanted: "score" (the logit) or "confidence" (as the protocol has it, in float64).

        Returns:
            A number for each image of all blocks, in order.

        Example:
            Four images of noise, asked for the class that was predicted on the first image of the batch:

            >>> model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.rand(2, 3, 2, 2)
            >>> context = Context(model, images, torch.tensor([4, 0]), None, ["a", "b"])
            >>> context.ask([(torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.long))]).shape
            torch.Size([4])
        """

        def forward(images: Tensor, of: Tensor) -> Tensor:
            if self.output is not None:
                read = self.task.read(self.output(images))
            else:
                with torch.no_grad():
                    read = self.read(images)
            return self._scored(read[: len(images)], of, wanted)

        batch_limit = self.batch_limit or BatchLimit(self.size or len(self.images))

        def fitting(images: Tensor, of: Tensor) -> Tensor:
            return torch.cat(batch_limit.parts(len(images), lambda part: forward(images[part], of[part])))

        return in_groups(blocks, fitting, batch_limit.size)

    def _scored(self, read: Any, of: Tensor, wanted: Wanted) -> Tensor:
        followed = (self.followed or Followed.all(self.targets)).of(of)
        if wanted == "score":
            return self.task.score(read, followed)
        return self.task.confidence(read, followed, self.protocol.confidence)


@runtime_checkable
class Explainer(Interface):
    """Makes one saliency map an image.

    Attributes:
        name: in tables and rows.
        needs_layer: it is asked once for each layer, and gets the layer's activation; else it is asked once.
        needs_gradient: it gets the gradient at the layer too.

    Further attributes are optional. `passes` and `paper` are text for the table of `xaieval-bench methods`: forward passes an
    image, and where the method is from. `needs_model = False` says that the explainer works from what the context holds beside
    the model (maps of a layer, logits, images, `ask`), whatever the tensors' order in memory, so that nothing has to be done to
    the model, and nothing copied, for somebody to look inside.

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


def size_of_images(context: Context, name: str) -> tuple[int, int]:
    """Height and width, for a method that is made for images.

    Raises:
        ExplainerError: the context has volumes.
    """
    if context.images.ndim != 4:
        raise ExplainerError(
            f"method '{name}' explains images [N, C, H, W], got {list(context.images.shape)}; volumes are explained by gradcam "
            "and its family, score-cam, ablation-cam, methods of captum, and controls"
        )
    return context.images.shape[2], context.images.shape[3]


OF_THE_PROTOCOL = {"name", "label", "function", "needs_layer", "needs_gradient", "needs_model", "passes", "paper"}


def describe_method(explainer: Explainer) -> dict[str, Any]:
    """An explainer's settings as plain values for a manifest; empty if it has none.

    They are the fields of a dataclass, beyond those that every explainer has; an explainer that knows better has `to_dict`.

    Example:
        >>> @dataclass(frozen=True)
        ... class Blurred:
        ...     name: str = "blurred"
        ...     needs_layer: bool = False
        ...     needs_gradient: bool = False
        ...     radius: float = 3.0
        >>> describe_method(Blurred())
        {'radius': 3.0}
    """
    own: Any = getattr(explainer, "to_dict", None)
    if callable(own):
        return {str(name): _plain(value) for name, value in own().items()}
    if not is_dataclass(explainer):
        return {}
    return {f.name: _plain(getattr(explainer, f.name)) for f in fields(explainer) if f.name not in OF_THE_PROTOCOL}


def _plain(value: Any) -> Any:
    """A value as JSON has it; tensors by what tells them apart."""
    if isinstance(value, Tensor):
        content = hashlib.sha256(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} {content.hexdigest()[:12]}"
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, type):
        return f"{value.__module__}:{value.__qualname__}"
    return plain(value) if callable(value) else f"{type(value).__module__}:{type(value).__qualname__}"


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
