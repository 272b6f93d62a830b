"""Early stopping: a run ends as soon as the order of its layers is certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xaieval.analysis.stats.sequential import Floats, SignTest
from xaieval.config.counts import check_count
from xaieval.config.groups import Weights
from xaieval.errors import ConfigError, MetricError, choose_from
from xaieval.evaluation.drawn_values import DrawnValues
from xaieval.results.rows import Pair

__all__ = ["Stop", "Stopping", "certain", "check_error", "check_stop_of_groups", "resolve_stop"]

Rule = Literal["ranking", "best", "worst"]
Signs = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Stop:
    """What has to be certain before a run stops.

    What is certain is the order in the whole data set, from which images are drawn at random without replacement. Other images
    may give another order. Groups of images do not change that, because each image has the same chance to be drawn at any time,
    but means have to be weighted by images.

    Args:
        rule: "ranking": the order of all layers; "best" or "worst": which layers are the k best or worst, in any order.
        k: Number of layers of "best" and "worst" (default: 1).
        by: A metric of the run; layers are ordered by its mean over the images.
        error: Probability, in (0, 1), that a run stops with another order (or set) than the whole data set gives. It covers all
            methods and all times at which the run may stop. Layers that tie exactly in the whole data set may come in any
            order.
        min_images: Smallest number of images after which a run stops.
        max_images: Number of images after which a run stops even if nothing is certain.

    Raises:
        ConfigError: A value is out of range, or two contradict each other.

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
            raise ConfigError(
                f"k={self.k!r} belongs to the rules 'best' and 'worst', but the rule is 'ranking'; change one of them"
            )
        for name in ("k", "min_images", "max_images"):
            check_count(name, getattr(self, name), optional=name != "min_images", kind=ConfigError)
        check_error(self.error)
        if self.max_images is not None and self.max_images < self.min_images:
            raise ConfigError(
                f"max_images={self.max_images} is below min_images={self.min_images}; raise the first or lower the second"
            )

    def start(
        self, population: int, pairs: Sequence[Pair], higher_is_better: Mapping[str, bool], bounds: tuple[float, float]
    ) -> Stopping:
        """What decides by this rule when a run with these pairs stops; see `Stopping`."""
        return Stopping(self, population, pairs, higher_is_better, bounds)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for the manifest."""
        return asdict(self)


def resolve_stop(stop: str | Stop | None) -> Stop | None:
    """A `Stop` from the name of a rule, with the other defaults; a `Stop` or None is returned unchanged.

    Raises:
        ConfigError: No rule has that name.

    Example:
        >>> resolve_stop("worst")
        Stop(rule='worst', k=None, by='average_drop', error=0.05, min_images=50, max_images=None)
    """
    if stop is None or isinstance(stop, Stop):
        return stop
    if stop not in get_args(Rule):
        raise ConfigError(f"no rule {stop!r} to stop by; {choose_from(stop, get_args(Rule))}; or pass a Stop(...)")
    return Stop(rule=stop)  # type: ignore[arg-type]  # checked above


def check_stop_of_groups(stop: object, weights: Weights) -> None:
    """Refuse to stop a run whose means are weighted by groups.

    Raises:
        ConfigError: With the ways out.

    Example:
        >>> check_stop_of_groups(Stop(), "images")
    """
    if stop is not None and weights == "groups":
        raise ConfigError(
            "stop= works with means over images, and weights='groups' asks for means over groups; "
            "leave out stop=, or use weights='images'"
        )


def certain(signs: Signs, rule: Rule = "ranking", k: int = 1) -> NDArray[np.bool_]:
    """Whether signs of differences determine the order of L layers, or which k layers are the best or the worst.

    Args:
        signs: `[..., L, L]`: 1 where the layer of the row is certainly better than that of the column, -1 where it is
            certainly worse, 0 where neither is certain.
        rule: See `Stop`.
        k: Size of the set, below L.

    Returns:
        `[...]`. Signs that contradict each other determine no order.

    Example:
        >>> import numpy as np
        >>> signs = np.array([[0, 1, 1], [-1, 0, 0], [-1, 0, 0]])  # the first is the best, the others are undecided
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
class _MethodLayers:
    """The layers of one method that are compared.

    Attributes:
        name: Name of the method.
        layers: Its layers in order of execution.
        columns: The columns of these layers among those of all methods.
        tests: The tests of these layers among those of all methods.
    """

    name: str
    layers: list[str]
    columns: slice
    tests: slice

    @property
    def compared(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Indices of the first and of the second layer of each test."""
        return np.triu_indices(len(self.layers), 1)


class Stopping:
    """Decides from the rows of a run, whose images come in random order, when the order of its layers is certain.

    Layers are compared within a method; methods with fewer than two layers (such as control maps) are ignored. As in
    `Scores.select_layers`, an image is used if its rows count at every layer of the method, so the means of all layers are over
    the same images. The difference of each two layers is tested by a `SignTest`.

    Args:
        stop: What has to be certain.
        population: N, the number of all images, including unreadable ones.
        pairs: The pairs of layer and method of the run, in order.
        higher_is_better: Whether higher values are better, by metric of the run.
        bounds: Smallest and largest value of the metric for one image.

    Attributes:
        stop: What has to be certain.
        population: N.
        running: The pairs to measure on the next images: all, to the end.

    Raises:
        MetricError: The run has no such metric, no method with two layers, or a method with too few layers for `k`.

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
        pairs: Sequence[Pair],
        higher_is_better: Mapping[str, bool],
        bounds: tuple[float, float] = (0.0, 100.0),
    ) -> None:
        self.stop, self.population, self.running = stop, population, list(pairs)
        self._methods = _compared_methods(pairs, stop)
        columns = [(layer, method.name) for method in self._methods for layer in method.layers]
        self._values = DrawnValues(stop.by, population, columns, higher_is_better, bounds)
        firsts, seconds = zip(*(method.compared for method in self._methods), strict=True)
        starts = [method.columns.start for method in self._methods]
        self._first = np.concatenate([start + first for start, first in zip(starts, firsts, strict=True)])
        self._second = np.concatenate([start + second for start, second in zip(starts, seconds, strict=True)])
        self._test = SignTest(population, len(self._first))
        self._totals: Floats = np.zeros(self._methods[-1].columns.stop)
        self._left_out = [0] * len(self._methods)

    def add(self, rows: pd.DataFrame) -> None:
        """Add the rows of one batch of images, including unreadable ones, in the order in which they were drawn.

        Args:
            rows: Columns `image_id`, `layer`, `method`, `status` and the metric; each image once, with all its rows.

        Raises:
            MetricError: An image comes twice, there are more than N, or a value is outside the bounds.
        """
        goodness = self._values.of(rows)
        for number, method in enumerate(self._methods):
            values = goodness[:, method.columns]
            missing = ~np.isfinite(values).all(axis=1)
            # N has to stay known, so an image without all values is not skipped: its differences are 0. The sum of all
            # differences, and so the sign of their mean, is then that of the images that are used.
            values[missing] = 0
            self._left_out[number] += int(missing.sum())
        self._test.add(goodness[:, self._first] - goodness[:, self._second])
        self._totals += goodness.sum(axis=0)

    @property
    def images(self) -> int:
        """Number of images seen."""
        return self._test.seen

    @property
    def decided(self) -> bool:
        """Whether the rule is certain after at least `min_images`, or known because all images have been seen."""
        if self.images == self.population:
            return True
        return self.images >= self.stop.min_images and all(self._is_certain(method) for method in self._methods)

    @property
    def finished(self) -> bool:
        """Whether the run should stop: it is decided, or `max_images` have been seen."""
        return self.decided or (self.stop.max_images is not None and self.images >= self.stop.max_images)

    def orders(self) -> dict[str, list[str]]:
        """By method, its layers, best first: by certain differences, then by the means so far."""
        orders = {}
        for method in self._methods:
            signs = self._signs(method)
            totals = self._totals[method.columns]
            likely = np.where(signs == 0, np.sign(totals[:, None] - totals), signs)
            order = np.lexsort((-totals, -likely.sum(axis=1)))
            orders[method.name] = [method.layers[index] for index in order]
        return orders

    def undecided(self) -> list[tuple[str, str, str]]:
        """Method and two layers of each undecided difference; for a set, only of a layer inside and one outside of it."""
        if self.decided:
            return []
        return [entry for method in self._methods for entry in self._undecided(method)]

    def reason(self) -> str:
        """Why the run stops, or does not stop yet, as a sentence."""
        subject = self._subject()
        if self.images == self.population:
            return f"{subject} known: all {self.population} images were seen"
        after = f"certain at error {self.stop.error:g} after {self.images} of {self.population} images"
        if self.decided:
            return f"{subject} {after}"
        if all(self._is_certain(method) for method in self._methods):
            return f"{subject} {after}, but min_images is {self.stop.min_images}"
        count = len(self.undecided())
        end = "; max_images is reached" if self.finished else ""
        return f"{subject} not {after}: {count} {'pair' if count == 1 else 'pairs'} of layers open{end}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for the manifest."""
        return self.stop.to_dict() | {
            "images": self.images,
            "population": self.population,
            "decided": self.decided,
            "reason": self.reason(),
            "orders": self.orders(),
            "undecided": [list(pair) for pair in self.undecided()],
            "left_out": {method.name: count for method, count in zip(self._methods, self._left_out, strict=True)},
        }

    def _signs(self, method: _MethodLayers) -> Signs:
        """1 where the layer of the row is certainly better than that of the column, -1 where it is worse, `[L, L]`."""
        # The error is shared by L - 1 one-sided tests per method, not by the tests of all pairs. Put the layers of a method in
        # their true order, breaking ties in any fixed way. A different order has two neighbours of the true order reversed;
        # a wrong set of the k best calls some layer certainly better or worse than the true layer k + 1, against the true
        # order. Either way one of L - 1 hypotheses was rejected that are true and were fixed before any image was seen.
        # (This needs means over the same images; otherwise the true order could have cycles.)
        signs = np.zeros((len(method.layers), len(method.layers)), dtype=np.int64)
        share = self.stop.error / sum(len(other.layers) - 1 for other in self._methods)
        signs[method.compared] = self._test.signs(share)[method.tests]
        return signs - signs.T

    def _is_certain(self, method: _MethodLayers) -> bool:
        return bool(certain(self._signs(method), self.stop.rule, self.stop.k or 1))

    def _undecided(self, method: _MethodLayers) -> list[tuple[str, str, str]]:
        """The undecided differences; for a set, those of a layer that seems inside and one that seems outside."""
        signs, order = self._signs(method), self.orders()[method.name]
        k = self.stop.k or 1
        inside = set(order[:k] if self.stop.rule == "best" else order[-k:])
        undecided = [(method.layers[i], method.layers[j]) for i, j in zip(*method.compared, strict=True) if signs[i, j] == 0]
        relevant = [pair for pair in undecided if self.stop.rule == "ranking" or len(inside & set(pair)) == 1]
        return [(method.name, first, second) for first, second in relevant]

    def _subject(self) -> str:
        """What has to be certain, with the verb."""
        counts = sorted({len(method.layers) for method in self._methods})
        among = f"{'-'.join(str(count) for count in (counts[0], counts[-1])[: len(counts)])} layers by {self.stop.by}"
        if len(self._methods) > 1:
            among += f" in each of {len(self._methods)} methods"
        if self.stop.rule == "ranking":
            return f"the order of {among} is"
        k = self.stop.k or 1
        return f"the {self.stop.rule} of {among} is" if k == 1 else f"the {k} {self.stop.rule} of {among} are"


def _compared_methods(pairs: Sequence[Pair], stop: Stop) -> list[_MethodLayers]:
    """The methods that have layers to compare.

    Raises:
        MetricError: There are none, or one has too few layers for `k`.
    """
    layers: dict[str, list[str]] = {}
    for layer, method in pairs:
        layers.setdefault(method, []).append(layer)
    methods: list[_MethodLayers] = []
    column = test = 0
    for method, names in layers.items():
        if len(names) > 1:
            tests = len(names) * (len(names) - 1) // 2
            methods.append(_MethodLayers(method, names, slice(column, column + len(names)), slice(test, test + tests)))
            column, test = column + len(names), test + tests
    if not methods:
        raise MetricError(
            f"layers are compared within a method, and no method has two; got {dict(layers)}; add layers, or leave out stop="
        )
    fewest = min(methods, key=lambda method: len(method.layers))
    if (stop.k or 1) >= len(fewest.layers):
        raise MetricError(f"k is below the number of layers, {len(fewest.layers)} in method {fewest.name!r}; got {stop.k}")
    return methods


def check_error(error: object) -> None:
    """Raise an error if a value is no probability between 0 and 1.

    Raises:
        ConfigError: It is not.
    """
    if not isinstance(error, int | float) or not 0 < error < 1:
        raise ConfigError(f"error is a probability in (0, 1), such as 0.05; got {error!r}")
