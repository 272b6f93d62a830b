"""Preprocessing: resize, crop and normalise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from xaieval.data import Preprocessing
from xaieval.errors import DataError


def test_preprocessing_is_resize_crop_and_normalise_as_worked_by_hand():
    # 4 x 8 pixels, left half 0 and right half 255; the centre crop of 4 x 4 keeps two columns of each.
    picture = Image.fromarray(np.repeat(np.repeat([[0] * 4 + [255] * 4], 4, axis=0)[..., None], 3, axis=2).astype(np.uint8))
    found = Preprocessing(4, 4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))(picture)
    rows = [[-1.0, -1.0, 1.0, 1.0], [-1.0, -1.0, 3.0, 3.0], [0.0, 0.0, 0.5, 0.5]]
    torch.testing.assert_close(found, torch.tensor(rows)[:, None, :].expand(3, 4, 4))


def test_pixels_come_back_from_normalised_images():
    grey = (np.indices((24, 24)).sum(axis=0) * 4).astype(np.uint8)
    picture = Image.fromarray(grey).convert("RGB")
    prepare = Preprocessing(24, 24)
    pixels = prepare.to_pixels(prepare(picture)[None])[0]
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), np.asarray(picture) / 255, atol=1e-6)


def test_another_crop_keeps_its_share_of_the_picture():
    assert Preprocessing(224, 256).with_size(112) == Preprocessing(112, 128)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"interpolation": "bilinar"},
            "no interpolation 'bilinar'; did you mean 'bilinear'? known: "
            "nearest, nearest-exact, bilinear, bicubic, box, hamming, lanczos",
        ),
        ({"image_size": 300}, "an image is resized to at least its crop: got 256 px for a crop of 300"),
        ({"image_size": 0}, "an image is resized to at least its crop: got 256 px for a crop of 0"),
        (
            {"mean": (0, 0)},
            "mean and std are one number per channel each, as many of one as of the other, std positive; "
            "got (0, 0) and (0.229, 0.224, 0.225)",
        ),
        (
            {"std": (1, 1, 0)},
            "mean and std are one number per channel each, as many of one as of the other, std positive; "
            "got (0.485, 0.456, 0.406) and (1, 1, 0)",
        ),
    ],
)
def test_preprocessing_that_cannot_be_is_refused_word_for_word(choices, message):
    with pytest.raises(DataError) as error:
        Preprocessing(**choices)
    assert str(error.value) == message
