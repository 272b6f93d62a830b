"""XRAI equals that of PAIR's package; regions are ranked as a slow loop ranks them."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xaieval
from tests.explainers.test_gradient_paths import as_pair_asks, context_of, pair, same
from xaieval.errors import ExplainerError
from xaieval.explainers import Context
from xaieval.explainers.xrai import XRAI, rank_regions


def test_maps_are_those_of_pairs_package():
    core = pair()
    context = context_of()
    theirs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its calls of scikit-image
        for image, target in zip(context.images, context.targets.tolist(), strict=True):
            picture = np.moveaxis(image.double().numpy(), 0, -1)
            settings = core.XRAIParameters(steps=4)
            settings.experimental_params = {"min_pixel_diff": 8}
            theirs.append(core.XRAI().GetMask(picture, as_pair_asks(target), extra_parameters=settings))
    same(XRAI(steps=4, min_pixels=8)(context), theirs)
    assert len(np.unique(theirs[0])) > 3  # more than one region


def slow_ranks(attribution: Tensor, regions: Tensor, min_pixels: int) -> Tensor:
    covered = torch.zeros(attribution.shape, dtype=torch.bool)
    ranked = torch.full(attribution.shape, torch.nan)
    left = list(regions)
    while left:
        left = [region for region in left if int((region & ~covered).sum()) >= min_pixels]
        if not left:
            break
        best = max(left, key=lambda region: float(attribution[region & ~covered].mean()))
        ranked[best & ~covered] = attribution[best & ~covered].mean()
        covered |= best
    return torch.where(covered, ranked, attribution[~covered].mean())


@pytest.mark.parametrize("min_pixels", [1, 3, 9])
def test_regions_are_ranked_as_by_a_loop(min_pixels):
    generator = torch.Generator().manual_seed(min_pixels)
    attribution = torch.randn(7, 9, generator=generator)
    regions = torch.rand(12, 7, 9, generator=generator) < 0.15
    expected = slow_ranks(attribution, regions, min_pixels)
    assert len(expected.unique()) > 1
    torch.testing.assert_close(rank_regions(attribution, regions, min_pixels), expected)


def test_without_regions_there_is_one_mean():
    attribution = torch.tensor([[1.0, 2.0, 6.0]])
    assert torch.equal(rank_regions(attribution, torch.zeros(0, 1, 3, dtype=torch.bool)), torch.full((1, 3), 3.0))


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_any_number_of_channels_are_segmented(channels):
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    images = torch.rand(2, channels, 24, 24)
    images[1] = 0.5  # a constant image is one region
    maps = XRAI(steps=2, min_pixels=4, scales=(50,), side=64)(Context(model, images, torch.tensor([0, 1]), None, ["a", "b"]))
    assert maps.shape == (2, 24, 24)
    assert maps.isfinite().all()
    assert len(maps[1].unique()) == 1


def test_a_missing_scikit_image_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ExplainerError, match=r"^method 'xrai' needs scikit-image: pip install 'xaieval\[segments\]'$"):
        xaieval.explain(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), torch.rand(1, 3, 8, 8), method="xrai")


@pytest.mark.parametrize("settings", [{"steps": 1}, {"min_pixels": 0}, {"side": 0}, {"scales": ()}, {"scales": (0.0,)}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ExplainerError, match="method 'xrai' takes steps of at least 2, min_pixels and side of at least 1"):
        XRAI(**settings)
