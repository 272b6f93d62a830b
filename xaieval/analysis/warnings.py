"""What a reader of a table has to know before trusting it: reasons for doubt, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.stats.intervals import check_level
from xaieval.analysis.stats.paired import holm
from xaieval.analysis.stats.permutation import Floats, sign_flip_p_values
from xaieval.analysis.tables import directions, metric_tables
from xaieval.results.rows import COUNTED, EXCLUDED, NO_LAYER

__all__ = ["find_doubts"]

MOST = 0.05  # share of constant maps or of failed rows that is passed over
JUDGED = "average_drop"  # what is easily fooled
WITNESSES = ("insertion", "coherency")  # first words of the metrics that are asked about it
SHOWN = 3  # names in a sentence
CONSTANT, LEFT_OUT = "constant_map", "constant_map_left_out"  # statuses
Pair = tuple[str, str]  # layer and method


def find_doubts(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    controls: Sequence[str] = (),
    level: float = 0.95,
    seed: int = 0,
    complete: bool = True,
) -> list[str]:
    """Reasons not to trust the numbers of a run, one sentence each; an empty list does not prove that they are right.

    - More than 5 % of the maps of a method at a layer are constant, or more than 5 % of its rows failed.
    - In a metric no method is better than the best control map.
    - Metrics disagree: by Average Drop a method is significantly better than the mean of the other methods, by insertion or
      coherency significantly worse. Both are sign-flip permutation tests paired by image; the larger of the two p-values
      counts, corrected by Holm for all methods. Controls are left out.

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        controls: Names of the methods that are control maps.
        level: 1 minus the probability of even one false disagreement, in (0, 1).
        seed: Seed of the random signs.

    Raises:
        MetricError: The level is not in (0, 1).

    Example:
        >>> rows = pd.DataFrame({"image_id": range(9), "layer": "p5", "method": "gradcam", "average_drop": 10.0})
        >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
        >>> find_doubts(rows.assign(status=["nan_map"] + ["ok"] * 8), [drop])
        ['gradcam at p5: 11% of the rows failed (nan_map 1); the means are of the other images, which may be easier ones']
    """
    check_level(level)
    statuses = _statuses(rows)
    images = rows["image_id"].nunique()
    unfinished = f"the run is not finished: this is what was measured on its first {images} images"
    return [
        *([] if complete else [unfinished]),
        *_constant_maps(statuses, controls),
        *_failures(statuses),
        *_best_controls(rows, directions(metrics), controls),
        *_disagreements(rows, directions(metrics), controls, 1 - level, seed),
    ]


def _constant_maps(statuses: Mapping[Pair, Mapping[str, int]], controls: Sequence[str]) -> list[str]:
    found: dict[str, list[Pair]] = {}
    for pair, counts in statuses.items():
        left_out = counts.get(LEFT_OUT, 0)
        constant = counts.get(CONSTANT, 0) + left_out
        made = sum(counts.get(status, 0) for status in (*COUNTED, LEFT_OUT))
        if constant > MOST * made and pair[1] not in controls:
            then = "such an image is left out, so the means are of the others" if left_out else "its row counts all the same"
            what = f"{constant} of {made} maps are constant ({constant / made:.0%}); a constant map points nowhere, and {then}"
            found.setdefault(what, []).append(pair)
    return _sentences(found, len(statuses))


def _failures(statuses: Mapping[Pair, Mapping[str, int]]) -> list[str]:
    found: dict[str, list[Pair]] = {}
    for pair, counts in statuses.items():
        failed = {status: count for status, count in counts.items() if status not in (*COUNTED, LEFT_OUT, EXCLUDED)}
        share = sum(failed.values()) / max(1, sum(counts.values()) - counts.get(EXCLUDED, 0))
        if share > MOST:
            reasons = ", ".join(f"{status} {count}" for status, count in failed.items())
            what = f"{share:.0%} of the rows failed ({reasons}); the means are of the other images, which may be easier ones"
            found.setdefault(what, []).append(pair)
    return _sentences(found, len(statuses))


def _best_controls(rows: pd.DataFrame, higher: Mapping[str, bool], controls: Sequence[str]) -> list[str]:
    """Metrics in which no method is better than the best control."""
    if not rows["method"].isin(list(controls)).any():
        return []
    counted = rows[rows["status"].isin(COUNTED)].groupby(["layer", "method"], sort=False)
    found = []
    for metric, is_higher in higher.items():
        column: Any = counted[metric].mean().dropna()
        good = {pair: (value if is_higher else -value) for pair, value in column.items()}
        ours, theirs = ([pair for pair in good if (pair[1] in controls) == is_control] for is_control in (False, True))
        if not ours or not theirs:
            continue
        control, method = max(theirs, key=good.__getitem__), max(ours, key=good.__getitem__)
        if good[control] > good[method] or math.isclose(good[control], good[method], rel_tol=1e-9):
            found.append(
                f"{metric}: a control map has the best value, {column[control]:.4g} of {_called(control)}; the best method is "
                f"{_called(method)} with {column[method]:.4g}, so a good {metric} alone shows nothing"
            )
    return found


def _disagreements(
    rows: pd.DataFrame, higher: Mapping[str, bool], controls: Sequence[str], alpha: float, seed: int
) -> list[str]:
    """Where a method is better than the others by Average Drop and worse than they are by a witness, both beyond chance."""
    witnesses = [name for name in higher if name.split("_")[0] in WITNESSES]
    asked = rows[~rows["method"].isin(list(controls))]
    pairs = list(asked[["layer", "method"]].drop_duplicates().itertuples(index=False, name=None))
    if JUDGED not in higher or not witnesses or len(pairs) < 2:
        return []
    tables = metric_tables(asked, [JUDGED, *witnesses], ["layer", "method"])
    leads = {name: _leads(table.to_numpy() * (1 if higher[name] else -1)) for name, table in tables.items()}
    ahead = sign_flip_p_values(leads[JUDGED], seed=seed)
    # Both have to hold, so the larger p-value is that of the claim.
    p_values = [np.maximum(ahead, sign_flip_p_values(-leads[name], seed=seed)) for name in witnesses]
    certain = np.array(holm(np.concatenate(p_values))).reshape(len(witnesses), len(pairs)) < alpha
    return [
        f"{JUDGED} and {witness} disagree about {_listed([pairs[place] for place in np.flatnonzero(row)])}: better than the "
        f"mean of the other methods by the one and worse by the other, beyond chance; see what the map shows before ranking"
        for witness, row in zip(witnesses, certain, strict=True)
        if row.any()
    ]


def _leads(values: Floats) -> Floats:
    """By how much each value `[N, P]` (higher is better) exceeds the mean of the others of its image; NaN if it is missing."""
    present = np.isfinite(values)
    total = np.where(present, values, 0.0).sum(axis=1, keepdims=True)
    others = present.sum(axis=1, keepdims=True) - 1
    mean = np.divide(total - values, others, out=np.full(values.shape, np.nan), where=present & (others > 0))
    return values - mean


def _statuses(rows: pd.DataFrame) -> dict[Pair, dict[str, int]]:
    """How many rows of each status a layer and method has."""
    found: dict[Pair, dict[str, int]] = {}
    sizes: Any = rows.groupby(["layer", "method", "status"], sort=False).size()
    for (layer, method, status), count in sizes.items():
        found.setdefault((layer, method), {})[status] = int(count)
    return found


def _sentences(found: Mapping[str, Sequence[Pair]], every: int) -> list[str]:
    """One for each thing to say, with the pairs that it is said of."""
    return [
        f"{'every layer and method' if len(pairs) == every > 1 else _listed(pairs)}: {what}" for what, pairs in found.items()
    ]


def _listed(pairs: Sequence[Pair]) -> str:
    more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    return ", ".join(_called(pair) for pair in pairs[:SHOWN]) + more


def _called(pair: Any) -> str:
    """A pair by its name, such as "gradcam at layer4"; a method without layer by its own."""
    layer, method = pair
    return str(method) if layer == NO_LAYER else f"{method} at {layer}"
