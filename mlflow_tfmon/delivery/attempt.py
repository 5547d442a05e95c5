"""One attempt at delivering a recording: all state of delivery that is only in memory.

It starts from the last committed state: a saved moment, else the recording's beginning. What an earlier attempt has
delivered is translated again, so that thinning and files continue exactly as before, but not sent again. So a fault may
happen anywhere: its state is discarded, and the next attempt has the same result.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlflow_tfmon.delivery.live import Live, LiveReport, Pace
from mlflow_tfmon.delivery.outbox import Outbox
from mlflow_tfmon.delivery.saved_state import FILE, Moment, load_moment, save_moment
from mlflow_tfmon.delivery.status import Ledger
from mlflow_tfmon.journal import pulse
from mlflow_tfmon.journal.journal import JournalReader
from mlflow_tfmon.problems.alerts import Ending
from mlflow_tfmon.sinks.sink import Target
from mlflow_tfmon.sinks.sinks import Sinks
from mlflow_tfmon.stream.records import EpochEnded, Flushed, Problems, Record, RunEnded, RunStarted
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.tracking.store import AwayError
from mlflow_tfmon.tracking.texts import said
from mlflow_tfmon.translation.translation import Translation, UnopenedError

_SLICE_SECONDS = 2.0
_BATCH = 1000
_PROGRESS_SECONDS = 2.0
_TRIM_BYTES = 64 * 2**20  # of records that have arrived: so much more than what waits is on the disk


class Attempt:
    """Attempt at delivering one recording, a bit at each call of `go_on`.

    Attributes:
        reader: of its journal.
        outbox: the pending calls.
        started: its first record, once read.
        error: why nothing can be delivered, or None.
        reading: number of the record that is being translated, 0 for none.
        moment: number of the last record without which it has begun, 0 if all were there.
        ending: how the training ended, once that is known; None where an earlier delivery has seen it.

    Args:
        folder: of the recording.
        uris: tracking and registry URI, None for what the recording says.
        ledger: of the recording.
        rest: what follows the records of its journal.
        unread: records that could not be translated: number -> why; they are left out.
        trainer: listens to its pulse.

    Raises:
        ValueError: what an earlier delivery has written down cannot be read; the message names the file.
    """

    def __init__(
        self,
        folder: Path,
        uris: tuple[str | None, str | None],
        ledger: Ledger,
        rest: Sequence[Record],
        unread: dict[int, str],
        trainer: pulse.Listener,
    ) -> None:
        self.reader = JournalReader(folder)
        self.started: RunStarted | None = None
        self.error: str | None = None
        self.reading = 0
        self.moment = 0
        self.ending: Ending | None = None
        self._folder = folder
        self._ledger = ledger
        self._rest = rest
        self._rest_at: int | None = None  # number of the record before it
        self._unread = unread
        self.outbox = Outbox(folder, uris, ledger, unread)
        self._translation: Translation | None = None
        self._sinks = Sinks()
        self._status = ""  # how the recording ended
        self._live = Live(self.outbox.show)
        self._report = LiveReport(self.outbox.show_report)
        self._progress = Pace(_PROGRESS_SECONDS)
        self._pulse = trainer
        self._resumed = ledger.status.delivered  # last record that an earlier delivery has delivered
        self._seq = 0  # last record that was handed over
        self._time = 0.0  # of the last record that says it
        self._ended = False
        self._trimmed = 0  # bytes that had been read by then
        try:
            self._take_over()
        except BaseException:
            self.reader.close()
            raise

    @property
    def over(self) -> bool:
        """Whether everything was handed over, and no call is pending."""
        return self._ended and self.outbox.empty

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to deliver."""
        return self._translation is None and not self._unread

    def go_on(self, trainer_gone: bool, damaged: bool, alone: bool) -> None:
        """Delivers the available records, for a few seconds at most.

        Args:
            trainer_gone: whether no more records can come: then a recording without an end gets one.
            damaged: whether what the reader cannot read is known to be lost.
            alone: whether the rest is all there is, since there is no journal.

        Raises:
            AwayError: the store does not answer all calls; the remaining ones stay pending.
            Exception: anything else; then this attempt is over.
        """
        until = time.monotonic() + _SLICE_SECONDS
        files_away: AwayError | None = None
        more = True
        while more:
            self.outbox.send()
            self._open_sinks()
            if files_away is None:
                try:
                    self.outbox.send_files()
                except AwayError as away:
                    files_away = away  # the curves go on meanwhile
            if self.outbox.empty and not self.outbox.left and self._seq > self._ledger.status.delivered:
                self._sinks.flush(self._seq)
                self._ledger.note(delivered=self._seq)
            more = not self._ended and time.monotonic() < until and self._read(trainer_gone, damaged, alone)
        if self.over:
            self._sinks.close(self._status)
        if files_away is not None:
            raise files_away
        if self._ended or not self.outbox.empty or self._translation is None or self._seq < self._resumed:
            return
        # What is read again, up to there, is less than what an earlier delivery has shown.
        if not trainer_gone:
            self._listen(self._translation)
        self._show_progress(self._translation)  # what was not due when it was read
        self._live.publish(self._translation.telemetry.unfinished)
        if self.started is not None and self.started.report and self._translation.last_step:
            self._report.renew(self._seq)
        self._trim(self._translation)

    def close(self) -> None:
        """Closes the journal and the sinks."""
        self._sinks.close("")
        self.reader.close()

    def _open_sinks(self) -> None:
        """Opens the sinks once the run has an id, and names what they lack in the run."""
        started, run_id = self.started, self._ledger.status.run_id
        if started is not None and run_id is not None:
            recording = f"{int(started.start_time * 1e3):011x}"
            notes = self._folder / "sinks"
            self._sinks.open(
                started.sinks, Target("", run_id, started.run_name, recording, notes, self._resumed)
            )
        self._ledger.reject(self._sinks.faults)

    def _take_over(self) -> None:
        """Continues from the moment that an earlier delivery has saved, if there is one."""
        moment = load_moment(self._folder, self._telemetry_folder)
        if moment is None:
            self._look_for_a_gap()
            return
        self._resumed = max(self._resumed, moment.seq)
        self.moment = self._seq = moment.seq
        self._time, self.started, self._translation = moment.time, moment.started, moment.translation
        self._translation.sinks = self._sinks
        self.outbox.muted = True
        self.outbox.begin(moment.started)
        self.outbox.so_far = moment.sent

    def _look_for_a_gap(self) -> None:
        """Raises an error if records are missing that only a saved moment can replace."""
        first = self.reader.read(1, limit=1)
        if first and first[0][0] > 2:
            path = self._folder / FILE
            raise ValueError(
                f"{path} is missing, but needed to continue after records 2 to {first[0][0] - 1}, which were delivered"
            )

    def _trim(self, translation: Translation) -> None:
        """Deletes delivered records from the journal, once there are many and they were counted in the store."""
        if self.reader.bytes - self._trimmed < _TRIM_BYTES or self.started is None:
            return
        if self.outbox.left or not self.outbox.empty:  # what waits is taken for told in what is saved
            return
        self._trimmed = self.reader.bytes
        self.outbox.count()
        if self.outbox.lacks:  # it will be sent again
            return
        moment = Moment(self._seq, self.started, translation, self.outbox.so_far, self._time)
        with contextlib.suppress(OSError, sqlite3.Error):  # a full disk, or a busy one: later
            save_moment(self._folder, moment)
            self.reader.trim(self._seq)

    def _read(self, trainer_gone: bool, damaged: bool, alone: bool) -> bool:
        """Reads and translates the next records; returns whether there were any."""
        # What an earlier delivery has sent is read by itself, so that its points are told from new ones.
        sent = self._resumed - self._seq
        batch: Sequence[tuple[int, Record | Exception]] = []
        if self._rest_at is None:
            batch = self.reader.read(self._seq, min(_BATCH, sent) if sent > 0 else _BATCH)
        over = not batch and (not self.reader.error or damaged or alone)
        if over:
            if self._rest_at is None and self._rest:
                self._rest_at = self._seq
            if self._rest_at is not None:
                batch = list(enumerate(self._rest, self._rest_at + 1))[self._seq - self._rest_at :]
        if batch:
            self._translate(batch)
            return True
        if trainer_gone and over:
            self._end_abandoned()
        return self._ended

    def _translate(self, batch: Sequence[tuple[int, Record | Exception]]) -> None:
        """Reads records and hands over their results; `_seq` follows once all of that is done."""
        points: list[Point] = []
        for seq, record in batch:
            self.outbox.muted = self._sinks.muted = seq <= self._resumed
            if seq in self._unread:
                continue
            self.reading = seq
            if isinstance(record, Exception):
                raise record
            record, changed = said(record)
            self.outbox.changed(changed)
            try:
                found = self._take(record)
            except UnopenedError as error:  # it has changed nothing
                self._unread[seq], found = str(error), []
            self.reading = 0
            points += found
            if self._translation is None:
                continue
            if isinstance(record, (Flushed, RunEnded)):
                self._flush(seq, points, record if isinstance(record, RunEnded) else None)
                points = []
                if isinstance(record, RunEnded):
                    self._seq, self._ended = seq, True
                    return
        if self._translation is not None:
            self.outbox.points(points + self._translation.settle())
            self.outbox.files(self._translation.telemetry.finished())
            self._show_progress(self._translation)
        self._seq = batch[-1][0]

    def _take(self, record: Record) -> list[Point]:
        """Returns the points of a record; its other results are handed over."""
        times = (getattr(record, name, 0.0) for name in ("seen", "time", "end"))
        self._time = max(self._time, *times)
        if isinstance(record, RunStarted):
            self.started = record
            self._translation = Translation(record, self._telemetry_folder())
            self._translation.sinks = self._sinks
            self.outbox.begin(record)
        if self._translation is None:
            return []
        if not isinstance(record, (RunStarted, Flushed, RunEnded)):
            self.outbox.streaming()
        found = self._translation.take(record)
        if isinstance(record, EpochEnded):
            self.outbox.linkable(found)
        elif isinstance(record, Problems):
            self._sinks.problems(record)
        self.outbox.record(record, self._time, self._translation.names)
        return found

    def _listen(self, translation: Translation) -> None:
        """Says of a trainer that cannot say so itself that it has stalled."""
        quiet, trainer = self._pulse.quiet(), self._pulse
        if quiet > pulse.QUIET_SECONDS and not trainer.said:
            trainer.said = time.time() - quiet
            text = (
                f"since {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(trainer.said))}, after step "
                f"{translation.last_step}: no Python has run for {quiet:.0f} s, since some C code keeps the "
                "interpreter's lock; so there are no stacks"
            )
            translation.progress.stalled = text
        elif quiet == 0.0 and trainer.said:
            text = f"no longer: Python runs again, after {time.time() - trainer.said:.0f} s"
            trainer.said, translation.progress.stalled = 0.0, ""
        else:
            return
        self.outbox.stalled(text)

    def _show_progress(self, translation: Translation) -> None:
        if self._progress.due:
            with self._progress.turn():
                self.outbox.progress(translation.progress.text(), translation.reached())

    def _telemetry_folder(self) -> Path:
        """Returns the folder of files to be uploaded; leftovers of another delivery are made again."""
        folder = self._folder / "telemetry"
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _flush(
        self,
        seq: int,
        points: list[Point],
        ended: RunEnded | None = None,
        end_run: bool = True,
        died: bool = False,
    ) -> None:
        translation = self._translation
        assert translation is not None
        self._status = ended.status if ended is not None else ""
        translation.progress.over = ended is not None
        if ended is not None and translation.last_step and not self.outbox.muted:
            self.ending = Ending(ended, translation.progress.text(), died)
        self.outbox.points(points + translation.flush(final=ended is not None))
        self.outbox.files(translation.telemetry.finished())
        self.outbox.progress(translation.progress.text(), translation.reached())
        self.outbox.settle_models()
        if self.started is not None:
            self.outbox.introduce(self.started.report)
        if ended is not None and end_run:
            self.outbox.end(ended)
        self.outbox.flushed(
            seq, translation, ended if end_run else ended and replace(ended, set_status=False)
        )
        if ended is not None and self.started is not None and translation.last_step:
            self.outbox.show_all(self.started)  # nothing waits for it

    def _end_abandoned(self) -> None:
        """Ends a recording whose trainer died."""
        if self._translation is None or self.started is None:
            self._ended = not self._unread  # nothing was ever recorded
            self.error = next(iter(self._unread.values()), None)
            return
        self.outbox.muted = False
        when = self._time or time.time()
        moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))
        reason = (
            "mlflow_tfmon: the training process was killed or crashed. "
            f"Last recorded: step {self._translation.last_step}, {moment}."
        )
        if self.reader.error:
            reason += f" The rest could not be read: {self.reader.error}."
        # Another run is its owner's to end.
        end_run = self.started.owned or self.started.active
        self._flush(self._seq, [], RunEnded(when, "FAILED", True, reason), end_run=end_run, died=True)
        self._ended = True
