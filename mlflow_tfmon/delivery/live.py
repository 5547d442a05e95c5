"""Live view of a training: open telemetry parts are uploaded again as they grow, and the report is renewed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_tfmon.translation.parts import Part

PUBLISH_SECONDS = 3.0
REPORT_SECONDS = 30.0
_PAUSE_FACTOR = 5  # a turn that took long is followed by a pause of this many times as long
_REPORT_PAUSE_FACTOR = 19  # the same for reports: they take a twentieth of the time at most
_LONGEST_REPORT_SECONDS = 10.0  # metrics wait meanwhile, and so may the end of the training


class Pace:
    """Rate limit for repeated work: slow work is done less often.

    Attributes:
        took: how long the last turn took, seconds.

    Args:
        seconds: from one turn to the next, and before the first.
        pause_factor: a turn that took long is followed by a pause of this many times as long.
    """

    def __init__(self, seconds: float, pause_factor: float = _PAUSE_FACTOR) -> None:
        self.took = 0.0
        self._seconds = seconds
        self._pause_factor = pause_factor
        self._next = time.monotonic() + seconds

    @property
    def due(self) -> bool:
        """Whether the next turn may begin."""
        return time.monotonic() >= self._next

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A turn, whether it goes well or not."""
        begun = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            self.took = now - begun
            self._next = max(begun + self._seconds, now + self._pause_factor * self.took)


class Live:
    """Uploader of unfinished parts, each time under the name that the finished part will have.

    This is not part of delivery: it is not queued, not retried, and does not count as delivered.

    Args:
        upload: uploads a part.
    """

    def __init__(self, upload: Callable[[Part], None]) -> None:
        self._upload = upload
        self._pace = Pace(PUBLISH_SECONDS)
        self._published: dict[Path, int] = {}

    def publish(self, unfinished: Callable[[], list[Part]]) -> None:
        """Uploads the parts that have grown, if it is time to.

        Args:
            unfinished: gives the parts that are open.
        """
        if not self._pace.due:
            return
        with self._pace.turn():
            parts = unfinished()
            published = {part.path: self._published.get(part.path, 0) for part in parts}
            self._published = published
            for part in parts:
                if part.rows > published[part.path]:
                    self._upload(part)
                    published[part.path] = part.rows


class LiveReport:
    """Maker of the report of a training that goes on, again and again.

    This is not part of delivery either. One that took long is not made again before the training's end.

    Args:
        make: makes and uploads it.
    """

    def __init__(self, make: Callable[[], None]) -> None:
        self._make = make
        self._pace = Pace(REPORT_SECONDS, _REPORT_PAUSE_FACTOR)
        self._made = 0

    def renew(self, seq: int) -> None:
        """Makes the report if it is time to, and something is new.

        Args:
            seq: number of the last record that was delivered.
        """
        if seq > self._made and self._pace.due and self._pace.took < _LONGEST_REPORT_SECONDS:
            with self._pace.turn():
                self._make()
            self._made = seq
