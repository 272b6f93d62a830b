"""Training of the reference models, by Lightning (`pip install 'xaieval[fal]'`)."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning
import timm.data
import timm.optim
import torch
import torchmetrics
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from xaieval.data import Pictures, Preprocessing
from xaieval.data.images import collate
from xaieval.errors import DataError, UsageError
from xaieval.models import FAL, ABNClassifier, attention_loss
from xaieval.models.weights import check_fit, read_weights

__all__ = ["Classifier", "Loss", "augmentation", "cross_entropy", "fit", "training_loader"]

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
CHECKPOINT = "last.ckpt"


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The loss of a batch: cross entropy; for models with attention branches, theirs added with weight 1."""
    if isinstance(model, FAL | ABNClassifier):
        return attention_loss(model(images, details=True), labels)
    return functional.cross_entropy(model(images), labels)


class Classifier(lightning.LightningModule):
    """A classifier under training: an optimiser of timm, and a learning rate that warms up and decays, step by step.

    Args:
        model: images `[N, 3, H, W]` to logits `[N, K]`.
        num_classes: number of classes K.
        learning_rate: the highest of the cycle.
        weight_decay: of all weights but biases and norms.
        optimizer: name of an optimiser of timm.
        warmup: share of the steps in which the learning rate rises, in (0, 1).
        loss: from model, images and labels to a number.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        learning_rate: float = 3e-3,
        *,
        weight_decay: float = 0.02,
        optimizer: str = "adamw",
        warmup: float = 0.3,
        loss: Loss = cross_entropy,
    ) -> None:
        super().__init__()
        self.model = model
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.warmup = warmup
        self.loss = loss
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=num_classes)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = self.loss(self.model, images, labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        logits = self.model(images)
        self.accuracy(logits, labels)
        self.log("validation_loss", functional.cross_entropy(logits, labels), prog_bar=True)
        self.log("validation_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = timm.optim.create_optimizer_v2(
            self.model, opt=self.optimizer, lr=self.learning_rate, weight_decay=self.weight_decay
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.learning_rate, total_steps=steps, pct_start=self.warmup
        )
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
    loss: Loss = cross_entropy,
    optimizer: str = "adamw",
    weight_decay: float = 0.02,
    warmup: float = 0.3,
    precision: Literal["float32", "bf16"] = "float32",
    patience: int | None = None,
    checkpoint_dir: Path | str | None = None,
    device: str | None = None,
    devices: int = 1,
    strategy: str = "auto",
    progress: bool = True,
) -> float:
    """Train `model` in place and return its accuracy on `validation` after the last epoch, in [0, 1].

    Args:
        model: images `[N, 3, H, W]` to logits `[N, K]`.
        train: a loader of `(images, labels)` that shuffles, see `training_loader`.
        validation: a loader of `(images, labels)`.
        num_classes: number of classes K.
        epochs: passes over `train`.
        seed: of all random numbers.
        learning_rate: the highest of the cycle.
        log_dir: where the CSV log of the losses is written.
        loss: from model, images and labels to a number; with the attention branches' own losses, where there are any.
        optimizer: name of an optimiser of timm.
        weight_decay: of all weights but biases and norms.
        warmup: share of the steps in which the learning rate rises, in (0, 1).
        precision: "bf16" runs in mixed precision, which pays where the processor has it.
        patience: stop when the validation loss has not fallen for so many epochs; never unless told.
        checkpoint_dir: keeps a checkpoint of the last finished epoch there, and goes on from one that is there already.
        device: "cpu", "gpu" or another accelerator of Lightning; the CPU unless told.
        devices: how many of them.
        strategy: how several devices work together, a strategy of Lightning such as "ddp".
        progress: show a progress bar.

    Raises:
        UsageError: there is nothing to do in the number of epochs, or the precision is unknown.
        WeightsError: the checkpoint is of another model, or cannot be read without running code.
    """
    precisions: dict[str, Any] = {"float32": "32-true", "bf16": "bf16-mixed"}
    if epochs < 1 or precision not in precisions:
        raise UsageError(
            f"training takes at least 1 epoch and a precision of {', '.join(precisions)}; got {epochs}, {precision!r}"
        )
    learner = Classifier(
        model, num_classes, learning_rate, weight_decay=weight_decay, optimizer=optimizer, warmup=warmup, loss=loss
    )
    callbacks: list[Any] = [] if patience is None else [EarlyStopping("validation_loss", patience=patience)]
    last = None
    if checkpoint_dir is not None:
        callbacks.append(ModelCheckpoint(checkpoint_dir, filename="last", save_top_k=1, enable_version_counter=False))
        last = _checkpoint(Path(checkpoint_dir) / CHECKPOINT, learner)
    model.train()
    lightning.seed_everything(seed, workers=True, verbose=False)
    with _quiet():
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator=device or "cpu",
            devices=devices,
            strategy=strategy,
            precision=precisions[precision],
            logger=CSVLogger(log_dir),
            callbacks=callbacks,
            enable_checkpointing=checkpoint_dir is not None,
            enable_model_summary=False,
            enable_progress_bar=progress,
            log_every_n_steps=1,
        )
        trainer.fit(learner, train, validation, ckpt_path=last, weights_only=True)
    return (
        float(trainer.callback_metrics["validation_accuracy"])
        if "validation_accuracy" in trainer.callback_metrics
        else math.nan
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks on unused hardware, loaders without workers, checkpoints that are there and its own parts."""
    log = logging.getLogger("lightning.pytorch")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",
                ".*isinstance.treespec, LeafSpec.*",
                ".*litlogger.*",
                ".*exists and is not empty.*",
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        log.setLevel(before)


def _checkpoint(path: Path, learner: Classifier) -> Path | None:
    """The checkpoint to go on from, if there is one, and it is of this model."""
    if not path.is_file():
        return None
    check_fit(read_weights(path), learner.state_dict(), f"checkpoint '{path}'", "the model that is to be trained")
    return path


def augmentation(preprocessing: Preprocessing, *, scale: tuple[float, float] = (0.5, 1.0), jitter: float = 0) -> Any:
    """The training transform of timm for a preprocessing: random crops and both flips.

    Both flips fit images from above, which have no upright side.

    Args:
        preprocessing: gives the size, the interpolation and the normalisation.
        scale: share of the picture's area that a crop shows.
        jitter: strength of the changes of brightness, contrast and saturation.
    """
    return timm.data.create_transform(
        input_size=(3, preprocessing.image_size, preprocessing.image_size),
        is_training=True,
        scale=scale,
        hflip=0.5,
        vflip=0.5,
        color_jitter=jitter or None,  # type: ignore[arg-type]  # None switches it off
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def training_loader(pictures: Pictures, batch_size: int, *, shuffle: bool, workers: int = 0) -> DataLoader[Any]:
    """Batches of `(images, labels)`; with `shuffle`, the last one is left out if it is not full.

    Raises:
        DataError: while iterating, if a picture cannot be read.
    """

    def join(samples: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        batch = collate(samples)
        if batch["failed"]:
            name, _, reason = batch["failed"][0]
            raise DataError(f"cannot train on '{name}', which cannot be read: {reason}; mend or remove the file")
        return batch["image"], batch["label"]

    return DataLoader(
        pictures,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=shuffle and len(pictures) >= batch_size,
        collate_fn=join,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
