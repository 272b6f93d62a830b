"""Preprocessing: resize, crop and normalise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from xaieval.data import Preprocessing, Whole, image_folder
from xaieval.data.preprocessing import to_visible
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


# Older releases of timm resize pictures in another way for oblong inputs.
OBLONG = [(40, 56), (56, 40)] if tuple(map(int, timm.__version__.split(".")[:3])) >= (1, 0, 31) else []


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(40, 40), *OBLONG])
@pytest.mark.parametrize("share", [1.0, 0.875, 0.95])
def test_pictures_of_all_shapes_are_prepared_as_by_timm(mode, size, share):
    theirs = timm.data.create_transform((3, *size), crop_pct=share, crop_mode=mode, interpolation="bicubic")
    resize = tuple(math.floor(side / share) for side in size)
    square = size[0] == size[1]
    ours = Preprocessing(
        image_size=size[0] if square else size,
        resize=resize[0] if square else resize,
        interpolation="bicubic",
        squash=mode == "squash",
        border=mode == "border",
    )
    for shape in ((90, 60), (61, 99), (40, 40), (30, 90), (17, 11)):
        noise = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize(shape)
        torch.testing.assert_close(ours(picture), theirs(picture), rtol=0, atol=1e-6)


def test_a_border_is_added_to_masks_and_boxes_too():
    # 40 x 20 pixels become 20 x 10, with 5 empty rows above and below.
    picture = np.zeros((20, 40), dtype=np.uint8)
    picture[4:16, 8:32] = 255
    prepare = Preprocessing(20, 20, mean=(0.2,) * 3, std=(1.0,) * 3, border=True)
    image, mask = prepare(Image.fromarray(picture).convert("RGB")), prepare.mask(Image.fromarray(picture))
    assert torch.equal(image[0] > 0.3, mask)
    assert prepare.boxes(torch.tensor([[8.0, 4.0, 32.0, 16.0]]), (40, 20)).tolist() == [[4, 7, 16, 13]]
    assert mask.sum() == 12 * 6
    torch.testing.assert_close(image[:, :5], torch.zeros(3, 5, 20))  # the mean colour is 0 after normalisation


def test_grey_is_the_average_of_the_normalisation_and_other_bands_have_none():
    picture = Image.fromarray(np.full((8, 8), 51, dtype=np.uint8)).convert("RGB")
    grey = Preprocessing(8, 8, mean=(0.1, 0.2, 0.3), std=(0.2, 0.4, 0.6)).with_channels(1)
    torch.testing.assert_close(grey(picture), torch.zeros(1, 8, 8), rtol=0, atol=1e-6)
    assert Preprocessing().with_channels(4).mean == (0,) * 4
    assert Preprocessing().with_channels(3) == Preprocessing()
    with pytest.raises(ValueError, match="it has 4 bands, and the model takes 5"):
        Preprocessing(8, 8).with_channels(5)(torch.zeros(4, 8, 8))


def test_three_bands_are_shown_and_stretched():
    ramp = torch.arange(101.0).view(1, 1, 1, 101)
    images = torch.cat([ramp * scale for scale in (1, 10, 100, 1000)], dim=1)
    images[:, 3] = images[:, 3].flip(2)
    right, left = ((ramp - 2) / 96).clamp(0, 1)[0], ((98 - ramp) / 96).clamp(0, 1)[0]
    torch.testing.assert_close(to_visible(images)[0], torch.cat([right] * 3))
    torch.testing.assert_close(to_visible(images, (3, 2, 1))[0], torch.cat([left, right, right]))
    torch.testing.assert_close(to_visible(images, (3,))[0], torch.cat([left] * 3))
    torch.testing.assert_close(to_visible(images[:, 2:])[0], torch.cat([right] * 3))
    assert to_visible(torch.full((1, 5, 4, 4), 7.0)).isfinite().all()
    prepare = Preprocessing(8, 8, mean=(3.0,) * 4, std=(2.0,) * 4)
    torch.testing.assert_close(prepare.to_pixels((images - 3) / 2), to_visible(images))
    assert prepare.to_pixels(torch.rand(2, 1, 8, 8)).shape == prepare.to_pixels(torch.rand(2, 3, 8, 8)).shape == (2, 3, 8, 8)
    for bands in ((0, 1), (0, 1, 4), (-1,)):
        with pytest.raises(DataError, match=r"^bands are three channels from 0 to 3, or one for grey; got"):
            to_visible(images, bands)


def test_oblong_inputs_keep_the_share_that_they_show():
    assert Preprocessing(224, 256).with_size((112, 224)) == Preprocessing((112, 224), (128, 256))
    assert Preprocessing((112, 224), (128, 256)).with_size(56).resize == 64
    assert Preprocessing((112, 224), (128, 256)).input_shape == (3, 112, 224)


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
        ({"image_size": (20, 300)}, "an image is resized to at least its crop: got 256 px for a crop of (20, 300)"),
        (
            {"squash": True, "border": True},
            "squash ignores the aspect ratio, border fills the rest, and whole leaves the size open; choose one of them",
        ),
        ({"whole": Whole(), "resize": (256, 300)}, "with whole, resize is the shorter side in pixels, got (256, 300)"),
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


# ---- whole pictures, which keep their shape

WHOLE = Preprocessing(48, 48, mean=(0.0,) * 3, std=(1.0,) * 3, whole=Whole(longest=80))


def test_objects_of_whole_pictures_are_where_they_are_in_the_image():
    picture = Image.new("RGB", (200, 60))
    picture.paste((255, 255, 255), (100, 30, 150, 60))
    mask = picture.convert("L")
    image, placed = WHOLE(picture), WHOLE.mask(mask)
    assert image.shape == (3, 24, 80)  # the longer side is the one that is bounded
    assert placed.shape == (24, 80)
    assert ((image.mean(dim=0) > 0.5) == placed).float().mean() > 0.99
    boxes = WHOLE.boxes(torch.tensor([[100.0, 30, 150, 60]]), (200, 60))
    torch.testing.assert_close(boxes, torch.tensor([[40.0, 12, 60, 24]]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (24, Preprocessing(24, 24, whole=Whole(longest=40))),
        ((24, 32), Preprocessing((24, 32), (24, 32), squash=True)),
    ],
)
def test_another_size_of_whole_pictures_is_a_shorter_side_or_one_size_for_all(size, expected):
    assert Preprocessing(48, 48, whole=Whole(longest=80)).with_size(size) == expected


def test_a_loader_of_whole_pictures_has_one_in_each_batch(tmp_path):
    for number, size in enumerate([(60, 40), (40, 40), (60, 40)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    batches = list(image_folder(tmp_path, WHOLE).loader(batch_size=8))
    assert [tuple(one["image"].shape) for one in batches] == [(1, 3, 48, 72), (1, 3, 48, 48), (1, 3, 48, 72)]


def test_a_picture_in_the_corner_has_black_beside_it_or_below_it():
    corner = Preprocessing(64, 64, mean=(0.5,) * 3, std=(0.5,) * 3, border=True, corner=True, fill=0.0)
    image = corner(Image.new("RGB", (100, 50), (255, 255, 255)))
    assert (image[:, :32] == 1).all()
    assert (image[:, 32:] == -1).all()
    torch.testing.assert_close(corner.boxes(torch.tensor([[50.0, 0, 100, 50]]), (100, 50)), torch.tensor([[32.0, 0, 64, 32]]))
