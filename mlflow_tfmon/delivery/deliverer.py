"""Delivery of one recording: reads its journal and brings MLflow up to it.

The journal says what is to be delivered. After a restart it is read again from the start: what was delivered is
translated (so that thinning and files go on exactly as they were) but not sent again. Once much has been delivered, it
is deleted from the journal, and what is left is read from there on (`moment`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from mlflow_tfmon.delivery.live import Live, Pace
from mlflow_tfmon.delivery.moment import Moment, load_moment, save_moment
from mlflow_tfmon.delivery.outbox import Outbox
from mlflow_tfmon.delivery.status import Ledger, Status, put_away
from mlflow_tfmon.journal import private
from mlflow_tfmon.journal.journal import JournalReader
from mlflow_tfmon.stream.records import EpochEnded, Flushed, Record, RunEnded, RunStarted
from mlflow_tfmon.tracking.patience import give_more_time
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.tracking.store import AwayError, fcntl
from mlflow_tfmon.translation.translation import Translation
from mlflow_tfmon.uris import in_a_line

_NOWHERE = Path(os.devnull)
_BACK_OFF = (0.5, 15.0)  # s
_SLICE_SECONDS = 2.0
_BATCH = 1000
_PROGRESS_SECONDS = 2.0
_TRIM_BYTES = 64 * 2**20  # of records that have arrived: so much more than what waits is on the disk


class Deliverer:
    """Delivers one recording, a bit at each call of `advance`.

    Attributes:
        folder: of the recording.
        done: whether nothing is left to do here.

    Args:
        folder: of the recording.
        tracking_uri: store, with credentials; default as the journal says, which has none.
        registry_uri: the same for the registry.
    """

    def __init__(
        self, folder: Path, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        self.folder = folder
        self.done = False
        self._ledger = Ledger(folder)
        self._outbox = Outbox(folder, (tracking_uri, registry_uri), self._ledger)
        self._reader = JournalReader(folder)
        self._lock: IO[str] | None = None
        self._started: RunStarted | None = None
        self._translation: Translation | None = None
        self._live = Live(self._outbox.show)
        self._progress = Pace(_PROGRESS_SECONDS)
        self._resumed = 0  # last record that an earlier delivery has delivered
        self._seq = 0  # last record that was read
        self._time = 0.0  # of the last record that says it
        self._ended = False
        self._trimmed = 0  # bytes that had been read by then
        self._rest: list[Record] = []
        self._begins: Sequence[Record] = ()
        self._gone = False  # there was no journal
        self._waits = 0.0
        self._next_try = 0.0

    @property
    def status(self) -> Status:
        """How far it has come."""
        return self._ledger.status

    @property
    def claimed(self) -> bool:
        """Whether this is the one that delivers it."""
        return self._lock is not None

    @property
    def progressed(self) -> float:
        """When something was delivered last, monotonic seconds."""
        return self._outbox.sent

    @property
    def where(self) -> str:
        """The store, for messages: without credentials."""
        return self._started.tracking_uri if self._started else "MLflow"

    def advance(self, trainer_gone: bool = False, hurry: bool = False) -> None:
        """Delivers what there is, for a few seconds at most; never raises.

        Args:
            trainer_gone: whether no more records can come: then a recording that was not ended is ended.
            hurry: try now, even if the store was away a moment ago.
        """
        if self.done or (time.monotonic() < self._next_try and not hurry) or not self._claimed():
            return
        try:
            self._deliver(trainer_gone)
            error = self._reader.error
        except AwayError as away:
            error = str(away)
            give_more_time(error)
        except Exception as unexpected:  # a fault of ours: said in the status, and tried again
            error = f"{type(unexpected).__name__}: {in_a_line(unexpected)}"
        if not self.done:
            self._waits = min(_BACK_OFF[1], max(_BACK_OFF[0], 2 * self._waits)) if error else 0.0
            self._next_try = time.monotonic() + self._waits
            waiting = max(0, self._reader.last() - self.status.delivered)
            tried = time.time() if error else self.status.tried
            self._ledger.note(error=error, tried=tried, waiting=waiting)

    def rest(self, records: Sequence[Record], begins: Sequence[Record]) -> None:
        """Takes what the trainer could not write to the journal, now that it has closed it: it comes after the rest.

        Args:
            records: what it could not write.
            begins: what comes before if the journal was gone before this was the one that delivers it.
        """
        self._rest += records
        self._begins = begins

    def close(self) -> None:
        """Lets the recording go, so that another delivery may take it."""
        self._reader.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _claimed(self) -> bool:
        """Takes the recording, unless another process delivers it."""
        if self._lock is not None:
            return True
        try:
            private.check_recording(self.folder)
            file = os.fdopen(private.opened(self.folder / "lock", os.O_CREAT | os.O_RDWR), "a")
        except FileNotFoundError:
            if not self._begins:
                self.done = True  # another delivery has completed it
                return False
            self._lock, self._gone = _NOWHERE.open(), True  # nobody else can find it
            self._rest, self._ledger.status = [*self._begins, *self._rest], Status()
            return True
        except private.NotOursError as error:
            self._ledger.status = Status(error=str(error))  # nothing is written there
            return False
        except OSError:
            return False
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._lock = file
        self._ledger.reload()
        self._resumed = self.status.delivered
        if self.status.complete:
            self._finish()
        return not self.done

    def _deliver(self, trainer_gone: bool) -> None:
        if self._seq == 0:
            self._take_over()
        until = time.monotonic() + _SLICE_SECONDS
        files_away: AwayError | None = None
        more = True
        while more:
            self._outbox.send()
            if files_away is None:
                try:
                    self._outbox.send_files()
                except AwayError as away:
                    files_away = away  # the curves go on meanwhile
            if self._outbox.empty and self._seq > self.status.delivered:
                self._ledger.note(delivered=self._seq)
            more = not self._ended and time.monotonic() < until and self._read(trainer_gone)
        if files_away is not None:
            raise files_away
        if self._outbox.empty and self._ended:
            self._finish()
        elif self._outbox.empty and self._translation is not None and self._seq >= self._resumed:
            # What is read again, up to there, is less than what an earlier delivery has shown.
            self._live.publish(self._translation.telemetry.unfinished)
            self._trim()

    def _take_over(self) -> None:
        """Goes on from the moment that an earlier delivery has written down, if there is one."""
        moment = load_moment(self.folder)
        if moment is None:
            return
        self._resumed = max(self._resumed, moment.seq)
        self._seq, self._time, self._started = moment.seq, moment.time, moment.started
        self._translation = moment.translation
        self._translation.telemetry.move(self._telemetry_folder())
        self._outbox.muted = True
        self._outbox.begin(moment.started)
        self._outbox.so_far = moment.sent

    def _trim(self) -> None:
        """Deletes what has arrived from the journal, once it is much."""
        if (
            self._reader.bytes - self._trimmed < _TRIM_BYTES
            or self._started is None
            or self._translation is None
        ):
            return
        self._trimmed = self._reader.bytes
        moment = Moment(self._seq, self._started, self._translation, self._outbox.so_far, self._time)
        with contextlib.suppress(OSError, sqlite3.Error):  # a full disk, or a busy one: later
            save_moment(self.folder, moment)
            self._reader.trim(self._seq)

    def _read(self, trainer_gone: bool) -> bool:
        """Reads and translates what comes next; returns whether there was anything."""
        # What an earlier delivery has sent is read by itself, so that its points are told from new ones.
        sent = self._resumed - self._seq
        batch = self._reader.read(self._seq, min(_BATCH, sent) if sent > 0 else _BATCH)
        over = not batch and (not self._reader.error or self._reader.damaged or self._gone)
        if over and self._rest:
            batch, self._rest = list(enumerate(self._rest, self._seq + 1)), []
        if batch:
            self._translate(batch)
        elif trainer_gone and over:
            self._end_abandoned()
        else:
            return False
        return True

    def _translate(self, batch: list[tuple[int, Record]]) -> None:
        points: list[Point] = []
        for seq, record in batch:
            self._seq = seq
            self._outbox.muted = seq <= self._resumed
            self._time = max(self._time, *(getattr(record, name, 0.0) for name in ("seen", "time", "end")))
            if isinstance(record, RunStarted):
                self._start(record)
            if self._translation is None:
                continue
            if not isinstance(record, (RunStarted, Flushed, RunEnded)):
                self._outbox.streaming()
            try:
                found = self._translation.take(record)
            except Exception as error:  # one bad record must not hold up all that follow
                self._ledger.reject({type(record).__name__: f"record {seq}: {type(error).__name__}: {error}"})
                continue
            points += found
            if isinstance(record, EpochEnded):
                self._outbox.linkable(found)
            elif isinstance(record, Flushed):
                self._flush(points)
                points = []
            elif isinstance(record, RunEnded):
                self._flush(points, record)
                self._ended = True
                return
            self._outbox.record(record, self._time, self._translation.names)
        if self._translation is not None:
            self._outbox.points(points + self._translation.settle())
            self._outbox.files(self._translation.telemetry.finished())
            if self._progress.due:
                with self._progress.turn():
                    self._outbox.progress(self._translation.progress.text(), self._translation.reached())

    def _start(self, started: RunStarted) -> None:
        self._started = started
        self._translation = Translation(started, self._telemetry_folder())
        self._outbox.begin(started)

    def _telemetry_folder(self) -> Path:
        """Where files wait for their upload; what another delivery has left there is made again."""
        folder = self.folder / "telemetry"
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _flush(self, points: list[Point], ended: RunEnded | None = None, end_run: bool = True) -> None:
        translation = self._translation
        assert translation is not None
        self._outbox.points(points + translation.flush(final=ended is not None))
        self._outbox.files(translation.telemetry.finished())
        self._outbox.progress(translation.progress.text(), translation.reached())
        self._outbox.settle_models()
        if ended is not None and end_run:
            self._outbox.end(ended)  # before it is called delivered: the trainer waits for that
        self._outbox.flushed(self._seq, translation)
        if ended is not None and self._started is not None and translation.last_step:
            self._outbox.show_all(self._started)  # nobody waits for it

    def _end_abandoned(self) -> None:
        """Ends a recording whose trainer is gone without a word."""
        self._ended = True
        if self._translation is None or self._started is None:
            return  # nothing was ever recorded
        self._outbox.muted = False
        when = self._time or time.time()
        moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))
        reason = (
            "mlflow_tfmon: the training process ended without notice, killed or crashed. "
            f"Last recorded: step {self._translation.last_step}, {moment}."
        )
        if self._reader.error:
            reason += f" The rest could not be read: {self._reader.error}."
        # Another run is its owner's to end.
        end_run = self._started.owned or self._started.active
        self._flush([], RunEnded(when, "FAILED", True, reason), end_run=end_run)

    def _finish(self) -> None:
        self.done = True
        if self._outbox.lacks and load_moment(self.folder) is None:  # all of it is here: it can be sent again
            error = f"the store lacks {'; '.join(self._outbox.lacks)[:300]}"
            self._ledger.note(delivered=0, waiting=self._reader.last(), error=error)
            self.close()
            return
        self._ledger.note(complete=True, waiting=0, error=None)
        self.close()
        put_away(self.folder, self._reader.damaged)
