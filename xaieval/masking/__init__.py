"""From a raw map to an explanation map in [0, 1], from the map to a mask, and from an image and its mask to an occluded image.

Each step is a function of whole batches; a `Protocol` holds the choices. Images are `[N, C, H, W]`, volumes `[N, C, D, H, W]`:
the axes after the channels are space.
"""

from __future__ import annotations

from xaieval.masking.blur import gaussian_blur
from xaieval.masking.fills import FILLS, baseline, filling, occlude
from xaieval.masking.linear_imputation import linear_imputation
from xaieval.masking.maps import FLAT, LINEAR, Finished, finish, normalise, upsample
from xaieval.masking.masks import mask
from xaieval.masking.segments import Segments, check_segments, label_maps, segmenter, slic_segments

__all__ = [
    "FILLS",
    "FLAT",
    "LINEAR",
    "Finished",
    "Segments",
    "baseline",
    "check_segments",
    "filling",
    "finish",
    "gaussian_blur",
    "label_maps",
    "linear_imputation",
    "mask",
    "normalise",
    "occlude",
    "segmenter",
    "slic_segments",
    "upsample",
]
