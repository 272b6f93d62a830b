"""What belongs to the whole process and is put back as it was: random numbers, and the switches by which torch repeats itself.

Threads share these, so that what several of them do at a time is counted: the first one saves, the last one puts back.
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

from xaieval.errors import UsageError

__all__ = ["ONE_AT_A_TIME", "check_repeatable", "random_states", "repeatable", "same_random_numbers", "seed_from"]

# Held by whoever changes the random numbers or the warnings of all threads for a while, and needs them to stay that way.
ONE_AT_A_TIME = threading.RLock()


@dataclass
class _Shared:
    """Something that all threads share, and that some of them have changed."""

    save: Callable[[], dict[str, Any]]
    put_back: Callable[[dict[str, Any]], None]
    users: int = 0
    before: dict[str, Any] | None = None

    @contextmanager
    def used(self) -> Iterator[dict[str, Any]]:
        """Have it for a while; gives what it was before anybody had it."""
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
                    self.put_back(before)


def random_states() -> dict[str, Any]:
    """The states of the global random numbers, by whose they are; those of GPUs only where these are in use."""
    states = {"torch": torch.get_rng_state(), "NumPy": np.random.get_state(), "Python": random.getstate()}  # noqa: NPY002  # these are the ones to watch
    return states | ({"CUDA": tuple(torch.cuda.get_rng_state_all())} if torch.cuda.is_initialized() else {})


def _put_back_random(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["NumPy"])  # noqa: NPY002  # likewise
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


def _put_back_switches(before: dict[str, Any]) -> None:
    torch.use_deterministic_algorithms(before["algorithms"], warn_only=before["warn_only"])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before["cudnn"]


_random_numbers = _Shared(random_states, _put_back_random)
_repeating = _Shared(_switches, _put_back_switches)


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
    """The global random numbers of torch, NumPy and Python go on afterwards as if nothing had been.

    Where such contexts are inside one another, or overlap in several threads, that is so after the last one.

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
    """Have torch give the same bits for the same input, or raise where it cannot.

    In one thread, since sums of another number of parts have other bits. Meanwhile that is so for all threads; afterwards
    everything is as it was.

    Raises:
        UsageError: something was asked for that torch cannot repeat.

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
            torch.set_num_threads(before["threads"])  # of this thread, each has its own


def check_repeatable(compile: bool) -> None:
    """Refuse what may round otherwise the next time.

    Raises:
        UsageError: with what to leave out.
    """
    if compile:
        raise UsageError("deterministic=True runs the model's modules as they are; leave it out, or compile=True")


def _reason(message: str) -> str:
    """What matters of torch's message, and what to do."""
    if "CUBLAS_WORKSPACE_CONFIG" in message:
        return "cuBLAS needs the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8 before Python starts"
    return f"{message.split(', but')[0]}; leave out what needs it, or deterministic=True"
