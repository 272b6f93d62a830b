"""Pictures are prepared as by the image processors of transformers' detectors and segmenters, or are refused."""

from __future__ import annotations

import numpy as np
import pytest
import transformers
from PIL import Image

from xaieval.errors import ModelError
from xaieval.models.image_processors import preprocessing_of

EDGES = {"shortest_edge": 48, "longest_edge": 80}
PROCESSORS = {
    "DETR": lambda: transformers.DetrImageProcessor(size=EDGES),
    "Deformable DETR": lambda: transformers.DeformableDetrImageProcessor(size=EDGES),
    "RT-DETR": lambda: transformers.RTDetrImageProcessor(size={"height": 64, "width": 64}),
    "YOLOS": lambda: transformers.YolosImageProcessor(size=EDGES),
    "Mask2Former": lambda: transformers.Mask2FormerImageProcessor(size=EDGES),
    "MaskFormer, any size": lambda: transformers.MaskFormerImageProcessor(size=EDGES, size_divisor=0),
    "EoMT, padded": lambda: transformers.EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True),
    "shorter edge only": lambda: transformers.ViTImageProcessor(size={"shortest_edge": 48}),
}


def _picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(120, 120), (150, 110), (97, 333), (401, 90)])
@pytest.mark.parametrize("make", PROCESSORS.values(), ids=PROCESSORS)
def test_pictures_of_any_shape_are_prepared_as_by_the_processor(make, size):
    processor, picture = make(), _picture(*size)
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    ours = preprocessing_of(processor)(picture)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.01 * (theirs.max() - theirs.min())


@pytest.mark.parametrize(
    "processor",
    [
        lambda: transformers.EomtImageProcessor(size={"shortest_edge": 48}, do_split_image=True),
        lambda: transformers.DetrImageProcessor(size=EDGES, pad_size={"height": 80, "width": 80}),
        lambda: transformers.ViTImageProcessor(do_resize=False),
    ],
    ids=["patches", "padding with a mask", "no resizing"],
)
def test_processors_that_do_something_else_are_refused(processor):
    with pytest.raises(ModelError, match=r"ImageProcessor prepares images in a way that is not known here .*config"):
        preprocessing_of(processor())
