"""Checks of what every explainer must do: `check_explainer` runs all of them, and `CHECKS` lists them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from xaieval.errors import ConformanceError, XaievalError
from xaieval.explainers import Method
from xaieval.inference.reproducibility import same_random_numbers
from xaieval.inference.tasks import Task
from xaieval.testing.checks import CHECKS, Check
from xaieval.testing.subjects import Subject, maps_of, small_model, subject

__all__ = ["CHECKS", "Check", "Subject", "check_explainer", "small_model", "subject"]


def check_explainer(
    explainer: Method,
    model: nn.Module | None = None,
    images: Tensor | None = None,
    layer: str | Sequence[str] | None = None,
    task: str | Task = "classification",
) -> None:
    """Run all checks on an explainer, and raise if any fails.

    Args:
        explainer: A name, an `Explainer` or a function `(model, images, targets) -> maps`.
        model: The model, an image classifier unless `task` says otherwise. Default: `small_model()`.
        images: At least two images, `[N, C, H, W]`. Default: four of noise, 32 x 40 pixels.
        layer: The address of a layer, or several for an explainer that joins layers; required with `model` if it needs any.
        task: How the model's output is read: "classification", "detection", "segmentation", or an object of these.

    Raises:
        ConformanceError: At least one check failed; the message has all of them, with what was expected and what came.
        ExplainerError: The explainer cannot explain this model at this layer; try another one.

    Example:
        >>> check_explainer("gradcam")
        >>> def turned(model, images, targets):
        ...     return images.mean(dim=1).transpose(1, 2)
        >>> try:
        ...     check_explainer(turned)
        ... except ConformanceError as error:
        ...     print(error)
        method 'turned' fails 1 of 13 checks:
        - check_shapes: expected maps that lie like the images, height first, got [1, 40, 32] for images [1, 3, 32, 40]
    """
    first = subject(explainer, model, images, layer, task)
    name = first.explainer.name
    with same_random_numbers():
        try:
            maps_of(first)
        except XaievalError:  # the message says what cannot be explained
            raise
        except Exception as error:  # an explainer may raise anything
            raise ConformanceError(f"method {name!r} gives no maps: it raised {type(error).__name__}: {error}") from error
        failures = {check.__name__: _failure(check, subject(explainer, model, images, layer, task)) for check in CHECKS}
    failed = [f"- {check}: {failure}" for check, failure in failures.items() if failure]
    if failed:
        raise ConformanceError("\n".join([f"method {name!r} fails {len(failed)} of {len(CHECKS)} checks:", *failed]))


def _failure(check: Check, subject: Subject) -> str:
    """Why a check fails; empty if it passes."""
    try:
        check(subject)
    except ConformanceError as error:
        return str(error)
    except Exception as error:  # an explainer may raise anything
        return f"raised {type(error).__name__}: {error}"
    return ""
