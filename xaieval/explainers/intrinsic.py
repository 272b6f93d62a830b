"""Maps that the model computes itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context

__all__ = ["INTRINSIC", "Attention"]


@dataclass(frozen=True)
class Attention:
    """The attention map of an attention branch: a layer of one channel, such as `attention.p2[map]`.

    Reference:
        Fukui et al., "Attention Branch Network", CVPR 2019, section 4.3, where these maps are the explanations.
    """

    name: str = "attention"
    needs_layer: bool = True
    needs_gradient: bool = False
    needs_model: bool = False
    paper: str = "Fukui et al. 2019, CVPR"
    passes: str = "1, shared"

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, h, w]`.

        Raises:
            ExplainerError: The layer has more than one channel, so it is not an attention map.
        """
        if context.activation is None or context.activation.shape[1] != 1:
            shape = None if context.activation is None else list(context.activation.shape)
            raise ExplainerError(
                f"method 'attention' reads the map of an attention branch, one channel; layer '{context.layer}' gives {shape}: "
                "name the map, such as 'attention.*[map]' of a FAL or 'attention[map]' of an ABNClassifier"
            )
        return context.activation[:, 0]


INTRINSIC = (Attention(),)
