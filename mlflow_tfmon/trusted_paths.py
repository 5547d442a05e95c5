"""Folders and files that only this user can write: anything that others can write is not read.

A recording says where its data go and what is done with them, so that whoever can write it acts as its user. Checked
are the home of the recordings, the folders in it and each recording: where they are made, delivered, read.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# It never waits for a FIFO's other end, follows no link, is not inherited.
_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class NotOursError(OSError):
    """A folder or a file that somebody else can write, or that is not what it should be: it is not read."""


def make_folder(folder: Path) -> None:
    """Makes a folder for this user alone, whatever the umask, and those above it that are missing.

    Raises:
        OSError: it cannot be made.
    """
    if not folder.parent.exists():
        make_folder(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        folder.chmod(0o700)  # the umask may have taken rights of ours


def own_folder(folder: Path) -> None:
    """Makes a folder as `make_folder`, or sees that the one that is there is this user's alone, and no link.

    Raises:
        NotOursError: others can write it, or it is somebody else's, or none.
        OSError: it cannot be made.
    """
    make_folder(folder)
    _check_folder(folder, os.lstat(folder))


def check_home(home: Path) -> None:
    """Checks the folder of all recordings, and the folder `recordings` in it; what is missing is no fault.

    Raises:
        NotOursError: others can write one of them.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        # A link that the user has set is followed, and in a folder like /tmp nobody can take another's away.
        _check_folder(home, os.stat(home), sticky=True)
        _check_folder(home / "recordings", os.lstat(home / "recordings"))


def check_recording(folder: Path) -> None:
    """Checks a recording: the folders that it is in, its own, and what that holds; what is missing is no fault.

    Raises:
        NotOursError: others can write one of them, or it is somebody else's, a link, a FIFO or a device.
    """
    check_home(folder.parent.parent)
    with contextlib.suppress(FileNotFoundError):
        _check_folder(folder, os.lstat(folder))
        _check_inside(folder)


def opened(path: Path, flags: int) -> int:
    """A descriptor of a regular file of this user's: as `os.open`, but it waits for no FIFO and follows no link.

    One that may be made can be read by this user alone afterwards.

    Raises:
        NotOursError: it is another kind of file, or others can write it.
        OSError: it cannot be opened.
    """
    try:
        handle = os.open(path, flags | _SAFELY, 0o600)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            _check_file(path, os.lstat(path))  # says more
        raise
    try:
        _check_file(path, os.fstat(handle))
        if flags & os.O_CREAT and _is_posix():
            os.fchmod(handle, 0o600)  # whatever the umask
    except BaseException:
        os.close(handle)
        raise
    return handle


def read_text(path: Path, limit: int = 16 * 2**20) -> str:
    """The text of a file of this user's.

    Raises:
        NotOursError: as `opened`.
        OSError: it cannot be read.
        ValueError: it is longer than `limit` bytes, or no text.
    """
    with open(opened(path, os.O_RDONLY), "rb") as file:
        found = file.read(limit + 1)
    if len(found) > limit:
        raise ValueError(f"{path} has more than {limit} bytes")
    return found.decode("utf-8")


def write_text(path: Path, text: str) -> None:
    """Writes a file that this user alone can read, whatever the umask, over the one that is there.

    Raises:
        NotOursError: as `opened`.
        OSError: it cannot be written.
    """
    with open(opened(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), "w", encoding="utf-8") as file:
        file.write(text)


def _check_inside(folder: Path) -> None:
    for one in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # it is delivered at this moment
            about = one.stat(follow_symlinks=False)
            if stat.S_ISDIR(about.st_mode):
                _check_owner(
                    Path(one.path), about
                )  # nobody else comes as far as this: its mode does not matter
                _check_inside(Path(one.path))
            else:
                _check_file(Path(one.path), about)


def _check_folder(folder: Path, about: os.stat_result, sticky: bool = False) -> None:
    if not stat.S_ISDIR(about.st_mode):
        raise NotOursError(f"{folder} is not a folder: it is not read; remove it.")
    _check_owner(folder, about)
    if _is_posix() and about.st_mode & _OTHERS_WRITE and not (sticky and about.st_mode & stat.S_ISVTX):
        raise NotOursError(
            f"{folder} can be written by others (mode {stat.S_IMODE(about.st_mode):03o}): it is not read; if "
            f"everything in it is yours, chmod go-w '{folder}'; else set MLFLOW_TFMON_HOME to a folder that does "
            "not exist yet."
        )


def _check_file(path: Path, about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise NotOursError(f"{path} is not a regular file: it is not read; remove it.")
    _check_owner(path, about)
    # The group's right to write means nothing within a folder that is its owner's alone (umask 002).
    if _is_posix() and about.st_mode & stat.S_IWOTH:
        raise NotOursError(
            f"{path} can be written by others (mode {stat.S_IMODE(about.st_mode):03o}): it is not read; if it is as "
            f"you left it, chmod go-w '{path}'; else remove it."
        )


def _check_owner(path: Path, about: os.stat_result) -> None:
    # What is the superuser's is safe from all others.
    if _is_posix() and about.st_uid not in (0, os.geteuid()):
        raise NotOursError(
            f"{path} belongs to user {about.st_uid}, but this is user {os.geteuid()}: it is not read; run as that "
            "user, or set MLFLOW_TFMON_HOME to a folder of your own."
        )


def _is_posix() -> bool:
    return os.name == "posix"
