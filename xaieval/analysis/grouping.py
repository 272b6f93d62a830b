"""Whether images that count as independent come in groups: by class, by folder, or as neighbours in the order of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import fdtrc

from xaieval.analysis.stats.estimates import anova_size, mean_squares
from xaieval.analysis.tables import directions, metric_tables
from xaieval.errors import advice
from xaieval.results.findings import Finding
from xaieval.results.record import RunRecord
from xaieval.results.rows import GROUP

__all__ = ["Likeness", "find_in_groups", "likeness"]

Floats = NDArray[np.float64]

LARGEST_EFFECT = 1.5  # design effect above which intervals of independent images are too narrow to be left as they are
ALPHA = 0.005  # of all F tests of a run together
CHANCE = 0.001  # share of random groups that may be as much alike, since the F test assumes normal values
DRAWS = 1999  # of random groups
MANY = 10_000  # images above which the F test needs no normal values
BLOCK = 10  # neighbours in the order of the data
MOST_PAIRS = 20  # of layers and methods, evenly spaced, that stand for all of them

WORDS = {"class": "one class", "folder": "one folder", "neighbours": f"a block of {BLOCK} neighbours in the order of the data"}


@dataclass(frozen=True)
class Likeness:
    """How similar the values of a group are.

    Attributes:
        correlation: The intraclass correlation: that of two images of a group; below 0 if they differ more than others.
        size: The number of images of a group; of unequal groups, the size that the estimate takes.
        p_value: Of "the correlation is not above 0", by the F test.
    """

    correlation: float
    size: float
    p_value: float

    @property
    def design_effect(self) -> float:
        """How many times as large the variance of a mean is as that of independent images."""
        return 1 + (self.size - 1) * self.correlation


def likeness(values: Floats, codes: NDArray[np.intp]) -> Likeness | None:
    """How similar values of the same group are, by a one-way analysis of variance.

    Args:
        values: `[N]`, without NaN.
        codes: The number of each value's group, `[N]`, from 0.

    Returns:
        None if there is nothing to estimate: a single group, groups of one image, or equal values.

    Reference:
        Donner, "A review of inference procedures for the intraclass correlation coefficient in the one-way random effects
        model", International Statistical Review 54, 1986.

    Example:
        >>> found = likeness(np.array([1.0, 2.0, 5.0, 6.0]), np.array([0, 0, 1, 1]))
        >>> round(found.correlation, 3), found.size, round(found.design_effect, 3)  # mean squares 16 and 0.5
        (0.939, 2.0, 1.939)
    """
    _, codes, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    images, groups = len(values), len(sizes)
    if not 2 <= groups < images:
        return None
    between, within = mean_squares(values, codes, sizes)
    size = anova_size(sizes)
    spread = between + (size - 1) * within
    if spread <= 0:
        return None
    p_value = float(fdtrc(groups - 1, images - groups, between / within)) if within > 0 else 0.0
    return Likeness((between - within) / spread, size, p_value)


def find_in_groups(record: RunRecord) -> list[Finding]:
    """Findings about the groups of a run, or about missing groups.

    - `images_in_groups`: images of one class or folder, or neighbours in the order of the data, are so similar that intervals
      and tests of independent images are wrong. For the values of a metric, or for their differences from the mean over all
      layers and methods, the median design effect over layers and methods is above 1.5, and at least one of them is above 1 by
      an F test that is corrected by Bonferroni. If the run has groups, the means of the groups are tested instead.
    - `groups_of_one`: every group has one image, so groups change nothing.
    - `one_group`: all images are in one group, so there are no intervals and no tests.

    Args:
        record: A run.
    """
    rows = record.sample.rows
    rows = rows[~rows["method"].isin(record.controls)]
    return [*_odd_groups(record.images([GROUP])), *_alike(rows, list(directions(record.metrics)), record.seed)]


def _odd_groups(images: pd.DataFrame) -> Iterator[Finding]:
    """Groups that say nothing, from a row of each image."""
    images = images.dropna()
    count = images[GROUP].nunique()
    evidence = {"images": len(images), "groups": count}
    if count == 1 < len(images):
        text = (
            f"all {len(images)} images are in one group, '{images[GROUP].iloc[0]}', so there are no intervals and no tests: "
            "these take at least 4 groups; give other groups"
        )
        yield Finding("one_group", text, evidence)
    elif count == len(images) > 1:
        text = f"each of the {count} groups has one image, so intervals and tests are those without groups; check groups="
        yield Finding("groups_of_one", text, evidence)


@dataclass(frozen=True)
class _Suspect:
    """Groups whose images are alike in a metric.

    Attributes:
        by: Name of the groups.
        metric: The metric in which they are most alike.
        kind: "values", or "differences" between layers and methods.
        found: How much, in the median over layers and methods; its p-value is that of the surest of them, corrected by
            Bonferroni for all tests.
        groups: The number of groups.
    """

    by: str
    metric: str
    kind: str
    found: Likeness
    groups: int


def _alike(rows: pd.DataFrame, metrics: Sequence[str], seed: int) -> list[Finding]:
    """One finding on all groups whose images are too much alike."""
    units = _units(rows)
    candidates = _candidates(rows, units)
    tables = metric_tables(rows, metrics, ["layer", "method"]) if candidates else {}
    compared = [(name, kind, values) for name, table in tables.items() for kind, values in _of_units(table, units).items()]
    suspects = []
    for by, names in candidates.items():
        found = [_judged(by, names, part, len(compared) * len(candidates), seed) for part in compared]
        known = [suspect for suspect in found if suspect is not None]
        if known:
            suspects.append(max(known, key=lambda suspect: suspect.found.design_effect))
    suspects = [one for one in suspects if not (one.by == "neighbours" and _inside(candidates, suspects))]
    return [_finding(suspects, "groups" if GROUP in rows else "images")] if suspects else []


def _units(rows: pd.DataFrame) -> pd.Series[Any]:
    """What counts as independent, by image: the image itself, or its group."""
    images = rows.drop_duplicates("image_id").set_index("image_id")
    return images[GROUP].dropna() if GROUP in rows else pd.Series(images.index, index=images.index)


def _candidates(rows: pd.DataFrame, units: pd.Series[Any]) -> dict[str, pd.Series[Any]]:
    """By name, groups that the units may come in; of those that are the same groups, only the first."""
    images = rows.drop_duplicates("image_id").set_index("image_id").loc[units.index]
    ids = images.index.astype(str)
    names: dict[str, Any] = {
        "class": images["label"] if "label" in images and images["label"].notna().all() else None,
        "folder": ids.str.rpartition("/").get_level_values(0),
        "neighbours": np.arange(len(images)) // BLOCK,
    }
    found: dict[str, pd.Series[Any]] = {}
    for by, values in names.items():
        if values is None:
            continue
        by_unit = pd.DataFrame({"unit": units.to_numpy(), "name": pd.factorize(values)[0]}).drop_duplicates()
        if by_unit["unit"].duplicated().any():  # a group of the run has images of several of these groups
            continue
        one = by_unit.set_index("unit")["name"]
        if 2 <= one.nunique() < len(one) and not any(_same(one, other) for other in found.values()):
            found[by] = one
    return found


def _same(one: pd.Series[Any], other: pd.Series[Any]) -> bool:
    pairs = pd.DataFrame({"one": one, "other": other}).drop_duplicates()
    return not pairs["one"].duplicated().any() and not pairs["other"].duplicated().any()


def _of_units(table: pd.DataFrame, units: pd.Series[Any]) -> dict[str, pd.DataFrame]:
    """Values of layers and methods by unit, and their differences from the mean over all of them."""
    places = np.unique(np.linspace(0, table.shape[1] - 1, min(MOST_PAIRS, table.shape[1])).round().astype(int))
    names = units.reindex(table.index)
    means = table.groupby(names.to_numpy(), sort=False).mean() if names.duplicated().any() else table.set_axis(names.to_numpy())
    kinds = {"values": means.iloc[:, places]}
    if table.shape[1] > 1:
        kinds["differences"] = means.sub(means.mean(axis=1, skipna=False), axis=0).iloc[:, places]
    return kinds


def _judged(by: str, names: pd.Series[Any], part: tuple[str, str, pd.DataFrame], tests: int, seed: int) -> _Suspect | None:
    """The groups, if their units are too much alike in the median over layers and methods; else None."""
    metric, kind, table = part
    codes = names.reindex(table.index).to_numpy()
    columns = []
    for values in table.to_numpy(dtype=float).T:
        kept = np.isfinite(values)
        found = likeness(values[kept], codes[kept])
        columns += [] if found is None else [(found, values[kept], codes[kept])]
    if not columns:
        return None
    effect = float(np.median([column[0].design_effect for column in columns]))
    surest, values, own = min(columns, key=lambda column: column[0].p_value)
    p_value = min(surest.p_value * len(columns) * tests, 1.0)
    if effect <= LARGEST_EFFECT or p_value >= ALPHA or _by_chance(values, own, seed):
        return None
    middle = min((column[0] for column in columns), key=lambda found: abs(found.design_effect - effect))
    return _Suspect(by, metric, kind, replace(middle, p_value=p_value), len(np.unique(codes)))


def _by_chance(values: Floats, codes: NDArray[np.intp], seed: int) -> bool:
    """Whether random groups of the same sizes are as much alike in too many of the draws."""
    if len(values) > MANY:
        return False
    _, codes, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    between = mean_squares(values, codes, sizes)[0] * (1 - 1e-12)
    reached = 0
    for _ in range(DRAWS):
        reached += mean_squares(rng.permutation(values), codes, sizes)[0] >= between
        if reached + 1 > CHANCE * (DRAWS + 1):
            return True
    return False


def _inside(candidates: Mapping[str, pd.Series[Any]], suspects: Sequence[_Suspect]) -> bool:
    """Whether most blocks of neighbours lie in one of the other suspected groups, which then allow for them."""
    blocks = candidates["neighbours"]
    others = [candidates[one.by] for one in suspects if one.by != "neighbours"]
    return any(names.groupby(blocks).nunique().eq(1).mean() > 0.5 for names in others)


def _finding(suspects: Sequence[_Suspect], units: str) -> Finding:
    said = "; and ".join(_sentence(one, units) for one in suspects)
    ways = ", or ".join(dict.fromkeys(_way_out(one.by) for one in suspects))
    text = (
        f"{units} are not independent, so intervals are too narrow and tests too sure: {said}; count these groups instead of "
        f"{units} by {ways}"
    )
    return Finding("images_in_groups", text, {one.by: _evidence(one) for one in suspects})


def _way_out(by: str) -> str:
    """How to say in a call or command what the groups are."""
    if by == "class":
        return advice("groups='class'", "--groups class")
    if by == "folder":
        return advice("groups='^(.*)/'", "--groups '^(.*)/'")
    common = "an expression on the id or a CSV file that says what they have in common, such as the video or the place"
    return f"{advice('groups=', '--groups')}, {common}"


def _sentence(one: _Suspect, units: str) -> str:
    differences = " differences between layers and methods" if one.kind == "differences" else ""
    found = one.found
    return (
        f"{units} of {WORDS[one.by]} are alike in {one.metric}{differences} (median intraclass correlation "
        f"{found.correlation:.2f}, "
        f"{one.groups} groups of about {found.size:.3g}, design effect {found.design_effect:.1f})"
    )


def _evidence(one: _Suspect) -> dict[str, Any]:
    return {
        "metric": one.metric,
        "of": one.kind,
        "groups": one.groups,
        "size": one.found.size,
        "correlation": one.found.correlation,
        "design_effect": one.found.design_effect,
        "p_value": one.found.p_value,
    }
