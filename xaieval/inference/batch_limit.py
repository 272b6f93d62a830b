"""Work on fewer images at a time when memory has no room for more.

A GPU raises when its memory is full. A CPU does not: the system ends the process. There a budget takes the place of the error:
the first image goes alone while the bytes of its tensors are counted, and as many go together as the budget then has room for.
"""

from __future__ import annotations

import gc
import logging
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xaieval.data.batches import Batch
from xaieval.errors import RunError, UsageError

__all__ = ["BatchLimit", "OverBudgetError", "in_batches", "is_out_of_memory", "parse_bytes", "refused_without_room"]

T = TypeVar("T")
log = logging.getLogger("xaieval")

UNITS = {"B": 1} | {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)}

# Of errors that are no torch.OutOfMemoryError: of the CPU's allocator on Linux and on Windows, of Apple's GPUs and of other
# libraries on a GPU, and of cuBLAS and cuDNN, which allocate memory themselves.
TEXTS = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")


class OverBudgetError(MemoryError):
    """More bytes are in use than the budget has."""


@dataclass
class BatchLimit:
    """How many images a pass takes; fewer once that many did not fit, and never more again.

    Attributes:
        size: images in a pass, at least 1.
        budget: bytes that the tensors of a batch may take; None for as many as there are.
        known: shapes of images of which one has been watched.
    """

    size: int
    budget: int | None = None
    known: set[tuple[int, ...]] = field(default_factory=set)

    def parts(self, count: int, work: Callable[[slice], T]) -> list[T]:
        """Results of work on `count` images, part by part in order; a part that does not fit is halved and done again.

        Work on a part may itself ask for parts. Where the inner ones do not fit one by one, the outer one is made smaller.

        Args:
            count: images.
            work: from a part of them, at most `size`, to its result.

        Raises:
            MemoryError: or another kind that `is_out_of_memory` knows: not even one image fits.

        Example:
            >>> def at_most_three(part):
            ...     if part.stop - part.start > 3:
            ...         raise MemoryError
            ...     return part.stop - part.start
            >>> batch_limit = BatchLimit(size=8)
            >>> batch_limit.parts(9, at_most_three), batch_limit.size
            ([2, 2, 2, 2, 1], 2)
        """
        found: list[T] = []
        start = 0
        while start < count:
            size = self.size
            stop = min(start + size, count)
            try:
                found.append(work(slice(start, stop)))
                start = stop
                continue
            except Exception as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                reason = _reason(error)
            self._shrink(size, reason)  # out of the handler, where the error no longer holds what was in use
        return found

    def first(self, images: Tensor, work: Callable[[Tensor], T]) -> T:
        """What work gives on the first two images, or on the first one if memory has no room for two."""
        return self.parts(min(len(images), 2), lambda part: work(images[part]))[0]

    def alone(self, shape: Sequence[int], work: Callable[[], T]) -> T:
        """Do work on one image, in passes of one, and go on with as many at a time as the budget has room for.

        Nothing that is done with a batch takes more memory than so many times that for one image.

        Args:
            shape: of the image.
            work: on it.

        Raises:
            OverBudgetError: even that takes too much.
        """
        size, self.size = self.size, 1
        watch = _Watch(self.budget)
        try:
            with watch:
                found = work()
        finally:
            self.size = size
        self.known.add(tuple(shape))
        most = size if self.budget is None else max(1, self.budget // max(1, watch.peak))
        if most < size:
            self.size = most
            used = f"one takes {watch.peak / 2**20:.1f} MiB"
            log.warning("passes of %d images do not fit in the budget of memory, %d from here on: %s", size, most, used)
        return found

    def _shrink(self, size: int, reason: str) -> None:
        """Go on with half of the size that was tried, unless work inside of it went further already; free what can be freed."""
        if self.size == size:
            self.size = size // 2
            log.warning("passes of %d images do not fit in memory, %d from here on: %s", size, self.size, reason)
        gc.collect()
        torch.cuda.empty_cache()
        torch.xpu.empty_cache()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()


def in_batches(batch_limit: BatchLimit, batch: Batch, work: Callable[[Batch], T]) -> list[T]:
    """Results of work on a batch: on all of it, or on parts of it where memory has no room for more.

    Args:
        batch_limit: of the run.
        batch: of at least one image.
        work: from a batch to what is wanted of it, which does not depend on what else is in the batch.

    Raises:
        RunError: a single image does not fit.
    """
    shape = tuple(batch.images.shape[1:])
    with refused_without_room():
        unmeasured = batch_limit.budget is not None and shape not in batch_limit.known
        first = [batch_limit.alone(shape, lambda: work(batch.part(0, 1, [])))] if unmeasured else []
        rest = batch.part(len(first), len(batch), [])
        return first + batch_limit.parts(len(rest), lambda part: work(rest.part(part.start, part.stop, [])))


@contextmanager
def refused_without_room() -> Iterator[None]:
    """Say that memory is full as an error of ours.

    Raises:
        RunError: with the reason, and what may mend it.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"memory has no room for a single image: {_reason(error)}; take smaller images, deeper layers (what comes "
            "after the shallowest one is kept for gradients), a device with more memory, or a higher memory= if one is set"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full, on whatever device.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))
        True
        >>> is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
        False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in TEXTS)


def parse_bytes(memory: int | str | None) -> int | None:
    """A number of bytes, or of larger units of 1000 (KB, MB, GB, TB) or 1024 (KiB, MiB, GiB, TiB).

    Raises:
        UsageError: it is none.

    Example:
        >>> parse_bytes("1.5 GiB"), parse_bytes("500MB"), parse_bytes(4096)
        (1610612736, 500000000, 4096)
    """
    if memory is None:
        return None
    read = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", str(memory).strip().upper())
    unit = UNITS.get(read[2] or "B") if read else None
    found = int(float(read[1]) * unit) if read and unit else 0
    if found < 1:
        raise UsageError(f"memory is a number of bytes, such as 4294967296, '4 GiB' or '500 MB'; got {memory!r}")
    return found


def _reason(error: BaseException) -> str:
    """The first sentence of what an error says, without advice on settings of the allocator."""
    text = " ".join(str(error).split())
    return re.split(r"(?<=[^\d])\. |; ", text)[0].removesuffix(".") or type(error).__name__


class _Watch(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is entered, for as long as they live.

    It sees what operations return, and not what they use in between. It counts storages, which several tensors may share.
    """

    supports_higher_order_operators = True

    def __init__(self, budget: int | None) -> None:
        super().__init__()
        self.budget = budget
        self.used = 0
        self.peak = 0
        self.seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload):  # in inference mode some are made of others, which are to be seen
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        self._note((args, kwargs), new=False)
        found = func(*args, **kwargs)
        self._note(found, new=True)
        self.peak = max(self.peak, self.used)
        if self.budget is not None and self.used > self.budget:
            raise OverBudgetError(f"tensors take more than the {self.budget / 2**20:.1f} MiB of memory=")
        return found

    def _note(self, values: Any, new: bool) -> None:
        """Count the tensors among some values, if they are new; what an operation is given unseen was there before."""
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)):
            address, size = storage.data_ptr(), storage.nbytes() if new else 0
            if address and address not in self.seen:
                self.seen[address] = weakref.ref(storage, partial(self._forget, address, size))
                self.used += size

    def _forget(self, address: int, size: int, _: Any) -> None:
        del self.seen[address]
        self.used -= size
