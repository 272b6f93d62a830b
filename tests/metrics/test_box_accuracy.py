"""Box accuracy: by hand, by a slow loop written from the paper, against scikit-image, and in a run."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from skimage.measure import label, regionprops
from torch import Tensor, nn

import xaieval
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import box_accuracy, box_iou_curve, max_box_accuracy

STEPS = [0.2, 0.5, 0.8, 1.0]

# Two pieces: 2 x 2 pixels at the top left, with a tail at a corner, and 3 pixels at the right.
MAP = torch.tensor([[0.9, 0.9, 0.0, 0.0, 0.6], [0.9, 0.9, 0.0, 0.0, 0.6], [0.0, 0.0, 0.3, 0.0, 0.6]])[None]
BOXES = [torch.tensor([[4.0, 0.0, 5.0, 2.0], [0.0, 0.0, 2.0, 2.0]])]
MASKS = torch.ones(1, 3, 5, dtype=torch.bool)


def _case(seed: int, count: int = 4, height: int = 9, width: int = 11) -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(count, height, width, generator=generator)
    maps[::2] = torch.nn.functional.avg_pool2d(maps[::2, None], 3, 1, 1)[:, 0]
    maps = maps / maps.amax(dim=(1, 2), keepdim=True)
    corners = torch.rand(count, 2, 4, generator=generator)
    low, high = corners[..., :2] * torch.tensor([width, height]) / 2, torch.tensor([width, height]) * (1 - corners[..., 2:] / 2)
    return maps, torch.ones(maps.shape, dtype=torch.bool), list(torch.cat([low, high], dim=-1))


def _filled(marked: Any) -> list[set[tuple[int, int]]]:
    """The pieces by a flood fill, pixel by pixel, in reading order of their first pixels."""
    left, pieces = [tuple(map(int, at)) for at in np.argwhere(marked)], []
    while left:
        piece, edge = set(), [left[0]]
        while edge:
            y, x = edge.pop()
            piece.add((y, x))
            near = [(y + dy, x + dx) for dy, dx in product((-1, 0, 1), repeat=2)]
            edge += [at for at in near if at in left and at not in piece and at not in edge]
        pieces.append(piece)
        left = [at for at in left if at not in piece]
    return pieces


def _iou(piece: set[tuple[int, int]], box: Any) -> float:
    x1, x2 = min(x for _, x in piece), max(x for _, x in piece) + 1
    y1, y2 = min(y for y, _ in piece), max(y for y, _ in piece) + 1
    left, top, right, bottom = (float(value) for value in box)
    both = max(min(x2, right) - max(x1, left), 0) * max(min(y2, bottom) - max(y1, top), 0)
    return 100 * both / ((x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - both)


def _slow(map_: Any, boxes: Any, threshold: float, components: str) -> float:
    """The definition of the papers: the box around the largest piece, or the boxes around all pieces."""
    pieces = _filled(map_ >= threshold)
    if components == "largest" and pieces:
        pieces = [max(pieces, key=len)]
    return max((_iou(piece, box) for piece in pieces for box in boxes), default=0.0)


def check_by_hand(metrics: Any) -> None:
    # At 0.2 the tail joins the left piece at a corner, so that its box is 3 x 3: 4 of 9. The right one has 2 of 3.
    expected = {"any": [200 / 3, 100, 100, 0], "largest": [400 / 9, 100, 100, 0]}
    for components, values in expected.items():
        found = metrics.box_iou_curve(MAP, MASKS, BOXES, STEPS, components)
        assert found[0].tolist() == pytest.approx(values)
    values, curve = metrics.box_accuracy(0.2, thresholds=10).per_image(MAP, MASKS, BOXES)
    assert values.item() == pytest.approx(100 * 2 / 3)  # 66.7 reaches 0.3 and 0.5
    assert curve.shape == (1, 10)
    assert curve[0, [1, 7]].tolist() == pytest.approx([200 / 3, 100])


def check_slow_loop(metrics: Any) -> None:
    for seed, components in product(range(2), ("any", "largest")):
        maps, masks, boxes = _case(seed)
        found = metrics.box_iou_curve(maps, masks, boxes, STEPS, components)
        slow = [
            [_slow(map_.numpy(), known, step, components) for step in STEPS] for map_, known in zip(maps, boxes, strict=True)
        ]
        np.testing.assert_allclose(found, slow, atol=1e-4)  # boxes are float32


def check_the_maximum_is_over_the_whole_set(metrics: Any) -> None:
    curves = np.array([[80.0, 40.0, 0.0], [20.0, 60.0, 0.0]])
    assert metrics.max_box_accuracy(curves, [0.5]) == 50  # each image reaches it somewhere, but not at one threshold
    assert metrics.max_box_accuracy(curves, [0.3]) == 100
    assert metrics.max_box_accuracy(curves) == pytest.approx(200 / 3)  # each level has a threshold of its own
    exact = np.array([[30.0, 0.0], [70.0, 0.0]])
    assert [metrics.max_box_accuracy(exact, [level]) for level in (0.3, 0.7)] == [100, 50]
    twice = metrics.max_box_accuracy(curves, mean=lambda table: np.stack([table.mean(axis=0), table[0]]))
    assert twice.tolist() == pytest.approx([200 / 3, 100])


def check_images_without_a_value(metrics: Any) -> None:
    nothing = torch.zeros_like(MASKS)
    values, curve = metrics.box_accuracy().per_image(MAP, nothing, [torch.zeros(0, 4)])
    assert values.isnan().all()
    assert curve.isnan().all()
    assert metrics.box_iou_curve(MAP + 0.2, MASKS, BOXES, [0.5]).isnan().all()
    assert metrics.box_iou_curve(torch.where(MAP > 0.8, math.nan, MAP), MASKS, BOXES, [0.5]).isnan().all()
    values, curve = metrics.box_accuracy().per_image(0 * MAP, MASKS, BOXES)
    assert values.item() == 0 == curve.abs().sum()


MUTANTS = {
    "only above": ("map_ >= bounds", "map_ > bounds"),
    "corners do not touch": ("np.ones((3, 3))", "np.eye(3) + np.eye(3)[::-1]"),
    "pieces of several thresholds": ("[np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]", "[np.ones((3, 3))] * 3"),
    "smallest": ("(-areas, places)", "(areas, places)"),
    "rows for columns": ("(s.start, x.start, y.start, x.stop, y.stop)", "(s.start, y.start, x.start, y.stop, x.stop)"),
    "the last pixel is left out": ("x.stop, y.stop)", "x.stop - 1, y.stop)"),
    "negative overlaps": (".clip(min=0)", ""),
    "the first object": (".max(axis=1))", "[:, 0])"),
    "the best of each image": (
        "shares = table.mean(axis=0)",
        "shares = reached.any(2, keepdims=True).repeat(3, 2).mean(0).ravel()",
    ),
    "a level reached by rounding": ("levels[:, None] - 1e-9", "levels[:, None] + 1e-9"),
    "no object is a miss": ("return usable(values, flat, inside, low=0, high=1)", "return values"),
}

test_the_metrics_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.box_accuracy"], MUTANTS, ValueError
)


def test_scikit_image_finds_the_same_boxes_and_blocks_of_thresholds_change_nothing(monkeypatch):
    maps, masks, boxes = _case(5, 1, 40, 50)
    regions = regionprops(label(maps[0].numpy() >= 0.7, connectivity=2))
    best = max(_iou({(y1, x1), (y2 - 1, x2 - 1)}, box) for y1, x1, y2, x2 in (one.bbox for one in regions) for box in boxes[0])
    whole = box_iou_curve(maps, masks, boxes, [0.1, 0.7, 0.9])
    assert whole[0, 1].item() == pytest.approx(best, rel=1e-5)
    largest = max(regions, key=lambda one: one.area).bbox
    found = box_iou_curve(
        maps, masks, [torch.tensor([[largest[1], largest[0], largest[3], largest[2]]]).float()], [0.7], "largest"
    )
    assert found.item() == pytest.approx(100)
    monkeypatch.setitem(box_iou_curve.__globals__, "PIXELS", 1)
    torch.testing.assert_close(box_iou_curve(maps, masks, boxes, [0.1, 0.7, 0.9]), whole)


def test_contours_of_the_authors_code_are_a_pixel_larger_and_take_holes_for_boxes():
    cv2 = pytest.importorskip("cv2")
    ring = np.zeros((9, 12), dtype=np.uint8)
    ring[1:8, 1:11] = 255
    ring[3:6, 3:9] = 0
    contours = cv2.findContours(ring, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    theirs = sorted(cv2.boundingRect(contour) for contour in contours)  # x, y, width, height
    assert theirs == [(1, 1, 10, 7), (2, 2, 8, 5)], "a box of the hole"
    maps = torch.from_numpy(ring)[None] / 255
    hole = [torch.tensor([[3.0, 3.0, 9.0, 6.0]])]  # as the object; the only piece is the ring
    found = box_iou_curve(maps, torch.ones(maps.shape, dtype=torch.bool), hole, [0.5])
    assert found.item() == pytest.approx(100 * 18 / 70)


REFUSED = [
    ({"threshold": 0}, "thresholds lie in (0, 1], in ascending order; got [0]"),
    ({"components": "all"}, "no components 'all'"),
    ({"iou": ()}, "levels of IoU lie in (0, 1] and thresholds is a number of steps, at least 1; got [] and 100"),
    ({"iou": (30,)}, "got [30] and 100"),
    ({"thresholds": 0}, "got [0.3, 0.5, 0.7] and 0"),
]


@pytest.mark.parametrize(("choices", "message"), REFUSED)
def test_bad_settings_are_refused(choices, message):
    with pytest.raises(MetricError) as error:
        box_accuracy(**choices)
    assert message in str(error.value)


def test_volumes_and_missing_boxes_are_refused_word_for_word():
    with pytest.raises(MetricError) as error:
        box_iou_curve(MAP, MASKS, [], [0.5])
    assert str(error.value) == "box accuracy takes maps [N, H, W] and N times boxes [k, 4]; got [1, 3, 5] and boxes of 0"
    with pytest.raises(MetricError, match=r"got \[1, 1, 3, 5\]"):
        box_iou_curve(MAP[None], MASKS[None], BOXES, [0.5])


def test_a_run_takes_boxes_or_masks_and_pools_over_its_images():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    boxes = [torch.tensor([[2.0, 3.0, 9.0, 12.0], [4.0, 1.0, 15.0, 6.0]])] * 23 + [torch.zeros(0, 4)]
    metric = box_accuracy(iou=(0.3, 0.5), thresholds=20)
    choices: dict[str, Any] = {"layers": "0", "metrics": [metric, box_accuracy(name="v2")], "progress": False}
    whole, parts = (xaieval.score(net, [{"images": images, "boxes": boxes}], batch_size=size, **choices) for size in (24, 7))
    np.testing.assert_allclose(np.stack(whole.rows["box_accuracy_curve"][:23]), np.stack(parts.rows["box_accuracy_curve"][:23]))
    maps = xaieval.explain(net, images, "0")["0"]
    masks = torch.ones(24, 16, 16, dtype=torch.bool)
    expected = box_iou_curve(maps[:23], masks[:23], boxes[:23], [step / 20 for step in range(1, 21)]).numpy()
    np.testing.assert_allclose(np.stack(whole.rows["box_accuracy_curve"][:23]), expected, rtol=1e-4, atol=1e-3)
    table = whole.pooled("box_accuracy")
    found = table.loc[("0", "gradcam")]
    assert found["max_box_accuracy"] == pytest.approx(float(max_box_accuracy(expected, (0.3, 0.5))))
    assert found["max_box_accuracy_low"] <= found["max_box_accuracy"] <= found["max_box_accuracy_high"]
    assert found["max_box_accuracy_n"] == 23
    assert list(whole.pooled().columns[:2]) == ["box_accuracy_max_box_accuracy", "box_accuracy_max_box_accuracy_low"]
    with pytest.raises(MetricError, match="the run kept no curves"):  # over shares of pixels, which that figure draws
        whole.plot("curves")
    row = whole.summary().loc[("0", "gradcam")]
    assert row["box_accuracy_low"] <= row["box_accuracy"] <= row["box_accuracy_high"]
    # One box around a mask without boxes: of the union of two boxes it is the box around both.
    inside = torch.zeros(1, 16, 16, dtype=torch.bool)
    inside[0, 3:12, 2:9] = True
    by_mask, by_box = (
        xaieval.score(net, [{"images": images[:1], **truth}], **choices).rows
        for truth in ({"masks": inside}, {"boxes": boxes[:1][0][None, :1]})
    )
    np.testing.assert_allclose(by_mask["box_accuracy_curve"][0], by_box["box_accuracy_curve"][0])
