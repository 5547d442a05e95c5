"""Deliverer of one recording: reads its journal and brings MLflow up to date with it, whatever goes wrong.

The journal determines what is to be delivered, and all other state (`attempt`) can be rebuilt from it at any time. So
no state needs to be valid after a fault: the attempt is given up, and another starts from the last committed state. A
recording is deleted once all of it was counted in the store; otherwise it is kept.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow_tfmon import trusted_paths
from mlflow_tfmon.delivery.attempt import Attempt
from mlflow_tfmon.delivery.status import Ledger, Status, put_away
from mlflow_tfmon.errors import contained
from mlflow_tfmon.journal import life, pulse
from mlflow_tfmon.problems import alerts
from mlflow_tfmon.stream.records import Record
from mlflow_tfmon.tracking.patience import give_more_time
from mlflow_tfmon.tracking.store import AwayError
from mlflow_tfmon.tracking.texts import sayable
from mlflow_tfmon.uris import in_a_line

_BACK_OFF = (0.5, 15.0)  # s
_TRIES = 3  # of a record that cannot be translated, and of a journal that cannot be read
_PASSING = (MemoryError, RecursionError, OSError, sqlite3.Error)  # what a record is not to blame for


class Deliverer:
    """Deliverer of one recording, a bit at each call of `advance`.

    Attributes:
        folder: of the recording.
        done: whether nothing is left to do here; `status.error` says why, where not all has arrived.

    Args:
        folder: of the recording.
        tracking_uri: store, with credentials; default as the journal says, which has none.
        registry_uri: the same for the registry.
        alert_url: who is told how the training ended, or None.
    """

    def __init__(
        self,
        folder: Path,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
        alert_url: str | None = None,
    ) -> None:
        self.folder = folder
        self.done = False
        self._uris = (tracking_uri, registry_uri)
        self._alert_url = alert_url
        self._ledger = Ledger(folder)
        self._attempt: Attempt | None = None
        self._trainer = pulse.Listener(folder)
        self._has = False  # the delivery of it
        self._where = "MLflow"
        self._rest: list[Record] = []
        self._begins: Sequence[Record] = ()
        self._gone = False  # there was no journal
        self._unread: dict[int, str] = {}  # records that could not be translated: number -> why
        self._faults: dict[int, int] = {}  # how often, by the record's number
        self._damaged = 0  # how often, one after the other, the journal looked so
        self._sent = time.monotonic()
        self._waits = 0.0
        self._next_try = 0.0

    @property
    def status(self) -> Status:
        """Its progress."""
        return self._ledger.status

    @property
    def claimed(self) -> bool:
        """Whether this process delivers it."""
        return self._has

    @property
    def progressed(self) -> float:
        """When something was delivered last, monotonic seconds."""
        return self._sent

    @property
    def where(self) -> str:
        """The store, for messages: without credentials."""
        return self._where

    def advance(self, trainer_gone: bool = False, hurry: bool = False) -> None:
        """Delivers the available records, for a few seconds at most; raises only what is meant to stop the process.

        Args:
            trainer_gone: whether no more records can come: then a recording without an end gets one.
            hurry: try now, even if the store was away a moment ago.
        """
        if self.done or (time.monotonic() < self._next_try and not hurry):
            return
        error: str | None = None
        tries = 0
        while tries < _TRIES and not self.done:
            try:
                if not self._claimed():
                    return
                error = self._deliver(trainer_gone)
                break
            except AwayError as away:  # the calls that are left wait in the attempt
                error = str(away)
                give_more_time(error)
                break
            except BaseException as fault:  # a fault of ours: tried again, and said in the status
                known = len(self._unread)
                error = self._give_up(fault)
                if not isinstance(fault, Exception):
                    raise
                tries = 0 if len(self._unread) > known else tries + 1
        if not self.done:
            self._waits = min(_BACK_OFF[1], max(_BACK_OFF[0], 2 * self._waits)) if error else 0.0
            self._next_try = time.monotonic() + self._waits
            with contextlib.suppress(Exception):
                self._note(error)

    def _note(self, error: str | None) -> None:
        tried = time.time() if error else self.status.tried
        attempt = self._attempt
        if attempt is not None:
            self._sent = max(self._sent, attempt.outbox.sent)
            waiting = max(0, attempt.reader.last() + len(self._rest) - self.status.delivered)
            self._ledger.note(error=error, tried=tried, waiting=waiting)
        else:
            self._ledger.note(error=error, tried=tried)

    def _deliver(self, trainer_gone: bool) -> str | None:
        """Continues or starts an attempt; returns why it makes no progress, if so."""
        if self._attempt is None:
            self._attempt = Attempt(
                self.folder, self._uris, self._ledger, self._rest, self._unread, self._trainer
            )
        attempt = self._attempt
        while True:
            attempt.go_on(trainer_gone, self._damaged >= _TRIES, self._gone)
            self._damaged = self._damaged + 1 if attempt.reader.damaged else 0
            if not 0 < self._damaged <= _TRIES or attempt.over:
                break
        if attempt.started is not None:
            self._where = attempt.started.tracking_uri
            if attempt.ending is not None and self._alert_url is not None:
                url, self._alert_url = self._alert_url, None
                with contained("telling how the training ended", "nobody is told"):
                    alerts.of_end(url, attempt.started, self.status.run_id, attempt.ending)
        if attempt.over:
            self._finish(attempt)
            return self.status.error
        return attempt.reader.error or attempt.error

    def _give_up(self, fault: BaseException) -> str:
        """Discards an attempt; a record that causes repeated failures is left out of the next."""
        attempt, self._attempt = self._attempt, None
        error = f"{type(fault).__name__}: {sayable(in_a_line(fault))}"  # type: ignore[arg-type]
        if attempt is not None:
            number = attempt.reading
            if number and isinstance(fault, Exception) and not isinstance(fault, _PASSING):
                self._faults[number] = self._faults.get(number, 0) + 1
                if self._faults[number] >= _TRIES:
                    self._unread[number] = error
            with contextlib.suppress(Exception):
                attempt.close()
        return error

    def rest(self, records: Sequence[Record], begins: Sequence[Record]) -> None:
        """Takes what the trainer could not write to the journal, now that it has closed it: it comes after the rest.

        Args:
            records: what it could not write.
            begins: what comes before if the journal was gone before this was the one that delivers it.
        """
        self._rest += records
        self._begins = begins

    def close(self) -> None:
        """Releases the recording, so that another delivery may take it."""
        if self._attempt is not None:
            self._attempt.close()
            self._attempt = None
        if self._has:
            life.disclaim(self.folder)
            self._has = False

    def _claimed(self) -> bool:
        """Takes the recording, unless another process delivers it."""
        if self._has:
            return True
        try:
            trusted_paths.check_recording(self.folder)
            self._has = life.claim(self.folder)
        except FileNotFoundError:
            if not self._begins:
                self.done = True  # another delivery has completed it
                return False
            self._has, self._gone = True, True  # nobody else can find it
            self._rest, self._ledger.status = [*self._begins, *self._rest], Status()
            return True
        except trusted_paths.NotOursError as error:
            self._ledger.status = Status(error=str(error))  # nothing is written there
            return False
        except OSError:
            return False
        if not self._has:
            return False
        self._ledger.reload()
        if self.status.complete:
            self._put_away()
        return not self.done

    def _finish(self, attempt: Attempt) -> None:
        """Deletes a recording that is completely in the store; otherwise keeps it, to be sent again."""
        if attempt.nothing or attempt.outbox.confirmed:
            self._ledger.note(complete=True, waiting=0, error=None)
            self._put_away()
            return
        left = attempt.outbox.left
        lacks = f"the store lacks {'; '.join(attempt.outbox.lacks)}" if attempt.outbox.lacks else ""
        error = sayable(
            lacks
            or "; ".join(f"{name}: {why}" for name, why in left.items())
            or "the store could not be counted"
        )
        if attempt.moment and lacks:
            error += f" (part of it was deleted on this machine after the store had it; {self.folder} has the rest)"
        self._ledger.note(delivered=0, waiting=attempt.reader.last() + len(self._rest), error=error[:400])
        self.close()
        self.done = True

    def _put_away(self) -> None:
        self.close()
        put_away(self.folder, self._damaged >= _TRIES)
        self.done = True
