"""Pulse of a trainer: a file beside its journal whose time moves while Python runs there and a step is due.

It stands still where C code keeps the interpreter's lock: then no thread of the trainer can say anything, and delivery
does. It holds the trainer's process id.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil

from mlflow_tfmon import trusted_paths

FILE = "pulse"
QUIET_SECONDS = 40.0  # without a pulse, after which a trainer has stalled; it is moved every second
_LONGEST = 2.0  # s from one look to the next that count: more is time in which who listens did not run


def beat(folder: Path) -> None:
    """Moves the pulse of this process; a disk that does not take it has none."""
    with contextlib.suppress(OSError):
        try:
            os.utime(folder / FILE)
        except FileNotFoundError:
            trusted_paths.write_text(folder / FILE, str(os.getpid()))


def stop(folder: Path) -> None:
    """Takes the pulse away, since no step is due."""
    with contextlib.suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)


class Listener:
    """Listens to the pulse of the trainer of a recording.

    Attributes:
        said: Unix time since when it was said to stand still; 0 if it was not.

    Args:
        folder: of the recording.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self.said = 0.0
        self._at: int | None = None
        self._quiet = 0.0
        self._last = time.monotonic()

    def quiet(self) -> float:
        """For how many seconds the pulse has stood still; 0 where there is none, or the trainer is suspended."""
        now = time.monotonic()
        passed, self._last = min(now - self._last, _LONGEST), now
        try:
            at: int | None = os.lstat(self._path).st_mtime_ns
        except OSError:
            at = None
        self._quiet = self._quiet + passed if at is not None and at == self._at else 0.0
        self._at = at
        if self._quiet > QUIET_SECONDS and self._is_suspended():
            self._quiet = 0.0
        return self._quiet

    def _is_suspended(self) -> bool:
        try:
            state = psutil.Process(int(trusted_paths.read_text(self._path))).status()
        except (OSError, ValueError, psutil.Error):  # it has gone: somebody else says so
            return True
        return state in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
