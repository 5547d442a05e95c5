"""Tests of bounded tables, compared with NumPy on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_tfmon.detectors.table import Gathering

ROWS, MOST = 1003, 16


def _values() -> np.ndarray:
    random = np.random.default_rng(0)
    values = random.normal(size=(ROWS, 3))
    values[random.random(values.shape) < 0.2] = np.nan
    values[5, 0] = np.inf
    return values


@pytest.mark.parametrize("cuts", [[], list(range(1, ROWS)), [1, 7, 8, 500, 501, 777]])
def test_rows_sum_up_equal_spans_however_they_came(cuts: list[int]) -> None:
    values, gathering = _values(), Gathering(MOST)
    for start, end in zip([0, *cuts], [*cuts, ROWS], strict=True):
        gathering.add(np.arange(start, end) + 1, ["a", "b", "c"], values[start:end])
    table = gathering.table()
    assert MOST / 2 <= len(table) <= MOST
    width = int(table.last[0])
    finite = np.where(np.isfinite(values), values, np.nan)
    for at in range(len(table)):
        part = finite[at * width : (at + 1) * width]
        assert (table.first[at], table.last[at]) == (at * width + 1, min(ROWS, (at + 1) * width))
        np.testing.assert_allclose(table.mean[at], np.nanmean(part, axis=0))
        np.testing.assert_array_equal(table.least[at], np.nanmin(part, axis=0))
        np.testing.assert_array_equal(table.most[at], np.nanmax(part, axis=0))


def test_a_column_that_comes_late_has_no_numbers_before() -> None:
    gathering = Gathering(4)
    gathering.add(np.array([1.0, 2.0]), ["a"], np.array([[1.0], [2.0]]))
    gathering.add(np.array([3.0]), ["b"], np.array([[5.0]]))
    table = gathering.table()
    assert table.column("b").first.tolist() == [3.0]
    assert table.column("a").mean[:, 0].tolist() == [1.0, 2.0]
    assert len(table.column("c")) == 0
