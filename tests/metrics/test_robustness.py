"""Robustness: by hand, by slow loops, against captum with the same noise, and in a run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, Saliency
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max as captum_sensitivity_max
from scipy.stats import kstest, spearmanr
from torch import Tensor, nn
from torch.nn import functional

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.errors import MetricError
from xaieval.metrics import (
    METRICS,
    MeanOverImages,
    infidelity,
    max_sensitivity,
    pearson,
    stability_flip,
    stability_shift,
)
from xaieval.metrics.changes import NOISE, relative_change
from xaieval.metrics.robustness import _squared_error

NAMES = ("max_sensitivity", "infidelity", "stability_shift", "stability_flip")

Draw = Callable[[Sequence[int], str], Tensor]


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()


def pictures(count: int = 5, start: int = 0) -> Tensor:
    return torch.stack(
        [torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(index)) for index in range(start, start + count)]
    )


def drawn(count: int) -> Draw:
    """Random numbers by image and name, as a run draws them for its images "0", "1", ..."""

    def draw(shape: Sequence[int], name: str) -> Tensor:
        found = []
        for number in range(count):
            digest = hashlib.sha256(f"0:{number}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            found.append(torch.rand(tuple(shape), generator=generator))
        return torch.stack(found)

    return draw


def same(value: float) -> Draw:
    return lambda shape, name: torch.full((1, *shape), value)


def for_captum(attribute: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """An explanation function as captum calls it: first with a tuple of inputs, returning a tuple, then with a tensor."""
    return lambda inputs: (attribute(inputs[0]),) if isinstance(inputs, tuple) else attribute(inputs)


def noises(metric: str, samples: int, size: float, noise: str, images: Tensor) -> Tensor:
    """The noise that a metric adds to images `[N, C, H, W]`, all samples of an image in a row: `[N * S, C, H, W]`."""
    draw = drawn(len(images))
    every = [size * NOISE[noise](draw(images.shape[1:], f"{metric} {number}")) for number in range(samples)]
    return torch.stack(every, dim=1).flatten(0, 1).float()


# ---- max-sensitivity


def test_max_sensitivity_by_hand():
    images = torch.ones(1, 1, 2, 2)
    maps = images.sum(dim=1)
    metric = max_sensitivity(samples=1, radius=0.02)
    # 0.75 of [0, 1) is 0.5 of [-1, 1), so 0.01 is added to each pixel: |0.01, ...| / |1, ...|.
    assert float(metric.per_image(maps, images, lambda x: x.sum(dim=1), same(0.75))) == pytest.approx(0.01, abs=1e-8)
    # Twice the map: the change doubles, and so does what it is divided by.
    twice = metric.per_image(2 * maps, images, lambda x: 2 * x.sum(dim=1), same(0.75))
    assert float(twice) == pytest.approx(0.01, abs=1e-8)
    assert float(metric.per_image(maps, images, lambda x: maps, same(0.75))) == 0


@pytest.mark.parametrize("noise", list(NOISE))
def test_max_sensitivity_is_the_largest_of_a_slow_loop(noise):
    images, model = pictures(3), tiny()

    def attribute(altered: Tensor) -> Tensor:
        return (altered * model[0].weight.sum()).square().sum(dim=1).detach()

    found = max_sensitivity(samples=4, radius=0.1, noise=noise).per_image(
        attribute(images), images, attribute, drawn(len(images))
    )
    added = noises("max-sensitivity", 4, 0.1, noise, images).view(3, 4, 3, 12, 12)
    for number in range(3):
        before, largest = attribute(images[number : number + 1]).double(), 0.0
        for sample in range(4):
            after = attribute((images[number] + added[number, sample])[None]).double()
            change = math.sqrt(float(((after - before) ** 2).sum())) / math.sqrt(float((before**2).sum()))
            largest = max(largest, change)
        assert float(found[number]) == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("noise", list(NOISE))
def test_max_sensitivity_is_that_of_captum_to_1e_4_given_the_same_noise(noise):
    model, images = tiny(), pictures(4)
    targets = torch.tensor([0, 3, 1, 4])
    saliency = Saliency(model)

    def attribute(altered: Tensor) -> Tensor:
        repeated = targets.repeat_interleave(len(altered) // 4)
        return saliency.attribute(altered.clone().requires_grad_(), target=repeated, abs=False).sum(dim=1)

    found = max_sensitivity(samples=6, radius=0.3, noise=noise).per_image(attribute(images), images, attribute, drawn(4))
    added = noises("max-sensitivity", 6, 0.3, noise, images)
    expected = captum_sensitivity_max(for_captum(attribute), images, perturb_func=lambda x: x + added, n_perturb_samples=6)
    assert expected.min() > 1e-3, "an explanation that never changes would compare nothing"
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-4)


def test_a_map_of_zeros_has_no_sensitivity_where_captum_divides_by_one():
    images = torch.ones(2, 1, 2, 2)
    maps = torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])

    def attribute(altered: Tensor) -> Tensor:
        return maps if torch.equal(altered, images) else maps + 3

    ours = max_sensitivity(samples=1).per_image(maps, images, attribute, lambda shape, name: torch.rand(2, *shape))
    theirs = captum_sensitivity_max(for_captum(attribute), images, n_perturb_samples=1)
    assert ours.isnan().tolist() == [True, False]
    assert theirs.tolist() == pytest.approx([6, 3])  # a norm of 6, taken for a share
    assert float(ours[1]) == pytest.approx(3)


def test_one_map_with_nan_among_many_makes_the_value_nan():
    images = torch.ones(1, 1, 2, 2)
    calls = []

    def attribute(altered: Tensor) -> Tensor:
        calls.append(altered)
        return torch.full((1, 2, 2), torch.nan if len(calls) == 2 else 1.0)

    found = max_sensitivity(samples=3).per_image(torch.ones(1, 2, 2), images, attribute, same(0.3))
    assert len(calls) == 3
    assert found.isnan().all()


def test_relative_change_is_of_any_dimensions():
    volume = torch.rand(2, 3, 4, 5)
    assert relative_change(volume, 3 * volume).tolist() == pytest.approx([2, 2])


# ---- infidelity


def test_infidelity_by_hand():
    images, maps = torch.zeros(1, 2, 1, 2), torch.tensor([[[1.0, 2.0]]])
    noise = 0.5  # 0.75 of uniform numbers, half width 1: what is foretold is 2 channels * 0.5 * (1 + 2) = 3
    settings = {"samples": 1, "size": 1.0, "perturbation": "uniform"}
    seen = []

    def ask(blocks: Any) -> Tensor:
        ((altered, of),) = blocks
        seen.append((altered, of))
        return torch.tensor([0.2])

    found = infidelity(**settings, scaled=False).per_image(torch.tensor([0.7]), maps, images, ask, same(0.75))
    assert float(found) == pytest.approx((3 - (0.7 - 0.2)) ** 2)
    assert torch.equal(seen[0][0], images - noise), "the noise is taken away from the image, as in captum"
    assert seen[0][1].tolist() == [0]
    assert float(infidelity(**settings).per_image(torch.tensor([0.7]), maps, images, ask, same(0.75))) == pytest.approx(0)


def test_infidelity_of_a_linear_model_s_gradient_is_zero_and_that_of_a_wrong_sign_is_not():
    images, weights = pictures(3), torch.randn(12, 12, generator=torch.Generator().manual_seed(9))

    def ask(blocks: Any) -> Tensor:
        return torch.cat([(altered.double() * weights).flatten(1).sum(dim=1) for altered, _ in blocks])

    confidence = ask([(images, None)])
    for maps, right in ((weights, True), (-weights, False), (2 * weights, False)):
        value = infidelity(size=0.2, perturbation="gaussian", scaled=False).per_image(
            confidence, maps.expand(3, 12, 12), images, ask, drawn(3)
        )
        assert (value.max() < 1e-9) == right
    # A common factor does not matter to `scaled`, not even a negative one; the wrong shape does.
    for maps, right in ((weights, True), (-7 * weights, True), (weights.flip(0), False)):
        value = infidelity(perturbation="gaussian").per_image(confidence, maps.expand(3, 12, 12), images, ask, drawn(3))
        assert (value.max() < 1e-9) == right


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("noise", list(NOISE))
def test_infidelity_is_that_of_captum_to_1e_4_given_the_same_noise(noise, scaled):
    model, images = tiny(), pictures(4)
    targets = torch.tensor([0, 3, 1, 4])
    maps = Saliency(model).attribute(images.clone().requires_grad_(), target=targets, abs=False).mean(dim=1)
    maps = torch.cat([maps[:3], torch.zeros(1, 12, 12)])  # the last one foretells nothing

    def confidence(altered: Tensor, of: Tensor) -> Tensor:
        with torch.no_grad():
            return model(altered).double().softmax(dim=1).gather(1, of[:, None])[:, 0]

    def ask(blocks: Any) -> Tensor:
        return torch.cat([confidence(altered, targets[of]) for altered, of in blocks])

    found = infidelity(samples=7, size=0.4, perturbation=noise, scaled=scaled).per_image(
        confidence(images, targets), maps, images, ask, drawn(4)
    )
    added = noises("infidelity", 7, 0.4, noise, images)
    expected = captum_infidelity(
        lambda x: model(x).double().softmax(dim=1),
        lambda x: (added, x - added),
        images,
        maps[:, None].expand_as(images),
        target=targets,
        n_perturb_samples=7,
        normalize=scaled,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-10)
    assert (found > 1e-8).all()


def slow_squares(samples: int, share: float, count: int, height: int, width: int) -> Tensor:
    """The positions of the squares, drawn as in a run, `[N, S, 1, H, W]`."""
    inside, draw = torch.zeros(count, samples, 1, height, width), drawn(count)
    tall, wide = round(share * height), round(share * width)
    for sample in range(samples):
        corners = draw((2,), f"infidelity {sample}")
        for number in range(count):
            top = int(float(corners[number, 0]) * (height - tall + 1))
            left = int(float(corners[number, 1]) * (width - wide + 1))
            inside[number, sample, 0, top : top + tall, left : left + wide] = 1
    return inside


@pytest.mark.parametrize("scaled", [True, False])
def test_infidelity_by_squares_is_that_of_captum_to_1e_4(scaled):
    model, images = tiny(), pictures(4)[..., :10]
    targets = torch.tensor([0, 3, 1, 4])
    maps = torch.rand(4, 12, 10, generator=torch.Generator().manual_seed(4))

    def ask(blocks: Any) -> Tensor:
        with torch.no_grad():
            return torch.cat(
                [model(altered).double().softmax(dim=1).gather(1, targets[of][:, None])[:, 0] for altered, of in blocks]
            )

    confidence = ask([(images, torch.arange(4))])
    found = infidelity(samples=5, size=0.3, scaled=scaled).per_image(confidence, maps, images, ask, drawn(4))
    inside = slow_squares(5, 0.3, 4, 12, 10).flatten(0, 1).expand(-1, 3, -1, -1)
    expected = captum_infidelity(
        lambda x: model(x).double().softmax(dim=1),
        lambda x: (inside, x * (1 - inside)),
        images,
        maps[:, None].expand_as(images),
        target=targets,
        n_perturb_samples=5,
        normalize=scaled,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-10)
    assert (inside.flatten(1).sum(dim=1) == 3 * 4 * 3).all(), "4 x 3 pixels of 3 channels"


def test_squares_lie_anywhere_and_never_reach_over_the_edge():
    images, seen = torch.ones(1, 1, 4, 5), []

    def ask(blocks: Any) -> Tensor:
        seen.extend(altered for altered, _ in blocks)
        return torch.zeros(len(seen))

    for value in (0.0, 1 - 2.0**-24):
        infidelity(samples=1, size=0.5).per_image(
            torch.ones(1), torch.ones(1, 4, 5), images, lambda b: ask(b)[-1:], same(value)
        )
    assert (seen[0][0, 0] == 0).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert (seen[1][0, 0] == 0).nonzero().tolist() == [[2, 3], [2, 4], [3, 3], [3, 4]]


def test_the_best_factor_is_the_best_one():
    foretold, found = torch.randn(3, 6), torch.randn(3, 6)
    best = _squared_error(foretold, found)
    for factor in (-1.0, 0.0, 0.3, 1.0, 2.5):
        assert (best <= _squared_error(factor * foretold, found, scaled=False) + 1e-12).all()


def test_infidelity_asks_once_for_all_samples_and_draws_one_block_at_a_time():
    images, made = pictures(3), []

    def ask(blocks: Any) -> Tensor:
        assert not isinstance(blocks, list | tuple), "a generator, so that memory stays bounded"
        made.extend(len(altered) for altered, _ in blocks)
        return torch.zeros(sum(made))

    infidelity(samples=4).per_image(torch.zeros(3), torch.ones(3, 12, 12), images, ask, drawn(3))
    assert made == [3, 3, 3, 3]


# ---- noise


def test_noise_has_the_distribution_that_it_is_called_by():
    numbers = torch.rand(20_000, generator=torch.Generator().manual_seed(3))
    assert kstest(NOISE["gaussian"](numbers), "norm").pvalue > 0.01
    assert kstest(NOISE["uniform"](numbers), "uniform", args=(-1, 2)).pvalue > 0.01


def test_gaussian_noise_is_finite_and_symmetric_at_both_ends_of_what_is_drawn():
    ends = NOISE["gaussian"](torch.tensor([0.0, 1 - 2.0**-24]))
    assert ends.isfinite().all()
    assert float(ends.sum()) == pytest.approx(0, abs=1e-6)


# ---- stability


def slow_shift(image: Tensor, axis: int, step: int) -> Tensor:
    """An image `[C, H, W]` shifted pixel by pixel; pixels from outside take the nearest pixel inside."""
    moved = torch.empty_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            from_y, from_x = (y - step, x) if axis == 1 else (y, x - step)
            moved[:, y, x] = image[:, min(max(from_y, 0), image.shape[1] - 1), min(max(from_x, 0), image.shape[2] - 1)]
    return moved


def test_images_are_shifted_in_all_directions_with_their_edge_repeated():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    seen = []

    def explain(altered: Tensor) -> Tensor:
        seen.append(altered)
        return altered[:, 0]

    found = stability_shift(share=0.3).per_image(image[:, 0], image, explain)
    assert [altered[0, 0].tolist() for altered in seen] == [
        [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]],
        [[4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]],
        [[0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]],
        [[1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]],
    ]
    assert found.tolist() == pytest.approx([1]), "a map that is the image moves along"


def test_stability_by_hand_of_a_map_that_stays_where_it_is():
    ramp = torch.tensor([[[0.0, 1.0, 0.0, 2.0, 1.0]]])  # [1, 1, 5]
    image = torch.zeros(1, 1, 1, 5)
    # Along the height one pixel is the whole side, so look at volumes of one axis: [N, C, L] and [N, L].
    value = stability_shift(share=0.2).per_image(ramp[0], image[:, :, 0], lambda altered: ramp[0])
    early, late = ramp[..., :-1], ramp[..., 1:]
    assert float(value) == pytest.approx(float(pearson(early, late)))
    assert float(stability_flip().per_image(ramp, image, lambda altered: ramp)) == pytest.approx(
        float(pearson(ramp, ramp.flip(-1)))
    )


@pytest.mark.parametrize("similarity", ["pearson", "spearman"])
def test_stability_by_a_slow_loop(similarity):
    images = torch.rand(3, 2, 7, 9, generator=torch.Generator().manual_seed(2))
    kernel = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(3))

    def explain(altered: Tensor) -> Tensor:
        return functional.conv2d(altered, kernel, padding=1)[:, 0].relu() + 0.1 * altered.flip(-1)[:, 0]

    maps = explain(images)
    found = stability_shift(share=0.25, similarity=similarity).per_image(maps, images, explain)
    mirrored = stability_flip(similarity).per_image(maps, images, explain)
    alike = {"pearson": lambda a, b: np.corrcoef(a, b)[0, 1], "spearman": lambda a, b: spearmanr(a, b).statistic}[similarity]
    for number in range(3):
        values = []
        for axis, step in ((1, 2), (1, -2), (2, 2), (2, -2)):  # a quarter of 7 and of 9, to whole pixels
            after = explain(slow_shift(images[number], axis, step)[None])[0]
            both = []
            for y in range(7):
                for x in range(9):
                    ty, tx = (y + step, x) if axis == 1 else (y, x + step)
                    if 0 <= ty < 7 and 0 <= tx < 9:
                        both.append((float(maps[number, y, x]), float(after[ty, tx])))
            values.append(alike(*zip(*both, strict=True)))
        assert float(found[number]) == pytest.approx(np.mean(values), abs=1e-6)
        after = explain(images[number].flip(-1)[None])[0]
        pairs = [(float(maps[number, y, x]), float(after[y, 8 - x])) for y in range(7) for x in range(9)]
        assert float(mirrored[number]) == pytest.approx(alike(*zip(*pairs, strict=True)), abs=1e-6)


def test_stability_by_structural_similarity_is_one_for_what_moves_along():
    images = torch.rand(2, 1, 16, 16)
    for metric in (stability_shift(similarity="ssim"), stability_flip("ssim")):
        assert metric.per_image(images[:, 0], images, lambda altered: altered[:, 0]).tolist() == pytest.approx([1, 1])


def test_a_constant_map_has_no_stability():
    images, maps = torch.rand(2, 1, 8, 8), torch.stack([torch.zeros(8, 8), torch.rand(8, 8)])
    for metric in (stability_shift(), stability_flip()):
        assert metric.per_image(maps, images, lambda altered: maps).isnan().tolist() == [True, False]


def test_volumes_are_shifted_along_each_of_their_axes():
    volumes, seen = torch.rand(2, 1, 4, 5, 6), []

    def explain(altered: Tensor) -> Tensor:
        seen.append(altered)
        return altered[:, 0]

    assert stability_shift().per_image(volumes[:, 0], volumes, explain).tolist() == pytest.approx([1, 1])
    assert len(seen) == 6
    assert torch.equal(seen[0][:, :, 1:], volumes[:, :, :-1]), "at least by one pixel"
    assert torch.equal(seen[5][..., :-1], volumes[..., 1:])
    assert stability_flip().per_image(volumes[:, 0], volumes, explain).tolist() == pytest.approx([1, 1])


# ---- registry, settings, errors


def test_the_metrics_are_found_by_name_with_their_settings_and_directions():
    assert [METRICS[name].higher_is_better for name in NAMES] == [False, False, True, True]
    assert METRICS["max_sensitivity"].settings == {"samples": 10, "radius": 0.02, "noise": "uniform", "normalised": False}
    assert METRICS["infidelity"].settings == {"samples": 10, "size": 0.25, "perturbation": "square", "scaled": True}
    assert METRICS["stability_shift"].settings == {"share": 1 / 16, "similarity": "pearson"}
    assert METRICS["stability_flip"].settings == {"similarity": "pearson"}
    assert all(METRICS[name].paper and METRICS[name].passes for name in NAMES)
    assert max_sensitivity(normalised=True).needs == ("maps", "images", "explain", "draw")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: max_sensitivity(samples=0), "samples is at least 1, got 0"),
        (lambda: max_sensitivity(radius=0), "radius is positive, got 0"),
        (lambda: max_sensitivity(radius=math.nan), "radius is positive, got nan"),
        (lambda: max_sensitivity(noise="pink"), "no noise 'pink'; known: gaussian, uniform"),
        (lambda: infidelity(samples=-1), "samples is at least 1, got -1"),
        (lambda: infidelity(size=-0.1), "size is positive, got -0.1"),
        (lambda: infidelity(size=1.5), "size of a square is a share of a side, in (0, 1], got 1.5"),
        (
            lambda: infidelity(perturbation="gausian"),
            "no perturbation 'gausian'; did you mean 'gaussian'? known: square, gaussian, uniform",
        ),
        (lambda: stability_shift(share=0.5), "share of a side lies in (0, 0.5), got 0.5"),
        (lambda: stability_shift(similarity="cosine"), "no similarity 'cosine'; known: pearson, spearman, ssim"),
        (lambda: stability_flip("cosine"), "no similarity 'cosine'; known: pearson, spearman, ssim"),
    ],
)
def test_wrong_settings_are_refused_word_for_word(made, message):
    with pytest.raises(MetricError) as error:
        made()
    assert str(error.value) == message


def test_the_mean_over_batches_is_that_over_all_images():
    metric, images = MeanOverImages(stability_flip()), torch.rand(5, 1, 6, 6)

    def explain(altered: Tensor) -> Tensor:
        return altered[:, 0] + 0.5 * altered[:, 0].flip(-1) ** 2

    for part in (images[:3], images[3:]):
        metric.update(explain(part), part, explain)
    expected = stability_flip().per_image(explain(images), images, explain).mean()
    torch.testing.assert_close(metric.compute(), expected)


# ---- in a run


def run(metrics: Any = NAMES, loader: Any = None, **choices: Any) -> Any:
    given = {"layers": ["2"], "methods": ("gradcam", "center", "edges"), "progress": False} | choices
    return xaieval.score(tiny(), [pictures()] if loader is None else loader, metrics=metrics, **given)


def test_a_run_gives_what_captum_gives_for_grad_cam_and_the_run_s_own_noise():
    model, images = tiny(), pictures()
    with torch.no_grad():
        targets = model(images).argmax(dim=1)
    cam = LayerGradCam(model, model[2])

    def attribute(altered: Tensor) -> Tensor:
        repeated = targets.repeat_interleave(len(altered) // 5)
        maps = cam.attribute(altered, target=repeated, relu_attributions=True)
        return functional.interpolate(maps, (12, 12), mode="bilinear")[:, 0].detach()

    scores = run([max_sensitivity(samples=4, radius=0.3), infidelity(samples=4, perturbation="gaussian", size=0.2)])
    rows = scores.rows[scores.rows["method"] == "gradcam"]
    added = noises("max-sensitivity", 4, 0.3, "uniform", images)
    expected = captum_sensitivity_max(for_captum(attribute), images, perturb_func=lambda x: x + added, n_perturb_samples=4)
    alive = attribute(images).flatten(1).any(dim=1).numpy()
    assert alive.sum() >= 3
    np.testing.assert_allclose(rows["max_sensitivity"][alive], expected[alive], rtol=1e-3)
    assert rows["max_sensitivity"][~alive].isna().all()
    added = noises("infidelity", 4, 0.2, "gaussian", images)
    expected = captum_infidelity(
        lambda x: model(x).double().softmax(dim=1),
        lambda x: (added, x - added),
        images,
        attribute(images)[:, None].expand_as(images),
        target=targets,
        n_perturb_samples=4,
        normalize=True,
    )
    np.testing.assert_allclose(rows["infidelity"], expected, rtol=1e-3, atol=1e-9)


def test_values_do_not_depend_on_the_batch_and_change_with_the_seed():
    whole, parts = run(), run(loader=[pictures(2), pictures(3, 2)])
    for name in NAMES:
        np.testing.assert_allclose(whole.rows[name], parts.rows[name], rtol=1e-4, atol=1e-6)
    other = run(seed=1)
    for name in NAMES:
        changed = (whole.rows[name] != other.rows[name]) & whole.rows[name].notna()
        assert changed.any() == (name in ("max_sensitivity", "infidelity"))


def test_controls_show_what_the_metrics_cannot_tell():
    table = run().summary().droplevel("layer")
    assert table.loc["center", "max_sensitivity"] == 0, "a map that ignores the image is the least sensitive"
    assert table.loc["center", "stability_flip"] == pytest.approx(1, abs=1e-6), "and symmetric"
    assert table.loc["center", "stability_shift"] < 0.99, "but does not move along"
    assert table.loc["edges", "stability_shift"] > 0.9, "edges do, and know nothing of the model"


@pytest.mark.slow
def test_squares_tell_a_map_of_the_model_from_noise_where_noise_in_pixels_does_not():
    model = xaieval.models.fpn_scenes()
    prepare = Preprocessing(image_size=128, resize=128, mean=(0.5,) * 3, std=(0.5,) * 3)
    loader = scenes(prepare, size=24).loader(batch_size=24)
    found = {}
    for kind, size in (("square", 0.25), ("gaussian", 0.2)):
        metric = infidelity(perturbation=kind, size=size)
        scores = xaieval.score(model, loader, ["fpn[p3]"], ["gradcam", "random"], metric, progress=False)
        found[kind] = scores.summary()["infidelity"].droplevel("layer")
    assert found["square"]["gradcam"] < 0.8 * found["square"]["random"]
    assert found["gaussian"]["gradcam"] > 0.95 * found["gaussian"]["random"]


def test_a_run_over_volumes():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
    scores = xaieval.score(model, [torch.randn(2, 1, 6, 7, 8)], ["1"], ["layercam"], metrics=NAMES, progress=False)
    assert scores.rows[list(NAMES)].notna().all(axis=None)
