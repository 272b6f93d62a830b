"""`xaieval.search`: the winner of the full grid at a part of its passes, with the rows of the full grid."""

from __future__ import annotations

from functools import cache

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import xaieval
from xaieval import SearchResult
from xaieval.data import Pictures, Preprocessing, scenes
from xaieval.errors import CheckError, DataError, ExplainerError, MetricError, UsageError
from xaieval.evaluation.scores import Scores

KEYS = ["image_id", "layer", "method"]
LAYERS, METHODS, BY = ["fpn[p2]", "fpn[p5]"], ["gradcam", "layercam"], "average_drop"


@cache
def _pictures() -> Pictures:
    return scenes(Preprocessing(128, 128, mean=(0.5,) * 3, std=(0.5,) * 3), size=48).kept_in_memory()


@cache
def _whole() -> Scores:
    return xaieval.score(xaieval.models.fpn_scenes(), _pictures().loader(8), LAYERS, METHODS, BY, progress=False)


def search(**options: object) -> SearchResult:
    settings = {"layers": LAYERS, "methods": METHODS, "by": BY, "progress": False} | options
    return xaieval.search(xaieval.models.fpn_scenes(), _pictures().loader(8), **settings)


@cache
def _found() -> SearchResult:
    return search()


def test_the_best_pair_is_among_those_that_are_left():
    means = _whole().summary()[BY]
    assert means.idxmin() in [_found().best, *_found().undecided]
    assert {layer for layer, _ in [_found().best, *_found().undecided]} == {"fpn[p5]"}
    assert _found().spent < 1


def test_the_rows_are_those_of_the_whole_run():
    rows = _found().scores.rows
    same = _whole().rows.set_index(KEYS).loc[pd.MultiIndex.from_frame(rows[KEYS])].reset_index()
    pd.testing.assert_frame_equal(rows, same[rows.columns], check_exact=False, rtol=1e-4, atol=1e-4)


def test_what_was_spent_is_what_was_measured():
    rows = _found().scores.rows
    assert _found().spent == pytest.approx(len(rows) / (4 * 48))
    dropped = {(entry["layer"], entry["method"]): entry["images"] for entry in _found().scores.manifest["stop"]["dropped"]}
    counts = rows.groupby(["layer", "method"]).size()
    assert dropped
    assert {pair: counts[pair] for pair in dropped} == dropped


def test_the_model_runs_less_after_a_pair_was_dropped():
    model, seen = xaieval.models.fpn_scenes(), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    found = xaieval.search(model, _pictures().loader(8), LAYERS, METHODS, BY, progress=False, fast=False)
    started = sum(seen)
    seen.clear()
    xaieval.score(model, _pictures().loader(8), LAYERS, METHODS, BY, progress=False, fast=False)
    assert sum(seen) - started == round((1 - found.spent) * 4 * 48)


def test_the_table_and_the_text():
    table = _found().table()
    assert list(table.columns) == [BY, f"{BY}_low", f"{BY}_high", "n_images", "outcome", "beaten_by"]
    assert table.index[0] == _found().best
    assert table["outcome"].iloc[0] == "best"
    assert set(table["outcome"].loc[["fpn[p2]"]]) == {"dropped"}
    dropped = table[table["outcome"] == "dropped"]
    assert list(dropped.index) == list(dropped.sort_values(["n_images", BY], ascending=[False, True]).index)
    assert table["beaten_by"].loc[("fpn[p2]", "gradcam")].endswith("at fpn[p5]")
    assert f"{100 * _found().spent:.1f} % of the full grid was measured" in repr(_found())


def test_methods_that_do_not_fit_are_left_out_with_the_reason():
    found = search(layers=["fpn[p5]"], methods="fast", max_images=8)
    assert ("fpn[p5]", "gradcam") in found.table().index
    assert found.left_out[("fpn[p5]", "cam")].startswith("method 'cam' needs a layer that feeds global average pooling")
    assert {"attention", "odam", "ssgrad-cam"} <= {method for _, method in found.left_out}
    assert f"{len(found.left_out)} pairs did not take part; see left_out" in repr(found)


def test_a_method_that_was_named_is_not_left_out():
    with pytest.raises(ExplainerError, match="method 'cam' needs a layer"):
        search(methods=["gradcam", "cam"])


def test_a_search_that_breaks_off_goes_on(tmp_path, monkeypatch):
    from xaieval.evaluation import loop

    whole, calls = loop.measure, []

    def breaking(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(loop, "measure", breaking)
    with pytest.raises(KeyboardInterrupt):
        search(output_dir=tmp_path)
    found = search(output_dir=tmp_path)
    batches = found.scores.manifest["stop"]["images"] // 8
    assert len(calls) == 1 + batches  # the third one twice
    pd.testing.assert_frame_equal(found.scores.rows, _found().scores.rows)
    assert SearchResult(Scores.load(tmp_path)).table().equals(found.table())


def test_methods_that_are_the_same_cannot_be_told_apart():
    same = [lambda model, images, targets, name=name: images.mean(dim=1) for name in "ab"]
    for method, name in zip(same, "ab", strict=True):
        method.__name__ = name
    found = search(layers=(), methods=same)
    assert {found.best, *found.undecided} == {("input", "a"), ("input", "b")}
    assert found.scores.manifest["stop"]["reason"] == "2 of 2 pairs have the same mean average_drop on all 48 images"


def test_wrong_arguments():
    model = xaieval.models.fpn_scenes()
    with pytest.raises(DataError, match="stop= and search need images in random order, which a list cannot give"):
        xaieval.search(model, [torch.zeros(2, 3, 128, 128)], LAYERS, METHODS, BY)
    with pytest.raises(MetricError, match="a race needs two pairs"):
        search(layers=["fpn[p5]"], methods=["gradcam"])
    with pytest.raises(MetricError, match="no metric 'size' to stop by"):
        search(by=xaieval.metrics.Metric("size", lambda maps: maps.flatten(1).mean(1), None, needs=("maps",)))
    with pytest.raises(UsageError, match="error is a probability"):
        search(error=5)
    with pytest.raises(UsageError, match="max_images is at least 1"):
        search(max_images=0)


def test_strict_refuses_before_the_first_image():
    images = torch.rand(16, 3, 128, 128)
    with pytest.raises(CheckError):
        xaieval.search(
            xaieval.models.fpn_scenes(), DataLoader(TensorDataset(images), 8), LAYERS, METHODS, BY, strict=True, progress=False
        )
