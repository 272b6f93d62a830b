"""FAL: a feature pyramid with attention branches on the levels with the worst explanations."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Protocol, overload

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from xaieval.errors import AddressError, ModelError, choose_from
from xaieval.models.attention import AttentionBranch, AttentionOutput, SeparableBlock
from xaieval.models.branch_stages import check_features, example_image, hooked, module_path, resized, stage_between
from xaieval.models.designs import GATES, Design, Place, design_of
from xaieval.models.fpn import LEVELS, FPNClassifier, Head, LevelHead, Pretrained, channels_last, pyramid_backbone, stages
from xaieval.probe.addresses import parse

__all__ = ["FAL", "LayerSelector", "levels_of"]

DEFAULT = "evidence-laterals"
BranchOutput = dict[str, Tensor]
Levels = OrderedDict[str, Tensor]


class LayerSelector(Protocol):
    """An object that selects the layers that need attention, such as `xaieval.Scores`."""

    def select_layers(self, k: int | None = None, *, method: str | None = None, **rule: Any) -> Sequence[str]:
        """Addresses of layers, worst first: the k worst, or as many as the object decides; perhaps by a rule `by`."""


class FAL(nn.Module):
    """FPN-Attention Layered network: an `FPNClassifier` in which chosen levels pass through an attention branch.

    The layer addresses of the levels are `fpn[p2]` to `fpn[p5]` at the output of the pyramid, and `levels[p2]` to `levels[p5]`
    at the input of the head; with the attention on the levels, it is between the two. Those of the attention maps are
    `attention.p2[map]` and so on; `method="attention"` uses them as explanations.

    Args:
        backbone: The name of a timm model with features at reductions 4, 8, 16 and 32.
        num_classes: The number of classes K.
        attention_levels: One or more of p2, p3, p4, p5; p2 is the finest, Layer 1 of the paper.
        channels: The number of channels of every pyramid level.
        head: "mean" or "concat", see `FPNClassifier`.
        pretrained: The weights of the backbone, see `FPNClassifier`.
        backbone_args: Further arguments of the timm model.
        design: Where and how the attention acts: a name from `DESIGNS`, or a `Design`.
        auxiliary_only: Do not use the attention maps. This *twin* has the same layers, initial weights and loss, so the
            difference between the two is the effect of the maps.

    Raises:
        ModelError: No level or an unknown level or design is given, the design does not suit the backbone, or `FPNClassifier`
            refuses an argument.

    Reference:
        Fukui et al., "Attention Branch Network", CVPR 2019, for the branches; Lin et al., "Feature Pyramid Networks for Object
        Detection", CVPR 2017, for the pyramid.

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
        design: str | Design = DEFAULT,
        auxiliary_only: bool = False,
    ) -> None:
        super().__init__()
        self.attended = _check_levels(attention_levels)
        self.design = design_of(design)
        self.gate = None if auxiliary_only else GATES[self.design.gate]
        self.backbone, widths = pyramid_backbone(backbone, pretrained, backbone_args)
        self.stage_paths = _stage_paths(self.backbone)
        self.fpn = FeaturePyramidNetwork(widths, channels)
        image = example_image(self.backbone, backbone_args)
        if self.design.place == "backbone":
            check_features(self.backbone, backbone, [self.stage_paths[level] for level in self.attended], image)
        width = dict(zip(LEVELS, widths if self.design.place in ("backbone", "features") else [channels] * 4, strict=True))
        self.attention = self._branches(width, num_classes, self._next_stages(image))
        blocks = self.attended if self.design.perception else ()
        self.perception = nn.ModuleDict({level: SeparableBlock(width[level]) for level in blocks})
        self.levels = nn.Identity()  # so that the levels after the attention have layer addresses
        self.head = LevelHead(head, channels, num_classes, start_at_zero=pretrained is not False)

    def _next_stages(self, image: Tensor) -> dict[str, nn.Sequential]:
        """By level, a copy of the backbone's stage after it, if the branches of the design begin with one."""
        paths = self.stage_paths
        following = dict(pairwise(LEVELS)) if self.design.branch == "stage" else {}
        return {
            level: stage_between(self.backbone, paths[level], paths[following[level]], image)
            for level in self.attended
            if level in following
        }

    def _branches(self, width: Mapping[str, int], num_classes: int, copies: Mapping[str, nn.Module]) -> nn.ModuleDict:
        following = dict(pairwise(LEVELS))
        branches = {}
        for level in self.attended[-1:] if self.design.shared else self.attended:
            branches[level] = AttentionBranch(
                width[level],
                num_classes,
                stage=copies.get(level),
                stage_channels=width[following[level]] if level in copies else None,
                evidence=self.design.evidence,
            )
        return nn.ModuleDict(branches)

    @overload
    def forward(self, images: Tensor, details: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, details: Literal[True]) -> AttentionOutput: ...

    def forward(self, images: Float[Tensor, "n 3 h w"], details: bool = False) -> Tensor | AttentionOutput:
        """Logits `[N, K]` of a batch of normalised images; with `details`, also the outputs of the attention branches."""
        branches: dict[str, BranchOutput] = {}
        features = self._hooked("backbone", partial(stages, self.backbone), images, branches)
        features = self._attend_all("features", features, branches)
        levels = self._hooked("laterals", self.fpn, features, branches)
        levels = self._attend_all("levels", levels, branches)
        logits: Tensor = self.head(self.levels(levels))
        return AttentionOutput.gather(logits, {level: branches[level] for level in self.attention}) if details else logits

    def _attend_all(self, place: Place, features: Levels, branches: dict[str, BranchOutput]) -> Levels:
        """The features of all levels, after the attention if the design puts it here; `branches` gets the branches' outputs."""
        if place != self.design.place:
            return features
        others = [level for level in self.attended if level not in self.attention]
        attended = OrderedDict(features)
        for level in (*self.attention, *others):  # the others use the map of the first
            attended[level] = self._attend(level, features[level], branches)
        return attended

    def _hooked(self, place: Place, run: Callable[..., Levels], inputs: Any, branches: dict[str, BranchOutput]) -> Levels:
        """The output of modules, with attention on their parts if the design puts it here."""
        if place != self.design.place:
            return run(inputs)
        return hooked(run, inputs, {self._part(place, level): self._hook(level, branches) for level in self.attended})

    def _part(self, place: Place, level: str) -> nn.Module:
        """The module that gives the features of a level."""
        if place == "backbone":
            return self.backbone.get_submodule(self.stage_paths[level])
        return self.fpn.inner_blocks[list(LEVELS).index(level)]

    def _hook(self, level: str, branches: dict[str, BranchOutput]) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if self.design.place == "backbone" and channels_last(self.backbone):
                return self._attend(level, output.permute(0, 3, 1, 2), branches).permute(0, 2, 3, 1)
            return self._attend(level, output, branches)

        return hook

    def _attend(self, level: str, features: Tensor, branches: dict[str, BranchOutput]) -> Tensor:
        """The features of a level after its attention."""
        if level in self.attention:
            branches[level] = self.attention[level](features)
        if self.gate is not None:
            source = level if level in self.attention else self.attended[-1]  # a shared map
            features = self.gate(features, resized(branches[source]["map"], features))
        return self.perception[level](features) if level in self.perception else features

    @classmethod
    def from_fpn(cls, fpn: FPNClassifier, attention_levels: Iterable[str], **options: Any) -> FAL:
        """FAL with the weights of an FPN and new attention branches; branches of stages begin with copies of its stages.

        Args:
            fpn: The FPN, which is copied. Its device, dtype and mode are kept.
            attention_levels: One or more of p2, p3, p4, p5.
            **options: `design` and `auxiliary_only`.

        Raises:
            ModelError: No level, or an unknown level or design is given, or the design does not suit the backbone.

        Example:
            >>> fpn = FPNClassifier("test_resnet", num_classes=10, channels=32)
            >>> list(FAL.from_fpn(fpn, ["p2"], design="amplify").attention)
            ['p2']
        """
        fal = cls(attention_levels=attention_levels, **fpn.config, **options)
        fal.load_state_dict(fal.state_dict() | fpn.state_dict())
        for level, stage in fal._next_stages(example_image(fal.backbone, fpn.config["backbone_args"])).items():
            fal.attention.get_submodule(f"{level}.stage").load_state_dict(stage.state_dict())
        return fal.to(next(fpn.parameters())).train(fpn.training)

    @classmethod
    def from_scores(
        cls,
        fpn: FPNClassifier,
        scores: LayerSelector,
        k: int | None = None,
        *,
        by: str | Sequence[str] | None = None,
        method: str | None = None,
        **options: Any,
    ) -> FAL:
        """FAL with the weights of a trained FPN and attention on the levels that need it according to their scores.

        Args:
            fpn: A trained FPN.
            scores: The scores of its levels, `fpn[p2]` to `fpn[p5]` or `levels[p2]` to `levels[p5]`.
            k: The number of levels. Default: decided by tests, see `Scores.select_layers`.
            by: The rule that selects, or metrics, see `Scores.select_layers`. Default: that of the scores.
            method: The method whose rows decide; needed if the scores have several methods.
            **options: Keyword arguments of `from_fpn`.

        Raises:
            ModelError: No level needs attention beyond chance, and `k` is None or 0.
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
        rule = {} if by is None else {"by": by}
        selection = scores.select_layers(k, method=method, **rule)
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


def _stage_paths(backbone: Any) -> dict[str, str]:
    """Paths of the modules of a feature extractor that give its features, by level."""
    paths = backbone.feature_info.module_name()
    return {level: module_path(backbone, path) for level, path in zip(LEVELS, paths, strict=True)}


def _check_levels(levels: Iterable[str]) -> list[str]:
    given = [levels] if isinstance(levels, str) else list(levels)
    for level in given:
        if level not in LEVELS:
            raise ModelError(f"no pyramid level {level!r}; {choose_from(level, LEVELS)}")
    if not given or len(set(given)) < len(given):
        raise ModelError(f"attention levels are one or more of {', '.join(LEVELS)}, each once; got {given}")
    return [level for level in LEVELS if level in given]
