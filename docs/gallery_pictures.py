"""How the gallery runs the examples: with a folder of their own as the argument, out of which the pictures are taken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sphinx_gallery.scrapers import figure_rst

__all__ = ["ORDER", "arguments", "order", "pictures"]

# From the first thing that a reader wants to know to the special; others follow by name.
ORDER = (
    "score_a_model",
    "compare_methods",
    "timm_models",
    "detector_fpn",
    "huggingface_vit",
    "rank_layers",
    "fal_in_thirty_lines",
    "controls",
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
    """Where an example stands in the gallery, as a key to sort by."""
    name = Path(file).stem
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def arguments(gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
    """The words behind the script's name: a new folder for what it writes."""
    folder = _folder(script_vars["target_file"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return [str(folder)]


def pictures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Move the pictures that a block has written to where the gallery shows them."""
    found = []
    for picture, place in zip(
        sorted(_folder(block_vars["target_file"]).glob("*.png")), block_vars["image_path_iterator"], strict=False
    ):
        shutil.move(picture, place)
        found.append(place)
    return figure_rst(found, gallery_conf["src_dir"])


def _folder(target_file: str) -> Path:
    return Path(target_file).with_suffix("")
