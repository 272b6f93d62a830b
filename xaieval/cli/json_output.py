"""JSON documents that commands print with `--json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xaieval.config.version import package_version

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from xaieval.analysis.ranking import Ranking
    from xaieval.evaluation.scores import Scores
    from xaieval.results.findings import Finding

__all__ = ["findings_document", "records", "render", "score_document"]

Document = dict[str, Any]


def render(document: Mapping[str, Any]) -> str:
    """A document as JSON text, with the version of the package first. NaN and infinity become null.

    Example:
        >>> print(render({"level": 0.95, "mean": float("nan")}))  # doctest: +ELLIPSIS
        {
          "xaieval": "...",
          "level": 0.95,
          "mean": null
        }
    """
    return json.dumps({"xaieval": package_version(), **_finite(document)}, indent=2, allow_nan=False)


def records(table: pd.DataFrame) -> list[Document]:
    """Rows of a table as dicts, by the names of the columns and of the index if it has names."""
    named = table.reset_index(drop=table.index.names == [None])
    return [{str(name): value for name, value in row.items()} for row in named.to_dict("records")]


def score_document(
    scores: Scores, summary: pd.DataFrame, rankings: Sequence[Ranking], level: float, files: Sequence[str], folder: Path
) -> Document:
    """The document of the command `score`."""
    findings, fooled = scores.findings(level), scores.fooled_metrics(level)
    return {
        "folder": str(folder),
        "files": list(files),
        "level": level,
        "metrics": [_metric_document(metric, fooled) for metric in scores.manifest["metrics"]],
        "groups": scores.manifest.get("groups"),
        "summary": records(summary),
        "pooled": _pooled_document(scores, level),
        "statuses": scores.statuses,
        "stopped": scores.manifest["stop"]["reason"] if "stop" in scores.manifest else None,
        "warnings": [finding.text for finding in findings],
        **findings_document(scores, findings),
        "matched_controls": records(scores.matched_table(level)) if scores.matched_controls else None,
        "rankings": [_ranking_document(ranking) for ranking in rankings],
    }


def findings_document(scores: Scores, findings: Sequence[Finding]) -> Document:
    """How good the model is on the images, and the reasons not to trust its numbers."""
    return {
        "accuracy": scores.predictions.accuracy,
        "mean_confidence": scores.predictions.mean_confidence,
        "findings": [finding.to_dict() for finding in findings],
    }


def _metric_document(metric: Mapping[str, Any], fooled: Mapping[str, str]) -> Document:
    excess = {key: metric[key] for key in ("excess_of", "control") if key in metric}
    known = {key: metric[key] for key in ("name", "label", "higher_is_better")}
    return {**known, **excess, "fooled": fooled.get(metric["name"])}


def _pooled_document(scores: Scores, level: float) -> list[Document] | None:
    from xaieval.analysis.pooled import pooled_numbers

    return records(scores.pooled(level=level)) if pooled_numbers(scores.column_names, scores.metrics) else None


def _ranking_document(ranking: Ranking) -> Document:
    return {
        "metric": ranking.metric["name"],
        "over": ranking.over,
        "n_images": ranking.n_images,
        "items": records(ranking.table.reset_index(drop=True)),
    }


def _finite(value: Any) -> Any:
    """The value with None instead of NaN and infinity, at any depth."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
