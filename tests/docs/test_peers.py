"""The page on peers has the tables that its script makes from the installed packages, and the script finds what is wrong."""

from __future__ import annotations

import importlib
import re

import pytest

from tests import ROOT

PAGE = (ROOT / "docs/peers.md").read_text()
VERSION = re.compile(r"(?<=[a-z] )\d+\.\d+\.\d+(?= \|)")  # a newer one that has the same names changes nothing else


@pytest.fixture
def peers(monkeypatch):
    for package in ("captum", "pytorch_grad_cam", "quantus", "torchcam"):
        pytest.importorskip(package, reason="the packages of the page")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("peers")


def test_the_tables_are_those_of_the_installed_packages(peers):
    made = peers.tables()
    assert set(re.findall(r"<!-- from ([\w ]+) -->", PAGE)) == set(made)
    now, then = (VERSION.sub("", text) for text in (peers.filled(PAGE, made), PAGE))
    assert now == then, "python benchmarks/peers.py --page docs/peers.md"


def test_every_metric_and_method_of_ours_has_a_row_and_nothing_else(peers):
    assert peers.unknown_of_ours() == []
    assert peers.not_in_the_tables() == []


def test_a_name_that_a_package_lacks_is_an_error(peers):
    rows = [peers.Row(("adcc",), {"pytorch-grad-cam": ("ADCC", "ARCC")}), peers.Row(("rise",), {"captum": ("Lime.rise",)})]
    with pytest.raises(ValueError, match=r"grad-cam 1\.\S+ has no ADCC \(the row of adcc\)\ncaptum \S+ has no Lime\.rise"):
        peers.check_names(rows)


def test_what_no_row_claims_is_left_out(peers, monkeypatch):
    monkeypatch.setattr(peers, "OF_METRICS", tuple(row for row in peers.OF_METRICS if row.ours != ("irof",)))
    assert peers.left_out("Quantus") == ["IROF"]
    assert "RefineCAM" in peers.left_out("torch-cam"), "a method that xaieval doesn't run by name"
