"""Shapley values by the shap package as explainers: Owen values over a hierarchy of image regions."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xaieval.errors import ExplainerError
from xaieval.explainers.adapters.base import Kind, Library, LibraryMethod, batch_maps, library_errors
from xaieval.explainers.base import Context, size_of_images
from xaieval.inference.reproducibility import ONE_AT_A_TIME

__all__ = ["LIBRARY", "Shap"]

NAME = "shap"
KINDS = {
    "Partition": Kind(
        paper="Lundberg and Lee 2017, arXiv 1705.07874", passes="500", needs_layer=False, takes_gradients=False, one_by_one=True
    )
}
BLUR = re.compile(r"blur\([1-9][0-9]*, *[1-9][0-9]*\)")
# Which regions are split next depends on how many masked images are scored at once, so that it is not the run's batch size.
DEFAULTS: Mapping[str, Any] = {"mask_value": 0.0, "max_evals": 500, "batch_size": 50}


@dataclass(frozen=True)
class Shap(LibraryMethod):
    """PartitionSHAP: Owen values over regions that are halved again and again, the most important ones first.

    The map adds up to the score of the image minus that of the masked image. Regions that `max_evals` leaves whole share
    their value evenly. The value of a pixel is the sum over its channels, which are split last.

    Args:
        method: The name of shap's explainer: "Partition".
        settings: `mask_value`: what replaces hidden pixels, in the model's input space: a number, one for each channel, an
            array `[H, W, C]`, or "blur(16,16)" for the mean of 16 x 16 pixels. Default: 0. `max_evals`: about how many
            masked images are scored. Default: 500. `batch_size`: how many at once, on which the regions depend. Default: 50.
            `fixed_context`: 0 or 1 to split a region only with all others hidden or shown. Default: both.
        label: The name in tables and rows. Default: library and class.

    Raises:
        ExplainerError: There is no such method, or `mask_value` is a word that does not suit normalised images; when called:
            shap cannot take the settings.

    Reference:
        Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions" (arXiv 1705.07874); Owen, "Values of Games with
        a Priori Unions", 1977. `shap.explainers.Partition` with `shap.maskers.Image`.

    Example:
        >>> import torchvision, xaieval
        >>> method = Shap("Partition", settings={"max_evals": 60}, label="owen")
        >>> xaieval.explain(torchvision.models.resnet18(), torch.rand(1, 3, 32, 32), method=method)["input"].shape
        torch.Size([1, 32, 32])
    """

    library = NAME
    kinds = KINDS
    given = frozenset({"self", "shape", "main_effects", "error_bounds", "outputs", "silent"})
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self._settings["mask_value"]
        if isinstance(value, str) and not BLUR.fullmatch(value):  # shap's inpainting turns pixels into whole numbers
            raise ExplainerError(
                f"method '{self.name}': mask_value is a number, one for each channel, an array [H, W, C] or 'blur(16,16)', "
                f"got {value!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Settings for the manifest."""
        return {"settings": self._settings}

    def calls(self) -> list[Callable[..., Any]]:
        """The functions of shap that take the settings."""
        with _quiet():
            from shap import explainers, maskers

        return [maskers.Image, explainers.Partition.__call__]

    @property
    def _settings(self) -> dict[str, Any]:
        return {**DEFAULTS, **self.settings}

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]`."""
        size_of_images(context, self.name)
        with _quiet(), library_errors(NAME, self.name):
            return batch_maps(context, lambda image, of: self._map(context, image, of), KINDS[self.method].one_by_one)

    def _map(self, context: Context, image: Tensor, of: Tensor) -> Tensor:
        """The map `[1, H, W]` of an image."""
        from shap import explainers, maskers

        kept = image if image.dtype == torch.float64 else image.float()  # NumPy and OpenCV have no other types
        pixels = kept.detach().movedim(1, -1).cpu().numpy()
        settings = self._settings
        value = settings.pop("mask_value")
        filling = value if isinstance(value, str) else np.broadcast_to(np.asarray(value, pixels.dtype), pixels.shape[1:])
        masker = maskers.Image(filling, pixels.shape[1:])  # one for each image: it keeps the blurred image

        def scores(masked: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            images = torch.from_numpy(masked).movedim(-1, 1).to(image).contiguous()
            return context.ask([(images, of.expand(len(images)))]).double().cpu().numpy()

        made = explainers.Partition(scores, masker)
        values = made(pixels, silent=True, **settings).values
        return torch.from_numpy(values.sum(axis=-1)).to(image)


LIBRARY = Library(
    name=NAME,
    package="shap",
    install="pip install 'xaieval[shap]'",
    methods={f"{NAME}:{name}": Shap(name) for name in KINDS},
    classes=frozenset(),
    adapt=lambda made: made,
)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings of shap and numba to themselves, on how they make colours and compile loops."""
    with ONE_AT_A_TIME, warnings.catch_warnings():  # the filters of warnings are those of all threads
        warnings.filterwarnings("ignore", module=r"(shap|numba)(\.|$)")
        yield
