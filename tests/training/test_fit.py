"""Training of the reference models: a tiny network learns in a few steps to tell bright images from dark ones."""

from __future__ import annotations

import copy
import math

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from xaieval.data import Preprocessing, image_folder, scenes
from xaieval.errors import DataError, UsageError, WeightsError
from xaieval.models import FAL, FPNClassifier, attention_loss
from xaieval.training.fit import augmentation, cross_entropy, fit, training_loader
from xaieval.training.options import Training


def _loader(side: int = 8) -> DataLoader[tuple[torch.Tensor, ...]]:
    labels = torch.arange(64) % 2
    images = 0.1 * torch.randn(64, 3, side, side) + (2.0 * labels - 1)[:, None, None, None]
    return DataLoader(TensorDataset(images, labels), batch_size=16)


def _model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def _weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


def test_fit_learns_and_gives_the_validation_accuracy(tmp_path):
    model = _model()
    accuracy = fit(model, _loader(), _loader(), num_classes=2, epochs=5, learning_rate=0.05, log_dir=tmp_path)
    images, labels = next(iter(_loader()))
    assert accuracy > 0.95
    assert (model.eval()(images).argmax(dim=1) == labels).float().mean() > 0.9
    (log,) = tmp_path.rglob("metrics.csv")
    assert {"train_loss", "validation_loss", "validation_accuracy"} <= set(pd.read_csv(log).columns)


def test_the_same_seed_gives_the_same_weights(tmp_path):
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        model = _model()
        data = _loader()
        fit(model, data, data, num_classes=2, epochs=1, seed=3, log_dir=tmp_path)
        weights.append(_weights(model))
    assert torch.equal(*weights)


def test_a_tiny_fal_learns_with_the_loss_of_its_branches(tmp_path):
    model = FAL("test_resnet", num_classes=2, attention_levels=("p2", "p3"), channels=8)
    images, labels = next(iter(_loader(32)))
    assert torch.equal(cross_entropy(model.eval(), images, labels), attention_loss(model(images, details=True), labels))
    before = attention_loss(model(images, details=True), labels)
    fit(model, _loader(32), _loader(32), num_classes=2, epochs=2, log_dir=tmp_path, progress=False)
    output = model.eval()(images, details=True)
    assert attention_loss(output, labels) < before
    assert all(((maps >= 0) & (maps <= 1)).all() for maps in output.attention_maps.values())


class Killed(Exception):
    """Simulates a kill."""


def _killed_after(steps: int):
    done = 0

    def loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal done
        done += 1
        if done > steps:
            raise Killed
        return cross_entropy(model, images, labels)

    return loss


def test_a_killed_training_resumes_to_the_same_weights(tmp_path):
    # The model has no BatchNorm, dropout or shuffled data, so the rest of the training is the same to the last bit.
    torch.manual_seed(1)
    start, data = _model(), _loader()
    models = []
    for name in ("unbroken", "killed"):
        model = _model()
        model.load_state_dict(start.state_dict())
        models.append(model)
        given = {"num_classes": 2, "epochs": 4, "log_dir": tmp_path, "checkpoint_dir": tmp_path / name, "progress": False}
        if name == "killed":
            with pytest.raises(Killed):
                fit(model, data, data, loss=_killed_after(9), **given)  # in the third of four epochs of four steps
            model.load_state_dict(start.state_dict())
        accuracy = fit(model, data, data, **given)
    assert torch.equal(_weights(models[0]), _weights(models[1]))
    assert accuracy > 0.5


def test_a_finished_training_is_not_done_again(tmp_path):
    data, model = _loader(), _model()
    given = {"num_classes": 2, "epochs": 1, "log_dir": tmp_path, "checkpoint_dir": tmp_path / "c", "progress": False}
    fit(model, data, data, **given)
    other = _model()
    assert math.isnan(fit(other, data, data, loss=_killed_after(0), **given))
    assert torch.equal(_weights(model), _weights(other))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    data = _loader()
    given = {"num_classes": 2, "epochs": 1, "log_dir": tmp_path, "checkpoint_dir": tmp_path, "progress": False}
    fit(_model(), data, data, **given)
    with pytest.raises(WeightsError, match=r"checkpoint '.*last\.ckpt' does not fit the model to be trained: missing: "):
        fit(FPNClassifier("test_resnet", 2, channels=8), data, data, **given)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match=r"cannot read 'last\.ckpt': it is damaged, or holds more than tensors"):
        fit(_model(), _loader(), _loader(), num_classes=2, epochs=1, log_dir=tmp_path, checkpoint_dir=tmp_path)


def test_training_stops_early_when_the_validation_loss_does_not_fall(tmp_path):
    images, labels = next(iter(DataLoader(_loader().dataset, batch_size=64)))
    swapped = DataLoader(TensorDataset(images, 1 - labels), batch_size=16)
    fit(
        _model(), _loader(), swapped, num_classes=2, epochs=30, learning_rate=0.05, patience=2, log_dir=tmp_path, progress=False
    )
    (log,) = tmp_path.rglob("metrics.csv")
    assert pd.read_csv(log)["epoch"].max() < 29


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is at least 1, got 0"),
        ({"precision": "fp8"}, "no precision 'fp8'; known: float32, bf16"),
        ({"learning_rte": 0.1}, "fit() takes no 'learning_rte'; did you mean 'learning_rate'? known: model, train, "),
        ({"chekpoint_dir": "here"}, "fit() takes no 'chekpoint_dir'; did you mean 'checkpoint_dir'? known: model, train, "),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, changes, message):
    given = {"num_classes": 2, "epochs": 1, "log_dir": tmp_path} | changes
    with pytest.raises(UsageError) as caught:
        fit(_model(), _loader(), _loader(), **given)
    assert str(caught.value).startswith(message)


def test_options_as_keywords_and_as_an_object_train_the_same_weights(tmp_path):
    start, data = _model(), _loader()
    recipe, weights = Training(learning_rate=0.1, warmup=0.5), []
    for options in ({"learning_rate": 0.05, "warmup": 0.5}, {"training": recipe, "learning_rate": 0.05}):
        model = copy.deepcopy(start)
        fit(model, data, data, num_classes=2, epochs=1, log_dir=tmp_path, progress=False, **options)
        weights.append(_weights(model))
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], _weights(start))


def test_bf16_trains_too(tmp_path):
    model = _model()
    accuracy = fit(model, _loader(), _loader(), num_classes=2, epochs=3, learning_rate=0.05, precision="bf16", log_dir=tmp_path)
    assert accuracy > 0.9
    assert next(model.parameters()).dtype == torch.float32


def test_training_images_are_cropped_flipped_and_normalised():
    prepare = Preprocessing(48, 48, mean=(0.5,) * 3, std=(0.5,) * 3)
    transform = augmentation(prepare)
    picture = scenes(prepare, size=1).read(0)
    torch.manual_seed(0)
    drawn = [transform(picture) for _ in range(20)]
    assert all(tensor.shape == (3, 48, 48) for tensor in drawn)
    assert len({tensor.sum().item() for tensor in drawn}) == 20
    assert torch.stack(drawn).mean() == pytest.approx(prepare(picture).mean().item(), abs=0.1)


def test_an_unreadable_picture_stops_the_training_and_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    scenes(Preprocessing(8, 8), size=1).read(0).save(tmp_path / "a/1.png")
    (tmp_path / "a/2.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot train on 'a/2\.png', which cannot be read: .*; repair or remove the file"):
        list(training_loader(image_folder(tmp_path, Preprocessing(8, 8)), 2, shuffle=False))


def test_a_shuffled_loader_leaves_out_the_last_small_batch():
    pictures = scenes(Preprocessing(8, 8), size=10)
    assert [len(labels) for _, labels in training_loader(pictures, 4, shuffle=True)] == [4, 4]
    assert [len(labels) for _, labels in training_loader(pictures, 4, shuffle=False)] == [4, 4, 2]
    assert [len(labels) for _, labels in training_loader(pictures, 16, shuffle=True)] == [10]
