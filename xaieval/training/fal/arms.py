"""The arms of the experiment: the networks that are compared."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from xaieval.config.fal_options import ROLES, TWIN
from xaieval.errors import ConfigError, choose_from
from xaieval.models import LEVELS
from xaieval.models.designs import Design, Place, design_of

__all__ = ["ABN", "FPN", "Arm", "check_arms", "fal_arm", "is_role", "twin_among", "twin_arm"]

FPN, ABN = "fpn", "abn"
NAME = re.compile(r"(?P<kind>fal|twin)(?P<levels>(?:-p[2-5])+)(?:@(?P<design>[a-z-]+))?")


@dataclass(frozen=True)
class Arm:
    """A network of the experiment, by name.

    Attributes:
        name: "fpn", "abn", or "fal-p2-p3": FAL with attention on these levels; "twin-p2-p3" is the same network and loss
            without the use of the attention maps. "@DESIGN" at the end chooses another design of the attention than the
            experiment's.
        kind: The first part of the name.
        levels: The levels with attention.
        design: The name of the design; None for that of the experiment.
    """

    name: str
    kind: Literal["fpn", "abn", "fal", "twin"]
    levels: tuple[str, ...] = ()
    design: str | None = None

    @classmethod
    def of(cls, name: str) -> Arm:
        """The arm of this name.

        Raises:
            ConfigError: The name is no arm's.
            ModelError: There is no such design.

        Example:
            >>> Arm.of("twin-p2-p3@focus").levels
            ('p2', 'p3')
        """
        if name in (FPN, ABN):
            return cls(name, "fpn" if name == FPN else "abn")
        found = NAME.fullmatch(name)
        levels = tuple(found["levels"].strip("-").split("-")) if found else ()
        if not found or list(levels) != [level for level in LEVELS if level in levels]:
            known = [*ROLES, *(f"{role}{TWIN}" for role in ROLES), FPN, ABN]
            raise ConfigError(
                f"no arm {name!r} of the experiment; {choose_from(name, known)}, and fal-LEVELS and twin-LEVELS, with the "
                "levels in order and a design if need be, such as fal-p2-p3 or twin-p4@focus"
            )
        if found["design"]:
            design_of(found["design"])
        return cls(name, "fal" if found["kind"] == "fal" else "twin", levels, found["design"])


def check_arms(names: Iterable[str]) -> None:
    """Check that names are those of arms or roles.

    Raises:
        ConfigError: A name is unknown.
        ModelError: A design is unknown.
    """
    for name in names:
        if not is_role(name):
            Arm.of(name)


def is_role(name: str) -> bool:
    """Whether a name is that of an arm whose levels follow from the selection, such as "selected" or "all-twin"."""
    return name.removesuffix(TWIN) in ROLES


def fal_arm(levels: Iterable[str]) -> str:
    """Name of FAL with attention on these levels; without levels, of the FPN.

    Example:
        >>> fal_arm(["p3", "p2"])
        'fal-p2-p3'
    """
    return "-".join(["fal", *sorted(levels)]) if (levels := list(levels)) else FPN


def twin_arm(name: str) -> str:
    """Name of the twin of an arm: the same network, trained with the same loss, without the use of its attention maps."""
    return name.replace("fal-", "twin-", 1)


def twin_among(name: str, names: Iterable[str], design: str) -> str | None:
    """The twin of an arm among some arms, if there is one.

    A twin does not use its maps, so designs that differ only in how the map is made and used share a twin.

    Args:
        name: The name of a FAL.
        names: Names of arms.
        design: The design of the experiment.

    Example:
        >>> twin_among("fal-p2@focus", ["twin-p2@perception", "twin-p2@amplify"], "focus")
        'twin-p2@amplify'
    """
    arm = Arm.of(name)
    twins = [twin for twin in map(Arm.of, names) if twin.kind == "twin" and twin.levels == arm.levels]
    alike = [twin.name for twin in twins if _without_map(twin, design) == _without_map(arm, design)]
    return next((own for own in alike if own == twin_arm(name)), alike[0] if alike else None)


def _without_map(arm: Arm, design: str) -> Design:
    """The design of an arm as far as it does not concern the map."""
    own = design_of(arm.design or design)
    place: Place = "features" if own.place == "backbone" else own.place
    return replace(own, place=place, gate="amplify", evidence=False)
