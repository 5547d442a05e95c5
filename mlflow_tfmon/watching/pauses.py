"""Pauses of a training, which no step time may include."""

from __future__ import annotations

import time

from mlflow_tfmon.stream.records import Paused


class Pauses:
    """Follows the pauses of one training, such as those for validation."""

    def __init__(self) -> None:
        self._since: float | None = None

    def told(self, since: float | None) -> list[Paused]:
        """Takes that it has paused since a time (Unix seconds), or with None that it goes on: then gives the pause.

        Before the first epoch nothing has paused: its first step is traced.
        """
        if since is not None:
            self._since = self._since or since
            return []
        return [self.end()] if self._since is not None else []

    def end(self) -> Paused:
        """The pause that ends now, of no length if there was none."""
        now = time.time()
        since, self._since = self._since or now, None
        return Paused(since, now)
