"""Time of each metric and image compared with other libraries: the same numbers first, then times in turn in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from given import Given, given_of, saved_maps
from limit import prepared
from metric_cases import SALIENCY, Case, cases_of, chosen
from networks import Network, Scale
from record import read, replace_rows
from timing import alternate, spread, stopwatch

import xaieval
from xaieval.metrics import Metric

__all__ = ["compared", "measure", "summarise"]

CHECKED = 2  # images whose numbers are compared
PASS = 8  # images of a bare pass
SIZES = (1, 8)  # and all images of a batch
KEYS = ("model", "metric", "peer")
TIMED = (*KEYS, "n_images")


def measure(
    network: Network, scale: Scale, rounds: int | None, out: Path, only: str | None = None, count: int | None = None
) -> None:
    """Check the numbers of all metrics, then time them, each on its number of images or on `count`; writes the CSV files.

    Raises:
        SystemExit: A number differs, and nothing that is known of the library explains it.
    """
    cases = chosen(cases_of(network, scale), only)
    given = given_of(network, seed=0)
    checked = [compared(case, given) for case in cases]
    replace_rows(out / "metric_agreement.csv", checked, KEYS)
    bad = [row for row in checked if row["verdict"] == "DIFFERS"]
    if bad:
        raise SystemExit("\n".join(f"the numbers differ, so nothing is timed: {row}" for row in bad))
    for case in cases:
        rows = _time(replace(case, images=count or case.images), given, rounds or (2 if scale.quick else 3))
        replace_rows(out / "metric_rounds.csv", rows, TIMED)
        [row] = summarise(pd.DataFrame(rows)).to_dict("records")
        print(f"{row['model']}: {case.name}: {row['ours_is_faster']:.2f} times as fast", flush=True)
    replace_rows(out / "metrics.csv", summarise(read(out / "metric_rounds.csv")), TIMED)


@contextmanager
def our_method(case: Case, given: Given) -> Iterator[Any]:
    """The method that both sides use, or the maps in files, as xaieval reads those of other tools."""
    if case.explains:
        yield SALIENCY
    else:
        with saved_maps(given) as method:
            yield method


def our_rows(given: Given, method: Any, metric: Metric, size: int) -> pd.DataFrame:
    """The rows of xaieval."""
    names = torch.arange(len(given.images)).split(size)
    batches = [
        {"images": part.images, "labels": part.targets, "masks": part.masks, "ids": [str(name) for name in ids.tolist()]}
        for part, ids in zip(given.batches(size), names, strict=True)
    ]
    return xaieval.score(given.network.model, batches, (), method, metric, target="label", progress=False).rows


def our_values(case: Case, given: Given, method: Any, metric: Metric, size: int) -> np.ndarray:
    """The values of xaieval: of a run, or of the pure function."""
    if case.function is None:
        found: np.ndarray = our_rows(given, method, metric, size)[metric.name].to_numpy(float)
        return found
    return np.concatenate([case.function(part).numpy() for part in given.batches(size)])


# ---- the numbers


def compared(case: Case, given: Given) -> dict[str, Any]:
    """One row: the largest deviation from the counterpart, given the same random numbers."""
    few = given.first(CHECKED)
    theirs, deviation, verdict = np.array([np.nan]), np.nan, "another number"
    with case.fixed(), our_method(case, few) as method:
        ours = our_values(case, few, method, case.checked or case.ours, CHECKED)
        if not case.deviation:
            theirs = case.in_our_unit(case.found_by_peer(few, 1 if case.alone else CHECKED, few.draw), few)
            deviation = float(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1))
            verdict = "agrees" if deviation <= case.tolerance else "DIFFERS"
    return {
        "model": given.network.name,
        "metric": case.metric,
        "peer": case.peer,
        "images": CHECKED,
        "ours": float(ours.mean()),
        "theirs": float(theirs.mean()),
        "deviation": deviation,
        "tolerance": case.tolerance,
        "verdict": verdict,
        "explanation": case.deviation,
    }


# ---- times


def _time(case: Case, given: Given, rounds: int) -> list[dict[str, Any]]:
    """Seconds of both sides at their best batch sizes, and of a bare pass of one image, in each round."""
    given = given.first(case.images)
    with ExitStack() as undo:
        method = undo.enter_context(our_method(case, given))
        ours, our_size = _best(lambda size: partial(our_values, case, given, method, case.ours, size), case.images)
        theirs, their_size = _best(lambda size: partial(case.found_by_peer, given, size), case.images, case.least)
        bare = undo.enter_context(_bare(given)) if case.passes else _nothing
        seconds = alternate({"ours": ours, "theirs": theirs, "bare": bare}, rounds)
    return [
        {
            "model": given.network.name,
            "metric": case.metric,
            "peer": case.peer,
            "maps": "explained in the time" if case.explains else "finished",
            "n_images": case.images,
            "passes": case.passes,
            "our_batch": our_size,
            "peer_batch": their_size,
            "round": number,
            "our_ms": 1000 * row["ours"] / case.images,
            "peer_ms": 1000 * row["theirs"] / case.images,
            "bare_ms": 1000 * row["bare"] / PASS * case.passes if case.passes else np.nan,
        }
        for number, row in seconds.iterrows()
    ]


def _best(make: Callable[[int], Callable[[], object]], images: int, least: int = 1) -> tuple[Callable[[], object], int]:
    """The work at the fastest batch size, each tried once; the check of the numbers has warmed up."""
    works = {size: make(size) for size in sorted({size for size in SIZES if least <= size < images} | {images})}
    times = {size: stopwatch(work) for size, work in works.items()}
    best = min(times, key=lambda size: times[size])
    return works[best], best


@contextmanager
def _bare(given: Given) -> Iterator[Callable[[], object]]:
    """A forward pass of the model as `score` runs it."""
    images = given.first(PASS).images
    with prepared(given.network.model, images, given.network.layers(1), fast=True) as runner:

        def work() -> None:
            with torch.inference_mode():
                runner.model(runner.lay_out(images))

        work()
        yield work


def _nothing() -> None:
    pass


# ---- the table


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per model, metric and peer: medians and ranges over the rounds, of times and of their ratios."""
    return pd.DataFrame([_row(part) for _, part in rows.groupby(list(TIMED), sort=False)])


def _row(rows: pd.DataFrame) -> dict[str, Any]:
    same = rows.iloc[0]
    kept = (*KEYS, "maps", "n_images", "passes", "our_batch", "peer_batch")
    return {
        **{name: same[name] for name in kept},
        "rounds": len(rows),
        **spread(rows["our_ms"], "our_ms"),
        **spread(rows["peer_ms"], "peer_ms"),
        **spread(rows["peer_ms"] / rows["our_ms"], "ours_is_faster"),
        **spread(rows["bare_ms"] / rows["our_ms"], "efficiency"),
    }
