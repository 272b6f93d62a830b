"""The origin of a run: command, versions, seed, fingerprints."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from xaieval.config.options import ModelOptions, ProtocolOptions, ScoreOptions

__all__ = ["command_of", "facts_of", "subject_of"]

Manifest = Mapping[str, Any]


def command_of(manifest: Manifest) -> str:
    """The command line of the run; "" for a run from Python, whose manifest has no options.

    Example:
        >>> command_of({"options": {"model": "timm:resnet18", "data": "folder:my photos", "layers": ["layer3", "layer4"]}})
        "xaieval-bench score --model timm:resnet18 --data 'folder:my photos' --layers layer3,layer4"
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
            words += _option(name.replace("_", "-"), value)
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
        "preprocessing": ", ".join(f"{name} {value}" for name, value in (manifest.get("preprocessing") or {}).items()),
        "seed": manifest.get("seed"),
        "device": manifest.get("device"),
        "forward passes": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in speed.items()),
        "dates": ", ".join(f"{name} {date}" for name, date in (manifest.get("dates") or {}).items()),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def subject_of(manifest: Manifest) -> tuple[str, str]:
    """The model and the data: their names in the options, or the class of the model and ""."""
    options = manifest.get("options") or {}
    model = options.get("model") or (manifest.get("model") or {}).get("class") or "a model"
    return str(model), str(options.get("data") or "")


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
