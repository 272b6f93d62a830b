"""The FAL experiment: train an FPN, score its levels, put attention on those that need it, compare."""

from __future__ import annotations

from xaieval.training.fal.report import write_report
from xaieval.training.fal.results import Results, read_results
from xaieval.training.fal.run import run_experiment
from xaieval.training.fal.setup import Setup, prepare

__all__ = ["Results", "Setup", "prepare", "read_results", "run_experiment", "write_report"]
