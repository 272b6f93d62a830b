"""Designs of the attention in FAL: where it acts, how it acts, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from xaieval.errors import ModelError, choose_from
from xaieval.models.attention import amplify

__all__ = ["DESIGNS", "GATES", "Branch", "Design", "Gate", "Place", "design_of", "focus"]

Place = Literal["backbone", "features", "laterals", "levels"]
Gate = Literal["amplify", "focus"]
Branch = Literal["block", "stage"]


def focus(features: Float[Tensor, "n c h w"], attention: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n c h w"]:
    """Features weighted by attention relative to its mean, `M / mean(M) * g`; constant attention leaves them unchanged.

    The average of the result over space is the average of the features, weighted by the attention.

    Example:
        >>> import torch
        >>> focus(torch.tensor([[[[2.0, 4.0]]]]), torch.tensor([[[[0.9, 0.3]]]]))
        tensor([[[[3., 2.]]]])
    """
    return attention / attention.mean(dim=(2, 3), keepdim=True).clamp_min(1e-12) * features


GATES: dict[Gate, Callable[[Tensor, Tensor], Tensor]] = {"amplify": amplify, "focus": focus}


@dataclass(frozen=True, kw_only=True)
class Design:
    """How an attention branch and its map are used.

    Args:
        place: What the attention acts on: a stage's output within the "backbone", so that the later stages see it; the
            "features" that the pyramid takes from the backbone; the "laterals", the features after their 1x1 convolution, before
            the top-down merge; or the merged "levels".
        gate: "amplify", `(1 + M) * g`, or "focus", `M / mean(M) * g`.
        perception: Whether a trainable `SeparableBlock` follows behind the attention.
        branch: The stage of the branch: one "block", or, as in ABN, a copy of the backbone's next "stage".
        evidence: Whether the map shows class evidence instead of coming from a convolution, see `AttentionBranch`.
        shared: Whether all levels use one map, that of the coarsest level with attention, resized.

    Raises:
        ModelError: The place, the gate or the branch is unknown, or a branch of a whole stage acts elsewhere than on the
            backbone's features.
    """

    place: Place = "levels"
    gate: Gate = "amplify"
    perception: bool = False
    branch: Branch = "block"
    evidence: bool = False
    shared: bool = False

    def __post_init__(self) -> None:
        for value, known, what in ((self.place, Place, "place"), (self.gate, Gate, "gate"), (self.branch, Branch, "branch")):
            if value not in get_args(known):
                raise ModelError(f"no {what} {value!r} for attention; {choose_from(value, get_args(known))}")
        if self.branch == "stage" and self.place not in ("backbone", "features"):
            raise ModelError(f"a branch with a whole stage acts on backbone or features, got place {self.place!r}")
        if self.shared and self.place != "levels":
            raise ModelError(f"a shared map acts on levels, got place {self.place!r}")


DESIGNS: dict[str, Design] = {
    "amplify": Design(),
    "perception": Design(perception=True),
    "features": Design(place="features"),
    "laterals": Design(place="laterals"),
    "backbone": Design(place="backbone"),
    "stage": Design(place="features", branch="stage"),
    "shared": Design(perception=True, shared=True),
    "focus": Design(gate="focus"),
    "focus-perception": Design(gate="focus", perception=True),
    "focus-laterals": Design(place="laterals", gate="focus"),
    "evidence": Design(gate="focus", evidence=True),
    "evidence-amplify": Design(evidence=True),
    "evidence-perception": Design(gate="focus", perception=True, evidence=True),
    "evidence-laterals": Design(place="laterals", gate="focus", evidence=True),
    "evidence-features": Design(place="features", gate="focus", evidence=True),
}


def design_of(design: str | Design) -> Design:
    """The design of this name, or the design itself.

    Raises:
        ModelError: There is no design of this name.

    Example:
        >>> design_of("focus").gate
        'focus'
    """
    if isinstance(design, Design):
        return design
    if design not in DESIGNS:
        raise ModelError(f"no design {design!r} of attention; {choose_from(design, DESIGNS)}")
    return DESIGNS[design]
