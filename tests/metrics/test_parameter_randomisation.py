"""The randomisation test as metrics: by hand, against the sanity check and Quantus, and in fast and compiled runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import xaieval
from tests.mutants import mutation_tests
from tests.noisy_images import Look, drawn, pictures, tiny
from xaieval.errors import AddressError, MetricError
from xaieval.metrics import METRICS, Metric, discrete_entropy, efficient_mprt, mprt, pearson, smooth_mprt, spearman, ssim

Explain = Callable[[Tensor], Tensor]


def looks(explain: Explain) -> Callable[[Tensor], Look]:
    """An `inspect` of maps alone; normalisation makes a quarter of them, and zeros of those that are constant."""

    def inspect(images: Tensor) -> Look:
        maps = explain(images)
        constant = maps.flatten(1).amax(dim=1) == maps.flatten(1).amin(dim=1)
        return Look(maps.masked_fill(constant.view(-1, 1, 1), 0) / 4, maps, torch.zeros(0), torch.zeros(0), None)

    return inspect


def random_models(*explained: Explain) -> Any:
    """A `randomise` with a step for each of these explanations."""

    def randomise(order: str, modules: Any, look: Callable[[Any], Tensor]) -> list[Tensor]:
        seen.append((order, modules))
        return [look(looks(explain)) for explain in explained]

    seen: list[Any] = []
    randomise.seen = seen
    return randomise


def value(metric: Metric, images: Tensor, explain: Explain, randomise: Any) -> Any:
    look = looks(explain)
    own = look(images)
    given = {
        "maps": own.maps,
        "attributions": own.attributions,
        "images": images,
        "inspect_maps": look,
        "draw": drawn(len(images)),
        "randomise": randomise,
    }
    return metric.per_image(*(given[need] for need in metric.needs))


def first(images: Tensor) -> Tensor:
    return images[:, 0]


def mixed(images: Tensor) -> Tensor:
    return images[:, 0] + 2 * images[:, 1]


# ---- checks that take the functions under test


def check_the_mean_over_the_steps(tested: Any) -> None:
    images = pictures(3)
    for similarity, alike in (("spearman", spearman), ("pearson", pearson), ("ssim", ssim)):
        randomise = random_models(first, mixed, lambda x: -x[:, 0])
        metric = tested.mprt("independent", similarity, ["head", "stem"])
        found, curve = value(metric, images, first, randomise)
        maps = [made(images) / (4 if similarity == "ssim" else 1) for made in (first, mixed, lambda x: -x[:, 0])]
        expected = torch.stack([alike(maps[0], other) for other in maps], dim=1)
        torch.testing.assert_close(curve, expected)
        torch.testing.assert_close(found, expected.mean(dim=1))
        assert randomise.seen == [("independent", ("head", "stem"))]
    absolute, _ = value(tested.mprt(absolute=True), images, first, random_models(lambda x: -x[:, 0]))
    assert absolute.tolist() == pytest.approx([1, 1, 1])


def check_steps_without_a_value_are_left_out(tested: Any) -> None:
    images = torch.cat([pictures(2), torch.ones(1, 3, 12, 12)])
    found, curve = value(tested.mprt(), images, first, random_models(lambda x: 0 * x[:, 0], mixed))
    assert curve.isnan().tolist() == [[True, False], [True, False], [True, True]]
    torch.testing.assert_close(found[:2], spearman(first(images), mixed(images))[:2])
    assert found.isnan().tolist() == [False, False, True]


def check_a_map_that_is_constant_up_to_rounding_has_no_order(tested: Any) -> None:
    images = pictures(1)
    metric = tested.mprt()
    zeros, rounded = torch.zeros(1, 12, 12), 1 + 1e-7 * images[:, 0]
    own = Look(images[:, 0], images[:, 0], zeros, zeros, None)
    random = Look(zeros, rounded, zeros, zeros, None)  # flagged as constant, so normalised to zeros
    given = {"maps": own.maps, "attributions": own.attributions, "images": images, "inspect_maps": None, "draw": None}
    given["randomise"] = lambda order, modules, look: [look(lambda x: random)]
    found, _ = metric.per_image(*(given[need] for need in metric.needs))
    assert found.isnan().all()


def check_smooth_maps_are_means_over_the_same_noises(tested: Any) -> None:
    images = 3 * pictures(2)
    draw, maps = drawn(2), [[], []]
    for number in range(4):
        noise = torch.special.ndtri(draw((3, 12, 12), f"smooth-mprt {number}").double() + 2.0**-25).float()
        span = torch.stack([image.max() - image.min() for image in images]).view(2, 1, 1, 1)
        changed = images + (0.3 * span * noise if number else 0)  # the first one is the image itself
        for kept, explain in zip(maps, (first, _bent), strict=True):
            kept.append(explain(changed))
    expected = spearman(torch.stack(maps[0]).mean(dim=0), torch.stack(maps[1]).mean(dim=0))
    found, _ = value(tested.smooth_mprt(samples=4, noise_level=0.3), images, first, random_models(_bent))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    one, _ = value(tested.smooth_mprt(samples=1), images, first, random_models(_bent))
    torch.testing.assert_close(one, spearman(first(images), _bent(images)))


def _bent(images: Tensor) -> Tensor:
    return images[:, 0].square() + images[:, 1]


def check_the_rise_of_complexity(tested: Any) -> None:
    even, two = torch.arange(16.0).view(1, 4, 4), torch.tensor([0.0, 1.0]).repeat(8).view(1, 4, 4)
    images = torch.zeros(1, 3, 4, 4)
    found = value(tested.efficient_mprt(bins=4), images, lambda x: two, random_models(lambda x: even))
    assert float(found) == pytest.approx(1), "4 bins of 4 pixels have twice the entropy of 2 bins of 8"
    found = value(tested.efficient_mprt(bins=4), images, lambda x: even, random_models(lambda x: 0 * even))
    assert float(found) == -1
    assert value(tested.efficient_mprt(), images, lambda x: 0 * even, random_models(lambda x: even)).isnan().all()


def check_discrete_entropy(tested: Any) -> None:
    maps = torch.randn(5, 9, 8, generator=torch.Generator().manual_seed(3)).double()
    maps[1] = 2.5
    for bins in (2, 10, 100):
        for number, found in enumerate(tested.discrete_entropy(maps, bins).tolist()):
            shares = np.histogram(maps[number].numpy(), bins)[0] / 72
            assert found == pytest.approx(-sum(share * math.log(share) for share in shares if share), abs=1e-9)
    maps[0, 0, 0], maps[2, 0, 0] = torch.nan, torch.inf
    assert tested.discrete_entropy(maps).isnan().tolist() == [True, False, True, False, False]


MUTANTS = {
    "the last step": ("curve.nanmean(dim=1), curve", "curve[:, -1], curve"),
    "NaN for a step without a value": ("curve.nanmean", "curve.mean"),
    "signs ignored always": ("if absolute else (before, after)", "if True else (before, after)"),
    "signs counted always": ("if absolute else (before, after)", "if False else (before, after)"),
    "rounding is an order": ("(known.maps == 0).flatten(1).all(dim=1)", "(known.maps != known.maps).flatten(1).all(dim=1)"),
    "raw maps for SSIM": ('if similarity == "ssim":', "if False:"),
    "noise on every image": ("    yield images\n", "    yield images + 1e9\n"),
    "one noise too many": ("range(1, smooth.samples)", "range(1, smooth.samples + 1)"),
    "noise of one size": ("(flat.amax(dim=1) - flat.amin(dim=1))", "torch.ones(len(flat))"),
    "the rise, not its share": ("((after - before) / before)", "(after - before)"),
    "the last value in no bin": (".clamp(max=bins - 1)", ".clamp(max=bins - 2)"),
    "bits": (
        "torch.special.entr(counts / flat.shape[1]).sum(dim=1)",
        "torch.special.entr(counts / flat.shape[1]).sum(dim=1) / 0.7",
    ),
    "zero entropy divides": (".masked_fill(before == 0, torch.nan)", ".nan_to_num(0, 0, 0)"),
}

test_the_metrics_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.parameter_randomisation"], MUTANTS, IndexError
)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40), st.integers(2, 50))
def test_entropy_is_at_most_that_of_all_bins_or_all_pixels(values, bins):
    found = float(discrete_entropy(torch.tensor([[values]]), bins))
    assert -1e-12 <= found <= math.log(min(bins, len(values))) + 1e-9


# ---- the sanity check and Quantus


class Batchnormed(nn.Module):
    """Folded in a fast run: the random parameters have to be those of the model before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(6, 5)
        for norm in (self.stem[1], self.body[1]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.uniform_(0.5, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images)))


@pytest.mark.parametrize(
    ("order", "mode"), [("top_down", "cascading"), ("independent", "independent"), ("complete", "complete")]
)
def test_a_fast_run_gives_the_similarities_of_the_sanity_check_and_gives_the_model_back(order, mode):
    model, images = Batchnormed(), pictures(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    metrics = [mprt(order), Metric("ssim", mprt(order, "ssim").per_image, None, needs=mprt().needs)]
    scores = xaieval.score(model, [images], ["stem"], ["layercam", "edges"], metrics, seed=3, progress=False)
    assert scores.manifest["speed"]["folded_batch_norms"] == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    check = xaieval.sanity_check(model, [images], ["stem"], ["layercam", "edges"], seed=3, progress=False).rows
    check = check[check["mode"] == mode]
    for name, measure in (("mprt", "spearman"), ("ssim", "ssim")):
        for row in scores.rows.to_dict("records"):
            same = (check["image_id"] == row["image_id"]) & (check["method"] == row["method"])
            np.testing.assert_allclose(row[f"{name}_curve"], check.loc[same, measure], atol=1e-4)
            assert row[name] == pytest.approx(np.mean(row[f"{name}_curve"]))
    edges = scores.rows[scores.rows["method"] == "edges"]
    assert edges["mprt"].tolist() == pytest.approx([1] * 3), "knows nothing of the model"


def test_from_the_input_the_steps_are_others_and_the_last_is_the_same():
    given = {"layers": ["stem"], "methods": "layercam", "progress": False}
    curves = {
        order: np.stack(xaieval.score(Batchnormed(), [pictures(3)], metrics=[mprt(order)], **given).rows["mprt_curve"])
        for order in ("top_down", "bottom_up")
    }
    assert curves["top_down"].shape == curves["bottom_up"].shape == (3, 5)
    np.testing.assert_allclose(curves["top_down"][:, -1], curves["bottom_up"][:, -1], atol=1e-6)
    assert np.abs(curves["top_down"][:, 0] - curves["bottom_up"][:, 0]).max() > 0.01


class Fixed(nn.Conv2d):
    """Its initial parameters need no random numbers, so that two tools reset it alike."""

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).sin().view_as(parameter) / 2)


def gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    images = images.detach().clone().requires_grad_()
    score = model(images).gather(1, targets[:, None]).sum()
    return torch.autograd.grad(score, images)[0].sum(dim=1)


def by_quantus(name: str, model: nn.Module, images: Tensor, explain: Any = gradient, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Quantus' own imports and remarks
        quantus = pytest.importorskip("quantus", reason="a tool to compare with, which the package does not need")
        metric = getattr(quantus, name)(abs=False, normalise=False, disable_warnings=True, **options)
        return metric(
            model=model,
            x_batch=images.numpy(),
            y_batch=model(images).argmax(dim=1).numpy(),
            explain_func=lambda model, inputs, targets, **_: explain(
                model, torch.as_tensor(inputs).float(), torch.as_tensor(targets)
            )[:, None].numpy(),
            channel_first=True,
            softmax=True,
        )


def fixed() -> nn.Module:
    model = nn.Sequential(
        Fixed(3, 4, 3), nn.Tanh(), Fixed(4, 4, 3), nn.Tanh(), Fixed(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def test_the_steps_are_those_of_quantus_whose_mean_counts_the_trained_model_too():
    images = pictures(4)
    scores = xaieval.score(fixed(), [images], (), gradient, [mprt(), smooth_mprt("top_down", samples=1)], progress=False).rows
    theirs = by_quantus("MPRT", fixed(), images)
    assert list(theirs) == ["original", "4", "2", "0"]
    np.testing.assert_allclose(np.stack(scores["mprt_curve"], axis=1), [theirs[name] for name in ("4", "2", "0")], atol=1e-5)
    averages = by_quantus("MPRT", fixed(), images, return_average_correlation=True)
    np.testing.assert_allclose(averages, (1 + 3 * scores["mprt"]) / 4, atol=1e-5)  # 1 is no finding about a random model
    smooth = by_quantus("SmoothMPRT", fixed(), images, layer_order="top_down", nr_samples=1)
    np.testing.assert_allclose(np.stack(scores["smooth_mprt_curve"], axis=1), [smooth[k] for k in ("4", "2", "0")], atol=1e-5)


def test_the_rise_of_complexity_is_that_of_quantus():
    images = pictures(4)
    found = xaieval.score(fixed(), [images], (), gradient, [efficient_mprt()], progress=False).rows["efficient_mprt"]
    np.testing.assert_allclose(found, by_quantus("EfficientMPRT", fixed(), images), atol=1e-2)  # a value on the edge of a bin
    assert np.abs(found).max() > 0.05


def test_a_map_without_complexity_has_no_rise_where_quantus_divides_by_zero():
    def half_constant(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = gradient(model, images, targets)
        trained = bool(torch.equal(model[0].weight, fixed()[0].weight))
        return maps.index_fill(0, torch.tensor([1]), 1.0) if trained else maps

    images = pictures(3)
    found = xaieval.score(fixed(), [images], (), half_constant, [efficient_mprt()], progress=False).rows["efficient_mprt"]
    assert found.isna().tolist() == [False, True, False]
    theirs = by_quantus("EfficientMPRT", fixed(), images, explain=half_constant)
    assert np.isinf(theirs).tolist() == [False, True, False]


# ---- in a run, settings, errors


def test_the_columns_of_a_run_do_not_depend_on_the_batch_and_change_with_the_seed():
    few = [mprt("complete"), smooth_mprt("complete", samples=2), efficient_mprt()]
    names = [metric.name for metric in few]
    given = {"layers": ["2"], "methods": ("layercam", "center"), "metrics": few, "progress": False}
    scores = xaieval.score(tiny(), [pictures()], **given)
    parts = xaieval.score(tiny(), [pictures(2), pictures(3, 2)], **given)
    other = xaieval.score(tiny(), [pictures()], seed=1, **given)
    for name in names:
        np.testing.assert_allclose(scores.rows[name], parts.rows[name], rtol=1e-3, atol=1e-4)
        own = scores.rows["method"] == "layercam"
        assert (scores.rows.loc[own, name] != other.rows.loc[own, name]).all()
        summary = scores.summary().loc[("2", "layercam")]
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
    assert scores.summary().loc[("input", "center"), names].tolist() == pytest.approx([1, 1, 0])


def test_a_method_that_raises_leaves_the_model_as_it_was():
    model, calls = Batchnormed(), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def failing(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        calls.append(model.head.weight.clone())
        if len(calls) == 3:
            raise OSError("broken")
        return images[:, 0]

    with pytest.raises(OSError, match="broken"):
        xaieval.score(model, [pictures(2)], (), failing, [mprt()], progress=False)
    assert not torch.equal(calls[1], calls[0]), "the head was random by then"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_parts_can_be_named():
    few = mprt(modules=("head", "stem"))
    rows = xaieval.score(Batchnormed(), [pictures(2)], ["stem"], "gradcam", [few], progress=False).rows
    assert [len(curve) for curve in rows["mprt_curve"]] == [2, 2]
    with pytest.raises(AddressError, match="no module with parameters matches 'haed'; did you mean 'head'"):
        xaieval.score(Batchnormed(), [pictures(2)], ["stem"], "gradcam", [mprt(modules="haed")], progress=False)


def test_settings_are_kept_and_wrong_ones_refused():
    assert METRICS["mprt"].settings == {"order": "top_down", "similarity": "spearman", "modules": None, "absolute": False}
    assert METRICS["smooth_mprt"].settings["order"] == "bottom_up"
    assert METRICS["mprt"].passes == "the method once for each part of the model"
    assert METRICS["efficient_mprt"].settings == {"bins": 100}
    for made, message in (
        (lambda: mprt("top-down"), "no order 'top-down'; did you mean 'top_down'"),
        (lambda: mprt(similarity="cosine"), "no similarity 'cosine'"),
        (lambda: smooth_mprt(samples=0), "samples is at least 1, got 0"),
        (lambda: smooth_mprt(noise_level=0), "noise_level is positive, got 0"),
        (lambda: efficient_mprt(bins=1), "bins is at least 2, got 1"),
    ):
        with pytest.raises(MetricError, match=message):
            made()
