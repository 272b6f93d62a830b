"""The FAL experiment: train an FPN, score its levels, add attention to those that need it, compare."""

from __future__ import annotations

from xaieval.training.fal.experiment import Experiment, prepare
from xaieval.training.fal.report.figures import write_figures
from xaieval.training.fal.report.page import write_report
from xaieval.training.fal.results import Results, read_results
from xaieval.training.fal.rows import read_rows
from xaieval.training.fal.rules.oracle_gate import with_oracle_gate
from xaieval.training.fal.rules.probe import ProbeSettings, with_probe
from xaieval.training.fal.run import run_experiment
from xaieval.training.fal.statistics.effects import arm_differences, effects, run_table

__all__ = [
    "Experiment",
    "ProbeSettings",
    "Results",
    "arm_differences",
    "effects",
    "prepare",
    "read_results",
    "read_rows",
    "run_experiment",
    "run_table",
    "with_oracle_gate",
    "with_probe",
    "write_figures",
    "write_report",
]
