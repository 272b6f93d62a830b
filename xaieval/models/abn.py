"""ABN: a classifier with one attention branch before its last stage; the predecessor of FAL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, overload

from jaxtyping import Float
from torch import Tensor, nn

from xaieval.errors import ModelError, choose_from
from xaieval.models.attention import AttentionBranch, AttentionOutput, amplify
from xaieval.models.branch_stages import example_image, hooked, outputs_of, resized, stage_between
from xaieval.models.designs import Branch
from xaieval.models.fpn import Pretrained, classifier_names, create_backbone

__all__ = ["ABNClassifier"]


class ABNClassifier(nn.Module):
    """Attention Branch Network: a timm classifier with one attention branch before its last stage.

    The branch has the layers of the original, and the map acts as there: `(1 + M) * g` goes into the rest of the network. Three
    things differ. The branch's stage begins with the weights of the network's last stage; the original begins with new ones.
    New layers begin with PyTorch's default weights; those of the original are drawn as in He et al. (2015). Layers between the
    last stage and the classifier, such as the last 1x1 convolution of MobileNetV2, have no copy in the branch.

    The layer address of the stage before the attention is `backbone.STAGE`, with STAGE in the attribute `stage`; that of the
    attention map is `attention[map]`.

    Args:
        backbone: The name of a timm model with features at several reductions, such as "resnet18". The last stage is everything
            after the features of the last reduction but one.
        num_classes: The number of classes K.
        pretrained: The weights of the backbone, see `FPNClassifier`. The head then starts at zero.
        backbone_args: Further arguments of the timm model.
        branch: How the branch begins: with a copy of the network's last "stage" with stride 1, as in the original, or with one
            "block", which costs little.

    Raises:
        ModelError: timm has no such model, its stages give no maps, its last stage cannot be copied, or the branch is unknown.
        WeightsError: The weights belong to another backbone.

    Reference:
        Fukui et al., "Attention Branch Network: Learning of Attention Mechanism for Visual Explanation", CVPR 2019, section 3.

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
        branch: Branch = "stage",
    ) -> None:
        super().__init__()
        if branch not in get_args(Branch):
            raise ModelError(f"no branch {branch!r} for attention; {choose_from(branch, get_args(Branch))}")
        arguments = {**(backbone_args or {}), "num_classes": num_classes}
        self.backbone: Any = create_backbone(backbone, pretrained, arguments)
        image = example_image(self.backbone, arguments)
        before, last = _last_stages(self.backbone, backbone)
        self.stage: str = before["module"]
        _check_stage(self.backbone, backbone, before, image)
        stage, width = None, None
        if branch == "stage":
            stage, width = stage_between(self.backbone, self.stage, last["module"], image), last["num_chs"]
        self.attention = AttentionBranch(before["num_chs"], num_classes, stage=stage, stage_channels=width)
        if pretrained is not False:
            for name in classifier_names(self.backbone):
                for parameter in self.backbone.get_submodule(name).parameters():
                    nn.init.zeros_(parameter)

    @overload
    def forward(self, images: Tensor, details: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, details: Literal[True]) -> AttentionOutput: ...

    def forward(self, images: Float[Tensor, "n 3 h w"], details: bool = False) -> Tensor | AttentionOutput:
        """Logits `[N, K]` of a batch of normalised images; with `details`, also the output of the attention branch."""
        branches: dict[str, dict[str, Tensor]] = {}

        def insert(stage: nn.Module, inputs: Any, features: Tensor) -> Tensor:
            branches["attention"] = self.attention(features)
            return amplify(features, resized(branches["attention"]["map"], features))

        # timm has no common way to split a model between two stages; a hook for the duration of the call works for all models.
        logits: Tensor = hooked(self.backbone, images, {self.backbone.get_submodule(self.stage): insert})
        return AttentionOutput.gather(logits, branches) if details else logits


def _last_stages(backbone: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What timm says of the stages at the last reduction but one and at the last."""
    stages = getattr(backbone, "feature_info", None) or []
    before = [stage for stage in stages if stage["reduction"] < stages[-1]["reduction"]]
    if not before:
        raise ModelError(f"backbone {name!r} has no stages of maps [N, C, H, W] to put attention between")
    return before[-1], stages[-1]


def _check_stage(backbone: nn.Module, name: str, stage: Mapping[str, Any], image: Tensor) -> None:
    """Try the stage: timm does not say whether stages return maps, or run as modules at all."""
    path, channels = stage["module"], stage["num_chs"]
    outputs = outputs_of(backbone, [path], image)[path]
    shapes = [output.shape[1:2] if isinstance(output, Tensor) and output.ndim == 4 else None for output in outputs]
    if shapes != [(channels,)]:
        raise ModelError(
            f"backbone {name!r} has no stages of maps [N, C, H, W] to put attention between: '{path}' does not give "
            f"{channels} channels, once"
        )
