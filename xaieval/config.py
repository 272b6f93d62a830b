"""The settings of a run, for the command line and for run files in TOML, in the same words; without torch."""

from __future__ import annotations

import ast
import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from xaieval.errors import ConfigError
from xaieval.protocol import Protocol, resolve_protocol

__all__ = ["ModelOptions", "ProtocolOptions", "ScoreOptions", "parse_literals", "plain", "read_toml"]


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


Words = Annotated[tuple[str, ...], Parameter(converter=_words, n_tokens=1, accepts_keys=False, negative=())]
Numbers = Annotated[tuple[float, ...], Parameter(converter=_numbers, n_tokens=1, accepts_keys=False, negative=())]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, with which weights.

    Attributes:
        weights: Weights file of the model: .safetensors, or .pth that holds tensors alone.
        pretrained: Take the library's own weights, which downloads them.
        model_args: Arguments of the model's constructor, such as --model-args.pad_type same.
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
        model: timm:NAME, torchvision:NAME, xaieval:fpn-scenes, or package.module:factory (which imports that module).
        data: scenes (built in), folder:DIR, ucmerced:DIR, or package.module:factory (which imports that module).
        layers: Layer addresses or patterns, such as 'fpn[*]' or layer3,layer4.
        methods: Explanation methods.
        metrics: Metrics.
        target: predicted, label, or a class index.
        device: cpu, cuda, cuda:1, ...; a GPU is used only when named.
        batch_size: Images in a forward pass.
        max_images: At most so many images, spread evenly over the classes.
        seed: Of random explainers and of the bootstrap.
        level: Of the intervals.
        output: Where the logits are in the model's output, by key; found by itself in most models.
        grid: Height and width of the token grid, such as 14,14, where it cannot be inferred.
        prefix_tokens: Number of tokens before the grid, likewise.
        out: Folder for rows, summary, manifest and figure; named after the run unless told.
        progress: Show a progress bar, where stderr is a terminal.
    """

    model: str = "xaieval:fpn-scenes"
    data: str = "scenes"
    layers: Words = ("fpn[*]",)
    methods: Words = ("gradcam",)
    metrics: Words = ("average_drop", "increase_in_confidence")
    target: str | None = None
    device: str | None = None
    batch_size: int = 32
    max_images: int | None = None
    seed: int = 0
    level: float = 0.95
    output: str | None = None
    grid: Numbers | None = None
    prefix_tokens: int | None = None
    out: str | None = None
    progress: bool = True

    @property
    def where(self) -> dict[str, Any]:
        """Where in the model the logits and the token grid are.

        Raises:
            ConfigError: the grid is not two whole numbers.
        """
        grid = None if self.grid is None else tuple(int(cells) for cells in self.grid)
        if grid is not None and (len(grid) != 2 or grid != self.grid or min(grid) < 1):
            raise ConfigError(f"--grid takes a height and a width, such as 14,14; got {self.grid}")
        return {"output": self.output, "grid": grid, "prefix_tokens": self.prefix_tokens}


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """How maps become numbers: a protocol by name, and choices that differ from it.

    Attributes:
        protocol: Name of a protocol.
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


def parse_literals(arguments: dict[str, str]) -> dict[str, Any]:
    """Arguments of a constructor: numbers, booleans and the like as such, anything else as text.

    Example:
        >>> parse_literals({"num_classes": "21", "pad_type": "same"})
        {'num_classes': 21, 'pad_type': 'same'}
    """

    def parse(text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text

    return {name: parse(text) for name, text in arguments.items()}


def read_toml(path: str | Path) -> dict[str, Any]:
    """The settings in a run file.

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    try:
        settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"no run file '{path}'; give a TOML file with the same words as the options") from error
    # "no-progress = true" is what the command line calls --no-progress.
    return {
        **{name: value for name, value in settings.items() if not _is_negative(name, value)},
        **{name[3:]: not value for name, value in settings.items() if _is_negative(name, value)},
    }


def _is_negative(name: str, value: Any) -> bool:
    return name.startswith(("no-", "no_")) and isinstance(value, bool)


def plain(options: Any) -> dict[str, Any]:
    """The options that were given, without those left at None."""
    return {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
