"""The check before the numbers: what the first batch shows about a model, its weights and the preparation of its images."""

from __future__ import annotations

from xaieval.evaluation.first_batch.check import FirstBatch, check_first_batch

__all__ = ["FirstBatch", "check_first_batch"]
