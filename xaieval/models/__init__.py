"""Reference models, and the loading of a model by name."""

from __future__ import annotations

from xaieval.models.builtin import fpn_scenes
from xaieval.models.fpn import FPNClassifier
from xaieval.models.loading import LoadedModel, load_model, load_weights

__all__ = ["FPNClassifier", "LoadedModel", "fpn_scenes", "load_model", "load_weights"]
