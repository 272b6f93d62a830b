"""Maps of the adapter equal those of shap called by its documentation, add up to the score, and depend on the image alone."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.borrowing import context_of
from xaieval.errors import ExplainerError
from xaieval.explainers import Shap, resolve_methods, with_settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # on how it makes its colours
    import shap

IMAGES = torch.randn(3, 3, 10, 12, generator=torch.Generator().manual_seed(5))
TARGETS = [1, 2, 0]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)).eval()


@pytest.mark.parametrize("value", [0.0, "blur(4,4)"])
def test_maps_are_those_of_shap(model, value):
    def scores(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()

    pixels = IMAGES.permute(0, 2, 3, 1).numpy()
    found = Shap("Partition", settings={"mask_value": value, "max_evals": 200})(context_of(model, IMAGES, TARGETS))
    for number, target in enumerate(TARGETS):
        explainer = shap.explainers.Partition(scores, shap.maskers.Image(value, (10, 12, 3)))
        given = pixels[number : number + 1]
        expected = explainer(given, max_evals=200, batch_size=50, outputs=[target], silent=True).values[0, ..., 0].sum(axis=2)
        np.testing.assert_allclose(found[number], expected, rtol=0, atol=1e-4 * np.ptp(expected))


@pytest.mark.parametrize("value", [0.0, 0.5, [0.1, -0.2, 0.3]])
def test_a_map_adds_up_to_the_change_of_the_score(model, value):
    found = Shap("Partition", settings={"mask_value": value, "max_evals": 60})(context_of(model, IMAGES, TARGETS))
    masked = torch.zeros_like(IMAGES) + torch.as_tensor(value).view(-1, 1, 1)
    with torch.no_grad():
        change = (model(IMAGES) - model(masked))[range(3), TARGETS]
    torch.testing.assert_close(found.flatten(1).sum(dim=1), change, rtol=0, atol=1e-4)


def test_regions_get_the_owen_values_of_a_game_worked_by_hand():
    class Product(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            (a, b), (c, d) = images[:, 0].permute(1, 2, 0)
            score = a * c + a * b * d + 3 * b
            return torch.stack([score, -score], dim=1)

    found = Shap("Partition")(context_of(Product(), torch.ones(1, 1, 2, 2), [0]))
    # What a pixel adds with the other row hidden, then shown, and its own neighbour hidden, then shown, 1/4 each.
    a, b, c, d = (sum(added) / 4 for added in ((0, 0, 1, 2), (3, 3, 3, 4), (0, 0, 1, 1), (0, 0, 1, 1)))
    torch.testing.assert_close(found, torch.tensor([[[a, b], [c, d]]]))


def test_a_map_does_not_depend_on_the_batch_or_leave_random_numbers_changed(model):
    method = Shap("Partition", settings={"max_evals": 100})
    together = method(context_of(model, IMAGES, TARGETS))
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002  # shap draws from it
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    alone = method(replace(context_of(model, IMAGES[1:], TARGETS[1:]), ids=["1", "2"], size=7))
    after = np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
    torch.testing.assert_close(alone, together[1:])
    assert np.array_equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_settings_have_shaps_names():
    [method] = with_settings("shap:Partition", {"shap:Partition": {"max-evals": 80, "mask_value": "blur(8, 8)"}})
    assert method.settings == {"max_evals": 80, "mask_value": "blur(8, 8)"}
    with pytest.raises(ExplainerError, match=r"mask_value is a number, .* got 'inpaint_telea'"):
        Shap("Partition", settings={"mask_value": "inpaint_telea"})
    with pytest.raises(ExplainerError, match=r"no method 'Tree'; .*Partition"):
        Shap("Tree")


def test_settings_that_do_not_fit_the_images_are_one_error(model):
    with pytest.raises(ExplainerError, match="method 'shap:Partition' does not work here: ValueError"):
        Shap("Partition", settings={"mask_value": [1.0, 2.0]})(context_of(model, IMAGES, TARGETS))
    with pytest.raises(ExplainerError, match=r"explains images \[N, C, H, W\]"):
        Shap("Partition")(context_of(nn.Flatten(), torch.rand(1, 1, 4, 4, 4), [0]))


def test_a_missing_package_gives_the_command(monkeypatch):
    monkeypatch.delitem(sys.modules, "shap")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExplainerError, match=r"needs the package shap, which is missing: pip install 'xaieval\[shap\]'"):
        resolve_methods("shap:Partition")
