"""The runs of the experiment: train one network on one fold with one seed, and measure it; what is finished is not run again."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import nn

from xaieval.data import Fold, Pictures
from xaieval.evaluation.loop import score
from xaieval.evaluation.scores import Scores
from xaieval.models import FAL, LEVELS, ABNClassifier, gate_statistics, load_weights
from xaieval.results.files import write_file, write_json
from xaieval.training.fal.arms import FPN, Arm
from xaieval.training.fal.experiment import Experiment
from xaieval.training.fit import fit, training_loader

__all__ = ["RECORD", "ROWS", "WEIGHTS", "Cell", "layers_of"]

METRICS = ("average_drop", "increase_in_confidence", "average_gain")
CONTROL = "shifted"
RECORD, ROWS, SELECTION, WEIGHTS = "run.json", "rows.parquet", "selection.parquet", "model.safetensors"


@dataclass(frozen=True)
class Cell:
    """One fold and one seed of the experiment, in which all arms are trained alike: same images, same order, same first weights.

    Attributes:
        experiment: What all runs share.
        folder: The folder of the experiment.
        fold: The number of the fold.
        seed: Seed of new weights and of training.
    """

    experiment: Experiment
    folder: Path
    fold: int
    seed: int

    @property
    def images(self) -> Fold:
        """Numbers of the images of each part."""
        return self.experiment.folds[self.fold]

    def place(self, arm: str) -> Path:
        """The folder of a run."""
        return self.folder / f"fold{self.fold}-seed{self.seed}" / arm

    def run(self, name: str) -> bool:
        """Train and measure an arm, unless that is done or another process is at it; returns whether this call did it."""
        place = self.place(name)
        if (place / RECORD).exists():
            return False
        place.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(place / ".lock", timeout=0):
                if (place / RECORD).exists():
                    return False
                self._run(Arm.of(name), place)
        except Timeout:
            return False
        return True

    def _run(self, arm: Arm, place: Path) -> None:
        started = time.perf_counter()
        model = self.train(arm, place)
        trained = time.perf_counter()
        rows = self.score(model, "test")
        record = {"arm": arm.name, "fold": self.fold, "seed": self.seed, "gates": self._gates(model)}
        if arm.name == FPN and self.images.selection:
            self.score(model, "selection").rows.to_parquet(place / SELECTION, index=False)
        rows.rows.to_parquet(place / ROWS, index=False)
        seconds = {"training": round(trained - started, 1), "all": round(time.perf_counter() - started, 1)}
        write_json(
            place / RECORD,
            record | {"seconds": seconds, "versions": rows.manifest["versions"], "metrics": rows.manifest["metrics"]},
        )

    def train(self, arm: Arm, place: Path) -> Any:
        """A network, trained on the training images from the weights of the backbone."""
        options = self.experiment.options
        model = self.experiment.build(arm, self.seed)
        fit(
            model.to(memory_format=torch.channels_last),  # a quarter faster on a CPU
            training_loader(self.experiment.augmented(self.images.train), options.batch_size, shuffle=True),
            None,
            num_classes=self.experiment.num_classes,
            epochs=options.epochs,
            seed=self.seed,
            learning_rate=options.learning_rate,
            precision=options.precision,
            log_dir=place / "log",
            device=options.device,
            progress=options.progress and sys.stderr.isatty(),
        )
        if options.keep_weights or arm.name == FPN:
            weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            write_file(place / WEIGHTS, lambda file: file.write(save(weights)))
        return model.eval()

    def score(
        self,
        model: nn.Module,
        part: Literal["selection", "test"],
        layers: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
    ) -> Scores:
        """The scores of a network on a part of the fold."""
        options = self.experiment.options
        pictures = self.experiment.pictures.subset(getattr(self.images, part))
        return score(
            model,
            pictures.loader(options.batch_size),
            layers=layers or layers_of(model),
            methods=methods or options.methods[:1],
            metrics=METRICS,
            controls=(CONTROL,),
            device="cuda" if options.device in ("gpu", "cuda") else options.device,
            progress=False,
            seed=options.seed,
        )

    def _gates(self, model: nn.Module) -> dict[str, Any] | None:
        if not isinstance(model, FAL | ABNClassifier):
            return None
        pictures = self.experiment.pictures.subset(self.images.test)
        batches = (batch["image"] for batch in pictures.loader(self.experiment.options.batch_size))
        return gate_statistics(model, batches).to_dict()


def layers_of(model: nn.Module) -> list[str]:
    """Addresses of a model's layers at the levels p2 to p5, finest first; for ABN, the backbone stages of the same strides."""
    if isinstance(model, ABNClassifier):
        last = {stage["reduction"]: stage["module"] for stage in model.backbone.feature_info}
        return [f"backbone.{last[reduction]}" for reduction in LEVELS.values() if reduction in last]
    return [f"levels[{level}]" for level in LEVELS]
