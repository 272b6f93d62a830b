"""AbPC, SRG and R-OMS: by hand, against the metrics they are made of and the formula of PnPXAI, and in a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import xaieval
from tests.metrics.test_curves import drawn, evidence, pictures, tiny
from tests.metrics.test_removed_regions import by_hand
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.masking.segments import segmenter
from xaieval.metrics import METRICS, abpc, deletion, lerf, morf, r_oms, symmetric_relevance_gain

NAMES = ["abpc", "symmetric_relevance_gain", "r_oms"]


def known_of(images: Tensor | None = None) -> dict[str, Any]:
    made, maps = pictures()
    images = made if images is None else images
    return evidence(tiny(), images, maps) | {"segment": segmenter(images)}


# ---- checks that take the module under test


def check_the_area_between_by_hand(module: Any) -> None:
    difference, value = by_hand(module.abpc(4, keep_curve=True))
    assert difference == [0, 0.15, 0.25, 0.15, 0]  # 0.35, 0.3, 0.3, 0.2, 0 minus 0.35, 0.15, 0.05, 0.05, 0
    assert value == pytest.approx((0.15 + 0.25 + 0.15) / 4)
    difference, value = by_hand(module.symmetric_relevance_gain(1, keep_curve=True))
    assert difference == [0, 0.15, 0.25, 0.15, 0]
    assert value == pytest.approx((0.15 + 0.25 + 0.15) / 4)


def check_the_random_order_is_one_of_segments_and_the_same_for_all_maps(module: Any) -> None:
    known = known_of()
    values, curves = module.r_oms(4, keep_curve=True).judge(known)
    labels = known["segment"](4)
    numbers = drawn((12, 12), "").flatten(1)
    first = numbers[:, :9].argmax(dim=1)  # the segment of the largest of the first nine numbers is removed first
    removed = torch.where((labels == first[:, None, None])[:, None], 0, known["images"])
    torch.testing.assert_close(curves[:, 1], known["ask"]([(removed, torch.arange(4))]))
    again = module.r_oms(4).judge(known | {"maps": 1 - known["maps"]})[0]
    assert torch.equal(values, again)


MUTANTS = {
    "turned around": ("area_under(least - most, shares)", "area_under(most - least, shares)"),
    "the same order twice": ("[order, order.reversed()]", "[order, order]"),
    "one order for all": (
        'draw(images.shape[2:], "order of r_oms")',
        'draw(images.shape[2:], "order of r_oms")[:1].expand(len(images), -1, -1)',
    ),
    "numbers by pixel": ("numbers.flatten(1).gather(1, labels.flatten(1)).view(numbers.shape)", "numbers"),
}

test_the_metrics_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.symmetric_relevance_gain"], MUTANTS, MetricError
)


# ---- what they are made of


def test_they_are_the_difference_of_the_two_orders():
    known = known_of()
    for steps, segments, fill in ((10, None, "zero"), (9, 4, "nearest")):
        falls = [make(steps, fill, segments=segments).judge(known)[0] for make in (morf, lerf)]
        torch.testing.assert_close(abpc(steps, fill, segments=segments).judge(known)[0], falls[0] - falls[1])
    one_by_one = symmetric_relevance_gain(4, "mean").judge(known)[0]
    torch.testing.assert_close(one_by_one, abpc(9, "mean", segments=4).judge(known)[0])
    torch.testing.assert_close(symmetric_relevance_gain(None, "mean", steps=7).judge(known)[0], abpc(7, "mean").judge(known)[0])


def test_a_reversed_map_has_the_opposite_gain_and_both_orders_share_one_request():
    known, asked = known_of(), []

    def ask(blocks: Any) -> Tensor:
        asked.append(1)
        return known["ask"](blocks)

    gain, opposite = (abpc(9).judge(known | {"maps": maps, "ask": ask})[0] for maps in (known["maps"], -known["maps"]))
    torch.testing.assert_close(gain, -opposite, rtol=0, atol=1e-7)
    assert len(asked) == 2


def by_pnpxai(known: dict[str, Any], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The area as PnPXAI computes it, from its source: the mean over points, the last of which has all remaining pixels."""
    pixels = known["maps"][0].numel()
    counts = [0, *[pixels // steps * step for step in range(1, steps - 1)], pixels]
    curves = []
    for sign in (1, -1):  # least relevant first, then most
        order = (sign * known["maps"].flatten(1)).argsort(dim=1, stable=True)
        steps_of = []
        for count in counts:
            flipped = known["images"].clone().flatten(2)
            for number, places in enumerate(order[:, :count]):
                flipped[number][:, places] = 0
            steps_of.append(known["ask"]([(flipped.view_as(known["images"]), torch.arange(4))]).numpy())
        curves.append(np.array(steps_of))
    return (curves[0] - curves[1]).mean(axis=0), np.array(counts) / pixels


def test_abpc_of_pnpxai_is_a_mean_over_points_and_ours_over_the_axis():
    known = known_of()
    theirs, shares = by_pnpxai(known, 10)
    values, difference = abpc(shares.tolist(), keep_curve=True).judge(known)
    np.testing.assert_allclose(difference.mean(dim=1), theirs, atol=1e-7)
    assert (np.abs(values.numpy() - theirs) > 1e-5).all(), "its last step is twice as wide and its ends are always 0"


def test_r_oms_is_deletion_in_a_random_order():
    known = known_of()
    random = known | {"maps": drawn((12, 12), "")}
    torch.testing.assert_close(r_oms(None, steps=6).judge(known)[0], deletion(6).judge(random)[0])


# ---- in a run


def test_they_run_by_name_and_depend_on_no_batch():
    images = torch.nn.functional.interpolate(pictures(4)[0], (24, 24), mode="bicubic")

    def score(sizes: tuple[int, ...]) -> Any:
        batches = [{"images": part, "ids": [str(float(one.sum())) for one in part]} for part in images.split(sizes)]
        return xaieval.score(tiny(), batches, "0", ["gradcam", "random"], NAMES, progress=False)

    whole = score((4,))
    pd.testing.assert_frame_equal(whole.rows[NAMES], score((1, 3)).rows[NAMES], rtol=1e-5, atol=1e-6)
    summary = whole.summary()
    assert (summary["abpc_low"] <= summary["abpc"]).all()
    assert len(set(summary["r_oms"])) == 1, "it does not depend on the map"
    assert [METRICS[name].higher_is_better for name in NAMES] == [True, True, None]
    made = whole.manifest["metrics"][1]["settings"]
    assert made == {"steps": None, "pixels_per_step": None, "baseline": "zero", "segments": "slic-25", "keep_curve": False}
