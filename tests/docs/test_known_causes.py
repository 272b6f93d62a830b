"""The benchmarks on models with known causes: their maps, their counts, and the tables of their page."""

from __future__ import annotations

import importlib
import json
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from tests import ROOT
from xaieval.data.scenes import CUES, make_scene
from xaieval.metrics import FAMILIES, METRICS


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script of `benchmarks/` by its name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture
def causes(benchmark):
    return benchmark("known_causes")


@pytest.fixture
def criteria(benchmark):
    return benchmark("metaquantus")


@pytest.fixture
def fooling(benchmark):
    return benchmark("fooling")


def _square() -> np.ndarray:
    mask = np.zeros((128, 128), dtype=bool)
    mask[20:30, 40:50] = True
    return mask


# ---- the maps


@pytest.mark.parametrize("seed", range(20))
def test_a_shifted_map_has_the_size_of_the_true_one_and_no_pixel_in_common(causes, seed):
    mask = make_scene(seed, cue="object").mask
    moved = causes.shifted(mask, np.random.default_rng(seed))
    assert moved.sum() == mask.sum()
    assert not (moved * mask).any()


def test_half_of_a_map_is_its_left_or_right_half(causes):
    halves = {causes.half(_square(), np.random.default_rng(seed)).tobytes() for seed in range(10)}
    expected = set()
    for columns in (slice(40, 45), slice(45, 50)):
        kept = np.zeros((128, 128))
        kept[20:30, columns] = 1
        expected.add(kept.tobytes())
    assert halves == expected


def test_a_map_of_twice_the_size_holds_the_true_one_and_what_is_nearest(causes):
    grown = causes.twice(_square())
    assert grown.sum() == 200
    assert grown[_square()].all()
    assert not grown[:16].any()
    assert not grown[34:].any()


def test_all_maps_lie_in_the_unit_interval_and_keep_their_places(causes):
    scene = make_scene(1, cue="texture")
    maps = causes.maps_of(scene, np.random.default_rng(0))
    assert list(maps) == [causes.TRUE, *causes.FALSE]
    assert all(made.min() >= 0 and made.max() <= 1 for made in maps.values())
    assert np.array_equal(maps["true"] > 0.5, scene.mask)
    assert np.array_equal(maps["distractor"] > 0.5, scene.distractor)
    assert (maps["everything"] > 0.5).sum() == 128 * 128 - 1
    ordered = causes.without_equals(maps, np.random.default_rng(0))
    for name, made in ordered.items():
        assert np.abs(made - maps[name]).max() <= causes.NOISE
        assert len(np.unique(made.astype(np.float32))) > 9, "equal pixels, which curves would take row by row, are put in order"
    assert len(np.unique(ordered["true"])) == 128 * 128


# ---- the counts


def test_a_true_map_that_is_better_in_three_of_four_images_with_a_tie_has_a_share_of_seven_eighths(causes):
    found = causes.counted(pd.Series([1.0, 2.0, 0.0, 3.0]))
    assert (found["wins"], found["ties"], found["losses"]) == (3, 1, 0)
    assert found["share"] == 87.5
    assert found["low"] < 87.5 < found["high"]
    assert found["mean_difference"] == 1.5


def test_lower_is_turned_into_better_and_missing_values_are_left_out(causes):
    methods = [causes.TRUE, *causes.FALSE]
    rows = pd.DataFrame([{"image_id": str(i), "method": method} for i in range(8) for method in methods])
    rows["drop"] = np.where(rows["method"] == "true", 1.0, 2.0)
    rows.loc[(rows["image_id"] == "0") & (rows["method"] == "half"), "drop"] = np.nan
    found = causes.recognised(rows, {"drop": -1}).set_index("false_map")
    assert found.loc["shifted", ["wins", "ties", "losses"]].tolist() == [8, 0, 0]
    assert found.loc["half", ["wins", "ties", "losses"]].tolist() == [7, 0, 0]
    assert found.loc["shifted", ["mean_true", "mean_false"]].tolist() == [1, 2]


def test_verdicts_follow_the_corrected_p_value_and_the_sign(causes):
    counts = pd.DataFrame(
        {"metric": ["a", "a", "b"], "p": [0.001, 0.03, 0.03], "mean_difference": [1.0, -1.0, -1.0]}, index=[0, 1, 2]
    )
    assert causes.judged(counts)["verdict"].tolist() == ["recognised", "fooled", "fooled"]
    assert causes.judged(counts)["p_holm"].tolist() == [0.002, 0.03, 0.03]
    assert causes.judged(counts.assign(p=[0.001, 0.06, 0.03]))["verdict"].tolist() == ["recognised", "not told apart", "fooled"]


def test_shares_are_pooled_over_cues(causes):
    cells = pd.DataFrame({"wins": [10, 5], "ties": [0, 4], "losses": [0, 1], "verdict": ["recognised", "fooled"]})
    assert causes.pooled(cells) == "85 (1)"
    assert causes.pooled(cells.iloc[:1]) == "100"
    assert causes.pooled(cells.iloc[:0]) == ""


def test_every_metric_is_scored_or_named_with_the_reason(benchmark, causes):
    coarse = benchmark("coarse")
    left, scored = coarse.left_out(), [metric.name for metric in coarse.judges_one_map()]
    assert sorted([*left, *scored]) == sorted(METRICS)
    assert all(left.values())
    assert set(coarse.COSTLY) <= set(scored)
    assert set(causes.results()["base"]) == set(scored)
    # The run names each input of a metric; whatever asks the method again is no judge of one map.
    given = {"confidence", "masked_confidence", "inverse_confidence", "maps", "attributions", "masks", "boxes", "images", "ask"}
    given |= {"ask_hits", "draw", "segment", "protocol", "targets", "logits"}
    assert all(set(METRICS[name].needs) <= given for name in scored)
    described = {name for name, metric in METRICS.items() if metric.higher_is_better is None}
    assert all(name in described or not set(METRICS[name].needs) <= given for name in left)


def test_coarse_settings_keep_what_a_metric_is(benchmark):
    for name, metric in benchmark("coarse").SETTLED.items():
        former = METRICS[name]
        assert (metric.needs, metric.higher_is_better, metric.family) == (former.needs, former.higher_is_better, former.family)


def test_rows_come_family_by_family_with_what_is_added_to_a_name(causes):
    names = ["iou_of_object", "iou", "road_excess", "complexity", "road", "average_drop"]
    found = causes.in_order(pd.DataFrame({"metric": names}))
    assert found["metric"].tolist() == ["average_drop", "road_excess", "road", "iou_of_object", "iou", "complexity"]
    assert found["kind"].tolist() == ["", "_excess", "", "_of_object", "", ""]
    assert found["family"].tolist() == sorted(found["family"], key=list(FAMILIES).index)


def test_results_of_other_metrics_stay(causes, monkeypatch, tmp_path):
    def scored(cue, chosen, images, seed, matched):
        methods = [causes.TRUE, *causes.FALSE]
        rows = pd.DataFrame(
            [{"image_id": str(i), "method": m, "label": 0, "predicted": 0} for i in range(images) for m in methods]
        )
        names = [*(metric.name for metric in chosen), *(f"{metric.name}_excess" for metric in chosen if matched)]
        for name in names:
            rows[name] = (rows["method"] == causes.TRUE) * 1.0
        return rows, [{"name": name, "higher_is_better": True} for name in names]

    monkeypatch.setattr(causes, "score_cue", scored)
    monkeypatch.setattr(causes, "accuracy_of", lambda *_: {})
    causes.score(["object"], metrics=["road", "irof"], images=9, few=7, out=tmp_path)
    causes.score(["object"], metrics=["road"], images=8, matched=False, out=tmp_path)
    found = pd.read_csv(tmp_path / "object.csv").drop_duplicates("metric").set_index("metric")
    assert found["wins"].to_dict() == {"road": 8, "irof": 7}, "the excess goes with the metric"
    about = json.loads((tmp_path / "object.json").read_text())
    assert about["images"] == {"road": 8, "irof": 7}
    assert about["metrics"]["road"]["fractions"] == [0.05, 0.15]


# ---- MetaQuantus


def test_intra_consistency_of_the_same_values_is_one_after_a_small_and_zero_after_a_large_perturbation(criteria):
    before, kept = np.arange(20.0).reshape(2, 10), np.ones(10, dtype=bool)
    assert criteria.intra_consistency(before, before, kept, "small") == 1
    assert criteria.intra_consistency(before, before, kept, "large") == 0
    # All ten differences have one sign: the exact two-sided p-value is 2 / 2^10.
    moved = before - np.arange(1, 11)
    assert criteria.intra_consistency(before, moved, kept, "small") == pytest.approx(2 / 2**10)
    assert criteria.intra_consistency(before, moved, kept, "large") == pytest.approx(1 - 2 / 2**10)


def test_inter_consistency_counts_ranks_and_falls(criteria):
    before = np.array([[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]])
    after = np.array([[2.5, 1.0], [2.0, 2.0], [0.0, 3.0]])  # the ranks of image 1 are turned around, the middle one stays
    kept = np.array([True, True])
    assert criteria.inter_consistency(before, after, kept, "small") == pytest.approx(4 / 6)
    assert criteria.inter_consistency(before, after, kept, "large") == pytest.approx(3 / 6)
    assert criteria.inter_consistency(before, after, np.array([True, False]), "small") == 1


def test_images_without_values_are_left_out_of_the_criteria(criteria):
    before = np.array([[1.0, np.nan, 2.0], [2.0, 1.0, 1.0]])
    kept = np.array([True, True, False])
    assert criteria.inter_consistency(before, before, kept, "small") == 1
    assert np.isnan(criteria.inter_consistency(before, before, np.array([False, True, False]), "small"))
    assert np.isnan(criteria.intra_consistency(before * np.nan, before, kept, "large"))


def test_perturbed_weights_leave_the_model_as_it_was(criteria):
    model = torch.nn.Linear(4, 2)
    weights = model.weight.clone()
    other = criteria.perturbed_weights(model, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(model.weight, weights)
    assert not torch.equal(other.weight, weights)
    assert torch.equal(criteria.perturbed_weights(model, 0.0, torch.Generator()).weight, weights)


# ---- the fooling suite


def test_a_map_fools_a_metric_if_it_is_better_than_grad_cam_at_its_best_layer(fooling):
    rng = np.random.default_rng(0)
    records = []
    for image in range(30):
        for layer, level in (("deep", 10.0), ("shallow", 30.0)):
            records.append({"image_id": str(image), "layer": layer, "method": "gradcam", "drop": level + rng.normal()})
        for cheat, level in zip(fooling.FIVE, (0.0, 5.0, 9.999, 20.0, 40.0), strict=True):
            records.append({"image_id": str(image), "layer": "input", "method": cheat, "drop": level + rng.normal()})
    found = fooling.fooled(pd.DataFrame(records), {"drop": -1}).set_index("map")
    assert found["layer"].unique().tolist() == ["deep"]
    assert found["fooled"].tolist() == [True, True, False, False, False], "20 beats the shallow layer, but not the best one"
    assert found.loc["uniform", "mean_gradcam"] == pytest.approx(10, abs=1)


def test_noise_is_new_in_each_pass_and_a_point_is_one_pixel(fooling):
    images = torch.rand(2, 3, 8, 8)
    first, second = (fooling.noise(None, images, None) for _ in range(2))
    assert first.shape == (2, 8, 8)
    assert not torch.equal(first, second)
    assert (fooling.point(None, images, None) == 1).sum(dim=(1, 2)).tolist() == [1, 1]


# ---- the page


def test_tables_are_filled_below_their_marks(benchmark):
    text = "# Title\n<!-- from a -->\n| old |\n\n<!-- from b -->\n| kept |\n"
    assert benchmark("page_tables").filled(text, {"a": lambda: ["| new |"]}) == text.replace("old", "new")


def test_the_tables_of_the_page_are_the_results(causes, criteria, fooling, tmp_path):
    page = tmp_path / "page.md"
    text = (ROOT / "docs/known_causes.md").read_text()
    page.write_text(text)
    for made in (causes, criteria, fooling):
        made.tables(page)
    assert page.read_text() == text
    assert text.count("<!-- from ") == 10
    assert set(causes.results()["cue"]) == set(CUES)
