"""Recipro-CAM equals loops over cells that run the rest of the model by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import xaieval
from xaieval.errors import ExplainerError
from xaieval.explainers import Context
from xaieval.explainers.recipro_cam import ReciproCAM
from xaieval.probe.hooks import locate, run

TARGETS = [2, 0]
GAUSSIAN = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


def network() -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(5, 4, 2), nn.Flatten(), nn.Linear(24, 3)]
    return nn.Sequential(*layers).eval()


def context_of(model: nn.Module, images: Tensor, layer: str, size: int = 4) -> Context:
    located = locate(model, images, [layer])
    passed = run(model, images, located)
    ids = [str(number) for number in range(len(images))]
    return Context(
        model,
        images,
        torch.tensor(TARGETS),
        None,
        ids,
        layer=layer,
        activation=passed.activations[layer],
        layout=passed.layouts[layer],
        size=size,
    )


def mask_of(row: int, column: int, height: int, width: int, gaussian: bool) -> Tensor:
    mask = torch.zeros(height + 2, width + 2)
    if gaussian:
        mask[row : row + 3, column : column + 3] = GAUSSIAN
    else:
        mask[row + 1, column + 1] = 1
    return mask[1:-1, 1:-1]


@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("kept", ["cell", "gaussian"])
@pytest.mark.parametrize("wanted", ["confidence", "score"])
def test_maps_equal_a_loop_over_cells(kept, wanted, expand):
    model, images = network(), torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    features, head = model[:3], model[3:]
    expected = torch.zeros(2, 3, 4)
    with torch.no_grad():
        for number, (image, target) in enumerate(zip(images, TARGETS, strict=True)):
            for row in range(3):
                for column in range(4):
                    logits = head(features(image[None]) * mask_of(row, column, 3, 4, kept == "gaussian"))[0]
                    expected[number, row, column] = (logits.softmax(dim=0) if wanted == "confidence" else logits)[target]
    for size in (1, 5, 64):
        maps = ReciproCAM(kept, wanted, expand)(context_of(model, images, "2", size))
        torch.testing.assert_close(maps, expected)
    assert not any(module._forward_hooks for module in model.modules())


def test_cells_of_tokens_are_kept_with_the_class_token():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    maps = ReciproCAM(wanted="score")(context_of(model, images, "blocks.3", 16))
    cells = maps.shape[1] * maps.shape[2]
    expected = []
    with torch.no_grad():
        for image, target in zip(images, TARGETS, strict=True):
            tokens = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))
            for block in model.blocks[:4]:
                tokens = block(tokens)
            for cell in range(cells):
                kept = torch.zeros_like(tokens)
                for token in (0, cell + 1):
                    kept[:, token] = tokens[:, token]
                for block in model.blocks[4:]:
                    kept = block(kept)
                expected.append(model.forward_head(model.norm(kept))[0, target])
    torch.testing.assert_close(maps.flatten(), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_cell_that_decides_is_the_highest():
    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            seen = self.layer(images)[:, 0, 1, 2]
            return torch.stack([seen, -seen], dim=1)

    maps = xaieval.explain(Corner(), torch.ones(1, 1, 3, 4), "layer", "recipro-cam", target=0)["layer"][0]
    expected = torch.zeros(3, 4)
    expected[1, 2] = 1
    torch.testing.assert_close(maps, expected)


def test_bad_input_is_refused_in_one_line():
    with pytest.raises(ExplainerError, match="kept is one of cell, gaussian, got 'disc'"):
        ReciproCAM("disc")
    with pytest.raises(ExplainerError, match="wanted is one of score, confidence, got 'logit'"):
        ReciproCAM(wanted="logit")
    volumes = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    assert xaieval.explain(volumes, torch.rand(1, 1, 4, 4, 4), "0", "recipro-cam")["0"].shape == (1, 4, 4, 4)
    with pytest.raises(ExplainerError, match=r"kept='gaussian' explains images, and the layer is \[4, 4, 4\]"):
        xaieval.explain(volumes, torch.rand(1, 1, 4, 4, 4), "0", ReciproCAM("gaussian"))
