"""Options of the FAL experiment, which are also the keys of its run files. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from xaieval.config.option_types import Arguments, Integers, Numbers, Switch, Words
from xaieval.errors import ConfigError

__all__ = ["ROLES", "TWIN", "CompleteOptions", "FalOptions"]

ROLES = ("selected", "random", "best", "all")  # arms whose levels follow from the selection
TWIN = "-twin"  # the end of the name of a role's twin

# What options are where they are not given: for the built-in scenes, the whole experiment takes minutes.
SCENES: dict[str, Any] = {
    "arms": ("selected", "selected-twin"),
    "batch_size": 8,
    "channels": 32,
    "epochs": 5,
    "image_size": 64,
    "k": 2,
    "learning_rate": 3e-3,
    "max_images": 400,
    "methods": ("gradcam",),
    "seeds": 2,
}
OTHERS: dict[str, Any] = {
    "arms": ("selected", "selected-twin", "random", "best", "all", "all-twin", "abn"),
    "batch_size": 32,
    "channels": 128,
    "epochs": 5,
    "image_size": 128,
    "learning_rate": 1e-3,
    "methods": ("gradcam", "gradcam++", "layercam"),
    "seeds": 3,
}
HELD_OUT: dict[str, Any] = {"arms": ("fal-p2-p3", "twin-p2-p3")}  # the paper's levels


@dataclass(frozen=True, kw_only=True)
class FalOptions:
    """The FAL experiment: train an FPN, score its levels, add attention where it is needed, compare.

    Attributes:
        data: scenes (built in), folder:DIR (one sub-folder per class) or ucmerced:DIR.
        download: Download UC Merced (317 MB) if its folder does not exist.
        in_memory: Keep the decoded images in memory; --no-in-memory for data sets that are too large for that.
        backbone: Name of a timm model. Default: mobilenetv2_100; for scenes, the small trained one of xaieval:fpn-scenes.
        weights: Weights file of the backbone: .safetensors, or .pth that contains only tensors.
        pretrained: Use timm's pretrained weights, which may be downloaded.
        backbone_args: Arguments of the timm model, such as --backbone-args.pad_type same.
        channels: Channels of every pyramid level. Default: 128; 32 for scenes.
        head: Classifier: mean (one per level, logits averaged) or concat (one on all levels).
        image_size: Side of the square input in tests and scores, in pixels; whole images are used. Default: 128; 64 for scenes.
        train_size: Side of the random crops for training, in pixels. Default: image_size.
        mean: Mean for input normalisation, three numbers. Default: that of the backbone.
        std: Standard deviation for input normalisation, three numbers. Default: that of the backbone.
        interpolation: Resizing of images: bilinear, bicubic or nearest. Default: that of the backbone.
        max_images: Maximum number of images, spread evenly over the classes. Default: all; 400 scenes.
        folds: Number of folds; each image is tested once. Images of a block stay in one fold.
        blocks: Number of contiguous blocks that each class is cut into, a multiple of the folds.
        run_folds: Folds to run, such as 0,1. Default: all.
        seeds: Number of seeds: each fold is run with seed, seed + 1 and so on. Default: 3; 2 for scenes.
        run_seeds: Seeds to run, such as 4,5. Default: those of seeds.
        design: Design of the attention, see xaieval.models.designs. Default: that of FAL.
        epochs: Epochs of every network, in one cycle of the learning rate. Default: 5.
        batch_size: Images per training step and per forward pass. Default: 32; 8 for scenes.
        learning_rate: Peak learning rate of the schedule. Default: 0.001; 0.003 for scenes.
        precision: Precision of training; bf16 needs a processor that supports it.
        arms: Networks to compare with the FPN: FAL with attention on the selected, random, best or all levels; selected-twin
            and so on, trained alike but without use of the maps; fal-p2-p3 and twin-p2-p3, with attention on these levels,
            and fal-p2-p3@amplify, of another design; abn, an ABN; fpn, no more than the FPN. Default: selected, selected-twin,
            random, best, all, all-twin, abn; for scenes the first two; with a held-out class fal-p2-p3, twin-p2-p3.
        by: Rule that selects the levels, ad-ic, excess, oracle-gate or probe, or names of metrics. Default: oracle-gate.
        k: Number of levels that get attention. Default: decided by tests; 2 for scenes.
        keep_weights: Keep the weights of all networks, not only those of the FPN.
        held_out_class: Train on all images of the other classes, and test on all images of this one, which has no label then:
            its accuracy is NaN. There is one fold, 0, without images for the selection of levels. Default: no class.
        class_name: Also report this class on its own.
        methods: Explanation methods of Table 1; the first one selects levels and compares networks. Default: gradcam, gradcam++
            and layercam; gradcam for scenes.
        device: cpu, gpu, ...
        seed: Seed of splits, and the first seed of weights and training.
        level: Confidence level of intervals and of the tests that select levels.
        out: Output folder. The same command continues an interrupted experiment, several processes can share the folder, and
            further arms, folds or seeds can be added. Default: a folder in xaieval-runs.
        progress: Show a progress bar for each training on a terminal.
    """

    data: str = "scenes"
    download: Switch = False
    in_memory: bool = True
    backbone: str | None = None
    weights: str | None = None
    pretrained: bool = False
    backbone_args: Arguments = field(default_factory=dict)
    channels: int | None = None
    head: Literal["mean", "concat"] = "mean"
    image_size: int | None = None
    train_size: int | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    interpolation: str | None = None
    max_images: int | None = None
    folds: int = 5
    blocks: int = 10
    run_folds: Integers | None = None
    seeds: int | None = None
    run_seeds: Integers | None = None
    design: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    precision: Literal["float32", "bf16"] = "float32"
    arms: Words | None = None
    by: Words | None = None
    k: int | None = None
    keep_weights: bool = False
    held_out_class: str | None = None
    class_name: Annotated[str | None, Parameter(name="--class")] = None
    methods: Words | None = None
    device: str = "cpu"
    seed: int = 0
    level: float = 0.95
    out: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.held_out_class is not None:
            self._check_one_fold()
        for name in ("epochs", "seeds", "batch_size", "channels", "image_size", "train_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name.replace('_', '-')} is at least 1, got {value}")

    def complete(self, design: str, by: str) -> CompleteOptions:
        """The options, with the defaults that depend on the data filled in.

        Args:
            design: The default of the design.
            by: The default of the rule.

        Example:
            >>> options = FalOptions(epochs=2).complete("focus", "ad-ic")
            >>> options.epochs, options.image_size, options.by
            (2, 64, ('ad-ic',))
        """
        given = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        defaults = SCENES if self.data == "scenes" else OTHERS
        defaults = defaults | {"design": design, "by": (by,)} | (HELD_OUT if self.held_out_class is not None else {})
        return CompleteOptions(**given | {name: value for name, value in defaults.items() if given[name] is None})

    def _check_one_fold(self) -> None:
        for name, expected in (("folds", FalOptions.folds), ("run_folds", None)):
            given = getattr(self, name)
            if given != expected:
                raise ConfigError(
                    f"held-out-class makes one split, all images of {self.held_out_class!r} for the test; "
                    f"leave out {name.replace('_', '-')}, got {given}"
                )
        if self.class_name is not None:
            raise ConfigError(f"with held-out-class all test images are of {self.held_out_class!r}; leave out class")


@dataclass(frozen=True, kw_only=True)
class CompleteOptions(FalOptions):
    """Options with the defaults that depend on the data filled in; see `FalOptions.complete`."""

    arms: tuple[str, ...]
    batch_size: int
    by: tuple[str, ...]
    channels: int
    design: str
    epochs: int
    image_size: int
    learning_rate: float
    methods: tuple[str, ...]
    seeds: int
