"""Blurred images, from all pixels or only from those that are kept."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

__all__ = ["SHARE", "blur_of_kept", "gaussian_blur"]

SHARE = 0.1  # standard deviation of the fills, as a share of the shortest side


def blur_of_kept(images: Float[Tensor, "n c *space"], masks: Float[Tensor, " n *space"]) -> Float[Tensor, "n c *space"]:
    """A blur that weights each pixel by how much of it is kept, so that removed pixels do not show through.

    The blur of `image * mask`, divided by the blur of the mask (a normalised convolution). Where no kept pixel is within the
    reach of the kernel, a quarter of the shortest side, it is the mean colour of what is kept; if nothing is kept, that of the
    image.

    Args:
        images: Images, `[N, C, H, W]`.
        masks: What is kept of each pixel, in [0, 1], `[N, H, W]`.

    Reference:
        Knutsson and Westin, "Normalized and differential convolution", CVPR 1993.
    """
    space = tuple(range(2, images.ndim))
    weights = masks[:, None].to(images.dtype)
    total = weights.sum(dim=space, keepdim=True)
    far = (images * weights).sum(dim=space, keepdim=True) / total
    far = torch.where(total > 0, far, images.mean(dim=space, keepdim=True))
    near, weight = gaussian_blur(images * weights, SHARE), gaussian_blur(weights, SHARE)
    return torch.where(weight > 0, near / weight, far)


def gaussian_blur(images: Float[Tensor, "n c *space"], share: float) -> Float[Tensor, "n c *space"]:
    """The images blurred by a Gaussian along each axis; axes of length 1 are skipped.

    Args:
        images: Images, `[N, C, H, W]`.
        share: Standard deviation, as a share of the shortest side.
    """
    axes = [axis for axis in range(2, images.ndim) if images.shape[axis] > 1]
    sigma = max(share * min((images.shape[axis] for axis in axes), default=1), 0.1)
    radius = max(1, round(2.5 * sigma))
    steps = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    for axis in axes:
        lines = images.movedim(axis, -1)
        padded = functional.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="reflect")
        blurred = functional.conv1d(padded, (kernel / kernel.sum())[None, None])
        images = blurred.view(lines.shape).movedim(-1, axis)
    return images
