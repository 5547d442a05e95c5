"""Progress of a recording's delivery: a small file that delivery writes and the trainer reads."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_tfmon import trusted_paths
from mlflow_tfmon.journal.homes import is_private, second_home
from mlflow_tfmon.uris import without_secrets

FILE = "status.json"


@dataclass(frozen=True)
class Status:
    """State of delivery.

    Attributes:
        delivered: number of the last record whose points, params, tags and models are in MLflow.
        flushed: number of the last `Flushed` or `RunEnded` record that has been delivered in full, files included.
        complete: whether the recording is over and all of it has arrived.
        waiting: number of undelivered records.
        run_id: the run, once it exists.
        error: why delivery makes no progress, in a line, or None.
        tried: time of the last attempt, Unix seconds.
        rejected: permanent rejections by MLflow: name -> reason.
        models: path of a `ModelSaved` record -> id of its logged model.
    """

    delivered: int = 0
    flushed: int = 0
    complete: bool = False
    waiting: int = 0
    run_id: str | None = None
    error: str | None = None
    tried: float = 0.0
    rejected: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)


# What a field may be, by its type above.
_FITS: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: type(value) is int and 0 <= value < 2**63,
    "bool": lambda value: isinstance(value, bool),
    "float": lambda value: type(value) in (int, float) and 0 <= value < 2**63,
    "str | None": lambda value: value is None or isinstance(value, str),
    "dict[str, str]": lambda value: (
        isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
    ),
}


def read_status(folder: Path) -> Status:
    """Reads a recording's status; that of a recording without one, or with a damaged one, is as at the start.

    A folder that is gone was deleted because its recording is complete.
    """
    if is_private(second_home()) and _mark(folder).exists():
        return Status(complete=True)
    try:
        values = json.loads(trusted_paths.read_text(folder / FILE))
        known = {item.name: str(item.type) for item in dataclasses.fields(Status)}
        found = {name: value for name, value in values.items() if name in known}
        if all(_FITS[known[name]](value) for name, value in found.items()):
            return Status(**found)
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    return Status(complete=not folder.exists())


def write_status(folder: Path, status: Status) -> None:
    """Writes a recording's status; a reader sees the old one or the new one, never half of it."""
    draft = folder / (FILE + ".new")
    trusted_paths.write_text(draft, json.dumps(dataclasses.asdict(status)))
    os.replace(draft, folder / FILE)


def put_away(folder: Path, damaged: bool) -> None:
    """Deletes a recording that has arrived; a damaged one is put aside, for whoever has better tools.

    Where the disk lets neither be done, nor anything be written, it is written down on another that it has arrived.
    """
    if damaged:
        aside = folder.parent.parent / "damaged"
        with contextlib.suppress(OSError):
            trusted_paths.own_folder(aside)
            folder.rename(aside / folder.name)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        if not folder.exists():
            _mark(folder).unlink(missing_ok=True)
        else:
            trusted_paths.own_folder(second_home())
            _mark(folder).touch()


def _mark(folder: Path) -> Path:
    return second_home() / f"arrived-{folder.name}"


class Ledger:
    """A recording's status, written whenever it changes.

    Attributes:
        status: as it is now.

    Args:
        folder: of the recording.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.status = read_status(folder)

    def reload(self) -> None:
        """Reads the status that another process has written."""
        self.status = read_status(self._folder)

    def note(self, **changes: object) -> None:
        """Sets fields of the status."""
        changed = dataclasses.replace(self.status, **changes)  # type: ignore[arg-type]
        if changed != self.status:
            self.status = changed
            with contextlib.suppress(OSError):  # a full disk: delivery goes on
                write_status(self._folder, changed)

    def reject(self, rejected: dict[str, str]) -> None:
        """Adds a rejection by MLflow."""
        new = {
            name: without_secrets(reason)
            for name, reason in rejected.items()
            if name not in self.status.rejected
        }
        if new:
            self.note(rejected={**self.status.rejected, **new})

    def take_back(self, name: str) -> None:
        """Forgets that MLflow refuses something."""
        self.note(rejected={one: why for one, why in self.status.rejected.items() if one != name})
