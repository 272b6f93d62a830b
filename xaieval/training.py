"""Training of the reference models, by Lightning (`pip install 'xaieval[fal]'`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import timm.optim
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Classifier", "fit"]


class Classifier(lightning.LightningModule):
    """A classifier under training: cross entropy, AdamW, one cycle of the learning rate.

    Args:
        model: images `[N, 3, H, W]` to logits `[N, K]`.
        num_classes: number of classes K.
        learning_rate: the highest of the cycle.
        weight_decay: of all weights but biases and norms.
    """

    def __init__(self, model: nn.Module, num_classes: int, learning_rate: float = 3e-3, weight_decay: float = 0.02) -> None:
        super().__init__()
        self.model = model
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=num_classes)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = functional.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        logits = self.model(images)
        self.accuracy(logits, labels)
        self.log("validation_loss", functional.cross_entropy(logits, labels), prog_bar=True)
        self.log("validation_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = timm.optim.create_optimizer_v2(
            self.model, opt="adamw", lr=self.learning_rate, weight_decay=self.weight_decay
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.learning_rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    model: nn.Module,
    train: Iterable[Any],
    validation: Iterable[Any],
    *,
    num_classes: int,
    epochs: int,
    seed: int = 0,
    learning_rate: float = 3e-3,
    log_dir: Path | str = "lightning_logs",
) -> float:
    """Train `model` in place and return its accuracy on `validation` after the last epoch, in [0, 1].

    Args:
        model: images `[N, 3, H, W]` to logits `[N, K]`.
        train: a loader of `(images, labels)` that shuffles.
        validation: a loader of `(images, labels)`.
        num_classes: number of classes K.
        epochs: passes over `train`.
        seed: of all random numbers.
        learning_rate: the highest of the cycle.
        log_dir: where the CSV log of the losses is written.
    """
    lightning.seed_everything(seed, workers=True, verbose=False)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        logger=lightning.pytorch.loggers.CSVLogger(log_dir),
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(model, num_classes, learning_rate), train, validation)
    return float(trainer.callback_metrics["validation_accuracy"])
