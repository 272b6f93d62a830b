"""Runs on any device have the rows of a run in float64 on the CPU: precisions, pinned images, recurrent parts, memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import xaieval

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
REDUCED = [("cpu", "bf16"), *(pytest.param("cuda", name, marks=pytest.mark.gpu) for name in ("bf16", "fp16", "tf32"))]


class Recurrent(nn.Module):
    """Convolutions, whose rows a recurrent part reads; some classifiers of text in images are built so."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
        self.reader = nn.LSTM(6, 8, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        return 9 * self.head(self.reader(self.features(images).mean(dim=3).mT)[0][:, -1])


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 16, 16, generator=generator) + 3 * torch.randn(6, 3, 1, 1, generator=generator)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return Recurrent().eval()


def _drops(model, images, **options):
    scores = xaieval.score(model, images, ["features.0", "features.2"], ["gradcam", "layercam"], progress=False, **options)
    return scores.rows.set_index(["layer", "method", "image_id"])["average_drop"].sort_index()


@pytest.fixture(scope="module")
def expected(model, images):
    rows = _drops(copy.deepcopy(model).double(), [images.double()])
    assert rows.between(1, 99).any()
    return rows


@pytest.mark.parametrize("device", DEVICES)
def test_rows_are_those_of_the_cpu(model, images, expected, device):
    rows = _drops(copy.deepcopy(model).double(), [images.double()], device=device)
    assert (rows - expected).abs().max() < 1e-6
    assert (_drops(model, [images], device=device) - expected).abs().max() < 0.5  # of 100; a GPU multiplies in TF32
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}  # it is back


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_that_is_there_already_stays_there(model, images, expected, device):
    there = copy.deepcopy(model).double().to(device)
    assert (_drops(there, [images.double().to(device)]) - expected).abs().max() < 1e-6
    assert {parameter.device.type for parameter in there.parameters()} == {torch.device(device).type}


@pytest.mark.parametrize("device", DEVICES)
def test_pinned_images_are_copied_before_they_are_used(model, images, expected, device):
    double = TensorDataset(images.double(), torch.arange(6))
    loader = DataLoader(double, batch_size=2, pin_memory=device != "cpu")
    rows = _drops(copy.deepcopy(model).double(), loader, device=device)
    assert (rows - expected).abs().max() < 1e-6


@pytest.mark.parametrize(("device", "precision"), REDUCED)
def test_reduced_precisions_move_drops_by_little(model, images, expected, device, precision):
    rows = _drops(model, [images], device=device, precision=precision)
    moved = (rows - expected).abs()
    assert 0 < moved.max() < 5  # of 100


@pytest.mark.gpu
def test_passes_become_smaller_where_memory_is_short():
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))
    images = [torch.randn(64, 3, 256, 256)]
    given = {"layers": "0", "methods": "gradcam", "progress": False, "device": "cuda"}
    expected = xaieval.score(model.eval(), images, **given).rows
    total = torch.cuda.get_device_properties("cuda").total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(700 * 2**20 / total)  # 64 images need 1 GiB for each activation
    try:
        scores = xaieval.score(model, images, **given)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert scores.manifest["speed"]["batch_size"] < 64
    assert (scores.rows["average_drop"] - expected["average_drop"]).abs().max() < 0.5


@pytest.mark.gpu
def test_the_last_of_several_devices_can_be_named(model, images, expected):
    device = f"cuda:{torch.cuda.device_count() - 1}"
    rows = _drops(copy.deepcopy(model).double(), [images.double()], device=device)
    assert (rows - expected).abs().max() < 1e-6
