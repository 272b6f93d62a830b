"""Insertion, deletion and pixel flipping: by hand, by slow loops, against the formulas of other tools, and in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

import pickle
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import xaieval
from tests.mutants import mutation_tests
from xaieval.analysis.stats.intervals import mean_interval
from xaieval.config.protocol import Protocol
from xaieval.errors import MetricError, ProtocolError
from xaieval.evaluation.scores import Scores
from xaieval.masking import baseline as replacement_of
from xaieval.metrics import (
    METRICS,
    MeanOverImages,
    area_under,
    deletion,
    insertion,
    lerf,
    morf,
    perturbed_pixels,
    pixel_ranks,
)
from xaieval.report import curves_figure

PROPERTY = settings(deadline=None, max_examples=50)
SIDE = 12


def tiny(channels: int = 3, classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3),
        nn.Tanh(),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, classes),
    ).eval()


def pictures(count: int = 4, channels: int = 3, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Images, and maps without ties."""
    generator = torch.Generator().manual_seed(7)
    maps = torch.stack([torch.randperm(side * side, generator=generator) for _ in range(count)])
    return torch.randn(count, channels, side, side, generator=generator), maps.view(count, side, side) / (side * side)


def asker(model: nn.Module, images: Tensor) -> Any:
    """The `ask` function of a run: confidences of the classes predicted on the images, on any images."""
    with torch.no_grad():
        targets = model(images).argmax(dim=1)

    def ask(blocks: Any) -> Tensor:
        with torch.no_grad():
            found = [model(some).double().softmax(dim=1)[range(len(of)), targets[of]] for some, of in blocks]
        return torch.cat(found)

    return ask


def drawn(shape: Any, name: str) -> Tensor:
    return torch.rand((4, *shape), generator=torch.Generator().manual_seed(1))


def evidence(model: nn.Module, images: Tensor, maps: Tensor, protocol: Protocol | None = None) -> dict[str, Any]:
    ask = asker(model, images)
    own = torch.arange(len(images))
    return {
        "confidence": ask([(images, own)]),
        "maps": maps,
        "images": images,
        "ask": ask,
        "protocol": protocol or Protocol(),
        "draw": drawn,
    }


def judged(metric: Any, known: dict[str, Any]) -> tuple[Tensor, Tensor]:
    values, kept = metric.judge(known)
    return values, kept


# ---- checks that take the module under test

# Of a picture whose confidence is its mean, the map takes the pixels in the order 0.8, 0.4, 0.0, 0.2.
PICTURE = torch.tensor([[[[0.4, 0.2], [0.8, 0.0]]]], dtype=torch.float64)
MAP = torch.tensor([[[0.7, 0.1], [0.9, 0.3]]])


def _means(blocks: Any) -> Tensor:
    return torch.cat([images.double().flatten(1).mean(dim=1) for images, _ in blocks])


def _by_hand(metric: Any) -> tuple[list[float], float]:
    known = {"confidence": PICTURE.flatten(1).mean(1), "maps": MAP, "images": PICTURE, "ask": _means, "draw": drawn}
    values, kept = metric.judge(known | {"protocol": Protocol()})
    return [round(value, 12) for value in kept[0].tolist()], float(values)


def check_deletion_by_hand(module: Any) -> None:
    curve, value = _by_hand(module.deletion(4, keep_curve=True))
    assert curve == [0.35, 0.15, 0.05, 0.05, 0.0]
    assert value == pytest.approx((0.35 / 2 + 0.15 + 0.05 + 0.05) / 4)


def check_insertion_by_hand(module: Any) -> None:
    curve, value = _by_hand(module.insertion(4, "zero", keep_curve=True))
    assert curve == [0.0, 0.2, 0.3, 0.3, 0.35]
    assert value == pytest.approx((0.2 + 0.3 + 0.3 + 0.35 / 2) / 4)


def check_pixel_flipping_by_hand(module: Any) -> None:
    curve, value = _by_hand(module.morf(4, "zero", keep_curve=True))
    assert curve == [0.35, 0.15, 0.05, 0.05, 0.0]
    assert value == pytest.approx(0.35 - (0.35 / 2 + 0.15 + 0.05 + 0.05) / 4)
    curve, value = _by_hand(module.lerf(4, "zero", keep_curve=True))
    assert curve == [0.35, 0.3, 0.3, 0.2, 0.0]
    assert value == pytest.approx(0.35 - (0.35 / 2 + 0.3 + 0.3 + 0.2) / 4)


def check_steps_are_as_wide_as_they_are(module: Any) -> None:
    curve, value = _by_hand(module.deletion(pixels_per_step=3, keep_curve=True))
    assert curve == [0.35, 0.05, 0.0]
    assert value == pytest.approx(0.75 * (0.35 + 0.05) / 2 + 0.25 * (0.05 + 0.0) / 2)


def check_the_axis_need_not_be_whole(module: Any) -> None:
    curve, value = _by_hand(module.deletion((0, 0.25, 0.5), keep_curve=True))
    assert curve == [0.35, 0.15, 0.05]
    assert value == pytest.approx((0.35 / 2 + 0.15 + 0.05 / 2) / 2)


def check_ties_come_in_reading_order(module: Any) -> None:
    assert module.pixel_ranks(torch.tensor([[[1.0, 2.0, 2.0], [2.0, 0.0, 1.0]]])).tolist() == [[[3, 0, 1], [2, 5, 4]]]


def check_noise_lies_within_the_image(module: Any) -> None:
    _, maps = pictures()
    images, seen = torch.rand(4, 3, SIDE, SIDE) + torch.tensor([0.0, 5.0, 10.0]).view(3, 1, 1), []

    def ask(blocks: Any) -> Tensor:
        seen.extend(some for some, _ in blocks)
        return torch.zeros(4 * len(seen))

    module.morf((0.5, 1.0)).judge(
        {"confidence": torch.zeros(4), "maps": maps, "images": images, "ask": ask, "protocol": Protocol(), "draw": drawn}
    )
    noise = seen[1]
    assert (noise != images).all()
    assert (noise.flatten(2).amin(2) >= images.flatten(2).amin(2)).all()
    assert (noise.flatten(2).amax(2) <= images.flatten(2).amax(2)).all()
    assert ((noise == images) | (seen[0] == noise) | (seen[0] == images)).all()


MUTANTS = {
    "one pixel too many": ("self.ranks < ", "self.ranks <= "),
    "least first": ("descending=True", "descending=False"),
    "ties from the end": ("flat.argsort(dim=1, descending=True, stable=True)", "flat.argsort(dim=1, stable=True).flip(1)"),
    "orders mixed up": ("if self.least_first", "if not self.least_first"),
    "insertion deletes": ("changed if inserts else ~changed", "~changed if inserts else changed"),
    "lerf read wrongly": ("- 1 - self.ranks", "- self.ranks"),
    "over is under": ("confidence - area if self.over", "area - confidence if self.over"),
    "steps taken for equal": ("curves.double(), axis, dim=1)", "curves.double(), dx=1 / (axis.shape[-1] - 1), dim=1)"),
    "width forgotten": ("/ (axis[..., -1] - axis[..., 0])", ""),
    "last pixels forgotten": ("pixels + pixels_per_step, pixels_per_step", "pixels, pixels_per_step"),
    "shares rounded down": ("(shares * pixels).round()", "(shares * pixels - 0.4).floor()"),
    "noise beyond the image": ("low + (high - low)", "low + 9 * (high - low)"),
    "another baseline": ("fill=fill", 'fill="mean"'),
}


test_the_curves_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(),
    [
        "xaieval.masking.fills",
        "xaieval.masking.segments",
        "xaieval.metrics.segments",
        "xaieval.metrics.perturbation",
        "xaieval.metrics.curves",
    ],
    MUTANTS,
    MetricError,
)


# ---- against the formulas of other tools, by slow loops


def by_rise(model: nn.Module, image: Tensor, saliency: Tensor, step: int, mode: str, substrate: Any) -> np.ndarray:
    """Scores as the authors' code of RISE computes them, pixel by pixel and step by step."""
    pixels = saliency.numel()
    target = int(model(image[None]).argmax())
    start, finish = (image, substrate(image[None])[0]) if mode == "del" else (substrate(image[None])[0], image)
    order = np.argsort(saliency.numpy().reshape(-1))[::-1].copy()
    flat, end = start.clone().view(3, pixels), finish.reshape(3, pixels)
    scores = []
    for index in range((pixels + step - 1) // step + 1):
        scores.append(float(model(flat.view_as(image)[None]).softmax(dim=1)[0, target]))
        for place in order[step * index : step * (index + 1)]:
            flat[:, place] = end[:, place]
    return np.array(scores)


def rise_area(scores: np.ndarray) -> float:
    return float((scores.sum() - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1))


def rise_blur(images: Tensor) -> Tensor:
    """Images blurred by the kernel of the authors' example: 11 x 11 pixels, sigma 5."""
    places = torch.arange(-5, 6).double()
    line = torch.exp(-0.5 * (places / 5) ** 2)
    kernel = (line[:, None] * line / line.sum() ** 2).to(images.dtype).expand(3, 1, 11, 11)
    return functional.conv2d(images, kernel, padding=5, groups=3)


@pytest.mark.parametrize(("mode", "make", "substrate"), [("del", deletion, torch.zeros_like), ("ins", insertion, rise_blur)])
def test_insertion_and_deletion_are_those_of_rise(mode, make, substrate):
    model, (images, maps) = tiny(), pictures()
    values, kept = judged(make(baseline=substrate, keep_curve=True, pixels_per_step=16), evidence(model, images, maps))
    with torch.no_grad():
        scores = [by_rise(model, image, one, 16, mode, substrate) for image, one in zip(images, maps, strict=True)]
    np.testing.assert_allclose(kept, scores, atol=1e-6)
    np.testing.assert_allclose(values, [rise_area(one) for one in scores], atol=1e-6)


def test_the_defaults_of_deletion_are_the_zeros_of_rise():
    known = evidence(tiny(), *pictures())
    assert torch.equal(deletion(16).judge(known)[0], deletion(16, torch.zeros_like).judge(known)[0])


def test_the_last_step_of_rise_counts_as_a_whole_one_and_ours_does_not():
    # 144 pixels in steps of 100: the second step has 44.
    model, (images, maps) = tiny(), pictures()
    values, kept = judged(deletion(keep_curve=True, pixels_per_step=100), evidence(model, images, maps))
    theirs = np.array([rise_area(curve.numpy()) for curve in kept])
    true = kept.numpy() @ np.array([100 / 288, 0.5, 44 / 288])
    np.testing.assert_allclose(values, true, atol=1e-12)
    assert (np.abs(values.numpy() - theirs) > 1e-5).all()


def test_of_equal_pixels_ours_are_read_from_the_upper_left_and_those_of_rise_from_the_end():
    flat = torch.zeros(6)
    assert pixel_ranks(flat.view(1, 2, 3)).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert np.flip(np.argsort(flat.numpy(), kind="stable")).tolist() == [5, 4, 3, 2, 1, 0]


def by_xplique(model: nn.Module, images: Tensor, maps: Tensor, steps: int, mode: str, share: float) -> float:
    """The area as Xplique computes it: of the mean curve, with equal steps rounded down and baseline 0."""
    pixels = maps[0].numel()
    targets = model(images).argmax(dim=1)
    order = np.argsort(maps.numpy().reshape(len(maps), -1), axis=-1)[:, ::-1]
    start, end = (images, torch.zeros_like(images)) if mode == "deletion" else (torch.zeros_like(images), images)
    means = []
    for count in np.linspace(0, int(np.floor(pixels * share)), steps + 1, dtype=np.int32):
        inputs = start.clone().flatten(2)
        for number, places in enumerate(order[:, :count]):
            inputs[number][:, places.copy()] = end.flatten(2)[number][:, places.copy()]
        scores = model(inputs.view_as(images)).softmax(dim=1)[range(len(images)), targets]
        means.append(float(scores.double().mean()))
    found = np.array(means)
    return float(np.mean(found[:-1] + found[1:]) * 0.5)


@pytest.mark.parametrize("mode", ["deletion", "insertion"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_insertion_and_deletion_are_those_of_xplique(mode, share):
    model, (images, maps) = tiny(), pictures()
    make = {"deletion": deletion, "insertion": insertion}[mode]
    metric = make([share * step / 8 for step in range(9)], "zero")
    with torch.no_grad():
        theirs = by_xplique(model, images, maps, 8, mode, share)
    assert float(metric.judge(evidence(model, images, maps))[0].mean()) == pytest.approx(theirs, abs=1e-6)


def test_the_steps_of_xplique_are_rounded_down_and_taken_for_equal():
    model, (images, maps) = tiny(), pictures()
    known = evidence(model, images, maps)
    with torch.no_grad():
        theirs = by_xplique(model, images, maps, 10, "deletion", 1.0)
    floors = np.linspace(0, 144, 11, dtype=np.int32)
    values, kept = judged(deletion((floors / 144).tolist(), keep_curve=True), known)
    as_theirs = area_under(kept, torch.linspace(0, 1, 11))
    assert float(as_theirs.mean()) == pytest.approx(theirs, abs=1e-6)
    assert abs(float(values.mean()) - theirs) > 1e-6, "the true widths of 14 and 15 pixels make a difference"


def test_pixel_flipping_is_that_of_quantus():
    # Of one channel: Quantus flips single values of a channel where there are several.
    quantus = pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
    model, (images, maps) = tiny(channels=1), pictures(channels=1)
    with torch.no_grad():
        targets = model(images).argmax(dim=1).numpy()
    metric = quantus.PixelFlipping(
        features_in_step=16, perturb_baseline=0.25, normalise=False, disable_warnings=True, return_aggregate=False
    )
    theirs = metric(model, images.numpy(), targets, maps[:, None].numpy(), softmax=True, device="cpu")
    own = morf(baseline=lambda some: torch.full_like(some, 0.25), keep_curve=True, pixels_per_step=16)
    _, kept = judged(own, evidence(model, images, maps))
    np.testing.assert_allclose(kept[:, 1:], np.array(theirs), atol=1e-6)
    assert kept.shape == (4, 10), "theirs lacks the point before the first step"


def test_the_mean_fall_of_samek_is_over_points_and_ours_over_the_axis():
    values, kept = judged(morf(9, "mean", keep_curve=True), evidence(tiny(), *pictures()))
    falls = (kept[:, :1] - kept).numpy()
    ours = (falls[:, 1:] + falls[:, :-1]).mean(axis=1) / 2
    np.testing.assert_allclose(values, ours, atol=1e-7)
    aopc = falls.sum(axis=1) / 10
    np.testing.assert_allclose(aopc, (9 * ours + falls[:, -1] / 2) / 10, atol=1e-12)


# ---- properties


@PROPERTY
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=4, max_side=5), elements=st.sampled_from([0, 0.25, 0.5, 1]))
)
def test_ranks_are_those_of_a_slow_sort(maps):
    ranks = pixel_ranks(torch.from_numpy(maps)).flatten(1).numpy()
    for flat, found in zip(maps.reshape(len(maps), -1), ranks, strict=True):
        order = sorted(range(len(flat)), key=lambda place: (-flat[place], place))
        assert [int(found[place]) for place in order] == list(range(len(flat)))


@PROPERTY
@given(st.integers(1, 400), st.integers(1, 50))
def test_counts_rise_from_nothing_to_all(pixels, steps):
    for counts in (perturbed_pixels(pixels, steps), perturbed_pixels(pixels, 1, pixels_per_step=steps)):
        assert counts[0] == 0
        assert counts[-1] == pixels
        assert (counts.diff() >= 0).all()
    assert len(perturbed_pixels(pixels, steps)) == steps + 1
    assert len(perturbed_pixels(pixels, 1, pixels_per_step=steps)) == -(-pixels // steps) + 1


@PROPERTY
@given(hnp.arrays(np.float64, (3, 6), elements=st.floats(0, 1)), st.lists(st.floats(0, 1), min_size=6, max_size=6, unique=True))
def test_the_area_is_that_of_numpy_and_between_the_lowest_and_the_highest_point(heights, shares):
    axis = np.sort(shares)
    if axis[-1] - axis[0] < 1e-3:
        return
    found = area_under(torch.from_numpy(heights), torch.from_numpy(axis)).numpy()
    np.testing.assert_allclose(found, np.trapezoid(heights, axis, axis=1) / (axis[-1] - axis[0]), atol=1e-12)
    assert (found >= heights.min(axis=1) - 1e-9).all()
    assert (found <= heights.max(axis=1) + 1e-9).all()


def test_an_axis_without_width_and_a_curve_with_nan_have_no_area():
    assert area_under(torch.ones(1, 2), torch.tensor([0.5, 0.5])).isnan().all()
    assert area_under(torch.tensor([[0.0, torch.nan], [0.0, 1.0]]), torch.tensor([0.0, 1.0])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", ["zero", "mean", "blur", "noise"])
def test_insertion_is_pixel_flipping_read_backwards(name):
    known = evidence(tiny(), *pictures())
    inserted = insertion(9, name, keep_curve=True).judge(known)[1]
    flipped = lerf(9, name, keep_curve=True).judge(known)[1]
    torch.testing.assert_close(inserted, flipped.flip(1), rtol=0, atol=1e-12)
    deleted = deletion(9, name).judge(known)[0]
    torch.testing.assert_close(morf(9, name).judge(known)[0], known["confidence"] - deleted, rtol=0, atol=1e-12)


def test_the_map_that_names_what_counts_wins():
    # The confidence is the mean of the picture, so that the picture is its own best map, and what is left of 1 its worst.
    images = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    known = {"confidence": images.flatten(1).mean(1), "images": images, "ask": _means, "protocol": Protocol(), "draw": drawn}
    for metric in (insertion(12, "zero"), deletion(12), morf(12, "zero"), lerf(12, "zero")):
        best, worst = (metric.judge(known | {"maps": maps[:, 0]})[0] for maps in (images, 1 - images))
        assert ((best > worst) if metric.higher_is_better else (best < worst)).all()


def test_a_pass_holds_one_step_of_the_batch():
    images, maps = pictures()
    sizes = []

    def ask(blocks: Any) -> Tensor:
        sizes.extend(len(some) for some, _ in blocks)
        return torch.zeros(sum(sizes))

    insertion(7).judge(evidence(tiny(), images, maps) | {"ask": ask})
    assert sizes == [4] * 8


# ---- baselines and choices


def test_baselines_are_those_of_masking_whatever_the_run_fills_with():
    images, maps = pictures()
    protocol = Protocol(fill="blur", space="pixels", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    seen: list[Tensor] = []

    def ask(blocks: Any) -> Tensor:
        seen.extend(some for some, _ in blocks)
        return torch.zeros(8)

    known = evidence(tiny(), images, maps, protocol) | {"ask": ask}
    for name in ("zero", "black", "mean", "blur"):
        seen.clear()
        deletion(1, name).judge(known)
        fill = Protocol(fill=name, mean=protocol.mean, std=protocol.std)
        assert torch.equal(seen[0], images)
        assert torch.equal(seen[1], replacement_of(images, fill).expand_as(images))
    seen.clear()
    deletion(1, "black").judge(known)
    np.testing.assert_allclose(seen[1][0, :, 0, 0], [-0.5 / 0.2, -0.4 / 0.3, -0.3 / 0.4], rtol=1e-6)


def test_black_without_mean_and_std_is_refused():
    with pytest.raises(ProtocolError, match=r"give Protocol\(mean=\(\.\.\.\), std=\(\.\.\.\)\)"):
        deletion(baseline="black").judge(evidence(tiny(), *pictures()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: insertion(0), "steps is at least 1, got 0"),
        (lambda: deletion(pixels_per_step=0), "pixels_per_step is at least 1, got 0"),
        (lambda: morf((0.5, 0.2)), r"steps is a number of steps, or two or more increasing shares of pixels in \[0, 1\]; got"),
        (lambda: lerf((0, 1.5)), "increasing shares"),
        (lambda: lerf((0.5,)), "increasing shares"),
        (lambda: lerf((0, 0.5, 0.5)), "increasing shares"),
        (lambda: insertion(baseline="blurr"), "no baseline 'blurr'; did you mean 'blur'"),
        (lambda: area_under(torch.ones(2, 3), torch.ones(2)), r"got \[2, 3\] and \[2\]"),
        (lambda: area_under(torch.ones(2, 1), torch.ones(1)), "S at least 2"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(MetricError, match=message):
        make()


def test_volumes_have_curves_too():
    volumes = torch.rand(2, 1, 3, 4, 5, dtype=torch.float64)
    known = {"confidence": volumes.flatten(1).mean(1), "maps": volumes[:, 0], "images": volumes, "ask": _means}
    known |= {"protocol": Protocol(), "draw": lambda shape, name: torch.rand(2, *shape)}
    for metric in (insertion(6), deletion(6), morf(6), lerf(6, "mean")):
        assert metric.judge(known)[0].isfinite().all()
    curve = deletion(60, keep_curve=True).judge(known)[1][0]
    ordered, _ = volumes[0].flatten().sort(descending=True)
    expected = torch.cat([ordered.sum()[None], ordered.sum() - ordered.cumsum(0)]) / 60
    torch.testing.assert_close(curve, expected)


def test_metrics_can_be_sent_to_other_processes():
    metric = pickle.loads(pickle.dumps(deletion((0, 0.5, 1), keep_curve=True)))
    assert metric == deletion((0, 0.5, 1), keep_curve=True)


# ---- in a run


def batch(count: int = 5, start: int = 0) -> dict[str, Any]:
    images = [torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(i)) for i in range(start, start + count)]
    return {"images": torch.stack(images), "ids": [f"image {index}" for index in range(start, start + count)]}


def score(metrics: Any, loader: Any = None, **choices: Any) -> Scores:
    chosen: dict[str, Any] = {"layers": ["0", "2"], "methods": ("gradcam", "random"), "progress": False} | choices
    return xaieval.score(tiny(), [batch()] if loader is None else loader, metrics=metrics, **chosen)


NAMES = ["insertion", "deletion", "morf", "lerf"]


def test_curves_by_name_in_a_run():
    scores = score(["average_drop", *NAMES])
    assert [name for name in scores.rows if name.endswith("_curve")] == []
    summary = scores.summary()
    for name in NAMES:
        assert summary[name].between(-1, 1).all()
        assert (summary[f"{name}_low"] <= summary[name]).all()
        assert METRICS[name].higher_is_better == (name in ("insertion", "morf"))
    made = scores.manifest["metrics"][1]
    assert made["settings"] == {"steps": 32, "pixels_per_step": None, "baseline": "blur", "keep_curve": False}
    assert scores.manifest["run"]["metric settings"]["morf"]["baseline"] == "noise"


def test_a_run_gives_what_the_functions_give_on_its_maps():
    scores = score([deletion(8, keep_curve=True)], methods=("gradcam",), layers=["2"])
    images = batch()["images"]
    maps = xaieval.explain(tiny(), images, "2", "gradcam")["2"]
    values, kept = judged(deletion(8, keep_curve=True), evidence(tiny(), images, maps))
    np.testing.assert_allclose(scores.rows["deletion"], values, atol=1e-6)
    np.testing.assert_allclose(np.stack(list(scores.rows["deletion_curve"])), kept, atol=1e-6)


def test_numbers_depend_on_no_batch_and_noise_on_the_seed():
    whole, parts = score(NAMES), score(NAMES, [batch(2), batch(3, 2)], batch_size=7)
    pd.testing.assert_frame_equal(whole.rows[NAMES], parts.rows[NAMES], rtol=1e-6, atol=1e-7)
    other = score(NAMES, seed=1).rows
    of_gradcam = whole.rows["method"] == "gradcam"
    assert (whole.rows.loc[of_gradcam, "morf"] != other.loc[of_gradcam, "morf"]).all()
    np.testing.assert_allclose(whole.rows.loc[of_gradcam, "deletion"], other.loc[of_gradcam, "deletion"], atol=1e-7)


def test_curves_are_kept_in_rows_and_files(tmp_path):
    scores = score([insertion(6, keep_curve=True), deletion(3, keep_curve=True, name="del3")], output_dir=tmp_path / "run")
    for rows in (scores.rows, Scores.load(tmp_path / "run").rows):
        assert {np.shape(curve) for curve in rows["insertion_curve"]} == {(7,)}
        assert {np.shape(curve) for curve in rows["del3_curve"]} == {(4,)}
        np.testing.assert_allclose([curve[-1] for curve in rows["insertion_curve"]], rows["confidence"], atol=1e-6)
        np.testing.assert_allclose([curve[0] for curve in rows["del3_curve"]], rows["confidence"], atol=1e-6)


def test_the_mean_over_batches_is_that_over_all_images():
    model, (images, maps) = tiny(), pictures()
    metric, plain = MeanOverImages(deletion(6)), deletion(6)
    expected = []
    for part in (slice(0, 3), slice(3, 4)):
        known = evidence(model, images[part], maps[part])
        metric.update(*(known[need] for need in plain.needs))
        expected.append(plain.judge(known)[0])
    torch.testing.assert_close(metric.compute(), torch.cat(expected).mean())


# ---- the figure


def test_the_figure_shows_means_and_intervals():
    rows = pd.DataFrame({"layer": ["p2"] * 3 + ["p5"] * 2, "method": "gradcam", "area": [0.2, 0.4, np.nan, 0.5, 0.7]})
    rows["area_curve"] = [[1.0, 0.0, 0.2], [0.0, 1.0, 0.4], None, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    figure = curves_figure(rows, ["area", "area"], fractions=(0, 0.1, 1))
    assert len(figure.axes) == 2
    first, second = figure.axes[0].get_lines()
    np.testing.assert_allclose(first.get_ydata(), [0.5, 0.5, 0.3])
    np.testing.assert_allclose(first.get_xdata(), [0, 0.1, 1])
    np.testing.assert_allclose(second.get_ydata(), [0.5, 0.5, 0.5])
    assert all(not band.get_paths() for band in figure.axes[0].collections), "two images have no interval"
    assert figure.axes[0].get_legend_handles_labels()[1] == ["p2, gradcam: 0.300", "p5, gradcam: 0.600"]


def test_bands_are_the_intervals_of_the_means():
    drawn = np.random.default_rng(0).uniform(size=(12, 3))
    rows = pd.DataFrame({"layer": ["p2"] * 12, "method": "gradcam", "area": drawn.mean(axis=1), "area_curve": list(drawn)})
    [band] = curves_figure(rows, "area").axes[0].collections
    edges = band.get_paths()[0].vertices[:, 1]
    expected = [mean_interval(column) for column in drawn.T]
    for low, high in expected:
        assert np.isclose(edges, low).any()
        assert np.isclose(edges, high).any()


def test_a_figure_without_curves_is_refused():
    rows = pd.DataFrame({"layer": ["p2"], "method": "gradcam", "area": [0.2], "status": "ok"})
    message = "the rows have no curves of 'area'; create the metric with keep_curve=True to keep them"
    with pytest.raises(MetricError, match=message):
        curves_figure(rows, "area")
    rows["area_curve"] = [[0.1, 0.2]]
    with pytest.raises(MetricError, match="the curves have 2 points, but fractions has 3"):
        curves_figure(rows, "area", fractions=(0, 0.5, 1))
