"""Types of options: how the words of the command line become values, and the help that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from xaieval.config.option_words import joined, to_controls, to_integers, to_numbers, to_prompts, to_side, to_words

__all__ = [
    "DATA_HELP",
    "FORWARD_HELP",
    "GROUPS_HELP",
    "LIST",
    "MODEL_HELP",
    "NOT_IN_FILES",
    "Arguments",
    "ArgumentsByName",
    "ControlWords",
    "GroupsOption",
    "Integers",
    "Json",
    "Numbers",
    "Prompts",
    "Side",
    "Switch",
    "Task",
    "Words",
]

# Here and not in the docstrings of the options, since help keeps the line breaks of a docstring.
MODEL_HELP = (
    "A model such as timm:NAME, torchvision:NAME, hf:NAME, openclip:NAME, ultralytics:NAME, onnx:FILE (or FILE.onnx) or "
    "xaieval:NAME; or file.py:factory or package.module:factory, the only form that imports your code and runs it."
)
DATA_HELP = (
    "scenes or scenes:CUE (built in), folder:DIR (one sub-folder per class), nifti:DIR (scans, the same way), ucmerced:DIR, "
    "hf:NAME (by Hugging Face's datasets: a name of the Hub, a folder or a Parquet file); mosaics:DATA or focus:DATA, "
    "composed of these; or file.py:factory or package.module:factory, the only form that imports your code and runs it."
)
FORWARD_HELP = (
    "A function package.module:function of the model and the images, for models that take more than images. It "
    "imports your code and runs it; a run file must not name it."
)
GROUPS_HELP = (
    "Images that belong together, so that intervals and tests count groups: class (the label), a CSV file with the columns id "
    "and group, or a regular expression on the id, whose first part in brackets is the group."
)
NOT_IN_FILES = "A run file must not name a factory; the command line may."

Task = Literal["classification", "detection", "segmentation"]

# Items are separated by commas, or by spaces up to the next option: --methods gradcam,rise or --methods gradcam rise.
LIST = Parameter(n_tokens=1, consume_multiple=1, accepts_keys=False, negative=(), show_default=joined)

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Json = Annotated[bool, Parameter(name="--json", negative=(), show_default=False)]
Words = Annotated[tuple[str, ...], Parameter(converter=to_words), LIST]
Numbers = Annotated[tuple[float, ...], Parameter(converter=to_numbers), LIST]
Integers = Annotated[tuple[int, ...], Parameter(converter=to_integers), LIST]
Side = Annotated[
    int | tuple[int, ...], Parameter(converter=to_side, n_tokens=1, consume_multiple=True, accepts_keys=False, negative=())
]
# The program gives it the value "true" where it stands alone on the command line.
ControlWords = Annotated[
    bool | tuple[str, ...],
    Parameter(converter=to_controls, n_tokens=1, consume_multiple=True, accepts_keys=False, negative=(), show_default=False),
]
# Each word is a prompt, since prompts have commas.
Prompts = Annotated[
    tuple[str, ...],
    Parameter(converter=to_prompts, n_tokens=1, consume_multiple=True, accepts_keys=False, negative=(), show_default=False),
]
GroupsOption = Annotated[str | None, Parameter(help=GROUPS_HELP)]
Arguments = Annotated[dict[str, str], Parameter(show_default=False)]
ArgumentsByName = Annotated[dict[str, dict[str, str]], Parameter(show_default=False)]
