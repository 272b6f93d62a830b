"""How the passes of a run are made: a borrowed model made faster while it is ours, with the same results to rounding."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from xaieval.errors import UsageError, choose_from
from xaieval.inference.batch_limit import BatchLimit, is_out_of_memory
from xaieval.inference.batchnorm_folding import Folding, Pair, find_pairs, folded
from xaieval.inference.tasks import Classification, Task

__all__ = ["PRECISIONS", "Forward", "Runner", "called", "check_precision", "in_groups", "sped_up"]

Forward = Callable[[nn.Module, Tensor], Any]

PRECISIONS = {"float32": None, "bf16": torch.bfloat16}
FOLDED = 1e-4  # share of the largest logit by which folding may change a logit; more means that it was not the same model
COMPILED = {None: 1e-3, torch.bfloat16: 5e-2}  # likewise for a compiled model, whose sums run in another order


@dataclass(frozen=True)
class Runner:
    """How the forward passes of a run are made.

    Attributes:
        model: with whatever was done to it.
        inside: runs it on images, for the pass that looks inside.
        forward: the same function of images, for passes that only want the output.
        batch_limit: how many images a pass takes.
        layout: of the images in memory.
        autocast: the type that the latter compute in where that is safe; None for the model's own. The pass that looks inside
            always takes the model's own, or the class that is explained would be another one for some images.
        folding: of BatchNorms into convolutions, if there is any.
    """

    model: nn.Module
    inside: Callable[[Tensor], Any]
    forward: Callable[[Tensor], Any]
    batch_limit: BatchLimit
    layout: torch.memory_format = torch.contiguous_format
    autocast: torch.dtype | None = None
    folding: Folding | None = None

    @property
    def size(self) -> int:
        """Images in a pass, as things stand."""
        return self.batch_limit.size

    @property
    def compiled(self) -> bool:
        """Whether passes that only want the output run compiled."""
        return self.forward is not self.inside

    @property
    def folded(self) -> int:
        """Number of BatchNorms that are folded into convolutions."""
        return len(self.folding.pairs) if self.folding else 0

    @property
    def rounds_otherwise(self) -> bool:
        """Whether outputs differ, by rounding, from those of the pass that looks inside."""
        return self.compiled or self.autocast is not None

    def lay_out(self, images: Tensor) -> Tensor:
        """The images as the model takes them fastest."""
        return images.contiguous(memory_format=self.layout)

    def computing(self, images: Tensor) -> AbstractContextManager[Any]:
        """The context in which passes run."""
        return nullcontext() if self.autocast is None else torch.autocast(images.device.type, self.autocast)

    def lent(self) -> AbstractContextManager[Any]:
        """The context in which somebody may look inside the model, and finds its own weights."""
        return nullcontext() if self.folding is None else self.folding.lifted()

    def output(self, images: Tensor) -> Any:
        """The model's output, without gradients; as long as the images or longer.

        A compiled model always sees full batches, or it would be compiled again.
        """
        missing = self.size - len(images) if self.compiled else 0
        filled = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing > 0 else images
        laid_out = self.lay_out(filled)  # not in inference mode: a compiled model would tell the two kinds of tensor apart
        with torch.inference_mode(), self.computing(images):
            return self.forward(laid_out)

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "batch_size": self.size,
            **({} if self.batch_limit.budget is None else {"memory": self.batch_limit.budget}),
            "folded_batch_norms": self.folded,
            "channels_last": self.layout == torch.channels_last,
            "compiled": self.compiled,
            "autocast": str(self.autocast).removeprefix("torch.") if self.autocast else None,
        }


@contextmanager
def sped_up(
    model: nn.Module,
    images: Tensor,
    probed: Iterable[str],
    batch_limit: BatchLimit,
    *,
    fast: bool = True,
    precision: str = "float32",
    compile: bool = False,
    task: Task | None = None,
    forward: Forward | None = None,
) -> Iterator[Runner]:
    """Have a borrowed model run as fast as it can with the same results; it is put back as it was, come what may.

    BatchNorms are folded into convolutions, where a comparison of logits confirms it, and images and weights of convolutions
    are laid out with channels last where that is faster: on CPUs, and on GPUs in half precision.

    Args:
        model: in eval mode, on its device.
        images: of the first batch, on that device.
        probed: paths of modules whose outputs are wanted as they are.
        batch_limit: how many images a pass takes.
        fast: False leaves the model's modules and memory as they are.
        precision: "float32" for the model's own type, or "bf16".
        compile: whether passes of masked images run through torch.compile.
        task: says what matters of the model's output.
        forward: how to run the model; `model(images)` unless told.
    """
    autocast, task = PRECISIONS[precision], task or Classification()
    call = called(model, forward)
    folding, layout = None, torch.contiguous_format
    with ExitStack() as undo:
        if fast and _has_convolutions(model):
            look = partial(_look, call, task)
            before, pairs = _first_look(model, look, images[:1], probed)
            layouts = (torch.channels_last, layout) if _likes_channels_last(model, images, autocast) else (layout,)
            if before is not None:
                folding, layout = _adopt(undo, model, pairs, layouts, partial(_unchanged, look, before, images[:1]))
        runner = Runner(model, call, call, batch_limit, layout, autocast, folding)
        yield _compiled(runner, images, task) if compile else runner


def called(model: nn.Module, forward: Forward | None) -> Callable[[Tensor], Any]:
    """The model as a function of images."""
    return model if forward is None else partial(forward, model)


def in_groups(blocks: Iterable[tuple[Tensor, Tensor]], forward: Callable[[Tensor, Tensor], Tensor], size: int) -> Tensor:
    """Results of a forward function over blocks that are joined and cut to groups of `size`, in order.

    Args:
        blocks: images, and a number that goes with each; less than `size` images and one block are held at a time.
        forward: from images `[G, C, H, W]` and their numbers `[G]` to results `[G]`.
        size: of a group, at least 1; the last one may be smaller.

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


def check_precision(precision: str) -> None:
    """Refuse a precision that there is not.

    Raises:
        UsageError: with the ones there are.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}; {choose_from(precision, PRECISIONS)}")


Seen = list[Tensor]  # what matters of a model's output
Change = tuple[Folding | None, torch.memory_format]


@contextmanager
def _changed(model: nn.Module, pairs: list[Pair], layout: torch.memory_format) -> Iterator[Change]:
    """These pairs folded, and weights laid out like the images."""
    with ExitStack() as undo:
        folding = undo.enter_context(folded(pairs)) if pairs else None
        if layout == torch.channels_last:
            undo.enter_context(_channels_last(model))
        yield folding, layout


def _adopt(
    undo: ExitStack,
    model: nn.Module,
    pairs: list[Pair],
    layouts: Iterable[torch.memory_format],
    is_right: Callable[[torch.memory_format], bool],
) -> Change:
    """Make the most changes that leave the model the same; they are undone in the end, others at once."""
    for some, layout in product((pairs, []), layouts):
        with ExitStack() as trial:
            change = trial.enter_context(_changed(model, some, layout))
            if is_right(layout):
                undo.push(trial.pop_all())
                return change
    return None, torch.contiguous_format


def _unchanged(look: Callable[[Tensor], Seen | None], before: Seen, images: Tensor, layout: torch.memory_format) -> bool:
    """Whether the model still runs on the images, and gives the same."""
    after = look(images.contiguous(memory_format=layout))
    return after is not None and _same(after, before, FOLDED)


def _look(call: Callable[[Tensor], Any], task: Task, images: Tensor) -> Seen | None:
    """What the model gives, or None if it does not take these images: a single one, or in this layout."""
    try:
        with torch.no_grad():
            return _tensors(task.read(call(images)))
    except Exception:  # whatever a model can raise; what is wrong with the model itself shows when it is run as it is
        return None


def _first_look(
    model: nn.Module, look: Callable[[Tensor], Seen | None], images: Tensor, probed: Iterable[str]
) -> tuple[Seen | None, list[Pair]]:
    """What the model gives as it is, and what can be folded, both from one pass; nothing in a model that cannot be watched."""
    seen: list[Seen | None] = []

    def watched(images: Tensor) -> Seen | None:
        seen.append(look(images))
        return seen[0]

    try:
        pairs = find_pairs(model, images, probed, watched)
    except Exception:  # whatever a model can raise whose functions are watched
        pairs = []
    if seen and seen[0] is not None:
        return seen[0], pairs
    return look(images), []


def _tensors(read: Any) -> Seen:
    return [leaf for leaf in tree_leaves(read) if isinstance(leaf, Tensor)]


def _has_convolutions(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in model.modules())


def _likes_channels_last(model: nn.Module, images: Tensor, autocast: torch.dtype | None) -> bool:
    """A rule and no trial of speed, so that the same run gives the same bits."""
    convolutions = images.ndim == 4 and any(isinstance(module, nn.Conv2d) for module in model.modules())
    return convolutions and (images.device.type == "cpu" or autocast is not None)


@contextmanager
def _channels_last(model: nn.Module) -> Iterator[bool]:
    own = [(module.weight, module.weight.data) for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        for parameter, data in own:
            parameter.data = data.contiguous(memory_format=torch.channels_last)
        yield True
    finally:
        for parameter, data in own:
            parameter.data = data


def _compiled(runner: Runner, images: Tensor, task: Task) -> Runner:
    """The runner with a compiled model, or as it is, with a warning, if that model does not compile or differs."""
    own = set(vars(runner.model))
    compiled = replace(runner, forward=torch.compile(runner.inside))
    for mark in vars(runner.model).keys() - own:  # which torch.compile leaves there
        del vars(runner.model)[mark]
    if runner.batch_limit.budget is not None:
        runner.batch_limit.alone((), lambda: runner.output(images[:1]))
    reasons = runner.batch_limit.parts(len(images), lambda part: _failure(runner, compiled, images[part], task))
    if any(reasons):
        reason = next(filter(None, reasons))
        warnings.warn(f"the model runs without torch.compile, which failed: {reason}", RuntimeWarning, stacklevel=2)
        return runner
    return compiled


def _failure(runner: Runner, compiled: Runner, images: Tensor, task: Task) -> str:
    """What is wrong with a compiled model; empty if nothing is."""
    expected = _tensors(task.read(runner.output(images)))
    try:
        found = _tensors(task.read(compiled.output(images))[: len(images)])
    except Exception as error:  # whatever a compiler can raise
        if is_out_of_memory(error):
            raise
        lines = f"{type(error).__name__}: {error}".split("\n\n")[0].split("\n")
        return " ".join(line.strip() for line in lines if line.strip())
    return "" if _same(found, expected, COMPILED[runner.autocast]) else "its logits are others"


def _same(found: Seen, expected: Seen, tolerance: float) -> bool:
    """Whether tensors agree, each to a share of its largest value; what is NaN in both agrees."""
    return len(found) == len(expected) and all(_close(*pair, tolerance) for pair in zip(found, expected, strict=True))


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    if found.shape != expected.shape:
        return False
    scale = expected.abs().float().nan_to_num(0, 0, 0).amax().clamp(min=1e-30) if expected.numel() else 0
    return torch.allclose(found.float(), expected.float(), rtol=0, atol=float(tolerance * scale), equal_nan=True)
