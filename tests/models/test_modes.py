"""Models in eval mode for a while."""

from __future__ import annotations

import pytest
from torch import nn

from xaieval.models.modes import evaluating


def _modes(*models):
    return [module.training for model in models for module in model.modules()]


class Stubborn(nn.Linear):
    def train(self, mode=True):
        if not mode:
            raise RuntimeError("never")
        return super().train(mode)


@pytest.mark.parametrize("fails", [False, True])
def test_each_module_has_its_own_mode_again(fails):
    first, second = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3)), nn.Dropout()
    first[1].eval()
    try:
        with evaluating(first, second):
            assert _modes(first, second) == [False] * 4
            if fails:
                raise KeyError("mine")
    except KeyError:
        assert fails
    assert _modes(first, second) == [True, True, False, True]


def test_the_modes_come_back_if_a_model_refuses_to_change():
    models = nn.Dropout(), Stubborn(2, 2)
    with pytest.raises(RuntimeError, match="never"), evaluating(*models):
        pass
    assert _modes(*models) == [True, True]
