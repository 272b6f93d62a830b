"""Models as the options of a command describe them, and which names import code."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xaieval.config.options import ModelOptions, parse_literals
from xaieval.errors import UsageError

if TYPE_CHECKING:
    from xaieval.data import Preprocessing
    from xaieval.data.preprocessing import Side
    from xaieval.models import LoadedModel

__all__ = ["check_normalisation", "load", "names_code"]


def load(spec: str, options: ModelOptions) -> LoadedModel:
    """Load a model, with the preprocessing that the options choose."""
    from xaieval.models import load_model

    loaded = load_model(spec, options.weights, options.pretrained, parse_literals(options.model_args))
    preprocessing = loaded.preprocessing
    if options.image_size is not None:
        preprocessing = preprocessing.with_size(_size(options.image_size))
    normal = {"mean": options.mean, "std": options.std}
    changes: dict[str, Any] = {
        name: numbers * preprocessing.channels if len(numbers) == 1 else numbers
        for name, numbers in normal.items()
        if numbers is not None
    }
    if options.interpolation is not None:
        changes["interpolation"] = options.interpolation
    return replace(loaded, preprocessing=replace(preprocessing, **changes))


def _size(sides: int | tuple[int, ...]) -> Side:
    """One side, or height and width, from the command line or from a manifest."""
    return sides if isinstance(sides, int) else (sides[0], sides[-1])


def check_normalisation(options: ModelOptions, preprocessing: Preprocessing) -> None:
    """Refuse to read bands from files without being told their mean and standard deviation.

    Raises:
        UsageError: The images have other channels than grey or RGB, and the options do not say how they are normalised.
    """
    if preprocessing.channels not in (1, 3) and (options.mean is None or options.std is None):
        raise UsageError(
            f"the model takes images of {preprocessing.channels} channels, whose normalisation is not known; give --mean and "
            f"--std with {preprocessing.channels} numbers each, or with one number for all channels (--mean 0 --std 1 for none)"
        )


def names_code(option: str, value: str) -> bool:
    """Whether an option names a `package.module:factory`, whose code would be imported and run.

    `model` and `data` are the only options that can. The rooms that load them decide, so that no list here can differ from
    what they load.
    """
    if option == "model":
        from xaieval.models.loading import names_code as model_names_code

        return model_names_code(value)
    if option == "data":
        from xaieval.data import names_code as data_names_code

        return data_names_code(value)
    return False
