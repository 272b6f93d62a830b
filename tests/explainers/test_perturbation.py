"""Score-CAM, Ablation-CAM, RISE and occlusion equal those of other libraries, and slow loops over their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import pytorch_grad_cam
import timm
import torch
import torchcam.methods
import torchvision
from captum.attr import Occlusion as CaptumOcclusion
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import xaieval
from xaieval.errors import ExplainerError
from xaieval.explainers import METHODS, Context, needs_model
from xaieval.explainers.ablation import AblationCAM
from xaieval.explainers.perturbation import RISE, Occlusion, ScoreCAM
from xaieval.probe.hooks import probe

CLOSE = 1e-3  # of the range of a map


@cache
def _resnet18() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    model.fc.weight.data *= 10  # scores that differ, and with them the weights of channels
    return model, torch.randn(2, 3, 64, 64)


TARGETS = [3, 7]


def _target(logits: Tensor, labels: Tensor | None) -> Tensor:
    return torch.tensor(TARGETS[: len(logits)])


def _context(model: nn.Module, images: Tensor, targets: list[int], layer: str | None = None, **options: object) -> Context:
    activation = None if layer is None else probe(model, images, [layer]).activations[layer]
    ids = [str(number) for number in range(len(images))]
    return Context(model, images, torch.tensor(targets), None, ids, layer=layer, activation=activation, **options)


def _same(ours: Tensor, theirs: object) -> None:
    """Equal to a share of each map's range."""
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    spread = theirs.amax(dim=(1, 2), keepdim=True) - theirs.amin(dim=(1, 2), keepdim=True)
    assert (spread > 0).all()  # maps of zeros would be equal too
    assert ((ours - theirs).abs() / spread).max() < CLOSE


def _tiny(classes: int = 3) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(5 * 12, classes)]
    return nn.Sequential(*layers).eval().double()


def _pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- Score-CAM


def _slow_score_cam(model: nn.Module, images: Tensor, targets: list[int], activation: Tensor, explainer: ScoreCAM) -> Tensor:
    maps = []
    for image, target, channels in zip(images, targets, activation, strict=True):
        scores = []
        for channel in channels:
            small = channel
            if explainer.normalise_at == "layer" and small.max() > small.min():
                small = (small - small.min()) / (small.max() - small.min())
            large = nn.functional.interpolate(
                small[None, None], image.shape[1:], mode="bilinear", align_corners=explainer.align_corners
            )[0, 0]
            if channel.max() == channel.min():
                large = torch.zeros_like(large)
            elif explainer.normalise_at == "image":
                large = (large - large.min()) / (large.max() - large.min())
            scores.append(model((image * large)[None])[0, target].item())
        weights = np.exp(np.array(scores) - max(scores))
        weights /= weights.sum()
        total = sum(float(weight) * channel for weight, channel in zip(weights, channels, strict=True))
        maps.append(total.clamp(min=0))
    return torch.stack(maps)


@pytest.mark.parametrize("explainer", [ScoreCAM(), ScoreCAM(align_corners=True), ScoreCAM(normalise_at="layer")], ids=str)
@pytest.mark.parametrize("size", [1, 3, 64])
def test_score_cam_equals_a_loop_over_images_and_channels(explainer, size):
    model, images = _tiny(), _pictures(3)
    context = _context(model, images, [0, 2, 1], "2", size=size)
    activation = context.activation.clone()
    activation[1, 2] = 0.5  # a constant channel
    activation[2, :] = torch.rand_like(activation[2]) - 0.5
    context = Context(**{**vars(context), "activation": activation})
    with torch.no_grad():
        expected = _slow_score_cam(model, images, [0, 2, 1], activation, explainer)
    torch.testing.assert_close(explainer(context), expected)


def test_score_cam_asks_once_for_all_constant_channels_of_an_image():
    model, images = _tiny(), _pictures(2)
    context = _context(model, images, [0, 1], "1", size=4)
    activation = torch.rand_like(context.activation)
    activation[0, :3] = 0
    seen: list[int] = []

    def count(some: Tensor) -> Tensor:
        seen.append(len(some))
        return model(some)

    ScoreCAM()(Context(**{**vars(context), "activation": activation, "call": count}))
    assert seen == [4, 4, 1]  # seven channels that vary, and two blank images


def test_a_layer_that_is_constant_everywhere_gives_a_constant_map():
    model, images = _tiny(), _pictures(2)
    context = _context(model, images, [0, 1], "1", size=4)
    flat = ScoreCAM()(Context(**{**vars(context), "activation": torch.full_like(context.activation, 0.5)}))
    torch.testing.assert_close(flat, torch.full_like(flat, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["layer1", "layer2"])
def test_score_cam_with_the_corners_of_pytorch_grad_cam_is_its_score_cam(layer, capsys):
    model, images = _resnet18()
    context = _context(model, images, TARGETS, layer, size=32)
    with pytorch_grad_cam.ScoreCAM(model, [model.get_submodule(layer)]) as cam:
        targets = [ClassifierOutputTarget(target) for target in TARGETS]
        theirs = cam.get_cam_image(images, None, targets, context.activation.numpy(), None)
    capsys.readouterr()  # its progress bar
    _same(ScoreCAM(align_corners=True)(context), np.maximum(theirs, 0))
    # The two differ only in the corners.
    assert (ScoreCAM()(context) - torch.from_numpy(theirs)).abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["layer1", "layer2"])
def test_score_cam_normalised_at_the_layer_is_that_of_torch_cam(layer):
    model, images = _resnet18()
    with torchcam.methods.ScoreCAM(model, layer) as extractor:
        with torch.no_grad():
            model(images)
        (theirs,) = extractor(TARGETS, normalized=False)
    _same(ScoreCAM(normalise_at="layer")(_context(model, images, TARGETS, layer, size=32)), theirs)


# ---- Ablation-CAM


def _slow_ablation(
    model: nn.Module, image: Tensor, target: int, layer: str, change: Callable[[Tensor, int], Tensor]
) -> np.ndarray:
    """Drops of the score, one whole pass per channel; `change` sets a channel of the layer's output to zero."""
    scores = []
    channels = probe(model, image[None], [layer]).activations[layer].shape[1]
    module = model.get_submodule(layer)
    for channel in [None, *range(channels)]:
        hook = (lambda *given, channel=channel: change(given[2].clone(), channel)) if channel is not None else None
        handle = module.register_forward_hook(hook) if hook else None
        with torch.no_grad():
            scores.append(model(image[None])[0, target].item())
        if handle:
            handle.remove()
    return (scores[0] - np.array(scores[1:])) / scores[0]


def _silence(axis: int) -> Callable[[Tensor, int], Tensor]:
    def change(output: Tensor, channel: int) -> Tensor:
        output.movedim(axis, 1)[:, channel] = 0
        return output

    return change


def _expected(model: nn.Module, images: Tensor, targets: list[int], layer: str, axis: int) -> Tensor:
    activation = probe(model, images, [layer]).activations[layer]
    drops = np.stack(
        [_slow_ablation(model, image, target, layer, _silence(axis)) for image, target in zip(images, targets, strict=True)]
    )
    return torch.einsum("nc,nchw->nhw", torch.from_numpy(drops).to(activation.dtype), activation).clamp(min=0)


@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("size", [1, 4, 64])
@pytest.mark.parametrize("layer", ["0", "1", "2"])
def test_ablation_cam_equals_a_loop_over_images_and_channels(layer, size, expand):
    model, images = _tiny(), _pictures(3)
    maps = AblationCAM(expand)(_context(model, images, [0, 2, 1], layer, size=size))
    torch.testing.assert_close(maps, _expected(model, images, [0, 2, 1], layer, 1))


@pytest.mark.slow
def test_ablation_cam_is_that_of_pytorch_grad_cam(capsys):
    # After a ReLU, where the library writes zeros; where values are negative it writes a number far below all of them.
    model, images = _resnet18()
    maps = AblationCAM()(_context(model, images, TARGETS, "layer4", size=32))
    targets = [ClassifierOutputTarget(target) for target in TARGETS]
    with pytorch_grad_cam.AblationCAM(model, [model.layer4]) as cam:
        activation = probe(model, images, ["layer4"]).activations["layer4"]
        theirs = cam.get_cam_image(images, model.layer4, targets, activation.numpy(), None)
    capsys.readouterr()
    _same(maps, np.maximum(theirs, 0))


def test_only_what_comes_after_the_layer_runs_on_many_images():
    model, images = _tiny(), _pictures(1)
    before, after = [], []
    model[0].register_forward_hook(lambda module, inputs, output: before.append(len(output)))
    model[4].register_forward_hook(lambda module, inputs, output: after.append(len(output)))
    context = _context(model, images, [0], "1", size=2)
    before.clear()  # counts of the pass that made the activation
    after.clear()
    AblationCAM()(context)
    # The trial: three ablations in passes of two, then all at once. After it: five channels and the whole image.
    assert before == [2, 1, 1, 1, 1, 1]
    assert after == [2, 1, 3, 2, 2, 2]


class Joined(nn.Module):
    """A branch, two calls of one ReLU, and an output of several parts, all of which meet before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.parts = Parts()
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        left, right = self.relu(self.left(images)), self.relu(self.right(images))
        parts = self.parts(left, right)
        return self.head(torch.cat([parts["sum"].mean(dim=(2, 3)), parts["pair"][1].mean(dim=(2, 3))], dim=1))


class Parts(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> dict[str, object]:
        return {"sum": left + right, "pair": (left, right * 2)}


@pytest.mark.parametrize("layer", ["left", "relu#0", "relu#1", "parts[sum]", "parts[pair][1]"])
def test_any_address_can_be_ablated_also_where_expanding_does_not_work(layer):
    # Joining one image's tensor with many ablated ones fails, so whole passes are made.
    torch.manual_seed(2)
    model, images = Joined().eval().double(), _pictures(2)
    context = _context(model, images, [0, 2], layer, size=3)
    maps = AblationCAM()(context)
    torch.testing.assert_close(maps, AblationCAM(expand=False)(context))
    assert (maps.amax(dim=(1, 2)) > 0).any()
    assert not any(module._forward_hooks for module in model.modules())


def test_ablating_a_call_leaves_the_others_alone():
    torch.manual_seed(2)
    model, images = Joined().eval().double(), _pictures(1)
    context = _context(model, images, [0], "relu#1")
    left = model.relu(model.left(images)).detach()
    scores = []
    with torch.no_grad():
        for channel in [None, 0, 1, 2, 3]:
            right = context.activation.clone()
            if channel is not None:
                right[:, channel] = 0
            parts = model.parts(left, right)
            joined = torch.cat([parts["sum"].mean(dim=(2, 3)), parts["pair"][1].mean(dim=(2, 3))], dim=1)
            scores.append(model.head(joined)[0, 0].item())
    weights = torch.tensor([(scores[0] - score) / scores[0] for score in scores[1:]], dtype=torch.float64)
    expected = torch.einsum("c,nchw->nhw", weights, context.activation).clamp(min=0)
    torch.testing.assert_close(AblationCAM()(context), expected)


@pytest.mark.parametrize(
    ("name", "layer", "options"),
    [("test_vit", "blocks.0", {}), ("swin_tiny_patch4_window7_224", "layers.0", {"embed_dim": 24, "depths": (1, 1)})],
)
def test_channels_of_transformers_are_silenced_in_all_tokens(name, layer, options):
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 64)
    heads = {"num_heads": (2, 2)} if options else {}
    model = timm.create_model(name, img_size=64, num_classes=10, **options, **heads).eval()
    maps = AblationCAM()(_context(model, images, [3], layer, size=16))
    _same(maps, _expected(model, images, [3], layer, -1))


def test_ablation_gives_the_model_back_also_when_it_raises():
    model, images = _tiny(), _pictures(1)
    context = _context(model, images, [0], "1")

    def broken(some: Tensor) -> Tensor:
        model[1](model[0](some))
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        AblationCAM()(Context(**{**vars(context), "call": broken}))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_score_of_zero_makes_a_map_of_nan():
    model, images = _tiny(), _pictures(1)
    nn.init.zeros_(model[4].weight)
    nn.init.zeros_(model[4].bias)
    assert AblationCAM()(_context(model, images, [0], "1")).isnan().all()


# ---- RISE


def _reference_masks(rise: RISE, seed: int, height: int, width: int) -> np.ndarray:
    """The masks of the paper, drawn in the same order."""
    generator = torch.Generator().manual_seed(seed)
    grids = (torch.rand(rise.n_masks, rise.grid, rise.grid, generator=generator) < rise.probability).double().numpy()
    corners = torch.rand(rise.n_masks, 2, generator=generator).numpy()
    high, wide = math.ceil(height / rise.grid), math.ceil(width / rise.grid)
    masks = np.zeros((rise.n_masks, height, width))
    for number, (grid, (y, x)) in enumerate(zip(grids, corners, strict=True)):
        for row in range(height):
            for column in range(width):
                # The place of a pixel's centre in the grid, whose cells have their centres at whole numbers.
                at = (row + int(y * high) + 0.5) / ((rise.grid + 1) * high) * rise.grid - 0.5
                to = (column + int(x * wide) + 0.5) / ((rise.grid + 1) * wide) * rise.grid - 0.5
                masks[number, row, column] = _bilinear(grid, at, to)
    return masks


def _bilinear(grid: np.ndarray, y: float, x: float) -> float:
    y, x = (min(max(place, 0), side - 1) for place, side in zip((y, x), grid.shape, strict=True))
    top, left = int(y), int(x)
    bottom, right = min(top + 1, grid.shape[0] - 1), min(left + 1, grid.shape[1] - 1)
    upper = grid[top, left] * (1 - (x - left)) + grid[top, right] * (x - left)
    lower = grid[bottom, left] * (1 - (x - left)) + grid[bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("rise", [RISE(n_masks=30, grid=3), RISE(n_masks=7, grid=4, probability=0.3, wanted="score")], ids=str)
def test_rise_equals_a_loop_over_the_formula(rise, size):
    model, images = _tiny(), _pictures(3)
    masks = _reference_masks(rise, 5, 6, 8)
    expected = np.zeros((3, 6, 8))
    with torch.no_grad():
        for image, target, total in zip(images, [0, 2, 1], expected, strict=True):
            for mask in masks:
                logits = model((image * torch.from_numpy(mask))[None])
                score = (logits if rise.wanted == "score" else logits.softmax(dim=1))[0, target].item()
                total += score * mask / (rise.probability * rise.n_masks)
    maps = rise(_context(model, images, [0, 2, 1], size=size, seed=5))
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_rise_shows_every_image_the_same_masks_whatever_its_batch():
    model, images = _tiny(), _pictures(5)
    rise = RISE(n_masks=20)
    together = rise(_context(model, images, [0, 1, 2, 0, 1], size=4))
    for number, (image, target) in enumerate(zip(images, [0, 1, 2, 0, 1], strict=True)):
        torch.testing.assert_close(rise(_context(model, image[None], [target]))[0], together[number])
    assert not torch.equal(rise(_context(model, images, [0] * 5, seed=1)), rise(_context(model, images, [0] * 5)))


def test_rise_finds_the_corner_that_counts():
    def corner(images: Tensor) -> Tensor:
        inside = images[:, :, :16, :16].mean(dim=(1, 2, 3))
        return torch.stack([inside, 1 - inside], dim=1)

    maps = xaieval.explain(corner, torch.ones(1, 3, 64, 64), method=RISE(n_masks=1000), target=0, protocol=IDENTITY)["input"][0]
    assert maps[:16, :16].mean() > 0.6
    assert maps[32:, 32:].mean() < 0.3


IDENTITY = xaieval.Protocol(confidence="identity")


# ---- occlusion


def _slow_occlusion(model: nn.Module, image: Tensor, target: int, window: int, stride: int, fill: float) -> np.ndarray:
    height, width = image.shape[1:]
    total, count = np.zeros((height, width)), np.zeros((height, width))
    with torch.no_grad():
        whole = model(image[None])[0, target].item()
        for top in range(0, height - window + stride, stride):
            for left in range(0, width - window + stride, stride):
                covered = image.clone()
                covered[:, top : top + window, left : left + window] = fill
                total[top : top + window, left : left + window] += whole - model(covered[None])[0, target].item()
                count[top : top + window, left : left + window] += 1
    return total / count


@settings(max_examples=25, deadline=None)
@given(window=st.integers(1, 6), stride=st.integers(1, 6), size=st.sampled_from([1, 3, 50]), fill=st.sampled_from([0.0, 0.7]))
def test_occlusion_equals_a_loop_over_images_and_windows(window, stride, size, fill):
    stride = min(stride, window)
    model, images = _tiny(), _pictures(2)
    maps = Occlusion(window, stride, fill)(_context(model, images, [0, 2], size=size))
    for number, target in enumerate((0, 2)):
        expected = _slow_occlusion(model, images[number], target, window, stride, fill)
        np.testing.assert_allclose(maps[number].numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "stride"), [(20, 10), (16, 16), (30, 12), (64, 64)])
def test_occlusion_is_that_of_captum(window, stride):
    model, images = _resnet18()
    maps = Occlusion(window, stride)(_context(model, images, TARGETS, size=16))
    theirs = CaptumOcclusion(model).attribute(images, (3, window, window), (3, stride, stride), target=torch.tensor(TARGETS))
    assert (theirs.amax(dim=1) == theirs.amin(dim=1)).all()
    torch.testing.assert_close(maps, theirs[:, 0].detach().float(), rtol=0, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.slow
def test_windows_are_a_seventh_of_the_image_unless_told():
    model, images = _resnet18()
    context = _context(model, images, TARGETS, size=16)
    torch.testing.assert_close(Occlusion()(context), Occlusion(window=10, stride=5)(context))


# ---- all of them


class Regions(nn.Module):
    """A segmentation network."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.convolution(images)}


class Boxes(nn.Module):
    """A detector with one box, whose score is the brightness of the box."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Identity()

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        box = torch.tensor([[0.0, 0, 4, 4]])
        return [
            {"boxes": box, "labels": torch.tensor([1]), "scores": image[:, :4, :4].mean()[None].clamp(0, 1)}
            for image in self.stem(images)
        ]


@pytest.mark.parametrize("method", [RISE(n_masks=500), Occlusion(4, 4)], ids=lambda method: method.name)
def test_detectors_are_explained_by_what_hides_the_object(method):
    maps = xaieval.explain(Boxes(), torch.ones(2, 3, 16, 16), method=method, task="detection")["input"]
    assert (maps[:, :4, :4].mean(dim=(1, 2)) > 0.6).all()
    assert (maps[:, 8:, 8:].mean(dim=(1, 2)) < 0.5).all()


@pytest.mark.parametrize("method", [ScoreCAM(), AblationCAM()], ids=lambda method: method.name)
def test_detectors_and_segmentation_networks_have_layers_too(method):
    images = torch.rand(2, 3, 16, 16)
    assert xaieval.explain(Boxes(), images, "stem", method, task="detection")["stem"].shape == (2, 16, 16)
    network = Regions().eval()
    nn.init.ones_(network.convolution.bias)
    maps = xaieval.explain(network, images, "convolution", method, task="segmentation", target=1)["convolution"]
    assert (maps.amax(dim=(1, 2)) > 0).any()


@pytest.mark.slow
def test_scores_are_the_same_in_batches_of_any_size():
    model, images = _resnet18()
    images = torch.cat([images, images[:1].flip(3)])[:, :, :32, :32]
    methods = ["score-cam", "ablation-cam", RISE(n_masks=20), Occlusion(16, 16)]
    rows = [
        xaieval.score(model, images.split(size), "layer1", methods, batch_size=size, progress=False).rows for size in (2, 3)
    ]
    for other in rows[1:]:
        both = rows[0].merge(other, on=["image_id", "layer", "method"])
        assert len(both) == 12
        np.testing.assert_allclose(both["masked_confidence_x"], both["masked_confidence_y"], atol=1e-4)
        np.testing.assert_allclose(both["mask_area_x"], both["mask_area_y"], atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["score-cam", "ablation-cam", RISE(n_masks=20), Occlusion(32, 32)], ids=str)
def test_an_image_of_nan_leaves_the_others_alone(method):
    model, images = _resnet18()
    layers = "layer1" if isinstance(method, str) else ()
    broken = torch.cat([images, images[:1] * torch.nan])
    expected = xaieval.explain(model, images, layers, method, _target)
    found = xaieval.explain(model, broken, layers, method, lambda logits, labels: torch.tensor([*TARGETS, 0]))
    for address, maps in expected.items():
        torch.testing.assert_close(found[address][:2], maps, rtol=0, atol=2e-3)
        assert (found[address][2] == 0).all()


def test_they_say_what_they_cost_and_where_they_are_from():
    for name in ("score-cam", "ablation-cam", "rise", "occlusion"):
        explainer = METHODS[name]
        assert explainer.passes
        assert explainer.paper
        assert not needs_model(explainer)
        assert not explainer.needs_gradient
    assert RISE(n_masks=100).passes == "100, 1 per mask"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScoreCAM(normalise_at="map"), "normalise_at is one of image, layer, got 'map'"),
        (lambda: ScoreCAM(wanted="logit"), "wanted is one of score, confidence, got 'logit'"),
        (lambda: RISE(n_masks=0), "n_masks and grid of at least 1"),
        (lambda: RISE(probability=1), r"a probability in \(0, 1\), got n_masks=4000, grid=7, probability=1"),
        (lambda: Occlusion(window=4, stride=5), "the stride at most the window, got window=4, stride=5"),
        (lambda: Occlusion(window=0), "at least 1 pixel"),
        (lambda: xaieval.explain(*_resnet18(), method=Occlusion(65)), "windows of 65 pixels with a stride of 33"),
        (lambda: xaieval.explain(*_resnet18(), method=Occlusion(stride=11)), "do not fit an image of 64 x 64 pixels"),
        (lambda: xaieval.explain(*_resnet18(), method="score-cam"), "method 'score-cam' needs layers="),
    ],
)
def test_wrong_use_is_one_clear_line(make, message):
    with pytest.raises(ExplainerError, match=message):
        make()
