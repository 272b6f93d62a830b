"""Settings of the gallery: the order of the examples, the folder that each writes to, and the figures taken from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sphinx_gallery.scrapers import figure_rst

__all__ = ["ORDER", "arguments", "figures", "order"]

# From first steps to special topics; examples that are not listed follow by name.
ORDER = (
    "score_a_model",
    "compare_methods",
    "timm_models",
    "detector_fpn",
    "huggingface_vit",
    "rank_layers",
    "fal_in_thirty_lines",
    "controls",
    "cross_score",
    "sanity_check",
    "localisation",
    "insertion_deletion",
    "custom_explainer",
    "custom_metric",
    "lightning_callback",
    "distributed_run",
    "black_box",
    "volume",
)


def order(file: str) -> tuple[int, str]:
    """Sort key: the position of an example in the gallery."""
    name = Path(file).stem
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def arguments(gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
    """The script's arguments: a new folder for its output."""
    folder = _folder(script_vars["target_file"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return [str(folder)]


def figures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Move the figures that a block wrote into the gallery."""
    shown = []
    for figure, path in zip(
        sorted(_folder(block_vars["target_file"]).glob("*.png")), block_vars["image_path_iterator"], strict=False
    ):
        shutil.move(figure, path)
        shown.append(path)
    return figure_rst(shown, gallery_conf["src_dir"])


def _folder(target_file: str) -> Path:
    return Path(target_file).with_suffix("")
