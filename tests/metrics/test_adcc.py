"""ADCC, coherency and complexity: by hand, by slow loops, against the authors' formulas, and in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ConstantInputWarning, pearsonr
from torch import Tensor, nn
from torchmetrics import MetricCollection

import xaieval
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import ADCC, METRICS, Coherency, Complexity, adcc, coherency, complexity, drop

PROPERTY = settings(deadline=None, max_examples=60)

NAN, INF = math.nan, math.inf


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _maps(count: int = 6, shape: tuple[int, ...] = (5, 7), seed: int = 0) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def authors(y: float, o: float, saliency: np.ndarray, again: np.ndarray) -> dict[str, float]:
    """The values of the authors' code (aimagelab/ADCC) for one image, as fractions, reimplemented.

    Maps are min-max normalised before, which makes a constant map NaN; its rescaled correlation is then 0.
    """
    ad = max(0.0, y - o) / y
    com = np.abs(saliency).sum() / (saliency.shape[-1] * saliency.shape[-2])
    missing = np.isnan(saliency).any() or np.isnan(again).any()
    coh = 0.0 if missing else (pearsonr(saliency.ravel(), again.ravel())[0] + 1) / 2
    return {"coherency": coh, "complexity": com, "adcc": 3 / (1 / coh + 1 / (1 - com) + 1 / (1 - ad)) if coh else 0.0}


# ---- checks that take the functions under test


def check_by_hand(metrics: Any) -> None:
    maps = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]).expand(3, 2, 2)
    again = torch.tensor([[[0.0, 0.5], [0.0, 0.5]], [[0.7, 0.2], [0.7, 0.2]], [[0.0, 0.0], [1.0, 1.0]]])
    assert torch.allclose(metrics.coherency(maps, again), _vector(100, 0, 50))
    assert torch.allclose(metrics.complexity(again), _vector(25, 45, 50))
    # 1 / 0.5 + 1 / (1 - 0.2) + 1 / (1 - 0.6) = 2 + 1.25 + 2.5 = 5.75
    assert torch.allclose(metrics.adcc(_vector(60), _vector(50), _vector(20)), _vector(300 / 5.75))


def check_slow_loops(metrics: Any) -> None:
    maps, again = _maps().double(), _maps(seed=1).double()
    for index, (one, other) in enumerate(zip(maps.tolist(), again.tolist(), strict=True)):
        first, second = [value for row in one for value in row], [value for row in other for value in row]
        mean, mean_again = sum(first) / 35, sum(second) / 35
        both = sum((a - mean) * (b - mean_again) for a, b in zip(first, second, strict=True))
        spread = math.sqrt(sum((a - mean) ** 2 for a in first)) * math.sqrt(sum((b - mean_again) ** 2 for b in second))
        assert float(metrics.coherency(maps, again)[index]) == pytest.approx(50 * (1 + both / spread), abs=1e-9)
        assert float(metrics.complexity(maps)[index]) == pytest.approx(100 * mean, abs=1e-9)


def check_one_bad_part_makes_it_zero(metrics: Any) -> None:
    found = metrics.adcc(_vector(100, 0, 0, 0), _vector(100, 0, 100, 100), _vector(0, 0, 100, 0))
    assert found.tolist() == [0, 0, 0, 100]


def check_parts_that_cannot_be_are_nan(metrics: Any) -> None:
    assert metrics.adcc(_vector(NAN, 0, 0), _vector(1, NAN, 1), _vector(1, 1, NAN)).isnan().all()
    assert metrics.adcc(_vector(101, -1, 0, 0), _vector(9, 9, 9, 101), _vector(9, 9, 101, 9)).isnan().all()


def check_constant_maps_have_no_correlation(metrics: Any) -> None:
    maps = _maps(4)
    again = maps.clone()
    maps[0], again[1], maps[2], again[2], again[3] = 0, 0.3, 0.1, 0.1, torch.nan
    assert metrics.coherency(maps, again).isnan().all()
    assert metrics.coherency(maps, again, constant=0)[:3].tolist() == [0, 0, 0]
    assert metrics.coherency(maps, again, constant=0)[3].isnan(), "a map of NaN is no constant one"


def check_sizes_far_from_one_neither_underflow_nor_overflow(metrics: Any) -> None:
    maps, again = _maps().double(), _maps(seed=1).double()
    for scale in (1e-200, 1e200):
        found = metrics.coherency(scale * maps, again / scale)
        assert torch.allclose(found, metrics.coherency(maps, again), rtol=0, atol=1e-6)


def check_volumes_are_maps_too(metrics: Any) -> None:
    maps, again = _maps(3, (2, 3, 4)), _maps(3, (2, 3, 4), 1)
    flat, flat_again = maps.reshape(3, 6, 4), again.reshape(3, 6, 4)
    assert torch.equal(metrics.coherency(maps, again), metrics.coherency(flat, flat_again))
    assert torch.equal(metrics.complexity(maps), metrics.complexity(flat))


def check_absolute_values_are_complex(metrics: Any) -> None:
    assert metrics.complexity(torch.tensor([[[-1.0, 1.0]]])).tolist() == [100]


MUTANTS = {
    "correlation not rescaled": ("50 * (1 + pearson(maps, masked_maps))", "100 * pearson(maps, masked_maps)"),
    "coherency as a share": ("50 * (1 +", "0.5 * (1 +"),
    "constant maps count": (".masked_fill(flat, constant)", ".nan_to_num(0)"),
    "only the first map may be constant": (" | _is_constant(masked_maps)", ""),
    "complexity as a sum": (".abs().flatten(1).mean(dim=1)", ".abs().flatten(1).sum(dim=1)"),
    "signs cancel": (".double().abs().flatten(1)", ".double().flatten(1)"),
    "complexity as a share": ("return 100 * maps", "return maps"),
    "arithmetic mean": ("3 / (1 / parts).sum(dim=0)", "parts.mean(dim=0)"),
    "multiplied by 3, as the first published code": ("3 / (1 / parts)", "3 * (1 / parts)"),
    "complexity instead of its rest": ("100 - complexity.double()", "complexity.double()"),
    "drop instead of its rest": ("100 - drop.double()", "drop.double()"),
    "parts above 100 count": (" & (parts <= 100)", ""),
    "parts below 0 count": ("(parts >= 0) & ", ""),
    "cosine instead of correlation": (" - flat.mean(dim=1, keepdim=True)", ""),
    "covariance instead of correlation": (" / (one.square().sum(dim=1) * other.square().sum(dim=1)).sqrt()", ""),
    "squares underflow": ("return centred / largest", "return centred"),
}


test_adcc_and_its_parts_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.similarity", "xaieval.metrics.adcc"], MUTANTS
)


# ---- the authors' code


def test_every_part_is_that_of_the_authors():
    maps, again = _maps(), _maps(seed=1)
    y, o = _vector(0.9, 0.5, 0.4, 0.8, 0.3, 0.7), _vector(0.6, 0.9, 0.4, 0.01, 0.2, 0.5)
    theirs = [authors(*numbers) for numbers in zip(y.tolist(), o.tolist(), maps.numpy(), again.numpy(), strict=True)]
    ours = {"coherency": coherency(maps, again), "complexity": complexity(maps)}
    ours["adcc"] = adcc(drop(y, o), ours["coherency"], ours["complexity"])
    for name, values in ours.items():
        np.testing.assert_allclose(values / 100, [one[name] for one in theirs], rtol=1e-6, atol=0)


def test_where_the_authors_give_a_constant_map_no_coherency_we_leave_the_image_out_unless_told():
    map_, again = _maps(1), torch.full((1, 5, 7), 0.4)
    normalised = np.full((5, 7), np.nan)  # what their min-max normalisation leaves of it
    assert authors(0.5, 0.5, map_[0].numpy(), normalised)["coherency"] == 0
    assert coherency(map_, again).isnan()
    assert coherency(map_, again, constant=0).item() == 0
    with pytest.warns(ConstantInputWarning):  # and without normalisation it would have no value either
        assert math.isnan(pearsonr(map_.numpy().ravel(), again.numpy().ravel())[0])


# ---- properties

fields = st.integers(0, 2**16)


@PROPERTY
@given(fields, st.floats(0.01, 100), st.floats(-1, 1))
def test_coherency_does_not_care_for_scale_and_offset(seed, scale, offset):
    maps, again = _maps(3, seed=seed).double(), _maps(3, seed=seed + 1).double()
    found = coherency(maps, again)
    torch.testing.assert_close(coherency(scale * maps + offset, again), found, rtol=0, atol=1e-6)
    torch.testing.assert_close(coherency(again, maps), found, rtol=0, atol=1e-9)
    torch.testing.assert_close(coherency(maps, -again), 100 - found, rtol=0, atol=1e-9)
    torch.testing.assert_close(coherency(maps, scale * maps), torch.full_like(found, 100), rtol=0, atol=1e-6)
    assert ((found >= 0) & (found <= 100)).all()


percent = st.floats(0, 100)


@PROPERTY
@given(percent, percent, percent)
def test_adcc_lies_between_its_worst_and_its_best_part(ad, coh, com):
    found = float(adcc(_vector(ad), _vector(coh), _vector(com)))
    parts = (coh, 100 - com, 100 - ad)
    assert min(parts) - 1e-9 <= found <= max(parts) + 1e-9
    assert found <= 3 * min(parts) + 1e-9, "one bad part is not made up for by the others"


def test_a_map_of_ones_but_one_pixel_is_found_out():
    # Fake-CAM of Poppi et al.: it drops nothing and agrees with itself, so AD and coherency are as good as can be.
    fake = torch.ones(1, 20, 20)
    fake[0, 0, 0] = 0
    nothing = _vector(0.0)
    assert coherency(fake, fake).item() == pytest.approx(100)
    assert complexity(fake).item() == pytest.approx(99.75)
    assert adcc(nothing, coherency(fake, fake), complexity(fake)).item() < 0.75


# ---- errors, registry, classes


def test_wrong_shapes_are_refused_word_for_word():
    with pytest.raises(MetricError) as error:
        coherency(torch.ones(2, 3, 3), torch.ones(2, 3, 4))
    assert str(error.value) == (
        "maps and masked_maps are [N, H, W] (volumes [N, D, H, W]) of one shape, got [2, 3, 3] and [2, 3, 4]"
    )
    with pytest.raises(MetricError) as error:
        complexity(torch.ones(3, 3))
    assert str(error.value) == "maps are [N, H, W] (volumes [N, D, H, W]), got [3, 3]"
    with pytest.raises(MetricError) as error:
        adcc(torch.ones(2), torch.ones(2), torch.ones(3))
    assert str(error.value) == (
        "drop, coherency and complexity are vectors [N] of one length, or three numbers; got [2], [2] and [3]"
    )


def test_the_registry_says_what_each_needs():
    needs = {name: METRICS[name].needs for name in ("coherency", "complexity", "adcc")}
    assert needs == {
        "coherency": ("maps", "masked_maps"),
        "complexity": ("maps",),
        "adcc": ("confidence", "masked_confidence", "maps", "masked_maps"),
    }
    assert [METRICS[name].higher_is_better for name in needs] == [True, False, True]


def test_the_classes_are_means_over_batches_that_count_what_has_no_value():
    maps, again = _maps(9), _maps(9, seed=1)
    again[4] = 0.5
    y, o = torch.linspace(0.2, 1, 9), torch.linspace(0.9, 0.1, 9)
    metrics = {"coherency": Coherency(), "complexity": Complexity(), "adcc": ADCC()}
    for part in (slice(0, 4), slice(4, 9)):
        metrics["coherency"].update(maps[part], again[part])
        metrics["complexity"].update(maps[part])
        metrics["adcc"].update(y[part], o[part], maps[part], again[part])
    expected = {"coherency": coherency(maps, again), "complexity": complexity(maps)}
    expected["adcc"] = adcc(drop(y, o), expected["coherency"], expected["complexity"])
    for name, metric in metrics.items():
        assert float(metric.compute()) == pytest.approx(float(expected[name].nanmean()), abs=1e-9)
        assert int(getattr(metric, f"{name}_failed")) == (0 if name == "complexity" else 1)
    assert [metric.higher_is_better for metric in metrics.values()] == [True, False, True]


def test_a_collection_keeps_the_classes_apart():
    collection = MetricCollection({"complexity": Complexity(), "same": Complexity()}, compute_groups=True)
    collection.update(_maps())
    assert float(collection.compute()["complexity"]) == pytest.approx(float(complexity(_maps()).mean()))


# ---- in a run


def _model() -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(*layers).eval()


def test_a_run_gives_the_numbers_of_a_loop_over_images_and_of_the_authors():
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    scores = xaieval.score(_model(), [images[:4], images[4:]], "1", metrics=["coherency", "complexity", "adcc"], progress=False)
    model = _model()
    for row, image in zip(scores.rows.to_dict("records"), images.split(1), strict=True):
        with torch.no_grad():
            probabilities = model(image).softmax(dim=1)[0]
        target = int(probabilities.argmax())
        map_ = xaieval.explain(model, image, "1")["1"]
        masked = image * map_[:, None]
        again = xaieval.explain(model, masked, "1", target=target)["1"]
        with torch.no_grad():
            o = float(model(masked).softmax(dim=1)[0, target])
        theirs = authors(float(probabilities[target]), o, map_[0].numpy(), again[0].numpy())
        for name, expected in theirs.items():
            assert row[name] == pytest.approx(100 * expected, abs=1e-2), name
    summary = scores.summary().loc[("1", "gradcam")]
    assert summary["adcc_low"] <= summary["adcc"] <= summary["adcc_high"]


def test_the_mean_over_images_is_not_the_adcc_of_the_means():
    # One image drops wholly: its ADCC is 0, which the harmonic mean of the three means does not show.
    ad, coh, com = _vector(0, 100), _vector(90, 90), _vector(20, 20)
    assert float(adcc(ad, coh, com).mean()) == pytest.approx(44.6, abs=0.05)
    assert float(adcc(ad.mean(), coh.mean(), com.mean())) == pytest.approx(68.8, abs=0.05)


def test_controls_whose_maps_are_constant_have_a_complexity_and_no_coherency():
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = xaieval.score(_model(), [images], "1", "uniform", metrics=["coherency", "complexity"], progress=False)
    assert scores.rows["coherency"].isna().all()
    assert set(scores.rows["complexity"]) <= {0.0, 100.0}
    assert int(scores.summary()["coherency_n"].iloc[0]) == 0
