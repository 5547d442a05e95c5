"""Tests of locks between processes: exclusive, released on death, not inherited, also without `flock`."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_tfmon import locks
from mlflow_tfmon.journal.homes import second_home
from mlflow_tfmon.journal.journal import Journal

HOLDER = """
import os, sys, time
from pathlib import Path
from mlflow_tfmon import locks
assert locks.hold(Path(sys.argv[1]))
holder = os.getpid()
if os.fork() == 0:  # it outlives the holder, and has its descriptors
    while os.getppid() == holder:  # whose line it must not take
        time.sleep(0.01)
    sys.stdin.readline()
    os._exit(0)
print("held", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has POSIX locks, which SQLite needs, and no others."""

    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("without_flock")
def test_a_lock_is_taken_once_and_ends_with_its_holder(tmp_path: Path) -> None:
    path, link = tmp_path / "lock", tmp_path / "link"
    link.symlink_to(tmp_path)
    assert not locks.is_held(path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdin is not None
    holder.stdout.readline()
    assert locks.is_held(path) and not locks.is_mine(path) and not locks.hold(path)
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.wait() == -9
    assert not locks.is_held(path)  # though the child lives
    assert locks.hold(path) and not locks.hold(path)
    assert locks.is_held(link / "lock") and locks.is_mine(path)
    code = (
        "import pathlib, sys; from mlflow_tfmon.locks import hold; sys.exit(hold(pathlib.Path(sys.argv[1])))"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == 0  # looking has not let it go
    locks.release(path)
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == 1
    holder.stdin.close()


@pytest.mark.usefixtures("without_flock")
def test_a_store_is_made_where_its_folder_cannot_be_locked(tmp_path: Path) -> None:
    with locks.one_at_a_time(tmp_path / "new"):
        assert list((tmp_path / "new").iterdir()) == []


def test_a_pipe_or_link_in_place_of_a_lock_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("pipe", "link"):
        with pytest.raises(OSError):
            locks.hold(tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()


def test_where_nothing_can_be_locked_a_recording_waits_elsewhere(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's journal could not be there either."""
    real = fcntl.lockf

    def lockf(handle: int, *operation: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").startswith(str(home)):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        real(handle, *operation)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    journal = Journal.create()
    assert journal.folder.is_relative_to(second_home())
    journal.close()


def test_a_folder_that_somebody_holds_keeps_no_store_from_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "MAKING_SECONDS", 0.2)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with locks.one_at_a_time(tmp_path):
            pass
    finally:
        os.close(handle)
