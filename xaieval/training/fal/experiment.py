"""The images, splits and initial models of an experiment, made from its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch

from xaieval.analysis.rules import DEFAULT_RULES, RULES
from xaieval.config.fal_options import CompleteOptions, FalOptions
from xaieval.config.options import parse_literals
from xaieval.data import Fold, Pictures, Preprocessing, block_folds, blocks_of, load_pictures
from xaieval.errors import ConfigError, DataError, ModelError, choose_from
from xaieval.models import FAL, LEVELS, ABNClassifier, FPNClassifier
from xaieval.models.builtin import FPN_SCENES, scenes_backbone
from xaieval.models.designs import design_of
from xaieval.models.fal import DEFAULT
from xaieval.models.fpn import Pretrained
from xaieval.training.fal.arms import Arm, check_arms, is_role
from xaieval.training.fal.held_out import held_out_fold, without_class
from xaieval.training.fit import augmentation

__all__ = ["CONTROL", "METRICS", "Experiment", "prepare"]

METRICS = ("average_drop", "increase_in_confidence", "average_gain")
CONTROL = "shifted"  # every metric also has its excess over the same map, shifted

BACKBONE = "mobilenetv2_100"
SCENES_SEED = 1  # not the images that the built-in weights were trained on


@dataclass(frozen=True)
class Experiment:
    """What all folds of an experiment share.

    Attributes:
        options: The options of the experiment, with all defaults.
        pictures: All images, preprocessed as for scoring.
        preprocessing: That preprocessing.
        folds: Folds that keep contiguous blocks of images together.
        groups: The block of each image, by its id.
        backbone: Name of the timm backbone.
        pretrained: The backbone's weights.
    """

    options: CompleteOptions
    pictures: Pictures
    preprocessing: Preprocessing
    folds: list[Fold]
    groups: dict[str, str]
    backbone: str
    pretrained: Pretrained

    @property
    def run_folds(self) -> Sequence[int]:
        """Numbers of the folds to run."""
        return self.options.run_folds or range(len(self.folds))

    @property
    def seeds(self) -> Sequence[int]:
        """The seeds to run."""
        return self.options.run_seeds or range(self.options.seed, self.options.seed + self.options.seeds)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.pictures.classes)

    def fpn(self) -> FPNClassifier:
        """A new FPN whose backbone has the initial weights."""
        return FPNClassifier(
            self.backbone,
            self.num_classes,
            channels=self.options.channels,
            head=self.options.head,
            pretrained=self.pretrained,
            backbone_args=parse_literals(self.options.backbone_args),
        )

    def abn(self) -> ABNClassifier:
        """A new ABN whose backbone has the initial weights."""
        return ABNClassifier(
            self.backbone,
            self.num_classes,
            pretrained=self.pretrained,
            backbone_args=parse_literals(self.options.backbone_args),
        )

    def build(self, arm: Arm, seed: int) -> FPNClassifier | FAL | ABNClassifier:
        """A new network of an arm; the layers that FPN and FAL share begin with the same weights."""
        torch.manual_seed(seed)
        if arm.kind == "abn":
            return self.abn()
        fpn = self.fpn()
        if arm.kind == "fpn":
            return fpn
        design = arm.design or self.options.design
        return FAL.from_fpn(fpn, arm.levels, design=design, auxiliary_only=arm.kind == "twin")

    def augmented(self, numbers: list[int]) -> Pictures:
        """Some of the images, with the training transform."""
        size = self.options.train_size or self.options.image_size
        return replace(self.pictures.subset(numbers), preprocessing=augmentation(self.preprocessing.with_size(size)))


def prepare(given: FalOptions) -> Experiment:
    """Load the data, split it and build the FPN once, so that wrong options fail before the first training.

    Args:
        given: The options; those that are None get the defaults of their data.

    Raises:
        ConfigError: An arm or the rule is unknown, or an arm follows from a selection that cannot be made.
        DataError: The data cannot be split, or lacks the class.
        ModelError: The design or the backbone is unknown, or the backbone has no features at the four strides of the pyramid.
        WeightsError: The backbone's weights cannot be read, or do not fit.
    """
    options = given.complete(DEFAULT, DEFAULT_RULES[0])
    check_arms(options.arms)
    design_of(options.design)
    _check_rule(options.by, options.k)
    _check_roles(options)
    backbone = options.backbone or (FPN_SCENES["backbone"] if options.data == "scenes" else BACKBONE)
    preprocessing = _preprocessing(backbone, options)
    pictures, labels = _pictures(options, preprocessing)
    if options.held_out_class is None:
        folds = block_folds(labels, options.folds, blocks=options.blocks, seed=options.seed)
    else:
        pictures = without_class(pictures, options.held_out_class)
        folds = [held_out_fold(pictures, options.blocks)]
    groups = dict(zip(pictures.ids, blocks_of(labels, options.blocks), strict=True))
    if options.run_folds is not None and not set(options.run_folds) <= set(range(options.folds)):
        raise DataError(f"the folds are 0 to {options.folds - 1}; got run-folds {options.run_folds}")
    experiment = Experiment(options, pictures, preprocessing, folds, groups, backbone, _pretrained(options))
    experiment.fpn()
    return experiment


def _check_rule(by: Sequence[str], k: int | None) -> None:
    metrics = [*METRICS, *(f"{name}_excess" for name in METRICS)]
    if not (len(by) == 1 and by[0] in RULES):
        for name in by:
            if name not in metrics:
                raise ConfigError(f"no rule or metric {name!r} to select levels by; {choose_from(name, [*RULES, *metrics])}")
    if k is not None and not 1 <= k <= len(LEVELS):
        raise ConfigError(f"k is the number of levels that get attention, 1 to {len(LEVELS)}; got {k}")


def _check_roles(options: CompleteOptions) -> None:
    roles = [name for name in options.arms if is_role(name)]
    if roles and options.held_out_class is not None:
        raise ConfigError(
            f"the arm {roles[0]!r} follows from a selection of levels, and held-out-class leaves no images for that; "
            "name the levels, such as fal-p2-p3"
        )


def _pretrained(options: CompleteOptions) -> Pretrained:
    if options.data == "scenes" and options.backbone is None and not (options.weights or options.pretrained):
        return scenes_backbone()
    return options.weights or options.pretrained


def _pictures(options: CompleteOptions, preprocessing: Preprocessing) -> tuple[Pictures, list[int]]:
    """The images, in an order where neighbours can be similar, and their classes."""
    pictures = load_pictures(
        options.data,
        preprocessing,
        options.max_images,
        split="train",
        seed=SCENES_SEED,
        download=options.download,
        classes="name" if options.data.startswith("folder:") else None,  # any order will do for models that it trains
    )
    if pictures is None:
        raise DataError(
            f"the experiment splits its images itself: data is 'scenes', 'folder:DIR' or 'ucmerced:DIR', got {options.data!r}"
        )
    if options.class_name is not None and options.class_name not in pictures.classes:
        raise DataError(f"the data has no class {options.class_name!r}; {choose_from(options.class_name, pictures.classes)}")
    labels = [label for label in pictures.labels if label is not None]
    if len(labels) < len(pictures):
        raise DataError(f"the experiment trains classifiers, and {options.data!r} has no class folders")
    return pictures.kept_in_memory() if options.in_memory else pictures, labels


def _preprocessing(backbone: str, options: CompleteOptions) -> Preprocessing:
    if not timm.is_model(backbone):
        raise ModelError(f"timm has no backbone {backbone!r}; see timm.list_models()")
    config = timm.data.resolve_model_data_config(timm.create_model(backbone))
    choices: dict[str, Any] = {name: config[name] for name in ("mean", "std", "interpolation")}
    if options.data == "scenes" and options.backbone is None:
        choices |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # the built-in weights were trained with these
    given = {"mean": options.mean, "std": options.std, "interpolation": options.interpolation}
    choices |= {name: value for name, value in given.items() if value is not None}
    return Preprocessing(options.image_size, options.image_size, **choices)
