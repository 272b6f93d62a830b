"""FAL in thirty lines
===================

Score the levels of a feature pyramid, add attention to those that need it, continue the training, and compare with the same
pyramid after the same training. ``xaieval-bench fal`` trains all networks from the backbone instead, with folds, seeds and
twins (see the page on the FAL experiment); this example shows the steps. It needs ``pip install 'xaieval[fal]'``.

``python examples/fal_in_thirty_lines.py [FOLDER]`` prints each step, and writes the training log and ``fal.png``.
"""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from pathlib import Path

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.report import maps_figure
from xaieval.training.fit import fit, training_loader

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*does not have many workers.*")  # so few images need no workers

# %%
# A trained pyramid, and three sets of images without overlap: for training, for choosing the levels, and for the comparison.

fpn = xaieval.models.fpn_scenes()
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
train = training_loader(scenes(prepare, size=100, split="train").kept_in_memory(), batch_size=20, shuffle=True)
choose = scenes(prepare, size=100, split="validation")
test = scenes(prepare, size=80, split="test")

# %%
# Which levels need attention? Those that are significantly worse than the best level in one metric, and not better in the
# other.

selection = xaieval.score(fpn, choose.loader(25), layers=["fpn[*]"], progress=False).select_layers()
print(selection)

# %%
# These levels get attention branches. The control is the pyramid itself, trained further for as many epochs.

levels = xaieval.models.levels_of(selection)
fal, control = xaieval.models.FAL.from_fpn(fpn, levels), copy.deepcopy(fpn)
for name, model in (("fal", fal), ("control", control)):
    validation = training_loader(scenes(prepare, size=20, split="validation"), batch_size=20, shuffle=False)
    fit(model, train, validation, num_classes=10, epochs=2, learning_rate=1e-3, log_dir=folder / name, progress=False)

# %%
# Compare both on the test images, paired by image. Two epochs on 100 images show the procedure and prove nothing.

results = {
    name: xaieval.score(model, test.loader(20), layers=["levels[*]"], progress=False)
    for name, model in (("fal", fal), ("control", control))
}
for name, scores in results.items():
    rows = scores.rows.drop_duplicates("image_id")
    print(f"{name}: {100 * (rows['predicted'] == rows['label']).mean():.0f} % of the test images right")
print(
    results["fal"]
    .compare(results["control"])[["mean", "other_mean", "difference", "low", "high", "p_holm"]]
    .round(2)
    .to_string()
)

# %%
# The maps of the attention branches.

images = next(iter(test.loader(4)))["image"]
maps = xaieval.explain(fal, images, ["attention.*[map]"], method="attention")
maps_figure(prepare.to_pixels(images), maps, subtitle="maps of the attention branches").savefig(folder / "fal.png", dpi=80)
