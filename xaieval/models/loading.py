"""Loading of models by name, with their preprocessing and weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torchvision
from torch import nn
from torchvision.transforms import InterpolationMode

from xaieval.config.counts import check_count
from xaieval.data import Preprocessing, import_factory
from xaieval.data.cues import CUES
from xaieval.data.drawing import SIDE
from xaieval.errors import ModelError, WeightsError, advice, choose_from
from xaieval.models.blackbox import BlackBox, as_module
from xaieval.models.builtin import cue_scenes, fpn_scenes
from xaieval.models.class_names import class_names
from xaieval.models.features import LinearHead
from xaieval.models.huggingface import huggingface
from xaieval.models.onnx_file import onnx_function
from xaieval.models.openclip import openclip
from xaieval.models.ultralytics import ultralytics
from xaieval.models.weights import load_weights, read_weights, tensors_only
from xaieval.models.zeroshot import ZeroShot

WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")

__all__ = ["MODEL_SOURCES", "LoadedModel", "Source", "load_model", "names_code"]

ONNX = ".onnx"
TIMM_HUB = ("hf_hub", "hf-hub")  # timm's names of models on the Hugging Face Hub, such as hf_hub:timm/resnet18.a1_in1k
TIMM_FOLDER = "local-dir"  # and of a folder with such files


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model with the preprocessing of its images.

    Attributes:
        model: The model.
        preprocessing: Turns an image into its input.
        random: Whether its weights are known to be random: a network by name without trained weights.
        tokenizer: Makes tokens of prompts, of a model that compares images with texts; None for all others.
    """

    model: nn.Module
    preprocessing: Preprocessing
    random: bool = False
    tokenizer: Any = None

    def __repr__(self) -> str:
        """The network, its images and its classes, a line each; `model` itself lists all modules."""
        model, prepared, names = self.model, self.preprocessing, class_names(self.model)
        count = sum(parameter.numel() for parameter in model.parameters())
        shape = ", ".join(map(str, getattr(prepared, "input_shape", ("C", "H", "W"))))
        normal = "" if prepared.mean is None else f", mean {prepared.mean}, std {prepared.std}"
        number = len(names) or getattr(model, "num_classes", None) or "unknown"
        return (
            f"{type(model).__module__}.{type(model).__qualname__}, {count:,} parameters{', random weights' * self.random}\n"
            f"images: [N, {shape}]{normal}\n"
            f"classes: {number}{f', the first is {names[0]!r}' if names else ''}"
        )


class Source(NamedTuple):
    """Where models of the form SOURCE:NAME come from.

    Attributes:
        load: A function `(name, pretrained, arguments, weights) -> LoadedModel`.
        reads_weights: Whether `load` also reads the weights file, because the names in it are not those of the model's state
            dict. By default it ignores `weights`, and `load_model` reads the file.
        classes: The argument of the constructor that is the number of classes. Default: there is none.
        load_features: Loads a model that gives features, for a head of the user's. Default: there are none.
    """

    load: Callable[[str, bool, dict[str, Any], str | Path | None], LoadedModel]
    reads_weights: bool = False
    classes: str | None = None
    load_features: Callable[[str, bool, dict[str, Any], str | Path | None], LoadedModel] | None = None


def names_code(spec: str) -> bool:
    """Whether a model's name is a `package.module:factory`, which is imported and called, and not one of a known source.

    Example:
        >>> names_code("timm:resnet18"), names_code("mine:make")
        (False, True)
    """
    source, name = _parsed(spec)
    return bool(name) and source not in MODEL_SOURCES


def _parsed(spec: str) -> tuple[str, str]:
    """The source of a model's name, and the name in it. An ONNX file may be named without its source."""
    source, _, name = spec.partition(":")
    if source in TIMM_HUB:
        return "timm", spec
    return ("onnx", spec) if source not in MODEL_SOURCES and spec.endswith(ONNX) else (source, name)


def load_model(
    spec: str,
    weights: str | Path | None = None,
    pretrained: bool = False,
    model_args: Mapping[str, Any] | None = None,
    prompts: Sequence[str] | None = None,
    head: str | Path | None = None,
    num_classes: int | None = None,
) -> LoadedModel:
    """Load a model by name, in eval mode.

    Args:
        spec: "timm:NAME" (or a name of timm's on the Hub, "hf_hub:NAME", or its folder, "timm:local-dir:DIR"),
            "torchvision:NAME", "hf:NAME" (a model of the Hugging Face Hub, or a folder written by `save_pretrained`, whose
            weights are loaded if present), "openclip:NAME" (a model of OpenCLIP, "openclip:NAME/TAG" for pretrained weights, or
            a folder with open_clip_config.json), "ultralytics:NAME.yaml" or "ultralytics:FILE.pt", "onnx:FILE" or "FILE.onnx"
            (see `xaieval.models.onnx_model`), "xaieval:fpn-scenes", "xaieval:scenes-CUE" (see `xaieval.models.cue_scenes`), or
            "package.module:factory", a function that returns an nn.Module. Only the last form imports user code.
        weights: A weights file: .safetensors, or .pth / .pt / .bin that contains only tensors.
        pretrained: Whether to use the pretrained weights of the library (downloads them if they are not cached).
        model_args: Further arguments of the model's constructor, such as `{"pad_type": "same"}`. For "hf:NAME", settings of the
            configuration, such as `{"num_labels": 5}`; for "ultralytics:NAME", see `xaieval.models.ultralytics`; for ONNX
            files those of `onnx_model`, such as `{"threads": 4}`.
        prompts: The classes, as texts, of a model that compares images with texts, such as CLIP, which becomes a `ZeroShot`.
        head: A weights file of a linear head, with a weight `[K, C]` and a bias `[K]` or none, for "timm:NAME" and "hf:NAME",
            which then give features, such as those of DINOv2; see `LinearHead`.
        num_classes: The number of classes that the weights were trained on. Default: that of the model.

    Raises:
        ModelError: No model has that name, it does not take the arguments, its weights cannot be downloaded, prompts are
            missing or given to a model with classes of its own, or no head can be put on it.
        WeightsError: A file cannot be read or does not fit.
        UsageError: An extra that the model needs ([hf], [openclip], [ultralytics], [onnx]) is not installed.

    Example:
        >>> load_model("xaieval:fpn-scenes").preprocessing.image_size
        128
    """
    prefix, name = _parsed(spec)
    if not prefix or not name:
        forms = ", ".join(f"'{known}:NAME'" for known in MODEL_SOURCES)
        raise ModelError(f"no model {spec!r}; a model is {forms}, 'FILE.onnx' or 'package.module:factory'")
    source, name = (Source(_factory, classes="num_classes"), spec) if names_code(spec) else (MODEL_SOURCES[prefix], name)
    arguments = dict(model_args or {}) | _classes_as_argument(num_classes, source, spec, pretrained and weights is None)
    load = source.load if head is None else source.load_features
    if load is None:
        raise ModelError(f"{spec} has a head of its own; a head can be put on timm:NAME and hf:NAME")
    try:
        loaded = load(name, pretrained, arguments, weights)
    except TypeError as error:
        raise ModelError(f"{spec} cannot be built with {arguments}: {error}") from error
    if weights is not None and not source.reads_weights:
        load_weights(loaded.model, weights, spec)
        loaded = replace(loaded, random=False)
    loaded.model.eval()
    if head is not None:
        loaded = replace(loaded, model=_headed(loaded.model, head).eval())
    return _with_prompts(loaded, spec, prompts)


def _classes_as_argument(num_classes: int | None, source: Source, spec: str, downloaded: bool) -> dict[str, Any]:
    """The number of classes as an argument of the model's constructor.

    Raises:
        ModelError: The model takes none, or its head would be random.
    """
    if num_classes is None:
        return {}
    check_count("num_classes", num_classes)
    option = advice("num_classes=", "--num-classes")
    if source.classes is None:
        raise ModelError(f"{spec} has its classes from its file or its texts; leave {option} out")
    if downloaded:
        raise ModelError(
            f"{option} goes with a weights file of as many classes; the head of {spec} would be random beside its pretrained "
            "weights"
        )
    return {source.classes: num_classes}


def _headed(model: nn.Module, path: str | Path) -> LinearHead:
    """The model with the linear head of a file.

    Raises:
        WeightsError: The file has other tensors than a weight and a bias.
    """
    found = {name.rpartition(".")[2]: tensor for name, tensor in read_weights(path).items()}
    if not {"weight"} <= found.keys() <= {"weight", "bias"}:
        raise WeightsError(
            f"'{Path(path).name}' holds {', '.join(sorted(found)) or 'nothing'}; a linear head has a weight [K, C] and a bias "
            "[K]"
        )
    return LinearHead(model, found["weight"].float(), found["bias"].float() if "bias" in found else None)


def _with_prompts(loaded: LoadedModel, spec: str, prompts: Sequence[str] | None) -> LoadedModel:
    """The model with prompts as its classes, if it needs them.

    Raises:
        ModelError: It needs them, and there are none; or the other way round.
    """
    if loaded.tokenizer is None and prompts is None:
        return loaded
    if prompts is None:
        given = advice("prompts=, a list of texts", "--prompts, such as 'a photo of a {}' for the classes of the data")
        raise ModelError(f"{spec} compares images with texts and has no classes of its own; name them by {given}")
    if loaded.tokenizer is None:
        raise ModelError(
            f"{spec} has classes of its own, and prompts are for models that compare images with texts, such as CLIP; leave "
            "them out"
        )
    return replace(loaded, model=ZeroShot(loaded.model, prompts, loaded.tokenizer).eval())


def _timm(name: str, pretrained: bool, arguments: dict[str, Any], _: object) -> LoadedModel:
    import timm

    place = name.partition(":")[0] if ":" in name else ""
    if place in TIMM_HUB and not pretrained:
        raise ModelError(f"{name} is on the Hugging Face Hub; it is downloaded by {advice('pretrained=True', '--pretrained')}")
    if place == TIMM_FOLDER and not (Path(name.partition(":")[2]) / "config.json").is_file():
        raise ModelError(f"{name}: timm keeps a model in a folder with a config.json, and there is none")
    if place not in (*TIMM_HUB, TIMM_FOLDER) and not timm.is_model(name.split(".")[0]):
        raise _unknown("timm", name, timm.list_models())
    model = _build(lambda wanted: timm.create_model(name, pretrained=wanted, **arguments), f"timm:{name}", pretrained)
    config = timm.data.resolve_model_data_config(model)
    height, width = config["input_size"][1:]
    resize = [int(side / config["crop_pct"] + 1e-6) for side in (height, width)]
    preprocessing = Preprocessing(
        image_size=height if height == width else (height, width),
        resize=resize[0] if height == width else (resize[0], resize[1]),
        squash=config["crop_mode"] == "squash",
        border=config["crop_mode"] == "border",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )
    preprocessing = preprocessing.with_channels(arguments.get("in_chans", preprocessing.channels))
    size = arguments.get("img_size")  # timm's configuration does not follow it
    random = not pretrained and "checkpoint_path" not in arguments
    return LoadedModel(model, preprocessing if size is None else preprocessing.with_size(size), random)


def _timm_features(name: str, pretrained: bool, arguments: dict[str, Any], weights: str | Path | None) -> LoadedModel:
    return _timm(name, pretrained, arguments | {"num_classes": 0}, weights)


def _torchvision(name: str, pretrained: bool, arguments: dict[str, Any], _: object) -> LoadedModel:
    if name not in torchvision.models.list_models():
        raise _unknown("torchvision", name, torchvision.models.list_models())
    default = torchvision.models.get_model_weights(name).DEFAULT
    if "weights_backbone" in inspect.signature(torchvision.models.get_model_builder(name)).parameters:
        arguments.setdefault("weights_backbone", None)  # otherwise a detector would download the weights of its backbone

    def create(wanted: bool) -> nn.Module:
        model: nn.Module = torchvision.models.get_model(name, weights=default if wanted else None, **arguments)
        return model

    model = _build(create, f"torchvision:{name}", pretrained)
    transforms = default.transforms()
    resize = getattr(transforms, "resize_size", [224])[0]
    return LoadedModel(
        model,
        Preprocessing(
            image_size=getattr(transforms, "crop_size", [resize])[0],
            resize=resize,
            mean=tuple(getattr(transforms, "mean", (0, 0, 0))),  # detectors normalise inside
            std=tuple(getattr(transforms, "std", (1, 1, 1))),
            interpolation=getattr(transforms, "interpolation", InterpolationMode.BILINEAR).value,
        ),
        random=not pretrained,
    )


def _huggingface(
    name: str, pretrained: bool, arguments: dict[str, Any], weights: str | Path | None, features: bool = False
) -> LoadedModel:
    with tensors_only(f"hf:{name}"):
        model, preprocessing, tokenizer = huggingface(name, pretrained, arguments, weights, features)
    random = not pretrained and weights is None and not any(Path(name).glob("*.safetensors"))
    return LoadedModel(model, preprocessing, random, tokenizer)


def _openclip(name: str, pretrained: bool, arguments: dict[str, Any], _: object) -> LoadedModel:
    with tensors_only(f"openclip:{name}"):
        model, preprocessing, tokenizer = openclip(name, pretrained, arguments)
    random = not pretrained and not any(file.suffix in WEIGHTS for file in Path(name).glob("*"))
    return LoadedModel(model, preprocessing, random, tokenizer)


def _ultralytics(name: str, pretrained: bool, arguments: dict[str, Any], weights: str | Path | None) -> LoadedModel:
    return LoadedModel(*ultralytics(name, pretrained, arguments, weights))


def _onnx(name: str, pretrained: bool, arguments: dict[str, Any], weights: str | Path | None) -> LoadedModel:
    if weights is not None or pretrained:
        raise ModelError(f"the ONNX file {name} holds its own weights; leave weights and pretrained out")
    function = onnx_function(name, **arguments)
    return LoadedModel(BlackBox(function, numpy=True), function.image_input.preprocessing)


def _builtin(name: str, pretrained: bool, arguments: dict[str, Any], _: object) -> LoadedModel:
    builders = {"fpn-scenes": fpn_scenes} | {f"scenes-{cue}": partial(cue_scenes, cue) for cue in CUES}
    if name not in builders:
        raise _unknown("xaieval", name, builders)
    return LoadedModel(builders[name](**arguments), Preprocessing(SIDE, SIDE, mean=(0.5,) * 3, std=(0.5,) * 3))


def _factory(spec: str, pretrained: bool, arguments: dict[str, Any], _: object) -> LoadedModel:
    model = import_factory(spec, ModelError, "model")(**arguments)
    if not callable(model) or isinstance(model, type):
        raise ModelError(f"{spec} gave a {type(model).__name__}; a function that returns a torch.nn.Module is expected")
    module = as_module(model)
    return LoadedModel(module, Preprocessing().with_channels(_first_channels(module)))


def _first_channels(model: nn.Module) -> int:
    """The number of channels that a network of the user's takes: 3 if a convolution takes them, else those of the first one."""
    taken = [one.in_channels for one in model.modules() if isinstance(one, nn.Conv2d | nn.Conv3d)]
    return 3 if 3 in taken or not taken else taken[0]


def _build(create: Callable[[bool], nn.Module], spec: str, pretrained: bool) -> nn.Module:
    def build() -> nn.Module:
        with tensors_only(spec):
            return create(pretrained)

    if not pretrained:
        try:
            return build()
        except RuntimeError as error:
            raise ModelError(f"{spec} cannot be built: {error}") from error
    try:
        return build()
    except WeightsError:
        raise
    except Exception as error:  # downloaders of libraries raise many types
        option = advice("weights=", "--weights")
        raise ModelError(f"cannot get the pretrained weights of {spec} ({error}); give a file by {option}") from error


def _unknown(library: str, name: str, known: Iterable[str]) -> ModelError:
    message = choose_from(name, known)
    if len(message) > 200:  # the whole list of a library is too long to read
        message = message.split("known:")[0] + f"see the list of models of {library}"
    return ModelError(f"{library} has no model {name!r}; {message}")


# Models of these sources are loaded without importing code of the user's: run files and manifests may name them. Everything
# that has to know the sources reads this mapping, so a new source is a function and a line here.
MODEL_SOURCES: Mapping[str, Source] = {
    "timm": Source(_timm, classes="num_classes", load_features=_timm_features),
    "torchvision": Source(_torchvision, classes="num_classes"),
    "hf": Source(_huggingface, reads_weights=True, classes="num_labels", load_features=partial(_huggingface, features=True)),
    "openclip": Source(_openclip),
    "ultralytics": Source(_ultralytics, reads_weights=True, classes="nc"),
    "onnx": Source(_onnx, reads_weights=True),
    "xaieval": Source(_builtin),
}
