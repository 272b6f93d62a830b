"""From raw maps to masks to occluded images: by hand, against slow loops, and against OpenCV, NumPy and SciPy."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import cv2
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from xaieval.config.protocol import PROTOCOLS, Protocol, resolve_protocol
from xaieval.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from xaieval.errors import ProtocolError
from xaieval.masking import Finished, baseline, finish, mask, normalise, occlude, upsample
from xaieval.masking.masks import _otsu_threshold

# Without a deadline, since the machines that run this are shared; the same examples every time, so that a run can be repeated.
PROPERTY = settings(deadline=None, max_examples=60)

NORMALISATIONS = ("minmax", "max", "percentile", "none")
MASKINGS = ("soft", "top", "top_binary", "threshold", "otsu")
FILLS = ("zero", "black", "mean", "blur")


def _map(*rows: list[float]) -> Tensor:
    """One map as a batch."""
    return torch.tensor(rows)[None]


def _random_maps(count: int, *size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed))


def _maps(low: float, high: float, width: int = 32) -> st.SearchStrategy[Tensor]:
    """Batches of one to three small maps."""
    elements = st.floats(low, high, width=width, allow_nan=False, allow_infinity=False, allow_subnormal=False)
    kind = np.float32 if width == 32 else np.float64
    shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
    return hnp.arrays(kind, shapes, elements=elements).map(torch.from_numpy)


unit_maps = _maps(0.0, 1.0)
raw_maps = _maps(-(2.0**60), 2.0**60)


# ---- normalisation


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"normalisation": "minmax"}, [0.0, 0.25, 0.5, 1.0]),
        ({"normalisation": "max"}, [-1 / 3, 0.0, 1 / 3, 1.0]),
        ({"normalisation": "percentile", "percentiles": (0, 100)}, [0.0, 0.25, 0.5, 1.0]),
        # The percentiles 50/3 and 200/3 of four values lie half way between the 1st and 2nd, and on the 3rd: -1 and 2.
        ({"normalisation": "percentile", "percentiles": (50 / 3, 200 / 3)}, [-1 / 3, 1 / 3, 1.0, 7 / 3]),
        ({"normalisation": "none"}, [-2.0, 0.0, 2.0, 6.0]),
    ],
)
def test_each_normalisation_of_minus_two_zero_two_six_is_as_worked_by_hand(choices, expected):
    maps, constant = normalise(_map([-2.0, 0.0], [2.0, 6.0]), Protocol(**choices))
    torch.testing.assert_close(maps.flatten(), torch.tensor(expected))
    assert constant.tolist() == [False]


@pytest.mark.parametrize("choices", [{"normalisation": name} for name in NORMALISATIONS])
def test_finished_maps_are_clipped_where_the_normalisation_leaves_the_unit_interval(choices):
    finished = finish(_map([-2.0, 0.0], [2.0, 6.0]), (2, 2), Protocol(**choices))
    assert finished.maps.min() == 0
    assert finished.maps.max() == 1


def test_minmax_divides_the_difference_from_the_minimum_and_not_the_minimum_alone():
    # Public code has `a - min / max - min` without brackets, which is 3 - 1 / 5 - 1 = 1.8 in the middle.
    maps, _ = normalise(_map([1.0, 3.0, 5.0]), Protocol())
    assert maps.tolist() == [[[0.0, 0.5, 1.0]]]


def test_each_map_of_a_batch_is_normalised_by_itself():
    maps = torch.stack([scale * _random_maps(1, 5, 7)[0] - scale for scale in (1e-3, 1.0, 1e4)])
    together, _ = normalise(maps, Protocol())
    alone = torch.cat([normalise(one[None], Protocol())[0] for one in maps])
    assert torch.equal(together, alone)
    assert (together.amin(dim=(1, 2)) == 0).all()
    assert (together.amax(dim=(1, 2)) == 1).all()


def test_absolute_value_comes_before_the_normalisation():
    finished = finish(_map([-4.0, 1.0, 2.0]), (1, 3), Protocol(absolute=True))
    torch.testing.assert_close(finished.maps, _map([1.0, 0.0, 1 / 3]))


def test_normalising_before_and_after_upsampling_differ_as_worked_by_hand():
    # Half-pixel centres of 6 cells over 3 are at -1/4, 1/4, 3/4, 5/4, 7/4, 9/4, so the upsampled map is 0, 1, 3, 3, 1, 0.
    peak = _map([0.0, 4.0, 0.0])
    at_image = finish(peak, (1, 6), Protocol()).maps
    at_layer = finish(peak, (1, 6), Protocol(normalise_at="layer")).maps
    torch.testing.assert_close(at_image, _map([0.0, 1 / 3, 1.0, 1.0, 1 / 3, 0.0]))
    torch.testing.assert_close(at_layer, _map([0.0, 0.25, 0.75, 0.75, 0.25, 0.0]))


@pytest.mark.parametrize("percentiles", [(0.0, 100.0), (1.0, 99.0), (2.5, 97.5), (10.0, 60.0), (33.3, 66.6)])
@pytest.mark.parametrize("size", [(1, 2), (3, 5), (8, 8)])
def test_percentiles_are_those_of_numpy(percentiles, size):
    maps = _random_maps(4, *size).double() * 7 - 3
    low, high = np.percentile(maps.flatten(1).numpy(), percentiles, axis=1)
    expected = (maps.numpy() - low[:, None, None]) / (high - low)[:, None, None]
    found, _ = normalise(maps, Protocol(normalisation="percentile", percentiles=percentiles))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("normalise_at", ["image", "layer"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@PROPERTY
@given(maps=raw_maps, size=st.tuples(st.integers(1, 9), st.integers(1, 9)), absolute=st.booleans())
def test_finished_maps_lie_in_the_unit_interval_whatever_was_raw(normalisation, normalise_at, maps, size, absolute):
    protocol = Protocol(normalisation=normalisation, normalise_at=normalise_at, absolute=absolute)
    finished = finish(maps, size, protocol)
    assert finished.maps.shape == (len(maps), *size)
    assert ((finished.maps >= 0) & (finished.maps <= 1)).all()
    assert not finished.invalid.any()
    assert not finished.maps[finished.constant].any()


def test_a_map_that_spans_more_than_float32_holds_is_still_normalised():
    # 3e38 - (-3e38) is infinite in float32; the raw map is finite, so it may neither turn NaN nor vanish.
    finished = finish(_map([-3e38, 0.0, 3e38]), (1, 3), Protocol())
    assert not finished.invalid.any()
    assert not finished.constant.any()
    torch.testing.assert_close(finished.maps, _map([0.0, 0.5, 1.0]))


@pytest.mark.slow
@PROPERTY
@given(
    maps=_maps(-1.0, 1.0, width=64),
    factor=st.floats(0.01, 100.0),
    shift=st.floats(-10.0, 10.0),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_minmax_does_not_feel_positive_affine_changes_of_the_raw_map(maps, factor, shift, size):
    # Where a map hardly varies at the image's size, rounding is all that is left of it beside a large shift.
    large = upsample(maps, size)
    maps = maps[(large.amax(dim=(1, 2)) - large.amin(dim=(1, 2))) > 0.1]
    plain = finish(maps, size, Protocol())
    changed = finish(factor * maps + shift, size, Protocol())
    torch.testing.assert_close(changed.maps, plain.maps, rtol=0, atol=1e-9)


@PROPERTY
@given(maps=_maps(0.0, 1.0, width=64), factor=st.floats(1e-6, 1e6))
def test_maximum_normalisation_does_not_feel_the_scale_of_the_raw_map(maps, factor):
    protocol = Protocol(normalisation="max")
    maps = maps.clamp(min=1e-3)
    torch.testing.assert_close(normalise(factor * maps, protocol)[0], normalise(maps, protocol)[0])


# ---- constant and invalid maps


@pytest.mark.parametrize("small", [1, 2, 5, 7, 10, 14])
@pytest.mark.parametrize("large", [(224, 224), (128, 128), (33, 47)])
@pytest.mark.parametrize("value", [0.3, -0.3, 0.1, 1 / 3, 1e-30, 7e29, -123456.789])
def test_constant_maps_are_flagged_also_after_upsampling_has_rounded_them(value, small, large):
    finished = finish(torch.full((2, small, small), value), large, Protocol())
    assert finished.constant.tolist() == [True, True]
    assert not finished.invalid.any()
    assert not finished.maps.any()


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_only_maps_that_a_normalisation_can_do_nothing_with_are_flagged_constant(normalisation):
    maps = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 0.5), torch.linspace(0, 1, 16).view(4, 4)])
    flagged = finish(maps, (4, 4), Protocol(normalisation=normalisation)).constant.tolist()
    # "max" maps a constant to ones and "none" leaves it alone; nothing but zeros stops the first, and nothing the second.
    assert flagged == {"minmax": [True, True, False], "max": [True, False, False], "none": [False] * 3}.get(
        normalisation, [True, True, False]
    )


@pytest.mark.parametrize("scale", [1e-12, 1e-20, 1e-30, 1e-37, 1e30])
def test_maps_with_real_variation_are_not_constant_however_small_their_values(scale):
    raw = _random_maps(3, 7, 7) * scale
    finished = finish(raw, (56, 56), Protocol())
    assert not finished.constant.any()
    torch.testing.assert_close(finished.maps, finish(raw / scale, (56, 56), Protocol()).maps, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("variation", "constant"), [(1e-4, False), (1e-5, False), (1e-7, True)])
def test_a_map_is_constant_where_it_varies_no_more_than_rounding(variation, constant):
    raw = 1 + variation * torch.linspace(0, 1, 49, dtype=torch.float64).view(1, 7, 7)
    assert finish(raw, (7, 7), Protocol()).constant.tolist() == [constant]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("normalise_at", ["image", "layer"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_maps_with_nan_or_inf_are_flagged_invalid_and_only_those(normalisation, normalise_at, bad):
    raw = _random_maps(4, 3, 3)
    raw[1, 2, 0] = bad
    raw[3] = 0.25
    protocol = Protocol(normalisation=normalisation, normalise_at=normalise_at)
    finished = finish(raw, (9, 9), protocol)
    assert finished.invalid.tolist() == [False, True, False, False]
    assert not finished.constant[1], "an invalid map is not a constant one"
    assert not finished.maps[1].any()
    clean = finish(raw[[0, 2, 3]], (9, 9), protocol)
    assert torch.equal(finished.maps[[0, 2, 3]], clean.maps), "a bad map changed its neighbours"


def test_finishing_leaves_the_raw_maps_alone():
    raw = _random_maps(2, 4, 4) - 0.5
    raw[1, 0, 0] = math.nan
    before = raw.clone()
    finish(raw, (4, 4), Protocol(absolute=True, normalisation="none"))
    torch.testing.assert_close(raw, before, rtol=0, atol=0, equal_nan=True)


# ---- upsampling


def test_upsampling_puts_centres_at_half_pixels_as_worked_by_hand():
    # 4 cells over 2: centres at -1/4, 1/4, 3/4 and 5/4, the outer ones held at the border.
    assert upsample(_map([0.0, 1.0]), (1, 4)).tolist() == [[[0.0, 0.25, 0.75, 1.0]]]
    # 3 over 2: centres at 1/6 - ... = -1/6, 1/2, 7/6.
    torch.testing.assert_close(upsample(_map([0.0], [6.0]), (3, 1)), _map([0.0], [3.0], [6.0]))


def test_upsampling_to_the_same_size_changes_no_bit():
    maps = _random_maps(2, 6, 5)
    assert torch.equal(upsample(maps, (6, 5)), maps)


@pytest.mark.parametrize("small", [(7, 7), (4, 9), (1, 1), (13, 5)])
@pytest.mark.parametrize("large", [(224, 224), (31, 50), (8, 8)])
def test_upsampling_is_that_of_opencv(small, large):
    maps = _random_maps(3, *small)
    expected = [cv2.resize(one.numpy(), large[::-1], interpolation=cv2.INTER_LINEAR) for one in maps]
    np.testing.assert_allclose(upsample(maps, large).numpy(), np.stack(expected), rtol=0, atol=1e-5)


def _slow_upsample(one: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation, cell by cell."""
    result = np.empty(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y = min(max((row + 0.5) * one.shape[0] / size[0] - 0.5, 0), one.shape[0] - 1)
            x = min(max((column + 0.5) * one.shape[1] / size[1] - 0.5, 0), one.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, one.shape[0] - 1), min(left + 1, one.shape[1] - 1)
            upper = one[top, left] * (1 - x + left) + one[top, right] * (x - left)
            lower = one[bottom, left] * (1 - x + left) + one[bottom, right] * (x - left)
            result[row, column] = upper * (1 - y + top) + lower * (y - top)
    return result


def _slow_finish(one: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Min-max after upsampling, value by value."""
    large = _slow_upsample(one, size)
    low, high = min(large.ravel()), max(large.ravel())
    return np.array([[(value - low) / (high - low) for value in row] for row in large])


def test_the_default_finish_is_the_slow_loop_over_cells():
    raw = _random_maps(2, 4, 3).double() * 5 - 2
    found = finish(raw, (11, 10), Protocol()).maps
    for one, slow in zip(found.numpy(), raw.numpy(), strict=True):
        np.testing.assert_allclose(one, _slow_finish(slow, (11, 10)), rtol=0, atol=1e-12)


# ---- masks


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"masking": "soft"}, [0.0, 0.2, 0.5, 0.6, 0.7, 1.0]),
        ({"masking": "top", "keep_percent": 50}, [0.0, 0.0, 0.0, 0.6, 0.7, 1.0]),
        ({"masking": "top_binary", "keep_percent": 50}, [0, 0, 0, 1, 1, 1]),
        ({"masking": "top_binary", "keep_percent": 20}, [0, 0, 0, 0, 0, 1]),  # round(1.2) = 1 pixel
        ({"masking": "top_binary", "keep_percent": 0}, [0, 0, 0, 0, 0, 0]),
        ({"masking": "top_binary", "keep_percent": 100}, [1, 1, 1, 1, 1, 1]),
        ({"masking": "threshold", "threshold": 0.5}, [0, 0, 1, 1, 1, 1]),  # at least the threshold, not above it
        ({"masking": "otsu"}, [0, 0, 1, 1, 1, 1]),
        ({"masking": "soft", "inverse": True}, [1.0, 0.8, 0.5, 0.4, 0.3, 0.0]),
        ({"masking": "threshold", "threshold": 0.5, "inverse": True}, [1, 1, 0, 0, 0, 0]),
    ],
)
def test_each_masking_of_six_pixels_is_as_worked_by_hand(choices, expected):
    found = mask(_map([0.0, 0.2, 0.5], [0.6, 0.7, 1.0]), Protocol(**choices))
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float32))


def test_of_equal_pixels_top_keeps_the_upper_left_ones():
    found = mask(torch.full((2, 2, 3), 0.4), Protocol(masking="top_binary", keep_percent=50))
    assert found.tolist() == [[[1, 1, 1], [0, 0, 0]]] * 2
    # Large enough for sorting algorithms that keep the order of short rows alone.
    many = (torch.rand(2, 224, 224) * 4).round()
    kept = mask(many / 4, Protocol(masking="top_binary", keep_percent=30)).flatten(1)
    for levels, row in zip(many.flatten(1), kept, strict=True):
        at_edge = row[levels == levels[row == 1].min()]
        assert 0 < at_edge.sum() < len(at_edge)
        assert (at_edge.diff() <= 0).all(), "of the pixels at the edge a later one was kept before an earlier one"


@pytest.mark.parametrize("masking", MASKINGS)
def test_a_mask_does_not_depend_on_the_other_maps_of_the_batch(masking):
    maps = _random_maps(5, 6, 7) ** torch.arange(1, 6)[:, None, None]
    together = mask(maps, Protocol(masking=masking))
    assert torch.equal(together, torch.cat([mask(one[None], Protocol(masking=masking)) for one in maps]))


@PROPERTY
@given(maps=unit_maps, percent=st.floats(0, 100))
def test_top_keeps_exactly_the_rounded_share_of_pixels_and_those_are_the_largest(maps, percent):
    count = round(maps[0].numel() * percent / 100)
    kept = mask(maps, Protocol(masking="top_binary", keep_percent=percent)).flatten(1)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    assert (kept.sum(dim=1) == count).all()
    flat = maps.flatten(1)
    if 0 < count < flat.shape[1]:
        smallest_kept = flat.masked_fill(kept == 0, 2).amin(dim=1)
        largest_dropped = flat.masked_fill(kept == 1, -1).amax(dim=1)
        assert (smallest_kept >= largest_dropped).all()
    soft = mask(maps, Protocol(masking="top", keep_percent=percent))
    assert torch.equal(soft.flatten(1), flat * kept)


@pytest.mark.parametrize("masking", MASKINGS)
@PROPERTY
@given(maps=unit_maps, percent=st.floats(0, 100), threshold=st.floats(0, 1))
def test_masks_lie_in_the_unit_interval_and_the_inverse_of_the_inverse_is_the_mask(masking, maps, percent, threshold):
    protocol = Protocol(masking=masking, keep_percent=percent, threshold=threshold)
    plain = mask(maps, protocol)
    inverse = mask(maps, dataclasses.replace(protocol, inverse=True))
    assert ((plain >= 0) & (plain <= 1)).all()
    assert ((inverse >= 0) & (inverse <= 1)).all()
    torch.testing.assert_close(1 - inverse, plain, rtol=0, atol=1e-7)
    if masking not in ("soft", "top"):
        assert torch.equal(1 - inverse, plain)


# ---- Otsu


def _slow_otsu(levels: list[int]) -> int:
    """The level t whose split into `<= t` and `> t` has the largest variance between the classes."""
    best, where = 0.0, 0
    for threshold in range(255):
        low = [level for level in levels if level <= threshold]
        high = [level for level in levels if level > threshold]
        if low and high:
            difference = sum(low) / len(low) - sum(high) / len(high)
            spread = len(low) * len(high) * difference**2
            if spread > best * (1 + 1e-12):
                best, where = spread, threshold
    return where


@pytest.mark.parametrize("seed", range(4))
def test_otsu_separates_pixels_as_the_slow_loop_over_all_thresholds_does(seed):
    maps = _random_maps(3, 6, 5, seed=seed) ** (1 + seed)
    found = mask(maps, Protocol(masking="otsu"))
    for one, kept in zip(maps, found, strict=True):
        levels = (one * 255).round().int().flatten().tolist()
        threshold = _slow_otsu(levels)
        assert kept.flatten().tolist() == [float(level > threshold) for level in levels]


@pytest.mark.parametrize("power", [0.3, 1.0, 2.0, 6.0])
@pytest.mark.parametrize("size", [(7, 7), (32, 45), (128, 128)])
def test_otsu_separates_pixels_as_opencv_does(size, power):
    maps = finish(_random_maps(10, *size, seed=round(10 * power)) ** power, size, Protocol()).maps
    found = mask(maps, Protocol(masking="otsu")).numpy()
    for one, kept in zip(maps, found, strict=True):
        levels = (one * 255).round().to(torch.uint8).numpy()
        _, expected = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        np.testing.assert_array_equal(kept, expected)


def test_otsu_finds_the_gap_between_two_values():
    low, high = 51 / 255, 204 / 255
    threshold = float(_otsu_threshold(_map([low, low, low, high])))
    assert low < threshold < high
    assert mask(_map([low, low, low, high]), Protocol(masking="otsu")).tolist() == [[[0, 0, 0, 1]]]


def test_otsu_keeps_nothing_of_a_map_of_zeros():
    # This is what becomes of a constant map.
    assert not mask(torch.zeros(1, 4, 4), Protocol(masking="otsu")).any()


# ---- fills


def _black(channels: int = 3) -> Protocol:
    return Protocol(fill="black", mean=IMAGENET_MEAN[:channels], std=IMAGENET_STD[:channels])


def test_zero_in_the_space_of_the_model_is_zero():
    assert baseline(torch.rand(2, 3, 4, 4), Protocol()).unique().tolist() == [0]


@pytest.mark.parametrize("choices", [{"fill": "black"}, {"fill": "black", "space": "pixels"}, {"space": "pixels"}])
def test_black_is_minus_mean_by_std_of_each_channel(choices):
    protocol = Protocol(mean=(0.5, 0.2, 0.9), std=(0.5, 0.1, 0.3), **choices)
    black = baseline(torch.rand(2, 3, 4, 4), protocol)
    torch.testing.assert_close(black.flatten(), torch.tensor([-1.0, -2.0, -3.0]))


@pytest.mark.parametrize("space", ["model", "pixels"])
def test_mean_is_the_mean_colour_of_each_image(space):
    images = torch.tensor([[[[1.0, 3.0]], [[0.0, -4.0]]], [[[5.0, 5.0]], [[7.0, 9.0]]]])
    assert baseline(images, Protocol(fill="mean", space=space)).flatten(1).tolist() == [[2.0, -2.0], [5.0, 8.0]]


@pytest.mark.parametrize("size", [(20, 20), (40, 24), (15, 60), (2, 2)])
def test_blur_is_the_gaussian_of_scipy_with_a_tenth_of_the_shorter_side(size):
    images = _random_maps(2, 3, *size).double()
    sigma = min(size) / 10
    radius = max(1, round(2.5 * sigma))
    blurred = baseline(images, Protocol(fill="blur"))
    # SciPy's "mirror" does not repeat the border pixel: what torch calls "reflect".
    expected = gaussian_filter(images.numpy(), sigma, mode="mirror", radius=radius, axes=(2, 3))
    np.testing.assert_allclose(blurred.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fill", ["mean", "blur"])
def test_fills_that_follow_the_image_are_the_same_in_both_spaces(fill):
    # Both commute with the normalisation, which is affine in each channel.
    pixels = _random_maps(2, 3, 16, 16).double()
    mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    in_pixels = (baseline(pixels, Protocol(fill=fill)) - mean) / std
    in_model = baseline((pixels - mean) / std, Protocol(fill=fill))
    torch.testing.assert_close(in_model, in_pixels, rtol=0, atol=1e-6)


@pytest.mark.parametrize("choices", [{"fill": "black"}, {"space": "pixels"}])
@pytest.mark.parametrize("channels", [1, 3])
def test_masking_pixels_and_then_normalising_is_masking_the_normalised_image_with_black(channels, choices):
    pixels, masks = _random_maps(2, channels, 9, 8), _random_maps(2, 9, 8, seed=1)
    numbers = (IMAGENET_MEAN[:channels], IMAGENET_STD[:channels])
    mean, std = (torch.tensor(each)[:, None, None] for each in numbers)
    in_pixels = (pixels * masks[:, None] - mean) / std
    images = (pixels - mean) / std
    protocol = Protocol(mean=numbers[0], std=numbers[1], **choices)
    torch.testing.assert_close(occlude(images, masks, baseline(images, protocol)), in_pixels, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fill", FILLS)
@PROPERTY
@given(image=hnp.arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-8, 8, width=32)))
def test_a_mask_of_ones_returns_the_image_and_one_of_zeros_the_fill_to_the_last_bit(fill, image):
    images = torch.from_numpy(image)
    protocol = _black() if fill == "black" else Protocol(fill=fill)
    replacement = baseline(images, protocol)
    assert torch.equal(occlude(images, torch.ones(2, 4, 5), replacement), images)
    assert torch.equal(occlude(images, torch.zeros(2, 4, 5), replacement), replacement.expand_as(images))


@pytest.mark.parametrize("fill", FILLS)
def test_occluding_is_the_slow_loop_over_pixels(fill):
    images, masks = _random_maps(2, 3, 4, 5).double() * 4 - 2, _random_maps(2, 4, 5, seed=1).double()
    replacement = baseline(images, _black() if fill == "black" else Protocol(fill=fill))
    found = occlude(images, masks, replacement)
    full = replacement.expand_as(images)
    for index in np.ndindex(2, 3, 4, 5):
        m = float(masks[index[0], index[2], index[3]])
        assert float(found[index]) == pytest.approx(float(images[index]) * m + float(full[index]) * (1 - m), abs=1e-12)


def test_half_a_mask_is_half_way_between_image_and_fill_as_worked_by_hand():
    image = torch.tensor([[[[4.0]], [[-2.0]]]])
    found = occlude(image, _map([0.25]), torch.tensor([[[[8.0]], [[2.0]]]]))
    assert found.flatten().tolist() == [7.0, 1.0]


# ---- the protocol


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"normalisation": "minmx"},
            "normalisation='minmx' is not a choice of a protocol; did you mean 'minmax'? known: minmax, max, percentile, none",
        ),
        ({"gradient": "x"}, "gradient='x' is not a choice of a protocol; known: logit, confidence"),
        ({"normalise_at": "x"}, "normalise_at='x' is not a choice of a protocol; known: image, layer"),
        ({"masking": "x"}, "masking='x' is not a choice of a protocol; known: soft, top, top_binary, threshold, otsu"),
        (
            {"fill": 0},
            "fill=0 is not a choice of a protocol; known: zero, black, mean, blur, blur-by-mask, border, delaunay, linear, "
            "navier-stokes, nearest, telea",
        ),
        ({"space": "x"}, "space='x' is not a choice of a protocol; known: model, pixels"),
        ({"images": "x"}, "images='x' is not a choice of a protocol; known: all, correct"),
        ({"constant_map": "x"}, "constant_map='x' is not a choice of a protocol; known: zeros, leave_out, error"),
        ({"invalid": "x"}, "invalid='x' is not a choice of a protocol; known: status, error"),
        ({"denominator": "y"}, "denominator='y' is not a choice of a protocol; known: confidence, none"),
        ({"drops": "x"}, "drops='x' is not a choice of a protocol; known: all, dropping"),
        ({"ties": "x"}, "ties='x' is not a choice of a protocol; known: no_increase, increase"),
        ({"epsilon": -1}, "epsilon lies in [0, 1], got -1"),
        ({"map_epsilon": 2}, "map_epsilon lies in [0, 1], got 2"),
        (
            {"confidence": "softmx"},
            "confidence='softmx' is not a choice of a protocol; did you mean 'softmax'? known: softmax, sigmoid, identity",
        ),
        (
            {"target": "labels"},
            "target='labels' is not a choice of a protocol; did you mean 'label'? known: predicted, label, each",
        ),
        ({"keep_percent": 101}, "keep_percent lies in [0, 100], got 101"),
        ({"keep_percent": math.nan}, "keep_percent lies in [0, 100], got nan"),
        ({"threshold": -0.1}, "threshold lies in [0, 1], got -0.1"),
        ({"percentiles": (5, 5)}, "percentiles are two rising numbers in [0, 100], got (5, 5)"),
        ({"percentiles": (-1, 5)}, "percentiles are two rising numbers in [0, 100], got (-1, 5)"),
        ({"percentiles": (5,)}, "percentiles are two rising numbers in [0, 100], got (5,)"),
        ({"mean": (0.5, 0.5, 0.5)}, "give the input's mean and std together"),
        ({"std": (0.5, 0.5, 0.5)}, "give the input's mean and std together"),
    ],
)
def test_a_wrong_choice_is_refused_word_for_word(choices, message):
    with pytest.raises(ProtocolError) as error:
        Protocol(**choices)
    assert str(error.value) == message


def test_black_without_the_numbers_of_the_input_is_refused_word_for_word():
    with pytest.raises(ProtocolError) as error:
        baseline(torch.rand(1, 3, 2, 2), Protocol(space="pixels"))
    assert str(error.value) == (
        "fill='zero' in space='pixels' means black pixels, which needs the mean and std that the images were normalised with: "
        "give Protocol(mean=(...), std=(...))"
    )
    with pytest.raises(ProtocolError) as error:
        baseline(torch.rand(1, 1, 2, 2), _black())
    assert str(error.value) == "mean and std need one number for each of the images' 1 channels"


def test_a_protocol_is_found_by_name_and_an_object_is_itself():
    assert resolve_protocol("default") == Protocol()
    own = Protocol(masking="top")
    assert resolve_protocol(own) is own
    with pytest.raises(ProtocolError) as error:
        resolve_protocol("defualt")
    known = ", ".join(PROTOCOLS)
    assert str(error.value) == f"no protocol 'defualt'; did you mean 'default'? known: {known}; or give a Protocol(...)"


def test_the_defaults_are_those_of_the_documentation():
    assert Protocol().to_dict() == {
        "confidence": "softmax",
        "target": "predicted",
        "gradient": "logit",
        "against": None,
        "against_weight": 0.6,
        "normalisation": "minmax",
        "normalise_at": "image",
        "absolute": False,
        "percentiles": [1.0, 99.0],
        "masking": "soft",
        "keep_percent": 50.0,
        "threshold": 0.5,
        "inverse": False,
        "fill": "zero",
        "space": "model",
        "mean": None,
        "std": None,
        "images": "all",
        "minimum_confidence": 0.0,
        "constant_map": "zeros",
        "invalid": "status",
        "denominator": "confidence",
        "drops": "all",
        "ties": "no_increase",
        "epsilon": 0.0,
        "map_epsilon": 0.0,
    }


def _half(logits: Tensor, *_: Tensor | None) -> Tensor:
    return logits / 2


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (_half, f"{__name__}:_half"),
        (functools.partial(_half), "functools:partial"),
        (torch.nn.Softmax(dim=1), "torch.nn.modules.activation:Softmax"),
    ],
)
def test_a_protocol_as_a_dictionary_is_json_and_names_functions(function, name):
    protocol = Protocol(confidence=function, target=_half, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    plain = protocol.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["confidence"] == name
    assert plain["mean"] == list(IMAGENET_MEAN)
    assert set(plain) == {field.name for field in dataclasses.fields(Protocol)}


def test_a_protocol_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Protocol().masking = "top"


def test_a_finished_batch_names_its_parts():
    assert Finished._fields == ("maps", "constant", "invalid")
