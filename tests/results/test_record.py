"""A run record is saved and loaded unchanged, and is all that tables, figures and reports need."""

from __future__ import annotations

import pandas as pd
import pytest

from tests import ROOT
from xaieval import Scores
from xaieval.cli import main
from xaieval.errors import OutputError
from xaieval.report import ReportOptions, images_to_show, render_report, summary_html, tradeoff_figure
from xaieval.results.record import RunRecord

METRICS = [
    {"name": "average_drop", "higher_is_better": False, "interval": "mean", "label": "AD %"},
    {"name": "increase_in_confidence", "higher_is_better": True, "interval": "wilson", "label": "IC %"},
]
MANIFEST = {"metrics": METRICS, "seed": 3, "controls": ["random"], "complete": True}


def _rows() -> pd.DataFrame:
    rows = pd.DataFrame({"image_id": [f"image {number}" for number in range(8)] * 2, "status": "ok"})
    rows = rows.assign(layer=["p2"] * 8 + ["input"] * 8, method=["gradcam"] * 8 + ["random"] * 8)
    return rows.assign(average_drop=[float(number) for number in range(16)], increase_in_confidence=[0.0, 100.0] * 8)


def test_the_manifest_is_read_in_one_place():
    record = RunRecord(_rows(), MANIFEST)
    assert (record.metrics, record.controls, record.seed, record.complete) == (METRICS, ["random"], 3, True)
    empty = RunRecord(_rows())
    assert (empty.metrics, empty.controls, empty.seed, empty.complete) == ([], [], 0, True)
    assert not RunRecord(_rows(), {"complete": False}).complete


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    record = RunRecord(_rows(), MANIFEST)
    summary = Scores(_rows(), MANIFEST).summary()
    record._write(tmp_path / "run", summary)
    loaded = RunRecord.load(tmp_path / "run")
    pd.testing.assert_frame_equal(loaded.rows, record.rows, check_dtype=False)
    assert loaded.manifest == MANIFEST
    assert (tmp_path / "run/summary.csv").read_text() == summary.to_csv()


def test_scores_are_a_record_and_write_the_same_files(tmp_path):
    scores = Scores(_rows(), MANIFEST)
    scores.save(tmp_path / "scores", level=0.9)
    RunRecord(_rows(), MANIFEST)._write(tmp_path / "record", scores.summary(0.9))
    for name in ("rows.parquet", "summary.csv", "manifest.json"):
        assert (tmp_path / "scores" / name).read_bytes() == (tmp_path / "record" / name).read_bytes()
    assert type(Scores.load(tmp_path / "record")) is Scores


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"holds no run: there is no"):
        RunRecord.load(tmp_path)


def test_figures_and_reports_need_only_a_record():
    record, scores = RunRecord(_rows(), MANIFEST), Scores(_rows(), MANIFEST)
    assert images_to_show(record) == images_to_show(scores)
    assert summary_html(record) == summary_html(scores)
    assert tradeoff_figure(record).axes[0].get_xlabel() == "AD %, lower is better"
    assert render_report(record, ReportOptions(other=record)) == render_report(scores, ReportOptions(other=scores))


def test_a_run_of_the_version_before_the_rooms_still_loads_reports_and_compares(tmp_path, capsys):
    folder = ROOT / "benchmarks/ucmerced_mobilenetv2"  # written before modules and names moved
    scores = Scores.load(folder)
    summary = scores.summary().select_dtypes("number")
    before = pd.read_csv(folder / "summary.csv", index_col=["layer", "method"])
    pd.testing.assert_frame_equal(summary.drop(columns="mask_area"), before.select_dtypes("number"), check_dtype=False)
    scores.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    main(["compare", str(folder), str(folder)])
    assert "gradcam" in capsys.readouterr().out
