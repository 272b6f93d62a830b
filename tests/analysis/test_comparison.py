"""Two runs compared: worked by hand, against a slow loop, errors, and the command line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from tests.slow_selection import slow_holm
from xaieval.analysis.stats.intervals import difference_interval
from xaieval.cli import main
from xaieval.errors import MetricError, ProtocolError
from xaieval.evaluation.scores import Scores

AD, IC, AREA = "average_drop", "increase_in_confidence", "area"
METRICS = [
    {"name": AD, "higher_is_better": False, "interval": "mean", "label": "AD %"},
    {"name": IC, "higher_is_better": True, "interval": "wilson", "label": "IC %"},
    {"name": AREA, "higher_is_better": None, "interval": "mean", "label": "area"},
]


def run(shift: float = 0.0, images: range = range(60), seed: int = 0, **changes: Any) -> Scores:
    """A run of two layers and two methods; `shift` makes its drops larger, and its increases rarer."""
    records = []
    for image in images:
        for number, (layer, method) in enumerate([("p2", "gradcam"), ("p5", "gradcam"), ("p2", "random"), ("p5", "random")]):
            rng = np.random.default_rng([image, number])
            own = np.random.default_rng([image, number, seed])
            drop = float(np.clip(rng.gamma(2, 12) + shift + own.normal(0, 3), 0, 100))
            increase = 100.0 * (rng.random() < 0.3 - shift / 100)
            record = {"image_id": f"image {image:03d}", "layer": layer, "method": method, "status": "ok"}
            records.append(record | {AD: drop, IC: increase, AREA: rng.random()})
    manifest = {"metrics": METRICS, "seed": 0, "run": {"protocol.fill": "zero", "protocol.masking": "soft"}} | changes
    return Scores(pd.DataFrame(records), manifest)


def _values(scores: Scores, layer: str, method: str, metric: str) -> pd.Series:
    rows = scores.rows
    return rows[(rows["layer"] == layer) & (rows["method"] == method)].set_index("image_id")[metric]


def test_a_comparison_of_few_images_is_as_worked_by_hand():
    rows = pd.DataFrame({"image_id": ["a", "b", "c"], "layer": "p5", "method": "gradcam", "status": "ok"})
    one = Scores(rows.assign(**{AD: [14.0, 22.0, 31.0], IC: [100.0, 0.0, 0.0]}), {"metrics": METRICS[:2]})
    two = Scores(rows.iloc[::-1].assign(**{AD: [30.0, 20.0, 10.0], IC: [0.0, 0.0, 0.0]}), {"metrics": METRICS[:2]})
    table = one.compare(two)
    assert list(table.index) == [("p5", "gradcam", AD), ("p5", "gradcam", IC)]
    drop, increase = (table.loc[("p5", "gradcam", name)] for name in (AD, IC))
    # Differences 4, 2, 1: only two of eight assignments of signs have as large a sum; Holm doubles that.
    assert drop[["mean", "other_mean", "difference"]].tolist() == pytest.approx([67 / 3, 20.0, 7 / 3])
    assert drop[["p_value", "p_holm", "effect_size", "n_images"]].tolist() == [0.25, 0.5, 1.0, 3]
    assert (drop["low"], drop["high"]) == pytest.approx((math.nan, math.nan), nan_ok=True), "too few images"
    assert increase[["difference", "p_value", "p_holm", "effect_size"]].tolist() == pytest.approx([100 / 3, 1.0, 1.0, 1.0])
    assert increase["low"] < 0 < increase["high"]
    assert table["better"].tolist() == ["", ""]


@pytest.mark.parametrize("test", ["signs", "wilcoxon"])
def test_a_comparison_is_that_of_a_slow_loop(test):
    one, two = run(2.0), run(0.0, images=range(10, 75), seed=1)
    table = one.compare(two, test=test)
    assert list(table.index.get_level_values("metric").unique()) == [AD, IC], "what only describes a map takes no part"
    actual = []
    for (layer, method, metric), row in table.iterrows():
        values = pd.concat([_values(one, layer, method, metric), _values(two, layer, method, metric)], axis=1).dropna()
        assert row["n_images"] == len(values) == 50
        differences = (values.iloc[:, 0] - values.iloc[:, 1]).to_numpy()
        assert row["difference"] == pytest.approx(differences.mean())
        assert (row["mean"], row["other_mean"]) == pytest.approx(tuple(values.mean()))
        left = differences[differences != 0]
        if metric == IC:
            expected = scipy.stats.binomtest(int((left > 0).sum()), len(left)).pvalue if len(left) else 1.0
            assert row["p_value"] == pytest.approx(expected)
        elif test == "wilcoxon":
            assert row["p_value"] == pytest.approx(scipy.stats.wilcoxon(left).pvalue)
        else:
            assert row["p_value"] == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue, abs=0.03)
            assert (row["low"], row["high"]) == pytest.approx(difference_interval(*values.to_numpy().T))
        actual.append(row["p_value"])
    assert table["p_holm"].tolist() == pytest.approx(slow_holm(actual))


def test_the_better_run_is_named_whichever_way_a_metric_goes_and_turned_around_with_the_runs():
    rows = run().rows
    better = Scores(rows.assign(**{AD: rows[AD] / 4, IC: 100.0}), run().manifest)
    table, turned = better.compare(run()), run().compare(better)
    assert set(table["better"]) == {"this"}
    assert set(turned["better"]) == {"other"}
    for column, sign in (("difference", -1), ("effect_size", -1), ("p_value", 1), ("p_holm", 1)):
        np.testing.assert_allclose(turned[column], sign * table[column])


def test_a_run_beside_itself_differs_in_nothing():
    table = run().compare(run())
    assert set(table["difference"]) == {0.0}
    assert set(table["p_holm"]) == {1.0}
    assert set(table["better"]) == {""}
    assert table["effect_size"].isna().all()


def test_only_rows_that_count_and_have_values_in_both_runs_take_part():
    one, two = run(), run(seed=1)
    one.rows.loc[0, "status"], one.rows.loc[0, [AD, IC]] = "nan_map", math.nan
    two.rows.loc[4, AD] = math.nan  # of the second image, at the same layer and method
    table = one.compare(two)
    assert table.loc[("p2", "gradcam", AD), "n_images"] == 58
    assert table.loc[("p2", "gradcam", IC), "n_images"] == 59
    assert table.loc[("p5", "gradcam", AD), "n_images"] == 60


def test_a_metric_without_values_is_a_row_without_a_verdict():
    one = run()
    one.rows[AD] = math.nan
    row = one.compare(run()).loc[("p2", "gradcam", AD)]
    assert (row["n_images"], row["p_holm"], row["better"]) == (0, 1.0, "")
    assert row[["mean", "difference", "low", "high", "effect_size"]].isna().all()


def test_a_description_can_be_compared_but_is_never_better():
    other = run()
    other.rows[AREA] += 1
    table = run().compare(other, AREA)
    assert list(table.index.get_level_values("metric").unique()) == [AREA]
    assert (table["p_holm"] < 0.05).all()
    assert set(table["better"]) == {""}


def test_runs_with_other_layers_are_compared_where_they_agree():
    one = run()
    one.rows["layer"] = one.rows["layer"].replace({"p2": "p3"})
    assert list(one.compare(run()).index.droplevel("metric").unique()) == [("p5", "gradcam"), ("p5", "random")]


def _other_run(**changes: Any) -> Scores:
    return run(run={"protocol.fill": "black", "protocol.masking": "soft"} | changes)


def test_runs_under_other_protocols_are_refused_unless_that_is_wanted():
    with pytest.raises(ProtocolError) as error:
        run().compare(_other_run())
    assert str(error.value) == (
        "the runs have different protocols: protocol.fill is 'zero' in this run and 'black' in the other; numbers of different "
        "protocols are not comparable, so use the same protocol in both, or compare them anyway by across_protocols=True"
    )
    assert len(run().compare(_other_run(), across_protocols=True)) == 8
    assert len(run().compare(run(run=dict(run().manifest["run"], seed=5, model="another")))) == 8, "only the protocol counts"


@pytest.mark.parametrize(
    ("other", "arguments", "message"),
    [
        (
            lambda: run(images=range(60, 70)),
            {},
            r"the runs have no image in common; score the same .* 'image 000' in this run, 'image 060' in the other",
        ),
        (
            lambda: Scores(run().rows.replace({"layer": {"p2": "x", "p5": "y"}}), run().manifest),
            {},
            r"no layer and method in common: p2 gradcam, p2 random, p5 gradcam in this run, x gradcam, .* give them the same",
        ),
        (run, {"metrics": ["average_dorp"]}, r"no metric 'average_dorp' in both runs; did you mean 'average_drop'\?"),
        (run, {"test": "t"}, r"no paired test 't'"),
        (run, {"level": 95}, r"the level of an interval is a probability"),
        (lambda: run(metrics=[]), {}, r"no metric in common to compare; this one has average_drop, .*, the other none"),
        (
            lambda: run(metrics=[METRICS[0] | {"settings": {"steps": 9}}]),
            {},
            r"metric 'average_drop' is not the same in both runs: settings is None in this run and {'steps': 9} in the other; "
            r"use the same settings in both, or compare other metrics by metrics=",
        ),
        (
            lambda: run(metrics=[METRICS[0] | {"control": "dimmed"}]),
            {},
            r"metric 'average_drop' is not the same in both runs: control is None in this run and 'dimmed' in the other; ",
        ),
        (
            lambda: Scores(run().rows.assign(status="nan_map"), run().manifest),
            {},
            r"no image has rows that count in both runs",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(other, arguments, message):
    with pytest.raises(MetricError, match=message):
        run().compare(other(), **arguments)


def test_labels_may_differ():
    assert len(run().compare(run(metrics=[METRICS[0] | {"label": "Average Drop"}]))) == 4


# ---- on the command line


def bench(*arguments: str) -> int:
    try:
        main(["compare", *arguments])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_the_command_prints_and_writes_the_comparison(tmp_path, capsys):
    rows = run().rows
    run().save(tmp_path / "a")
    Scores(rows.assign(**{AD: rows[AD] / 4}), run().manifest).save(tmp_path / "b")
    assert bench(str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "table.csv"), "--level", "0.9") == 0
    out = capsys.readouterr().out
    assert "difference [90% interval]" in out
    lines = [line.split() for line in out.splitlines() if line.split()[:1] in (["p2"], ["p5"])]
    assert [line[:4] for line in lines[:2]] == [["p2", "gradcam", "AD", "%"], ["p2", "gradcam", "IC", "%"]]
    assert lines[0][-1] == "second"
    assert lines[1][-1] == "60"
    written = pd.read_csv(tmp_path / "table.csv", index_col=["layer", "method", "metric"], keep_default_na=False)
    expected = Scores.load(tmp_path / "a").compare(Scores.load(tmp_path / "b"), level=0.9)
    assert list(written.columns) == list(expected.columns)
    assert written["better"].tolist() == expected["better"].tolist()


def test_the_command_answers_wrong_use_in_one_line(tmp_path, capsys):
    run().save(tmp_path / "a")
    _other_run().save(tmp_path / "b")
    folders = [str(tmp_path / name) for name in "ab"]
    for arguments, message in [
        (folders, "the runs have different protocols: protocol.fill is 'zero' in the first run"),
        ([folders[0], str(tmp_path / "none")], "holds no run"),
        ([*folders, "--across-protocols", "--out", str(tmp_path / "no" / "file.csv")], "cannot write '"),
    ]:
        assert bench(*arguments) == 2
        shown = capsys.readouterr()
        assert message in shown.err
        assert len(shown.err.splitlines()) == 1
        assert shown.out == ""
    assert bench(*folders, "--across-protocols", "--metrics", AD, "--test", "wilcoxon") == 0
