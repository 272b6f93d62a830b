"""The end of a run: the rows of its batches, whoever measured them, become one table with its manifest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from xaieval.config.protocol import Protocol
from xaieval.errors import DataError, OutputError, RunError
from xaieval.evaluation.batch_rows import check_labelled
from xaieval.evaluation.distributed.rank import Rank
from xaieval.evaluation.run_state import LOOKS, InMemory, RunState
from xaieval.evaluation.scores import Scores
from xaieval.results.manifest import count_groups, describe_data
from xaieval.results.rows import GROUP, UNREADABLE, with_group_column
from xaieval.results.run_folder import RunFolder, other_order

__all__ = ["whole_run"]


def whole_run(state: RunState, manifest: dict[str, Any], protocol: Protocol, own_part: Rank | None) -> Scores:
    """Measure until the run is whole. Whoever comes first makes one table of it, and all get it.

    Args:
        state: The part of this process in the run, which begins.
        manifest: The manifest, without what is known only at the end.
        protocol: With the caller's target.
        own_part: The process, if it has images that no other process has.

    Raises:
        DataError: Processes have read different images, or an image twice.
        RunError: The files cannot be written, or as `RunState.work` raises it.
        TargetError: As `check_labelled` raises it.
    """
    store = state.store
    while True:
        state.work()
        if not isinstance(store, RunFolder):
            scores = _merged(state, manifest, protocol, state.numbers)
            assert scores is not None  # memory does not get damaged
            return scores
        ends = None if own_part is None else _ends(store, state, own_part, manifest)
        with store.merging() as first:
            if not first:
                return Scores.load(store.folder)
            scores = _merged(state, manifest, protocol, state.numbers if ends is None else _numbers(ends), ends or ())
            if scores is not None:
                return _saved(scores, store)


def _merged(
    state: RunState, manifest: Mapping[str, Any], protocol: Protocol, numbers: Sequence[int], ends: Sequence[Any] = ()
) -> Scores | None:
    """The scores of the whole run; None if a batch was damaged, so that it has to be measured again."""
    frames, failures, checks, places = [], [], [], []
    names: set[str] = set()
    for place, number in enumerate(numbers):
        rows = state.rows_of(number, state.kept[place] if state.stopping is not None else None)
        if rows is None:
            return None
        made_of = state.store.checkpoint(number)
        if isinstance(state.store, RunFolder):
            if state.passed.get(number, made_of.check) != made_of.check:
                raise other_order(state.store.folder)
            _check_new(names, [*rows["image_id"].unique(), *(name for name, _, _ in made_of.failed)])
        frames.append(rows)
        checks.append(made_of.check)
        failures += made_of.failed
        places += [number] * len(made_of.failed)
    for end in ends:
        failures += [(name, label, reason) for name, label, reason in end.get("failed", [])]
        places += [-1] * len(end.get("failed", []))
    frames = [rows for rows in frames if len(rows)]
    rows = pd.concat([*frames, *([state.unreadable(failures)] if failures else [])], ignore_index=True)
    if "groups" not in manifest and GROUP in rows:
        rows = with_group_column(rows, None)
    readable = rows[rows["status"] != UNREADABLE]
    check_labelled(protocol, readable["label"], readable["target"].notna())
    kept = isinstance(state.store, RunFolder)
    data = describe_data(rows, failures, checks if kept else [])
    if kept:
        data["unreadable"] = [
            entry | ({"batch": place} if place >= 0 else {}) for entry, place in zip(data["unreadable"], places, strict=True)
        ]
        data["data"] |= {} if list(numbers) == list(range(len(numbers))) else {"numbers": list(numbers)}
    stopped = {} if state.stopping is None else {"stop": state.stopping.to_dict()}
    first = next((end["first_image"] for end in ends if end.get("first_image")), None)
    return Scores(
        rows,
        {
            **manifest,
            **({} if first is None else {"first_image": first}),
            "speed": state.job.runner.to_dict(),
            **stopped,
            "complete": True,
            **data,
            **count_groups(manifest, rows),
        },
    )


def _check_new(names: set[str], own: Sequence[str]) -> None:
    for name in own:
        if name in names:
            raise DataError(
                f"two batches have an image with the id {name!r}; rows are told apart by id, so each needs its own, and loaders "
                "that give each process another part must not pad"
            )
        names.add(name)


def _saved(scores: Scores, store: RunFolder) -> Scores:
    """Write the finished run, which then needs its parts no longer."""
    try:
        scores.save(store.folder)
    except OutputError as error:  # which means wrong use elsewhere, but here the call was right
        raise RunError(str(error)) from error
    store.close()
    return scores


# ---- parts of the data that only one process has


def _ends(store: RunFolder, state: RunState, rank: Rank, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What all processes have said at the ends of their parts."""
    entry = {"batches": len(state.numbers), "first_image": manifest["first_image"]}
    store.say_end(rank.rank, rank.world, entry)
    while (ends := store.ends(rank.world)) is None and not store.finished_meanwhile():
        time.sleep(LOOKS)
    return ends or []


def _numbers(ends: Sequence[Mapping[str, Any]]) -> list[int]:
    from xaieval.evaluation.batch_sources import FAR

    return [(rank << FAR) + number for rank, end in enumerate(ends) for number in range(end["batches"])]
