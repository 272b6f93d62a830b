"""Continuity: by hand, by a slow loop, against Quantus with the same shifts, and in a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.mutants import mutation_tests
from tests.noisy_images import looking, pictures, quantus_scores, rows_do_not_depend_on_the_batch
from xaieval.errors import MetricError
from xaieval.metrics import METRICS, continuity


def explain(images: Tensor) -> Tensor:
    return images.square().mean(dim=1) + images[:, 0].abs().flip(-1)


# ---- checks that take the functions under test


def check_by_hand(tested: Any) -> None:
    image = torch.tensor([[[[0.0, 0.0, 1.0, 0.0]]]])
    seen = []

    def itself(altered: Tensor) -> Tensor:
        seen.append(altered.flatten().tolist())
        return altered[:, 0]

    inspect = looking(itself, Constant())
    # One pixel to each side: two pixels of the map and of the image change by 1.
    found = tested.continuity(steps=2, share=0.25).per_image(image[:, 0], image, inspect)
    assert seen == [[0, 0, 0, 1], [0, 1, 0, 0]]
    assert float(found) == pytest.approx(2 / math.sqrt(2))
    # A map that stays where it is does not change at all.
    still = looking(lambda altered: image[:, 0], Constant())
    assert float(tested.continuity(steps=2).per_image(image[:, 0], image, still)) == 0


def check_slow_loop(tested: Any) -> None:
    images = pictures(2, side=6)
    for fill in ("edge", "minimum"):
        found = tested.continuity(steps=6, fill=fill).per_image(explain(images), images, looking(explain, Constant()))
        for number in range(2):
            image, quotients = images[number], []
            for step in (-6, -4, -2, 2, 4, 6):
                moved = torch.empty_like(image)
                for x in range(6):
                    inside = 0 <= x - step < 6
                    moved[:, :, x] = image[:, :, min(max(x - step, 0), 5)] if inside or fill == "edge" else image.min()
                change = float((explain(moved[None]) - explain(image[None])).abs().sum())
                quotients.append(change / float((moved - image).norm()))
            assert float(found[number]) == pytest.approx(max(quotients), rel=1e-4)


def check_what_cannot_be_moved_has_no_value(tested: Any) -> None:
    images = torch.stack([torch.ones(3, 4, 4), pictures(1, side=4)[0]])
    found = tested.continuity(steps=2).per_image(explain(images), images, looking(explain, Constant()))
    assert found.isnan().tolist() == [True, False]


class Constant(torch.nn.Module):
    """A model of any images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 2)

    def __getitem__(self, layers: slice) -> Constant:
        return self


MUTANTS = {
    "in one direction": ("for sign in (1, -1)", "for sign in (1, 1)"),
    "Euclidean change of the map": (".abs().flatten(1).sum(dim=1)", ".flatten(1).norm(dim=1)"),
    "distance by sum": ("flatten(1).norm(dim=1)\n        quotients", "abs().flatten(1).sum(dim=1)\n        quotients"),
    "not divided": ("difference / distance,", "difference,"),
    "the smallest": ("reduce(torch.maximum", "reduce(torch.minimum"),
    "an epsilon": ("torch.where(distance > 0, difference / distance, -torch.inf)", "difference / (distance + 1e-9)"),
    "the edge always": ('None if fill == "edge" else', "None if fill else"),
}

test_continuity_passes, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.continuity"], MUTANTS
)


# ---- other tools


def test_continuity_is_that_of_quantus_where_its_shifts_are_even():
    # 16 steps of 2 pixels from -14 to 16; what they leave out, -16, shows as little of the image as 16.
    images = pictures(3, side=16)
    expected = quantus_scores("Continuity", images, explain, nr_steps=16, normalise=False)
    found = continuity(steps=16, fill="minimum").per_image(explain(images), images, looking(explain))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_quantus_with_more_steps_than_shifts_only_looks_at_an_empty_image():
    images = pictures(2, side=12).cumsum(dim=-1)  # neighbouring pixels are alike, so that a small shift is a small change

    def explain(altered: Tensor) -> Tensor:
        return 1 + (3 * altered[:, 0]).sin()

    theirs = quantus_scores("Continuity", images, explain, nr_steps=28, normalise=False, abs=False)
    empty = images.flatten(1).amin(dim=1).view(-1, 1, 1, 1).expand_as(images)
    change = (explain(empty) - explain(images)).abs().flatten(1).sum(dim=1) / (empty - images).flatten(1).norm(dim=1)
    np.testing.assert_allclose(theirs, change, rtol=1e-4)  # 25 // 28 is 0 pixels from the first shift, the whole width
    ours = continuity(steps=28, fill="minimum").per_image(explain(images), images, looking(explain))
    assert (ours > 1.02 * change).all()


# ---- in a run, settings, errors


def test_the_column_of_a_run_does_not_depend_on_the_batch():
    scores = rows_do_not_depend_on_the_batch([continuity(steps=4)], "continuity")
    assert scores.summary().loc[("input", "center"), "continuity"] == 0


def test_settings_are_kept_and_wrong_ones_refused():
    assert METRICS["continuity"].settings == {"steps": 28, "share": 1.0, "fill": "edge"}
    for wrong, message in (
        ({"steps": 0}, "steps is an even number of at least 2, half in each direction, got 0"),
        ({"steps": 3}, "steps is an even number of at least 2, half in each direction, got 3"),
        ({"share": 1.5}, r"share of the width lies in \(0, 1\], got 1.5"),
        ({"fill": "black"}, "no fill 'black'"),
    ):
        with pytest.raises(MetricError, match=message):
            continuity(**wrong)
