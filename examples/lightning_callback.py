"""Scores during training
======================

Fine-tune a small network on generated scenes and log how faithful its explanations are, epoch by epoch. Lightning's log gets a
column for each metric, layer and method. The example needs ``pip install 'xaieval[fal]'``.

``python examples/lightning_callback.py [FOLDER]`` prints the logged values, and writes the log and ``lightning_callback.png``.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import lightning
import pandas as pd
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure

from xaieval.data import Preprocessing, scenes
from xaieval.models import fpn_scenes
from xaieval.training.callbacks import ScoreLayers
from xaieval.training.fit import Classifier, training_loader

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
LAYERS = ["fpn[p2]", "fpn[p5]"]

# %%
# The callback scores layers on validation images every two epochs. ``model`` selects the classifier inside the Lightning
# module.

lightning.seed_everything(0, verbose=False)
prepare = Preprocessing(image_size=128, resize=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
train = training_loader(scenes(prepare, size=80, split="train").kept_in_memory(), 20, shuffle=True)
validation = training_loader(scenes(prepare, size=40, split="validation").kept_in_memory(), 20, shuffle=False)

learner = Classifier(fpn_scenes(), num_classes=10, learning_rate=1e-3)
watch = ScoreLayers(LAYERS, every=2, max_images=40, model=lambda module: module.model)
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*does not have many workers.*")  # four small batches need no workers
trainer = lightning.Trainer(
    max_epochs=6,
    accelerator="cpu",
    logger=CSVLogger(folder, name="lightning_callback"),
    callbacks=[watch],
    enable_checkpointing=False,
    enable_model_summary=False,
    enable_progress_bar=False,
    log_every_n_steps=1,
)
trainer.fit(learner, train, validation)

# %%
# The logged values.

names = [f"{metric}/{layer}/gradcam" for metric in ("average_drop", "increase_in_confidence") for layer in LAYERS]
logged = pd.read_csv(Path(trainer.logger.log_dir) / "metrics.csv").dropna(subset=names).set_index("epoch")[names]
print(logged.round(1).to_string())

figure = Figure(figsize=(6, 3.2), layout="constrained")
axes = figure.subplots()
logged.plot(ax=axes, marker="o")
axes.set(xlabel="epoch", ylabel="percent", ylim=(0, 100), xticks=logged.index)
figure.savefig(folder / "lightning_callback.png", dpi=100)
