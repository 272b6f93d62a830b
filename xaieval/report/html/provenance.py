"""The origin of a run in words: command, preprocessing, versions, seed, fingerprints."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from xaieval.config.options import ModelOptions, ProtocolOptions, ScoreOptions
from xaieval.results.paths import last_name

__all__ = ["command_of", "facts_of", "subject_of", "without_folders"]

Manifest = Mapping[str, Any]

# The folders of an absolute path, which stands at the beginning, after a space, in quotes, or after "source:".
FOLDERS = re.compile(r"(?:(?<=^)|(?<=[\s'\"(=,:]))(?:[A-Za-z]:(?=[\\/])|~)?[\\/](?:[^\s\\/'\":,]+[\\/])+(?=[^\s\\/'\":,])")
PLACES = ("model", "data", "weights", "masks", "boxes", "annotations", "judge", "head", "prompts", "out")  # options with paths


def command_of(manifest: Manifest) -> str:
    """The command line of the run, with names instead of absolute paths; "" for a run from Python, which has no options.

    Example:
        >>> command_of({"options": {"model": "timm:resnet18", "data": "folder:/home/me/my photos", "layers": ["layer4"]}})
        "xaieval-bench score --model timm:resnet18 --data 'folder:my photos' --layers layer4"
    """
    options = manifest.get("options")
    if not options:
        return ""
    default = {
        field.name: getattr(kind(), field.name)
        for kind in (ScoreOptions, ModelOptions, ProtocolOptions)
        for field in fields(kind)
    }
    words = ["xaieval-bench", "score"]
    for name, value in options.items():
        if _plain(value) != _plain(default.get(name)):
            words += _option(name.replace("_", "-"), last_name(value) if name in PLACES else value)
    return shlex.join(words)


def facts_of(manifest: Manifest) -> list[tuple[str, str]]:
    """Names and values of versions, seed, fingerprints and other facts about the run."""
    model, judge, data, speed = (manifest.get(key) or {} for key in ("model", "judge", "data", "speed"))
    versions = manifest.get("versions") or {}
    facts = {
        "model class": model.get("class"),
        "parameters": f"{model['parameters']:,}" if model.get("parameters") is not None else None,
        "fingerprint of the model": model.get("fingerprint") or model.get("function"),
        "fingerprint of the judge": judge.get("fingerprint") or judge.get("function"),
        "fingerprint of the image ids": data.get("fingerprint"),
        "preprocessing": preprocessing_text(manifest.get("preprocessing") or {}),
        "seed": manifest.get("seed"),
        "device": manifest.get("device"),
        "forward passes": _passes(speed),
        "dates": ", ".join(f"{name} {date}" for name, date in (manifest.get("dates") or {}).items()),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def subject_of(manifest: Manifest) -> tuple[str, str]:
    """The model and the data: their names in the options, without folders, or the class of the model and "".

    Example:
        >>> subject_of({"options": {"model": "onnx:/home/me/net.onnx", "data": "folder:photos/2026"}})
        ('onnx:net.onnx', 'folder:photos/2026')
    """
    options = manifest.get("options") or {}
    model = options.get("model") or (manifest.get("model") or {}).get("class") or "a model"
    return last_name(str(model)), last_name(str(options.get("data") or ""))


def without_folders(text: str) -> str:
    """A sentence with the last name of each absolute path instead of the path, which says where things are on one machine.

    Example:
        >>> without_folders("no folder '/home/me/photos'; 3/4 of layer2/conv and fpn[/a] are as before")
        "no folder 'photos'; 3/4 of layer2/conv and fpn[/a] are as before"
    """
    return FOLDERS.sub("", text)


def preprocessing_text(settings: Mapping[str, Any]) -> str:
    """How an image was prepared, in words; settings that are unknown here are named as they are.

    Example:
        >>> preprocessing_text({"image_size": 224, "resize": 256, "mean": [0.5], "std": [0.5], "interpolation": "bicubic"})
        'resized to 256 pixels (bicubic), centre of 224 x 224 pixels, mean 0.5, standard deviation 0.5'
    """
    known = dict(settings)
    size, resize = known.pop("image_size", None), known.pop("resize", None)
    squash, border, corner, whole = (known.pop(name, None) for name in ("squash", "border", "corner", "whole"))
    interpolation = known.pop("interpolation", "")
    by = f" ({interpolation})" if interpolation else ""
    words = [] if resize is None else [f"{'squeezed' if squash else 'resized'} to {_pixels(resize, bool(squash))}{by}"]
    if border:
        words.append("placed in the upper left corner" if corner else "filled up with a border")
    if whole:
        words.append("not cropped")
    elif size is not None and size != resize:
        words.append(f"centre of {_pixels(size, True)}")
    for name, word in (("mean", "mean"), ("std", "standard deviation")):
        values = known.pop(name, None)
        shown = values if values is None or len(set(values)) > 1 else values[:1]  # the same for all channels
        words += [] if shown is None else [f"{word} {', '.join(f'{value:g}' for value in shown)}"]
    return ", ".join(
        [*words, *(f"{name.replace('_', ' ')} {value}" for name, value in known.items() if value not in (None, ""))]
    )


def _pixels(side: Any, square: bool) -> str:
    """A size in pixels: one number is the shorter side, or with `square` both sides."""
    sides = [side, side] if square and isinstance(side, int) else [side] if isinstance(side, int) else list(side)
    return f"{' x '.join(map(str, sides))} pixels"


def _passes(speed: Mapping[str, Any]) -> str:
    """How the model was run, in words; what was not done is left out."""
    words = {
        "batch_size": "batches of {}",
        "folded_batch_norms": "{} BatchNorms folded into convolutions",
        "channels_last": "channels last in memory",
        "compiled": "compiled",
        "autocast": "autocast to {}",
    }
    return ", ".join(words.get(name, f"{name.replace('_', ' ')} {{}}").format(value) for name, value in speed.items() if value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _option(name: str, value: Any) -> list[str]:
    """An option of the command line with its value, as words."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, Mapping):
        return [word for key, inner in value.items() for word in (f"--{name}.{key}", str(inner))]
    if isinstance(value, list | tuple):
        return [f"--{name}", ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)]
    return [f"--{name}", str(value)]
