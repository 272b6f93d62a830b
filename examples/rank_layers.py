"""Rank layers and methods
=======================

Which layers and methods differ significantly on 100 images, and how many images would be needed for the others?

``python examples/rank_layers.py [FOLDER]`` prints the ranking and writes ``rank_layers.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.report import ranking_figure

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()

# %%
# All pairs are tested, paired by image and corrected together. Items that share a letter do not differ significantly.

model = xaieval.models.fpn_scenes()
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
loader = scenes(prepare, size=100).loader(batch_size=25)
scores = xaieval.score(model, loader, layers=["fpn[*]"], methods=["gradcam", "layercam"], progress=False)
ranking = scores.rank("average_drop", over="both")
print(ranking)

# %%
# The same as a figure.

ranking_figure(ranking).savefig(folder / "rank_layers.png", dpi=110)
