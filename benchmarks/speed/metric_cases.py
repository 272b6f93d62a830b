"""The metrics that are timed against other libraries: the settings of both sides, and why numbers differ where they do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import other_metrics as others
import quantus_metrics as quantus
import torch
from given import Draw, Given
from networks import Network, Scale
from torch import Tensor, nn

from xaieval import metrics
from xaieval.metrics import Metric, label_maps

__all__ = ["PEERS", "SALIENCY", "Case", "cases_of", "chosen"]

QUANTUS, CAPTUM, GRAD_CAM, XPLIQUE = PEERS = ("Quantus", "captum", "pytorch-grad-cam", "Xplique (formula)")
SALIENCY = "captum:Saliency"  # the method of all metrics that explain images anew, on both sides
EXACT = 1e-3  # of the largest value of the peer: float32, and BatchNorms that are folded into convolutions
Found = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A metric of xaieval and its counterpart.

    Attributes:
        metric: Name in tables.
        peer: One of `PEERS`.
        ours: xaieval's metric.
        theirs: The counterpart: from what is given and the images of a batch to its result.
        function: xaieval's pure function on what is given, which is called in the place of `score`; `ours` is then its metric.
        explains: Whether both explain the images, by captum's Saliency, in the measured time; otherwise both get finished maps.
        images: Number of images.
        passes: Forward passes that xaieval needs for each image; None where it also needs gradients, 0 where it needs none.
        in_our_unit: From the counterpart's result to xaieval's numbers, `[N]`.
        checked: xaieval's metric for the check of the numbers, if its settings differ.
        fixed: Context for that check, such as fixed random weights.
        alone: Whether the check gives the counterpart one image at a time, because its numbers depend on the batch.
        least: Smallest batch of the counterpart.
        tolerance: Of the check, as a share of the largest value.
        deviation: Why the numbers are not compared, or differ.
    """

    metric: str
    peer: str
    ours: Metric
    theirs: Found
    images: int
    function: Callable[[Given], Tensor] | None = None
    explains: bool = False
    passes: int | None = None
    in_our_unit: Callable[[Any, Given], np.ndarray] = lambda found, given: np.asarray(found, dtype=float)
    checked: Metric | None = None
    fixed: Callable[[], AbstractContextManager[Any]] = nullcontext
    alone: bool = False
    least: int = 1
    tolerance: float = EXACT
    deviation: str = ""

    @property
    def name(self) -> str:
        """Metric and peer."""
        return f"{self.metric}, {self.peer}"

    def found_by_peer(self, given: Given, size: int, draw: Draw | None = None) -> Any:
        """The counterpart's result, without its remarks on names of other packages that it calls."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.theirs(given, size, draw)


@dataclass(frozen=True)
class Size:
    """How much work the metrics do; defaults of metrics are larger on both sides, and take longer by the same factor.

    Attributes:
        steps: Steps of a curve, and random subsets.
        samples: Explanations of an image.
        patch: Side of square regions.
        shares: Shares of pixels that ROAD removes, in percent.
        images: Images of most metrics.
        few: Images of metrics that take seconds for an image.
        many: Images of metrics that need no passes.
    """

    steps: int = 16
    samples: int = 4
    patch: int = 14
    shares: tuple[int, ...] = (20, 50, 80)
    images: int = 6
    few: int = 2
    many: int = 32


QUICK = Size(steps=4, samples=2, patch=16, shares=(50,), images=2, few=2, many=4)


def cases_of(network: Network, scale: Scale) -> list[Case]:
    """All cases for a network."""
    size, pixels = QUICK if scale.quick else Size(), scale.side**2
    return [
        *_curves(size, pixels),
        *_road(size),
        *_regions(size, scale.side),
        *_correlations(size, pixels),
        *_robustness(size, scale.side),
        *_randomisation(network, size),
        *_of_maps(size),
    ]


def _curves(size: Size, pixels: int) -> list[Case]:
    flipping = quantus.by_maps("PixelFlipping", features_in_step=pixels // size.steps, perturb_baseline=0.0)
    known = {"images": size.images, "passes": size.steps + 1}
    make = partial(others.xplique_causal_fidelity, size.steps)
    return [
        Case("insertion", XPLIQUE, metrics.insertion(size.steps, "zero"), make(inserts=True), **known),
        Case("deletion", XPLIQUE, metrics.deletion(size.steps, "zero"), make(inserts=False), **known),
        Case("pixel flipping", QUANTUS, metrics.morf(size.steps, "zero"), flipping, in_our_unit=_over_curve, **known),
    ]


def _over_curve(curves: Any, given: Given) -> np.ndarray:
    """The area over curves that lack their first point."""
    first = given.confidence[:, None]
    whole = np.concatenate([first, np.asarray(curves)], axis=1)
    return first[:, 0] - (whole[:, :-1] + whole[:, 1:]).mean(axis=1) / 2


def _road(size: Size) -> list[Case]:
    shares = tuple(share / 100 for share in size.shares)
    both = Case(
        "ROAD",
        GRAD_CAM,
        metrics.road(shares),
        others.grad_cam_road([100 - share for share in size.shares]),
        images=size.few,
        passes=2 * len(shares) + 1,
        checked=metrics.road(shares, noise=0),
        tolerance=0.02,  # its threshold removes a pixel more or less
    )
    most = Case(
        "ROAD",
        QUANTUS,
        metrics.road_morf(shares),
        quantus.by_maps("ROAD", percentages=list(size.shares)),
        images=size.few,
        passes=len(shares) + 1,
        deviation="the share of images that keep their class there, the confidence here",
    )
    return [both, most]


def _regions(size: Size, side: int) -> list[Case]:
    regions = min(size.steps, (side // size.patch) ** 2)
    removing = quantus.by_maps("RegionPerturbation", patch_size=size.patch, regions_evaluation=regions, perturb_baseline=0.0)
    segments = quantus.by_maps("IROF", segmentation_method="slic", perturb_baseline=0.0, return_aggregate=False)
    return [
        Case(
            "region perturbation",
            QUANTUS,
            metrics.region_perturbation(regions, size.patch, "zero"),
            removing,
            images=size.images,
            passes=regions + 1,
            in_our_unit=lambda falls, given: np.asarray(falls).sum(axis=1) / (regions + 1),
        ),
        Case("IROF", QUANTUS, metrics.irof(baseline="zero"), segments, images=size.few, in_our_unit=_share, alone=True),
    ]


def _share(areas: Any, given: Given) -> np.ndarray:
    """From the area over a curve without its first point, in superpixels, to that over a whole axis from 0 to 1."""
    labels = label_maps(given.images, "slic")
    first = []
    for image, target, label, one in zip(given.images, given.targets, labels, given.maps, strict=True):
        means = torch.stack([one[label == number].mean() for number in range(int(label.max()) + 1)])
        changed = image.masked_fill(label == means.argmax(), 0)
        first.append(float(given.confidences(changed[None], target[None])))
    count = labels.flatten(1).amax(dim=1).numpy() + 1
    return (np.asarray(areas) - (1 + np.array(first) / given.confidence) / 2) / count


def _correlations(size: Size, pixels: int) -> list[Case]:
    count = pixels // 10
    ours = metrics.faithfulness_correlation(size.steps, count)
    theirs = quantus.by_maps(
        "FaithfulnessCorrelation",
        quantus.same_pixels,
        nr_runs=size.steps,
        subset_size=count,
        perturb_baseline=0.0,
        return_aggregate=False,
    )
    ranked = quantus.by_maps(
        "SensitivityN", features_in_step=pixels // size.steps, perturb_baseline=0.0, return_aggregate=False
    )
    known = {"images": size.images, "passes": size.steps + 1}
    return [
        Case("faithfulness correlation", QUANTUS, ours, theirs, tolerance=0.01, **known),
        Case(
            "sensitivity-n",
            QUANTUS,
            metrics.sensitivity_n((0.1, 0.3), size.steps // 2),
            ranked,
            least=2,
            deviation="another quantity there, of ranked pixels over images; as many passes",
            **known,
        ),
    ]


def _robustness(size: Size, side: int) -> list[Case]:
    radius, spread, change = 0.02, 0.1, 0.2
    sensitivity = metrics.max_sensitivity(size.samples, radius)
    noise = quantus.same_noise("uniform", radius, "max-sensitivity")
    theirs = quantus.by_explaining("MaxSensitivity", noise, nr_samples=size.samples, lower_bound=radius)
    patches = quantus.by_maps(
        "Infidelity", perturb_patch_sizes=[side // 4], n_perturb_samples=max(size.steps // 16, 1), perturb_baseline=0.0
    )
    gaussian = metrics.infidelity(size.steps, change, "gaussian")
    explained = {"images": size.images, "explains": True}
    return [
        Case(
            "infidelity",
            CAPTUM,
            gaussian,
            others.captum_infidelity(size.steps, change),
            images=size.images,
            passes=size.steps + 1,
            tolerance=0.01,
        ),
        Case(
            "infidelity",
            QUANTUS,
            metrics.infidelity(16),
            patches,
            images=size.images,
            passes=17,
            deviation="patches add up there, and all samples are equal; as many passes",
        ),
        Case(
            "max-sensitivity",
            CAPTUM,
            sensitivity,
            others.captum_max_sensitivity(size.samples, radius),
            tolerance=0.01,
            **explained,
        ),
        Case("max-sensitivity", QUANTUS, sensitivity, theirs, tolerance=0.01, **explained),
        Case(
            "local Lipschitz",
            QUANTUS,
            metrics.local_lipschitz(size.samples, spread, normalised=False),
            quantus.by_explaining(
                "LocalLipschitzEstimate",
                quantus.same_noise("gaussian", spread, "local-lipschitz"),
                nr_samples=size.samples,
                perturb_std=spread,
            ),
            tolerance=0.01,
            **explained,
        ),
    ]


def _randomisation(network: Network, size: Size) -> list[Case]:
    model = network.model
    resettable = [path for path, module in model.named_modules() if hasattr(module, "reset_parameters")]
    holders = [
        path for path, module in model.named_modules() if path and next(module.parameters(recurse=False), None) is not None
    ]
    last = holders[-(len(holders) // 4) :]
    similarity = "similarity of one line of pixels there, of images here; classes are drawn there by another generator"
    return [
        Case(
            "MPRT",
            QUANTUS,
            metrics.mprt(modules=resettable, absolute=True),
            quantus.by_explaining("MPRT", abs=True),
            images=size.few,
            explains=True,
            in_our_unit=lambda found, given: np.mean([found[path] for path in resettable], axis=0),
            fixed=partial(_fixed_resets, model),
            tolerance=0.02,
        ),
        Case(
            "MPRT",
            XPLIQUE,
            metrics.mprt("complete", modules=last),
            others.xplique_model_randomisation,
            images=size.images,
            explains=True,
            deviation="random weights are uniform in [0, 1] there, drawn by each module's own reset here",
        ),
        Case(
            "random logit",
            QUANTUS,
            metrics.random_logit(),
            quantus.by_explaining("RandomLogit", num_classes=1000),
            images=size.images,
            explains=True,
            deviation=similarity,
        ),
        Case(
            "random logit",
            XPLIQUE,
            metrics.random_logit(),
            others.xplique_random_logit,
            images=size.images,
            explains=True,
            tolerance=0.01,
        ),
    ]


class _fixed_resets:  # noqa: N801  # a context manager
    """Modules whose reset always gives the same weights, so that two libraries randomise alike."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [module for module in model.modules() if hasattr(module, "reset_parameters")]

    def __enter__(self) -> None:
        for module in self.modules:
            module.reset_parameters = partial(_reset, module)

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            del module.reset_parameters


def _reset(module: nn.Module) -> None:
    type(module).reset_parameters(module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            scale: Tensor = parameter.abs().mean()
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def _of_maps(size: Size) -> list[Case]:
    known = {"images": size.many, "passes": 0}
    sparseness, pointing = metrics.METRICS["sparseness"], metrics.pointing_game(0)

    def hits(given: Given) -> Tensor:
        return metrics.pointing_hit(given.maps, given.masks, tolerance=0)

    return [
        Case("sparseness", QUANTUS, sparseness, quantus.by_maps("Sparseness", abs=True), tolerance=1e-2, **known),
        Case("sparseness", XPLIQUE, sparseness, others.xplique_sparseness, **known),
        *(
            Case(
                name,
                QUANTUS,
                pointing,
                quantus.by_maps_and_masks("PointingGame"),
                in_our_unit=lambda hits, given: 100 * np.asarray(hits, dtype=float),
                function=function,
                **known,
            )
            for name, function in (("pointing game", None), ("pointing game (function)", hits))
        ),
        Case(
            "sparseness (function)",
            QUANTUS,
            sparseness,
            quantus.by_maps("Sparseness", abs=True),
            function=lambda given: metrics.sparseness(given.maps),
            tolerance=1e-2,
            **known,
        ),
    ]


def chosen(cases: Sequence[Case], only: str | None) -> list[Case]:
    """The cases of the metrics whose names are given, separated by commas; all by default."""
    names = {case.metric for case in cases} if only is None else set(only.split(","))
    unknown = names - {case.metric for case in cases}
    if unknown:
        raise SystemExit(f"no metric {sorted(unknown)}; there are {sorted({case.metric for case in cases})}")
    return [case for case in cases if case.metric in names]
