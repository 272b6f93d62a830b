"""A run keeps some images with their maps, so that its report shows them without further code."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import xaieval
from xaieval.config.protocol import Protocol
from xaieval.errors import OutputError, UsageError
from xaieval.evaluation.scores import Scores
from xaieval.report import Maps

COUNT, SIDE = 12, 16
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def _score(model: nn.Module, images: torch.Tensor, places: list[int], size: int, **options: object) -> Scores:
    ids = [f"image {place}" for place in places]
    batches = [
        {"image": images[places[start : start + size]], "id": ids[start : start + size]}
        for start in range(0, len(places), size)
    ]
    return xaieval.score(model, batches, ["1", "3"], ("gradcam", "layercam"), progress=False, **options)


def test_kept_maps_are_those_of_explain_and_masked_images_follow_the_protocol(model, pixels):
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    images = (pixels - mean) / std
    protocol = Protocol(mean=MEAN, std=STD)
    kept = _score(model, images, [*range(COUNT)], 5, keep_maps=4, controls=True, protocol=protocol).maps
    assert len(kept.ids) == 4
    assert set(kept.maps) == set(kept.masked) == {"gradcam", "layercam"}, "no controls"
    places = [int(name.split()[1]) for name in kept.ids]
    torch.testing.assert_close(kept.pixels, pixels[places])
    for method in ("gradcam", "layercam"):
        expected = xaieval.explain(model, images[places], ["1", "3"], method, protocol=protocol)
        for layer in ("1", "3"):
            torch.testing.assert_close(kept.maps[method][layer], expected[layer], atol=1e-5, rtol=1e-4)
            hidden = mean + (pixels[places] - mean) * expected[layer][:, None]  # 0 in the model's space is the mean colour
            torch.testing.assert_close(kept.masked[method][layer] / 255, hidden, atol=0.51 / 255, rtol=0)


def test_the_kept_images_depend_on_seed_and_ids_alone(model, pixels):
    def kept(places: list[int], size: int, **options: object) -> list[str]:
        return list(_score(model, pixels, places, size, keep_maps=5, **options).maps.ids)

    first = kept([*range(COUNT)], 5)
    assert first == kept([*range(COUNT)][::-1], 3)
    assert first != kept([*range(COUNT)], 5, seed=1)
    assert len(set(first)) == 5


def test_without_a_known_normalisation_black_and_white_are_the_extremes_of_all_images(model, pixels):
    dim = pixels.clone()
    dim[0] *= 0.5  # one image stays darker than the others
    kept = _score(model, 3 * dim - 1, [*range(COUNT)], 5, keep_maps=COUNT).maps
    assert kept.pixels.min() == 0.0
    assert kept.pixels.max() == 1.0
    place = list(kept.ids).index("image 0")
    assert kept.pixels[place].max() < 0.52
    torch.testing.assert_close(_score(model, dim, [3], 1, keep_maps=1).maps.pixels, dim[[3]]), "pixels stay as they are"


def test_the_report_shows_them_without_further_code(model, pixels, tmp_path):
    scores = _score(model, pixels, [*range(COUNT)], 5, keep_maps=6, output_dir=tmp_path / "run")
    scores.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "among the 6 whose maps were given" in page
    assert set(re.findall(r'alt="Image ([^"]+)"', page)) == set(scores.maps.ids)
    again = _score(model, pixels, [*range(COUNT)], 5, keep_maps=6, output_dir=tmp_path / "run")
    assert again.maps.ids == scores.maps.ids, "also of a run that is only read"
    loaded = Maps.load(tmp_path / "run")
    assert (loaded.ids, loaded.slices) == (scores.maps.ids, None)
    torch.testing.assert_close(loaded.pixels, scores.maps.pixels, atol=0, rtol=0)
    for method, layers in scores.maps.maps.items():
        for layer, maps in layers.items():
            torch.testing.assert_close(loaded.maps[method][layer].float(), maps, atol=5e-4, rtol=0)
            assert loaded.masked[method][layer].equal(scores.maps.masked[method][layer])
    Scores.load(tmp_path / "run").to_html(tmp_path / "again.html", loaded)
    assert set(re.findall(r'alt="Image ([^"]+)"', (tmp_path / "again.html").read_text())) == set(loaded.ids)
    assert Scores.load(tmp_path / "run").with_maps(loaded).with_groups(r"\d").maps is loaded, "other groups keep them"
    _score(model, pixels, [*range(COUNT)], 5).to_html(tmp_path / "page.html")
    assert "score with keep_maps=24" in (tmp_path / "page.html").read_text()


def test_images_of_another_size_and_unlabelled_ones_do_not_stop_a_run(model, pixels):
    batches = [{"image": pixels[:4], "id": list("abcd")}, {"image": pixels[4:6, :, :8], "id": list("ef")}]
    maps = xaieval.score(model, batches, ["3"], progress=False, keep_maps=6).maps
    assert sorted(maps.ids) in (list("abcd"), list("ef"))
    labelled = [(pixels[:3], torch.tensor([0, -1, 2]))]
    maps = xaieval.score(model, labelled, ["3"], target="label", progress=False, keep_maps=3).maps
    assert [bool(one.any()) for one in maps.maps["gradcam"]["3"]].count(False) >= 1, "nothing is explained without a label"


def test_a_negative_number_is_an_error(model, pixels):
    with pytest.raises(UsageError, match=r"^keep_maps is a number of images, at least 0; got -1$"):
        _score(model, pixels, [0], 1, keep_maps=-1)


def test_a_folder_without_maps_and_a_damaged_file_are_one_line_each(tmp_path):
    with pytest.raises(OutputError, match=r"holds no maps: there is no maps.safetensors; score with keep_maps=24"):
        Maps.load(tmp_path)
    maps = Maps(["a"], torch.rand(1, 3, 4, 4), {"gradcam": {"3": torch.rand(1, 4, 4)}})
    maps.save(tmp_path / "new")
    path = tmp_path / "new" / "maps.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole.replace(b'\\"a\\"', b'\\"a\\",1')[: len(whole)], whole.replace(b"about", b"aboot")):
        path.write_bytes(damaged)
        with pytest.raises(OutputError, match=r"maps.safetensors' is damaged: "):
            Maps.load(tmp_path / "new")
