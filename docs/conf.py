"""Settings of the documentation: `sphinx-build -W --keep-going -b html docs build/docs`, from the top folder, without network.

`-D plot_gallery=0` leaves the examples unexecuted, which takes seconds in place of minutes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import xaieval

sys.path.insert(0, str(Path(__file__).parent))  # for gallery_figures, which the gallery imports by name

project = "xaieval"
author = copyright = "The xaieval developers"
release = version = xaieval.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
# gallery.md shows the figures of the examples to readers of the repository; here the executed examples take its place.
exclude_patterns = ["gallery.md", "auto_examples/**/*.py", "auto_examples/**/*.ipynb"]

html_theme = "furo"
html_title = f"xaieval {release}"
html_theme_options = {"navigation_with_keys": True}

# ---- Markdown
myst_heading_anchors = 3  # links such as measuring.md#fewer-images, as on a code host

# ---- the reference
default_role = "code"  # docstrings mark code by single backticks
autosummary_generate = False  # the pages of docs/reference are written by hand, and a test holds them to __all__
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # those of torch and Lightning are written for their own pages
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # or the attributes of a dataclass stand there twice
napoleon_custom_sections = ["Reference"]

# ---- the examples
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"\.py",  # all of them are executed
    "within_subsection_order": "gallery_figures.order",
    "reset_argv": "gallery_figures.arguments",
    "image_scrapers": ("gallery_figures.figures",),
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
}

# Links from a page to what is in the repository and is no file that a page can carry: another Markdown page, or a folder.
BEYOND = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!docs/)(?:[\w/-]+|[\w/-]+\.md)(?:#[\w-]+)?\)")


def without_links_beyond(app: Sphinx, page: str, source: list[str]) -> None:
    """Leave the words of such links; on a code host, which has the whole repository, they stay links."""
    if not page.startswith("reference/"):
        source[0] = BEYOND.sub(r"\1", source[0])


def without_factories(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> Any:
    """Three dots for defaults that are made anew, or the signature is no Python and loses its links."""
    return (signature and signature.replace("<factory>", "..."), returns)


def setup(app: Sphinx) -> dict[str, Any]:
    """What is said to Sphinx beyond settings."""
    app.connect("source-read", without_links_beyond)
    app.connect("autodoc-process-signature", without_factories)
    return {"parallel_read_safe": True}
