"""What the adapters of other libraries share: the model is guarded, random numbers go by the image, and errors are ours."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xaieval.errors import ExplainerError, XaievalError
from xaieval.explainers.base import Context
from xaieval.inference.batch_limit import is_out_of_memory
from xaieval.inference.reproducibility import ONE_AT_A_TIME, seed_from
from xaieval.inference.tasks import Classification
from xaieval.probe.addresses import parse
from xaieval.probe.layouts import Layout

__all__ = [
    "ImageTarget",
    "ReadModel",
    "check_installed",
    "check_model",
    "class_targets",
    "each_call_apart",
    "guarded",
    "image_targets",
    "leaf",
    "module_at",
    "name_of",
    "one_by_one",
    "outputs_kept",
    "refused",
    "reshaping",
    "seeded",
]

Attribute = Callable[[Tensor, Tensor], Tensor]

# What captum leaves on modules when it raises, or takes away.
LEFT = ("activation", "activations", "input", "input_ref", "output", "rule")

# What a library raises when a model does not suit it.
COMPLAINTS = (AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)


class ReadModel(nn.Module):
    """The model as a library takes it: what the task reads of the output, image by image."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.model = context.model
        self.context = context
        self.training = False

    def forward(self, images: Tensor) -> Any:
        """A tensor or a list."""
        return self.context.read(images)


class ImageTarget:
    """The score of one image's target, as a function of what the model gave for it.

    Args:
        context: of the batch.
        of: number of the image, `[1]`.
    """

    def __init__(self, context: Context, of: Tensor) -> None:
        self.context = context
        self.of = of

    def __call__(self, output: Any) -> Tensor:
        """One number; or `[G]` of logits `[G, K]`, which some ask for."""
        if isinstance(output, Tensor) and output.ndim == 2 and self.context.logits is not None:
            return self.context.score_of(output, self.of.expand(len(output)))
        read = output[None] if isinstance(output, Tensor) else [output]
        return self.context.score_of(read, self.of)[0]


def image_targets(context: Context, of: Tensor) -> list[ImageTarget]:
    """One for each of the images `of`, `[G]`."""
    return [ImageTarget(context, one) for one in of.split(1)]


def check_installed(package: str, name: str, command: str) -> None:
    """Refuse a method whose library is missing.

    Raises:
        ExplainerError: with the command that installs it.
    """
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise ExplainerError(f"method '{name}' needs the package {package}, which is missing: {command}")


@contextmanager
def guarded(model: nn.Module) -> Iterator[None]:
    """Lend a model to a library: its modules work out of place meanwhile, and hooks, sub-modules and gradients come back.

    In-place modules are what makes backward hooks fail, and overwrites what a library has kept of the layer before.
    """
    modules = list(model.modules())
    held = [_Held(module) for module in modules]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for module in modules:
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]  # mypy takes attributes of modules for tensors or modules
        yield
    finally:
        for one in held:
            one.give_back()
        for parameter, gradient in gradients:
            parameter.grad = gradient


class _Held:
    """What a library may change of one module, by name."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        own = vars(module)
        self.values = {name: own[name] for name in ("inplace", *LEFT) if name in own}
        # torch's own registries of hooks, sub-modules, parameters and buffers.
        self.registries = {name: dict(own[name]) for name in own if name.startswith("_") and isinstance(own[name], dict)}

    def give_back(self) -> None:
        own = vars(self.module)
        for name in LEFT:
            own.pop(name, None)
        own.update(self.values)
        for name, content in self.registries.items():
            own[name].clear()
            own[name].update(content)


class _Apart(nn.Module):
    """A module that runs several times in a pass, as one copy for each time."""

    def __init__(self, module: nn.Module, count: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copy.deepcopy(module) for _ in range(count))
        self.next = 0

    def forward(self, *inputs: Tensor) -> Any:
        number, self.next = self.next, (self.next + 1) % len(self.copies)
        return self.copies[number](*inputs)


def each_call_apart(model: nn.Module, run: Callable[[], Any]) -> None:
    """Put copies in place of each module without parameters that runs several times in a pass, such as the ReLU of a block.

    A library that keeps notes on modules finds one for each run then. To be called in `guarded`, which puts them back.

    Args:
        model: guarded.
        run: makes one pass.
    """
    plain = [module for module in model.modules() if not [*module.children(), *module.parameters(), *module.buffers()]]
    calls: Counter[nn.Module] = Counter()
    handles = [module.register_forward_pre_hook(lambda module, _: calls.update([module])) for module in plain]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    apart = {module: _Apart(module, count) for module, count in calls.items() if count > 1}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in apart:
                parent._modules[name] = apart[child]


@contextmanager
def outputs_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Hand the users of these modules copies of their outputs, so that what was kept of them is not overwritten in place."""
    handles = [module.register_forward_hook(lambda module, inputs, output: _copied(output)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copied(output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) else output


@contextmanager
def seeded(seed: int, image_id: str, device: torch.device) -> Iterator[None]:
    """Seed the global random numbers of torch and NumPy for one image of a run; afterwards restore them."""
    number = seed_from(seed, image_id, bits=32)  # NumPy takes no more
    on_gpu = device.type == "cuda"
    with ONE_AT_A_TIME, torch.random.fork_rng(devices=[device] if on_gpu else []):
        state = np.random.get_state()  # noqa: NPY002  # libraries draw from it
        torch.default_generator.manual_seed(number)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002  # likewise
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002  # likewise


def one_by_one(context: Context, attribute: Attribute) -> Tensor:
    """Maps of the batch's images, each by itself and from random numbers of its own, so that the batch does not matter.

    Args:
        context: of the batch.
        attribute: from images `[1, C, H, W]`, and the numbers `[1]` of them in the batch, to maps `[1, h, w]`.
    """
    maps = []
    for number, image_id in enumerate(context.ids):
        here = slice(number, number + 1)
        with seeded(context.seed, image_id, context.images.device):
            maps.append(attribute(context.images[here], context.everywhere[here]))
    return torch.cat(maps)


def leaf(images: Tensor) -> Tensor:
    """The same images, which gradients can be taken of."""
    return images.detach().clone().requires_grad_()


@contextmanager
def refused(name: str, mend: str) -> Iterator[None]:
    """Say what a library complains about as an error of ours; that it divides 0 by 0 the map itself says, which is NaN there.

    Raises:
        ExplainerError: with the library's reason, and what may mend it.
    """
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            yield
    except XaievalError:
        raise
    except COMPLAINTS as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()).removesuffix(".") or type(error).__name__
        raise ExplainerError(f"method '{name}' does not work here: {type(error).__name__}: {reason}; {mend}") from error


def module_at(context: Context, name: str) -> nn.Module:
    """The module whose whole output the layer is.

    Raises:
        ExplainerError: the layer is a part of an output, or one of several.
    """
    address = parse(str(context.layer))
    if address.keys or address.call is not None:
        raise ExplainerError(
            f"method '{name}' takes the output of a module that gives one tensor and runs once, and '{context.layer}' is none; "
            "take another layer, or a method of xaieval, which read any layer"
        )
    return context.model.get_submodule(address.path)


def reshaping(layout: Layout | None) -> Callable[[Tensor], Tensor] | None:
    """How a library gets maps `[N, C, h, w]` of a layer's output; None where they are that."""
    return None if layout is None or layout.kind == "channels_first" else layout.to_maps


def check_model(theirs: object, context: Context, name: str) -> None:
    """Refuse an object that was made for another model than the one that is scored.

    Raises:
        ExplainerError: it was.
    """
    if isinstance(theirs, nn.Module) and all(module is not context.model for module in theirs.modules()):
        raise ExplainerError(f"method '{name}' was made for another model than the one that is scored; make it for that one")


def class_targets(context: Context, name: str) -> Tensor:
    """The classes `[N]` that are explained.

    Raises:
        ExplainerError: the model is no classifier.
    """
    if not isinstance(context.task, Classification):
        task = type(context.task).__name__.lower()
        raise ExplainerError(f"method '{name}' explains classifiers alone, and the task is {task}; 'gradcam' takes any model")
    return context.targets


def name_of(library: str, theirs: object, model: object, layers: Iterable[nn.Module] = ()) -> str:
    """A name for somebody's object: library, class, and the layers that it looks at, if it does.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> name_of("library", object(), model, [model[1]])
        'library:object(1)'
    """
    known = {module: path for path, module in model.named_modules()} if isinstance(model, nn.Module) else {}
    paths = [known.get(layer, type(layer).__name__) for layer in layers]
    return f"{library}:{type(theirs).__name__}" + (f"({'+'.join(paths)})" if paths else "")
