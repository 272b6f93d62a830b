"""Extremal perturbation: the smooth mask of a given area under which the score is highest, found by gradient ascent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from xaieval.errors import ExplainerError, choose_from
from xaieval.explainers.base import Context, size_of_images

__all__ = ["EXTREMAL", "ExtremalPerturbation", "SmoothMasks"]

Variant = Literal["preserve", "delete", "dual"]
Size = tuple[int, int]

RATE, MOMENTUM = 0.01, 0.9
AREA_WEIGHT, AREA_GROWTH = 300.0, 1.0035  # weight of the area's error, and its factor from step to step
COLDNESS = 20.0  # of the smooth maximum
AT_ONCE = 8  # masks in memory, each of which takes about 80 times as much as a channel of the image
OF_224 = {"step": 7, "blur": 20.0}  # what the paper takes for images of 224 pixels


@dataclass(frozen=True)
class ExtremalPerturbation:
    """Extremal perturbation: the mean over areas of the masks that show this much of the image and raise the score most.

    `max_m f(m * x) - w |sort(m) - r|^2`: r is 1 for the share `area` of the pixels and 0 for the others, and w grows with each
    step. A mask is a smooth maximum of bumps on a grid, and lets through less and less blurred images.

    Args:
        areas: Shares of the image that are shown, in (0, 1), one mask each.
        n_steps: Steps of the ascent.
        variant: "preserve" (what keeps the score high alone), "delete" (what lowers it if it is blurred), or "dual" (both).
        step: Pixels from one point of the grid to the next. Default: 7 at 224 pixels, the same share of other shorter sides.
        smoothness: Radius of a bump, in pixels. Default: three times `step`.
        blur: Standard deviation of the strongest blur, in pixels. Default: 20 at 224 pixels.
        levels: Number of images from the strongest blur to none.
        mirror: Mirror the images in every other step.

    Raises:
        ExplainerError: A setting is out of range.

    Reference:
        Fong et al., "Understanding Deep Networks via Extremal Perturbations and Smooth Masks", ICCV 2019 (arXiv 1910.08485);
        the numbers are those of TorchRay.

    Example:
        >>> import xaieval
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 5))
        >>> xaieval.explain(model, torch.rand(2, 3, 16, 16), method=ExtremalPerturbation(n_steps=3))["input"].shape
        torch.Size([2, 16, 16])
    """

    areas: tuple[float, ...] = (0.1,)
    n_steps: int = 800
    variant: Variant = "preserve"
    step: int | None = None
    smoothness: float | None = None
    blur: float | None = None
    levels: int = 8
    mirror: bool = True
    name: str = "extremal-perturbation"
    needs_layer: bool = False
    needs_gradient: bool = False
    takes_gradients: bool = True
    paper: str = "Fong et al. 2019, arXiv 1910.08485"

    def __post_init__(self) -> None:
        areas = self.areas if isinstance(self.areas, tuple | list) else (self.areas,)
        object.__setattr__(self, "areas", tuple(areas))
        if not self.areas or not all(0 < area < 1 for area in self.areas):
            raise ExplainerError(f"method '{self.name}' takes areas in (0, 1), such as (0.05, 0.1), got {self.areas}")
        if self.variant not in get_args(Variant):
            known = choose_from(self.variant, get_args(Variant))
            raise ExplainerError(f"method '{self.name}' has no variant {self.variant!r}; {known}")
        if self.n_steps < 1 or self.levels < 2 or min(self.step or 1, self.smoothness or 1, self.blur or 1) <= 0:
            raise ExplainerError(
                f"method '{self.name}' takes n_steps of at least 1, levels of at least 2 and lengths above 0, got "
                f"n_steps={self.n_steps}, levels={self.levels}, step={self.step}, smoothness={self.smoothness}, "
                f"blur={self.blur}"
            )

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        each = len(self.areas) * (2 if self.variant == "dual" else 1)
        return f"{self.n_steps * each}, {each} per step, and as many backward"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, H, W]`."""
        size, n = size_of_images(context, self.name), len(context.images)
        step = self.step or max(1, round(OF_224["step"] * min(size) / 224))
        masks = SmoothMasks(size, step, self.smoothness or 3.0 * step)
        pairs = torch.arange(n * len(self.areas), device=context.images.device)
        at_once = max(1, min(AT_ONCE, context.size or n) // (2 if self.variant == "dual" else 1))
        found: list[Tensor] = []
        for some in pairs.split(at_once):
            done = len(found) * at_once * self.n_steps

            def report(steps: int, some: Tensor = some, done: int = done) -> None:
                context.report(done + steps * len(some), len(pairs) * self.n_steps)

            found.append(self._ascend(context, masks, some // len(self.areas), some % len(self.areas), report))
        return torch.cat(found).view(n, len(self.areas), *size).mean(dim=1)

    def _ascend(self, context: Context, masks: SmoothMasks, of: Tensor, area: Tensor, report: Callable[[int], None]) -> Tensor:
        """The masks `[G, H, W]` of the last step for the images `of` and the numbers of areas, both `[G]`."""
        images = context.images[of]
        blurred = _less_and_less_blurred(images, self.blur or OF_224["blur"] * min(masks.size) / 224, self.levels)
        shares = images.new_tensor(self.areas, dtype=torch.float64)[area]
        hidden = (masks.pixels * (1 - shares)).long()  # pixels that are 0 in r
        wanted = (torch.arange(masks.pixels, device=images.device) >= hidden[:, None]).to(images.dtype)
        points = torch.ones(len(of), *masks.grid, dtype=images.dtype, device=images.device)
        velocity, weight, shown = torch.zeros_like(points), AREA_WEIGHT, points
        for number in range(self.n_steps):
            with torch.enable_grad():
                points.requires_grad_()
                whole = masks.make(points)
                shown = masks.cut(whole)
                reward = self._reward(context, blurred, shown, of, mirrored=self.mirror and number % 2 == 0)
                errors = (whole.flatten(1).sort(dim=1)[0] - wanted).square().mean(dim=1)
                (gradient,) = torch.autograd.grad((weight * errors - reward).sum(), points)
            velocity = gradient if number == 0 else MOMENTUM * velocity + (1 - MOMENTUM) * gradient
            points = (points.detach() - RATE * velocity).clamp(0, 1)
            weight *= AREA_GROWTH
            report(number + 1)
        return shown.detach()

    def _reward(self, context: Context, blurred: Tensor, shown: Tensor, of: Tensor, mirrored: bool) -> Tensor:
        """What the ascent raises, but for the area, `[G]`."""

        def score(masks: Tensor) -> Tensor:
            images = _at_level(blurred, masks)
            return context.score(images.flip(-1) if mirrored else images, of)

        if self.variant == "dual":
            return score(shown) - score(1 - shown)
        return score(shown) if self.variant == "preserve" else -score(1 - shown)


@dataclass(frozen=True)
class SmoothMasks:
    """Masks that are smooth maxima of bumps on the points of a grid, over the image and a margin around it.

    Attributes:
        size: Height and width of the images.
        step: Pixels from one point to the next.
        radius: Radius of a bump in pixels, and the margin.
    """

    size: Size
    step: int
    radius: float

    @property
    def grid(self) -> Size:
        """Points along each side of the image."""
        return math.ceil(self.size[0] / self.step), math.ceil(self.size[1] / self.step)

    @property
    def pixels(self) -> int:
        """Pixels of a mask with its margin."""
        height, width = (len(near) for near in self._near)
        return height * width

    @cached_property
    def _near(self) -> tuple[Tensor, Tensor]:
        """For each row and each column, with the margin, the points near it: their numbers, `[side, 2 r + 1]`."""
        reach, before = 1 + math.ceil(self.radius / self.step), 1 + math.ceil(2 * self.radius / self.step)
        sides = [self.step * (points + 2 * (before - reach)) - self.step + 1 for points in self.grid]
        window = torch.arange(2 * reach + 1) - before
        rows, columns = (torch.arange(side)[:, None] // self.step + window for side in sides)
        return rows, columns

    @cached_property
    def _bumps(self) -> Tensor:
        """How much a point counts at a pixel, `[rows, columns, (2 r + 1)^2]`."""
        far = [(torch.arange(len(near))[:, None] - self.radius - self.step * near).square().float() for near in self._near]
        distance = (far[0][:, None, :, None] + far[1][None, :, None, :]).sqrt().flatten(2)
        return torch.exp(-2 * (distance / self.radius - 0.5).clamp(min=0).square())

    def make(self, points: Tensor) -> Tensor:
        """Masks with their margin, `[G, rows, columns]`, from values of the points, `[G, *grid]`; both in [0, 1]."""
        rows, columns = self._near
        ends = zip((rows, columns), self.grid, strict=True)
        beyond = max(max(-int(near.min()), int(near.max()) - count + 1) for near, count in ends)
        padded = functional.pad(points, (beyond,) * 4)  # points outside the image are 0
        values = padded[:, (rows + beyond)[:, None, :, None], (columns + beyond)[None, :, None, :]].flatten(3)
        values = values * self._bumps.to(points)
        return (values * (COLDNESS * values).softmax(dim=3)).sum(dim=3).clamp(0, 1)

    def cut(self, masks: Tensor) -> Tensor:
        """The part of the masks that lies on the image, `[G, H, W]`."""
        start, (height, width) = round(self.radius), self.size
        return masks[:, start : start + height, start : start + width]


def _less_and_less_blurred(images: Tensor, blur: float, levels: int) -> Tensor:
    """The images from the strongest blur to none, `[levels, G, C, H, W]`; beyond its edge an image is 0."""
    made = []
    for share in torch.linspace(1, 0, levels).tolist():
        reach = math.ceil(4 * share * blur)
        steps = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
        kernel = torch.exp(-0.5 * (steps / (share * blur)) ** 2) if reach else torch.ones_like(steps)
        kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
        lines = functional.conv2d(images, kernel, padding=(0, reach), groups=images.shape[1])
        made.append(functional.conv2d(lines, kernel.mT, padding=(reach, 0), groups=images.shape[1]))
    return torch.stack(made)


def _at_level(blurred: Tensor, masks: Tensor) -> Tensor:
    """Images `[G, C, H, W]` whose pixels are blurred as the masks say, from 0 for the strongest blur to 1 for none."""
    level = masks * (len(blurred) - 1)
    lower = level.detach().floor().long().clamp(0, len(blurred) - 1)  # NaN becomes a number; the share below stays NaN
    share = (level - level.detach().floor())[:, None]
    upper = (lower + 1).clamp(max=len(blurred) - 1)
    below, above = (blurred.gather(0, at[None, :, None].expand(1, *blurred.shape[1:]))[0] for at in (lower, upper))
    return (1 - share) * below + share * above


EXTREMAL = (ExtremalPerturbation(),)
