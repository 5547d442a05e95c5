"""Thinning: a series of any length becomes a bounded number of points, its extremes among them.

The MLflow UI draws at most 320 points of a curve and samples evenly beyond that, so a spike of one step would be gone.
So rows are gathered in buckets, and each bucket gives the rows of its smallest and its largest value. How long a
bucket is follows from the budget that is left and the steps that are still to come:

- horizon known: three quarters of the points are spread evenly over the steps up to it, and each tenfold of steps past
  it is given a quarter anew;
- horizon unknown: the first rows all pass, then buckets grow in proportion to the steps done, so that five eighths of
  the points last for 2,000 steps, and each tenfold past them is given an eighth anew.

So a second fit in the same run still keeps the bound (up to ten times the horizon), and so does a loop of two million
steps; beyond that points grow with the logarithm of the steps.

While less than half of the budget is spent, a bucket also closes two seconds after the last one, so that the curves of
a training begin at once, however long it is. Later a point may be minutes or hours in coming: what shows every row
within seconds are the telemetry files.

Everything follows from the rows (their steps and times) and the flushes between them, never from a clock and never from
how rows were cut into blocks: the same recording always gives the same points.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mlflow_tfmon.translation.state import State, StateError, of_array

UNKNOWN_HORIZON = 2_000
LIVE_SECONDS = 2.0
_RESERVE = 4  # points kept for the last flush: smallest, largest, last, and one for rounding
_MOST_SERIES = 10_000_000
_NEVER = np.iinfo(np.int64).min


class Points(NamedTuple):
    """Points of several series, in the order of their steps: arrays of one length.

    `series` is the number of the point's column, `steps` are int64, `times` Unix seconds, `values` finite.
    """

    series: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray


class Thinner:
    """Thins series that share their rows, such as all columns of a stream's blocks.

    Args:
        width: number of series.
        max_points: bound on the points of each; at least 16.
        total_steps: the last step that is expected, or None if unknown.

    Example:
        >>> thinner = Thinner(1, max_points=320, total_steps=100_000)
        >>> points = thinner.add(np.arange(1, 1001), np.arange(1000) * 1e-3, np.random.rand(1000, 1))
        >>> last = thinner.flush(final=True)
    """

    def __init__(self, width: int, max_points: int = 320, total_steps: int | None = None) -> None:
        self._max_points = max(16, max_points)
        self._spent = 0
        self._origin: int | None = None  # the step before the first
        self._done = 0  # last step of the last bucket that was closed
        self._step = 0  # last step of all
        self._total = total_steps
        self._decades = 0  # tenfolds past the horizon
        self._low = _Kept(width)
        self._high = _Kept(width)
        self._last = _Kept(width)
        self._sent = np.full(width, _NEVER)  # step of each series' last point
        self._rows = 0
        self._time = 0.0  # of the last row
        self._closed = -np.inf  # time of the last row of the last bucket that was closed

    @property
    def width(self) -> int:
        """How many series it thins."""
        return len(self._sent)

    def widen(self, count: int) -> None:
        """Adds series, from here on."""
        width = len(self._sent) + count
        for kept in (self._low, self._high, self._last):
            kept.widen(width)
        self._sent = np.concatenate([self._sent, np.full(count, _NEVER)])

    def expect(self, total_steps: int | None) -> None:
        """Takes another horizon; one that comes after the first was reached changes nothing."""
        # A loop that has gone far goes on as it did: evenly spread points would leave none for what comes later.
        settled = self._decades and not self._known
        if self._done < self._horizon() and not settled:
            self._total = total_steps

    def add(self, steps: np.ndarray, times: np.ndarray, values: np.ndarray) -> Points:
        """Takes rows of rising steps; returns the points of the buckets that they close.

        Args:
            steps: shape (rows,).
            times: shape (rows,), Unix seconds.
            values: shape (rows, width); what is not finite is left out.
        """
        if len(steps) == 0:
            return _join([])
        steps, times = np.asarray(steps, np.int64), np.asarray(times, np.float64)
        values = np.where(np.isfinite(values), values, np.nan)
        found, at = [], 0
        while at < len(steps):
            if self._origin is None:
                self._origin = self._done = int(steps[0]) - 1
            end, closes = self._bucket_end(steps, times, at)
            part = slice(at, end)
            self._low.lower(steps[part], times[part], values[part])
            self._high.lower(steps[part], times[part], -values[part])
            self._last.replace(steps[part], times[part], values[part])
            self._rows += end - at
            self._step, self._time = int(steps[end - 1]), float(times[end - 1])
            if closes:
                found.append(self._close())
            at = end
        return _join(found)

    def flush(self, final: bool = False) -> Points:
        """Closes the bucket that is open and adds each series' last row.

        A flush that is not the last one is skipped once about three quarters of the budget are spent: a run with
        thousands of flushes stays bounded.
        """
        if not final and self._budget - self._spent < self._budget / 4 + _RESERVE:
            return _join([])
        found = []
        if self._rows:
            found.append(self._close())
        missing = self._last.present & (self._last.steps > self._sent)
        if missing.any():
            found.append(self._last.points(missing, 1.0))
            self._sent[missing] = self._last.steps[missing]
            self._spent += 1
        return _join(found)

    def state(self) -> dict[str, Any]:
        """All that it goes on from, as `restored` takes it."""
        return {
            "max_points": self._max_points, "spent": self._spent, "origin": self._origin, "done": self._done,
            "step": self._step, "total": self._total, "decades": self._decades, "rows": self._rows,
            "time": self._time, "closed": self._closed, "width": len(self._sent), "sent": of_array(self._sent),
            "low": self._low.state(), "high": self._high.state(), "last": self._last.state(),
        }  # fmt: skip

    @classmethod
    def restored(cls, state: State) -> Thinner:
        """One that goes on as that which wrote `state` would have.

        Raises:
            StateError: it is none.
        """
        width = state.integer("width", 0, _MOST_SERIES)
        made = cls(width, state.integer("max_points", 16, 10**9), state.optional("total"))
        made._spent, made._rows = state.integer("spent", 0), state.integer("rows", 0)
        made._origin, made._done = state.optional("origin"), state.integer("done")
        made._step, made._decades = state.integer("step"), state.integer("decades", 0, 20)
        made._time, made._closed = state.number("time"), state.number("closed")
        if made._origin is None and (made._spent or made._rows):
            raise StateError("a thinner has rows and no first step")
        made._sent = state.array("sent", "<i8", width)
        for kept, name in ((made._low, "low"), (made._high, "high"), (made._last, "last")):
            kept.restore(state.part(name))
        return made

    @property
    def _known(self) -> int:
        """How many steps were announced; 0 if that is unknown or long past."""
        return max(0, (self._total or 0) - (self._origin or 0))

    def _horizon(self) -> int:
        """The step that the budget must last for."""
        return (self._origin or 0) + (self._known or UNKNOWN_HORIZON) * 10**self._decades

    @property
    def _budget(self) -> int:
        """The points that may be spent up to the horizon."""
        eighths = 6 + 2 * self._decades if self._known else 5 + self._decades
        return self._max_points * eighths // 8

    def _span(self) -> int:
        """Steps that the next bucket covers."""
        if self._spent == 0:
            return 1
        assert self._origin is not None
        while self._done >= self._horizon():
            self._decades += 1
        left = self._budget - self._spent - _RESERVE
        ahead = self._horizon() - self._done
        if left >= ahead:
            return 1
        if left < 2:
            return ahead
        if self._known and not self._decades:
            return math.ceil(2 * ahead / left)
        if self._spent < 0.2 * self._max_points:
            return 1
        done = self._done - self._origin
        growth = ((self._horizon() - self._origin) / done) ** (2 / left)
        return max(1, math.ceil(done * (growth - 1)))

    def _bucket_end(self, steps: np.ndarray, times: np.ndarray, at: int) -> tuple[int, bool]:
        """Where, from row `at` on, the open bucket ends (exclusive), and whether it closes there."""
        end = int(np.searchsorted(steps[at:], self._done + self._span())) + at + 1
        if self._spent + 2 <= self._budget / 2:
            late = np.flatnonzero(times[at:end] - self._closed >= LIVE_SECONDS)
            if len(late):
                return at + int(late[0]) + 1, True
        return (end, True) if end <= len(steps) else (len(steps), False)

    def _close(self) -> Points:
        self._spent += 1 if self._rows == 1 else 2
        self._done, self._closed, self._rows = self._step, self._time, 0
        low, high = self._low, self._high
        found = [low.points(low.present, 1.0), high.points(high.present & (high.steps != low.steps), -1.0)]
        self._sent = np.where(low.present, np.maximum(low.steps, high.steps), self._sent)
        low.clear()
        high.clear()
        return _join(found)


class _Kept:
    """One row for each series: its step, time and value; absent where the value is not finite."""

    def __init__(self, width: int) -> None:
        self.steps = np.zeros(width, np.int64)
        self.times = np.zeros(width)
        self.values = np.full(width, np.inf)

    def state(self) -> dict[str, Any]:
        return {
            "steps": of_array(self.steps),
            "times": of_array(self.times),
            "values": of_array(self.values),
        }

    def restore(self, state: State) -> None:
        width = len(self.steps)
        self.steps = state.array("steps", "<i8", width)
        self.times, self.values = (state.array(name, "<f8", width) for name in ("times", "values"))

    @property
    def present(self) -> np.ndarray:
        return np.isfinite(self.values)

    def clear(self) -> None:
        self.values[:] = np.inf

    def widen(self, width: int) -> None:
        """Adds rows that are absent."""
        other = _Kept(width)
        count = len(self.steps)
        other.steps[:count], other.times[:count], other.values[:count] = self.steps, self.times, self.values
        self.steps, self.times, self.values = other.steps, other.times, other.values

    def lower(self, steps: np.ndarray, times: np.ndarray, values: np.ndarray) -> None:
        """Keeps the first of the smallest values."""
        filled = np.where(np.isnan(values), np.inf, values)
        rows = np.argmin(filled, axis=0)
        best = np.take_along_axis(filled, rows[None, :], axis=0)[0]
        better = best < self.values
        self.steps[better] = steps[rows[better]]
        self.times[better] = times[rows[better]]
        self.values[better] = best[better]

    def replace(self, steps: np.ndarray, times: np.ndarray, values: np.ndarray) -> None:
        """Keeps the last value that is present."""
        present = ~np.isnan(values)
        rows = len(steps) - 1 - np.argmax(present[::-1], axis=0)
        any_present = present.any(axis=0)
        columns = np.flatnonzero(any_present)
        self.steps[columns] = steps[rows[columns]]
        self.times[columns] = times[rows[columns]]
        self.values[columns] = values[rows[columns], columns]

    def points(self, which: np.ndarray, sign: float) -> Points:
        columns = np.flatnonzero(which)
        return Points(columns, self.steps[columns], self.times[columns], sign * self.values[columns])


def _join(found: list[Points]) -> Points:
    if not found:
        empty = np.zeros(0)
        return Points(empty.astype(np.int64), empty.astype(np.int64), empty, empty)
    joined = Points(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))
    order = np.argsort(joined.steps, kind="stable")
    return Points(*(array[order] for array in joined))
