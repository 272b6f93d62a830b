"""Metrics that differences of rounding can decide, in a precision of fewer digits."""

from __future__ import annotations

from xaieval.evaluation.request import Request
from xaieval.inference.precision import FLOAT32
from xaieval.results.findings import Finding

__all__ = ["find_in_precision"]


def find_in_precision(request: Request) -> list[Finding]:
    """A finding if the run has metrics that are not fit for its precision."""
    precision = request.inference.precision
    names = [metric.name for metric in request.metrics if metric.rounding_decides]
    if precision == FLOAT32 or not names:
        return []
    text = (
        f"differences of rounding can decide {', '.join(names)}, and the confidences come from passes in {precision}; leave "
        "precision= out, or take these metrics in a run of their own"
    )
    return [Finding("rounding_decides", text, {"precision": precision, "metrics": names})]
