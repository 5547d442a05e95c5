"""Points of metrics."""

from __future__ import annotations

from typing import NamedTuple


class Point(NamedTuple):
    """A point of a metric; `time` in milliseconds since 1970."""

    key: str
    value: float
    step: int
    time: int
