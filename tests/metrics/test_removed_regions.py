"""Region perturbation, selectivity and IROF: by hand, by slow loops, against Quantus, and in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.segmentation import felzenszwalb
from torch import Tensor

import xaieval
from tests.metrics.test_curves import drawn, evidence, pictures, tiny
from tests.mutants import mutation_tests
from xaieval.config.protocol import Protocol
from xaieval.errors import MetricError, UsageError
from xaieval.masking.segments import segmenter
from xaieval.metrics import METRICS, deletion, irof, region_perturbation, selectivity

NAMES = ["region_perturbation", "selectivity", "irof"]

# A picture of four regions, whose confidence is its mean; the map takes them in the order 0.8, 0.4, 0.0, 0.2.
PICTURE = torch.tensor([[[[0.4, 0.2], [0.8, 0.0]]]], dtype=torch.float64)
MAP = torch.tensor([[[0.7, 0.1], [0.9, 0.3]]])


def quarter(images: Tensor) -> Tensor:
    return torch.full_like(images, 0.25)


def _means(blocks: Any) -> Tensor:
    return torch.cat([images.double().flatten(1).mean(dim=1) for images, _ in blocks])


def by_hand(metric: Any, picture: Tensor = PICTURE, maps: Tensor = MAP, sign: float = 1) -> tuple[list[float], float]:
    known = {"maps": maps, "images": picture, "draw": drawn, "protocol": Protocol(), "segment": segmenter(picture)}
    known |= {"confidence": sign * picture.flatten(1).mean(1), "ask": lambda blocks: sign * _means(blocks)}
    values, curves = metric.judge(known)
    return [round(value, 12) for value in curves[0].tolist()], float(values)


# ---- checks that take the module under test


def check_region_perturbation_by_hand(module: Any) -> None:
    curve, value = by_hand(module.region_perturbation(2, 1, "zero", keep_curve=True))
    assert curve == [0.35, 0.15, 0.05]
    assert value == pytest.approx((0 + 0.2 + 0.3) / 3)
    curve, value = by_hand(module.region_perturbation(100, 1, "zero", "lerf", keep_curve=True))
    assert curve == [0.35, 0.3, 0.3, 0.2, 0.0]
    assert value == pytest.approx((0 + 0.05 + 0.05 + 0.15 + 0.35) / 5)


def check_selectivity_by_hand(module: Any) -> None:
    curve, value = by_hand(module.selectivity(1, keep_curve=True))
    assert curve == [0.35, 0.15, 0.05, 0.05, 0.0]
    assert value == pytest.approx((0.35 / 2 + 0.15 + 0.05 + 0.05) / 4)


def check_irof_by_hand(module: Any) -> None:
    curve, value = by_hand(module.irof(1, "zero", keep_curve=True))
    assert curve == [0.35, 0.15, 0.05, 0.05, 0.0]
    assert value == pytest.approx(1 - (0.35 / 2 + 0.15 + 0.05 + 0.05) / 4 / 0.35)
    assert np.isnan(by_hand(module.irof(1, "zero", keep_curve=True), sign=-1)[1])


def check_an_image_of_fewer_regions_has_fewer_points(module: Any) -> None:
    # The first picture has two regions and the second four, whose curves have three and five points.
    pictures = torch.cat([PICTURE, PICTURE])
    labels = torch.tensor([[[0, 0], [1, 1]], [[0, 1], [2, 3]]])
    known = {"maps": MAP.expand(2, 2, 2), "images": pictures, "draw": drawn, "protocol": Protocol(), "ask": _means}
    known |= {"confidence": pictures.flatten(1).mean(1), "segment": segmenter(pictures)}
    fall = module.region_perturbation(9, lambda images: labels, "zero").judge(known)[0]
    assert fall.tolist() == pytest.approx([(0 + 0.2 + 0.35) / 3, (0 + 0.2 + 0.3 + 0.3 + 0.35) / 5])
    area = module.selectivity(lambda images: labels).judge(known)[0]
    assert area.tolist() == pytest.approx([(0.35 / 2 + 0.15) / 2, (0.35 / 2 + 0.15 + 0.05 + 0.05) / 4])


MUTANTS = {
    "without the first point": ("/ (~gone).sum(dim=1)", "/ ((~gone).sum(dim=1) - 1)"),
    "points beyond the end": (">= 1\n", ">= 2\n"),
    "rise in place of fall": ("confidence[:, None] - curves", "curves - confidence[:, None]"),
    "orders mixed up": ("if self.least_first else order\n", "if not self.least_first else order\n"),
    "not divided": ("curves.double() / positive[:, None]", "curves.double()"),
    "under is over": ("1 - area_under", "area_under"),
    "a negative confidence": ("torch.where(confidence > 0, confidence.double(), torch.nan)", "confidence.double()"),
}

test_the_metrics_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.removed_regions"], MUTANTS, MetricError
)


# ---- properties and other tools


def test_nan_is_not_left_out_of_the_mean_fall():
    known = evidence(tiny(), *pictures()) | {"ask": lambda blocks: torch.full((sum(len(of) for _, of in blocks),), torch.nan)}
    known["segment"] = segmenter(known["images"])
    for metric in (region_perturbation(segments=4), selectivity(4), irof(4)):
        assert metric.judge(known)[0].isnan().all()


def test_selectivity_is_deletion_by_regions_one_at_a_time():
    known = evidence(tiny(), *pictures()) | {"segment": segmenter(pictures()[0])}
    torch.testing.assert_close(selectivity(4).judge(known)[0], deletion(9, segments=4).judge(known)[0], rtol=0, atol=1e-7)


def by_quantus(name: str, known: dict[str, Any], **choices: Any) -> np.ndarray:
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    metric = getattr(quantus, name)(perturb_baseline=0.25, normalise=False, disable_warnings=True, **choices)
    model = tiny(known["images"].shape[1])
    with torch.no_grad():
        targets = model(known["images"]).argmax(dim=1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what it calls of numpy
        warnings.simplefilter("ignore", UserWarning)  # that an image of no more segments does not change any more
        found = metric(model, known["images"].numpy(), targets, known["maps"][:, None].numpy(), softmax=True, device="cpu")
    return np.array(found)


def known_of(part: slice = slice(0, 4)) -> dict[str, Any]:
    images, maps = pictures()
    known = evidence(tiny(), images[part], maps[part])
    return known | {"segment": segmenter(images[part])}


def test_region_perturbation_and_selectivity_are_those_of_quantus_but_for_its_missing_first_point():
    known = known_of()
    for order in ("morf", "lerf"):
        falls = by_quantus("RegionPerturbation", known, patch_size=4, regions_evaluation=6, order=order)
        values, curves = region_perturbation(6, 4, quarter, order, keep_curve=True).judge(known)
        np.testing.assert_allclose(known["confidence"][:, None] - curves[:, 1:], falls, atol=1e-6)
        np.testing.assert_allclose(values, falls.sum(axis=1) / 7, atol=1e-6)
    theirs = by_quantus("Selectivity", known, patch_size=4)
    _, curves = selectivity(4, quarter, keep_curve=True).judge(known)
    assert curves.shape == (4, 10)
    np.testing.assert_allclose(curves[:, 1:], theirs, atol=1e-6)


def grey(part: slice = slice(0, 3)) -> dict[str, Any]:
    """Pictures of one channel and of 24 pixels, the first of which is smoother than the others."""
    maps = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(4))
    images = torch.nn.functional.interpolate(pictures(3, channels=1)[0], (24, 24), mode="bicubic")
    images[0] = images[0] * 1e-3 + torch.linspace(-3, 3, 24)[:, None]
    return evidence(tiny(1), images[part], maps[part]) | {"segment": segmenter(images[part])}


@pytest.fixture
def irof_of_quantus(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)  # which numpy no longer has by the name that it calls
    return lambda known, method: by_quantus("IROF", known, segmentation_method=method, return_aggregate=False)


def by_felzenszwalb(images: Tensor) -> Tensor:
    return torch.stack([torch.from_numpy(felzenszwalb(one.movedim(0, -1).double().numpy())) for one in images])


def test_irof_is_that_of_quantus_but_for_its_axis_and_first_point(irof_of_quantus):
    # Quantus sums over the superpixels after the first: K - area, where ours is a share of the whole axis.
    for number in range(3):
        known = grey(slice(number, number + 1))
        values, curves = irof(baseline=quarter, keep_curve=True).judge(known)
        count, first = curves.shape[1] - 1, float(curves[0, 1] / known["confidence"][0])
        assert 50 < count < 200
        assert float(irof_of_quantus(known, "slic")[0]) == pytest.approx(count * float(values[0]) + (1 + first) / 2, abs=1e-4)


def test_irof_of_quantus_depends_on_the_batch_and_takes_one_channel_and_ours_does_neither(irof_of_quantus):
    # It takes 0 for the superpixels that an image lacks, and adds the triangle down to it.
    known, alone = grey(), grey(slice(2, 3))
    units = known["segment"](by_felzenszwalb).flatten(1).amax(dim=1) + 1
    assert units[2] < units.max()
    theirs = [irof_of_quantus(one, "felzenszwalb")[-1] for one in (known, alone)]
    assert abs(theirs[0] - theirs[1]) > 0.1
    ours = [float(irof(by_felzenszwalb, quarter).judge(one)[0][-1]) for one in (known, alone)]
    assert ours[0] == pytest.approx(ours[1], abs=1e-6)
    with pytest.raises(AssertionError, match="shape of arr must be the same as the mask"):
        irof_of_quantus(known_of(), "slic")
    assert irof(baseline=quarter).judge(known_of())[0].isfinite().all()


# ---- choices and runs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: region_perturbation(0), "regions is at least 1, got 0"),
        (lambda: region_perturbation(order="random"), "order is 'morf' or 'lerf', got 'random'"),
        (lambda: selectivity(None), "segments are regions: the side of square patches, 'slic' or a function; for pixels"),
        (lambda: irof(baseline="blurr"), "no baseline 'blurr'; did you mean 'blur'"),
        (lambda: irof("slik"), "segments is the side of square patches"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_regions_by_name_in_a_run_depend_on_no_batch():
    images = pictures(5)[0]

    def score(sizes: tuple[int, ...]) -> Any:
        batches = [{"images": part, "ids": [str(float(one.sum())) for one in part]} for part in images.split(sizes)]
        return xaieval.score(tiny(), batches, "0", ["gradcam", "random"], NAMES, progress=False)

    whole = score((5,))
    pd.testing.assert_frame_equal(whole.rows[NAMES], score((2, 3)).rows[NAMES], rtol=1e-5, atol=1e-6)
    summary = whole.summary()
    for name in NAMES:
        assert (summary[f"{name}_low"] <= summary[name]).all()
    assert [METRICS[name].higher_is_better for name in NAMES] == [True, False, True]
    made = whole.manifest["metrics"][0]["settings"]
    assert made == {"regions": 100, "order": "morf", "segments": 9, "baseline": "noise", "keep_curve": False}
