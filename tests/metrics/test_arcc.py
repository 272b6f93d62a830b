"""ARCC: by hand, against pytorch-grad-cam, and in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.metrics.evidence import asker, evidence, maps_of, pictures, run_in_batches, tiny
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import METRICS, arcc, coherency, complexity, road

OF_GRAD_CAM = "ignore::DeprecationWarning"


def inputs(count: int = 4) -> dict[str, Any]:
    images = pictures(count, 3)
    maps = maps_of(images).sigmoid()
    maps[0] = images[0].mean(dim=0).abs().clamp(0, 1)
    return evidence(asker(tiny(3), images), images, maps, masked_maps=maps.sqrt() + 0.3 * maps.flip(1))


def check_by_hand(module: Any) -> None:
    found = module.arcc_of(torch.tensor([0.3, -0.1, 0.7]), torch.tensor([60.0, 90.0, 100.0]), torch.tensor([40.0, 10.0, 0.0]))
    assert found.tolist() == pytest.approx([60, 0, 100], abs=1e-4)


def check_the_parts_are_those_of_the_other_metrics(module: Any) -> None:
    known = inputs()
    found = module.arcc(noise=0).judge(known)[0]
    parts = (
        2 * road((0.2, 0.4, 0.6, 0.8), noise=0).judge(known)[0].clamp(0, 0.5),
        coherency(known["maps"], known["masked_maps"]) / 100,
        1 - complexity(known["maps"]) / 100,
    )
    expected = [0 if min(each) == 0 else 300 / sum(1 / part for part in each) for each in zip(*parts, strict=True)]
    np.testing.assert_allclose(found, [float(value) for value in expected], rtol=1e-6)
    assert 0 < found.max() < 100


MUTANTS = {
    "not doubled": ("(200 * road.double())", "(100 * road.double())"),
    "not cut off": (".clamp(0, 100)", ".abs().clamp(0, 100)"),
    "the complement": ("adcc(100 - (200", "adcc((200"),
    "one order": ('("most", "least")', '("least", "most")'),
    "complexity of the other": ("complexity(maps))", "complexity(masked_maps))"),
    "other shares": ("FRACTIONS = (0.2, 0.4, 0.6, 0.8)", "FRACTIONS = (0.1, 0.5)"),
}

test_the_formulas_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.arcc"], MUTANTS, MetricError
)


@pytest.mark.filterwarnings(OF_GRAD_CAM)
def test_arcc_is_that_of_pytorch_grad_cam_for_its_shares_and_without_its_noise(monkeypatch):
    from pytorch_grad_cam.metrics.arcc import ARCC
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    _, weighting = NoisyLinearImputer.__init__.__defaults__
    monkeypatch.setattr(NoisyLinearImputer.__init__, "__defaults__", (0.0, weighting))
    known, model = inputs(), tiny(3)
    with torch.no_grad():
        targets = [ClassifierOutputSoftmaxTarget(int(one)) for one in model(known["images"]).argmax(dim=1)]
    percentiles = [25, 50, 75]

    def again(input_tensor: Any, targets: Any) -> Any:
        return known["masked_maps"].numpy()

    metric = ARCC(again, percentiles)
    theirs = metric(known["images"], known["maps"].numpy(), targets, model)
    pixels = 64  # the percentile of 64 values lies between two of them
    most = [sum(known["maps"][0].flatten() > np.percentile(known["maps"][0], 100 - percent)) for percent in percentiles]
    ours = arcc([int(count) / pixels for count in most], noise=0).judge(known)[0]
    found = ours.numpy() / 100
    assert (found > 0.01).any()
    np.testing.assert_allclose(found, theirs, atol=2e-5)


def test_a_constant_map_has_no_value():
    known = inputs()
    known["maps"][1] = 0
    assert arcc().judge(known)[0].isnan().tolist() == [False, True, False, False]


def test_wrong_shares_are_refused():
    with pytest.raises(MetricError, match="fractions are increasing shares"):
        arcc((0.5, 0.2))


def test_the_metric_in_a_run():
    scores = run_in_batches([arcc((0.3, 0.6))])
    assert scores.rows["arcc"].dropna().between(0, 100).all()
    assert METRICS["arcc"].higher_is_better
