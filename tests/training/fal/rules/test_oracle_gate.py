"""The gate that knows the class: against optimisation by SciPy, on the whole network, and by its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.nn import functional

import xaieval
from tests.training.fal.rules.features import batches, small_fpn
from xaieval.errors import AddressError, DataError, ModelError
from xaieval.models.designs import GATES
from xaieval.models.fpn import LEVELS, LevelHead
from xaieval.training.fal.rules.level_features import level_features
from xaieval.training.fal.rules.oracle_gate import loss_saved, with_oracle_gate

PROPERTY = settings(deadline=None, max_examples=15)


def _slow_loss(head, levels, level, label, cells) -> float:
    """The loss of one image when the average of a level is replaced by a sum of its cells with these weights."""
    pooled = {name: maps.mean(dim=(2, 3)) for name, maps in levels.items()}
    pooled[level] = (levels[level].flatten(2) * torch.as_tensor(cells, dtype=torch.float32)).sum(dim=2)
    logits = torch.stack([head.classifiers[name](vector) for name, vector in pooled.items()]).mean(dim=0)
    return float(functional.cross_entropy(logits, torch.tensor([label])).detach())


def _least(head, levels, level, label, gate: str) -> float:
    """The smallest loss by SciPy: over weighted means of cells for "focus", over maps in [0, 1] for "amplify"."""
    count = levels[level][0, 0].numel()
    focus = gate == "focus"
    found = minimize(
        lambda values: _slow_loss(head, levels, level, label, values if focus else (1 + values) / count),
        np.full(count, 1 / count if focus else 0.5),
        bounds=[(0, 1)] * count,
        constraints=[{"type": "eq", "fun": lambda values: values.sum() - 1}] if focus else [],
        method="SLSQP",
        options={"eps": 1e-4, "ftol": 1e-9},
    )
    return float(found.fun)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("level", ["p2", "p4"])
def test_what_is_saved_is_what_an_optimisation_by_scipy_saves(gate, level):
    fpn = small_fpn()
    found = level_features(fpn, batches(3), "p5")
    saved = loss_saved(fpn.head, found.levels, found.labels, gate, steps=300)[level]
    for image, label in enumerate(found.labels.tolist()):
        levels = {name: maps[image : image + 1] for name, maps in found.levels.items()}
        without = _slow_loss(fpn.head, levels, level, label, np.full(4, 1 / 4))
        assert float(saved[image]) == pytest.approx(max(0, without - _least(fpn.head, levels, level, label, gate)), abs=0.01)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("head", ["mean", "concat"])
def test_a_gate_on_cells_is_the_gate_on_all_positions_of_the_level(gate, head):
    fpn = small_fpn(head)
    images = torch.cat([image for image, _ in batches(4)])
    cells = torch.rand(4, 1, 2, 2)
    levels = dict(fpn.pyramid(images))
    averaged = level_features(fpn, batches(4), "p5").levels
    wide = functional.interpolate(cells, scale_factor=8, mode="nearest")
    actual = fpn.head(averaged | {"p2": GATES[gate](averaged["p2"], cells)})
    torch.testing.assert_close(actual, fpn.head(levels | {"p2": GATES[gate](levels["p2"], wide)}))
    torch.testing.assert_close(fpn.head(averaged), fpn(images))


def test_all_levels_have_the_same_grid():
    found = level_features(small_fpn(), batches(2, side=128), "p5").levels
    assert {tuple(maps.shape[2:]) for maps in found.values()} == {(4, 4)}
    assert {tuple(maps.shape[2:]) for maps in level_features(small_fpn(), batches(2), 1).levels.values()} == {(1, 1)}


@pytest.mark.parametrize(("gate", "grid", "steps"), [("focus", "p5", 0), ("focus", 1, 100)])
def test_a_map_that_is_the_same_everywhere_saves_nothing(gate, grid, steps):
    fpn = small_fpn()
    found = level_features(fpn, batches(4), grid)
    for saved in loss_saved(fpn.head, found.levels, found.labels, gate, steps).values():
        torch.testing.assert_close(saved, torch.zeros(4), atol=1e-6, rtol=0)


@PROPERTY
@given(st.integers(0, 1000), st.sampled_from([*GATES]), st.sampled_from(["mean", "concat"]))
def test_nothing_is_lost_and_more_steps_save_no_less(seed, gate, kind):
    torch.manual_seed(seed)
    head = LevelHead(kind, channels=3, num_classes=3)
    levels = {level: torch.randn(5, 3, 2, 2) * 3 for level in LEVELS}
    labels = torch.randint(3, (5,))
    few, many = (loss_saved(head, levels, labels, gate, steps) for steps in (3, 20))
    for level in LEVELS:
        assert (few[level] >= 0).all()
        assert (many[level] >= few[level] - 1e-6).all()


def test_what_is_saved_at_an_image_does_not_depend_on_the_others():
    fpn = small_fpn()
    found = level_features(fpn, batches(4), "p5")
    together = loss_saved(fpn.head, found.levels, found.labels)["p2"]
    alone = [
        loss_saved(fpn.head, {k: v[i : i + 1] for k, v in found.levels.items()}, found.labels[i : i + 1])["p2"]
        for i in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-3)


def test_scores_get_a_column_and_the_network_stays_as_it_was():
    fpn = small_fpn().train()
    before = {name: tensor.clone() for name, tensor in fpn.state_dict().items()}
    scores = xaieval.score(fpn, batches(), layers=["fpn[*]"], progress=False)
    actual = with_oracle_gate(scores, fpn, batches())
    assert fpn.training
    assert all(parameter.grad is None for parameter in fpn.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in fpn.state_dict().items())
    found = level_features(fpn, batches(), "p5")
    saved = loss_saved(fpn.head, found.levels, found.labels)
    for level in LEVELS:
        column = actual.rows.loc[actual.rows["layer"] == f"fpn[{level}]", "oracle_gate"]
        assert column.to_list() == pytest.approx(saved[level].tolist(), abs=1e-4)
    assert "oracle_gate" not in scores.rows


def test_the_rule_selects_where_most_is_saved():
    fpn = small_fpn()
    scores = with_oracle_gate(xaieval.score(fpn, batches(24), layers=["fpn[*]"], progress=False), fpn, batches(24))
    means = scores.rows.groupby("layer")["oracle_gate"].mean()
    assert scores.select_layers(1, by="oracle-gate") == [means.idxmax()]
    assert list(scores.select_layers(by="oracle-gate").ranking.index) == list(means.sort_values(ascending=False).index)


@pytest.mark.parametrize(
    ("loader", "options", "error", "message"),
    [
        (
            batches(),
            {"grid": "p4"},
            ModelError,
            "the gate has one grid on all levels, and that of 'p4' is finer than p5, 2 x 2",
        ),
        (batches(), {"grid": "p6"}, ModelError, "no pyramid level 'p6' for the grid; known: p2, p3, p4, p5"),
        (
            batches(side=80),
            {},
            ModelError,
            "level p2 has 20 x 20 positions, which 3 x 3 cells do not divide; give images whose sides are multiples of 32, or "
            "another grid",
        ),
        (
            [images for images, _ in batches()],
            {},
            DataError,
            "a loss needs one class per image, and the loader gives none; give batches with labels [N]",
        ),
        (
            [(images, labels - 1) for images, labels in batches()],
            {},
            DataError,
            "a loss needs the class of every image, and '0' has none",
        ),
        (
            batches(4),
            {},
            DataError,
            "image '4' of the scores is not in the loader; give the loader that was scored",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_word_for_word(loader, options, error, message):
    fpn = small_fpn()
    scores = xaieval.score(fpn, batches(), layers=["fpn[*]"], progress=False)
    with pytest.raises(error) as caught:
        with_oracle_gate(scores, fpn, loader, **options)
    assert str(caught.value) == message


def test_another_model_and_scores_of_other_layers_are_refused():
    fpn = small_fpn()
    scores = xaieval.score(fpn, batches(), layers=["fpn[*]"], progress=False)
    with pytest.raises(ModelError) as caught:
        with_oracle_gate(scores, fpn.backbone, batches())
    assert str(caught.value) == "the levels of an FPNClassifier are expected, got FeatureListNet"
    other = xaieval.score(fpn, batches(), layers=["fpn.layer_blocks.0"], progress=False)
    with pytest.raises(AddressError) as address:
        with_oracle_gate(other, fpn, batches())
    assert str(address.value) == "no layer of the scores is a pyramid level; score 'fpn[*]' or 'levels[*]'"
