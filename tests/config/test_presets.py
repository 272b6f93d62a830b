"""The named protocols, each against the tool itself or a plain loop over the formula of its source."""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import xaieval
from tests import ROOT
from xaieval.cli import main
from xaieval.config.options import ProtocolOptions
from xaieval.config.presets import PRESETS, changes
from xaieval.config.protocol import PROTOCOLS, Protocol
from xaieval.errors import MetricError
from xaieval.evaluation.scores import Scores
from xaieval.masking import finish, mask, normalise
from xaieval.metrics import METRICS, AverageDrop, average_drop, drop, drop_by, increase, increase_by, increase_in_confidence

PROPERTY = settings(deadline=None, max_examples=50)
MEAN, STD = (0.45, 0.5, 0.4), (0.2, 0.25, 0.3)
N, SIDE, CLASSES = 24, 16, 4
OF_TWO_METHODS = {"win_percentage"}  # which `Scores.win_percentages` takes from the rows


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- the choices, by hand

BEFORE, AFTER = _vector(0.8, 0.5, 0.4, 0.9), _vector(0.6, 0.75, 0.4, 0.0)


def _same(found: Tensor, *expected: float) -> bool:
    return bool(torch.allclose(found, _vector(*expected), rtol=1e-12, atol=1e-12, equal_nan=True))


def test_each_choice_as_worked_by_hand():
    assert _same(drop(BEFORE, AFTER, denominator="none"), 20, 0, 0, 90)
    assert _same(drop(BEFORE, AFTER, drops="dropping"), 25, math.nan, math.nan, 100)
    assert _same(drop(BEFORE, AFTER, epsilon=0.1), 100 * 0.2 / 0.9, 0, 0, 90)
    assert _same(increase(BEFORE, AFTER, ties="increase"), 0, 100, 100, 0)
    assert float(average_drop(BEFORE, AFTER, denominator="none")) == pytest.approx(27.5)
    assert float(average_drop(BEFORE, AFTER, drops="dropping")) == pytest.approx(62.5)
    assert float(average_drop(BEFORE, AFTER, epsilon=0.1)) == pytest.approx((100 * 0.2 / 0.9 + 90) / 4)
    assert float(increase_in_confidence(BEFORE, AFTER, ties="increase")) == pytest.approx(50)


def test_unusable_values_stay_nan_under_every_choice():
    y, o = _vector(0.0, 0.5, -1.0, 0.8), _vector(0.2, math.nan, 0.1, 0.4)
    for choice in ({"denominator": "none"}, {"drops": "dropping"}, {"epsilon": 0.1}):
        assert drop(y, o, **choice).isnan().tolist() == [True, True, True, False]
        assert math.isnan(average_drop(y, o, **choice))
    assert increase(y, o, ties="increase").isnan().tolist() == [False, True, False, False], "a comparison divides by nothing"


def test_the_mean_over_dropping_images_is_nan_where_none_drops_and_refused_where_there_is_none():
    assert math.isnan(average_drop(_vector(0.5, 0.4), _vector(0.5, 0.9), drops="dropping"))
    with pytest.raises(MetricError, match="a mean needs at least one image"):
        average_drop(torch.zeros(0), torch.zeros(0), drops="dropping")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: drop(BEFORE, AFTER, denominator="y"), "denominator='y' is not a choice; known: confidence, none"),
        (lambda: average_drop(BEFORE, AFTER, drops="x"), "drops='x' is not a choice; known: all, dropping"),
        (
            lambda: increase(BEFORE, AFTER, ties="increases"),
            "ties='increases' is not a choice; did you mean 'increase' or 'no_increase'? known: no_increase, increase",
        ),
    ],
)
def test_unknown_choices_are_refused_word_for_word(call, message):
    with pytest.raises(MetricError) as error:
        call()
    assert str(error.value) == message


pairs = st.lists(st.tuples(st.floats(2.0**-20, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=20).map(
    lambda rows: tuple(_vector(*column) for column in zip(*rows, strict=True))
)


@PROPERTY
@given(pairs)
def test_the_choices_are_tied_to_the_default_numbers(pair):
    y, o = pair
    dropping = float((o < y).double().mean())
    if dropping:
        assert float(average_drop(y, o)) == pytest.approx(dropping * float(average_drop(y, o, drops="dropping")), abs=1e-9)
    np.testing.assert_allclose(drop(y, o, denominator="none"), drop(y, o) * y, atol=1e-9)
    np.testing.assert_allclose(drop(y, o, epsilon=0.5), drop(y, o) * y / (y + 0.5), atol=1e-9)
    ties = 100 * float((o == y).double().mean())
    both = float(increase_in_confidence(y, o, ties="increase")), float(increase_in_confidence(y, o))
    assert both[0] == pytest.approx(both[1] + ties, abs=1e-9)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_metrics_follow_the_protocol_and_the_classes_the_default(name):
    protocol = PROTOCOLS[name]
    for metric, plain, options in (
        ("average_drop", drop, {k: getattr(protocol, k) for k in ("denominator", "drops", "epsilon")}),
        ("increase_in_confidence", increase, {"ties": protocol.ties}),
    ):
        assert METRICS[metric].needs == ("confidence", "masked_confidence", "protocol")
        found = METRICS[metric].per_image(BEFORE, AFTER, protocol)
        assert torch.equal(found.nan_to_num(-1), plain(BEFORE, AFTER, **options).nan_to_num(-1))
    assert torch.equal(drop_by(BEFORE, AFTER), drop(BEFORE, AFTER))
    assert torch.equal(increase_by(BEFORE, AFTER), increase(BEFORE, AFTER))
    one = AverageDrop()
    one.update(BEFORE, AFTER)
    assert float(one.compute()) == pytest.approx(float(average_drop(BEFORE, AFTER)))


def test_an_epsilon_dims_maps_of_a_small_range_as_worked_by_hand():
    maps = torch.tensor([[[1e-8, 3e-8]], [[0.0, 1.0]], [[2.0, 2.0]]])
    found, constant = normalise(maps, Protocol(map_epsilon=1e-8))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 2 / 3]], [[0.0, 1.0]], [[0.0, 0.0]]]))
    assert constant.tolist() == [False, False, True]
    found, _ = normalise(maps, Protocol(map_epsilon=1e-8, normalisation="max"))
    torch.testing.assert_close(found[0], torch.tensor([[0.25, 0.75]]))
    assert torch.equal(normalise(maps, Protocol())[0][0], torch.tensor([[0.0, 1.0]]))


# ---- the names


def test_every_protocol_is_described_and_every_description_is_of_a_protocol():
    assert [preset.name for preset in PRESETS] == list(PROTOCOLS)
    for preset in PRESETS:
        assert preset.protocol is PROTOCOLS[preset.name]
        assert preset.does
        assert preset.source
        assert set(preset.metrics) <= METRICS.keys() | OF_TWO_METHODS
    # An epsilon, ties, or a drop that is not divided is a fault, and repeated under a tool's own name alone.
    for preset in PRESETS:
        faulty = changes(preset.protocol).keys() & {"epsilon", "map_epsilon", "ties", "drops", "denominator"}
        assert bool(faulty) == bool(preset.faults), preset.name


def test_the_command_line_lists_every_protocol_with_its_faults(capsys):
    main(["protocols"])
    printed = " ".join(capsys.readouterr().out.split())
    for preset in PRESETS:
        assert preset.name in printed
        for name, value in changes(preset.protocol).items():
            assert f"{name}={value}" in printed
    assert "ours / 100" in printed


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_name_is_an_option_of_the_command_line(name):
    found = ProtocolOptions(protocol=name).resolve(MEAN, STD)
    black = PROTOCOLS[name].space == "pixels"
    assert found == replace(PROTOCOLS[name], mean=MEAN, std=STD) if black else PROTOCOLS[name]
    changed = ProtocolOptions(protocol=name, ties="increase", denominator="none", epsilon=0.5).resolve(MEAN, STD, "3")
    assert (changed.ties, changed.denominator, changed.epsilon, changed.target) == ("increase", "none", 0.5, 3)


@pytest.mark.slow
def test_a_run_on_the_command_line_takes_a_name_and_records_its_choices(tmp_path):
    words = ["score", "--layers", "fpn[p4]", "--max-images", "6", "--no-progress", "--out", str(tmp_path)]
    main([*words, "--protocol", "relevance-cam"])
    scores = Scores.load(tmp_path)
    assert scores.manifest["run"]["protocol.drops"] == "dropping"
    assert scores.manifest["run"]["protocol.ties"] == "increase"
    y, o = (scores.rows[name].to_numpy() for name in ("confidence", "masked_confidence"))
    assert (scores.rows["average_drop"].isna() == (o >= y)).all()
    assert ((scores.rows["increase_in_confidence"] == 100) == (o >= y)).all()


# ---- each against its source


class Classifier(nn.Module):
    """A small classifier whose confidences spread over [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return 8 * self.head(self.features(images).relu().mean(dim=(2, 3)))


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(1)
    return Classifier().eval()


@pytest.fixture
def images() -> Tensor:
    """As the model sees them, normalised from pixels in [0, 1]."""
    coarse = torch.rand(N, 3, 3, 3, generator=torch.Generator().manual_seed(2))
    return _normalised(functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear"))


def _normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def _pixels(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return images * std + mean


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(N) % CLASSES


def _summary(model: nn.Module, images: Tensor, labels: Tensor | None, protocol: Protocol, method: Any, **choices: Any) -> Any:
    protocol = replace(protocol, mean=MEAN, std=STD) if protocol.fills_black else protocol
    metrics = ["average_drop", "increase_in_confidence", "average_gain"]
    batch = images if labels is None else (images, labels)
    scores = xaieval.score(model, [batch], methods=method, protocol=protocol, metrics=metrics, progress=False, **choices)
    return scores.summary().iloc[0]


def _larger(small: Tensor) -> Tensor:
    return functional.interpolate(small[None, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]


def _minmax(values: Tensor, epsilon: float = 0.0) -> Tensor:
    return (values - values.min()) / (values.max() - values.min() + epsilon)


def _lowest_to_zero(found: Tensor, percent: float) -> Tensor:
    """What TAME's drop_Npercent does: the lowest go, as many stay as a ceiling says, and of equal ones the first go."""
    flat, stay = found.flatten().clone(), math.ceil((1 - percent) * found.numel())
    least = sorted(flat.tolist())[int(found.numel() * percent) - 1]
    flat[flat < least] = 0
    equal = (flat == least).nonzero().flatten().tolist()
    for place in equal[: max(0, int((flat > 0).sum()) - stay)]:
        flat[place] = 0
    return flat.view_as(found)


def _half(found: Tensor) -> Tensor:
    """The upper half as ones."""
    flat, kept = found.flatten(), torch.zeros(found.numel())
    for place in sorted(range(found.numel()), key=lambda place: -float(flat[place]))[: found.numel() // 2]:
        kept[place] = 1
    return kept.view_as(found)


# By name: the mask of one raw map, whether it goes on raw pixels, whether the label is followed.
LOOPS: dict[str, tuple[Callable[[Tensor], Tensor], bool, bool]] = {
    "default": (lambda raw: _minmax(_larger(raw)), False, False),
    "grad-cam++": (lambda raw: _larger(raw.clamp(min=0) / raw.max()), False, False),
    "score-cam": (lambda raw: _half(_minmax(_larger(raw))) * _minmax(_larger(raw)), False, False),
    "opti-cam": (lambda raw: _minmax(_larger(raw)), True, True),
    "opti-cam-normalised": (lambda raw: _minmax(_larger(raw)), False, True),
    "tame-100": (lambda raw: _larger(_minmax(raw)), True, False),
    "tame-50": (lambda raw: _lowest_to_zero(_larger(_minmax(raw)), 0.5), True, False),
    "tame-15": (lambda raw: _lowest_to_zero(_larger(_minmax(raw)), 0.85), True, False),
    "relevance-cam": (lambda raw: _half(_minmax(_larger(raw))), False, False),
    "adcc": (lambda raw: _minmax(_larger(raw)), False, False),
    "torch-cam": (lambda raw: _larger(_minmax(raw, 1e-8)), False, False),
    "pytorch-grad-cam": (lambda raw: _minmax(_larger(raw)), False, False),
    "xplique": (lambda raw: _minmax(raw.abs(), 1e-8), False, False),
}


def _drops_and_increases(name: str, pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Average Drop and Increase in Confidence of pairs of Y and O, as the source of that name adds them up."""
    drops, rises = [], 0
    for y, o in pairs:
        below = {"torch-cam": y + 1e-7, "xplique": y + 1e-8, "pytorch-grad-cam": 1.0}.get(name, y)
        if name != "relevance-cam" or y > o:
            drops.append(max(0.0, y - o) / below)
        rises += (o >= y) if name == "relevance-cam" else (o > y)
    return 100 * sum(drops) / len(drops), 100 * rises / len(pairs)


def _raw_maps(name: str) -> Tensor:
    maps = torch.randn(N, 4, 4, generator=torch.Generator().manual_seed(3))
    if name == "xplique":  # whose maps have signs, and the image's size before its metrics see them
        return torch.stack([_larger(one) for one in maps])
    return maps.clamp(min=0)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_run_gives_the_numbers_of_a_plain_loop_after_the_source(name, model, images, labels):
    mask_of, on_pixels, follow_label = LOOPS[name]
    maps, pairs, gains = _raw_maps(name), [], []
    for image, label, raw in zip(images, labels, maps, strict=True):
        kept = mask_of(raw)
        masked = _normalised(_pixels(image) * kept) if on_pixels else image * kept
        with torch.no_grad():
            before, after = (model(one[None])[0].double().softmax(0) for one in (image, masked))
        target = int(label) if follow_label else int(before.argmax())
        pairs.append((float(before[target]), float(after[target])))
        gains.append(max(0.0, pairs[-1][1] - pairs[-1][0]) / (1 - pairs[-1][0]))
    expected = _drops_and_increases(name, pairs)

    found = _summary(model, images, labels, PROTOCOLS[name], lambda *_: maps)
    # Of TAME's 15 % the ceiling keeps one pixel of 256 more, and of equal pixels the first go there and stay here.
    tolerance = 0.5 if name in ("tame-50", "tame-15") else 2e-4
    assert found["average_drop"] == pytest.approx(expected[0], abs=tolerance)
    assert found["increase_in_confidence"] == pytest.approx(expected[1], abs=1e-9)
    assert found["average_gain"] == pytest.approx(100 * sum(gains) / N, abs=tolerance)
    assert 3 < expected[0] < 97, "the comparison says little where every image drops wholly or not at all"
    assert 0 < expected[1] < 100


def test_the_names_give_different_numbers_on_the_same_maps(model, images, labels):
    maps = torch.randn(N, 4, 4, generator=torch.Generator().manual_seed(3))
    found = {name: _summary(model, images, labels, PROTOCOLS[name], lambda *_: maps)["average_drop"] for name in PROTOCOLS}
    same = {"adcc", "torch-cam"}  # the first by definition, the second but for gradients and rounding at this size
    others = [round(value, 6) for name, value in found.items() if name not in same]
    assert len(set(others)) == len(others)
    assert found["adcc"] == found["default"]


def test_the_mask_of_tame_differs_by_at_most_a_pixel():
    maps = torch.rand(5, 7, 7, generator=torch.Generator().manual_seed(4))
    for name, percent, most in (("tame-50", 0.5, 0), ("tame-15", 0.85, 1)):
        protocol = PROTOCOLS[name]
        ours = mask(finish(maps, (SIDE, SIDE), protocol).maps, protocol)
        theirs = torch.stack([_lowest_to_zero(_larger(_minmax(one)), percent) for one in maps])
        assert ((ours - theirs).abs() > 1e-5).flatten(1).sum(dim=1).max() <= most
        assert (theirs.count_nonzero() - ours.count_nonzero()) in ((0,) if most == 0 else (5,))


def test_torch_cam_itself(model, images):
    from torchcam.methods import GradCAM
    from torchcam.metrics import ClassificationMetric

    # A score of 1e-6 of the probability: confidences near its epsilon in the drop, and gradients near that in the map.
    for scale in (1.0, 1e-6):
        with GradCAM(model, target_layer="features") as extractor:
            theirs = ClassificationMetric(extractor, partial(_scaled, scale=scale))
            theirs.update(images)
        protocol = replace(PROTOCOLS["torch-cam"], confidence=partial(_scaled, scale=scale))
        ours = _summary(model, images, None, protocol, "gradcam", layers="features", fast=False)
        assert ours["average_drop"] == pytest.approx(100 * theirs.summary()["avg_drop"], abs=2e-3)
        assert ours["increase_in_confidence"] == pytest.approx(100 * theirs.summary()["conf_increase"], abs=1e-3)
        plain = replace(protocol, epsilon=0, map_epsilon=0)
        clean = _summary(model, images, None, plain, "gradcam", layers="features", fast=False)
        assert (abs(clean["average_drop"] - ours["average_drop"]) > 1) == (scale < 1), "epsilons show where scores are small"


def _scaled(logits: Tensor, scale: float) -> Tensor:
    return scale * logits.softmax(dim=-1)


def test_torch_cam_itself_leaves_out_what_has_a_status_here(model, images):
    from torchcam.metrics import ClassificationMetric

    maps = torch.rand(N, 4, 4, generator=torch.Generator().manual_seed(5))
    maps = (maps - maps.amin((1, 2), keepdim=True)) / (maps.amax((1, 2), keepdim=True) - maps.amin((1, 2), keepdim=True))
    maps[:3] = math.nan
    theirs = ClassificationMetric(_FixedMaps(model, maps), partial(torch.softmax, dim=-1))
    theirs.update(images)
    ours = _summary(model, images, None, PROTOCOLS["torch-cam"], lambda *_: maps)
    assert ours["average_drop"] == pytest.approx(100 * theirs.summary()["avg_drop"], abs=1e-3)
    assert (int(ours["n_images"]), int(ours["n_failed"])) == (theirs.total, theirs.nan_count) == (N - 3, 3)


class _FixedMaps:
    """What torch-cam's metric asks of an extractor, with maps that are given."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *_: Any, **__: Any) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> Any:
        return torch.no_grad()


def test_pytorch_grad_cam_itself(model, images):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    with torch.no_grad():
        classes = model(images).argmax(dim=1)
    with GradCAM(model=model, target_layers=[model.features]) as extractor:
        maps = extractor(input_tensor=images, targets=None)
    asked = (images, maps, [ClassifierOutputSoftmaxTarget(int(one)) for one in classes], model)
    ours = _summary(model, images, None, PROTOCOLS["pytorch-grad-cam"], "gradcam", layers="features", fast=False)
    assert ours["average_drop"] == pytest.approx(100 * float(DropInConfidence()(*asked).mean()), abs=2e-3)
    assert ours["increase_in_confidence"] == pytest.approx(100 * float(IncreaseInConfidence()(*asked).mean()))


def test_a_summary_counts_the_images_that_drop(model, images):
    maps = _raw_maps("relevance-cam")
    protocol = PROTOCOLS["relevance-cam"]
    scores = xaieval.score(model, [images], methods=lambda *_: maps, protocol=protocol, progress=False)
    dropping = int((scores.rows["masked_confidence"] < scores.rows["confidence"]).sum())
    row = scores.summary().iloc[0]
    assert 0 < dropping < N
    assert (row["average_drop_n"], row["n_images"], row["n_failed"]) == (dropping, N, 0)
    assert row["average_drop"] == pytest.approx(scores.rows["average_drop"].mean())


# ---- the page


def test_the_page_has_what_the_descriptions_say():
    page = (ROOT / "docs/protocols.md").read_text().splitlines()
    assert [line for line in page if line.startswith("| `") and line.count("|") == 4][: len(PRESETS)] == [
        f"| `{preset.name}` | {preset.does} | {preset.source} |" for preset in PRESETS
    ]
    for heading, field in (
        ("## Open in the sources, and what was taken", "open_choices"),
        ("## Faults that are repeated", "faults"),
    ):
        start = page.index(heading) + 2
        wanted = [f"- `{preset.name}`: {getattr(preset, field)}" for preset in PRESETS if getattr(preset, field)]
        assert page[start : start + len(wanted)] == wanted


def test_the_table_of_the_page_is_the_benchmark_result():
    benchmark = runpy.run_path(str(ROOT / "benchmarks/protocols.py"))
    results = pd.read_csv(ROOT / "benchmarks/protocols/protocols.csv")
    assert list(results["protocol"].unique()) == list(PROTOCOLS)
    assert (results["n"] >= 200).all()
    table = "\n".join(benchmark["table_lines"](results))
    assert f"<!-- from benchmarks/protocols/protocols.csv -->\n{table}\n" in (ROOT / "docs/protocols.md").read_text()


@pytest.mark.shared
def test_the_benchmark_runs_on_a_few_images(imagenet_weights, ucmerced_folder, tmp_path):
    run = runpy.run_path(str(ROOT / "benchmarks/protocols.py"))["run"]
    run(str(imagenet_weights), f"ucmerced:{ucmerced_folder}", images=6, only="default,relevance-cam", out=tmp_path)
    results = pd.read_csv(tmp_path / "protocols.csv")
    assert list(results["protocol"]) == [name for name in ("default", "relevance-cam") for _ in range(2)]
    assert (results["n"] == 6).all()
    assert (results["average_drop_moved"][:2] == 0).all()
    assert (results["average_drop_n"][2:] <= 6).all()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["data"]["images"] == 6
    assert manifest["hardware"]["threads"] >= 1
