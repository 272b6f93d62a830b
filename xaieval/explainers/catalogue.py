"""A table of all methods that have a name."""

from __future__ import annotations

from typing import NamedTuple

from xaieval.explainers import LIBRARY_METHODS, METHODS, Explainer, needs_model

__all__ = ["Entry", "catalogue"]


class Entry(NamedTuple):
    """What is to be known of a method before it is taken.

    Attributes:
        name: for `methods=`.
        needs: what it has to be given: a layer, gradients, or the model itself to run or to look into.
        passes: forward passes an image; "shared" where all such methods and layers share one.
        paper: where the method is from.
    """

    name: str
    needs: str
    passes: str
    paper: str


def catalogue() -> list[Entry]:
    """Every method by name: our own, then those of captum, pytorch-grad-cam and torch-cam, installed or not.

    Example:
        >>> [entry for entry in catalogue() if entry.name == "captum:IntegratedGradients"][0]
        Entry(name='captum:IntegratedGradients', needs='gradients, model', passes='50',
              paper='Sundararajan et al. 2017, arXiv 1703.01365')
    """
    return [
        Entry(name, _needs(explainer), str(getattr(explainer, "passes", "")), str(getattr(explainer, "paper", "")))
        for name, explainer in {**METHODS, **LIBRARY_METHODS}.items()
    ]


def _needs(explainer: Explainer) -> str:
    words = {
        "layer": explainer.needs_layer,
        "gradients": explainer.needs_gradient or getattr(explainer, "takes_gradients", False),
        "model": needs_model(explainer),
    }
    return ", ".join(word for word, needed in words.items() if needed) or "nothing"
