"""Whether a recording's trainer lives, and whether somebody delivers it: each holds a lock as long as it does."""

from __future__ import annotations

from pathlib import Path

from mlflow_tfmon import locks

_TRAINER, _DELIVERY = "trainer", "lock"


def hold(folder: Path) -> None:
    """Says that this process writes a recording, until `release` or its death, however it ends.

    Raises:
        OSError: the file cannot be written or locked.
    """
    locks.hold(folder / _TRAINER)


def release(folder: Path) -> None:
    """Says that this process writes a recording no longer."""
    locks.release(folder / _TRAINER)


def is_written(folder: Path) -> bool:
    """Whether a living process writes a recording."""
    return locks.is_held(folder / _TRAINER)


def claim(folder: Path) -> bool:
    """Takes the delivery of a recording, until `disclaim` or this process's death.

    Returns:
        Whether it was taken: False if it is being delivered.

    Raises:
        OSError: the folder is gone, or cannot be written or locked.
    """
    return locks.hold(folder / _DELIVERY)


def disclaim(folder: Path) -> None:
    """Gives the delivery of a recording back."""
    locks.release(folder / _DELIVERY)


def is_delivered_here(folder: Path) -> bool:
    """Whether this process delivers a recording."""
    return locks.is_mine(folder / _DELIVERY)


def is_claimed(folder: Path) -> bool:
    """Whether a living process delivers a recording."""
    return locks.is_held(folder / _DELIVERY)
