"""Recordings of a run on this machine that are not yet in MLflow; reading the run waits for them, or says so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow_tfmon import trusted_paths
from mlflow_tfmon.errors import logger, say_once
from mlflow_tfmon.journal import life
from mlflow_tfmon.journal.homes import all_homes
from mlflow_tfmon.journal.journal import DATABASE, JournalReader
from mlflow_tfmon.stream.records import RunStarted
from mlflow_tfmon.uris import absolute, without_secrets

PATIENCE_SECONDS = 60.0
_SILENCE_SECONDS = 1.0
_BEGINS_SECONDS = 15.0  # by then a delivery process has begun, if there is one
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Here:
    """A recording with undelivered data.

    Attributes:
        folder: where it is.
        run_id: its run, or None if it could not be made yet.
        run_name: name of a run that is to be made, or None.
        store: the tracking URI, without secrets.
        begun: Unix time, seconds.
        waiting: how many records wait, as far as that is known.
        due: whether something waits that was to arrive by now: not so in the middle of a training.
        comes: whether somebody lives who delivers it, and the store answers.
        error: why it does not arrive, as far as that is known.
    """

    folder: Path
    run_id: str | None
    run_name: str | None
    store: str
    begun: float
    waiting: int
    due: bool
    comes: bool
    error: str | None

    def __str__(self) -> str:
        why = self.error or ("being delivered" if self.comes else "not being delivered")
        return f"{self.waiting:,} record{'s' * (self.waiting != 1)} in {self.folder} ({why})"


def recordings(of: Callable[[Here], bool] = lambda one: True) -> list[Here]:
    """The recordings of this user on this machine that are not in MLflow in full, save those this process delivers.

    Args:
        of: which of them.
    """
    folders = [one / "recordings" for one in all_homes()]
    found = [_looked_at(one) for folder in folders if folder.is_dir() for one in sorted(folder.iterdir())]
    return [one for one in found if one is not None and of(one)]


def _looked_at(folder: Path) -> Here | None:
    """A recording; one that cannot be read, whatever is in it, is none."""
    try:
        return _look(folder)
    except Exception as error:
        say_once(f"here {folder}", f"mlflow_tfmon: the recording {folder} cannot be read: {error!r}.")
        return None


on_wait: list[Callable[[], None]] = []  # told, in the process that records, that somebody waits for it


def of_run(run_id: str) -> Callable[[Here], bool]:
    """Returns a filter for the recordings of a run."""
    return lambda one: one.run_id == run_id


def of_store(tracking_uri: str) -> Callable[[Here], bool]:
    """Returns a filter for the recordings of a store."""
    store = without_secrets(absolute(tracking_uri))
    return lambda one: one.store == store


def wait(of: Callable[[Here], bool], what: str, timeout: float = PATIENCE_SECONDS) -> list[Here]:
    """Waits until the expected data have arrived, while a process delivers them; logs a line if that takes a moment.

    Args:
        of: the recordings.
        what: they are, for messages.
        timeout: seconds.

    Returns:
        Those of which something was to arrive and has not.
    """
    began, said = time.monotonic(), False
    for told in on_wait:
        told()
    while True:
        left = recordings(lambda one: one.due and of(one))
        waited = time.monotonic() - began
        if not any(one.comes for one in left) or waited > timeout:
            return left
        if waited > _SILENCE_SECONDS and not said:
            said = True
            logger.info(
                "mlflow_tfmon: waiting until %s has arrived in MLflow: at most %.0f s.", what, timeout
            )
        time.sleep(_POLL_SECONDS)


def _look(folder: Path) -> Here | None:
    if life.is_delivered_here(folder):
        return None
    reader = JournalReader(folder)
    try:
        first, ends, last = reader.read(0, limit=1), reader.ends(), reader.last()
    finally:
        reader.close()
    if not first or not isinstance(first[0][1], RunStarted):
        return None
    started = first[0][1]
    written, claimed = life.is_written(folder), life.is_claimed(folder)
    try:
        status = json.loads(trusted_paths.read_text(folder / "status.json"))
        touched = (folder / DATABASE).stat().st_mtime
    except FileNotFoundError:
        if not folder.exists():
            return None  # it has arrived meanwhile
        status, touched = {}, time.time() if written else folder.stat().st_mtime
    except (OSError, ValueError):
        status, touched = {}, 0.0
    if status.get("complete"):
        return None
    error = status.get("error")
    away = error is not None and status.get("tried", 0.0) >= touched
    begins = written or time.time() - touched < _BEGINS_SECONDS
    return Here(
        folder,
        status.get("run_id") or started.run_id,
        started.run_name,
        started.tracking_uri,
        started.start_time,
        max(0, last - int(status.get("delivered", 0))),
        due=not written or int(status.get("flushed", 0)) < ends,
        comes=(claimed or begins) and not away,
        error=error,
    )
