"""The points that MLflow gets: thinned, with finite values, under names that MLflow accepts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_tfmon.tracking.names import Names
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.tracking.texts import milliseconds
from mlflow_tfmon.translation.series import Rows
from mlflow_tfmon.translation.state import State, StateError, integers
from mlflow_tfmon.translation.thinning import Thinner

MAX_NONFINITE = 100


@dataclass
class _Group:
    """Series that share their rows: a column of the thinner for each key there ever was, and those of now."""

    thinner: Thinner
    columns: dict[str, int]
    current: list[int]


class Curves:
    """All curves of a recording.

    Args:
        max_points: bound on the points of one curve.
        names: gives keys that MLflow accepts.
    """

    def __init__(self, max_points: int, names: Names) -> None:
        self._max_points = max_points
        self._names = names
        self._groups: dict[object, _Group] = {}
        self._waiting: dict[object, list[tuple[float, int, float]]] = {}
        self._nonfinite: dict[str, int] = {}

    def open(self, group: object, keys: Sequence[str], total_steps: int | None) -> None:
        """Sets the keys and the horizon of a group of series that share their rows.

        A series that is not among the keys any more keeps its state: it may come again.
        """
        known = self._groups.get(group)
        if known is None:
            thinner = Thinner(len(keys), self._max_points, total_steps)
            known = self._groups[group] = _Group(thinner, {key: at for at, key in enumerate(keys)}, [])
        else:
            known.thinner.expect(total_steps)
            new = [key for key in keys if key not in known.columns]
            known.thinner.widen(len(new))
            known.columns |= {key: len(known.columns) + at for at, key in enumerate(new)}
        known.current = [known.columns[key] for key in keys]

    def forget(self, *groups: object) -> None:
        """Leaves out what groups were given so far: their rows come again."""
        for group in groups:
            self._groups.pop(group, None)

    def rows(self, group: object, rows: Rows) -> list[Point]:
        """The points that a block of a group's rows gives; its columns are the keys that were set last."""
        known = self._groups[group]
        values = rows.values
        if known.current != list(range(len(known.columns))):
            values = np.full((len(rows.steps), len(known.columns)), np.nan)
            values[:, known.current] = rows.values
        found = self._points(known, known.thinner.add(rows.steps, rows.times, values))
        keys = list(known.columns)
        bad = rows.measured & ~np.isfinite(rows.values)
        if bad.any():
            for column in np.flatnonzero(bad.any(axis=0)):
                at = np.flatnonzero(bad[:, column])[:MAX_NONFINITE]
                for step, time in zip(rows.steps[at], rows.times[at], strict=True):
                    found += self._not_finite(keys[known.current[column]], int(step), float(time))
        return found

    def value(self, key: str, value: float, step: int, time: float, total_steps: int | None) -> None:
        """Takes a single value of a thinned series; `settle` gives its points."""
        if key not in self._groups:
            self.open(key, [key], total_steps)
        self._waiting.setdefault(key, []).append((value, step, time))

    def settle(self) -> list[Point]:
        """The points that the values taken since the last call give."""
        found: list[Point] = []
        for key, waiting in self._waiting.items():
            values, steps, times = (np.array(column) for column in zip(*waiting, strict=True))
            column = values.astype(np.float64)[:, None]
            found += self.rows(key, Rows(steps, times, column, np.ones(column.shape, bool)))
        self._waiting.clear()
        return found

    def exact(self, key: str, value: float, step: int, time: float) -> list[Point]:
        """A point that is never thinned."""
        if not math.isfinite(value):
            return self._not_finite(key, step, time)
        return [Point(self._names(key), float(value), int(step), milliseconds(time))]

    def flush(self, final: bool = False) -> list[Point]:
        """Brings every series up to its last row."""
        found = self.settle()
        for group in self._groups.values():
            found += self._points(group, group.thinner.flush(final))
        return found

    def state(self) -> dict[str, Any]:
        """All that they go on from, once what was taken is settled."""
        groups = [
            {"of": list(of) if isinstance(of, tuple) else of, "columns": list(group.columns),
             "current": list(group.current), "thinner": group.thinner.state()}
            for of, group in self._groups.items()
        ]  # fmt: skip
        return {"groups": groups, "nonfinite": self._nonfinite}

    def restore(self, state: State) -> None:
        """Goes on as those that wrote `state` would have.

        Raises:
            StateError: it is none.
        """
        self._nonfinite = state.integers("nonfinite")
        self._groups = {}
        for one in state.parts("groups"):
            names = one.list_of_texts("columns")
            columns = {name: at for at, name in enumerate(names)}
            thinner = Thinner.restored(one.part("thinner"))
            current = integers(one.items("current"), "current", 0, len(names) - 1)
            if thinner.width != len(names) or len(columns) != len(names):
                raise StateError(f"a group of {len(names)} series has {thinner.width}")
            self._groups[_group(one)] = _Group(thinner, columns, current)

    def _points(self, group: _Group, points: tuple[np.ndarray, ...]) -> list[Point]:
        keys = [self._names(key) for key in group.columns]
        series, steps, times, values = (array.tolist() for array in points)
        return [
            Point(keys[one], value, step, milliseconds(time))
            for one, step, time, value in zip(series, steps, times, values, strict=True)
        ]

    def _not_finite(self, key: str, step: int, time: float) -> list[Point]:
        count = self._nonfinite[key] = self._nonfinite.get(key, 0) + 1
        if count > MAX_NONFINITE:
            return []
        return [Point(self._names(f"nonfinite/{key}"), float(step), step, milliseconds(time))]


def _group(state: State) -> object:
    try:
        kind, stream = state.items("of")
    except ValueError:  # the only series of its group
        return state.text("of")
    if kind not in ("steps", "deep"):
        raise StateError(f"there is no group {kind!r}")
    return kind, *integers([stream], "a group's stream")
