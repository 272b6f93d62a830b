"""The table of metrics on the command line and in the documentation; each metric and public name is declared in one module."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

from tests import ROOT
from xaieval import metrics
from xaieval.cli import main
from xaieval.metrics import FAMILIES, METRICS, MODULES, NEEDS
from xaieval.metrics.catalogue import catalogue

PAGE = ROOT / "docs/metrics.md"


def test_the_list_has_every_metric_with_what_it_needs_and_costs(capsys):
    main(["metrics"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: " ".join(line.split()) for line in lines[1:]}
    assert set(rows) == set(METRICS)
    families = [row.split()[1] for row in rows.values()]
    assert families == sorted(families, key=list(FAMILIES).index)
    assert rows["average_drop"] == (
        "average_drop faithfulness confidence, masked_confidence 0 lower AD % Chattopadhay et al. 2018, arXiv 1710.11063"
    )
    assert rows["drop_in_deletion"].startswith(
        "drop_in_deletion faithfulness confidence, inverse_confidence 1 higher ADD % Jung and Oh"
    )
    assert rows["coherency"].startswith(
        "coherency faithfulness maps, masked_maps the method once more higher coherency % Poppi"
    )
    assert rows["sparseness"].startswith("sparseness complexity maps 0 describes sparseness Chalasani")


def test_every_metric_of_a_module_is_known_by_its_own_name():
    modules = [import_module(f"xaieval.metrics.{module}").METRICS for module in MODULES]
    assert [metric for module in modules for metric in module] == list(METRICS.values()), "two metrics have one name"


@pytest.mark.parametrize("module", [*MODULES, *metrics.OTHERS])
def test_the_package_has_every_public_name_of_its_modules(module):
    for name in import_module(f"xaieval.metrics.{module}").__all__:
        assert name in metrics.__all__
        assert getattr(metrics, name) is getattr(import_module(f"xaieval.metrics.{module}"), name), name


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.name)
def test_an_entry_says_what_the_metric_says(entry):
    metric = METRICS[entry.name]
    assert set(entry.needs.split(", ")) == set(metric.needs) - {"protocol"} <= set(NEEDS)
    assert {"higher": True, "lower": False, "describes": None}[entry.better] is metric.higher_is_better
    assert entry.label, "a table of results needs a heading"
    assert entry.passes, "what it costs is said"


def test_the_page_has_the_table_that_the_command_prints(capsys):
    main(["metrics", "--markdown"])
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == len(METRICS) + 2
    assert printed in PAGE.read_text(), "write what 'xaieval-bench metrics --markdown' prints into docs/metrics.md"


def test_the_page_speaks_of_every_metric():
    text = PAGE.read_text().split("## How each is fooled")[1]
    assert not [name for name in METRICS if f"`{name}`" not in text], "say how it is fooled"


def test_percentages_are_printed_to_a_tenth_and_other_units_to_a_thousandth(tmp_path, capsys):
    words = ["--layers", "fpn[p5]", "--max-images", "4", "--metrics", "average_drop,sparseness", "--no-progress"]
    main(["score", *words, "--out", str(tmp_path)])
    _, heading, arrows, row = capsys.readouterr().out.splitlines()[:4]
    assert "AD % [95% interval]" in heading
    assert "sparseness [95% interval]" in heading
    directions = ["layer", "method", "lower", "is", "better", "area", "%", "n", "failed"]
    assert arrows.split() == directions, "no sparseness is better, high or low"
    assert re.search(r"gradcam +\d+\.\d \[-?\d+\.\d, \d+\.\d\] +0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] +\d+\.\d +4 +0$", row.rstrip())
