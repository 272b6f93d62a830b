"""Tables of runs with known effects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from xaieval.models import LEVELS
from xaieval.training.fal.statistics.contrasts import half_fraction_arms

ARMS = [*half_fraction_arms(), "fpn", "abn"]
LEVEL_EFFECTS = {"p2": -3.0, "p3": -1.0, "p4": 1.0, "p5": 0.0}
GATE = 2.0  # what the use of the maps adds
STRONGER = 1.5  # how many times as strong the effect of a level is when its map is used
TRUE = {
    **{(level, "fal"): STRONGER * LEVEL_EFFECTS[level] for level in LEVELS},
    **{(level, "twin"): LEVEL_EFFECTS[level] for level in LEVELS},
    **{(level, "gate"): (STRONGER - 1) * LEVEL_EFFECTS[level] for level in LEVELS},
    ("all", "gate"): GATE - 3.0 * (STRONGER - 1) / 2,  # each level is in half of the sets
}


def true_mean(arm: str) -> float:
    """The mean of an arm over all folds and seeds."""
    total = sum(effect for level, effect in LEVEL_EFFECTS.items() if level in arm)
    return 50 + (GATE + STRONGER * total if arm.startswith("fal") else total)


def made_runs(
    seed: int,
    folds: int = 5,
    seeds: int = 6,
    *,
    arms: Sequence[str] = tuple(ARMS),
    fold_spread: float = 2.0,
    seed_spread: float = 2.0,
    arm_in_fold: float = 0.0,
    spread: float = 3.0,
) -> pd.DataFrame:
    """Runs whose outcome "y" has normal errors with these standard deviations."""
    rng = np.random.default_rng(seed)
    values = np.array([true_mean(arm) for arm in arms]) + rng.normal(0, spread, (folds, seeds, len(arms)))
    values += rng.normal(0, fold_spread, (folds, 1, 1)) + rng.normal(0, seed_spread, (folds, seeds, 1))
    values += rng.normal(0, arm_in_fold, (folds, 1, len(arms)))
    fold, number, arm = np.indices(values.shape).reshape(3, -1)
    return pd.DataFrame({"arm": np.array(arms)[arm], "fold": fold, "seed": number, "y": values.ravel()})


def by_class(runs: pd.DataFrame, seed: int, classes: int, *, arm_in_class: float = 0.0, spread: float = 4.0) -> pd.DataFrame:
    """The same runs by class: each class has its own level, and its own differences between arms."""
    rng = np.random.default_rng(seed)
    arms = pd.factorize(runs["arm"])[0]
    values = runs["y"].to_numpy()[:, None] + rng.normal(0, 5, classes) + rng.normal(0, spread, (len(runs), classes))
    values += rng.normal(0, arm_in_class, (arms.max() + 1, classes))[arms]
    table = runs.loc[runs.index.repeat(classes)].reset_index(drop=True)
    return table.assign(label=np.tile(np.arange(classes), len(runs)), y=values.ravel())
