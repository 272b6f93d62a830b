"""Layers are scored while a model trains, and the training is not affected."""

from __future__ import annotations

import copy
import importlib
import random
import sys
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import xaieval
from xaieval.errors import DataError, ExplainerError, UsageError
from xaieval.training.callbacks import ScoreLayers

pytestmark = [
    # Lightning's warnings that do not concern the callback: loaders without workers, its own deprecated imports, and log
    # folders of an earlier test.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*litlogger"),
]


class Learner(lightning.LightningModule):
    """A small network with dropout, running means and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4, 2),
        )
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        self.modes.append(self.training and self.net[7].training)
        return functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("loss", functional.cross_entropy(self(batch[0]), batch[1]), batch_size=len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def _data(count: int = 24, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    return TensorDataset(torch.randn(count, 3, 8, 8, generator=generator) + labels[:, None, None, None], labels)


def _validation(**choices: Any) -> DataLoader[Any]:
    return DataLoader(_data(20, seed=1), batch_size=8, **choices)


def _trainer(callbacks: list[Any], logger: Any = False, epochs: int = 2, **choices: Any) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        **choices,
    )


def _train(callbacks: list[Any], logger: Any = False, epochs: int = 2, **choices: Any) -> tuple[Learner, lightning.Trainer]:
    lightning.seed_everything(3, verbose=False)
    learner = Learner()
    trainer = _trainer(callbacks, logger, epochs, **choices)
    trainer.fit(learner, DataLoader(_data(), batch_size=8, shuffle=True), _validation())
    return learner, trainer


NAMES = {f"{metric}/{layer}/gradcam" for metric in ("average_drop", "increase_in_confidence") for layer in ("net.2", "net.4")}


def test_values_are_logged_to_a_csv_file_after_each_epoch(tmp_path):
    _train([ScoreLayers(["net.2", "net.4"])], CSVLogger(tmp_path), epochs=3)
    (file,) = tmp_path.rglob("metrics.csv")
    logged = pd.read_csv(file)
    assert set(logged.columns) >= NAMES
    assert logged.dropna(subset=list(NAMES))["epoch"].tolist() == [0, 1, 2]
    assert logged[list(NAMES)].dropna().ge(0).all(axis=None)
    assert logged[list(NAMES)].dropna().le(100).all(axis=None)


def test_values_are_logged_to_tensorboard(tmp_path):
    callback = ScoreLayers(["net.2", "net.4"], every=2)
    _train([callback], TensorBoardLogger(tmp_path), epochs=4)
    (folder,) = (path.parent for path in tmp_path.rglob("events.*"))
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) >= NAMES
    drops = events.Scalars("average_drop/net.4/gradcam")
    assert len(drops) == 2
    rows = callback.history.query("layer == 'net.4'")
    assert rows["epoch"].tolist() == [1, 3]
    assert rows["average_drop"].tolist() == pytest.approx([one.value for one in drops], rel=1e-5)
    assert drops[-1].value == pytest.approx(callback.scores.summary().loc[("net.4", "gradcam"), "average_drop"], rel=1e-5)


def test_pictures_are_logged_to_tensorboard_and_refused_without_a_logger_that_takes_them(tmp_path):
    normal = {"mean": [0.0] * 3, "std": [8.0] * 3}  # a normalisation whose pixels all stand at an end of the range, or between
    _train(
        [ScoreLayers(["net.2", "net.4"], pictures=3, **normal)], [TensorBoardLogger(tmp_path), CSVLogger(tmp_path)], epochs=1
    )
    (folder,) = (path.parent for path in tmp_path.rglob("events.*"))
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["maps/net.2/gradcam", "maps/net.4/gradcam"]
    [picture] = events.Images("maps/net.4/gradcam")
    assert (picture.height, picture.width, picture.step) == (16, 24, 3)
    with pytest.raises(UsageError, match=r"no logger takes them: CSVLogger; add one such as"):
        _train([ScoreLayers("net.4", pictures=3, **normal)], CSVLogger(tmp_path), epochs=1)


def test_what_is_logged_is_the_score_of_the_validation_images():
    callback = ScoreLayers("net.4", methods=["gradcam", "random"], max_images=12)
    learner, trainer = _train([callback])
    images, labels = _data(20, seed=1).tensors
    batches = [(images[:8], labels[:8]), (images[8:12], labels[8:12])]
    expected = xaieval.score(learner, batches, "net.4", ["gradcam", "random"], progress=False).summary()
    assert len(callback.scores.rows) == 24
    for layer, method in expected.index:
        logged = trainer.callback_metrics[f"average_drop/{layer}/{method}"]
        assert float(logged) == pytest.approx(expected.loc[(layer, method), "average_drop"], rel=1e-5)


def test_controls_are_scored_and_logged_like_methods():
    callback = ScoreLayers("net.4", max_images=4, controls=True)
    _, trainer = _train([callback], epochs=1)
    assert callback.scores.manifest["controls"] == ["random", "uniform", "center", "edges", "fake-cam"]
    assert {"average_drop/net.4/gradcam", "average_drop/input/fake-cam"} <= set(trainer.callback_metrics)


def test_the_training_is_the_same_to_the_last_bit_with_and_without_it():
    own = DataLoader(_data(20, seed=2), batch_size=8, shuffle=True)
    runs = []
    for callbacks in ([], [ScoreLayers(["net.2", "net.4"], methods=["gradcam", "random"])], [ScoreLayers("net.4", loader=own)]):
        learner, _ = _train(callbacks, epochs=3)
        after = (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002  # the global generator is the one that matters
        runs.append((learner, after))
    for learner, after in runs[1:]:
        for name, tensor in runs[0][0].state_dict().items():
            assert torch.equal(tensor, learner.state_dict()[name]), name
        assert after == runs[0][1]
        assert learner.modes == [True] * 9


def test_modes_flags_and_gradients_are_restored():
    seen = []

    class Watch(lightning.Callback):
        def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
            grads = [None if p.grad is None else p.grad.clone() for p in pl_module.parameters()]
            flags = [p.requires_grad for p in pl_module.parameters()]
            seen.append(
                ([module.training for module in pl_module.modules()], flags, grads, len(pl_module.net[4]._forward_hooks))
            )

    learner = Learner()
    learner.net[0].weight.requires_grad_(False)
    trainer = _trainer([Watch(), ScoreLayers("net.4"), Watch()], epochs=1)
    trainer.fit(learner, DataLoader(_data(), batch_size=8), _validation())
    before, after = seen[-2:]
    assert before[0] == after[0]
    assert before[1] == after[1]
    assert before[1][0] is False
    assert before[3] == after[3] == 0
    for one, other in zip(before[2], after[2], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3]), (5, [4]), (6, [])])
def test_it_scores_every_few_epochs_and_not_in_the_sanity_check(every, epochs, monkeypatch):
    callback, seen, score_them = ScoreLayers("net.4", every=every, max_images=4), [], ScoreLayers._score

    def note(self: ScoreLayers, module: lightning.LightningModule, loader: Any) -> xaieval.Scores:
        seen.append((module.trainer.current_epoch, [len(batch["ids"]) for batch in loader]))
        return score_them(self, module, loader)

    monkeypatch.setattr(ScoreLayers, "_score", note)
    _train([callback], epochs=5)
    assert seen == [(epoch, [8]) for epoch in epochs]  # one batch is enough for four images


def test_a_validation_outside_of_training_is_always_scored():
    learner, trainer = _train([ScoreLayers("net.4", every=100)], epochs=1)
    assert not any(name.startswith("average_drop") for name in trainer.callback_metrics)
    (values,) = trainer.validate(learner, _validation(), verbose=False)
    assert "average_drop/net.4/gradcam" in values


def test_a_part_of_the_module_and_other_images_are_scored():
    images = _data(6, seed=5).tensors[0]
    callback = ScoreLayers("4", loader=[images], model=lambda module: module.net, metrics="average_drop", protocol="default")
    learner, trainer = _train([callback], epochs=1)
    expected = xaieval.score(learner.net, [images], "4", progress=False).summary()["average_drop"].iloc[0]
    assert float(trainer.callback_metrics["average_drop/4/gradcam"]) == pytest.approx(expected, rel=1e-5)
    assert "increase_in_confidence/4/gradcam" not in trainer.callback_metrics
    assert len(callback.scores.rows) == 6


def test_other_callbacks_can_watch_a_value(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="average_drop/net.4/gradcam", mode="min")
    _train([ScoreLayers("net.4"), best], epochs=2)
    assert best.best_model_score is not None
    assert Path(best.best_model_path).is_file()


def test_batches_that_are_mappings_keep_their_ids():
    class Mapped(Learner):
        def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
            return super().training_step([batch["image"], batch["label"]], index)

        def validation_step(self, batch: dict[str, Any], index: int) -> None:
            super().validation_step([batch["image"], batch["label"]], index)

    images, labels = _data().tensors
    batch = {"image": images, "label": labels, "id": [f"n{number}" for number in range(24)]}
    callback = ScoreLayers("net.4")
    loader = DataLoader([batch], batch_size=None)
    _trainer([callback], epochs=1).fit(Mapped(), loader, loader)
    assert list(callback.scores.rows["image_id"]) == batch["id"]


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"every": 0}, UsageError, "every is at least 1, got 0"),
        ({"max_images": 0}, UsageError, "max_images is at least 1, got 0"),
        ({"methods": "gradcm"}, ExplainerError, "no method 'gradcm'; did you mean 'gradcam'"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(choices, error, message):
    with pytest.raises(error) as caught:
        ScoreLayers("net.4", **choices)
    assert str(caught.value).startswith(message)


def test_a_module_without_forward_is_refused_word_for_word():
    class Blind(Learner):
        forward = lightning.LightningModule.forward

    with pytest.raises(UsageError) as caught:
        _trainer([ScoreLayers("net.4")]).fit(Blind(), DataLoader(_data(), batch_size=8), _validation())
    assert str(caught.value) == (
        "Blind has no forward(), so it cannot be scored; name the network to score, as in "
        "ScoreLayers(..., model=lambda module: module.net)"
    )


def test_batches_that_are_none_are_refused():
    class Odd(Learner):
        def validation_step(self, batch: Any, _: int) -> None:
            pass

    triples = DataLoader(TensorDataset(*_data().tensors, torch.zeros(24)), batch_size=8)
    with pytest.raises(DataError, match=r"^a batch is a list of 3; "):
        _trainer([ScoreLayers("net.4")], epochs=1).fit(Odd(), DataLoader(_data(), batch_size=8), triples)


def test_a_callback_can_be_copied_before_it_is_used():
    assert copy.deepcopy(ScoreLayers("net.4")).layers == ["net.4"]


def test_without_lightning_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "xaieval.training.callbacks")
    with pytest.raises(UsageError) as caught:
        importlib.import_module("xaieval.training.callbacks")
    assert str(caught.value) == ("scoring during training needs Lightning, which is missing: pip install 'xaieval[fal]'")
