"""Attention branches, the blocks and gates that they are used with, and the loss that trains them."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from tests.models.attended import shuffled, some_images
from xaieval.models import FAL, ABNClassifier, AttentionBranch, AttentionOutput, SeparableBlock, amplify, attention_loss
from xaieval.models.attention import evidence_map


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    exponent=st.floats(-6, 6),
    size=st.tuples(st.integers(2, 3), st.integers(1, 6), st.integers(1, 6)),
    training=st.booleans(),
    evidence=st.booleans(),
)
def test_a_map_lies_between_0_and_1_whatever_the_features(seed, exponent, size, training, evidence):
    torch.manual_seed(seed)
    branch = shuffled(AttentionBranch(3, 2, evidence=evidence)).train(training)
    found = branch(10**exponent * torch.randn(size[0], 3, *size[1:]))
    maps = found["map"]
    assert maps.shape == (size[0], 1, *size[1:])
    assert found["logits"].shape == (size[0], 2)
    assert 0 <= maps.min() <= maps.max() <= 1  # false for NaN too


@pytest.mark.parametrize("training", [True, False])
def test_class_maps_without_attention_are_a_map_of_one_half(training):
    branch, features = shuffled(AttentionBranch(6, 4)).train(training), torch.randn(3, 6, 5, 5)
    nn.init.zeros_(branch.attention[1].weight), nn.init.zeros_(branch.attention[1].bias)
    maps = branch(features)["map"]
    assert (maps == 0.5).all()
    assert torch.equal(amplify(features, maps), 1.5 * features)


@pytest.mark.parametrize("evidence", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_a_new_branch_is_open(training, evidence):
    maps = AttentionBranch(16, 5, evidence=evidence).train(training)(torch.rand(4, 16, 9, 9))["map"]
    assert 0.4 < maps.mean() < 0.6


class _Formula:
    """The layers of a branch, from its weights and without its modules."""

    def __init__(self, branch):
        self.weights = {name: tensor.clone() for name, tensor in branch.state_dict().items()}
        self.training = branch.training

    def convolved(self, maps, name, **options):
        return functional.conv2d(maps, self.weights[f"{name}.weight"], **options)

    def normed(self, maps, name):
        mean, variance = self.weights[f"{name}.running_mean"], self.weights[f"{name}.running_var"]
        if self.training:
            mean, variance = maps.mean(dim=(0, 2, 3)), maps.var(dim=(0, 2, 3), correction=0)
        scale = self.weights[f"{name}.weight"] / (variance + 1e-5).sqrt()
        return (maps - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + self.weights[f"{name}.bias"].view(1, -1, 1, 1)

    def block(self, maps, name):
        new = self.convolved(maps, f"{name}.0", padding=1, groups=maps.shape[1])
        new = self.normed(new, f"{name}.1").clamp(min=0)
        return maps + self.normed(self.convolved(new, f"{name}.3"), f"{name}.4")

    def classes(self, maps):
        maps = self.normed(maps, "norm")
        maps = torch.einsum("kc,nchw->nkhw", self.weights["classes.0.weight"][:, :, 0, 0], maps)
        return self.normed(maps, "classes.1").clamp(min=0)

    def map(self, classes):
        return 1 / (1 + (-self.normed(self.convolved(classes, "attention.0", padding=1), "attention.1")).exp())

    def logits(self, classes):
        return classes.mean(dim=(2, 3)) @ self.weights["classifier.weight"][:, :, 0, 0].T


@pytest.mark.parametrize("training", [True, False])
def test_a_branch_is_what_its_formula_says(training):
    branch = shuffled(AttentionBranch(6, 4)).train(training)
    formula, features = _Formula(branch), torch.randn(3, 6, 5, 7)
    classes = formula.classes(formula.block(features, "stage.residual"))
    unchanged = features.clone()
    found = branch(features)
    assert_close(found["logits"], formula.logits(classes))
    assert_close(found["map"], formula.map(classes))
    assert torch.equal(features, unchanged)
    assert set(branch.state_dict()) == set(formula.weights)


@pytest.mark.parametrize("stage", [nn.Conv2d(6, 9, 3, padding=1), nn.Sequential()])
def test_a_branch_begins_with_its_stage(stage):
    channels = 9 if len(list(stage.parameters())) else 6
    branch = shuffled(AttentionBranch(6, 4, stage=stage, stage_channels=channels)).eval()
    formula, features = _Formula(branch), torch.randn(3, 6, 5, 7)
    classes = formula.classes(stage(features))
    found = branch(features)
    assert_close(found["logits"], formula.logits(classes))
    assert_close(found["map"], formula.map(classes))


def test_a_map_of_evidence_is_the_one_computed_by_hand():
    branch = shuffled(AttentionBranch(6, 4, evidence=True)).eval()
    formula, features = _Formula(branch), torch.randn(3, 6, 5, 7)
    classes = formula.classes(formula.block(features, "stage.residual"))
    found = branch(features)
    assert_close(found["logits"], formula.logits(classes))
    assert branch.attention is None
    assert not [name for name in branch.state_dict() if name.startswith("attention")]
    for index in range(3):
        logits = formula.logits(classes)[index]
        probabilities = [math.exp(one) / sum(math.exp(other) for other in logits) for one in logits]
        weights = formula.weights["classifier.weight"][:, :, 0, 0]
        evidence = [torch.tensordot(row, classes[index], dims=1) for row in weights]
        total = sum(probability * one for probability, one in zip(probabilities, evidence, strict=True))
        standardised = (total - total.mean()) / total.std(correction=0)
        assert_close(found["map"][index, 0], (2 * standardised).sigmoid(), atol=1e-4, rtol=0)


def test_evidence_without_differences_is_a_map_of_one_half_with_a_gradient():
    evidence = torch.full((2, 3, 4, 4), 1.5, requires_grad=True)
    maps = evidence_map(evidence, evidence.mean(dim=(2, 3)))
    assert (maps == 0.5).all()
    (maps * torch.rand(4, 4)).sum().backward()
    assert evidence.grad.isfinite().all()


def test_the_map_of_evidence_does_not_depend_on_its_scale_or_offset():
    evidence = torch.randn(2, 1, 6, 6)
    maps = evidence_map(evidence, evidence.mean(dim=(2, 3)))
    for scale, offset in ((7.0, 0.0), (1.0, -3.0)):
        other = scale * evidence + offset
        assert_close(evidence_map(other, other.mean(dim=(2, 3))), maps, atol=1e-4, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_a_block_starts_as_the_identity_and_learns(training):
    block, features = SeparableBlock(5).train(training), torch.randn(3, 5, 6, 6)
    assert torch.equal(block(features), features)
    (block(features) * torch.rand(6, 6)).sum().backward()
    assert block.residual[-1].weight.grad.abs().sum() > 0


def _held(model):
    """What every module holds (containers by their content), and all weights and statistics."""
    attributes = {(path, name): value for path, module in model.named_modules() for name, value in vars(module).items()}
    held = {at: [(k, id(v)) for k, v in x.items()] if isinstance(x, dict) else id(x) for at, x in attributes.items()}
    return held, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _in_graphs():
    gc.collect()
    return {id(thing) for thing in gc.get_objects() if type(thing) is torch.Tensor and thing.grad_fn is not None}


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: AttentionBranch(3, 10), {}),
        (lambda: FAL("test_resnet", 10, ("p2", "p4"), channels=16), {"details": True}),
        (lambda: FAL("test_resnet", 10, ("p2", "p4"), channels=16, design="backbone"), {"details": True}),
        (lambda: FAL("test_resnet", 10, ("p2", "p4"), channels=16, design="laterals"), {"details": True}),
        (lambda: ABNClassifier("test_resnet", 10), {"details": True}),
    ],
    ids=["branch", "fal", "fal-backbone", "fal-laterals", "abn"],
)
def test_nothing_is_kept_on_a_model(make, options, training):
    model = make().train(training)
    (held, values), alive = _held(model), _in_graphs()
    found = model(some_images(), **options)
    assert _in_graphs() > alive
    assert _held(model)[0] == held
    changed = {name.rsplit(".", 1)[1] for name, value in model.state_dict().items() if not torch.equal(value, values[name])}
    assert changed == ({"running_mean", "running_var", "num_batches_tracked"} if training else set())
    del found
    assert _in_graphs() <= alive


@pytest.mark.parametrize("weight", [1.0, 0.0, 0.3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("branches", [0, 1, 3])
def test_the_loss_is_that_of_hand_computed_entropies(weight, smoothing, branches):
    rng, labels = np.random.default_rng(0), [2, 0, 4, 4]
    logits = rng.normal(0, 2, (1 + branches, 4, 5))

    def entropy(of):
        losses = []
        for row, label in zip(of, labels, strict=True):
            logs = [x - math.log(sum(math.exp(y) for y in row)) for x in row]
            wanted = [(1 - smoothing) * (k == label) + smoothing / 5 for k in range(5)]
            losses.append(-sum(q * log for q, log in zip(wanted, logs, strict=True)))
        return sum(losses) / 4

    first, *others = torch.from_numpy(logits)
    output = AttentionOutput(first, {str(index): other for index, other in enumerate(others)})
    expected = entropy(logits[0]) + weight * sum(entropy(other) for other in logits[1:]) / max(branches, 1)
    options = {} if (weight, smoothing) == (1, 0) else {"weight": weight, "label_smoothing": smoothing}
    assert attention_loss(output, torch.tensor(labels), **options).item() == pytest.approx(expected, rel=1e-12)
