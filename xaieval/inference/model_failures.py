"""The error of a model that fails on the first images it is given, most often because of their size or channels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from xaieval.errors import ModelError, XaievalError, advice, printable
from xaieval.inference.batch_limit import is_out_of_memory

__all__ = ["REFUSALS", "failed_on", "failures_are_model_errors"]

# By which torch, timm and transformers refuse a shape. Any other type, such as a KeyError, is a fault within the model.
REFUSALS = (RuntimeError, ValueError, IndexError, AssertionError)

LONGEST = 500  # characters of the model's own message


def failed_on(images: Tensor, error: Exception) -> ModelError:
    """An error that says what came, what the model said, and how images of another shape are given.

    Args:
        images: The images that the model was given, `[N, C, H, W]`.
        error: What it raised.
    """
    own = printable(f"{type(error).__name__}: {error}")
    own = own if len(own) <= LONGEST else f"{own[:LONGEST]}..."
    shape = advice(
        "Preprocessing(image_size=..., mean=..., std=...), with one number per channel in mean and std",
        "--image-size, and one number per channel in --mean and --std",
    )
    other = advice("; forward=lambda model, images: ... runs a model that takes something else", "")
    return ModelError(
        f"the model fails on images of the shape {list(images.shape)} ({own}); give images of the size and the number of "
        f"channels that it takes, such as by {shape}{other}"
    )


@contextmanager
def failures_are_model_errors(images: Tensor) -> Iterator[None]:
    """Turn a model's refusal of images into a `ModelError`; other errors, also those of full memory, are raised as they are.

    Args:
        images: The images that the model is given in the block.
    """
    try:
        yield
    except XaievalError:
        raise
    except REFUSALS as error:
        if is_out_of_memory(error):
            raise
        raise failed_on(images, error) from error
