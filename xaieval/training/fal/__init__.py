"""The FAL experiment: train an FPN, score its levels, add attention to those that need it, compare."""

from __future__ import annotations

from xaieval.training.fal.experiment import Experiment, prepare
from xaieval.training.fal.oracle_gate import with_oracle_gate
from xaieval.training.fal.probe import ProbeSettings, with_probe
from xaieval.training.fal.rows import read_rows
from xaieval.training.fal.run import run_experiment

__all__ = ["Experiment", "ProbeSettings", "prepare", "read_rows", "run_experiment", "with_oracle_gate", "with_probe"]
