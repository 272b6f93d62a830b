"""Pictures reach the loggers that take them. Weights & Biases, MLflow and Comet are objects with their documented arguments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger

from xaieval.training.picture_loggers import picture_logger

PICTURE = np.zeros((2, 3, 3), np.uint8)


class _Wandb:
    """`lightning.pytorch.loggers.WandbLogger.log_image`."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.calls.append((key, len(images), images[0] is PICTURE, step))


class _MLflow:
    """`mlflow.MlflowClient.log_image`."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def log_image(
        self,
        run_id: str,
        image: Any,
        artifact_file: str | None = None,
        key: str | None = None,
        step: int | None = None,
        timestamp: int | None = None,
    ) -> None:
        self.calls.append((run_id, image is PICTURE, artifact_file, key, step))


class _Comet:
    """`comet_ml.Experiment.log_image`."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def log_image(self, image_data: Any, name: str | None = None, overwrite: bool = False, step: int | None = None) -> None:
        self.calls.append((image_data is PICTURE, name, step))


def test_weights_and_biases_gets_a_list_of_one():
    logger = _Wandb()
    picture_logger(logger)("maps/layer4/gradcam", PICTURE, 7)
    assert logger.calls == [("maps/layer4/gradcam", 1, True, 7)]


def test_mlflow_gets_the_run_and_a_key_of_the_letters_that_it_takes():
    logger = SimpleNamespace(experiment=_MLflow(), run_id="r1")
    picture_logger(logger)("maps/fpn[p2]/captum:Lime", PICTURE, 7)
    assert logger.experiment.calls == [("r1", True, None, "maps/fpnp2/captumLime", 7)]


def test_comet_gets_the_name():
    logger = SimpleNamespace(experiment=_Comet())
    picture_logger(logger)("maps/layer4/gradcam", PICTURE, 7)
    assert logger.experiment.calls == [(True, "maps/layer4/gradcam", 7)]


def test_a_logger_of_numbers_takes_none(tmp_path):
    assert picture_logger(CSVLogger(tmp_path)) is None
