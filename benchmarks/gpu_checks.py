"""What only a GPU can show, in one folder: `benchmarks/gpu.sh` calls it. With `--device cpu` every step runs on the CPU.

Each step prints a line and adds to `checks.json`: rates and deviations of the precisions, rows after memory ran out, rows of
pinned images, and the share of the time in which the device is idle. A step that fails is recorded, and the next one runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cyclopts
import pandas as pd
import torch
import torchvision
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

import xaieval
from xaieval.evaluation.scores import Scores
from xaieval.inference.precision import candidates

LAYERS = ("layer3", "layer4")
METHODS = ("gradcam", "layercam")


def main(out: Path, device: str = "cuda", images: int = 256, batch: int = 64, side: int = 224) -> None:
    """Run all steps."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, pictures = torchvision.models.resnet50().eval(), torch.randn(images, 3, side, side)
    place = torch.device(device)
    found: dict[str, Any] = {"device": named(device), "torch": torch.__version__}

    def scored(loader: Any = None, **options: Any) -> Scores:
        given: dict[str, Any] = {"device": place, "progress": False, "batch_size": batch} | options
        return xaieval.score(model, loader or [pictures], LAYERS, METHODS, **given)

    steps: dict[str, Callable[[], Any]] = {
        "precisions": lambda: precisions(scored, place, images),
        "auto": lambda: scored(precision="auto").manifest["precision_trial"],
        "out of memory": lambda: out_of_memory(scored, model, batch // 4),
        "pinned": lambda: pinned(scored, pictures, batch, place),
        "idle share": lambda: idle_share(scored, place),
    }
    for name, step in steps.items():
        start = time.perf_counter()
        try:
            found[name] = step()
        except Exception as error:  # a step of its own; the others say more
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{name}: {json.dumps(found[name])} ({time.perf_counter() - start:.0f} s)", flush=True)
        (out / "checks.json").write_text(json.dumps(found, indent=2) + "\n")


def named(device: str) -> str:
    """The name of the device."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def precisions(scored: Callable[..., Scores], device: torch.device, images: int) -> dict[str, Any]:
    """Images a second of each precision, and how far AD and IC are from float32."""
    means, found = {}, {}
    for name in ("float32", *candidates(device)):
        scored(precision=name, max_images=1)
        start = time.perf_counter()
        rows = scored(precision=name).rows
        means[name] = rows[["average_drop", "increase_in_confidence"]].mean()
        found[name] = {"images/s": images / (time.perf_counter() - start)} | (means[name] - means["float32"]).to_dict()
    return found


def out_of_memory(scored: Callable[..., Scores], model: nn.Module, most: int) -> dict[str, Any]:
    """Rows of a run whose passes of more than `most` images do not fit, beside those of one whose passes do."""
    expected = scored().rows

    def full(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("made by this check")

    handle = model.register_forward_pre_hook(full)
    try:
        tight = scored()
    finally:
        handle.remove()
    return {"largest difference": apart(expected, tight.rows), "images in a pass": tight.manifest["speed"]["batch_size"]}


def pinned(scored: Callable[..., Scores], pictures: Tensor, batch: int, device: torch.device) -> dict[str, Any]:
    """Rows of images that are copied from pinned memory, beside those of plain ones."""
    loader = DataLoader(TensorDataset(pictures), batch_size=batch, pin_memory=device.type == "cuda")
    return {"largest difference": apart(scored().rows, scored([images for (images,) in loader]).rows)}


def idle_share(scored: Callable[..., Scores], device: torch.device) -> dict[str, Any]:
    """The share of the time of a run in which no kernel runs on the device; the target is at most 0.05."""
    if device.type != "cuda":
        return {"idle": None, "why": "only a GPU can be idle while the run goes on"}
    scored()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        torch.cuda.synchronize()
        start = time.perf_counter()
        scored()
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    busy = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    return {"idle": 1 - busy / wall, "seconds": wall}


def apart(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """The largest difference of a drop, in points."""
    return float((one["average_drop"] - other["average_drop"]).abs().max())


if __name__ == "__main__":
    cyclopts.run(main)
