"""The probe: it finds the level where attention helps, its reference is fair, and its search is that of a slow loop."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import xaieval
from tests.training.fal.rules.features import batches, planted, small_fpn, zero_head
from xaieval.analysis.gains import gain_p_values
from xaieval.analysis.stats.groups import Grouping
from xaieval.errors import DataError, MetricError
from xaieval.evaluation.scores import Scores
from xaieval.models.designs import GATES
from xaieval.models.fpn import LEVELS
from xaieval.training.fal.rules import probe
from xaieval.training.fal.rules.level_features import LevelFeatures, with_column
from xaieval.training.fal.rules.probe import PROBE, ProbeSettings, greedy_gains, probe_losses, with_probe

PROPERTY = settings(deadline=None, max_examples=30)
QUICK = ProbeSettings(epochs=10, repeats=1, learning_rate=0.02)
SHORT = ProbeSettings(epochs=2, repeats=1, learning_rate=0.05, batch_size=8)


def _significant(gains):
    return gain_p_values(gains, 4)[1] < 0.05


# ---- what it finds


@pytest.mark.parametrize("level", ["p2", pytest.param("p4", marks=pytest.mark.slow)])
def test_the_level_with_a_pattern_behind_clutter_is_found_and_noise_is_not(level):
    training, images = planted(240, level, seed=1), planted(120, level, seed=2)
    gains = greedy_gains(lambda levels: probe_losses(zero_head(), training, images, levels, QUICK), list(LEVELS), _significant)
    chosen = [name for name, values in gains.items() if gain_p_values(values[:, None], 4)[1] < 0.05]
    assert chosen == [level]
    assert gains[level].mean() > 0.05
    assert all(values.mean() < 0.005 for name, values in gains.items() if name != level)


@pytest.mark.slow
def test_where_the_label_is_chance_nothing_is_found():
    training, images = planted(240, "p3", seed=1), planted(120, "p3", seed=2)
    images = LevelFeatures(images.levels, images.labels.roll(1), images.ids)
    gains = greedy_gains(lambda levels: probe_losses(zero_head(), training, images, levels, QUICK), list(LEVELS), _significant)
    assert all(gain_p_values(values[:, None], 4)[1] >= 0.05 for values in gains.values())


# ---- what it is compared with


def test_without_levels_it_is_the_head_trained_alone_as_a_slow_loop_trains_it():
    training, images = planted(40, "p3", seed=1), planted(10, "p3", seed=2)
    chosen = ProbeSettings(epochs=2, repeats=1, batch_size=16, seed=5)
    head, generator = copy.deepcopy(zero_head()), torch.Generator().manual_seed(5)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=4, pct_start=0.3)
    orders = [torch.randperm(40, generator=generator) for _ in range(2)]
    for batch in (order[start : start + 16] for order in orders for start in (0, 16)):
        optimizer.zero_grad()
        functional.cross_entropy(head({k: v[batch] for k, v in training.levels.items()}), training.labels[batch]).backward()
        optimizer.step()
        schedule.step()
    expected = functional.cross_entropy(head(images.levels), images.labels, reduction="none")
    assert probe_losses(zero_head(), training, images, (), chosen) == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("kind", ["mean", "concat"])
def test_branches_whose_maps_are_not_used_change_nothing(monkeypatch, kind):
    training, images = planted(40, "p3", seed=1), planted(10, "p3", seed=2)
    monkeypatch.setitem(GATES, "focus", lambda features, maps: features)
    head = zero_head(kind=kind)
    alone = probe_losses(head, training, images, (), SHORT)
    assert np.ptp(alone) > 0.1
    assert probe_losses(head, training, images, ("p2", "p3"), SHORT).tolist() == alone.tolist()


def test_the_losses_are_means_over_trainings_that_depend_on_the_seed_alone():
    training, images, head = planted(40, "p3", seed=1), planted(10, "p3", seed=2), zero_head()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    both = probe_losses(head, training, images, ("p3",), replace(SHORT, repeats=2, seed=7))
    assert torch.equal(torch.rand(1), expected), "the random numbers of the caller go on as before"
    each = [probe_losses(head, training, images, ("p3",), replace(SHORT, seed=s)) for s in (7, 8)]
    assert both == pytest.approx(np.mean(each, axis=0))
    assert each[0].tolist() != each[1].tolist()


# ---- the search


def _slow_search(table: dict[tuple[str, ...], np.ndarray]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The levels in the order in which they are taken, and what each saved when it was last tried."""
    taken: list[str] = []
    saved: dict[str, np.ndarray] = {}
    while True:
        now = table[tuple(sorted(taken))]
        good = []
        for level in LEVELS:
            if level not in taken:
                saved[level] = now - table[tuple(sorted([*taken, level]))]
                if gain_p_values(saved[level][:, None], 4)[1][0] < 0.05:
                    good.append((saved[level].mean(), level))
        if not good:
            return taken, saved
        taken.append(max(good)[1])


def _table(seed: int, images: int = 12) -> dict[tuple[str, ...], np.ndarray]:
    rng = np.random.default_rng(seed)
    worth = {level: rng.choice([-1.0, 0.0, 1.0, 2.0]) for level in LEVELS}
    return {
        levels: 10 - sum(worth[level] for level in levels) + rng.normal(0, rng.choice([0.2, 1.0]), images)
        for size in range(5)
        for levels in combinations(LEVELS, size)
    }


@PROPERTY
@given(st.integers(0, 10_000))
def test_the_search_is_that_of_a_slow_loop(seed):
    table = _table(seed)
    actual = greedy_gains(lambda levels: table[tuple(sorted(levels))], list(LEVELS), _significant)
    expected = _slow_search(table)[1]
    assert list(actual) == list(LEVELS)
    for level in LEVELS:
        assert actual[level] == pytest.approx(expected[level])


@pytest.mark.parametrize("groups", [None, "pairs"])
@pytest.mark.parametrize("seed", range(12))
def test_the_rule_selects_the_levels_that_the_search_took(seed, groups):
    table, ids = _table(seed, images=40), [f"image {number:02d}" for number in range(40)]
    names = None if groups is None else [f"pair {number // 2}" for number in range(40)]
    together = None if names is None else Grouping(names)
    taken: list[str] = []

    def losses_of(levels):
        taken[:] = levels[:-1]  # those that were taken before the last round
        return table[tuple(sorted(levels))]

    gains = greedy_gains(losses_of, list(LEVELS), lambda gains: gain_p_values(gains, 4, groups=together)[1] < 0.05)
    rows = pd.DataFrame(
        {"image_id": image, "layer": f"fpn[{level}]", "method": "gradcam", "status": "ok"} for image in ids for level in LEVELS
    )
    scores = Scores(rows, {"seed": 0})
    if names is not None:
        scores = scores.with_groups(dict(zip(ids, names, strict=True)))
    scores = with_column(scores, ids, {level: torch.from_numpy(values) for level, values in gains.items()}, PROBE)
    last = {level for level in LEVELS if gain_p_values(gains[level][:, None], 4, groups=together)[1][0] < 0.05}
    selected = {address[4:6] for address in scores.select_layers(by="probe")}
    assert selected == last
    assert set(taken) <= selected


# ---- on a network


def test_scores_get_a_column_and_the_network_stays_as_it_was():
    fpn = small_fpn().train()
    before = {name: tensor.clone() for name, tensor in fpn.state_dict().items()}
    scores = xaieval.score(fpn, batches(), layers=["fpn[*]"], progress=False)
    chosen = ProbeSettings(epochs=1, repeats=1)
    actual = with_probe(scores, fpn, batches(seed=1), batches(), settings=chosen)
    assert fpn.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in fpn.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in fpn.parameters())
    assert actual.rows["probe"].notna().all()
    again = with_probe(actual, fpn, batches(seed=1), batches(), settings=chosen)
    pd.testing.assert_frame_equal(actual.rows, again.rows)
    assert [metric["name"] for metric in again.metrics].count("probe") == 1


def test_the_tests_of_the_search_use_the_groups_of_the_scores(monkeypatch):
    fpn, seen = small_fpn(), []
    scores = xaieval.score(fpn, batches(), layers=["fpn[*]"], progress=False)

    def spy(gains, *given):
        seen.append(given[-1])
        return gain_p_values(gains, *given)

    monkeypatch.setattr(probe, "gain_p_values", spy)
    chosen = ProbeSettings(epochs=1, repeats=1)
    with_probe(scores.with_groups("^[012]|^[345]"), fpn, batches(seed=1), batches(), settings=chosen)
    with_probe(scores, fpn, batches(seed=1), batches(), settings=chosen)
    assert seen[0].count == 6
    assert seen[-1] is None


def test_too_few_images_and_images_without_a_group_are_refused_word_for_word():
    fpn = small_fpn()
    scores = xaieval.score(fpn, batches(), layers=["fpn[*]"], progress=False)
    with pytest.raises(DataError) as caught:
        with_probe(scores, fpn, [(torch.rand(1, 3, 64, 64), torch.tensor([0]))], batches())
    assert str(caught.value) == "a probe is trained on at least 2 images, got 1"
    grouped = scores.with_groups("class")
    with pytest.raises(MetricError) as missing:
        with_probe(grouped, fpn, batches(), batches(8))
    assert str(missing.value) == (
        "2 of 8 images have no group, such as '6'; give every image one, as Scores.with_groups does, or remove the column "
        "'group'"
    )
