"""The forward passes of a run: a borrowed model, made faster with the same results up to rounding."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter, signature
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from xaieval.errors import ModelError
from xaieval.inference.batch_limit import BatchLimit, is_out_of_memory
from xaieval.inference.batchnorm_folding import FoldablePair, Folding, find_foldable_pairs, folded
from xaieval.inference.borrowing import replace_cached_inference_tensors
from xaieval.inference.hook_registries import in_pass
from xaieval.inference.plain_passes import compiled, own_images
from xaieval.inference.precision import FLOAT32, PRECISIONS, Precision, tf32_by_default
from xaieval.inference.tasks import Classification, Task

__all__ = ["Forward", "Runner", "called", "in_groups", "sped_up"]

Forward = Callable[[nn.Module, Tensor], Any]

NEEDS_GRADIENTS = re.compile("does not require grad|inference (tensor|mode)", re.IGNORECASE)
VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
IMAGES = "pixel_values"  # what models of transformers call their images, some after another argument
FOLDED = 1e-4  # largest change of a logit by folding, relative to the largest logit; a larger change means a different model


@dataclass(frozen=True)
class Runner:
    """Runs the forward passes of a run.

    Attributes:
        model: The model, with all speed-ups applied.
        inside: Runs the model on images, for passes that probe layers.
        forward: The same function for passes that only need the output.
        batch_limit: The number of images in a pass.
        layout: The memory layout of the images.
        precision: The arithmetic of passes that only need the output. Passes that probe layers always use the model's dtype,
            because otherwise the explained class would change for some images.
        folding: The BatchNorms folded into convolutions, if any.
    """

    model: nn.Module
    inside: Callable[[Tensor], Any]
    forward: Callable[[Tensor], Any]
    batch_limit: BatchLimit
    layout: torch.memory_format = torch.contiguous_format
    precision: Precision = PRECISIONS[FLOAT32]
    folding: Folding | None = None

    @property
    def size(self) -> int:
        """The current number of images in a pass."""
        return self.batch_limit.size

    @property
    def compiled(self) -> bool:
        """Whether passes that only need the output are compiled."""
        return self.forward is not self.inside

    @property
    def folded(self) -> int:
        """The number of BatchNorms folded into convolutions."""
        return len(self.folding.pairs) if self.folding else 0

    @property
    def rounds_otherwise(self) -> bool:
        """Whether outputs differ by rounding from those of the passes that probe layers."""
        return self.compiled or self.precision.is_reduced

    def lay_out(self, images: Tensor) -> Tensor:
        """Bring the images into the memory layout that is fastest for the model."""
        return images.contiguous(memory_format=self.layout)

    def computing(self, images: Tensor) -> AbstractContextManager[Any]:
        """The context for passes that only need the output."""
        return self.precision.computing(images.device)

    def lent(self) -> AbstractContextManager[Any]:
        """The context in which the model has its own weights, for code that looks inside."""
        return nullcontext() if self.folding is None else self.folding.lifted()

    def output(self, images: Tensor) -> Any:
        """Compute the model's output without gradients. It can have more rows than there are images.

        A compiled model always gets full batches, because other batch sizes would compile it again.
        """
        missing = self.size - len(images) if self.compiled else 0
        filled = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing > 0 else images
        if not self.compiled:
            with self.computing(images):
                output = _without_gradients(self.forward, self.lay_out(filled))
            replace_cached_inference_tensors(self.model)
            return output
        # A copy, made outside inference mode: inference tensors would compile the model again.
        laid_out = own_images(self.model)(self.lay_out(filled))
        with torch.inference_mode(), self.computing(images), compiled():
            return self.forward(laid_out)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values for the manifest."""
        return {
            "batch_size": self.size,
            **({} if self.batch_limit.budget is None else {"memory": self.batch_limit.budget}),
            "folded_batch_norms": self.folded,
            "channels_last": self.layout == torch.channels_last,
            "compiled": self.compiled,
            "autocast": str(dtype).removeprefix("torch.") if (dtype := self.precision.autocast) else None,
            **tf32_by_default(next(self.model.parameters(), torch.empty(0)).device),
        }


@contextmanager
def sped_up(
    model: nn.Module,
    images: Tensor,
    probed: Iterable[str],
    batch_limit: BatchLimit,
    *,
    fast: bool = True,
    precision: str = FLOAT32,
    compile: bool = False,
    task: Task | None = None,
    forward: Forward | None = None,
) -> Iterator[Runner]:
    """Make a borrowed model as fast as possible with the same results, and undo all changes on exit, also after an error.

    BatchNorms are folded into convolutions if a comparison of the logits confirms it. Images and convolution weights are stored
    with channels last where that is faster: on CPUs, and on GPUs in half precision.

    Args:
        model: The model in eval mode, on its device.
        images: Images of the first batch, on that device.
        probed: Paths of modules whose outputs must not change.
        batch_limit: The number of images in a pass.
        fast: False leaves the model's modules and memory unchanged.
        precision: The arithmetic of passes that only need the output, a key of `PRECISIONS`.
        compile: Whether passes of masked images use torch.compile.
        task: How to read the model's output. Default: classification.
        forward: Runs the model. Default: `model(images)`.

    Yields:
        The runner.
    """
    computing, task = PRECISIONS[precision], task or Classification()
    call = called(model, forward)
    folding, layout = None, torch.contiguous_format
    with ExitStack() as undo:
        if fast and _has_convolutions(model):
            predict = partial(_predict, call, task)
            before, pairs = _first_prediction(model, predict, images[:1], probed)
            layouts = (torch.channels_last, layout) if _prefers_channels_last(model, images, computing) else (layout,)
            if before is not None:
                folding, layout = _adopt(undo, model, pairs, layouts, partial(_unchanged, predict, before, images[:1]))
        runner = Runner(model, call, call, batch_limit, layout, computing, folding)
        yield _compiled(runner, images, task) if compile else runner


def called(model: nn.Module, forward: Forward | None) -> Callable[[Tensor], Any]:
    """Return the model as a function of images, which writes into no image that is given to it.

    A borrowed model copies its images itself; a function that calls it, and TorchScript, do not. Images are given as the first
    argument, or as `pixel_values` to a model that takes them by this name.

    Raises:
        ModelError: The model has no `forward`, or one that needs more than images.
    """
    forward = forward or _by_name(model)
    if forward is None and not isinstance(model, torch.jit.ScriptModule):
        return model
    copied = own_images(model)

    def call(images: Tensor) -> Any:
        with in_pass(model):
            return model(copied(images)) if forward is None else forward(model, copied(images))

    return call


def _without_gradients(forward: Callable[[Tensor], Any], images: Tensor) -> Any:
    """Run a model in inference mode, or without it if the model computes gradients inside, as those of energies."""
    try:
        with torch.inference_mode():
            return forward(images)
    except RuntimeError as error:
        if not NEEDS_GRADIENTS.search(str(error)):
            raise
    with torch.no_grad():
        return forward(images)


def _by_name(model: nn.Module) -> Forward | None:
    """How to run a model that does not take images as its first argument; None for any other."""
    if isinstance(model, torch.jit.ScriptModule):
        return None
    kind = type(model)
    if "forward" not in vars(model) and kind.forward.__qualname__ in ("_forward_unimplemented", "LightningModule.forward"):
        inside = ", ".join(name for name, _ in model.named_children())
        raise ModelError(
            f"a {kind.__name__} has no forward(images); give the network inside it ({inside}), or how to run it: "
            "forward=, a function (model, images) -> output"
        )
    parameters = {name: each for name, each in signature(model.forward).parameters.items() if each.kind not in VARIABLE}
    needed = [name for name, each in parameters.items() if each.default is each.empty]
    if len(needed) > 1:
        raise ModelError(
            f"a {kind.__name__} needs more than images: forward({', '.join(needed)}); say how to run it: forward=, a function "
            "(model, images) -> output"
        )
    first = next(iter(parameters), None)
    name = IMAGES if IMAGES in parameters else first
    if name is None or (name == first and parameters[name].kind is not Parameter.KEYWORD_ONLY):
        return None
    return lambda model, images: model(**{name: images})


def in_groups(blocks: Iterable[tuple[Tensor, Tensor]], forward: Callable[[Tensor, Tensor], Tensor], size: int) -> Tensor:
    """Apply a function to blocks of images that are regrouped into groups of `size`, and return the results in order.

    At most one block and `size - 1` further images are held in memory.

    Args:
        blocks: Images, and one number for each image.
        forward: Maps images `[G, C, H, W]` and their numbers `[G]` to results `[G]`.
        size: Images in a group, at least 1; the last group may be smaller.

    Example:
        >>> blocks = [(torch.ones(2, 3, 1, 1), torch.zeros(2))] * 5
        >>> in_groups(blocks, lambda images, numbers: torch.full_like(numbers, len(images)), size=4)
        tensor([4., 4., 4., 4., 4., 4., 4., 4., 2., 2.])
    """
    results: list[Tensor] = []
    rest: list[tuple[Tensor, Tensor]] = []
    for block in blocks:
        images, numbers = (torch.cat(parts) for parts in zip(*rest, block, strict=True)) if rest else block
        whole = len(images) - len(images) % size
        groups = (slice(start, start + size) for start in range(0, whole, size))
        results += [forward(images[group], numbers[group]) for group in groups]
        rest = [(images[whole:], numbers[whole:])] if whole < len(images) else []
    results += [forward(*last) for last in rest]
    return torch.cat(results)


Prediction = list[Tensor]  # the tensors that a task reads from a model's output
Change = tuple[Folding | None, torch.memory_format]


@contextmanager
def _changed(model: nn.Module, pairs: list[FoldablePair], layout: torch.memory_format) -> Iterator[Change]:
    """Fold these pairs, and store the weights in the layout of the images."""
    with ExitStack() as undo:
        folding = undo.enter_context(folded(pairs)) if pairs else None
        if layout == torch.channels_last:
            undo.enter_context(_channels_last(model))
        yield folding, layout


def _adopt(
    undo: ExitStack,
    model: nn.Module,
    pairs: list[FoldablePair],
    layouts: Iterable[torch.memory_format],
    is_right: Callable[[torch.memory_format], bool],
) -> Change:
    """Apply the largest change that leaves predictions unchanged; `undo` reverts it. Failed trials are reverted at once."""
    for folded_pairs, layout in product((pairs, []), layouts):
        with ExitStack() as trial:
            change = trial.enter_context(_changed(model, folded_pairs, layout))
            if is_right(layout):
                undo.push(trial.pop_all())
                return change
    return None, torch.contiguous_format


def _unchanged(
    predict: Callable[[Tensor], Prediction | None], before: Prediction, images: Tensor, layout: torch.memory_format
) -> bool:
    """Whether the model still runs on the images, with the same prediction."""
    after = predict(images.contiguous(memory_format=layout))
    return after is not None and _same(after, before, FOLDED)


def _predict(call: Callable[[Tensor], Any], task: Task, images: Tensor) -> Prediction | None:
    """The model's prediction, or None if it does not accept these images: only one, or in this layout."""
    try:
        with torch.no_grad():
            return _tensors(task.read(call(images)))
    except Exception:  # a model can raise anything; errors of the model itself show when it runs unchanged
        return None


def _first_prediction(
    model: nn.Module, predict: Callable[[Tensor], Prediction | None], images: Tensor, probed: Iterable[str]
) -> tuple[Prediction | None, list[FoldablePair]]:
    """The prediction of the unchanged model, and the pairs that can be folded; no pairs if the model cannot be observed."""
    predictions: list[Prediction | None] = []

    def recorded(images: Tensor) -> Prediction | None:
        predictions.append(predict(images))
        return predictions[0]

    try:
        pairs = find_foldable_pairs(model, images, probed, recorded)
    except Exception:  # a model whose functions are observed can raise anything
        pairs = []
    if predictions and predictions[0] is not None:
        return predictions[0], pairs
    return predict(images), []


def _tensors(read: Any) -> Prediction:
    return [leaf for leaf in tree_leaves(read) if isinstance(leaf, Tensor)]


def _has_convolutions(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in model.modules())


def _prefers_channels_last(model: nn.Module, images: Tensor, precision: Precision) -> bool:
    """Decide by a rule instead of a timing, so that the same run gives the same bits."""
    convolutions = images.ndim == 4 and any(isinstance(module, nn.Conv2d) for module in model.modules())
    return convolutions and (images.device.type == "cpu" or precision.autocast is not None)


@contextmanager
def _channels_last(model: nn.Module) -> Iterator[bool]:
    original = [(module.weight, module.weight.data) for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        for parameter, data in original:
            parameter.data = data.contiguous(memory_format=torch.channels_last)
        yield True
    finally:
        for parameter, data in original:
            parameter.data = data


def _compiled(runner: Runner, images: Tensor, task: Task) -> Runner:
    """The runner with a compiled model; the same runner, with a warning, if that fails or changes the output."""
    before = set(vars(runner.model))
    compiled = replace(runner, forward=torch.compile(runner.inside))
    for name in vars(runner.model).keys() - before:  # attributes that torch.compile adds
        del vars(runner.model)[name]
    if runner.batch_limit.budget is not None:
        runner.batch_limit.measure_one((), lambda: runner.output(images[:1]))
    reasons = runner.batch_limit.parts(len(images), lambda part: _failure(runner, compiled, images[part], task))
    if any(reasons):
        reason = next(filter(None, reasons))
        warnings.warn(f"the model runs without torch.compile, which failed: {reason}", RuntimeWarning, stacklevel=2)
        return runner
    return compiled


def _failure(runner: Runner, compiled: Runner, images: Tensor, task: Task) -> str:
    """The reason why a compiled model cannot be used; empty if it can."""
    expected = _tensors(task.read(runner.output(images)))
    try:
        actual = _tensors(task.read(compiled.output(images))[: len(images)])
    except Exception as error:  # a compiler can raise anything
        if is_out_of_memory(error):
            raise
        lines = f"{type(error).__name__}: {error}".split("\n\n")[0].split("\n")
        return " ".join(line.strip() for line in lines if line.strip())
    return "" if _same(actual, expected, runner.precision.tolerance) else "its logits differ"


def _same(actual: Prediction, expected: Prediction, tolerance: float) -> bool:
    """Whether tensors agree, with a tolerance relative to the largest value of each; NaN equals NaN."""
    return len(actual) == len(expected) and all(_close(*pair, tolerance) for pair in zip(actual, expected, strict=True))


def _close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    if actual.shape != expected.shape:
        return False
    scale = expected.float().abs().nan_to_num(0, 0, 0).amax().clamp(min=1e-30) if expected.numel() else 0
    return torch.allclose(actual.float(), expected.float(), rtol=0, atol=float(tolerance * scale), equal_nan=True)
