"""How much loss attention saves at each level if only the attention and the head are trained, on features kept in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from xaieval.analysis.gains import gain_p_values
from xaieval.analysis.tables import grouping_of
from xaieval.errors import DataError
from xaieval.evaluation.scores import Scores
from xaieval.models.attention import AttentionBranch, AttentionOutput, attention_loss
from xaieval.models.designs import GATES, Gate
from xaieval.models.fpn import LEVELS, FPNClassifier, LevelHead
from xaieval.training.fal.rules.level_features import Grid, LevelFeatures, level_features, with_column

__all__ = ["PROBE", "ProbeSettings", "greedy_gains", "probe_losses", "with_probe"]

PROBE = {"name": "probe", "label": "Probe, nats", "higher_is_better": False, "interval": "mean"}
WARMUP, WEIGHT_DECAY = 0.3, 0.05

Losses = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How a probe is trained.

    Args:
        gate: What the gate does to the features, "focus" or "amplify".
        grid: Finer levels are averaged over this grid: the number of cells along each side, or a level's name.
        epochs: Passes over the training images, in one cycle of the learning rate.
        repeats: Number of trainings, whose losses are averaged.
        learning_rate: Highest learning rate.
        batch_size: Images in a step.
        seed: Seed of the new weights and of the order of the images.
    """

    gate: Gate = "focus"
    grid: Grid = "p4"
    epochs: int = 5
    repeats: int = 3
    learning_rate: float = 1e-3
    batch_size: int = 32
    seed: int = 0


def with_probe(
    scores: Scores,
    fpn: FPNClassifier,
    training: Iterable[Any],
    loader: Iterable[Any],
    *,
    settings: ProbeSettings | None = None,
    level: float = 0.95,
) -> Scores:
    """Scores with the column `probe`: the loss that trained attention saves at each level, beside the levels chosen before it.

    The trained FPN is frozen and its levels are computed once. A probe is an attention branch with its gate on some levels, and
    the head, trained further from that of the FPN. Its loss on the images of the loader is compared with that of the head,
    trained alike without a gate. Since the levels are frozen, the branches' own loss does not reach the head, so this is also
    the probe that does not use its maps.

    The search is greedy: of the levels that save loss beyond chance, the one that saves the most is taken, then the one that
    saves the most beside it, and so on until none does. The column has what each level saved in the round in which it was
    taken, and for the others what they saved in the last round. More is "worse": a level that saves loss needs attention.

    Args:
        scores: Scores of the FPN's levels on the images of the loader; their groups and seed are used in the tests.
        fpn: The trained FPN.
        training: Images that the probes are trained on, with their classes, such as those that the FPN was trained on.
        loader: Other images, that the loss is measured on.
        settings: How probes are trained.
        level: 1 minus the probability that a level is taken if none saves loss, in (0, 1); the one to select layers with.

    Returns:
        The scores with one more metric, in nats; `select_layers(by="probe")` uses it.

    Raises:
        ModelError: The model is no `FPNClassifier`, or the grid does not fit.
        DataError: An image has no class, there are fewer than two training images, or an image of the scores is not in the
            loader.
        MetricError: An image has no group, and the scores have groups.
        AddressError: The scores have no pyramid level.

    Example:
        >>> import xaieval
        >>> fpn = FPNClassifier("test_resnet", num_classes=4, channels=8).eval()
        >>> train, choose = [[(torch.rand(8, 3, 64, 64), torch.arange(8) % 4)] for _ in range(2)]
        >>> scores = xaieval.score(fpn, choose, layers=["fpn[*]"], progress=False)
        >>> scores = with_probe(scores, fpn, train, choose, settings=ProbeSettings(epochs=1, repeats=1))
        >>> len(scores.rows["probe"].dropna())
        32
    """
    settings = settings or ProbeSettings()
    known, new = level_features(fpn, training, settings.grid), level_features(fpn, loader, settings.grid)
    if len(known) < 2:
        raise DataError(f"a probe is trained on at least 2 images, got {len(known)}")
    order = np.argsort(new.ids)  # that of the images in `select_layers`, so that both tests draw the same signs
    groups = grouping_of(scores.rows, np.asarray(new.ids)[order], scores.group_weights)

    def significant(gains: Losses) -> NDArray[np.bool_]:
        return gain_p_values(gains[order], len(LEVELS), level, scores.seed, groups)[1] < 1 - level

    gains = greedy_gains(lambda levels: probe_losses(fpn.head, known, new, levels, settings), list(LEVELS), significant)
    return with_column(scores, new.ids, {name: torch.from_numpy(values) for name, values in gains.items()}, PROBE)


def greedy_gains(
    losses_of: Callable[[tuple[str, ...]], Losses],
    levels: Sequence[str],
    significant: Callable[[Losses], NDArray[np.bool_]],
) -> dict[str, Losses]:
    """What each level saves per image in a greedy search that stops when no level saves anything significant.

    Args:
        losses_of: The loss of each image `[N]` with attention on some levels.
        levels: All levels.
        significant: For gains `[N, L]`, whether those of each column are above 0 beyond chance.

    Returns:
        `[N]` by level.

    Example:
        >>> saved = {"p2": 1.0, "p3": 3.0, "p4": 0.0}
        >>> losses_of = lambda chosen: np.full(2, 5.0 - max([saved[level] for level in chosen], default=0.0))
        >>> gains = greedy_gains(losses_of, list(saved), lambda gains: gains.mean(axis=0) > 0)
        >>> {level: float(values.mean()) for level, values in gains.items()}
        {'p2': 0.0, 'p3': 3.0, 'p4': 0.0}
    """
    taken: tuple[str, ...] = ()
    losses, gains = losses_of(taken), dict[str, Losses]()
    while left := [level for level in levels if level not in taken]:
        candidates = {level: losses_of((*taken, level)) for level in left}
        gains |= {level: losses - found for level, found in candidates.items()}
        above = significant(np.column_stack([gains[level] for level in left]))
        good = [level for level, is_above in zip(left, above, strict=True) if is_above]
        if not good:
            break
        best = max(good, key=lambda level: float(gains[level].mean()))
        taken, losses = (*taken, best), candidates[best]
    return {level: gains[level] for level in levels}


def probe_losses(
    head: LevelHead, training: LevelFeatures, images: LevelFeatures, levels: Iterable[str], settings: ProbeSettings
) -> Losses:
    """The cross entropy of each image `[N]` with attention on some levels, averaged over the trainings.

    Args:
        head: The trained head, which is copied.
        training: Features that the attention and the head are trained on.
        images: Features that the loss is measured on.
        levels: The levels with attention; without any, the head is trained alone.
        settings: How probes are trained.
    """
    chosen = [level for level in LEVELS if level in set(levels)]
    found = [
        _trained(head, training, chosen, settings, settings.seed + repeat).losses(images) for repeat in range(settings.repeats)
    ]
    return np.asarray(np.mean(found, axis=0), dtype=float)


class _Probe(nn.Module):
    """Attention branches on some levels, and the head."""

    def __init__(self, head: LevelHead, branches: Mapping[str, AttentionBranch], gate: Gate) -> None:
        super().__init__()
        self.head = copy.deepcopy(head).float().cpu().requires_grad_()
        self.branches = nn.ModuleDict(branches)
        self.gate = GATES[gate]

    def forward(self, levels: Mapping[str, Tensor]) -> AttentionOutput:
        found = {level: branch(levels[level]) for level, branch in self.branches.items()}
        gated = {level: self.gate(levels[level], branch["map"]) for level, branch in found.items()}
        return AttentionOutput.gather(self.head({**levels, **gated}), found)

    @torch.no_grad()
    def losses(self, images: LevelFeatures) -> Float[NDArray[np.float64], " n"]:
        self.eval()
        logits = self(images.levels).logits
        return functional.cross_entropy(logits, images.labels, reduction="none").double().numpy()


def _trained(head: LevelHead, training: LevelFeatures, levels: Sequence[str], settings: ProbeSettings, seed: int) -> _Probe:
    """A probe after its training; each level's branch and the order of the images depend on the seed alone."""
    channels = next(iter(training.levels.values())).shape[1]
    with torch.random.fork_rng(devices=[]):
        branches = {}
        for level in levels:
            torch.manual_seed(seed)
            branches[level] = AttentionBranch(channels, _classes_of(head))
    probe = _Probe(head, branches, settings.gate)
    batches = _batches(len(training), settings, seed)
    optimizer = torch.optim.AdamW(probe.parameters(), settings.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=len(batches), pct_start=WARMUP
    )
    for batch in batches:
        output = probe({level: features[batch] for level, features in training.levels.items()})
        optimizer.zero_grad()
        # Each branch has weight 1, so that a further branch does not change how the others are trained.
        attention_loss(output, training.labels[batch], weight=len(levels)).backward()
        optimizer.step()
        schedule.step()
    return probe


def _classes_of(head: LevelHead) -> int:
    return next(module.out_features for module in head.modules() if isinstance(module, nn.Linear))


def _batches(count: int, settings: ProbeSettings, seed: int) -> list[Tensor]:
    """Numbers of the images of each step; an incomplete last batch of an epoch is left out."""
    generator = torch.Generator().manual_seed(seed)
    size = min(settings.batch_size, count)
    orders = [torch.randperm(count, generator=generator) for _ in range(settings.epochs)]
    return [batch for order in orders for batch in order[: count - count % size].split(size)]
