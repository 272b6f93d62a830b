"""Segments: labels and orders by hand, by slow loops, and curves and ROAD of segments in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

import sys
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.segmentation import slic
from torch import Tensor

import xaieval
from tests.metrics.test_curves import evidence, pictures, tiny
from tests.mutants import mutation_tests
from xaieval.errors import MetricError, UsageError
from xaieval.masking.segments import segmenter
from xaieval.metrics import deletion, insertion, label_maps, lerf, linear_imputation, morf, road, road_morf, slic_segments
from xaieval.metrics.segments import order_of

PROPERTY = settings(deadline=None, max_examples=40)


def halves(images: Tensor) -> Tensor:
    """A left and a right half, under numbers with gaps."""
    made = torch.full((len(images), *images.shape[2:]), 7)
    made[..., images.shape[-1] // 2 :] = 3
    return made


def known_of(count: int = 4) -> dict[str, Any]:
    images, maps = pictures(count)
    return evidence(tiny(), images, maps) | {"segment": segmenter(images)}


# ---- checks that take the modules under test


def check_patches_are_numbered_row_by_row(module: Any) -> None:
    labels = module.label_maps(torch.zeros(2, 1, 3, 5), 2)
    assert labels.tolist() == [[[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]] * 2
    volume = module.label_maps(torch.zeros(1, 1, 2, 2, 3), 2)
    assert volume.tolist() == [[[[0, 0, 1], [0, 0, 1]], [[0, 0, 1], [0, 0, 1]]]]


def check_segments_are_ranked_by_their_means_and_ties_by_their_numbers(module: Any) -> None:
    maps = torch.tensor([[[0.9, 0.0, 0.0, 0.4, 0.4, 0.5]], [[0.1, 0.1, 0.9, 0.0, 0.1, 0.1]]])
    labels = torch.tensor([[[0, 0, 0, 1, 2, 3]], [[1, 1, 0, 0, 1, 1]]])
    order = module.order_of(maps, labels)
    assert order.units.tolist() == [4, 2]
    assert order.ranks.tolist() == [[[3, 3, 3, 1, 2, 0]], [[1, 1, 0, 0, 1, 1]]]
    assert order.reversed().ranks.tolist() == [[[0, 0, 0, 2, 1, 3]], [[0, 0, 1, 1, 0, 0]]]
    assert order.first(torch.tensor([2, 1])).tolist() == [
        [[False] * 3 + [True, False, True]],
        [[False, False, True, True, False, False]],
    ]


def check_own_numbers_may_have_gaps(module: Any) -> None:
    assert module.label_maps(torch.zeros(1, 2, 1, 4), halves).tolist() == [[[1, 1, 0, 0]]]


MUTANTS = {
    "patches by columns": ("numbers * (steps[-1] + 1) + steps", "numbers + 2 * steps"),
    "sums in place of means": ("flat.double()) / sizes)", "flat.double()))"),
    "absent segments first": ("masked_fill(sizes == 0, -torch.inf)", "masked_fill(sizes == 0, torch.inf)"),
    "least first": ("descending=True", "descending=False"),
    "reversed by one": ("- 1 - self.ranks", "- self.ranks"),
    "one too many": ("self.ranks < ", "self.ranks <= "),
    "gaps kept": ("torch.unique(one, return_inverse=True)[1]", "one"),
}

test_the_segments_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.masking.segments", "xaieval.metrics.segments"], MUTANTS, UsageError, IndexError
)


# ---- labels and orders


@PROPERTY
@given(
    hnp.arrays(np.float32, (2, 3, 4), elements=st.sampled_from([0, 0.25, 0.5, 1])),
    hnp.arrays(np.int64, (2, 3, 4), elements=st.integers(0, 5)),
)
def test_the_order_is_that_of_a_slow_sort(maps, numbers):
    labels = torch.stack([torch.from_numpy(np.unique(one, return_inverse=True)[1]).view(3, 4) for one in numbers])
    order = order_of(torch.from_numpy(maps), labels)
    for one, label, ranks, count in zip(maps, labels.numpy(), order.ranks.numpy(), order.units.tolist(), strict=True):
        means = [float(one[label == segment].astype(float).sum() / (label == segment).sum()) for segment in range(count)]
        ordered = sorted(range(count), key=lambda segment: (-means[segment], segment))
        assert count == label.max() + 1
        for place, segment in enumerate(ordered):
            assert (ranks[label == segment] == place).all()


def test_superpixels_are_those_of_scikit_image_and_follow_the_image_alone():
    images = torch.nn.functional.interpolate(pictures(3)[0], (40, 40), mode="bicubic")
    labels = slic_segments(images, n_segments=20)
    for image, found in zip(images.double().numpy(), labels, strict=True):
        assert np.array_equal(found, slic(np.moveaxis(image, 0, -1), n_segments=20, start_label=0))
    assert torch.equal(labels, torch.cat([label_maps(one, "slic-20") for one in images.split(1)]))
    assert torch.equal(label_maps(images, "slic"), slic_segments(images, 100))
    assert int(label_maps(torch.ones(1, 3, 20, 20), "slic-4").max()) >= 1  # a picture of one colour has segments too


def test_a_segmentation_is_made_once_for_a_batch():
    calls = []

    def own(images: Tensor) -> Tensor:
        calls.append(len(images))
        return halves(images)

    segment = segmenter(pictures()[0])
    assert segment(own) is segment(own)
    assert calls == [4]


def test_without_scikit_image_there_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(UsageError, match=r"segments='slic' needs scikit-image: pip install 'xaieval\[segments\]'"):
        label_maps(pictures()[0], "slic")


@pytest.mark.parametrize("segments", [0, -3, 2.5, True, "slick", "slic-0", "grid"])
def test_what_is_no_segmentation_is_refused(segments):
    for make in (deletion, road):
        with pytest.raises(UsageError, match="segments is the side of square patches in pixels, 'slic' or 'slic-25'"):
            make(segments=segments)


def test_what_a_function_may_not_return_is_refused():
    for wrong, came in (
        (lambda images: images[:, 0], r"torch.float32 \[4, 12, 12\]"),
        (lambda images: halves(images)[0], r"torch.int64 \[12, 12\]"),
        (lambda images: None, "NoneType"),
    ):
        with pytest.raises(UsageError, match=rf"segments gave {came} for images \[4, 3, 12, 12\]; integers \[4, 12, 12\]"):
            label_maps(pictures()[0], wrong)
    with pytest.raises(MetricError, match="pixels_per_step is for curves of pixels; with segments, give steps"):
        deletion(segments=4, pixels_per_step=3)


# ---- curves and ROAD of segments


def by_loops(known: dict[str, Any], labels: Tensor, steps: int, replace: Any, last: bool = False, inserts: bool = False) -> Any:
    """The curve, one image and one segment after another; `replace` takes an image and what is kept."""
    curves = []
    for number, (image, one, label) in enumerate(zip(known["images"], known["maps"], labels, strict=True)):
        count = int(label.max()) + 1
        means = [float(one[label == segment].double().mean()) for segment in range(count)]
        order = sorted(range(count), key=lambda segment: (-means[segment], segment))
        order = order[::-1] if last else order
        scores = []
        for step in range(steps + 1):
            gone = order[: int(torch.tensor(step / steps * count).round())]
            kept = torch.tensor([[(int(place) in gone) == inserts for place in row] for row in label])
            scores.append(float(known["ask"]([(replace(image, kept)[None], torch.tensor([number]))])))
        curves.append(scores)
    return np.array(curves)


@pytest.mark.parametrize("segments", [5, "slic-9", halves])
def test_curves_of_segments_are_those_of_slow_loops(segments):
    known = known_of()
    labels = label_maps(known["images"], segments)
    expected = by_loops(known, labels, 4, lambda image, kept: torch.where(kept, image, torch.zeros(())))
    values, curves = deletion(4, keep_curve=True, segments=segments).judge(known)
    np.testing.assert_allclose(curves, expected, atol=1e-6)
    units = labels.flatten(1).amax(dim=1) + 1
    for value, curve, count in zip(values.tolist(), expected, units.tolist(), strict=True):
        shares = np.round(np.arange(5) / 4 * count) / count
        assert value == pytest.approx(np.trapezoid(curve, shares), abs=1e-6)
    for make, choices in ((lerf, {"last": True}), (insertion, {"inserts": True})):
        expected = by_loops(known, labels, 4, lambda image, kept: torch.where(kept, image, torch.zeros(())), **choices)
        np.testing.assert_allclose(make(4, "zero", True, segments=segments).judge(known)[1], expected, atol=1e-6)


def test_road_removes_segments_and_keeps_at_least_one():
    known = known_of()

    def imputed(image: Tensor, kept: Tensor) -> Tensor:
        return linear_imputation(image[None], ~kept[None])[0]

    expected = by_loops(known, label_maps(known["images"], 4), 3, lambda i, k: imputed(i, k) if k.any() else i)[:, 1:3]
    _, curves = road_morf((1 / 3, 2 / 3), noise=0, keep_curve=True, segments=4).judge(known)
    np.testing.assert_allclose(curves, expected, atol=1e-5)
    one_left = road_morf((0.99,), noise=0, keep_curve=True, segments=halves).judge(known)[1]
    np.testing.assert_allclose(one_left, road_morf((0.5,), noise=0, keep_curve=True, segments=halves).judge(known)[1])


def test_a_fill_sees_what_is_kept_of_each_step():
    known, seen = known_of(), []

    def fill(images: Tensor, masks: Tensor) -> Tensor:
        seen.append(masks)
        return torch.zeros_like(images)

    same = deletion(3, fill, segments=4).judge(known)[0]
    assert torch.equal(same, deletion(3, segments=4).judge(known)[0])
    assert [float(masks.mean()) for masks in seen] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert torch.equal(morf(3, "nearest").judge(known)[0], morf(3, "nearest").judge(known)[0])


def test_segments_in_a_run_depend_on_no_batch_and_are_in_the_manifest():
    images = torch.nn.functional.interpolate(pictures(5)[0], (24, 24), mode="bicubic")
    metrics = [deletion(6, "telea", segments="slic-9"), road((0.3, 0.6), segments=6), insertion(4, "nearest", segments=halves)]

    def score(sizes: tuple[int, ...]) -> Any:
        batches = [{"images": part, "ids": [str(float(one.sum())) for one in part]} for part in images.split(sizes)]
        return xaieval.score(
            tiny(), batches, "0", ["gradcam", "random"], metrics, controls=["shifted"], progress=False, batch_size=7
        )

    whole, parts = score((5,)), score((2, 3))
    pd.testing.assert_frame_equal(whole.rows, parts.rows, rtol=1e-4, atol=1e-5)
    assert whole.summary()["deletion_low"].notna().all()
    assert whole.manifest["metrics"][0]["settings"]["segments"] == "slic-9"
    assert whole.manifest["metrics"][2]["settings"]["segments"] == f"{__name__}:halves"
    assert any(name.startswith("deletion_shifted") or "shifted" in name for name in whole.rows)
