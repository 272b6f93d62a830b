"""Groups that a run does not know of: the intraclass correlation, against a slow loop, and when the finding fires."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.images_in_groups import draw_run
from tests import ROOT
from xaieval.analysis.grouping import find_in_groups, likeness
from xaieval.evaluation.scores import Scores
from xaieval.results.record import RunRecord

METRIC = {"name": "average_drop", "label": "AD %", "higher_is_better": False, "interval": "mean"}


def run(values: Any, ids: list[str] | None = None, label: Any = None, **columns: Any) -> Scores:
    """A run of one layer, or of as many as `values [N, L]` has columns."""
    table = np.atleast_2d(np.asarray(values, dtype=float).T).T
    count, layers = table.shape
    rows = pd.DataFrame(
        {
            "image_id": np.repeat(ids or [f"i{number}" for number in range(count)], layers),
            "layer": [f"p{number}" for number in range(layers)] * count,
            "method": "gradcam",
            "label": pd.array(np.repeat(label if label is not None else [None] * count, layers), dtype="Int64"),
            "average_drop": table.ravel(),
            "status": "ok",
        }
    ).assign(**{name: np.repeat(column, layers) for name, column in columns.items()})
    return Scores(rows, {"metrics": [METRIC]})


def in_classes(correlation: float, images: int = 200, classes: int = 20, layers: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """Values `[N, L]` of images in the order of their classes, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(images) % classes)
    own = rng.normal(size=(images, 1)) + 0.3 * rng.normal(size=(images, layers))
    return 50 + np.sqrt(correlation) * rng.normal(size=classes)[labels][:, None] + np.sqrt(1 - correlation) * own, labels


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=6).filter(lambda sizes: max(sizes) > 1), seed=st.integers(0, 99))
def test_the_intraclass_correlation_is_that_of_a_slow_loop(sizes, seed):
    rng = np.random.default_rng(seed)
    groups = [rng.normal(size=size) for size in sizes]
    values, codes = np.concatenate(groups), np.repeat(np.arange(len(sizes)) * 7, sizes)
    count, images = len(sizes), sum(sizes)
    between = sum(len(group) * (group.mean() - values.mean()) ** 2 for group in groups) / (count - 1)
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / (images - count)
    size = (images - sum(size**2 for size in sizes) / images) / (count - 1)
    found = likeness(values, codes)
    assert found is not None
    assert found.correlation == pytest.approx((between - within) / (between + (size - 1) * within))
    assert found.size == pytest.approx(size)
    assert found.design_effect == pytest.approx(1 + (size - 1) * found.correlation)
    assert found.p_value == pytest.approx(scipy.stats.f_oneway(*groups).pvalue)
    order = rng.permutation(images)
    again = likeness(values[order], codes[order])
    assert again is not None
    assert again.correlation == pytest.approx(found.correlation)


def test_there_is_nothing_to_estimate_in_one_group_in_single_images_and_in_equal_values():
    assert likeness(np.arange(4.0), np.zeros(4, dtype=int)) is None
    assert likeness(np.arange(4.0), np.arange(4)) is None
    assert likeness(np.ones(4), np.array([0, 0, 1, 1])) is None
    found = likeness(np.array([1.0, 1.0, 2.0, 2.0]), np.array([0, 0, 1, 1]))
    assert found is not None
    assert (found.correlation, found.p_value) == (1.0, 0.0)


def names(scores: RunRecord) -> list[str]:
    return [finding.name for finding in find_in_groups(scores)]


def test_classes_that_are_alike_are_found_with_the_way_out():
    values, labels = in_classes(0.5)
    scores = run(values, label=labels)
    [found] = find_in_groups(scores)
    said = found.evidence["class"]
    assert found.name == "images_in_groups"
    assert found.text == (
        "images are not independent, so intervals are too narrow and tests too sure: images of one class are alike in "
        f"average_drop (median intraclass correlation {said['correlation']:.2f}, 20 groups of about 10, design effect "
        f"{said['design_effect']:.1f}); count these groups instead of images by groups='class'"
    )
    assert said["groups"] == 20
    assert said["design_effect"] > 1.5
    assert said["p_value"] < 0.005
    assert [finding.name for finding in scores.findings()].count("images_in_groups") == 1


def test_folders_are_found_and_are_said_once_if_they_are_the_classes():
    values, labels = in_classes(0.5)
    ids = [f"places/{label}/{number}.png" for number, label in enumerate(labels)]
    [found] = find_in_groups(run(values, ids))
    assert list(found.evidence) == ["folder"]
    assert "images of one folder are alike" in found.text
    assert "by groups='^(.*)/'" in found.text
    [found] = find_in_groups(run(values, ids, labels))
    assert list(found.evidence) == ["class"]


def test_neighbours_are_found_where_nothing_else_explains_them():
    values, _ = in_classes(0.5)
    [found] = find_in_groups(run(values))
    assert list(found.evidence) == ["neighbours"]
    assert found.text.endswith(
        "count these groups instead of images by groups=, an expression on the id or a CSV file that says what they have in "
        "common, such as the video or the place"
    )
    assert "images of a block of 10 neighbours in the order of the data are alike" in found.text


@pytest.mark.parametrize("by", ["class", "i(.*)", "[a-z]"])
def test_a_run_that_counts_such_groups_has_no_such_finding(by):
    values, labels = in_classes(0.5)
    found = names(run(values, label=labels).with_groups(by))
    assert ("images_in_groups" in found) == (by == "i(.*)"), "groups of one image explain nothing"


def test_groups_of_the_run_may_themselves_come_in_groups():
    values, labels = in_classes(0.8, images=400)
    twos = [str(number // 2) for number in range(400)]
    [found] = find_in_groups(run(values, label=labels, group=twos))
    assert found.text.startswith("groups are not independent")
    assert "groups of one class are alike" in found.text


def test_differences_between_layers_are_looked_at_too():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(20), 10)
    image = 100 * rng.normal(size=(200, 1))  # hides the classes in the values, not in the differences
    values = image + rng.normal(size=20)[labels][:, None] * [1, -1] + 0.5 * rng.normal(size=(200, 2))
    [found] = find_in_groups(run(values, label=labels))
    assert found.evidence["class"]["of"] == "differences"
    assert "average_drop differences between layers and methods" in found.text


def test_what_is_found_does_not_depend_on_the_order_of_labelled_images_or_on_names():
    values, labels = in_classes(0.4)
    [first] = find_in_groups(run(values, label=labels))
    order = np.random.default_rng(0).permutation(200)
    [second] = find_in_groups(run(values[order], label=(labels * 3 + 1)[order]))
    assert second.evidence["class"]["correlation"] == pytest.approx(first.evidence["class"]["correlation"])
    assert second.evidence["class"]["groups"] == first.evidence["class"]["groups"]


def test_small_and_empty_runs_have_no_such_finding():
    assert names(run([1.0, 2.0], label=[0, 0])) == []
    assert names(run([1.0, 1.0, 9.0, 9.0], label=[0, 0, 1, 1])) == [], "by chance in one of three runs of four images"
    failed = run([1.0, 2.0, 3.0], label=[0, 0, 1])
    assert names(Scores(failed.rows.assign(status="nan_map", average_drop=np.nan), failed.manifest)) == []


def test_independent_images_are_hardly_ever_suspected():
    rng = np.random.default_rng(0)
    runs = [draw_run(60, 12, 0.0, kind, rng) for kind in ("normal", "drops", "rare") for _ in range(25)]
    assert sum(bool(find_in_groups(one)) for one in runs) == 0  # benchmarks/images_in_groups.csv has many more


def test_groups_that_say_nothing_are_findings():
    values = np.random.default_rng(0).normal(size=8)
    [found] = find_in_groups(run(values, group=list("abcdefgh")))
    assert found.name == "groups_of_one"
    assert found.text == "each of the 8 groups has one image, so intervals and tests are those without groups; check groups="
    [found] = find_in_groups(run(values, group=["all"] * 8))
    assert found.name == "one_group"
    assert found.text == (
        "all 8 images are in one group, 'all', so there are no intervals and no tests: these take at least 4 groups; give "
        "other groups"
    )
    assert found.evidence == {"images": 8, "groups": 1}


def test_the_page_on_groups_has_what_the_benchmark_says():
    [found] = find_in_groups(Scores.load(ROOT / "benchmarks/ucmerced_mobilenetv2"))
    page = " ".join((ROOT / "docs/groups.md").read_text().replace("\n> ", " ").split())
    assert found.text in page


def test_the_table_on_the_page_is_that_of_the_benchmark():
    table = pd.read_csv(ROOT / "benchmarks/images_in_groups.csv")
    page = (ROOT / "docs/groups.md").read_text()
    for (correlation, images, classes), part in table.groupby(["correlation", "images", "classes"]):
        found = part.set_index("values")["found"]
        counts = " | ".join(str(found[kind]) for kind in ("normal", "drops", "rare"))
        assert f"| {correlation:g} | {images} | {classes} | {part['runs'].iloc[0]} | {counts} |\n" in page
    independent = table[table["correlation"] == 0]
    assert f"in {independent['found'].sum()} of {independent['runs'].sum():,} runs" in page
