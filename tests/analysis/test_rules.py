"""Rules by name: what each uses, what it refuses, and what it tests."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from xaieval.analysis.gains import gain_p_values
from xaieval.analysis.rules import DEFAULT_RULES, RULES, Rule, rule_of
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.permutation import sign_flip_p_values
from xaieval.errors import MetricError
from xaieval.evaluation.scores import Scores

COLUMNS = {
    "increase_in_confidence": True,
    "average_drop": False,
    "average_drop_excess": False,
    "oracle_gate": False,
    "probe": False,
}


def _scores(values: dict[str, dict[str, list[float]]], seed: int = 0) -> Scores:
    """Scores of these metrics by layer."""
    count = len(next(iter(next(iter(values.values())).values())))
    layers = list(next(iter(values.values())))
    rows = pd.DataFrame(
        {"image_id": f"{image:03d}", "layer": layer, "method": "gradcam", "status": "ok"}
        | {metric: float(table[layer][image]) for metric, table in values.items()}
        for image in range(count)
        for layer in layers
    )
    metrics = [{"name": name, "higher_is_better": COLUMNS[name], "interval": "mean"} for name in values]
    return Scores(rows, {"metrics": metrics, "seed": seed})


def _gains(**means: float) -> dict[str, list[float]]:
    """Gains of 30 images around these means."""
    rng = np.random.default_rng(0)
    return {layer: (mean + rng.normal(0, 0.01, 30)).tolist() for layer, mean in means.items()}


# ---- names


def test_each_rule_has_a_name_columns_a_sentence_and_what_it_needs():
    assert list(RULES) == ["ad-ic", "excess", "oracle-gate", "probe"]
    for name, rule in RULES.items():
        assert rule.name == name
        assert set(rule.metrics) <= set(COLUMNS)
        assert rule.meaning.startswith("A layer needs attention if ")
        assert rule.needs
    assert set(DEFAULT_RULES) <= set(RULES)


def test_the_default_without_other_columns_is_the_rule_of_the_paper():
    increases, drops = {"a": [0.0] * 20, "b": [100.0] * 20}, {"a": [90.0] * 20, "b": [10.0] * 20}
    scores = _scores({"increase_in_confidence": increases, "average_drop": drops})
    assert scores.select_layers().to_dict() == scores.select_layers(by="ad-ic").to_dict()
    assert scores.select_layers().rule == RULES["ad-ic"]
    plain = scores.select_layers(by=("increase_in_confidence", "average_drop"))
    assert scores.select_layers().to_dict() == plain.to_dict() | {"rule": "ad-ic"}


def test_the_default_is_the_rule_that_won_where_its_column_is_there():
    paper = {name: {"a": [50.0] * 30, "b": [50.0] * 30} for name in ("increase_in_confidence", "average_drop")}
    scores = _scores(paper | {"oracle_gate": _gains(a=0.1, b=0.5)})
    assert scores.select_layers().to_dict() == scores.select_layers(by="oracle-gate").to_dict()
    assert list(scores.select_layers()) == ["b"]
    assert not scores.select_layers(by="ad-ic").layers


@pytest.mark.parametrize("by", ["excess", ("excess",), ["excess"]])
def test_a_rule_can_stand_alone_or_in_a_list_of_one(by):
    assert rule_of(by, [{"name": "average_drop_excess"}]) == RULES["excess"]


@pytest.mark.parametrize(
    ("by", "metrics"), [("drop", ("drop",)), (["drop"], ("drop",)), (("drop", "probe"), ("drop", "probe")), ((), ())]
)
def test_other_names_are_metrics(by, metrics):
    assert rule_of(by, []) == Rule("", metrics)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (
            "ad-ic",
            "the rule 'ad-ic' needs increase_in_confidence, which the run does not have; "
            'score with metrics=("average_drop", "increase_in_confidence")',
        ),
        (
            "excess",
            "the rule 'excess' needs average_drop_excess, which the run does not have; "
            'score with metrics=("average_drop",) and controls="shifted"',
        ),
        (
            "oracle-gate",
            "the rule 'oracle-gate' needs oracle_gate, which the run does not have; "
            "xaieval.training.fal.with_oracle_gate(scores, fpn, loader) adds it",
        ),
        (
            "probe",
            "the rule 'probe' needs probe, which the run does not have; "
            "xaieval.training.fal.with_probe(scores, fpn, training_loader, loader) adds it",
        ),
        ("exces", "the run has no metric 'exces' to select layers by; known: average_drop"),
        (("excess", "probe"), "the run has no metric 'excess' to select layers by; known: average_drop"),
    ],
)
def test_a_rule_without_its_column_is_refused_word_for_word(by, message):
    scores = _scores({"average_drop": {"a": [1.0] * 9, "b": [2.0] * 9}})
    with pytest.raises(MetricError) as error:
        scores.select_layers(by=by)
    assert str(error.value) == message


# ---- what they select


def test_excess_selects_the_layers_whose_maps_are_little_better_than_the_same_maps_elsewhere():
    drops = {"p2": [40.0] * 12, "p3": [60.0] * 12}
    excess = {"p2": [-1.0 - i for i in range(12)], "p3": [-20.0 - i for i in range(12)]}
    scores = _scores({"average_drop": drops, "average_drop_excess": excess})
    assert scores.select_layers(by="average_drop") == ["p3"]
    assert scores.select_layers(by="excess") == ["p2"]


def test_the_oracle_gate_selects_the_layers_that_have_more_to_gain_than_the_last():
    actual = _scores({"oracle_gate": _gains(p2=0.2, p3=0.1, p4=0.05, p5=0.0501)}).select_layers(by="oracle-gate")
    assert actual == ["p2", "p3"]
    equal = {"p2": [0.25] * 12, "p3": [0.125] * 12}
    assert repr(_scores({"oracle_gate": equal}).select_layers(by="oracle-gate")).split("\n")[:2] == [
        "needs attention, worst first: p2",
        "  p2, oracle_gate: 0.250, worse than the best, 0.125 at p3 (p = 0.00049)",
    ]


def test_the_probe_selects_the_layers_whose_gain_is_above_zero():
    actual = _scores({"probe": _gains(p2=0.05, p3=0.0, p4=0.08, p5=-0.05)}).select_layers(by="probe")
    assert actual == ["p4", "p2"]
    tests = actual.comparisons.set_index("layer")
    assert set(tests["best"]) == {"zero"}
    assert set(tests["best_value"]) == {0.0}
    assert tests.loc["p5", "p_holm"] == 1
    assert tests.loc["p3", "value"] == pytest.approx(np.mean(_gains(p2=0.05, p3=0.0)["p3"]))
    assert json.loads(json.dumps(actual.to_dict()))["rule"] == "probe"


def test_the_reasons_of_the_probe_are_as_written_here():
    equal = {"p2": [0.25] * 8, "p3": [0.5, -0.5] * 4}
    lines = repr(_scores({"probe": equal}).select_layers(by="probe")).split("\n")
    assert lines == [
        "needs attention, worst first: p2",
        "  p2, probe: 0.250, above 0 (p = 0.0078)",
        "paired by image, n = 8, method gradcam, p corrected by Bonferroni for all layers, level 0.95",
    ]
    none = repr(_scores({"probe": {"p2": [0.5, -0.5] * 4, "p3": [-1.0] * 8}}).select_layers(by="probe")).split("\n")
    assert none[:3] == [
        "no layer has a significant gain by the rule 'probe'",
        "  p2, probe: 0.000, not significantly above 0 (p = 1)",
        "  p3, probe: -1.000, not significantly above 0 (p = 1)",
    ]


def test_the_k_worst_by_a_rule_are_those_with_most_to_gain():
    scores = _scores({"probe": _gains(p2=0.0, p3=0.01, p4=-0.2)})
    assert scores.select_layers(2, by="probe") == ["p3", "p2"]


@pytest.mark.parametrize("rule", ["oracle-gate", "probe", "excess"])
def test_images_of_a_group_count_as_one(rule):
    """All images of a group are copies, so the tests are those of one image per group."""
    rng = np.random.default_rng(1)
    once = {layer: rng.normal(0.02, 0.05, 8).tolist() for layer in ("p2", "p3", "p4")}
    many = {layer: np.repeat(values, 5).tolist() for layer, values in once.items()}
    (column,) = RULES[rule].metrics
    groups = {f"{image:03d}": f"block {image // 5}" for image in range(40)}
    grouped = _scores({column: many}).with_groups(groups).select_layers(by=rule)
    assert grouped.grouping.count == 8
    expected = _scores({column: once}).select_layers(by=rule)
    assert grouped.comparisons["p_holm"].to_list() == pytest.approx(expected.comparisons["p_holm"].to_list())
    assert "in 8 groups" in repr(grouped)


# ---- the tests against zero


def test_gains_are_tested_by_sign_flips_and_corrected_by_the_number_of_layers():
    gains = np.random.default_rng(0).normal(0.3, 1, (12, 3))
    groups = Grouping([number // 2 for number in range(12)])
    plain, corrected = gain_p_values(gains, family=4, groups=groups)
    assert plain == pytest.approx(sign_flip_p_values(gains, groups=groups))
    assert corrected == pytest.approx(np.minimum(4 * plain, 1))


@pytest.mark.slow
def test_without_any_gain_a_layer_is_selected_about_as_rarely_as_the_level_says():
    rng = np.random.default_rng(0)
    wrong = sum(bool((gain_p_values(rng.normal(0, 1, (12, 4)), 4, level=0.9)[1] < 0.1).any()) for _ in range(400))
    assert wrong / 400 <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 400)
