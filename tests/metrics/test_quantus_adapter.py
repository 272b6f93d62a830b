"""Metrics of Quantus as metrics of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import quantus
import torch
from torch import Tensor, nn

from xaieval import explain, score
from xaieval.errors import MetricError
from xaieval.metrics import from_quantus, resolve_metrics

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MASKS = torch.zeros(3, 16, 16, dtype=torch.bool)
MASKS[:, 2:9, 3:12] = True
QUIET: dict[str, Any] = {"disable_warnings": True}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 1, 1), nn.ReLU(), *head).eval()


def brightness(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """A map that is the same in any library."""
    return images.mean(dim=1)


def column(model: nn.Module, metric: Any, batch_size: int = 3, method: Any = brightness) -> pd.Series:
    parts = zip(IMAGES.split(batch_size), MASKS.split(batch_size), strict=True)
    batches = [{"images": images, "masks": masks} for images, masks in parts]
    scores = score(model, batches, ["3"], [method], [metric], progress=False)
    return scores.rows[resolve_metrics([metric])[0].name]


@pytest.mark.parametrize(
    "kind", ["Sparseness", "Complexity", "RelevanceMassAccuracy", "RelevanceRankAccuracy", "PointingGame", "AUC"]
)
def test_values_are_those_of_quantus(model, kind):
    metric = getattr(quantus, kind)(**QUIET)
    maps = brightness(model, IMAGES, torch.zeros(3)).numpy()[:, None]
    masks = MASKS.numpy()[:, None]
    expected = metric(model=model, x_batch=IMAGES.numpy(), y_batch=np.zeros(3, int), a_batch=maps, s_batch=masks)
    np.testing.assert_allclose(column(model, metric).astype(float), np.ravel(expected), rtol=1e-6)


@pytest.mark.parametrize(
    "metric",
    [quantus.FaithfulnessCorrelation(nr_runs=8, subset_size=20, **QUIET), quantus.MaxSensitivity(nr_samples=2, **QUIET)],
    ids=lambda metric: type(metric).__name__,
)
def test_random_numbers_depend_on_the_image_alone(model, metric):
    values = column(model, metric, 3, "captum:Saliency")
    assert values.notna().all()
    assert values.nunique() == 3
    np.testing.assert_allclose(values.astype(float), column(model, metric, 1, "captum:Saliency").astype(float), rtol=1e-5)


def test_altered_images_are_explained_by_the_method_of_the_run(model):
    class Explained(quantus.MaxSensitivity):
        """The mean of the map of a brighter image."""

        def evaluate_instance(self, *_: Any, **__: Any) -> float:
            raise NotImplementedError

        def evaluate_batch(self, model: Any, x_batch: Any, y_batch: Any, *_: Any, **__: Any) -> Any:
            maps = self.explain_func(model=model.get_model(), inputs=x_batch + 1, targets=y_batch)
            return [float(one.mean()) for one in maps]

    expected = brightness(model, IMAGES + 1, torch.zeros(3)).mean(dim=(1, 2))
    np.testing.assert_allclose(column(model, Explained(**QUIET)).astype(float), expected, rtol=1e-6)


def test_it_has_the_direction_of_quantus_and_its_family():
    metric = from_quantus(quantus.Complexity(**QUIET), name="entropy_of_quantus")
    assert (metric.name, metric.higher_is_better, metric.family) == ("entropy_of_quantus", False, "complexity")
    assert metric.settings["library"] == "quantus"
    assert "disable_warnings" not in metric.settings


def test_keywords_reach_the_call(model):
    made = from_quantus(quantus.FaithfulnessEstimate(features_in_step=32, **QUIET), softmax=True)
    plain = from_quantus(quantus.FaithfulnessEstimate(features_in_step=32, **QUIET))
    assert not np.allclose(column(model, made, 3, "captum:Saliency"), column(model, plain, 3, "captum:Saliency"))


def test_a_map_of_zeros_has_no_value(model):
    def dark(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = images.mean(dim=1)
        return torch.where((images[:, 0, 0, 0] == IMAGES[1, 0, 0, 0])[:, None, None], 0.0, maps)

    assert column(model, quantus.Sparseness(**QUIET), 3, dark).isna().tolist() == [False, True, False]


def test_the_model_comes_back_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    column(model, quantus.MaxSensitivity(nr_samples=1, **QUIET), 3, "captum:Saliency")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    explain(model, IMAGES, ["3"])


@pytest.mark.parametrize("kind", ["Sufficiency", "Consistency", "Focus", "SmoothMPRT"])
def test_what_cannot_be_judged_image_by_image_is_refused(kind):
    options = {} if kind == "Focus" else QUIET
    with pytest.raises(MetricError, match=rf"Quantus' {kind} .*; '[a-z_]+' of xaieval measures that"):
        from_quantus(getattr(quantus, kind)(**options))


@pytest.mark.parametrize("kind", ["MPRT", "EfficientMPRT"])
def test_maps_of_a_random_model_are_refused(model, kind):
    with pytest.raises(MetricError, match=r"another model than the one that is scored; '[a-z_]*mprt' does that in a run"):
        column(model, getattr(quantus, kind)(**QUIET), 3, "captum:Saliency")


def test_a_curve_is_refused_with_the_setting_to_change(model):
    metric = quantus.RegionPerturbation(regions_evaluation=2, patch_size=4, **QUIET)
    with pytest.raises(MetricError, match=r"RegionPerturbation gave 2 numbers for one image.*return_auc_per_sample=True"):
        column(model, metric, 3, "captum:Saliency")


def test_errors_of_quantus_are_one_clear_line(model):
    with pytest.raises(MetricError, match=r"a metric of another library does not work here: \w+: .*; leave it out"):
        column(model, quantus.IROF(**QUIET), 3, "captum:Saliency")


def test_other_objects_are_refused():
    with pytest.raises(MetricError, match="from_quantus takes an object of a class of Quantus, got Linear"):
        from_quantus(nn.Linear(1, 1))
