"""Which of several processes this one is, and what it tells the one that started it; without torch."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from xaieval.errors import UsageError, XaievalError

__all__ = ["LAUNCHED", "Rank", "describe", "is_rank", "is_spoken_for", "report_failure"]

# The name of a job that `xaieval-bench score --nproc` starts: what its ranks have to say, the command says for them.
LAUNCHED = "xaieval-bench-nproc"


@dataclass(frozen=True)
class Rank:
    """One process among several.

    Attributes:
        rank: its number, from 0.
        world: how many there are.

    Example:
        >>> Rank(1, 4)
        Rank(rank=1, world=4)
        >>> Rank().alone
        True
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise UsageError(f"a rank is at least 0 and below the number of processes; got rank {self.rank} of {self.world}")

    @classmethod
    def from_environment(cls) -> Rank:
        """What torchrun says in RANK and WORLD_SIZE; the only process where it did not start this one.

        Raises:
            UsageError: the two are no whole numbers, or do not fit.
        """
        given = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
        if not is_rank():
            return cls()
        try:
            return cls(int(given["RANK"]), int(given["WORLD_SIZE"]))
        except ValueError as error:
            raise UsageError(
                f"torchrun sets RANK and WORLD_SIZE to whole numbers, 0 <= RANK < WORLD_SIZE; got {given}"
            ) from error

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.world == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that merges, prints and draws."""
        return self.rank == 0


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ


def is_spoken_for() -> bool:
    """Whether `xaieval-bench score --nproc` started this process, and prints its errors."""
    return os.environ.get("TORCHELASTIC_RUN_ID") == LAUNCHED


def describe(error: BaseException) -> str:
    """An error in one line: its class too, unless the message was written for the reader.

    Example:
        >>> describe(ZeroDivisionError("division by zero"))
        'ZeroDivisionError: division by zero'
        >>> describe(UsageError("seed is at least 0"))
        'seed is at least 0'
    """
    text = " ".join(str(error).split())
    return text if isinstance(error, XaievalError) else f"{type(error).__name__}: {text}"


def report_failure(message: str) -> None:
    """Leave word for torchrun, or for the command that started this process, why it ends; without them do nothing."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is not None:
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")
