"""Folders for this user's undelivered recordings."""

from __future__ import annotations

import getpass
import os
import stat
import tempfile
from pathlib import Path


def home_folder() -> Path:
    """Returns the folder of all recordings: MLFLOW_TFMON_HOME, else `mlflow_tfmon` in the user's data folder."""
    if home := os.environ.get("MLFLOW_TFMON_HOME"):
        return Path(home).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser().absolute() / "mlflow_tfmon"


def second_home() -> Path:
    """Returns the substitute for a `home_folder` that cannot be written; a reboot may empty it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container nobody need have a name
        user = str(os.getuid())
    return Path(tempfile.gettempdir()) / f"mlflow_tfmon-{user}"


def all_homes() -> list[Path]:
    """Returns the folders that may have recordings of this user."""
    return [home_folder(), *filter(is_private, [second_home()])]


def is_private(folder: Path) -> bool:
    """Whether a folder is there, and is this user's alone: elsewhere somebody else may have made it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    mine = os.name != "posix" or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
    return stat.S_ISDIR(found.st_mode) and mine
