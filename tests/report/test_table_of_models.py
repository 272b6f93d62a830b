"""Several runs in one table: which pair stands for a run, its honest interval, and what the runs have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.report.latex import read_latex
from xaieval import Scores
from xaieval.analysis.in_common import in_common
from xaieval.analysis.stats.intervals import mean_interval, metric_interval
from xaieval.errors import MetricError, ProtocolError
from xaieval.report import models_table

AD = {"name": "average_drop", "label": "AD %", "higher_is_better": False, "interval": "mean"}
IC = {"name": "increase_in_confidence", "label": "IC %", "higher_is_better": True, "interval": "wilson"}
ENTROPY = {"name": "entropy", "label": "entropy", "higher_is_better": None, "interval": "mean"}
MODELS = {"small": {"class": "a.Net", "fingerprint": "1"}, "large": {"class": "b.Net", "fingerprint": "2"}}


def run(means: dict[tuple[str, str], float], images: Any = range(40), seed: int = 0, **entries: Any) -> Scores:
    """Rows whose AD is a mean and noise; IC is high where AD is low."""
    rng, parts = np.random.default_rng(seed), []
    for (layer, method), mean in means.items():
        drops = mean + rng.normal(0, 3, len(images))
        values = {"average_drop": drops, "increase_in_confidence": np.where(drops < 20, 100.0, 0.0), "entropy": drops / 10}
        parts.append(
            pd.DataFrame({"image_id": [*map(str, images)], "layer": layer, "method": method, "mask_area": 0.25} | values)
        )
    rows = pd.concat(parts, ignore_index=True).assign(status="ok")
    controls = ["random"] if ("input", "random") in means else []
    return Scores(rows, {"metrics": [AD, IC, ENTROPY], "controls": controls, **entries})


SMALL = {("l1", "gradcam"): 40.0, ("l2", "gradcam"): 20.0, ("l2", "rise"): 30.0, ("input", "random"): 1.0}
LARGE = {("b1", "gradcam"): 15.0, ("b2", "gradcam"): 35.0, ("b2", "rise"): 10.0, ("b3", "rise"): 50.0}


@pytest.fixture(scope="module")
def both() -> dict[str, Scores]:
    return {"small": run(SMALL, model=MODELS["small"]), "large": run(LARGE, seed=1, model=MODELS["large"])}


def test_a_row_is_the_best_pair_of_its_run_and_never_a_control(both):
    table = models_table(both)
    assert [*table.frame.index] == [("small", "l2", "gradcam"), ("large", "b2", "rise")]
    assert table.frame["n_pairs"].tolist() == [3, 4], "control maps are none of them"
    for (name, layer, method), row in table.frame.iterrows():
        summary = both[name].summary()
        for metric in ("average_drop", "increase_in_confidence", "entropy"):
            assert row[metric] == summary.loc[(layer, method), metric], "the mean is that of the run's own table"
    assert table.frame["average_drop_best"].tolist() == [False, True]
    assert not table.frame["entropy_best"].any()


def test_intervals_are_widened_for_the_number_of_pairs(both):
    frame = models_table(both, level=0.9).frame
    for name, pairs in (("small", 3), ("large", 4)):
        _, layer, method = next(place for place in frame.index if place[0] == name)
        rows = both[name].rows.query("layer == @layer and method == @method")
        for entry in (AD, IC):
            values = rows[entry["name"]].to_numpy()
            expected = metric_interval(values, entry["interval"], 1 - 0.1 / pairs)
            found = frame.loc[(name, layer, method), [f"{entry['name']}_low", f"{entry['name']}_high"]]
            assert tuple(found) == pytest.approx(expected)


def test_the_interval_of_the_best_of_equal_pairs_holds_and_the_plain_one_does_not():
    """Thirty pairs whose true mean is 50: the mean of the best one is too low, and so is its plain interval."""
    rng, pairs, runs = np.random.default_rng(3), 30, 300
    holds = np.zeros(2)
    for _ in range(runs):
        values = 50 + rng.normal(0, 10, (40, pairs))
        best = values[:, values.mean(axis=0).argmin()]
        ends = [mean_interval(best, level) for level in (0.95, 1 - 0.05 / pairs)]
        holds += [low <= 50 <= high for low, high in ends]
    plain, widened = holds / runs
    assert plain < 0.7
    assert widened > 0.92  # 0.95, three standard errors below


def test_layers_and_methods_that_are_given_are_taken_and_one_pair_has_its_plain_interval(both):
    table = models_table(both, layer=["l1", "b3"], method=["gradcam", "rise"])
    assert [place[1:] for place in table.frame.index] == [("l1", "gradcam"), ("b3", "rise")]
    assert table.frame["n_pairs"].tolist() == [1, 1]
    plain = both["small"].summary().loc[("l1", "gradcam")]
    assert table.frame.iloc[0]["average_drop_low"] == plain["average_drop_low"]
    assert "Bonferroni" not in table.caption
    by_method = models_table(both, method="rise")
    assert [place[1:] for place in by_method.frame.index] == [("l2", "rise"), ("b2", "rise")]
    assert by_method.frame["n_pairs"].tolist() == [1, 2]
    assert "out of 1 (small), 2 (large)." in by_method.caption


def test_another_metric_chooses_in_its_own_direction(both):
    rows = both["small"].rows.assign(entropy=lambda rows: -rows["average_drop"])
    higher = {**ENTROPY, "higher_is_better": True}
    odd = Scores(rows, both["small"].manifest | {"metrics": [AD, higher]})
    assert models_table({"a": odd, "b": odd}, by="entropy").frame.index[0] == ("a", "l2", "gradcam")
    assert models_table({"a": odd, "b": odd}, by="average_drop").frame.index[0] == ("a", "l2", "gradcam")
    assert models_table(both, by="increase_in_confidence").frame.index[1] == ("large", "b2", "rise")


def test_only_images_of_all_runs_count_and_the_rest_is_named(both):
    fewer = {"small": both["small"], "large": run(LARGE, images=range(10, 45), seed=1, model=MODELS["large"])}
    table = models_table(fewer)
    assert table.frame["n_images"].tolist() == [30, 30]
    rows = both["small"].rows.query("layer == 'l2' and method == 'gradcam' and image_id not in @NOT_IN_BOTH")
    assert table.frame["average_drop"].iloc[0] == pytest.approx(rows["average_drop"].mean())
    assert table.notes[:2] == [
        "10 of 40 images of small are left out, which others lack",
        "5 of 35 images of large are left out, which others lack",
    ]
    assert "(n = 30, the same images for all)" in table.caption


NOT_IN_BOTH = [str(number) for number in range(10)]


def test_what_the_runs_differ_in_is_said_first(both):
    prepared = {name: {"preprocessing": {"image_size": size}} for name, size in (("small", 224), ("large", 384))}
    odd = {name: Scores(scores.rows, scores.manifest | prepared[name]) for name, scores in both.items()}
    odd["large"].manifest["complete"] = False
    for name, torch in (("small", "2.8"), ("large", "2.14")):
        precision = "bf16" if name == "small" else "float32"
        odd[name].manifest.update(versions={"torch": torch}, run={"precision": precision})
    table = models_table(odd)
    assert table.notes[:4] == [
        "large is unfinished",
        "the settings differ: precision is 'bf16' in small and 'float32' in large",
        "the preprocessing differs: image_size is 224 in small and 384 in large",
        "the versions differ: torch is '2.8' in small and '2.14' in large",
    ]
    assert table.notes[4].startswith("models also differ in how they bear masking")
    assert repr(table).splitlines()[0] == "note: large is unfinished"
    assert "% large is unfinished\n" in table.to_latex()
    assert "\n- large is unfinished\n" in table.to_markdown()
    assert "<li>large is unfinished</li>" in table.to_html()


def test_other_protocols_are_refused_unless_asked_for(both):
    odd = {name: Scores(scores.rows, {**scores.manifest}) for name, scores in both.items()}
    odd["large"].manifest["run"] = {"protocol.masking": "top"}
    odd["small"].manifest["run"] = {"protocol.masking": "soft"}
    with pytest.raises(ProtocolError, match=r"different protocols: protocol.masking is 'soft' in small and 'top' in large; "):
        models_table(odd)
    table = models_table(odd, across_protocols=True)
    assert any(note.startswith("the protocols differ: protocol.masking is 'soft' in small") for note in table.notes)
    assert "The protocols differ." in table.caption


def test_metrics_that_not_all_runs_have_alike_are_left_out(both):
    other = Scores(both["large"].rows, both["large"].manifest | {"metrics": [AD, {**IC, "settings": {"ties": 1}}]})
    table = models_table({"small": both["small"], "large": other})
    assert [entry["name"] for entry in table.metrics] == ["average_drop"]
    assert table.notes[0] == "left out: increase_in_confidence, entropy, which not all runs have with the same settings"


def test_text_and_latex_have_a_column_more_for_the_model(both):
    table = models_table(both)
    found = read_latex(table.to_latex("tab:models"))
    assert found.columns == "lll" + "r" * 4
    assert found.rows == table.lines(counts=False)
    assert found.rows[0][:3] == ["model", "layer", "method"]
    assert len(found.bold) == 2
    assert table.to_csv().splitlines()[0].startswith("model,layer,method,average_drop,average_drop_low,")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"by": "entropy"}, r"no metric 'entropy' with a direction in all runs; known: average_drop, increase_in_confidence"),
    ({"layer": "l2"}, r"no layer 'l2' in large; known: b1, b2, b3"),
    ({"method": "random"}, r"no method 'random' in small; .*known: gradcam, rise"),
    ({"layer": ["l1", "b1", "b2"]}, r"layer is one for all of the 2 runs, or one for each of them; got 3"),
    ({"level": 2}, r"level"),
]


@pytest.mark.parametrize(("choices", "message"), WRONG)
def test_wrong_choices_are_refused(both, choices, message):
    with pytest.raises(MetricError, match=message):
        models_table(both, **choices)


def test_runs_without_anything_in_common_are_refused(both):
    with pytest.raises(MetricError, match=r"a table of several runs takes at least two; got 1"):
        models_table({"small": both["small"]})
    with pytest.raises(MetricError, match=r"the runs small, other have no image in common"):
        models_table({"small": both["small"], "other": run(LARGE, images=range(50, 60))})
    with pytest.raises(MetricError, match=r"no metric in common; they have average_drop, .* \(small\); none \(other\)"):
        models_table({"small": both["small"], "other": Scores(both["large"].rows, {"metrics": []})})
    with pytest.raises(MetricError, match=r"count groups of images differently: no groups \(small\), images \(large\)"):
        models_table({"small": both["small"], "large": both["large"].with_groups(r"^\d")})
    empty = Scores(both["large"].rows.assign(average_drop=np.nan), both["large"].manifest)
    with pytest.raises(MetricError, match=r"no layer and method of large has a value of average_drop"):
        models_table({"small": both["small"], "large": empty})


def test_groups_of_all_runs_are_kept(both):
    grouped = {name: scores.with_groups(r"^\d") for name, scores in both.items()}
    table = models_table(grouped)
    assert "n = 40 in 10 groups, weighted by images" in table.caption
    assert table.frame["n_groups"].tolist() == [10, 10]


def test_the_order_of_runs_is_kept_and_nothing_changes_them(both):
    before = both["small"].rows.copy()
    assert [*in_common(both).runs] == ["small", "large"]
    pd.testing.assert_frame_equal(both["small"].rows, before)
