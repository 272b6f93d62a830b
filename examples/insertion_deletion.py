"""Insertion and deletion
======================

The confidence as pixels are inserted or deleted in the order of a map: curves of two levels of a feature pyramid and of a
control, together with Average Drop.

``python examples/insertion_deletion.py [FOLDER]`` prints the table and writes ``insertion_deletion.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.metrics import deletion, insertion
from xaieval.report import curves_figure

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
IMAGES = 40

# %%
# A metric with other settings is an object. With ``keep_curve`` the rows contain the curves as well as the areas under them.

model = xaieval.models.fpn_scenes()
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
loader = scenes(prepare, size=IMAGES).loader(batch_size=20)
metrics = ["average_drop", insertion(steps=16, keep_curve=True), deletion(steps=16, keep_curve=True)]
scores = xaieval.score(model, loader, ["fpn[p2]", "fpn[p5]"], ["gradcam", "random"], metrics=metrics, progress=False)
print(scores.summary()[["average_drop", "insertion", "deletion", "n_images"]].round(2).to_string())

# %%
# The mean curves.

figure = curves_figure(scores.rows, ["insertion", "deletion"])
figure.savefig(folder / "insertion_deletion.png", dpi=110)
