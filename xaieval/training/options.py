"""How a model is trained: the options of `fit` as one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from xaieval.inference.precision import FLOAT32, check_precision

__all__ = ["Training", "TrainingOptions"]


class TrainingOptions(TypedDict, total=False):
    """The fields of `Training` as keyword arguments."""

    learning_rate: float
    optimizer: str
    weight_decay: float
    warmup: float
    patience: int | None
    precision: Literal["float32", "bf16"]
    device: str | None
    devices: int
    strategy: str


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained, and on which hardware.

    Give the options as keywords, `fit(..., learning_rate=1e-3)`, or make one object for several models:
    `fit(..., training=recipe)`.

    Args:
        learning_rate: Highest learning rate of the schedule.
        optimizer: Name of a timm optimiser.
        weight_decay: Weight decay of all weights except biases and normalisation layers.
        warmup: Share of the steps in which the learning rate rises, in (0, 1).
        patience: Stop after this many epochs without a lower validation loss. Default: train for all epochs.
        precision: "float32", or "bf16" for mixed precision on processors that support it.
        device: An accelerator of Lightning, such as "cpu" or "gpu". Default: the CPU.
        devices: Number of devices.
        strategy: How several devices work together: a strategy of Lightning, such as "ddp".

    Raises:
        UsageError: The precision is unknown.

    Example:
        >>> Training(learning_rate=1e-3, patience=5).optimizer
        'adamw'
    """

    learning_rate: float = 3e-3
    optimizer: str = "adamw"
    weight_decay: float = 0.02
    warmup: float = 0.3
    patience: int | None = None
    precision: Literal["float32", "bf16"] = "float32"
    device: str | None = None
    devices: int = 1
    strategy: str = "auto"

    def __post_init__(self) -> None:
        check_precision(self.precision, (FLOAT32, "bf16"))
