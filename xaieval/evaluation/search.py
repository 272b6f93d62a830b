"""The best layer and method for a model, at a part of the price of scoring them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from torch import nn

from xaieval.config.counts import check_count
from xaieval.config.groups import Groups
from xaieval.config.keywords import with_keywords
from xaieval.config.protocol import Protocol
from xaieval.errors import ExplainerError
from xaieval.evaluation.first_pass import first_pass
from xaieval.evaluation.image_order import first_readable
from xaieval.evaluation.job import borrowed, started
from xaieval.evaluation.loop import measured_run
from xaieval.evaluation.maps import raw_maps, run_batch
from xaieval.evaluation.race import Race
from xaieval.evaluation.request import Request, batches_of, check_request, check_target_of_all
from xaieval.evaluation.scores import Scores
from xaieval.explainers import Explainer, Method, needs_model
from xaieval.explainers.catalogue import METHODS
from xaieval.explainers.controls import CONTROLS
from xaieval.inference.options import Inference, InferenceOptions
from xaieval.inference.targets import Target
from xaieval.metrics import Metric, resolve_metrics
from xaieval.models.blackbox import Function
from xaieval.probe.requested_layers import Layers
from xaieval.results.rows import Pair

__all__ = ["SearchResult", "search"]

SHARED = "shared"  # in `passes` of the methods that share one pass over the images


@dataclass(frozen=True, repr=False)
class SearchResult:
    """The outcome of a search.

    Attributes:
        scores: The rows and the manifest of what was measured. A pair that was dropped has rows only of the images until then.
    """

    scores: Scores

    @property
    def best(self) -> Pair:
        """Layer and method with the best mean of those that are left."""
        layer, method = self._race["best"]
        return layer, method

    @property
    def undecided(self) -> list[Pair]:
        """The other pairs that are left, which cannot be told from the best one; by their means, best first."""
        return [(layer, method) for layer, method in self._race["undecided"]]

    @property
    def left_out(self) -> dict[Pair, str]:
        """The pairs that did not take part, with the reason: methods that do not work at this layer, or on this model."""
        return {(entry["layer"], entry["method"]): entry["reason"] for entry in self._race["left_out"]}

    @property
    def spent(self) -> float:
        """The share of the full grid, all pairs on all images, that was measured, in [0, 1]."""
        return float(self._race["spent"])

    @property
    def reason(self) -> str:
        """How the search ended, as a sentence."""
        return str(self._race["reason"])

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """All pairs that took part: the best, those that cannot be told from it, then the others, the last one dropped first.

        The mean of a dropped pair is over the images until then. That is enough to know that it is not the best; it is no
        estimate of how far it is behind.

        Args:
            level: Level of the intervals, in (0, 1).

        Returns:
            Index `(layer, method)`; the mean of the metric with its interval, `n_images`, `outcome` ("best", "undecided" or
            "dropped") and `beaten_by`, the pair that was certainly better.
        """
        by = self._race["by"]
        summary = self.scores.summary(level)[[by, f"{by}_low", f"{by}_high", "n_images"]]
        dropped = {(entry["layer"], entry["method"]): entry["beaten_by"] for entry in self._race["dropped"]}
        order = [self.best, *self.undecided, *dropped]
        outcomes = ["best"] + ["undecided"] * len(self.undecided) + ["dropped"] * len(dropped)
        rivals = ["{1} at {0}".format(*dropped[pair]) if pair in dropped else "" for pair in order]
        return summary.reindex(order).assign(outcome=outcomes, beaten_by=rivals)

    def __repr__(self) -> str:
        spent = f"{100 * self.spent:.1f} % of the full grid was measured"
        out = f"{len(self.left_out)} pairs did not take part; see left_out" if self.left_out else ""
        return "\n".join(filter(None, [f"{self.reason}; {spent}", str(self.table()), out]))

    @property
    def _race(self) -> Mapping[str, Any]:
        return self.scores.manifest["stop"]


def search(
    model: nn.Module | Function,
    loader: Iterable[Any],
    layers: Layers = "auto",
    methods: Method | Sequence[Method] = "fast",
    by: str | Metric = "insertion",
    target: Target | None = None,
    protocol: str | Protocol = "default",
    *,
    error: float = 0.05,
    max_images: int | None = None,
    output_dir: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    seed: int = 0,
    strict: bool = False,
    inference: Inference | None = None,
    **options: Unpack[InferenceOptions],
) -> SearchResult:
    """The best pair of layer and method for a model, without scoring all pairs on all images.

    The images come in random order, and a pair is no longer measured once another one is certainly better on the whole data
    set. The statement holds at any time, for images drawn from a finite set; other images may give another best pair. Pairs
    that are hardly different stay to the end, or to `max_images`; the result then says that they cannot be told apart.

    Args:
        model: As for `xaieval.score`.
        loader: A `DataLoader` over a data set with a length.
        layers: As for `xaieval.score`.
        methods: "fast": those that share one pass over the images; "all": every method of xaieval but control maps, of which
            some take thousands of passes per image; or methods as for `xaieval.score`. Of "fast" and "all", those that do not
            work on the model or at a layer are left out, and the result gives the reason.
        by: The metric that decides: a name or a `Metric` with values in percent that has a direction.
        target: As for `xaieval.score`.
        protocol: As for `xaieval.score`.
        error: Probability, in (0, 1), that the best pair of the whole data set is dropped.
        max_images: Number of images after which the search ends, whoever is left.
        output_dir: As for `xaieval.score`; the same call resumes an interrupted search.
        resume: As for `xaieval.score`.
        progress: As for `xaieval.score`.
        seed: Of the order of the images and of random explainers.
        strict: As for `xaieval.score`.
        inference: As for `xaieval.score`.
        **options: Fields of `Inference` as keywords.

    Returns:
        The best pair, those that cannot be told from it, the rows, and what was spent.

    Raises:
        UsageError: One of its kinds, for arguments that cannot work.
        RunError: As for `xaieval.score`.
        CheckError: As for `xaieval.score`.

    Reference:
        Maron and Moore, "Hoeffding races", NIPS 1993, for the race; the tests are those of
        `xaieval.analysis.stats.sequential.SignTest`.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> images = DataLoader(torch.rand(8, 3, 32, 32), batch_size=4)
        >>> found = search(model, images, ["0", "1"], ["gradcam", "layercam"], "average_drop", progress=False)
        >>> len(found.table()), found.table()["outcome"].iloc[0]
        (4, 'best')
    """
    how = with_keywords(search, inference or Inference(), options)
    check_count("max_images", max_images, optional=True)
    metrics = resolve_metrics([by])
    race = Race(by=metrics[0].name, error=error, max_images=max_images)
    request = check_request(model, layers, _candidates(methods), metrics, target, protocol, how, seed)
    check_target_of_all(request.protocol)
    if isinstance(methods, str) and methods in SETS:
        race = replace(race, left_out=_unfit(request, loader))
    return SearchResult(
        measured_run(
            request,
            loader,
            race,
            Groups(),
            max_images=None,
            output_dir=output_dir,
            resume=resume,
            progress=progress,
            strict=strict,
        )
    )


def _all() -> list[Explainer]:
    return [method for method in METHODS.values() if method not in CONTROLS]


def _fast() -> list[Explainer]:
    return [method for method in _all() if SHARED in str(getattr(method, "passes", ""))]


SETS = {"fast": _fast, "all": _all}


def _candidates(methods: Method | Sequence[Method]) -> Any:
    """The methods that `methods=` of a search names."""
    return SETS[methods]() if isinstance(methods, str) and methods in SETS else methods


def _unfit(request: Request, loader: Iterable[Any]) -> dict[Pair, str]:
    """The pairs whose method refuses the model or the layer, tried on the first image that can be read."""
    reasons = {}
    with borrowed(request) as device:
        first, _ = first_readable(batches_of(request, loader, Groups()))
        limit = request.inference.limit(1)
        looked = first_pass(request, first, device, limit)
        image = first.part(0, 1, [])
        with started(looked.request, image, device, looked.layers, limit) as job:
            for pair, (explainer, layer) in zip(job.names, job.pairs, strict=True):
                if layer is None and not needs_model(explainer):
                    continue  # sees only what the model answers, so that it fits all
                try:
                    one = job.of([pair])
                    raw_maps(one, run_batch(one, image))
                except ExplainerError as error:
                    reasons[pair] = str(error)
    return reasons
