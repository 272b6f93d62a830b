"""Sufficiency and consistency of a set of images: by hand, by a slow loop, and against Quantus.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from torch import Tensor, nn

import xaieval
from tests.metrics.evidence import pictures, tiny
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import MeanOverSet, consistency, resolve_metrics, strongest_cell, sufficiency

MAPS = torch.tensor([[[1.0, 0.0]], [[0.9, 0.1]], [[0.9, 0.0]], [[0.0, 1.0]]])
CLASSES = torch.tensor([3, 3, 5, 5])


def some(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 4, generator=generator), torch.randint(3, (count,), generator=generator)


def check_by_hand(module: Any) -> None:
    found = module.sufficiency(MAPS, CLASSES, 0.2, "euclidean").tolist()
    assert found[:3] == [50, 50, 0]
    assert np.isnan(found[3])
    found = module.consistency(MAPS, CLASSES).tolist()
    assert found[:3] == [50, 50, 0]
    assert np.isnan(found[3])


def check_by_a_slow_loop_and_the_distances_of_scipy(module: Any) -> None:
    maps, classes = some()
    for distance, threshold in (("seuclidean", 0.7), ("euclidean", 0.7), ("correlation", 0.6)):
        apart = squareform(pdist(maps.flatten(1).double(), distance))
        apart /= apart.max()
        found = module.sufficiency(maps, classes, threshold, distance)
        for one in range(len(maps)):
            near = [other for other in range(len(maps)) if other != one and apart[one, other] <= threshold]
            assert near, "the threshold is a test of nothing"
            assert float(found[one]) == pytest.approx(100 * np.mean([int(classes[other] == classes[one]) for other in near]))


def check_the_strongest_cell(module: Any) -> None:
    maps = torch.zeros(3, 6, 6)
    maps[0, 4, 1] = -2
    maps[0, 0, 0] = 1.5
    maps[1, 2:4, 2:4] = 1
    maps[1, 5, 5] = 3
    assert module.strongest_cell(maps).tolist() == [6, 4, 0]


MUTANTS = {
    "the threshold is a distance": ("threshold * apart.nan_to_num(0).amax()", "threshold"),
    "the image itself is another": ("alike & ~torch.eye", "alike & ~0 * torch.eye"),
    "other predictions": ("(predicted[:, None] == predicted)", "(predicted[:, None] != predicted)"),
    "not of the similar ones": ("others.sum(dim=1)", "len(others)"),
    "below is above": ("apart <= threshold", "apart >= threshold"),
    "not standardised": ("(flat / spread)", "(flat * spread)"),
    "cosine for correlation": ("centred = flat - flat.mean(dim=1, keepdim=True)", "centred = flat"),
    "signs are kept": ("maps.double().abs()", "maps.double()"),
    "the weakest": (".argmax(dim=1)", ".argmin(dim=1)"),
}

test_the_formulas_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.sufficiency"], MUTANTS, MetricError
)


# ---- against Quantus


def by_quantus(metric: Any, maps: Tensor, classes: Tensor) -> list[float]:
    """The metric for a model that predicts these classes: of images of one pixel, which hold the class."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 12, bias=False)).eval()
    nn.init.eye_(model[1].weight)
    images = nn.functional.one_hot(classes, 12).float().view(-1, 1, 3, 4).numpy()
    return metric(model, images, classes.numpy(), maps[:, None].numpy(), device="cpu", batch_size=len(maps))


def test_sufficiency_is_that_of_quantus_but_for_images_without_another():
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    maps, classes = some()
    metric = quantus.Sufficiency(threshold=0.6, abs=False, normalise=False, disable_warnings=True)
    theirs = np.array(by_quantus(metric, maps, classes))
    ours = sufficiency(maps, classes).numpy() / 100
    alone = np.isnan(ours)
    assert 0 < alone.sum() < 12
    np.testing.assert_allclose(ours[~alone], theirs[~alone], atol=1e-9)
    assert (theirs[alone] == 0).all(), "no other image, so neither right nor wrong"


def test_consistency_is_that_of_quantus_for_a_given_discretisation():
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    maps, classes = some()
    metric = quantus.Consistency(
        discretise_func=lambda flat: int(flat.argmax() // 4), abs=False, normalise=False, disable_warnings=True
    )
    theirs = by_quantus(metric, maps, classes)
    ours = consistency(maps, classes, lambda given: given.flatten(1).argmax(dim=1) // 4)
    np.testing.assert_allclose(ours / 100, theirs, atol=1e-8)


def test_the_top_of_quantus_is_the_first_pixels_of_the_image():
    from quantus.functions.discretise_func import top_n_sign

    left, right = np.zeros(12), np.zeros(12)
    left[6], right[11] = 9, 9
    assert top_n_sign(left) == top_n_sign(right), "its default takes maps of two different places for equal"
    maps = torch.from_numpy(np.stack([left, right])).view(2, 3, 4)
    assert strongest_cell(maps)[0] != strongest_cell(maps)[1]


# ---- edges


def test_a_map_that_is_no_number_or_constant_is_similar_to_none():
    maps, classes = some(4)
    maps[1] = torch.nan
    maps[2] = 0.5
    assert sufficiency(maps, classes, 1, "correlation").isnan().tolist() == [False, True, True, False]
    assert sufficiency(maps[[0, 2, 3]], classes[:3], 1).isfinite().all()


def test_pixels_that_never_vary_make_no_difference():
    maps, classes = some()
    with_border = nn.functional.pad(maps, (1, 1, 1, 1), value=0.25)
    torch.testing.assert_close(sufficiency(with_border, classes), sufficiency(maps, classes), equal_nan=True)


def test_the_mean_over_batches_is_that_of_the_whole_set():
    maps, classes = some()
    judge = partial(sufficiency, threshold=0.7)
    metric = MeanOverSet(judge)
    metric.update(maps[:5], classes[:5])
    metric = pickle.loads(pickle.dumps(metric))
    metric.update(maps[5:], classes[5:])
    torch.testing.assert_close(metric.compute(), judge(maps, classes).nanmean())


@pytest.mark.parametrize("name", ["sufficiency", "consistency"])
def test_a_run_says_where_they_are(name):
    with pytest.raises(MetricError, match=rf"'{name}' compares the maps of many images.*xaieval.metrics.{name}\(maps, pred"):
        resolve_metrics(["average_drop", name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sufficiency(MAPS, CLASSES[:2]), r"got \[4, 1, 2\] and \[2\]"),
        (lambda: consistency(MAPS[:1], CLASSES[:1]), "of two or more images"),
        (lambda: sufficiency(MAPS, CLASSES, distance="euclidan"), "no distance 'euclidan'; did you mean 'euclidean'"),
        (lambda: consistency(MAPS, CLASSES, lambda maps: maps), r"a whole number for each of 4 maps, got \[4, 1, 2\]"),
        (lambda: strongest_cell(MAPS, 0), "grid_size is at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(MetricError, match=message):
        make()


def test_maps_of_a_model():
    images, model = pictures(8), tiny()
    maps = xaieval.explain(model, images, "1")["1"]
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)
    for values in (sufficiency(maps, predicted, 0.5, "correlation"), consistency(maps, predicted)):
        assert values.shape == (8,)
        assert values[~values.isnan()].ge(0).all()
