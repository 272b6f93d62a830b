"""SIC and AIC: by hand, by a slow loop of the authors' formulas, and in a run.

The authors' package `saliency` is not installed here: the loop follows its source, `saliency/metrics/pic.py`.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.interpolate import griddata, interp1d
from torch import Tensor, nn

import xaieval
from tests.metrics.test_curves import asker, drawn, pictures, tiny
from tests.mutants import mutation_tests
from xaieval.config.protocol import Protocol
from xaieval.errors import MetricError
from xaieval.metrics import METRICS, aic, compressed_size, sic

SHARES = (0.02, 0.1, 0.3, 0.6)
SIDE = 24


def known_of(count: int = 4) -> dict[str, Any]:
    """Pictures from 0 to 1 in each channel."""
    generator = torch.Generator().manual_seed(5)
    smooth = nn.functional.interpolate(torch.randn(count, 3, 7, 7, generator=generator), (SIDE, SIDE), mode="bicubic")
    flat = smooth.flatten(2)
    low, high = flat.amin(dim=2)[..., None, None], flat.amax(dim=2)[..., None, None]
    images = (smooth - low) / (high - low)
    maps = torch.randperm(count * SIDE * SIDE, generator=generator).view(count, SIDE, SIDE) / (count * SIDE * SIDE)
    ask = asker(tiny(), images)
    return {"maps": maps, "images": images, "ask": ask, "protocol": Protocol(), "draw": drawn, "ask_hits": hits(tiny(), images)}


def hits(model: nn.Module, images: Tensor) -> Any:
    def ask(blocks: Any) -> Tensor:
        with torch.no_grad():
            own = model(images).argmax(dim=1)
            return torch.cat([(model(some).argmax(dim=1) == own[of]).double() for some, of in blocks])

    return ask


# ---- checks that take the module under test


def _sized(sizes: list[float], scores: list[float], **choices: Any) -> Any:
    """A function from a module to the value and the curve of an image with these sizes and scores."""
    settings = {"minimum": 0.5, "monotonic": True} | choices
    return lambda module: module.sic(**settings).per_image._curve(np.array(sizes, float), np.array(scores, float))


def check_the_area_by_hand(module: Any) -> None:
    # The image has 110 bytes and 0.9, the seed alone 10 bytes and 0.1: the points (0.2, 0.25), (0.5, 0.75) in between.
    value, curve = _sized([110, 10, 30, 60], [0.9, 0.1, 0.3, 0.7])(module)
    assert value == pytest.approx(0.2 * 0.125 + 0.3 * 0.5 + 0.5 * 0.875)
    assert curve[[0, 10, 20, 50, 75, 100]].tolist() == pytest.approx([0, 0.125, 0.25, 0.75, 0.875, 1])


def check_what_falls_or_leaves_the_range_by_hand(module: Any) -> None:
    falls = ([110, 10, 30, 60], [0.9, 0.1, 0.7, 0.3])
    assert _sized(*falls)(module)[0] == pytest.approx(0.2 * 0.375 + 0.3 * 0.75 + 0.5 * 0.875)
    assert _sized(*falls, monotonic=False)(module)[0] == pytest.approx(0.2 * 0.375 + 0.3 * 0.5 + 0.5 * 0.625)
    beyond = _sized([110, 10, 5, 210], [0.9, 0.1, 0.0, 1.2])(module)
    assert beyond[0] == pytest.approx(0.5)
    unsorted = _sized([110, 10, 60, 30], [0.9, 0.1, 0.3, 0.7])(module)  # by width 0.2 and 0.5, by height 0.75 and 0.25
    assert unsorted[0] == pytest.approx(0.2 * 0.375 + 0.3 * 0.5 + 0.5 * 0.625)


def check_images_that_are_not_suited(module: Any) -> None:
    for sizes, scores in (([110, 10, 30], [0.4, 0.1, 0.3]), ([110, 10, 30], [0.9, 0.9, 0.3]), ([10, 10, 30], [0.9, 0.1, 0.3])):
        value, curve = _sized(sizes, scores)(module)
        assert np.isnan(value)
        assert np.isnan(curve).all()
    assert np.isfinite(_sized([110, 10, 30], [0.5, 0.1, 0.3])(module)[0])


MUTANTS = {
    "points in the order of shares": ('np.argsort(widths, kind="stable")', "np.arange(len(widths))"),
    "heights not scaled": ("(scores[2:] - worst) / (best - worst)", "scores[2:]"),
    "widths not scaled": ("(sizes[2:] - empty) / (whole - empty)", "sizes[2:] / whole"),
    "not cut off": (")).clip(0, 1)\n        heights", "))\n        heights"),
    "never monotonic": ("if self.monotonic else heights", "if not self.monotonic else heights"),
    "minimum not reached": ("best >= self.minimum", "best > self.minimum"),
    "any image": ("best >= self.minimum and best > worst and whole > empty", "True"),
}

test_the_curves_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.information_curves"], MUTANTS, MetricError, RuntimeWarning
)


# ---- against the authors' formulas


def _webp(image: np.ndarray) -> int:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="webp", lossless=True, quality=100)
    return file.tell()


def _blurred(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    mask, made = mask.copy(), image.astype(float)
    mask[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    for channel in range(3):
        known = image[:, :, channel][mask].astype(float)
        made[:, :, channel][~mask] = griddata(np.argwhere(mask), known, np.argwhere(~mask), method="linear")
    return made


def by_pair(image: np.ndarray, saliency: np.ndarray, seed: np.ndarray, predict: Any, monotonic: bool) -> float:
    """The area of one image, with pixels from 0 to 255 that are not rounded before the model sees them, as ours."""
    shown = [_blurred(image, seed)]
    for share in SHARES:
        count = round(share * saliency.size)
        shown.append(_blurred(image, (saliency >= np.sort(saliency.ravel())[-count]) | seed))
    sizes = [_webp(np.round(one).astype(np.uint8)) for one in shown]
    scores, whole, best = [predict(one) for one in shown], _webp(np.round(image).astype(np.uint8)), predict(image)
    points, largest = [], 0.0
    for size, score in zip(sizes[1:], scores[1:], strict=True):
        width = np.clip((size - sizes[0]) / (whole - sizes[0]), 0, 1)
        height = np.clip((score - scores[0]) / (best - scores[0]), 0, 1)
        largest = max(largest, height)
        points.append((width, largest if monotonic else height))
    x, y = zip(*points, (0.0, 0.0), (1.0, 1.0), strict=True)
    axis = np.linspace(0, 1, 1001)
    return float(np.trapezoid(interp1d(x, y)(axis), axis))


@pytest.mark.parametrize("monotonic", [True, False])
def test_sic_is_that_of_the_authors_code(monotonic):
    known = known_of()
    values = sic(SHARES, minimum=0, monotonic=monotonic, seeded=0.03).judge(known | {"confidence": torch.ones(4)})[0]
    seeds = drawn((SIDE, SIDE), "").flatten(1).argsort(dim=1, descending=True)[:, : int(0.03 * SIDE**2)]
    compared = 0
    for number in range(4):
        pixels = (known["images"][number].double() * 255).movedim(0, -1).numpy()
        seed = torch.zeros(SIDE**2, dtype=torch.bool).scatter(0, seeds[number], True).view(SIDE, SIDE).numpy()

        def predict(image: np.ndarray, number: int = number) -> float:
            shown = torch.from_numpy(image / 255).float().movedim(-1, 0)[None]
            return float(known["ask"]([(shown, torch.tensor([number]))]))

        if predict(_blurred(pixels, seed)) >= predict(pixels):
            assert values[number].isnan()
            continue
        compared += 1
        expected = by_pair(pixels, known["maps"][number].numpy(), seed, predict, monotonic)
        assert float(values[number]) == pytest.approx(expected, abs=2e-3)  # theirs is read at 1001 points
    assert compared >= 2


def test_aic_counts_hits_and_has_no_value_where_the_image_or_the_seed_decide():
    known = known_of()
    known |= {"confidence": torch.ones(4)}
    value, curve = aic(SHARES, keep_curve=True).judge(known | {"ask_hits": lambda blocks: _hits(blocks, [1, 0, 0, 1, 1, 1])})
    assert curve.shape == (4, 101)
    assert ((value > 0) & (value < 1)).all()
    assert ((curve[:, 1:] - curve[:, :-1]) >= 0).all()
    for answers in ([0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]):
        hits_of = lambda blocks, answers=answers: _hits(blocks, answers)  # noqa: E731
        assert aic(SHARES).judge(known | {"ask_hits": hits_of})[0].isnan().all()


def _hits(blocks: Any, answers: list[float]) -> Tensor:
    return torch.cat([torch.full((len(some),), float(answer)) for (some, _), answer in zip(blocks, answers, strict=True)])


def test_the_size_is_that_of_the_picture_in_8_bits_whatever_it_is_normalised_by():
    images = known_of()["images"]
    sizes = compressed_size(images, images)
    assert sizes == [_webp((one * 255).round().byte().movedim(0, -1).numpy()) for one in images]
    scale, shift = torch.tensor([4.4, 4.5, 4.6])[:, None, None], torch.tensor([-2.1, -2, -1.8])[:, None, None]
    assert compressed_size(images * scale + shift, images * scale + shift) == sizes
    grey = images[:, :1]
    assert compressed_size(grey, grey) == [_webp((one * 255).round().byte()[0].numpy()) for one in grey]
    assert compressed_size(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))[0] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sic(()), r"fractions are increasing shares of pixels, each above 0 and below 1; got \(\)"),
        (lambda: aic((0.5, 1.0)), "above 0 and below 1"),
        (lambda: sic(seeded=1), "seeded is a share of the pixels, at least 0 and below 1; got 1"),
        (lambda: sic(baseline="noise"), "no baseline 'noise'"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(MetricError, match=message):
        make()


def test_volumes_and_other_channels_are_refused():
    for images in (torch.rand(2, 1, 3, 4, 4), torch.rand(2, 4, 5, 5)):
        known = {
            "maps": images[:, 0],
            "images": images,
            "confidence": torch.ones(2),
            "ask": None,
            "protocol": Protocol(),
            "draw": drawn,
        }
        with pytest.raises(MetricError, match=r"the information of grey or RGB images is measured, \[N, 1 or 3, H, W\]; got"):
            sic().judge(known)


# ---- in a run


def negative(images: Tensor) -> Tensor:
    """A fill of one colour, of which the model predicts another class."""
    return -20 * images.mean(dim=(2, 3), keepdim=True)


def test_they_run_by_name_and_depend_on_no_batch():
    images = torch.cat([known_of()["images"], pictures(1, side=SIDE)[0]])
    metrics = [sic(SHARES, minimum=0), aic(SHARES), aic(SHARES, negative, seeded=0, name="unseeded")]

    def score(sizes: tuple[int, ...]) -> Any:
        batches = [{"images": part, "ids": [str(float(one.sum())) for one in part]} for part in images.split(sizes)]
        return xaieval.score(tiny(), batches, "0", ["gradcam", "random"], metrics, progress=False)

    whole, parts = score((5,)), score((2, 3))
    pd.testing.assert_frame_equal(whole.rows[["sic", "aic"]], parts.rows[["sic", "aic"]], rtol=1e-5, atol=1e-6)
    assert whole.rows["sic"].notna().any()
    of_gradcam = whole.rows[whole.rows["method"] == "gradcam"].reset_index()
    maps = xaieval.explain(tiny(), images, "0", "gradcam")["0"]
    known = {"maps": maps, "images": images, "confidence": torch.ones(5), "protocol": Protocol()}
    known |= {"draw": lambda shape, name: torch.rand(5, *shape), "ask_hits": hits(tiny(), images)}
    np.testing.assert_allclose(of_gradcam["unseeded"], aic(SHARES, negative, seeded=0).judge(known)[0], atol=1e-6)
    assert of_gradcam["unseeded"].notna().any()
    assert {"sic_low", "aic_low"} <= set(whole.summary())
    assert [METRICS[name].higher_is_better for name in ("sic", "aic")] == [True, True]
    assert METRICS["sic"].settings["minimum"] == 0.8
