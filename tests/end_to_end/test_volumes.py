"""Volumes `[N, C, D, H, W]` through the whole flow, beside slow loops, SciPy, and the same numbers laid out as images."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
import torchvision
from scipy import ndimage
from torch import Tensor, nn
from torchvision.models.video.swin_transformer import SwinTransformer3d

from xaieval import Protocol, explain, list_layers, score
from xaieval.cli import main
from xaieval.errors import AddressError, DataError, ExplainerError
from xaieval.explainers import cam, controls
from xaieval.explainers.base import Context
from xaieval.inference.batchnorm_folding import find_foldable_pairs
from xaieval.inference.tasks import Segmentation
from xaieval.masking import baseline, finish, mask, occlude, upsample
from xaieval.probe.addresses import Layer, Trace, layout_of
from xaieval.probe.hooks import probe
from xaieval.probe.layouts import Layout

SIZE = (6, 8, 10)


class Net(nn.Module):
    """Two convolutions, the second on half the resolution, and a linear classifier on the means of its channels."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(channels, 4, 3, padding=1), nn.Conv3d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, volumes: Tensor) -> Tensor:
        half = nn.functional.max_pool3d(self.first(volumes).relu(), 2)
        return 8 * self.head(self.second(half).relu().mean(dim=(2, 3, 4)))


def _net() -> Net:
    torch.manual_seed(3)
    return Net().eval()


def _volumes(count: int = 3) -> Tensor:
    return torch.rand(count, 1, *SIZE, generator=torch.Generator().manual_seed(5))


# ---- by slow loops


def _trilinear_by_hand(cells: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Each output voxel from the two nearest cells along each axis, centres half a cell from the edge."""
    out = np.zeros(size)
    for place in itertools.product(*map(range, size)):
        weights = []
        for at, large, small in zip(place, size, cells.shape, strict=True):
            where = min(max((at + 0.5) * small / large - 0.5, 0), small - 1)
            low = min(int(where), max(small - 2, 0))
            weights.append({low: 1 - (where - low)} | ({low + 1: where - low} if small > 1 else {}))
        for corner in itertools.product(*weights):
            out[place] += cells[corner] * math.prod(w[c] for w, c in zip(weights, corner, strict=True))
    return out


def _cam_by_hand(net: Net, volume: Tensor, target: int) -> np.ndarray:
    """Grad-CAM of the second convolution, voxel by voxel, in [0, 1]."""
    half = nn.functional.max_pool3d(net.first(volume[None]).relu(), 2)
    activation = net.second(half).detach().requires_grad_()
    logit = 8 * net.head(activation.relu().mean(dim=(2, 3, 4)))[0, target]
    (gradient,) = torch.autograd.grad(logit, activation)
    a, g = activation.detach()[0].double().numpy(), gradient[0].double().numpy()
    out = np.zeros(a.shape[1:])
    for k in range(len(a)):
        weight = sum(g[k][cell] for cell in np.ndindex(out.shape)) / out.size
        for cell in np.ndindex(out.shape):
            out[cell] += weight * a[k][cell]
    large = _trilinear_by_hand(np.maximum(out, 0), SIZE)
    return (large - large.min()) / (large.max() - large.min())


def test_rows_and_maps_are_those_of_a_loop_over_volumes_and_voxels():
    net, volumes = _net(), _volumes()
    rows = score(net, [volumes], "second", progress=False).rows
    maps = explain(net, volumes, "second")["second"]
    assert maps.shape == (3, *SIZE)
    for number, volume in enumerate(volumes):
        with torch.no_grad():
            before = net(volume[None]).double().softmax(1)[0]
        target = int(before.argmax())
        by_hand = _cam_by_hand(net, volume, target)
        np.testing.assert_allclose(maps[number].numpy(), by_hand, atol=1e-5)
        with torch.no_grad():
            masked = (volume.double() * torch.from_numpy(by_hand)).float()
            after = net(masked[None]).double().softmax(1)[0, target].item()
        y, row = before[target].item(), rows.iloc[number]
        assert row["confidence"] == pytest.approx(y, abs=1e-6)
        assert row["masked_confidence"] == pytest.approx(after, abs=1e-5)
        assert row["average_drop"] == pytest.approx(100 * max(0, y - after) / y, abs=1e-3)
        assert row["mask_area"] == pytest.approx(by_hand.mean(), abs=1e-5)
    assert (rows["confidence"] - rows["masked_confidence"]).abs().max() > 1e-3, "the masks made no difference"


@pytest.mark.parametrize(("small", "large"), [((2, 3, 4), (5, 3, 9)), ((3, 1, 2), (3, 4, 2)), ((4, 4, 4), (2, 3, 8))])
def test_upsampling_is_trilinear_with_half_voxel_centres(small, large):
    cells = np.random.default_rng(0).normal(size=small)
    found = upsample(torch.from_numpy(cells)[None], large)[0]
    np.testing.assert_allclose(found.numpy(), _trilinear_by_hand(cells, large), atol=1e-12)


# ---- beside the same numbers laid out as images

GRADIENT_CAMS = [
    cam.grad_cam,
    cam.grad_cam_plus_plus,
    cam.xgrad_cam,
    cam.hires_cam,
    cam.element_wise_grad_cam,
    cam.layer_cam,
    cam.eigen_grad_cam,
]


@pytest.mark.parametrize("channels", [3, 40])  # fewer and more than cells
@pytest.mark.parametrize("function", [*GRADIENT_CAMS, cam.eigen_cam], ids=lambda function: function.__name__)
def test_cams_do_not_care_how_cells_are_laid_out(function, channels):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, channels, 2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    tensors = tensors[: 1 if function is cam.eigen_cam else 2]
    tensors[0][0, 1] = 0  # a silent channel
    flat = function(*(tensor.flatten(2, 3) for tensor in tensors))
    torch.testing.assert_close(function(*tensors).flatten(1, 2), flat, rtol=1e-9, atol=1e-9)


CHOICES = [
    {},
    {"normalise_at": "layer", "absolute": True},
    {"normalisation": "percentile", "masking": "top"},
    {"normalisation": "max", "masking": "top_binary", "keep_percent": 20},
    {"masking": "otsu", "inverse": True, "fill": "mean"},
    {"masking": "threshold", "fill": "black", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
    {"fill": "blur"},
]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_a_volume_of_one_slice_is_masked_as_the_image_that_it_is(choices):
    protocol = Protocol(**choices)
    generator = torch.Generator().manual_seed(1)
    raw, images = torch.randn(3, 4, 5, generator=generator), torch.rand(3, 3, 16, 20, generator=generator)
    raw[1, 0, 0], raw[2] = torch.nan, 2.5
    flat, thick = finish(raw, (16, 20), protocol), finish(raw[:, None], (1, 16, 20), protocol)
    torch.testing.assert_close(thick.maps[:, 0], flat.maps)
    assert thick.constant.tolist() == flat.constant.tolist()
    assert thick.invalid.tolist() == flat.invalid.tolist() == [False, True, False]
    volumes = images[:, :, None]
    masked = occlude(volumes, mask(thick.maps, protocol), baseline(volumes, protocol))
    torch.testing.assert_close(masked[:, :, 0], occlude(images, mask(flat.maps, protocol), baseline(images, protocol)))


def test_a_volume_of_one_slice_has_the_control_maps_of_the_image():
    images = torch.rand(2, 3, 9, 12)
    flat, thick = (
        Context(nn.Identity(), batch, torch.zeros(2, dtype=torch.long), None, ["a", "b"])
        for batch in (images, images[:, :, None])
    )
    for control in controls.CONTROLS:
        expected = finish(control(flat), (9, 12), Protocol()).maps
        torch.testing.assert_close(finish(control(thick), (1, 9, 12), Protocol()).maps[:, 0], expected)


# ---- beside SciPy


def test_edges_are_the_magnitude_of_scipys_sobel():
    volumes = torch.rand(2, 3, 5, 6, 7, dtype=torch.float64)
    context = Context(nn.Identity(), volumes, torch.zeros(2, dtype=torch.long), None, ["a", "b"])
    grey = volumes.mean(dim=1).numpy()
    slopes = [[ndimage.sobel(one, axis, mode="nearest") for axis in range(3)] for one in grey]
    np.testing.assert_allclose(controls.edges(context).numpy(), np.sqrt(np.square(slopes).sum(axis=1)), atol=1e-12)


def test_the_middle_of_a_volume_is_where_its_gaussian_peaks():
    context = Context(nn.Identity(), torch.zeros(1, 1, 5, 7, 9), torch.zeros(1, dtype=torch.long), None, ["a"])
    found = controls.center(context)[0]
    assert found[2, 3, 4] == found.max() == 1
    # Half a side is two standard deviations.
    for place in ((0, 3, 4), (2, 6, 4), (2, 3, 8)):
        assert found[place].item() == pytest.approx(math.exp(-2))


def test_blur_is_scipys_gaussian_along_all_axes():
    volumes = torch.rand(2, 2, 11, 14, 20, dtype=torch.float64)
    sigma = 1.1  # a tenth of the shortest side
    radius = round(2.5 * sigma)
    expected = ndimage.gaussian_filter(
        volumes.numpy(), (0, 0, sigma, sigma, sigma), mode="mirror", radius=(0, 0, *[radius] * 3)
    )
    np.testing.assert_allclose(baseline(volumes, Protocol(fill="blur")).numpy(), expected, atol=1e-10)


# ---- where layers are


@cache
def _r3d() -> nn.Module:
    """A residual network for video, its statistics as training leaves them, or folding would change next to nothing."""
    torch.manual_seed(0)
    model = torchvision.models.video.r3d_18(num_classes=4).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


def _layout(shape: tuple[int, ...], image_size: tuple[int, ...], **options: object) -> Layout:
    layer = Layer("x", "x", (), 0, "Module", shape, 0)
    return layout_of(layer, Trace([layer], shape[0], image_size, []), **options)


def test_channels_come_first_unless_only_last_fits():
    assert _layout((2, 64, 16, 56, 56), (16, 112, 112)) == Layout("channels_first", (16, 56, 56))
    assert _layout((2, 96, 8, 28, 28), (16, 112, 112)) == Layout("channels_first", (8, 28, 28))
    assert _layout((2, 8, 28, 28, 96), (16, 112, 112)) == Layout("channels_last", (8, 28, 28))
    assert _layout((2, 4, 4, 4, 9), (32, 32, 32)) == Layout("channels_last", (4, 4, 4))
    assert _layout((2, 512, 1, 2, 2), (8, 32, 32)) == Layout("channels_first", (1, 2, 2))


def test_tokens_of_volumes_need_their_grid():
    with pytest.raises(AddressError) as caught:
        _layout((2, 24, 5), (8, 16, 24))
    assert str(caught.value) == (
        "layer 'x' has 24 tokens, which fit no grid of a 8 x 16 x 24 image; give grid=(depth, height, width) and prefix_tokens="
    )
    with pytest.raises(AddressError, match=r"give grid=\(depth, height, width\)"):
        _layout((2, 24, 5), (8, 16, 24), grid=(4, 6))
    layout = _layout((2, 27, 5), (8, 16, 24), grid=(2, 3, 4))
    assert layout == Layout("tokens", (2, 3, 4), 3)
    tokens = torch.arange(27.0)[None, :, None].expand(2, -1, 5)
    assert torch.equal(layout.to_maps(tokens)[1, 4], torch.arange(3.0, 27).view(2, 3, 4))


class Tokens(nn.Module):
    """Patches of a volume as tokens after a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix = nn.Conv3d(1, 8, 4, 4), nn.Linear(8, 3)
        self.start = nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, volumes: Tensor) -> Tensor:
        tokens = self.patches(volumes).flatten(2).transpose(1, 2)
        return self.mix(torch.cat([self.start.expand(len(tokens), -1, -1), tokens], dim=1)).mean(dim=1)


def test_models_of_volumes_light_up_where_the_volume_does():
    volumes = torch.full((2, 3, 8, 32, 48), 0.4)
    volumes[1, :, 4:, :16, 32:] = 1.0  # behind, above, on the right
    swin = SwinTransformer3d([2, 4, 4], 12, [1, 1], [1, 2], [2, 4, 4], num_classes=3).eval()
    cases = [
        (swin, volumes, {"patch_embed": (4, 8, 12), "features.0": (4, 8, 12), "features.2": (4, 4, 6)}, {}),
        (_r3d(), volumes, {"stem": (8, 16, 24), "layer1": (8, 16, 24), "layer2": (4, 8, 12), "layer3": (2, 4, 6)}, {}),
        (Tokens(), volumes[:, :1], {"mix": (2, 8, 12)}, {"grid": (2, 8, 12), "prefix_tokens": 1}),
    ]
    for model, images, sizes, options in cases:
        seen = probe(model, images, list(sizes), **options).activations
        assert {address: tuple(maps.shape[2:]) for address, maps in seen.items()} == sizes
        for address, maps in seen.items():
            change = (maps[1] - maps[0]).abs().mean(dim=0)
            depth, row, column = np.unravel_index(int(change.argmax()), change.shape)
            size = change.shape
            where = type(model).__name__, address, depth, row, column
            assert depth >= size[0] / 2 - 1, where  # at most a cell outside, by the kernels on the way
            assert row <= size[1] / 2, where
            assert column >= size[2] * 2 / 3 - 1, where


def test_the_stride_in_a_listing_is_that_of_the_height():
    listing = list_layers(_r3d(), torch.rand(1, 3, 8, 32, 32)).set_index("address")
    assert listing["stride"][["stem", "layer2", "layer4"]].tolist() == [2, 4, 16]
    assert listing["output_shape"]["layer4"] == (1, 512, 1, 2, 2)


# ---- the whole flow


@pytest.mark.slow
def test_a_real_network_for_video_is_scored_with_its_norms_folded():
    model = _r3d()
    volumes = torch.rand(2, 3, 4, 24, 24)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {"layers": ["layer2", "layer3"], "methods": ["gradcam", "layercam", "center"], "progress": False}
    fast = score(model, [volumes], **options)
    slow = score(model, [volumes], fast=False, **options)
    assert fast.manifest["speed"]["folded_batch_norms"] >= 18
    assert not fast.manifest["speed"]["channels_last"]
    for column in ("confidence", "masked_confidence", "mask_area"):
        assert fast.rows[column].to_list() == pytest.approx(slow.rows[column].to_list(), abs=1e-4)
    assert set(fast.rows["status"]) <= {"ok", "constant_map"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_norms_of_volumes_are_found():
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.ReLU(), nn.Conv3d(2, 2, 1), nn.BatchNorm3d(2)).eval()
    assert len(find_foldable_pairs(model, torch.rand(1, 1, 4, 4, 4))) == 2


class Slices(nn.Module):
    """A network of images that looks at the slices of a volume one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, volumes: Tensor) -> Tensor:
        slices = volumes.transpose(1, 2).flatten(0, 1)
        return self.conv(slices).mean(dim=(2, 3)).view(len(volumes), -1, 3).amax(dim=1)


def test_networks_of_slices_run_although_channels_last_is_for_images():
    volumes = _volumes()
    rows = score(Slices(), [volumes], methods=["center", "random", "edges", "uniform"], progress=False).rows
    assert len(rows) == 12
    assert rows["masked_confidence"].notna().all()


@pytest.mark.parametrize("fill", ["zero", "mean", "blur"])
def test_batches_of_masked_volumes_are_those_of_single_ones(fill):
    net, volumes = _net(), _volumes(5)
    options = {"layers": ["first", "second"], "protocol": Protocol(fill=fill), "progress": False}
    together = score(net, [volumes], batch_size=4, **options).rows
    alone = score(net, [volumes], batch_size=1, **options).rows
    assert together["masked_confidence"].to_list() == pytest.approx(alone["masked_confidence"].to_list(), abs=1e-6)


def test_an_explainer_can_ask_for_volumes():
    class Slabs:
        """What covering each slice changes, by the context's own questions."""

        name, needs_layer, needs_gradient, needs_model = "slabs", False, False, False

        def __call__(self, context: Context) -> Tensor:
            def blocks():
                for slab in range(SIZE[0]):
                    covered = context.images.clone()
                    covered[:, :, slab] = 0
                    yield covered, context.everywhere

            drops = context.ask([(context.images, context.everywhere)]) - context.ask(blocks()).view(SIZE[0], -1)
            return drops.T[:, :, None, None].expand(-1, *SIZE)

    net, volumes = _net(), _volumes()
    maps = explain(net, volumes, method=Slabs())["input"]
    with torch.no_grad():
        target = int(net(volumes[:1]).argmax())
        drops = []
        for slab in range(SIZE[0]):
            covered = volumes[:1].clone()
            covered[:, :, slab] = 0
            drops.append((net(volumes[:1]) - net(covered))[0, target].item())
    scaled = (np.array(drops) - min(drops)) / (max(drops) - min(drops))
    np.testing.assert_allclose(maps[0, :, 2, 3].numpy(), scaled, atol=1e-5)


def test_segmentation_of_volumes_is_that_of_the_same_voxels_in_a_plane():
    logits = torch.randn(3, 4, 2, 3, 5)
    logits[2, 0] += 50  # background alone
    task, flat = Segmentation(), logits.flatten(2, 3)
    deep, plane = task.follow(task.read(logits), "predicted", None), task.follow(task.read(flat), "predicted", None)
    assert deep.classes.tolist() == plane.classes.tolist()
    assert deep.has_target.tolist() == [True, True, False]
    torch.testing.assert_close(task.score(logits, deep), task.score(flat, plane))
    torch.testing.assert_close(task.confidence(logits, deep, "softmax"), task.confidence(flat, plane, "softmax"))


@pytest.mark.parametrize("region", ["predicted", "all"])
def test_a_segmentation_network_of_volumes_is_scored(region):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 1))
    scores = score(model, [_volumes()], "0", task=Segmentation(region, background=None), progress=False)
    assert set(scores.rows["status"]) <= {"ok", "constant_map"}


# ---- wrong use


def test_more_axes_than_a_volume_has_are_refused():
    with pytest.raises(DataError, match=r"got float32 \[1, 1, 2, 2, 2, 2\]; volumes are \[N, C, D, H, W\]$"):
        score(Net(), [torch.rand(1, 1, 2, 2, 2, 2)], methods="center")


def test_flat_maps_of_volumes_are_refused():
    def flat(model: nn.Module, volumes: Tensor, targets: Tensor) -> Tensor:
        return volumes.mean(dim=(1, 2))

    message = r"^method 'flat' gave \[3, 8, 10\] for 3 images; maps \[N, d, h, w\] are expected$"
    with pytest.raises(ExplainerError, match=message):
        explain(_net(), _volumes(), method=flat)


def test_the_command_scores_volumes_and_draws_their_slices(tmp_path, monkeypatch, capsys):
    (tmp_path / "scans.py").write_text(
        "import torch\n"
        "def model():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3), torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten())\n"
        "def data():\n"
        "    return [(torch.rand(2, 1, 5, 6, 7), torch.tensor([0, 1]))]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    main(["score", "--model", "scans:model", "--data", "scans:data", "--layers", "0", "--out", "run", "--no-progress"])
    assert "gradcam" in capsys.readouterr().out
    assert (tmp_path / "run" / "rows.parquet").is_file()
    assert (tmp_path / "run" / "maps.png").is_file()
    main(["report", "run", "--import-code"])
    assert (tmp_path / "run" / "report.html").read_text().count("<img src=") == 4


@pytest.mark.parametrize("name", ["score-cam", "ablation-cam", "captum:Saliency", "captum:FeatureAblation", "captum:Occlusion"])
def test_other_methods_of_volumes_with_one_slice_are_those_of_images(name):
    torch.manual_seed(1)
    flat = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    deep = nn.Sequential(nn.Conv3d(1, 4, (1, 3, 3)), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
    state = {name: value.unsqueeze(2) if value.ndim == 4 else value for name, value in flat.state_dict().items()}
    deep.load_state_dict(state)
    images = torch.rand(2, 1, 12, 14)
    wanted, found = (explain(model, x, "1", name) for model, x in ((flat, images), (deep, images[:, :, None])))
    for at, maps in wanted.items():
        torch.testing.assert_close(found[at][:, 0], maps, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["rise", "occlusion", "attention-rollout"])
def test_methods_that_are_made_for_images_say_so(name):
    with pytest.raises(ExplainerError, match=r"explains images \[N, C, H, W\], got \[3, 1, 6, 8, 10\]"):
        explain(_net(), _volumes(), method=name)
