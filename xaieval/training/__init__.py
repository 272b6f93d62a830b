"""Training of the reference models, and scoring while a model trains."""

from __future__ import annotations

from xaieval.training.callbacks import ScoreLayers
from xaieval.training.fit import Classifier, Loss, augmentation, cross_entropy, fit, training_loader

__all__ = ["Classifier", "Loss", "ScoreLayers", "augmentation", "cross_entropy", "fit", "training_loader"]
