"""Weights from files, and whether they fit a model."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from xaieval.errors import WeightsError
from xaieval.models import FPNClassifier, read_weights
from xaieval.models.weights import check_fit


def test_a_fit_names_a_few_of_all_faults():
    wanted = {name: torch.zeros(2) for name in "abcdef"}
    check_fit({name: torch.ones(2) for name in "fedcba"}, wanted, "the file", "the model")
    with pytest.raises(WeightsError) as caught:
        check_fit({"f": torch.zeros(2, 1), "x": torch.zeros(1)}, wanted, "the file", "the model")
    assert str(caught.value) == (
        "the file does not fit the model: missing: a, b, c and 2 more; left over: x; of another shape: f [2, 1] instead of [2]"
    )


def test_weights_are_read_by_name(tmp_path):
    wanted, content = {"a": torch.rand(2), "b.c": torch.rand(1)}, {}
    content["nested.pth"], content["plain.pth"] = {"epoch": 1, "model": wanted}, wanted
    for name, saved in content.items():
        torch.save(saved, tmp_path / name)
    save_file(wanted, tmp_path / "plain.safetensors")
    for name in (*content, "plain.safetensors"):
        found = read_weights(tmp_path / name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    with pytest.raises(WeightsError, match=r"no weights file '.*none\.pth'"):
        FPNClassifier("test_resnet", 10, pretrained=str(tmp_path / "none.pth"))
