"""Cost of a very large run besides its forward passes: time and memory of its rows, from the batches to the report.

    python benchmarks/large_run.py --images 1281167

makes up the rows of so many images x 16 layers x 4 methods from random confidences, batch by batch as `score` does, and writes
them as the parts of a run. Each step after that runs in a process of its own, so that its peak memory is that of the step:
merging the parts into `rows.parquet`, opening the run with its checks, the summary, what the command line prints at the end,
and the report. Writes `benchmarks/large_run.csv`: rows per second of processor time, and the peak memory of the process, also
without what it had before the step, which is what importing torch and the others takes.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import pandas as pd
import pyarrow as pa

from xaieval.evaluation.scores import Scores
from xaieval.results.files import MANIFEST, ROWS
from xaieval.results.manifest import describe_data
from xaieval.results.part_files import SUFFIX, write_part
from xaieval.results.row_file import RowFile, merge_parts
from xaieval.results.row_tables import table_of

LAYERS, METHODS = 16, 4
BATCH = 32  # images of a part
DIFFERENT = 64  # parts whose confidences are drawn; the others are the same with other images
PAIRS = [(f"layer{layer}", f"method{method}") for layer in range(LAYERS) for method in range(METHODS)]
METRICS = ("average_drop", "increase_in_confidence")
FILES = {"make": f"parts/*{SUFFIX}", "merge": ROWS, "report": "report.html"}  # that a step writes
RESULTS = Path(__file__).with_suffix(".csv")


def main(images: int = 1_281_167, folder: Path | None = None, step: str | None = None) -> None:
    """Run all steps, each in a process of its own.

    Args:
        images: Number of images.
        folder: Where to write some GB (default: a temporary folder, which is removed). Steps that were taken there stay.
        step: For internal use: only this step.
    """
    if step is not None:
        _take_step(step, folder or Path(), images)
        return
    place = folder or Path(tempfile.mkdtemp())
    try:
        found = [_measured_step(name, place, images) for name in STEPS]
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)
    table = pd.DataFrame(found)
    table["rows_per_second"] = (table["rows"] / table["cpu_seconds"]).round().astype(int)
    table.to_csv(RESULTS, index=False)
    print(table.to_string(index=False))
    print(f"{_processor()}, Python {platform.python_version()}, pandas {pd.__version__}, pyarrow {pa.__version__}")


def make(folder: Path, images: int) -> None:
    """Write the parts of a run that is about to be merged, without waiting for the disk after each."""
    from xaieval.config.protocol import Protocol
    from xaieval.evaluation.batch_rows import measured_rows
    from xaieval.metrics import resolve_metrics

    os.fsync = lambda _: None
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    metrics = resolve_metrics(list(METRICS))
    drawn = [table_of(measured_rows(_measured(start), PAIRS, metrics, Protocol())) for start in range(DIFFERENT)]
    images_of_rows = pa.array(np.repeat(np.arange(BATCH, dtype=np.int32), len(PAIRS)))
    for number, start in enumerate(range(0, images, BATCH)):
        rows, count = drawn[number % DIFFERENT], min(BATCH, images - start)
        ids = [f"n{(start + place) // 1281:08d}/n{(start + place) // 1281:08d}_{start + place}.JPEG" for place in range(count)]
        names = pa.DictionaryArray.from_arrays(images_of_rows[: count * len(PAIRS)], pa.array(ids))
        part = rows.slice(0, count * len(PAIRS)).set_column(0, "image_id", names)
        write_part(folder / "parts" / f"{number:08d}{SUFFIX}", part, {"check": f"{count}:{number:08x}", "ids": ids})


def merge(folder: Path, images: int) -> None:
    """Merge the parts, and write the manifest, as at the end of a run."""
    merge_parts(sorted((folder / "parts").glob(f"*{SUFFIX}")), folder / ROWS)


def fingerprint(folder: Path, images: int) -> None:
    """Write the manifest, with the fingerprint of the images."""
    keys = ("name", "label", "higher_is_better", "interval")
    values = [(METRICS[0], "AD %", False, "mean"), (METRICS[1], "IC %", True, "wilson")]
    entries = [dict(zip(keys, entry, strict=True)) for entry in values]
    content = {"metrics": entries, "seed": 0, "complete": True, **describe_data(RowFile(folder / ROWS), [], [])}
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def load(folder: Path, images: int) -> None:
    """Open the run, which checks its rows."""
    Scores.load(folder)


def summary(folder: Path, images: int) -> None:
    """The means and their intervals."""
    _run(folder).summary().to_csv(folder / "summary.csv")


def end(folder: Path, images: int) -> None:
    """What is printed at the end of a run: findings, tests and the table, from a sample of the images where it has to be."""
    from xaieval.cli.tables import print_rankings, print_summary

    scores = _run(folder)
    print_summary(scores, pd.read_csv(folder / "summary.csv", index_col=[0, 1]), None, 0.95)
    print_rankings(scores, 0.95)


def report(folder: Path, images: int) -> None:
    """The HTML report, without maps."""
    _run(folder).to_html(folder / "report.html")


def read_metric(folder: Path, images: int) -> None:
    """One metric of one method at one layer."""
    Scores.load(folder, columns=["average_drop"], layers=["layer0"], methods=["method0"])


STEPS: dict[str, Callable[[Path, int], None]] = {
    "make": make,
    "merge": merge,
    "fingerprint": fingerprint,
    "load": load,
    "summary": summary,
    "end": end,
    "report": report,
    "read_metric": read_metric,
}


def _run(folder: Path) -> Scores:
    """The run, without the checks of a file of unknown origin."""
    return Scores.of_file(RowFile(folder / ROWS), json.loads((folder / MANIFEST).read_text(encoding="utf-8")))


def _measured_step(name: str, folder: Path, images: int) -> dict[str, Any]:
    """Time and memory of a step in a process of its own."""
    note = folder / f"{name}.json"
    command = [sys.executable, __file__, "--images", str(images), "--folder", str(folder), "--step", name]
    if not note.exists():
        subprocess.run(command, check=True)  # noqa: S603  # this file
    found: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    print(found, flush=True)
    return found


def _take_step(name: str, folder: Path, images: int) -> None:
    """Take a step, and leave a note of its processor time, without that of imports, and of the peak memory with them."""
    folder.mkdir(parents=True, exist_ok=True)
    before, wall, idle = time.process_time(), time.perf_counter(), _peak()
    STEPS[name](folder, images)
    cpu, seconds = time.process_time() - before, time.perf_counter() - wall
    size = _megabytes(folder, FILES[name]) if name in FILES else None
    note = {"step": name, "images": images, "rows": images * len(PAIRS), "cpu_seconds": round(cpu, 1)}
    note |= {"seconds": round(seconds, 1), "peak_mib": _peak(), "of_the_step_mib": _peak() - idle, "megabytes_on_disk": size}
    (folder / f"{name}.json").write_text(json.dumps(note), encoding="utf-8")


def _peak() -> int:
    """The largest memory of this process so far, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _megabytes(folder: Path, pattern: str) -> float:
    """The size of the files that a step wrote."""
    return round(sum(path.stat().st_size for path in folder.glob(pattern)) / 1e6, 1)


def _measured(start: int) -> Any:
    """What is measured on a batch, with confidences between 0 and 1, most of them lower on the masked images."""
    import torch

    from xaieval.evaluation.batch_rows import Measured

    generator = torch.Generator().manual_seed(start)
    flags = torch.zeros(len(PAIRS), BATCH, dtype=torch.bool)
    classes = torch.randint(1000, (BATCH,), generator=generator)
    return Measured(
        ids=[str(place) for place in range(BATCH)],
        labels=classes,
        predicted=classes,
        targets=classes,
        has_target=torch.ones(BATCH, dtype=torch.bool),
        confidence=torch.rand(BATCH, generator=generator),
        masked=torch.rand(len(PAIRS), BATCH, generator=generator) ** 1.5,
        areas=torch.rand(len(PAIRS), BATCH, generator=generator),
        constant=flags,
        invalid=flags,
    )


def _processor() -> str:
    """The name of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    cyclopts.run(main)
