"""Change of the map under noise: by how much per change of the image, and by how much on average."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import Tensor

from xaieval.metrics.changes import changes_under_noise, check_noise, check_samples, noise_like
from xaieval.metrics.metric import Inspection, Metric

__all__ = ["average_sensitivity", "local_lipschitz"]

Draw = Callable[..., Tensor]


def local_lipschitz(samples: int = 10, radius: float = 0.1, noise: str = "gaussian", normalised: bool = True) -> Metric:
    """Local Lipschitz estimate: the largest change of the map per change of the image, 0 or more, lower is better.

    `max_k |phi(x + e_k) - phi(x)| / |e_k|` over the drawn noises, with Euclidean norms over all pixels, and over all channels
    of the noise. NaN if a map has NaN or inf. The maximum over a few samples is a lower bound of that over the neighbourhood,
    and grows with their number: compare only values with the same samples, radius and image size.

    The quotient has a unit, map per pixel value, and doubles if the map is doubled. So maps are normalised to [0, 1].
    `normalised=False` compares them as the method returns them, for one method on one model.

    Args:
        samples: Noisy images for each image; ten as for the other metrics of robustness, where Quantus takes 200.
        radius: Standard deviation of Gaussian noise, or half the width of uniform noise, in the unit of the model's input.
        noise: "gaussian" or "uniform".
        normalised: Compare maps normalised to [0, 1].

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Alvarez-Melis and Jaakkola, "On the Robustness of Interpretability Methods", 2018 (arXiv 1806.08049), eq. 2, by random
        search; noise and normalisation as in Quantus' `LocalLipschitzEstimate`.

    Example:
        >>> local_lipschitz(samples=50).passes
        'the method 50 times'
    """
    check_samples(samples=samples, radius=radius)
    check_noise(noise)
    return Metric(
        "local_lipschitz",
        partial(_local_lipschitz, samples=samples, radius=radius, noise=noise, normalised=normalised),
        higher_is_better=False,
        label="local Lipschitz",
        needs=("maps" if normalised else "attributions", "images", "inspect_maps", "draw"),
        settings={"samples": samples, "radius": radius, "noise": noise, "normalised": normalised},
        passes=f"the method {samples} times",
        paper="Alvarez-Melis and Jaakkola 2018, arXiv 1806.08049",
        family="robustness",
        bounds=None,
        altered_by="noise of local_lipschitz",
    )


def average_sensitivity(samples: int = 10, radius: float = 0.02, noise: str = "uniform", normalised: bool = False) -> Metric:
    """Average sensitivity: the mean relative change of the map under noise on the image, 0 or more, lower is better.

    `mean_k |phi(x + e_k) - phi(x)| / |phi(x)|`: the mean of the changes, where `max_sensitivity` takes the largest, with the
    same noisy images. It does not grow with the number of samples. NaN if the map of the image is zero everywhere.

    Args:
        samples: Noisy images for each image.
        radius: Half the width of uniform noise, or the standard deviation of Gaussian noise, in the unit of the model's input.
        noise: "uniform" or "gaussian".
        normalised: Compare maps normalised to [0, 1].

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Bhatt et al., "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020 (arXiv 2005.00631), average
        sensitivity, divided by the norm as in Quantus' `AvgSensitivity`; noise as in `max_sensitivity`.

    Example:
        >>> average_sensitivity().settings["radius"]
        0.02
    """
    check_samples(samples=samples, radius=radius)
    check_noise(noise)
    return Metric(
        "average_sensitivity",
        partial(_average_sensitivity, samples=samples, radius=radius, noise=noise),
        higher_is_better=False,
        label="average sensitivity",
        needs=("maps", "images", "explain", "draw") if normalised else ("attributions", "images", "attribute", "draw"),
        settings={"samples": samples, "radius": radius, "noise": noise, "normalised": normalised},
        passes=f"the method {samples} times",
        paper="Bhatt et al. 2020, arXiv 2005.00631",
        family="robustness",
        bounds=None,
        altered_by="noise",
    )


def _local_lipschitz(
    maps: Tensor,
    images: Tensor,
    inspect: Callable[[Tensor], Inspection],
    draw: Draw,
    *,
    samples: int,
    radius: float,
    noise: str,
    normalised: bool,
) -> Tensor:
    quotients = []
    for number in range(samples):
        changed = images + noise_like(images, draw, noise, radius, f"local-lipschitz {number}")
        after = inspect(changed)
        moved = (after.maps if normalised else after.attributions).double() - maps.double()
        quotients.append(_norm(moved) / _norm(changed.double() - images.double()))
    return reduce(torch.maximum, quotients)


def _average_sensitivity(
    maps: Tensor,
    images: Tensor,
    again: Callable[[Tensor], Tensor],
    draw: Draw,
    *,
    samples: int,
    radius: float,
    noise: str,
) -> Tensor:
    changes = changes_under_noise(maps, images, again, draw, samples, radius, noise)
    return torch.stack(list(changes)).mean(dim=0)


def _norm(differences: Tensor) -> Tensor:
    return differences.flatten(1).norm(dim=1)


METRICS = (local_lipschitz(), average_sensitivity())
