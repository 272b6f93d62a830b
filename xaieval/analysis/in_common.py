"""What several runs have in common: images, metrics and protocol; and in what they differ, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from xaieval.analysis.comparability import (
    OTHER_MODEL,
    check_protocols,
    check_same_images,
    same_definition,
    setting_differences,
    state_of,
)
from xaieval.errors import MetricError, advice
from xaieval.results.record import RunRecord

__all__ = ["InCommon", "in_common"]

Runs = Mapping[str, RunRecord]


@dataclass(frozen=True)
class InCommon:
    """What runs have in common.

    Attributes:
        runs: The runs by name, with the rows of the images that all of them have.
        metrics: The entries of the metrics that all of them have.
        images: The number of these images.
        notes: What is left out, and in what the runs differ, one sentence each.
    """

    runs: dict[str, RunRecord]
    metrics: list[dict[str, Any]]
    images: int
    notes: list[str]


def in_common(runs: Runs, across_protocols: bool = False) -> InCommon:
    """What several runs have in common.

    Args:
        runs: The runs by name, at least two.
        across_protocols: Take runs of different protocols together, and say so.

    Raises:
        MetricError: There are fewer than two runs; or they have no image or no metric in common; or the same id belongs to
            different images; or the images of some are in groups, or counted in groups, and those of others are not.
        ProtocolError: They were measured under different protocols.
    """
    if len(runs) < 2:
        raise MetricError(f"a table of several runs takes at least two; got {len(runs)}")
    (first_name, first), *others = runs.items()
    doubts: list[str] = []
    for name, other in others:
        if not across_protocols:
            check_protocols(first, other, (first_name, name))
        doubts += check_same_images(first, other, (first_name, name))
    _check_groups(runs)
    images = set.intersection(*(set(run.sample.rows["image_id"]) for run in runs.values()))
    if not images:
        raise MetricError(f"the runs {', '.join(runs)} have no image in common; score the same images in all of them")
    shared = {name: replace(run, rows=run.sample.rows[run.sample.rows["image_id"].isin(images)]) for name, run in runs.items()}
    metrics = [entry for entry in first.metrics if all(_has(run, entry) for run in runs.values())]
    if not metrics:
        raise MetricError(
            f"the runs have no metric in common; they have {'; '.join(f'{_named(run)} ({name})' for name, run in runs.items())}"
        )
    differences = [
        note for name, other in others for note in setting_differences(first, other, (first_name, name), across_protocols)
    ]
    notes = [
        *_left_out(runs, images),
        *_other_metrics(runs, [entry["name"] for entry in metrics]),
        *(note for name, run in runs.items() for note in state_of(run, name)),
        *differences,
        *doubts,
        *([OTHER_MODEL] if len({_weights(run) for run in runs.values()}) > 1 else []),
    ]
    return InCommon(shared, metrics, len(images), list(dict.fromkeys(notes)))


def _check_groups(runs: Runs) -> None:
    kinds = {name: (run.n_groups is not None, run.group_weights) for name, run in runs.items()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{weights if grouped else 'no groups'} ({name})" for name, (grouped, weights) in kinds.items())
        raise MetricError(
            f"the runs count groups of images differently: {told}; give all of them the same, "
            + advice("as in scores.with_groups(...)", "by --groups")
        )


def _has(run: RunRecord, entry: Mapping[str, Any]) -> bool:
    """Whether a run has the metric of this entry, with the same definition."""
    return any(other["name"] == entry["name"] and same_definition(entry, other) for other in run.metrics)


def _named(run: RunRecord) -> str:
    return ", ".join(entry["name"] for entry in run.metrics) or "none"


def _left_out(runs: Runs, images: set[Any]) -> Iterator[str]:
    """How many images of a run others lack."""
    for name, run in runs.items():
        missing = run.n_images - len(images)
        if missing:
            yield f"{missing} of {missing + len(images)} images of {name} are left out, which others lack"


def _other_metrics(runs: Runs, shared: list[str]) -> Iterator[str]:
    """The metrics that not all runs have, or not with the same settings."""
    names = dict.fromkeys(entry["name"] for run in runs.values() for entry in run.metrics)
    odd = [name for name in names if name not in shared]
    if odd:
        yield f"left out: {', '.join(odd)}, which not all runs have with the same settings"


def _weights(run: RunRecord) -> tuple[Any, Any]:
    model = run.manifest.get("model") or {}
    return model.get("class"), model.get("fingerprint")
