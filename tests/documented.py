"""What the documentation fixes, and more than one test file compares with."""

from __future__ import annotations

ROW_COLUMNS = [
    "image_id",
    "layer",
    "method",
    "label",
    "predicted",
    "target",
    "confidence",
    "masked_confidence",
    "mask_area",
    "average_drop",
    "increase_in_confidence",
    "status",
]
