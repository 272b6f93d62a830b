"""The FAL paper to the letter: AD and IC of networks that have never seen an airplane, on airplanes.

    python benchmarks/fal/paper.py

makes four tables from the packed rows alone, without training: `paper/findings.md`, and `paper/table1.csv` (each level
of each arm), `paper/differences.csv`, `paper/splits.csv` (IC by mask area and by confidence) and `paper/protocols.csv`. The
networks are those of paper.toml. With airplane among the classes they are the FPNs of levels.toml, whose settings are the
same: there each airplane is scored by networks that have not seen it. The rows of other protocols are from
paper_networks.py.

Intervals are for other airplanes and other seeds. Neighbouring airplanes often show the same place, so the images come in
blocks of consecutive files, and both blocks and seeds are samples (`xaieval.analysis.stats.crossed`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from xaieval.analysis.stats.crossed import crossed_interval, crossed_p_value
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.paired import holm
from xaieval.analysis.stats.proportions import proportion_interval
from xaieval.models import LEVELS
from xaieval.results.markdown import markdown_table
from xaieval.training.fal.rows import read_rows

__all__ = ["airplanes", "at_equal_area", "block_table", "differences", "protocol_table", "split_table", "table1"]

HERE = Path(__file__).parent
OUT = HERE / "paper"
CLASS, FPN = "airplane", "fpn"
WITHOUT, WITH = "held out", "among the classes"
FOLDERS = {WITHOUT: OUT, WITH: HERE / "levels"}
DROP, EXCESS, INCREASE, AREA = "average_drop", "average_drop_excess", "increase_in_confidence", "mask_area"
EQUAL_DROP, EQUAL_INCREASE = "average_drop_at_equal_area", "increase_in_confidence_at_equal_area"
METRICS = (DROP, INCREASE, EXCESS, AREA, EQUAL_DROP, EQUAL_INCREASE)
PAIRS = (
    ("fal-p2-p3@amplify", "fpn"),
    ("fal-p2-p3@evidence-laterals", "fpn"),
    ("twin-p2-p3@amplify", "fpn"),
    ("fal-p2-p3@amplify", "twin-p2-p3@amplify"),
)
SPLITS = {AREA: [0, 0.4, 0.5, 1], "confidence": [0, 0.5, 0.8, 0.95, 1]}
MEAN = "mean"  # of the four levels
TITLES = (
    "AD and IC of each level",
    "Differences between arms and settings",
    "IC by mask area and by confidence",
    "Other protocols, FPN with airplane held out",
)


def airplanes(folder: Path) -> pd.DataFrame:
    """The rows of the airplanes, with AD and IC at equal mask area."""
    rows = read_rows(folder)
    rows = rows[rows["image_id"].str.startswith(f"{CLASS}/")]
    parts = [part.assign(**at_equal_area(part)) for _, part in rows.groupby("arm")]
    return pd.concat(parts)


def at_equal_area(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """AD and IC of each row if its mask had the mean area of all rows, by the slope within images: the four levels of an image.

    A larger mask shows more of the image, so AD falls with its area whatever the map shows.
    """
    within = rows.groupby(["seed", "fold", "image_id"])
    area = rows[AREA] - within[AREA].transform("mean")
    adjusted = {}
    for name, equal in ((DROP, EQUAL_DROP), (INCREASE, EQUAL_INCREASE)):
        value = rows[name] - within[name].transform("mean")
        slope = (area * value).sum() / (area**2).sum()
        adjusted[equal] = rows[name] - slope * (rows[AREA] - rows[AREA].mean())
    return adjusted


def block_table(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Means of a metric, one row per block of airplanes and one column per seed."""
    table = rows.pivot_table(index="group", columns="seed", values=metric, aggfunc="mean")
    if table.isna().any(axis=None):
        raise ValueError(f"some blocks have no {metric} for some seeds; all seeds need to score the same airplanes")
    return table


def table1(rows: pd.DataFrame, setting: str) -> pd.DataFrame:
    """One row per arm and level: each metric with its interval, and the numbers of images, blocks and seeds.

    A few maps have no excess, such as those that are constant; they are counted, and left out of its mean.
    """
    records = []
    for (arm, level), part in rows.groupby(["arm", "level"], sort=False):
        record = {"setting": setting, "arm": arm, "level": level}
        for metric in METRICS:
            table = block_table(part, metric)
            low, high = crossed_interval(table)
            record |= {metric: table.to_numpy().mean(), f"{metric}_low": low, f"{metric}_high": high}
        record |= {"confidence": part["confidence"].mean(), "images": part["image_id"].nunique()}
        record |= {"blocks": part["group"].nunique(), "seeds": part["seed"].nunique()}
        records.append(record | {"without_excess": int(part[EXCESS].isna().sum())})
    return pd.DataFrame(records).sort_values(["setting", "arm", "level"], ignore_index=True)


def differences(first: pd.DataFrame, second: pd.DataFrame, what: str) -> pd.DataFrame:
    """First minus second at each level and on average, paired by block and seed; p-values are corrected by Holm together."""
    records = []
    for level in (*LEVELS, MEAN):
        one, other = (rows if level == MEAN else rows[rows["level"] == level] for rows in (first, second))
        for metric in (DROP, INCREASE, EXCESS, AREA):
            tables = block_table(one, metric), block_table(other, metric)
            seeds = tables[0].columns.intersection(tables[1].columns)
            table = tables[0][seeds] - tables[1][seeds]
            low, high = crossed_interval(table)
            found = {"difference": table.to_numpy().mean(), "low": low, "high": high, "p": crossed_p_value(table)}
            records.append({"what": what, "level": level, "metric": metric} | found | {"seeds": len(seeds)})
    frame = pd.DataFrame(records)
    return frame.assign(p_holm=holm(frame["p"]))


def split_table(rows: pd.DataFrame, setting: str) -> pd.DataFrame:
    """IC and AD by mask area and level, and by confidence and level, over the images and seeds of one arm.

    The intervals of IC hold for other blocks of airplanes and these networks.
    """
    records = []
    for by, edges in SPLITS.items():
        for (part, level), group in rows.groupby([pd.cut(rows[by], edges, include_lowest=True), "level"], observed=True):
            yes = group[INCREASE].to_numpy() > 0
            low, high = proportion_interval(yes, 0.95, Grouping(group["group"]))
            record = {"setting": setting, "by": by, "from": max(part.left, 0.0), "to": part.right, "level": level}
            found = {INCREASE: 100 * yes.mean(), f"{INCREASE}_low": 100 * low, f"{INCREASE}_high": 100 * high}
            records.append(record | found | {DROP: group[DROP].mean(), "maps": len(group)})
    return pd.DataFrame(records)


def protocol_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per protocol and level: AD and IC of the FPNs with their intervals, and the mean mask area."""
    records = []
    for (protocol, level), part in rows.groupby(["protocol", "level"], sort=False, observed=True):
        record = {"protocol": protocol, "level": level}
        for metric in (DROP, INCREASE):
            table = block_table(part, metric)
            low, high = crossed_interval(table)
            record |= {metric: table.to_numpy().mean(), f"{metric}_low": low, f"{metric}_high": high}
        record |= {AREA: part[AREA].mean(), "images": part["image_id"].nunique(), "seeds": part["seed"].nunique()}
        records.append(record)
    return pd.DataFrame(records)


def main() -> None:
    """Make and print the tables."""
    rows = {setting: airplanes(folder) for setting, folder in FOLDERS.items()}
    rows[WITH] = rows[WITH][rows[WITH]["arm"] == FPN]
    levels = pd.concat([table1(part, setting) for setting, part in rows.items()])
    of_arms = dict(list(rows[WITHOUT].groupby("arm")))
    compared = [differences(of_arms[one], of_arms[other], f"{one} - {other}") for one, other in PAIRS]
    compared.append(differences(of_arms[FPN], rows[WITH], f"fpn: {WITHOUT} - {WITH}"))
    changes = pd.concat(compared)
    protocols = protocol_table(pd.read_parquet(OUT / "protocols.parquet"))
    splits = pd.concat([split_table(part[part["arm"] == FPN], setting) for setting, part in rows.items()])
    tables = {"table1": levels, "differences": changes, "splits": splits, "protocols": protocols}
    for name, table in tables.items():
        table.round(4).to_csv(OUT / f"{name}.csv", index=False)
    shown = (_cells(levels), _rounded(changes), _of_splits(splits), _of_protocols(protocols))
    parts = (f"## {title}\n\n{_markdown(table)}\n" for title, table in zip(TITLES, shown, strict=True))
    (OUT / "findings.md").write_text("\n".join(["# The paper to the letter\n", *parts]), encoding="utf-8")
    print(f"{OUT}: findings.md, table1.csv, differences.csv, splits.csv, protocols.csv")


def _cells(levels: pd.DataFrame) -> pd.DataFrame:
    """Table 1 with each interval in the cell of its mean."""
    titles = {
        DROP: "AD %",
        INCREASE: "IC %",
        EXCESS: "AD excess",
        EQUAL_DROP: "AD at equal area",
        EQUAL_INCREASE: "IC at equal area",
    }
    cells = levels[["setting", "arm", "level"]].copy()
    for name, title in titles.items():
        cells[title] = [_of(row, name) for row in levels.to_dict("records")]
    cells["mask area"] = levels[AREA].map("{:.2f}".format)
    cells["n"] = [f"{images} x {seeds}" for images, seeds in zip(levels["images"], levels["seeds"], strict=True)]
    return cells


def _rounded(changes: pd.DataFrame) -> pd.DataFrame:
    """The differences of AD, IC and AD excess, one row per comparison and level."""
    shown = changes[changes["metric"] != AREA]
    shown = shown.assign(
        cell=[
            f"{_cell(row['difference'], row['low'], row['high'])}{' *' if row['p_holm'] < 0.05 else ''}"
            for row in shown.to_dict("records")
        ]
    )
    titles = {DROP: "AD", INCREASE: "IC", EXCESS: "AD excess"}
    wide = shown.pivot_table(index=["what", "level"], columns="metric", values="cell", aggfunc="first", sort=False)
    return wide[list(titles)].rename(columns=titles).reset_index()


def _of_splits(splits: pd.DataFrame) -> pd.DataFrame:
    """IC at each level, one row per setting and part; the number of maps in brackets."""
    shown = splits.assign(
        part=[f"{row['by'].replace('_', ' ')} {row['from']:g} to {row['to']:g}" for row in splits.to_dict("records")],
        cell=[f"{_of(row, INCREASE)} ({row['maps']})" for row in splits.to_dict("records")],
    )
    wide = shown.pivot_table(index=["setting", "part"], columns="level", values="cell", aggfunc="first", sort=False)
    return wide[list(LEVELS)].fillna("").rename(columns=lambda level: f"IC {level}").reset_index()


def _of_protocols(protocols: pd.DataFrame) -> pd.DataFrame:
    """IC and AD of each protocol, one row per protocol and one column per level."""
    titles = {INCREASE: "IC", DROP: "AD"}
    cells = {"protocol": protocols["protocol"].unique()}
    for metric, title in titles.items():
        for level in LEVELS:
            part = protocols[protocols["level"] == level]
            cells[f"{title} {level}"] = [_of(row, metric) for row in part.to_dict("records")]
    return pd.DataFrame(cells)


def _of(row: dict[str, float], name: str) -> str:
    return _cell(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _cell(value: float, low: float, high: float) -> str:
    return f"{value:.1f}" if np.isnan(low) else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _markdown(table: pd.DataFrame) -> str:
    return markdown_table(table.columns, table.itertuples(index=False))


if __name__ == "__main__":
    main()
