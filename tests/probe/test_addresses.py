"""Layer addresses: parsing, patterns, error messages, and the spatial axes of outputs."""

from __future__ import annotations

from collections import namedtuple

import pytest
import timm
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.resnet import Bottleneck

from tests.wired_model import Wired
from xaieval import list_layers
from xaieval.errors import ALL_LAYERS, AddressError
from xaieval.probe.addresses import Address, Layer, Trace, expand, layout_of, parse, pick, table, trace
from xaieval.probe.layouts import Layout

Pair = namedtuple("Pair", ["left", "right"])


class Returns(nn.Module):
    """Returns its input, packed by a function."""

    def __init__(self, pack):
        super().__init__()
        self.pack = pack

    def forward(self, maps):
        return self.pack(maps)


def _trace(model, size=(16, 16), batch=2):
    return trace(model.eval(), torch.rand(batch, 3, *size))


def _addresses(patterns, traced):
    return [layer.address for layer in expand(patterns, traced)]


def _error(patterns, traced):
    with pytest.raises(AddressError) as caught:
        expand([patterns] if isinstance(patterns, str) else patterns, traced)
    return str(caught.value)


def _pyramid(maps):
    return {"0": maps, "1": maps[..., ::2, ::2], "pool": maps[..., ::4, ::4]}


@pytest.fixture(scope="module")
def resnet():
    return _trace(torchvision.models.resnet18(), (64, 64))


@pytest.fixture(scope="module")
def pyramid():
    return _trace(Wired(lambda model, images: model.fpn(images)["0"].mean((2, 3)), fpn=Returns(_pyramid)))


# Parsing

_text = st.text(st.characters(exclude_characters="[]#", exclude_categories=("Cs",)), min_size=1, max_size=12)
_paths = _text.filter(lambda path: path == path.strip())
_keys = st.lists(_text, max_size=3).map(tuple)
_calls = st.none() | st.integers(min_value=0) | st.just("*")


@pytest.mark.slow
@given(st.builds(Address, _paths, _keys, _calls) | st.builds(Address, st.just(""), _keys.filter(bool), _calls))
@settings(deadline=None)
def test_an_address_read_back_from_its_text_is_the_same(address):
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["layer4", "layer4.0.conv2", "fpn[pool]", "a[b][1]", "rpn.head.conv#2", "fpn[*]#*", "[aux]", "l?y*"]
)
def test_the_text_of_an_address_is_kept(text):
    assert str(parse(f" {text} ")) == text


def test_an_address_has_three_parts():
    assert parse("a.b[c][1]#12") == Address("a.b", ("c", "1"), 12)


MALFORMED = ["", " ", "#2", "a[", "a]", "a[]", "a[b", "a[[b]]", "a[b]c", "a#", "a#-1", "a#x", "a#1#2", "a#1[b]", "a#**"]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_address_is_refused_with_examples_of_good_ones(text):
    with pytest.raises(AddressError) as caught:
        parse(text)
    assert str(caught.value) == f"{text!r} is not a layer address; examples are 'layer4', 'fpn[p2]' and 'rpn.head.conv#2'"


# Patterns


@pytest.mark.parametrize("pattern", ["layer*", "layer?", "l*"])
def test_wildcards_do_not_match_deeper_names(resnet, pattern):
    assert _addresses([pattern], resnet) == ["layer1", "layer2", "layer3", "layer4"]


def test_a_wildcard_stands_between_dots(resnet):
    assert _addresses(["layer3.*"], resnet) == ["layer3.0", "layer3.1"]
    assert _addresses(["*.1.conv2"], resnet) == [f"layer{i}.1.conv2" for i in (1, 2, 3, 4)]


def test_a_question_mark_is_exactly_one_character(resnet):
    assert _addresses(["layer1.0.conv?"], resnet) == ["layer1.0.conv1", "layer1.0.conv2"]
    assert "no layer 'layer??'" in _error("layer??", resnet)


def test_a_dot_in_a_name_is_no_wildcard():
    assert "no layer 'a.c'" in _error("a.c", _trace(Wired(lambda model, x: model.abc(x), abc=nn.Conv2d(3, 4, 1))))


def test_patterns_expand_in_order_of_execution_not_of_registration():
    model = Wired(lambda model, x: model.a(model.b(x)), a=nn.Conv2d(4, 5, 1), b=nn.Conv2d(3, 4, 1))
    assert [name for name, _ in model.named_children()] == ["a", "b"]
    assert _addresses(["?"], _trace(model)) == ["b", "a"]


def test_addresses_keep_the_order_in_which_they_are_given(resnet):
    assert _addresses(["layer4", "layer1", "layer?"], resnet) == ["layer4", "layer1", "layer2", "layer3"]


def test_a_layer_named_twice_is_there_once(resnet):
    assert _addresses(["layer4", "layer4", "layer4#0", "*4", " layer4 "], resnet) == ["layer4"]


def test_all_calls_are_in_order_of_execution(resnet):
    relus = [f"layer1.{block}.relu#{call}" for block in (0, 1) for call in (0, 1)]
    assert _addresses(["layer1.*.relu#*"], resnet) == relus


def test_one_call_of_several_modules_can_be_picked(resnet):
    assert _addresses(["layer1.?.relu#1"], resnet) == ["layer1.0.relu#1", "layer1.1.relu#1"]


def test_all_keys_are_in_the_order_of_the_output(pyramid):
    assert _addresses(["fpn[*]"], pyramid) == ["fpn[0]", "fpn[1]", "fpn[pool]"]
    assert _addresses(["fpn[?]"], pyramid) == ["fpn[0]", "fpn[1]"]


def test_a_key_may_hold_a_dot():
    traced = _trace(Wired(lambda model, x: model.fpn(x)["s.1"], fpn=Returns(lambda maps: {"s.0": maps, "s.1": maps})))
    assert _addresses(["fpn[*]"], traced) == ["fpn[s.0]", "fpn[s.1]"]
    assert _addresses(["fpn[s.1]"], traced) == ["fpn[s.1]"]


def test_wildcards_pass_over_modules_that_did_not_run():
    model = Wired(lambda model, x: model.conv1(x), conv1=nn.Conv2d(3, 4, 1), conv2=nn.Conv2d(3, 4, 1))
    assert _addresses(["conv?"], _trace(model)) == ["conv1"]


# Modules that run several times


def test_a_block_that_reuses_its_relu_is_an_error_that_lists_the_calls(resnet):
    assert _error("layer1.0.relu", resnet) == (
        "layer 'layer1.0.relu' runs several times: layer1.0.relu#0 [N, 64, 16, 16], layer1.0.relu#1 [N, 64, 16, 16]; "
        "choose one of them, or all with 'layer1.0.relu#*'"
    )


def test_a_bottleneck_runs_its_relu_three_times():
    traced = _trace(nn.Sequential(nn.Conv2d(3, 16, 1), Bottleneck(16, 4)))
    assert _error("1.relu", traced) == (
        "layer '1.relu' runs several times: 1.relu#0 [N, 4, 16, 16], 1.relu#1 [N, 4, 16, 16], 1.relu#2 [N, 16, 16, 16]; "
        "choose one of them, or all with '1.relu#*'"
    )
    assert [layer.shape[1] for layer in expand(["1.relu#*"], traced)] == [4, 4, 16]


def test_a_call_out_of_range_lists_the_calls(resnet):
    assert _error("layer1.0.relu#2", resnet) == (
        "no call 'layer1.0.relu#2'; known: layer1.0.relu#0 [N, 64, 16, 16], layer1.0.relu#1 [N, 64, 16, 16]"
    )
    assert _error("layer4#1", resnet) == "no call 'layer4#1'; known: layer4 [N, 512, 2, 2]"


def test_a_module_that_runs_once_has_call_0_and_is_named_without_it(resnet):
    assert _addresses(["layer4#0"], resnet) == _addresses(["layer4#*"], resnet) == ["layer4"]


def test_a_long_list_of_calls_is_cut_and_counted():
    def many(model, x):
        for _ in range(15):
            x = model.conv(x)
        return x

    message = _error("conv", _trace(Wired(many, conv=nn.Conv2d(3, 3, 1))))
    assert "conv#11 [N, 3, 16, 16] and 3 more; choose one" in message
    assert "conv#12" not in message


def test_key_and_call_together():
    model = Wired(lambda model, x: model.fpn(model.fpn(x)["a"])["b"], fpn=Returns(lambda maps: {"a": maps, "b": 2 * maps}))
    traced = _trace(model)
    assert _addresses(["fpn[b]#1", "fpn[*]#0"], traced) == ["fpn[b]#1", "fpn[a]#0", "fpn[b]#0"]
    assert _error("fpn[a]", traced).endswith("choose one of them, or all with 'fpn[a]#*'")


# Several tensors in one output


def test_several_tensors_without_a_key_are_an_error_that_lists_them(pyramid):
    assert _error("fpn", pyramid) == (
        "layer 'fpn' returns several tensors: fpn[0] [N, 3, 16, 16], fpn[1] [N, 3, 8, 8], fpn[pool] [N, 3, 4, 4]; "
        "choose one of them, or all with 'fpn[*]'"
    )


def test_nested_keys_lead_through_mappings_tuples_and_lists():
    def pack(maps):
        return {"a": (maps, maps[..., ::2, ::2]), "b": [{"c": maps[..., ::4, ::4]}], 3: Pair(maps[:, :1], maps[:, :2])}

    traced = _trace(Wired(lambda model, x: model.net(x)["a"][0], net=Returns(pack)))
    assert _addresses(["net[a][1]"], traced) == ["net[a][1]"]
    assert _addresses(["net[*][*]"], traced) == ["net[a][0]", "net[a][1]", "net[3][0]", "net[3][1]"]
    assert _addresses(["net[b][0][c]"], traced) == ["net[b][0][c]"]
    assert expand(["net[3][1]"], traced)[0].shape == (2, 2, 16, 16)
    message = _error("net[a]", traced)
    assert "'net[a][0]'" in message
    assert "'net[a][1]'" in message


def test_what_is_not_a_tensor_in_an_output_is_passed_over():
    traced = _trace(Wired(lambda model, x: model.net(x)[0], net=Returns(lambda maps: (maps, None, "text", 3))))
    assert _addresses(["net[*]"], traced) == ["net[0]"]


def test_pick_takes_what_the_keys_say():
    output = {"a": [1, {2: "two", "2": "text"}], 0: "zero"}
    assert pick(output, ()) is output
    assert pick(output, ("a", "0")) == 1
    assert pick(output, ("a", "1", "2")) == "text"
    assert pick(output, ("0",)) == "zero"


def test_the_model_s_own_output_has_an_address_by_key():
    traced = _trace(Returns(_pyramid))
    assert _addresses(["[pool]"], traced) == ["[pool]"]
    assert "" not in [layer.address for layer in traced.layers]


# Names that lead nowhere


def test_a_dot_in_place_of_a_key_is_mended_by_the_message(pyramid):
    assert _error("fpn.pool", pyramid) == f"no layer 'fpn.pool'; did you mean 'fpn[pool]'? {ALL_LAYERS[0]}"


def test_a_name_like_nothing_names_the_command_that_lists_all(resnet):
    assert _error("qqqqqqq", resnet) == f"no layer 'qqqqqqq'; {ALL_LAYERS[0]}"


@pytest.mark.parametrize(("wrong", "near"), [("layer5", "layer4"), ("layer4.conv1", "layer4.0.conv1"), ("Layer4", "layer4")])
def test_a_wrong_name_gets_its_near_matches(resnet, wrong, near):
    message = _error(wrong, resnet)
    assert message.startswith(f"no layer '{wrong}'; did you mean '")
    assert repr(near) in message
    assert message.endswith(f"? {ALL_LAYERS[0]}")


def test_a_wrong_key_gets_the_nearest_keys(pyramid):
    assert _error("fpn[3]", pyramid).startswith("no layer 'fpn[3]'; did you mean 'fpn[")
    # The nearest one must be there however many other keys come before it.
    traced = _trace(Wired(lambda model, x: model.fpn(x)["0"], fpn=Returns(lambda maps: dict.fromkeys([*"0123", "pool"], maps))))
    assert "'fpn[pool]'" in _error("fpn[pol]", traced)


def test_a_key_of_a_plain_output_is_an_error_that_names_the_layer(resnet):
    assert _error("layer4[0]", resnet) == f"no layer 'layer4[0]'; did you mean 'layer4'? {ALL_LAYERS[0]}"


def test_a_module_that_did_not_run_is_said_to_be_so():
    model = Wired(lambda model, x: model.conv(x), conv=nn.Conv2d(3, 4, 1), aux=nn.Sequential(nn.Conv2d(3, 4, 1)))
    traced = _trace(model)
    assert traced.unused == ["aux", "aux.0"]
    assert _error("aux.0", traced) == "layer 'aux.0' did not run in this forward pass, so it cannot explain the output"


def test_the_first_wrong_address_of_several_is_the_one_named(resnet):
    assert "no layer 'qqqqqqq'" in _error(["layer4", "qqqqqqq", "layer9"], resnet)


# Modules under two names


def test_a_module_under_two_names_is_found_by_both_and_there_once():
    body = nn.Sequential(nn.Conv2d(3, 4, 1))
    traced = _trace(Wired(lambda model, x: model.backbone(x), encoder=body, backbone=body))
    assert traced.aliases == {"backbone": "encoder", "backbone.0": "encoder.0"}
    assert _addresses(["backbone.0"], traced) == ["encoder.0"]
    assert _addresses(["backbone", "encoder"], traced) == ["encoder"]


def test_a_module_that_runs_under_two_names_has_two_calls():
    conv = nn.Conv2d(3, 3, 1)
    traced = _trace(Wired(lambda model, x: model.second(model.first(x)), first=conv, second=conv))
    assert _addresses(["second#1"], traced) == ["first#1"]
    assert _error("second", traced) == (
        "layer 'first' runs several times: first#0 [N, 3, 16, 16], first#1 [N, 3, 16, 16]; "
        "choose one of them, or all with 'second#*'"
    )
    assert _addresses(["second#*"], traced) == ["first#0", "first#1"]


# The trace


def test_a_trace_leaves_no_hooks_even_if_the_model_raises():
    def fail(model, x):
        model.conv(x)
        raise RuntimeError("broken")

    model = Wired(fail, conv=nn.Conv2d(3, 4, 1))
    with pytest.raises(RuntimeError, match="broken"):
        _trace(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_trace_can_run_the_model_its_own_way():
    model = Wired(None, conv=nn.Conv2d(3, 4, 1))
    traced = trace(model, torch.rand(2, 3, 8, 8), forward=lambda images: model.conv(images * 2))
    assert [layer.address for layer in traced.layers] == ["conv"]
    assert (traced.batch, traced.image_size) == (2, (8, 8))


# Where the map is


def _layout(shape, image_size, **options):
    layer = Layer("x", "x", (), 0, "Module", shape, 0)
    return layout_of(layer, Trace([layer], shape[0], image_size, []), **options)


def _numbered_tokens(prefix, height, width):
    """Tokens [2, T, 1]: prefix tokens are -1, the tokens of the grid are their numbers."""
    numbers = torch.cat([torch.full((prefix,), -1), torch.arange(height * width)])
    return numbers.float()[None, :, None].expand(2, -1, 1)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("image_size", "patch"), [((224, 224), 16), ((224, 224), 14), ((64, 64), 8), ((64, 96), 8), ((160, 64), 8)]
)
def test_tokens_become_maps_without_their_prefix(image_size, patch, prefix):
    height, width = image_size[0] // patch, image_size[1] // patch
    layout = _layout((2, prefix + height * width, 1), image_size)
    assert layout == Layout("tokens", (height, width), prefix)
    maps = layout.to_maps(_numbered_tokens(prefix, height, width))
    assert torch.equal(maps[1, 0], torch.arange(height * width).view(height, width))


def _fitting_grids(tokens, image_size):
    """Every grid of this number of tokens with one stride for both sides and a tolerance of one cell: slow, by definition."""

    def strides(side, cells):
        return side / (cells + 1), side / (cells - 1) if cells > 1 else float("inf")

    for height in range(1, tokens + 1):
        if tokens % height == 0:
            (low1, high1), (low2, high2) = strides(image_size[0], height), strides(image_size[1], tokens // height)
            if max(low1, low2) < min(high1, high2):
                yield height, tokens // height


@given(st.integers(2, 32), st.integers(2, 32), st.sampled_from([4, 8, 14, 16, 32]), st.integers(0, 8))
@settings(deadline=None, max_examples=200)
def test_the_inferred_grid_is_right_wherever_it_is_the_only_one_that_fits(height, width, patch, prefix):
    image_size = (height * patch, width * patch)
    tokens = height * width + prefix
    fitting = [(grid, count) for count in range(prefix + 1) for grid in _fitting_grids(tokens - count, image_size)]
    assume(fitting == [((height, width), prefix)])
    assert _layout((2, tokens, 3), image_size) == Layout("tokens", (height, width), prefix)


@pytest.mark.parametrize(
    ("image_size", "grid"),
    [((232, 320), (8, 10)), ((100, 300), (4, 10)), ((480, 639), (15, 20)), ((152, 432), (10, 30)), ((432, 152), (30, 10))],
)
def test_tokens_of_images_that_the_stride_does_not_divide_find_their_grid(image_size, grid):
    # A stage rounds the two sides apart from each other, so h / w is not H / W, least of all in wide images.
    assert list(_fitting_grids(grid[0] * grid[1], image_size)) == [grid]
    assert _layout((2, grid[0] * grid[1], 3), image_size) == Layout("tokens", grid, 0)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_a_stride_that_divides_the_image_goes_before_one_that_nearly_does(prefix):
    # 4 x 5 cells and 5 registers could also be 4 x 6 cells, rounded, and 1: the patches of a transformer are whole.
    grids = [(height, width) for height in range(4, 21) for width in range(4, 21)]
    found = {grid: _layout((2, grid[0] * grid[1] + prefix, 3), (grid[0] * 16, grid[1] * 16)) for grid in grids}
    assert [grid for grid, layout in found.items() if layout != Layout("tokens", grid, prefix)] == []


def test_a_given_grid_is_taken_and_the_rest_is_prefix():
    assert _layout((2, 10, 3), (64, 64), grid=(2, 4)) == Layout("tokens", (2, 4), 2)
    assert _layout((2, 10, 3), (64, 64), grid=(2, 4), prefix_tokens=2) == Layout("tokens", (2, 4), 2)


def test_a_given_number_of_prefix_tokens_settles_an_ambiguity():
    assert _layout((2, 16, 3), (64, 64)) == Layout("tokens", (4, 4), 0)
    assert _layout((2, 16, 3), (64, 64), prefix_tokens=12) == Layout("tokens", (2, 2), 12)
    assert _layout((2, 16, 3), (64, 64), prefix_tokens=0) == Layout("tokens", (4, 4), 0)


@pytest.mark.parametrize(
    "options",
    [{"grid": (4, 4)}, {"grid": (2, 4), "prefix_tokens": 3}, {"grid": (10,)}, {"prefix_tokens": 2}, {"prefix_tokens": 10}],
)
def test_tokens_that_fit_no_grid_ask_for_one(options):
    with pytest.raises(AddressError) as caught:
        _layout((2, 10, 3), (64, 64), **options)
    assert str(caught.value) == (
        "layer 'x' has 10 tokens, which fit no grid of a 64 x 64 image; give grid=(height, width) and prefix_tokens="
    )


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (32, 128)])
def test_a_real_vision_transformer_has_its_grid(size):
    traced = _trace(timm.create_model("test_vit", img_size=size, num_classes=3), size)
    layer = expand(["blocks.2"], traced)[0]
    assert layout_of(layer, traced) == Layout("tokens", (size[0] // 16, size[1] // 16), 1)


TINY_SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}


def test_channels_last_is_recognised_in_a_swin_transformer_and_its_convolution_is_channels_first():
    traced = _trace(timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **TINY_SWIN), (64, 64))
    wanted = {
        "patch_embed.proj": Layout("channels_first", (16, 16)),
        "patch_embed": Layout("channels_last", (16, 16)),
        "layers.0": Layout("channels_last", (16, 16)),
        "layers.1": Layout("channels_last", (8, 8)),
        "layers.3": Layout("channels_last", (2, 2)),
        "layers.0.blocks.0.norm2": Layout("tokens", (16, 16), 0),
    }
    assert {layer.address: layout_of(layer, traced) for layer in expand(wanted, traced)} == wanted


def test_windows_are_no_map_because_their_first_axis_is_not_the_batch():
    traced = _trace(timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **TINY_SWIN), (64, 64))
    with pytest.raises(AddressError, match=r"'layers\.0\.blocks\.0\.attn' has no map"):
        layout_of(expand(["layers.0.blocks.0.attn"], traced)[0], traced)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 64)])
def test_channels_last_maps_are_turned(size):
    layout = _layout((2, size[0] // 8, size[1] // 8, 5), size)
    assert layout == Layout("channels_last", (size[0] // 8, size[1] // 8))
    tensor = torch.rand(2, size[0] // 8, size[1] // 8, 5)
    assert torch.equal(layout.to_maps(tensor)[1, 4], tensor[1, :, :, 4])


def test_channels_last_wins_where_only_its_stride_divides_the_image():
    # 14 x 24 is nearly as wide as 64 x 112, but 8 x 14 is exactly so.
    assert _layout((2, 8, 14, 24), (64, 112)) == Layout("channels_last", (8, 14))


def test_channels_first_wins_where_both_would_fit():
    assert _layout((2, 8, 8, 8), (64, 64)) == Layout("channels_first", (8, 8))


@pytest.mark.parametrize("maps", [(1, 1), (4, 10), (7, 19), (13, 38)])
def test_channels_first_maps_of_a_wide_image_are_taken_as_they_are(maps):
    assert _layout((2, 192, *maps), (100, 300)) == Layout("channels_first", maps)


def test_channels_last_is_recognised_in_images_that_the_stride_does_not_divide():
    # torchvision's Swin pads on the way down, so 100 x 300 becomes 25 x 75, 13 x 38, 7 x 19, 4 x 10.
    swin = torchvision.models.SwinTransformer([4, 4], 24, [1, 1, 1, 1], [1, 2, 2, 2], [4, 4], num_classes=3)
    traced = _trace(swin, (100, 300))
    layers = expand(["features.1", "features.3", "features.5", "features.7"], traced)
    assert [layer.shape[1:3] for layer in layers] == [(25, 75), (13, 38), (7, 19), (4, 10)]
    assert [layout_of(layer, traced) for layer in layers] == [Layout("channels_last", layer.shape[1:3]) for layer in layers]


def test_a_classifier_s_output_has_no_map(resnet):
    with pytest.raises(AddressError) as caught:
        layout_of(expand(["fc"], resnet)[0], resnet)
    assert str(caught.value) == (
        "layer 'fc' has no map: its output is [2, 1000] for 2 images, but [N, C, H, W], [N, H, W, C] or tokens [N, T, C] "
        f"are expected; {ALL_LAYERS[0]}"
    )


# The listing

RESNET18 = [  # for 64 x 64 pixels, from the paper's table 1: address, module, channels, side of the map, stride, parameters
    ("conv1", "Conv2d", 64, 32, 2, 7 * 7 * 3 * 64),
    ("bn1", "BatchNorm2d", 64, 32, 2, 2 * 64),
    ("relu", "ReLU", 64, 32, 2, 0),
    ("maxpool", "MaxPool2d", 64, 16, 4, 0),
    ("layer1.0.conv1", "Conv2d", 64, 16, 4, 9 * 64 * 64),
    ("layer1.0.bn1", "BatchNorm2d", 64, 16, 4, 2 * 64),
    ("layer1.0.relu#0", "ReLU", 64, 16, 4, 0),
    ("layer1.0.conv2", "Conv2d", 64, 16, 4, 9 * 64 * 64),
    ("layer1.0.bn2", "BatchNorm2d", 64, 16, 4, 2 * 64),
    ("layer1.0.relu#1", "ReLU", 64, 16, 4, 0),
    ("layer1.0", "BasicBlock", 64, 16, 4, 2 * (9 * 64 * 64 + 2 * 64)),
    ("layer1", "Sequential", 64, 16, 4, 4 * (9 * 64 * 64 + 2 * 64)),
    ("layer2.0.conv1", "Conv2d", 128, 8, 8, 9 * 64 * 128),
    ("layer2.0.downsample.0", "Conv2d", 128, 8, 8, 64 * 128),
    ("layer2.0.downsample", "Sequential", 128, 8, 8, 64 * 128 + 2 * 128),
    ("layer2.0.relu#1", "ReLU", 128, 8, 8, 0),
    ("layer2", "Sequential", 128, 8, 8, 9 * 64 * 128 + 3 * 9 * 128 * 128 + 64 * 128 + 5 * 2 * 128),
    ("layer3", "Sequential", 256, 4, 16, 9 * 128 * 256 + 3 * 9 * 256 * 256 + 128 * 256 + 5 * 2 * 256),
    ("layer4", "Sequential", 512, 2, 32, 9 * 256 * 512 + 3 * 9 * 512 * 512 + 256 * 512 + 5 * 2 * 512),
    ("avgpool", "AdaptiveAvgPool2d", 512, 1, 64, 0),
]


def test_list_layers_of_resnet18_is_the_table_of_the_paper():
    listing = list_layers(torchvision.models.resnet18(), torch.rand(2, 3, 64, 64))
    assert list(listing.columns) == ["address", "module_type", "output_shape", "stride", "parameters"]
    # conv1, bn1, relu, maxpool, avgpool, fc; 4 stages; 8 blocks with conv, bn and relu twice; 3 downsamples of two modules.
    assert len(listing) == 6 + 4 + 8 * 7 + 3 * 3
    assert listing["address"].is_unique
    rows = listing.set_index("address")
    for address, module_type, channels, side, stride, parameters in RESNET18:
        assert tuple(rows.loc[address]) == (module_type, (2, channels, side, side), stride, parameters), address
    kept = [address for address in listing["address"] if address in dict.fromkeys(row[0] for row in RESNET18)]
    assert kept == [row[0] for row in RESNET18]


def test_the_listing_has_no_stride_where_there_is_no_map(resnet):
    rows = table(resnet).set_index("address")
    assert rows["stride"].isna().sum() == 1
    assert rows["stride"].isna()["fc"]


def test_every_listed_address_names_its_own_layer(resnet, pyramid):
    for traced in (resnet, pyramid):
        for address, shape in table(traced)[["address", "output_shape"]].itertuples(index=False):
            assert [(layer.address, layer.shape) for layer in expand([address], traced)] == [(address, shape)]


def test_strides_follow_the_layout_of_tokens_and_channels_last_maps():
    swin = list_layers(timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **TINY_SWIN), torch.rand(1, 3, 64, 64))
    strides = swin.set_index("address")["stride"]
    assert list(strides[["layers.0", "layers.1", "layers.2", "layers.3"]]) == [4, 8, 16, 32]
    vit = list_layers(timm.create_model("test_vit", img_size=64, num_classes=3), torch.rand(1, 3, 64, 64))
    assert vit.set_index("address")["stride"]["blocks.0"] == 16
