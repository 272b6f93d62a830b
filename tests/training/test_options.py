"""The options of a training: keywords and object are the same, and what is unknown is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

import pytest

from xaieval.errors import UsageError
from xaieval.training.options import Training, TrainingOptions


def test_every_field_can_be_given_as_a_keyword():
    assert list(TrainingOptions.__annotations__) == [field.name for field in fields(Training)]
    assert get_type_hints(TrainingOptions) == get_type_hints(Training)


def test_options_change_a_copy():
    recipe = Training(learning_rate=0.1, patience=5)
    changed = recipe.with_options({"learning_rate": 0.2})
    assert (changed.learning_rate, changed.patience) == (0.2, 5)
    assert recipe == Training(learning_rate=0.1, patience=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimiser": "sgd"}, "no training option 'optimiser'; did you mean 'optimizer'? known: learning_rate, optimizer, "),
        ({"precision": "bf61"}, "no precision 'bf61'; did you mean 'bf16'? known: float32, bf16"),
    ],
)
def test_unknown_options_are_refused_with_the_known_ones(options, message):
    with pytest.raises(UsageError) as caught:
        Training().with_options(options)
    assert str(caught.value).startswith(message)
