"""`target="each"`: a row for every class that an image shows, which is the row of a run that asks for that class alone."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import xaieval
from xaieval.errors import TargetError, UsageError
from xaieval.metrics import pointing_game

METRICS = ["average_drop", pointing_game(tolerance=0), "energy_pointing_game"]
PRESENT = [[0, 2], [1], [], [0, 1, 2], [2]]


def tiny() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ]
    return nn.Sequential(*layers).eval()


def data(**fields: Any) -> dict[str, Any]:
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    truth = [{"boxes": [[3 * one, 0, 3 * one + 3, 12] for one in known], "labels": known} for known in PRESENT]
    return {"image": images, "id": list("abcde"), "truth": truth} | fields


def score(loader: Any, target: Any = "each", **options: Any) -> Any:
    settings = {"layers": "2", "methods": ("gradcam", "random"), "metrics": METRICS, "progress": False} | options
    return xaieval.score(tiny(), loader, target=target, **settings)


def test_rows_are_those_of_runs_that_ask_for_each_class_alone():
    rows = score([data()]).rows
    assert rows["image_id"].unique().tolist() == ["a@0", "a@2", "b@1", "c@none", "d@0", "d@1", "d@2", "e@2"]
    assert (rows.loc[rows["image_id"] == "c@none", "status"] == "no_target").all()
    for number in range(3):
        own = rows[(rows["target"] == number) & (rows["method"] == "gradcam")]
        alone = score([data()], number, methods="gradcam").rows.set_index("image_id")
        names = [name.partition("@")[0] for name in own["image_id"]]
        for column in ("confidence", "masked_confidence", "average_drop", "pointing_game", "energy_pointing_game"):
            expected = alone.loc[names, column].to_numpy()
            torch.testing.assert_close(torch.tensor(own[column].to_numpy()), torch.tensor(expected), rtol=1e-5, atol=1e-7)
    assert rows["pointing_game"].notna().sum() == 14


def test_rows_depend_on_no_batch_and_the_image_is_the_group(tmp_path):
    scores = score([data()])
    pd.testing.assert_frame_equal(score([data()], batch_size=2).rows, scores.rows, rtol=1e-4, atol=1e-6)
    parts = [{key: value[start : start + 2] for key, value in data().items()} for start in (0, 2, 4)]
    pd.testing.assert_frame_equal(score(parts).rows, scores.rows, rtol=1e-4, atol=1e-6)
    assert scores.rows["group"].tolist() == [name.partition("@")[0] for name in scores.rows["image_id"]]
    assert scores.manifest["run"]["protocol.target"] == "each"
    assert score([data()], max_images=2).rows["image_id"].unique().tolist() == ["a@0", "a@2", "b@1"]
    groups = score([data()], groups={"a": 1, "b": 1, "c": 1, "d": 2, "e": 2}).rows["group"]
    assert groups.tolist() == ["1"] * 8 + ["2"] * 8


def test_a_run_that_breaks_off_goes_on(tmp_path):
    parts = [{key: value[start : start + 2] for key, value in data().items()} for start in (0, 2, 4)]

    def broken() -> Any:
        yield from parts[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(broken(), output_dir=tmp_path)
    resumed = score(parts, output_dir=tmp_path).rows
    pd.testing.assert_frame_equal(resumed, score([data()]).rows, rtol=1e-4, atol=1e-6)


def test_labels_of_zeros_and_ones_say_what_an_image_shows():
    table = torch.tensor([[int(number in known) for number in range(3)] for known in PRESENT])
    with_table = score([data(truth=None, label=table)], metrics=["average_drop"]).rows
    pd.testing.assert_series_equal(with_table["average_drop"], score([data()]).rows["average_drop"])


def test_another_class_of_an_image_is_not_another_image():
    one = {"image": torch.rand(1, 3, 12, 12), "truth": [{"boxes": [[0, 0, 6, 12], [6, 0, 12, 12]], "labels": [0, 1]}]}
    rows = score([one], controls="swapped", metrics="average_drop", methods="gradcam").rows
    assert len(rows) == 2
    assert rows["average_drop_swapped"].isna().all()


class Segmenter(nn.Module):
    """Logits of three classes for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images)


def test_a_segmentation_network_is_asked_for_no_background():
    maps = torch.zeros(2, 12, 12, dtype=torch.long)
    maps[0, :4], maps[0, 4:8], maps[1, :, :6], maps[1, 0] = 1, 2, 2, 255
    settings = {"layers": "conv", "metrics": METRICS, "task": "segmentation", "progress": False, "target": "each"}
    rows = xaieval.score(Segmenter(), [(torch.rand(2, 3, 12, 12), maps)], **settings).rows
    assert rows["image_id"].tolist() == ["0@1", "0@2", "1@2"]
    assert rows["target"].tolist() == [1, 2, 2]


def test_other_calls_ask_for_each_class_too():
    models = {"one": tiny(), "two": tiny()}
    crossed = xaieval.cross_score(models, [data()], "2", metrics="average_drop", target="each", progress=False)
    names = ["a@0", "a@2", "b@1", "c@none", "d@0", "d@1", "d@2", "e@2"]
    assert sorted(crossed.rows["image_id"].unique()) == names
    checked = xaieval.sanity_check(tiny(), [data()], "2", target="each", progress=False)
    assert sorted(checked.rows["image_id"].unique()) == names
    assert xaieval.check(tiny(), [data()], target="each").rows["image_id"].nunique() == 8


def test_where_each_class_makes_no_sense_it_is_refused():
    with pytest.raises(TargetError, match="target 'each' asks for each class that an image shows"):
        score([torch.rand(2, 3, 12, 12)])
    with pytest.raises(TargetError, match="explain returns one map per image"):
        xaieval.explain(tiny(), torch.rand(1, 3, 12, 12), "2", target="each")
    with pytest.raises(TargetError, match="stop= counts images"):
        score(DataLoader(torch.rand(4, 3, 12, 12), batch_size=2), stop="best")
    assert issubclass(TargetError, UsageError)
