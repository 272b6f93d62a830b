"""Models as the options of a command describe them, and which names import code."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xaieval.config.options import ModelOptions, parse_literals

if TYPE_CHECKING:
    from xaieval.models import LoadedModel

__all__ = ["load", "names_code"]


def load(spec: str, options: ModelOptions) -> LoadedModel:
    """Load a model, with the preprocessing that the options choose."""
    from xaieval.models import load_model

    loaded = load_model(spec, options.weights, options.pretrained, parse_literals(options.model_args))
    preprocessing = loaded.preprocessing
    if options.image_size is not None:
        preprocessing = preprocessing.with_size(options.image_size)
    options_given = {"mean": options.mean, "std": options.std, "interpolation": options.interpolation}
    changes: dict[str, Any] = {name: value for name, value in options_given.items() if value is not None}
    return replace(loaded, preprocessing=replace(preprocessing, **changes))


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
