"""Bounded tables of values over steps: a row stands for one step, or for more and more of them as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Table:
    """Columns over steps; each row summarizes the steps from `first` to `last`.

    Values that are not finite or were not measured are left out of mean, least and most, which are NaN if no value
    remains.

    Attributes:
        names: of the columns.
        first: step at which each row begins.
        last: step at which it ends.
        mean: array (rows, columns).
        least: array (rows, columns).
        most: array (rows, columns).
    """

    names: tuple[str, ...] = ()
    first: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    last: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    mean: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    least: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    most: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __len__(self) -> int:
        return len(self.first)

    def column(self, name: str) -> Table:
        """Returns one column's rows that hold a number; no rows if there is no such column."""
        if name not in self.names:
            return Table((name,), mean=np.zeros((0, 1)), least=np.zeros((0, 1)), most=np.zeros((0, 1)))
        one = self.only([name])
        return one.rows(np.isfinite(one.mean[:, 0]))

    def only(self, names: Sequence[str]) -> Table:
        """Returns some of the columns."""
        at = [self.names.index(name) for name in names]
        return Table(
            tuple(names),
            self.first,
            self.last,
            self.mean[:, at],
            self.least[:, at],
            self.most[:, at],
        )

    def rows(self, which: np.ndarray | slice) -> Table:
        """Returns some of the rows."""
        return Table(
            self.names,
            self.first[which],
            self.last[which],
            self.mean[which],
            self.least[which],
            self.most[which],
        )

    def medians(self) -> np.ndarray:
        """Returns the median of each column's means; NaN for a column without any."""
        some = np.isfinite(self.mean).any(axis=0)
        found = np.full(len(self.names), np.nan)
        found[some] = np.nanmedian(self.mean[:, some], axis=0)
        return found

    def median(self, name: str) -> float:
        """Returns the median of one column's means; 0 if nothing was measured."""
        values = self.column(name)
        return float(np.median(values.mean)) if len(values) else 0.0

    def since(self, step: float) -> Table:
        """Returns the rows that end after a step."""
        return self.rows(self.last > step)


class Gathering:
    """Builder of a table of bounded size: when it is full, pairs of rows are merged.

    The result depends on the rows alone, not on the blocks in which they came.

    Args:
        most: largest number of rows.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._width = 1  # steps per row
        self._seen = 0  # steps that were added
        self._where: dict[str, int] = {}  # the columns
        self._bounds = np.zeros((most, 2))
        self._sums = np.zeros((most, 0))
        self._counts = np.zeros((most, 0))
        self._least = np.zeros((most, 0))
        self._greatest = np.zeros((most, 0))

    def add(self, steps: np.ndarray, names: Sequence[str], values: np.ndarray) -> None:
        """Adds rows, one per step.

        Args:
            steps: array (rows,), ascending.
            names: of the columns; a new one has no values in earlier rows.
            values: array (rows, columns).
        """
        if not values.size:
            return
        at = self._columns(names)
        while (self._seen + len(values) - 1) // self._width >= self._most:
            self._halve()
        rows = (self._seen + np.arange(len(values))) // self._width
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        self._seen += len(values)
        known = np.isfinite(values)
        if not known.all():
            values = np.where(known, values, np.nan)
        # The rows are consecutive, and usually all columns are in order: slices are many times as fast.
        onto = slice(int(rows[0]), int(rows[-1]) + 1)
        bounds = self._bounds[onto]
        bounds[:, 0] = np.where(bounds[:, 1] > 0, bounds[:, 0], steps[starts])
        bounds[:, 1] = steps[np.append(starts[1:], len(steps)) - 1]
        into: Any = (onto, slice(at[0], at[-1] + 1))
        if at != list(range(at[0], at[-1] + 1)):
            into = np.ix_(np.arange(onto.start, onto.stop), np.array(at))
        whole = known.all()
        self._sums[into] += np.add.reduceat(values if whole else np.where(known, values, 0.0), starts)
        self._counts[into] += (
            np.diff(starts, append=len(values))[:, None]
            if whole
            else np.add.reduceat(known, starts, dtype=float)
        )
        self._least[into] = np.fmin(self._least[into], np.fmin.reduceat(values, starts))
        self._greatest[into] = np.fmax(self._greatest[into], np.fmax.reduceat(values, starts))

    def table(self) -> Table:
        """Returns the table so far."""
        rows = -(-self._seen // self._width)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self._sums[:rows] / self._counts[:rows]
        first, last = self._bounds[:rows].copy().T
        return Table(
            tuple(self._where), first, last, mean, self._least[:rows].copy(), self._greatest[:rows].copy()
        )

    def _columns(self, names: Sequence[str]) -> list[int]:
        new = [name for name in names if name not in self._where]
        if new:
            self._where |= {name: at for at, name in enumerate(new, len(self._where))}
            nothing = np.full((self._most, len(new)), np.nan)
            self._sums, self._counts = (
                np.hstack([one, np.zeros_like(nothing)]) for one in (self._sums, self._counts)
            )
            self._least, self._greatest = (np.hstack([one, nothing]) for one in (self._least, self._greatest))
        return [self._where[name] for name in names]

    def _halve(self) -> None:
        rows = -(-self._seen // self._width)
        self._width *= 2
        starts = np.arange(0, rows, 2)
        left = -(-rows // 2)
        self._bounds[:left, 1] = self._bounds[np.minimum(starts + 1, rows - 1), 1]
        self._bounds[:left, 0] = self._bounds[starts, 0]
        for array, join, empty in (
            (self._sums, np.add, 0.0), (self._counts, np.add, 0.0),
            (self._least, np.fmin, np.nan), (self._greatest, np.fmax, np.nan),
        ):  # fmt: skip
            if rows:
                array[:left] = join.reduceat(array[:rows], starts)
            array[left:] = empty
        self._bounds[left:] = 0
