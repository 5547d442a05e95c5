"""Spool: writes to the journal within its size limit and as far as the disk allows, and counts the rest.

The bound is on the records that wait: what has arrived is deleted from the journal (`deliverer`). Where it comes near,
the bulkiest is left out first: histograms from half of it on, what else is measured every so many steps from three
quarters on, the steps and the user's own figures at the bound. What comes once an epoch or once a training is always
written.

Where the disk takes nothing (full, read-only, locked, gone), all is held in memory, as far as there is room, until the
disk takes it again, or the training is over: then `close` counts the rows and gives back the rest.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Sequence
from math import inf

from mlflow_tfmon.errors import say_once
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.stream.counted import counted
from mlflow_tfmon.stream.records import (
    DeepSteps,
    EpochEnded,
    Histograms,
    LeftOut,
    Logged,
    Lost,
    Record,
    Steps,
)

_UP_TO: dict[type, float] = {Histograms: 0.5, DeepSteps: 0.75, Steps: 1.0, Logged: 1.0}  # shares of the bound
_ROWS = (Steps, DeepSteps, Histograms)
_HELD_BYTES = 64 * 2**20  # of rows: hours of ordinary steps
_HELD = 1000  # records of other kinds
_AT_ONCE = 20
_TRIES = 10


def fitting(records: Sequence[Record], share: float) -> tuple[list[Record], Counter[str]]:
    """What of some records is written, and the count of what is not.

    Args:
        records: the records.
        share: of the bound that is used.
    """
    kept = [record for record in records if share < _UP_TO.get(type(record), inf)]
    left: Counter[str] = Counter()
    for record in records:
        if not any(record is one for one in kept):
            left += _count(record)
    return kept, left


class Spool:
    """Writes the records of one recording; any thread may append.

    Attributes:
        last: number of the last record in the journal.
        written: the count of what was.
        left_out: the count of what was not kept.
        why: it was not.

    Args:
        journal: where to.
        bound: how many bytes may wait there.
    """

    def __init__(self, journal: Journal, bound: float) -> None:
        self.last = 0
        self.written: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.why = ""
        self._journal = journal
        self._bound = bound
        self._lock = threading.RLock()
        self._held: list[Record] = []
        self._unsaid: Counter[str] = Counter()  # of `left_out` what no record tells of yet

    @property
    def not_kept(self) -> str:
        """What was not kept, and why; "" if all was."""
        return f"{counted(self.left_out)}: {self.why}" if self.left_out else ""

    def append(self, records: Sequence[Record]) -> None:
        """Writes records, in order; holds them where the disk takes nothing."""
        with self._lock:
            try:
                while (
                    self._held
                ):  # some at a time: where the disk takes nothing, no more than these are packed
                    self._write(self._held[:_AT_ONCE], tells=False)
                    del self._held[:_AT_ONCE]
                self._write(records)
            except sqlite3.ProgrammingError:  # it is closed
                raise
            except (sqlite3.Error, OSError) as error:
                self._hold(
                    records, f"the journal could not be written ({' '.join(str(error).split())[:200]})"
                )

    def flush(self) -> bool:
        """Writes what is held, if the disk takes it by now; returns whether nothing is held any more."""
        for _ in range(_TRIES):  # it may be locked for a moment; a full disk fails at once
            with self._lock:  # not for all tries: others have something to append meanwhile
                if not self._held:
                    return True
                self.append([])
        return not self._held

    def close(self) -> list[Record]:
        """Closes the journal; returns what it did not take."""
        with self._lock:
            self.flush()
            rest, self._held = self._held, []
            for rows in (one for one in rest if isinstance(one, _ROWS)):
                self._leave_out(rows)
            told = [LeftOut(dict(self._unsaid), self.why)] if self._unsaid else []
            self._journal.close()
            return [*told, *(one for one in rest if not isinstance(one, _ROWS))]

    def _hold(self, records: Sequence[Record], why: str) -> None:
        say_once(
            f"spool {self._journal.folder}",
            f"mlflow_tfmon: {why}: {self._journal.folder}. Training continues, and measurements are kept in "
            "memory as far as there is room; free space on that disk, or make it writable.",
        )
        self.why = why
        for record in records:
            others = sum(not isinstance(one, _ROWS) for one in self._held)
            if others >= _HELD if not isinstance(record, _ROWS) else self._bytes(record) > _HELD_BYTES:
                self._leave_out(record)
            else:
                self._held.append(record)

    def _write(self, records: Sequence[Record], tells: bool = True) -> None:
        """Writes of some records what the bound allows: that and the count of the rest, or nothing.

        Args:
            records: the records.
            tells: whether a record says what was left out; the first one of a recording must say whose it is.

        Raises:
            sqlite3.Error, OSError: the disk takes nothing.
        """
        kept, left = fitting(records, self._journal.size() / self._bound)
        unsaid = self._unsaid + left
        why = f"the journal had reached its limit of {self._bound / 1e9:g} GB" if left else self.why
        if kept:
            told = [LeftOut(dict(unsaid), why)] if tells and unsaid else []
            self.last = self._journal.append([*told, *kept])
            self.written += _rows(kept)
            if told:
                unsaid = Counter()
        self.left_out += left
        self.why, self._unsaid = why, unsaid

    def _bytes(self, more: Steps | DeepSteps | Histograms) -> int:
        """How many bytes of rows are held with some more."""
        return sum(one.values.nbytes for one in [*self._held, more] if isinstance(one, _ROWS))

    def _leave_out(self, record: Record) -> None:
        count = _count(record)
        self.left_out += count
        self._unsaid += count


def _rows(records: Sequence[Record]) -> Counter[str]:
    """The count of what is measured, and of nothing else."""
    rows = (_count(record) for record in records if isinstance(record, (*_ROWS, Logged, EpochEnded)))
    return sum(rows, Counter())


def _count(record: Record) -> Counter[str]:
    if isinstance(record, Lost):
        return Counter({"Steps": record.last - record.first + 1})
    rows = len(record.values) if isinstance(record, _ROWS) else 1
    return Counter({type(record).__name__: rows})
