"""The FAL experiment: train an FPN, score its levels, add attention to those that need it, compare."""

from __future__ import annotations

from xaieval.training.fal.effects import arm_differences, effects, run_table
from xaieval.training.fal.experiment import Experiment, prepare
from xaieval.training.fal.report import write_figures, write_report
from xaieval.training.fal.results import Results, read_results
from xaieval.training.fal.rows import read_rows
from xaieval.training.fal.run import run_experiment

__all__ = [
    "Experiment",
    "Results",
    "arm_differences",
    "effects",
    "prepare",
    "read_results",
    "read_rows",
    "run_experiment",
    "run_table",
    "write_figures",
    "write_report",
]
