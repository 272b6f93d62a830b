"""Average Drop and Increase in Confidence: by hand, by slow loops, against other tools, and over processes.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics import MetricCollection

import xaieval
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import (
    METRICS,
    AverageDrop,
    IncreaseInConfidence,
    Metric,
    average_drop,
    drop,
    increase,
    increase_in_confidence,
    resolve_metrics,
)

PROPERTY = settings(deadline=None, max_examples=100)

NAN, INF = math.nan, math.inf

# Y and O of six images: a drop of a quarter, a gain, a tie, a loss of everything, a small loss, a gain from little.
CONFIDENCE = [0.8, 0.5, 0.4, 0.9, 0.25, 0.01]
MASKED = [0.6, 0.9, 0.4, 0.0, 0.2, 0.02]
DROPS = [25.0, 0.0, 0.0, 100.0, 20.0, 0.0]
INCREASES = [0.0, 100.0, 0.0, 0.0, 0.0, 100.0]


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _same(found: Tensor, expected: list[float]) -> bool:
    return bool(torch.allclose(found, _vector(*expected), rtol=1e-12, atol=1e-12, equal_nan=True))


# ---- checks that take the functions under test


def check_by_hand(metrics: Any) -> None:
    y, o = _vector(*CONFIDENCE), _vector(*MASKED)
    assert _same(metrics.drop(y, o), DROPS)
    assert _same(metrics.increase(y, o), INCREASES)
    assert float(metrics.average_drop(y, o)) == pytest.approx(145 / 6, abs=1e-12)
    assert float(metrics.increase_in_confidence(y, o)) == pytest.approx(200 / 6, abs=1e-12)


def check_slow_loops(metrics: Any) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 50):
        y, o = rng.uniform(0.05, 1, count), rng.uniform(0, 1, count)
        total, gains = 0.0, 0
        for yi, oi in zip(y, o, strict=True):
            total += max(0.0, yi - oi) / yi
            gains += 1 if oi > yi else 0
        found = metrics.average_drop(torch.from_numpy(y), torch.from_numpy(o))
        assert float(found) == pytest.approx(100 * total / count, abs=1e-9)
        found = metrics.increase_in_confidence(torch.from_numpy(y), torch.from_numpy(o))
        assert float(found) == pytest.approx(100 * gains / count, abs=1e-9)


def check_ties_are_no_increase(metrics: Any) -> None:
    same = _vector(0.3, 0.7)
    assert _same(metrics.increase(same, same), [0.0, 0.0])
    assert _same(metrics.drop(same, same), [0.0, 0.0])


def check_no_epsilon_hides_small_confidences(metrics: Any) -> None:
    assert _same(metrics.drop(_vector(1e-7, 1e-30, 1e-300), _vector(0, 5e-31, 0)), [100.0, 50.0, 100.0])


def check_unusable_values_are_nan(metrics: Any) -> None:
    pairs = [(0, 0.5), (0, -0.5), (-0.5, 0.2), (NAN, 0.5), (0.5, NAN), (INF, 0.5), (0.5, INF), (0.5, -INF)]
    y, o = (_vector(*column) for column in zip(*pairs, strict=True))
    assert metrics.drop(y, o).isnan().all()
    # A comparison has a value wherever there are two numbers.
    assert _same(metrics.increase(y, o), [100.0, 0.0, 100.0, NAN, NAN, NAN, NAN, NAN])


def check_one_unusable_value_makes_the_mean_nan(metrics: Any) -> None:
    for bad in ((NAN, 0.5), (0.5, NAN), (0.0, 0.5), (INF, 0.5)):
        y, o = _vector(0.5, bad[0]), _vector(0.2, bad[1])
        assert math.isnan(metrics.average_drop(y, o))
        assert math.isnan(metrics.increase_in_confidence(y, o)) == (bad[0] != 0)


def check_precision_is_that_of_float64(metrics: Any) -> None:
    y, o = torch.tensor([1.0]), torch.tensor([1 / 3])
    for function in (metrics.drop, metrics.increase, metrics.average_drop, metrics.increase_in_confidence):
        assert function(y, o).dtype == torch.float64
    assert float(metrics.drop(y, o)) == pytest.approx(100 * (1 - float(o)), abs=1e-12)


def check_shapes_are_refused(metrics: Any) -> None:
    for function in (metrics.drop, metrics.increase, metrics.average_drop, metrics.increase_in_confidence):
        for y, o in ((torch.ones(2), torch.ones(3)), (torch.ones(2, 2), torch.ones(2, 2)), (torch.ones(()), torch.ones(()))):
            with pytest.raises(MetricError):
                function(y, o)


def check_no_images_are_refused(metrics: Any) -> None:
    for function in (metrics.average_drop, metrics.increase_in_confidence):
        with pytest.raises(MetricError):
            function(torch.zeros(0), torch.zeros(0))


# Each a change of the source that a check has to notice; the first of several are mistakes found in public code.
MUTANTS = {
    "drop not divided by Y": ("clamp(min=0) / below)", "clamp(min=0))"),
    "drops summed, not averaged": ("values.mean()", "values.sum()"),
    "averaged over dropping images only": ("values.mean()", "values[values > 0].mean()"),
    "ties count as increase": ("(o > y)", "(o >= y)"),
    "Y and O swapped in the increase": ("(o > y)", "(y > o)"),
    "increase always zero": ("(o > y)", "(y > y)"),
    "failed images dropped from the mean": ("values.mean()", "values.nanmean()"),
    "epsilon in the denominator": ("else y + epsilon", "else y + 1e-7"),
    "divided by O": ("clamp(min=0) / below)", "clamp(min=0) / o)"),
    "gains count as negative drops": (".clamp(min=0)", ""),
    "drop as a share": ("(100 * (y - o)", "((y - o)"),
    "increase as a share": ("(100 * rises", "(1 * rises"),
    "drop turned around": ("(y - o)", "(o - y)"),
    "Y and O swapped": ("return confidence.double(), other", "return other.double(), confidence.double() #"),
    "Y = 0 counts": ("(y > 0)", "(y >= 0)"),
    "negative Y counts": ("(y > 0)", "(y != 0)"),
    "infinite Y counts": ("y.isfinite() & ", ""),
    "infinite O counts": (" & other.isfinite()", ""),
    "single precision": ("return confidence.double(), other.double()", "return confidence, other"),
    "matrices pass": ("confidence.ndim != 1 or ", ""),
    "lengths differ": (" or confidence.shape != other.shape", ""),
    "no images pass": ("if not len(values):", "if False:"),
    "median": ("values.mean()", "values.median()"),
}


test_the_metrics_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.confidence", "xaieval.metrics.drop_and_increase"], MUTANTS
)


# ---- properties

shares = st.floats(2.0**-20, 1.0)
masked_shares = st.floats(0.0, 1.0)


@st.composite
def confidences(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    count = draw(st.integers(1, 20))
    y = draw(hnp.arrays(np.float64, count, elements=shares))
    o = draw(hnp.arrays(np.float64, count, elements=masked_shares | st.sampled_from(y.tolist())))
    return torch.from_numpy(y), torch.from_numpy(o)


@PROPERTY
@given(confidences())
def test_both_numbers_are_percentages(pair):
    assert 0 <= average_drop(*pair) <= 100
    assert 0 <= increase_in_confidence(*pair) <= 100
    assert ((drop(*pair) > 0) != (pair[1] >= pair[0])).all(), "an image either drops, or ties, or gains"


@PROPERTY
@given(confidences(), st.floats(2.0**-30, 2.0**30))
def test_the_unit_of_the_confidence_does_not_matter(pair, factor):
    y, o = pair
    assert float(average_drop(factor * y, factor * o)) == pytest.approx(float(average_drop(y, o)), abs=1e-9)


@PROPERTY
@given(confidences(), st.integers(-30, 30))
def test_a_factor_without_rounding_leaves_the_increase_alone(pair, exponent):
    y, o = pair
    assert increase_in_confidence(2.0**exponent * y, 2.0**exponent * o) == increase_in_confidence(y, o)


@PROPERTY
@given(confidences(), st.randoms())
def test_the_order_of_the_images_does_not_matter(pair, random):
    order = list(range(len(pair[0])))
    random.shuffle(order)
    y, o = (values[order] for values in pair)
    assert float(average_drop(y, o)) == pytest.approx(float(average_drop(*pair)), abs=1e-9)
    assert float(increase_in_confidence(y, o)) == pytest.approx(float(increase_in_confidence(*pair)), abs=1e-9)


@PROPERTY
@given(confidences())
def test_increases_and_decreases_and_ties_are_all_images(pair):
    y, o = pair
    o = o.clamp(min=2.0**-40)  # either may be the denominator here
    ties = 100 * float((y == o).double().mean())
    both = float(increase_in_confidence(y, o)) + float(increase_in_confidence(o, y))
    assert both + ties == pytest.approx(100, abs=1e-9)


@PROPERTY
@given(confidences(), confidences())
def test_the_mean_over_two_sets_is_weighted_by_their_sizes(first, second):
    y, o = (torch.cat(parts) for parts in zip(first, second, strict=True))
    for metric in (average_drop, increase_in_confidence):
        apart = (len(first[0]) * float(metric(*first)) + len(second[0]) * float(metric(*second))) / len(y)
        assert float(metric(y, o)) == pytest.approx(apart, abs=1e-9)


# ---- errors and the registry


@pytest.mark.parametrize("function", [drop, increase, average_drop, increase_in_confidence])
def test_wrong_shapes_are_refused_word_for_word(function):
    with pytest.raises(MetricError) as error:
        function(torch.ones(2), torch.ones(3))
    assert str(error.value) == "confidence and masked_confidence are vectors [N] of one length, got [2] and [3]"
    with pytest.raises(MetricError) as error:
        function(torch.ones(2, 1), torch.ones(2, 1))
    assert str(error.value) == "confidence and masked_confidence are vectors [N] of one length, got [2, 1] and [2, 1]"


@pytest.mark.parametrize("function", [average_drop, increase_in_confidence])
def test_a_mean_over_nothing_is_refused_word_for_word(function):
    with pytest.raises(MetricError) as error:
        function(torch.ones(0), torch.ones(0))
    assert str(error.value) == "a mean needs at least one image, got none; give at least one confidence"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            ["averagedrp"],
            "no metric 'averagedrp'; did you mean 'average_drop' or 'average_gain'? "
            f"known: {', '.join(METRICS)}; or give a Metric(...)",
        ),
        ("x", f"no metric 'x'; known: {', '.join(METRICS)}; or give a Metric(...)"),
        ([], "metrics are one or more, each once; got []"),
        (["average_drop"] * 2, "metrics are one or more, each once; got ['average_drop', 'average_drop']"),
    ],
)
def test_unknown_missing_and_repeated_metrics_are_refused_word_for_word(metrics, message):
    with pytest.raises(MetricError) as error:
        resolve_metrics(metrics)
    assert str(error.value) == message


def test_metrics_are_found_by_name_and_objects_are_themselves():
    own = Metric("gain", lambda y, o: 100 * (o - y).clamp(min=0), higher_is_better=True)
    assert resolve_metrics("average_drop") == [METRICS["average_drop"]]
    assert resolve_metrics(own) == [own]
    assert resolve_metrics([own, "increase_in_confidence"]) == [own, METRICS["increase_in_confidence"]]
    assert not METRICS["average_drop"].higher_is_better
    assert METRICS["increase_in_confidence"].higher_is_better
    assert METRICS["increase_in_confidence"].interval == "wilson"


# ---- other tools


class Classifier(nn.Module):
    """A small classifier whose confidences spread over [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1))
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return 8 * self.head(self.features(images).relu().mean(dim=(2, 3)))


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(1)
    return Classifier().eval()


@pytest.fixture
def images() -> Tensor:
    coarse = torch.randn(
        24, 3, 3, 3, generator=torch.Generator().manual_seed(2)
    )  # blobs, so that a map can leave the right ones
    return nn.functional.interpolate(3 * coarse, (16, 16), mode="bicubic")


def _confidence(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).softmax(dim=1).gather(1, classes[:, None])[:, 0]


class _FixedMaps:
    """The part of an extractor that torch-cam's metric uses, with given maps."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model = model
        self.maps = maps

    def __call__(self, *_: Any, **__: Any) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> Any:
        return torch.no_grad()


def test_a_whole_run_gives_the_numbers_of_torchcam(model, images):
    # torch-cam takes gradients of what it calls the score, here the confidence, and normalises a map before it is upsampled.
    # Its numbers are shares, with 1e-7 in the denominator, which the tolerance allows for.
    from torchcam.methods import GradCAM
    from torchcam.metrics import ClassificationMetric

    with GradCAM(model, target_layer="features") as extractor:
        theirs = ClassificationMetric(extractor, partial(torch.softmax, dim=-1))
        theirs.update(images)
        expected = theirs.summary()
    protocol = xaieval.Protocol(gradient="confidence", normalise_at="layer")
    scores = xaieval.score(model, [images], "features", protocol=protocol, progress=False)
    ours = scores.summary().loc[("features", "gradcam")]
    assert 5 < ours["average_drop"] < 95, "the comparison says little where every image drops wholly or not at all"
    assert 0 < ours["increase_in_confidence"] < 100
    assert ours["average_drop"] == pytest.approx(100 * expected["avg_drop"], abs=1e-3)
    assert ours["increase_in_confidence"] == pytest.approx(100 * expected["conf_increase"])


def test_torchcam_halves_the_drop_of_a_confidence_as_small_as_its_epsilon(model, images):
    from torchcam.metrics import ClassificationMetric

    maps = torch.zeros(24, 16, 16)
    classes = model(images).argmax(dim=1)
    y, o = (_confidence(model, x, classes) for x in (images, 0 * images))
    scale = 1e-7 / float(y.mean())
    theirs = ClassificationMetric(_FixedMaps(model, maps), lambda logits: scale * logits.softmax(dim=1))
    theirs.update(images)
    with_epsilon = (scale * (y - o)).clamp(min=0) / (scale * y + 1e-7)
    assert theirs.summary()["avg_drop"] == pytest.approx(float(with_epsilon.mean()), rel=1e-4)
    assert theirs.summary()["avg_drop"] < 0.7 * float(average_drop(y, o)) / 100
    assert float(average_drop(scale * y, scale * o)) == pytest.approx(float(average_drop(y, o)), rel=1e-6)


def test_torchcam_averages_over_fewer_images_where_a_map_is_nan(model, images):
    from torchcam.metrics import ClassificationMetric

    maps = torch.rand(24, 16, 16, generator=torch.Generator().manual_seed(3))
    classes = model(images).argmax(dim=1)
    y, o = (_confidence(model, x, classes) for x in (images, images * maps[:, None]))
    maps[:5] = NAN
    theirs = ClassificationMetric(_FixedMaps(model, maps), partial(torch.softmax, dim=-1))
    theirs.update(images)
    o[:5] = NAN
    assert theirs.total == 19
    assert math.isnan(average_drop(y, o)), "the functions never leave out an image by themselves"
    counted = AverageDrop()
    counted.update(y, o)
    assert float(counted.compute()) == pytest.approx(100 * theirs.summary()["avg_drop"], abs=1e-3)
    assert int(counted.average_drop_failed) == 5, "the class leaves images out, and says how many"


def test_the_drop_of_pytorch_grad_cam_is_not_divided_by_the_confidence(model, images):
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence
    from pytorch_grad_cam.metrics.cam_mult_image import IncreaseInConfidence as TheirIncrease
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    maps = torch.rand(24, 16, 16, generator=torch.Generator().manual_seed(3))
    classes = model(images).argmax(dim=1)
    y, o = (_confidence(model, x, classes) for x in (images, images * maps[:, None]))
    asked = (images, maps.numpy(), [ClassifierOutputSoftmaxTarget(int(one)) for one in classes], model)
    theirs = DropInConfidence()(*asked)
    np.testing.assert_allclose(theirs, (y - o).clamp(min=0), atol=1e-6)
    np.testing.assert_allclose(theirs, drop(y, o) * y / 100, atol=1e-6)
    assert 100 * theirs.mean() < 0.9 * float(average_drop(y, o)), "a share of a share is smaller"
    np.testing.assert_array_equal(100 * TheirIncrease()(*asked), increase(y, o))


# ---- torchmetrics


def _batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(n, generator=generator) + 0.01, torch.rand(n, generator=generator)) for n in (5, 1, 8)]


CLASSES = [
    (AverageDrop, average_drop, "average_drop"),
    (IncreaseInConfidence, increase_in_confidence, "increase_in_confidence"),
]


@pytest.mark.parametrize(("kind", "function", "prefix"), CLASSES)
def test_a_class_over_batches_equals_the_function_over_all_images(kind, function, prefix):
    metric, batches = kind(), _batches()
    for y, o in batches:
        metric.update(y, o)
    y, o = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert metric.compute().dtype == torch.float64
    assert float(metric.compute()) == pytest.approx(float(function(y, o)), abs=1e-12)


@pytest.mark.parametrize(("kind", "function", "prefix"), CLASSES)
def test_calling_a_class_gives_the_value_of_the_batch_and_adds_it_up(kind, function, prefix):
    metric, batches = kind(), _batches()
    for y, o in batches:
        assert float(metric(y, o)) == pytest.approx(float(function(y, o)), abs=1e-12)
    y, o = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert float(metric.compute()) == pytest.approx(float(function(y, o)), abs=1e-12)


@pytest.mark.parametrize(("kind", "function", "prefix"), CLASSES)
def test_a_class_leaves_failed_images_out_and_counts_them(kind, function, prefix):
    metric = kind()
    metric.update(_vector(0.8, INF, 0.5), _vector(0.6, 0.5, 0.9))
    metric.update(_vector(NAN, 0.5), _vector(0.1, INF))
    assert int(getattr(metric, f"{prefix}_failed")) == 3
    assert int(getattr(metric, f"{prefix}_count")) == 2
    assert float(metric.compute()) == pytest.approx(float(function(_vector(0.8, 0.5), _vector(0.6, 0.9))))


@pytest.mark.parametrize(("kind", "function", "prefix"), CLASSES)
def test_a_class_without_a_valid_image_is_nan_and_not_zero(kind, function, prefix):
    metric = kind()
    metric.update(_vector(INF, NAN), _vector(0.5, 0.5))
    assert math.isnan(metric.compute())


@pytest.mark.parametrize(("kind", "function", "prefix"), CLASSES)
def test_a_class_forgets_on_reset(kind, function, prefix):
    metric = kind()
    metric.update(_vector(0.8, NAN), _vector(0.1, 0.5))
    metric.reset()
    metric.update(_vector(0.5), _vector(0.4))
    assert float(metric.compute()) == pytest.approx(float(function(_vector(0.5), _vector(0.4))))
    assert int(getattr(metric, f"{prefix}_failed")) == 0


@pytest.mark.parametrize(("kind", "function", "prefix"), CLASSES)
def test_a_class_refuses_what_the_function_refuses(kind, function, prefix):
    with pytest.raises(MetricError, match=r"vectors \[N\] of one length, got \[2\] and \[3\]"):
        kind().update(torch.ones(2), torch.ones(3))


def test_a_class_keeps_double_precision_when_the_model_around_it_is_halved():
    holder = nn.Module()
    holder.metric = AverageDrop()
    holder.half()
    holder.metric.update(torch.tensor([1.0]), torch.tensor([1 / 3]))
    assert holder.metric.compute().dtype == torch.float64


@pytest.mark.parametrize("groups", [True, False])
def test_a_collection_keeps_metrics_apart_whose_states_are_equal_after_the_first_batch(groups):
    # One full drop and one increase: both totals are 100 of 2 images, which is where torchmetrics would merge the two.
    first = (_vector(0.5, 0.5), _vector(0.0, 1.0))
    second = (_vector(0.8, 0.4, 0.9), _vector(0.6, 0.2, 0.8))
    collection = MetricCollection([AverageDrop(), IncreaseInConfidence()], compute_groups=groups)
    for batch in (first, second):
        collection.update(*batch)
    y, o = (torch.cat(parts) for parts in zip(first, second, strict=True))
    values = collection.compute()
    assert float(values["AverageDrop"]) == pytest.approx(float(average_drop(y, o)))
    assert float(values["IncreaseInConfidence"]) == pytest.approx(float(increase_in_confidence(y, o)))


def _rank(rank: int, folder: str, y: Tensor, o: Tensor) -> None:
    """One of two processes: updates with its own part of the images, of uneven size, and saves the result."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        collection = MetricCollection([AverageDrop(), IncreaseInConfidence()])
        mine = slice(0, 7) if rank == 0 else slice(7, None)
        for start in range(0, len(y[mine]), 3):
            collection.update(y[mine][start : start + 3], o[mine][start : start + 3])
        values = collection.compute()
        local = int(collection["AverageDrop"].average_drop_count)
        torch.save({"values": values, "local": local}, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_different_numbers_of_images_give_the_value_over_all(tmp_path):
    generator = torch.Generator().manual_seed(5)
    y, o = torch.rand(9, generator=generator) + 0.01, torch.rand(9, generator=generator)
    torch.multiprocessing.spawn(_rank, (str(tmp_path), y, o), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for rank in ranks:
        assert float(rank["values"]["AverageDrop"]) == pytest.approx(float(average_drop(y, o)), abs=1e-12)
        assert float(rank["values"]["IncreaseInConfidence"]) == pytest.approx(float(increase_in_confidence(y, o)), abs=1e-12)
    assert [rank["local"] for rank in ranks] == [7, 2], "after the value each process has its own images again"
