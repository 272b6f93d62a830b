"""Maps of two models on both models
=================================

A model with a lower Average Drop may have better maps, or may only react less to masking. ``xaieval.cross_score`` masks each
image by the maps of each model, shows it to every model, and splits the difference into both parts. Here a feature pyramid is
compared with FAL, the same pyramid with attention branches; it needs ``pip install 'xaieval[fal]'``.

``python examples/cross_score.py [FOLDER]`` prints the cross scores, and writes ``cross_score.png``.
"""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from pathlib import Path

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.report import save_figure
from xaieval.training.fit import fit, training_loader

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*does not have many workers.*")  # so few images need no workers

# %%
# Both models are trained on the same images for two epochs. This and 100 images show the procedure but prove nothing.

fpn = xaieval.models.fpn_scenes()
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
train = training_loader(scenes(prepare, size=100, split="train").kept_in_memory(), batch_size=20, shuffle=True)
models = {"fpn": copy.deepcopy(fpn), "fal": xaieval.models.FAL.from_fpn(fpn, ["p2", "p3"])}
for name, model in models.items():
    validation = training_loader(scenes(prepare, size=20, split="validation"), batch_size=20, shuffle=False)
    fit(model, train, validation, num_classes=10, epochs=2, learning_rate=1e-3, log_dir=folder / name, progress=False)

# %%
# Four tables of whose maps (rows) on which model (columns). The control map ``center`` belongs to no model: where it differs
# from column to column, that is the model alone.

test = scenes(prepare, size=80, split="test").loader(20)
scores = xaieval.cross_score(
    models, test, ["levels[*]"], metrics="average_drop", target="label", controls="center", progress=False
)
print(scores)

# %%
# The parts with their tests, corrected together.

print(scores.split()[["value", "low", "high", "p_holm"]].round(2).to_string())

# %%
# In the picture, points of one row differ in the maps, rows of one layer in the model.

save_figure(scores.plot(), folder / "cross_score.png", dpi=100)
