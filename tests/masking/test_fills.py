"""Fills that see image and mask: by hand, by slow loops, against OpenCV, and in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

import functools
from typing import Any, get_args

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.interpolate import griddata
from torch import Tensor, nn

import xaieval
from tests.mutants import mutation_tests
from xaieval.config.protocol import Fill, Protocol
from xaieval.errors import ProtocolError
from xaieval.masking import FILLS, baseline, filling, linear_imputation, occlude

PROPERTY = settings(deadline=None, max_examples=25)
OF_MASKS = FILLS[4:]
FLAT = ("delaunay", "navier-stokes", "telea")  # not of volumes
NAN = torch.nan


def pictures(count: int = 3, side: int = 14, seed: int = 0) -> Tensor:
    """Smooth pictures, normalised in some way."""
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.interpolate(torch.randn(count, 3, 5, 5, generator=generator), (side, side), mode="bicubic")


def holes(count: int = 3, side: int = 14, share: float = 0.4, seed: int = 1) -> Tensor:
    """Masks with a hole in the middle and single missing pixels; the corners are kept."""
    kept = (torch.rand(count, side, side, generator=torch.Generator().manual_seed(seed)) > share).float()
    kept[:, 4:9, 5:10] = 0
    kept[:, ::13, ::13] = 1
    return kept


def filled(images: Tensor, masks: Tensor, fill: Any, **choices: Any) -> Tensor:
    return filling(images, Protocol(fill=fill, **choices))(masks)


def line(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[None, None, None]


# ---- checks that take the modules under test


def check_border_by_hand(module: Any) -> None:
    made = module.border(line(1, 9, 3, 9, 9, 8, 2), line(1, 0, 1, 0, 0, 1, 1)[0] == 0)
    assert made.flatten().tolist() == [1, 2, 3, 5.5, 5.5, 8, 2]


def check_a_hole_takes_each_pixel_around_it_once(module: Any) -> None:
    image = torch.tensor([[[[1.0, 2, 3], [4, 50, 5], [6, 7, 70]]]])
    made = module.border(image, torch.tensor([[[0, 0, 0], [0, 1, 0], [0, 0, 1]]]) == 1)
    mean = (1 + 2 + 3 + 4 + 5 + 6 + 7) / 7  # the two missing pixels are one hole, as they touch at their corners
    torch.testing.assert_close(made[0, 0, 1:, 1:], torch.tensor([[mean, 5], [7, mean]]))


def check_nearest_by_hand(module: Any) -> None:
    made = module.nearest(line(1, 7, 7, 7, 7, 4), line(1, 0, 0, 0, 0, 1)[0] == 0)
    assert made.flatten().tolist() == [1, 1, 1, 4, 4, 4]


def check_half_kept_is_kept_by_those_that_inpaint(module: Any) -> None:
    made = module.filling(line(1, 9, 5), Protocol(fill="nearest"))(line(1, 0.5, 0.49)[0])
    assert made.flatten().tolist() == [1, 9, 9]


def check_blur_by_mask_is_a_weighted_mean(module: Any) -> None:
    image, mask = pictures(1, 10)[:, :1].double(), torch.rand(1, 10, 10, generator=torch.Generator().manual_seed(3)).double()
    mask[0, :, :3] = 0
    steps = np.arange(-2, 3)  # of a sigma of 1 pixel, cut at 2.5 and rounded
    kernel = np.exp(-0.5 * steps**2.0)
    weights = np.outer(kernel, kernel)
    values, shares = (np.pad(one, 2, mode="reflect") for one in (image[0, 0].numpy(), mask[0].numpy()))
    made = module.blur_of_kept(image, mask)[0, 0].numpy()
    for y, x in ((0, 3), (5, 5), (9, 1)):
        around = weights * shares[y : y + 5, x : x + 5]
        assert made[y, x] == pytest.approx((around * values[y : y + 5, x : x + 5]).sum() / around.sum(), abs=1e-6)
    kept = (image[0, 0] * mask[0]).sum() / mask[0].sum()
    assert made[5, 0] == pytest.approx(float(kept), abs=1e-6)  # no kept pixel is within reach


def check_functions_of_two_arguments_get_the_masks(module: Any) -> None:
    images, masks = pictures(), holes()
    by_masks = module.filling(images, Protocol(fill=_mean_of_kept))(masks)
    assert torch.equal(by_masks, _mean_of_kept(images, masks))
    for fill in (torch.zeros_like, functools.partial(_mean_of_kept, masks=masks), _with_a_default, nn.Identity()):
        assert torch.equal(module.filling(images, Protocol(fill=fill))(masks), fill(images))


def _mean_of_kept(images: Tensor, masks: Tensor) -> Tensor:
    return (images * masks[:, None]).mean(dim=(2, 3), keepdim=True)


def _with_a_default(images: Tensor, scale: float = 2.0) -> Tensor:
    return scale * images


MUTANTS = {
    "missing is kept": ("masks < KEPT", "masks >= KEPT"),
    "half kept is missing": ("masks < KEPT", "masks <= KEPT"),
    "a function never gets masks": (".empty for one in arguments) == 2", ".empty for one in arguments) == 3"),
    "defaults counted": ("one.kind in positional and one.default is one.empty", "one.kind in positional"),
    "pixels counted once for each neighbour": ("touching = np.unique(", "touching = (lambda pairs, axis: pairs)("),
    "holes touch only beside": ("np.ones((3,) * holes.ndim)", "None"),
    "nearest missing one": ("distance_transform_edt(holes,", "distance_transform_edt(~holes,"),
    "blur of all pixels": ("gaussian_blur(images * weights, SHARE)", "gaussian_blur(images, SHARE)"),
    "not divided by the mask": ("near / weight, far)", "near, far)"),
}

test_the_fills_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.masking.blur", "xaieval.masking.inpainting", "xaieval.masking.fills"], MUTANTS, ValueError, TypeError
)


# ---- what holds for all of them


def test_the_names_are_those_of_the_protocol():
    assert get_args(Fill) == FILLS


@pytest.mark.parametrize("fill", OF_MASKS)
def test_what_is_removed_does_not_shine_through_and_what_is_kept_stays(fill):
    images, masks = pictures(), holes()
    other = torch.where(masks[:, None] > 0, images, 2 * torch.randn(3, 3, 14, 14))
    made, again = (filled(some, masks, fill) for some in (images, other))
    missing = (masks == 0)[:, None].expand_as(images)
    torch.testing.assert_close(made[missing], again[missing], rtol=1e-5, atol=2e-5)
    assert torch.equal(occlude(images, masks, made)[~missing], images[~missing])
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    assert ((made >= low - 1e-4) & (made <= high + 1e-4)).all()


@pytest.mark.parametrize("fill", OF_MASKS)
def test_fills_are_the_same_for_raw_pixels_and_for_normalised_input(fill):
    images, masks = pictures(), holes()
    scale, shift = torch.tensor([3.0, 0.01, 250])[:, None, None], torch.tensor([-7.0, 0.5, 100])[:, None, None]
    made = (filled(images * scale + shift, masks, fill) - shift) / scale
    torch.testing.assert_close(made, filled(images, masks, fill), rtol=0, atol=3e-4)


@pytest.mark.parametrize("fill", OF_MASKS)
def test_an_image_is_filled_the_same_in_any_batch_and_one_without_kept_pixels_has_its_mean_colour(fill):
    images, masks = pictures(), holes()
    masks[1] = 0
    together = filled(images, masks, fill)
    alone = torch.cat(
        [filled(image[None], mask[None], fill).expand(1, 3, 14, 14) for image, mask in zip(images, masks, strict=True)]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 if fill == "linear" else 0)
    torch.testing.assert_close(together[1], images[1].mean(dim=(1, 2), keepdim=True).expand(3, 14, 14))
    assert torch.equal(filled(images, torch.zeros_like(masks), fill)[1], together[1])


@PROPERTY
@given(st.sampled_from(["border", "nearest"]), st.integers(1, 7), st.integers(1, 7), st.floats(0, 1), st.integers(0, 99))
def test_each_missing_pixel_takes_what_a_slow_search_finds(fill, height, width, share, seed):
    generator = torch.Generator().manual_seed(seed)
    image, kept = torch.rand(1, 2, height, width, generator=generator), torch.rand(height, width, generator=generator) > share
    kept[0, 0] = True
    made = filled(image, kept[None].float(), fill)[0].double().numpy()
    known = np.argwhere(kept.numpy())
    for y, x in np.argwhere(~kept.numpy()):
        if fill == "nearest":
            away = ((known - (y, x)) ** 2).sum(axis=1)
            expected = [image[0, :, a, b].double().numpy() for a, b in known[away == away.min()]]
            assert any(np.allclose(made[:, y, x], one, atol=1e-6) for one in expected)
            continue
        hole, around, waiting = {(y, x)}, set(), [(y, x)]
        while waiting:
            a, b = waiting.pop()
            for c in range(max(a - 1, 0), min(a + 2, height)):
                for d in range(max(b - 1, 0), min(b + 2, width)):
                    if kept[c, d]:
                        around.add((c, d))
                    elif (c, d) not in hole:
                        hole.add((c, d))
                        waiting.append((c, d))
        expected = np.mean([image[0, :, a, b].double().numpy() for a, b in sorted(around)], axis=0)
        np.testing.assert_allclose(made[:, y, x], expected, atol=1e-6)


# ---- against other implementations


@pytest.mark.parametrize(("fill", "flag"), [("telea", cv2.INPAINT_TELEA), ("navier-stokes", cv2.INPAINT_NS)])
def test_inpainting_is_that_of_opencv_but_for_the_rounding_of_8_bits(fill, flag):
    pixels = ((pictures(2, 40) + 3) / 6 * 255).round().clamp(0, 255)
    masks = torch.ones(2, 40, 40)
    masks[:, 10:25, 8:30] = 0
    theirs = [
        cv2.inpaint(image.movedim(0, -1).byte().numpy(), (1 - mask).byte().numpy(), 3, flag)
        for image, mask in zip(pixels, masks, strict=True)
    ]
    away = (filled(pixels, masks, fill) - torch.from_numpy(np.stack(theirs)).movedim(-1, 1).float()).abs()
    spread = float(pixels.amax() - pixels.amin())
    assert away.max() < 0.06 * spread
    assert away[:, :, 10:25, 8:30].mean() < 0.015 * spread


def test_opencv_s_telea_of_floats_in_0_to_1_is_wrong_and_ours_is_not():
    # It drops what is behind the point of some differences: here of all.
    rough = ndimage.gaussian_filter(np.random.default_rng(0).random((64, 64)), 3).astype(np.float32)
    image = torch.from_numpy((rough - rough.min()) / (rough.max() - rough.min()))[None, None]
    mask = torch.ones(1, 64, 64)
    mask[:, 20:44, 16:50] = 0
    theirs = cv2.inpaint(image[0, 0].numpy(), (1 - mask[0]).byte().numpy(), 3, cv2.INPAINT_TELEA)
    ours = filled(image, mask, "telea")
    assert max(-theirs.min(), theirs.max() - 1) > 0.1
    assert 0 <= ours.min() <= ours.max() <= 1
    assert (ours - image).abs().mean() < 0.5 * np.abs(theirs - image[0, 0].numpy()).mean()


def test_linear_is_the_imputation_of_road_and_delaunay_that_of_scipy_with_the_corners():
    images, masks = pictures(), holes()
    assert torch.equal(filled(images, masks, "linear"), linear_imputation(images, masks == 0))
    masks[:, 0, 0] = 0
    made = filled(images, masks, "delaunay")
    for image, mask, one in zip(images.double().numpy(), masks.numpy(), made.numpy(), strict=True):
        known = mask > 0
        known[[0, 0, -1, -1], [0, -1, 0, -1]] = True
        for channel, found in zip(image, one, strict=True):
            expected = griddata(np.argwhere(known), channel[known], np.argwhere(~known), method="linear")
            np.testing.assert_allclose(found[~known], expected, atol=1e-6)


# ---- what cannot be filled


@pytest.mark.parametrize("fill", OF_MASKS)
def test_volumes_are_filled_or_refused(fill):
    volumes, masks = torch.rand(1, 2, 3, 4, 5), torch.ones(1, 3, 4, 5)
    masks[0, 1, 1:3, 2] = 0
    if fill in FLAT:
        with pytest.raises(xaieval.XaievalError, match=r"takes images"):
            filled(volumes, masks, fill)
    else:
        made = filled(volumes, masks, fill)
        assert made.shape == volumes.shape
        assert made.isfinite().all()


@pytest.mark.parametrize("fill", ["telea", "navier-stokes", "border", "linear"])
def test_nan_is_not_hidden(fill):
    images, masks = pictures(1), holes(1)
    images[0, 1, 3, 6] = NAN
    masks[0, 3, 6] = 1
    made = filled(images, masks, fill)[0, :, 4:9, 5:10]
    assert made[1].isnan().any()
    assert made[[0, 2]].isfinite().all()


@pytest.mark.parametrize("value", [5.0, -2.0])
def test_a_channel_of_one_value_stays_one(value):
    images = torch.full((1, 1, 14, 14), value)
    for fill in OF_MASKS:
        torch.testing.assert_close(filled(images, holes(1), fill).expand_as(images), images)


@pytest.mark.parametrize(
    ("fill", "came"),
    [(lambda images: images[:, :, :1, :2], r"\[3, 3, 1, 2\]"), (lambda images, masks: masks, r"\[3, 14, 14\]"), (id, "int")],
)
def test_a_function_of_the_wrong_kind_is_refused(fill, came):
    with pytest.raises(
        ProtocolError, match=rf"gave {came} for images \[3, 3, 14, 14\]; it has to give a tensor with as many axes"
    ):
        filled(pictures(), holes(), fill)


def test_what_needs_a_mask_is_no_baseline():
    with pytest.raises(ProtocolError, match=r"fill='telea' is more than a function of the images; use filling\("):
        baseline(pictures(), Protocol(fill="telea"))


def test_a_line_of_pixels_is_filled_too():
    for fill in OF_MASKS:
        made = filled(line(1, 7, 7, 4), line(1, 0, 0, 1)[0], fill).flatten()
        assert ((made >= 1) & (made <= 4)).all(), fill
    assert filled(line(1, 7, 7, 4), line(1, 0, 0, 1)[0], "delaunay").flatten().tolist() == pytest.approx([1, 2, 3, 4])


# ---- in a run


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)).eval()


def score(fill: Any, sizes: tuple[int, ...] = (3,)) -> Any:
    batches = [{"images": part, "ids": [str(float(one.sum())) for one in part]} for part in pictures().split(sizes)]
    names = ["average_drop", "drop_in_deletion", "coherency"]
    protocol = Protocol(fill=fill, masking="top_binary")
    return xaieval.score(tiny(), batches, "0", ["gradcam", "random"], names, protocol=protocol, progress=False)


def test_a_run_takes_fills_by_name_and_functions_and_does_not_depend_on_the_batch():
    rows = {}
    for fill in ("zero", "telea", _mean_of_kept):
        whole = score(fill)
        rows[fill] = whole.rows
    pd.testing.assert_frame_equal(rows["telea"], score("telea", (2, 1)).rows, rtol=1e-5, atol=1e-6)
    assert whole.manifest["run"]["protocol.fill"] == f"{__name__}:_mean_of_kept"
    assert len({float(one["masked_confidence"].sum()) for one in rows.values()}) == 3
    images, maps = pictures(), xaieval.explain(tiny(), pictures(), "0", "gradcam")["0"]
    kept = (maps.flatten(1).argsort(descending=True, stable=True).argsort() < 98).view(3, 14, 14).float()
    by_hand = tiny()(occlude(images, kept, filled(images, kept, "telea"))).double().softmax(1)
    expected = by_hand[range(3), tiny()(images).argmax(1)].detach()
    of_gradcam = rows["telea"][rows["telea"]["method"] == "gradcam"]
    np.testing.assert_allclose(of_gradcam["masked_confidence"], expected, atol=1e-6)
