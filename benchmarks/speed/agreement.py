"""Whether the libraries find the same numbers, image by image, before anybody's time is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import captum.attr
import numpy as np
from networks import METHODS, Network
from peers import PEERS, Found, Peer, Results, ours

__all__ = ["TOLERANCE", "agreement", "without_counterpart"]

TOLERANCE = 1e-3  # of a drop in float64, as a share of the confidence; the epsilons of the peers reach half of it


def agreement(network: Network, count: int) -> list[dict[str, Any]]:
    """Largest deviation of each peer from xaieval under the peer's protocol, at the shallowest and deepest of four layers.

    Raises:
        SystemExit: a number differs and no formula of the peer explains it; times of other computations compare nothing.
    """
    rows = []
    for peer in PEERS:
        methods = [method for method in METHODS if peer.serves(network, [method])]
        if methods:
            rows += _compare(network, peer, methods, count)
    bad = [row for row in rows if row["verdict"] == "DIFFERS"]
    if bad:
        raise SystemExit("\n".join(f"numbers differ, nothing is timed: {row}" for row in bad))
    return rows


def _compare(network: Network, peer: Peer, methods: Sequence[str], count: int) -> list[dict[str, Any]]:
    single, double = (_drops(of, peer, methods, count) for of in (network, network.double()))
    return [_row(network, peer, method, single[method], double[method]) for method in methods]


class Pair(NamedTuple):
    """What xaieval and a peer found, over images and layers."""

    ours: Found
    theirs: Found

    @property
    def deviation(self) -> np.ndarray:
        """Of the drop, as a share of the confidence; where neither has a number there is none."""
        both = np.isnan(self.ours.drop) & np.isnan(self.theirs.drop)
        return np.where(both, 0, np.abs(self.ours.drop - self.theirs.drop))


def _drops(network: Network, peer: Peer, methods: Sequence[str], count: int) -> dict[str, Pair]:
    layers = network.layers(4)[::3]
    # One image a batch for the peer, since torch-cam gives only sums over a batch; several for us, to see that it is the same.
    theirs = peer.run(network, network.batches(count, 1), layers, methods)
    mine = ours(network, network.batches(count, count), layers, methods, peer.protocol)
    return {method: Pair(*(_over(layers, side, method) for side in (mine, theirs))) for method in methods}


def _over(layers: Sequence[str], results: Results, method: str) -> Found:
    parts = [results[layer, method] for layer in layers]
    return Found(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _row(network: Network, peer: Peer, method: str, single: Pair, double: Pair) -> dict[str, Any]:
    """The verdict is on float64, where what remains is no rounding that a deep network made larger."""
    flips = double.ours.increase != double.theirs.increase
    agrees = bool((double.deviation <= TOLERANCE).all()) and not flips.any()
    explained = peer.deviations.get(method, "")
    return {
        "model": network.name,
        "tool": peer.name,
        "method": method,
        "maps": len(flips),
        "mean_drop": float(np.nanmean(double.ours.drop)),
        "increases": int(np.nansum(double.ours.increase)),
        "deviation_float64": float(double.deviation.max()),
        "deviation_float32": float(single.deviation.max()),
        "increases_that_differ": int(flips.sum()),
        "tolerance": TOLERANCE,
        "verdict": "agrees" if agrees else "differs as explained" if explained else "DIFFERS",
        "explanation": "" if agrees else explained,
    }


def without_counterpart(network: Network) -> list[dict[str, Any]]:
    """What came when a library was asked for what it cannot do."""
    return [
        {
            "model": network.name,
            "tool": peer.name,
            "method": method,
            "verdict": "no counterpart",
            "explanation": _reason(network, peer),
        }
        for peer in PEERS
        for method in METHODS
        if not peer.serves(network, [method])
    ]


def _reason(network: Network, peer: Peer) -> str:
    if peer.tokens or network.reshape is None:
        return "the library has Grad-CAM alone of the four"
    layer = network.layers(1)[0]
    images, targets = network.batches(2, 2)[0]
    try:
        shape = captum.attr.LayerGradCam(network.model, network.module(layer)).attribute(images, targets).shape
    except (RuntimeError, ValueError, AssertionError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return f"takes tokens for channels: for {list(images.shape)} at {layer} it gives {list(shape)}, which is no map"
