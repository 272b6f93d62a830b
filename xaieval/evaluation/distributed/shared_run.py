"""One run in several processes, on one machine or many: the output folder is where they meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from xaieval.evaluation import loop
from xaieval.evaluation.batch_sources import SharedLoader
from xaieval.evaluation.distributed.rank import Rank, sigterm_interrupts
from xaieval.evaluation.scores import Scores
from xaieval.inference.options import Inference

__all__ = ["Rank", "score"]


def score(
    model: nn.Module, loader: Iterable[Any], *args: Any, output_dir: str | Path, already_split: bool = False, **options: Any
) -> Scores:
    """`xaieval.score` in one of several processes that share a run.

    The processes meet in the output folder: each takes the next batch that nobody has, until all batches are measured. They may
    come and go at any time, and need no connection. The rows equal those of a single process, in the same order.
    `xaieval.score` with the same folder takes part, too. This function adds what depends on the number of the process, which
    torchrun, `srun` and `mpirun` tell by variables (see `Rank`): the device "cuda" is its own GPU, only the first process shows
    its progress, and `already_split`.

    Args:
        model: The same in every process.
        loader: The same in every process, with all images; or see `already_split`.
        *args: Of `xaieval.score`.
        output_dir: A folder that all processes can reach, also from other machines.
        already_split: The loader gives a different part of the data in each process, all of which is kept. The run then needs
            as many processes as when it began. Images without ids are named by process and position, such as "r1-0", and
            `max_images` is divided among the processes.
        **options: Of `xaieval.score`.

    Returns:
        All rows, in every process.

    Raises:
        UsageError: One of its kinds, for arguments that cannot work, or if the processes do not measure the same run.
        RunError: As for `xaieval.score`.

    Example:
        >>> import tempfile
        >>> batches = [torch.rand(4, 3, 64, 64)]
        >>> scores = score(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), batches, ["0"],
        ...                output_dir=tempfile.mkdtemp(), progress=False)
        >>> len(scores.rows)
        4
    """
    rank = Rank(dist.get_rank(), dist.get_world_size()) if _has_group() else Rank.from_environment()
    shared = SharedLoader(loader, rank, already_split)
    options["device"] = _device(options)
    options["progress"] = options.get("progress", True) and rank.is_first
    with sigterm_interrupts():
        return loop.score(model, shared, *args, output_dir=output_dir, **options)


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device(options: Mapping[str, Any]) -> torch.device | str | None:
    """The device of this process: that of the call, or this process's own GPU if that is "cuda"."""
    how: Inference = options.get("inference") or Inference()
    device = options.get("device", how.device)
    local = Rank.local()
    if device is None or str(device) != "cuda" or local is None:
        return device
    return f"cuda:{local % max(torch.cuda.device_count(), 1)}"
