"""What all simulations share: measured values, shares with their intervals, and files of results."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import xaieval
from xaieval.analysis.stats.intervals import wilson_interval

HERE = Path(__file__).parent
ROWS = HERE.parent / "ucmerced_mobilenetv2/rows.parquet"
LEVEL = 0.95


def measured(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric of Grad-CAM as a table, images x layers."""
    return rows[rows["method"] == "gradcam"].pivot_table(index="image_id", columns="layer", values=metric).dropna()


def percent(name: str, count: int, runs: int) -> dict[str, float]:
    """A share of the runs in percent, with its interval."""
    low, high = wilson_interval(count, runs)
    share = 100 * count / runs if runs else float("nan")
    return {name: round(share, 2), f"{name}_low": round(100 * low, 2), f"{name}_high": round(100 * high, 2)}


def save(records: Sequence[dict[str, Any]], name: str, out: Path, **options: Any) -> pd.DataFrame:
    """Write `NAME.csv`, and how it was made into the manifest of the folder."""
    out.mkdir(parents=True, exist_ok=True)
    results = pd.DataFrame(records)
    results.to_csv(out / f"{name}.csv", index=False)
    path = out / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    versions = {"python": platform.python_version(), "xaieval": xaieval.__version__}
    versions |= {package: importlib.metadata.version(package) for package in ("numpy", "pandas", "scipy")}
    manifest[f"{name}.csv"] = {"command": f"python benchmarks/coverage {name}", **options, "versions": versions}
    path.write_text(json.dumps(dict(sorted(manifest.items())), indent=2) + "\n")
    return results


def grid(results: pd.DataFrame, rows: Sequence[str], column: str, cell: str, title: str = "") -> str:
    """A table of docs/statistics.md: a row for each combination of `rows`, a column for each value of `column`."""
    values = list(dict.fromkeys(results[column]))
    lines = [f"| {' | '.join(rows)} | {' | '.join(_heading(title, value) for value in values)} |"]
    lines.append("|---" * (len(rows) + len(values)) + "|")
    for key, part in results.groupby(list(rows), sort=False):
        cells = part.set_index(column)[cell].reindex(values)
        lines.append(f"| {' | '.join(str(word) for word in key)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _heading(title: str, value: Any) -> str:
    return f"{title} {value:g}" if title else str(value)
