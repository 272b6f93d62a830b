"""Faithfulness by correlation: by hand, by slow loops, against Quantus and Xplique's formula, and in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from torch import Tensor
from torch.nn import functional

from tests.metrics.evidence import asker, drawn, evidence, linear, maps_of, pictures, run_in_batches, tiny
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import METRICS, faithfulness_correlation, faithfulness_estimate, mu_fidelity, sensitivity_n
from xaieval.metrics.subsets import random_pixels

NAMES = ["faithfulness_correlation", "faithfulness_estimate", "sensitivity_n", "mu_fidelity"]

# Replacing the pixels by 0 lowers the linear confidence by 1, 0, 0 and -4.
PICTURE = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
WEIGHTS = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
MAP = torch.tensor([[[3.0, 1.0], [0.0, 2.0]]])
DRAWN = {
    "pixels 0": [0.9, 0.8, 0.1, 0.2],
    "pixels 1": [0.1, 0.2, 0.9, 0.8],
    "pixels 2": [0.8, 0.1, 0.2, 0.9],
    "cells": [[0.1, 0.1, 0.9, 0.9], [0.9, 0.9, 0.1, 0.1], [0.1, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.9]],
}


def by_hand(metric: Any, **others: Any) -> Any:
    known = evidence(linear(WEIGHTS), PICTURE, MAP, draw=lambda shape, name: torch.tensor([DRAWN[name]]))
    return metric.judge(known | others)


def check_random_pixels_by_hand(module: Any) -> None:
    found = by_hand(module.faithfulness_correlation(samples=3, subset=2))[0]
    assert float(found) == pytest.approx(pearsonr([4, 2, 5], [1, -4, -3])[0])
    found = by_hand(module.faithfulness_correlation(samples=3, subset=1))[0]
    assert float(found) == pytest.approx(pearsonr([3, 0, 2], [1, 0, -4])[0])


def check_a_share_of_the_pixels(module: Any) -> None:
    found = by_hand(module.faithfulness_correlation(samples=3, subset=0.5))[0]
    assert float(found) == pytest.approx(pearsonr([4, 2, 5], [1, -4, -3])[0])


def check_ranked_groups_by_hand(module: Any) -> None:
    found = by_hand(module.faithfulness_estimate(pixels_per_step=1))[0]
    assert float(found) == pytest.approx(pearsonr([3, 2, 1, 0], [1, -4, 0, 0])[0])
    assert float(by_hand(module.faithfulness_estimate(2))[0]) == pytest.approx(-1)  # sums 5 and 1, falls -3 and 0


def check_cells_by_hand(module: Any) -> None:
    found = by_hand(module.mu_fidelity(grid_size=2, share=0.5, samples=4))[0]
    assert float(found) == pytest.approx(spearmanr([4, 2, 3, 0], [1, -4, 1, 0])[0])
    squared = module.mu_fidelity(grid_size=2, share=0.5, samples=4)
    found = by_hand(squared, confidence=torch.tensor([9.0]), ask=lambda blocks: linear(WEIGHTS)(blocks).square())[0]
    assert float(found) == pytest.approx(spearmanr([4, 2, 3, 0], [9 - 16, 9 - 1, 9 - 16, 0])[0])


def check_the_mean_over_sizes(module: Any) -> None:
    images = pictures(3)
    known = evidence(asker(tiny(), images), images, maps_of(images))
    values, curves = module.sensitivity_n((1, 5, 0.5), samples=8, keep_curve=True).judge(known)
    assert curves.shape == (3, 3)
    torch.testing.assert_close(values, curves.mean(dim=1))
    torch.testing.assert_close(module.sensitivity_n((5,), samples=8).judge(known)[0], curves[:, 1])


def check_an_exact_map_of_a_linear_model_is_1(module: Any) -> None:
    images, weights = pictures(2), torch.randn(8, 8, generator=torch.Generator().manual_seed(5))
    known = evidence(linear(weights), images, (images * weights)[:, 0])
    for metric in (module.faithfulness_correlation(9, 7), module.sensitivity_n(samples=9), module.mu_fidelity(3)):
        torch.testing.assert_close(metric.judge(known)[0], torch.ones(2).double())
    opposite = known | {"attributions": -5 * known["attributions"]}
    torch.testing.assert_close(module.faithfulness_estimate(8).judge(opposite)[0], -torch.ones(2).double())


def check_a_map_without_differences_has_no_correlation(module: Any) -> None:
    images = pictures(2)
    flat = functional.interpolate(torch.full((2, 1, 3, 3), 0.3), (8, 8), mode="bilinear")[:, 0]
    assert flat.amax() > flat.amin(), "interpolation rounds"
    known = evidence(asker(tiny(), images), images, torch.stack([flat[0], maps_of(images)[1]]))
    for metric in (module.faithfulness_correlation(8, 9), module.faithfulness_estimate(8), module.sensitivity_n((9,), 8)):
        assert metric.judge(known)[0].isnan().tolist() == [True, False]


def check_cells_lie_as_the_nearest_pixels_of_an_enlarged_grid(module: Any) -> None:
    for sides, grid in (((8, 8), 3), ((7, 10), 4), ((5, 3), 4)):
        counts = [min(grid, side) for side in sides]
        small = torch.arange(counts[0] * counts[1]).view(1, 1, *counts).double()
        large = functional.interpolate(small, sides, mode="nearest-exact")[0, 0].long()
        assert torch.equal(module.grid_cells(sides, grid, torch.device("cpu")), large)


MUTANTS = {
    "the rest is replaced": ("fill((~subset).to(images.dtype)), images)", "images, fill((~subset).to(images.dtype)))"),
    "a rise for a fall": ("confidence.double()[:, None] - confidences.T", "confidences.T - confidence.double()[:, None]"),
    "one pixel too many": ("keys.topk(count,", "keys.topk(count + 1,"),
    "the lowest": ("sorted=False)", "sorted=False, largest=False)"),
    "rounding is a difference": ("high - low <= FLAT", "high - low < 0 * FLAT"),
    "groups overlap": ("(ranks < end)", "(ranks <= end)"),
    "groups add up": ("(ranks >= start)", "(ranks >= 0)"),
    "cells begin at their middle": ("+ 0.5) * count", "+ 0.0) * count"),
    "a share is a number": ("round(subset * pixels)", "round(subset)"),
    "cells that are kept": ('"cells") < share', '"cells") > share'),
    "values for ranks": ("correlation(spearman,", "correlation(pearson,"),
    "the sum over sizes": ("else curves.mean(dim=1)", "else curves.sum(dim=1)"),
    "images for sizes": ("sums.split(samples, dim=1)", "sums.flip(1).split(samples, dim=1)"),
}

test_the_formulas_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.subsets", "xaieval.metrics.faithfulness_correlation"], MUTANTS, MetricError
)


# ---- against other tools


def known_of(count: int = 4) -> dict[str, Any]:
    images = pictures(count)
    return evidence(asker(tiny(), images), images, maps_of(images))


def by_quantus(metric: Any, known: dict[str, Any], model: Any = None) -> list[float]:
    model = model or tiny()
    with torch.no_grad():
        targets = model(known["images"]).argmax(dim=1).numpy()
    maps = known["attributions"][:, None].numpy()
    return metric(model, known["images"].numpy(), targets, maps, softmax=True, device="cpu")


def plain_settings() -> dict[str, Any]:
    return {"normalise": False, "return_aggregate": False, "disable_warnings": True, "perturb_baseline": 0.0}


def test_faithfulness_correlation_is_that_of_quantus_for_the_same_pixels(monkeypatch):
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    known = known_of()
    subsets = [random_pixels(known["draw"], known["images"], 20, f"pixels {number}") for number in range(7)]
    chosen = iter([one.flatten().nonzero()[:, 0].numpy() for subset in subsets for one in subset])
    monkeypatch.setattr(np.random, "choice", lambda *_, **__: next(chosen))
    theirs = by_quantus(quantus.FaithfulnessCorrelation(nr_runs=7, subset_size=20, **plain_settings()), known)
    np.testing.assert_allclose(faithfulness_correlation(7, 20).judge(known)[0], theirs, atol=1e-6)


def test_faithfulness_estimate_is_that_of_quantus():
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    known = known_of()
    theirs = by_quantus(quantus.FaithfulnessEstimate(features_in_step=4, **plain_settings()), known)
    np.testing.assert_allclose(faithfulness_estimate(pixels_per_step=4).judge(known)[0], theirs, atol=1e-6)


def test_sensitivity_n_of_quantus_is_another_number():
    # It removes pixels in the order of the map, compares the fall by all of them with the sum over the last group, and
    # correlates over images. So the exact map of a linear model, which is 1 by the definition, is not.
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    images = torch.tensor([[10.0, 1.0, 0.5, 0.1], [3.0, 3.0, 1.0, 1.0]]).view(2, 1, 2, 2)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False)).eval()
    torch.nn.init.ones_(model[1].weight)
    theirs = quantus.SensitivityN(features_in_step=1, n_max_percentage=0.8, **plain_settings())(
        model, images.numpy(), np.zeros(2, int), images.numpy(), softmax=False, device="cpu"
    )
    assert np.array(theirs).tolist() == pytest.approx([1, -1, -1]), "one number for each step, none for an image"
    ours = sensitivity_n((1, 2, 3), 9).judge(evidence(linear(torch.ones(2, 2)), images, images[:, 0]))[0]
    assert ours.tolist() == pytest.approx([1, 1])


def test_mu_fidelity_is_that_of_xplique_for_the_same_cells():
    known = known_of(3)
    chosen = (known["draw"]((12, 9), "cells") < 0.2).view(3, 12, 3, 3)
    theirs = []
    for number in range(3):
        kept = functional.interpolate(1 - chosen[number][:, None].float(), (8, 8), mode="nearest-exact")
        confidences = known["ask"]([(known["images"][[number]] * kept, torch.full((12,), number))])
        sums = (known["attributions"][number] * (1 - kept[:, 0])).flatten(1).sum(dim=1)
        theirs.append(spearmanr((known["confidence"][number] - confidences).numpy(), sums.numpy())[0])
    np.testing.assert_allclose(mu_fidelity(3, samples=12).judge(known)[0], theirs, atol=1e-6)


def test_a_map_of_zeros_has_no_value_where_xplique_has_0():
    known = known_of(2)
    zeros = known | {"attributions": torch.zeros(2, 8, 8)}
    for make in (faithfulness_correlation, faithfulness_estimate, sensitivity_n, mu_fidelity):
        assert make().judge(zeros)[0].isnan().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_random_pixels_by_a_slow_loop(channels):
    images = pictures(3, channels)
    known = evidence(asker(tiny(channels), images), images, maps_of(images))
    expected = []
    for number in range(3):
        sums, falls = [], []
        for sample in range(6):
            order = np.argsort(-drawn(3)((64,), f"pixels {sample}")[number].numpy(), kind="stable")[:6]
            changed, total = images[number].clone(), 0.0
            for place in order:
                changed[:, place // 8, place % 8] = 0
                total += float(known["attributions"][number, place // 8, place % 8])
            sums.append(total)
            falls.append(float(known["confidence"][number] - known["ask"]([(changed[None], torch.tensor([number]))])))
        expected.append(pearsonr(sums, falls)[0])
    np.testing.assert_allclose(faithfulness_correlation(6, 0.1).judge(known)[0], expected, atol=1e-6)


# ---- properties


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 63), st.integers(0, 1000))
def test_a_random_subset_has_as_many_pixels_as_asked_even_if_random_numbers_are_equal(count, seed):
    draw = drawn(2) if seed % 2 else lambda shape, name: torch.full((2, *shape), 0.5)
    chosen = random_pixels(draw, pictures(2), count, f"{seed}")
    assert chosen.flatten(1).sum(dim=1).tolist() == [count] * 2


def test_every_pixel_is_as_likely():
    draw = drawn(1)
    often = sum(random_pixels(draw, pictures(1), 16, f"{number}") for number in range(800)).flatten()
    assert float(((often - 200) ** 2 / (200 * 0.75)).sum()) < 100  # chi-square with 63 degrees: 1 in 500 lies above


@settings(deadline=None, max_examples=20)
@given(st.floats(0.01, 100), st.floats(-10, 10))
def test_neither_scale_nor_offset_of_a_map_matter_where_subsets_are_of_one_size(scale, offset):
    known = known_of(2)
    altered = known | {"attributions": scale * known["attributions"].double() + offset}
    for metric in (faithfulness_correlation(5, 9), faithfulness_estimate(8), sensitivity_n((0.2, 0.4), 5)):
        torch.testing.assert_close(metric.judge(altered)[0], metric.judge(known)[0], atol=1e-6, rtol=0)


def test_passes_hold_one_subset_of_the_batch_at_a_time():
    known, sizes = known_of(3), []

    def ask(blocks: Any) -> Tensor:
        assert not isinstance(blocks, list | tuple)
        sizes.extend(len(some) for some, _ in blocks)
        return torch.rand(sum(sizes))

    sensitivity_n((1, 2), 4).judge(known | {"ask": ask})
    assert sizes == [3] * 8


# ---- settings, and in a run


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: faithfulness_correlation(samples=1), "samples is at least 2, got 1"),
        (lambda: faithfulness_correlation(subset=0), r"a number of pixels, at least 1, or a share of them, in \(0, 1\); got 0"),
        (lambda: faithfulness_correlation(subset=1.5), "got 1.5"),
        (lambda: faithfulness_correlation(subset=64).judge(known_of(1)), "64 pixels is no part of an image of 64; give fewer"),
        (lambda: faithfulness_estimate(0), "steps is at least 1, got 0"),
        (lambda: sensitivity_n(()), "subsets is one or more sizes"),
        (lambda: sensitivity_n((0.1, 2.0)), "got 2.0"),
        (lambda: mu_fidelity(grid_size=0), "grid_size is at least 1, got 0"),
        (lambda: mu_fidelity(share=1), r"share is the probability of a cell, in \(0, 1\), got 1"),
        (lambda: mu_fidelity(baseline="blak"), "no baseline 'blak'; did you mean 'black'"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(MetricError, match=message):
        make()


def test_the_metrics_by_name_in_a_run():
    fast = [faithfulness_correlation(6, 0.2), faithfulness_estimate(8), sensitivity_n((0.2, 0.5), 6), mu_fidelity(4, samples=6)]
    scores = run_in_batches(fast)
    assert [METRICS[name].higher_is_better for name in NAMES] == [True] * 4
    assert scores.manifest["metrics"][0]["settings"] == {"samples": 6, "subset": 0.2, "baseline": "zero"}
    assert pickle.loads(pickle.dumps(METRICS["mu_fidelity"])).settings == METRICS["mu_fidelity"].settings


def test_volumes_have_values_too():
    volumes = torch.randn(2, 1, 4, 5, 6)
    known = evidence(linear(torch.randn(4, 5, 6)), volumes, torch.randn(2, 4, 5, 6))
    for make in (faithfulness_correlation, faithfulness_estimate, sensitivity_n, mu_fidelity):
        assert make().judge(known)[0].isfinite().all()
