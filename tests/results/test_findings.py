"""Findings go into a manifest as plain values, and come back."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from xaieval import Scores
from xaieval.errors import OutputError
from xaieval.results.findings import Finding
from xaieval.results.validation import check_manifest

FOUND = Finding("one_output", "the model has one output", {"shape": [4, 1], "confidence": "sigmoid"})


def test_a_finding_comes_back_from_a_manifest():
    entry = json.loads(json.dumps(FOUND.to_dict()))
    assert entry == {"name": "one_output", "text": FOUND.text, "evidence": {"shape": [4, 1], "confidence": "sigmoid"}}
    assert Finding.from_dict(entry) == FOUND


def test_findings_are_the_first_warnings_of_a_run():
    rows = pd.DataFrame({"image_id": ["a"] * 2, "layer": "p5", "method": ["one", "two"], "status": ["ok", "nan_map"]})
    scores = Scores(rows, {"findings": [FOUND.to_dict()], "complete": False})
    assert scores.findings()[0] == FOUND
    first, *others = scores.warnings()
    assert first == FOUND.text
    assert others == Scores(rows, {"complete": False}).warnings()


@pytest.mark.parametrize("findings", [{}, ["one"], [{"name": "a", "text": "b"}], [{"name": 1, "text": "b", "evidence": {}}]])
def test_a_manifest_with_other_findings_is_refused(findings):
    with pytest.raises(OutputError, match="findings"):
        check_manifest({"findings": findings}, "manifest.json")
