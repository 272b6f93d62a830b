"""The choices of a measurement by name: protocols, presets and options. Imports no torch."""

from __future__ import annotations

from xaieval.config.presets import PRESETS, Preset, changes
from xaieval.config.protocol import PROTOCOLS, Protocol, resolve_protocol

__all__ = ["PRESETS", "PROTOCOLS", "Preset", "Protocol", "changes", "resolve_protocol"]
