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


class Picked(nn.Module):
    """Tokens that are computed from the image and are no places: the best patches in order, or latents that look at them."""

    def __init__(self, count, latents):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, 0, batch_first=True)
        self.latents = nn.Parameter(torch.randn(1, count, 16)) if latents else None
        self.look = nn.MultiheadAttention(16, 2, batch_first=True)
        self.body = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 3)
        self.count = count

    def forward(self, images):
        tokens = self.encoder(self.patches(images).flatten(2).transpose(1, 2))
        if self.latents is None:
            best = tokens[..., 0].topk(self.count, dim=1).indices
            picked = tokens.gather(1, best[..., None].expand(-1, -1, 16))
        else:
            latents = self.latents.expand(len(images), -1, -1)
            picked = latents + self.look(latents, tokens, tokens)[0]
        for block in self.body:
            picked = block(picked)
        return self.head(picked.mean(1))


@pytest.mark.parametrize("latents", [False, True])
@pytest.mark.parametrize("count", [16, 49, 64])
@pytest.mark.parametrize("seed", range(3))
def test_tokens_picked_from_the_image_are_no_places_even_if_there_are_as_many_as_patches(count, latents, seed):
    torch.manual_seed(seed)
    with pytest.raises(AddressError, match=rf"'body\.1' has no map: .* {count} tokens that do not follow places"):
        _layout(Picked(count, latents), address="body.1")


def test_the_best_patches_in_the_order_of_the_image_are_no_smaller_grid():
    class Kept(Tokens):
        def forward(self, images):
            tokens = self.patches(images).flatten(2).transpose(1, 2)
            kept = tokens.norm(dim=2).topk(49, 1).indices.sort(1).values
            return self.head(self.blocks[1](tokens.gather(1, kept[..., None].expand(-1, -1, 16))).mean(1))

    with pytest.raises(AddressError, match="49 tokens that do not follow places"):
        _layout(Kept(_before))


def test_cells_that_see_most_of_the_image_are_compared_with_the_map_before_them():
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(3 if i == 0 else 16, 16, 7, 2, 3), nn.ReLU()) for i in range(5)]
    model = Tokens(_before)
    model.patches = nn.Sequential(*stages)
    assert _layout(model, (160, 96)) == Layout("tokens", (5, 3), 1)


@pytest.mark.parametrize("count", [33, 65])
def test_more_other_tokens_than_places(count):
    assert _layout(Tokens(_before, count), (32, 48)) == Layout("tokens", (4, 6), count)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_sequence_of_as_many_tokens_as_images_in_a_pass(batch):
    model = Tokens(_before, batch_first=False)
    assert _layout(model, (16, 16), batch=batch) == Layout("sequence_first", (2, 2), 1)
    assert _layout(Tokens(_before, 2, batch_first=False), (8, 8 * 7), batch=batch) == Layout("sequence_first", (1, 7), 2)


@pytest.mark.parametrize("fill", [0.0, 0.7, -2.0])
def test_images_of_one_colour_show_the_layout_too(fill):
    for seed in range(5):
        torch.manual_seed(seed)
        model = timm.create_model("test_vit", img_size=64, num_classes=3).eval()
        [found] = locate(model, torch.full((1, 3, 64, 64), fill), ["blocks.0.attn"])
        assert found.layout == Layout("tokens", (4, 4), 1)


def test_channels_that_are_tokens_are_not_taken_for_them():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.patches, self.mix, self.head = nn.Conv2d(3, 64, 8, 8), nn.Linear(64, 64), nn.Linear(64, 3)

        def forward(self, images):
            return self.head(self.mix(self.patches(images).flatten(2)).mean(2))

    with pytest.raises(AddressError, match="do not follow places"):
        _layout(Mixer(), address="mix")


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

    for middle in (nn.Linear(16, 16), nn.Identity()):  # without the layer, all parameters are those of a convolution
        model = nn.Sequential(nn.Conv2d(3, 16, 4, 4), Turned(1, -1), middle, Turned(-1, 1), nn.Flatten())
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


def _takes(model, allowed):
    def check(_, inputs):
        if len(inputs[0]) not in allowed:
            raise ValueError

    model.register_forward_pre_hook(check)
    return model


@pytest.mark.parametrize(("batch", "allowed"), [(1, {1, 2}), (1, {1}), (2, {2}), (2, {1, 2})])
def test_a_model_that_takes_few_images_at_once_is_tested_too(batch, allowed):
    assert _layout(_takes(Tokens(_after), allowed), batch=batch) == Layout("tokens", (8, 8), 0)
    first = _takes(Tokens(_after, batch_first=False), allowed)
    assert _layout(first, batch=batch) == Layout("sequence_first", (8, 8), 0)


def test_tokens_of_a_model_that_runs_on_no_altered_images_are_not_guessed():
    model, images = Tokens(_before).eval(), torch.rand(1, 3, *SIZE)
    model.register_forward_pre_hook(lambda _, inputs: None if inputs[0].equal(images) else 1 / 0)
    with pytest.raises(AddressError, match="nothing shows which tokens are places; give grid="):
        locate(model, images, ["blocks.1"])


def test_what_one_layer_has_shown_does_not_answer_for_others():
    model, images = Queries(100).eval(), torch.rand(2, 3, *SIZE)
    locate(model, images, ["encoder"])
    with pytest.raises(AddressError, match="do not follow places"):
        locate(model, images, ["decoder.1"])
