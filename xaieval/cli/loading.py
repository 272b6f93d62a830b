"""What commands load, as their options say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xaieval.config.options import ModelOptions, parse_literals

if TYPE_CHECKING:
    from xaieval.models import LoadedModel

__all__ = ["load"]


def load(spec: str, options: ModelOptions) -> LoadedModel:
    """The model, with the preprocessing that the options ask for."""
    from xaieval.models import load_model

    loaded = load_model(spec, options.weights, options.pretrained, parse_literals(options.model_args))
    preprocessing = loaded.preprocessing
    if options.image_size is not None:
        preprocessing = preprocessing.with_size(options.image_size)
    given = {"mean": options.mean, "std": options.std, "interpolation": options.interpolation}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(loaded, preprocessing=replace(preprocessing, **changes))
