"""Localisation: by hand, by slow loops, against Quantus and the formulas of TorchRay, CLEVR-XAI and Score-CAM, and in runs.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

import math
from itertools import combinations, product
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics import MetricCollection

import xaieval
from tests.mutants import mutation_tests
from xaieval import metrics
from xaieval.errors import MetricError
from xaieval.metrics import (
    METRICS,
    BestMaskIoU,
    EnergyPointingGame,
    MaskIoU,
    PointingGame,
    RelevanceMassAccuracy,
    RelevanceRankAccuracy,
    best_mask_iou,
    energy_inside,
    iou,
    iou_curve,
    mask_iou,
    pointing_game,
    pointing_hit,
    relevance_mass,
    relevance_rank,
    resolve_metrics,
)
from xaieval.metrics.localisation import METRICS as LOCALISATION

PROPERTY = settings(deadline=None, max_examples=60)
ALL = ["pointing_game", *(metric.name for metric in LOCALISATION)]
NAMES = ("pointing_hit", "energy_inside", "relevance_mass", "relevance_rank", "mask_iou", "best_mask_iou")
EXACT = {"rtol": 1e-12, "atol": 1e-9, "equal_nan": True}

# Three pixels by two: the object is the left column.
MAP = torch.tensor([[[0.9, 0.3, 0.0], [0.5, 0.2, 0.1]]])
OBJECT = torch.tensor([[[True, False, False], [True, False, False]]])


def _case(seed: int, *shape: int, steps: int = 0) -> tuple[Tensor, Tensor]:
    """Random maps in [0, 1], with `steps + 1` distinct values if `steps` is given, and random masks with an object each."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(shape, generator=generator, dtype=torch.float64)
    masks = torch.rand(shape, generator=generator) > 0.7
    masks[:, *[0] * (len(shape) - 1)] = True
    return (maps * steps).round() / steps if steps else maps, masks


# ---- slow loops: one image as a NumPy array, pixel by pixel


def _slow_pointing(map_: Any, mask: Any, tolerance: float) -> float:
    hits = []
    for at in np.argwhere(map_ == map_.max()):
        distance = min(math.dist(at, other) for other in np.argwhere(mask))
        hits.append(distance == 0 or distance < tolerance)
    return 100.0 * all(hits)


def _slow_mass(map_: Any, mask: Any) -> float:
    total = inside = 0.0
    for value, object_ in zip(map_.flat, mask.flat, strict=True):
        total += max(value, 0.0)
        inside += max(value, 0.0) if object_ else 0.0
    return 100 * inside / total


def _slow_rank(map_: Any, mask: Any) -> float:
    """The mean over all sets of the K most relevant pixels."""
    values, inside, size = map_.ravel(), mask.ravel(), int(mask.sum())
    best = sorted(values, reverse=True)[:size]
    sets = [one for one in combinations(range(len(values)), size) if sorted(values[list(one)], reverse=True) == best]
    return 100 * float(np.mean([inside[list(one)].sum() / size for one in sets]))


def _slow_iou(map_: Any, mask: Any, threshold: float) -> float:
    both = either = 0
    for value, object_ in zip(map_.flat, mask.flat, strict=True):
        both += value >= threshold and object_
        either += value >= threshold or object_
    return 100 * both / either


def _slow_best_iou(map_: Any, mask: Any) -> float:
    return max((_slow_iou(map_, mask, value) for value in set(map_.flat) if value > 0), default=0.0)


SLOW = {
    "pointing_hit": lambda map_, mask: _slow_pointing(map_, mask, 2),
    "energy_inside": _slow_mass,
    "relevance_mass": _slow_mass,
    "relevance_rank": _slow_rank,
    "mask_iou": lambda map_, mask: _slow_iou(map_, mask, 0.4),
    "best_mask_iou": _slow_best_iou,
}
ARGUMENTS = {"pointing_hit": {"tolerance": 2}, "mask_iou": {"threshold": 0.4}}


# ---- checks that take the functions under test


def check_by_hand(metrics: Any) -> None:
    found = {name: float(getattr(metrics, name)(MAP, OBJECT)) for name in NAMES}
    assert found == pytest.approx(
        {
            "pointing_hit": 100,
            "energy_inside": 70,  # 1.4 of 2.0
            "relevance_mass": 70,
            "relevance_rank": 100,  # the two largest values are the object
            "mask_iou": 100,
            "best_mask_iou": 100,
        },
        abs=1e-5,
    )
    assert metrics.mask_iou(MAP, OBJECT, 0.2).item() == pytest.approx(50)  # 2 of 4
    assert metrics.mask_iou(MAP, OBJECT, 0.6).item() == pytest.approx(50)  # 1 of 2
    other = OBJECT.roll(1, dims=2)
    assert metrics.pointing_hit(MAP, other, 0).item() == 0
    assert metrics.pointing_hit(MAP, other, 1).item() == 0
    assert metrics.pointing_hit(MAP, other, 1.01).item() == 100
    assert metrics.best_mask_iou(MAP, other).item() == pytest.approx(50)  # 2 of 4 above 0.2
    assert metrics.best_mask_iou(MAP + 0.05, OBJECT | True).item() == pytest.approx(100)  # of all pixels
    assert metrics.relevance_rank(MAP, other).item() == 0
    assert metrics.relevance_mass(-MAP + 0.5, OBJECT).item() == pytest.approx(0, abs=1e-6)


def check_slow_loops(metrics: Any) -> None:
    for seed, steps, shape in product(range(2), (0, 3), ((4, 3, 3), (3, 2, 2, 2))):
        maps, masks = _case(seed, *shape, steps=steps)
        for name in NAMES:
            found = getattr(metrics, name)(maps, masks, **ARGUMENTS.get(name, {}))
            with np.errstate(invalid="ignore"):
                expected = [SLOW[name](a, b) for a, b in zip(maps.numpy(), masks.numpy(), strict=True)]
            np.testing.assert_allclose(found, expected, **EXACT, err_msg=name)


def check_distances_are_euclidean(metrics: Any) -> None:
    maps, masks = torch.zeros(1, 9, 11), torch.zeros(1, 9, 11, dtype=torch.bool)
    masks[0, 4, 5] = True
    for y, x in product(range(9), range(11)):
        maps.zero_()
        maps[0, y, x] = 1
        for tolerance in (0, 0.5, 1, 2, 2.5, 3, 5, 100):
            away = math.dist((y, x), (4, 5))
            hit = metrics.pointing_hit(maps, masks, tolerance).item()
            assert hit == (100 if away == 0 or away < tolerance else 0), (y, x, tolerance)


def check_an_image_without_an_object_has_no_value(metrics: Any) -> None:
    for name in NAMES:
        assert getattr(metrics, name)(MAP, torch.zeros_like(OBJECT)).isnan().all(), name


def check_maps_that_are_not_finite_have_no_value(metrics: Any) -> None:
    for name, bad in product(NAMES, (math.nan, math.inf, -math.inf)):
        maps = MAP.clone()
        maps[0, 1, 1] = bad
        assert getattr(metrics, name)(maps, OBJECT).isnan().all(), (name, bad)


def check_maps_outside_their_range_have_no_value(metrics: Any) -> None:
    for name in ("mask_iou", "best_mask_iou"):
        assert getattr(metrics, name)(MAP + 0.2, OBJECT).isnan().all(), name
    for name in ("energy_inside", "mask_iou", "best_mask_iou"):
        assert getattr(metrics, name)(MAP - 0.2, OBJECT).isnan().all(), name
    for name in ("pointing_hit", "relevance_mass", "relevance_rank"):
        assert not getattr(metrics, name)(MAP * 7 - 0.2, OBJECT).isnan().any(), name


def check_a_map_of_zeros(metrics: Any) -> None:
    zeros = torch.zeros_like(MAP)
    found = [getattr(metrics, name)(zeros, OBJECT).item() for name in NAMES[1:]]
    third = 100 / 3  # the share of the image that the object covers
    np.testing.assert_allclose(found, [math.nan, math.nan, third, 0, 0], **EXACT)
    assert metrics.pointing_hit(zeros, OBJECT, 2).item() == 0
    assert metrics.pointing_hit(zeros, OBJECT).item() == 100  # no pixel is 15 away


def check_ties_do_not_count_for_the_map(metrics: Any) -> None:
    maps = torch.zeros(1, 1, 40)
    maps[0, 0, [0, 30]] = 1
    for start, hit in ((0, 0), (30, 0)):
        masks = torch.zeros(1, 1, 40, dtype=torch.bool)
        masks[0, 0, start] = True
        assert metrics.pointing_hit(maps, masks).item() == hit
    masks[0, 0, 10] = True
    assert metrics.pointing_hit(maps, masks).item() == 100


def check_precision_is_that_of_float64(metrics: Any) -> None:
    for name in NAMES:
        assert getattr(metrics, name)(MAP, OBJECT).dtype == torch.float64, name
    many = torch.full((1, 1, 3_000_000), 0.1)
    half = torch.arange(3_000_000)[None, None] < 1_500_000
    assert metrics.energy_inside(many, half).item() == pytest.approx(50, abs=1e-9)


def check_a_value_that_was_set_to_the_threshold_reaches_it(metrics: Any) -> None:
    for threshold in (0.1, 0.3, 0.7, 1.0):
        maps = torch.full((1, 1, 2), threshold)
        assert metrics.mask_iou(maps, torch.ones(1, 1, 2, dtype=torch.bool), threshold).item() == 100, threshold


MUTANTS = {
    "the margin counts": ("(squared < tolerance**2)", "(squared <= tolerance**2)"),
    "the object itself is forgotten": ("masks | (squared", "(squared"),
    "reach too short": ("math.ceil(tolerance) - 1", "math.ceil(tolerance) - 2"),
    "a box instead of a disc": ("+ step**2", "+ 0"),
    "any maximum is enough": ("~(largest & ~near).any(dim=1)", "(largest & near).any(dim=1)"),
    "hits as a fraction": ("100 * hit.double()", "hit.double()"),
    "negative relevance counts": (".double().clamp(min=0)", ".double()"),
    "sums in float32": ("flat.double().clamp", "flat.clamp"),
    "energy may be negative": ("flat, inside, low=0)", "flat, inside)"),
    "energy outside": ("(positive * inside)", "(positive * ~inside)"),
    "a place too few": ("(size - 1)", "(size - 2)"),
    "ties are given to the map": ("places * (level & inside)", "(level & inside)"),
    "ties are lost": ("+ chosen", "+ 0 * chosen"),
    "above only": ("right=True", "right=False"),
    "union counts twice": (".sum(dim=1, keepdim=True) - both\n", ".sum(dim=1, keepdim=True)\n"),
    "thresholds in another type": ("flat.new_tensor(_thresholds(thresholds))", "torch.tensor(thresholds).double() + 1e-9"),
    "ties are cut apart": ("ordered[:, 1:] < ordered[:, :-1]", "ordered[:, 1:] <= ordered[:, :-1]"),
    "zero marks": ("& (ordered > 0)", ""),
    "the last value is forgotten": ("(0, 1), value=True)", "(0, 1), value=False)"),
    "no object is a value": ("inside.any(dim=1) & ", ""),
    "nan is a value": ("& highest.isfinite()", ""),
    "above 1 counts": ("low=0, high=1)", "low=0)"),
}


test_the_metrics_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.localisation", "xaieval.metrics.pointing_game"], MUTANTS
)


# ---- properties

sized = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
cases = sized.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float64, shape, elements=st.integers(0, 8).map(lambda number: number / 8)), hnp.arrays(np.bool_, shape)
    )
).map(lambda pair: tuple(torch.from_numpy(one) for one in pair))


@PROPERTY
@given(cases)
def test_every_number_is_a_percentage_or_nan_and_of_its_image_alone(case):
    maps, masks = case
    for name in NAMES:
        function = getattr(metrics, name)
        values = function(maps, masks)
        assert (values.isnan() | ((values >= 0) & (values <= 100 + 1e-9))).all(), name
        alone = torch.cat([function(maps[i : i + 1], masks[i : i + 1]) for i in range(len(maps))])
        np.testing.assert_allclose(alone, values, **EXACT, err_msg=name)


@PROPERTY
@given(cases)
def test_flipping_image_and_object_together_changes_nothing(case):
    maps, masks = case
    for name in NAMES:
        function = getattr(metrics, name)
        np.testing.assert_allclose(function(maps, masks), function(maps.flip(1, 2), masks.flip(1, 2)), **EXACT, err_msg=name)


@PROPERTY
@given(cases, st.floats(0.1, 9))
def test_scale_and_order_that_do_not_matter(case, scale):
    maps, masks = case
    np.testing.assert_allclose(relevance_mass(maps * scale, masks), relevance_mass(maps, masks), **EXACT)
    for function in (pointing_hit, relevance_rank):
        np.testing.assert_allclose(function(maps**3 * scale - 2, masks), function(maps, masks), **EXACT)


@PROPERTY
@given(cases)
def test_the_best_threshold_is_at_least_as_good_as_any_and_is_one_of_them(case):
    maps, masks = case
    grid = [step / 8 for step in range(1, 9)]  # all values that the maps have
    curve = iou_curve(maps, masks, grid)
    np.testing.assert_allclose(best_mask_iou(maps, masks), curve.amax(dim=1), **EXACT)
    for place, threshold in enumerate(grid):
        np.testing.assert_allclose(curve[:, place], mask_iou(maps, masks, threshold), **EXACT)


@PROPERTY
@given(cases, st.floats(0, 8), st.floats(0, 8))
def test_a_wider_margin_never_loses_a_hit(case, one, other):
    maps, masks = case
    narrow, wide = (pointing_hit(maps, masks, tolerance).nan_to_num(-1) for tolerance in sorted((one, other)))
    assert (wide >= narrow).all()


@PROPERTY
@given(cases)
def test_the_object_itself_is_the_best_map(case):
    _, masks = case
    some = masks.flatten(1).any(dim=1)
    for name in NAMES:
        values = getattr(metrics, name)(masks.double(), masks)
        assert (values[some] == 100).all(), name
        assert values[~some].isnan().all(), name


@PROPERTY
@given(cases)
def test_energy_and_mass_are_one_number_where_nothing_is_negative(case):
    maps, masks = case
    np.testing.assert_allclose(energy_inside(maps, masks), relevance_mass(maps, masks), **EXACT)


# ---- beside other implementations


def _quantus(name: str, maps: Tensor, masks: Tensor, **choices: Any) -> Any:
    import quantus

    metric = getattr(quantus, name)(disable_warnings=True, display_progressbar=False, **choices)
    images = np.zeros((len(maps), 3, *maps.shape[1:]), dtype=np.float32)
    labels = np.zeros(len(maps), dtype=int)
    found = metric(model=None, x_batch=images, y_batch=labels, a_batch=maps[:, None].numpy(), s_batch=masks[:, None].numpy())
    return np.asarray(found, dtype=float)


def test_quantus_agrees_on_maps_without_ties_and_negative_values():
    maps, masks = _case(0, 12, 9, 14)
    np.testing.assert_array_equal(_quantus("PointingGame", maps, masks) * 100, pointing_hit(maps, masks, tolerance=0))
    for name, function in (("RelevanceMassAccuracy", relevance_mass), ("RelevanceRankAccuracy", relevance_rank)):
        np.testing.assert_allclose(_quantus(name, maps, masks) * 100, function(maps, masks), rtol=1e-9, err_msg=name)
    # It adds 1e-9 to the denominator.
    np.testing.assert_allclose(_quantus("AttributionLocalisation", maps, masks) * 100, energy_inside(maps, masks), rtol=1e-6)


def test_quantus_top_k_is_the_rank_accuracy_of_objects_of_k_pixels():
    maps, _ = _case(1, 6, 9, 14)
    masks = torch.zeros(6, 9, 14, dtype=torch.bool)
    masks[:, 2:7, 3:9] = True
    found = _quantus("TopKIntersection", maps, masks, k=30)
    np.testing.assert_allclose(found * 100, relevance_rank(maps, masks), rtol=1e-9)


def test_quantus_takes_any_of_several_maxima_for_a_hit():
    maps, masks = torch.zeros(1, 4, 8, dtype=torch.float64), torch.zeros(1, 4, 8, dtype=torch.bool)
    maps[0, 0, [0, 7]] = 1
    masks[0, 0, 7] = True
    assert _quantus("PointingGame", maps, masks) == 1
    assert pointing_hit(maps, masks, tolerance=0) == 0


def test_quantus_takes_an_image_without_an_object_for_a_hit():
    # NaN that is written into an array of bools is True.
    maps, masks = _case(2, 2, 4, 4)
    masks[1] = False
    assert _quantus("PointingGame", maps, masks)[1] == 1
    assert pointing_hit(maps, masks, tolerance=0)[1].isnan()


def test_quantus_lets_negative_relevance_cancel_positive():
    maps, masks = torch.zeros(1, 4, 4, dtype=torch.float64), torch.zeros(1, 4, 4, dtype=torch.bool)
    maps[0, 0, :3] = torch.tensor([3.0, 1.0, -2.0])
    masks[0, 0, 0] = True
    assert _quantus("RelevanceMassAccuracy", maps, masks) == pytest.approx(1.5)
    assert relevance_mass(maps, masks).item() == pytest.approx(75)


def test_quantus_puts_ties_in_the_order_of_a_sort():
    maps = torch.zeros(1, 4, 4, dtype=torch.float64)
    maps[0, 0, :3] = 1
    for place in range(3):
        masks = torch.zeros(1, 4, 4, dtype=torch.bool)
        masks[0, 0, place] = True
        assert relevance_rank(maps, masks).item() == pytest.approx(100 / 3)
        assert _quantus("RelevanceRankAccuracy", maps, masks) in (0, 1)


def _torchray(map_: Any, mask: Any, tolerance: float) -> bool:
    """TorchRay's formula: whether a disc around the first maximum meets the object."""
    v, u = np.unravel_index(map_.argmax(), map_.shape)
    rows, columns = np.indices(mask.shape)
    disc = (rows - v) ** 2 + (columns - u) ** 2 < tolerance**2
    return bool((mask & disc).any())


def test_the_formula_of_torchray_agrees_for_a_tolerance_of_a_pixel_and_more():
    maps, _ = _case(3, 40, 50, 60)
    masks = torch.zeros(40, 50, 60, dtype=torch.bool)
    masks[:, 20:24, 30:36] = True
    for tolerance in (1, 3, 15, 16.5):
        expected = [100.0 * _torchray(a, b, tolerance) for a, b in zip(maps.numpy(), masks.numpy(), strict=True)]
        assert pointing_hit(maps, masks, tolerance).tolist() == expected
    assert 0 < np.mean(expected) < 100
    # Its disc of radius 0 holds nothing, not even its centre.
    assert not _torchray(MAP[0].numpy(), OBJECT[0].numpy(), 0)
    assert pointing_hit(MAP, OBJECT, 0).item() == 100


@pytest.mark.parametrize("pooling", ["sum,pos", "sum,abs"])
def test_the_formulas_of_clevr_xai_agree_for_both_ways_to_make_relevance_positive(pooling):
    signed, masks = _case(4, 8, 7, 9)
    signed = signed - 0.4
    pooled = signed.clamp(min=0) if pooling == "sum,pos" else signed.abs()
    for map_, mask, mass, rank in zip(
        pooled.numpy(), masks.numpy(), relevance_mass(pooled, masks), relevance_rank(pooled, masks), strict=True
    ):
        assert mass.item() == pytest.approx(100 * map_[mask].sum() / map_.sum())
        order = np.argsort(map_.ravel())[::-1]
        assert (map_.ravel()[order[: mask.sum()]] > 0).all(), "no ties at the last place"
        assert rank.item() == pytest.approx(100 * mask.ravel()[order[: mask.sum()]].mean())


def test_the_script_of_score_cam_takes_rows_for_columns():
    maps, _ = _case(5, 1, 8, 8)
    x1, y1, x2, y2 = 1, 3, 4, 8
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, y1:y2, x1:x2] = True
    theirs = maps[0, x1:x2, y1:y2].sum() / maps.sum()
    assert energy_inside(maps, masks).item() != pytest.approx(100 * theirs.item())
    assert energy_inside(maps.transpose(1, 2), masks).item() == pytest.approx(100 * theirs.item())


# ---- errors and the registry

SHAPES = "maps and masks are of one shape, [N, H, W]; got {} and {}: resize the masks to the maps, or the maps to the images"
TYPES = "maps are floating-point and masks bool, got {} and {}; make masks from a label map with labels == label"


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_refused_word_for_word(name):
    function = getattr(metrics, name)
    for maps, masks, message in (
        (torch.ones(2, 3, 4), torch.ones(2, 4, 3, dtype=torch.bool), SHAPES.format([2, 3, 4], [2, 4, 3])),
        (torch.ones(2, 3, 4), torch.ones(1, 3, 4, dtype=torch.bool), SHAPES.format([2, 3, 4], [1, 3, 4])),
        (torch.ones(3), torch.ones(3, dtype=torch.bool), SHAPES.format([3], [3])),
        (torch.ones(2, 0, 4), torch.ones(2, 0, 4, dtype=torch.bool), SHAPES.format([2, 0, 4], [2, 0, 4])),
        (torch.ones(1, 3, 4), torch.ones(1, 3, 4), TYPES.format("float32", "float32")),
        (torch.ones(1, 3, 4).int(), torch.ones(1, 3, 4, dtype=torch.bool), TYPES.format("int32", "bool")),
    ):
        with pytest.raises(MetricError) as error:
            function(maps, masks)
        assert str(error.value) == message
    assert function(torch.ones(0, 3, 4), torch.ones(0, 3, 4, dtype=torch.bool)).shape == (0,)


def test_settings_out_of_range_are_refused_word_for_word():
    for tolerance in (-1, math.inf, math.nan):
        for call in (lambda value: pointing_hit(MAP, OBJECT, value), pointing_game, PointingGame):
            with pytest.raises(MetricError) as error:
                call(tolerance)
            assert str(error.value) == f"a tolerance is a distance in pixels, at least 0; got {tolerance}"
    for threshold in (0, -0.5, 1.1, math.nan):
        for call in (lambda value: mask_iou(MAP, OBJECT, value), iou, lambda value: MaskIoU(threshold=value)):
            with pytest.raises(MetricError) as error:
                call(threshold)
            assert str(error.value) == f"thresholds lie in (0, 1], in ascending order; got [{threshold}]"
    for thresholds in ([], [0.5, 0.5], [0.7, 0.2]):
        with pytest.raises(MetricError, match="ascending order"):
            iou_curve(MAP, OBJECT, thresholds)


def test_metrics_are_found_by_name_with_their_settings():
    found = resolve_metrics(ALL)
    assert [metric.name for metric in found] == [
        "pointing_game",
        "energy_pointing_game",
        "relevance_mass_accuracy",
        "relevance_rank_accuracy",
        "iou",
        "best_iou",
    ]
    assert all(metric.higher_is_better and metric.label.endswith("%") for metric in found)
    assert all(tuple(metric.needs) == ("maps", "masks") for metric in found)
    assert [metric.interval for metric in found] == ["wilson"] + ["mean"] * 5
    assert METRICS["pointing_game"].settings == {"tolerance": 15}
    assert METRICS["iou"].settings == {"threshold": 0.5}
    assert METRICS["pointing_game"].per_image.keywords == {"tolerance": 15}


# ---- torchmetrics

CLASSES = (PointingGame, EnergyPointingGame, RelevanceMassAccuracy, RelevanceRankAccuracy, MaskIoU, BestMaskIoU)


@pytest.mark.parametrize(("kind", "name"), list(zip(CLASSES, NAMES, strict=True)))
def test_a_class_over_batches_is_the_mean_over_all_images_with_an_object(kind, name):
    maps, masks = _case(6, 9, 30, 30)
    masks[4] = False
    metric = kind()
    for part in (slice(0, 5), slice(5, 6), slice(6, 9)):
        metric.update(maps[part], masks[part])
    expected = getattr(metrics, name)(maps, masks)
    assert float(metric.compute()) == pytest.approx(float(expected.nanmean()), abs=1e-9)
    assert int(getattr(metric, f"{metric.metric.name}_failed")) == 1
    assert metric.higher_is_better
    with pytest.raises(MetricError, match="of one shape"):
        metric.update(maps[:2], masks[:3])


def test_a_collection_keeps_all_of_them_apart():
    collection = MetricCollection([kind() for kind in CLASSES])
    maps, masks = _case(7, 6, 10, 10)
    collection.update(masks[:2].double(), masks[:2])  # all are 100
    collection.update(maps, masks)
    found = collection.compute()
    for kind, name in zip(CLASSES, NAMES, strict=True):
        values = torch.cat([torch.full((2,), 100.0), getattr(metrics, name)(maps, masks)])
        assert float(found[kind.__name__]) == pytest.approx(float(values.mean()), abs=1e-6)


# ---- in a run


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()  # fmt: skip


def test_a_run_has_the_numbers_of_its_maps_and_counts_images_without_an_object():
    images = torch.randn(6, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(6, 40, 40, dtype=torch.bool)
    masks[:, 5:18, 22:36] = True
    masks[3] = False
    loader = [{"images": images[:4], "masks": masks[:4]}, {"images": images[4:], "masks": masks[4:]}]
    near = pointing_game(tolerance=3, name="near")
    scores = xaieval.score(_net(), loader, "1", ["gradcam"], metrics=[*ALL, near], progress=False)
    maps = xaieval.explain(_net(), images, "1")["1"]
    for metric in (*resolve_metrics(ALL), near):
        expected = metric.per_image(maps, masks)
        np.testing.assert_allclose(scores.rows[metric.name], expected, rtol=1e-4, atol=1e-3, err_msg=metric.name)
        row = scores.summary().loc[("1", "gradcam")]
        assert row[metric.name] == pytest.approx(float(expected.nanmean()), rel=1e-4, abs=1e-3)
        assert row[f"{metric.name}_low"] <= row[metric.name] <= row[f"{metric.name}_high"]
        assert (row[f"{metric.name}_n"], row["n_images"], row["n_failed"]) == (5, 6, 0)
    assert scores.manifest["run"]["metric settings"]["near"] == {"tolerance": 3}


def test_layers_are_selected_on_the_images_that_have_an_object():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten())  # fmt: skip
    images = torch.randn(8, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    masks = images[:, 0] > 1
    masks[2] = False
    metrics = ["average_drop", "best_iou"]
    scores = xaieval.score(net.eval(), [{"images": images, "masks": masks}], ["0", "2"], metrics=metrics, progress=False)
    assert scores.select_layers(by=metrics).n_images == 7


def test_volumes_are_compared_with_masks_and_not_with_boxes():
    net = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 3)).eval()
    volumes = torch.rand(2, 1, 6, 8, 8)
    masks = torch.zeros(2, 6, 8, 8, dtype=torch.bool)
    masks[:, 1:4, 2:6, 2:6] = True
    rows = xaieval.score(net, [{"images": volumes, "masks": masks}], "1", metrics=ALL, progress=False).rows
    maps = xaieval.explain(net, volumes, "1")["1"]
    np.testing.assert_allclose(rows["relevance_rank_accuracy"], relevance_rank(maps, masks), rtol=1e-4)
    with pytest.raises(MetricError, match="of one shape"):
        xaieval.score(net, [{"images": volumes, "boxes": [[2, 2, 6, 6]] * 2}], "1", metrics=["iou"], progress=False)


@pytest.mark.slow
def test_a_protocol_makes_relevance_positive_in_both_ways_of_the_paper():
    def signed(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return images[:, 0]

    images = torch.randn(4, 3, 20, 20, generator=torch.Generator().manual_seed(2))
    masks = images[:, 1] > 0.5
    for absolute, positive in ((False, images[:, 0].clamp(min=0)), (True, images[:, 0].abs())):
        protocol = xaieval.Protocol(normalisation="max", absolute=absolute)
        loader = [{"images": images, "masks": masks}]
        rows = xaieval.score(
            _net(), loader, "1", [signed], metrics=["relevance_mass_accuracy"], protocol=protocol, progress=False
        ).rows
        np.testing.assert_allclose(rows["relevance_mass_accuracy"], relevance_mass(positive, masks), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_detectors_and_segmentation_networks_are_compared_with_boxes(task):
    from torchvision.models import detection, segmentation

    torch.manual_seed(0)
    if task == "detection":
        model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=96, box_score_thresh=0.0,
            box_detections_per_img=5, rpn_post_nms_top_n_test=40,
        ).eval()  # fmt: skip
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, 0, 0.2)  # classes that are told apart
        nn.init.constant_(model.roi_heads.box_predictor.bbox_pred.bias, 1.0)  # boxes that have an area
    else:
        model = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    layer = "backbone.fpn[0]" if task == "detection" else "backbone[high]"
    images = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(3))
    boxes = [torch.tensor([[10.0, 20, 50, 60], [60, 0, 80, 30]]), torch.zeros(0, 4)]
    loader = [{"images": images, "boxes": boxes, "ids": ["two objects", "none"]}]
    scores = xaieval.score(model, loader, layer, ["gradcam"], metrics=ALL, task=task, fast=False, progress=False)
    maps = xaieval.explain(model, images, layer, task=task)[layer]
    masks = torch.zeros(2, 64, 80, dtype=torch.bool)
    masks[0, 20:60, 10:50] = True
    masks[0, 0:30, 60:80] = True
    rows = scores.rows.set_index("image_id")
    assert rows["status"].tolist() == ["ok", "ok"]
    for metric in resolve_metrics(ALL):
        assert rows.loc["two objects", metric.name] == pytest.approx(float(metric.per_image(maps, masks)[0]), rel=1e-3)
        assert math.isnan(rows.loc["none", metric.name])
