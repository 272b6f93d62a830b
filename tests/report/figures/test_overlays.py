"""A map over its image as an array."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch

import xaieval
from xaieval.data import Preprocessing
from xaieval.errors import DataError, UsageError


def test_an_overlay_is_the_weighted_mean_of_image_and_colours():
    image, found = torch.rand(3, 4, 6), torch.linspace(0, 1, 24).view(4, 6)
    colours = matplotlib.colormaps["inferno"](found.numpy())[..., :3]
    expected = 0.7 * image.permute(1, 2, 0).numpy() + 0.3 * colours
    np.testing.assert_allclose(xaieval.overlay(image, found, 0.3), 255 * expected, atol=0.51)
    assert (xaieval.overlay(image, found, 0) == np.rint(255 * image.permute(1, 2, 0).numpy())).all()


def test_an_overlay_undoes_the_normalisation_and_shows_the_bands_that_are_asked_for():
    pixels, found = torch.rand(1, 3, 4, 6), torch.rand(4, 6)
    prepare = Preprocessing(4, 4)
    shift, scale = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (prepare.mean, prepare.std))
    normalised = xaieval.overlay(((pixels - shift) / scale)[0], found, preprocessing=prepare)
    np.testing.assert_allclose(normalised.astype(int), xaieval.overlay(pixels[0], found).astype(int), atol=1)
    many = torch.rand(5, 4, 6)
    assert (xaieval.overlay(many, found, bands=(4, 2, 0)) == xaieval.overlay(many.flip(0), found, bands=(0, 2, 4))).all()


@pytest.mark.parametrize(
    ("image", "found", "alpha", "error", "message"),
    [
        (torch.rand(1, 3, 4, 6), torch.rand(1, 4, 6), 0.5, DataError, r"an image \[C, H, W\] and its map \[H, W\]"),
        (torch.rand(3, 4, 6), torch.rand(4, 5), 0.5, DataError, "one per image and of its size"),
        (torch.rand(3, 4, 6), 2 + torch.rand(4, 6), 0.5, DataError, r"are in \[0, 1\]"),
        (torch.rand(3, 4, 6) - 1, torch.rand(4, 6), 0.5, DataError, "to undo the normalisation"),
        (torch.rand(3, 4, 6), torch.rand(4, 6), 1.5, UsageError, r"alpha is in \[0, 1\], got 1.5"),
    ],
    ids=["batch", "size", "map", "image", "alpha"],
)
def test_an_overlay_of_what_does_not_fit_says_so(image, found, alpha, error, message):
    with pytest.raises(error, match=message):
        xaieval.overlay(image, found, alpha)
