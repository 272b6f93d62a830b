"""Networks of segmentation_models_pytorch: what `auto` takes, the levels of their decoders, and their second output."""

from __future__ import annotations

import pytest
import torch

import xaieval
from tests.borrowing import unchanged
from xaieval.errors import ModelError
from xaieval.probe.addresses import trace

smp = pytest.importorskip("segmentation_models_pytorch")

IMAGES = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
STAGES = [f"encoder[{stage}]" for stage in range(1, 6)]
BLOCKS = [f"decoder.blocks.{block}" for block in range(5)]


def _network(name, encoder="resnet18", **settings):
    torch.manual_seed(0)
    if name == "Unet":
        settings["decoder_channels"] = (16, 8, 8, 8, 8)
    return getattr(smp, name)(encoder, encoder_weights=None, classes=4, **settings).eval()


@pytest.mark.parametrize(
    ("name", "encoder", "auto", "levels", "addresses"),
    [
        ("Unet", "resnet18", STAGES, "decoder.blocks.?", BLOCKS),
        ("FPN", "resnet18", STAGES[1:], "decoder.p?", ["decoder.p5", "decoder.p4", "decoder.p3", "decoder.p2"]),
        ("DeepLabV3Plus", "mobilenet_v2", [STAGES[1], STAGES[4]], "decoder.aspp", ["decoder.aspp"]),
        # Its encoder has no stage of half the size, and returns a tensor without channels in its place.
        ("Unet", "mit_b0", STAGES[1:], "decoder.blocks.?", BLOCKS),
    ],
)
def test_the_levels_that_the_decoder_reads_and_its_own(name, encoder, auto, levels, addresses):
    network = _network(name, encoder)
    with unchanged(network):
        assert list(xaieval.explain(network, IMAGES, ["auto", levels], task="segmentation")) == [*auto, *addresses]


def test_a_tensor_without_channels_is_no_layer():
    listed = {layer.address for layer in trace(_network("Unet", "mit_b0"), IMAGES).layers}
    assert "encoder[2]" in listed
    assert "encoder[1]" not in listed


def test_masks_are_found_and_the_labels_have_to_be_named():
    network = _network("Unet", aux_params={"classes": 6, "pooling": "avg"})
    masks = xaieval.explain(network, IMAGES, "decoder", task="segmentation")["decoder"]
    alone = xaieval.explain(network, IMAGES, "decoder", task="segmentation", output=lambda output: output[0])["decoder"]
    assert torch.equal(masks, alone)
    assert masks.std() > 0
    rows = xaieval.score(network, [IMAGES], "encoder.layer4", output=1, progress=False).rows
    with torch.no_grad():
        assert rows["predicted"].tolist() == network(IMAGES)[1].argmax(1).tolist()
    with pytest.raises(
        ModelError, match=r"no logits \[N, K\]: .*say where they are with output=.* or give task='segmentation'"
    ):
        xaieval.explain(network, IMAGES, "encoder.layer4")
