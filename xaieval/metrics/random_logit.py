"""Random logit: whether the map depends on the class that it explains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from xaieval.errors import MetricError, choose_from
from xaieval.metrics.metric import Metric
from xaieval.metrics.similarity import fits, resolve_similarity

__all__ = ["random_logit"]

Draw = Callable[..., Tensor]
Classes = Callable[[Tensor, Tensor, Draw], Iterator[Tensor]]


def random_logit(classes: str = "random", similarity: str = "ssim") -> Metric:
    """Random logit: similarity of the map to the map of another class of the same image, -1 to 1, lower is better.

    A map that hardly changes with the class shows what is in the image, not what speaks for the class. Classes share evidence,
    so no good value is known: compare methods. With "random" the other class is drawn for each image from all others, and
    depends on the seed and the image's id. "second" is the class of the highest other logit, where the question is hardest;
    "all" is the mean over all other classes, for models of a few. Only of classifiers.

    NaN if a map has NaN or inf, if a map is constant and the similarity is a correlation, and for SSIM if the image is smaller
    than its window of 11 pixels.

    Args:
        classes: "random", "second" or "all".
        similarity: "ssim" as in the paper, "pearson" or "spearman", of maps in [0, 1].

    Raises:
        MetricError: A setting is unknown. In a run: the model is not a classifier, or has one output.

    Reference:
        Sixt et al., "When Explanations Lie: Why Many Modified BP Attributions Fail", ICML 2020 (arXiv 1912.09818), the random
        logit; Quantus' `RandomLogit`.

    Example:
        >>> random_logit("second").passes
        'the method once'
    """
    if classes not in CLASSES:
        raise MetricError(f"no classes {classes!r}; {choose_from(classes, CLASSES)}")
    resolve_similarity(similarity)
    return Metric(
        "random_logit",
        partial(_random_logit, others=CLASSES[classes], similarity=similarity),
        higher_is_better=False,
        label="random logit",
        needs=("maps", "logits", "targets", "explain_class", "draw"),
        settings={"classes": classes, "similarity": similarity},
        passes="the method for each other class" if classes == "all" else "the method once",
        paper="Sixt et al. 2020, arXiv 1912.09818",
        family="randomisation",
        bounds=(-1.0, 1.0),
        altered_by="other classes",
    )


def _random_logit(
    maps: Tensor,
    logits: Tensor,
    targets: Tensor,
    explain_class: Callable[[Tensor], Tensor],
    draw: Draw,
    *,
    others: Classes,
    similarity: str,
) -> Tensor:
    if logits.shape[1] < 2:
        raise MetricError("random_logit compares maps of two classes, and the model has one output; leave the metric out")
    if not fits(similarity, maps):
        return torch.full((len(maps),), torch.nan, dtype=torch.float64, device=maps.device)
    alike = resolve_similarity(similarity)
    return torch.stack([alike(maps, explain_class(other)) for other in others(logits, targets, draw)]).mean(dim=0)


def _drawn(logits: Tensor, targets: Tensor, draw: Draw) -> Iterator[Tensor]:
    """One of the other classes, each as likely as any."""
    yield _other((draw((), "random-logit") * (logits.shape[1] - 1)).long(), targets)


def _second(logits: Tensor, targets: Tensor, draw: Draw) -> Iterator[Tensor]:
    yield logits.scatter(1, targets[:, None], -torch.inf).argmax(dim=1)


def _all(logits: Tensor, targets: Tensor, draw: Draw) -> Iterator[Tensor]:
    for number in range(logits.shape[1] - 1):
        yield _other(torch.full_like(targets, number), targets)


def _other(numbers: Tensor, targets: Tensor) -> Tensor:
    """The classes with these numbers, if the target is left out of the count."""
    return numbers + (numbers >= targets)


CLASSES: dict[str, Classes] = {"random": _drawn, "second": _second, "all": _all}

METRICS = (random_logit(),)
