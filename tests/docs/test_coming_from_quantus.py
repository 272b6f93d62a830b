"""The page for users of Quantus has each of its classes, and what it says of them is so."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import xaieval.metrics
from tests import ROOT
from xaieval.config.metric_names import QUANTUS

quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")

PAGE = (ROOT / "docs/coming_from_quantus.md").read_text()
EACH_CLASS, FAULTS = (PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0] for title in ("Each class", "Faults"))
CELLS = re.compile(r"^\| `(\w+)` \| `(\w+)` \| (.+) \| (.+) \|$", re.MULTILINE)
LABELS = np.array([0, 1, 0, 1, 0, 1])


def test_the_page_has_each_class_of_quantus_once_with_our_name():
    found = [(theirs, ours) for theirs, ours, _, _ in CELLS.findall(EACH_CLASS)]
    assert len(found) == len(QUANTUS)
    assert dict(found) == dict(QUANTUS)


def test_our_names_are_metrics_of_a_run_or_functions_of_a_set_of_images():
    others = set(QUANTUS.values()) - set(xaieval.metrics.METRICS)
    assert others == {"sufficiency", "consistency"}
    assert all(callable(getattr(xaieval.metrics, name)) for name in others)


def test_the_faults_are_of_classes_that_quantus_has():
    named = {name for line in FAULTS.splitlines() for name in re.findall(r"`([A-Z]\w+)", line.split(" | ")[0])}
    assert named <= set(QUANTUS)
    assert len(named) > 10


# ---- what the page says of Quantus; the other lines of its table of faults are tests of the metrics


class Linear(nn.Module):
    """A linear model of images of 8 x 8 pixels that keeps what it was shown."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 3))
        self.shown: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown += images.detach().clone()
        return self.net(images)


def drawn(count: int = 6, channels: int = 1, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(0.1, 1, (count, channels, 8, 8)).astype(np.float32)


def called(name: str, model: Any = None, images: Any = None, maps: Any = None, labels: Any = None, **given: Any) -> Any:
    """A metric by name; of the rest, what it is called with is lower case and what it is made with is in `made`."""
    made = {"disable_warnings": True, **given.pop("made", {})}
    images = drawn() if images is None else images
    maps = drawn(len(images), seed=1) if maps is None else maps
    labels = LABELS[: len(images)] if labels is None else labels
    given |= {"model": model or Linear(images.shape[1]).eval(), "x_batch": images, "y_batch": labels, "a_batch": maps}
    return getattr(quantus, name)(**made)(**given, device="cpu")


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("ROAD", {"percentages": [10, 30], "noise": 0.0}),
        ("SensitivityN", {"features_in_step": 8, "return_aggregate": False, "perturb_baseline": 0.0}),
    ],
)
def test_only_the_first_batch_counts(name, made):
    first = called(name, images=drawn()[:3], maps=drawn(seed=1)[:3], made=made)
    in_two, at_once = (called(name, made=made, batch_size=size) for size in (3, 6))
    np.testing.assert_equal(in_two, first)
    assert not np.array_equal(*(list(found.values()) if isinstance(found, dict) else found for found in (in_two, at_once)))


def test_road_and_irof_stop_at_images_of_three_channels():
    images = drawn(2, 3)
    with pytest.raises(IndexError, match="out of bounds"):
        called("ROAD", images=images, made={"percentages": [30]})
    with pytest.raises(AssertionError, match="same as the mask shape"):
        called("IROF", images=images)


def test_the_patches_of_infidelity_add_up_and_are_those_of_each_sample():
    model = Linear().eval()
    called("Infidelity", model, drawn(1), made={"n_perturb_samples": 2, "perturb_baseline": 0.0})
    assert [int((one == 0).sum()) for one in model.shown] == [0, 16, 32, 48, 64, 16, 32, 48, 64]
    with pytest.raises(ValueError, match="cannot reshape"):
        called("Infidelity", made={"perturb_patch_sizes": [3]})


def test_a_flipped_pixel_can_keep_channels():
    model = Linear(3).eval()
    called("PixelFlipping", model, drawn(1, 3), made={"features_in_step": 4, "perturb_baseline": 0.0})
    gone = (model.shown[0] == 0).sum(dim=0)
    assert gone.sum() == 4
    assert ((gone > 0) & (gone < 3)).any()


def test_a_weighted_pointing_game_is_an_error():
    mask = np.zeros((2, 1, 8, 8))
    mask[:, :, :4] = 1
    with pytest.raises(TypeError, match="boolean array"):
        called("PointingGame", images=drawn(2), maps=mask, s_batch=mask, made={"weighted": True})


def test_random_logit_asks_for_classes_that_the_model_lacks():
    asked: list[int] = []

    def explain(model: Any, inputs: Any, targets: Any, **_: Any) -> Any:
        asked.extend(np.asarray(targets))
        return drawn(len(inputs), seed=len(asked))

    called("RandomLogit", explain_func=explain)
    assert max(asked) > 2


def test_the_number_of_an_image_depends_on_the_others_in_its_batch():
    maps = drawn(2, seed=1)
    alone = called("EffectiveComplexity", images=drawn(1), maps=maps[:1])
    maps[1] *= 1e6
    assert called("EffectiveComplexity", images=drawn(2), maps=maps)[0] < alone[0]
    one_hot = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False)).eval()
    nn.init.eye_(one_hot[1].weight)
    images = np.zeros((4, 1, 8, 8), dtype=np.float32)
    images[[0, 1, 2, 3], 0, 0, [0, 1, 0, 1]] = 1
    of_two, of_all = (called("Consistency", one_hot, images, batch_size=size) for size in (2, 4))
    np.testing.assert_allclose([of_two, of_all], [[0] * 4, [1 / 3] * 4], atol=1e-6)


def test_the_noise_of_relative_stability_is_never_negative():
    model, images = Linear().eval(), drawn(1)
    called("RelativeInputStability", model, images, made={"nr_samples": 3}, explain_func=lambda model, inputs, *_, **__: inputs)
    changes = [one.numpy() - images[0] for one in model.shown]
    noise = [float(change.min()) for change in changes if change.any()]
    assert len(noise) == 3
    assert min(noise) >= 0.0199


def test_areas_need_what_numpy_no_longer_has(monkeypatch):
    monkeypatch.delattr(np, "trapz", raising=False)
    with pytest.raises(AttributeError, match="trapz"):
        called("PixelFlipping", made={"features_in_step": 8, "return_auc_per_sample": True})
