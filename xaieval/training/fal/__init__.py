"""The FAL experiment: train an FPN, score its levels, add attention to those that need it, compare."""

from __future__ import annotations

from xaieval.training.fal.experiment import Experiment, prepare
from xaieval.training.fal.report import write_report
from xaieval.training.fal.results import Results, read_results
from xaieval.training.fal.run import run_experiment

__all__ = ["Experiment", "Results", "prepare", "read_results", "run_experiment", "write_report"]
