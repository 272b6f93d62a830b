"""Tables of an experiment as a page shows them: each number with its interval in one cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from xaieval.results.markdown import markdown_table
from xaieval.results.metric_display import interval_text
from xaieval.training.fal.report.sentences import NAMES

__all__ = ["shown_table"]


def shown_table(kind: str, table: pd.DataFrame) -> str:
    """A table in Markdown.

    Args:
        kind: Which table it is, such as "table1"; a kind without a form of its own is shown with three decimals.
        table: The table, from `xaieval.training.fal.report.tables`.
    """
    shown = FORMS.get(kind, _plain)(table)
    return markdown_table(shown.columns, shown.itertuples(index=False))


def _cell(row: Any, name: str, decimals: int = 1) -> str:
    ends = interval_text(row[f"{name}_low"], row[f"{name}_high"], f".{decimals}f")
    return "" if pd.isna(row[name]) else f"{row[name]:.{decimals}f} {ends}"


def _by_level(table: pd.DataFrame) -> pd.DataFrame:
    titles = {"average_drop": "AD %", "average_drop_excess": "AD excess %", "increase_in_confidence": "IC %"}
    return pd.DataFrame(
        {
            "method": row["method"],
            "level": row["level"],
            **{title: _cell(row, name) for name, title in titles.items()},
            "mask area": _cell(row, "mask_area", 2),
            "n": row["n_images"],
        }
        for row in table.reset_index().to_dict("records")
    )


def _of_arms(table: pd.DataFrame) -> pd.DataFrame:
    records = []
    for row in table.reset_index().to_dict("records"):
        record = {"arm": row["arm"], "networks": row["networks"]}
        for name, title in NAMES.items():
            if name in row:
                record[f"{title} %"] = f"{row[name]:.1f}" if name == "macro_f1" else _cell(row, name)
        records.append(record | {"mask area": f"{row['mask_area']:.2f}", "runs": row["n_runs"]})
    return pd.DataFrame(records)


def _differences(table: pd.DataFrame) -> pd.DataFrame:
    """One row per pair, the difference in each outcome with its interval and corrected p-value in one cell."""
    records = []
    for (arm, other), rows in table.groupby(["arm", "other"], sort=False):
        cells = {
            NAMES[row["outcome"]]: f"{row['difference']:+.1f} {interval_text(row['low'], row['high'], '+.1f')}"
            + ("" if pd.isna(row["p_holm"]) else f", p = {row['p_holm']:.2g}")
            for row in rows.reset_index().to_dict("records")
        }
        records.append({"arm minus other": f"{arm} minus {other}", **cells, "pairs": rows["n_pairs"].max()})
    return pd.DataFrame(records)


def _effects(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "outcome": NAMES[row["outcome"]],
            "level": row["level"],
            "part": row["part"],
            "effect": f"{row['effect']:+.2f} {interval_text(row['low'], row['high'], '+.2f')}",
            "for other folds": interval_text(row["low_folds"], row["high_folds"], "+.2f"),
            "p, Holm": f"{row['p_holm']:.2g}",
        }
        for row in table.reset_index().to_dict("records")
    )


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    return table.round(3).reset_index()


FORMS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "table1": _by_level,
    "table2": _of_arms,
    "differences": _differences,
    "effects": _effects,
}
