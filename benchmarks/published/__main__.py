"""Published values of AD and IC next to the same values measured with xaieval.

    python benchmarks/published --data folder:DIR --pretrained

`xaieval.analysis.published` has the tables, their sources, and the reasons why the numbers can differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cyclopts
import pandas as pd

import xaieval
from xaieval.analysis.published import PUBLISHED
from xaieval.config.protocol import PROTOCOLS, Protocol
from xaieval.data import load_data
from xaieval.models import LoadedModel, load_model

METRICS = {"average_drop": "AD %", "average_gain": "AG %", "increase_in_confidence": "IC %"}
CLASSES = 1000


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """Which rows to measure, and on which data.

    Attributes:
        data: Data, as for `xaieval-bench score`, such as folder:DIR.
        pretrained: Download the libraries' own weights.
        weights: Folder of weights files named after the models, such as torchvision_resnet18.safetensors, instead.
        tables: Tables, separated by commas. Default: all.
        networks: Networks as the tables name them, separated by commas. Default: all.
        methods: Methods as the tables name them, separated by commas. Default: all.
        max_images: Largest number of images, spread over the classes.
        batch_size: Images in a forward pass.
        device: Device: cpu, cuda, ...
        out: CSV file for the table.
    """

    data: str
    pretrained: bool = False
    weights: Path | None = None
    tables: str = ""
    networks: str = ""
    methods: str = ""
    max_images: int | None = None
    batch_size: int = 32
    device: str | None = None
    out: Path | None = None


def main(options: Options) -> None:
    """Measure all selected rows, network by network, and print both values."""
    if not options.pretrained and options.weights is None:
        raise SystemExit("the published numbers are those of trained networks: add --pretrained or --weights DIR")
    rows = chosen(published(), options)
    if not len(rows):
        raise SystemExit("no row matches; 'xaieval-bench published NAME' lists the networks and methods of a table")
    results = []
    for (name, model), group in rows.groupby(["protocol", "model"], sort=False):
        loaded = load_model(model, weights_of(model, options), options.pretrained)
        results += measured(group, loaded, PROTOCOLS[name], options)
    if not results:
        raise SystemExit("no row could be measured")
    table = pd.DataFrame(results)
    print(table.to_string(index=False))
    if options.out is not None:
        table.to_csv(options.out, index=False)


def published() -> pd.DataFrame:
    """All rows of all tables, in percent."""
    return pd.concat([table.rows.assign(protocol=table.name) for table in PUBLISHED], ignore_index=True)


def chosen(rows: pd.DataFrame, options: Options) -> pd.DataFrame:
    """The rows that the options select and that can be measured."""
    rows = rows[rows["rerun"].notna()]
    for column, words in (("protocol", options.tables), ("network", options.networks), ("method", options.methods)):
        rows = rows[rows[column].isin(words.split(","))] if words else rows
    return rows


def weights_of(model: str, options: Options) -> Path | None:
    """A model's weights file, or None if the weights are downloaded."""
    return None if options.weights is None else options.weights / f"{model.replace(':', '_')}.safetensors"


def measured(rows: pd.DataFrame, loaded: LoadedModel, protocol: Protocol, options: Options) -> list[dict[str, Any]]:
    """Published and measured values of the rows of one network under one protocol."""
    prepare = loaded.preprocessing
    data = load_data(options.data, prepare, options.batch_size, options.max_images)
    name = rows["protocol"].iloc[0]
    if protocol.target == "label" and data.classes is not None and len(data.classes) != CLASSES:
        print(f"{name}: left out, because it targets the label and the folder has {len(data.classes)} of {CLASSES} classes")
        return []
    protocol = replace(protocol, mean=prepare.mean, std=prepare.std) if protocol.fills_black else protocol
    results = []
    for layer, group in rows.fillna({"layer": ""}).groupby("layer", sort=False):
        scores = xaieval.score(
            loaded.model,
            data.loader,
            [layer] if layer else [],
            list(group["rerun"]),
            list(METRICS),
            protocol=protocol,
            device=options.device,
            batch_size=options.batch_size,
        )
        summary = scores.summary().reset_index().set_index("method")
        results += [side_by_side(row, summary.loc[row["rerun"]]) for row in group.to_dict("records")]
    return results


def side_by_side(row: dict[str, Any], ours: pd.Series) -> dict[str, Any]:
    """A published row and the measured one with its 95 % interval."""
    entry = {name: row[name] for name in ("protocol", "table", "network", "method")}
    for metric, label in METRICS.items():
        if pd.notna(row[metric]):
            interval = f"[{ours[f'{metric}_low']:.1f}, {ours[f'{metric}_high']:.1f}]"
            entry |= {f"{label} published": row[metric], f"{label} here": f"{ours[metric]:.1f} {interval}"}
    return entry | {"n": int(ours["n_images"])}


if __name__ == "__main__":
    cyclopts.run(main)
