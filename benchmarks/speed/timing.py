"""Times of several contestants in one process, measured in turn, so that other load affects all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch

__all__ = ["alternate", "spread", "stopwatch"]


def stopwatch(work: Callable[[], object]) -> float:
    """Seconds that a call takes, with what it has left a GPU to do."""
    gc.collect()
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def alternate(contestants: Mapping[str, Callable[[], object]], rounds: int) -> pd.DataFrame:
    """Seconds by round (rows) and contestant (columns); every second round runs in the opposite order."""
    rows = []
    for number in range(rounds):
        names = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        rows.append({name: stopwatch(contestants[name]) for name in names})
    return pd.DataFrame(rows, columns=list(contestants))


def spread(values: pd.Series | list[float], name: str) -> dict[str, float]:
    """Median and range of numbers, as columns of a table."""
    values = np.asarray(values, dtype=float)
    return {name: float(np.median(values)), f"{name}_low": float(values.min()), f"{name}_high": float(values.max())}
