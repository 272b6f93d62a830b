"""Segment Anything with fixed points as a segmentation network of one class."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xaieval.errors import ModelError, TargetError

__all__ = ["PromptedMask"]

MASKS = 3  # that SAM offers for a prompt: whole, part and part of a part


class PromptedMask(nn.Module):
    """The mask that SAM predicts at given points, as logits `[N, 1, h, w]` for `task="segmentation"`.

    Its score is then the mean logit over the pixels that are in the mask of the original image (those above 0, SAM's own
    threshold), and its confidence the mean probability there. The points are the same for all images, as the masked copies of
    one image need them. Layer addresses start with `model`, such as `model.vision_encoder.layers.11`.

    Args:
        model: A SamModel or Sam2Model of transformers, or a module that takes `input_points` and `input_labels` and returns
            `pred_masks` as they do. It is not copied.
        points: `(x, y)` in pixels of the model's input, one or more: `[P, 2]`. Of an image that was resized, its points are
            resized too.
        labels: 1 for a point on the object and 0 for one beside it, `[P]`. Default: all 1.
        mask: Which of the three masks that SAM offers for an ambiguous prompt, 0 to 2. Default: its single mask.

    Raises:
        ModelError: The model takes no points; when called: it returns no masks.
        TargetError: The points are not `[P, 2]` or negative, there is not one label for each, or no such mask.

    Reference:
        Kirillov et al., "Segment Anything" (arXiv 2304.02643), section 3; the score is that of Vinogradova et al. (arXiv
        2002.11434), eq. 2, for the region.

    Example:
        >>> class Tiny(nn.Module):  # brightness minus that at the points
        ...     def forward(self, pixel_values, input_points, input_labels, multimask_output):
        ...         x, y = input_points[0, 0, 0].long().tolist()
        ...         grey = pixel_values.mean(dim=1)
        ...         logits = (grey - grey[:, y, x, None, None])[:, None, None]
        ...         return {"pred_masks": logits.expand(-1, 1, 3 if multimask_output else 1, -1, -1)}
        >>> PromptedMask(Tiny(), [(3, 4)])(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 1, 8, 8])
    """

    points: Tensor
    labels: Tensor

    def __init__(
        self,
        model: Any,
        points: Sequence[Sequence[float]] | Float[Tensor, "p 2"],
        labels: Sequence[int] | Tensor | None = None,
        mask: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module) or "input_points" not in inspect.signature(model.forward).parameters:
            raise ModelError(f"a {type(model).__name__} takes no input_points; a SamModel or Sam2Model is expected")
        placed = torch.as_tensor(points, dtype=torch.float32)
        known = torch.ones(len(placed), dtype=torch.int64) if labels is None else torch.as_tensor(labels).long()
        if placed.ndim != 2 or placed.shape[-1] != 2 or not len(placed) or not (placed >= 0).all():
            raise TargetError(f"points are (x, y) in pixels, one or more, [P, 2]; got {placed.tolist()}")
        if known.shape != placed.shape[:1] or not ((known == 0) | (known == 1)).all():
            raise TargetError(
                f"labels are 1 (on the object) or 0 (beside it), one for each of {len(placed)} points; got {known.tolist()}"
            )
        if mask is not None and mask not in range(MASKS):
            raise TargetError(f"mask is one of {MASKS}, 0 to {MASKS - 1}, or None for the single one; got {mask}")
        self.model, self.mask = model, mask
        self.register_buffer("points", placed)
        self.register_buffer("labels", known)

    @property
    def settings(self) -> dict[str, Any]:
        """The prompt, for manifests."""
        return {"points": self.points.tolist(), "point labels": self.labels.tolist(), "mask": self.mask}

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
        """Logits of the mask, in the mask's own size (a quarter of the image's for SAM)."""
        self._check_inside(images)
        count = len(images)
        output = self.model(
            pixel_values=images,
            input_points=self.points.expand(count, 1, -1, -1),
            input_labels=self.labels.expand(count, 1, -1),
            multimask_output=self.mask is not None,
        )
        masks = output["pred_masks"][:, 0]
        return masks[:, [0 if self.mask is None else self.mask]]

    def _check_inside(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        outside = (self.points >= self.points.new_tensor([width, height])).any(dim=1)
        if outside.any():
            raise TargetError(
                f"the point {tuple(self.points[outside][0].tolist())} is outside the images of {width} x {height} pixels; "
                "points are (x, y) in pixels of the model's input"
            )
