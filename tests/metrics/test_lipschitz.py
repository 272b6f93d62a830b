"""Local Lipschitz and average sensitivity: by hand, by a slow loop, against Quantus with the same noise, and in a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.mutants import mutation_tests
from tests.noisy_images import drawn, looking, noises, pictures, quantus_scores, rows_do_not_depend_on_the_batch
from xaieval.errors import MetricError
from xaieval.metrics import METRICS, average_sensitivity, local_lipschitz, max_sensitivity


def explain(images: Tensor) -> Tensor:
    """A smooth map that is not linear in the image; its values are not in [0, 1]."""
    return images.square().sum(dim=1) - images[:, 0].flip(-1)


def same(value: float) -> Any:
    return lambda shape, name: torch.full((1, *shape), value)


# ---- checks that take the functions under test


def check_lipschitz_by_hand(tested: Any) -> None:
    images = torch.ones(1, 2, 2, 2)
    metric = tested.local_lipschitz(samples=1, radius=0.02, noise="uniform")
    # 0.75 of [0, 1) is 0.5 of [-1, 1), so 0.01 is added to each of 8 numbers; the map moves by 3 * 0.02 in each of 4 pixels.
    found = metric.per_image(3 * images.sum(dim=1), images, looking(lambda x: 3 * x.sum(dim=1), FREE), same(0.75))
    assert float(found) == pytest.approx(0.06 * math.sqrt(4) / (0.01 * math.sqrt(8)), rel=1e-4)


def check_slow_loop(tested: Any) -> None:
    images = pictures(3, side=5)
    maps, changes, quotients = explain(images).double(), [], []
    for name, size, noise in (("max-sensitivity", 0.3, "uniform"), ("local-lipschitz", 0.2, "gaussian")):
        for added in noises(name, 4, size, noise, images):
            for number in range(3):
                moved = sum(
                    (a - b) ** 2 for a, b in zip(_list(explain(images + added), number), _list(maps, number), strict=True)
                )
                if name == "max-sensitivity":
                    changes.append(math.sqrt(moved / sum(value**2 for value in _list(maps, number))))
                else:
                    quotients.append(math.sqrt(moved / sum(value**2 for value in _list(added, number))))
    average = tested.average_sensitivity(samples=4, radius=0.3).per_image(maps, images, explain, drawn(3))
    lipschitz = tested.local_lipschitz(samples=4, radius=0.2).per_image(maps, images, looking(explain, FREE), drawn(3))
    np.testing.assert_allclose(average, np.mean(np.reshape(changes, (4, 3)), axis=0), rtol=1e-4)
    np.testing.assert_allclose(lipschitz, np.max(np.reshape(quotients, (4, 3)), axis=0), rtol=1e-4)


def check_nan_is_nan(tested: Any) -> None:
    images = torch.ones(2, 3, 4, 4)

    def broken(altered: Tensor) -> Tensor:
        maps = altered.sum(dim=1)
        maps[0, 0, 0] = torch.nan
        return maps

    lipschitz = tested.local_lipschitz(samples=2).per_image(images.sum(dim=1), images, looking(broken, FREE), drawn(2))
    average = tested.average_sensitivity(samples=2).per_image(images.sum(dim=1), images, broken, drawn(2))
    assert lipschitz.isnan().tolist() == average.isnan().tolist() == [True, False]


def _list(tensor: Tensor, number: int) -> list[float]:
    return tensor[number].double().flatten().tolist()


class _Free(torch.nn.Module):
    """A model of any images, for what does not ask it."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2]

    def __getitem__(self, layers: slice) -> _Free:
        return self


FREE = _Free()

MUTANTS = {
    "the mean for the largest": ("reduce(torch.maximum, quotients)", "torch.stack(quotients).mean(dim=0)"),
    "the smallest": ("reduce(torch.maximum", "reduce(torch.minimum"),
    "not divided by the noise": (" / _norm(changed.double() - images.double())", ""),
    "divided by the image": ("_norm(changed.double() - images.double())", "_norm(images.double())"),
    "squared": (".norm(dim=1)", ".norm(dim=1) ** 2"),
    "the largest for the mean": (".mean(dim=0)", ".amax(dim=0)"),
}

test_the_metrics_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.lipschitz"], MUTANTS, MetricError
)


# ---- other tools


def test_both_are_those_of_quantus_given_the_same_noise():
    images = pictures(4)
    added = noises("max-sensitivity", 3, 0.2, "uniform", images)
    expected = quantus_scores("AvgSensitivity", images, explain, added)
    found = average_sensitivity(samples=3, radius=0.2).per_image(explain(images), images, explain, drawn(4))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    added = noises("local-lipschitz", 3, 0.1, "gaussian", images)
    expected = quantus_scores("LocalLipschitzEstimate", images, explain, added, normalise=False)
    raw = local_lipschitz(samples=3, normalised=False).per_image(explain(images), images, looking(explain), drawn(4))
    np.testing.assert_allclose(raw, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["LocalLipschitzEstimate", "AvgSensitivity"])
def test_quantus_leaves_out_a_noise_under_which_the_map_is_nan_and_we_do_not(name):
    images, calls = pictures(2), []

    def sometimes(altered: Tensor) -> Tensor:
        calls.append(altered)
        return explain(altered) * (torch.nan if len(calls) == 2 else 1)

    # Their value of the other noises looks like a finding on all of them.
    added = noises("local-lipschitz", 3, 0.1, "gaussian", images)
    assert np.isfinite(quantus_scores(name, images, sometimes, added, normalise=False)).all()
    for ours in (local_lipschitz(samples=3), average_sensitivity(samples=3)):
        calls[:] = [images]
        again = looking(sometimes) if "inspect_maps" in ours.needs else sometimes
        assert ours.per_image(explain(images), images, again, drawn(2)).isnan().all()


# ---- in a run, settings, errors


def test_the_columns_of_a_run_do_not_depend_on_the_batch():
    few = [local_lipschitz(samples=2), average_sensitivity(samples=2), max_sensitivity(samples=2)]
    scores = rows_do_not_depend_on_the_batch(few, "local_lipschitz", "average_sensitivity")
    assert (scores.rows["average_sensitivity"].dropna() <= scores.rows["max_sensitivity"].dropna()).all(), "the same noises"
    assert scores.summary().loc[("input", "center"), ["local_lipschitz", "average_sensitivity"]].tolist() == [0, 0]


def test_settings_are_kept_and_wrong_ones_refused():
    assert METRICS["local_lipschitz"].settings == {"samples": 10, "radius": 0.1, "noise": "gaussian", "normalised": True}
    assert average_sensitivity(normalised=True).needs == ("maps", "images", "explain", "draw")
    for wrong, message in (
        ({"samples": 0}, "samples is at least 1"),
        ({"radius": 0}, "radius is positive"),
        ({"noise": "x"}, "no noise"),
    ):
        for made in (local_lipschitz, average_sensitivity):
            with pytest.raises(MetricError, match=message):
                made(**wrong)
