"""Figures of a run
================

All kinds of figures of ``Scores.plot``, and maps with ``xaieval.show``. For print, give ``save_figure`` a name that ends with
``.pdf``.

``python examples/figures.py [FOLDER]`` prints the summary and writes ``figures_tradeoff.png`` and the other figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.metrics import deletion, insertion
from xaieval.report import save_figure

IMAGES = 60


def main(folder: Path) -> None:
    """Score a model and plot the results."""
    model = xaieval.models.fpn_scenes()
    prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    pictures = scenes(prepare, size=IMAGES)
    loader = pictures.loader(batch_size=20)
    metrics = ["average_drop", "increase_in_confidence", "drop_in_deletion", "confidence_ratio", "complexity"]
    scores = xaieval.score(model, loader, ["fpn[*]"], ["gradcam", "layercam", "random"], metrics=metrics, progress=False)
    print(scores.summary().round(1).to_string())
    print(scores.agreement())

    metrics = [insertion(steps=8, keep_curve=True), deletion(steps=8, keep_curve=True)]
    altered = xaieval.score(model, loader, ["fpn[*]"], metrics=metrics, max_images=20, progress=False)
    matched = xaieval.score(model, loader, ["fpn[*]"], controls="matched", metrics="average_drop", progress=False)
    print(matched.matched_table().round(1).to_string())
    batch = next(iter(loader))
    images, names = batch["image"][:3], [pictures.classes[label] for label in batch["label"][:3].tolist()]
    maps = xaieval.explain(model, images, ["fpn[*]"], method="layercam")

    figures = {
        "tradeoff": scores.plot(),
        "heatmap": scores.plot("heatmap"),
        "ranking": scores.plot("ranking", methods=["gradcam"]),
        "classes": scores.plot("classes", methods=["gradcam"], classes=pictures.classes),
        "spread": scores.plot("spread", methods=["gradcam"]),
        "agreement": scores.plot("agreement"),
        "matched": matched.plot("matched"),
        "curves": altered.plot("curves"),
        "maps": xaieval.show(images, maps, names, "LayerCAM", preprocessing=prepare),
    }
    for kind, figure in figures.items():
        save_figure(figure, folder / f"figures_{kind}.png", dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
