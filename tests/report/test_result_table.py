"""The table of a run for a paper: its letters, its bold means, and its text in each form."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xaieval import Scores
from xaieval.errors import MetricError
from xaieval.report.result_table import MOST_TESTED, in_latex, result_table

METRICS = [
    {"name": "average_drop", "label": "AD %", "higher_is_better": False, "interval": "mean"},
    {"name": "insertion", "label": "insertion", "higher_is_better": True, "interval": "mean"},
    {"name": "entropy", "label": "entropy (nats)", "higher_is_better": None, "interval": "mean"},
]


def run(layers: list[str], images: int = 40, controls: bool = False, **entries: Any) -> Scores:
    """Rows in which AD grows by 10 from layer to layer, and insertion falls."""
    rng = np.random.default_rng(0)
    base, parts = rng.random(images), []
    for number, layer in enumerate(layers):
        noise = rng.normal(0, 2, images)
        values = {
            "average_drop": 20 * base + 10 * number + noise,
            "insertion": base - 0.2 * number + 0.01 * noise,
            "entropy": base,
        }
        parts.append(pd.DataFrame({"image_id": range(images), "layer": layer, "method": "gradcam", "mask_area": 0.25} | values))
    if controls:
        parts.append(parts[0].assign(layer="input", method="random", average_drop=-1.0))
    rows = pd.concat(parts, ignore_index=True).assign(status="ok")
    return Scores(rows, {"metrics": METRICS, "seed": 0, "controls": ["random"] * controls, **entries})


def test_letters_are_those_of_the_ranking_and_controls_have_none():
    scores = run(["p2", "p3", "p4"], controls=True)
    frame = scores.table().frame
    for name in ("average_drop", "insertion"):
        ranked = scores.rank(name, "both").table
        letters = dict(zip(zip(ranked["layer"], ranked["method"], strict=True), ranked["letters"], strict=True))
        assert frame[f"{name}_letters"].to_dict() == letters | {("input", "random"): ""}
    assert set(frame["entropy_letters"]) == {""}


def test_the_best_mean_is_bold_and_a_control_never_is():
    table = run(["p2", "p3"], controls=True).table()
    assert table.frame["average_drop_best"].tolist() == [True, False, False]
    assert table.frame["insertion_best"].tolist() == [True, False, False]
    assert not table.frame["entropy_best"].any()
    first = table.to_markdown().splitlines()[2]
    assert re.fullmatch(
        r"\| p2 \| gradcam \| \*\*\S+\*\* \[.*\] a \| \*\*\S+\*\* \[.*\] a \| \d\S+ \[.*\] \| 25.0 \| 40 \| 0 \|", first
    )


def test_equal_means_are_both_the_best():
    scores = run(["p2", "p2b"])
    rows = scores.rows.assign(average_drop=[*range(40)] * 2)
    assert Scores(rows, scores.manifest).table().frame["average_drop_best"].tolist() == [True, True]


def test_many_pairs_are_tested_only_if_that_is_asked_for():
    scores = run([f"l{number}" for number in range(MOST_TESTED + 1)], images=12)
    assert set(scores.table().frame["average_drop_letters"]) == {""}
    assert "share a letter" not in scores.table().caption
    asked = scores.table(letters=True)
    assert set(asked.frame["average_drop_letters"]) != {""}
    assert "share a letter" in asked.caption
    assert set(run(["p2", "p3"]).table(letters=False).frame["average_drop_letters"]) == {""}


def test_what_cannot_be_tested_has_no_letters_unless_that_is_asked_for(monkeypatch):
    scores = run(["p2", "p3"])
    rows = scores.rows.copy()
    rows.loc[(rows["layer"] == "p2") == (rows["image_id"] < 20), "average_drop"] = np.nan  # no image has values of both
    odd = Scores(rows, scores.manifest)
    assert set(odd.table().frame["average_drop_letters"]) == {""}
    assert set(odd.table().frame["insertion_letters"]) != {""}
    with pytest.raises(MetricError):
        odd.table(letters=True)
    monkeypatch.setattr("xaieval.report.result_table.MOST_ROWS", len(rows) - 1)
    assert set(scores.table().frame["insertion_letters"]) == {""}


def test_a_mean_of_nothing_is_no_value():
    scores = run(["p2", "p3"])
    table = Scores(scores.rows.assign(average_drop=np.nan), scores.manifest).table()
    assert repr(table).count("no value") == 2
    assert not table.frame["average_drop_best"].any()


NASTY = ["fpn[p_2]", "a & b", "50 %", r"x\y", "~^{}#$", "<1>"]


def test_latex_has_as_many_cells_in_each_line_and_every_special_sign_escaped():
    text = run(NASTY, controls=True).table().to_latex("tab:levels")
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == r"\begin{table}"
    assert r"\label{tab:levels}" in lines
    body = [line for line in lines if re.search(r"(?<!\\)&", line)]
    assert len(body) == len(NASTY) + 2  # the head and a control
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns is not None
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {len(columns[1])}
    plain = re.sub(r"\\(begin|end|label)\{[^}]*\}(\{\w+\})?|\\[&%$#_{}]|\\(textbackslash|text\w+|uparrow|downarrow)", "", text)
    assert not re.search(r"[%#_~^<>]", plain)
    assert all(len(re.findall(r"(?<!\\)\{", line)) == len(re.findall(r"(?<!\\)\}", line)) for line in lines)
    assert text.count("$") - text.count(r"\$") == 2 * 2  # arrows of two metrics with a direction


def test_escaped_text_is_as_it_was_when_latex_reads_it():
    known = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<"}
    known |= {r"\textgreater{}": ">"} | {f"\\{sign}": sign for sign in "&%$#_{}"}
    pattern = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True))))
    for name in NASTY:
        assert pattern.sub(lambda found: known[found[0]], in_latex(name)) == name


def test_csv_has_all_numbers_of_the_frame():
    table = run(["p2", "p3"]).table()
    again = pd.read_csv(io.StringIO(table.to_csv()), index_col=["layer", "method"], keep_default_na=False)
    pd.testing.assert_frame_equal(again, table.frame, check_dtype=False, check_exact=False)


def test_the_caption_names_images_groups_protocol_and_controls():
    run_entries = {"protocol.masking": "top", "protocol.keep_percent": 50.0, "protocol.target": "label"}
    scores = run(["p2", "p3"], controls=True, run=run_entries)
    caption = scores.table().caption
    assert caption.startswith("Means with 95 % intervals (n = 40). Protocol score-cam, target label. Items that share")
    assert "Control maps, which ignore the model: random. No interval: a mean takes at least" in caption
    other = run(["p2", "p3"], run=run_entries | {"protocol.keep_percent": 15.0}).table(0.9).caption
    assert "90 % intervals" in other
    assert "Protocol: The target class is the label of the image" in other
    assert "The mask is the map in the 15 % of the pixels" in other
    grouped = scores.with_groups(r"\d").table()
    assert "n = 40 in 10 groups, weighted by images" in grouped.caption
    assert grouped.frame["n_groups"].tolist() == [10] * 3


def test_a_level_out_of_range_is_an_error():
    with pytest.raises(MetricError, match="level"):
        result_table(run(["p2", "p3"]), level=1.5)


def test_a_printed_run_is_its_table():
    scores = run(["p2", "p3"])
    assert repr(scores).splitlines()[1:] == repr(scores.table()).splitlines()
    widths = {len(line) for line in repr(scores.table()).splitlines()}
    assert len(widths) == 1
