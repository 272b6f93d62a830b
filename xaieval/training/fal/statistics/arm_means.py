"""Means of arms over folds and seeds: by a mixed model, and by least squares within each fold and seed, which checks it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from xaieval.errors import MetricError, UsageError

__all__ = ["CELL", "ArmMeans", "arm_means", "checked_runs", "contrasts_within", "two_way_errors"]

Floats = NDArray[np.float64]

CELL = ["fold", "seed"]
NO_VARIANCE = 1e-3  # of the variance of a run: below that a variance counts as 0, and the optimiser is at the end of its range
OPTIMISERS = ["nm", "powell"]  # without gradients, which mislead the others where a variance is close to 0
AGREED = 1e-3  # of a standard error: with all runs, both models give the same differences to this precision


@dataclass(frozen=True, eq=False)
class ArmMeans:
    """Means of an outcome by arm, of which only differences between arms are used.

    Attributes:
        arms: Names of the arms, A.
        means: `[A]`, in the unit of the outcome.
        covariance: Their covariance matrix `[A, A]`.
        freedom: Degrees of freedom of the error.
        spread: Standard deviation of a run, when its arm and its fold and seed are known.
        model: "mixed", or "cells" for least squares with an intercept for each fold and seed.
        notes: Sentences about the fit: what was left out, and why it is not the mixed model.
    """

    arms: tuple[str, ...]
    means: Floats
    covariance: Floats
    freedom: int
    spread: float
    model: Literal["mixed", "cells"]
    notes: tuple[str, ...] = ()

    def contrasts(self, weights: ArrayLike) -> tuple[Floats, Floats]:
        """Weighted sums `[T]` of the means, with weights `[T, A]` whose rows add up to 0, and their standard errors `[T]`."""
        w = np.asarray(weights, dtype=float)
        return w @ self.means, np.sqrt(np.einsum("ta,ab,tb->t", w, self.covariance, w).clip(0))


def arm_means(runs: pd.DataFrame, outcome: str, model: Literal["mixed", "cells"] = "mixed") -> ArmMeans:
    """Estimate the means of the arms, so that differences between them are those within the same fold and seed.

    The mixed model is `outcome ~ arm + (1 | fold) + (1 | fold:seed)`, fitted by REML. Least squares has an intercept for each
    fold and seed instead of the two random effects. Without missing runs both give the same differences and the same standard
    errors; with missing runs the mixed model also uses differences between folds and seeds. It falls back to least squares, and
    says so in `notes`, if there are too few folds or seeds, if the optimiser fails, or if a variance is estimated as 0.

    Args:
        runs: One row per run, with the columns arm, fold, seed and the outcome. NaN is left out, which `notes` says.
        outcome: Name of the outcome.
        model: "mixed", or "cells" for least squares.

    Raises:
        MetricError: The table has not one row per run or lacks a column, arms share no fold and seed, or there are too few runs
            for an error.
        UsageError: statsmodels is missing.
    """
    table, notes = checked_runs(runs, outcome)
    cells = _least_squares(table, outcome, notes)
    if model == "cells":
        return cells
    mixed = _mixed(table, outcome, cells)
    if isinstance(mixed, str):
        said = f"{outcome}: {mixed}, so the numbers are those of least squares with an intercept for each fold and seed"
        return replace(cells, notes=(*notes, said))
    return mixed


def checked_runs(runs: pd.DataFrame, outcome: str, by: str | None = None) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows of a table of runs that have a value of the outcome, and a note if some have none.

    Raises:
        MetricError: A column is missing, or the table has not one row per run (and class, if `by` is its column).
    """
    keys = list(dict.fromkeys(["arm", *CELL, *([by] if by else [])]))
    missing = [name for name in (*keys, outcome) if name not in runs]
    if missing:
        raise MetricError(f"the table of runs has no column {missing[0]!r}; it has {', '.join(map(str, runs.columns))}")
    twice = runs[runs.duplicated(keys)]
    if len(twice):
        said = ", ".join(f"{key} {twice.iloc[0][key]}" for key in keys)
        raise MetricError(f"the table of runs has several rows of {said}; give one row per {', '.join(keys)}")
    table = runs[np.isfinite(runs[outcome].astype(float))]
    left = len(runs) - len(table)
    return table, (f"{outcome}: {left} of {len(runs)} rows of the table have no value and are left out",) if left else ()


def _least_squares(table: pd.DataFrame, outcome: str, notes: tuple[str, ...]) -> ArmMeans:
    arms = tuple(dict.fromkeys(table["arm"]))
    _check_connected(table, arms)
    within, values = _within(table, outcome, arms, CELL)
    inverse = _inverse(within)
    means = inverse @ within.T @ values
    freedom = len(table) - table.groupby(CELL).ngroups - (len(arms) - 1)
    if freedom < 1:
        raise MetricError(
            f"{len(table)} runs of {len(arms)} arms leave nothing to estimate an error of {outcome} from; it takes at least "
            "two arms in two folds or with two seeds"
        )
    variance = float(((values - within @ means) ** 2).sum()) / freedom
    return ArmMeans(arms, means, variance * inverse, freedom, float(np.sqrt(variance)), "cells", notes)


def _within(table: pd.DataFrame, outcome: str, arms: tuple[str, ...], keys: list[str]) -> tuple[Floats, Floats]:
    """For each arm a column of 0 and 1 `[N, A]`, and the outcome `[N]`, minus their means over rows of the same keys."""
    columns = pd.DataFrame({arm: (table["arm"] == arm).astype(float) for arm in arms}).assign(_outcome=table[outcome])
    centred = columns - columns.groupby([table[key] for key in keys]).transform("mean")
    return centred[list(arms)].to_numpy(), centred["_outcome"].to_numpy()


def _inverse(within: Floats) -> Floats:
    """The inverse `[A, A]` of least squares, 0 for the mean over all arms, which no difference within folds and seeds tells."""
    return np.asarray(np.linalg.pinv(within.T @ within, rcond=1e-10, hermitian=True), dtype=float)


def _check_connected(table: pd.DataFrame, arms: tuple[str, ...]) -> None:
    """Raise an error if an arm shares no fold and seed with the others, also not by way of a third arm."""
    known = set(arms[:1])
    cells = [set(group) for _, group in table.groupby(CELL)["arm"]]
    while (more := known.union(*(cell for cell in cells if cell & known))) != known:
        known = more
    apart = [arm for arm in arms if arm not in known]
    if apart:
        raise MetricError(
            f"arm {apart[0]!r} shares no fold and seed with {arms[0]!r}, so the two cannot be compared; run both in the same "
            "folds with the same seeds"
        )


def _mixed(table: pd.DataFrame, outcome: str, cells: ArmMeans) -> ArmMeans | str:
    """The means by the mixed model, or why there are none."""
    if (table.groupby("fold")["seed"].nunique().gt(1)).sum() < 2:
        return "the mixed model takes at least two folds with two seeds each"
    fitted = _fitted(table, outcome, cells.arms)
    if isinstance(fitted, str):
        return fitted
    for name, variance in (("folds", fitted.cov_re.iloc[0, 0]), ("seeds of a fold", fitted.vcomp[0])):
        if not variance > NO_VARIANCE * fitted.scale:
            return f"the mixed model estimates the variance between {name} as 0"
    if not fitted.converged:
        return "the optimiser of the mixed model did not converge"
    count = len(cells.arms)
    means, covariance = fitted.fe_params.to_numpy(), fitted.cov_params().to_numpy()[:count, :count]
    if len(table) == count * table.groupby(CELL).ngroups and not _agree(means, cells):
        return "the mixed model disagrees with least squares although no run is missing"
    return replace(cells, means=means, covariance=covariance, model="mixed")


def _agree(means: Floats, cells: ArmMeans) -> bool:
    """Whether the differences between means are those of least squares."""
    apart = (means - means.mean()) - (cells.means - cells.means.mean())
    return bool(np.abs(apart).max() < AGREED * np.sqrt(np.diag(cells.covariance).max()))


def _fitted(table: pd.DataFrame, outcome: str, arms: tuple[str, ...]) -> Any:
    """The fitted mixed model, or why there is none."""
    try:
        from statsmodels.regression.mixed_linear_model import MixedLM
    except ImportError as error:
        raise UsageError("the mixed model needs statsmodels, which is not installed: pip install 'xaieval[fal]'") from error
    data = pd.DataFrame({key: pd.factorize(table[key])[0] for key in CELL})  # statsmodels cannot read pandas' own integers
    data = data.assign(y=table[outcome].to_numpy(dtype=float), arm=pd.Categorical(table["arm"], categories=arms))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they say in many words what is tested below
        try:
            model = MixedLM.from_formula("y ~ 0 + arm", data, groups="fold", re_formula="1", vc_formula={"seed": "0 + C(seed)"})
            return model.fit(reml=True, method=OPTIMISERS)
        except np.linalg.LinAlgError as error:
            return f"the mixed model cannot be fitted ({error})"


def two_way_errors(
    table: pd.DataFrame, outcome: str, arms: tuple[str, ...], weights: ArrayLike, by: str
) -> tuple[Floats, Floats, int]:
    """Weighted sums of the arms' means, with errors that take both the runs and the groups in a column for random samples.

    Least squares within each fold, seed and group, such as a class, with standard errors that are robust to two kinds of
    clusters:

        error ** 2 = (that of clusters of runs) + (that of clusters of groups) - (that of clusters of both)

    With the folds as groups, which hold whole runs, it is the error of clusters of folds.

    Args:
        table: One row per arm, fold, seed and group.
        outcome: Name of the outcome.
        arms: Names of the arms, A.
        weights: Weights of the arms `[T, A]`; each row adds up to 0.
        by: The column of the groups.

    Returns:
        The sums `[T]`, their errors `[T]`, and the smaller number of clusters.

    Raises:
        MetricError: There are less than two folds and seeds, or less than two groups.

    Reference:
        Cameron, Gelbach and Miller, "Robust inference with multiway clustering", Journal of Business and Economic Statistics
        29, 2011.
    """
    w = np.asarray(weights, dtype=float)
    within, values = _within(table, outcome, arms, list(dict.fromkeys([*CELL, by])))
    inverse = _inverse(within)
    means = inverse @ within.T @ values
    pulls = pd.DataFrame((within @ inverse @ w.T) * (values - within @ means)[:, None], index=table.index)
    kinds: list[list[str]] = [CELL, [by], [*CELL, by]]
    sums = [pulls.groupby([table[key] for key in dict.fromkeys(keys)], observed=True).sum().to_numpy() for keys in kinds]
    runs, groups, _ = (len(each) for each in sums)
    if min(runs, groups) < 2:
        raise MetricError(f"{runs} folds and seeds and {groups} of {by!r} give no error; it takes at least two of each")
    of_runs, of_groups, of_both = ((each**2).sum(axis=0) * len(each) / (len(each) - 1) for each in sums)
    variances = np.max([of_runs + of_groups - of_both, of_groups, of_runs * (by != "fold")], axis=0)  # estimates may be too low
    return w @ means, np.sqrt(variances), min(runs, groups)


def contrasts_within(table: pd.DataFrame, outcome: str, arms: tuple[str, ...], weights: ArrayLike) -> Floats:
    """Weighted sums `[T]` of the arms' means by least squares within folds and seeds; NaN where these rows do not tell one."""
    w = np.asarray(weights, dtype=float)
    within, values = _within(table, outcome, arms, CELL)
    inverse = _inverse(within)
    told = np.isclose(w @ inverse @ (within.T @ within), w, atol=1e-9).all(axis=1)
    return np.where(told, w @ inverse @ within.T @ values, np.nan)
