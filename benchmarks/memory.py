"""Peak memory of a process under a memory budget on a CPU, and the overhead of limiting memory.

    python benchmarks/memory.py                # ResNet-50 at 224 px, one process for each budget
    python benchmarks/memory.py --overhead     # MobileNetV2 at 128 px

Each process loads a model with random weights, scores one image, resets the peak of its resident memory, and scores one batch
of images under a budget. Needs Linux. The second command compares the processor time of batches with and without the code that
halves batches that do not fit, in turn in one process.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cyclopts
import timm
import torch

import xaieval
from xaieval.evaluation import job
from xaieval.inference import batch_limit

MIB = 2**20
LAYERS = {"resnet50": ["layer1", "layer4"], "mobilenetv2_100": ["blocks.2", "blocks.5"], "vit_small_patch16_224": ["blocks.0"]}
BUDGETS = ("none", "160 MiB", "80 MiB")

app = cyclopts.App(help=__doc__)


@app.default
def main(model: str = "resnet50", images: int = 8, budget: str | None = None, overhead: bool = False) -> None:
    """Print a row for each budget or for one of them, or the ratio of processor times."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if overhead:
        _overhead()
    elif budget is not None:
        _one(model, images, budget)
    else:
        print(f"torch {torch.__version__}, {model}, {images} images of 224 px, seed 0", flush=True)
        for each in BUDGETS:
            command = [sys.executable, __file__, "--model", model, "--images", str(images), "--budget", each]
            subprocess.run(command, check=True)  # noqa: S603  # this very script


def _one(model: str, images: int, budget: str) -> None:
    network = timm.create_model(model).eval()
    run = partial(xaieval.score, network, layers=LAYERS[model], progress=False, memory=None if budget == "none" else budget)
    run([torch.rand(1, 3, 224, 224)])
    batch, before = torch.rand(images, 3, 224, 224), _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    scores = run([batch])
    peak = _resident("VmHWM") - before
    size = scores.manifest["speed"]["batch_size"]
    print(f"budget {budget}: passes of {size}, at most {peak / MIB:.0f} MiB beyond {before / MIB:.0f}", flush=True)


def _resident(name: str) -> int:
    """A memory field of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _overhead(rounds: int = 15) -> None:
    """Print the ratio of processor times of batches of 8, with the code that halves batches over without it."""
    network = timm.create_model("mobilenetv2_100").eval()
    own = job.in_batches, batch_limit.BatchLimit.parts
    bare = lambda limit, batch, work: [work(batch)], lambda limit, count, work: [work(slice(0, count))]

    def seconds(chosen: tuple[object, object]) -> float:
        job.in_batches, batch_limit.BatchLimit.parts = chosen  # type: ignore[assignment,method-assign]  # for the comparison
        start = time.process_time()
        xaieval.score(network, [batch], LAYERS["mobilenetv2_100"], progress=False)
        return time.process_time() - start

    batch = torch.rand(8, 3, 128, 128)
    seconds(own)
    ratios = [seconds(own) / seconds(bare) for _ in range(rounds)]
    ends = f"{min(ratios):.3f}, {max(ratios):.3f}"
    print(f"with over without: {statistics.median(ratios):.3f} [{ends}], {rounds} rounds, torch {torch.__version__}")


if __name__ == "__main__":
    app()
