"""Options of the command `explain`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from xaieval.config.option_types import *  # noqa: F403  # cyclopts looks up the types of inherited options here
from xaieval.config.option_types import Arguments, ArgumentsByName, Integers, Switch, Words
from xaieval.config.options import RunOptions

__all__ = ["ExplainOptions"]

_NONE = Parameter(parse=False)  # options of runs with scores


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(RunOptions):
    """What is explained, and which files are written: the parameters of `xaieval.save_maps`.

    Attributes:
        out: Folder for the files. A folder that holds other files is refused.
        kinds: Files of each map: overlay (PNG), map (NPY, in [0, 1]), masked (the masked image, PNG), raw (NPY, before
            normalisation), image (the image as the model gets it, PNG).
        figure: Also a figure of each image, a column per layer and a row per method: pdf, svg or png.
        alpha: Opacity of a map over its image, from 0 to 1.
        bands: Channels shown as red, green and blue, from 0, such as 3,2,1. Default: the first three.
        colours: Name of a colour map of matplotlib.
        overwrite: Write into a folder that holds other files, and replace those of the same name.
        max_images: Maximum number of images, evenly spaced. Default: all that are named; 8 of --data.
    """

    out: str | None = "maps"
    kinds: Words = ("overlay", "map", "masked")
    figure: Literal["pdf", "svg", "png"] | None = None
    alpha: float = 0.5
    bands: Integers | None = None
    colours: str = "inferno"
    overwrite: Switch = False
    max_images: int | None = None
    mosaic_args: Annotated[Arguments, _NONE] = field(default_factory=dict)
    metric_args: Annotated[ArgumentsByName, _NONE] = field(default_factory=dict)
    level: Annotated[float, _NONE] = 0.95
    strict: Annotated[bool, _NONE] = False
    resume: Annotated[bool, _NONE] = True
    compile: Annotated[bool, _NONE] = False
    fast: Annotated[bool, _NONE] = True
