"""Models of OpenCLIP by name or from a folder, with their preprocessing and their tokenizer."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from xaieval.data import Preprocessing
from xaieval.errors import ModelError, UsageError, WeightsError, advice, choose_from

__all__ = ["openclip"]

CONFIG = "open_clip_config.json"


def openclip(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> tuple[nn.Module, Preprocessing, Any]:
    """Load a model of OpenCLIP in float32, with its preprocessing and its tokenizer.

    Args:
        name: A model that OpenCLIP knows, such as `ViT-B-32`, with the tag of its pretrained weights after a slash
            (`ViT-B-32/laion2b_s34b_b79k`), or a folder with open_clip_config.json, whose weights are loaded if present.
        pretrained: Whether to load the weights of the tag, which may be downloaded. Nothing is downloaded otherwise.
        arguments: Further arguments of `open_clip.create_model`, such as `{"force_image_size": 336}`.

    Raises:
        ModelError: OpenCLIP has no such model, or cannot make it; its tokenizer is not at hand; or its preprocessing is none of
            ours.
        WeightsError: There is no such tag, or its weights cannot be had.
        UsageError: The extra [openclip] is not installed.
    """
    library = _open_clip()
    folder, known = Path(name), library.list_models()
    local = (folder / CONFIG).is_file()
    if local:
        source, tag = f"local-dir:{name}", None
        text = _text_of(folder)
    else:
        source, _, tag = name.partition("/")
        if source not in known:
            hint = choose_from(source, known).split("known:")[0]
            raise ModelError(
                f"OpenCLIP has no model {source!r}; {hint}open_clip.list_models() lists all, and a folder has {CONFIG}"
            )
        _check_tag(library, source, tag, pretrained)
        text = library.get_model_config(source).get("text_cfg", {})
    _check_offline(name, text, pretrained and not local, local)
    # The folder may ask for code of its own.
    careful = {"trust_remote_code": False, "local_files_only": not pretrained} if text.get("hf_tokenizer_name") else {}
    with _reported(name):
        settings = {"pretrained_text": False, "require_pretrained": pretrained}
        model = library.create_model(source, tag if pretrained else None, **settings, **arguments)
        tokenizer = library.get_tokenizer(source, **careful)
    return model, _preprocessing(name, library.get_model_preprocess_cfg(model)), tokenizer


def _open_clip() -> Any:
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise UsageError("models openclip:NAME need open_clip, which is missing: pip install 'xaieval[openclip]'") from error
    return open_clip


def _check_tag(library: Any, source: str, tag: str, pretrained: bool) -> None:
    tags = library.list_pretrained_tags_by_model(source)
    if (pretrained or tag) and tag not in tags:
        asked = f"no pretrained weights {tag!r} of {source}" if tag else f"pretrained weights of {source} are several"
        raise WeightsError(
            f"{asked}; name those to load as openclip:{source}/TAG, with TAG one of: {', '.join(tags) or 'none'}"
        )


def _text_of(folder: Path) -> Mapping[str, Any]:
    """The configuration of the text tower in a folder.

    Raises:
        ModelError: It has none.
    """
    try:
        text = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
        return dict(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"openclip:{folder} has no text_cfg of a model_cfg in its {CONFIG}, as OpenCLIP writes it") from error


def _check_offline(name: str, text: Mapping[str, Any], download: bool, local: bool) -> None:
    """Refuse a model whose texts need files of the Hub although no download was asked for."""
    needs = text.get("hf_model_name") or (not local and (text.get("hf_tokenizer_name") or "siglip" in name.lower()))
    if needs and not download:
        raise ModelError(
            f"openclip:{name} takes its tokenizer or text tower from the Hugging Face Hub; load it by "
            f"{advice('pretrained=True', '--pretrained')} as openclip:NAME/TAG, or give a "
            f"folder with {CONFIG}, a text tower of OpenCLIP and the files of the tokenizer"
        )


def _preprocessing(name: str, found: Mapping[str, Any]) -> Preprocessing:
    """Preprocessing that equals OpenCLIP's for evaluation.

    Raises:
        ModelError: It fills borders.
    """
    size, mode = found["size"], found.get("resize_mode") or "shortest"
    if mode == "longest":
        raise ModelError(f"openclip:{name} resizes the longer side and fills the rest, which is no preprocessing of xaieval")
    side = size if isinstance(size, int) or size[0] != size[1] else size[0]
    side = side if isinstance(side, int) else tuple(side)
    interpolation = "bilinear" if found.get("interpolation") == "bilinear" else "bicubic"
    return Preprocessing(side, side, tuple(found["mean"]), tuple(found["std"]), interpolation, squash=mode == "squash")


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Turn any error of OpenCLIP into one line, and do without what it logs about weights that come later."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "QuickGELU mismatch")  # weights of another activation give wrong features
            yield
    except TypeError:  # of the arguments, which the caller reports
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"cannot get openclip:{name} ({reason[:300]})") from error
    finally:
        logging.disable(before)
