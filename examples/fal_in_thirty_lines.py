"""FAL in thirty lines
===================

Score the levels of a feature pyramid, add attention to the two that need it most, and measure the effect of the attention
maps. Every network is trained from the same start, on the same images in the same order, for the same time.
``xaieval-bench fal`` does this with folds and seeds (see the page on the FAL experiment); this example shows its steps. It
needs ``pip install 'xaieval[fal]'``.

``python examples/fal_in_thirty_lines.py [FOLDER]`` prints each step, and writes the training logs and ``fal.png``.
"""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from pathlib import Path

import torch

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.models import FAL, FPNClassifier, gate_statistics, levels_of, scenes_backbone
from xaieval.report import maps_figure
from xaieval.training.fit import fit, training_loader

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*does not have many workers.*")  # so few images need no workers

# %%
# All networks start from a new pyramid on a trained backbone. There are three sets of images without overlap: for training, for
# choosing the levels, and for the comparison.

torch.manual_seed(0)
start = FPNClassifier("test_resnet", num_classes=10, channels=64, pretrained=scenes_backbone())
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
train = scenes(prepare, size=160, split="train", seed=1).kept_in_memory()
choose = scenes(prepare, size=60, split="validation", seed=1)
test = scenes(prepare, size=80, split="test", seed=1)


def trained(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """The model after four epochs."""
    batches = training_loader(train, batch_size=10, shuffle=True)
    fit(model, batches, None, num_classes=10, epochs=4, learning_rate=3e-3, log_dir=folder / name, progress=False)
    return model.eval()


# %%
# Which levels need attention? The pyramid is trained, its levels are scored, and the two worst are chosen.

fpn = trained(copy.deepcopy(start), "fpn")
selection = xaieval.score(fpn, choose.loader(20), layers=["fpn[*]"], controls=["shifted"], progress=False).select_layers(k=2)
print(selection)

# %%
# FAL has attention on these levels. Its twin has the same layers and the same loss, but does not use its attention maps: the
# difference between the two is the effect of the maps, and the difference from the pyramid is the effect of the whole.

levels = levels_of(selection)
fal = trained(FAL.from_fpn(start, levels), "fal")
twin = trained(FAL.from_fpn(start, levels, auxiliary_only=True), "twin")

# %%
# Compare them on the test images, paired by image. Four epochs on 160 images and a single seed show the procedure but prove
# nothing: another seed can reverse the sign of every difference.

results = {
    name: xaieval.score(model, test.loader(20), layers=["levels[*]"], progress=False)
    for name, model in (("fpn", fpn), ("fal", fal), ("twin", twin))
}
for name, scores in results.items():
    rows = scores.rows.drop_duplicates("image_id")
    print(f"{name}: {100 * (rows['predicted'] == rows['label']).mean():.0f} % of the test images right")
for other in ("fpn", "twin"):
    print(f"fal against {other}:")
    compared = results["fal"].compare(results[other])
    print(compared[["mean", "other_mean", "difference", "low", "high", "p_holm"]].round(2).to_string())

# %%
# Do the maps have an effect? The quantiles of their values show whether the attention is open, and their contrast how much they
# vary over the image. The predictions that change without them, or with their cells shuffled, show whether the network uses
# them.

found = gate_statistics(fal, test.loader(20))
for level, values in found.values.items():
    print(f"{level}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
print(f"predictions that change: {found.changed_without:.0%} without maps, {found.changed_shuffled:.0%} with shuffled maps")

# %%
# The maps of the attention branches.

images = next(iter(test.loader(4)))["image"]
maps = xaieval.explain(fal, images, ["attention.*[map]"], method="attention")
maps_figure(prepare.to_pixels(images), maps, subtitle="maps of the attention branches").savefig(folder / "fal.png", dpi=80)
