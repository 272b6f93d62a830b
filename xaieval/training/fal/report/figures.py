"""Figures of an experiment: maps of some test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from xaieval.data.batches import read_batches
from xaieval.evaluation.explain import explain
from xaieval.models import LEVELS
from xaieval.report import maps_figure
from xaieval.training.fal.arms import FPN
from xaieval.training.fal.experiment import Experiment
from xaieval.training.fal.run import shown_arm
from xaieval.training.fal.runs import Cell, layers_of

__all__ = ["ARMS_FIGURE", "LEVELS_FIGURE", "write_figures"]

IMAGES = 5  # in each figure
LEVELS_FIGURE, ARMS_FIGURE = "levels.png", "arms.png"


def write_figures(experiment: Experiment, folder: Path) -> None:
    """Draw maps of some test images of the first fold and seed: at the levels of the FPN, and next to them those of FAL.

    Args:
        experiment: The experiment, from `prepare`, whose runs are finished.
        folder: Its folder.
    """
    options = experiment.options
    cell = Cell(experiment, folder, experiment.run_folds[0], experiment.seeds[0])
    label = None if options.class_name is None else list(experiment.pictures.classes).index(options.class_name)
    test = [index for index in cell.images.test if label is None or experiment.pictures.labels[index] == label]
    pictures = experiment.pictures.subset(test).spread(IMAGES)
    batch = next(read_batches(pictures.loader(IMAGES)))
    method = options.methods[0]

    def maps(model: nn.Module) -> dict[str, Any]:
        return dict(zip(LEVELS, explain(model, batch.images, layers_of(model), method).values(), strict=True))

    def draw(columns: dict[str, Any], subtitle: str, name: str) -> None:
        pixels, titles = experiment.preprocessing.to_pixels(batch.images), [Path(image_id).stem for image_id in batch.ids]
        maps_figure(pixels, columns, titles, f"{subtitle}, {method}").savefig(folder / name, dpi=120)

    of_fpn = maps(cell.trained(FPN))
    draw(of_fpn, "FPN", LEVELS_FIGURE)
    if fal := shown_arm(cell):
        pair = {"FPN": of_fpn, "FAL": maps(cell.trained(fal))}
        columns = {f"{level} {name}": pair[name][level] for level in LEVELS for name in pair}
        draw(columns, f"FPN and {fal}", ARMS_FIGURE)
