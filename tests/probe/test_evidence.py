"""Which tokens and axes are places of the image: models whose layouts are known by construction."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from xaieval.errors import AddressError
from xaieval.probe.hooks import list_layers, locate, probe
from xaieval.probe.layouts import Layout

SIZE = (64, 64)


class Tokens(nn.Module):
    """A transformer over patches of 8 pixels, with other tokens where `arrange` puts them: [N, T, C], or [T, N, C]."""

    def __init__(self, arrange, extra=1, batch_first=True, depth=2):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.extra = nn.Parameter(torch.randn(1, extra, 16))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0, batch_first=batch_first) for _ in range(depth))
        self.head = nn.Linear(16, 3)
        self.arrange, self.batch_first = arrange, batch_first

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = self.arrange(tokens, self.extra.expand(len(images), -1, -1))
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(1 if self.batch_first else 0))


def _before(tokens, extra):
    return torch.cat([extra, tokens], dim=1)


def _after(tokens, extra):
    return torch.cat([tokens, extra], dim=1)


def _around(tokens, extra):
    return torch.cat([extra[:, :1], tokens, extra[:, 1:]], dim=1)


def _in_the_middle(tokens, extra):
    half = tokens.shape[1] // 2
    return torch.cat([tokens[:, :half], extra, tokens[:, half:]], dim=1)


def _layout(model, size=SIZE, address="blocks.1", batch=1, **options):
    [found] = locate(model.eval(), torch.rand(batch, 3, *size), [address], **options)
    return found.layout


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (40, 64)])
@pytest.mark.parametrize(
    ("arrange", "extra", "prefix", "middle"),
    [
        (_before, 1, 1, 0),
        (_before, 5, 5, 0),
        (_before, 17, 17, 0),
        (_before, 33, 33, 0),
        (_after, 1, 0, 0),
        (_after, 9, 0, 0),
        (_around, 2, 1, 0),
        (_in_the_middle, 1, 0, 1),
    ],
)
def test_other_tokens_are_found_wherever_they_stand(arrange, extra, prefix, middle, size):
    layout = _layout(Tokens(arrange, extra), size)
    assert layout == Layout("tokens", (size[0] // 8, size[1] // 8), prefix, middle)


@pytest.mark.parametrize("batch", [1, 2])
def test_sequence_first_is_found_from_one_image_and_from_two(batch):
    model = Tokens(_before, batch_first=False)
    assert _layout(model, batch=batch) == Layout("sequence_first", (8, 8), 1)
    images = torch.rand(batch, 3, *SIZE)
    kept = []
    handle = model.blocks[1].register_forward_hook(lambda *args: kept.append(args[2].detach()))
    activation = probe(model, images, "blocks.1").activations["blocks.1"]
    handle.remove()
    torch.testing.assert_close(activation, kept[-1][1:].permute(1, 2, 0).unflatten(2, (8, 8)))


class Queries(nn.Module):
    """A decoder of `count` learned queries over the patches, as in DETR."""

    def __init__(self, count):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, 0, batch_first=True)
        self.queries = nn.Parameter(torch.randn(1, count, 16))
        self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(16, 2, 32, 0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        memory = self.encoder(self.patches(images).flatten(2).transpose(1, 2))
        queries = self.queries.expand(len(images), -1, -1)
        for block in self.decoder:
            queries = block(queries, memory)
        return self.head(queries.mean(1))


@pytest.mark.parametrize("count", [16, 49, 64, 100])
def test_queries_are_no_places_even_if_there_are_as_many_as_patches(count):
    model = Queries(count).eval()
    assert _layout(model, address="encoder") == Layout("tokens", (8, 8), 0)
    with pytest.raises(
        AddressError, match=rf"'decoder\.1' has no map: .* {count} tokens that do not follow places of the image"
    ):
        _layout(model, address="decoder.1")
    listing = list_layers(model, torch.rand(2, 3, *SIZE)).set_index("address")["stride"]
    assert listing["encoder"] == 8
    assert listing[[address for address in listing.index if address.startswith("decoder")]].isna().all()


def test_tokens_that_do_not_depend_on_the_image_are_called_that():
    model = Queries(64).eval()
    with pytest.raises(AddressError, match="64 tokens which do not depend on the image, such as words or learned queries"):
        _layout(model, address="decoder.0.norm1")


def test_a_given_grid_is_not_doubted():
    assert _layout(Queries(64), address="decoder.1", grid=(8, 8)) == Layout("tokens", (8, 8), 0)
    assert _layout(Queries(64), address="decoder.1", layout="N T C") == Layout("tokens", (8, 8), 0)


def test_weights_of_attention_are_no_map():
    vit = timm.create_model("test_vit", img_size=64, num_classes=3)
    for block in vit.blocks:
        block.attn.fused_attn = False
    with pytest.raises(AddressError, match=r"'blocks\.0\.attn\.attn_drop' has no map: no axes of its output \[N, 2, 17, 17\]"):
        _layout(vit, address="blocks.0.attn.attn_drop")


@pytest.mark.parametrize(
    ("address", "kind"), [("0", "channels_first"), ("1", "channels_last"), ("2", "channels_last"), ("3", "channels_first")]
)
def test_axes_of_equal_length_are_told_apart(address, kind):
    class Turned(nn.Module):
        def __init__(self, source, target):
            super().__init__()
            self.axes = source, target

        def forward(self, maps):
            return maps.movedim(*self.axes)

    model = nn.Sequential(nn.Conv2d(3, 16, 4, 4), Turned(1, -1), nn.Linear(16, 16), Turned(-1, 1), nn.Flatten())
    assert _layout(model, address=address) == Layout(kind, (16, 16))


def test_a_swin_transformer_as_wide_as_it_has_channels():
    swin = torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=3)
    assert _layout(swin, address="features.1") == Layout("channels_last", (16, 16))


def test_tokens_in_the_order_of_windows_are_refused():
    def by_windows(tokens, extra):
        return tokens.unflatten(1, (2, 4, 2, 4)).transpose(2, 3).flatten(1, 4)

    with pytest.raises(AddressError, match="do not follow places"):
        _layout(Tokens(by_windows))


def test_the_test_costs_one_pass_of_three_images_where_it_is_clear_and_nothing_in_a_resnet():
    counts = []

    def counted(model):
        model.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
        return model

    model, images = counted(Tokens(_before).eval()), torch.rand(2, 3, *SIZE)
    locate(model, images, ["blocks.1"])
    assert counts == [2, 3]
    locate(model, images, ["blocks.1"])
    assert counts == [2, 3, 2]
    counts.clear()
    locate(counted(torchvision.models.resnet18(num_classes=3).eval()), images, ["layer*"])
    assert counts == [2]


def test_a_model_that_takes_two_images_at_most_is_tested_too():
    model = Tokens(_after).eval()
    model.register_forward_pre_hook(lambda _, inputs: (_ for _ in ()).throw(ValueError) if len(inputs[0]) > 2 else None)
    assert _layout(model) == Layout("tokens", (8, 8), 0)
