"""Options of the commands, which are also the keys of run files. Imports no torch."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from xaieval.config.groups import Weights
from xaieval.config.option_types import (
    DATA_HELP,
    FORWARD_HELP,
    MODEL_HELP,
    NOT_IN_FILES,
    Arguments,
    ArgumentsByName,
    ControlWords,
    GroupsOption,
    Integers,
    Numbers,
    Prompts,
    Side,
    Switch,
    Task,
    Words,
)
from xaieval.config.protocol import Protocol, resolve_protocol
from xaieval.errors import ConfigError

__all__ = [
    "CheckOptions",
    "ModelOptions",
    "ProtocolOptions",
    "RunOptions",
    "ScoreOptions",
    "SearchOptions",
    "model_settings",
    "parse_literals",
    "parts_of_data",
    "to_settings",
    "token_grid",
]

SWITCHES = {"true": "True", "false": "False"}  # as JSON and TOML write them


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which weights a model has, and how its images are prepared.

    Attributes:
        weights: Weights file: .safetensors, or .pth that contains only tensors.
        pretrained: Use the pretrained weights of the library, which may be downloaded.
        random_weights: Allow a model by name without trained weights; they are drawn by --seed.
        prompts: Classes of CLIP, SigLIP and the like, as texts: 'a photo of a {}' for the class names of the data, or one text
            for each class, or a .txt file with one on each line.
        num_classes: Number of classes that --weights was trained on. Default: that of the model.
        head: Weights file of a linear head (weight and bias) for the features of timm:NAME or hf:NAME, such as DINOv2's.
        model_args: Arguments of the model's constructor, such as --model-args.pad_type same; for hf:NAME, of its config.
        image_size: Side of the square input in pixels, or height and width, such as 96,128. Default: that of the model. If
            images keep their own shape, the shorter side.
        mean: Mean for input normalisation, one number per channel. Default: that of the model.
        std: Standard deviation for input normalisation, one number per channel. Default: that of the model.
        nodata: For folder:DIR of arrays, the value of pixels without data, such as -9999; they, and NaN, become the mean.
        interpolation: Resizing of images: bilinear, bicubic or nearest. Default: that of the model.
        scan_args: For nifti:DIR, --scan-args.intensity zscore (or zscore-nonzero, file, or a window such as -1000,400), .size
            96,96,64 in voxels, .spacing 1.5 in mm.
        forward: See `FORWARD_HELP`.
    """

    weights: str | None = None
    pretrained: bool = False
    random_weights: Switch = False
    prompts: Prompts | None = None
    num_classes: int | None = None
    head: str | None = None
    model_args: Arguments = field(default_factory=dict)
    image_size: Side | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    nodata: float | None = None
    interpolation: str | None = None
    scan_args: Arguments = field(default_factory=dict)
    forward: Annotated[str | None, Parameter(help=FORWARD_HELP)] = None


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `score` and `search` have in common: the model, the images, what is explained, and how it is run.

    Attributes:
        model: The model by name, see `MODEL_HELP`.
        data: The images by name, see `DATA_HELP`.
        download: Download UC Merced (317 MB) if its folder does not exist, or hf:NAME if it is not in the cache.
        masks: Folder with object masks for folder:DIR: one PNG per image, under the same path; for nifti:DIR NIfTI files.
        boxes: COCO JSON file with object boxes of any class for folder:DIR.
        annotations: Objects with their classes for folder:DIR, such as coco:instances.json; also voc, voc-masks, imagenet-s,
            cub, funnybirds, clevr-xai and pascal-part with their folders.
        classes: Order of the folders of folder:DIR: name (alphabetical), number (their names are numbers), or a list: cat,dog.
        split: Split of hf:NAME, such as test (default: the only one), and of scenes.
        image_column: Column of the images in hf:NAME. Default: the only one of that type.
        label_column: Column of the classes in hf:NAME. Default: the only one of that type.
        mosaic_args: Settings of mosaics: --mosaic-args.side 3 (cells of a side), .confidence 0.99 of the images, .shrink true.
        layers: Layer addresses or patterns, such as 'fpn[*]' or layer3,layer4; auto takes the stages of the model.
        methods: Explanation methods; `xaieval-bench methods` lists them.
        method_args: Settings of methods by their names, such as --method-args.rise.masks 500, .captum:Lime.segments slic-50.
        metric_args: Settings of metrics by their names, such as --metric-args.road.fractions 0.2,0.5, .insertion.steps 8.
        target: Class to explain: predicted, label, each (all in the image) or a class index. Default: as in the protocol;
            label for mosaics.
        device: cpu, cuda, cuda:1, ... Default: the device of the model, which is the CPU.
        precision: Precision of the passes of masked images; auto takes the fastest with the same numbers on the first batch.
        compile: Run masked images through torch.compile; worthwhile for many images.
        memory: Limit for the tensors of a batch on a CPU, such as '4 GiB'; larger batches are split.
        fast: Fold BatchNorm into convolutions and choose the faster memory layout; --no-fast runs the model unchanged.
        deterministic: Same bits for every batch size, order and number of processes; slower, one image at a time.
        batch_size: Images per forward pass.
        workers: Processes that load images.
        max_images: Maximum number of images, spread evenly over the classes. Default: all, but 200 of scenes.
        seed: Seed of random explainers and of the bootstrap.
        level: Confidence level of the intervals.
        strict: Fail where there is a reason not to trust the numbers, such as random weights or the wrong normalisation.
        task: Task of the model.
        output: Key or index of the logits or detections in the model's output, such as 1. Default: inferred.
        grid: Height and width of the token grid, such as 14,14. Default: inferred.
        prefix_tokens: Number of tokens before the grid. Default: inferred.
        layout: Axes of the layers' outputs, such as 'T N C' or 'N*V C h w'. Default: inferred.
        out: Folder for rows, summary and manifest. Default: a folder in xaieval-runs, one for each command.
        resume: Continue an interrupted run of the same command; --no-resume starts again.
        progress: Show a progress bar on a terminal, and a line a minute in a log.
    """

    model: Annotated[str, Parameter(help=f"{MODEL_HELP} {NOT_IN_FILES}")] = "xaieval:fpn-scenes"
    data: Annotated[str, Parameter(help=f"{DATA_HELP} {NOT_IN_FILES}")] = "scenes"
    download: Switch = False
    masks: str | None = None
    boxes: str | None = None
    annotations: str | None = None
    classes: Words | None = None
    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    mosaic_args: Arguments = field(default_factory=dict)
    layers: Words = ("auto",)
    methods: Words = ("gradcam",)
    method_args: ArgumentsByName = field(default_factory=dict)
    metric_args: ArgumentsByName = field(default_factory=dict)
    target: str | None = None
    device: str | None = None
    precision: Literal["float32", "bf16", "fp16", "tf32", "auto"] = "float32"
    compile: Switch = False
    memory: str | None = None
    fast: bool = True
    deterministic: Switch = False
    batch_size: int = 32
    workers: int = 0
    max_images: int | None = None
    seed: int = 0
    level: float = 0.95
    strict: Switch = False
    task: Task = "classification"
    output: str | None = None
    grid: Numbers | None = None
    prefix_tokens: int | None = None
    layout: str | None = None
    out: str | None = None
    resume: bool = True
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(RunOptions):
    """What is scored, and how: the parameters of `xaieval.score`.

    Attributes:
        metrics: Metrics; `xaieval-bench metrics` lists them.
        controls: Also score control maps, and report which methods beat them; --controls matched compares each map with others
            of its size instead: shifted, swapped, dimmed and blurred. Or a list of controls of either kind.
        groups: See `GROUPS_HELP`.
        group_weights: What has equal weight in a mean: images or groups.
        stop: Stop early once a result is certain: ranking (order of the layers), best or worst (which layer it is).
        stop_args: Settings of --stop, such as --stop-args.k 2, .by average_drop, .error 0.05, .min_images 50, .max_images 500.
        judge: Weights file of a second network of the same kind, which is shown the masked images; see docs/curves.md.
        keep_maps: Keep maps of this number of random images in the folder, so that `report` needs neither model nor data.
        bands: Channels shown as red, green and blue in figures, from 0, such as 3,2,1. Default: the first three.
        published: Also print the table with the numbers of a paper or tool beside it, such as opti-cam, or opti-cam/ResNet50 to
            name its network; `xaieval-bench published` lists them.
        nproc: Processes on this machine that share the images; for several machines start with torchrun.
        already_split: Each process already receives its own share of the data, as with streams that split themselves.
    """

    metrics: Words = ("average_drop", "increase_in_confidence")
    controls: ControlWords = False
    groups: GroupsOption = None
    group_weights: Weights = "images"
    stop: str | None = None
    stop_args: Arguments = field(default_factory=dict)
    judge: str | None = None
    keep_maps: int = 0
    bands: Integers | None = None
    published: str | None = None
    nproc: int = 1
    already_split: Switch = False

    def __post_init__(self) -> None:
        if self.nproc < 1:
            raise ConfigError(f"nproc is at least 1, got {self.nproc}")


@dataclass(frozen=True, kw_only=True)
class SearchOptions(RunOptions):
    """What is searched, and how: the parameters of `xaieval.search`.

    Attributes:
        methods: Explanation methods by name, or fast (those that share one pass over the images), or all; of these two, methods
            that do not fit are left out.
        by: The metric that decides.
        error: Probability that the best pair of layer and method of these images is dropped.
    """

    methods: Words = ("fast",)
    by: str = "insertion"
    error: float = 0.05


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What is checked: the parameters of `xaieval.check`.

    Attributes:
        model: The model by name, see `MODEL_HELP`.
        data: The images by name, see `DATA_HELP`.
        download: Download UC Merced (317 MB) if its folder does not exist, or hf:NAME if it is not in the cache.
        classes: Order of the folders of folder:DIR: name (alphabetical), number (their names are numbers), or a list: cat,dog.
        split: Split of hf:NAME, such as test (default: the only one), and of scenes.
        image_column: Column of the images in hf:NAME. Default: the only one of that type.
        label_column: Column of the classes in hf:NAME. Default: the only one of that type.
        layers: Layers whose maps are looked at too, such as 'fpn[*]' or auto. Default: none.
        target: Class to explain: predicted, label, each (all in the image) or a class index. Default: as in the protocol.
        device: cpu, cuda, cuda:1, ... Default: the device of the model, which is the CPU.
        batch_size: Images per forward pass.
        max_images: Number of images to look at, spread evenly over the classes.
        seed: Seed of random weights and random explainers.
        strict: Fail if anything is found.
        task: Task of the model.
        output: Key or index of the logits or detections in the model's output, such as 1. Default: inferred.
        grid: Height and width of the token grid, such as 14,14. Default: inferred.
        prefix_tokens: Number of tokens before the grid. Default: inferred.
        layout: Axes of the layers' outputs, such as 'T N C' or 'N*V C h w'. Default: inferred.
    """

    model: Annotated[str, Parameter(help=MODEL_HELP)] = "xaieval:fpn-scenes"
    data: Annotated[str, Parameter(help=DATA_HELP)] = "scenes"
    download: Switch = False
    classes: Words | None = None
    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    layers: Words = ()
    target: str | None = None
    device: str | None = None
    batch_size: int = 32
    max_images: int = 64
    seed: int = 0
    strict: Switch = False
    task: Task = "classification"
    output: str | None = None
    grid: Numbers | None = None
    prefix_tokens: int | None = None
    layout: str | None = None


def model_settings(options: RunOptions | CheckOptions) -> dict[str, Any]:
    """Task, output, token grid and layout as keyword arguments of `xaieval.score` and `xaieval.check`.

    Raises:
        ConfigError: The grid is not two whole numbers, or three for volumes.
    """
    return {
        "task": options.task,
        "output": options.output,
        "grid": token_grid(options.grid),
        "prefix_tokens": options.prefix_tokens,
        "layout": options.layout,
    }


def parts_of_data(options: RunOptions | CheckOptions) -> dict[str, Any]:
    """The split and the columns of data as keyword arguments of `load_data`, if they are given."""
    given = {name: getattr(options, name) for name in ("split", "image_column", "label_column")}
    return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """A protocol by name, and single choices that replace its own.

    Attributes:
        protocol: Name of a protocol; `xaieval-bench protocols` lists them.
        confidence: Score of the target class: softmax, sigmoid or identity (the raw logit).
        gradient: Score whose gradient is computed: logit or confidence.
        against: Classes to compare the target with: similar, similar-5, or class indices such as 7 or 7,8.
        against_weight: Weight of these classes.
        normalisation: Scaling of maps to [0, 1]: minmax, max, percentile or none.
        normalise_at: Normalise at the size of the image (after upsampling) or of the layer (before).
        absolute: Take the absolute value of maps before normalisation.
        masking: How a map becomes a mask: soft, top, top_binary, threshold or otsu.
        keep_percent: Share of pixels that top and top_binary keep, in percent.
        threshold: Threshold of the masking of that name, in [0, 1].
        inverse: Mask with the inverted map.
        fill: What replaces masked pixels: zero, black, mean, blur, blur-by-mask, border, delaunay, linear, navier-stokes,
            nearest or telea.
        space: Where zero lies: model (in the normalised input) or pixels (before normalisation).
        images: Which images count: all or correct (only those classified correctly).
        minimum_confidence: Leave out images with a lower confidence.
        constant_map: Treatment of constant maps: zeros, leave_out or error.
        invalid: Treatment of NaN and of confidences that are not positive: status or error.
        denominator: What a drop is divided by: confidence or none.
        drops: Images over which Average Drop is averaged: all or dropping (only those whose confidence fell).
        ties: How an equal confidence counts: no_increase or increase.
        epsilon: Number added to the denominator of a drop.
        map_epsilon: Number added to the range that a map is divided by.
    """

    protocol: str = "default"
    confidence: str | None = None
    gradient: str | None = None
    against: str | None = None
    against_weight: float | None = None
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
        """The protocol with its target and, where a fill needs them, the mean and std of the input normalisation.

        Raises:
            ProtocolError: The name or a choice is unknown.
        """
        changed = {} if target is None else {"target": int(target) if target.lstrip("-").isdigit() else target}
        changes: dict[str, Any] = to_settings(self) | changed
        protocol = dataclasses.replace(resolve_protocol(changes.pop("protocol")), **changes)
        return dataclasses.replace(protocol, mean=mean, std=std) if protocol.fills_black else protocol


def token_grid(given: tuple[float, ...] | None) -> tuple[int, ...] | None:
    """The grid of tokens that --grid gives.

    Raises:
        ConfigError: It is not two whole numbers, or three for volumes.
    """
    grid = tuple(int(cells) for cells in given or ())
    if given is not None and (len(grid) not in (2, 3) or grid != given or min(grid) < 1):
        raise ConfigError(f"--grid takes a height and a width, such as 14,14; got {given}")
    return grid or None


def parse_literals(arguments: dict[str, str]) -> dict[str, Any]:
    """Arguments of a constructor: Python literals such as numbers, and true and false, as values; all others as text.

    Example:
        >>> parse_literals({"num_classes": "21", "pad_type": "same", "scriptable": "true"})
        {'num_classes': 21, 'pad_type': 'same', 'scriptable': True}
    """

    def parse(text: str) -> Any:
        try:
            return ast.literal_eval(SWITCHES.get(text, text))
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # all that Python's manual names
            return text

    return {name: parse(text) for name, text in arguments.items()}


def to_settings(options: Any) -> dict[str, Any]:
    """The options by name, as a manifest records them, without those that are None."""
    return {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
