"""Fixed cost of a call, cost and gain of compiling, and the number of images from which compiling pays off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from networks import METHODS, Batches, Network, Scale
from peer_loops import available_variants, ours
from record import replace_rows
from timing import spread

__all__ = ["compiling"]

LAYERS = 4
SIZE = 8


def compiling(network: Network, scale: Scale, out: Path) -> None:
    """Time two compiled calls between two eager ones, at four layers and one method."""
    size, count = (2, 16) if scale.quick else (SIZE, 64)
    batches = network.batches(count, size)
    kinds = ["eager", *["compile"] * 2 * ("compile" in available_variants()), "eager"]
    calls = [_call(network, batches, kind) for kind in kinds]
    eager = min((calls[0], calls[-1]), key=lambda call: call["steady"])
    rows = [
        {"call": number, "variant": kind, **_row(network, kind, call, eager, size, count)}
        for number, (kind, call) in enumerate(zip(kinds, calls, strict=True))
    ]
    replace_rows(out / "calls.csv", rows, ("model",))


def _call(network: Network, batches: Batches, variant: str) -> dict[str, Any]:
    """One call, with the seconds between requests for batches."""
    times: list[float] = []

    def stamped() -> Iterator[Any]:
        for batch in batches:
            times.append(time.perf_counter())
            yield batch
        times.append(time.perf_counter())

    start = time.perf_counter()
    ours(network, stamped(), network.layers(LAYERS), METHODS[:1], **available_variants()[variant])  # type: ignore[arg-type]  # keywords of several kinds
    total = time.perf_counter() - start
    later = np.diff(times)[len(batches) // 2 :]  # the first half may still compile
    return {
        "total": total,
        "later": later,
        "steady": float(np.median(later)),
        "overhead": total - len(batches) * np.median(later),
    }


def _row(network: Network, variant: str, call: dict[str, Any], eager: dict[str, Any], size: int, count: int) -> dict[str, Any]:
    """One row; at the break-even number of images, the time saved equals the extra time before the steady rate."""
    saved = (eager["steady"] - call["steady"]) / size
    extra = call["overhead"] - eager["overhead"]
    return {
        "model": network.name,
        "layers": LAYERS,
        "methods": 1,
        "batch_size": size,
        "n_images": count,
        "seconds": call["total"],
        "overhead_seconds": call["overhead"],
        **spread(call["later"] / size, "steady_seconds_an_image"),
        "faster_than_eager": eager["steady"] / call["steady"],
        "break_even_images": extra / saved if variant != "eager" and saved > 0 else None,
    }
