"""Which arms a selection of levels leads to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from xaieval.config.fal_options import ROLES, TWIN
from xaieval.models import LEVELS
from xaieval.training.fal.arms import FPN, fal_arm, twin_arm

__all__ = ["roles_of", "shared_roles"]


def roles_of(ranked: Sequence[str], selected: Iterable[str], rng: np.random.Generator) -> dict[str, str]:
    """Return the arm of each role.

    Args:
        ranked: All levels, worst first.
        selected: The levels that need attention.
        rng: Random numbers for the levels of "random".

    Returns:
        Names of arms by role. "random" and "best" have as many levels as were selected. "random" has other levels than
        "selected" and, where there are enough sets, than "best". Without selected levels, all three are the FPN.

    Example:
        >>> roles = roles_of(["p2", "p3", "p5", "p4"], ["p2", "p3"], np.random.default_rng(0))
        >>> roles["selected"], roles["selected-twin"], roles["best"]
        ('fal-p2-p3', 'twin-p2-p3', 'fal-p4-p5')
    """
    chosen = set(selected)
    best = set(ranked[len(ranked) - len(chosen) :])
    every = [set(levels) for levels in itertools.combinations(LEVELS, len(chosen))]
    others = [levels for levels in every if levels not in (chosen, best)] or every
    sets = {"selected": chosen, "random": others[int(rng.integers(len(others)))], "best": best, "all": set(LEVELS)}
    roles = {role: fal_arm(sets[role]) for role in ROLES}
    return roles | {role + TWIN: twin_arm(arm) for role, arm in roles.items()}


def shared_roles(roles: dict[str, str], wanted: Iterable[str]) -> str:
    """One line on the wanted roles that are the same network; empty if there are none.

    Example:
        >>> shared_roles({"selected": "fal-p5", "random": "fal-p3", "best": "fal-p3"}, ["selected", "random", "best"])
        'random and best are the same network, fal-p3'
    """
    by_arm: dict[str, list[str]] = {}
    for role in wanted:
        if role in roles:
            by_arm.setdefault(roles[role], []).append(role)
    return "; ".join(
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {'the FPN' if arm == FPN else f'the same network, {arm}'}"
        for arm, names in by_arm.items()
        if len(names) > 1 or arm == FPN
    )
