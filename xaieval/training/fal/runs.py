"""The runs of the experiment: each trains one network on one fold with one seed and measures it, once."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import nn

from xaieval.data import Fold
from xaieval.evaluation.loop import score
from xaieval.evaluation.scores import Scores
from xaieval.models import FAL, LEVELS, ABNClassifier, gate_statistics, load_weights
from xaieval.results.files import write_file, write_json
from xaieval.training.fal.arms import FPN, Arm
from xaieval.training.fal.experiment import CONTROL, METRICS, Experiment
from xaieval.training.fit import fit, training_loader

__all__ = ["METHODS", "RECORD", "ROWS", "SELECTION", "WEIGHTS", "Cell", "layers_of", "scoring_device"]

# Files in the folder of a run; the last two, scores on the selection images and by the other methods, only in that of the FPN.
RECORD, ROWS, WEIGHTS = "run.json", "rows.parquet", "model.safetensors"
SELECTION, METHODS = "selection.parquet", "methods.parquet"


@dataclass(frozen=True)
class Cell:
    """One fold and one seed of the experiment; all arms have the same images, in the same order, and the same first weights.

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

    def finished(self, arm: str) -> bool:
        """Whether a run is done."""
        return (self.place(arm) / RECORD).exists()

    def run(self, name: str, log: Callable[[str], None] = lambda line: None, *, keep: bool = False) -> bool:
        """Train and measure an arm, unless that is done or another process is at it.

        Args:
            name: The name of the arm.
            log: Called with one line before the run.
            keep: Keep the weights of the network, as those of the FPN are.

        Returns:
            Whether this call did it.
        """
        arm, place = Arm.of(name), self.place(name)
        if self.finished(name):
            return False
        place.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(place / ".lock", timeout=0):
                if self.finished(name):
                    return False
                log(f"fold {self.fold}, seed {self.seed}: {name}")
                self._run(arm, place, keep or name == FPN or self.experiment.options.keep_weights)
        except Timeout:
            return False
        return True

    def wait(self, name: str) -> None:
        """Wait while another process runs an arm; if that process dies, the run is not finished afterwards."""
        with FileLock(self.place(name) / ".lock"):
            pass

    def _run(self, arm: Arm, place: Path, keep: bool) -> None:
        started = time.perf_counter()
        model = self.train(arm)
        trained = time.perf_counter()
        if keep:
            _save(model, place / WEIGHTS)
        first, *others = self.experiment.options.methods
        scores = self.score(model, "test", methods=[first, *others] if arm.name == FPN else [first])
        if arm.name == FPN and self.images.selection:
            self.score(model, "selection").rows.to_parquet(place / SELECTION, index=False)
        if arm.name == FPN:
            scores.rows[scores.rows["method"] != first].to_parquet(place / METHODS, index=False)
        scores.rows[scores.rows["method"] == first].to_parquet(place / ROWS, index=False)
        record = {"arm": arm.name, "fold": self.fold, "seed": self.seed, "gates": self._gates(model)}
        seconds = {"training": round(trained - started, 1), "all": round(time.perf_counter() - started, 1)}
        manifest = scores.manifest
        write_json(
            place / RECORD,
            record | {"seconds": seconds, "versions": manifest["versions"], "metrics": manifest["metrics"]},
        )

    def train(self, arm: Arm) -> Any:
        """A network, trained on the training images from the weights of the backbone."""
        options, log_dir = self.experiment.options, self.place(arm.name) / "log"
        shutil.rmtree(log_dir, ignore_errors=True)  # of a run that was interrupted
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
            log_dir=log_dir,
            device=options.device,
            progress=options.progress and sys.stderr.isatty(),
        )
        return model.eval()

    def trained(self, name: str) -> Any:
        """The network of an arm: its weights are read from the folder, or it is trained again and they are kept."""
        arm, path = Arm.of(name), self.place(name) / WEIGHTS
        if not path.exists():
            model = self.train(arm)
            _save(model, path)
            return model
        model = self.experiment.build(arm, self.seed)
        load_weights(model, path, name)
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
            device=scoring_device(options.device),
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


def scoring_device(device: str) -> str:
    """The name that torch has for Lightning's name of a device."""
    return "cuda" if device == "gpu" else device


def _save(model: nn.Module, path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_file(path, lambda file: file.write(save(weights)))
