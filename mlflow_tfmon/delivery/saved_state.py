"""Complete state of a recording's delivery, from which it can continue without the records up to there.

Written to the recording's folder before they are deleted from its journal, as JSON. What is read of it is looked at as
if anybody had written it (`translation.state`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow_tfmon
from mlflow_tfmon.delivery.tally import Sent
from mlflow_tfmon.stream.records import RunStarted
from mlflow_tfmon.translation.state import State, StateError, of_record
from mlflow_tfmon.translation.translation import Translation

FILE = "moment.json"
FORMAT = 2  # another one where what is made of the same records becomes different
_MOST_BYTES = 2**30
# What Python says to values of another type or size than they must have.
_OF_DATA = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class Moment:
    """A moment at which no call is pending.

    Attributes:
        seq: number of the last record that has been delivered.
        started: the recording's first record.
        translation: as it is after that record.
        sent: the same for what has been handed over.
        time: of the last record that says it, Unix seconds.
    """

    seq: int
    started: RunStarted
    translation: Translation
    sent: Sent
    time: float

    def state(self) -> dict[str, Any]:
        """Returns the state as JSON-compatible data."""
        return {
            "format": FORMAT, "version": mlflow_tfmon.__version__, "seq": self.seq, "time": self.time,
            "started": of_record(self.started), "translation": self.translation.state(), "sent": self.sent.state(),
        }  # fmt: skip

    @classmethod
    def restored(cls, state: State, folder: Callable[[], Path]) -> Moment:
        """Restores the state.

        Args:
            state: what was read.
            folder: gives the folder where telemetry files are to be written.

        Raises:
            StateError: it is none.
        """
        started: RunStarted = state.record("started", RunStarted)
        where = folder()
        try:
            translation = Translation.restored(started, where, state.part("translation"))
            sent = Sent.restored(state.part("sent"))
        except _OF_DATA as error:
            raise StateError(f"{type(error).__name__}: {error}") from error
        return cls(state.integer("seq", 1), started, translation, sent, state.number("time", finite=True))


def save_moment(folder: Path, moment: Moment) -> None:
    """Writes it, so that it is there after a loss of power too.

    Raises:
        OSError: it could not be written; the one before is still there.
        StateError: it could not be read again; the same holds.
    """
    text = json.dumps(moment.state())
    Moment.restored(State(json.loads(text), "the moment"), lambda: folder)
    draft = folder / (FILE + ".new")
    with open(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, folder / FILE)
    if os.name == "posix":  # and its name
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load_moment(folder: Path, telemetry: Callable[[], Path]) -> Moment | None:
    """Reads it; None if there is none.

    Args:
        folder: of the recording.
        telemetry: gives the folder where telemetry files are to be written.

    Raises:
        StateError: it is of another version, or not what was written; the message names the file.
    """
    path = folder / FILE
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise StateError(f"{path} cannot be read: {error}") from error
    try:
        if len(text) > _MOST_BYTES:
            raise StateError("it is larger than 1 GiB")
        state = State(json.loads(text), "it")
        made, version = state.integer("format"), state.text("version")
        if made == FORMAT:
            return Moment.restored(state, telemetry)
    except (StateError, ValueError, RecursionError) as error:
        raise StateError(f"{path} cannot be read: {error}") from error
    raise StateError(
        f"{path} was written by mlflow_tfmon {version[:40]!r} in format {made}, and this is "
        f"{mlflow_tfmon.__version__} with format {FORMAT}: pip install 'mlflow-tfmon=={version[:40]}' delivers the rest"
    )
