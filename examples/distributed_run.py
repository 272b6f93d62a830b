"""Several processes
=================

One run shared by two processes gives the rows of one process. On a machine with GPUs each process takes one; on several
machines torchrun starts the same command (see the page on many images).

``python examples/distributed_run.py [FOLDER]`` writes the runs and ``distributed_run.png``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

import xaieval

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()

# %%
# The command line starts the processes: ``xaieval-bench score --nproc 2``. In a script of one's own,
# ``xaieval.distributed.score`` does the same under torchrun.

COMMAND = [sys.executable, "-m", "xaieval.cli", "score", "--max-images", "40", "--batch-size", "10", "--no-progress"]
for processes in ("1", "2"):
    subprocess.run([*COMMAND, "--nproc", processes, "--out", str(folder / f"run{processes}")], check=True, capture_output=True)

# %%
# Each process has scored whole batches; the first one has put them together.

one, two = (xaieval.Scores.load(folder / f"run{processes}") for processes in ("1", "2"))
print(f"images of each process: {two.manifest['ranks']['images']}")
print(f"the same images in the same order: {one.rows['image_id'].equals(two.rows['image_id'])}")
drops = [scores.rows["average_drop"] for scores in (one, two)]
print(f"largest difference in average_drop: {(drops[0] - drops[1]).abs().max():.3f} percent points")
print(two.summary().round(1).to_string())

# %%
# The summary as a picture, the two runs beside each other.

figure = Figure(figsize=(6, 3.2), layout="constrained")
axes = figure.subplots()
for shift, (scores, label) in zip((-0.1, 0.1), ((one, "one process"), (two, "two processes")), strict=True):
    summary = scores.summary().reset_index()
    ends = [summary["average_drop"] - summary["average_drop_low"], summary["average_drop_high"] - summary["average_drop"]]
    axes.errorbar([place + shift for place in range(len(summary))], summary["average_drop"], yerr=ends, fmt="o", label=label)
axes.set_xticks(range(len(summary)), summary["layer"])
axes.set_ylabel("Average Drop, percent, 95 % intervals")
axes.legend()
figure.savefig(folder / "distributed_run.png", dpi=100)
