"""The attention branch, which turns features into an attention map and logits, and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AttentionBranch", "AttentionOutput", "SeparableBlock", "amplify", "attention_loss", "evidence_map"]


GAIN = 2.0  # a position one standard deviation above the mean has seven times the attention of one below


class AttentionBranch(nn.Module):
    """Attention branch: from features to an attention map, and to logits that train it.

    A stage, batch norm, a 1x1 convolution to K class maps, batch norm and ReLU come first. From there, a 1x1 convolution from K
    to K and the average over space give the attention logits; a 3x3 convolution from K to 1, batch norm and a sigmoid give the
    attention map. The convolutions have no bias. The maps of a new branch are around 0.5: the attention starts open. What the
    map does to the features is decided elsewhere, see `Design`.

    Args:
        channels: The number of channels of the features.
        num_classes: The number of classes K.
        stage: The first part, such as a copy of the network's next stage, as in the original. Default: one `SeparableBlock`,
            which costs little.
        stage_channels: The number of channels of the stage's output. Default: that of the features.
        evidence: Whether the map is an `evidence_map` instead of that of the 3x3 convolution, which is then left out.

    Returns:
        Called with features `[N, channels, h, w]`, a mapping with "logits" `[N, K]` and "map" `[N, 1, h, w]` in [0, 1], with h
        and w of the stage's output. The layer address of the map is `BRANCH[map]`. The module stores no outputs.

    Reference:
        Fukui et al., "Attention Branch Network: Learning of Attention Mechanism for Visual Explanation", CVPR 2019, section
        3.1.

    Example:
        >>> import torch
        >>> branch = AttentionBranch(channels=16, num_classes=10)
        >>> found = branch(torch.rand(2, 16, 8, 8))
        >>> found["logits"].shape, found["map"].shape
        (torch.Size([2, 10]), torch.Size([2, 1, 8, 8]))
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        stage: nn.Module | None = None,
        stage_channels: int | None = None,
        evidence: bool = False,
    ) -> None:
        super().__init__()
        width = stage_channels or channels
        self.stage = SeparableBlock(channels) if stage is None else stage
        self.norm = nn.BatchNorm2d(width)
        self.classes = nn.Sequential(
            nn.Conv2d(width, num_classes, 1, bias=False), nn.BatchNorm2d(num_classes), nn.ReLU(inplace=True)
        )
        self.classifier = nn.Conv2d(num_classes, num_classes, 1, bias=False)
        self.attention = None if evidence else _map_layers(num_classes)

    def forward(self, features: Float[Tensor, "n c h w"]) -> dict[str, Tensor]:
        """Attention logits and attention map of a batch of features."""
        classes = self.classes(self.norm(self.stage(features)))
        evidence = self.classifier(classes)
        logits = evidence.mean(dim=(2, 3))
        maps = evidence_map(evidence, logits) if self.attention is None else self.attention(classes)
        return {"logits": logits, "map": maps}


def _map_layers(num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(num_classes, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1), nn.Sigmoid())


def evidence_map(evidence: Float[Tensor, "n k h w"], logits: Float[Tensor, "n k"]) -> Float[Tensor, "n 1 h w"]:
    """An attention map from class evidence: high where features speak for the classes that the branch believes in.

    The evidence of each class, which is its logit at each position, is weighted by the probability of the class and summed. The
    sum is standardised over space, multiplied by `GAIN` and goes through a sigmoid. Without differences over space the map is
    0.5.

    Args:
        evidence: The logits of each position.
        logits: Their averages over space.

    Reference:
        Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, equation 2, for the evidence of a
        class.

    Example:
        >>> import torch
        >>> evidence = torch.tensor([[[[4.0, 4.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]]])  # of two classes
        >>> evidence_map(evidence, torch.tensor([[2.0, 0.0]]))
        tensor([[[[0.8808, 0.8808, 0.1192, 0.1192]]]])
    """
    maps = (evidence * logits.softmax(dim=1)[:, :, None, None]).sum(dim=1, keepdim=True)
    centred = maps - maps.mean(dim=(2, 3), keepdim=True)
    deviation = centred.square().mean(dim=(2, 3), keepdim=True).add(1e-6).sqrt()  # a constant map has a gradient too
    return torch.sigmoid(GAIN * centred / deviation)


class SeparableBlock(nn.Module):
    """Residual block that starts as the identity: a 3x3 convolution of each channel, and a 1x1 convolution over the channels.

    Each convolution is followed by batch norm; ReLU is between the two.

    Args:
        channels: The number of channels of the features.

    Reference:
        Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017, section 3.1
        (the two convolutions); Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, section 5.1
        (the last batch norm starts at zero).

    Example:
        >>> import torch
        >>> features = torch.rand(2, 16, 8, 8)
        >>> torch.equal(SeparableBlock(16)(features), features)
        True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.BatchNorm2d(channels)
        nn.init.zeros_(last.weight)
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1, bias=False),
            last,
        )

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Features plus their residual."""
        output: Tensor = features + self.residual(features)
        return output


@dataclass(frozen=True)
class AttentionOutput:
    """Full output of a model with attention branches.

    Attributes:
        logits: The logits of the prediction, `[N, K]`.
        attention_logits: The logits of each branch, `[N, K]`, by the name of the branch.
        attention_maps: The attention map of each branch, `[N, h, w]` in [0, 1], by the name of the branch.
    """

    logits: Tensor
    attention_logits: dict[str, Tensor] = field(default_factory=dict)
    attention_maps: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def gather(cls, logits: Tensor, branches: Mapping[str, Mapping[str, Tensor]]) -> AttentionOutput:
        """Combine the logits of the prediction with the outputs of the branches."""
        return cls(
            logits,
            {name: branch["logits"] for name, branch in branches.items()},
            {name: branch["map"].squeeze(1) for name, branch in branches.items()},
        )


def amplify(features: Float[Tensor, "n c h w"], attention: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n c h w"]:
    """Features amplified by attention, `(1 + M) * g`; zero attention leaves them unchanged.

    Reference:
        Fukui et al., CVPR 2019, equation 2.

    Example:
        >>> import torch
        >>> amplify(torch.tensor([[[[2.0, 4.0]]]]), torch.tensor([[[[0.5, 0.0]]]]))
        tensor([[[[3., 4.]]]])
    """
    return (1 + attention) * features


def attention_loss(
    output: AttentionOutput, labels: Int[Tensor, " n"], weight: float = 1.0, label_smoothing: float = 0.0
) -> Tensor:
    """Cross entropy of the prediction plus `weight` times the mean cross entropy of the branches' logits.

    Args:
        output: The output of a model with attention branches.
        labels: The true classes `[N]`.
        weight: The weight of the branches; 1 in the original.
        label_smoothing: The label smoothing, in [0, 1).

    Reference:
        Fukui et al., CVPR 2019, equation 3.

    Example:
        >>> import math, torch
        >>> output = AttentionOutput(torch.zeros(1, 2), {"p2": torch.zeros(1, 2), "p3": torch.zeros(1, 2)})
        >>> round(attention_loss(output, torch.tensor([0]), weight=0.5).item() / math.log(2), 3)
        1.5
    """

    def entropy(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    auxiliary = [entropy(logits) for logits in output.attention_logits.values()]
    return entropy(output.logits) + (weight * torch.stack(auxiliary).mean() if auxiliary else 0)
