"""What every explainer promises, as checks that anybody can run on their own: `check_explainer`, and `CHECKS` one by one."""

from __future__ import annotations

from torch import Tensor, nn

from xaieval.errors import ConformanceError, XaievalError
from xaieval.explainers import Method
from xaieval.inference.reproducibility import same_random_numbers
from xaieval.testing.checks import CHECKS, Check
from xaieval.testing.subjects import Subject, maps_of, small_model, subject

__all__ = ["CHECKS", "Check", "Subject", "check_explainer", "small_model", "subject"]


def check_explainer(
    explainer: Method,
    model: nn.Module | None = None,
    images: Tensor | None = None,
    layer: str | None = None,
) -> None:
    """Try whether an explainer keeps what all explainers promise, and say all that it does not.

    Args:
        explainer: a name, an `Explainer` or a function `(model, images, targets) -> maps`.
        model: an image classifier; `small_model()` unless told.
        images: at least two, `[N, C, H, W]`; four of noise, of 32 x 40 pixels, unless told.
        layer: address of a layer; needed with a model of your own if the explainer needs one.

    Raises:
        ConformanceError: with each check that failed: what came, and what was expected.
        ExplainerError: the explainer cannot explain this model at this layer; try it on another one.

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
    first = subject(explainer, model, images, layer)
    name = first.explainer.name
    with same_random_numbers():
        try:
            maps_of(first)
        except XaievalError:  # it says itself what it cannot explain
            raise
        except Exception as error:  # whatever somebody's explainer can raise
            raise ConformanceError(f"method {name!r} gives no maps: it raised {type(error).__name__}: {error}") from error
        found = {check.__name__: _complaint(check, subject(explainer, model, images, layer)) for check in CHECKS}
    failed = [f"- {check}: {complaint}" for check, complaint in found.items() if complaint]
    if failed:
        raise ConformanceError("\n".join([f"method {name!r} fails {len(failed)} of {len(CHECKS)} checks:", *failed]))


def _complaint(check: Check, tried: Subject) -> str:
    """Why a check fails; nothing if it does not."""
    try:
        check(tried)
    except ConformanceError as error:
        return str(error)
    except Exception as error:  # whatever somebody's explainer can raise
        return f"raised {type(error).__name__}: {error}"
    return ""
