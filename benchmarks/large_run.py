"""Cost of a very large run besides its forward passes: making, writing, reading and summarising rows.

    python benchmarks/large_run.py

makes the rows of 20,000 images x 16 layers x 4 methods from random confidences, batch by batch as `score` does. It prints rows
per second on one core for each step, bytes per row, and what these mean for the 82.0 million rows of ImageNet's 1.28 million
training images. Writes `benchmarks/large_run.csv`.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cyclopts
import pandas as pd
import torch

from xaieval.config.protocol import Protocol
from xaieval.evaluation.batch_rows import Measured, measured_rows
from xaieval.evaluation.scores import Scores
from xaieval.metrics import resolve_metrics
from xaieval.results.files import ROWS

LAYERS, METHODS = 16, 4
BATCH = 256
IMAGENET = 1_281_167
RESULTS = Path(__file__).with_suffix(".csv")


def main(images: int = 20_000) -> None:
    """Time each step once on one core."""
    torch.set_num_threads(1)
    pairs = [(f"layer{layer}", f"method{method}") for layer in range(LAYERS) for method in range(METHODS)]
    metrics = resolve_metrics(["average_drop", "increase_in_confidence"])
    batches = [_measured(start, min(BATCH, images - start), len(pairs)) for start in range(0, images, BATCH)]
    manifest = {"metrics": [{"name": m.name, "interval": m.interval, "label": m.label} for m in metrics], "seed": 0}
    steps: dict[str, float] = {}
    frames = _timed(steps, "rows of batches", lambda: [measured_rows(batch, pairs, metrics, Protocol()) for batch in batches])
    rows = _timed(steps, "joining", lambda: pd.concat(frames, ignore_index=True))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ROWS
        _timed(steps, "writing parquet", lambda: rows.to_parquet(file, index=False))
        size = file.stat().st_size
        _timed(steps, "reading parquet", lambda: pd.read_parquet(file))
    count = images * len(pairs)
    table = pd.DataFrame({"step": list(steps), "rows": count, "seconds": list(steps.values())})
    # The cost of intervals depends on the images per layer and method, so one full-size pair represents all.
    one = rows.iloc[: IMAGENET % count].assign(layer="layer", method="method")
    full = pd.concat([one] * (IMAGENET // len(one) + 1), ignore_index=True)[:IMAGENET]
    _timed(steps, "summary", Scores(full, manifest).summary)
    table.loc[len(table)] = ["summary", len(full), steps["summary"]]
    table["rows_per_second"] = (table["rows"] / table["seconds"]).round()
    table["minutes_for_imagenet"] = (IMAGENET * len(pairs) / table["rows_per_second"] / 60).round(1)
    table.to_csv(RESULTS, index=False)
    print(table.to_string(index=False))
    file_bytes, bytes_held = size / count, rows.memory_usage(deep=True).sum() / count
    print(f"{count:,} rows: {file_bytes:.1f} bytes per row in the file, {bytes_held:.0f} in memory")
    all_rows = IMAGENET * len(pairs) / 1e9
    print(f"ImageNet: {file_bytes * all_rows:.1f} GB of file, {bytes_held * all_rows:.0f} GB in memory")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


def _timed(steps: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    start = time.process_time()
    result = work()
    steps[name] = time.process_time() - start
    return result


def _measured(start: int, count: int, pairs: int) -> Measured:
    generator = torch.Generator().manual_seed(start)
    flags = torch.zeros(pairs, count, dtype=torch.bool)
    classes = torch.randint(1000, (count,), generator=generator)
    return Measured(
        ids=[f"n{int(label):08d}/n{int(label):08d}_{start + i}.JPEG" for i, label in enumerate(classes)],
        labels=classes,
        predicted=classes,
        targets=classes,
        has_target=torch.ones(count, dtype=torch.bool),
        confidence=torch.rand(count, generator=generator, dtype=torch.float64),
        masked=torch.rand(pairs, count, generator=generator, dtype=torch.float64),
        areas=torch.rand(pairs, count, generator=generator),
        constant=flags,
        invalid=flags,
    )


if __name__ == "__main__":
    cyclopts.run(main)
