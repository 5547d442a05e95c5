"""Quick count of the recordings that earlier trainings left on this machine: opens only locks."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

from mlflow_tfmon.delivery.status import read_status
from mlflow_tfmon.errors import contained, logger
from mlflow_tfmon.journal import life
from mlflow_tfmon.journal.homes import all_homes


@functools.cache
def say_what_waits() -> None:
    """Tells whose machine lost its power, say, that something is left to do; once."""
    with contained("looking for undelivered recordings", "they are not reported"):
        count = left_behind()
        if count:
            logger.info(
                "mlflow_tfmon: %s of earlier trainings not delivered yet; run `mlflow-tfmon sync` on this machine.",
                f"{count:,} recording{'s' * (count > 1)}",
            )


def left_behind() -> int:
    """Returns the number of undelivered recordings that no process writes or delivers.

    Example:
        >>> left_behind()
        0
    """
    return sum(
        not (life.is_written(one) or life.is_claimed(one) or read_status(one).complete) for one in _folders()
    )


def _folders() -> list[Path]:
    found: list[Path] = []
    for home in all_homes():
        with contextlib.suppress(OSError):
            found += (home / "recordings").iterdir()
    return found
