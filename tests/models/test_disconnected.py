"""The classifier with a head for each cell: cells do not see each other, and relevance elsewhere is found out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval.data import mosaics
from xaieval.errors import ModelError
from xaieval.models.disconnected import DisconnectedCells

CLASSES = 5


def _parts() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
    return features, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES))


@pytest.mark.parametrize("side", [2, 3])
def test_each_head_is_the_model_on_its_cell_and_sees_no_other(side):
    features, head = _parts()
    model = DisconnectedCells(features, head, side).eval()
    image = torch.randn(2, 3, 4 * side, 6 * side, requires_grad=True)
    scores = model(image)
    assert scores.shape == (2, side * side * CLASSES)
    for place in range(side * side):
        y, x = 4 * (place // side), 6 * (place % side)
        own = image[:, :, y : y + 4, x : x + 6]
        outputs = slice(place * CLASSES, place * CLASSES + CLASSES)
        torch.testing.assert_close(scores[:, outputs], head(features(own)))
        [gradient] = torch.autograd.grad(scores[:, outputs].sum(), image, retain_graph=True)
        assert gradient[:, :, y : y + 4, x : x + 6].abs().sum() > 0
        gradient[:, :, y : y + 4, x : x + 6] = 0
        assert gradient.abs().sum() == 0


def test_in_dipart_a_head_sees_its_part_of_the_features_and_neighbours_as_far_as_these_reach():
    features, head = _parts()
    model = DisconnectedCells(features, head, 2, partly=True).eval()
    image = torch.randn(2, 3, 8, 12, requires_grad=True)
    scores = model(image)
    maps = features(image)
    for place in range(4):
        y, x = 4 * (place // 2), 6 * (place % 2)
        outputs = slice(place * CLASSES, place * CLASSES + CLASSES)
        torch.testing.assert_close(scores[:, outputs], head(maps[:, :, y : y + 4, x : x + 6]))
        [gradient] = torch.autograd.grad(scores[:, outputs].sum(), image, retain_graph=True)
        reached = gradient.abs().sum(dim=(0, 1)) > 0
        near = torch.zeros_like(reached)
        near[max(0, y - 1) : y + 5, max(0, x - 1) : x + 7] = True  # a pixel more: the kernel is 3 x 3
        assert reached[near].all()
        assert not reached[~near].any()


def test_sides_that_cannot_be_cut_are_refused_word_for_word():
    with pytest.raises(ModelError) as error:
        DisconnectedCells(*_parts(), side=2)(torch.zeros(1, 3, 8, 7))
    assert str(error.value) == "mosaics of 2 x 2 cells have sides that are multiples of 2; got 8 x 7"


def test_difull_tells_a_gradient_from_a_map_that_does_not_know_the_head():
    def saliency(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        images = images.detach().requires_grad_()
        model(images).gather(1, targets[:, None]).sum().backward()
        return images.grad.abs().sum(dim=1)

    generator = torch.Generator().manual_seed(1)
    images = [(torch.rand(3, 8, 8, generator=generator), number % CLASSES) for number in range(20)]
    made = mosaics(images, size=3, heads=CLASSES)
    assert [made[number]["label"] for number in range(4)] == [
        place * CLASSES + cell.label for place, cell in enumerate(made.grids[0])
    ]
    protocol = xaieval.Protocol(target="label", confidence="sigmoid")
    scores = xaieval.score(
        DisconnectedCells(*_parts()).eval(), made.loader(6), "stitched", [saliency, "gradcam", "layercam"],
        metrics="relevance_mass_accuracy", protocol=protocol, progress=False,
    )  # fmt: skip
    found = scores.rows.groupby("method")["relevance_mass_accuracy"].mean()
    assert found["saliency"] == pytest.approx(100)
    assert found["gradcam"] < 60  # it weights all cells' activations alike, as Rao et al. find
