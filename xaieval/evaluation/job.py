"""A request on a borrowed model: its layers are located, its passes are set up, and every batch is treated alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch
from xaieval.evaluation.random_parameters import RandomParameters
from xaieval.evaluation.request import Request
from xaieval.explainers import Explainer, joins_layers
from xaieval.inference.batch_limit import BatchLimit, in_batches, out_of_memory_is_run_error
from xaieval.inference.borrowing import borrow
from xaieval.inference.forward_passes import Runner, sped_up
from xaieval.inference.precision import precision_on
from xaieval.inference.reproducibility import repeatable
from xaieval.inference.tasks import Classification, Task, predicted_score
from xaieval.metrics import Metric
from xaieval.probe.hooks import ProbeLayer, locate, to_device
from xaieval.results.matched import control_columns
from xaieval.results.rows import NO_LAYER, Pair

__all__ = ["Job", "borrowed", "find_layers", "in_parts", "make_pairs", "started"]

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """Everything that stays the same from batch to batch.

    Attributes:
        runner: Makes the forward passes.
        device: The device of the model.
        layers: The layers to probe.
        pairs: Explainer and layer (None for an explainer that needs none, all addresses for one that joins them), in the order
            of the rows.
        protocol: How maps become numbers.
        task: How the model's output is read, and what is followed.
        seed: Of explainers and metrics that draw random numbers.
        metrics: The metrics of the maps.
        matched: The names of the matched controls of each map.
        deterministic: Whether each image has to get the same bits in any batch.
        judge: The job of the model that judges the masked images; None if the model judges itself.
        random_parameters: For metrics that randomise the model; drawn when the first of them asks.
        progress: Told how far a long method is on a batch: its name, the passes so far, and all of them. None for nobody.
    """

    runner: Runner
    device: torch.device
    layers: Sequence[ProbeLayer]
    pairs: Sequence[tuple[Explainer, str | None]]
    protocol: Protocol
    task: Task = field(default_factory=Classification)
    seed: int = 0
    metrics: Sequence[Metric] = ()
    matched: Sequence[str] = ()
    deterministic: bool = False
    judge: Job | None = None
    random_parameters: RandomParameters = field(default_factory=RandomParameters)
    progress: Callable[[str, int, int], None] | None = None

    @property
    def names(self) -> list[Pair]:
        """Layer and method of each pair, as in the rows."""
        return [(layer or NO_LAYER, explainer.name) for explainer, layer in self.pairs]

    @property
    def matched_metrics(self) -> list[Metric]:
        """The metrics by which matched controls are judged; none for a run without them."""
        return [metric for metric in self.metrics if self.matched and metric.has_matched_controls]

    @property
    def columns(self) -> list[str]:
        """The columns of the rows that hold values: metrics, then those of matched controls."""
        matched = [metric.name for metric in self.matched_metrics]
        return [*(metric.name for metric in self.metrics), *control_columns(matched, self.matched)]

    def of_pair(self, number: int) -> Job:
        """The job of one pair alone."""
        return self.of([self.names[number]])

    def of(self, names: Sequence[Pair]) -> Job:
        """The job of some pairs, with the layers that they need."""
        wanted = set(names)
        pairs = [pair for name, pair in zip(self.names, self.pairs, strict=True) if name in wanted]
        if any(joins_layers(explainer) for explainer, _ in pairs):
            return replace(self, pairs=pairs)
        addresses = {address for _, address in pairs}
        return replace(self, layers=[layer for layer in self.layers if layer.address in addresses], pairs=pairs)


def make_pairs(explainers: Sequence[Explainer], layers: Sequence[ProbeLayer]) -> list[tuple[Explainer, str | None]]:
    """Layer by layer and method by method; then the methods that join all layers, and those that need none."""
    alone = [(e, at.address) for at in layers for e in explainers if e.needs_layer and not joins_layers(e)]
    joined = [(e, "+".join(at.address for at in layers)) for e in explainers if joins_layers(e)]
    return [*alone, *joined, *((e, None) for e in explainers if not e.needs_layer)]


@contextmanager
def borrowed(request: Request) -> Iterator[torch.device]:
    """Borrow the model, in deterministic mode if the request asks for it; gives the device."""
    how = request.inference
    with borrow(request.model, how.device) as device, repeatable() if how.deterministic else nullcontext():
        yield device


def find_layers(request: Request, batch: Batch, device: torch.device, limit: BatchLimit) -> list[ProbeLayer]:
    """The layers of a request, located by passes over the first images of a batch.

    Raises:
        AddressError: An address names no tensor, several, or one without a map.
        RunError: A single image does not fit in memory.
    """
    how = request.inference
    search = partial(
        locate,
        request.model,
        layers=request.addresses,
        forward=request.call,
        grid=how.grid,
        prefix_tokens=how.prefix_tokens,
        layout=how.layout,
        score=partial(predicted_score, request.task),
    )
    with out_of_memory_is_run_error():
        return limit.first(to_device(batch.images, device), search)


@contextmanager
def started(
    request: Request, batch: Batch, device: torch.device, layers: Sequence[ProbeLayer], limit: BatchLimit, fast: bool = False
) -> Iterator[Job]:
    """The job of a request.

    Args:
        request: What is asked for.
        batch: The first images, on which changes to the model are confirmed.
        device: The device of the borrowed model.
        layers: From `find_layers`.
        limit: On the images in a pass.
        fast: Make the passes as fast as the request allows; otherwise the model's modules run unchanged.
    """
    how = request.inference
    with ExitStack() as stack:
        with out_of_memory_is_run_error():
            passes = sped_up(
                request.model,
                to_device(batch.images, device),
                {layer.layer.path for layer in layers},
                limit,
                fast=fast and how.fast and not how.deterministic,
                precision=precision_on(device, how.precision),
                compile=fast and how.compile,
                task=request.task,
                forward=how.forward,
            )
            runner = stack.enter_context(passes)
        yield Job(
            runner=runner,
            device=device,
            layers=layers,
            pairs=make_pairs(request.explainers, layers),
            protocol=request.protocol,
            task=request.task,
            seed=request.seed,
            metrics=request.metrics,
            matched=request.matched,
            deterministic=how.deterministic,
        )


def in_parts(job: Job, batch: Batch, work: Callable[[Batch], T]) -> list[T]:
    """Results of work on a batch, on as many images at a time as fit in memory.

    Raises:
        RunError: A single image does not fit.
    """
    if not job.deterministic:
        return in_batches(job.runner.batch_limit, batch, work)
    # Bits can depend on where in memory an image begins, so each part gets memory of its own.
    return in_batches(job.runner.batch_limit, batch, lambda part: work(part.copied()))
