"""The check before the numbers: what the first batch shows about a model, its weights and the preparation of its images."""

from __future__ import annotations

from xaieval.evaluation.model_check.check import ModelCheck, check_model
from xaieval.evaluation.model_check.data import find_in_data

__all__ = ["ModelCheck", "check_model", "find_in_data"]
