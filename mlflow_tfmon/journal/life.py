"""Locks that show which processes of a recording are alive: each is held until its process ends, in whatever way."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mlflow_tfmon import locks, trusted_paths

_TRAINER, _DELIVERY = "trainer", "lock"


def hold(folder: Path) -> None:
    """Marks that this process writes a recording, until `release` or its death, however it ends.

    Raises:
        OSError: the file cannot be written or locked.
    """
    locks.hold(folder / _TRAINER)


def release(folder: Path) -> None:
    """Ends the mark that this process writes a recording."""
    locks.release(folder / _TRAINER)


def is_written(folder: Path) -> bool:
    """Whether a living process writes a recording."""
    return locks.is_held(folder / _TRAINER)


def claim(folder: Path) -> bool:
    """Claims the delivery of a recording, until `disclaim` or this process's death.

    Returns:
        Whether it was taken: False if it is being delivered.

    Raises:
        OSError: the folder is gone, or cannot be written or locked.
    """
    return locks.hold(folder / _DELIVERY)


def disclaim(folder: Path) -> None:
    """Releases the delivery of a recording."""
    locks.release(folder / _DELIVERY)


def is_delivered_here(folder: Path) -> bool:
    """Whether this process delivers a recording."""
    return locks.is_mine(folder / _DELIVERY)


def is_claimed(folder: Path) -> bool:
    """Whether a living process delivers a recording."""
    return locks.is_held(folder / _DELIVERY)


def claim_run(folder: Path, run_id: str) -> bool:
    """Says that this process records a run, in a recording, until `disclaim_run` or its death.

    Returns:
        Whether no other process of those that share this home does: of two, both would number their steps from 1.
    """
    path = _of_run(folder, run_id)
    try:
        trusted_paths.own_folder(path.parent)  # where the home is a folder of all, anybody may have made it
        for one in path.parent.iterdir():  # left by those that were killed
            if one != path and not locks.is_held(one):
                one.unlink(missing_ok=True)
        return locks.is_mine(path) or locks.hold(path)
    except OSError:
        return True  # nobody can tell


def disclaim_run(folder: Path, run_id: str) -> None:
    """Says that this process records a run no longer."""
    locks.release(_of_run(folder, run_id), delete=True)


def _of_run(folder: Path, run_id: str) -> Path:
    # A server gives a run its id: it may be any text, a path as well.
    name = hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return folder.parent.parent / "runs" / name
