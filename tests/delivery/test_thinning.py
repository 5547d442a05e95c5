from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_tfmon.translation.thinning import Points, Thinner


def thin(
    steps: np.ndarray,
    times: np.ndarray,
    values: np.ndarray,
    total: int | None,
    cuts: list[int] = [],  # noqa: B006
    flushes: frozenset[int] = frozenset(),
    max_points: int = 320,
) -> Points:
    """All points of a series cut into blocks at `cuts`, flushed after the rows in `flushes` and at the end."""
    thinner = Thinner(values.shape[1], max_points, total)
    found = []
    edges = sorted({0, len(steps), *flushes, *(cut for cut in cuts if cut < len(steps))})
    for begin, end in pairwise(edges):
        found.append(thinner.add(steps[begin:end], times[begin:end], values[begin:end]))
        if end in flushes:
            found.append(thinner.flush())
    found.append(thinner.flush(final=True))
    return Points(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


@st.composite
def trainings(draw: st.DrawFn) -> dict[str, object]:
    count = draw(st.integers(1, 4000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gap = draw(st.sampled_from([1, 3, 100]))
    steps = draw(st.integers(1, 5000)) + np.cumsum(rng.integers(1, gap + 1, count)) - 1
    pace = draw(st.sampled_from([1e-4, 1e-2, 0.5, 30.0]))
    times = 1.7e9 + np.cumsum(rng.exponential(pace, count))
    values = rng.normal(size=(count, 2))
    values[rng.random(values.shape) < draw(st.sampled_from([0.0, 0.3]))] = np.nan
    first, last = int(steps[0]), int(steps[-1])
    total = draw(st.sampled_from([None, last, 2 * last, first + (last - first) // 5, 0]))  # also run past
    cuts = draw(st.lists(st.integers(0, count), max_size=6))
    flushes = draw(st.frozensets(st.integers(1, count), max_size=40))
    return {
        "steps": steps, "times": times, "values": values, "total": total, "cuts": cuts, "flushes": flushes,
        "max_points": draw(st.sampled_from([16, 50, 320])),
    }  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(trainings())
def test_the_bound_holds_and_extremes_first_and_last_are_kept(training: dict) -> None:
    points = thin(**training)
    for column in range(2):
        truth = training["values"][:, column]
        present = np.flatnonzero(np.isfinite(truth))
        mine = points.series == column
        steps, values = points.steps[mine], points.values[mine]
        assert len(steps) <= training["max_points"]
        assert np.all(np.diff(steps) > 0)
        rows = np.searchsorted(training["steps"], steps)
        np.testing.assert_array_equal(training["steps"][rows], steps)
        np.testing.assert_array_equal(truth[rows], values)
        np.testing.assert_array_equal(training["times"][rows], points.times[mine])
        if len(present):
            assert training["steps"][present[-1]] == steps[-1]
            assert values.min() == truth[present].min()
            assert values.max() == truth[present].max()
        if np.isfinite(truth[0]):
            assert steps[0] == training["steps"][0]


@settings(max_examples=100, deadline=None)
@given(trainings(), st.lists(st.integers(0, 4000), max_size=10))
def test_points_do_not_depend_on_how_rows_are_cut_into_blocks(training: dict, cuts: list[int]) -> None:
    one, other = thin(**training), thin(**{**training, "cuts": cuts})
    for mine, yours in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine[np.lexsort((one.series, one.steps))],
                                      yours[np.lexsort((other.series, other.steps))])  # fmt: skip


@pytest.mark.parametrize("total", [100_000, None])
@pytest.mark.parametrize("at", [0, 1, 4_999, 77_777, 99_998, 99_999])
def test_a_spike_of_one_step_in_100_000_is_among_at_most_320_points(total: int | None, at: int) -> None:
    values = np.random.default_rng(at).normal(size=(100_000, 1))
    values[at] = 50.0
    steps = np.arange(1, 100_001)
    points = thin(steps, steps * 1e-3, values, total, cuts=list(range(0, 100_000, 997)))
    assert len(points.steps) <= 320
    assert points.steps[np.argmax(points.values)] == at + 1


def test_unknown_horizon_grows_with_the_logarithm() -> None:
    thinner = Thinner(1, 320, None)
    counts, seen = {}, 0
    for begin in range(1, 3_000_001, 10_000):
        steps = np.arange(begin, begin + 10_000)
        seen += len(thinner.add(steps, steps * 1e-4, np.sin(steps)[:, None]).steps)
        counts[begin + 9_999] = seen
    assert counts[1_000_000] <= 320
    assert counts[3_000_000] <= 320 + 80


@pytest.mark.parametrize("length", [320, 900, 2_000])
def test_a_short_loop_of_unknown_length_has_its_second_half_well_drawn(length: int) -> None:
    steps = np.arange(1, length + 1)
    points = thin(steps, steps * 1e-4, np.random.default_rng(0).normal(size=(length, 1)), None)
    assert (points.steps > length / 2).sum() >= 25
    assert len(points.steps) >= 120


def test_a_loop_that_went_far_keeps_the_bound_when_a_fit_says_how_long_it_is() -> None:
    thinner, found = Thinner(1, 320, None), 0
    for begin in range(1, 300_001, 1000):
        if begin == 5001:
            thinner.expect(300_000)
        steps = np.arange(begin, begin + 1000)
        found += len(thinner.add(steps, steps * 1e-4, np.sin(steps)[:, None]).steps)
    assert found + len(thinner.flush(final=True).steps) <= 320


@pytest.mark.parametrize("total", [1_000_000, None])
def test_a_slow_training_is_seen_row_by_row_at_first(total: int | None) -> None:
    thinner = Thinner(1, 320, total)
    for step in range(1, 60):
        points = thinner.add(np.array([step]), np.array([3.0 * step]), np.array([[float(step)]]))
        assert points.steps.tolist() == [step]


def test_a_fast_training_is_seen_every_two_seconds_at_first() -> None:
    thinner = Thinner(1, 320, 10_000_000)
    steps = np.arange(1, 50_001)
    points = thinner.add(steps, 1e-3 * steps, np.sin(steps / 10.0)[:, None])
    assert np.diff(points.steps).max() <= 4_000


def test_a_thousand_fits_in_one_run_stay_bounded() -> None:
    thinner, found = Thinner(1, 320, 10), 0
    for fit in range(1000):
        thinner.expect(10 * (fit + 1))
        steps = np.arange(10 * fit + 1, 10 * fit + 11)
        found += len(thinner.add(steps, steps * 0.01, np.cos(steps)[:, None]).steps) + len(
            thinner.flush().steps
        )
    assert found + len(thinner.flush(final=True).steps) <= 320 + 2 * 80


def test_a_series_that_comes_later_is_kept_to_the_same_bound() -> None:
    thinner, found = Thinner(1, 320, None), {0: 0, 1: 0}
    for begin in range(1, 100_001, 1000):
        if begin == 30_001:
            thinner.widen(1)
        steps = np.arange(begin, begin + 1000)
        values = np.random.default_rng(begin).normal(size=(1000, 1 if begin < 30_001 else 2))
        points = thinner.add(steps, steps * 1e-3, values)
        for series in found:
            found[series] += int((points.series == series).sum())
    last = thinner.flush(final=True)
    assert 100_000 in last.steps[last.series == 1] or found[1]
    assert 0 < found[1] < found[0] <= 317
