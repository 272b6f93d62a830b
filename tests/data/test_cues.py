"""Scenes with a cue: the class is in the cue and nowhere else, and both masks are where they should be."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from xaieval.data import Preprocessing, load_data, scenes
from xaieval.data.cues import CUES, GAP, Cue
from xaieval.data.drawing import SIDE
from xaieval.data.loading import SCENES_BY_NAME, names_code
from xaieval.data.scenes import CLASSES, classes_of, make_scene
from xaieval.errors import DataError

HALF = Preprocessing(SIDE, SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
COUNT = 24

# SHA-256 over all pixels and masks of scenes 0 to 7 of the test split. The shipped weights were trained on such pixels, and
# published numbers refer to them: a change here is a new data set.
GOLDEN = {
    "watermark": "02245893c524631f602c02256d1e91b281101c2dcd7a45cb1434f832d87da75c",
    "colour": "0549424408d1a0cce49fbfffaeb16c74d164a2614054e6a4997b229cdee184d5",
    "texture": "6bd0d4163003d2b9f78c651ee42428bd0faf060d9156fe77a34a8390bb902a88",
    "object": "7abee70cfdb129404021438d37bec97de39f864380a64cbfa95f4f96ef8b224d",
}


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask with its soft outline, which reaches beyond it at sharp points."""
    return binary_dilation(mask, np.ones((3, 3)), iterations=2)


def _core(mask: np.ndarray) -> np.ndarray:
    """A mask without its soft outline."""
    return ~binary_dilation(~mask, np.ones((3, 3)))


@pytest.fixture(scope="module", params=CUES)
def cue(request: Any) -> Cue:
    return request.param


@pytest.fixture(scope="module")
def drawn(cue: Cue) -> list[Any]:
    return [make_scene(index, cue=cue) for index in range(COUNT)]


def test_scenes_with_a_cue_are_the_pinned_bytes(cue, drawn):
    found = hashlib.sha256()
    for scene in drawn[:8]:
        for part in (scene.image, scene.without_cue, scene.cue_only, scene.mask, scene.distractor):
            found.update(part.tobytes())
    assert found.hexdigest() == GOLDEN[cue]


def test_cues_are_those_of_the_type():
    assert tuple(CUES) == get_args(Cue)
    assert all(len(set(classes)) == 4 for classes in CUES.values())
    assert set(CUES["object"]) < set(CLASSES)


def test_every_class_comes_equally_often(cue, drawn):
    assert Counter(scene.label for scene in drawn) == dict.fromkeys(range(4), COUNT // 4)


def test_cue_and_distractor_lie_inside_the_image_and_do_not_touch(drawn):
    for scene in drawn:
        for mask in (scene.mask, scene.distractor):
            assert mask.any()
            assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()
        assert not (binary_dilation(scene.mask, iterations=2) & scene.distractor).any()


def test_no_cue_is_wider_or_higher_than_the_smallest_shift_of_the_benchmark(drawn):
    for scene in drawn:
        assert max(np.ptp(places) + 1 for places in np.nonzero(scene.mask)) <= 48


def test_without_the_cue_only_pixels_of_the_cue_are_changed(drawn):
    for scene in drawn:
        changed = (scene.image != scene.without_cue).any(axis=2)
        assert not (changed & ~_grown(scene.mask)).any()
        assert (changed & scene.mask).sum() > 0.2 * scene.mask.sum()


def test_nothing_but_the_cue_is_the_cue_on_grey(drawn):
    for scene in drawn:
        assert (scene.cue_only[~_grown(scene.mask)] == 128).all()
        assert np.array_equal(scene.cue_only[_core(scene.mask)], scene.image[_core(scene.mask)])


@pytest.mark.slow
def test_the_class_is_not_in_what_remains_without_the_cue(cue):
    # The brightness without the cue, the size of the distractor and the place of the cue differ no more between classes than
    # chance lets them.
    scenes_of_class = [[make_scene(index, "train", cue=cue) for index in range(label, 4 * 40, 4)] for label in range(4)]
    for measure in (
        lambda scene: scene.without_cue.mean(),
        lambda scene: scene.distractor.sum(),
        lambda scene: np.nonzero(scene.mask)[0].mean(),
        lambda scene: np.nonzero(scene.mask)[1].mean(),
    ):
        values = np.array([[measure(scene) for scene in group] for group in scenes_of_class])
        # Four means of 40 values scatter by their standard error; four of those for all of them.
        assert (np.abs(values.mean(axis=1) - values.mean()) < 4 * values.std() / np.sqrt(40)).all()


def test_the_pattern_of_a_watermark_is_its_class():
    for index in range(8):
        scene = make_scene(index, cue="watermark")
        rows, columns = np.nonzero(scene.mask)
        sign = scene.image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].mean(axis=2) > 128
        height, width = sign.shape
        quarters = sign.reshape(2, height // 2, 2, width // 2).mean(axis=(1, 3)) > 0.1
        assert height == width
        words = ["up" if quarters[0, side] else "down" for side in (0, 1)]
        assert (quarters.sum(axis=0) == 1).all()
        assert "-".join(words) == CUES["watermark"][scene.label]


def test_only_the_object_of_a_colour_scene_has_a_strong_colour():
    for index in range(8):
        scene = make_scene(index, cue="colour")
        spread = np.ptp(scene.image.astype(int), axis=2)
        inside = _core(scene.mask)
        assert spread[inside].mean() > 100
        assert spread[~_grown(scene.mask)].mean() < 40
        assert np.ptp(scene.without_cue[scene.mask].astype(int), axis=1).mean() < 12


def test_a_texture_without_its_pattern_keeps_its_mean_colour():
    for index in range(8):
        scene = make_scene(index, cue="texture")
        inside = _core(scene.mask)
        pattern, plain = (image[inside].astype(float) for image in (scene.image, scene.without_cue))
        assert np.abs(pattern.mean(axis=0) - plain.mean(axis=0)).max() < 30
        assert pattern.std(axis=0).mean() > 3 * plain.std(axis=0).mean()


def test_gap_is_more_than_the_corners_of_a_watermark_need():
    assert GAP >= 6


def test_a_cue_changes_nothing_for_scenes_without_one():
    scene = make_scene(3)
    assert scene.without_cue is scene.cue_only is scene.distractor is None
    assert classes_of() == CLASSES


def test_other_cues_seeds_and_splits_draw_other_scenes():
    asked = [(4, split, seed, name) for split in ("train", "test") for seed in (0, 1) for name in CUES]
    assert len({make_scene(*one).image.tobytes() for one in asked}) == len(asked)


# ---- as a data set


@pytest.mark.parametrize("version", ["whole", "without_cue", "cue_only"])
def test_a_data_set_has_the_version_and_the_mask_of_the_cue(version):
    batch = next(iter(scenes(HALF, 2, cue="texture", version=version, masks=True).loader(2)))
    for index in range(2):
        scene = make_scene(index, cue="texture")
        image = torch.from_numpy(scene.version(version)).permute(2, 0, 1).float() / 127.5 - 1
        assert torch.allclose(batch["image"][index], image, atol=1e-5)
        assert np.array_equal(batch["mask"][index].numpy(), scene.mask)
    assert batch["label"].tolist() == [0, 1]


def test_scenes_with_a_cue_have_a_name():
    for name, cue in SCENES_BY_NAME.items():
        assert not names_code(name)
        data = load_data(name, HALF, batch_size=3, max_images=3, truth=True)
        assert data.classes == list(classes_of(cue))
        assert np.array_equal(next(iter(data.loader))["mask"][2].numpy(), make_scene(2, cue=cue).mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cue": "color"}, "no cue 'color' of scenes; known: watermark, colour, texture, object"),
        ({"cue": "colour", "version": "half"}, "no version 'half' of scenes; known: whole, without_cue, cue_only"),
        (
            {"version": "cue_only"},
            "version 'cue_only' is of scenes with a cue; give cue= one of watermark, colour, texture, object",
        ),
    ],
)
def test_scenes_that_do_not_exist_are_refused_word_for_word(options, message):
    with pytest.raises(DataError) as error:
        scenes(HALF, 2, **options)
    assert str(error.value) == message


def test_an_unknown_cue_by_name_is_refused_with_the_names_there_are():
    with pytest.raises(DataError) as error:
        load_data("scenes:color", HALF, 2)
    assert str(error.value) == (
        "no data 'scenes:color': there is no module 'scenes'; scenes with a cue are scenes:watermark, scenes:colour, "
        "scenes:texture, scenes:object"
    )
