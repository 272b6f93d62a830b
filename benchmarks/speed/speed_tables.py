"""The tables of docs/speed.md in Markdown, from the CSV files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from compare import OURS
from record import read

from xaieval.results.markdown import markdown_table

__all__ = ["markdown", "write_into"]

NAMES = {
    "resnet50": "ResNet-50",
    "mobilenetv2": "MobileNetV2",
    "vit_small": "ViT-S/16",
    "resnet18": "ResNet-18",
    "vit_tiny": "ViT-Ti/16",
}


def markdown(out: Path) -> str:
    """All tables that have results."""
    makers: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
        "peers": _peers,
        "agreement": _agreement,
        "batch_trials": _trials,
        "calls": _calls,
        "metrics": _metrics,
        "metric_agreement": _metric_agreement,
        "limit": _limit,
        "growth": _growth,
        "processes": _processes,
        "startup": _startup,
    }
    parts = []
    for name, make in makers.items():
        rows = read(out / f"{name}.csv")
        if not rows.empty:
            parts.append(f"<!-- from {name}.csv -->\n{_table(make(_named(rows)))}\n")
    return "\n".join(parts)


TABLE = re.compile(r"<!-- from (\w+)\.csv -->\n(?:\|.*\n)*")


def write_into(page: Path, out: Path) -> None:
    """Replace the tables of a page, each below its comment."""
    made = {match[1]: match[0] for match in TABLE.finditer(markdown(out))}
    page.write_text(TABLE.sub(lambda match: made.get(match[1], match[0]), page.read_text()))


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(model=rows["model"].map(NAMES)) if "model" in rows else rows


def _table(frame: pd.DataFrame) -> str:
    return markdown_table(frame.columns, frame.itertuples(index=False))


def _range(rows: pd.DataFrame, name: str, form: str) -> pd.Series:
    """Median [lowest, highest]."""
    columns = (rows[name], rows[f"{name}_low"], rows[f"{name}_high"])
    return pd.Series([f"{m:{form}} [{a:{form}}, {b:{form}}]" for m, a, b in zip(*columns, strict=True)], rows.index)


def _peers(rows: pd.DataFrame) -> pd.DataFrame:
    variant = rows["variant"].fillna("")
    return pd.DataFrame(
        {
            "model": rows["model"],
            "layers x methods": rows["layers"].astype(str) + " x " + rows["methods"].astype(str),
            "tool": rows["tool"].where(rows["tool"] != OURS, rows["tool"] + ", " + variant),
            "batch": rows["batch_size"],
            "images": rows["n_images"],
            "rounds": rows["rounds"],
            "images/s": rows["images_per_second"].map("{:.2f}".format),
            "xaieval is faster by": _range(rows, "ours_is_faster", ".2f"),
            "with bf16": _range(rows, "bf16_is_faster", ".2f"),
            "processor": rows["processor"],
        }
    )


def _agreement(rows: pd.DataFrame) -> pd.DataFrame:
    compared = rows[rows["verdict"] != "no counterpart"]
    return pd.DataFrame(
        {
            "model": compared["model"],
            "tool": compared["tool"],
            "method": compared["method"],
            "maps": compared["maps"].astype(int),
            "mean drop": compared["mean_drop"].map("{:.3f}".format),
            "largest deviation, float64": compared["deviation_float64"].map("{:.1e}".format),
            "float32": compared["deviation_float32"].map("{:.1e}".format),
            "increases that differ": compared["increases_that_differ"].astype(int),
            "verdict": compared["verdict"] + compared["explanation"].fillna("").map(lambda why: f": {why}" if why else ""),
        }
    )


def _trials(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": rows["model"],
            "tool": rows["tool"],
            "batch": rows["batch_size"],
            "images/s": rows["images_per_second"].map("{:.2f}".format),
            "best": rows["best"].map({True: "yes", False: ""}),
        }
    )


def _calls(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": rows["model"],
            "call": rows["call"],
            "variant": rows["variant"],
            "steady rate over eager": rows["faster_than_eager"].map("{:.2f}".format),
            "seconds before it": rows["overhead_seconds"].map("{:.1f}".format),
            "pays from images": rows["break_even_images"].map(lambda count: "" if pd.isna(count) else f"{count:.0f}"),
        }
    )


def _metrics(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": rows["model"],
            "metric": rows["metric"],
            "peer": rows["peer"],
            "maps": rows["maps"],
            "images": rows["n_images"],
            "batch, peer's": rows["our_batch"].astype(str) + ", " + rows["peer_batch"].astype(str),
            "rounds": rows["rounds"],
            "peer, ms an image": rows["peer_ms"].map("{:.1f}".format),
            "xaieval, ms an image": rows["our_ms"].map("{:.1f}".format),
            "xaieval is faster by": _range(rows, "ours_is_faster", ".2f"),
            "bare passes / xaieval": rows["efficiency"].map(lambda share: "" if pd.isna(share) else f"{share:.2f}"),
        }
    )


def _metric_agreement(rows: pd.DataFrame) -> pd.DataFrame:
    numbers = {name: rows[name].map(lambda value: "" if pd.isna(value) else f"{value:.4g}") for name in ("ours", "theirs")}
    return pd.DataFrame(
        {
            "model": rows["model"],
            "metric": rows["metric"],
            "peer": rows["peer"],
            "xaieval": numbers["ours"],
            "peer's": numbers["theirs"],
            "largest deviation": rows["deviation"].map(lambda value: "" if pd.isna(value) else f"{value:.0e}"),
            "verdict": rows["verdict"] + rows["explanation"].map(lambda why: "" if pd.isna(why) else f": {why}"),
        }
    )


def _limit(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": rows["model"],
            "layers x methods": rows["layers"].astype(str) + " x " + rows["methods"].astype(str),
            "baseline": "the model " + rows["baseline"],
            "images": rows["n_images"],
            "rounds": rows["rounds"],
            "bare passes / score": _range(rows, "efficiency", ".2f"),
        }
    )


def _growth(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": rows["model"],
            "varied": rows["axis"],
            "N": rows["images"],
            "L": [
                layers if which == "all" else f"1, the {which}"
                for layers, which in zip(rows["layers"], rows["which"], strict=True)
            ],
            "M": rows["methods"],
            "batch": rows["batch_size"],
            "seconds": _range(rows, "seconds", ".2f"),
            "memory of the call, MiB": _range(rows, "added_mib", ".0f"),
        }
    )


def _processes(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": rows["model"],
            "what": rows["what"],
            "processes": rows["processes"],
            "images/s": _range(rows, "images_per_second", ".2f"),
            "against one": rows["relative_to_one"].map("{:.2f}".format),
        }
    )


def _startup(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "command": "`" + rows["command"] + "`",
            "seconds": _range(rows, "seconds", ".2f"),
            "beyond an empty interpreter": _range(rows, "beyond_python", ".2f"),
            "of `import torch`": _range(rows, "of_import_torch", ".2f"),
        }
    )
