"""Designs of the attention in FAL: where it acts, how it acts, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
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

    The average of the result over space is attention pooling: the average of the features with the attention as weights.

    Args:
        features: The features g.
        attention: The attention map M, at least 0.

    Reference:
        Ilse et al., "Attention-based Deep Multiple Instance Learning", ICML 2018, equation 7.

    Example:
        >>> import torch
        >>> focus(torch.tensor([[[[2.0, 4.0]]]]), torch.tensor([[[[0.75, 0.25]]]]))
        tensor([[[[3., 2.]]]])
    """
    attention = attention + torch.finfo(attention.dtype).tiny  # so that attention of 0 everywhere is constant too
    return attention / attention.mean(dim=(2, 3), keepdim=True) * features


GATES: dict[Gate, Callable[[Tensor, Tensor], Tensor]] = {"amplify": amplify, "focus": focus}


@dataclass(frozen=True, kw_only=True)
class Design:
    """How an attention branch and its map are used.

    Args:
        place: What the attention acts on: the "levels" after the top-down merge of the pyramid; the "laterals", which are the
            backbone's features after their 1x1 convolution, before the merge; the "features" that the pyramid takes from the
            backbone; or the same features within the "backbone", so that its later stages see the attention too.
        gate: What the map does: "amplify", `(1 + M) * g`, or "focus", `M / mean(M) * g`.
        perception: Whether a trainable `SeparableBlock` follows the attention.
        branch: How the branch begins: with one "block", or, as in ABN, with a copy of the backbone's next "stage". The last
            stage has no next one, so the branch of p5 begins with a block.
        evidence: Whether the map is that of the branch's class evidence, see `evidence_map`, instead of a convolution's.
        shared: Whether one map is used at all levels with attention: that of the coarsest, resized.

    Raises:
        ModelError: The place, the gate or the branch is unknown, a branch of a stage acts elsewhere than on the backbone's
            features, or a shared map acts elsewhere than on levels.

    Example:
        >>> Design(place="features", gate="focus").perception
        False
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
            raise ModelError(f"a branch of a stage needs place 'backbone' or 'features', got {self.place!r}")
        if self.shared and self.place != "levels":
            raise ModelError(f"a shared map needs place 'levels', got {self.place!r}")


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
    "evidence-amplify-laterals": Design(place="laterals", evidence=True),
    "evidence-amplify-features": Design(place="features", evidence=True),
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
