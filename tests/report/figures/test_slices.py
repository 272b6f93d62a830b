"""Slices of volumes and frames of videos in figures: which ones, which way up, and that image and maps show the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import xaieval
from xaieval.data.preprocessing import Preprocessing, to_visible
from xaieval.errors import DataError
from xaieval.report import Maps
from xaieval.report.figures.slices import cuts_through, joined, strips

SIZE = (5, 6, 7)


def planted(place: tuple[int, int, int], size: tuple[int, ...] = SIZE) -> Tensor:
    volume = torch.zeros(1, *size)
    volume[(0, *place)] = 1
    return volume


def test_frames_are_evenly_spaced_and_all_of_a_short_clip():
    assert [at for _, at in cuts_through(torch.rand(2, 30, 4, 4), "frames")] == [2, 7, 12, 17, 22, 27]
    assert cuts_through(torch.rand(1, 3, 4, 4), "frames") == [(0, 0), (0, 1), (0, 2)]


def test_planes_go_through_the_voxel_that_is_brightest_in_the_mean_of_the_maps():
    maps = torch.cat([0.9 * planted((0, 0, 0)), 0.5 * planted((3, 1, 4)), 0.5 * planted((3, 1, 4))])
    assert cuts_through(maps, "planes") == [(0, 3), (1, 1), (2, 4)]
    assert cuts_through(maps, "anatomy") == [(2, 4), (1, 1), (0, 3)]
    maps[0, 4, 5, 6] = torch.nan  # is not the brightest
    assert cuts_through(maps, "planes") == [(0, 3), (1, 1), (2, 4)]
    assert cuts_through(torch.ones(1, *SIZE), "planes") == [(0, 2), (1, 3), (2, 3)], "nothing stands out: the middle"


def test_a_scan_is_upright():
    # Axes lead to the right, to the front and up; seen from the feet's end, from the front and from the side.
    volume = planted((4, 0, 1))  # far right, at the back, low
    [picture], maps = strips(volume[None], {"m": volume}, "anatomy")
    white = 1 - picture[0]  # the ground is white, as the voxel
    axial, coronal, sagittal = white[:6, :5], white[:, 6:11], white[:, 12:18]
    assert (axial == 0).nonzero().tolist() == [[5, 4]], "right, and the back is down"
    assert (coronal == 0).nonzero().tolist() == [[5, 4]], "right, and low is down"
    assert (sagittal == 0).nonzero().tolist() == [[5, 0]], "the front is on the right, and low is down"
    assert torch.equal(maps["m"][0].isnan(), (picture[0] == 1) & ~(maps["m"][0] == 1))


def test_slices_stand_in_the_middle_with_the_ground_between_them():
    found = joined([torch.zeros(1, 2, 3), torch.ones(1, 4, 1)], 7.0)[0]
    assert found.tolist() == [[7, 7, 7, 7, 1], [0, 0, 0, 7, 1], [0, 0, 0, 7, 1], [7, 7, 7, 7, 1]]


def test_image_and_maps_show_the_same_frames():
    clips, maps = torch.rand(2, 3, 12, 8, 9), torch.rand(2, 12, 8, 9)
    figure = xaieval.show(clips, {"a": maps, "b": 1 - maps}, titles=["one", "two"])
    image, first, second, other, *_ = figure.axes
    for number, frame in enumerate((1, 3, 5, 7, 9, 11)):
        columns = slice(10 * number, 10 * number + 9)
        np.testing.assert_allclose(image.images[0].get_array()[:, columns], clips[0, :, frame].permute(1, 2, 0))
        np.testing.assert_allclose(first.images[1].get_array()[:, columns], maps[0, frame])
        np.testing.assert_allclose(second.images[1].get_array()[:, columns], 1 - maps[0, frame])
        np.testing.assert_allclose(first.images[0].get_array()[:, columns], clips[0, :, frame].mean(dim=0), rtol=1e-5)
    assert (image.images[0].get_array()[:, 9] == 1).all()
    assert first.images[1].get_array().mask[:, 9].all(), "the gap has no colour"
    assert [axes.get_ylabel() for axes in figure.axes[:6]] == ["image", "a", "b"] * 2
    assert [image.get_title(), other.get_title()] == ["one", "two"]
    boxes = [axes.get_position() for axes in (image, first, second, other)]
    assert all(above.y0 > below.y1 for above, below in pairwise(boxes)), "one below the other"


def test_scans_are_shown_in_any_unit_and_videos_are_not():
    scan = torch.linspace(-1000, 1000, 8).expand(1, 1, 8, 8, 8).contiguous()
    shown = xaieval.show(scan, torch.rand(1, 8, 8, 8), slices="frames").axes[0].images[0].get_array()
    np.testing.assert_allclose(shown[0, :8, 0], np.linspace(0, 1, 8), atol=1e-6)
    with pytest.raises(DataError, match=r"images are in \[0, 1\]; these are in \[-1e\+03, 1e\+03\]"):
        xaieval.show(scan.expand(-1, 3, -1, -1, -1), torch.rand(1, 8, 8, 8))
    grey = torch.rand(1, 1, 2, 8, 8) / 2
    assert torch.equal(to_visible(grey)[:, :1], grey), "in [0, 1] already"


def test_channels_and_slices_that_are_unknown_are_refused():
    with pytest.raises(DataError, match=r"no slices 'plane'; did you mean 'planes'"):
        xaieval.show(torch.rand(1, 1, 4, 4, 4), torch.rand(1, 4, 4, 4), slices="plane")
    with pytest.raises(DataError, match="no slices 'frame'"):
        Maps(["a"], torch.rand(1, 1, 4, 4, 4), {}, "frame")


def test_pixels_of_clips_are_those_of_their_frames():
    prepare = Preprocessing(8, 8, mean=(0.1, 0.4, 0.7), std=(0.5, 0.2, 0.3))
    clips = torch.randn(2, 3, 4, 8, 8)
    found = prepare.to_pixels(clips)
    for frame in range(4):
        torch.testing.assert_close(found[:, :, frame], prepare.to_pixels(clips[:, :, frame]))


def test_thumbnails_of_volumes_are_their_slices_with_the_map_over_them():
    volumes, maps = 0.5 * torch.ones(1, 1, *SIZE), torch.zeros(1, *SIZE)
    maps[0, 1:4, 2:5, 2:5] = 1
    thumbnails = Maps(["a"], volumes, {"m": {"deep": maps}})
    picture, over = thumbnails.picture(0), thumbnails.map_over(0, "deep", "m")
    assert picture.shape == over.shape == (6, 7 + 7 + 6 + 2, 3), "[H, W], [D, W] and [D, H], one pixel apart"
    np.testing.assert_allclose(picture[:, :7], 0.5)
    np.testing.assert_allclose(picture[:, 7], 1)
    np.testing.assert_allclose(over[:, 7], 1)
    bright = over[:, :7].sum(axis=2) > 1
    assert bright.nonzero()[0].tolist() == [2, 2, 2, 3, 3, 3, 4, 4, 4]
    large = Maps(["a"], torch.rand(1, 3, 8, 300, 400), {"m": {"deep": torch.rand(1, 8, 300, 400)}})
    assert large.map_over(0, "deep", "m").shape[0] == 84, "112 pixels wide, and in proportion"
