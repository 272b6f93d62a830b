"""Torchmetrics classes for your own loop: the mean of a metric over images, across batches and processes.

They are loaded when one is asked for, because `score` needs none of them and torchmetrics takes long to import.
"""

# ruff: noqa: F403  # a star import takes what the module lists in its own `__all__`

from __future__ import annotations

from xaieval.metrics.torchmetrics_classes import base, of_confidences, of_maps, of_sets
from xaieval.metrics.torchmetrics_classes.base import *
from xaieval.metrics.torchmetrics_classes.of_confidences import *
from xaieval.metrics.torchmetrics_classes.of_maps import *
from xaieval.metrics.torchmetrics_classes.of_sets import *

__all__ = sorted([*base.__all__, *of_confidences.__all__, *of_maps.__all__, *of_sets.__all__])
