"""What the adapters of captum, pytorch-grad-cam and torch-cam share.

An adapter has a table of the library's classes (`Kind`), an explainer for methods by name (`LibraryMethod`), one for objects
that the user has made, and a `Library`, which `xaieval.explainers.catalogue` lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from xaieval.errors import ExplainerError, XaievalError, choose_from
from xaieval.explainers.adapters.lending import lent, needs_in_place
from xaieval.explainers.base import Context, Explainer, check_compares
from xaieval.inference.batch_limit import is_out_of_memory
from xaieval.inference.reproducibility import ONE_AT_A_TIME, seed_from
from xaieval.inference.tasks import Classification
from xaieval.probe.addresses import parse
from xaieval.probe.layouts import Layout

__all__ = [
    "CalledModel",
    "Kind",
    "Library",
    "LibraryMethod",
    "batch_maps",
    "calling",
    "check_choice",
    "class_targets",
    "errors_as",
    "image_targets",
    "leaf",
    "library_errors",
    "module_at",
    "object_name",
    "object_targets",
    "plain_attributes",
    "reshaping",
    "seeded",
]

Attribute = Callable[[Tensor, Tensor], Tensor]

# What a library raises when a model does not suit it.
LIBRARY_ERRORS = (AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How an adapter handles one class of a library.

    Attributes:
        paper: Reference of the method.
        passes: Forward passes per image.
        needs_layer: Whether the method explains a layer.
        takes_gradients: Whether the library computes gradients for it.
        one_by_one: Whether images are explained one at a time, each with random numbers of its own.
    """

    paper: str
    passes: str = "1"
    needs_layer: bool = True
    takes_gradients: bool = True
    one_by_one: bool = False


@dataclass(frozen=True)
class Library:
    """A library, as the names of methods know it.

    Attributes:
        name: The word before the colon in the names of its methods.
        package: The package to import.
        install: The command that installs it.
        methods: Its methods by full name.
        classes: Names of the classes that its explainer objects derive from.
        adapt: Makes an explainer of such an object.
    """

    name: str
    package: str
    install: str
    methods: Mapping[str, Explainer]
    classes: frozenset[str]
    adapt: Callable[[Any], Explainer]


class LibraryMethod:
    """What the methods of all libraries have in common: a name, and what the table of the library's classes says."""

    library: ClassVar[str]
    kinds: ClassVar[Mapping[str, Kind]]
    given: ClassVar[frozenset[str]]  # keywords of the library that the adapter gives, so that they are no settings
    needs_gradient: ClassVar[bool] = False  # the library computes gradients itself
    needs_logits: ClassVar[bool] = False
    method: str
    label: str

    def __post_init__(self) -> None:
        check_choice(self.library, "method", self.method, self.kinds)

    @property
    def name(self) -> str:
        """Name in tables and rows."""
        return self.label or f"{self.library}:{self.method}"

    @property
    def needs_layer(self) -> bool:
        """Whether it is called once per layer."""
        return self.kinds[self.method].needs_layer

    @property
    def takes_gradients(self) -> bool:
        """Whether the library computes gradients."""
        return self.kinds[self.method].takes_gradients

    @property
    def needs_model(self) -> bool:
        """Whether it looks inside the model; methods that leave out parts of the image ask only for scores."""
        return self.needs_layer or self.takes_gradients

    @property
    def passes(self) -> str:
        """Forward passes per image."""
        return self.kinds[self.method].passes

    @property
    def paper(self) -> str:
        """Reference of the method."""
        return self.kinds[self.method].paper

    def calls(self) -> list[Callable[..., Any]]:
        """The functions of the library that take the settings."""
        raise NotImplementedError


class CalledModel(nn.Module):
    """The model as a library calls it.

    Args:
        context: The context of the batch.
        function: What a call does: `context.read`, or `context.score` for one number per image, so that every task works.
    """

    def __init__(self, context: Context, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = context.model
        self.function = function
        self.training = False

    def train(self, mode: bool = True) -> CalledModel:
        """Ignored, because `train` and `eval` of the user's classes are never called."""
        return self

    def forward(self, *inputs: Tensor) -> Any:
        """The result of the function."""
        return self.function(*inputs)


class _ImageTarget:
    """The score of one image's target, as a function of the model's output for it.

    Args:
        context: The context of the batch.
        of: The number of the image, `[1]`.
    """

    def __init__(self, context: Context, of: Tensor) -> None:
        self.context = context
        self.of = of

    def __call__(self, output: Any) -> Tensor:
        """One number; or `[G]` of logits `[G, K]`, which some classes pass."""
        if isinstance(output, Tensor) and output.ndim == 2 and isinstance(self.context.task, Classification):
            return self.context.score_of(output, self.of.expand(len(output)))
        read = output[None] if isinstance(output, Tensor) else [output]
        return self.context.score_of(read, self.of)[0]


def image_targets(context: Context, of: Tensor) -> list[_ImageTarget]:
    """A target for each of the images with the numbers `of`, `[G]`."""
    return [_ImageTarget(context, one) for one in of.split(1)]


def class_targets(context: Context, name: str) -> Tensor:
    """The classes `[N]` to explain.

    Raises:
        ExplainerError: The model is no classifier, or the protocol compares classes.
    """
    if not isinstance(context.task, Classification):
        task = type(context.task).__name__.lower()
        raise ExplainerError(f"method '{name}' explains only classifiers, and the task is {task}; 'gradcam' takes any model")
    check_compares(context, name, "take a method that explains scores, such as 'gradcam'")
    return context.targets


def object_targets(context: Context, name: str, model: object) -> Tensor:
    """The classes `[N]` to explain, for an object that the user has made with a model.

    Raises:
        ExplainerError: The object was made for another model, or the model is no classifier.
    """
    targets = class_targets(context, name)
    if isinstance(model, nn.Module) and all(module is not context.model for module in model.modules()):
        raise ExplainerError(f"method '{name}' was made for another model than the one that is scored; make it for that one")
    return targets


def object_name(library: str, made: object, model: object, layers: Iterable[nn.Module] = ()) -> str:
    """A name for an object that the user has made: library, class, and the layers that it explains at, if any.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> object_name("library", object(), model, [model[1]])
        'library:object(1)'
    """
    paths = {module: path for path, module in model.named_modules()} if isinstance(model, nn.Module) else {}
    names = "+".join(paths.get(layer, type(layer).__name__) for layer in layers)
    return f"{library}:{type(made).__name__}" + (f"({names})" if names else "")


@contextmanager
def calling(library: str, name: str, context: Context) -> Iterator[None]:
    """Lend the model to a library, and raise the library's errors as ours."""
    with lent(context.model) as in_place, library_errors(library, name):
        if needs_in_place(context.model, in_place, lambda: context.read(context.images[:1])):
            raise ExplainerError(
                f"method '{name}' runs in-place modules out of place, but this model ignores what they return, so its output "
                "would change; write x = self.relu(x) instead of self.relu(x), or use a method of xaieval"
            )
        yield


@contextmanager
def library_errors(library: str, name: str) -> Iterator[None]:
    """Raise what a library raises as an `ExplainerError`; no warning for 0 / 0, which the NaN in the map already shows.

    Raises:
        ExplainerError: With the library's reason, and what to try.
    """

    def said(reason: str) -> ExplainerError:
        return ExplainerError(
            f"method '{name}' does not work here: {reason}; {library} names the reason; take another layer or method, or a "
            "model that this one can read (docs/methods.md)"
        )

    with np.errstate(divide="ignore", invalid="ignore"), errors_as(said):
        yield


@contextmanager
def errors_as(said: Callable[[str], XaievalError]) -> Iterator[None]:
    """Raise what a library raises as an error of ours; memory that is full is none of them.

    Args:
        said: Makes the error of the library's reason.
    """
    try:
        yield
    except XaievalError:
        raise
    except LIBRARY_ERRORS as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()).removesuffix(".") or type(error).__name__
        raise said(f"{type(error).__name__}: {reason}") from error


def batch_maps(context: Context, attribute: Attribute, one_by_one: bool) -> Tensor:
    """Maps of the batch's images: of all at once, or one by one with random numbers that do not depend on the batch.

    Args:
        context: The context of the batch.
        attribute: Maps `[G, h, w]` from images `[G, C, H, W]` and their numbers `[G]` in the batch.
        one_by_one: Whether each image goes alone, after its own seed.
    """
    if not one_by_one:
        return attribute(context.images, context.everywhere)
    maps = []
    for number, image_id in enumerate(context.ids):
        here = slice(number, number + 1)
        with seeded(context.seed, image_id, context.images.device):
            maps.append(attribute(context.images[here], context.everywhere[here]))
    return torch.cat(maps)


@contextmanager
def seeded(seed: int, image_id: str, device: torch.device) -> Iterator[None]:
    """Seed the global random numbers of torch and NumPy for one image of a run, and restore them afterwards."""
    number = seed_from(seed, image_id, bits=32)  # NumPy takes no more
    on_gpu = device.type == "cuda"
    with ONE_AT_A_TIME, torch.random.fork_rng(devices=[device] if on_gpu else []):
        state = np.random.get_state()  # noqa: NPY002  # libraries draw from it
        torch.default_generator.manual_seed(number)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002  # libraries draw from it
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002  # libraries draw from it


def leaf(images: Tensor) -> Tensor:
    """A copy of the images that gradients can be taken of."""
    return images.detach().clone().requires_grad_()


def module_at(context: Context, name: str) -> nn.Module:
    """The module whose whole output is the layer.

    Raises:
        ExplainerError: The layer is a part of an output, or one of several calls.
    """
    address = parse(str(context.layer))
    if address.keys or address.call is not None:
        raise ExplainerError(
            f"method '{name}' takes the output of a module that gives one tensor and runs once, and '{context.layer}' is none; "
            "take another layer, or a method of xaieval, which read any layer"
        )
    return context.model.get_submodule(address.path)


def reshaping(layout: Layout | None) -> Callable[[Tensor], Tensor] | None:
    """What turns a layer's output into maps `[N, C, h, w]`; None where it has that shape."""
    return None if layout is None or layout.kind == "channels_first" else layout.to_maps


def check_choice(library: str, what: str, given: str | None, known: Iterable[str]) -> None:
    """Refuse an unknown name; None stands for the default.

    Raises:
        ExplainerError: With near matches.
    """
    if given is not None and given not in known:
        raise ExplainerError(f"{library}: no {what} {given!r}; {choose_from(given, known)}")


def plain_attributes(made: object) -> dict[str, Any]:
    """The class of an object, and its public attributes that are numbers or words, for the manifest."""
    plain = {name: value for name, value in vars(made).items() if isinstance(value, str | int | float)}
    return {"class": type(made), **{name: value for name, value in plain.items() if not name.startswith("_")}}
