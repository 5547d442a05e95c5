"""How far the delivery of a recording has come, in full: so that it can go on without the records up to there.

Written to the recording's folder before they are deleted from its journal. It is Python's own format (pickle), for the
same version of this package: read from a folder that is this user's alone, as the rest of what is written there.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import mlflow_tfmon
from mlflow_tfmon.delivery.sent import Sent
from mlflow_tfmon.stream.records import RunStarted
from mlflow_tfmon.translation.translation import Translation

FILE = "moment.pickle"


@dataclass(frozen=True)
class Moment:
    """A moment at which no call waits.

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


def save_moment(folder: Path, moment: Moment) -> None:
    """Writes it, so that it is there after a loss of power too.

    Raises:
        OSError: it could not be written; the one before is still there.
    """
    draft = folder / (FILE + ".new")
    with open(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        file.write(mlflow_tfmon.__version__.encode() + b"\n")
        pickle.dump(moment, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, folder / FILE)
    if os.name == "posix":  # and its name
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load_moment(folder: Path) -> Moment | None:
    """Reads it; None if there is none.

    Raises:
        ValueError: it is of another version, which the message names.
    """
    try:
        file = (folder / FILE).open("rb")
    except FileNotFoundError:
        return None
    with file:
        version = file.readline().decode("utf-8", "replace").strip()
        if version != mlflow_tfmon.__version__:
            raise ValueError(
                f"its delivery was begun by mlflow_tfmon {version}, and this is {mlflow_tfmon.__version__}: "
                f"pip install 'mlflow-tfmon=={version}' delivers the rest"
            )
        moment: Moment = pickle.load(file)
        return moment
