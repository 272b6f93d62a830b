"""The same seed gives the same rows for any batch size, order and number of processes: up to rounding, or bit by bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import xaieval
from xaieval.errors import OutputError, UsageError
from xaieval.explainers import LIBRARY_METHODS, METHODS, joins_layers, resolve_methods
from xaieval.explainers.attention_gradients import ATTENTION_GRADIENTS
from xaieval.explainers.attention_relevance import ATTENTION_RELEVANCE
from xaieval.explainers.dense_prompts import DENSE_PROMPTS
from xaieval.explainers.detectors import DETECTORS
from xaieval.explainers.grad_eclip import GRAD_ECLIP
from xaieval.explainers.rollout import ROLLOUT
from xaieval.inference.reproducibility import repeatable, seed_from
from xaieval.metrics import METRICS, top_k_intersection

pytestmark = pytest.mark.slow

COUNT = 5
IMAGES = torch.randn(COUNT, 3, 24, 20, generator=torch.Generator().manual_seed(8))
SETTINGS: dict[str, Any] = {  # an example takes long, so that what fails is shown as it is
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
    "phases": [Phase.explicit, Phase.generate],
}

# Methods that explain models of a kind; tests of their own try them.
FAMILIES = (ROLLOUT, ATTENTION_GRADIENTS, ATTENTION_RELEVANCE, GRAD_ECLIP, DENSE_PROMPTS, DETECTORS)
SPECIAL = {method.name for family in FAMILIES for method in family}
SPECIAL |= {"cam", "attention", "captum:LRP", "torch-cam:CAM", "torch-cam:LeGrad"}
DRAWING = ("random", "rise", "captum:GradientShap", "pytorch-grad-cam:RandomCAM", "torch-cam:SmoothGradCAMpp")
SMALLER = {"n_masks": 16, "samples": 2, "steps": 3, "n_steps": 3, "n_designs": 2, "side": 48, "scales": (250,)}
TOLERANCE = 1e-5  # of confidences and shares; a hundred times that of percent


@cache
def network() -> nn.Module:
    """A network that looks trained: BatchNorms have statistics, and predictions differ."""
    torch.manual_seed(3)
    layers = (
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)),
    )
    model = nn.Sequential(*layers)
    with torch.no_grad():
        model[-1].weight.mul_(10)
        model[1].running_mean.normal_(std=0.2)
        model[4].running_mean.normal_(std=0.2)
    return model


@pytest.mark.parametrize("parts", [(0, "a/b.png"), (7, "image 3", "imputation"), (0, "layer4.0.conv1")])
def test_a_seed_is_the_start_of_a_hash_so_that_random_numbers_never_change(parts):
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    assert seed_from(*parts) == int.from_bytes(digest[:8], "big") // 2
    assert seed_from(*parts, bits=32) == int.from_bytes(digest[:4], "big")


def method(name: str) -> Any:
    """A method by name, with its smallest settings."""
    [found] = resolve_methods([name])
    if not is_dataclass(found):
        return found
    return replace(found, **{field.name: SMALLER[field.name] for field in fields(found) if field.name in SMALLER})


def loader(order: list[int], batch_size: int, images: Tensor = IMAGES) -> list[dict[str, Any]]:
    starts = range(0, len(order), batch_size)
    boxes = torch.tensor([[2.0, 2.0, 12.0, 12.0]])
    return [
        {
            "image": images[part],
            "id": [f"image {i}" for i in part],
            "label": torch.tensor(part) % 5,
            "boxes": [boxes] * len(part),
        }
        for part in (order[start : start + batch_size] for start in starts)
    ]


def rows(
    given: Any, methods: Any = "gradcam", model: nn.Module | None = None, layers: Any = ("5",), **options: Any
) -> pd.DataFrame:
    """The rows of a run, sorted."""
    model = network() if model is None else model
    found = xaieval.score(model, given, layers, methods, progress=False, **options).rows
    return found.sort_values(["image_id", "layer", "method"], ignore_index=True)


def assert_near(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Check equality up to rounding; flags are compared only where rounding cannot change them."""
    clear = (expected["masked_confidence"] - expected["confidence"]).abs() > TOLERANCE
    for name, column in expected.items():
        if column.dtype.kind != "f":
            assert found[name].equals(column), name
        elif name == "increase_in_confidence":
            assert found[name][clear].equals(column[clear])
        else:
            percent = name in METRICS and "%" in METRICS[name].label
            # Pixels whose values differ by rounding alone can change places in the order in which a curve takes them, and a
            # quotient of two small differences has the rounding of both.
            largest = TOLERANCE * (100 if percent else 10 if name in ("morf", "relative_output_stability") else 1)
            close = np.isclose(found[name], column, rtol=TOLERANCE, atol=largest, equal_nan=True)
            assert close.all(), name


def assert_same_bits(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


ARRANGED = (st.permutations(range(COUNT)), st.integers(1, COUNT), st.sampled_from([None, 1, 2, 3]))


# ---- to rounding


@settings(max_examples=4, **SETTINGS)
@given(*ARRANGED)
def test_batches_and_order_change_rows_by_rounding_alone(order, batch_size, asked):
    methods = ["gradcam", "layercam", *map(method, DRAWING)]
    metrics = ["average_drop", "increase_in_confidence", "morf"]
    expected = _expected(tuple(map(str, methods)), methods, metrics)
    assert_near(rows(loader(order, batch_size), methods, metrics=metrics, batch_size=asked), expected)


_kept: dict[Any, pd.DataFrame] = {}


def _expected(key: Any, methods: Any, metrics: Any, **options: Any) -> pd.DataFrame:
    if key not in _kept:
        _kept[key] = rows(loader(list(range(COUNT)), COUNT), methods, metrics=metrics, **options)
    return _kept[key]


@pytest.mark.parametrize("name", [name for name in {**METHODS, **LIBRARY_METHODS} if name not in SPECIAL])
def test_every_method_gives_the_same_rows_in_other_batches_and_the_same_bits_if_asked(name):
    tried = [method(name)]
    there, back = loader([0, 1, 2], 3), loader([2, 0, 1], 2)
    layers = ["2", "5"] if joins_layers(tried[0]) else ["5"]
    assert_near(rows(back, tried, layers=layers), rows(there, tried, layers=layers))
    exact = {"layers": layers, "deterministic": True}
    assert_same_bits(rows(back, tried, **exact), rows(there, tried, **exact))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gives_the_same_values_in_other_batches_and_the_same_bits_if_asked(name):
    there, back = loader([0, 1, 2], 3), loader([2, 0, 1], 2)
    metrics = [top_k_intersection(k=20)] if name == "top_k_intersection" else [name]  # the images have fewer than 1000 pixels
    assert_near(rows(back, metrics=metrics), rows(there, metrics=metrics))
    assert_same_bits(rows(back, metrics=metrics, deterministic=True), rows(there, metrics=metrics, deterministic=True))


# ---- to the last bit


@settings(max_examples=4, **SETTINGS)
@given(*ARRANGED, st.integers(1, 3))
def test_deterministic_rows_have_the_same_bits_whatever_the_batches_the_order_and_the_threads(order, size, asked, threads):
    methods = ["gradcam", method("rise"), "captum:GradientShap"]
    expected = _expected("bits", methods, ["average_drop", "morf"], deterministic=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = rows(loader(order, size), methods, metrics=["average_drop", "morf"], batch_size=asked, deterministic=True)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_same_bits(found, expected)


def test_deterministic_rows_do_not_depend_on_what_else_is_measured():
    alone = rows(loader([0, 1, 2], 3), deterministic=True)
    beside = rows(loader([0, 1, 2], 3), ["gradcam++", "gradcam", "random"], layers=["2", "5"], deterministic=True)
    same = beside[(beside["layer"] == "5") & (beside["method"] == "gradcam")].reset_index(drop=True)
    assert_same_bits(same, alone)


def _mobilenet(weights: Path) -> nn.Module:
    model = timm.create_model("mobilenetv2_100", pad_type="same")
    model.load_state_dict(load_file(weights))
    return model


@pytest.mark.shared
def test_a_real_network_gives_the_same_bits(imagenet_weights):
    images = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    options = {"model": _mobilenet(imagenet_weights), "layers": ["blocks.2", "blocks.6"], "deterministic": True}
    there = rows(loader([0, 1, 2], 3, images), **options)
    assert_same_bits(rows(loader([2, 0, 1], 2, images), **options), there)


def test_a_pyramid_gives_the_same_bits():
    images = torch.randn(3, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    options = {"model": xaieval.models.fpn_scenes(), "layers": ["fpn[*]"], "deterministic": True}
    assert_same_bits(rows(loader([2, 0, 1], 2, images), **options), rows(loader([0, 1, 2], 3, images), **options))


def test_a_transformer_gives_the_same_bits():
    torch.manual_seed(0)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = timm.create_model("test_vit", img_size=64, num_classes=5)
    options = {"model": model, "layers": ["blocks.*"], "methods": ["gradcam", "attention-rollout"], "deterministic": True}
    assert_same_bits(rows(loader([2, 0, 1], 2, images), **options), rows(loader([0, 1, 2], 3, images), **options))


# One process and two: tests/evaluation/distributed/test_shared_run.py, by the command, whose processes are other interpreters.


# ---- what it is


def test_a_run_that_is_deterministic_is_another_one_than_a_run_that_is_not(tmp_path):
    rows(loader([0], 1), output_dir=tmp_path)
    assert "deterministic" not in json.loads((tmp_path / "manifest.json").read_text())["run"]
    with pytest.raises(OutputError, match="deterministic"):
        rows(loader([0], 1), output_dir=tmp_path, deterministic=True)


def test_what_torch_cannot_repeat_is_one_clear_error():
    def unrepeatable(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return images.mean(dim=1).put_(torch.tensor([0]), torch.tensor([1.0]))

    assert len(rows(loader([0], 1), unrepeatable)) == 1
    with pytest.raises(UsageError) as caught:
        rows(loader([0], 1), unrepeatable, deterministic=True)
    assert str(caught.value) == (
        "deterministic=True cannot be kept: put_ does not have a deterministic implementation; leave out what needs it, or "
        "deterministic=True"
    )
    assert not torch.are_deterministic_algorithms_enabled()


def test_cublas_asks_for_its_environment_variable():
    # What torch says, here where there is no GPU.
    text = (
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or ..., but this operation "
        "is not deterministic because it uses CuBLAS. To enable it you must set CUBLAS_WORKSPACE_CONFIG"
    )
    with (
        pytest.raises(UsageError, match="cuBLAS needs the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8 before"),
        repeatable(),
    ):
        raise RuntimeError(text)


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match=r"^something else$"), repeatable():
        raise RuntimeError("something else")


def test_compiled_passes_are_refused():
    with pytest.raises(UsageError, match=r"^deterministic=True cannot run a compiled model; leave out one of "):
        rows(loader([0], 1), deterministic=True, compile=True)
