"""ABN: a plain classifier with one attention branch before its last stage, the ancestor of FAL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xaieval.errors import ModelError
from xaieval.models.attention import AttentionBranch, AttentionOutput, attend
from xaieval.models.fpn import Pretrained, classifier_names, create_backbone

__all__ = ["ABNClassifier"]


class ABNClassifier(nn.Module):
    """Attention Branch Network: a timm classifier with one attention branch before its last stage.

    The stage before is `backbone.STAGE` (named by the attribute `stage`), the attention map `attention[map]`.

    Args:
        backbone: name of a timm model with features at several reductions, such as "resnet18"; the last stage is what comes
            after the features of the last reduction but one.
        num_classes: number of classes K.
        pretrained: weights of the backbone, see `FPNClassifier`; the head then starts at zero.
        backbone_args: further arguments of the timm model.
        blocks: convolutions at the beginning of the branch; the original has a copy of the last stage there.
        residual: whether they are residual.
        near_identity: start with attention near zero.

    Raises:
        ModelError: timm has no such model, or it tells no stages.
        WeightsError: the weights are of another backbone.

    Reference:
        Fukui et al., "Attention Branch Network", CVPR 2019, section 3.1.

    Example:
        >>> import torch
        >>> model = ABNClassifier("test_resnet", num_classes=10).eval()
        >>> output = model(torch.zeros(2, 3, 64, 64), details=True)
        >>> output.logits.shape, output.attention_maps["attention"].shape
        (torch.Size([2, 10]), torch.Size([2, 4, 4]))
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        pretrained: Pretrained = False,
        backbone_args: Mapping[str, Any] | None = None,
        blocks: int = 1,
        residual: bool = True,
        near_identity: bool = False,
    ) -> None:
        super().__init__()
        arguments = {**(backbone_args or {}), "num_classes": num_classes}
        self.backbone: Any = create_backbone(backbone, pretrained, arguments)
        stages = getattr(self.backbone, "feature_info", None) or []
        before = [stage for stage in stages if stage["reduction"] < stages[-1]["reduction"]]
        if not before:
            raise ModelError(f"backbone {backbone!r} has no stages of maps [N, C, H, W] to put attention between")
        self.stage: str = before[-1]["module"]
        self.attention = AttentionBranch(
            before[-1]["num_chs"], num_classes, blocks=blocks, residual=residual, near_identity=near_identity
        )
        if pretrained is not False:
            for name in classifier_names(self.backbone):
                for parameter in self.backbone.get_submodule(name).parameters():
                    nn.init.zeros_(parameter)
        self._try(backbone, before[-1]["num_chs"])

    def _try(self, name: str, channels: int) -> None:
        """Look at what the stage gives: timm's table of stages does not say whether they are maps, or run as modules at all."""
        seen: list[Any] = []
        modules = dict(self.backbone.named_modules())
        size = self.backbone.pretrained_cfg["input_size"]
        self.backbone.eval()
        if self.stage in modules:
            watch = modules[self.stage].register_forward_hook(lambda module, inputs, output: seen.append(output))
            with watch, torch.no_grad():
                self.backbone(torch.zeros(1, *size))
        self.backbone.train()
        shapes = [output.shape[1:2] if isinstance(output, Tensor) and output.ndim == 4 else None for output in seen]
        if shapes != [(channels,)]:
            raise ModelError(
                f"backbone {name!r} has no stages of maps [N, C, H, W] to put attention between: '{self.stage}' does not give "
                f"{channels} channels, once"
            )

    @overload
    def forward(self, images: Tensor, details: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, details: Literal[True]) -> AttentionOutput: ...

    def forward(self, images: Float[Tensor, "n 3 h w"], details: bool = False) -> Tensor | AttentionOutput:
        """Logits `[N, K]` of a batch of normalised images; with `details` also what the attention branch gave."""
        found: dict[str, dict[str, Tensor]] = {}

        def insert(stage: nn.Module, inputs: Any, features: Tensor) -> Tensor:
            found["attention"] = self.attention(features)
            return attend(features, found["attention"]["map"])

        # timm's models cannot be cut between two stages in one way; a hook for the time of this call fits all of them.
        with self.backbone.get_submodule(self.stage).register_forward_hook(insert):
            logits: Tensor = self.backbone(images)
        return AttentionOutput.gather(logits, found) if details else logits
