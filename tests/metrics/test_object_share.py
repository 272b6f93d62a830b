"""Top-k intersection and attribution localisation: by hand, with all ties, and against Quantus."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import (
    attribution_inside,
    attribution_localisation,
    relevance_mass,
    relevance_rank,
    top_k_inside,
    top_k_intersection,
)

MAP = torch.tensor([[[4.0, 3.0, -2.0, 1.0]]], dtype=torch.float64)
OBJECT = torch.tensor([[[True, False, True, False]]])


def _case(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps, masks = torch.rand(shape, generator=generator, dtype=torch.float64), torch.rand(shape, generator=generator) > 0.7
    masks[:, 0, 0] = True
    return maps, masks


def check_by_hand(metrics: Any) -> None:
    assert [metrics.top_k_inside(MAP, OBJECT, k).item() for k in (1, 2, 4)] == [100, 50, 50]
    assert [metrics.top_k_inside(MAP, OBJECT, k, True).item() for k in (1, 2, 4)] == [200, 100, 100]
    assert metrics.attribution_inside(MAP, OBJECT).item() == pytest.approx(50)  # 4 of 8
    assert metrics.attribution_inside(MAP, OBJECT, weighted=True).item() == pytest.approx(100)
    smaller = OBJECT & (MAP > 0)
    assert metrics.attribution_inside(MAP, smaller, weighted=True).item() == pytest.approx(200)


def check_ties_and_images_without_a_value(metrics: Any) -> None:
    maps, mask = torch.tensor([[[2.0, 1.0, 1.0, 1.0]]]), torch.tensor([[[True, True, False, False]]])
    ways = [mask[0, 0][list(one)].double().mean() for one in combinations(range(4), 2) if 0 in one]
    assert metrics.top_k_inside(maps, mask, 2).item() == pytest.approx(100 * float(np.mean(ways)))
    for wrong in (torch.full_like(maps, torch.nan), torch.full_like(maps, torch.inf)):
        assert metrics.top_k_inside(wrong, mask, 2).isnan().all()
    for relative in (False, True):
        assert metrics.top_k_inside(maps, torch.zeros_like(mask), 2, relative).isnan().all()
        assert metrics.attribution_inside(maps, torch.zeros_like(mask), relative).isnan().all()
    assert metrics.attribution_inside(maps, mask, max_size=0.49).isnan().all()
    assert metrics.attribution_inside(maps, mask, max_size=0.5).item() == pytest.approx(60)


MUTANTS = {
    "a share of the object": ("torch.full((len(flat),), k, device=flat.device)) / k", "inside.sum(dim=1)) / k"),
    "upside down": ("share * inside.shape[1] / inside.sum(dim=1)", "share * inside.sum(dim=1) / inside.shape[1]"),
    "never relative": ("_relative(share, inside) if weighted else share", "share"),
    "large objects count": (".masked_fill(large, torch.nan)", ""),
    "not finite": ("return usable(_relative", "return (lambda values, *_: values)(_relative"),
}

test_the_metrics_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.localisation", "xaieval.metrics.object_share"], MUTANTS
)


def test_special_cases_are_the_rank_and_the_mass_accuracy():
    maps, masks = _case(0, 5, 6, 7)
    masks[:] = masks[0]
    torch.testing.assert_close(top_k_inside(maps, masks, int(masks[0].sum())), relevance_rank(maps, masks))
    torch.testing.assert_close(attribution_inside(maps - 0.5, masks), relevance_mass(maps - 0.5, masks))
    flat = torch.ones_like(maps)
    assert top_k_inside(flat, masks, 9, concept_influence=True).tolist() == pytest.approx([100] * 5)
    assert attribution_inside(flat, masks, weighted=True).tolist() == pytest.approx([100] * 5)


def _quantus(name: str, maps: Tensor, masks: Tensor, **choices: Any) -> Any:
    import quantus

    metric = getattr(quantus, name)(disable_warnings=True, display_progressbar=False, **choices)
    images = np.zeros((len(maps), 3, *maps.shape[1:]), dtype=np.float32)
    labels = np.zeros(len(maps), dtype=int)
    found = metric(model=None, x_batch=images, y_batch=labels, a_batch=maps[:, None].numpy(), s_batch=masks[:, None].numpy())
    return 100 * np.asarray(found, dtype=float)


@pytest.mark.parametrize("relative", [False, True])
def test_quantus_agrees_on_top_k_without_ties(relative):
    maps, masks = _case(1, 5, 6, 7)
    found = _quantus("TopKIntersection", maps, masks, k=11, concept_influence=relative)
    np.testing.assert_allclose(found, top_k_inside(maps, masks, 11, relative), rtol=1e-12)


def test_quantus_weights_large_objects_up_and_measures_the_batch_for_the_image():
    # Its size of an image is that of all images of the batch but the first two; the paper divides by the object's share.
    maps, masks = _case(2, 5, 6, 7)
    found = _quantus("AttributionLocalisation", maps, masks)
    np.testing.assert_allclose(found, attribution_inside(maps, masks), rtol=1e-6)
    share = masks.flatten(1).double().mean(dim=1)
    weighted = _quantus("AttributionLocalisation", maps, masks, weighted=True)
    np.testing.assert_allclose(weighted, attribution_inside(maps, masks) * share * 42 / (3 * 3 * 42), rtol=1e-6)
    np.testing.assert_allclose(attribution_inside(maps, masks, weighted=True), attribution_inside(maps, masks) / share)


def test_bad_settings_are_refused_word_for_word():
    for call in (top_k_intersection, lambda k: top_k_inside(MAP, OBJECT, k)):
        with pytest.raises(MetricError) as error:
            call(0)
        assert str(error.value) == "k is a number of pixels, at least 1; got 0"
    with pytest.raises(MetricError) as error:
        top_k_inside(MAP, OBJECT)
    assert str(error.value) == "k is a number of pixels, and maps have 4; got 1000: top_k_intersection(k=...) sets it"
    for size in (0, 1.5):
        with pytest.raises(MetricError) as error:
            attribution_localisation(max_size=size)
        assert str(error.value) == f"max_size is a share of the image, in (0, 1]; got {size}"
