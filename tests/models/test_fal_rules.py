"""FAL from scores by a rule, and from any object that selects layers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import xaieval
from xaieval.errors import MetricError, ModelError
from xaieval.models import FAL, LEVELS, FPNClassifier

GAINS = {"p2": -0.01, "p3": 0.05, "p4": 0.0, "p5": 0.08}


def _fpn() -> FPNClassifier:
    torch.manual_seed(0)
    return FPNClassifier("test_resnet", num_classes=4, channels=8)


def _scores(gains: dict[str, float] = GAINS, column: str = "probe") -> xaieval.Scores:
    """Scores of 30 images whose values at each level are around these."""
    rng = np.random.default_rng(0)
    tables = [
        pd.DataFrame({"image_id": range(30), "layer": f"fpn[{level}]", "method": "gradcam", "status": "ok"}).assign(
            **{column: gains[level] + rng.normal(0, 0.01, 30)}
        )
        for level in LEVELS
    ]
    entry = {"name": column, "higher_is_better": False, "interval": "mean"}
    return xaieval.Scores(pd.concat(tables, ignore_index=True), {"metrics": [entry]})


@pytest.mark.parametrize(
    ("by", "column", "expected"),
    [
        ("probe", "probe", ["p3", "p5"]),  # those above 0
        ("oracle-gate", "oracle_gate", ["p3", "p4", "p5"]),  # those above p2
        (["pointing"], "pointing", ["p3", "p4", "p5"]),
    ],
)
def test_the_rule_decides_about_the_levels(by, column, expected):
    scores = _scores(column=column)
    assert list(FAL.from_scores(_fpn(), scores, by=by).attention) == expected
    assert list(FAL.from_scores(_fpn(), scores, 1, by=by).attention) == ["p5"]


def test_a_rule_that_finds_nothing_and_one_without_its_column_are_refused():
    with pytest.raises(ModelError) as error:
        FAL.from_scores(_fpn(), _scores(dict.fromkeys(LEVELS, -0.1)), by="probe")
    lines = str(error.value).split("\n")
    assert lines[0] == "no layer has a significant gain by the rule 'probe'"
    assert lines[-1] == "so there is nothing to put attention on; give k= to ask for the k worst"
    with pytest.raises(MetricError, match=r"^the rule 'oracle-gate' needs oracle_gate, which the run does not have; "):
        FAL.from_scores(_fpn(), _scores(), by="oracle-gate")


class _Fixed:
    """An object that selects layers without rules."""

    def select_layers(self, k: int | None = None, *, method: str | None = None) -> list[str]:
        return ["levels[p4]", "levels[p2]"][:k]


def test_anything_that_selects_layers_will_do():
    assert list(FAL.from_scores(_fpn(), _Fixed()).attention) == ["p2", "p4"]
    assert list(FAL.from_scores(_fpn(), _Fixed(), 1).attention) == ["p4"]
