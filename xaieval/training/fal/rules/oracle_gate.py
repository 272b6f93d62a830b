"""How much loss a gate that knows the class would save at each level of a feature pyramid."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from xaieval.errors import ModelError
from xaieval.evaluation.scores import Scores
from xaieval.models.designs import GATES, Gate
from xaieval.models.fpn import FPNClassifier, LevelHead
from xaieval.training.fal.rules.level_features import Grid, level_features, with_column

__all__ = ["ORACLE_GATE", "loss_saved", "with_oracle_gate"]

ORACLE_GATE = {"name": "oracle_gate", "label": "Oracle gate, nats", "higher_is_better": False, "interval": "mean"}
STEPS, RATE = 100, 0.5


def with_oracle_gate(
    scores: Scores,
    fpn: FPNClassifier,
    loader: Iterable[Any],
    *,
    gate: Gate = "focus",
    grid: Grid = "p5",
    steps: int = STEPS,
) -> Scores:
    """Scores with the column `oracle_gate`: the loss that a gate which knows the class saves at each level.

    Much saved means that the level sees the right things among wrong ones, which attention could keep apart. More is therefore
    "worse", as a large AD is: such a level needs attention. All levels have the same grid, since finer gates save more.

    Args:
        scores: Scores of the FPN's levels on the images of the loader.
        fpn: The trained FPN.
        loader: The images with their classes.
        gate: What the gate does to the features, "focus" or "amplify", see `xaieval.models.designs`.
        grid: The grid of the gate on every level: the number of cells along each side, or a level's name.
        steps: Number of gradient steps.

    Returns:
        The scores with one more metric, in nats, at least 0; `select_layers(by="oracle-gate")` uses it.

    Raises:
        ModelError: The model is no `FPNClassifier`, or the grid does not fit all levels.
        DataError: An image has no class, or an image of the scores is not in the loader.
        AddressError: The scores have no pyramid level.

    Example:
        >>> import xaieval
        >>> fpn = FPNClassifier("test_resnet", num_classes=10, channels=8).eval()
        >>> batches = [(torch.rand(4, 3, 64, 64), torch.arange(4))]
        >>> scores = xaieval.score(fpn, batches, layers=["fpn[*]"], progress=False)
        >>> scores = with_oracle_gate(scores, fpn, batches)
        >>> bool((scores.rows["oracle_gate"] >= 0).all())
        True
    """
    features = level_features(fpn, loader, grid)
    sizes = {level: tuple(maps.shape[2:]) for level, maps in features.levels.items()}
    if len(set(sizes.values())) > 1:
        height, width = sizes["p5"]
        raise ModelError(f"the gate has one grid on all levels, and that of {grid!r} is finer than p5, {height} x {width}")
    saved = loss_saved(copy.deepcopy(fpn.head).float().cpu(), features.levels, features.labels, gate, steps)
    return with_column(scores, features.ids, saved, ORACLE_GATE)


def loss_saved(
    head: LevelHead,
    levels: Mapping[str, Float[Tensor, "n c h w"]],
    labels: Int[Tensor, " n"],
    gate: Gate = "focus",
    steps: int = STEPS,
) -> dict[str, Float[Tensor, " n"]]:
    """The cross entropy that the best gate at one level saves, per image, by level.

    The gate multiplies the features of one level before the head, and all other levels stay as they are. Its map begins at 0.5
    and takes steps of Adam on its logits, for each image alone. What counts is the smallest loss on the way, with that without
    a gate, so nothing is lost by a gate.

    Args:
        head: The classifier of the levels.
        levels: The features by level.
        labels: The classes.
        gate: "focus" or "amplify".
        steps: Number of steps.

    Returns:
        `[N]` by level, in nats, at least 0.

    Example:
        >>> head = LevelHead("mean", channels=1, num_classes=2)
        >>> for layer in head.classifiers.values():
        ...     _ = torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
        >>> _ = head.classifiers["p2"].weight.data.copy_(torch.tensor([[0.0], [4.0]]))
        >>> levels = dict.fromkeys(("p2", "p3", "p4", "p5"), torch.tensor([[[[0.0, 0.0, 0.0, 8.0]]]]))
        >>> {level: round(float(saved), 2) for level, saved in loss_saved(head, levels, torch.tensor([1])).items()}
        {'p2': 0.13, 'p3': 0.0, 'p4': 0.0, 'p5': 0.0}
    """
    with torch.no_grad():
        without = _losses(head, levels, labels)
    return {level: without - _smallest(head, levels, level, labels, gate, steps, without) for level in levels}


def _smallest(
    head: LevelHead,
    levels: Mapping[str, Tensor],
    level: str,
    labels: Tensor,
    gate: Gate,
    steps: int,
    without: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """The smallest loss per image with a gate at one level."""
    features, smallest = levels[level], without
    logits = torch.zeros_like(features[:, :1], requires_grad=True)
    optimizer = torch.optim.Adam([logits], RATE)  # it treats each number alone, so images do not affect each other
    for _ in range(steps + 1):
        losses = _losses(head, {**levels, level: GATES[gate](features, logits.sigmoid())}, labels)
        smallest = torch.minimum(smallest, losses.detach())
        (logits.grad,) = torch.autograd.grad(losses.sum(), [logits])
        optimizer.step()
    return smallest


def _losses(head: LevelHead, levels: Mapping[str, Tensor], labels: Tensor) -> Float[Tensor, " n"]:
    return functional.cross_entropy(head(levels), labels, reduction="none")
