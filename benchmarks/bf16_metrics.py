"""Which metrics can be measured in bf16: every metric that asks the model, in bf16 and in float32, on real images.

    python benchmarks/bf16_metrics.py --weights FILE --data ucmerced:DIR

scores MobileNetV2 with ImageNet weights on 20 images twice, with Grad-CAM, LayerCAM and Fake-CAM at one layer, and writes
`benchmarks/bf16_metrics.csv`. Needs a processor with bf16 instructions; others take ten times as long. For each metric and
method the table has both means, and the noise: the standard deviation over images of the difference, as a share of that of the
float32 values themselves. At 1 an image's number says as much of the rounding as of the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import pandas as pd

import xaieval
from xaieval.data import load_data
from xaieval.metrics.catalogue import METRICS
from xaieval.metrics.metric import MASKED
from xaieval.models import load_model

RESULTS = Path(__file__).with_suffix(".csv")
KEYS = ["image_id", "layer", "method"]
METHODS = ("gradcam", "layercam", "fake-cam")
CHEAP = "masked passes"  # metrics of one or two passes a map, which can be measured on many more images


def asking(cheap: bool) -> list[str]:
    """The names of the built-in metrics that depend on what the model says of altered images."""
    entries = [entry for entry in METRICS.values() if MASKED & set(entry.needs)]
    return [entry.name for entry in entries if ("ask" in entry.needs or "ask_hits" in entry.needs) != cheap]


def main(
    weights: str, data: str, images: int = 20, masked_images: int = 300, layer: str = "blocks.5", out: Path = RESULTS
) -> None:
    """Score in both types, compare, and write the table."""
    loaded = load_model("timm:mobilenetv2_100", weights, False, {"pad_type": "same"})
    half = (0.5, 0.5, 0.5)
    preprocessing = type(loaded.preprocessing)(image_size=224, resize=256, mean=half, std=half, interpolation="bilinear")
    tables = []
    for names, count, methods in ((asking(True), masked_images, METHODS), (asking(False), images, METHODS[:1])):
        loader = load_data(data, preprocessing, batch_size=20, max_images=count).loader
        runs = {p: xaieval.score(loaded.model, loader, layer, methods, names, precision=p) for p in ("float32", "bf16")}
        tables.append(compared(runs["float32"].rows, runs["bf16"].rows, names))
        pd.concat(tables).to_csv(out, index=False, float_format="%.6g")
    print(pd.concat(tables).round(3).to_string(index=False))


def compared(one: pd.DataFrame, other: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """By metric and method both means, their difference, and the noise of one image."""
    both = one.merge(other, on=KEYS, suffixes=("_float32", "_bf16"))
    records: list[dict[str, Any]] = []
    for metric in metrics:
        for method, rows in both.groupby("method", sort=False):
            pair = rows[[f"{metric}_float32", f"{metric}_bf16"]].dropna()
            first, second = (pair[name].to_numpy(dtype=float) for name in pair)
            spread = first.std()
            records.append(
                {
                    "metric": metric,
                    "method": method,
                    "n": len(pair),
                    "float32": first.mean() if len(pair) else np.nan,
                    "bf16": second.mean() if len(pair) else np.nan,
                    "difference": (second - first).mean() if len(pair) else np.nan,
                    "noise": (second - first).std() / spread if spread > 0 else np.nan,
                }
            )
    return pd.DataFrame(records)


if __name__ == "__main__":
    cyclopts.run(main)
