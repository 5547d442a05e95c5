"""Whether the trainer that writes a recording lives: it holds a lock for as long as it does, however it ends."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mlflow_tfmon.journal import private

try:
    import fcntl
except ImportError:  # Windows: no recording is known to be written, so none but its own delivery may end it
    fcntl = None  # type: ignore[assignment]

_FILE = "trainer"
_held: dict[Path, tuple[int, int]] = {}  # the recordings of this process: process id and file descriptor


def hold(folder: Path) -> None:
    """Says that this process writes a recording, until `release` or its death.

    A POSIX lock, not `flock`: a forked child, which may outlive the trainer, does not have it.

    Raises:
        OSError: the file cannot be written.
    """
    handle = private.opened(folder / _FILE, os.O_CREAT | os.O_RDWR)
    _held[folder] = os.getpid(), handle
    if fcntl is not None:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def release(folder: Path) -> None:
    """Says that this process writes a recording no longer."""
    pid, handle = _held.pop(folder, (0, -1))
    if pid == os.getpid():
        with contextlib.suppress(OSError):
            os.close(handle)


def is_written(folder: Path) -> bool:
    """Whether a living process writes a recording."""
    if fcntl is None:
        return True
    if folder in _held and _held[folder][0] == os.getpid():
        return True  # and opening the file here would let the lock go, when it is closed
    try:
        handle = private.opened(folder / _FILE, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)
