"""Thinning of a curve without changing its look: first, least, largest and last point of each stretch."""

from __future__ import annotations

import numpy as np


def thin(steps: np.ndarray, values: np.ndarray, points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Thins a curve; no extreme of it is lost (M4, Jugel et al., VLDB 2014).

    Args:
        steps: in ascending order.
        values: those that are not finite are left out.
        points: how many are left at most, a multiple of 4.

    Example:
        >>> steps, values = thin(np.arange(1000), np.eye(1, 1000, 500)[0], points=40)
        >>> len(steps) <= 40, values.max()
        (True, 1.0)
    """
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    count = len(steps)
    if count <= points:
        return steps, values
    bounds = np.linspace(0, count, points // 4 + 1).astype(int)
    chosen = set()
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        part = values[start:end]
        chosen |= {start, end - 1, start + int(part.argmin()), start + int(part.argmax())}
    at = np.array(sorted(chosen))
    return steps[at], values[at]


class Buckets:
    """The largest value in each of a number of equal stretches of the steps, for blocks of any size.

    Args:
        last: the last step.
        most: how many stretches, at most.
        width: how many values a step has.
    """

    def __init__(self, last: int, most: int, width: int) -> None:
        self.count = max(1, min(last, most))
        self._last = max(1, last)
        self.largest = np.full((self.count, width), -np.inf)

    def add(self, steps: np.ndarray, values: np.ndarray) -> None:
        """Takes values of shape (steps, width); those that are not finite are left out."""
        at = np.minimum((steps - 1) * self.count // self._last, self.count - 1)
        begins = np.flatnonzero(np.diff(at, prepend=-1))
        most = np.maximum.reduceat(np.where(np.isfinite(values), values, -np.inf), begins, axis=0)
        np.maximum.at(self.largest, at[begins], most)

    @property
    def steps(self) -> np.ndarray:
        """The last step of each stretch."""
        return np.ceil(np.arange(1, self.count + 1) * self._last / self.count).astype(int)
