"""MONAI's networks of volumes: which layers `auto` takes, and scans as MONAI's own transforms give them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet121, EfficientNetBN, SegResNet, UNet, ViT, resnet10
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, NormalizeIntensity, Orientation, ScaleIntensityRange
from nibabel import orientations
from torch import Tensor, nn

import xaieval
from xaieval.data import ScanPreprocessing, scan_folder
from xaieval.inference.tasks import Segmentation

SIZE = (32, 32, 48)


def vit() -> nn.Module:
    size = {"hidden_size": 24, "mlp_dim": 48, "num_layers": 3, "num_heads": 3}
    return ViT(1, SIZE, 16, classification=True, num_classes=3, spatial_dims=3, **size)


NETWORKS = {
    "DenseNet121": (
        lambda: DenseNet121(3, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2, 2, 2)),
        [f"features.denseblock{number}" for number in (1, 2, 3)],  # the fourth has one cell
    ),
    "ResNet": (lambda: resnet10(n_input_channels=1, num_classes=3), ["layer1", "layer2", "layer3", "layer4"]),
    "ViT": (vit, ["blocks.0", "blocks.1"]),
    # whose layers that pad for a stride are no stages
    "EfficientNet": (
        lambda: EfficientNetBN("efficientnet-b0", False, spatial_dims=3, in_channels=1, num_classes=3),
        ["_blocks.0", "_blocks.1", "_blocks.2", "_blocks.4"],
    ),
}
SEGMENTERS = {
    "UNet": (
        lambda: UNet(3, 1, 3, (4, 8, 16), (2, 2)),
        ["model.1.submodule.0", "model.1.submodule.1", "model.1.submodule.2"],
    ),
    "SegResNet": (
        lambda: SegResNet(3, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
        ["down_layers.2", "up_layers.0", "up_layers.1"],
    ),
}


def volumes(channels: int = 1) -> Tensor:
    return torch.rand(2, channels, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_of_classifiers_are_their_stages_or_blocks(name):
    make, expected = NETWORKS[name]
    torch.manual_seed(0)
    maps = xaieval.explain(make().eval(), volumes(), "auto")
    assert list(maps) == expected
    assert all(one.shape == (2, *SIZE) and one.isfinite().all() for one in maps.values())


@pytest.mark.parametrize("name", SEGMENTERS)
def test_layers_of_segmentation_networks_are_their_levels(name):
    make, expected = SEGMENTERS[name]
    torch.manual_seed(0)
    scores = xaieval.score(make().eval(), [volumes()], "auto", task=Segmentation(background=None), progress=False)
    assert list(scores.summary().index.get_level_values("layer")) == expected
    assert set(scores.rows["status"]) <= {"ok", "constant_map"}


def test_scans_are_those_of_monais_transforms(tmp_path):
    values = np.random.default_rng(0).normal(0, 500, (5, 6, 7)).astype(np.float32)
    turn = orientations.axcodes2ornt("PIL")
    affine = np.diag([2.0, 1.0, 3.0, 1.0]) @ orientations.inv_ornt_aff(turn, values.shape)
    path = Path(tmp_path, "a.nii.gz")
    nibabel.Nifti1Image(values, affine).to_filename(path)
    ways = {
        (-400, 300): ScaleIntensityRange(-400, 300, 0, 1, clip=True),
        "zscore": NormalizeIntensity(),
        "zscore-nonzero": NormalizeIntensity(nonzero=True),
    }
    for intensity, way in ways.items():
        theirs = Compose([LoadImage(image_only=True), EnsureChannelFirst(), Orientation("RAS", labels=None), way])(path)
        ours = scan_folder(tmp_path, ScanPreprocessing(intensity))[0]["image"]
        np.testing.assert_allclose(ours, np.asarray(theirs), atol=1e-4)
