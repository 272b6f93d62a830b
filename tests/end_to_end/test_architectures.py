"""The architectures of the benchmark: layers are found by themselves, their maps lie the right way up, nothing is changed."""

from __future__ import annotations

import importlib.util

import pandas as pd
import pytest
import torch

from tests import ROOT

pytestmark = pytest.mark.slow


def _benchmark():
    """The script whose quick cases are looked at here."""
    spec = importlib.util.spec_from_file_location("architectures", ROOT / "benchmarks/architectures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


architectures = _benchmark()
QUICK = [case for case in architectures.CASES if case.quick]


def test_there_are_enough_of_them():
    assert len(QUICK) >= 24
    assert len(architectures.CASES) >= 150
    assert len({architectures.key_of(architectures.describe(case)) for case in architectures.CASES}) == len(architectures.CASES)


# timm's own code meets these as it builds or runs a model.
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
@pytest.mark.filterwarnings("ignore:__floordiv__ is deprecated:UserWarning")
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name.replace(":", "-"))
def test_layers_are_found_and_upright(case):
    row = architectures.describe(case) | architectures.examine(case)
    assert row["listed"] > 10
    assert 2 <= len(row["auto"].split()) <= 5
    assert row["reason"] == ""
    assert row["unchanged"]
    known = TABLE.set_index(["model", "options"]).loc[(row["model"], row["options"])]
    assert known["auto"] == row["auto"]
    assert known["layouts"] == row["layouts"]


TABLE = pd.read_csv(ROOT / "benchmarks/architectures.csv", keep_default_na=False)


@pytest.mark.parametrize("wrong", ["flip", "turn", "transpose"])
def test_the_check_sees_maps_that_do_not_lie_as_the_image_does(wrong):
    images = architectures.planted((64, 64))
    assert architectures.is_upright(images)
    assert architectures.is_upright(torch.nn.functional.avg_pool2d(images, 16))
    changes = {"flip": images.flip(2), "turn": images.rot90(1, (2, 3)), "transpose": images.transpose(2, 3)}
    assert not architectures.is_upright(changes[wrong])


def test_the_table_on_the_page_is_the_benchmark_result():
    page = (ROOT / "docs/architectures.md").read_text()
    rows = TABLE.to_dict("records")
    assert "\n".join(architectures.table(rows)) in page
    known = {architectures.key_of(row) for row in rows}
    assert known >= {architectures.key_of(architectures.describe(case)) for case in architectures.CASES}
