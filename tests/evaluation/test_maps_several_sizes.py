"""Images of several sizes in one loader, of which each batch has its own grid, and layouts that the user names."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import xaieval
from xaieval.errors import AddressError

VIT = {"img_size": 64, "num_classes": 4, "dynamic_img_size": True}


def _areas(model, loader, layer, **options):
    return xaieval.score(model, loader, layer, progress=False, **options).rows["mask_area"].to_numpy()


@pytest.mark.parametrize(
    ("model", "layer", "sizes", "options"),
    [
        (lambda: timm.create_model("test_vit", **VIT), "blocks.1", [(64, 64), (96, 64), (64, 96), (128, 96)], {}),
        (
            lambda: torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=4),
            "features.3",
            [(64, 64), (64, 96), (100, 72)],
            {},
        ),
        (
            lambda: torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
                weights=None,
                weights_backbone=None,
                num_classes=4,
                min_size=64,
                max_size=128,
                box_score_thresh=0.0,
                box_detections_per_img=3,
            ),
            "backbone.fpn[0]",
            [(64, 100), (100, 64)],
            {"task": "detection", "methods": "eigencam"},
        ),
    ],
    ids=["vit", "swin", "detector"],
)
def test_images_of_several_sizes_have_the_maps_that_they_have_alone(model, layer, sizes, options):
    torch.manual_seed(0)
    network = model().eval()
    batches = [torch.rand(2, 3, *size) for size in sizes]
    alone = np.concatenate([_areas(network, [batch], layer, **options) for batch in batches])
    np.testing.assert_allclose(_areas(network, batches, layer, **options), alone, atol=1e-5)
    together = _areas(network, batches[::-1], layer, **options)
    np.testing.assert_allclose(together.reshape(len(sizes), -1)[::-1].ravel(), alone, atol=1e-5)


class Linear(nn.Module):
    """Patches of 8 pixels without a convolution; `pooled` gives any image 16 tokens."""

    def __init__(self, pooled=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body, self.head = nn.Linear(192, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.pooled = pooled

    def forward(self, images):
        if self.pooled:
            images = nn.functional.interpolate(images, (32, 32))
        patches = nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
        return self.head(self.body(self.embed(patches)).mean(1))


@pytest.mark.parametrize("pooled", [False, True])
def test_grids_follow_images_or_not_without_any_map_to_read_them_from(pooled):
    model, batches = Linear(pooled).eval(), [torch.rand(1, 3, *size) for size in ((64, 64), (96, 48), (48, 96), (32, 32))]
    options = {"grid": (4, 4)} if pooled else {}
    alone = np.concatenate([_areas(model, [batch], "body", **options) for batch in batches])
    np.testing.assert_allclose(_areas(model, batches, "body"), alone, atol=1e-6)


def test_tokens_that_fit_no_grid_of_a_later_batch_say_so():
    class Odd(Linear):
        def forward(self, images):
            patches = nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
            return self.head(self.body(self.embed(patches[:, : len(patches[0]) - (images.shape[2] > 64)])).mean(1))

    with pytest.raises(AddressError, match=r"returns \[1, 95, 16\] for images of 96 x 64, and its grid of 8 x 8 on the first"):
        _areas(Odd().eval(), [torch.rand(1, 3, 64, 64), torch.rand(1, 3, 96, 64)], "body")


@pytest.mark.parametrize("pooled", [False, True])
def test_as_many_tokens_for_images_of_another_shape_are_refused_without_any_map(pooled):
    options = {"grid": (4, 4)} if pooled else {}
    with pytest.raises(AddressError, match="does not say which grid that is"):
        _areas(Linear(pooled).eval(), [torch.rand(1, 3, 64, 64), torch.rand(1, 3, 32, 128)], "body", **options)


class Views(nn.Module):
    """Three views of each image, folded into the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, images):
        views = torch.stack([images, images.flip(3), images * 0.5], dim=1).flatten(0, 1)
        pooled = self.features(views).mean((2, 3)).unflatten(0, (-1, 3))
        return self.head(pooled.mean(1))


@pytest.mark.parametrize(
    "layout", ["N*V C h w", {"features": "(N V) C h w"}, lambda tensor: tensor.unflatten(0, (-1, 3)).flatten(1, 2)]
)
def test_a_grad_cam_of_views_is_the_sum_of_theirs(layout):
    model, images = Views().eval(), torch.rand(2, 3, 32, 32)
    with pytest.raises(AddressError, match="its output is"):
        xaieval.explain(model, images, "features")
    found = xaieval.explain(model, images, "features", layout=layout, target=1)["features"]

    kept = []
    handle = model.features.register_forward_hook(lambda *args: kept.append(args[2]))
    logits = model(images)
    handle.remove()
    gradient = torch.autograd.grad(logits[:, 1].sum(), kept[0])[0]
    cams = (gradient.mean((2, 3), keepdim=True) * kept[0].detach()).sum(1).view(2, 3, 8, 8).sum(1).clamp(min=0)
    maps = nn.functional.interpolate(cams[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    torch.testing.assert_close(found, (maps - low) / (high - low), atol=1e-4, rtol=0)


def test_layouts_work_with_batches_of_any_length_and_are_in_the_manifest():
    model = Views().eval()
    batches = [torch.rand(n, 3, *size) for n, size in ((2, (32, 32)), (3, (32, 32)), (1, (48, 32)))]
    scores = xaieval.score(model, batches, "features", layout="N*V C h w", progress=False)
    assert (scores.rows["status"] == "ok").all()
    assert scores.manifest["run"]["layout"] == "N*V C h w"
    assert "layout" not in xaieval.score(model, batches, methods="random", progress=False).manifest["run"]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("N C h w", r"layout='N C h w' does not fit layer 'features', whose output is \[6, 6, 8, 8\] for 2 images of 32 x 32"),
        (lambda tensor: tensor, r"the function layout= has to turn the output \[6, 6, 8, 8\] of layer 'features'"),
        ({"feature": "N C h w"}, "no layer 'feature'; did you mean 'features'"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(layout, message):
    with pytest.raises(AddressError, match=message):
        xaieval.explain(Views().eval(), torch.rand(2, 3, 32, 32), "features", layout=layout)


def test_ablation_needs_the_images_first():
    with pytest.raises(xaieval.XaievalError, match="method 'ablation-cam' sets channels of single images to zero"):
        xaieval.explain(Views().eval(), torch.rand(2, 3, 32, 32), "features", "ablation-cam", layout="N*V C h w")
