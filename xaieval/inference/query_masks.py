"""Classes of pixels, and objects, of models that predict masks from queries, such as Mask2Former of transformers."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from xaieval.errors import ModelError
from xaieval.inference.query_detections import best_first
from xaieval.inference.targets import describe_value

__all__ = ["query_instances", "query_segmentation"]


def query_segmentation(masks: Tensor, logits: Tensor) -> Tensor:
    """Logits of the classes of each pixel, `[N, K, h, w]`: logarithms of the scores that the image processors compute.

    The score of class k at a pixel is `sum_q softmax(logits_q)_k * sigmoid(mask_q)`, without the class of no object. As scores
    are no logits, their logarithms are returned: the highest class is the same, and a softmax gives the class's share of the
    scores of all classes at the pixel.

    Args:
        masks: Logits of the masks of the queries, `[N, Q, h, w]`.
        logits: Logits of their classes, the last of which is no object, `[N, Q, K + 1]`.

    Raises:
        ModelError: There is one class only, which is then the highest everywhere.

    Reference:
        Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation" (MaskFormer), NeurIPS 2021 (arXiv
        2107.06278), section 3.4.

    Example:
        >>> masks, logits = torch.tensor([[[[9.0, -9.0]]]]), torch.tensor([[[3.0, 1.0, 0.0]]])
        >>> query_segmentation(masks, logits).softmax(dim=1)[0, :, 0]  # of one query, everywhere alike
        tensor([[0.8808, 0.8808],
                [0.1192, 0.1192]])
    """
    if logits.shape[2] < 3:
        raise ModelError(
            f"the segmenter has one class and that of no object, {describe_value(logits)}, and the one class is the highest at "
            "every pixel; task='detection' explains the objects that it finds"
        )
    scores = torch.einsum("nqk,nqhw->nkhw", logits.softmax(dim=2)[..., :-1], masks.sigmoid())
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()


def query_instances(masks: Tensor, logits: Tensor, size: tuple[int, int]) -> list[dict[str, Tensor]]:
    """The objects of each image as detections, best first, in the form of `query_detections`; the box is that of the mask.

    The mask of a query is where its logits are positive. The score of a class is its probability times the mean of the mask's
    sigmoids over the mask. A query without a mask is left out.

    Args:
        masks: Logits of the masks of the queries, `[N, Q, h, w]`.
        logits: Logits of their classes, the last of which is no object, `[N, Q, K + 1]`.
        size: Height and width of the images, in whose pixels boxes are.

    Reference:
        `post_process_instance_segmentation` of the image processors of transformers; Cheng et al., "Masked-attention Mask
        Transformer for Universal Image Segmentation" (Mask2Former), CVPR 2022 (arXiv 2112.01527), for the score.

    Example:
        >>> masks, logits = torch.tensor([[[[9.0, 9.0, -9.0, -9.0]]]]), torch.tensor([[[9.0, 1.0, 0.0]]])
        >>> (found,) = query_instances(masks, logits, (8, 32))
        >>> found["boxes"][0].tolist(), found["labels"].tolist(), round(found["scores"][0].item(), 3)
        ([0.0, 0.0, 16.0, 8.0], [0, 1], 0.999)
    """
    shown = masks.detach() > 0
    quality = (masks.sigmoid() * shown).sum(dim=(2, 3)) / shown.sum(dim=(2, 3)).clamp(min=1)
    scores = logits.softmax(dim=2)[..., :-1] * quality[..., None]
    cell = masks.new_tensor([size[1] / masks.shape[3], size[0] / masks.shape[2]] * 2)
    found = []
    for seen, of_each in zip(shown, scores, strict=True):
        kept = seen.flatten(1).any(dim=1)
        corners = masks_to_boxes(seen[kept]) + cell.new_tensor([0, 0, 1, 1])  # which has the last cell, not where it ends
        found.append(best_first(corners.to(cell) * cell, of_each[kept]))
    return found
