"""Locks between processes: on a file while its holder lives, and for the creation of a store.

A POSIX lock (`lockf`) is what SQLite takes on the journal beside it: where it works the journal does, also on file
systems without `flock` (some NFS, FUSE and Lustre mounts), and a forked child, which may outlive the holder, does not
have it. But it is the process's, and closing any descriptor of the file lets it go: so no file is opened here that
this process holds.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mlflow_tfmon import trusted_paths

try:
    import fcntl
except ImportError:  # Windows: nothing is known of other processes
    fcntl = None  # type: ignore[assignment]

MAKING_SECONDS = 60.0  # that the making of a store may take
_POLL_SECONDS = 0.05
_held: dict[Path, tuple[int, int]] = {}  # those of this process: process id and file descriptor
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]  # Python 3.9 to 3.13


def hold(path: Path) -> bool:
    """Takes a lock, until `release` or this process's death; the file is made.

    Returns:
        Whether it was taken: False where another process has it, or this one.

    Raises:
        OSError: the file cannot be written, or its file system has no locks.
    """
    with _lock:
        if is_mine(path):
            return False
        while True:
            handle = trusted_paths.opened(path, os.O_CREAT | os.O_RDWR)
            try:
                taken = _take(handle)
                there = taken and _is_at(path, handle)
            except BaseException:
                os.close(handle)
                raise
            if there:
                _held[path.resolve()] = os.getpid(), handle
                return True
            os.close(handle)
            if not taken:
                return False  # else its last holder has just deleted the file


def release(path: Path, delete: bool = False) -> None:
    """Gives a lock back; nothing happens if this process does not hold it.

    Args:
        path: of the file.
        delete: whether the file goes too.
    """
    with _lock:
        if is_mine(path):
            if delete:
                with contextlib.suppress(OSError):
                    path.unlink()
            with contextlib.suppress(OSError):
                os.close(_held.pop(path.resolve())[1])


def is_mine(path: Path) -> bool:
    """Whether this process holds a lock."""
    return _held.get(path.resolve(), (0, 0))[0] == os.getpid()


def is_held(path: Path) -> bool:
    """Whether a living process, this one or another, holds a lock; where nobody can tell, it is said that one does."""
    if fcntl is None:
        return True
    with _lock:
        if is_mine(path):
            return True
        try:
            handle = trusted_paths.opened(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            return not _take(handle, shared=True)
        except OSError:
            return True
        finally:
            os.close(handle)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """One process at a time, of all on this machine that make a store in a folder; where it can't be locked, any.

    So it is where somebody holds it for longer than a store takes to be made: whoever can read a folder can lock it.

    What is locked is the folder itself, by `flock`: whoever can make the store sees it, whatever their home or user,
    and no file of ours is left there.
    """
    handle: int | None = None
    with contextlib.suppress(OSError):  # where it cannot be made or locked, one only tries again
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is not None:
            handle = os.open(folder, os.O_RDONLY)
            give_up = time.monotonic() + MAKING_SECONDS
            while not _flocked(handle) and time.monotonic() < give_up:
                time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                # Closing leaves it locked where a forked child has it open too.
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _flocked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, handle: int) -> bool:
    """Whether an open file is the one that has a name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _take(handle: int, shared: bool = False) -> bool:
    if fcntl is not None:
        try:
            fcntl.lockf(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: another has it
            return False
    return True
