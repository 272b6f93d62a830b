"""F1, pixel accuracy and mean IoU: by hand, against scikit-learn and the formulas of Chefer et al., and in a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch import Tensor, nn

import xaieval
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import (
    best_mask_f1,
    best_mask_iou,
    f1,
    mask_accuracy,
    mask_f1,
    mask_mean_iou,
    mean_iou,
    pixel_accuracy,
    pooled_mean_iou,
)

MAP = torch.tensor([[[0.9, 0.6, 0.3, 0.2, 0.0]]])  # the mean is 0.4
OBJECT = torch.tensor([[[True, False, True, False, False]]])


def _case(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps, masks = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator) > 0.7
    masks[:, 0, 0] = True
    return maps, masks


def check_by_hand(metrics: Any) -> None:
    assert metrics.mask_f1(MAP, OBJECT).item() == pytest.approx(50)  # marks 2, one of them right
    assert metrics.mask_f1(MAP, OBJECT, 0.25).item() == pytest.approx(80)  # marks 3, has both
    assert metrics.best_mask_f1(MAP, OBJECT).item() == pytest.approx(80)
    assert metrics.mask_f1(MAP, OBJECT, "mean").item() == pytest.approx(50)
    assert metrics.mask_accuracy(MAP, OBJECT).item() == pytest.approx(60)
    assert metrics.mask_accuracy(MAP, OBJECT, 0.25).item() == pytest.approx(80)
    assert metrics.mask_mean_iou(MAP, OBJECT).item() == pytest.approx(100 * (1 / 3 + 2 / 4) / 2)
    assert metrics.mask_mean_iou(MAP, OBJECT, 0.25).item() == pytest.approx(100 * (2 / 3 + 2 / 3) / 2)
    values, shares = metrics.mean_iou(keep_curve=True).per_image(MAP, OBJECT)
    torch.testing.assert_close(shares, torch.tensor([[0.2, 0.2, 0.2, 0.4]]).double())
    assert values.item() == metrics.mask_mean_iou(MAP, OBJECT).item() == pytest.approx(metrics.pooled_mean_iou(shares)[0])


def check_against_scikit_learn(metrics: Any) -> None:
    maps, masks = _case(0, 4, 6, 7)
    for threshold in (0.5, 0.8, "mean"):
        f1s, right, ious = (
            getattr(metrics, name)(maps, masks, threshold) for name in ("mask_f1", "mask_accuracy", "mask_mean_iou")
        )
        for place in range(4):
            values, truth = maps[place].ravel().numpy(), masks[place].ravel().numpy()
            marked = values > values.mean() if threshold == "mean" else values >= threshold
            assert f1s[place].item() == pytest.approx(100 * f1_score(truth, marked))
            assert right[place].item() == pytest.approx(100 * accuracy_score(truth, marked))
            assert ious[place].item() == pytest.approx(100 * jaccard_score(truth, marked, average="macro"))


def check_maps_that_mark_nothing(metrics: Any) -> None:
    for value in (0.0, 0.1, 0.7):
        for dtype in (torch.float32, torch.float64):
            flat = torch.full((1, 1, 5), value, dtype=dtype)  # the rounded mean can lie below its values
            assert metrics.mask_f1(flat, OBJECT, "mean").item() == 0
            assert metrics.mask_accuracy(flat, OBJECT).item() == pytest.approx(60)
            assert metrics.mask_mean_iou(flat, OBJECT).item() == pytest.approx(100 * (0 + 3 / 5) / 2)


def check_images_without_a_value(metrics: Any) -> None:
    bad = torch.where(OBJECT, torch.nan, MAP)
    for name in ("mask_f1", "mask_accuracy", "mask_mean_iou"):
        function = getattr(metrics, name)
        for threshold in (0.5, "mean"):
            assert function(MAP, torch.zeros_like(OBJECT), threshold).isnan().all()
            assert function(bad, OBJECT, threshold).isnan().all()
        assert function(MAP + 1, OBJECT, 0.5).isnan().all()
        assert function(MAP + 1, OBJECT, "mean").item() == pytest.approx(function(MAP, OBJECT, "mean").item())
    assert metrics.mean_iou(keep_curve=True).per_image(MAP, torch.zeros_like(OBJECT))[1].isnan().all()
    # Without background in mask and map, only the object is left.
    assert metrics.mask_mean_iou(MAP + 0.05, torch.ones_like(OBJECT), 0.05).item() == 100


MUTANTS = {
    "at the mean": ("flat > torch.maximum(", "flat >= torch.maximum("),
    "the rounded mean": (
        "torch.maximum(flat.double().mean(dim=1, keepdim=True), flat.amin(dim=1, keepdim=True).double())",
        "flat.mean(dim=1, keepdim=True) - 1e-9",
    ),
    "IoU for F1": ("200 * counts.both.double() / (counts.marked + counts.size)", "100 * counts.both.double() / counts.marked"),
    "background counts twice": ("- self.marked - self.size + self.both", "- self.marked - self.size"),
    "accuracy of the object": ("(counts.both + counts.neither)", "counts.both"),
    "no background": (".nanmean(dim=0)", "[0]"),
    "missed and false exchanged with all": ("hit + wrong)", "hit + missed)"),
    "any scale": ("(flat, inside, 0, 1)", "(flat, inside)"),
    "curves without an object": ("shares.masked_fill(values.isnan()[:, None], torch.nan)", "shares"),
}

test_the_metrics_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.localisation", "xaieval.metrics.pixel_classification"], MUTANTS
)


def test_f1_of_one_image_orders_maps_as_iou_does():
    maps, masks = _case(1, 6, 5, 5)
    shared = best_mask_iou(maps, masks) / 100
    torch.testing.assert_close(best_mask_f1(maps, masks), 200 * shared / (1 + shared))
    grid = torch.stack([mask_f1(maps, masks, float(value)) for value in maps.unique()[1:]])
    torch.testing.assert_close(grid.amax(dim=0), best_mask_f1(maps, masks))


def _chefer(maps: Any, masks: Any) -> dict[str, float]:
    """The formulas of imagenet_seg_eval.py in hila-chefer/Transformer-Explainability, image by image, by their names."""
    right = labelled = 0
    inter, union, f1s = np.zeros(2), np.zeros(2), []
    for map_, mask in zip(maps, masks, strict=True):
        scaled = (map_ - map_.min()) / (map_.max() - map_.min())
        marked = scaled > scaled.mean()
        right, labelled = right + (marked == mask).sum(), labelled + mask.size
        for place, (ours, theirs) in enumerate(((~marked, ~mask), (marked, mask))):
            inter[place] += (ours & theirs).sum()
            union[place] += (ours | theirs).sum()
        f1s.append(f1_score(mask.ravel(), marked.ravel()))
    return {"pixAcc": 100 * right / labelled, "mIoU": 100 * (inter / union).mean(), "mF1": 100 * float(np.mean(f1s))}


def test_numbers_of_vision_transformer_papers():
    maps, masks = _case(2, 7, 8, 8)
    masks[3:] &= _case(3, 7, 8, 8)[1][3:]  # objects of different sizes
    expected = _chefer(maps.double().numpy(), masks.numpy())
    assert mask_accuracy(maps, masks).mean().item() == pytest.approx(expected["pixAcc"])
    assert mask_f1(maps, masks, "mean").mean().item() == pytest.approx(expected["mF1"])
    values, shares = mean_iou(keep_curve=True).per_image(maps, masks)
    assert pooled_mean_iou(shares.mean(dim=0).numpy()) == pytest.approx(expected["mIoU"])
    assert values.mean().item() != pytest.approx(expected["mIoU"], abs=0.05)  # theirs is no mean over images
    assert values.tolist() == mask_mean_iou(maps, masks).tolist()


def test_bad_thresholds_are_refused_word_for_word():
    for threshold in (0, 1.1, math.nan, "median"):
        for call in (f1, pixel_accuracy, mean_iou, lambda one: mask_f1(MAP, OBJECT, one)):
            with pytest.raises(MetricError) as error:
                call(threshold)
            assert str(error.value) == f"a threshold is a number in (0, 1] or 'mean'; got {threshold!r}"


def test_a_run_has_all_of_them_with_intervals_whatever_the_batch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = torch.randn(8, 3, 36, 36, generator=torch.Generator().manual_seed(1))
    masks = images[:, 0] > 1
    names = ["roc_auc", "average_precision", "two_class_average_precision", "f1", "best_f1", "pixel_accuracy", "mean_iou"]
    names += ["pixel_average_precision", "top_k_intersection", "attribution_localisation"]
    loader = [{"images": images, "masks": masks}]
    whole, parts = (xaieval.score(net, loader, "0", metrics=names, batch_size=size, progress=False) for size in (8, 3))
    summary = whole.summary().loc[("0", "gradcam")]
    for name in names:
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"], name
        np.testing.assert_allclose(whole.rows[name], parts.rows[name], rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(whole.rows["roc_auc"], xaieval.metrics.roc_auc(xaieval.explain(net, images, "0")["0"], masks))
