"""What the sets of levels with attention say about each level: weights of arms, whose sums are effects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xaieval.errors import MetricError, choose_from
from xaieval.models import LEVELS
from xaieval.training.fal.arms import Arm, fal_arm, twin_arm

__all__ = ["ALL", "HALF_FRACTION", "PARTS", "Contrasts", "Part", "check_parts", "contrasts", "half_fraction_arms"]

Part = Literal["fal", "twin", "gate"]
PARTS: tuple[Part, ...] = get_args(Part)
ALL = "all"
SIGNS: dict[str, dict[str, float]] = {"fal": {"fal": 1.0}, "twin": {"twin": 1.0}, "gate": {"fal": 1.0, "twin": -1.0}}

# Half of the 16 sets of levels: those of odd size. Each level is in four of the eight sets, and in each of these two groups of
# four every other level is in two.
HALF_FRACTION: tuple[tuple[str, ...], ...] = tuple(levels for size in (1, 3) for levels in combinations(LEVELS, size))


@dataclass(frozen=True)
class Contrasts:
    """Effects as weighted sums of the means of arms.

    Attributes:
        weights: By effect, (level, part), the weight of each arm; the weights of an effect add up to 0.
        notes: Sentences about what the arms do not tell.
    """

    weights: dict[tuple[str, str], dict[str, float]]
    notes: list[str] = field(default_factory=list)

    def table(self, arms: Sequence[str]) -> pd.DataFrame:
        """The weights, one row per effect and one column per arm, in the order of these arms."""
        return pd.DataFrame.from_dict(self.weights, orient="index").reindex(columns=list(arms)).fillna(0.0)


def half_fraction_arms() -> list[str]:
    """Names of FAL with each set of the half fraction, and of their twins.

    Example:
        >>> half_fraction_arms()[4:10]
        ['fal-p2-p3-p4', 'fal-p2-p3-p5', 'fal-p2-p4-p5', 'fal-p3-p4-p5', 'twin-p2', 'twin-p3']
    """
    names = [fal_arm(levels) for levels in HALF_FRACTION]
    return names + [twin_arm(name) for name in names]


def check_parts(parts: Iterable[str]) -> None:
    """Raise an error if a part is unknown.

    Raises:
        MetricError: That is so.
    """
    for part in parts:
        if part not in PARTS:
            raise MetricError(f"no part {part!r} of an effect; {choose_from(part, PARTS)}")


def contrasts(arms: Iterable[str], parts: Sequence[str] = PARTS) -> Contrasts:
    """The effects that the sets of levels of these arms tell.

    The main effect of a level is the difference between sets with and without it, when the effects of the other levels are kept
    apart from it by least squares. In the half fraction that is the plain difference of two means of four sets; if there are
    further sets than those of the half fraction, they are left out, so that nothing depends on levels that add up.

    - `(level, "fal")`: the effect of attention on the level, in the networks that use their maps.
    - `(level, "twin")`: the same in the twins, which only have the branch and its loss.
    - `(level, "gate")`: the difference of both, what the use of the level's map adds.
    - `("all", "gate")`: FAL minus its twin, the mean over the sets.

    Args:
        arms: Names of the arms; the FPN, ABN and FAL without levels have no part in these effects.
        parts: The parts that are asked.

    Raises:
        MetricError: A part is unknown, the arms have several designs, or they tell none of these effects.

    Example:
        >>> found = contrasts(half_fraction_arms()).weights["p2", "fal"]
        >>> found["fal-p2"], found["fal-p3"], found["fal-p2-p3-p4"], found["fal-p3-p4-p5"]
        (0.25, -0.25, 0.25, -0.25)
    """
    check_parts(parts)
    sets = _sets(arms)
    found = Contrasts({})
    for part in parts:
        _add(found, part, sets)
    if not found.weights:
        raise MetricError(
            "the arms tell no effect of a level and none of the gate; effects need FAL with several sets of levels, or FAL and "
            f"its twin; got {', '.join(arms) or 'none'}"
        )
    return found


def _sets(arms: Iterable[str]) -> dict[str, dict[tuple[str, ...], str]]:
    """By kind, the arm of each set of levels."""
    known = [Arm.of(name) for name in arms]
    known = [arm for arm in known if arm.levels]
    designs = list(dict.fromkeys(str(arm.design or "of the experiment") for arm in known))
    if len(designs) > 1:
        raise MetricError(
            f"effects of levels are those of one design, and the arms have {', '.join(designs)}; choose the runs of one of them"
        )
    return {kind: {arm.levels: arm.name for arm in known if arm.kind == kind} for kind in ("fal", "twin")}


def _shared(part: str, sets: dict[str, dict[tuple[str, ...], str]]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The sets of levels with all arms that a part takes, and a note if these are none or too many."""
    kinds = list(SIGNS[part])
    shared = [levels for levels in sets[kinds[0]] if all(levels in sets[kind] for kind in kinds)]
    if not shared:
        missing = [kind for kind in kinds if not sets[kind]]
        reason = f"no run of a {missing[0]} arm" if missing else "no set of levels has runs of FAL and of its twin"
        return [], [f"part {part!r} is not known: {reason}"]
    further = ["-".join(levels) for levels in shared if levels not in HALF_FRACTION]
    if not further or not set(HALF_FRACTION) <= set(shared):
        return shared, []
    return list(HALF_FRACTION), [f"part {part!r} is that of the half fraction, without {', '.join(further)}"]


def _add(found: Contrasts, part: str, sets: dict[str, dict[tuple[str, ...], str]]) -> None:
    """Add the effects of a part."""
    signs = SIGNS[part]
    shared, note = _shared(part, sets)
    found.notes.extend(note)
    if not shared:
        return
    rows = dict(zip(LEVELS, _level_weights(shared), strict=True))
    if part == "gate":
        rows[ALL] = np.full(len(shared), 1 / len(shared))
    for level, weights in rows.items():
        if np.isfinite(weights).all():
            named = zip(shared, weights, strict=True)
            found.weights[level, part] = {
                sets[kind][levels]: sign * float(weight) for levels, weight in named for kind, sign in signs.items()
            }
    found.notes.extend(_notes(part, rows, shared))


def _level_weights(sets: Sequence[tuple[str, ...]]) -> NDArray[np.float64]:
    """The weight of each set in the effect of each level `[4, S]`, by least squares; NaN where the sets do not tell it."""
    design = np.array([[1.0, *(level in levels for level in LEVELS)] for levels in sets])
    weights = np.linalg.pinv(design)
    told = np.isclose((weights @ design).diagonal(), 1)
    return np.where(told[:, None], np.round(weights, 12), np.nan)[1:]


def _notes(part: str, rows: dict[str, NDArray[np.float64]], sets: Sequence[tuple[str, ...]]) -> list[str]:
    unknown = [level for level, weights in rows.items() if not np.isfinite(weights).all()]
    if unknown:
        return [f"part {part!r}: {len(sets)} sets of levels do not tell the effect of {', '.join(unknown)}"]
    inside = np.array([[level in levels for level in LEVELS] for levels in sets], dtype=float) - 0.5
    products = inside.T @ inside
    if (inside.sum(axis=0) != 0).any() or (products != np.diag(products.diagonal())).any():
        return [f"part {part!r}: the {len(sets)} sets of levels are not balanced, so the effects assume that levels add up"]
    return []
