"""What the check of the first batch finds, what it says for nothing, and what it costs: the tables of docs/checks.md.

    python benchmarks/model_check.py normalisations --weights FILE --data ucmerced:DIR
    python benchmarks/model_check.py false-alarms --data ucmerced:DIR
    python benchmarks/model_check.py cost

The first command gives MobileNetV2 with ImageNet weights (trained on mean 0.5 and std 0.5) images in five normalisations and
both orders of colours. The second checks architectures of timm on images in the right normalisation and in a wrong one. There
are no trained weights of all of them here, so each is made like a trained network: random weights with noise on every
parameter, the stored statistics of its BatchNorms from the images in the right normalisation, and logits scaled to a spread of
2.5. The third measures what the check adds to a run.
"""

from __future__ import annotations

import platform
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest import mock

import cyclopts
import timm
import torch
from torch import Tensor, nn

import xaieval
from xaieval.data import Preprocessing, load_data, scenes
from xaieval.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from xaieval.evaluation import loop
from xaieval.evaluation.model_check import ModelCheck
from xaieval.models import load_model

PLAIN, HALF = ((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3)
IMAGENET, BYTES = (IMAGENET_MEAN, IMAGENET_STD), ((0.0,) * 3, (1 / 255,) * 3)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
WAYS = {"mean 0.5, std 0.5": HALF, "ImageNet": IMAGENET, "CLIP": CLIP, "none, [0, 1]": PLAIN, "0 to 255": BYTES}

ARCHITECTURES = (
    *("resnet18", "resnet26d", "mobilenetv3_small_050", "efficientnet_b0", "regnetx_002", "lcnet_050", "mnasnet_small"),
    *("ghostnet_050", "tinynet_e", "repvgg_a0", "mobilevit_xxs", "efficientvit_b0", "levit_128s", "convnext_atto"),
    *("edgenext_xx_small", "mambaout_femto", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "pvt_v2_b0"),
    "xcit_nano_12_p16_224",
)

app = cyclopts.App(help=__doc__)


def batches(data: str, count: int, mean: tuple[float, ...], std: tuple[float, ...]) -> list[Tensor]:
    """Images of 224 x 224 pixels, spread over the classes."""
    prepared = replace(Preprocessing(224, 256), mean=mean, std=std)
    return [batch["image"] for batch in load_data(data, prepared, 32, count).loader]


def names(model: nn.Module, images: list[Tensor], forward: Callable[..., Tensor] | None = None) -> dict[str, dict]:
    """The findings by name, with their evidence."""
    return {found.name: dict(found.evidence) for found in xaieval.check(model, images, forward=forward).findings()}


@app.command
def normalisations(weights: Path, data: str, images: int = 32) -> None:
    """Print what is found in each normalisation, and how far the images are from the training images at the first BatchNorm."""
    headings = ("images come with", "blue first", "found", "best", "variance ratio", "with the best", "confidence", "then")
    print(f"| {' | '.join(headings)} |")
    print(f"|{'---|' * len(headings)}")
    model = load_model("timm:mobilenetv2_100", str(weights), model_args={"pad_type": "same"}).model
    keys = ("variance_ratio", "best_variance_ratio", "mean_confidence", "best_mean_confidence")
    for way, (mean, std) in WAYS.items():
        for swapped in (False, True):
            batch = [batch.flip(1) if swapped else batch for batch in batches(data, images, mean, std)]
            found = names(model, batch)
            evidence = found.get("wrong_normalisation", {})
            numbers = [f"{evidence[key]:.2g}" if key in evidence else "" for key in keys]
            cells = (way, "yes" if swapped else "", ", ".join(found) or "nothing", evidence.get("best", ""))
            print(f"| {' | '.join([*cells, *numbers])} |", flush=True)


def like_trained(name: str, images: Tensor) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    """A network like a trained one, and the function that runs it with scaled logits."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.05 * parameter.std()))
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = None  # the mean over the batches
            norm.train()
        for module in model.modules():
            module.training = module in norms
        model(images)
        model.eval()
        logits = model(images)
    mean, spread = logits.mean(dim=0), (logits - logits.mean(dim=0)).std()
    return model, lambda net, batch: (net(batch) - mean) / spread * 2.5


@app.command
def false_alarms(data: str, images: int = 24) -> None:
    """Print what is found in the right normalisation, which should be nothing, and in a wrong one."""
    print("| architecture | BatchNorms | right | found | wrong | found |")
    print("|---|---|---|---|---|---|")
    for row in _alarms(data, images):
        print(f"| {' | '.join(row)} |", flush=True)


def _alarms(data: str, count: int) -> Iterator[list[str]]:
    for name in ARCHITECTURES:
        ways = ["mean 0.5, std 0.5", "ImageNet"]
        right, wrong = ways if zlib.crc32(name.encode()) % 2 else ways[::-1]
        [first] = batches(data, count, *WAYS[right])
        model, forward = like_trained(name, first)
        found = names(model, [first], forward)
        other = names(model, batches(data, count, *WAYS[wrong]), forward)
        norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        yield [name, str(norms), right, ", ".join(found) or "nothing", wrong, ", ".join(other) or "nothing"]


@app.command
def cost(images: int = 128, repeats: int = 5) -> None:
    """Print the images that the check runs beyond those of a run, and the time of a run with it and without it."""
    prepared = Preprocessing(128, 128, mean=HALF[0], std=HALF[1])
    loader = [batch["image"] for batch in scenes(prepared, size=images).loader(32)]
    model, passed = xaieval.models.fpn_scenes(), []
    model.head.register_forward_hook(lambda module, inputs, output: passed.append(len(output)))
    counts, ratios = [], []
    for _ in range(repeats):
        times = []
        for checked in (True, False):
            with mock.patch.object(loop, "check_model", loop.check_model if checked else lambda *_: ModelCheck()):
                passed.clear()
                start = time.perf_counter()
                xaieval.score(model, loader, "fpn[*]", progress=False)
                times.append(time.perf_counter() - start)
                counts.append(sum(passed))
        ratios.append(times[0] / times[1])
    extra = (counts[0] - counts[1]) / len(loader[0])
    print(f"{extra:.2f} passes of the first batch of {len(loader[0])} images")
    print(f"time with the check / without, {images} images, four layers: median {median(ratios):.3f} of {repeats}", end="")
    print(f" ({min(ratios):.3f} to {max(ratios):.3f}); {processor()}")


def processor() -> str:
    """The name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    app()
