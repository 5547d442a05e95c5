"""Live view of a training: its open telemetry parts are uploaded again and again as they grow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_tfmon.translation.parts import Part

PUBLISH_SECONDS = 3.0
_PAUSE_FACTOR = 5  # a turn that took long is followed by a pause of this many times as long


class Pace:
    """Rate limit for repeated work: slow work is done less often.

    Args:
        seconds: from one turn to the next, and before the first.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
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
            self._next = max(begun + self._seconds, now + _PAUSE_FACTOR * (now - begun))


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
