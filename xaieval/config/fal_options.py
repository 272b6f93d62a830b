"""Options of the FAL experiment, which are also the keys of its run files. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from xaieval.config.options import LIST, Arguments, Integers, Numbers, Switch, Words, to_words
from xaieval.errors import ConfigError, choose_from

__all__ = ["ARMS", "Arm", "FalOptions"]

# The arms of the FAL experiment, which xaieval.training.fal implements.
Arm = Literal["selected", "random", "best", "all", "abn", "open-start", "subsets", "random-split", "none"]
ARMS: tuple[Arm, ...] = get_args(Arm)
Arms = Annotated[tuple[Arm, ...], Parameter(converter=to_words, show_choices=False), LIST]


@dataclass(frozen=True, kw_only=True)
class FalOptions:
    """The FAL experiment: train an FPN, score its levels, add attention where it is needed, compare.

    Attributes:
        data: scenes (built in), folder:DIR (one sub-folder per class) or ucmerced:DIR.
        download: Download UC Merced (317 MB) if its folder does not exist.
        backbone: Name of a timm model. Default: mobilenetv2_100; for scenes, the small trained one of xaieval:fpn-scenes.
        weights: Weights file of the backbone: .safetensors, or .pth that contains only tensors.
        pretrained: Use timm's pretrained weights, which may be downloaded.
        backbone_args: Arguments of the timm model, such as --backbone-args.pad_type same.
        channels: Channels of every pyramid level. Default: 128; 64 for scenes.
        head: Classifier: mean (one per level, logits averaged) or concat (one on all levels).
        image_size: Side of the square input in tests and scores, in pixels; the whole image is used.
        train_size: Side of the random crops for training, in pixels. Default: image_size.
        mean: Mean for input normalisation, three numbers. Default: that of the backbone.
        std: Standard deviation for input normalisation, three numbers. Default: that of the backbone.
        interpolation: Resizing of images: bilinear, bicubic or nearest. Default: that of the backbone.
        max_images: Maximum number of images, spread evenly over the classes. Default: all; 600 scenes.
        folds: Number of folds; each image is tested once. Images of a block stay in one fold.
        blocks: Number of contiguous blocks that each class is cut into, a multiple of the folds.
        run_folds: Folds to run, such as 0,1; several processes can share --out. Default: all; for scenes the first two.
        seeds: Number of seeds: each fold is run with seed, seed + 1 and so on.
        design: Design of the attention, see xaieval.models.designs.
        epochs: Epochs of every network, in one cycle of the learning rate.
        batch_size: Images per training step and per forward pass.
        learning_rate: Peak learning rate of the schedule.
        precision: Precision of training; bf16 needs a processor that supports it.
        arms: Models compared with the FPN control: FAL with attention on the selected, random, best or all levels; abn, an ABN;
            open-start, as selected but with attention that starts at one half; subsets, FAL with every set of levels;
            random-split, only the accuracy of the FPN on folds drawn image by image; none, for Table 1 alone.
        k: Number of levels that get attention. Default: decided by tests.
        held_out_class: Train on all images of the other classes, and test on all images of this one, which has no label then:
            its accuracy is NaN. There is one fold, 0, without images for the selection of levels. Default: no class.
        class_name: Also report this class on its own.
        methods: Explanation methods of Table 1; the first one selects levels and compares models.
        device: cpu, gpu, ...
        seed: Seed of splits, weights, training and bootstrap; fold i uses seed + i.
        level: Confidence level of the intervals.
        out: Output folder; the same command continues an interrupted experiment. Default: a folder in xaieval-runs.
        progress: Show a progress bar for each training on a terminal.
    """

    data: str = "scenes"
    download: Switch = False
    backbone: str | None = None
    weights: str | None = None
    pretrained: bool = False
    backbone_args: Arguments = field(default_factory=dict)
    channels: int | None = None
    head: Literal["mean", "concat"] = "mean"
    image_size: int = 128
    train_size: int | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    interpolation: str | None = None
    max_images: int | None = None
    folds: int = 5
    blocks: int = 10
    run_folds: Integers | None = None
    seeds: int = 1
    design: str = "focus"
    epochs: int = 5
    keep_weights: bool = True
    batch_size: int = 32
    learning_rate: float = 1e-3
    precision: Literal["float32", "bf16"] = "float32"
    arms: Arms = ("selected", "random", "best", "all", "abn")
    k: int | None = None
    held_out_class: str | None = None
    class_name: Annotated[str | None, Parameter(name="--class")] = None
    methods: Words = ("gradcam", "gradcam++", "layercam")
    device: str = "cpu"
    seed: int = 0
    level: float = 0.95
    out: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown:
            raise ConfigError(f"no arm {unknown[0]!r} of the experiment; {choose_from(unknown[0], ARMS)}")
        if self.held_out_class is not None:
            self._check_one_fold()
        for name in ("epochs", "seeds", "batch_size", "channels", "image_size", "train_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name.replace('_', '-')} is at least 1, got {value}")

    def _check_one_fold(self) -> None:
        for name, expected in (("folds", FalOptions.folds), ("run_folds", None)):
            given = getattr(self, name)
            if given != expected:
                raise ConfigError(
                    f"held-out-class makes one split, all images of {self.held_out_class!r} for the test; "
                    f"leave out {name.replace('_', '-')}, got {given}"
                )
