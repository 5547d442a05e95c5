"""Temporary folders: private to this user, and deleted with their process, or by the next one if it is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from mlflow_tfmon import trusted_paths
from mlflow_tfmon.journal.homes import is_private, second_home

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays, as with any temporary folder
    fcntl = None  # type: ignore[assignment]

_TRIES, _PAUSE = 50, 0.02  # s


class Folder(tempfile.TemporaryDirectory[str]):
    """A temporary folder for as long as this object lives; a `with` statement takes it away earlier.

    Its process holds a lock on it. What nobody holds was left by a process that was killed, and is deleted by the next
    that makes a folder here.

    Example:
        >>> with Folder() as name:
        ...     Path(name).is_dir()
        True
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            where = _place()
            # Nobody may look at a folder between its making and its locking.
            if where is None or not stack.enter_context(_locked(where)):
                super().__init__(prefix="mlflow_tfmon-")
                return
            abandoned = [held for one in where.iterdir() if (held := _lock(one)) is not None]
            super().__init__(prefix="", dir=where)
            held = _lock(Path(self.name))
        if held is not None:
            weakref.finalize(self, os.close, held[1])
        for folder, handle in abandoned:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _place() -> Path | None:
    """Where they are made; None where nothing can be told of who uses what."""
    if fcntl is None:
        return None
    try:
        trusted_paths.make_folder(second_home())
        if not is_private(second_home()):
            return None
        where = second_home() / "temporary"
        trusted_paths.make_folder(where)
    except OSError:
        return None
    return where


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Waits a moment for a folder's lock; gives whether it was got."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield any(_tries(handle))
    finally:
        os.close(handle)


def _tries(handle: int) -> Iterator[bool]:
    for _ in range(_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except OSError:
            time.sleep(_PAUSE)


def _lock(folder: Path) -> tuple[Path, int] | None:
    """Locks a folder; None if somebody holds it."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return folder, handle
