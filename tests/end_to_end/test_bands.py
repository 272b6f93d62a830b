"""torchgeo's networks and data sets of many bands through the whole flow, beside loops over images and bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from scipy import ndimage
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchgeo.datasets import EuroSAT
from torchgeo.models import resnet18, vit_small_patch16_224

import xaieval
from xaieval import Protocol
from xaieval.data.batches import read_batches
from xaieval.data.truth_by_class import masks_of

BANDS = 13
UNITS = torch.linspace(1, 4, BANDS).pow(5)[:, None, None]  # each band in another unit, up to 1024


def scaled(sample: dict[str, Tensor]) -> dict[str, Tensor]:
    return sample | {"image": sample["image"] / 1000}


@pytest.fixture(scope="module")
def eurosat(tmp_path_factory) -> EuroSAT:
    """EuroSAT's folders with three images of 24 x 32 pixels, in GeoTIFF."""
    root = tmp_path_factory.mktemp("eurosat")
    names = ["Forest_1", "River_7", "Forest_2"]
    for number, name in enumerate(names):
        values = UNITS * torch.rand(BANDS, 24, 32, generator=torch.Generator().manual_seed(number))
        path = Path(root, EuroSAT.base_dir, name.split("_")[0], f"{name}.tif")
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"count": BANDS, "dtype": "uint16", "crs": "EPSG:32633", "transform": from_origin(0, 0, 10, 10)}
        with rasterio.open(path, "w", driver="GTiff", height=24, width=32, **options) as file:
            file.write(values.numpy().astype(np.uint16))
    Path(root, "eurosat-test.txt").write_text("\n".join(f"{name}.jpg" for name in names))
    return EuroSAT(root, "test", transforms=scaled)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return resnet18(in_chans=BANDS, num_classes=10).eval()


def test_a_data_set_of_torchgeo_is_scored_as_it_is(eurosat, network):
    loader = DataLoader(eurosat, batch_size=2)
    scores = xaieval.score(network, loader, ["layer2", "layer3"], protocol=Protocol(target="label"), progress=False)
    assert scores.rows["label"].tolist() == [0, 0, 0, 0, 1, 1]
    assert set(scores.rows["status"]) <= {"ok", "constant_map"}
    for place, sample in enumerate(eurosat):
        with torch.no_grad():
            expected = network(sample["image"][None]).double().softmax(1)[0, sample["label"]]
        assert scores.rows["confidence"][2 * place] == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("fill", ["mean", "blur", "linear", "nearest"])
def test_what_is_masked_is_filled_band_by_band(eurosat, network, fill):
    images = torch.stack([eurosat[0]["image"], eurosat[2]["image"]])
    maps = xaieval.explain(network, images, "layer2")["layer2"]
    protocol = Protocol(fill=fill)
    rows = xaieval.score(network, [images], "layer2", protocol=protocol, progress=False, fast=False).rows
    filled = []
    for image, one in zip(images, maps, strict=True):
        channels = [band_by_hand(band.double().numpy(), one.numpy(), fill) for band in image]
        filled.append(image * one + torch.from_numpy(np.stack(channels)).float() * (1 - one))
    with torch.no_grad():
        targets = network(images).argmax(dim=1)
        expected = network(torch.stack(filled)).double().softmax(dim=1)[range(2), targets]
    assert rows["masked_confidence"].to_list() == pytest.approx(expected.tolist(), abs=1e-5)


def band_by_hand(band: np.ndarray, kept: np.ndarray, fill: str) -> np.ndarray:
    """One band filled by itself."""
    if fill == "mean":
        return np.full_like(band, band.mean())
    if fill == "blur":
        sigma = 0.1 * min(band.shape)
        return ndimage.gaussian_filter(band, sigma, mode="mirror", radius=round(2.5 * sigma))
    missing = kept < 0.5
    if fill == "linear":
        made = xaieval.masking.linear_imputation(torch.from_numpy(band)[None, None], torch.from_numpy(missing)[None])
        return made[0, 0].numpy()
    rows, columns = ndimage.distance_transform_edt(missing, return_distances=False, return_indices=True)
    return band[rows, columns]


def test_a_vision_transformer_of_torchgeo_has_its_blocks_explained():
    torch.manual_seed(0)
    model = vit_small_patch16_224(in_chans=BANDS, num_classes=4, img_size=(32, 48), depth=3, embed_dim=48, num_heads=3).eval()
    maps = xaieval.explain(model, torch.rand(2, BANDS, 32, 48), "auto")
    assert list(maps) == ["blocks.0", "blocks.1"]
    assert all(one.shape == (2, 32, 48) for one in maps.values())


def test_figures_show_the_bands_that_are_asked_for(eurosat, network):
    images = eurosat[0]["image"][None]
    maps = xaieval.explain(network, images, "layer3")
    shown = xaieval.show(images, maps, bands=(3, 2, 1)).axes[0].images[0].get_array()
    for place, band in enumerate((3, 2, 1)):
        values = images[0, band].numpy()
        low, high = np.quantile(values, [0.02, 0.98], method="nearest")
        np.testing.assert_allclose(shown[..., place], np.clip((values - low) / (high - low), 0, 1), atol=1e-6)


def test_masks_of_a_segmentation_sample_are_the_truth_of_its_classes(eurosat):
    label_map = torch.zeros(1, 24, 32, dtype=torch.long)
    label_map[0, 2:5, 3:9] = 4
    [batch] = read_batches([{"image": eurosat[0]["image"][None], "mask": label_map, "crs": ["EPSG:32633"]}])
    masks, _ = masks_of(batch.truth, classes=torch.tensor([4]), size=(24, 32))
    assert torch.equal(masks, label_map == 4)
