"""Check that layers are found and maps are oriented correctly in the architectures of timm, torchvision and ultralytics.

    python benchmarks/architectures.py [FILE]

writes `benchmarks/architectures.csv` (or FILE). For each model with random weights: how many layers `list_layers` lists, which
ones `layers="auto"` selects, the layout of their outputs, and whether a bright square in each quarter of the image changes the
outputs in that quarter. The check needs no training and no gradients: a flipped, rotated or transposed map shows the squares
elsewhere. Takes some minutes on one core; models that are already in the file are skipped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from xaieval import explain, list_layers
from xaieval.inference.borrowing import borrow
from xaieval.inference.forward_passes import called
from xaieval.inference.options import Inference
from xaieval.inference.queries import with_known_output
from xaieval.inference.tasks import predicted_score, resolve_task
from xaieval.models import load_model
from xaieval.probe.hooks import locate, run
from xaieval.probe.layouts import Layout

SQUARE, WIDE, LARGE = (64, 64), (64, 96), (128, 192)
QUARTERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


@dataclass(frozen=True)
class Case:
    """A model to check.

    Attributes:
        name: "timm:NAME", "torchvision:NAME", "features:NAME" for a timm backbone that returns its stages, with a head, or
            "ultralytics:NAME", a detector that reports every box.
        size: Height and width of the images.
        arguments: Arguments of the model's constructor.
        quick: Whether the tests check the model too.
    """

    name: str
    size: tuple[int, int] = WIDE
    arguments: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False


def _quick(name: str, size: tuple[int, int] = WIDE, **arguments: Any) -> Case:
    return Case(name, size, arguments, quick=True)


def _case(name: str, size: tuple[int, int] = WIDE, **arguments: Any) -> Case:
    return Case(name, size, arguments)


BIG = (224, 224)
NARROW = {"embed_dim": 48, "num_heads": 3}

CASES = [
    # convolutional networks, which take any size
    _quick("timm:resnet18"),
    _case("timm:resnet26d"),
    _case("timm:resnet50"),
    _case("timm:resnetv2_50"),
    _case("timm:resnest14d"),
    _case("timm:seresnext26d_32x4d"),
    _case("timm:res2net50_26w_4s"),
    _case("timm:wide_resnet50_2"),
    _quick("timm:mobilenetv2_050", LARGE),
    _quick("timm:mobilenetv3_small_050", LARGE),
    _case("timm:mobilenetv4_conv_small", LARGE),
    _quick("timm:efficientnet_b0", LARGE),
    _case("timm:tf_efficientnetv2_b0", LARGE),
    _case("timm:tinynet_e", LARGE),
    _case("timm:mnasnet_small", LARGE),
    _case("timm:ghostnet_050", LARGE),
    _case("timm:repvgg_a0", LARGE),
    _quick("timm:regnetx_002"),
    _case("timm:regnety_002"),
    _quick("timm:densenet121"),
    _quick("timm:convnext_atto"),
    _case("timm:convnextv2_atto"),
    _case("timm:inception_next_tiny"),
    _case("timm:inception_v3", (128, 160)),
    _case("timm:xception41", LARGE),
    _case("timm:dla34"),
    _quick("timm:hrnet_w18_small"),
    _case("timm:cspresnet50"),
    _case("timm:darknet53"),
    _case("timm:nf_resnet26"),
    _case("timm:lcnet_050", LARGE),
    _case("timm:rexnet_100", LARGE),
    _case("timm:edgenext_xx_small"),
    _case("timm:mambaout_femto"),
    # vision transformers
    _quick("timm:vit_tiny_patch16_224", img_size=WIDE),
    _quick("timm:vit_tiny_patch16_224", img_size=WIDE, global_pool="avg", class_token=False),
    _quick("timm:deit_tiny_distilled_patch16_224", img_size=WIDE),
    _case("timm:deit3_small_patch16_224", img_size=WIDE),
    _case("timm:vit_small_patch14_reg4_dinov2", (112, 168), img_size=(112, 168)),
    _case("timm:vit_relpos_small_patch16_224", SQUARE, img_size=64),
    _quick("timm:beit_base_patch16_224", img_size=WIDE, **NARROW),
    _quick("timm:eva02_tiny_patch14_224", (56, 84), img_size=(56, 84)),
    _quick("timm:cait_xxs24_224", SQUARE, img_size=64),
    _quick("timm:xcit_nano_12_p16_224", WIDE, img_size=WIDE),
    _case("timm:crossvit_9_240", (240, 240)),
    _case("timm:tnt_s_legacy_patch16_224", BIG),
    _case("timm:volo_d1_224", BIG),
    _case("timm:pit_ti_224", BIG),
    _case("timm:convit_tiny", BIG),
    _case("timm:samvit_base_patch16_224", BIG, depth=4, global_attn_indexes=(1, 3), **NARROW),
    _quick("timm:vit_tiny_r_s16_p8_224", SQUARE, img_size=64),
    # windows, pyramids, hybrids, mixers
    _quick("timm:swin_tiny_patch4_window7_224", (64, 128), img_size=(64, 128), window_size=2),
    _quick("timm:swinv2_tiny_window8_256", (64, 128), img_size=(64, 128), window_size=2),
    _case("timm:swin_s3_tiny_224", BIG),
    _quick("timm:pvt_v2_b0"),
    _case("timm:twins_svt_small", (128, 128), img_size=128),
    _quick("timm:coat_lite_tiny", SQUARE, img_size=64),
    _case("timm:coat_tiny", SQUARE, img_size=64),
    _quick("timm:levit_128s", BIG),
    _quick("timm:mobilevit_xxs", (64, 128)),
    _case("timm:mobilevitv2_050", LARGE),
    _quick("timm:efficientformer_l1", BIG),
    _case("timm:efficientformerv2_s0", BIG),
    _case("timm:efficientvit_b0", LARGE),
    _case("timm:efficientvit_m0", BIG),
    _quick("timm:maxvit_rmlp_pico_rw_256", (128, 128), img_size=128),
    _case("timm:coatnet_nano_rw_224", BIG),
    _case("timm:poolformer_s12"),
    _case("timm:caformer_s18"),
    _case("timm:fastvit_t8"),
    _case("timm:repvit_m1"),
    _case("timm:mvitv2_tiny", BIG),
    _case("timm:nest_tiny", BIG),
    _case("timm:gcvit_xxtiny", BIG),
    _case("timm:davit_tiny", (64, 128)),
    _case("timm:hiera_tiny_224", BIG),
    _case("timm:tiny_vit_5m_224", BIG),
    _case("timm:focalnet_tiny_srf"),
    _quick("timm:mixer_s32_224", (128, 128), img_size=128),
    _case("timm:resmlp_12_224", BIG),
    _case("timm:gmlp_ti16_224", BIG),
    # backbones that return their stages
    _quick("features:resnet18"),
    _quick("features:convnext_atto"),
    _case("features:swin_tiny_patch4_window7_224", (64, 128), img_size=(64, 128), window_size=2),
    _case("features:vit_tiny_patch16_224", WIDE, img_size=WIDE),
    # torchvision
    _quick("torchvision:resnet18"),
    _quick("torchvision:mobilenet_v2", LARGE),
    _case("torchvision:mobilenet_v3_small", LARGE),
    _case("torchvision:efficientnet_b0", LARGE),
    _case("torchvision:regnet_y_400mf"),
    _case("torchvision:densenet121"),
    _case("torchvision:convnext_tiny"),
    _case("torchvision:shufflenet_v2_x0_5", LARGE),
    _quick("torchvision:squeezenet1_1"),
    _case("torchvision:mnasnet0_5", LARGE),
    _case("torchvision:googlenet", (128, 160), init_weights=False),
    _case("torchvision:alexnet", (128, 160)),
    _quick("torchvision:vgg11", init_weights=False),
    _case("torchvision:vit_b_16", SQUARE, image_size=64),
    _case("torchvision:swin_t", (64, 128)),
    _case("torchvision:swin_v2_t", (64, 128)),
    _case("torchvision:maxvit_t", BIG, input_size=(224, 224)),
    # detectors of ultralytics, whose neck has strides of 8, 16 and 32
    _case("ultralytics:yolov5n", LARGE, conf=0.0),
    _quick("ultralytics:yolov8n", LARGE, conf=0.0),
    _case("ultralytics:yolov9t", LARGE, conf=0.0),
    _case("ultralytics:yolov10n", LARGE, conf=0.0),
    _case("ultralytics:yolo11n", LARGE, conf=0.0),
    _case("ultralytics:yolo12n", LARGE, conf=0.0),
    _case("ultralytics:yolo26n", LARGE, conf=0.0),
    _case("ultralytics:yolo11n-seg", LARGE, conf=0.0),
]


class Headed(nn.Module):
    """A backbone that returns a list of feature maps, with a classifier on the last one."""

    def __init__(self, backbone: nn.Module, channels: int, channels_last: bool) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(channels, 10)
        self.axes = (1, 2) if channels_last else (2, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, 10]`."""
        logits: Tensor = self.head(self.backbone(images)[-1].mean(dim=self.axes))
        return logits


def build(case: Case) -> nn.Module:
    """The model of a case, with random weights from a fixed seed."""
    torch.manual_seed(0)
    kind, name = case.name.split(":")
    if kind == "torchvision":
        model: nn.Module = torchvision.models.get_model(name, weights=None, **case.arguments)
    elif kind == "ultralytics":
        model = load_model(f"{case.name}.yaml", model_args=case.arguments).model
    elif kind == "timm":
        model = timm.create_model(name, **case.arguments)
    else:
        backbone = timm.create_model(name, features_only=True, **case.arguments)
        model = Headed(backbone, backbone.feature_info.channels()[-1], "swin" in name)
    return normalised(model.eval(), case.size)


def normalised(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Set the BatchNorm statistics to the model's activations; otherwise deep layers would hardly depend on the image."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(planted(size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def planted(size: tuple[int, int]) -> Tensor:
    """An image of faint noise, and copies with a square in the middle of each quarter, in two textures: `[9, 3, H, W]`."""
    height, width = size
    generator = torch.Generator().manual_seed(1)
    images = 0.1 * torch.randn(1, 3, height, width, generator=generator).repeat(9, 1, 1, 1)
    textures = 1 + 2 * torch.randn(2, 3, height // 4, width // 4, generator=generator)
    for number, image in enumerate(images[1:]):
        down, right = QUARTERS[number // 2]
        top, left = height * (1 + 4 * down) // 8, width * (1 + 4 * right) // 8
        image[:, top : top + height // 4, left : left + width // 4] += textures[number % 2]
    return images


def is_upright(activation: Tensor) -> bool:
    """Whether a layer's output `[9, C, h, w]` for `planted` images changes in the quarters where the squares are.

    The changes of the quarters are matched to the squares in all 24 orders, and the true order must fit best. Logarithms
    remove the effect of a quarter that always changes most. The location of the peak alone would not do: deep layers see the
    whole image, and their outputs peak beside the square.
    """
    moved = (activation[1:] - activation[:1]).double().square().sum(dim=1).unflatten(0, (4, 2)).mean(dim=1)
    shares = functional.adaptive_avg_pool2d(moved[:, None], 2).flatten(1).log()
    fits = {order: sum(shares[i, at].item() for i, at in enumerate(order)) for order in permutations(range(4))}
    return max(fits, key=lambda order: fits[order]) == (0, 1, 2, 3)


def line(row: dict[str, Any]) -> str:
    """A row of the table in docs/models.md."""
    options = f" ({row['options']})" if row["options"] else ""
    upright = "yes" if row["upright"] else row["reason"]
    layers = ", ".join(f"`{layer}`" for layer in row["auto"].split())
    kinds = ", ".join(dict.fromkeys(layout.split(":")[0].replace("_", " ") for layout in row["layouts"].split()))
    return f"| `{row['model']}`{options} | {row['image']} | {row['listed']:g} | {layers} | {kinds} | {upright} |"


def examine(case: Case) -> dict[str, Any]:
    """The columns that need the model."""
    model, images = build(case), planted(case.size)
    task = resolve_task("detection" if case.name.startswith("ultralytics:") else "classification")
    call = called(model, with_known_output(Inference(), task, model)[0].forward)
    listing = list_layers(model, images[:1])
    with borrow(model):
        located = locate(model, images, ["auto"], forward=call, score=partial(predicted_score, task))
        with torch.no_grad():
            outputs = run(model, images, located, differentiable=False).activations
    wrong = [address for address, activation in outputs.items() if not is_upright(activation)]
    maps = explain(model, images[:2], list(outputs), task=task)
    assert all(one.shape == (2, *case.size) and one.isfinite().all() for one in maps.values())
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "listed": len(listing),
        "auto": " ".join(outputs),
        "layouts": " ".join(_described(at.layout) for at in located),
        "upright": not wrong,
        "reason": f"moves elsewhere: {' '.join(wrong)}" if wrong else "",
    }


def _described(layout: Layout) -> str:
    return f"{layout.kind}:{'x'.join(map(str, layout.size))}+{layout.prefix}"


def describe(case: Case) -> dict[str, Any]:
    """The columns that identify a case."""
    options = " ".join(f"{name}={value}" for name, value in case.arguments.items())
    return {"model": case.name, "options": options, "image": "x".join(map(str, case.size))}


def main(file: Path) -> None:
    """Check all models that are not in the file yet; a model that fails has the reason in its row."""
    before = pd.read_csv(file, keep_default_na=False).to_dict("records") if file.exists() else []
    rows = []
    for case in CASES:
        start, key = time.perf_counter(), describe(case)
        row = next((row for row in before if key.items() <= row.items()), None)
        if row is None:
            try:
                row = key | examine(case)
            except Exception as error:  # a model can raise anything
                row = key | {"upright": False, "reason": f"{type(error).__name__}: {str(error)[:200]!r}"}
            print(f"{time.perf_counter() - start:5.1f} s  {row['model']}: {row.get('auto', '')} {row['reason']}", flush=True)
        rows.append(row)
        pd.DataFrame(rows).to_csv(file, index=False)
    print(f"{sum(row['upright'] for row in rows)} of {len(rows)} upright")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".csv"))
