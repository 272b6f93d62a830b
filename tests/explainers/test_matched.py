"""Matched controls of maps: the same values at other places, against slow loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.stats import kstest
from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.explainers.matched import blurred, choose_donors, dimmed, distances, shifted, varies, with_values_of
from xaieval.masking import mask

PROPERTY = settings(deadline=None, max_examples=30)
SHAPES = st.sampled_from([(1, 5), (4, 6), (7, 7), (2, 3, 4)])


def _maps(seed: int, shape: tuple[int, ...], count: int = 3) -> Tensor:
    """Maps in [0, 1] with many equal values."""
    return torch.randint(0, 6, (count, *shape), generator=torch.Generator().manual_seed(seed)) / 5


def _sorted(maps: Tensor) -> Tensor:
    return maps.flatten(1).sort(dim=1).values


# ---- the values of one map at the places of another


@PROPERTY
@given(st.integers(0, 999), SHAPES)
def test_values_are_given_to_places_in_order_as_by_a_loop(seed, shape):
    maps, places = _maps(seed, shape), _maps(seed + 1, shape)
    actual = with_values_of(maps, places)
    for number in range(len(maps)):
        values = sorted(maps[number].flatten().tolist(), reverse=True)
        flat = places[number].flatten().tolist()
        order = sorted(range(len(flat)), key=lambda pixel: (-flat[pixel], pixel))
        expected = [0.0] * len(flat)
        for value, pixel in zip(values, order, strict=True):
            expected[pixel] = value
        assert actual[number].flatten().tolist() == pytest.approx(expected)
    assert torch.equal(_sorted(actual), _sorted(maps))


def test_a_map_at_its_own_places_stays_as_it_is():
    maps = torch.rand(2, 5, 6)
    assert torch.equal(with_values_of(maps, 3 * maps - 7), maps)


def test_rounding_errors_of_the_places_decide_nothing():
    maps, places = torch.rand(2, 8, 8), _maps(0, (8, 8), 2)
    noise = 1e-6 * torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(with_values_of(maps, places + noise), with_values_of(maps, places))


def test_constant_places_order_pixels_row_by_row():
    assert with_values_of(torch.tensor([[[0.0, 1.0], [0.5, 0.2]]]), torch.full((1, 2, 2), 3.0)).tolist() == [
        [[1.0, 0.5], [pytest.approx(0.2), 0.0]]
    ]


@pytest.mark.parametrize("masking", ["soft", "top", "top_binary", "threshold", "otsu"])
@pytest.mark.parametrize("inverse", [False, True])
def test_masks_keep_as_much_with_every_masking(masking, inverse):
    protocol = Protocol(masking=masking, inverse=inverse, keep_percent=30)
    maps, places = torch.rand(4, 9, 7), torch.rand(4, 9, 7)
    own = mask(maps, protocol)
    for control in (with_values_of(maps, places), shifted(maps, torch.tensor([[1, 2]] * 4))):
        assert torch.equal(_sorted(mask(control, protocol)), _sorted(own))


# ---- shifted


@PROPERTY
@given(st.integers(0, 999), SHAPES)
def test_maps_are_rolled_as_by_torch_each_by_its_own_offset(seed, shape):
    maps = _maps(seed, shape)
    offsets = torch.randint(-9, 9, (len(maps), len(shape)), generator=torch.Generator().manual_seed(seed))
    axes = tuple(range(len(shape)))
    expected = [torch.roll(one, tuple(by.tolist()), axes) for one, by in zip(maps, offsets, strict=True)]
    assert torch.equal(shifted(maps, offsets), torch.stack(expected))


@pytest.mark.parametrize("sides", [(224, 224), (8, 8), (5, 9), (2, 2), (3, 3, 3), (1, 12), (16, 1, 7)])
def test_offsets_are_a_quarter_of_a_side_away_along_an_axis_and_never_nothing(sides):
    numbers = torch.rand(2000, len(sides), generator=torch.Generator().manual_seed(0))
    offsets = distances(numbers, sides)
    shares = offsets.abs() / torch.tensor(sides)
    assert (offsets.abs() <= (torch.tensor(sides) + 1) // 2).all()
    movable = [axis for axis, side in enumerate(sides) if side > 1]
    assert (offsets[:, [axis for axis in range(len(sides)) if axis not in movable]] == 0).all()
    assert (shares[:, movable].amax(dim=1) >= 0.25).all()


def test_offsets_are_uniform_outside_of_the_square_that_is_too_near():
    numbers = torch.rand(4000, 2, generator=torch.Generator().manual_seed(1))
    shares = distances(numbers, (100_000, 100_000)).double() / 100_000
    farthest = shares.abs().amax(dim=1)
    # The area inside the largest coordinate, of the square without its middle quarter.
    assert kstest(((4 * farthest**2) - 0.25) / 0.75, "uniform").pvalue > 0.01
    assert (shares > 0).double().mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    near = (shares.abs() < 0.25).double().mean(dim=0)
    assert near.tolist() == pytest.approx([1 / 3, 1 / 3], abs=0.03), "one axis may stay near"


def test_the_number_in_the_middle_moves_too():
    assert distances(torch.tensor([[0.5, 0.5 + 1e-6]]), (100, 100)).abs().max() >= 25


# ---- swapped, dimmed, blurred


def test_donors_are_drawn_evenly_among_those_that_are_allowed():
    numbers = torch.rand(6000, 4, generator=torch.Generator().manual_seed(0))
    allowed = torch.tensor([True, False, True, True]).expand(6000, 4)
    chosen, exists = choose_donors(numbers, allowed)
    assert exists.all()
    shares = torch.bincount(chosen, minlength=4) / 6000
    assert shares.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=0.02)
    assert not choose_donors(numbers[:1], torch.zeros(1, 4, dtype=torch.bool))[1].any()


def test_dimmed_is_the_mean_everywhere():
    masks = torch.rand(2, 3, 4)
    assert dimmed(masks).shape == masks.shape
    for one, own in zip(dimmed(masks), masks, strict=True):
        torch.testing.assert_close(one, own.mean().expand(3, 4))


def test_blurred_is_the_low_pass_of_the_brightness_as_scipy_computes_it():
    images = torch.rand(2, 3, 32, 48)
    expected = images.mean(dim=1).numpy()
    for axis in (1, 2):
        expected = gaussian_filter1d(expected, 2.0, axis=axis, mode="mirror", radius=5)
    np.testing.assert_allclose(blurred(images).numpy(), expected, atol=1e-5)


def test_a_map_of_one_value_has_no_control():
    assert varies(torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.1]]])).tolist() == [False, False, True]
