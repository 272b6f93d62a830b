"""Time of ROAD's imputation per image, compared with the sparse solver that pytorch-grad-cam calls on the same images and gaps.

    python benchmarks/imputation.py

prints the versions, and one line for each size and share of missing pixels: median CPU milliseconds per image, iterations until
the tolerance is reached, and the largest difference between the two. The gaps are blobs, as smooth as maps of a 7 x 7 layer.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from collections.abc import Callable

import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from torch import Tensor
from torch.nn import functional

from xaieval.errors import RunError
from xaieval.metrics import linear_imputation

IMAGES = 5


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "grad-cam", "scipy"))
    print(f"{IMAGES} images each, seed 0, one thread; {versions}")
    print(f"{'size':>5} {'missing':>8} {'ours, ms':>9} {'spsolve, ms':>12} {'rounds':>7} {'largest difference':>19}")
    for size in (128, 224):
        images, maps = _data(size)
        for share in (0.1, 0.5, 0.9):
            missing = maps > torch.quantile(maps.flatten(1), 1 - share, dim=1)[:, None, None]
            ours, imputed = _timed(lambda image, gaps: linear_imputation(image[None], gaps[None])[0], images, missing)
            theirs, expected = _timed(lambda image, gaps: NoisyLinearImputer(0)(image, 1 - gaps.float()), images, missing)
            apart = float((imputed - expected).abs().max())
            print(f"{size:>5} {share:>8} {ours:>9.1f} {theirs:>12.1f} {_rounds(images, missing):>7} {apart:>19.1e}")


def _data(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(IMAGES, 1, 7, 7, generator=generator)
    maps = functional.interpolate(rough, (size, size), mode="bilinear")[:, 0]
    colours = functional.interpolate(torch.randn(IMAGES, 3, 32, 32, generator=generator), (size, size), mode="bicubic")
    return colours, maps


def _timed(impute: Callable[[Tensor, Tensor], Tensor], images: Tensor, missing: Tensor) -> tuple[float, Tensor]:
    """Median milliseconds per image, and the imputed images."""
    times, imputed = [], []
    for image, gaps in zip(images, missing, strict=True):
        start = time.process_time()
        imputed.append(impute(image, gaps))
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times), torch.stack(imputed)


def _rounds(images: Tensor, missing: Tensor) -> int:
    """Number of iterations until the tolerance is reached."""
    for most in range(2, 100):
        try:
            linear_imputation(images, missing, most=most)
        except RunError:
            continue
        return most - 1  # the last one only checks
    return 100


if __name__ == "__main__":
    main()
