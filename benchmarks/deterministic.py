"""Cost of `deterministic=True`: its processor time as a ratio to the same run without it, measured in turn.

    OMP_NUM_THREADS=1 python benchmarks/deterministic.py --weights mobilenetv2_100_imagenet.safetensors

With one thread the ratio shows the cost of the arithmetic only. A run with k threads also loses its threads, and gets them
back with `--nproc k`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import timm
import torch
from safetensors.torch import load_file
from torch import nn

import xaieval


def models(weights: str | None) -> dict[str, tuple[nn.Module, int, str]]:
    """By name: the model, the side of its images in pixels, and its layers."""
    torch.manual_seed(0)
    mobilenet = timm.create_model("mobilenetv2_100", pad_type="same")
    if weights:
        mobilenet.load_state_dict(load_file(weights))
    return {
        "fpn-scenes": (xaieval.models.fpn_scenes(), 128, "fpn[*]"),
        "MobileNetV2": (mobilenet, 224, "blocks.*"),
        "ViT-Ti/16": (timm.create_model("vit_tiny_patch16_224"), 224, "auto"),
    }


def taken(work: Callable[[], object]) -> float:
    """Processor time of a call, in seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="weights of MobileNetV2; default: random ones, which take as long")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, threads {torch.get_num_threads()}, images {options.images}, rounds {options.rounds}")
    print("| model | layers | times as long [lowest, highest] |\n|---|---|---|")
    for name, (model, side, layers) in models(options.weights).items():
        images = torch.randn(options.images, 3, side, side, generator=torch.Generator().manual_seed(1))

        score = partial(xaieval.score, model, images.split(8), [layers], progress=False)
        count = len(score().manifest["run"]["layers"])  # and warms up
        ratios = [taken(partial(score, deterministic=True)) / taken(score) for _ in range(options.rounds)]
        print(f"| {name} | {count} | {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] |", flush=True)


if __name__ == "__main__":
    main()
