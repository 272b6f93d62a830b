"""Every number of things that a public function takes is whole: one line says so otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import xaieval
from xaieval.config.counts import check_count
from xaieval.data import Preprocessing, arrays, load_data, scenes
from xaieval.errors import DataError, UsageError

PREPARE = Preprocessing(32, 32)
IMAGES = torch.rand(4, 3, 8, 8)
MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
METRIC = {"name": "average_drop", "label": "AD %", "higher_is_better": False, "interval": "mean"}
ROWS = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["a"] * 9 + ["b"] * 9, "method": "gradcam", "status": "ok"})
SCORES = xaieval.Scores(ROWS.assign(average_drop=np.arange(18.0)), {"metrics": [METRIC]})


def on_model(function: Callable[..., Any], **choices: Any) -> Any:
    quiet = {} if function in (xaieval.check, xaieval.sanity_check) else {"progress": False}
    return function(MODEL, arrays(IMAGES), layers=["0"], **quiet, **choices)


CALLS: dict[str, Callable[[Any], Any]] = {
    **{
        f"{name} {option}": lambda value, name=name, option=option: on_model(getattr(xaieval, name), **{option: value})
        for name in ("score", "search", "check", "sanity_check")
        for option in ("max_images", "seed", "batch_size")
        if (name, option) != ("sanity_check", "batch_size")
    },
    "score prefix_tokens": lambda value: on_model(xaieval.score, prefix_tokens=value),
    "cross_score max_images": lambda value: xaieval.cross_score({"a": MODEL, "b": MODEL}, arrays(IMAGES), max_images=value),
    "explain seed": lambda value: xaieval.explain(MODEL, IMAGES, ["0"], seed=value),
    "Stop k": lambda value: xaieval.Stop(rule="best", k=value),
    "summary resamples": lambda value: SCORES.summary(resamples=value),
    "rank resamples": lambda value: SCORES.rank(resamples=value),
    "select_layers k": lambda value: SCORES.select_layers(value, "average_drop"),
    "scenes size": lambda value: scenes(PREPARE, size=value),
    "spread max_images": lambda value: scenes(PREPARE, size=4).spread(value),
    "loader batch_size": lambda value: scenes(PREPARE, size=4).loader(value),
    "loader workers": lambda value: scenes(PREPARE, size=4).loader(2, workers=value),
    "load_data batch_size": lambda value: load_data("scenes", PREPARE, value),
    "load_data max_images": lambda value: load_data("scenes", PREPARE, 2, value),
    "load_data workers": lambda value: load_data("scenes", PREPARE, 2, workers=value),
    "arrays batch_size": lambda value: arrays(IMAGES, batch_size=value),
    "load_model num_classes": lambda value: xaieval.models.load_model("timm:test_resnet", num_classes=value),
}


@pytest.mark.parametrize("value", [10.0, "8", True, -1], ids=repr)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_count_is_refused_in_one_line(call, value):
    name = call.split()[1]
    expected = (
        rf"^{name} is at least [01], got -1$"
        if value == -1
        else rf"^{name} is a whole number of at least [01].*; got {value!r}$"
    )
    with pytest.raises(UsageError, match=expected):
        CALLS[call](value)


def test_whole_numbers_of_every_library_are_counts():
    for value in (1, np.int64(3), np.uint8(7)):
        check_count("k", value)
    check_count("k", None, optional=True)
    check_count("workers", 0, least=0)
    with pytest.raises(DataError, match=r"^k is a whole number of at least 1; got None$"):
        check_count("k", None, kind=DataError)
