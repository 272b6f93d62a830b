"""The settings of a run, for the command line and for run files in TOML, in the same words; without torch."""

from __future__ import annotations

import ast
import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

from xaieval.config.protocol import Protocol, resolve_protocol
from xaieval.errors import ConfigError, choose_from

__all__ = [
    "ARMS",
    "FalOptions",
    "Json",
    "ModelOptions",
    "ProtocolOptions",
    "ScoreOptions",
    "Switch",
    "parse_literals",
    "plain",
    "read_toml",
]


def _words(_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    """The items of an option that takes commas."""
    words = tuple(word.strip() for token in tokens for word in token.value.split(",") if word.strip())
    if not words:
        raise ConfigError(f"{tokens[0].keyword or 'an option'} takes one or more words separated by commas, got none")
    return words


def _numbers(kind: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    words = _words(kind, tokens)
    try:
        return tuple(float(word) for word in words)
    except ValueError as error:
        raise ConfigError(f"{tokens[0].keyword or 'an option'} takes numbers separated by commas, got {words}") from error


def _integers(kind: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    words = _words(kind, tokens)
    if not all(word.isdigit() for word in words):
        raise ConfigError(f"{tokens[0].keyword or 'an option'} takes whole numbers separated by commas, got {words}")
    return tuple(int(word) for word in words)


Switch = Annotated[bool, Parameter(negative=())]
Json = Annotated[bool, Parameter(name="--json", negative=())]
Words = Annotated[tuple[str, ...], Parameter(converter=_words, n_tokens=1, accepts_keys=False, negative=())]
Numbers = Annotated[tuple[float, ...], Parameter(converter=_numbers, n_tokens=1, accepts_keys=False, negative=())]
Integers = Annotated[tuple[int, ...], Parameter(converter=_integers, n_tokens=1, accepts_keys=False, negative=())]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, with which weights.

    Attributes:
        weights: Weights file of the model: .safetensors, or .pth that holds tensors alone.
        pretrained: Take the library's own weights, which downloads them.
        model_args: Arguments of the model's constructor, such as --model-args.pad_type same; settings of an hf:NAME.
        image_size: Side of the square input in pixels; the model's own unless told.
        mean: Input normalisation, three numbers; the model's own unless told.
        std: Input normalisation, three numbers; the model's own unless told.
        interpolation: bilinear, bicubic or nearest; the model's own unless told.
    """

    weights: str | None = None
    pretrained: bool = False
    model_args: dict[str, str] = field(default_factory=dict)
    image_size: int | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    interpolation: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What is scored, and how the work is done: the parameters of `xaieval.score`.

    Attributes:
        model: timm:NAME, torchvision:NAME, hf:NAME, xaieval:fpn-scenes, or package.module:factory, the only form that imports
            your code and runs it; on the command line alone, not in a run file.
        data: scenes (built in), folder:DIR, ucmerced:DIR, or package.module:factory, likewise.
        download: Fetch UC Merced (317 MB) into its folder, if it is not there.
        masks: Folder with the masks of the objects, for folder:DIR: a PNG file under the same path for each image.
        boxes: COCO file (JSON) with boxes around the objects, for folder:DIR.
        layers: Layer addresses or patterns, such as 'fpn[*]' or layer3,layer4; auto for a choice of the model's stages.
        methods: Explanation methods.
        metrics: Metrics.
        target: predicted, label, or a class index.
        controls: Score control maps too, and say which methods beat them.
        stop: ranking, best or worst: stop when the order of the layers, or which is the best or the worst, is certain.
        stop_args: More of this, such as --stop-args.k 2, .by average_drop, .error 0.05, .min_images 50, .max_images 500.
        device: cpu, cuda, cuda:1, ...; a GPU is used only when named.
        precision: float32 (the model's own type), or bf16 where the processor has it.
        compile: Run masked images through torch.compile; pays with many images.
        memory: What the tensors of a batch may take on a CPU, such as '4 GiB'; fewer images run at a time if need be.
        fast: Fold BatchNorms and use the faster memory layout; --no-fast runs the model's modules as they are.
        deterministic: Give the same bits whatever batch size, number of processes and order; slower, one image at a time.
        batch_size: Images in a forward pass.
        workers: Processes that read images ahead.
        max_images: At most so many images, spread evenly over the classes.
        seed: Of random explainers and of the bootstrap.
        level: Of the intervals.
        task: What the model does: classification, detection or segmentation.
        output: Where the logits or detections are in the model's output, by key; found by itself in most models.
        grid: Height and width of the token grid, such as 14,14, where it cannot be inferred.
        prefix_tokens: Number of tokens before the grid, likewise.
        nproc: Processes on this machine that share the images; torchrun starts them on several machines.
        already_split: The data gives another part in each process, as streams that split themselves do.
        out: Folder for rows, summary, manifest and figure; named after the run unless told.
        resume: Go on from what an earlier run of the same command left there; --no-resume measures it again.
        progress: Show a progress bar, where stderr is a terminal.
    """

    model: str = "xaieval:fpn-scenes"
    data: str = "scenes"
    download: Switch = False
    masks: str | None = None
    boxes: str | None = None
    layers: Words = ("fpn[*]",)
    methods: Words = ("gradcam",)
    metrics: Words = ("average_drop", "increase_in_confidence")
    target: str | None = None
    controls: Switch = False
    stop: str | None = None
    stop_args: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    precision: Literal["float32", "bf16"] = "float32"
    compile: Switch = False
    memory: str | None = None
    fast: bool = True
    deterministic: Switch = False
    batch_size: int = 32
    workers: int = 0
    max_images: int | None = None
    seed: int = 0
    level: float = 0.95
    task: Literal["classification", "detection", "segmentation"] = "classification"
    output: str | None = None
    grid: Numbers | None = None
    prefix_tokens: int | None = None
    nproc: int = 1
    already_split: Switch = False
    out: str | None = None
    resume: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        if self.nproc < 1:
            raise ConfigError(f"nproc is at least 1, got {self.nproc}")

    @property
    def where(self) -> dict[str, Any]:
        """What the model does, and where in it the logits and the token grid are.

        Raises:
            ConfigError: the grid is not two whole numbers, or three of volumes.
        """
        grid = tuple(int(cells) for cells in self.grid or ())
        if self.grid is not None and (len(grid) not in (2, 3) or grid != self.grid or min(grid) < 1):
            raise ConfigError(f"--grid takes a height and a width, such as 14,14; got {self.grid}")
        return {"task": self.task, "output": self.output, "grid": grid or None, "prefix_tokens": self.prefix_tokens}


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """How maps become numbers: a protocol by name, and choices that differ from it.

    Attributes:
        protocol: Name of a protocol; xaieval-bench protocols lists them.
        confidence: softmax, sigmoid or identity.
        gradient: Gradients of the target's logit or of its confidence.
        normalisation: minmax, max, percentile or none.
        normalise_at: image (after upsampling) or layer (before).
        absolute: Absolute value of the map first.
        masking: soft, top, top_binary, threshold or otsu.
        keep_percent: Share of pixels that top and top_binary keep, in percent.
        threshold: Of the masking of that name, in [0, 1].
        inverse: Mask with the inverse of the map.
        fill: zero, black, mean or blur.
        space: Where zero lies: model (normalised input) or pixels.
        images: all, or the correct ones only.
        minimum_confidence: Leave out images below.
        constant_map: zeros, leave_out or error.
        invalid: status or error, for NaN and for confidences that are not positive.
        denominator: What a drop is divided by: confidence or none.
        drops: What Average Drop is the mean of: all images, or the dropping ones.
        ties: no_increase or increase.
        epsilon: Added to the denominator of a drop.
        map_epsilon: Added to the range that a map is divided by.
    """

    protocol: str = "default"
    confidence: str | None = None
    gradient: str | None = None
    normalisation: str | None = None
    normalise_at: str | None = None
    absolute: bool | None = None
    masking: str | None = None
    keep_percent: float | None = None
    threshold: float | None = None
    inverse: bool | None = None
    fill: str | None = None
    space: str | None = None
    images: str | None = None
    minimum_confidence: float | None = None
    constant_map: str | None = None
    invalid: str | None = None
    denominator: str | None = None
    drops: str | None = None
    ties: str | None = None
    epsilon: float | None = None
    map_epsilon: float | None = None

    def resolve(self, mean: tuple[float, ...], std: tuple[float, ...], target: str | None = None) -> Protocol:
        """The protocol with its target, and with the numbers that the images are normalised with where a fill needs them.

        Raises:
            ProtocolError: the name or a choice is unknown.
        """
        changes: dict[str, Any] = plain(self)
        if target is not None:
            changes["target"] = int(target) if target.lstrip("-").isdigit() else target
        protocol = dataclasses.replace(resolve_protocol(changes.pop("protocol")), **changes)
        return dataclasses.replace(protocol, mean=mean, std=std) if protocol.fills_black else protocol


ARMS = ("selected", "random", "best", "all", "abn", "open-start", "subsets", "random-split", "none")


@dataclass(frozen=True, kw_only=True)
class FalOptions:
    """The FAL experiment: train an FPN, score its levels, put attention on those that need it, compare.

    Attributes:
        data: scenes (built in), folder:DIR or ucmerced:DIR.
        download: Fetch UC Merced (317 MB) into its folder, if it is not there.
        backbone: timm model; mobilenetv2_100 unless told, for scenes the small one of xaieval:fpn-scenes with its weights.
        weights: Weights file of the backbone: .safetensors, or .pth that holds tensors alone.
        pretrained: Take timm's own weights, which downloads them.
        backbone_args: Arguments of the timm model, such as --backbone-args.pad_type same.
        channels: Of every pyramid level; 128 unless told, 64 for scenes.
        head: mean (of a classifier for each level) or concat (one classifier on all).
        image_size: Side of the input in tests and scores, in pixels; shows the whole picture.
        train_size: Side of the random crops that are trained on; the same unless told.
        mean: Input normalisation, three numbers; the backbone's own unless told.
        std: Input normalisation, three numbers; the backbone's own unless told.
        interpolation: bilinear, bicubic or nearest; the backbone's own unless told.
        max_images: At most so many images, spread evenly over the classes; 600 scenes unless told.
        folds: Folds of contiguous blocks of images, so that each image is tested once.
        blocks: Runs of images that each class is cut into, a multiple of the folds.
        run_folds: Run only these folds, such as 0,1; all unless told, two for scenes. Processes may share the folder.
        epochs: Of the FPN whose levels are scored.
        further_epochs: Of the FPN control and of every FAL, after those.
        batch_size: Images per training step and per forward pass.
        learning_rate: The highest of the cycle.
        precision: float32, or bf16 where the processor has it.
        arms: What is compared with the FPN control: attention on the levels selected by their scores, on random ones, on the
            best ones, on all; abn; open-start (selected, with attention of one half at first); subsets (every set of levels);
            random-split (accuracy of the FPN where folds are drawn image by image); none (Table 1 alone).
        k: Number of levels that get attention; decided by tests unless told.
        class_name: Also report this class alone.
        methods: Explanation methods of Table 1; the first one selects levels and compares models.
        device: cpu, gpu, ...; a GPU is used only when named.
        seed: Of splits, weights, training and bootstrap; fold i trains with seed + i.
        level: Of the intervals.
        out: Folder for everything; named after the experiment unless told. The same command goes on where it was killed.
        progress: Show a progress bar of each training, where stderr is a terminal.
    """

    data: str = "scenes"
    download: Switch = False
    backbone: str | None = None
    weights: str | None = None
    pretrained: bool = False
    backbone_args: dict[str, str] = field(default_factory=dict)
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
    epochs: int = 3
    further_epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 1e-3
    precision: Literal["float32", "bf16"] = "float32"
    arms: Words = ("selected", "random", "best", "all", "abn")
    k: int | None = None
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
        for name in ("epochs", "further_epochs", "batch_size", "channels", "image_size", "train_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name.replace('_', '-')} is at least 1, got {value}")


def parse_literals(arguments: dict[str, str]) -> dict[str, Any]:
    """Arguments of a constructor: numbers, booleans and the like as such, anything else as text.

    Example:
        >>> parse_literals({"num_classes": "21", "pad_type": "same"})
        {'num_classes': 21, 'pad_type': 'same'}
    """

    def parse(text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # all that Python's manual names
            return text

    return {name: parse(text) for name, text in arguments.items()}


def read_toml(path: str | Path) -> dict[str, Any]:
    """The settings in a run file.

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    try:
        settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"no run file '{path}'; give a TOML file with the same words as the options") from error
    except (ValueError, RecursionError) as error:  # also of bytes that are no text, and of numbers that are too long
        raise ConfigError(f"'{path}' is not TOML: {error}") from error
    for name, value in settings.items():
        _check_setting(name, value, path)
    # "no-progress = true" is what the command line calls --no-progress.
    return {
        **{name: value for name, value in settings.items() if not _is_negative(name, value)},
        **{name[3:]: not value for name, value in settings.items() if _is_negative(name, value)},
    }


def _check_setting(name: str, value: Any, path: str | Path) -> None:
    """Refuse what no option is, whatever its name: the words of a run file stand for words of the command line."""
    words = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if not name or not all(isinstance(word, str | bool | int | float) for word in words):
        raise ConfigError(
            f"'{path}' has the setting {name!r} = {value!r}; text, a number, true or false, a list of such, or a table of them "
            "under the name of an option is expected"
        )


def _is_negative(name: str, value: Any) -> bool:
    return name.startswith(("no-", "no_")) and isinstance(value, bool)


def plain(options: Any) -> dict[str, Any]:
    """The options that were given, without those left at None."""
    return {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
