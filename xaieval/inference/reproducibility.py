"""Save and restore the state of the process: global random numbers, and torch's deterministic settings.

All threads share this state. Overlapping uses are counted: the first one saves the state, the last one restores it.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from xaieval.errors import UsageError

__all__ = [
    "ONE_AT_A_TIME",
    "check_repeatable",
    "random_states",
    "repeatable",
    "same_random_numbers",
    "same_states",
    "seed_from",
]

# Held by code that changes the random numbers or the warnings of all threads temporarily, so that no other thread interferes.
ONE_AT_A_TIME = threading.RLock()


@dataclass
class _Shared:
    """State that all threads share, and that some of them change."""

    save: Callable[[], dict[str, Any]]
    restore: Callable[[dict[str, Any]], None]
    users: int = 0
    before: dict[str, Any] | None = None

    @contextmanager
    def used(self) -> Iterator[dict[str, Any]]:
        """Use the state inside this context; yields its value before the first use."""
        with ONE_AT_A_TIME:
            before = self.before = self.save() if self.before is None else self.before
            self.users += 1
        try:
            yield before
        finally:
            with ONE_AT_A_TIME:
                self.users -= 1
                if not self.users:
                    self.before = None
                    self.restore(before)


def random_states() -> dict[str, Any]:
    """The states of the global random generators, by library; GPU generators only if CUDA is initialised."""
    states = {"torch": torch.get_rng_state(), "NumPy": np.random.get_state(), "Python": random.getstate()}  # noqa: NPY002  # the global generator is meant
    return states | ({"CUDA": tuple(torch.cuda.get_rng_state_all())} if torch.cuda.is_initialized() else {})


def same_states(states: dict[str, Any], others: dict[str, Any]) -> bool:
    """Whether no random number was drawn between two states of the generators.

    Example:
        >>> before = random_states()
        >>> _ = torch.rand(1)
        >>> same_states(before, before), same_states(before, random_states())
        (True, False)
    """
    shared = states.keys() & others.keys()  # CUDA may have been initialised in between
    pairs = [pair for key in shared for pair in zip(tree_leaves(states[key]), tree_leaves(others[key]), strict=True)]
    return all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in pairs)


def _restore_random(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["NumPy"])  # noqa: NPY002  # the global generator is meant
    random.setstate(states["Python"])
    if "CUDA" in states:
        torch.cuda.set_rng_state_all(states["CUDA"])


def _switches() -> dict[str, Any]:
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "threads": torch.get_num_threads(),
    }


def _restore_switches(before: dict[str, Any]) -> None:
    torch.use_deterministic_algorithms(before["algorithms"], warn_only=before["warn_only"])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before["cudnn"]


_random_numbers = _Shared(random_states, _restore_random)
_repeating = _Shared(_switches, _restore_switches)


def seed_from(*parts: object, bits: int = 63) -> int:
    """A seed for a random number generator: a hash of its parts, the same in every process and on every machine.

    Args:
        parts: What decides the seed, such as the seed of a run and the id of an image.
        bits: Size of the number, at most 64. NumPy takes 32, and torch signed numbers of 64 bits.

    Example:
        >>> seed_from(0, "airplane00.jpg"), seed_from(0, "airplane00.jpg", bits=32)
        (6038946221980792354, 2812103471)
    """
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - bits)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Restore the global random state of torch, NumPy and Python on exit.

    If such contexts are nested, or overlap in several threads, the state is restored at the end of the last one.

    Example:
        >>> before = torch.get_rng_state()
        >>> with same_random_numbers():
        ...     drawn = torch.rand(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    with _random_numbers.used():
        yield


@contextmanager
def repeatable() -> Iterator[None]:
    """Make torch return the same bits for the same input, or raise where it cannot.

    torch uses one CPU thread, because sums over another number of parts have other bits. The settings hold for all threads, and
    are restored on exit.

    Raises:
        UsageError: An operation has no deterministic implementation.

    Example:
        >>> with repeatable():
        ...     torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
        (True, 1)
    """
    with _repeating.used() as before:
        try:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
            torch.set_num_threads(1)
            yield
        except RuntimeError as error:
            if "use_deterministic_algorithms" not in str(error):
                raise
            raise UsageError(f"deterministic=True cannot be kept: {_reason(str(error))}") from error
        finally:
            torch.set_num_threads(before["threads"])  # for this thread: each thread has its own number


def check_repeatable(compile: bool, tries: bool) -> None:
    """Refuse options whose results can differ by rounding between runs.

    Args:
        compile: Whether the model is to be compiled.
        tries: Whether the run chooses its precision by what is faster.

    Raises:
        UsageError: One of them is.
    """
    if tries:
        raise UsageError("deterministic=True cannot choose a precision by its speed; name one instead of precision='auto'")
    if compile:
        raise UsageError("deterministic=True cannot run a compiled model; leave out one of deterministic=True and compile=True")


def _reason(message: str) -> str:
    """The relevant part of torch's message, and what to do."""
    if "CUBLAS_WORKSPACE_CONFIG" in message:
        return "cuBLAS needs the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8 before Python starts"
    return f"{message.split(', but')[0]}; leave out what needs it, or deterministic=True"
