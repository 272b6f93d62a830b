"""Models of Hugging Face transformers by name, from the Hub or from a folder, with their preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from xaieval.data import Preprocessing
from xaieval.data.preprocessing import Side
from xaieval.errors import ModelError, UsageError, WeightsError, advice, choose_from
from xaieval.models.image_processors import preprocessing_of, square
from xaieval.models.weights import read_weights, without_wrappers

__all__ = ["huggingface"]

HEADS = (
    *("ImageClassification", "SemanticSegmentation", "ObjectDetection", "UniversalSegmentation", "InstanceSegmentation"),
    "ZeroShotImageClassification",
)
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # alone, or with a tokenizer
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def huggingface(
    name: str, pretrained: bool, arguments: Mapping[str, Any], weights: str | Path | None = None, features: bool = False
) -> tuple[nn.Module, Preprocessing, Any]:
    """Load an image model in float32, with its preprocessing and, of a model of images and texts, its tokenizer, else None.

    The task (image classification, object detection, segmentation of classes or objects, or the comparison of images with
    texts) is read from the configuration; default: classification. Code of a repository is never run, nor an attention kernel
    that its configuration names, and weights are read only from safetensors.

    Args:
        name: A model on the Hub, or a folder with config.json. Weights of a folder are loaded if present, those of a
            Hub model if `pretrained`; otherwise they are random.
        pretrained: Whether the weights must be present.
        arguments: Settings of the configuration to change, such as `{"num_labels": 5}`.
        weights: A weights file to load instead.
        features: Load the model without its head.

    Raises:
        ModelError: The model does not exist or cannot be reached, its configuration requires code of the Hub, or an argument is
            not a setting of the configuration.
        WeightsError: The weights are missing or incomplete.
        UsageError: The extra [hf] is not installed.
    """
    transformers = _transformers()
    folder = Path(name)
    local = folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise ModelError(f"hf:{name} is a folder without config.json; one written by a model's save_pretrained is expected")
    if not local and _looks_like_a_path(name):
        raise ModelError(f"hf:{name} is no folder; a folder with config.json is expected, or a model of the Hub as OWNER/NAME")
    where = {"local_files_only": local, "trust_remote_code": False}
    with _reported(name, "configuration", local):
        config = transformers.AutoConfig.from_pretrained(name, **where)
    _change(config, arguments, name)
    _check_kernels(config, name)
    kind = transformers.AutoModel if features else _auto_class(transformers, config)
    if weights is None and (pretrained or (local and _has_weights(folder))):
        source = {"pretrained_model_name_or_path": name, **where}
        model = _loaded(transformers, kind, config, name, source, local)
    else:
        with _reported(name, "model", local):
            model = kind.from_config(config, trust_remote_code=False, dtype=torch.float32)
    if weights is not None:  # loaded by transformers, whose files use other names for weights than its models
        source = {"pretrained_model_name_or_path": None, "state_dict": without_wrappers(read_weights(weights))}
        model = _loaded(transformers, type(model), config, name, source, local)
    preprocessing = _preprocessing(transformers, name, config, where)
    if "image_size" in arguments:  # the image processor of the folder does not follow it
        preprocessing = preprocessing.with_size(_configured(config))
    preprocessing = preprocessing.with_channels(getattr(_seen(config), "num_channels", preprocessing.channels))
    compares = kind is transformers.AutoModelForZeroShotImageClassification
    return model, preprocessing, _tokenizer(transformers, name, where) if compares else None


def _loaded(transformers: Any, kind: Any, config: Any, name: str, source: Mapping[str, Any], local: bool) -> nn.Module:
    """Load a model with weights in float32, the dtype of the images."""
    with _reported(name, "weights", local), _quiet(transformers.utils.logging, local):
        model, report = kind.from_pretrained(
            **source,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are in the report, and refused below in one line
            output_loading_info=True,
        )
    _check_complete(report, name)
    return cast(nn.Module, model)


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UsageError("models hf:NAME need transformers, which is missing: pip install 'xaieval[hf]'") from error
    return transformers


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1


@contextmanager
def _reported(name: str, what: str, local: bool) -> Iterator[None]:
    """Turn any error of transformers into one line that says what to do."""
    try:
        yield
    except Exception as error:  # from many libraries: files, network, configurations
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        where = "" if local else " from the Hugging Face Hub; without network give a folder that save_pretrained wrote"
        kind = WeightsError if what == "weights" else ModelError
        raise kind(f"cannot get the {what} of hf:{name}{where} ({reason[:300]})") from error


@contextmanager
def _quiet(logging: Any, local: bool) -> Iterator[None]:
    """Silence the table of weights that do not fit, which is an error here, and the progress bar for local files."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with ExitStack() as undo:
        undo.callback(logging.set_verbosity, level)
        logging.set_verbosity_error()
        if local and bars:
            undo.callback(logging.enable_progress_bar)
            logging.disable_progress_bar()
        yield


def _change(config: Any, arguments: Mapping[str, Any], name: str) -> None:
    known = {*config.to_dict(), "num_labels"}
    for key, value in arguments.items():
        if key not in known:
            hint = choose_from(key, sorted(known)).split("known:")[0]  # without the list of all settings, which is too long
            raise ModelError(f"the configuration of hf:{name} has no {key!r}; {hint}its config.json lists all")
        setattr(config, key, value)


def _check_kernels(config: Any, name: str) -> None:
    """Refuse a configuration whose attention is a kernel OWNER/NAME of the Hub, which transformers would download and run."""
    parts = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", ()))]
    attention = [str(getattr(part, "_attn_implementation", None)) for part in parts]
    kernels = [kernel for kernel in attention if "/" in kernel]
    if kernels:
        raise ModelError(
            f"hf:{name} asks for the attention {kernels[0]!r}, which is code of the Hub and is not run; remove "
            "'attn_implementation' from its config.json"
        )


def _auto_class(transformers: Any, config: Any) -> Any:
    """The transformers class for models with the head that the configuration names."""
    kinds = [getattr(transformers, f"AutoModelFor{head}") for head in HEADS]
    able = [kind for kind in kinds if type(config) in kind._model_mapping]
    head = next(iter(config.architectures or ()), None)
    named = [kind for kind in able if head in _names(kind._model_mapping[type(config)])]
    if not able and type(config) in transformers.AutoModelForZeroShotObjectDetection._model_mapping:
        raise ModelError(
            f"a model of the kind {config.model_type!r} finds what texts name, which its name cannot say; load it in Python, "
            "and give xaieval a forward= that passes the tokens of the texts"
        )
    if head is not None and not named:
        return kinds[0]
    return next(iter(named or able), kinds[0])  # a configuration alone does not name a head


def _names(classes: Any) -> set[str]:
    """The names of the classes of one entry in a mapping of transformers."""
    return {one.__name__ for one in (classes if isinstance(classes, tuple) else (classes,))}


def _has_weights(folder: Path) -> bool:
    if any(folder.glob("*.safetensors")):
        return True
    pickled = [file for file in PICKLED if (folder / file).is_file()]
    if pickled:
        raise WeightsError(
            f"hf:{folder} has its weights in {pickled[0]}, which can hold code; save them as safetensors, or give the file by "
            f"{advice('weights=', '--weights')}"
        )
    return False


def _check_complete(report: Mapping[str, Any], name: str) -> None:
    """Refuse weights that leave a part of the model random, such as a classifier on a backbone trained without one."""
    wrong = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    if wrong:
        rest = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(
            f"the weights of hf:{name} do not make the whole model: {', '.join(wrong[:3])}{rest} would be random; a model that "
            f"was trained for its task is expected; of a model that gives features, {advice('head=', '--head FILE')} takes a "
            "linear head"
        )


def _preprocessing(transformers: Any, name: str, config: Any, where: Mapping[str, Any]) -> Preprocessing:
    """Preprocessing of the model's image processor; without one, the defaults at the image size of the configuration."""
    if where["local_files_only"] and not any((Path(name) / file).is_file() for file in PROCESSORS):
        size = _configured(config)
        return Preprocessing(image_size=size, resize=size)
    with _reported(name, "preprocessing", where["local_files_only"]):
        processor = transformers.AutoImageProcessor.from_pretrained(name, **where)
    return preprocessing_of(processor)


def _tokenizer(transformers: Any, name: str, where: Mapping[str, Any]) -> Any:
    """The tokenizer of a model of images and texts.

    Raises:
        ModelError: There is none; transformers would make one that knows no words.
    """
    with _reported(name, "tokenizer", where["local_files_only"]):
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **where)
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if where["local_files_only"] and not any((Path(name) / file).is_file() for file in files):
        raise ModelError(
            f"hf:{name} has no tokenizer for its prompts ({' or '.join(sorted(files))}); save that of the model there, by "
            "save_pretrained"
        )
    return tokenizer


def _seen(config: Any) -> Any:
    """The configuration of the part that sees the images."""
    return getattr(config, "vision_config", config)


def _configured(config: Any) -> Side:
    """The image size of a configuration, which some have as a list."""
    size = getattr(_seen(config), "image_size", None) or 224
    return square(*size) if isinstance(size, list | tuple) else int(size)
