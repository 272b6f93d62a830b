"""The steps of the experiment: each writes its result to files, and is skipped if they exist."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from xaieval.analysis.selection import Selection
from xaieval.config.fal_options import Arm
from xaieval.config.options import to_settings
from xaieval.data import Fold, Pictures
from xaieval.evaluation.loop import score
from xaieval.evaluation.scores import Scores
from xaieval.models import FAL, LEVELS, ABNClassifier, FPNClassifier, levels_of, load_weights, overhead
from xaieval.results.files import MANIFEST, check_folder, is_complete, write_file, write_json, writing
from xaieval.results.manifest import digest
from xaieval.training.fal.experiment import Experiment
from xaieval.training.fit import fit, training_loader

__all__ = [
    "BASE",
    "CHOICE",
    "CONTROL",
    "COSTS",
    "FoldRun",
    "arms_of",
    "layers_of",
    "model_name",
    "rebuild",
    "run_experiment",
]

METRICS = ("average_drop", "increase_in_confidence", "average_gain")
CHOICE = "arms.json"
COSTS = "costs.json"
WEIGHTS = "model.safetensors"
BASE, CONTROL = "fpn", "fpn-control"

# Options that may differ when a run is resumed: they change no number that is already in the folder.
NOT_RECORDED = ("out", "level", "device", "run_folds", "arms", "download", "progress")

Log = Callable[[str], None]


def run_experiment(experiment: Experiment, folder: Path, log: Log = lambda line: None) -> None:
    """Train, score and compare the models of each fold; an interrupted experiment is resumed.

    Args:
        experiment: The experiment, from `prepare`.
        folder: Where results are written: `foldN/MODEL/` with weights, training log and scores, `foldN/arms.json` with the
            selection and its reasons, and `costs.json`.
        log: Called with one line before each step.

    Raises:
        OutputError: The folder holds another experiment, or cannot be written.
    """
    options = experiment.options
    run = {name: value for name, value in to_settings(options).items() if name not in NOT_RECORDED}
    run |= {"data": options.data.partition(":")[0], "weights": Path(options.weights).name if options.weights else None}
    run["images"] = digest(f"{name}\n".encode() for name in experiment.pictures.ids)
    check_folder(folder, run)
    with writing(folder):
        write_json(folder / MANIFEST, {"run": run, "classes": list(experiment.pictures.classes)})
    for number in experiment.run_folds:
        FoldRun.of(experiment, folder, number, log).run(experiment.random_folds[number])
    _measure_costs(experiment, folder, log)


@dataclass(frozen=True)
class FoldRun:
    """One fold of the experiment.

    Attributes:
        experiment: What all folds share.
        fold: Numbers of the images of each part.
        folder: Where results are written.
        seed: Seed of new weights and of training.
        log: Called with one line before each step.
    """

    experiment: Experiment
    fold: Fold
    folder: Path
    seed: int
    log: Log

    @classmethod
    def of(cls, experiment: Experiment, folder: Path, number: int, log: Log = lambda line: None) -> FoldRun:
        """The fold with this number, in the experiment's folder."""
        return cls(experiment, experiment.folds[number], folder / f"fold{number}", experiment.options.seed + number, log)

    def run(self, random_fold: Fold) -> None:
        """Train and score the FPN, select levels, then train and score the models of all arms."""
        options = self.experiment.options
        base = self.train(BASE, self.experiment.fpn, options.epochs)
        self.score(BASE, base, "test", methods=options.methods)
        selection = self.score(BASE, base, "selection").select_layers(options.k, method=options.methods[0], level=options.level)
        arms = arms_of(selection, options.arms, np.random.default_rng(self.seed))
        write_json(self.folder / CHOICE, {"arms": arms, "selection": selection.to_dict()})
        for name in dict.fromkeys(arms.values()):
            self.compare(name, base)
        if "random-split" in options.arms:
            split = replace(self, fold=random_fold, folder=self.folder / "random-split")
            split.score(BASE, split.train(BASE, self.experiment.fpn, options.epochs), "test")

    def compare(self, name: str, base: FPNClassifier) -> None:
        """Train the model of an arm, and score it on the test images."""
        options = self.experiment.options
        epochs = options.further_epochs + (options.epochs if name == "abn" else 0)
        model = self.train(name, lambda: _build(name, self.experiment, base), epochs)
        self.score(name, model, "test")
        if isinstance(model, FAL | ABNClassifier):
            maps = ["attention[map]"] if isinstance(model, ABNClassifier) else ["attention.*[map]"]
            self.score(name, model, "test", methods=("attention",), layers=maps, into="attention")

    def train(self, name: str, build: Callable[[], Any], epochs: int) -> Any:
        """The trained model; its weights are read from the folder if they exist."""
        options, place = self.experiment.options, self.folder / name
        torch.manual_seed(self.seed)
        model = build()
        if not (place / WEIGHTS).exists():
            self.log(f"{self.folder.name}: train {name}, {epochs} epochs on {len(self.fold.train)} images")
            fit(
                model.to(memory_format=torch.channels_last),  # a quarter faster on a CPU
                training_loader(self.experiment.augmented(self.fold.train), options.batch_size, shuffle=True),
                training_loader(self.experiment.pictures.subset(self.fold.selection), options.batch_size, shuffle=False),
                num_classes=self.experiment.num_classes,
                epochs=epochs,
                seed=self.seed,
                learning_rate=options.learning_rate,
                precision=options.precision,
                log_dir=place / "log",
                checkpoint_dir=place / "checkpoint",
                device=options.device,
                progress=options.progress and sys.stderr.isatty(),
            )
            _save(model, place / WEIGHTS)
            shutil.rmtree(place / "checkpoint", ignore_errors=True)
        load_weights(model, place / WEIGHTS, name)
        return model.eval()

    def score(
        self,
        name: str,
        model: nn.Module,
        part: str,
        *,
        methods: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        into: str | None = None,
    ) -> Scores:
        """The scores of a model on a part of the fold; they are read from the folder if they exist."""
        options, place = self.experiment.options, self.folder / name / (into or part)
        if is_complete(place):
            return Scores.load(place)
        self.log(f"{self.folder.name}: score {name} on the {part} images{', by its attention maps' if into else ''}")
        pictures: Pictures = self.experiment.pictures.subset(getattr(self.fold, part))
        return score(
            model,
            pictures.loader(options.batch_size),
            layers=layers or layers_of(model),
            methods=methods or options.methods[:1],
            metrics=METRICS,
            device="cuda" if options.device in ("gpu", "cuda") else options.device,
            output_dir=place,
            progress=False,
            seed=options.seed,
        )


def arms_of(selection: Selection, wanted: Sequence[Arm], rng: np.random.Generator) -> dict[str, str]:
    """Return the name of the model of each arm.

    Args:
        selection: The levels of a trained FPN that need attention.
        wanted: Names of arms.
        rng: Random numbers for the levels of the arm "random".

    Returns:
        Names of models by arm, the FPN control first; "fal-p2-p3" is FAL with attention on these two levels. If no level needs
        attention, arms that depend on the selection use the control. "random" takes as many levels as were selected, but
        not the same ones, unless all four were selected.

    Example:
        >>> import pandas as pd
        >>> ranking = pd.DataFrame(index=["fpn[p2]", "fpn[p3]", "fpn[p5]", "fpn[p4]"])  # worst first
        >>> selection = Selection(["fpn[p2]", "fpn[p3]"], ranking, pd.DataFrame(), 2, 10, "gradcam", 0.95)
        >>> arms_of(selection, ["selected", "best"], np.random.default_rng(0))
        {'fpn-control': 'fpn-control', 'selected': 'fal-p2-p3', 'best': 'fal-p4-p5'}
    """
    ranked = levels_of(selection.ranking.index)
    count = len(selection)
    chosen = set(levels_of(selection))
    others = [set(levels) for levels in itertools.combinations(LEVELS, count) if set(levels) != chosen] or [chosen]
    sets: dict[str, set[str]] = {
        "selected": chosen,
        "random": others[int(rng.integers(len(others)))],
        "best": set(ranked[len(ranked) - count :]),
        "all": set(LEVELS),
    }
    compared = set(wanted) - {"random-split", "none"}
    arms = ({CONTROL: CONTROL} if compared else {}) | {arm: model_name(sets[arm]) for arm in wanted if arm in sets}
    if "abn" in wanted:
        arms["abn"] = "abn"
    if "open-start" in wanted:
        arms["open-start"] = model_name(chosen) + "-open" if chosen else CONTROL
    if "subsets" in wanted:
        every = [set(levels) for size in range(1, len(LEVELS) + 1) for levels in itertools.combinations(LEVELS, size)]
        arms |= {f"subset {' '.join(sorted(levels))}": model_name(levels) for levels in every}
    return arms


def layers_of(model: nn.Module) -> list[str]:
    """Addresses of a model's layers at the levels p2 to p5, finest first; for ABN, the backbone stages of the same strides."""
    if isinstance(model, ABNClassifier):
        last = {stage["reduction"]: stage["module"] for stage in model.backbone.feature_info}
        return [f"backbone.{last[reduction]}" for reduction in LEVELS.values() if reduction in last]
    return [f"levels[{level}]" for level in LEVELS]


def model_name(levels: Iterable[str]) -> str:
    """Name of FAL with attention on some levels; without levels, of the control."""
    levels = sorted(levels)
    return "-".join(["fal", *levels]) if levels else CONTROL


def _build(name: str, experiment: Experiment, base: FPNClassifier) -> nn.Module:
    """The model of this name before its training."""
    if name == "abn":
        return experiment.abn()
    if name == CONTROL:
        control = FPNClassifier(**base.config)
        control.load_state_dict(base.state_dict())
        return control
    levels = [level for level in LEVELS if level in name]
    return FAL.from_fpn(base, levels, near_identity=not name.endswith("-open"))


def rebuild(fold: FoldRun, name: str) -> Any:
    """A trained model of a finished fold."""
    base = fold.experiment.fpn()
    model = base if name == BASE else _build(name, fold.experiment, base)
    load_weights(model, fold.folder / name / WEIGHTS, name)
    return model.eval()


def _measure_costs(experiment: Experiment, folder: Path, log: Log, images: int = 16) -> None:
    """Measure the costs of the compared models relative to the FPN, if not yet measured."""
    known = json.loads((folder / COSTS).read_text()) if (folder / COSTS).exists() else {}
    models = [name for path in sorted(folder.glob(f"fold*/{CHOICE}")) for name in json.loads(path.read_text())["arms"].values()]
    missing = [name for name in dict.fromkeys(models) if name not in known]
    if not missing:
        return
    log("costs of the models")
    side = experiment.options.image_size
    batch = torch.rand(images, 3, side, side)
    fpn = experiment.fpn().to(memory_format=torch.channels_last)
    for name in missing:
        model = _build(name, experiment, fpn).to(memory_format=torch.channels_last)
        known[name] = overhead(model, fpn, batch).to_dict()
    write_json(folder / COSTS, known)


def _save(model: nn.Module, path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_file(path, lambda file: file.write(save(weights)))
