"""FAL: a feature pyramid with attention branches on the levels that explain badly."""

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
    """FPN-Attention Layered network: an `FPNClassifier` whose named levels pass through an attention branch.

    The levels before the attention are `fpn[p2]`..`fpn[p5]`, after it `levels[p2]`..`levels[p5]`, and the attention maps are
    `attention.p2[map]` and so on, which `method="attention"` explains by.

    Args:
        backbone: name of a timm model with features at reductions 4, 8, 16 and 32.
        num_classes: number of classes K.
        attention_levels: one or more of p2, p3, p4, p5; p2 is the finest, Layer 1 of the paper.
        channels: of every pyramid level.
        head: "mean" or "concat", see `FPNClassifier`.
        pretrained: weights of the backbone, likewise.
        backbone_args: further arguments of the timm model.
        place: attention "after" the pyramid's top-down merge, or "before" it, on what the backbone gives for the level; then
            an attended level also changes the finer ones.
        blocks: convolutions at the beginning of each branch, see `AttentionBranch`.
        residual: whether they are residual.
        near_identity: start with attention near zero.

    Raises:
        ModelError: no or an unknown level, an unknown place, or what `FPNClassifier` refuses.

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
        self.levels = nn.Identity()  # gives the levels after the attention their addresses
        self.head = LevelHead(head, channels, num_classes, start_at_zero=pretrained is not False)
        self.place = place

    @overload
    def forward(self, images: Tensor, details: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, details: Literal[True]) -> AttentionOutput: ...

    def forward(self, images: Float[Tensor, "n 3 h w"], details: bool = False) -> Tensor | AttentionOutput:
        """Logits `[N, K]` of a batch of normalised images; with `details` also what the attention branches gave."""
        features = stages(self.backbone, images)
        if self.place == "before":
            features, found = self._attend(features)
            levels = self.fpn(features)
        else:
            levels, found = self._attend(self.fpn(features))
        logits: Tensor = self.head(self.levels(levels))
        return AttentionOutput.gather(logits, found) if details else logits

    def _attend(self, features: Mapping[str, Tensor]) -> tuple[OrderedDict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """The features with attention at the chosen levels, and what the branches gave there."""
        found = {level: branch(features[level]) for level, branch in self.attention.items()}
        attended = ((level, attend(maps, found[level]["map"]) if level in found else maps) for level, maps in features.items())
        return OrderedDict(attended), found

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
        """FAL with the weights of a trained FPN; the branches are new, and start near the identity unless told.

        Args:
            fpn: copied from, left as it is; its device, type and mode are taken over.
            attention_levels: of p2, p3, p4, p5.
            place: "after" or "before" the merge.
            blocks: convolutions at the beginning of each branch.
            residual: whether they are residual.
            near_identity: start with attention near zero.

        Raises:
            ModelError: no or an unknown level.
        """
        branches: dict[str, Any] = {"place": place, "blocks": blocks, "residual": residual, "near_identity": near_identity}
        fal = cls(attention_levels=attention_levels, **branches, **fpn.config)
        fal.load_state_dict(fal.state_dict() | fpn.state_dict())
        return fal.to(next(fpn.parameters())).train(fpn.training)

    @classmethod
    def from_scores(
        cls, fpn: FPNClassifier, scores: LayerSelector, k: int | None = None, *, method: str | None = None, **options: Any
    ) -> FAL:
        """FAL with attention on the levels that need it by their scores, and the weights of the FPN that was scored.

        Args:
            fpn: a trained FPN.
            scores: of its levels, `fpn[p2]`..`fpn[p5]` or `levels[p2]`..`levels[p5]`.
            k: number of levels; by tests unless told, see `Scores.select_layers`.
            method: whose rows decide, where the scores have several.
            **options: of `from_fpn`.

        Raises:
            ModelError: no level is worse than the best beyond chance, and `k` does not ask for any.
            AddressError: the scores are of layers that are no pyramid levels.

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
    """The pyramid levels that addresses name.

    Raises:
        AddressError: an address names no level, or two name one.

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
