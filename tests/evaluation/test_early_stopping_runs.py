"""`score(stop=...)`: images in random order with their own ids, a stop that the whole data set confirms, and the manifest."""

from __future__ import annotations

import json
from functools import cache

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import xaieval
from xaieval import Stop
from xaieval.cli import main
from xaieval.data import Pictures, Preprocessing, scenes
from xaieval.errors import ConfigError, DataError, MetricError
from xaieval.evaluation.image_order import Shuffled
from xaieval.evaluation.scores import Scores

KEYS = ["image_id", "layer", "method"]
BROKEN = {3, 17, 60}


def score(loader: object, **options: object) -> Scores:
    return xaieval.score(xaieval.models.fpn_scenes(), loader, ["fpn[*]"], progress=False, **options)


@cache
def _pictures() -> Pictures:
    return scenes(Preprocessing(128, 128, mean=(0.5,) * 3, std=(0.5,) * 3), size=120).kept_in_memory()


@cache
def _whole() -> Scores:
    return score(_pictures().loader(20))


def _order(scores: Scores) -> list[str]:
    return list(scores.rows.groupby("layer")["average_drop"].mean().sort_values().index)


@pytest.mark.slow
def test_it_stops_when_the_two_best_are_certain_and_they_are_the_best():
    part = score(_pictures().loader(20), stop=Stop(rule="best", k=2, min_images=20))
    stop = part.manifest["stop"]
    assert 20 <= stop["images"] < 120
    assert stop["population"] == 120
    assert stop["decided"]
    assert part.manifest["complete"]
    assert part.manifest["data"]["images"] == stop["images"] == part.rows["image_id"].nunique()
    assert set(stop["orders"]["gradcam"][:2]) == set(_order(_whole())[:2])
    assert (
        stop["reason"]
        == f"the 2 best of 4 layers by average_drop are certain at error 0.05 after {stop['images']} of 120 images"
    )


@pytest.mark.slow
def test_the_rows_are_those_of_the_whole_run_under_the_same_ids():
    part = score(_pictures().loader(20), stop=Stop(rule="best", k=2, min_images=20)).rows
    same = _whole().rows.set_index(KEYS).loc[pd.MultiIndex.from_frame(part[KEYS])].reset_index()
    pd.testing.assert_frame_equal(part, same, check_exact=False, rtol=1e-4, atol=1e-4)
    assert list(part["image_id"].unique()) != sorted(part["image_id"].unique())


@pytest.mark.slow
def test_without_a_decision_all_images_are_seen_and_that_is_known():
    tied = score(_pictures().loader(20), methods=["gradcam"], stop=Stop(error=1e-12, min_images=20))
    assert tied.manifest["stop"]["images"] == 120
    assert tied.manifest["stop"]["reason"] == "the order of 4 layers by average_drop is known: all 120 images were seen"
    assert tied.manifest["stop"]["orders"]["gradcam"] == _order(_whole())


def test_the_seed_decides_which_images_come_first():
    first, again, other = (list(Shuffled(_pictures().loader(7), seed).order) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == sorted(other) == list(range(120))


@pytest.mark.slow
def test_images_that_cannot_be_read_are_counted_too():
    pictures = _pictures()

    def read(index: int) -> object:
        if index in BROKEN:
            raise OSError("broken")
        return pictures.read(index)

    holed = Pictures(pictures.ids, pictures.labels, pictures.classes, read, pictures.preprocessing)
    found = score(holed.loader(20), stop=Stop(error=1e-12))
    assert found.manifest["stop"]["images"] == 120
    assert found.manifest["stop"]["left_out"] == {"gradcam": len(BROKEN)}
    assert found.rows["status"].value_counts().to_dict() == {"ok": 4 * 117, "unreadable": 12}
    expected = _whole().rows
    expected = expected[~expected["image_id"].isin([pictures.ids[i] for i in BROKEN])]
    assert found.manifest["stop"]["orders"]["gradcam"] == list(
        expected.groupby("layer")["average_drop"].mean().sort_values().index
    )


def test_max_images_takes_the_first_ones_of_the_loader_and_shuffles_them():
    found = score(_pictures().loader(20), stop=Stop(error=1e-12), max_images=30)
    assert found.manifest["stop"]["population"] == 30
    assert set(found.rows["image_id"]) == set(_pictures().ids[:30])


def test_the_rule_can_have_a_maximum_of_its_own():
    found = score(_pictures().loader(20), stop=Stop(error=1e-12, min_images=20, max_images=40))
    assert found.manifest["stop"]["images"] == 40
    assert not found.manifest["stop"]["decided"]
    assert found.manifest["stop"]["reason"].endswith("max_images is reached")


def test_images_without_ids_are_called_by_their_place_in_the_loader():
    images = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 3, 2, 2)
    loader = DataLoader(TensorDataset(images, torch.arange(10)), batch_size=4)
    seen = {
        i: float(image[0, 0, 0])
        for batch in Shuffled(loader, 5)
        for i, image in zip(batch["ids"], batch["images"], strict=True)
    }
    assert seen == {str(i): float(i) for i in range(10)}
    labels = {i: int(label) for batch in Shuffled(loader, 5) for i, label in zip(batch["ids"], batch["labels"], strict=True)}
    assert labels == {str(i): i for i in range(10)}


def test_a_loader_that_shuffles_keeps_its_images():
    pictures = _pictures()
    loader = DataLoader(pictures, batch_size=16, shuffle=True, collate_fn=pictures.loader(1).collate_fn)
    ids = [name for batch in Shuffled(loader, 0) for name in batch["ids"]]
    assert sorted(ids) == sorted(pictures.ids)


@pytest.mark.parametrize(
    ("loader", "kind"), [([torch.zeros(2, 3, 8, 8)], "list"), ((torch.zeros(2, 3, 8, 8) for _ in range(2)), "generator")]
)
def test_a_loader_without_indices_is_refused(loader, kind):
    with pytest.raises(DataError) as caught:
        score(loader, stop="ranking")
    assert str(caught.value) == (
        f"stop= and search need images in random order, which a {kind} cannot give; give a DataLoader over a data set with a "
        "length and indices"
    )


def test_a_batch_whose_images_cannot_be_counted_is_refused():
    loader = DataLoader(TensorDataset(torch.zeros(6, 3, 8, 8)), batch_size=3, collate_fn=lambda items: torch.zeros(2, 3, 8, 8))
    with pytest.raises(DataError, match="a batch has 2 images where the loader's sampler asked for 3"):
        list(Shuffled(loader, 0))


def test_wrong_rules_and_metrics_are_refused_before_the_work():
    with pytest.raises(ConfigError, match="no rule 'rankin' to stop by; did you mean 'ranking'"):
        score(_pictures().loader(20), stop="rankin")
    with pytest.raises(MetricError, match="no metric 'average_gain' to stop by"):
        score(_pictures().loader(20), stop=Stop(by="average_gain"))


def test_a_folder_of_a_run_without_stop_is_another_run(tmp_path):
    score(_pictures().loader(20), max_images=20, output_dir=tmp_path)
    with pytest.raises(xaieval.XaievalError, match="holds another run: its stop is null"):
        score(_pictures().loader(20), max_images=20, output_dir=tmp_path, stop="best")


@pytest.mark.slow
def test_the_command_stops_too(tmp_path, capsys):
    options = ["--stop", "best", "--stop-args.k", "2", "--stop-args.min_images", "20", "--batch-size", "10", "--no-progress"]
    main(["score", "--max-images", "60", "--out", str(tmp_path / "run"), *options])
    stop = json.loads((tmp_path / "run" / "manifest.json").read_text())["stop"]
    assert stop["k"] == 2
    assert stop["images"] < 60
    assert f"stopped: {stop['reason']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stop-args.k", "2"], "--stop-args are settings of --stop, which is missing; add --stop ranking, best or worst"),
        (["--stop", "best", "--stop-args.kk", "2"], "no --stop-args.kk; did you mean 'k'"),
        (["--stop", "rnking"], "no rule 'rnking' to stop by; did you mean 'ranking'"),
        (["--stop", "best", "--stop-args.error", "2"], "error is a probability in (0, 1), such as 0.05; got 2"),
    ],
)
def test_wrong_use_of_the_command_is_one_clear_line(options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["score", *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
