"""SAM by points: the mask is that of the model's own call, its score a mean over the mask of the original image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import xaieval
from xaieval.errors import ModelError, TargetError
from xaieval.models import PromptedMask
from xaieval.probe.hooks import probe

SIDE = 64
POINTS, LABELS = [(20.0, 30.0), (50.0, 10.0)], [1, 0]


def _sam() -> Any:
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    shape |= {"mlp_dim": 32, "window_size": 4, "global_attn_indexes": [1, 3], "output_channels": 16, "num_pos_feats": 8}
    prompts = {"hidden_size": 16, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 4}
    return transformers.SamModel(
        transformers.SamConfig(vision_config=shape, prompt_encoder_config=prompts, mask_decoder_config=_decoder())
    )


def _sam2() -> Any:
    backbone = {
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [SIDE, SIDE],
        "window_positional_embedding_background_size": [4, 4],
    }
    backbone |= {"blocks_per_stage": [1, 2, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64], "global_attention_blocks": [4]}
    backbone |= {"num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 2, 4, 2]}
    seen = transformers.Sam2VisionConfig(
        backbone_config=transformers.Sam2HieraDetConfig(**backbone),
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    prompts = {"hidden_size": 16, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
    return transformers.Sam2Model(
        transformers.Sam2Config(vision_config=seen, prompt_encoder_config=prompts, mask_decoder_config=_decoder())
    )


def _decoder() -> dict[str, int]:
    return {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}


@pytest.fixture(scope="module", params=[_sam, _sam2])
def sam(request) -> Any:
    """A small SAM whose random weights make masks of some pixels."""
    torch.manual_seed(0)
    model = request.param().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mask_decoder" in name and parameter.ndim > 1:
                parameter.mul_(8)
    return model


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("mask", [None, 0, 2])
def test_masks_are_those_of_the_models_own_call(sam, images, mask):
    with torch.no_grad():
        found = PromptedMask(sam, POINTS, LABELS, mask)(images)
        for number, image in enumerate(images):
            output = sam(
                pixel_values=image[None],
                input_points=torch.tensor([[POINTS]]),
                input_labels=torch.tensor([[LABELS]]),
                multimask_output=mask is not None,
            )
            torch.testing.assert_close(found[number, 0], output.pred_masks[0, 0, mask or 0], rtol=1e-4, atol=1e-5)


def test_the_score_is_the_mean_over_the_mask_of_the_original_image(sam, images):
    model = PromptedMask(sam, POINTS[:1], mask=1)
    protocol = xaieval.Protocol(masking="soft", fill="zero")
    scores = xaieval.score(model, [images], methods="center", task="segmentation", protocol=protocol, progress=False)
    center = xaieval.explain(model, images, method="center", task="segmentation")["input"]
    with torch.no_grad():
        before, after = (model(given)[:, 0].double().numpy() for given in (images, images * center[:, None]))
    for number, row in enumerate(scores.rows.to_dict("records")):
        inside = before[number] > 0
        assert 0 < inside.sum() < inside.size, "the mask has pixels, and not all"
        sure = [float(np.mean(1 / (1 + np.exp(-logits[number][inside])))) for logits in (before, after)]
        assert row["confidence"] == pytest.approx(sure[0], abs=1e-5)
        assert row["average_drop"] == pytest.approx(100 * max(0.0, (sure[0] - sure[1]) / sure[0]), abs=1e-2)


def test_auto_takes_the_vision_encoder_the_right_way_up(sam, images):
    model = PromptedMask(sam, POINTS[:1]).eval()
    layers = list(xaieval.explain(model, images, "auto", task="segmentation"))
    assert len(layers) > 2
    assert all(layer.startswith("model.vision_encoder") for layer in layers)
    plain = torch.full((2, 3, SIDE, SIDE), 0.4)
    plain[1, :, :16, 32:] = 1.0  # above, in the right half
    seen = probe(model, plain, layers).activations
    for layer, maps in seen.items():
        changed = (maps[1] - maps[0]).abs().mean(dim=0)
        height, width = changed.shape
        assert height == width
        assert changed[: height // 2, width // 2 :].sum() > 1.2 * changed[height // 2 :, : width // 2].sum(), layer
        assert changed[: height // 2].sum() > changed[height // 2 :].sum(), layer
        assert changed[:, width // 2 :].sum() > changed[:, : width // 2].sum(), layer


def test_another_mask_is_another_run(sam, images, tmp_path):
    settings = {"methods": "center", "task": "segmentation", "progress": False, "output_dir": tmp_path}
    xaieval.score(PromptedMask(sam, POINTS[:1], mask=1), [images], **settings)
    with pytest.raises(xaieval.XaievalError, match=r"its mask is 1, this run's is 2"):
        xaieval.score(PromptedMask(sam, POINTS[:1], mask=2), [images], **settings)


@pytest.mark.parametrize(
    ("points", "labels", "mask", "message"),
    [
        ([], None, None, r"points are \(x, y\) in pixels, one or more, \[P, 2\]; got \[\]"),
        ([(1, 2, 3)], None, None, r"points are \(x, y\)"),
        ([(-1, 2)], None, None, r"points are \(x, y\)"),
        (POINTS, [1], None, r"one for each of 2 points; got \[1\]"),
        (POINTS, [1, 2], None, r"labels are 1 \(on the object\) or 0 \(beside it\).* got \[1, 2\]"),
        (POINTS, None, 3, "mask is one of 3, 0 to 2, or None for the single one; got 3"),
    ],
)
def test_wrong_prompts_are_refused(sam, points, labels, mask, message):
    with pytest.raises(TargetError, match=message):
        PromptedMask(sam, points, labels, mask)


def test_points_outside_and_models_without_points_are_refused(sam, images):
    with pytest.raises(TargetError, match=r"the point \(20\.0, 64\.0\) is outside the images of 64 x 64 pixels"):
        PromptedMask(sam, [(20, 64)])(images)
    with pytest.raises(ModelError, match="a Conv2d takes no input_points; a SamModel or Sam2Model is expected"):
        PromptedMask(nn.Conv2d(3, 1, 3), POINTS)
