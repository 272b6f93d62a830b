"""The interface of an explainer, and the context that it gets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, runtime_checkable
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from xaieval.config.protocol import Protocol, plain
from xaieval.errors import ExplainerError
from xaieval.inference.batch_limit import BatchLimit
from xaieval.inference.forward_passes import in_groups
from xaieval.inference.reproducibility import seed_from
from xaieval.inference.tasks import Classification, Followed, Task
from xaieval.probe.capturing import derivative_errors_are_model_errors
from xaieval.probe.layouts import Layout

__all__ = [
    "Context",
    "Explainer",
    "FunctionExplainer",
    "MapFunction",
    "check_compares",
    "check_detector",
    "describe_method",
    "joins_layers",
    "needs_logits",
    "needs_model",
    "size_of_images",
]

MapFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
Blocks = Iterable[tuple[Tensor, Tensor]]
Wanted = Literal["score", "confidence"]
Asked = Wanted | Literal["hit", "similarity"] | Callable[[Any, Followed], Tensor]


@dataclass(frozen=True)
class Context:
    """Everything that an explainer may use to make the maps of one batch at one layer.

    Attributes:
        model: The model, in eval mode, its parameters without gradients.
        images: Images `[N, C, H, W]`, normalised as the model expects.
        targets: The classes to explain, `[N]`.
        logits: Logits of the original images, `[N, K]`, detached; None if the model is not a classifier.
        ids: Ids of the images, the same in every run.
        seed: The seed of the run.
        layer: The layer's address, if the explainer needs a layer.
        activation: The layer's output as maps, `[N, C, h, w]`, if the explainer needs a layer.
        gradient: The gradient of the target's score at the layer, of the same shape, if the explainer needs gradients.
        layout: Where height and width are in the model's own output of the layer; `activation` is reshaped already.
        task: How the model's output is read.
        protocol: The protocol of the run.
        followed: What is explained; `targets` are its classes.
        call: Runs the model on images. Default: `model(images)`.
        output: Runs the model without gradients, as fast as the run can. Default: `call`.
        size: Images per pass. Default: the number of images of the batch.
        batch_limit: The images per pass that fit in memory, which may fall during a run. Default: `size`.
        progress: Called by long methods with the number of images that have passed and the number in all, for a progress bar.
        layers: The contexts at the single layers, for an explainer that joins layers; `layer` then names all of them.
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
    progress: Callable[[int, int], None] | None = None
    layers: tuple[Context, ...] = ()

    @property
    def everywhere(self) -> Tensor:
        """The numbers of all images of the batch, `[N]`: 0, 1, ..."""
        return torch.arange(len(self.images), device=self.images.device)

    def draw(self, shape: Sequence[int], name: str = "") -> Tensor:
        """Random numbers `[N, *shape]`, uniform in [0, 1).

        They depend on the seed, each image's id and the name only, so they are the same in every batch.
        """
        numbers = []
        for image_id in self.ids:
            parts = (self.seed, image_id, name) if name else (self.seed, image_id)
            generator = torch.Generator().manual_seed(seed_from(*parts))
            numbers.append(torch.rand(tuple(shape), generator=generator))
        return torch.stack(numbers).to(self.images.device)

    def score(self, images: Tensor, of: Tensor | None = None) -> Tensor:
        """Differentiable scores `[G]` of the targets on any images `[G, C, H, W]`: what the protocol takes gradients of.

        Args:
            images: Images made from those of the batch.
            of: For each of them, the number of the batch's image whose target is scored, `[G]`. Default: in order.
        """
        return self.score_of(self.read(images), self.everywhere if of is None else of)

    def read(self, images: Tensor) -> Any:
        """The model's output on any images as the task reads it; differentiable, one item per image."""
        return self.task.read(self.model(images) if self.call is None else self.call(images))

    def score_of(self, read: Any, of: Tensor, wanted: Wanted | None = None) -> Tensor:
        """Scores `[G]` from the output that `read` gave for `[G]` images: as of `score`, or those that are wanted."""
        return self._scored(read, of, wanted or ("score" if self.protocol.gradient == "logit" else "confidence"))

    def image_gradient(self, images: Tensor, of: Tensor | None = None) -> Tensor:
        """Gradients `[G, C, H, W]` of the scores of `score` at these images, in passes of the run's size or smaller.

        Args:
            images: Images made from those of the batch, `[G, C, H, W]`.
            of: For each of them, the number of the batch's image whose target is scored, `[G]`. Default: in order.

        Raises:
            ExplainerError: The score does not depend on the image in a way that torch can differentiate.
            ModelError: An operation of the model has no derivative.
        """
        numbers = self.everywhere if of is None else of

        def gradient(part: slice) -> Tensor:
            with torch.enable_grad(), derivative_errors_are_model_errors():
                leaf = images[part].detach().clone().requires_grad_()
                score = self.score(leaf, numbers[part])
                found = torch.autograd.grad(score.sum(), leaf, allow_unused=True)[0] if score.requires_grad else None
            if found is None:
                raise ExplainerError(
                    "the score has no gradient at the images: the model computes it without one, as with quantised layers or "
                    "under torch.no_grad(); methods such as 'rise' and 'occlusion' need none"
                )
            return found

        return torch.cat(self.limit.parts(len(images), gradient))

    def ask(self, blocks: Blocks, wanted: Asked = "score", total: int | None = None) -> Tensor:
        """Scores of the targets on any number of images, without gradients, in passes of the run's size or smaller.

        Args:
            blocks: Images `[G, C, H, W]`, and for each the number of the batch's image whose target is scored, `[G]`. Blocks
                of a generator are held in memory one at a time.
            wanted: "score" (the logit), "confidence" (by the protocol, in float64), "hit" (1 where the target is the predicted
                class, else 0), or, of tasks that follow objects, "similarity" (of the best match with the object); or a
                function of what the task reads and of what is followed.
            total: The number of images of all blocks, which a progress bar shows. Default: it shows none.

        Returns:
            A number for each image of all blocks, in order.

        Example:
            Scores of four images of noise for the class that was predicted on the first image of the batch:

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

        limit, done = self.limit, 0

        def forward_within_limit(images: Tensor, of: Tensor) -> Tensor:
            nonlocal done
            scores = torch.cat(limit.parts(len(images), lambda part: forward(images[part], of[part])))
            done += len(images)
            if total is not None:
                self.report(done, total)
            return scores

        return in_groups(blocks, forward_within_limit, limit.size)

    @property
    def limit(self) -> BatchLimit:
        """The images per pass: `batch_limit`, or as many as `size` says."""
        return self.batch_limit or BatchLimit(self.size or len(self.images))

    def report(self, done: int, total: int) -> None:
        """Tell the progress bar, if there is one, how far a method is."""
        if self.progress is not None:
            self.progress(done, total)

    def _scored(self, read: Any, of: Tensor, wanted: Asked) -> Tensor:
        followed = (self.followed or Followed.all(self.targets)).of(of)
        if callable(wanted):
            return wanted(read, followed)
        if wanted == "hit":
            return (self.task.predicted(read) == followed.classes).double()
        if wanted == "similarity":
            follows_objects: Any = self.task  # which not every task does
            return follows_objects.similarity(read, followed)
        if wanted == "score":
            return self.task.score(read, followed)
        return self.task.confidence(read, followed, self.protocol.confidence)


@runtime_checkable
class Explainer(Interface):
    """Makes one saliency map per image.

    Attributes:
        name: Name in tables and rows.
        needs_layer: Whether it explains a layer. It is then called once per layer, with the layer's activation; otherwise once.
        needs_gradient: Whether it also needs the gradient at the layer.

    Other attributes are optional. `passes` and `paper` are text for the table of `xaieval-bench methods`: forward passes per
    image, and a reference. `needs_model = False` means that the explainer uses only the context without the model (maps of a
    layer, logits, images, `ask`), with tensors in any memory format. The run then neither undoes its changes to the model nor
    copies tensors for this explainer. `needs_logits = False` means that it does not read `context.logits`; a metric that needs
    many maps then saves a pass. `joins_layers = True` means that it makes one map of all layers of the run: it is called once,
    with a context of each layer in `layers`, and its rows have the layer `layer3+layer4`.

    Called with a `Context`, it returns raw maps `[N, h, w]` of any size and range; the protocol upsamples and normalises them.
    A map with NaN marks an image that could not be explained.

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
        """Name in tables and rows."""

    @property
    def needs_layer(self) -> bool:
        """Whether it is called once per layer."""

    @property
    def needs_gradient(self) -> bool:
        """Whether it needs the gradient at the layer."""

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""


def needs_model(explainer: Explainer) -> bool:
    """Whether an explainer runs the model or looks inside it. Default of an explainer that does not say: True."""
    return bool(getattr(explainer, "needs_model", True))


def needs_logits(explainer: Explainer) -> bool:
    """Whether an explainer reads the logits of the context. Default of an explainer that does not say: True."""
    return bool(getattr(explainer, "needs_logits", True))


def joins_layers(explainer: Explainer) -> bool:
    """Whether an explainer makes one map of all layers together. Default of an explainer that does not say: False."""
    return explainer.needs_layer and bool(getattr(explainer, "joins_layers", False))


def size_of_images(context: Context, name: str) -> tuple[int, int]:
    """Height and width, for a method that explains only images.

    Raises:
        ExplainerError: The context has volumes.
    """
    if context.images.ndim != 4:
        raise ExplainerError(
            f"method '{name}' explains images [N, C, H, W], got {list(context.images.shape)}; volumes are explained by gradcam "
            "and its family, score-cam, ablation-cam, methods of captum, and controls"
        )
    return context.images.shape[2], context.images.shape[3]


def check_detector(context: Context, name: str, other: str) -> None:
    """Refuse a task without detections, for a method that explains only detections.

    Raises:
        ExplainerError: With a method that explains other models.
    """
    if not hasattr(context.task, "similarity"):
        raise ExplainerError(
            f"method '{name}' explains a detection, and the task is {type(context.task).__name__.lower()}; take '{other}', or "
            "task='detection' if the model is a detector"
        )


def check_compares(context: Context, name: str, instead: str) -> None:
    """Refuse a protocol that compares classes, for a method that chooses its own class or has none.

    Raises:
        ExplainerError: With what to do instead.
    """
    if context.protocol.against is not None:
        raise ExplainerError(
            f"method '{name}' explains a class by itself, and the protocol compares it with others (against=); {instead}"
        )


NEEDS = {"needs_layer", "needs_gradient", "needs_model", "needs_logits", "takes_gradients", "joins_layers"}
COMMON_FIELDS = {"name", "label", "function", "passes", "paper", *NEEDS}


def describe_method(explainer: Explainer) -> dict[str, Any]:
    """The settings of an explainer as plain values for a manifest; empty if it has none.

    Settings are the fields of a dataclass other than those that every explainer has, or what its method `to_dict` returns.

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
    to_dict: Any = getattr(explainer, "to_dict", None)
    if callable(to_dict):
        return {str(name): _plain(value) for name, value in to_dict().items()}
    if not is_dataclass(explainer):
        return {}
    return {f.name: _plain(getattr(explainer, f.name)) for f in fields(explainer) if f.name not in COMMON_FIELDS}


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; a tensor as its type, its shape and a hash of its content."""
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
    needs_logits: ClassVar[bool] = False

    def __call__(self, context: Context) -> Tensor:
        """The maps that the function returns.

        Raises:
            ExplainerError: The protocol compares classes, which the function is not told.
        """
        check_compares(
            context, self.name, "a function is not told the others; take an Explainer, whose context.score compares them"
        )
        # Copies, because the function may write into them.
        return self.function(context.model, context.images.clone(), context.targets.clone())
