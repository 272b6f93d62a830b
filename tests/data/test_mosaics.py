"""Mosaics: what lies in which cell, who is asked, groups, confident images, and the scores of papers on them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import xaieval
from xaieval.data import Mosaics, Pictures, Preprocessing, arrays, mosaics, pairs
from xaieval.errors import DataError
from xaieval.metrics import relevance_mass

PREPARE = Preprocessing(image_size=8, resize=8, mean=(0.0,) * 3, std=(1.0,) * 3)
CLASSES = 5


def _colour(number: int) -> tuple[int, int, int]:
    """Of image `number` of the class `number % CLASSES`: its class in red, its number in green."""
    return number % CLASSES * 50, number, 0


def _pictures(count: int = 20, bad: int | None = None) -> Pictures:
    def read(number: int) -> Image.Image:
        if number == bad:
            raise OSError("truncated")
        return Image.new("RGB", (8, 8), _colour(number))

    ids = [f"image {number}" for number in range(count)]
    return Pictures(ids, [number % CLASSES for number in range(count)], [str(i) for i in range(CLASSES)], read, PREPARE)


def _mask(item: dict[str, Any]) -> Tensor:
    """The pixels of the class that is asked."""
    inside, ignored = item["truth"].of_class(item["label"], item["image"].shape[-2:])
    assert not ignored.any()
    return inside


def _seen(made: Mosaics) -> list[tuple[str, int, list[int], Tensor]]:
    """Of each item its id, its label, the numbers of the images in its cells, and its mask by cell."""
    found = []
    for item in (made[number] for number in range(len(made))):
        by_cell = functional.avg_pool2d(item["image"], item["image"].shape[-1] // made.side)
        numbers = (255 * by_cell[1]).round().long().flatten().tolist()
        labels = (255 * by_cell[0] / 50).round().long().flatten().tolist()
        assert labels == [number % CLASSES for number in numbers]
        mask = functional.avg_pool2d(_mask(item)[None].float(), item["image"].shape[-1] // made.side)[0]
        assert ((mask == 0) | (mask == 1)).all()
        found.append((item["id"], item["label"], numbers, mask.flatten() == 1))
    return found


def test_each_class_of_a_mosaic_is_asked_and_its_cell_is_the_mask():
    made = mosaics(_pictures(), size=3)
    seen = _seen(made)
    assert [one[0] for one in seen] == [f"{number:05d}/{place}" for number in range(3) for place in range(4)]
    for number in range(3):
        items = seen[4 * number : 4 * number + 4]
        assert len({tuple(one[2]) for one in items}) == 1, "one picture"
        assert [one[1] for one in items] == [image % CLASSES for image in items[0][2]]
        assert len({one[1] for one in items}) == 4, "of distinct classes"
        assert torch.stack([one[3] for one in items]).equal(torch.eye(4, dtype=torch.bool))
    used = [image for one in seen[::4] for image in one[2]]
    assert len(used) == len(set(used)) == 12, "no image stands in two mosaics"
    groups = [group for batch in made.loader(batch_size=5) for group in batch["group"]]
    assert groups == [f"{number:05d}" for number in range(3) for _ in range(4)]


def test_the_seed_decides_and_all_images_are_taken_that_fit():
    first, again, other = (_seen(mosaics(_pictures(), size=3, seed=seed)) for seed in (0, 0, 1))
    assert [one[:3] for one in first] == [one[:3] for one in again] != [one[:3] for one in other]
    part = mosaics(_pictures(), size=3).subset([5, 1])
    assert part.ids == ["00001/1", "00000/1"]
    assert _seen(part)[1][:3] == first[1][:3]
    everything = mosaics(_pictures(45), side=2)
    assert 9 <= len(everything.grids) <= 11  # 45 images; classes that are drawn at random run out
    assert len(mosaics(_pictures(9), side=2).grids) >= 1


def test_focus_asks_once_for_the_class_with_two_cells():
    made = mosaics(_pictures(60), layout="focus", size=10)
    places: Counter[int] = Counter()
    for _, label, numbers, mask in _seen(made):
        labels = torch.tensor(numbers) % CLASSES
        assert mask.equal(labels == label)
        assert (mask.sum(), len(set(labels.tolist()))) == (2, 3)
        places.update(mask.nonzero().flatten().tolist())
    assert Counter(label for _, label, _, _ in _seen(made)) == dict.fromkeys(range(CLASSES), 2), "classes in turn"
    assert places.keys() == {0, 1, 2, 3}
    assert "group" not in made[0], "each mosaic is one item"


@pytest.mark.parametrize("size", [8, 9, 11])
def test_a_shrunk_mosaic_has_the_size_of_an_image_and_masks_that_fit(size):
    images = torch.arange(CLASSES * 2).float()[:, None, None, None].expand(-1, 1, size, size + 1)
    made = mosaics(list(zip(images, [number % CLASSES for number in range(10)], strict=True)), shrink=True, size=1)
    whole = torch.stack([_mask(made[number]) for number in range(4)])
    assert whole.sum(dim=0).eq(1).all(), "the cells cover the image once"
    assert made[0]["image"].shape == (1, size, size + 1)
    for item in (made[number] for number in range(4)):
        values = item["image"][0][_mask(item)]  # rounded by the resizing
        torch.testing.assert_close(values, values.round())
        assert values.round().unique().numel() == 1
        assert int(values[0].round()) % CLASSES == item["label"]


def test_any_data_set_of_single_images_will_do():
    images = torch.stack([PREPARE(Image.new("RGB", (8, 8), _colour(number))) for number in range(20)])
    labels = [number % CLASSES for number in range(20)]
    raw = [(Image.new("RGB", (8, 8), _colour(number)), labels[number]) for number in range(20)]
    by_name = [{"image": image, "label": label, "id": "x"} for image, label in zip(images, labels, strict=True)]
    expected = [one[:3] for one in _seen(mosaics(_pictures(), size=2))]
    for dataset in (
        _pictures().loader(batch_size=3),
        arrays(images, np.array(labels)),
        pairs(raw, PREPARE),
        list(zip(images, labels, strict=True)),
        DataLoader(by_name, batch_size=4),  # type: ignore[arg-type]
    ):
        assert [one[:3] for one in _seen(mosaics(dataset, size=2))] == expected


def test_a_judge_keeps_the_images_that_it_classifies_right_and_is_sure_of():
    def judge(images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        labels, numbers = (255 * images[:, 0, 0, 0] / 50).round().long(), (255 * images[:, 1, 0, 0]).round()
        sure = torch.where(numbers < 30, 0.7, 0.4)
        wrong = numbers >= 50
        guess = torch.where(wrong, (labels + 1) % CLASSES, labels)
        sure = torch.where(wrong, 0.9, sure)
        rest = ((1 - sure) / (CLASSES - 1))[:, None].expand(-1, CLASSES)
        return rest.scatter(1, guess[:, None], sure[:, None])

    used = {image for one in _seen(mosaics(_pictures(60), judge=judge, confidence=0.7)) for image in one[2]}
    assert max(used) < 30
    assert len(used) > 20
    used = {image for one in _seen(mosaics(_pictures(60), judge=judge, confidence=0.3)) for image in one[2]}
    assert 30 < max(used) < 50
    with pytest.raises(DataError, match=r"^0 usable images of 0 classes give 0 mosaics of 2 x 2 cells, at least one wanted"):
        mosaics(_pictures(60), judge=judge)


def test_an_image_that_cannot_be_read_fails_its_mosaic():
    made = mosaics(_pictures(20, bad=7), size=4)
    failed = [failure for batch in made.loader(batch_size=3) for failure in batch["failed"]]
    number = next(number for number, grid in enumerate(made.grids) if any(cell.number == 7 for cell in grid))
    assert [name for name, _, _ in failed] == [f"{number:05d}/{place}" for place in range(4)]
    assert failed[0][2] == "ValueError: its cell 'image 7' cannot be read: OSError: truncated"
    judged = mosaics(
        _pictures(20, bad=7), judge=lambda images: functional.one_hot((images[:, 0, 0, 0] * 5.1).round().long(), 5)
    )
    assert all(cell.number != 7 for grid in judged.grids for cell in grid)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"layout": "grid"}, "no layout 'grid' of mosaics"),
    ({"side": 1}, "mosaics have at least 2 cells along a side, and exactly 2 with layout 'focus'; got 1"),
    ({"side": 3, "layout": "focus"}, "and exactly 2 with layout 'focus'; got 3"),
    ({"size": 0}, "size is a number of mosaics, at least 1; got 0"),
    ({"size": 9}, "20 usable images of 5 classes give"),
    ({"side": 3}, "20 usable images of 5 classes give 0 mosaics of 3 x 3 cells, at least one wanted"),
    (
        {"judge": lambda images: torch.ones(len(images), 2)},
        "a judge returns probabilities [N, K] of all classes; got [20, 2] for 20",
    ),
    ({"dataset": iter([])}, "mosaics take a data set with a length and indices; a list_iterator does not have both"),
    ({"dataset": [(torch.zeros(3, 8, 8), -1)] * 4}, "mosaics take images with classes, and these have no labels"),
]


@pytest.mark.parametrize(("choices", "message"), REFUSED)
def test_what_gives_no_mosaics_is_refused(choices, message):
    with pytest.raises(DataError) as error:
        mosaics(**{"dataset": _pictures()} | choices)
    assert message in str(error.value)


def test_images_of_several_sizes_are_refused():
    images = [(torch.zeros(3, 8 + number, 8), number) for number in range(4)]
    with pytest.raises(DataError, match="the images of mosaics have one size, got"):
        mosaics(images)[0]
    with pytest.raises(DataError, match="the images of mosaics have one size, got"):
        mosaics(images, judge=lambda given: torch.eye(4))


# ---- the scores of papers


def test_the_grid_pointing_game_is_the_mass_accuracy_on_mosaics():
    # As in moboehle/B-cos: positive contributions averaged in each cell, divided by their sum.
    made = mosaics(_pictures(), size=2)
    relevance = torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(0))
    inside = functional.avg_pool2d(relevance.clamp(min=0)[:, None], 8, stride=8).flatten(1)
    expected = torch.cat([100 * (part / part.sum(dim=1, keepdim=True)).diagonal() for part in inside.split(4)])
    masks = torch.stack([_mask(made[number]) for number in range(8)])
    torch.testing.assert_close(relevance_mass(relevance, masks).float(), expected)
    assert relevance_mass(torch.zeros_like(relevance), masks).isnan().all()  # theirs is 0


def test_focus_of_quantus_is_the_mass_accuracy_on_mosaics():
    import quantus

    made = mosaics(_pictures(60), layout="focus", size=6)
    masks = torch.stack([_mask(made[number]) for number in range(6)])
    relevance = torch.randn(6, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    metric = quantus.Focus(disable_warnings=True, display_progressbar=False, normalise=False)
    cells = [tuple(mask.flatten().tolist()) for mask in masks[:, ::8, ::8]]
    found = metric(nn.Identity(), np.zeros((6, 3, 16, 16)), np.zeros(6, int), relevance[:, None].numpy(), custom_batch=cells)
    np.testing.assert_allclose(100 * np.array(found), relevance_mass(relevance, masks), rtol=1e-6)


def test_a_run_counts_mosaics_as_groups_whatever_the_batch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()
    made = mosaics(_pictures(40), size=6)
    choices: dict[str, Any] = {
        "metrics": "relevance_mass_accuracy",
        "protocol": xaieval.Protocol(target="label"),
        "progress": False,
    }
    one, other = (xaieval.score(net, made.loader(size), "0", **choices) for size in (24, 5))
    np.testing.assert_allclose(one.rows["relevance_mass_accuracy"], other.rows["relevance_mass_accuracy"], rtol=1e-4)
    assert one.rows["target"].tolist() == [made[number]["label"] for number in range(24)]
    assert one.n_groups == 6
    rows = xaieval.score(net, made.loader(24), "0", **choices | {"protocol": xaieval.Protocol()}).rows
    shown = [row.target in {cell.label for cell in made.grids[place // 4]} for place, row in enumerate(rows.itertuples())]
    assert rows["relevance_mass_accuracy"].notna().tolist() == shown, "a predicted class has its own cell, or none"
    assert one.summary()["n_groups"].tolist() == [6]
