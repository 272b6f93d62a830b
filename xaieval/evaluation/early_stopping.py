"""When a run has seen enough images: the order of its layers is certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xaieval.analysis.stats.sequential import Floats, SignTest, on_grid
from xaieval.errors import ConfigError, MetricError, choose_from
from xaieval.results.rows import COUNTED

__all__ = ["Stop", "Stopping", "certain", "resolve_stop"]

Rule = Literal["ranking", "best", "worst"]
Signs = NDArray[np.int64]

_ROUNDING = 1e-6  # of the range: how far outside its bounds a value may be by rounding


@dataclass(frozen=True, kw_only=True)
class Stop:
    """What has to be certain before a run stops.

    Args:
        rule: "ranking": the order of all layers; "best" or "worst": which layers are the k best or worst, in whatever order.
        k: of "best" and "worst"; 1 unless told.
        by: a metric of the run, whose mean over the images puts the layers in order.
        error: probability that a run stops with another order (or set) than the whole data set gives, in (0, 1), over all
            methods together and however often it is looked at. Layers that tie exactly in the whole data set may come in any
            order.
        min_images: stop after no fewer images.
        max_images: stop after so many, certain or not.

    Raises:
        ConfigError: a value is out of range, or two contradict each other.

    Example:
        >>> Stop(rule="best", k=2).error
        0.05
    """

    rule: Rule = "ranking"
    k: int | None = None
    by: str = "average_drop"
    error: float = 0.05
    min_images: int = 50
    max_images: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ConfigError(f"no rule {self.rule!r} to stop by; {choose_from(self.rule, get_args(Rule))}")
        if self.rule == "ranking" and self.k is not None:
            raise ConfigError(f"k={self.k!r} belongs to the rules 'best' and 'worst', and the rule is 'ranking'; choose one")
        for name in ("k", "min_images", "max_images"):
            _check_count(name, getattr(self, name), optional=name != "min_images")
        if not isinstance(self.error, int | float) or not 0 < self.error < 1:
            raise ConfigError(f"error is a probability in (0, 1), such as 0.05; got {self.error!r}")
        if self.max_images is not None and self.max_images < self.min_images:
            raise ConfigError(
                f"max_images={self.max_images} is below min_images={self.min_images}; raise the one or lower the other"
            )


def resolve_stop(stop: str | Stop | None) -> Stop | None:
    """A `Stop` by the name of its rule, with the defaults for the rest; None stays None.

    Raises:
        ConfigError: no rule has that name.

    Example:
        >>> resolve_stop("worst")
        Stop(rule='worst', k=None, by='average_drop', error=0.05, min_images=50, max_images=None)
    """
    if stop is None or isinstance(stop, Stop):
        return stop
    if stop not in get_args(Rule):
        raise ConfigError(f"no rule {stop!r} to stop by; {choose_from(stop, get_args(Rule))}; or give a Stop(...)")
    return Stop(rule=stop)  # type: ignore[arg-type]  # one of the words, as was just looked up


def certain(signs: Signs, rule: Rule = "ranking", k: int = 1) -> NDArray[np.bool_]:
    """Whether signs of differences settle the order of L layers, or which k layers are the best or the worst.

    Args:
        signs: `[..., L, L]`: 1 where the layer of the row is certainly better than that of the column, -1 where it is
            certainly worse, 0 where neither is certain.
        rule: see `Stop`.
        k: size of the set, below L.

    Returns:
        `[...]`. Signs that contradict each other settle no order.

    Example:
        >>> import numpy as np
        >>> signs = np.array([[0, 1, 1], [-1, 0, 0], [-1, 0, 0]])  # the first is ahead, the others are not settled
        >>> bool(certain(signs, "ranking")), bool(certain(signs, "best"))
        (False, True)
    """
    better = -signs if rule == "worst" else signs
    if rule == "ranking":
        ahead = np.sort((better == 1).sum(axis=-1), axis=-1)
        return np.asarray((ahead == np.arange(signs.shape[-1])).all(axis=-1))
    order = np.argsort(-better.sum(axis=-1), axis=-1, kind="stable")
    inside = np.take_along_axis(better, order[..., :k, None], axis=-2)
    across = np.take_along_axis(inside, order[..., None, k:], axis=-1)
    return np.asarray((across == 1).all(axis=(-1, -2)))


@dataclass(frozen=True)
class _Contest:
    """The layers of one method, and which tests are theirs.

    Attributes:
        method: its name.
        layers: in order of execution.
        columns: of the values that belong to these layers.
        tests: of the pairs of these layers.
    """

    method: str
    layers: list[str]
    columns: slice
    tests: slice

    @property
    def pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The first and the second layer of each pair."""
        return np.triu_indices(len(self.layers), 1)


class Stopping:
    """Watches the rows of a run whose images come in random order, and says when the order of its layers is certain.

    Layers are compared within a method; methods of fewer than two layers (control maps have one, "input") take no part. As in
    `Scores.select_layers`, an image takes part if its rows count at every layer of the method, so that the means of all layers
    are of the same images. Each pair of layers is a `SignTest` of their difference.

    Args:
        stop: what has to be certain.
        population: N, the number of images that there are, readable or not.
        pairs: (layer, method) of the run, in order.
        higher_is_better: by the name of each metric of the run.
        bounds: of the metric's values for one image.

    Attributes:
        stop: what has to be certain.
        population: N.

    Raises:
        MetricError: the run has no such metric, or no method with two layers, or not more than `k`.

    Example:
        >>> pairs = [("p3", "gradcam"), ("p5", "gradcam")]
        >>> stopping = Stopping(Stop(min_images=10), 100, pairs, {"average_drop": False})
        >>> drops = pd.DataFrame({"p3": 80.0, "p5": 20.0}, index=pd.RangeIndex(10, name="image_id"))
        >>> rows = drops.melt(ignore_index=False, var_name="layer", value_name="average_drop").reset_index()
        >>> stopping.add(rows.assign(method="gradcam", status="ok"))
        >>> stopping.reason()
        'the order of 2 layers by average_drop is certain at error 0.05 after 10 of 100 images'
        >>> stopping.orders()
        {'gradcam': ['p5', 'p3']}
    """

    def __init__(
        self,
        stop: Stop,
        population: int,
        pairs: Sequence[tuple[str, str]],
        higher_is_better: Mapping[str, bool],
        bounds: tuple[float, float] = (0.0, 100.0),
    ) -> None:
        if stop.by not in higher_is_better:
            raise MetricError(f"the run has no metric {stop.by!r} to stop by; {choose_from(stop.by, higher_is_better)}")
        self.stop, self.population = stop, population
        self._contests = _contests(pairs, stop)
        self._bounds, self._side = bounds, 1 if higher_is_better[stop.by] else -1
        firsts, seconds = zip(*(contest.pairs for contest in self._contests), strict=True)
        starts = [contest.columns.start for contest in self._contests]
        self._first = np.concatenate([start + first for start, first in zip(starts, firsts, strict=True)])
        self._second = np.concatenate([start + second for start, second in zip(starts, seconds, strict=True)])
        self._test = SignTest(population, len(self._first))
        self._totals: Floats = np.zeros(self._contests[-1].columns.stop)
        self._left_out = [0] * len(self._contests)
        self._ids: set[Any] = set()

    def add(self, rows: pd.DataFrame) -> Stopping:
        """The rows of one batch of images, those that could not be read among them; in the order in which they were drawn.

        Args:
            rows: columns `image_id`, `layer`, `method`, `status` and the metric; each image once, with all its rows.

        Raises:
            MetricError: an image comes twice, there are more than N, or a value is outside the bounds.
        """
        goodness = self._goodness(rows)
        for number, contest in enumerate(self._contests):
            values = goodness[:, contest.columns]
            missing = ~np.isfinite(values).all(axis=1)
            # N has to stay known, so an image without all its values is not skipped: its differences are zero. That leaves the
            # sum of all differences, and so the sign of their mean, as it is over the images that take part.
            values[missing] = 0
            self._left_out[number] += int(missing.sum())
        self._test.add(goodness[:, self._first] - goodness[:, self._second])
        self._totals += goodness.sum(axis=0)
        return self

    @property
    def images(self) -> int:
        """How many images were seen."""
        return self._test.seen

    @property
    def decided(self) -> bool:
        """Whether what the rule asks for is certain, after at least `min_images`, or known since all images were seen."""
        if self.images == self.population:
            return True
        return self.images >= self.stop.min_images and all(self._is_certain(contest) for contest in self._contests)

    @property
    def finished(self) -> bool:
        """Whether the run should stop: it is decided, or `max_images` were seen."""
        return self.decided or (self.stop.max_images is not None and self.images >= self.stop.max_images)

    def orders(self) -> dict[str, list[str]]:
        """By method its layers, best first: by what is certain, and where nothing is, by the images so far."""
        found = {}
        for contest in self._contests:
            signs = self._signs(contest)
            totals = self._totals[contest.columns]
            likely = np.where(signs == 0, np.sign(totals[:, None] - totals), signs)
            order = np.lexsort((-totals, -likely.sum(axis=1)))
            found[contest.method] = [contest.layers[index] for index in order]
        return found

    def undecided(self) -> list[tuple[str, str, str]]:
        """Method and two layers of each pair that stands in the way of a decision; for "best" and "worst" of those across."""
        if self.decided:
            return []
        return [pair for contest in self._contests for pair in self._open(contest)]

    def reason(self) -> str:
        """Why the run stops, or does not stop yet, in words."""
        what = self._what()
        if self.images == self.population:
            return f"{what} known: all {self.population} images were seen"
        after = f"certain at error {self.stop.error:g} after {self.images} of {self.population} images"
        if self.decided:
            return f"{what} {after}"
        if all(self._is_certain(contest) for contest in self._contests):
            return f"{what} {after}, but min_images is {self.stop.min_images}"
        count = len(self.undecided())
        end = "; max_images is reached" if self.finished else ""
        return f"{what} not {after}: {count} {'pair' if count == 1 else 'pairs'} of layers open{end}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for the manifest."""
        return asdict(self.stop) | {
            "images": self.images,
            "population": self.population,
            "decided": self.decided,
            "reason": self.reason(),
            "orders": self.orders(),
            "undecided": [list(pair) for pair in self.undecided()],
            "left_out": {contest.method: count for contest, count in zip(self._contests, self._left_out, strict=True)},
        }

    def _goodness(self, rows: pd.DataFrame) -> Floats:
        """By image and layer `[n, C]`: the metric in [0, 1], or [-1, 0] if lower is better; NaN where a row does not count."""
        ids = self._new(rows)
        wanted = pd.MultiIndex.from_tuples([(layer, c.method) for c in self._contests for layer in c.layers])
        values = rows[self.stop.by].to_numpy(dtype=float, na_value=np.nan)
        low, high = self._bounds
        share = (values - low) / (high - low)
        columns = wanted.get_indexer(pd.MultiIndex.from_frame(rows[["layer", "method"]]))
        used = rows["status"].isin(COUNTED).to_numpy() & (columns >= 0)
        outside = used & ((share < -_ROUNDING) | (share > 1 + _ROUNDING))
        if outside.any():
            image = rows["image_id"].to_numpy()[outside][0]
            raise MetricError(
                f"{self.stop.by} of image '{image}' is {values[outside][0]:g}, outside [{low:g}, {high:g}], and without bounds "
                "nothing is certain; stop by another metric, or use a confidence that is a probability"
            )
        goodness = np.full((len(ids), len(wanted)), np.nan)
        goodness[ids.get_indexer(pd.Index(rows["image_id"]))[used], columns[used]] = self._side * on_grid(
            np.clip(share[used], 0, 1)
        )
        return goodness

    def _new(self, rows: pd.DataFrame) -> pd.Index[Any]:
        """The images of a batch in their order; none may come twice, or it would count twice among the N."""
        ids = pd.Index(rows["image_id"].unique())
        twice = rows.loc[rows.duplicated(["image_id", "layer", "method"]) | rows["image_id"].isin(self._ids), "image_id"]
        if len(twice):
            raise MetricError(
                f"image '{twice.iloc[0]}' came twice; a run that stops early needs each image once, under its own id"
            )
        if self.images + len(ids) > self.population:
            raise MetricError(
                f"more images came than the {self.population} that the data was said to have; say how many there are"
            )
        self._ids.update(ids)
        return ids

    def _signs(self, contest: _Contest) -> Signs:
        """1 where the layer of the row is certainly better than that of the column, -1 where it is worse, `[L, L]`."""
        # Put the layers of a method in their true order, ties in any fixed way. An order that differs from it has some two
        # neighbours of the true order the wrong way round; a set of the k best that is wrong calls some layer certainly
        # better or worse than the true number k + 1 against the true order. Either way, one of L - 1 hypotheses that are true,
        # and fixed before any image was seen, was rejected. So the error is shared by L - 1 tests, not by all pairs, and one
        # direction of each. (That needs means of the same images: only then the true order has no circles.)
        signs = np.zeros((len(contest.layers), len(contest.layers)), dtype=np.int64)
        share = self.stop.error / sum(len(other.layers) - 1 for other in self._contests)
        signs[contest.pairs] = self._test.signs(share)[contest.tests]
        return signs - signs.T

    def _is_certain(self, contest: _Contest) -> bool:
        return bool(certain(self._signs(contest), self.stop.rule, self.stop.k or 1))

    def _open(self, contest: _Contest) -> list[tuple[str, str, str]]:
        """The pairs that are not certain; for a set, those of a layer that seems inside and one that seems outside."""
        signs, order = self._signs(contest), self.orders()[contest.method]
        k = self.stop.k or 1
        inside = set(order[:k] if self.stop.rule == "best" else order[-k:])
        named = [(contest.layers[i], contest.layers[j]) for i, j in zip(*contest.pairs, strict=True) if signs[i, j] == 0]
        across = [pair for pair in named if self.stop.rule == "ranking" or len(inside & set(pair)) == 1]
        return [(contest.method, first, second) for first, second in across]

    def _what(self) -> str:
        """What the rule asks for, with its verb."""
        counts = sorted({len(contest.layers) for contest in self._contests})
        among = f"{'-'.join(str(count) for count in (counts[0], counts[-1])[: len(counts)])} layers by {self.stop.by}"
        if len(self._contests) > 1:
            among += f" in each of {len(self._contests)} methods"
        if self.stop.rule == "ranking":
            return f"the order of {among} is"
        k = self.stop.k or 1
        return f"the {self.stop.rule} of {among} is" if k == 1 else f"the {k} {self.stop.rule} of {among} are"


def _contests(pairs: Sequence[tuple[str, str]], stop: Stop) -> list[_Contest]:
    """The methods that have layers to compare.

    Raises:
        MetricError: there is none, or one has too few layers for `k`.
    """
    layers: dict[str, list[str]] = {}
    for layer, method in pairs:
        layers.setdefault(method, []).append(layer)
    found: list[_Contest] = []
    column = test = 0
    for method, names in layers.items():
        if len(names) > 1:
            tests = len(names) * (len(names) - 1) // 2
            found.append(_Contest(method, names, slice(column, column + len(names)), slice(test, test + tests)))
            column, test = column + len(names), test + tests
    if not found:
        raise MetricError(
            f"layers are compared within a method, and no method has two; got {dict(layers)}; add layers, or no stop="
        )
    fewest = min(found, key=lambda contest: len(contest.layers))
    if (stop.k or 1) >= len(fewest.layers):
        raise MetricError(f"k is below the number of layers, {len(fewest.layers)} in method {fewest.method!r}; got {stop.k}")
    return found


def _check_count(name: str, value: object, optional: bool) -> None:
    """Refuse what is no positive whole number.

    Raises:
        ConfigError: with the name.
    """
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is a whole number, at least 1{', or None' if optional else ''}; got {value!r}")
