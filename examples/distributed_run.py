"""Several processes
=================

A run shared by two processes gives the same rows as one process. On a machine with GPUs each process uses one GPU; on several
machines the same command is started with the same folder (see the page on many images).

``python examples/distributed_run.py [FOLDER]`` writes the run and ``distributed_run.png``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

import xaieval
from xaieval.data import Preprocessing, scenes

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()

# %%
# The command line starts the processes: ``xaieval-bench score --nproc 2``. In your own script,
# ``xaieval.evaluation.distributed.score`` shares a run with all processes that call it with the same folder.

words = "score --nproc 2 --max-images 40 --batch-size 10 --no-progress"
command = [sys.executable, "-m", "xaieval.cli", *words.split(), "--out", str(folder / "run")]
subprocess.run(command, check=True, capture_output=True)
together = xaieval.Scores.load(folder / "run")
print(together)

# %%
# Each process has scored whole batches, one after the other as they got free. The same in this process:

prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
loader = scenes(prepare, size=40).loader(batch_size=10)
alone = xaieval.score(xaieval.models.fpn_scenes(), loader, layers=["fpn[*]"], methods=["gradcam"], progress=False)
print(f"the same images in the same order: {alone.rows['image_id'].equals(together.rows['image_id'])}")
difference = (alone.rows["average_drop"] - together.rows["average_drop"]).abs().max()
print(f"largest difference in average_drop: {difference:.3f} percent points")
print(together.summary()[["average_drop", "increase_in_confidence", "n_images"]].round(1).to_string())

# %%
# Plot the summaries of both runs.

figure = Figure(figsize=(6, 3.2), layout="constrained")
axes = figure.subplots()
for shift, (scores, label) in zip((-0.1, 0.1), ((alone, "one process"), (together, "two processes")), strict=True):
    summary = scores.summary().reset_index()
    ends = [summary["average_drop"] - summary["average_drop_low"], summary["average_drop_high"] - summary["average_drop"]]
    axes.errorbar([place + shift for place in range(len(summary))], summary["average_drop"], yerr=ends, fmt="o", label=label)
axes.set_xticks(range(len(summary)), summary["layer"])
axes.set_ylabel("Average Drop, percent, 95 % intervals")
axes.legend()
figure.savefig(folder / "distributed_run.png", dpi=100)
