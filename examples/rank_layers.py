"""Which layers and methods can be told apart on 100 images, and how many images it would take for the others.

    python examples/rank_layers.py [FOLDER]

runs without network in under a minute, prints the ranking, and writes `rank_layers.png` into the folder (the working directory
unless told).
"""

from __future__ import annotations

import sys
from pathlib import Path

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.report import ranking_figure


def main(folder: Path) -> None:
    """Print the ranking and draw it."""
    model = xaieval.models.fpn_scenes()
    prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    loader = scenes(prepare, size=100).loader(batch_size=25)
    scores = xaieval.score(model, loader, layers=["fpn[*]"], methods=["gradcam", "layercam"], progress=False)
    ranking = scores.rank("average_drop", over="both")
    print(ranking)
    ranking_figure(ranking).savefig(folder / "rank_layers.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
