"""ROAD: the imputation by hand and against sparse solvers, the metrics against pytorch-grad-cam and Quantus, and in a run."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor, nn
from torch.nn import functional

import xaieval
from xaieval.config.protocol import Protocol
from xaieval.data import Preprocessing, ucmerced
from xaieval.errors import MetricError, RunError
from xaieval.metrics import METRICS, linear_imputation, perturbed_pixels, road, road_lerf, road_morf

PROPERTY = settings(deadline=None, max_examples=40)
SIDE = 16
NAMES = ["road", "road_morf", "road_lerf"]


def tiny(channels: int = 3, classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, classes)
    ).eval()


def pictures(count: int = 4, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Images, and maps without ties that are as smooth as real maps."""
    generator = torch.Generator().manual_seed(5)
    rough = torch.rand(count, 1, 4, 4, generator=generator)
    maps = functional.interpolate(rough, (SIDE, SIDE), mode="bilinear")[:, 0]
    maps = (maps + 1e-3 * torch.rand(count, SIDE, SIDE, generator=generator)) / 1.001
    return torch.randn(count, channels, SIDE, SIDE, generator=generator), maps


def asker(model: nn.Module, images: Tensor) -> Any:
    with torch.no_grad():
        targets = model(images).argmax(dim=1)

    def ask(blocks: Any) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(some).double().softmax(dim=1)[range(len(of)), targets[of]] for some, of in blocks])

    return ask


def evidence(model: nn.Module, images: Tensor, maps: Tensor) -> dict[str, Any]:
    ask = asker(model, images)

    def draw(shape: Any, name: str) -> Tensor:
        return torch.rand((len(images), *shape), generator=torch.Generator().manual_seed(1))

    confidence = ask([(images, torch.arange(len(images)))])
    return {"confidence": confidence, "maps": maps, "images": images, "ask": ask, "draw": draw}


# ---- the imputation


def test_imputation_by_hand():
    # In a row, what is missing between 1 and 4 is the straight line; at the end, what is next to it.
    image = torch.tensor([[[[1.0, 9.0, 9.0, 4.0, 9.0]]]], dtype=torch.float64)
    missing = torch.tensor([[[False, True, True, False, True]]])
    found = linear_imputation(image, missing, tolerance=1e-12)
    np.testing.assert_allclose(found[0, 0, 0], [1, 2, 3, 4, 4], atol=1e-9)


def test_the_middle_of_nine_is_the_weighted_mean_of_eight():
    image = torch.arange(9, dtype=torch.float64).view(1, 1, 3, 3) ** 2
    missing = torch.zeros(1, 3, 3, dtype=torch.bool)
    missing[0, 1, 1] = True
    found = float(linear_imputation(image, missing)[0, 0, 1, 1])
    assert found == pytest.approx((1 + 9 + 25 + 49) / 6 + (0 + 4 + 36 + 64) / 12)


def by_loops(image: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """One equation for each missing pixel or voxel, built neighbour by neighbour, and a direct solver."""
    number = {place: row for row, place in enumerate(zip(*np.nonzero(missing), strict=True))}
    matrix, right = np.zeros((len(number), len(number))), np.zeros((len(number), len(image)))
    shares = {2: {1: 1 / 6, 2: 1 / 12}, 3: {1: 1 / 14, 2: 1 / 28, 3: 1 / 56}}[missing.ndim]  # by the number of axes moved along
    for place, row in number.items():
        for step in itertools.product((-1, 0, 1), repeat=missing.ndim):
            there = tuple(at + one for at, one in zip(place, step, strict=True))
            inside = all(0 <= at < side for at, side in zip(there, missing.shape, strict=True))
            if not inside or not any(step):
                continue
            weight = shares[sum(map(abs, step))]
            matrix[row, row] += weight
            if missing[there]:
                matrix[row, number[there]] -= weight
            else:
                right[row] += weight * image[(slice(None), *there)]
    filled = image.copy()
    filled[:, missing] = spsolve(csc_matrix(matrix), right).reshape(len(number), -1).T
    return filled


@PROPERTY
@given(st.integers(2, 13), st.integers(2, 13), st.floats(0.05, 0.97), st.integers(0, 999))
def test_imputation_is_that_of_a_direct_solver(height, width, share, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 2, height, width, generator=generator, dtype=torch.float64)
    missing = torch.rand(3, height, width, generator=generator) < share
    missing[:, 0, 0], missing[:, -1, -1] = False, True
    found = linear_imputation(images, missing, tolerance=1e-11)
    for image, gaps, filled in zip(images.numpy(), missing.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(filled, by_loops(image, gaps), atol=1e-7)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(2, 9), st.floats(0.05, 0.97), st.integers(0, 999))
def test_imputation_of_volumes_is_that_of_a_direct_solver(depth, height, width, share, seed):
    generator = torch.Generator().manual_seed(seed)
    volumes = torch.randn(2, 2, depth, height, width, generator=generator, dtype=torch.float64)
    missing = torch.rand(2, depth, height, width, generator=generator) < share
    missing[:, 0, 0, 0], missing[:, -1, -1, -1] = False, True
    found = linear_imputation(volumes, missing, tolerance=1e-11)
    for volume, gaps, filled in zip(volumes.numpy(), missing.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(filled, by_loops(volume, gaps), atol=1e-7)


def test_a_volume_of_one_slice_is_imputed_as_the_image_that_it_is():
    images, maps = pictures()
    flat, thick = linear_imputation(images, maps > 0.4), linear_imputation(images[:, :, None], (maps > 0.4)[:, None])
    torch.testing.assert_close(thick[:, :, 0], flat, rtol=0, atol=1e-4)


# grad-cam hands tensors to functions of numpy 2, which warn of how torch gives them back.
OF_GRAD_CAM = "ignore:__array_wrap__ must accept context:DeprecationWarning"


@pytest.mark.filterwarnings(OF_GRAD_CAM)
@pytest.mark.parametrize("side", [37, 64])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_imputation_is_that_of_pytorch_grad_cam(side, share):
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 3, side, side + 3, generator=generator)
    blobs = functional.interpolate(torch.rand(2, 1, 5, 5, generator=generator), images.shape[2:], mode="bicubic")[:, 0]
    missing = blobs > torch.quantile(blobs.flatten(1), 1 - share, dim=1)[:, None, None]
    found = linear_imputation(images, missing)
    for image, gaps, filled in zip(images, missing, found, strict=True):
        theirs = NoisyLinearImputer(noise=0)(image, 1 - gaps.float())
        torch.testing.assert_close(filled, theirs, rtol=0, atol=1e-4)


def test_imputation_takes_few_rounds_whatever_the_size():
    # What sets its cost: without the coarser grids it would take rounds by the hundred here.
    generator = torch.Generator().manual_seed(3)
    for side in (64, 128, 256):
        images = torch.randn(1, 1, side, side, generator=generator)
        away = torch.arange(side).sub(side / 2).square()
        missing = (away[:, None] + away)[None] < side**2 / 5
        linear_imputation(images, missing, most=25)
        with pytest.raises(RunError, match="did not reach its tolerance of 1e-06 in 3 iterations"):
            linear_imputation(images, missing, most=3)


@pytest.mark.parametrize("size", [(32, 32, 32), (3, 64, 64), (1, 128, 128), (2, 256), (1, 4, 200)])
def test_imputation_of_volumes_and_of_thin_images_takes_few_rounds_too(size):
    # A short side is not halved, but the others are; without coarser grids 2 x 256 pixels take more than 100 rounds.
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(1, 1, *size, generator=generator)
    missing = torch.ones(1, *size, dtype=torch.bool)
    missing.flatten(1)[:, :: images.numel() // 5] = False
    linear_imputation(images, missing, most=30)


def test_what_is_there_stays_and_what_is_constant_is_restored():
    images, maps = pictures()
    missing = maps > 0.5
    found = linear_imputation(images, missing)
    kept = ~missing[:, None].expand_as(images)
    assert torch.equal(found[kept], images[kept])
    assert (found[~kept] != images[~kept]).all()
    plain = torch.full_like(images, 3.25)
    torch.testing.assert_close(linear_imputation(plain, missing), plain, rtol=0, atol=1e-4)
    assert torch.equal(linear_imputation(images, torch.zeros_like(missing)), images)


@pytest.mark.parametrize("hidden", [0.0, 1e6, torch.inf, torch.nan])
def test_what_is_hidden_decides_nothing(hidden):
    images, maps = pictures()
    missing = maps > 0.5
    other = images.masked_fill(missing[:, None], hidden)
    assert torch.equal(linear_imputation(other, missing), linear_imputation(images, missing))


def test_an_imputed_value_lies_between_the_known_ones():
    images, maps = pictures()
    found = linear_imputation(images, maps > 0.3)
    known = images.masked_fill((maps > 0.3)[:, None], torch.nan).flatten(2).numpy()
    low, high = np.nanmin(known, axis=2), np.nanmax(known, axis=2)
    assert (found.flatten(2).numpy() >= low[..., None] - 1e-4).all()
    assert (found.flatten(2).numpy() <= high[..., None] + 1e-4).all()


def test_what_cannot_be_imputed_is_refused():
    with pytest.raises(MetricError, match="all pixels of an image are missing, so there is nothing to impute them from"):
        linear_imputation(torch.rand(2, 1, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool))
    with pytest.raises(MetricError, match=r"imputation takes images .* or volumes .*, got \[1, 1, 2, 2, 2, 2\]"):
        linear_imputation(torch.rand(1, 1, 2, 2, 2, 2), torch.zeros(1, 2, 2, 2, 2, dtype=torch.bool))


# ---- the metrics


def their_shares(percentiles: list[int], pixels: int) -> list[float]:
    """The shares of pixels that pytorch-grad-cam removes: the values at or above the percentile, without ties."""
    return sorted((pixels - int(np.ceil((pixels - 1) * percentile / 100))) / pixels for percentile in percentiles)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off the noise of pytorch-grad-cam, which has no seed of its own."""
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    _, weighting = NoisyLinearImputer.__init__.__defaults__
    monkeypatch.setattr(NoisyLinearImputer.__init__, "__defaults__", (0.0, weighting))


@pytest.mark.filterwarnings(OF_GRAD_CAM)
@pytest.mark.usefixtures("silent")
def test_road_is_that_of_pytorch_grad_cam_up_to_the_noise():
    from pytorch_grad_cam.metrics import road as theirs
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    model, (images, maps) = tiny(), pictures()
    percentiles = [10, 30, 50, 70, 90]
    shares = their_shares(percentiles, SIDE**2)
    targets = [ClassifierOutputSoftmaxTarget(int(one)) for one in model(images).argmax(dim=1)]
    known = evidence(model, images, maps)
    pairs = [
        (road, theirs.ROADCombined),
        (road_morf, theirs.ROADMostRelevantFirstAverage),
        (road_lerf, theirs.ROADLeastRelevantFirstAverage),
    ]
    for make, their in pairs:
        expected = their(percentiles)(images, maps.numpy(), targets, model)
        values, _ = make(shares, noise=0).judge(known)
        np.testing.assert_allclose(values, expected, atol=2e-6)
        assert np.abs(expected).min() > 1e-5


def test_shares_are_rounded_and_those_of_pytorch_grad_cam_lie_within_a_pixel():
    tenths = [0.1 * step for step in range(1, 10)]
    for pixels in (144, 224 * 224, 1000):
        ours = perturbed_pixels(pixels, tenths)
        theirs = torch.tensor(their_shares([10 * step for step in range(1, 10)], pixels)) * pixels
        assert (ours - theirs).abs().max() <= 1.001


def test_road_is_that_of_quantus_for_two_classes():
    # Quantus counts how often the class stays the predicted one: of two classes, where the confidence stays above a half.
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    model, (images, maps) = tiny(channels=1, classes=2), pictures(12, channels=1)
    with torch.no_grad():
        model[-1].bias -= model(images).mean(dim=0)  # so that the classes are close, and some images change theirs
        targets = model(images).argmax(dim=1).numpy()
    percentages = [10, 30, 50, 70, 90]
    metric = quantus.ROAD(percentages=percentages, noise=0.0, normalise=False, disable_warnings=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of scipy's or numpy's, about what Quantus calls
        theirs = metric(model, images.numpy(), targets, maps[:, None].numpy(), softmax=True, device="cpu")
    shares = [int(SIDE**2 * percentage / 100) / SIDE**2 for percentage in percentages]
    _, curves = road_morf(shares, noise=0, keep_curve=True).judge(evidence(model, images, maps))
    ours = (curves > 0.5).double().mean(dim=0)
    np.testing.assert_allclose(ours, [theirs[percentage] for percentage in percentages], atol=1e-12)
    assert 0 < ours.mean() < 1


def test_road_by_a_slow_loop():
    model, (images, maps) = tiny(), pictures()
    known = evidence(model, images, maps)
    shares, found = (0.2, 0.6), {"most": [], "least": []}
    for number, (image, one) in enumerate(zip(images.numpy(), maps.numpy(), strict=True)):
        for first, order in (("most", np.argsort(-one.ravel())), ("least", np.argsort(one.ravel()))):
            scores = []
            for share in shares:
                missing = np.zeros(SIDE**2, dtype=bool)
                missing[order[: round(share * SIDE**2)]] = True
                filled = torch.from_numpy(by_loops(image.astype(float), missing.reshape(SIDE, SIDE))).float()
                scores.append(float(known["ask"]([(filled[None], torch.tensor([number]))])))
            found[first].append(scores)
    most, least = (np.array(found[first]) for first in ("most", "least"))
    confidence = known["confidence"].numpy()[:, None]
    for make, curve in ((road_morf, most), (road_lerf, least)):
        values, kept = make(shares, noise=0, keep_curve=True).judge(known)
        np.testing.assert_allclose(kept, curve, atol=1e-5)
        np.testing.assert_allclose(values, (curve - confidence).mean(axis=1), atol=1e-5)
    values, kept = road(shares, noise=0, keep_curve=True).judge(known)
    np.testing.assert_allclose(kept, (least - most) / 2, atol=1e-5)
    np.testing.assert_allclose(values, ((least - most) / 2).mean(axis=1), atol=1e-5)


def test_noise_is_normal_on_imputed_pixels_only_and_the_same_for_all_shares():
    images, maps = pictures()
    blocks: dict[float, list[Tensor]] = {}
    for noise in (0.0, 0.01):
        seen: list[Tensor] = []

        def ask(given: Any, seen: list[Tensor] = seen) -> Tensor:
            seen.extend(some for some, _ in given)
            return torch.zeros(len(seen) * 4)

        road((0.3, 0.9), noise=noise).judge(evidence(tiny(), images, maps) | {"ask": ask})
        blocks[noise] = seen
    extra = [noisy - silent for noisy, silent in zip(blocks[0.01], blocks[0.0], strict=True)]
    for some, share in zip(extra, (0.3, 0.9, 0.3, 0.9), strict=True):
        assert float((some != 0).double().mean()) == pytest.approx(share, abs=0.01)
    both = (extra[0] != 0) & (extra[1] != 0)
    torch.testing.assert_close(extra[0][both], extra[1][both], rtol=0, atol=1e-6)
    values = extra[1][extra[1] != 0] / 0.01
    assert len(values) > 2000
    assert float(values.mean()) == pytest.approx(0, abs=0.08)
    assert float(values.std()) == pytest.approx(1, abs=0.05)
    assert float((values.abs() < 1).double().mean()) == pytest.approx(0.683, abs=0.03)


def test_noise_is_finite_for_all_that_can_be_drawn():
    images, maps = pictures()
    ends = torch.tensor([0.0, 1 - 2.0**-24])

    def draw(shape: Any, name: str) -> Tensor:
        return ends[torch.randint(2, (4, *shape))]

    def ask(blocks: Any) -> Tensor:
        assert all(some.isfinite().all() for some, _ in blocks)
        return torch.zeros(4)

    road_morf((0.5,)).judge(evidence(tiny(), images, maps) | {"ask": ask, "draw": draw})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: road(()), r"fractions are increasing shares of pixels, each above 0 and below 1; got \(\)"),
        (lambda: road((0.0, 0.5)), "above 0 and below 1"),
        (lambda: road_morf((0.5, 1.0)), "above 0 and below 1"),
        (lambda: road_lerf((0.5, 0.2)), "increasing"),
        (lambda: road(noise=-1), "noise is a standard deviation, 0 for none; got -1"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(MetricError, match=message):
        make()


def test_road_of_volumes_of_one_slice_is_that_of_images():
    images, maps = pictures()
    flat, known = tiny(), evidence(tiny(), images, maps)
    thick = evidence(nn.Sequential(nn.Flatten(1, 2), flat), images[:, :, None], maps[:, None])
    for metric in (road((0.3, 0.6), keep_curve=True), road_morf((0.5,)), road_lerf((0.5,))):
        for found, expected in zip(metric.judge(thick), metric.judge(known), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# ---- in a run


def batch(count: int = 4, start: int = 0) -> dict[str, Any]:
    images = [torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(i)) for i in range(start, start + count)]
    return {"images": torch.stack(images), "ids": [f"image {index}" for index in range(start, start + count)]}


def score(metrics: Any, loader: Any = None, **choices: Any) -> Any:
    chosen: dict[str, Any] = {"layers": ["0"], "methods": ("gradcam", "random"), "progress": False} | choices
    return xaieval.score(tiny(), [batch()] if loader is None else loader, metrics=metrics, **chosen)


def test_road_by_name_in_a_run():
    scores = score(["average_drop", *NAMES], protocol=Protocol(fill="blur"))
    rows = scores.rows
    np.testing.assert_allclose(rows["road"], (rows["road_lerf"] - rows["road_morf"]) / 2, atol=1e-6)
    assert [METRICS[name].higher_is_better for name in NAMES] == [True, False, True]
    assert scores.manifest["run"]["metric settings"]["road"]["noise"] == 0.01


def test_road_depends_on_no_batch_and_its_noise_on_the_seed():
    made = [road((0.2, 0.6)), road_morf((0.2, 0.6)), road_lerf((0.2, 0.6))]
    whole, parts = score(made).rows, score(made, [batch(1), batch(3, 1)], batch_size=5).rows
    pd.testing.assert_frame_equal(whole[NAMES], parts[NAMES], rtol=1e-4, atol=1e-6)
    of_gradcam = whole["method"] == "gradcam"
    assert (whole.loc[of_gradcam, "road"] != score(made, seed=1).rows.loc[of_gradcam, "road"]).all()
    silent = [score(road((0.2, 0.6), noise=0), seed=seed).rows.loc[of_gradcam, "road"] for seed in (0, 1)]
    np.testing.assert_allclose(*silent, atol=1e-6)


@pytest.mark.slow
@pytest.mark.shared
def test_on_real_images_maps_of_the_last_block_beat_random_ones_beyond_chance(imagenet_weights, ucmerced_folder):
    model = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    model.load_state_dict(load_file(imagenet_weights))
    pictures = ucmerced(ucmerced_folder, Preprocessing(160, 183, mean=(0.5,) * 3, std=(0.5,) * 3)).spread(12)
    loader = pictures.loader(batch_size=12)
    scores = xaieval.score(model, loader, ["blocks.6"], ["gradcam", "random"], metrics=road((0.2, 0.5)), progress=False)
    table = scores.summary().droplevel("layer")
    assert table.loc["gradcam", "road_low"] > table.loc["random", "road_high"]
