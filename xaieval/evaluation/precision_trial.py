"""`precision="auto"`: a trial on the first batch of a run finds out which precision its masked passes take.

The choice is part of the run. A run that resumes takes the choice of its folder, so that all its rows come from one arithmetic.
Of several processes that begin a run at once, one makes the trial while the others wait until its choice is in the folder.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

from xaieval.data.batches import Batch
from xaieval.errors import OutputError, UsageError
from xaieval.evaluation.first_pass import FirstPass
from xaieval.evaluation.job import Job, in_parts, make_pairs, started
from xaieval.evaluation.maps import BatchPass, finished_maps, raw_maps, run_batch
from xaieval.explainers import Explainer
from xaieval.explainers.controls import CONTROLS
from xaieval.inference.batch_limit import BatchLimit, is_out_of_memory
from xaieval.inference.precision import AUTO, FLOAT32, PRECISIONS, candidates
from xaieval.masking import filling, mask, occlude
from xaieval.metrics.drop_and_increase import drop, increase
from xaieval.results.files import MANIFEST, PARTS, writing
from xaieval.results.locks import Lock, turn_in
from xaieval.results.validation import read_manifest

__all__ = ["FASTER", "MOVED", "Tried", "settled_precision"]

T = TypeVar("T")

FASTER = 1.2  # how many times as fast as float32 a precision has to be
# The largest difference from float32 in the trial: of AD and of IC, in points, and of the confidences, as a share of their
# mean. A single image may differ by some points, so that few images cannot show less than this.
MOVED = {"average_drop": 2.0, "increase_in_confidence": 5.0, "confidence": 0.05}
TRYING = ".trial"  # the file that the process of a folder holds that makes the trial
IMAGES, MAPS = 16, 3  # of the trial: ten passes of at most 16 images for each precision that is tried

log = logging.getLogger("xaieval")


@dataclass(frozen=True)
class Tried:
    """A precision beside float32, on the first images of a run.

    Attributes:
        faster: How many times as fast the passes were: the median over the passes, which were timed in turn.
        average_drop: Difference of Average Drop, in points; NaN if there was no value in one of the two.
        increase_in_confidence: Difference of Increase in Confidence, in points.
        confidence: Mean absolute difference of the confidences, as a share of their mean.
        failed: The error of a model that does not run in this precision; empty for all others.
    """

    faster: float
    average_drop: float
    increase_in_confidence: float
    confidence: float
    failed: str = ""

    @property
    def serves(self) -> bool:
        """Whether it is fast enough, and the numbers stay where they are."""
        return self.faster > FASTER and all(abs(getattr(self, name)) <= most for name, most in MOVED.items())

    def __str__(self) -> str:
        """The numbers in words."""
        if self.failed:
            return f"failed ({self.failed})"
        return (
            f"{self.faster:.2f} times as fast, AD {self.average_drop:+.2f} and IC {self.increase_in_confidence:+.2f} points, "
            f"confidences {self.confidence:.1%} apart"
        )


@contextmanager
def settled_precision(
    looked: FirstPass,
    first: Batch,
    device: torch.device,
    limit: BatchLimit,
    folder: str | Path | None = None,
    judged: bool = False,
) -> Iterator[FirstPass]:
    """Choose the precision of a run that leaves it open; any other run is given as it is.

    What was measured and chosen is logged, and stays in `FirstPass.trial` for the manifest. If this process makes a trial, the
    others of the folder wait until the context ends. The run is to be begun inside it, so that its manifest tells them the
    choice. If this process dies before that, the next one makes a trial.

    Args:
        looked: What is known of the run.
        first: Its first batch.
        device: The device of the borrowed model.
        limit: On the images in a pass.
        folder: The folder of the run, whose choice holds if it has one already; None for a run without a folder.
        judged: Whether another model judges the masked images.

    Raises:
        OutputError: The folder cannot be written.
        UsageError: Another model judges, of which the trial would say nothing.
        RunError: A single image does not fit in memory.
    """
    request = looked.request
    if request.inference.precision != AUTO:
        yield looked
        return
    if judged:
        raise UsageError(
            "precision='auto' tries the model that is explained, and judge= is another one; name a precision: float32 or bf16"
        )
    with ExitStack() as stack:
        trial = _recorded(folder)
        if trial is None and folder is not None:
            turn = stack.enter_context(_turn(Path(folder)))
            trial = _recorded(folder)  # that of the process before this one
            if trial is not None:
                turn.free()
        if trial is None:
            trial = _trial(looked, first, device, limit)
        log.warning("precision: %s", trial["reason"])
        settled = replace(request, inference=replace(request.inference, precision=trial["chosen"]))
        yield replace(looked, request=settled, trial=trial)


@contextmanager
def _turn(folder: Path) -> Iterator[Lock]:
    """Wait for the processes that make a trial for a folder or begin its run; leaves no folders behind that are empty."""
    parts = folder / PARTS
    with writing(folder):
        turn = turn_in(parts, TRYING)
    try:
        yield turn
    finally:
        turn.free()
        with suppress(OSError):  # other processes are there, or the run
            parts.rmdir()
            folder.rmdir()


def _recorded(folder: str | Path | None) -> dict[str, Any] | None:
    """The choice of a run that its folder holds, finished or not; None if it holds none."""
    for place in () if folder is None else (Path(folder) / PARTS / MANIFEST, Path(folder) / MANIFEST):
        with suppress(OSError, OutputError, KeyError):
            manifest = read_manifest(place)
            chosen = manifest["run"]["precision"]
            given = {"chosen": chosen, "tried": {}, "reason": f"{chosen}, that of the run in '{folder}'"}
            return dict(manifest.get("precision_trial", given))
    return None


def _trial(looked: FirstPass, first: Batch, device: torch.device, limit: BatchLimit) -> dict[str, Any]:
    """The choice, the numbers it rests on, and a sentence that says both."""
    unfit = [metric.name for metric in looked.request.metrics if metric.rounding_decides]
    if unfit:
        return _choice(FLOAT32, {}, f"float32, since differences of rounding can decide {', '.join(unfit)}")
    names = candidates(device)
    tried = _try(looked, first, device, limit, names)
    serving = [name for name in names if tried[name].serves]
    chosen = max(serving, key=lambda name: tried[name].faster, default=FLOAT32)
    numbers = "; ".join(f"{name} {tried[name]}" for name in names)
    return _choice(chosen, tried, f"{chosen}, after a trial on {min(IMAGES, len(first))} images beside float32: {numbers}")


def _choice(chosen: str, tried: Mapping[str, Tried], reason: str) -> dict[str, Any]:
    needed = {"faster": FASTER, **MOVED}
    return {"chosen": chosen, "tried": {name: asdict(one) for name, one in tried.items()}, "needed": needed, "reason": reason}


def _try(looked: FirstPass, first: Batch, device: torch.device, limit: BatchLimit, names: Sequence[str]) -> dict[str, Tried]:
    """Each precision beside float32, on masked images of maps that cost no further pass."""
    how = replace(looked.request.inference, precision=FLOAT32, compile=False)
    request = replace(looked.request, inference=how)
    images = first.part(0, min(IMAGES, len(first)), [])
    with started(request, images, device, looked.layers, limit, fast=True) as job:
        cheap = [pair for pair in job.pairs if _costs_no_pass(pair[0])]
        job = replace(job, pairs=cheap or make_pairs(CONTROLS, ()))
        parts = in_parts(job, images, lambda part: _passes(job, part, names))
    return {name: _compared([part[name] for part in parts]) for name in names}


def _costs_no_pass(explainer: Explainer) -> bool:
    """Whether its maps cost no pass but the shared one, by what the table of methods says of it."""
    passes = str(getattr(explainer, "passes", ""))
    return passes == "0" or "shared" in passes


@dataclass(frozen=True)
class _Passes:
    """Passes of the same B blocks of N images in float32 and in another precision.

    Attributes:
        confidences: `[2, B, N]`, the original images first.
        ratios: How many times as fast the other precision was, one number a block.
        failed: The error of a model that does not run in the other precision.
    """

    confidences: Tensor
    ratios: Sequence[float] = ()
    failed: str = ""


def _passes(job: Job, batch: Batch, names: Iterable[str]) -> dict[str, _Passes]:
    """By precision, the passes of the original images and of masked ones."""
    passed = run_batch(job, batch)
    blocks = [passed.context.images, *_masked(job, passed, raw_maps(job, passed))]
    passed = passed.without_layers()
    return {name: _side_by_side(job, passed, blocks, name) for name in names}


def _masked(job: Job, passed: BatchPass, maps: Sequence[Tensor]) -> list[Tensor]:
    """The images masked by few of the maps: those that keep most and least, and one between.

    Where a map keeps nearly all of an image, its confidence hardly changes, and differences of rounding matter most.
    """
    images = passed.context.images
    fill = filling(images, job.protocol)
    masks = [mask(finished_maps(raw, images, job.protocol).maps, job.protocol).to(images.dtype) for raw in maps]
    order = sorted(masks, key=lambda one: float(one.mean().nan_to_num(0)))
    places = sorted({0, len(order) // 2, len(order) - 1})[-MAPS:]
    return [occlude(images, order[place], fill(order[place])) for place in places]


def _side_by_side(job: Job, passed: BatchPass, blocks: Sequence[Tensor], name: str) -> _Passes:
    """Every block in both precisions in turn, after a pass of the first block that counts for neither."""
    names = FLOAT32, name
    runners = [replace(job.runner, precision=PRECISIONS[each]) for each in names]
    contexts = [replace(passed.context, output=runner.output) for runner in runners]

    def ask(number: int, images: Tensor) -> Tensor:
        found = contexts[number].ask([(images, passed.context.everywhere)], "confidence")
        return found.masked_fill(~passed.has_target, torch.nan)

    try:
        for number in range(2):
            ask(number, blocks[0])
        rows = [[timed(each, job.device, partial(ask, number, block)) for number, each in enumerate(names)] for block in blocks]
    except Exception as error:  # a model can raise anything in a precision that it was not made for
        if is_out_of_memory(error):
            raise
        return _Passes(torch.empty(0), failed=f"{type(error).__name__}: {' '.join(str(error).split())}")
    confidences = torch.stack([torch.stack([row[number][0] for row in rows]) for number in range(2)])
    return _Passes(confidences.double(), [before / max(after, 1e-9) for (_, before), (_, after) in rows])


def timed(precision: str, device: torch.device, work: Callable[[], T]) -> tuple[T, float]:
    """The result of some passes in a precision, and the seconds that they take."""
    _wait(device)
    start = time.perf_counter()
    result = work()
    _wait(device)
    return result, time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Wait for the device, whose kernels may still be running."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _compared(parts: Sequence[_Passes]) -> Tried:
    """What the passes of all parts of the batch say together."""
    for part in parts:
        if part.failed:
            return Tried(0.0, math.nan, math.nan, math.nan, part.failed)
    both = torch.cat([part.confidences for part in parts], dim=2)
    one, other = (_numbers(each[0], each[1:]) for each in both)
    known = both[0].isfinite()
    apart = (both[1] - both[0])[known].abs().mean() / both[0][known].abs().mean()  # NaN where only the other has no number
    faster = median(ratio for part in parts for ratio in part.ratios)
    return Tried(faster, other[0] - one[0], other[1] - one[1], float(apart))


def _numbers(originals: Tensor, masked: Tensor) -> tuple[float, float]:
    """AD and IC of confidences `[N]` and `[M, N]`."""
    pairs = originals.expand_as(masked).flatten(), masked.flatten()
    return float(drop(*pairs).nanmean()), float(increase(*pairs).nanmean())
