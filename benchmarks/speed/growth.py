"""Time and memory over images, layers, methods, batch size and processes; each point is measured in a new process."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from networks import LAYERS, Network, Scale, build
from peer_loops import ours
from record import replace_rows
from safetensors.torch import save_file

from xaieval.inference.batch_limit import BatchLimit
from xaieval.inference.borrowing import borrow
from xaieval.inference.forward_passes import sped_up

__all__ = ["PARTS", "Point", "forwards", "grow", "measure_point"]

METHODS = ("gradcam", "gradcam++", "xgradcam", "layercam", "hirescam", "elementwise-gradcam")
MIB = 2**20
REPEATS = 3


@dataclass(frozen=True)
class Point:
    """What one process measures.

    Attributes:
        model: Name of a network.
        images: Number of images N.
        layers: Number of layers L: 1, 4 or 8.
        methods: Number of methods M.
        batch_size: Images per batch.
        which: "all" of the layers, or only the "shallowest" or "deepest" of them.
    """

    model: str
    images: int = 32
    layers: int = 4
    methods: int = 1
    batch_size: int = 8
    which: str = "all"


AXES = {
    "images": (8, 16, 32, 64),
    "layers": (1, 4, 8),
    "methods": (1, 2, 4, 6),
    "batch_size": (1, 2, 4, 8, 16, 32),
}


PARTS = ("axes", "maps", "processes")


def grow(name: str, scale: Scale, out: Path, parts: Sequence[str] = PARTS) -> None:
    """Measure all axes from the same base point, then 32 maps compared with one, then processes; or only some of these."""
    if "axes" in parts:
        base = Point(name, images=4, batch_size=2) if scale.quick else Point(name)
        for axis, values in AXES.items():
            for value in values[:2] if scale.quick else values:
                _record(out, scale, axis, replace(base, **{axis: value}))
    if "maps" in parts:
        _headline(name, scale, out)
    if "processes" in parts:
        _processes(name, scale, out)


def _headline(name: str, scale: Scale, out: Path) -> None:
    """32 maps per image compared with one map, whose backward pass ends at the shallowest or at the deepest layer."""
    size = 2 if scale.quick else 8
    point = Point(name, images=2 * size, layers=8, methods=4, batch_size=size)
    _record(out, scale, "maps", point)
    _record(out, scale, "maps", replace(point, methods=1, which="shallowest"))
    _record(out, scale, "maps", replace(point, methods=1, which="deepest"))


def _record(out: Path, scale: Scale, axis: str, point: Point) -> None:
    repeats = 1 if scale.quick else REPEATS
    runs = [_in_a_process(point, scale) for _ in range(repeats)]
    columns = ("seconds", "added_mib", "peak_mib")
    row = {"axis": axis, **asdict(point), "repeats": repeats}
    for column in columns:
        values = [each[column] for each in runs]
        row |= {column: float(np.median(values)), f"{column}_low": min(values), f"{column}_high": max(values)}
    replace_rows(out / "growth.csv", [row], ("axis", *asdict(point)))
    print(f"{axis}: {point}: {row['seconds']:.2f} s, {row['added_mib']:.0f} MiB more", flush=True)


def _in_a_process(point: Point, scale: Scale) -> dict[str, float]:
    """Measure in a new interpreter with one thread, because peak memory covers the whole life of a process."""
    command = [sys.executable, str(Path(__file__).parent), "point", json.dumps(asdict(point)), json.dumps(asdict(scale))]
    done = subprocess.run(command, env=_single_threaded(), capture_output=True, text=True)  # noqa: S603  # no outside input
    if done.returncode:
        raise SystemExit(f"{point} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _single_threaded() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def measure_point(point: Point, scale: Scale) -> dict[str, float]:
    """Seconds and memory of one call; runs in the new process."""
    network = build(point.model, replace(scale, pool=max(scale.pool, point.images)), None, None, seed=0)
    with torch.inference_mode():
        network.model(network.images[: point.batch_size])
    before = _resident(scale.device)
    with _peak(scale.device) as peak:
        start = time.perf_counter()
        ours(network, network.batches(point.images, point.batch_size), _layers(network, point), METHODS[: point.methods])
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "added_mib": (peak[0] - before) / MIB, "peak_mib": peak[0] / MIB}


def _layers(network: Network, point: Point) -> tuple[str, ...]:
    layers = network.layers(point.layers)
    return {"all": layers, "shallowest": layers[:1], "deepest": layers[-1:]}[point.which]


@contextlib.contextmanager
def _peak(device: str) -> Iterator[list[int]]:
    """A list that receives the peak memory inside the block, in bytes: resident memory, or what is allocated on a GPU.

    The high-water mark is reset first where possible, because building the model has a peak, too.
    """
    peak: list[int] = []
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device))
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    yield peak
    peak.append(_status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _resident(device: str) -> int:
    if device != "cpu":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(field: str) -> int:
    """A memory field of this process in bytes, 0 if the system does not provide it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


# ---- processes


def _processes(name: str, scale: Scale, out: Path) -> None:
    """Images per second of one and two processes with one thread each, through the command line.

    Also the forward passes per second of one and two independent processes, which show the limit of the machine.
    """
    few, many = (8, 24) if scale.quick else IMAGES_OF_PROCESSES[name]
    score: dict[int, list[float]] = {1: [], 2: []}
    bare: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        _save_weights(name, scale, Path(folder) / WEIGHTS)
        for _ in range(1 if scale.quick else REPEATS):
            for processes in score:
                slow, quick = (_score_seconds(name, scale, folder, images, processes) for images in (many, few))
                work = slow - quick  # start-up cancels
                score[processes].append((many - few) / work if work > 0 else float("nan"))  # NaN if start-up varied by more
                bare[processes].append(_bare_rate(name, scale, processes))
    rows = [
        {
            "model": name,
            "what": what,
            "processes": processes,
            "n_images": many - few,
            "images_per_second": float(np.median(values)),
            "images_per_second_low": min(values),
            "images_per_second_high": max(values),
            "relative_to_one": float(np.median(np.divide(values, rates[1]))),
        }
        for what, rates in (("score", score), ("bare forward passes", bare))
        for processes, values in rates.items()
    ]
    replace_rows(out / "processes.csv", rows, ("model",))


IMAGES_OF_PROCESSES = {"resnet50": (8, 56), "mobilenetv2": (32, 192), "vit_small": (8, 72)}


def _bare_rate(name: str, scale: Scale, processes: int) -> float:
    """Total images per second of forward passes in several processes at the same time."""
    command = [sys.executable, str(Path(__file__).parent), "forwards", name, json.dumps(asdict(scale))]
    running = [
        subprocess.Popen(command, env=_single_threaded(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603  # no outside input
        for _ in range(processes)
    ]
    for process in running:
        _line(process)  # wait until it is ready
    return sum(float(answer.splitlines()[-1]) for answer in _all_at_once(running))


def _line(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline() if process.stdout else ""


def _all_at_once(running: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Start all waiting processes, and collect their output."""
    for process in running:
        if process.stdin:
            process.stdin.write("go\n")
            process.stdin.flush()
    return [process.communicate()[0] for process in running]


def forwards(name: str, scale: Scale) -> None:
    """Print "ready", wait for a line, run forward passes for some seconds, and print images per second."""
    network = build(name, replace(scale, pool=8), None, None, seed=0)
    images = network.images[: 2 if scale.quick else 8]
    with borrow(network.model), sped_up(network.model, images, (), BatchLimit(len(images))) as runner:
        runner.output(images)
        print("ready", flush=True)
        input()
        start, count = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < (0.2 if scale.quick else 6):
            runner.output(images)
            count += len(images)
        print(count / seconds)


COMMAND_MODELS = {
    "resnet50": "torchvision:resnet50",
    "mobilenetv2": "timm:mobilenetv2_100",
    "vit_small": "timm:vit_small_patch16_224",
}


WEIGHTS = "weights.safetensors"


def _save_weights(name: str, scale: Scale, path: Path) -> None:
    """Save the weights, so that every process loads the same model."""
    model = build(name, scale, None, None, seed=0).model
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)


def _score_seconds(name: str, scale: Scale, folder: str, images: int, processes: int) -> float:
    size = ["--image-size", str(scale.side)] if name != "vit_small" else []
    pad = ["--model-args.pad_type", "same"] if name == "mobilenetv2" else []
    with tempfile.TemporaryDirectory(dir=folder) as out:
        start = time.perf_counter()
        _command(
            *("score", "--model", COMMAND_MODELS[name], "--weights", f"{folder}/{WEIGHTS}", *pad, *size),
            *("--data", "scenes", "--layers", ",".join(LAYERS[name][4]), "--max-images", str(images), "--batch-size", "8"),
            *("--no-progress", "--nproc", str(processes), "--out", f"{out}/run"),
        )
        return time.perf_counter() - start


def _command(*arguments: str) -> str:
    program = str(Path(sys.executable).with_name("xaieval-bench"))
    done = subprocess.run([program, *arguments], env=_single_threaded(), capture_output=True, text=True)  # noqa: S603  # no outside input
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout
