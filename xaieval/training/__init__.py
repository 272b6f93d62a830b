"""Training of the reference models, and scoring while a model trains."""

from __future__ import annotations

from xaieval.training.callbacks import ScoreLayers
from xaieval.training.fit import Classifier, Loss, augmentation, cross_entropy, fit, training_loader
from xaieval.training.masked import mask_cells, masked_loss
from xaieval.training.options import Training

__all__ = [
    "Classifier",
    "Loss",
    "ScoreLayers",
    "Training",
    "augmentation",
    "cross_entropy",
    "fit",
    "mask_cells",
    "masked_loss",
    "training_loader",
]
