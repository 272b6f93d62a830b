"""Reading of image files from outside: damaged ones, unusual ones and malicious ones.

    python benchmarks/fuzz_images.py --files 2000 --seed 0

writes this many files (for their kinds see `tests/hostile_images.py`), reads them one by one in a process, and scores a small
model on all of them in another one. A file that exceeds the time limit or ends the process is counted, and a new process goes
on with the next file. Prints and writes `benchmarks/fuzz_images.csv`: for each kind, how many files were read correctly
(compared pixel by pixel where the pixels are known) and how many were unreadable, the longest time for a file, and the largest
growth of the process's memory while reading one. `--large` adds a file of each format with the largest number of pixels that
is still read.
"""

from __future__ import annotations

import importlib.metadata
import json
import queue
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from threading import Thread
from typing import Any

import cyclopts
import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hostile_images import Case, draw, plant

RESULTS = Path(__file__).with_suffix(".csv")
LARGE = ("png", "jpg", "tif", "bmp", "ppm", "webp")
SIDE = 8000  # the limit is 64 million pixels
PREPARE = {"image_size": 64, "resize": 72}

app = cyclopts.App()


@app.default
def main(files: int = 2000, seed: int = 0, limit: float = 60.0, large: bool = False) -> None:
    """Write the files, read and score them in other processes, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        cases = draw(files, seed)
        for number, case in enumerate(cases):
            plant(case, root / f"class/{number}")
        if large:
            cases += [_large(root, number, ending) for number, ending in enumerate(LARGE, len(cases))]
        outcomes = _watch(root, cases, files, seed, limit)
        table = _table(cases, outcomes)
        table.to_csv(RESULTS, index=False)
        print(table.to_string(index=False))
        packages = ("pillow", "numpy", "torch", "torchvision")
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
        print(f"{len(cases)} files, seed {seed}; {versions}")
        start = time.monotonic()
        command = [sys.executable, "-W", "ignore", __file__, "score", str(root)]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())  # noqa: S603  # this script
        print(f"scored in {time.monotonic() - start:.0f} s")


def _large(root: Path, number: int, ending: str) -> Case:
    """A valid file with the largest number of pixels."""
    path = root / f"class/{number}/x.{ending}"
    path.parent.mkdir()
    Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(path)
    return Case(f"at the limit, {ending}", path.name, b"", None)


def _watch(root: Path, cases: list[Case], files: int, seed: int, limit: float) -> list[dict[str, Any]]:
    """Outcome of each file from the reading process, which is restarted after a file that hangs or crashes it."""
    outcomes: list[dict[str, Any]] = []
    while len(outcomes) < len(cases):
        command = [sys.executable, "-W", "ignore", __file__, "read", str(root), str(files), str(seed), str(len(outcomes))]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, text=True, **pipes)  # noqa: S603  # this script
        lines: queue.Queue[str] = queue.Queue()
        Thread(target=_listen, args=(process, lines), daemon=True).start()
        patience = 600.0  # for the start of the process
        while len(outcomes) < len(cases):
            try:
                line = lines.get(timeout=patience)
            except queue.Empty:
                line = "hang"
            patience = limit
            if not line.startswith("{"):
                outcomes.append({"outcome": line or "crash", "seconds": limit, "mib": 0})
                break
            if line != "{}\n":
                outcomes.append(json.loads(line))
        process.kill()
        process.wait()
    return outcomes


def _listen(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    for line in process.stdout or ():
        lines.put(line)
    lines.put("")


@app.command
def read(root: Path, files: int, seed: int, start: int) -> None:
    """Read the files one by one, and print a line for each."""
    from xaieval.data import Preprocessing, image_folder

    cases, pictures = draw(files, seed), image_folder(root, Preprocessing(**PREPARE))
    numbers = {int(name.split("/")[1]): index for index, name in enumerate(pictures.ids)}
    pictures.preprocessing(Image.new("RGB", (100, 80)))  # loads what is imported at first use
    print("{}", flush=True)
    for number in range(start, len(numbers)):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, start_time = _memory("VmRSS"), time.monotonic()
        sample = pictures[numbers[number]]
        seconds, mib = time.monotonic() - start_time, _memory("VmHWM") - before
        pixels = cases[number].pixels if number < len(cases) else None
        outcome = "unreadable"
        if "image" in sample:
            outcome = "read" if pixels is None or _is_right(pictures.read(numbers[number]), cases[number]) else "wrong"
        elif pixels is not None and not isinstance(pixels, str):
            outcome = "wrong"
        print(json.dumps({"outcome": outcome, "seconds": seconds, "mib": mib}), flush=True)


def _is_right(picture: Image.Image, case: Case) -> bool:
    read = np.asarray(picture).astype(int)
    return (
        not isinstance(case.pixels, str) and read.shape == case.pixels.shape and np.abs(read - case.pixels).max() <= case.atol
    )


def _memory(what: str) -> float:
    """A memory field of this process, in MiB."""
    return int(re.findall(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def _table(cases: list[Case], outcomes: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per kind, and one for all."""
    rows = pd.DataFrame(outcomes).assign(kind=[case.kind for case in cases])
    rows.loc[rows["kind"].str.startswith("\x1b"), "kind"] = "name"
    parts = [(kind, group) for kind, group in rows.groupby("kind")] + [("all", rows)]
    names = ("read", "unreadable", "wrong", "hang", "crash")
    return pd.DataFrame(
        [
            {
                "kind": kind,
                "files": len(group),
                **{name: int((group["outcome"] == name).sum()) for name in names},
                "longest_s": round(group["seconds"].max(), 2),
                "most_mib": round(group["mib"].max()),
            }
            for kind, group in parts
        ]
    )


@app.command
def score(root: Path) -> None:
    """Score a small model on all files, and print the statuses of the rows."""
    import torch

    import xaieval
    from xaieval.data import Preprocessing, image_folder

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )
    pictures = image_folder(root, Preprocessing(**PREPARE))
    xaieval.score(model, [torch.rand(32, 3, 64, 64)], "1", progress=False)  # loads what is imported at first use
    before = _memory("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        xaieval.score(model, pictures.loader(32), "1", progress=False, output_dir=folder)
        rows = xaieval.Scores.load(folder).rows
    same = sorted(rows["image_id"]) == sorted(pictures.ids)
    counts = ", ".join(f"{status} {count}" for status, count in rows["status"].value_counts().items())
    print(
        f"score: {len(rows)} rows ({counts}), ids as in the folder: {same}, grew by {_memory('VmHWM') - before:.0f} MiB at most"
    )


if __name__ == "__main__":
    app()
