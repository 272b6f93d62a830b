"""Interval and test of a mean over two crossed samples, against statsmodels, by hand and by simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from xaieval.analysis.stats.crossed import crossed_interval, crossed_p_value
from xaieval.errors import MetricError


def test_by_hand():
    # rows 1 and 3, columns 0 and 4 around their means: MS_rows 4, MS_columns 16, and a rest of +-1 in each cell: MS_rest 4
    table = np.array([[0.0, 2.0], [0.0, 6.0]])
    total = 4 + 16 - 4
    assert total**2 / (4**2 + 16**2 + 4**2) < 1  # the degrees of freedom of two columns alone
    reach = student.ppf(0.975, 1) * np.sqrt(total / 4)
    assert crossed_interval(table) == pytest.approx((2 - reach, 2 + reach))


def test_the_mean_squares_are_those_of_statsmodels():
    smf = pytest.importorskip("statsmodels.formula.api")
    anova_lm = pytest.importorskip("statsmodels.stats.anova").anova_lm
    table = np.random.default_rng(1).normal(size=(10, 5)) + np.arange(5) + np.arange(10)[:, None]
    long = pd.DataFrame(table).melt(var_name="column", value_name="y", ignore_index=False).reset_index(names="row")
    found = anova_lm(smf.ols("y ~ C(row) + C(column)", long).fit())
    squares = found["sum_sq"] / found["df"]
    total = squares.iloc[0] + squares.iloc[1] - squares.iloc[2]
    freedom = total**2 / np.sum(squares**2 / found["df"])
    assert freedom > 4
    reach = student.ppf(0.95, freedom) * np.sqrt(total / 50)
    assert crossed_interval(table, 0.9) == pytest.approx((table.mean() - reach, table.mean() + reach))


@pytest.mark.parametrize(("rows", "columns", "rest"), [(1, 1, 1), (3, 0, 1), (0, 3, 1), (0, 0, 1)])
def test_it_holds_the_mean_about_as_often_as_it_says(rows, columns, rest):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        table = rng.normal(0, rest, (10, 5)) + rng.normal(0, rows, (10, 1)) + rng.normal(0, columns, 5)
        low, high = crossed_interval(table)
        hits += low < 0 < high
    assert hits / 400 > 0.92


def test_it_is_no_narrower_than_rows_or_columns_alone():
    table = np.tile([[1.0], [2.0], [4.0]], (1, 4)) + [[0.1, -0.1, 0.1, -0.1]] * np.array([[1], [-1], [0]])
    low, high = crossed_interval(table)
    of_rows = table.mean(axis=1)
    reach = student.ppf(0.975, 2) * of_rows.std(ddof=1) / np.sqrt(3)
    assert high - low >= 2 * reach * (1 - 1e-3)


def test_the_interval_of_one_minus_p_ends_at_zero():
    table = np.random.default_rng(2).normal(0.4, 1, (10, 5))
    p = crossed_p_value(table)
    assert 0 < p < 1
    assert crossed_interval(table, 1 - p)[0] == pytest.approx(0, abs=1e-9)
    assert crossed_p_value(-table) == pytest.approx(p)


def test_equal_values_have_no_interval():
    assert np.isnan(crossed_interval(np.zeros((3, 4)))).all()
    assert np.isnan(crossed_p_value(np.zeros((3, 4))))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[1.0, 2.0]], r"needs at least 2 rows and 2 columns, got the shape \(1, 2\)"),
        ([1.0, 2.0], r"needs at least 2 rows and 2 columns, got the shape \(2,\)"),
        ([[1.0, 2.0], [np.nan, 1.0]], r"needs finite values, got 1 others"),
    ],
)
def test_what_has_no_interval_is_refused(table, message):
    with pytest.raises(MetricError, match=message):
        crossed_interval(table)
