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


def test_an_unknown_precision_is_refused():
    with pytest.raises(UsageError, match=r"^no precision 'bf61'; did you mean 'bf16'\? known: float32, bf16$"):
        Training(precision="bf61")
