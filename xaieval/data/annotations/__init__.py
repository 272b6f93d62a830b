"""Annotations of published data sets: which objects an image shows, of which classes, and where."""

from __future__ import annotations

from xaieval.data.annotations.readers import READERS, Annotations, read_annotations

__all__ = ["READERS", "Annotations", "read_annotations"]
