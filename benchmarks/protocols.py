"""Changes of AD and IC when only the protocol changes: the same model, images and methods under every named protocol.

    python benchmarks/protocols.py --weights FILE --data ucmerced:DIR

scores `blocks.6` of MobileNetV2 with ImageNet weights by Grad-CAM and LayerCAM on 210 images, and writes
`benchmarks/protocols/protocols.csv` and `manifest.json` (a quarter of an hour on one core). The target is the predicted class
under every protocol, because the labels of these images are not classes of this network. `tables` prints the table of
docs/protocols.md.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import cyclopts
import pandas as pd
import torch

import xaieval
from xaieval.analysis.stats.intervals import bootstrap_interval
from xaieval.config.presets import PRESETS
from xaieval.config.protocol import PROTOCOLS
from xaieval.data import load_data
from xaieval.evaluation.scores import Scores
from xaieval.models import load_model

RESULTS = Path(__file__).with_suffix("")
LAYER, METHODS = "blocks.6", ("gradcam", "layercam")
METRICS = ("average_drop", "increase_in_confidence")
HALF = (0.5, 0.5, 0.5)

app = cyclopts.App(help=__doc__)


@app.default
def run(weights: str, data: str, images: int = 210, only: str = "", out: Path = RESULTS) -> None:
    """Score under each protocol, and write the table and its manifest.

    Args:
        weights: Weights file of timm's mobilenetv2_100 with pad_type="same".
        data: Data, as for `xaieval-bench score`.
        images: Largest number of images, spread over the classes.
        only: Names of protocols, separated by commas. Default: all.
        out: Folder of the results.
    """
    loaded = load_model("timm:mobilenetv2_100", weights, False, {"pad_type": "same"})
    preprocessing = type(loaded.preprocessing)(image_size=224, resize=256, mean=HALF, std=HALF, interpolation="bilinear")
    loader = load_data(data, preprocessing, batch_size=30, max_images=images).loader
    records: list[dict[str, Any]] = []
    runs: dict[str, Scores] = {}
    for name in only.split(",") if only else list(PROTOCOLS):
        protocol = replace(PROTOCOLS[name], target="predicted", mean=HALF, std=HALF)
        runs[name] = xaieval.score(loaded.model, loader, LAYER, METHODS, METRICS, protocol=protocol)
        records += summarised(name, runs[name], runs.get("default"))
        print(pd.DataFrame(records[-len(METHODS) :]).round(1).to_string(index=False), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(records).to_csv(out / "protocols.csv", index=False, float_format="%.6g")
    manifest = next(iter(runs.values())).manifest
    (out / "manifest.json").write_text(json.dumps(described(manifest, images), indent=2) + "\n")


@app.command
def tables(out: Path = RESULTS) -> None:
    """Print the table of docs/protocols.md."""
    print("\n".join(table_lines(pd.read_csv(out / "protocols.csv"))))


def summarised(name: str, scores: Scores, default: Scores | None) -> list[dict[str, Any]]:
    """One record per method: AD and IC with 95 % bootstrap intervals, and their mean differences from the default protocol."""
    records = []
    summary = scores.summary(resamples=1000).reset_index()
    for row in summary.to_dict("records"):
        of_method = scores.rows[scores.rows["method"] == row["method"]].set_index("image_id")
        record = {"protocol": name, "layer": row["layer"], "method": row["method"], "n": int(row["n_images"])}
        record |= {"failed": int(row["n_failed"]), "mask_area": of_method["mask_area"].mean()}
        for metric in METRICS:
            ends = {end: row[f"{metric}_{end}"] for end in ("low", "high")}
            record |= {metric: row[metric], **{f"{metric}_{end}": value for end, value in ends.items()}}
            record[f"{metric}_n"] = int(row.get(f"{metric}_n", row["n_images"]))
            if default is not None:
                record |= moved(metric, of_method[metric], default, row["method"])
        records.append(record)
    return records


def moved(metric: str, values: pd.Series, default: Scores, method: str) -> dict[str, float]:
    """The mean difference from the default protocol on images with a value under both, with its 95 % interval."""
    others = default.rows[default.rows["method"] == method].set_index("image_id")[metric]
    difference = (values - others).dropna().to_numpy(dtype=float)
    low, high = bootstrap_interval(difference)
    return {f"{metric}_moved": difference.mean(), f"{metric}_moved_low": low, f"{metric}_moved_high": high}


def described(manifest: dict[str, Any], images: int) -> dict[str, Any]:
    """The manifest: versions, seed, model, images, protocols and hardware."""
    return {
        "command": f"python benchmarks/protocols.py --weights FILE --data ucmerced:DIR --images {images}",
        "seed": manifest["seed"],
        "versions": manifest["versions"],
        "model": manifest["model"],
        "data": manifest["data"],
        "target": "predicted",
        "protocols": {preset.name: preset.protocol.to_dict() for preset in PRESETS},
        "hardware": {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def table_lines(results: pd.DataFrame) -> list[str]:
    """The table in Markdown, one row per protocol."""
    wide = {name: group.set_index("method").to_dict("index") for name, group in results.groupby("protocol", sort=False)}
    lines = ["| protocol | " + " | ".join(f"AD, {m} | IC, {m}" for m in METHODS) + " |", "|---" * 5 + "|"]
    for name, rows in wide.items():
        cells = [cell(rows[method], metric) for method in METHODS for metric in METRICS]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def cell(row: dict[str, Any], metric: str) -> str:
    """A number with its interval."""
    return f"{row[metric]:.1f} [{row[f'{metric}_low']:.1f}, {row[f'{metric}_high']:.1f}]"


if __name__ == "__main__":
    app()
