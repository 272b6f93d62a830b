"""Training of the reference models, by Lightning (`pip install 'xaieval[fal]'`)."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Unpack

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

from xaieval.config.keywords import with_keywords
from xaieval.data import Pictures, Preprocessing
from xaieval.data.samples import collate
from xaieval.errors import DataError, UsageError
from xaieval.models import FAL, ABNClassifier, attention_loss
from xaieval.models.weights import check_fit, read_weights
from xaieval.training.masked import masked_loss
from xaieval.training.options import Training, TrainingOptions

__all__ = ["Classifier", "Loss", "augmentation", "cross_entropy", "fit", "training_loader"]

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
CHECKPOINT = "last.ckpt"
PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {"float32": "32-true", "bf16": "bf16-mixed"}  # Lightning's names


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of a batch; for models with attention branches, plus that of each branch, with weight 1."""
    if isinstance(model, FAL | ABNClassifier):
        return attention_loss(model(images, details=True), labels)
    return functional.cross_entropy(model(images), labels)


class Classifier(lightning.LightningModule):
    """A classifier as a Lightning module, with a timm optimiser and a one-cycle learning rate.

    The learning rate rises during the warm-up and then decays; it changes at every step.

    Args:
        model: Network from images `[N, 3, H, W]` to logits `[N, K]`.
        num_classes: Number of classes K.
        learning_rate: Highest learning rate of the schedule.
        weight_decay: Weight decay of all weights except biases and normalisation layers.
        optimizer: Name of a timm optimiser.
        warmup: Share of the steps in which the learning rate rises, in (0, 1).
        loss: Function of model, images and labels that returns a scalar.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        learning_rate: float = Training.learning_rate,
        *,
        weight_decay: float = Training.weight_decay,
        optimizer: str = Training.optimizer,
        warmup: float = Training.warmup,
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
    validation: Iterable[Any] | None,
    *,
    num_classes: int,
    epochs: int,
    loss: Loss = cross_entropy,
    masked: bool = False,
    seed: int = 0,
    log_dir: Path | str = "lightning_logs",
    checkpoint_dir: Path | str | None = None,
    progress: bool = True,
    training: Training | None = None,
    **options: Unpack[TrainingOptions],
) -> float:
    """Train `model` in place and return its validation accuracy after the last epoch, in [0, 1].

    Args:
        model: Network from images `[N, 3, H, W]` to logits `[N, K]`.
        train: Loader of `(images, labels)` that shuffles, see `training_loader`.
        validation: Loader of `(images, labels)`; None to train without.
        num_classes: Number of classes K.
        epochs: Number of passes over `train`.
        loss: Function of model, images and labels that returns a scalar. Default: cross entropy, plus that of attention
            branches.
        masked: Mask random cells of the training images, for a network that judges masked images; see `masked_loss`.
        seed: Seed of all random numbers.
        log_dir: Folder for the CSV log of losses and accuracy.
        checkpoint_dir: Folder for a checkpoint of the last finished epoch; training resumes from a checkpoint that is already
            there. Default: no checkpoint.
        progress: Show a progress bar.
        training: Learning rate, optimiser, precision, devices and the rest of `Training`.
        options: The same by keyword, such as `learning_rate=1e-3`; keywords override `training`.

    Returns:
        The accuracy; NaN without validation, or if the checkpoint already holds all epochs.

    Raises:
        UsageError: `epochs` is below 1, or an option is unknown.
        WeightsError: The checkpoint belongs to another model, or holds more than tensors.
    """
    if epochs < 1:
        raise UsageError(f"epochs is at least 1, got {epochs}")
    training = with_keywords(fit, training or Training(), options)
    learner = Classifier(
        model,
        num_classes,
        training.learning_rate,
        weight_decay=training.weight_decay,
        optimizer=training.optimizer,
        warmup=training.warmup,
        loss=masked_loss(loss) if masked else loss,
    )
    last = None if checkpoint_dir is None else _checkpoint(Path(checkpoint_dir) / CHECKPOINT, learner)
    model.train()
    lightning.seed_everything(seed, workers=True, verbose=False)
    with _quiet():
        trainer = _trainer(training, epochs, log_dir, checkpoint_dir, progress)
        trainer.fit(learner, train, validation, ckpt_path=last, weights_only=True)
    return float(trainer.callback_metrics.get("validation_accuracy", math.nan))


def _trainer(
    training: Training, epochs: int, log_dir: Path | str, checkpoint_dir: Path | str | None, progress: bool
) -> lightning.Trainer:
    callbacks: list[Any] = []
    if training.patience is not None:
        callbacks.append(EarlyStopping("validation_loss", patience=training.patience))
    if checkpoint_dir is not None:
        callbacks.append(ModelCheckpoint(checkpoint_dir, filename="last", save_top_k=1, enable_version_counter=False))
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator=training.device or "cpu",
        devices=training.devices,
        strategy=training.strategy,
        precision=PRECISIONS[training.precision],
        logger=CSVLogger(log_dir),
        callbacks=callbacks,
        enable_checkpointing=checkpoint_dir is not None,
        enable_model_summary=False,
        enable_progress_bar=progress,
        log_every_n_steps=1,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's remarks on hardware, loaders, checkpoints, training without validation, and its own imports."""
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
                ".*but have no `val_dataloader`.*",
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        log.setLevel(before)


def _checkpoint(path: Path, learner: Classifier) -> Path | None:
    """The checkpoint to resume from, or None; refuses a checkpoint of another model."""
    if not path.is_file():
        return None
    check_fit(read_weights(path), learner.state_dict(), f"checkpoint '{path}'", "the model to be trained")
    return path


def augmentation(preprocessing: Preprocessing, *, scale: tuple[float, float] = (0.5, 1.0), jitter: float = 0) -> Any:
    """Return timm's training transform: random crops, horizontal and vertical flips, normalisation.

    Vertical flips suit aerial images, which have no upright side.

    Args:
        preprocessing: The size, interpolation and normalisation.
        scale: Range of the share of the image's area that a crop shows.
        jitter: Strength of the colour jitter (brightness, contrast, saturation).
    """
    return timm.data.create_transform(
        input_size=preprocessing.input_shape,
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
    """Return a loader of `(images, labels)`; with `shuffle`, an incomplete last batch is left out.

    Raises:
        DataError: While iterating, if an image cannot be read.
    """

    def join(samples: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        batch = collate(samples)
        if batch["failed"]:
            name, _, reason = batch["failed"][0]
            raise DataError(f"cannot train on '{name}', which cannot be read: {reason}; repair or remove the file")
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
