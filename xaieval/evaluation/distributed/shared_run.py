"""One run in several processes, on one machine or many: each scores its share, and the first merges the rows."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from xaieval.config.controls import resolve_controls
from xaieval.config.protocol import resolve_protocol
from xaieval.data.batches import Batch
from xaieval.data.each_class import EACH
from xaieval.errors import DataError, ModelError, RunError, UsageError, XaievalError
from xaieval.evaluation import loop
from xaieval.evaluation.distributed.merge import Share, merge, rank_folder
from xaieval.evaluation.distributed.rank import Rank, describe
from xaieval.evaluation.distributed.shards import Shard, shard
from xaieval.evaluation.fingerprint import fingerprint
from xaieval.evaluation.image_order import first_images
from xaieval.evaluation.matched import DONORS
from xaieval.evaluation.scores import Scores
from xaieval.inference.options import Inference
from xaieval.models.blackbox import as_module
from xaieval.results.rows import failed_rows

__all__ = ["Rank", "score"]

# Ranks that have finished wait for the others, whose shares may take hours longer. A rank that dies is noticed at once anyway.
PATIENCE = timedelta(days=365)
GRACE = 3.0  # seconds that the launcher gets to notice the rank that failed, before another one ends because of it

_meetings = count()  # of this process; each has its own names in the store that torchrun keeps


def score(
    model: nn.Module, loader: Iterable[Any], *args: Any, output_dir: str | Path, already_split: bool = False, **options: Any
) -> Scores:
    """`xaieval.score` in each of several processes that torchrun started: each takes its share, the first one merges.

    The rows equal those of a single process, in the same order (see `xaieval.evaluation.distributed.shards.shard`). Each
    process writes its own rows into `output_dir/ranks/`, so that they are kept if another process fails. A single process
    scores as `xaieval.score` does.

    Args:
        model: The same in every process.
        loader: The same in every process, with all images; or see `already_split`.
        *args: Of `xaieval.score`.
        output_dir: A folder that all processes can reach, also from other machines.
        already_split: The loader gives a different part of the data in each process.
        **options: Of `xaieval.score`; the device "cuda" is the GPU of this process.

    Returns:
        All rows in the first process, its own rows in every other one.

    Raises:
        UsageError: One of its kinds, for arguments that cannot work.
        RunError: Another process failed, or the processes did not measure the same run.

    Example:
        >>> import tempfile
        >>> batches = [torch.rand(4, 3, 64, 64)]
        >>> scores = score(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), batches, ["0"],
        ...                output_dir=tempfile.mkdtemp(), progress=False)
        >>> len(scores.rows)  # as one process: torchrun did not start this one
        4
    """
    rank = Rank(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Rank.from_environment()
    if rank.alone:
        return loop.score(model, loader, *args, output_dir=output_dir, **options)
    if options.get("stop") is not None:
        raise UsageError("stop= works in one process only, which sees all images so far; score without it, or without torchrun")
    if _target(args, options) == EACH:
        raise UsageError("target 'each' works in one process only; score one run for each class, or without torchrun")
    model = as_module(model)
    options["device"] = _device(options)
    options["progress"] = options.get("progress", True) and rank.is_first
    with _meet(rank) as others:
        part = shard(
            loader,
            rank.rank,
            rank.world,
            max_images=options.get("max_images"),
            seed=options.get("seed", 0),
            already_split=already_split,
        )
        _check_same(others, part.order, fingerprint(model))
        if "swapped" in resolve_controls(options.get("controls", False)).matched:
            part.donors = _first_of_all(others, part)
        own = _score_share(model, part, args, rank_folder(output_dir, rank), options)
        shares = others.gather(Share.of(part, written=own is not None))
        _check_same(others, part.order)
        if not any(share.written for share in shares):
            return _score_nothing(model, shares, args, options)
        if rank.is_first:
            own = merge(output_dir, shares)
        others.gather("merged")
    return Scores(failed_rows([], [], []), {"metrics": []}) if own is None else own


# ---- one process


def _device(options: Mapping[str, Any]) -> torch.device | str | None:
    """The device of this process: that of the call, or this process's own GPU if that is "cuda"."""
    how: Inference = options.get("inference") or Inference()
    device = options.get("device", how.device)
    if device is None or str(device) != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return f"cuda:{int(os.environ['LOCAL_RANK']) % max(torch.cuda.device_count(), 1)}"


def _target(args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """The target of a call of `xaieval.score`, of which these are the arguments after the loader."""
    given = dict(zip(("layers", "methods", "metrics", "target", "protocol"), args, strict=False)) | dict(options)
    target = given.get("target")
    return resolve_protocol(given.get("protocol", "default")).target if target is None else target


def _first_of_all(others: _Others, part: Shard) -> list[Batch]:
    """The first images of the whole data, which no process may have all of."""
    batches = [numbered for own in others.gather(part.first(DONORS)) for numbered in own]
    return first_images((batch for _, batch in sorted(batches, key=itemgetter(0))), DONORS)


def _score_share(model: nn.Module, part: Shard, args: Sequence[Any], folder: Path, options: Mapping[str, Any]) -> Scores | None:
    """The rows of this process, written into its folder; None if no image of its share could be read."""
    try:
        with _sigterm_raises(part):
            own = loop.score(model, part, *args, output_dir=folder, **options)
        part.finish()
        return own
    except XaievalError:
        # A share without images is an error only in a run of a single process.
        if part.finished and not part.readable:
            return None
        raise


@contextmanager
def _sigterm_raises(part: Shard) -> Iterator[None]:
    """Keep the rows when the launcher sends SIGTERM because another process died.

    Outside of this context SIGTERM ends the process at once: it may be waiting for others, where Python cannot react.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; what is being written is finished
        if not part.finished:
            raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _score_nothing(model: nn.Module, shares: Sequence[Share], args: Sequence[Any], options: Mapping[str, Any]) -> Scores:
    """Raise what a single process raises if it can read no image."""
    failures = [failure for share in shares for failure in share.failures]
    return loop.score(model, [{"failed": failures}] if failures else [], *args, **options)


# ---- meeting the others


@dataclass(frozen=True)
class _Others:
    """The processes of a run, as one of them sees them."""

    rank: Rank
    group: Any
    store: Any  # None if the process group belongs to the caller

    def gather(self, mine: Any) -> list[Any]:
        """The values of all processes, in the order of the ranks.

        Raises:
            RunError: One of them has ended.
        """
        found = [None] * self.rank.world
        try:
            dist.all_gather_object(found, mine, group=self.group)
        except RuntimeError as error:
            time.sleep(GRACE)
            raise RunError(self.last_words() or "another rank ended early; its own message says why") from error
        return found

    def last_words(self) -> str | None:
        """The message of the first process that failed, if it is known."""
        if self.store is not None:
            with suppress(RuntimeError):  # the store has closed
                if self.store.check(["failed"]):
                    return self.store.get("failed").decode()
        return None

    def say(self, error: BaseException) -> None:
        """Leave a message for the others that this process fails."""
        if self.store is not None:
            with suppress(RuntimeError):
                self.store.compare_set("failed", "", f"rank {self.rank.rank} failed: {describe(error)}")


@contextmanager
def _meet(rank: Rank) -> Iterator[_Others]:
    """Connect the processes by a gloo process group; process groups of the caller stay."""
    made, store = not dist.is_initialized(), None
    if made:
        try:
            plain = _store(rank, os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"))
        except (ValueError, RuntimeError) as error:
            raise RunError(f"rank {rank.rank} cannot reach the others: {error}; start them by torchrun") from error
        attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}-{next(_meetings)}"
        store = PrefixStore(f"xaieval-{attempt}", plain)
    with _printing_to_stderr():
        if made:
            dist.init_process_group("gloo", store=store, rank=rank.rank, world_size=rank.world)
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
    others = _Others(rank, group, store)
    try:
        yield others
    except Exception as error:
        others.say(error)
        raise
    finally:
        dist.destroy_process_group(None if made else group)


@contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Send to stderr what gloo prints on connecting in torch 2.8 to 2.10, so that stdout holds only results."""
    if torch.__version__ >= "2.11":
        yield
        return
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@lru_cache(maxsize=1)
def _store(rank: Rank, address: str | None, port: str | None) -> Any:
    """The store that the environment names, kept as long as the process lives.

    Without torchrun the first process serves it. If it closed with each connection, a process that is early for the next
    one would connect to a server that is about to close.
    """
    store, _, _ = next(rendezvous("env://", rank.rank, rank.world))
    return store


def _check_same(others: _Others, order: str | None = None, model: str | None = None) -> None:
    """Refuse processes that would measure different runs."""
    for what, kind, mend, mine in (
        (
            "orders of the images",
            DataError,
            "give a loader that does not shuffle, or does so by a generator with a seed; if the loader gives each process "
            "another part of the data, say already_split",
            order,
        ),
        ("models", ModelError, "load the same weights in each, or build the model after torch.manual_seed", model),
    ):
        values = [] if mine is None else others.gather(mine)
        odd = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if odd is not None:
            raise kind(f"ranks 0 and {odd} have different {what}; {mend}")
