"""Whether metrics agree: rank correlations between them over the pairs of layer and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import scipy  # whose `stats` takes long to import, and is loaded when it is used
from numpy.typing import ArrayLike, NDArray

from xaieval.analysis.stats.estimates import FEWEST
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import bootstrap_means, check_level
from xaieval.analysis.tables import counted, directions, grouping_of, metric_tables
from xaieval.config.groups import Weights
from xaieval.errors import MetricError
from xaieval.results.metric_display import label_of

__all__ = ["Agreement", "agreement"]

Floats = NDArray[np.float64]

_FEWEST_PAIRS = 4  # of layer and method: three have only four rank correlations
_NO_IMAGE = 1e-12  # times a pair is drawn: resampled counts are sums of shares, which have rounding errors
_DIGITS = 9


@dataclass(frozen=True, repr=False, eq=False)
class Agreement:
    """Spearman's rank correlation between metrics over pairs of layer and method; higher is better in every metric.

    Attributes:
        table: One row per two metrics: `metric`, `other`, their `correlation` in [-1, 1], and its interval `low` and `high`.
            NaN where a metric has the same mean for all pairs, or where fewer than four pairs have a mean in both.
        matrix: The correlations, metrics x metrics.
        labels: Short names of the metrics, by name.
        n_pairs: Number of pairs of layer and method.
        n_images: Number of images that have a value in any metric.
        n_groups: Number of their groups; None if images do not come in groups.
        counts: These numbers in words.
        level: Level of the intervals.
    """

    table: pd.DataFrame
    matrix: pd.DataFrame
    labels: Mapping[str, str]
    n_pairs: int
    n_images: int
    n_groups: int | None
    counts: str
    level: float

    @property
    def title(self) -> str:
        """What the numbers are, in one line."""
        return (
            f"rank correlation of {len(self.matrix)} metrics over {self.n_pairs} pairs of layer and method, "
            f"{self.counts}; 1: the same order, better with better"
        )

    def __repr__(self) -> str:
        return f"{self.title}\n{self.matrix.rename(index=self.labels, columns=self.labels).round(2)}"


def agreement(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    names: Sequence[str] | None = None,
    controls: Sequence[str] = (),
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    weights: Weights = "images",
) -> Agreement:
    """How far metrics agree on which layers and methods are better.

    The means of two metrics over the images are ranked over all pairs of layer and method, without control maps, and the ranks
    are correlated. A metric for which lower is better is negated, so that 1 means the same order and -1 the reverse order.

    The interval comes from bootstrap samples of the images, so it holds for other images, not for other layers and methods. The
    noise of means pulls rank correlations towards 0, in the images and once more in their samples; the interval therefore
    reaches as far up as down: the larger of the two distances of the percentile interval. If the images are too few to tell
    the pairs apart, which `rank` shows, the interval contains the correlation too rarely (docs/statistics.md).

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        names: Names of metrics, at least two (default: all that have a direction).
        controls: Names of the methods that are control maps.
        level: Level of the intervals, in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling.
        weights: What a mean counts, if the rows have groups; whole groups are then resampled.

    Returns:
        See `Agreement`. `low` and `high` are NaN for fewer than 4 images, or groups of images.

    Raises:
        MetricError: A metric is unknown or has no direction, or there are fewer than two metrics, or fewer than four pairs.

    Reference:
        Spearman, "The proof and measurement of association between two things", American Journal of Psychology 15, 1904;
        Tomsett et al., "Sanity checks for saliency metrics", AAAI 2020 (arXiv 1912.01451), who correlate metrics.

    Example:
        >>> rows = pd.DataFrame({"image_id": [*range(9)] * 4, "method": "gradcam", "status": "ok"})
        >>> rows["layer"] = sorted(["p2", "p3", "p4", "p5"] * 9)
        >>> rows["drop"] = [40.0] * 9 + [30.0] * 9 + [20.0] * 9 + [10.0] * 9
        >>> rows["gain"] = [1.0] * 9 + [2.0] * 9 + [4.0] * 9 + [3.0] * 9
        >>> entries = [{"name": "drop", "higher_is_better": False}, {"name": "gain", "higher_is_better": True}]
        >>> agreement(rows, entries)
        rank correlation of 2 metrics over 4 pairs of layer and method, n = 9; 1: the same order, better with better
              drop  gain
        drop   1.0   0.8
        gain   0.8   1.0
    """
    check_level(level)
    higher = directions(metrics, names, "to correlate")
    own = rows[~rows["method"].isin(controls)]
    tables = metric_tables(own, list(higher), ["layer", "method"])
    pairs = own[["layer", "method"]].drop_duplicates()
    _check(list(higher), len(pairs))
    images = pd.Index(dict.fromkeys(image for table in tables.values() for image in table.index))
    groups = grouping_of(own, images, weights)
    means, drawn = {}, {}
    for name, better in higher.items():
        sums, counts = _sums((1 if better else -1) * tables[name].reindex(images).to_numpy(dtype=float), groups)
        means[name] = _ratio(sums.sum(axis=0, keepdims=True), counts.sum(axis=0, keepdims=True))
        drawn[name] = _resampled_means(sums, counts, resamples, seed)
    independent = len(images) if groups is None else groups.count
    records: list[dict[str, Any]] = []
    for one, other in combinations(higher, 2):
        correlation = float(_spearman(means[one], means[other])[0])
        low, high = _interval(correlation, _spearman(drawn[one], drawn[other]), independent, level)
        records.append({"metric": one, "other": other, "correlation": correlation, "low": low, "high": high})
    labels = {metric["name"]: label_of(metric) for metric in metrics if metric["name"] in higher}
    table = pd.DataFrame(records)
    matrix, n_groups = _matrix(table["correlation"], list(higher)), None if groups is None else groups.count
    return Agreement(table, matrix, labels, len(pairs), len(images), n_groups, counted(len(images), groups), level)


def _check(names: Sequence[str], pairs: int) -> None:
    """Refuse fewer metrics and pairs than can be correlated."""
    if len(set(names)) < 2:
        raise MetricError(
            f"metrics agree with each other, so it takes at least two that have a direction; got {', '.join(names) or 'none'}"
        )
    if pairs < _FEWEST_PAIRS:
        raise MetricError(
            f"a rank correlation takes at least {_FEWEST_PAIRS} pairs of layer and method, without control maps; got {pairs}: "
            "score more layers or more methods"
        )


def _sums(values: Floats, groups: Grouping | None) -> tuple[Floats, Floats]:
    """What each image or group adds to the numerator and the denominator of the mean of each pair, `[G, P]` both."""
    present = np.where(np.isnan(values), np.nan, 1.0)
    if groups is None:
        return np.nan_to_num(values), np.nan_to_num(present)
    return groups.totals(values), groups.totals(present)


def _resampled_means(sums: Floats, counts: Floats, resamples: int, seed: int) -> Floats:
    """The means in bootstrap samples of images or groups, `[R, P]`; every metric gets the same samples."""
    if not len(sums):
        return np.full((resamples, sums.shape[1]), np.nan)
    return _ratio(*np.split(bootstrap_means(np.hstack([sums, counts]), resamples, seed), 2, axis=1))


def _ratio(sums: ArrayLike, counts: ArrayLike) -> Floats:
    sums, counts = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > _NO_IMAGE)


def _spearman(one: Floats, other: Floats) -> Floats:
    """The rank correlation of each row, `[R]`, over the pairs that both have, of means `[R, P]`.

    NaN for fewer than four pairs, and where all means of a row are the same.
    """
    missing = np.isnan(one) | np.isnan(other)
    ranks = [
        scipy.stats.rankdata(np.where(missing, np.nan, _rounded(means)), axis=1, nan_policy="omit") for means in (one, other)
    ]
    count = (~missing).sum(axis=1, keepdims=True)
    apart = [np.where(missing, 0.0, rank - (count + 1) / 2) for rank in ranks]
    spread = np.sqrt((apart[0] ** 2).sum(axis=1) * (apart[1] ** 2).sum(axis=1))
    enough = (spread > 0) & (count[:, 0] >= _FEWEST_PAIRS)
    return np.divide((apart[0] * apart[1]).sum(axis=1), spread, out=np.full(len(one), np.nan), where=enough)


def _rounded(means: Floats) -> Floats:
    """Means rounded to nine digits of the largest one, so that the same values added in another order are ties."""
    largest = np.nanmax(np.abs(means), axis=1, initial=0.0, keepdims=True, where=~np.isnan(means))
    return np.asarray(np.round(np.divide(means, largest, out=np.zeros_like(means), where=largest > 0), _DIGITS))


def _interval(correlation: float, drawn: Floats, count: int, level: float) -> tuple[float, float]:
    """The interval of a correlation, from those of bootstrap samples of that many images or groups."""
    known = drawn[~np.isnan(drawn)]
    if count < FEWEST or np.isnan(correlation) or not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    reach = float(max(correlation - low, high - correlation))
    return max(correlation - reach, -1.0), min(correlation + reach, 1.0)


def _matrix(correlations: pd.Series[float], names: Sequence[str]) -> pd.DataFrame:
    """The correlations of all pairs of names, in the order of the pairs, as a symmetric matrix."""
    values = np.eye(len(names))
    above = np.triu_indices(len(names), 1)
    values[above] = values.T[above] = correlations
    return pd.DataFrame(values, index=pd.Index(names), columns=pd.Index(names))
