"""A second model that judges the masked images, in the place of the one that is explained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from xaieval.data.batches import Batch
from xaieval.errors import ModelError, ProtocolError, UsageError
from xaieval.evaluation.fingerprint import describe_model
from xaieval.evaluation.first_pass import first_pass
from xaieval.evaluation.job import Job, borrowed, started
from xaieval.evaluation.maps import BatchPass, run_batch
from xaieval.evaluation.request import Request
from xaieval.inference.batch_limit import BatchLimit
from xaieval.inference.tasks import Classification
from xaieval.models.blackbox import Function, as_module

__all__ = ["describe_judge", "judge_started", "judged_pass"]

Judge = nn.Module | Function | None


def describe_judge(judge: Judge) -> dict[str, Any]:
    """The manifest's entry on the judge; empty without one."""
    return {} if judge is None else {"judge": describe_model(as_module(judge))}


@contextmanager
def judge_started(request: Request, judge: Judge, first: Batch, limit: BatchLimit) -> Iterator[Job | None]:
    """The job of the judge, which makes no maps; None without a judge.

    Args:
        request: Of the model that is explained.
        judge: Another model of the same images and classes.
        first: The first images of the run.
        limit: On the images in a pass.

    Raises:
        UsageError: The task is not classification.
        ProtocolError: The outputs of both models are not read alike.
        ModelError: The judge has other classes.
    """
    if judge is None:
        yield None
        return
    if not isinstance(request.task, Classification):
        raise UsageError(
            f"judge= takes classifiers, got {type(request.task).__name__.lower()}: there is no box or region of one model that "
            "is that of another"
        )
    with ExitStack() as stack:
        asked = replace(request, model=as_module(judge), addresses=(), explainers=())
        device = stack.enter_context(borrowed(asked))
        looked = first_pass(asked, first, device, limit).request
        if (looked.task, looked.protocol) != (request.task, request.protocol):
            raise ProtocolError(
                "the judge's output is read otherwise than the model's, since one of them has a single output; give models of "
                "the same kind of output"
            )
        yield stack.enter_context(started(looked, first, device, (), limit, fast=True))


def check_same_classes(judged: BatchPass, passed: BatchPass) -> None:
    """Refuse a judge of other classes.

    Raises:
        ModelError: With the numbers of both.
    """
    classes = [None if one.context.logits is None else one.context.logits.shape[1] for one in (judged, passed)]
    if classes[0] != classes[1]:
        raise ModelError(
            f"the judge has {classes[0]} classes and the model {classes[1]}; a judge needs the classes of the model"
        )


def judged_pass(job: Job, batch: Batch, passed: BatchPass) -> tuple[Job, BatchPass]:
    """The job and the pass that give confidences: those of the judge for the model's targets, or without one the model's own.

    Args:
        job: Of the model that is explained.
        batch: The original images.
        passed: The model's pass over them.
    """
    if job.judge is None:
        return job, passed
    with torch.no_grad():
        judged = run_batch(job.judge, batch, passed.context.followed)
    check_same_classes(judged, passed)
    return job.judge, judged
