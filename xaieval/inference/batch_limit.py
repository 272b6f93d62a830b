"""Limit the number of images in a pass to what fits in memory.

A GPU raises an error when its memory is full. On a CPU the operating system kills the process instead, so a memory budget can
be set: the first image runs alone while the bytes of its tensors are counted, and the batch size follows from that number.
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

__all__ = ["BatchLimit", "OverBudgetError", "in_batches", "is_out_of_memory", "out_of_memory_is_run_error", "parse_bytes"]

T = TypeVar("T")
log = logging.getLogger("xaieval")

UNITS = {"B": 1} | {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)}

# Messages of out-of-memory errors that are not a torch.OutOfMemoryError: from the CPU allocator on Linux and Windows, from
# Apple GPUs and other GPU libraries, and from cuBLAS and cuDNN, which allocate memory themselves.
TEXTS = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")


class OverBudgetError(MemoryError):
    """More bytes are in use than the memory budget allows."""


@dataclass
class BatchLimit:
    """The number of images in a pass. It shrinks when a pass does not fit in memory, and never grows again.

    Attributes:
        size: Images in a pass, at least 1.
        budget: Bytes that the tensors of a batch may take; None for no limit.
        measured_shapes: Image shapes whose memory use is known.
    """

    size: int
    budget: int | None = None
    measured_shapes: set[tuple[int, ...]] = field(default_factory=set)

    def parts(self, count: int, work: Callable[[slice], T]) -> list[T]:
        """Process `count` images part by part, and return the results in order.

        A part that does not fit in memory is halved and run again. `work` may call `parts` itself: if even single images of the
        inner call do not fit, the outer part is halved.

        Args:
            count: The number of images.
            work: Maps a part, a slice of at most `size` images, to its result.

        Raises:
            MemoryError: Not even one image fits. The error can be of any kind that `is_out_of_memory` recognises.

        Example:
            >>> def at_most_three(part):
            ...     if part.stop - part.start > 3:
            ...         raise MemoryError
            ...     return part.stop - part.start
            >>> batch_limit = BatchLimit(size=8)
            >>> batch_limit.parts(9, at_most_three), batch_limit.size
            ([2, 2, 2, 2, 1], 2)
        """
        results: list[T] = []
        start = 0
        while start < count:
            size = self.size
            stop = min(start + size, count)
            try:
                results.append(work(slice(start, stop)))
                start = stop
                continue
            except Exception as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                reason = _reason(error)
            self._shrink(size, reason)  # outside the handler: the error no longer keeps tensors alive
        return results

    def first(self, images: Tensor, work: Callable[[Tensor], T]) -> T:
        """Apply `work` to the first two images, or to the first one if two do not fit in memory."""
        return self.parts(min(len(images), 2), lambda part: work(images[part]))[0]

    def measure_one(self, shape: Sequence[int], work: Callable[[], T]) -> T:
        """Process one image, measure the memory that it takes, and set the size to what the budget allows.

        The memory of a batch of n images is at most n times that of one image.

        Args:
            shape: The shape of the image.
            work: Processes the image.

        Raises:
            OverBudgetError: One image exceeds the budget.
        """
        size, self.size = self.size, 1
        watch = _Watch(self.budget)
        try:
            with watch:
                result = work()
        finally:
            self.size = size
        self.measured_shapes.add(tuple(shape))
        most = size if self.budget is None else max(1, self.budget // max(1, watch.peak))
        if most < size:
            self.size = most
            used = f"one takes {watch.peak / 2**20:.1f} MiB"
            log.warning("passes of %d images do not fit in the memory budget, %d from here on: %s", size, most, used)
        return result

    def _shrink(self, size: int, reason: str) -> None:
        """Halve the size that failed, unless a nested call already did, and free cached memory."""
        if self.size == size:
            self.size = size // 2
            log.warning("passes of %d images do not fit in memory, %d from here on: %s", size, self.size, reason)
        gc.collect()
        torch.cuda.empty_cache()
        torch.xpu.empty_cache()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()


def in_batches(batch_limit: BatchLimit, batch: Batch, work: Callable[[Batch], T]) -> list[T]:
    """Process a batch as a whole, or in parts if it does not fit in memory, and return the results in order.

    Args:
        batch_limit: The limit of the run.
        batch: A batch of at least one image.
        work: Maps a batch to its result. The result of an image must not depend on the other images.

    Raises:
        RunError: A single image does not fit.
    """
    shape = tuple(batch.images.shape[1:])
    with out_of_memory_is_run_error():
        unmeasured = batch_limit.budget is not None and shape not in batch_limit.measured_shapes
        first = [batch_limit.measure_one(shape, lambda: work(batch.part(0, 1, [])))] if unmeasured else []
        rest = batch.part(len(first), len(batch), [])
        return first + batch_limit.parts(len(rest), lambda part: work(rest.part(part.start, part.stop, [])))


@contextmanager
def out_of_memory_is_run_error() -> Iterator[None]:
    """Turn out-of-memory errors into a `RunError`.

    Raises:
        RunError: Memory is full; the message gives the reason and ways out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"a single image does not fit in memory: {_reason(error)}; use smaller images, deeper layers (everything after "
            "the shallowest one is kept for gradients), a device with more memory, or a larger memory= if one is set"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is full, on any device.

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
    """Convert a size to bytes. Units are powers of 1000 (KB, MB, GB, TB) or of 1024 (KiB, MiB, GiB, TiB).

    Raises:
        UsageError: The text is not a size.

    Example:
        >>> parse_bytes("1.5 GiB"), parse_bytes("500MB"), parse_bytes(4096)
        (1610612736, 500000000, 4096)
    """
    if memory is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", str(memory).strip().upper())
    unit = UNITS.get(match[2] or "B") if match else None
    count = int(float(match[1]) * unit) if match and unit else 0
    if count < 1:
        raise UsageError(f"memory is a number of bytes, such as 4294967296, '4 GiB' or '500 MB'; got {memory!r}")
    return count


def _reason(error: BaseException) -> str:
    """The first sentence of an error's message, without advice on allocator settings."""
    text = " ".join(str(error).split())
    return re.split(r"(?<=[^\d])\. |; ", text)[0].removesuffix(".") or type(error).__name__


class _Watch(TorchDispatchMode):
    """Counts the bytes of tensors that are created inside this context and are still alive.

    It counts what operations return, but not their temporary buffers. It counts storages, which several tensors can share.
    """

    supports_higher_order_operators = True

    def __init__(self, budget: int | None) -> None:
        super().__init__()
        self.budget = budget
        self.used = 0
        self.peak = 0
        self.storages: dict[int, weakref.ref[Any]] = {}  # by address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload):  # in inference mode some consist of others, which have to be counted
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self._note((args, kwargs), new=False)
        result = func(*args, **kwargs)
        self._note(result, new=True)
        self.peak = max(self.peak, self.used)
        if self.budget is not None and self.used > self.budget:
            raise OverBudgetError(f"tensors take more than the {self.budget / 2**20:.1f} MiB of memory=")
        return result

    def _note(self, values: Any, new: bool) -> None:
        """Count the tensors in `values` if they are new. An unknown input of an operation existed before this context."""
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)):
            address, size = storage.data_ptr(), storage.nbytes() if new else 0
            if address and address not in self.storages:
                self.storages[address] = weakref.ref(storage, partial(self._forget, address, size))
                self.used += size

    def _forget(self, address: int, size: int, _: Any) -> None:
        del self.storages[address]
        self.used -= size
