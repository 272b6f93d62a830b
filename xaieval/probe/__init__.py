"""Probe layers: address any tensor inside a model, and read its activations and gradients."""

from __future__ import annotations

from xaieval.probe.hooks import Pass, Probed, ProbeLayer, list_layers, probe

__all__ = ["Pass", "ProbeLayer", "Probed", "list_layers", "probe"]
