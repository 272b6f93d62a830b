"""Where a logger of Lightning takes pictures."""

from __future__ import annotations

import inspect
import re
from typing import Any

from xaieval.evaluation.score_callback import LogPicture

__all__ = ["picture_logger"]


def picture_logger(logger: Any) -> LogPicture | None:
    """A function `(name, picture, step)` that logs a picture `[H, W, 3]` of bytes; None if the logger takes none.

    Loggers are known by what they offer: `add_image` of TensorBoard's writer, `log_image` of Lightning's logger for Weights &
    Biases, and `log_image` of the clients of MLflow and Comet.

    Args:
        logger: A logger of Lightning.

    Example:
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> picture_logger(CSVLogger(".")) is None
        True
    """
    if callable(getattr(logger, "log_image", None)):
        return lambda name, picture, step: logger.log_image(name, [picture], step=step)
    client: Any = getattr(logger, "experiment", None)
    if callable(getattr(client, "add_image", None)):
        return lambda name, picture, step: client.add_image(name, picture, step, dataformats="HWC")
    if not callable(getattr(client, "log_image", None)):
        return None
    if "run_id" in inspect.signature(client.log_image).parameters:  # MLflow, whose names have few characters
        return lambda name, picture, step: client.log_image(
            logger.run_id, picture, key=re.sub(r"[^\w/. -]", "", name, flags=re.ASCII), step=step
        )
    return lambda name, picture, step: client.log_image(picture, name=name, step=step)
