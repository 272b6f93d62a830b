"""Scores during a training loop of any kind, which is not affected by them."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import xaieval
from xaieval.errors import DataError, ExplainerError, UsageError


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4, 3)
    )


IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6) % 3


def _trained(watch: Any, epochs: int = 4) -> tuple[nn.Module, list[bool], tuple[float, ...]]:
    """A loop with dropout and shuffled batches: the network, its modes, and random numbers after it."""
    network = _network()
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    modes = []
    for epoch in range(epochs):
        for images, labels in DataLoader(TensorDataset(IMAGES, LABELS), 2, shuffle=True):
            modes.append(network.training)
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimiser.step()
        if watch is not None:
            watch(network, epoch)
    return network, modes, (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002  # the global one matters


def test_the_training_is_the_same_to_the_last_bit_and_the_history_is_that_of_the_scores():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    alone = _trained(None)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    shuffled = DataLoader(TensorDataset(IMAGES, LABELS), 2, shuffle=True)  # which draws random numbers when it is read
    watch = xaieval.ScoreCallback(shuffled, ["0", "1"], ["gradcam", "random"], every=2, max_images=4)
    watched = _trained(watch)
    assert all(torch.equal(*pair) for pair in zip(alone[0].parameters(), watched[0].parameters(), strict=True))
    assert alone[1:] == watched[1:]
    assert watch.history["epoch"].tolist() == [1] * 3 + [3] * 3
    assert watch.history["step"].tolist() == [1] * 3 + [3] * 3
    kept = [batch.to_mapping() for batch in watch._batches]
    expected = xaieval.score(watched[0], kept, ["0", "1"], ["gradcam", "random"], progress=False).summary().reset_index()
    shown = watch.history[watch.history["epoch"] == 3].reset_index(drop=True)
    assert shown[list(expected)].equals(expected)
    assert watch.scores.summary().reset_index().equals(expected)
    assert expected["n_images"].tolist() == [4, 4, 4]


def test_values_and_pictures_are_logged_under_their_names():
    logged: dict[str, Any] = {}
    watch = xaieval.ScoreCallback(
        [(IMAGES, LABELS)],
        "0",
        metrics="average_drop",
        model=lambda wrapper: wrapper.inner,
        log=lambda name, value, step: logged.update({name: (value, step)}),
        log_picture=lambda name, picture, step: logged.update({name: (picture, step)}),
        pictures=2,
    )
    network = _network()
    scores = watch(SimpleNamespace(inner=network), 0, step=17)
    assert logged["average_drop/0/gradcam"] == (scores.summary()["average_drop"].iloc[0], 17)
    picture, step = logged["maps/0/gradcam"]
    assert step == 17
    maps = xaieval.explain(network, IMAGES[:2], "0")["0"]
    expected = [[IMAGES[number], xaieval.overlay(IMAGES[number], maps[number])] for number in range(2)]
    assert picture.shape == (16, 16, 3)
    for number, (image, over) in enumerate(expected):
        column = slice(8 * number, 8 * number + 8)
        assert (picture[:8, column] == np.rint(255 * image.permute(1, 2, 0).numpy())).all()
        assert (picture[8:, column] == over).all()


def test_pictures_of_normalised_images_need_the_normalisation():
    normalised = (IMAGES - 0.5) / 0.25
    seen: list[Any] = []

    def draw(**choices: Any) -> Any:
        watch = xaieval.ScoreCallback([normalised], "0", log_picture=lambda *one: seen.append(one), pictures=1, **choices)
        watch(_network(), 0)

    with pytest.raises(DataError, match="to undo the normalisation"):
        draw()
    draw(mean=[0.5] * 3, std=[0.25] * 3)
    plain = np.rint(255 * IMAGES[0].permute(1, 2, 0).numpy())
    assert np.abs(seen[0][1][:8] - plain).max() <= 1


def test_slices_of_volumes_are_drawn_side_by_side():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 3))
    seen: list[Any] = []
    xaieval.ScoreCallback([torch.rand(2, 1, 4, 6, 8)], "0", log_picture=lambda *one: seen.append(one))(network, 0)
    [(name, picture, _)] = seen
    assert name == "maps/0/gradcam"
    assert picture.shape == (2 * 6, 2 * (8 + 1 + 8 + 1 + 6), 3)  # slices [6, 8], [4, 8] and [4, 6]


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"every": 0}, UsageError, "every is at least 1, got 0"),
        ({"max_images": 0}, UsageError, "max_images is at least 1, got 0"),
        ({"methods": "gradcm"}, ExplainerError, "no method 'gradcm'; did you mean 'gradcam'"),
        ({"on_error": "wran"}, UsageError, "no on_error='wran'; did you mean 'warn'"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(choices, error, message):
    with pytest.raises(error) as caught:
        xaieval.ScoreCallback([IMAGES], "0", **choices)
    assert str(caught.value).startswith(message)


def test_an_error_ends_the_loop_or_is_a_warning_and_the_model_trains_on():
    network = _network().train()
    with pytest.raises(xaieval.XaievalError, match="no layer '7'"):
        xaieval.ScoreCallback([IMAGES], "7")(network, 0)
    lenient = xaieval.ScoreCallback([IMAGES], "7", on_error="warn")
    with pytest.warns(UserWarning, match=r"^scoring after epoch 0 failed: AddressError: no layer '7'"):
        assert lenient(network, 0) is None
    assert network.training
    assert lenient.history.empty


def test_a_trainer_of_transformers_trains_alike_and_keeps_the_values_in_its_log(tmp_path):
    import transformers

    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=3)
    data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(IMAGES, LABELS, strict=True)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=3, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip

    def train(callbacks: list[Any]) -> Any:
        torch.manual_seed(0)
        trainer = transformers.Trainer(
            transformers.ResNetForImageClassification(config), arguments, train_dataset=data, callbacks=callbacks
        )
        trainer.train()
        return trainer

    watch = xaieval.ScoreCallback([{"pixel_values": IMAGES, "labels": LABELS}], "resnet.encoder.stages.0", every=2)
    alone, watched = train([]), train([watch.transformers()])
    states = (alone.model.state_dict(), watched.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    [row] = watch.history.to_dict("records")
    assert (row["epoch"], row["step"]) == (1, 4)
    name = "average_drop/resnet.encoder.stages.0/gradcam"
    [logged] = [entry for entry in watched.state.log_history if name in entry]
    assert (logged[name], logged["epoch"], logged["step"]) == (row["average_drop"], 2, 4)


def test_without_transformers_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'xaieval\[hf\]'"):
        xaieval.ScoreCallback([IMAGES], "0").transformers()


def test_the_events_of_ultralytics_score_each_epoch_once_and_the_averaged_weights():
    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _network()
            self.passes = 0

        def forward(self, images: Tensor) -> Tensor:
            self.passes += 1
            return self.inner(images)

    averaged = Averaged()
    watch = xaieval.ScoreCallback([IMAGES], "inner.0")
    # As its trainer calls them: an event per epoch, the last one with `stop`, then one more for the best weights.
    for epoch, stop in ((0, False), (1, True), (2, True)):
        watch.ultralytics(SimpleNamespace(epoch=epoch, stop=stop, ema=SimpleNamespace(ema=averaged), model=None))
    assert watch.history["epoch"].tolist() == [0, 1]
    assert averaged.passes > 0
    watch.ultralytics(SimpleNamespace(epoch=0, stop=False, ema=None, model=averaged))  # another training
    assert watch.history["epoch"].tolist() == [0, 1, 0]
