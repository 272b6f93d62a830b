"""The table of a run for a paper: its letters, its bold means, and its text in each form."""

from __future__ import annotations

import io
import re
import sys
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from tests.report.latex import BadLatexError, read_latex
from xaieval import Scores
from xaieval.errors import MetricError, OutputError, UsageError
from xaieval.report.result_table import MOST_TESTED, result_table

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
    return Scores(rows, {"metrics": METRICS, "seed": 0, "controls": ["random"] * controls} | entries)


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


# Names as modules, classes and users give them; each has to be printed as it is.
NASTY = [
    *("fpn[p_2]", "layer4_1", "a & b", "100%", r"x\y", "~^{}#$", "<1>|", "[0]", "* every", "a--b---c", 'the "p"', "café"),
    *(r"\input{x}", "!`?`", "a,,b"),
]


def test_latex_is_a_table_that_compiles_and_prints_every_name_as_it_is():
    scores = run(NASTY, controls=True)
    odd = {"name": "x_y", "label": "X_y & 50 %", "higher_is_better": True, "interval": "mean"}
    table = Scores(scores.rows.assign(x_y=-scores.rows["insertion"]), {**scores.manifest, "metrics": [odd, *METRICS]}).table()
    found = read_latex(table.to_latex("tab:levels_1"))
    assert found.columns == "ll" + "r." * 3 + "r" + "r"  # a metric without a direction has no letters
    assert found.label == "tab:levels_1"
    assert found.caption == table.caption
    assert found.rows[0][:6] == ["layer", "method", "X_y & 50 % \u2191", "", "AD % \u2193", ""]
    assert [row[0] for row in found.rows[1:]] == [*NASTY, "input"]
    text = table.lines(apart=True, counts=False)
    assert [[cell.replace("\u2212", "-") for cell in row] for row in found.rows] == text
    assert "\u2212" in found.rows[1][2], "a negative number has a minus sign"
    best = [row[f"{name}_best"] for _, row in table.frame.iterrows() for name in ("x_y", "average_drop", "insertion")]
    assert len(found.bold) == sum(best) >= 3


# Letters of the layers' names, beside about 36 others and 24 points of gaps; a page has 345 points, a letter 5.1.
WIDTHS = {20: "", 30: r"\small", 36: r"\footnotesize", 42: r"\scriptsize", 60: r"\scriptsize"}


@pytest.mark.parametrize("letters", WIDTHS)
def test_a_wide_table_has_smaller_letters_and_says_so_if_that_is_not_enough(letters):
    text = run([f"{n}{'x' * (letters - 1)}" for n in range(3)], metrics=METRICS[:1]).table().to_latex()
    assert read_latex(text).size == WIDTHS[letters].removeprefix("\\")
    assert text.startswith("% needs \\usepackage{booktabs}\n")
    assert ("wider than the page" in text) is (letters == 60)


def test_columns_of_counts_are_left_out_of_latex_only_where_they_say_nothing():
    scores = run(["p2", "p3"])
    assert read_latex(scores.table().to_latex()).rows[0][-1] == "mask area %"
    rows = scores.rows.copy()
    rows.loc[0, ["status", "average_drop"]] = ["nan_map", np.nan]
    found = read_latex(Scores(rows, scores.manifest).table().to_latex())
    assert [row[-2:] for row in found.rows] == [["n", "failed"], ["39", "1"], ["40", "0"]]


def test_numbers_line_up_in_text_whatever_letters_follow():
    lines = str(run(["p2", "p3", "p3b"], controls=True).table()).splitlines()
    assert len({line.index("]") for line in lines[1:]}) == 1


def test_words_are_those_of_each_metric_with_a_direction():
    sentences = run(["p2", "p3"], controls=True).table().in_words().splitlines()
    assert [sentence.partition(":")[0] for sentence in sentences] == ["AD %", "insertion", "Significance"]
    assert sentences[0].endswith("and differs significantly from the other one.")
    assert sentences[2].endswith("corrected by Holm, family-wise error rate 5 %.")
    assert run(["p2"]).table().in_words().splitlines()[0].endswith("nothing was tested.")


def test_the_caption_names_model_and_data():
    options = {"model": "timm:resnet18", "data": "folder:/home/me/photos"}
    assert " (n = 40) of timm:resnet18 on folder:photos. Bold" in run(["p2"], options=options).table().caption
    assert " (n = 40) of ResNet. " in run(["p2"], model={"class": "ResNet"}).table().caption


WHOLE = run(["p2", "[p3]", "a--b"]).table().to_latex("tab:x")
BROKEN = {
    "an unescaped ampersand": (" & ", " & & "),
    "an open group": (r"\textbf{", r"\textbf{{"),
    "an open environment": (r"  \end{tabular}" + "\n", ""),
    "a percent sign": (r"\%", "%"),
    "an argument of a row": ("{[}p3]", "[p3]"),
    "a row too long": ("\\\\\n    \\midrule", "& \\\\\n    \\midrule"),
    "a heading over too few columns": ("{2}{c}", "{1}{c}"),
    "a column that is none": ("r@{}l", "r@{}x"),
    "a gap without a unit": ("pt}", "}"),
    "a row without its end": (r"\\" + "\n", "\n"),
    "an arrow": (r"$\downarrow$", "\u2193"),
    "an open formula": (r"\downarrow$", r"\downarrow"),
    "a command that is none": (r"\bottomrule", r"\hbottomline"),
    "a dash": ("a-{}-b", "a--b"),
    "a label with a hash": ("tab:x", "tab#x"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_reader_of_latex_refuses(fault):
    before, after = BROKEN[fault]
    assert before in WHOLE
    with pytest.raises(BadLatexError):
        read_latex(WHOLE.replace(before, after))


def test_a_label_of_latex_is_a_plain_word():
    with pytest.raises(
        UsageError, match=r"a label of LaTeX has letters, digits and : \. \+ / - _, such as 'tab:levels'; got 'a#b'"
    ):
        run(["p2"]).table().to_latex("a#b")


def test_markdown_cells_keep_their_columns_and_their_signs():
    table = run(["a|b", "fpn[*]", "layer4_1", "_x_", "<b>", "`c`"]).table()
    lines = table.to_markdown().splitlines()
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines[:8]} == {8 + 2}  # with the ends of a line
    assert [line.split(" | ")[0][2:] for line in lines[2:8]] == [
        *(r"a\|b", r"fpn[\*]", "layer4_1", r"\_x\_", r"\<b>", r"\`c\`")
    ]


def test_html_is_a_table_with_every_name_escaped():
    table = run(["<b>", 'a"&'], controls=True).table()
    page = ElementTree.fromstring(f"<body>{table.to_html()}</body>")
    rows = [["".join(cell.itertext()) for cell in row] for row in page.iter("tr")]
    assert rows == table.lines()
    assert page.findtext("table/caption") == table.caption
    assert [row[0].text for row in page.iter("tr") if row.find("td/strong") is not None] == ["<b>"]
    assert not list(page.iter("b"))
    assert table._repr_html_() == table.to_html()


def test_an_excel_file_has_the_numbers_and_keeps_names_as_texts(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    table = run(["=1+1", "p\x01"]).table()
    table.to_excel(tmp_path / "table.xlsx")
    sheets = openpyxl.load_workbook(tmp_path / "table.xlsx")
    head, *rows = [[cell.value for cell in row] for row in sheets["results"].iter_rows()]
    assert head == ["layer", "method", *table.frame.columns]
    assert rows[0][:2] == ["=1+1", "gradcam"]
    assert sheets["results"]["A2"].data_type == "s", "no formula"
    assert rows[1][0] == r"p\x01"
    assert rows[0][head.index("average_drop")] == pytest.approx(table.frame["average_drop"].iloc[0], rel=1e-12)
    assert sheets["caption"]["A1"].value == table.caption
    with pytest.raises(OutputError, match=r"cannot write '.*none/table\.xlsx': .*; choose another file"):
        table.to_excel(tmp_path / "none/table.xlsx")


def test_excel_without_its_package_or_its_name_is_one_line(tmp_path, monkeypatch):
    table = run(["p2"]).table()
    with pytest.raises(UsageError, match=r"an Excel file has a name such as table\.xlsx; got 'table\.xls'"):
        table.to_excel("table.xls")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UsageError, match=r"Excel files need openpyxl, which is missing: pip install 'xaieval\[excel\]'"):
        table.to_excel(tmp_path / "table.xlsx")


def test_csv_has_all_numbers_of_the_frame():
    table = run(["p2", "p3"]).table()
    again = pd.read_csv(io.StringIO(table.to_csv()), index_col=["layer", "method"], keep_default_na=False)
    pd.testing.assert_frame_equal(again, table.frame, check_dtype=False, check_exact=False)


def test_the_caption_names_images_groups_protocol_and_controls():
    run_entries = {"protocol.masking": "top", "protocol.keep_percent": 50.0, "protocol.target": "label"}
    scores = run(["p2", "p3"], controls=True, run=run_entries)
    caption = scores.table().caption
    assert caption.startswith(
        "Means with 95 % intervals (n = 40). Protocol score-cam, target label. Bold: the best mean of a column. "
        "Means in a column that share a letter do not differ significantly (paired tests"
    )
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
