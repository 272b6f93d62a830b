"""Differences of AD and IC between bf16 and float32, on real images.

    python benchmarks/bf16.py --weights FILE --data ucmerced:DIR

scores MobileNetV2 with ImageNet weights on 1,000 images twice, and writes `benchmarks/bf16.csv` (seven layers, Grad-CAM; ten
minutes on one core). The bf16 arithmetic of a processor with bf16 instructions is emulated in float32: convolutions and matrix
products take inputs rounded to bf16, accumulate in float32, and round the result to bf16. `--native` uses torch's own bf16
instead, which takes ten times as long on a processor without these instructions; both can be compared on a few images.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import cyclopts
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import xaieval
from xaieval.analysis.stats.intervals import bootstrap_interval
from xaieval.data import load_data
from xaieval.evaluation.scores import Scores
from xaieval.inference.forward_passes import Runner
from xaieval.models import load_model

RESULTS = Path(__file__).with_suffix(".csv")
METRICS = ("average_drop", "increase_in_confidence")
KEYS = ["image_id", "layer", "method"]
PRODUCTS = {torch.conv2d, functional.linear, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__}


class Bf16Arithmetic(TorchFunctionMode):
    """Convolutions and products in bf16 that accumulate in float32, as in hardware; later operations then run in bf16."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function not in PRODUCTS:
            return function(*args, **kwargs)
        args = [_rounded(value) for value in args]
        return function(*args, **{name: _rounded(value) for name, value in kwargs.items()}).bfloat16()


def main(weights: str, data: str, images: int = 1000, native: bool = False, out: Path = RESULTS) -> None:
    """Score in both types, compare, and write the table."""
    if not native:
        Runner.computing = _emulated  # type: ignore[method-assign]  # in the whole process
    loaded = load_model("timm:mobilenetv2_100", weights, False, {"pad_type": "same"})
    half = (0.5, 0.5, 0.5)
    preprocessing = type(loaded.preprocessing)(image_size=224, resize=256, mean=half, std=half, interpolation="bilinear")
    loader = load_data(data, preprocessing, batch_size=25, max_images=images).loader
    runs = {p: xaieval.score(loaded.model, loader, "blocks.*", precision=p) for p in ("float32", "bf16")}
    table = compared(runs["float32"], runs["bf16"])
    table["arithmetic"] = "native" if native else "emulated"
    table.to_csv(out, index=False)
    print(table.round(2).to_string(index=False))


def compared(one: Scores, other: Scores) -> pd.DataFrame:
    """By layer, both means, and the mean difference per image with its 95 % interval."""
    both = one.rows.merge(other.rows, on=KEYS, suffixes=("_float32", "_bf16"))
    both = both[(both["status_float32"] == "ok") & (both["status_bf16"] == "ok")]
    records = []
    for layer, group in both.groupby("layer", sort=False):
        record: dict[str, Any] = {"layer": layer, "n": len(group)}
        for metric in METRICS:
            difference = group[f"{metric}_bf16"] - group[f"{metric}_float32"]
            low, high = bootstrap_interval(difference)
            record |= {f"{metric}_{name}": group[f"{metric}_{name}"].mean() for name in ("float32", "bf16")}
            record |= {f"{metric}_difference": difference.mean(), f"{metric}_low": low, f"{metric}_high": high}
        record["other_class_percent"] = 100 * (group["target_float32"] != group["target_bf16"]).mean()
        records.append(record)
    return pd.DataFrame(records)


def _emulated(runner: Runner, images: Tensor) -> AbstractContextManager[Any]:
    return nullcontext() if runner.precision.autocast is None else Bf16Arithmetic()


def _rounded(value: Any) -> Any:
    return value.bfloat16().float() if isinstance(value, Tensor) and value.is_floating_point() else value


if __name__ == "__main__":
    cyclopts.run(main)
