"""Maps from gradients along a path to the image: guided integrated gradients, blur integrated gradients, expected gradients.

Each attribution is a sum over steps of the gradient at a point of the path times the direction of the path there. The points of
all images of a batch share passes of the run's size. Attributions of channels add up to the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context, size_of_images

__all__ = ["GRADIENT_PATHS", "BlurIntegratedGradients", "ExpectedGradients", "GuidedIntegratedGradients", "path_attribution"]

CLOSE = 1e-9  # difference of two distances that counts as none, as in the authors' code
TRUNCATE = 4  # standard deviations at which a Gaussian ends, as in SciPy


def path_attribution(context: Context, steps: int, step: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Sums over steps of gradient times direction, `[N, C, H, W]`, for a path that does not depend on the gradients.

    Args:
        context: The context of the batch.
        steps: The number of steps.
        step: From numbers of steps `[k]` to the points and the directions there, `[k, N, C, H, W]` each.

    Example:
        Integrated gradients of a linear model with two steps, from black:

        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False))
        >>> image, _ = torch.rand(1, 1, 2, 2), torch.nn.init.ones_(model[1].weight)
        >>> context = Context(model, image, torch.tensor([0]), None, ["a"])
        >>> def line(numbers):
        ...     ways = image.expand(len(numbers), 1, 1, 2, 2)
        ...     return ways * (numbers.view(-1, 1, 1, 1, 1) + 0.5) / 2, ways / 2
        >>> torch.allclose(path_attribution(context, 2, line), image)
        True
    """
    images = context.images
    total = torch.zeros_like(images)
    for numbers in torch.arange(steps, device=images.device).split(max(1, (context.size or len(images)) // len(images))):
        points, directions = step(numbers)
        gradients = context.image_gradient(points.flatten(0, 1), context.everywhere.repeat(len(numbers)))
        total += (gradients.view_as(points) * directions).sum(dim=0)
    return total


@dataclass(frozen=True)
class GuidedIntegratedGradients:
    """Guided integrated gradients: the path changes first what the score depends on least.

    Each step moves the share `fraction` of the values with the smallest absolute gradients towards the image, as far as the
    step's L1 distance to the image asks; no value leaves the straight path by more than `max_distance` of its way. So the path
    avoids places of large gradients that have nothing to do with the image.

    Args:
        steps: Steps, one pass each.
        fraction: Share of the values that move in a step, in (0, 1].
        max_distance: How far a value may be from the straight path, as a share of its way; 0 is integrated gradients.
        baseline: Value where the path starts, in the model's input space; 0 is the mean colour of normalised images.

    Raises:
        ExplainerError: A number is out of range.

    Reference:
        Kapishnikov et al., "Guided Integrated Gradients", CVPR 2021 (arXiv 2106.09788), algorithm 1 and section 4.2, with the
        defaults of the authors' package `saliency`.

    Example:
        >>> import xaieval
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> xaieval.explain(model, torch.rand(2, 3, 8, 8), method=GuidedIntegratedGradients(steps=10))["input"].shape
        torch.Size([2, 8, 8])
    """

    steps: int = 200
    fraction: float = 0.25
    max_distance: float = 0.02
    baseline: float = 0.0
    name: str = "guided-ig"
    needs_layer: bool = False
    needs_gradient: bool = False
    takes_gradients: bool = True
    paper: str = "Kapishnikov et al. 2021, arXiv 2106.09788"

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.fraction <= 1 or not 0 <= self.max_distance <= 1:
            raise ExplainerError(
                "method 'guided-ig' takes steps of at least 1, a fraction in (0, 1] and a max_distance in [0, 1], got "
                f"steps={self.steps}, fraction={self.fraction}, max_distance={self.max_distance}"
            )

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        return str(self.steps)

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, H, W]`; for volumes with one more axis."""
        ends = context.images.double().flatten(1)
        starts = torch.full_like(ends, self.baseline)
        points, total = starts.clone(), torch.zeros_like(ends)
        for step in range(self.steps):
            gradients = context.image_gradient(points.view_as(context.images).to(context.images.dtype)).double().flatten(1)
            for number, gradient in enumerate(gradients):  # how many moves a step takes differs from image to image
                before = points[number].clone()
                self._move(points[number], starts[number], ends[number], gradient.abs(), step)
                total[number] += (points[number] - before) * gradient
        total[~ends.isfinite().all(dim=1)] = torch.nan  # no path leads to such an image
        return total.view_as(context.images).sum(dim=1)

    def _move(self, point: Tensor, start: Tensor, end: Tensor, gradient: Tensor, step: int) -> None:
        """Move a point `[D]` in place, until its L1 distance to the end is that of the step."""
        way = end - start
        target = way.abs().sum().item() * (1 - (step + 1) / self.steps)
        along = (step + 1) / self.steps
        least = start + way * max(along - self.max_distance, 0)
        most = start + way * min(along + self.max_distance, 1)
        behind = torch.where(way == 0, False, (point - start) / way < max(along - self.max_distance, 0))
        point[behind] = least[behind]
        gradient = gradient.clone()
        count = int(self.fraction * (len(point) - 1)) + 1
        while True:
            distance = (point - end).abs().sum().item()
            if math.isclose(distance, target, rel_tol=CLOSE, abs_tol=CLOSE):
                return
            gradient[point == most] = torch.inf  # it cannot move on
            chosen = (gradient <= gradient.kthvalue(count).values) & gradient.isfinite()
            reach = ((point - most).abs() * chosen).sum().item()
            if not chosen.any() or not math.isfinite(reach):  # no value is left but for rounding, or the image has NaN
                return
            share = (distance - target) / reach if reach > 0 else math.inf
            if share <= 1:
                point[chosen] += share * (most - point)[chosen]
                return
            point[chosen] = most[chosen]


@dataclass(frozen=True)
class BlurIntegratedGradients:
    """Blur integrated gradients: the path goes from a blurred image to the image, which adds no colours or edges of its own.

    Args:
        steps: Steps, one pass each.
        max_sigma: Standard deviation of the strongest blur, in pixels.
        difference: Step of the numerical derivative by the standard deviation, in pixels.

    Raises:
        ExplainerError: A number is out of range; when called: the images are volumes.

    Reference:
        Xu et al., "Attribution in Scale and Space", CVPR 2020 (arXiv 2004.03383), eq. 5 and 6, with the defaults of the
        authors' package `saliency`.

    Example:
        >>> import xaieval
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> xaieval.explain(model, torch.rand(2, 3, 8, 8), method=BlurIntegratedGradients(steps=10))["input"].shape
        torch.Size([2, 8, 8])
    """

    steps: int = 100
    max_sigma: float = 50.0
    difference: float = 0.01
    name: str = "blur-ig"
    needs_layer: bool = False
    needs_gradient: bool = False
    takes_gradients: bool = True
    paper: str = "Xu et al. 2020, arXiv 2004.03383"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.max_sigma <= 0 or self.difference <= 0:
            raise ExplainerError(
                "method 'blur-ig' takes steps of at least 1, and a max_sigma and a difference above 0, got "
                f"steps={self.steps}, max_sigma={self.max_sigma}, difference={self.difference}"
            )

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        return str(self.steps)

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, H, W]`."""
        size_of_images(context, self.name)
        images = context.images.double()  # a derivative by differences of float32 would be half rounding

        def step(numbers: Tensor) -> tuple[Tensor, Tensor]:
            sigmas = (numbers * self.max_sigma / self.steps).tolist()
            points = torch.stack([_blurred(images, sigma) for sigma in sigmas])
            further = torch.stack([_blurred(images, sigma + self.difference) for sigma in sigmas])
            directions = (points - further) * (self.max_sigma / self.steps / self.difference)
            return points.to(context.images.dtype), directions.to(context.images.dtype)

        return path_attribution(context, self.steps, step).sum(dim=1)


@dataclass(frozen=True)
class ExpectedGradients:
    """Expected gradients: integrated gradients from many references, with one random point of the path to each.

    `E[(x - x') * gradient at x' + a (x - x')]` over references x' and a in [0, 1]. The references should be images of the
    training data, so that an attribution says what differs from them. Without any, they are images of noise, uniform between
    the lowest and the highest value of each channel of the image.

    Args:
        samples: Pairs of reference and point, one pass each; the noise of a map falls with its square root.
        references: Images `[R, C, H, W]`, normalised as the model expects; each sample draws one of them.

    Raises:
        ExplainerError: `samples` is below 1; when called: the references have another shape than the images.

    Reference:
        Erion et al., "Improving performance of deep learning models with axiomatic attribution priors and expected gradients",
        Nature Machine Intelligence 2021 (arXiv 1906.10670), eq. 2; the noise is the uniform baseline of Sturmfels et al.,
        "Visualizing the Impact of Feature Attribution Baselines", Distill 2020.

    Example:
        >>> import xaieval
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> method = ExpectedGradients(samples=10, references=torch.rand(20, 3, 8, 8))
        >>> xaieval.explain(model, torch.rand(2, 3, 8, 8), method=method)["input"].shape
        torch.Size([2, 8, 8])
    """

    samples: int = 50
    references: Tensor | None = None
    name: str = "expected-gradients"
    needs_layer: bool = False
    needs_gradient: bool = False
    takes_gradients: bool = True
    paper: str = "Erion et al. 2021, arXiv 1906.10670"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ExplainerError(f"method 'expected-gradients' takes samples of at least 1, got {self.samples}")

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        return str(self.samples)

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, H, W]`; for volumes with one more axis."""
        images = context.images
        places = context.draw((self.samples,), "places").to(images.dtype)

        def step(numbers: Tensor) -> tuple[Tensor, Tensor]:
            references = torch.stack([self._references(context, number) for number in numbers.tolist()])
            here = places.T[numbers].view(len(numbers), len(images), *[1] * (images.ndim - 1))
            return references + here * (images - references), (images - references) / self.samples

        return path_attribution(context, self.samples, step).sum(dim=1)

    def _references(self, context: Context, sample: int) -> Tensor:
        """A reference for each image, `[N, C, H, W]`."""
        images = context.images
        if self.references is None:
            cells = tuple(range(2, images.ndim))
            low, high = images.amin(dim=cells, keepdim=True), images.amax(dim=cells, keepdim=True)
            return low + context.draw(images.shape[1:], f"reference {sample}").to(images.dtype) * (high - low)
        if self.references.shape[1:] != images.shape[1:]:
            raise ExplainerError(
                f"method 'expected-gradients' has references {list(self.references.shape)}, and the images are "
                f"{list(images.shape)}; references are images of the same size and channels"
            )
        chosen = (context.draw((1,), f"reference {sample}")[:, 0] * len(self.references)).long()
        return self.references.to(images.device, images.dtype)[chosen.to(images.device)]


GRADIENT_PATHS = (GuidedIntegratedGradients(), BlurIntegratedGradients(), ExpectedGradients())


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Images under a Gaussian blur, zeros outside; the Gaussian ends after four standard deviations, as in SciPy."""
    down, across = (_blurring(side, sigma).to(images) for side in images.shape[2:])
    return down @ images @ across.T


def _blurring(side: int, sigma: float) -> Tensor:
    """The matrix `[side, side]` of a blur along one axis."""
    radius = int(TRUNCATE * sigma + 0.5)
    if radius == 0:
        return torch.eye(side, dtype=torch.float64)
    weights = torch.exp(torch.arange(-radius, radius + 1, dtype=torch.float64).square() / (-2 * sigma**2))
    weights /= weights.sum()
    distances = (torch.arange(side)[:, None] - torch.arange(side)).abs()
    return torch.where(distances <= radius, weights[radius + distances.clamp(max=radius)], 0)
