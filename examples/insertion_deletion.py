"""Insertion and deletion curves of two levels of a feature pyramid, of a control, and what Average Drop says beside them.

    python examples/insertion_deletion.py [FOLDER]

runs without network in under a minute, prints the table, and writes `insertion_deletion.png` into the folder (the working
directory unless told).
"""

from __future__ import annotations

import sys
from pathlib import Path

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.metrics import deletion, insertion
from xaieval.report import curves_figure

IMAGES = 40


def main(folder: Path) -> None:
    """Print the summary and draw the mean curves."""
    model = xaieval.models.fpn_scenes()
    prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    loader = scenes(prepare, size=IMAGES).loader(batch_size=20)

    metrics = ["average_drop", insertion(steps=16, keep_curve=True), deletion(steps=16, keep_curve=True)]
    scores = xaieval.score(model, loader, ["fpn[p2]", "fpn[p5]"], ["gradcam", "random"], metrics=metrics, progress=False)
    print(scores.summary()[["average_drop", "insertion", "deletion", "n_images"]].round(2).to_string())

    figure = curves_figure(scores.rows, ["insertion", "deletion"])
    figure.axes[0].set_ylabel(f"confidence, mean of {IMAGES} images")
    figure.savefig(folder / "insertion_deletion.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
