"""The models with known causes use their cue and nothing else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from xaieval.data.cues import CUES
from xaieval.data.drawing import SIDE
from xaieval.data.scenes import VERSIONS, make_scene
from xaieval.errors import DataError
from xaieval.models import cue_scenes, load_model
from xaieval.models.builtin import cue_weights

COUNT = 120


@pytest.fixture(scope="module", params=CUES)
def answers(request: Any) -> dict[str, torch.Tensor]:
    """Of one network, the logits of each version of its scenes `[N, 4]`, and the labels `[N]`."""
    cue = request.param
    drawn = [make_scene(index, cue=cue) for index in range(COUNT)]
    model, found = cue_scenes(cue).eval(), {"labels": torch.tensor([scene.label for scene in drawn])}
    for version in VERSIONS:
        images = np.stack([scene.version(version) for scene in drawn])
        with torch.inference_mode():
            found[version] = model(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    return found


def test_accuracy_stays_with_nothing_but_the_cue_and_falls_to_chance_without_it(answers):
    correct = {version: int((answers[version].argmax(dim=1) == answers["labels"]).sum()) for version in VERSIONS}
    assert correct["whole"] >= 0.93 * COUNT
    assert correct["cue_only"] >= 0.98 * COUNT
    # Of 120 guesses with a chance of 1 in 4, about 1 sample in 1,000 lies further from 30 than 15.
    assert abs(correct["without_cue"] - COUNT // 4) <= 15


def test_without_the_cue_no_class_is_preferred(answers):
    assert answers["without_cue"].softmax(dim=1).max(dim=1).values.mean() < 0.4


@pytest.mark.parametrize("cue", CUES)
def test_the_weights_say_how_they_were_made(cue):
    with safe_open(cue_weights(cue), "pt") as file:
        made = json.loads(file.metadata()["made"])
    assert made["cue"] == cue
    assert made["test_accuracy"] >= 0.95
    assert made["test_accuracy_cue_only"] >= 0.98
    assert abs(made["test_accuracy_without_cue"] - 0.25) < 0.05
    assert cue_weights(cue).stat().st_size < 1_000_000


def test_models_with_a_known_cue_have_a_name_and_can_be_untrained():
    named = load_model("xaieval:scenes-colour")
    assert named.preprocessing.image_size == SIDE
    assert not named.random
    fresh = cue_scenes("colour", trained=False)
    same = [torch.equal(one, other) for one, other in zip(named.model.parameters(), fresh.parameters(), strict=True)]
    assert not all(same)


def test_a_model_of_an_unknown_cue_is_refused_word_for_word():
    with pytest.raises(DataError) as error:
        cue_scenes("color")
    assert str(error.value) == "no cue 'color' of scenes; known: watermark, colour, texture, object"
