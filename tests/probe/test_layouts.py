"""Layouts that the user names, and layouts on images of other sizes, against sums by hand."""

from __future__ import annotations

import pytest
import torch

from xaieval.probe.layouts import Layout, doubts_axes, on_other_images, token_grids, worded


def test_sequence_first_tokens_become_maps():
    tokens = torch.rand(1 + 6, 2, 5)
    layout = worded("T N C", (7, 2, 5), 2, (32, 48))
    assert layout == Layout("sequence_first", (2, 3), 1)
    maps = layout.to_maps(tokens)
    assert maps.shape == (2, 5, 2, 3)
    assert maps[1, 4, 1, 2] == tokens[1 + 5, 1, 4]


def test_views_become_channels_so_that_a_grad_cam_is_the_sum_over_views():
    activation, gradient = torch.rand(2 * 3, 4, 5, 5), torch.rand(2 * 3, 4, 5, 5)
    layout = worded("N*V C h w", (6, 4, 5, 5), 2, (50, 50))
    assert (layout.size, layout.views) == ((5, 5), 3)

    def cam(activation, gradient):
        return (gradient.mean((2, 3), keepdim=True) * activation).sum(1)

    together = cam(layout.to_maps(activation), layout.to_maps(gradient))
    assert together.shape == (2, 5, 5)
    torch.testing.assert_close(together, cam(activation, gradient).view(2, 3, 5, 5).sum(1))


def test_views_may_stand_before_the_images_or_on_an_axis_of_their_own():
    tensor = torch.rand(2, 3, 4, 5, 5)  # image, view, channel
    right = tensor.flatten(1, 2)
    assert torch.equal(worded("N V C h w", (2, 3, 4, 5, 5), 2, (50, 50)).to_maps(tensor), right)
    before = tensor.transpose(0, 1).flatten(0, 1)
    assert torch.equal(worded("V*N C h w", (6, 4, 5, 5), 2, (50, 50)).to_maps(before), right)


def test_tokens_of_a_video_in_another_order():
    # TimeSformer: one class token, then the frames of each place in a row.
    video = torch.rand(2, 4, 3, 2, 5)  # N d h w C
    tokens = torch.cat([torch.rand(2, 1, 5), video.permute(0, 2, 3, 1, 4).flatten(1, 3)], dim=1)
    layout = worded("N h*w*t C", (2, 25, 5), 2, (8, 48, 32), grid=(4, 3, 2))
    assert torch.equal(layout.to_maps(tokens), video.movedim(-1, 1))


def test_a_token_in_the_middle_is_left_out():
    tokens = torch.tensor([0, 1, 2, 3, 4, -1, 5, 6, 7, 8, 9, 10])[None, :, None]
    maps = Layout("tokens", (2, 5), 0, middle=1).to_maps(tokens)
    assert torch.equal(maps[0, 0], torch.arange(10).view(2, 5))


@pytest.mark.parametrize(
    ("words", "shape"), [("N C h w", (2, 9, 5)), ("T N C", (2, 9, 5)), ("N T C", (2, 7, 5)), ("N*V C h w", (5, 4, 3, 3))]
)
def test_words_that_do_not_fit_a_shape_give_no_layout(words, shape):
    assert worded(words, shape, 2, (48, 48), prefix=0) is None


@pytest.mark.parametrize(
    ("tokens", "sizes", "grid"),
    [
        (1 + 24, ((64, 64), (96, 64)), (6, 4)),  # the same stride
        (1 + 24, ((64, 64), (64, 96)), (4, 6)),
        (1 + 33, ((64, 64), (100, 66)), None),  # 16 pixels do not give 33 cells
        (1 + 35, ((64, 64), (100, 72)), (7, 5)),  # rounded up
        (1 + 24, ((64, 64), (100, 72)), (6, 4)),  # rounded down
        (1 + 16, ((64, 64), (128, 64)), (4, 4)),  # a model that resizes its images
    ],
)
def test_the_grid_of_other_images_has_the_stride_of_the_first(tokens, sizes, grid):
    layout = on_other_images(Layout("tokens", (4, 4), 1), (2, 17, 3), (2, tokens, 3), sizes, 2)
    assert layout == (None if grid is None else Layout("tokens", grid, 1))


def test_maps_and_views_of_other_images():
    assert on_other_images(Layout("channels_last", (4, 4)), (2, 4, 4, 3), (5, 6, 4, 3), ((8, 8), (12, 8)), 5).size == (6, 4)
    layout = on_other_images(Layout("N*V C h w", (4, 4), views=3), (6, 9, 4, 4), (20, 9, 6, 4), ((8, 8), (12, 8)), 5)
    assert (layout.size, layout.views) == ((6, 4), 4)


def test_axes_of_like_lengths_are_doubtful_and_those_of_a_resnet_are_not():
    assert doubts_axes((2, 96, 96, 96), (384, 384))
    assert doubts_axes((2, 3, 197, 64), (224, 224))
    resnet = [(64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)]
    assert not any(doubts_axes((2, channels, side, side), (224, 224)) for channels, side in resnet)


def test_grids_of_tokens_are_those_of_a_slow_search():
    def slow(tokens, size):
        fits = []
        for high in range(1, tokens + 1):
            for wide in range(1, tokens // high + 1):
                if max(tokens / 2, 2) <= high * wide and high * wide >= tokens - 256:
                    stride = size[0] / high, size[0] / (high + 1), size[1] / wide, size[1] / (wide + 1)
                    up = size[0] / max(high - 1, 1e-9), size[1] / max(wide - 1, 1e-9)
                    down = max(stride[1], stride[3]) < min(stride[0], stride[2])
                    if (
                        down
                        or max(stride[0], stride[2]) < min(up)
                        or (high * size[1] == wide * size[0] and size[0] % high == 0)
                    ):
                        fits.append((high, wide))
        return fits

    for tokens, size in ((197, (224, 224)), (25, (96, 64)), (77, (64, 200)), (229, (224, 224))):
        assert token_grids(tokens, size) == slow(tokens, size)
