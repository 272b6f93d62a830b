"""Runs of images in groups: the column and the manifest, runs that resume, and early stopping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import xaieval
from xaieval import Groups
from xaieval.data import arrays
from xaieval.errors import ConfigError, DataError, OutputError
from xaieval.evaluation.scores import Scores

PLACES = ["lake", "lake", "road", "road", "sea", "sea"]


class Net(nn.Module):
    """A network that counts its images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(1, 4, 3)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.head(self.body(images))


IMAGES = torch.randn(6, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def batches(group: list[str] | None = None, failed: bool = False) -> list[dict[str, Any]]:
    made = []
    for start in (0, 2, 4):
        part = slice(start, start + 2)
        one: dict[str, Any] = {
            "image": IMAGES[part],
            "label": torch.tensor([0, 1]),
            "id": [f"{PLACES[i]}{i}" for i in range(6)][part],
        }
        made.append(one | ({} if group is None else {"group": group[part]}))
    if failed:
        made[1]["failed"] = [("gone", 1, "broken")]
    return made


def score(loader: Any, **options: Any) -> Scores:
    return xaieval.score(options.pop("model", None) or Net(), loader, ["body", "head.0"], progress=False, **options)


def groups_of(scores: Scores) -> dict[str, Any]:
    return dict(scores.rows[["image_id", "group"]].drop_duplicates().itertuples(index=False, name=None))


@pytest.mark.parametrize(
    ("group", "groups", "entry"),
    [
        (PLACES, None, {"by": "batch", "weights": "images", "count": 3}),
        (PLACES, Groups(weights="groups"), {"by": "batch", "weights": "groups", "count": 3}),
        (None, "^[a-z]+", {"by": "^[a-z]+", "weights": "images", "count": 3}),
        (list("abcdef"), Groups("^[a-z]+"), {"by": "^[a-z]+", "weights": "images", "count": 3}),
        (None, {f"{place}{i}": place for i, place in enumerate(PLACES)}, {"by": "mapping", "weights": "images", "count": 3}),
    ],
)
def test_rows_and_manifest_have_the_groups(group, groups, entry, tmp_path):
    scores = score(batches(group, failed=True), groups=groups, output_dir=tmp_path)
    assert list(scores.rows.columns[:5]) == ["image_id", "layer", "method", "group", "label"]
    known = groups_of(scores)
    assert known.pop("gone") != known.pop("gone", None), "missing"
    assert known == {f"{place}{i}": place for i, place in enumerate(PLACES)}
    assert scores.manifest["groups"] == entry
    assert scores.manifest["run"]["groups"] == entry["by"]
    assert scores.group_weights == entry["weights"]
    loaded = Scores.load(tmp_path)
    assert loaded.n_groups == 3
    assert loaded.rows["group"].isna().sum() == 2, "of the unreadable image"
    assert loaded.manifest == scores.manifest


def test_a_run_without_groups_is_as_before():
    scores = score(batches())
    assert "group" not in scores.rows
    assert "groups" not in scores.manifest
    assert "groups" not in scores.manifest["run"]
    assert scores.n_groups is None
    assert "n_groups" not in scores.summary()


def test_groups_by_class_are_the_labels():
    assert groups_of(score(batches(), groups="class")) == {f"{place}{i}": str(i % 2) for i, place in enumerate(PLACES)}


class Stopped(Exception):
    """What happens to a run here."""


def _broken(loader: list[Any], after: int) -> Any:
    yield from loader[:after]
    raise Stopped


@pytest.mark.parametrize(("group", "groups"), [(PLACES, None), (None, "^[a-z]+")])
def test_groups_survive_a_run_that_breaks_off(group, groups, tmp_path):
    whole = score(batches(group), groups=groups)
    with pytest.raises(Stopped):
        score(_broken(batches(group), 2), groups=groups, output_dir=tmp_path)
    unfinished = Scores.load(tmp_path)
    assert groups_of(unfinished) == dict(list(groups_of(whole).items())[:4])
    assert unfinished.summary()["n_groups"].tolist() == [2, 2]
    resumed = score(batches(group), groups=groups, output_dir=tmp_path)
    assert groups_of(resumed) == groups_of(whole)
    assert resumed.manifest["groups"] == whole.manifest["groups"]


def test_a_run_is_not_resumed_with_other_groups(tmp_path):
    with pytest.raises(Stopped):
        score(_broken(batches(PLACES), 2), output_dir=tmp_path)
    with pytest.raises(OutputError) as caught:
        score(batches(PLACES), groups="class", output_dir=tmp_path)
    assert str(caught.value) == (
        f'\'{tmp_path}\' holds another run: its groups is "batch", this run\'s is "class"; choose another folder, or '
        "remove that one; Scores.load(folder).with_groups(...) gives a finished run other groups without measuring it again"
    )
    with pytest.raises(OutputError, match="its images, labels or groups are others"):
        score(batches(["lake", "sea", *PLACES[2:]]), output_dir=tmp_path)


def test_a_finished_run_takes_the_groups_of_the_new_call_and_weights_are_free_to_change(tmp_path):
    model = Net()
    score(batches(PLACES), output_dir=tmp_path, model=model)
    seen = model.seen
    again = score(batches(PLACES), output_dir=tmp_path, model=model, groups=Groups(weights="groups"))
    assert again.manifest["groups"] == {"by": "batch", "weights": "groups", "count": 3}
    assert model.seen - seen < seen, "the rows are those of the first run"
    changed = score(batches(["all"] * 6), output_dir=tmp_path, model=model)
    assert set(groups_of(changed).values()) == {"all"}, "other groups in the batches: measured again"


def test_groups_given_to_a_finished_run_go_when_the_run_is_made_again(tmp_path):
    score(batches(), output_dir=tmp_path)
    Scores.load(tmp_path).with_groups("class").save(tmp_path)
    assert Scores.load(tmp_path).n_groups == 2
    again = score(batches(), output_dir=tmp_path)
    assert again.n_groups is None
    assert "groups" not in again.manifest


def test_images_without_a_group_end_a_run_before_the_first_pass():
    model = Net()
    with pytest.raises(DataError, match=r"finds no group in the id 'lake0'"):
        score(batches(), groups="road", model=model)
    assert model.seen == 0


def test_a_run_that_stops_early_knows_groups_but_not_means_over_them():
    loader = DataLoader([{"image": image, "id": str(i), "group": PLACES[i]} for i, image in enumerate(IMAGES)], batch_size=2)
    scores = score(loader, stop=xaieval.Stop(rule="best", min_images=1))
    assert groups_of(scores) == {str(i): place for i, place in enumerate(PLACES) if str(i) in set(scores.rows["image_id"])}
    with pytest.raises(ConfigError) as caught:
        score(loader, stop="best", groups=Groups(weights="groups"))
    assert str(caught.value) == (
        "stop= works with means over images, and weights='groups' asks for means over groups; "
        "leave out stop=, or use weights='images'"
    )


def test_arrays_take_groups():
    assert groups_of(score(arrays(IMAGES, groups=PLACES, batch_size=4))) == {str(i): place for i, place in enumerate(PLACES)}
    with pytest.raises(DataError, match=r"^6 images have 2 groups; as many are expected$"):
        arrays(IMAGES, groups=PLACES[:2])


def test_a_sanity_check_counts_groups(tmp_path: Path):
    many = [{"image": IMAGES, "id": [f"{PLACES[i]}{i}" for i in range(6)]}]
    check = xaieval.sanity_check(Net(), many, ["body"], groups=Groups("^[a-z]+", "groups"), modes=[], progress=False)
    assert list(check.rows.columns[:4]) == ["image_id", "layer", "method", "group"]
    table = check.summary()
    assert table["n_groups"].tolist() == [3]
    means = check.rows.groupby("group")["ssim"].mean()
    assert table["ssim"].iloc[0] == pytest.approx(means.mean())
    assert table["ssim_low"].isna().all(), "three groups have no interval"
    assert repr(check).startswith("all parameters random, 6 images in 3 groups, weighted by groups\n")
    plain = xaieval.sanity_check(Net(), many, ["body"], modes=[], progress=False)
    assert "group" not in plain.rows
    assert "n_groups" not in plain.summary()
