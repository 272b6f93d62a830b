"""Training of the reference models: a few steps teach a tiny network to tell bright from dark."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from xaieval.training import fit

# Lightning's own remarks on small runs and on what it depends on; none is about our code.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*litlogger.*"),
]


def _loader() -> DataLoader[tuple[torch.Tensor, ...]]:
    labels = torch.arange(64) % 2
    images = 0.1 * torch.randn(64, 3, 8, 8) + (2.0 * labels - 1)[:, None, None, None]
    return DataLoader(TensorDataset(images, labels), batch_size=16)


def _model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_fit_learns_and_gives_the_validation_accuracy(tmp_path):
    model = _model()
    accuracy = fit(model, _loader(), _loader(), num_classes=2, epochs=5, learning_rate=0.05, log_dir=tmp_path)
    images, labels = next(iter(_loader()))
    assert accuracy > 0.95
    assert (model.eval()(images).argmax(dim=1) == labels).float().mean() > 0.9
    assert list(tmp_path.rglob("metrics.csv"))


def test_the_same_seed_gives_the_same_weights(tmp_path):
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        model = _model()
        data = _loader()
        fit(model, data, data, num_classes=2, epochs=1, seed=3, log_dir=tmp_path)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*weights)
