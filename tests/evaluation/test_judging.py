"""A second model that judges the masked images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from xaieval import Protocol, Scores, cross_score, score
from xaieval.errors import ModelError, OutputError, ProtocolError, UsageError

IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
METRICS = ("average_drop", "drop_in_deletion", "insertion", "max_sensitivity")


def network(seed: int, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, 1, 1), nn.ReLU(), *head
    ).eval()


def run(model: nn.Module, **options: Any) -> Scores:
    settings = {"layers": "4", "methods": ["gradcam", "center"], "metrics": METRICS, "progress": False} | options
    return score(model, [IMAGES], **settings)


def test_maps_and_targets_are_those_of_the_model_and_confidences_those_of_the_judge():
    model, judge = network(1), network(2)
    judged, own = run(model, judge=judge), run(model)
    same = ["image_id", "layer", "method", "predicted", "target", "mask_area", "max_sensitivity"]
    pd.testing.assert_frame_equal(judged.rows[same], own.rows[same])
    with torch.no_grad():
        expected = judge(IMAGES).double().softmax(dim=1)[range(6), model(IMAGES).argmax(dim=1)]
    np.testing.assert_allclose(judged.rows["confidence"][::2], expected, rtol=1e-5)
    assert not np.allclose(judged.rows["average_drop"], own.rows["average_drop"])


def test_it_is_a_cell_of_the_cross_table():
    model, judge = network(1), network(2)
    metrics = ("average_drop", "drop_in_deletion", "insertion")
    judged = run(model, judge=judge, methods=["gradcam"], metrics=metrics, target=1).rows
    crossed = cross_score({"model": model, "judge": judge}, [IMAGES], "4", metrics=metrics, target=1, progress=False).rows
    cell = crossed[(crossed["masks_of"] == "model") & (crossed["model"] == "judge")]
    columns = ["confidence", "masked_confidence", *metrics]
    np.testing.assert_allclose(judged[columns].to_numpy(float), cell[columns].to_numpy(float), rtol=1e-5)


def test_matched_controls_are_judged_too():
    model, judge = network(1), network(2)
    judged, own = (run(model, judge=one, metrics="average_drop", controls="shifted") for one in (judge, None))
    name = "average_drop_shifted"
    assert judged.rows[name].notna().equals(own.rows[name].notna())
    assert not np.allclose(judged.rows[name].dropna(), own.rows[name].dropna())


def test_both_models_come_back_as_they_were():
    model, judge = network(1), network(2).train()
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    run(model, judge=judge)
    assert judge.training
    assert not any(module._forward_hooks for module in judge.modules())
    assert all(torch.equal(value, before[name]) for name, value in judge.state_dict().items())


def test_the_manifest_names_the_judge_and_another_judge_is_another_run(tmp_path):
    model = network(1)
    run(model, judge=network(2), output_dir=tmp_path)
    loaded = Scores.load(tmp_path)
    assert loaded.manifest["run"]["judge"] == loaded.manifest["judge"]["fingerprint"] != loaded.manifest["model"]["fingerprint"]
    with pytest.raises(OutputError, match="judge"):
        run(model, judge=network(3), output_dir=tmp_path)
    loaded.to_html(tmp_path / "report.html")
    assert loaded.manifest["judge"]["fingerprint"] in (tmp_path / "report.html").read_text()


def test_runs_of_two_judges_are_compared_with_a_note():
    model = network(1)
    table = run(model, judge=network(2), metrics="average_drop").compare(run(model, judge=network(3), metrics="average_drop"))
    assert any("the settings differ: judge" in note for note in table.attrs["notes"])


def test_the_model_as_its_own_judge_changes_nothing():
    model = network(1)
    pd.testing.assert_frame_equal(run(model, judge=model).rows, run(model).rows)


def test_a_function_can_judge():
    judge = network(2)

    def asked(images: torch.Tensor) -> torch.Tensor:
        return judge(images)

    found = run(network(1), judge=asked)
    pd.testing.assert_frame_equal(found.rows, run(network(1), judge=judge).rows, rtol=1e-3)
    assert found.manifest["judge"]["function"].endswith("asked")


@pytest.mark.parametrize(
    ("judge", "options", "error", "said"),
    [
        (
            network(2, classes=3),
            {},
            ModelError,
            "the judge has 3 classes and the model 4; a judge needs the classes of the model",
        ),
        (network(2, classes=1), {}, ProtocolError, "the judge's output is read otherwise than the model's"),
        (network(2), {"task": "segmentation", "layers": "0"}, UsageError, "judge= takes classifiers, got segmentation"),
    ],
)
def test_a_judge_that_does_not_fit_is_refused(judge, options, error, said):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1)) if options else network(1)
    with pytest.raises(error, match=said):
        run(model, judge=judge, **{"metrics": "average_drop", "protocol": Protocol(target=1)} | options)
