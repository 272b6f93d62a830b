"""FAL: a feature pyramid with attention branches on the levels with the worst explanations."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args, overload

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from xaieval.errors import AddressError, ModelError, choose_from
from xaieval.models.attention import AttentionBranch, AttentionOutput, attend
from xaieval.models.fpn import LEVELS, FPNClassifier, Head, LevelHead, Pretrained, pyramid_backbone, stages
from xaieval.probe.addresses import parse

__all__ = ["FAL", "LayerSelector", "levels_of"]

Place = Literal["after", "before"]


class LayerSelector(Protocol):
    """An object that selects the layers that need attention, such as `xaieval.Scores`."""

    def select_layers(self, k: int | None = None, *, method: str | None = None) -> Sequence[str]:
        """Addresses of layers, worst first: the k worst, or as many as the object decides."""


class FAL(nn.Module):
    """FPN-Attention Layered network: an `FPNClassifier` in which chosen levels pass through an attention branch.

    The layer addresses of the levels are `fpn[p2]` to `fpn[p5]` before the attention and `levels[p2]` to `levels[p5]` after it.
    Those of the attention maps are `attention.p2[map]` and so on; `method="attention"` uses them as explanations.

    Args:
        backbone: The name of a timm model with features at reductions 4, 8, 16 and 32.
        num_classes: The number of classes K.
        attention_levels: One or more of p2, p3, p4, p5; p2 is the finest, Layer 1 of the paper.
        channels: The number of channels of every pyramid level.
        head: "mean" or "concat", see `FPNClassifier`.
        pretrained: The weights of the backbone, see `FPNClassifier`.
        backbone_args: Further arguments of the timm model.
        place: Attention "after" the top-down merge of the pyramid, or "before" it, on the backbone's features of the level. If
            "before", an attended level also changes the finer levels.
        blocks: The number of convolutions at the start of each branch, see `AttentionBranch`.
        residual: Whether these convolutions are residual.
        near_identity: Start with attention near zero.

    Raises:
        ModelError: No level or an unknown level or place is given, or `FPNClassifier` refuses an argument.

    Example:
        >>> import torch
        >>> model = FAL("test_resnet", num_classes=10, attention_levels=("p2", "p3"), channels=32).eval()
        >>> model(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
        >>> output = model(torch.zeros(2, 3, 64, 64), details=True)
        >>> {level: tuple(maps.shape) for level, maps in output.attention_maps.items()}
        {'p2': (2, 16, 16), 'p3': (2, 8, 8)}
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        attention_levels: Iterable[str] = ("p2", "p3"),
        *,
        channels: int = 128,
        head: Head = "mean",
        pretrained: Pretrained = False,
        backbone_args: Mapping[str, Any] | None = None,
        place: Place = "after",
        blocks: int = 1,
        residual: bool = True,
        near_identity: bool = False,
    ) -> None:
        super().__init__()
        chosen = _check_levels(attention_levels)
        if place not in get_args(Place):
            raise ModelError(f"no place {place!r} for attention; {choose_from(place, get_args(Place))}")
        self.backbone, widths = pyramid_backbone(backbone, pretrained, backbone_args)
        self.fpn = FeaturePyramidNetwork(widths, channels)
        features = dict.fromkeys(LEVELS, channels) if place == "after" else dict(zip(LEVELS, widths, strict=True))
        self.attention = nn.ModuleDict(
            {
                level: AttentionBranch(
                    features[level], num_classes, blocks=blocks, residual=residual, near_identity=near_identity
                )
                for level in chosen
            }
        )
        self.levels = nn.Identity()  # so that the levels after the attention have layer addresses
        self.head = LevelHead(head, channels, num_classes, start_at_zero=pretrained is not False)
        self.place = place

    @overload
    def forward(self, images: Tensor, details: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, details: Literal[True]) -> AttentionOutput: ...

    def forward(self, images: Float[Tensor, "n 3 h w"], details: bool = False) -> Tensor | AttentionOutput:
        """Logits `[N, K]` of a batch of normalised images; with `details`, also the outputs of the attention branches."""
        features = stages(self.backbone, images)
        if self.place == "before":
            features, branches = self._attend(features)
            levels = self.fpn(features)
        else:
            levels, branches = self._attend(self.fpn(features))
        logits: Tensor = self.head(self.levels(levels))
        return AttentionOutput.gather(logits, branches) if details else logits

    def _attend(self, features: Mapping[str, Tensor]) -> tuple[OrderedDict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """The features with attention at the chosen levels, and the outputs of the branches."""
        outputs = {level: branch(features[level]) for level, branch in self.attention.items()}
        attended = (
            (level, attend(maps, outputs[level]["map"]) if level in outputs else maps) for level, maps in features.items()
        )
        return OrderedDict(attended), outputs

    @classmethod
    def from_fpn(
        cls,
        fpn: FPNClassifier,
        attention_levels: Iterable[str],
        *,
        place: Place = "after",
        blocks: int = 1,
        residual: bool = True,
        near_identity: bool = True,
    ) -> FAL:
        """FAL with the weights of a trained FPN and new attention branches.

        Args:
            fpn: The trained FPN, which is copied. Its device, dtype and mode are kept.
            attention_levels: One or more of p2, p3, p4, p5.
            place: "after" or "before" the merge.
            blocks: The number of convolutions at the start of each branch.
            residual: Whether these convolutions are residual.
            near_identity: Start with attention near zero.

        Raises:
            ModelError: No level or an unknown level is given.
        """
        branches: dict[str, Any] = {"place": place, "blocks": blocks, "residual": residual, "near_identity": near_identity}
        fal = cls(attention_levels=attention_levels, **branches, **fpn.config)
        fal.load_state_dict(fal.state_dict() | fpn.state_dict())
        return fal.to(next(fpn.parameters())).train(fpn.training)

    @classmethod
    def from_scores(
        cls, fpn: FPNClassifier, scores: LayerSelector, k: int | None = None, *, method: str | None = None, **options: Any
    ) -> FAL:
        """FAL with the weights of a trained FPN and attention on the levels that need it according to their scores.

        Args:
            fpn: A trained FPN.
            scores: The scores of its levels, `fpn[p2]` to `fpn[p5]` or `levels[p2]` to `levels[p5]`.
            k: The number of levels. Default: decided by tests, see `Scores.select_layers`.
            method: The method whose rows decide; needed if the scores have several methods.
            **options: Keyword arguments of `from_fpn`.

        Raises:
            ModelError: No level is worse than the best one beyond chance, and `k` is None or 0.
            AddressError: A selected layer is not a pyramid level.

        Example:
            >>> import xaieval
            >>> from xaieval.data import Preprocessing, scenes
            >>> fpn = xaieval.models.fpn_scenes()
            >>> prepare = Preprocessing(image_size=128, resize=128, mean=(0.5,) * 3, std=(0.5,) * 3)
            >>> scores = xaieval.score(fpn, scenes(prepare, size=40).loader(20), layers=["fpn[*]"], progress=False)
            >>> list(FAL.from_scores(fpn, scores, k=2).attention)
            ['p2', 'p3']
        """
        selection = scores.select_layers(k, method=method)
        if not len(selection):
            raise ModelError(f"{selection!r}\nso there is nothing to put attention on; give k= to ask for the k worst")
        return cls.from_fpn(fpn, levels_of(selection), **options)


def levels_of(addresses: Iterable[str]) -> list[str]:
    """Pyramid levels named by layer addresses.

    Raises:
        AddressError: An address names no level, or two addresses name the same level.

    Example:
        >>> levels_of(["fpn[p3]", "levels[p2]"])
        ['p3', 'p2']
    """
    levels = []
    for address in addresses:
        keys = parse(address).keys
        if not keys or keys[-1] not in LEVELS:
            raise AddressError(f"layer {address!r} is no pyramid level; 'fpn[p2]' to 'fpn[p5]' are expected")
        if keys[-1] in levels:
            raise AddressError(
                f"level {keys[-1]} comes twice, as layer {address!r} too; score 'fpn[*]' or 'levels[*]', not both"
            )
        levels.append(keys[-1])
    return levels


def _check_levels(levels: Iterable[str]) -> list[str]:
    given = [levels] if isinstance(levels, str) else list(levels)
    for level in given:
        if level not in LEVELS:
            raise ModelError(f"no pyramid level {level!r}; {choose_from(level, LEVELS)}")
    if not given or len(set(given)) < len(given):
        raise ModelError(f"attention levels are one or more of {', '.join(LEVELS)}, each once; got {given}")
    return [level for level in LEVELS if level in given]
