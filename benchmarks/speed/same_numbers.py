"""Check that the libraries give the same numbers, image by image, before any time is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import captum.attr
import numpy as np
from networks import METHODS, Network
from peer_loops import PEERS, Found, Peer, Results, ours

__all__ = ["TOLERANCE", "agreement", "without_counterpart"]

TOLERANCE = 1e-3  # of a drop in float64, as a share of the confidence; the epsilons of the peers cause up to half of it


def agreement(network: Network, count: int) -> list[dict[str, Any]]:
    """Largest deviation of each peer from xaieval under the peer's protocol, at the shallowest and deepest of four layers.

    Raises:
        SystemExit: A number differs, and no formula of the peer explains it; times would not be comparable.
    """
    rows = []
    for peer in PEERS:
        methods = [method for method in METHODS if peer.serves(network, [method])]
        if methods:
            rows += _compare(network, peer, methods, count)
    bad = [row for row in rows if row["verdict"] == "DIFFERS"]
    if bad:
        raise SystemExit("\n".join(f"the numbers differ, so nothing is timed: {row}" for row in bad))
    return rows


def _compare(network: Network, peer: Peer, methods: Sequence[str], count: int) -> list[dict[str, Any]]:
    single, double = (_drops(of, peer, methods, count) for of in (network, network.double()))
    return [_row(network, peer, method, single[method], double[method]) for method in methods]


class Pair(NamedTuple):
    """Results of xaieval and of a peer, over images and layers."""

    ours: Found
    theirs: Found

    @property
    def deviation(self) -> np.ndarray:
        """Deviation of the drop, as a share of the confidence; 0 where both are NaN."""
        both = np.isnan(self.ours.drop) & np.isnan(self.theirs.drop)
        return np.where(both, 0, np.abs(self.ours.drop - self.theirs.drop))


def _drops(network: Network, peer: Peer, methods: Sequence[str], count: int) -> dict[str, Pair]:
    layers = network.layers(4)[::3]
    # Batches of one image for peers, since torch-cam returns only sums over a batch; larger ones for us, to test both.
    theirs = peer.run(network, network.batches(count, 1), layers, methods)
    mine = ours(network, network.batches(count, count), layers, methods, peer.protocol)
    return {method: Pair(*(_over(layers, side, method) for side in (mine, theirs))) for method in methods}


def _over(layers: Sequence[str], results: Results, method: str) -> Found:
    parts = [results[layer, method] for layer in layers]
    return Found(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _row(network: Network, peer: Peer, method: str, single: Pair, double: Pair) -> dict[str, Any]:
    """One row; the verdict uses float64, in which deep networks do not amplify rounding."""
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
    """Rows for what a library cannot do, with the reason."""
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
        return "of the four methods the library has only Grad-CAM"
    layer = network.layers(1)[0]
    images, targets = network.batches(2, 2)[0]
    try:
        shape = captum.attr.LayerGradCam(network.model, network.module(layer)).attribute(images, targets).shape
    except (RuntimeError, ValueError, AssertionError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return f"treats tokens as channels: for {list(images.shape)} at {layer} it returns {list(shape)}, which is not a map"
