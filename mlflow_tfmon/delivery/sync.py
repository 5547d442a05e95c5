"""Undelivered recordings on this machine's disk, and their delivery on request."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow_tfmon import trusted_paths
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.delivery.status import put_away, read_status
from mlflow_tfmon.journal import life
from mlflow_tfmon.journal.homes import all_homes
from mlflow_tfmon.journal.journal import DATABASE, JournalReader
from mlflow_tfmon.stream.records import RunStarted
from mlflow_tfmon.tracking import credentials

_PAUSE_S = 0.1  # s
_MAKING = 60.0  # s; a journal is made in milliseconds


@dataclass(frozen=True)
class Waiting:
    """A recording that has not been delivered in full.

    Attributes:
        folder: where it is.
        run_id: its run, or None if it could not be made yet.
        run_name: name of a run that is to be made, or None.
        store: the tracking URI, without secrets.
        registry: the registry's, the same way.
        begun: Unix time, seconds.
        records: how many records wait; there may be none, and files yet.
        bytes: what it takes on the disk.
        written: whether its training goes on.
        damaged: whether its journal is not what was written: what can be read of it is delivered, and it is put aside.
        error: why it could not be delivered, as far as that is known.
        unread: whether it is not even read, since others can write it, or it is no recording.
    """

    folder: Path
    run_id: str | None
    run_name: str | None
    store: str
    registry: str
    begun: float
    records: int
    bytes: int
    written: bool
    damaged: bool
    error: str | None
    unread: bool = False

    @property
    def name(self) -> str:
        """What people call it: the run, or the folder if there is no run yet."""
        return self.run_id or self.folder.name


def find_waiting(home: Path | None = None) -> list[Waiting]:
    """Returns the undelivered recordings, oldest first; deletes folders without any record.

    Args:
        home: folder of all recordings; default those of this user, whatever the working directory.

    Example:
        >>> for recording in find_waiting():
        ...     print(recording.name, recording.records)
    """
    found: list[Waiting | None] = []
    for one in [home] if home is not None else all_homes():
        try:
            trusted_paths.check_home(one)
            found += [_looked_at(folder) for folder in (one / "recordings").iterdir()]
        except trusted_paths.NotOursError as error:
            found.append(_unread(one, error))
        except OSError:  # nothing was recorded
            continue
    return sorted((one for one in found if one is not None), key=lambda one: one.begun)


def _looked_at(folder: Path) -> Waiting | None:
    """A recording; one that cannot be read, whatever is in it, keeps no other from being delivered."""
    try:
        return _look(folder)
    except Exception as error:
        return _unread(folder, error)


def _unread(folder: Path, error: Exception) -> Waiting:
    """What is not read, since others can write it or it is none: it is shown, and stays where it is."""
    told = (
        str(error) if isinstance(error, trusted_paths.NotOursError) else f"{folder} cannot be read: {error!r}"
    )
    return Waiting(folder, None, None, "", "", folder.lstat().st_mtime, 0, 0, False, False, told, True)


def _look(folder: Path) -> Waiting | None:
    try:
        trusted_paths.check_recording(folder)
    except trusted_paths.NotOursError as error:
        return _unread(folder, error)
    reader = JournalReader(folder)
    try:
        first = reader.read(0, limit=1)
        last = reader.last()
    finally:
        reader.close()
    written = life.is_written(folder)  # asked last: one that is just being made is empty, but is written
    status = read_status(folder)
    try:
        begun = folder.stat().st_mtime
    except OSError:
        return None  # it has just arrived
    if not first and not written and not (folder / DATABASE).exists():
        if time.time() - begun > _MAKING:  # its trainer died while it made it
            put_away(folder, damaged=False)
        return None
    if status.complete or (not first and not written and reader.error is None):
        put_away(folder, damaged=False)
        return None
    started = first[0][1] if first else None
    known = started if isinstance(started, RunStarted) else None
    return Waiting(
        folder,
        status.run_id or (known.run_id if known else None),
        known.run_name if known else None,
        known.tracking_uri if known else "",
        known.registry_uri if known else "",
        known.start_time if known else begun,
        max(0, last - status.delivered),
        _size(folder),
        written,
        reader.damaged,
        reader.error or status.error,
    )


def _size(folder: Path) -> int:
    size = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # delivery has just deleted it
                size += os.stat(os.path.join(where, name)).st_size
    return size


def deliver(
    waiting: Waiting, tracking_uri: str | None = None, told: Callable[[int], None] = lambda left: None
) -> str | None:
    """Delivers a recording: all of it, or, where the training goes on, what there is by now.

    Args:
        waiting: the recording.
        tracking_uri: the store, with its credentials. Default: as recorded; MLflow's own setting, which may have
            credentials, if it is the same store.
        told: is told how many records are left.

    Returns:
        None if it has arrived, else why not.
    """
    if waiting.unread:
        return waiting.error
    try:
        uris = credentials.addresses(waiting.store, waiting.registry, tracking_uri)
    except credentials.WithheldError as error:
        return str(error)
    deliverer = Deliverer(waiting.folder, *uris)
    gone = not waiting.written
    try:
        while True:
            deliverer.advance(trainer_gone=gone, hurry=True)
            told(deliverer.status.waiting)
            if deliverer.done:
                return deliverer.status.error
            if not deliverer.claimed:
                writable = os.access(waiting.folder, os.W_OK)
                return (
                    "another process is delivering it" if writable else f"{waiting.folder} cannot be written"
                )
            if deliverer.status.error:
                return deliverer.status.error
            if not gone and not deliverer.status.waiting:
                return None
            time.sleep(_PAUSE_S)
    finally:
        deliverer.close()
