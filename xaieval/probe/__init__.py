"""The layer-probe API: address any tensor inside a model, look at it and its gradient."""

from __future__ import annotations

from xaieval.probe.hooks import Pass, Probed, ProbeLayer, list_layers, probe

__all__ = ["Pass", "ProbeLayer", "Probed", "list_layers", "probe"]
