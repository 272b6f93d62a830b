"""Settings of methods by name reach the methods, and what is wrong is named."""

from __future__ import annotations

import pytest

from xaieval.errors import ExplainerError, UsageError
from xaieval.explainers import Captum, PytorchGradCam, TorchCam, describe_method, setting_names, with_settings
from xaieval.explainers.catalogue import LIBRARY_METHODS, METHODS
from xaieval.explainers.perturbation import RISE


def test_settings_go_to_the_method_of_that_name_alone():
    made = with_settings(["rise", "gradcam", "sobol"], {"sobol": {"designs": 8}, "rise": {"n-masks": 5, "grid": 3}})
    assert made[0] == RISE(n_masks=5, grid=3)
    assert made[1] is METHODS["gradcam"]
    assert describe_method(made[2]) == {"n_designs": 8, "grid": 8, "fill": 0.0, "wanted": "score"}


def test_settings_of_libraries_are_fields_of_the_method_or_keywords_of_the_library():
    given = {
        "captum:Lime": {"segments": "slic-9", "samples": 20},
        "captum:IntegratedGradients": {"method": "riemann_trapezoid", "reduce": "max", "steps": 4},
        "captum:SmoothGrad": {"nt_samples": 3},
        "pytorch-grad-cam:KPCA_CAM": {"kernel": "rbf"},
        "torch-cam:SSCAM": {"num-samples": 3},
    }
    made = with_settings(list(given), given)
    assert made[0] == Captum("Lime", segments="slic-9", settings={"n_samples": 20})
    assert made[1] == Captum("IntegratedGradients", reduce="max", settings={"method": "riemann_trapezoid", "n_steps": 4})
    assert made[2] == Captum("Saliency", noise="smoothgrad", label="captum:SmoothGrad", settings={"nt_samples": 3})
    assert made[3] == PytorchGradCam("KPCA_CAM", settings={"kernel": "rbf"})
    assert made[4] == TorchCam("SSCAM", settings={"num_samples": 3})
    assert [method.name for method in made] == list(given)


def test_what_the_adapters_give_themselves_is_no_setting():
    names = {name for method in LIBRARY_METHODS.values() for name in setting_names(method)}
    assert {"n_steps", "n_samples", "baselines", "segments", "reduce", "num_samples", "stdevs", "epsilon", "max_evals"} <= names
    assert not names & {
        "model",
        "forward_func",
        "target_layers",
        "target_layer",
        "inputs",
        "target",
        "feature_mask",
        "label",
        "settings",
        "canonizers",
        "silent",
    }


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        ("rise", {"rise": {"maskz": 5}}, "method 'rise' has no setting 'maskz'; did you mean 'n_masks'"),
        ("rise", {"ris": {"masks": 5}}, "there are settings for 'ris', which is none of the methods; did you mean 'rise'"),
        ("gradcam", {"gradcam": {"k": 5}}, "method 'gradcam' has no settings, got k"),
        ("rise", {"rise": {"masks": "many"}}, "method 'rise' cannot take n_masks='many': '<' not supported"),
        ("rise", {"rise": {"masks": 0}}, "method 'rise' takes n_masks and grid of at least 1"),
        ("captum:Lime", {"captum:Lime": {"sampels": 5}}, "'captum:Lime' has no setting 'sampels'; did you mean 'n_samples'"),
        ("captum:Saliency", {"captum:Saliency": {"segments": 5}}, "does not take segments; these do: FeatureAblation, Lime"),
        ("ris", {}, "no method 'ris'; did you mean 'rise'"),
    ],
)
def test_wrong_settings_are_one_clear_line(methods, settings, message):
    with pytest.raises(ExplainerError, match=message):
        with_settings(methods, settings)


def test_what_is_no_segmentation_is_refused():
    with pytest.raises(UsageError, match="segments is the side of square patches in pixels, 'slic'"):
        with_settings("captum:Lime", {"captum:Lime": {"segments": "slick"}})
