"""Rows whose numbers are decided by rounding, in a run of fewer digits than float32."""

from __future__ import annotations

from xaieval.analysis.tables import name_of_pair
from xaieval.results.findings import Finding
from xaieval.results.record import RunRecord

__all__ = ["find_in_precision"]

WHOLE = 0.98  # mean of a mask above which the masked image is nearly the image
COMPARING = ("average_drop", "increase_in_confidence", "average_gain", "confidence_ratio")  # the image with the masked image


def find_in_precision(record: RunRecord) -> list[Finding]:
    """A finding on maps that keep nearly the whole image, where confidences differ by little more than the rounding.

    Fake-CAM leaves out one pixel: on 140 photographs bf16 moved its IC by 7 points (`benchmarks/bf16_metrics.py`). Control maps
    are left out.
    """
    precision = record.manifest.get("run", {}).get("precision", "float32")
    rows = record.sample.rows
    names = [metric["name"] for metric in record.metrics if metric["name"] in COMPARING]
    if precision == "float32" or not names or "mask_area" not in rows:
        return []
    own = rows[~rows["method"].isin(record.controls)]
    areas = {
        name_of_pair((str(layer), str(method))): float(of["mask_area"].mean())
        for (layer, method), of in own.groupby(["layer", "method"], sort=False)
    }
    whole = {name: area for name, area in areas.items() if area > WHOLE}
    if not whole:
        return []
    text = (
        f"the maps of {', '.join(whole)} keep nearly all of every image, so that differences of rounding decide "
        f"{', '.join(names)} of passes in {precision}; take these numbers in float32"
    )
    return [Finding("rounding_decides", text, {"precision": precision, "mask_area": whole})]
