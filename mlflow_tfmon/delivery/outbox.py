"""Ordered calls that a recording requires of MLflow: each is repeated until it succeeds or is rejected."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from mlflow_tfmon import temporary
from mlflow_tfmon.delivery import outputs
from mlflow_tfmon.delivery.calls import Call
from mlflow_tfmon.delivery.checkpointed import Asked, saved_model, settled
from mlflow_tfmon.delivery.counting import Counting
from mlflow_tfmon.delivery.tally import MANIFEST
from mlflow_tfmon.stream.continuation import Past
from mlflow_tfmon.stream.counted import counted
from mlflow_tfmon.stream.records import (
    DatasetUsed,
    Evidence,
    Facts,
    ModelSaved,
    Premises,
    Problems,
    Record,
    RunEnded,
    RunStarted,
    Text,
)
from mlflow_tfmon.tags import DELIVERY_TAG, LEFT_OUT_TAG, LOST_TAGS, PROGRESS_TAG, REACHED_TAG, STALLED_TAG
from mlflow_tfmon.tracking import findings
from mlflow_tfmon.tracking.names import ABOUT, BATCH, EVENT_FILES, REPORT, clean, evidence_folder
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.tracking.store import AwayError, RefusedError, RunStore, store_errors
from mlflow_tfmon.translation.parts import Part
from mlflow_tfmon.translation.translation import Translation

_TOLD = 100  # of what was changed
_SHOWN_TRIES = 3  # of the report and the event files: what was recorded is there without them


class Outbox(Counting):
    """Requests of a recording to MLflow, queued as calls: see `Counting`."""

    def begin(self, started: RunStarted) -> None:
        """Opens the store and creates the run if there is none yet."""
        self.so_far.tagged = "streaming"
        self._calls.add(Call(partial(self._open, started), "the run"))
        self._tags(started.tags, muted=self.muted or started.run_id is None)
        self._do(lambda run: run.tags({DELIVERY_TAG: "streaming"}), DELIVERY_TAG)
        self._later(_show_charts, "charts", None)
        self.introduce(report=False)

    def points(self, points: Sequence[Point]) -> None:
        """Logs points."""
        self.so_far.tally.points(points)
        self.so_far.uncounted.update(point.key for point in points)
        if points and not self.muted:
            self._calls.add(self._of_points(points))

    def _of_points(self, points: Sequence[Point]) -> Call:
        def halves() -> list[Call]:
            middle = len(points) // 2
            return [self._of_points(part) for part in (points[:middle], points[middle:])] if middle else []

        ask = partial(self._ask, lambda run: run.points(self._earlier.new(points)), points[0].key)
        return Call(ask, f"metric {points[0].key}", parts=halves)

    def linkable(self, points: Sequence[Point]) -> None:
        """Points that a model's metrics may be: a model linked to one of them doubles nothing in the run."""
        self.so_far.linkable |= {(point.key, point.step): point for point in points}

    def changed(self, told: Mapping[str, str]) -> None:
        """Notes changes that had to be made to a record."""
        if len(self.so_far.changed) < _TOLD:
            self.so_far.changed |= told

    def record(self, record: Record, when: float, names: Callable[[str], str]) -> None:
        """Logs a record without data rows.

        Args:
            record: the record.
            when: Unix time for what has no time of its own, seconds.
            names: gives each metric the name that MLflow has for it.
        """
        if isinstance(record, Facts):
            self.so_far.tally.params.update(map(clean, record.params))
            self._each(lambda some: lambda run: run.params(some), "param", record.params, self.muted)
            self._tags(record.tags, self.muted)
            self.so_far.to_register |= record.register
        elif isinstance(record, Text):
            self._text(record.path, record.text)
        elif isinstance(record, DatasetUsed):
            self.so_far.tally.datasets.add(str(record.dataset.get("name")))
            self._do(lambda run: run.dataset(record.dataset, record.context, record.tags), "dataset")
        elif isinstance(record, Premises):
            self._text(*findings.premises_file(record))
        elif isinstance(record, Problems):
            self._problems(record)
        elif isinstance(record, Evidence):
            self._evidence(record)
        elif isinstance(record, ModelSaved):
            name, ask, after = saved_model(
                record,
                when,
                self._folder,
                self.so_far,
                self._ledger,
                lambda: self._earlier,
                names,
                not self._unread,
            )
            if self.muted:
                self._files.add(Call(after, f"folder of {name}"))
            else:
                self._later(ask, name, "model ", after)

    def files(self, parts: Sequence[Part]) -> None:
        """Uploads finished telemetry parts; the files they are written to meanwhile are deleted."""
        self.so_far.tally.rows |= {part.artifact: part.rows for part in parts}
        self.so_far.uncounted.update(part.artifact for part in parts)
        for part in parts if not self.muted else ():
            with contextlib.suppress(OSError):  # a full disk: it stays in memory, and is tried again
                part.save()
            self._coming.add(part.artifact)
            upload = partial(_upload, part=part, sizes=self.so_far.tally.sizes)
            self._later(upload, part.artifact, None, partial(self._come, part))

    def _come(self, part: Part) -> None:
        self._coming.discard(part.artifact)
        part.path.unlink(missing_ok=True)

    def show(self, part: Part) -> None:
        """Uploads a telemetry part as it stands, at once: it comes again when it is finished.

        Raises:
            AwayError: the store does not answer.
        """
        Call(partial(self._ask, partial(_upload, part=part, patient=False), part.artifact), "").attempt()
        part.path.unlink(missing_ok=True)

    def _problems(self, record: Problems) -> None:
        def all_of(
            found: Callable[[Problems], str],
        ) -> str:  # when the call is made: then it is known what was there
            return found(self._earlier.with_problems(record))

        self.so_far.tally.tags.add(findings.TAG)
        self.so_far.tally.texts |= {findings.FILE, findings.DIAGNOSIS}
        self._do(lambda run: run.tags({findings.TAG: all_of(findings.kinds)}), findings.TAG)
        self._do(lambda run: run.explain(all_of(findings.summary), all_of(findings.others)), "description")
        self._later(
            lambda run: run.text(findings.FILE, all_of(findings.as_json)), findings.FILE, findings.FILE
        )
        self._later(
            lambda run: outputs.diagnosis(run, self._earlier.with_problems(record).found),
            findings.DIAGNOSIS, findings.DIAGNOSIS,
        )  # fmt: skip

    def _evidence(self, record: Evidence) -> None:
        folder = evidence_folder(record.prefix, record.step)
        self._text(f"{folder}/{ABOUT}", json.dumps(record.about))
        if record.batch:
            path = f"{folder}/{BATCH}"
            self.so_far.tally.texts.add(path)
            self._later(partial(_write_batch, folder=folder, batch=record.batch), path, path)

    def progress(self, text: str, reached: Past) -> None:
        """Records the progress of the training, as text for people and as state for later recordings."""
        if text != self.so_far.progress and not self.muted:
            self.so_far.progress = text
            tags = {PROGRESS_TAG: text, REACHED_TAG: json.dumps(reached.as_dict())}
            self._do(lambda run: run.tags(tags), PROGRESS_TAG)

    def introduce(self, report: bool) -> None:
        """Has the run's description say what came of it, once the models that wait are there."""
        self._later(lambda run: run.introduce(report), "description", "model ")

    def show_report(self) -> None:
        """Makes the report of a training that goes on, at once; what fails is left to the next one.

        Raises:
            AwayError: the store does not answer.
        """

        def make() -> None:
            assert self._run is not None
            with contextlib.suppress(RefusedError):
                if not outputs.report(self._run, wait=False):
                    self._run.introduce(report=True)

        Call(make, "").attempt()

    def stalled(self, text: str) -> None:
        """Tells of a trainer that cannot tell itself."""
        self._do(lambda run: run.tags({STALLED_TAG: text}), STALLED_TAG)

    def streaming(self) -> None:
        """Notes that more has come."""
        if self.so_far.tagged != "streaming":
            self.so_far.tagged = "streaming"
            self._do(lambda run: run.tags({DELIVERY_TAG: "streaming"}), DELIVERY_TAG)

    def flushed(self, seq: int, translation: Translation, ended: RunEnded | None = None) -> None:
        """Notes that all up to record `seq` is delivered, and how much was measured and is not there.

        Args:
            seq: number of the record.
            translation: has counted what is not there.
            ended: the record, if nothing follows it: then all of the recording is counted, also by a delivery that
                has sent none of it.
        """
        tags = {f"{LOST_TAGS}{what}": str(count) for what, count in translation.lost.items() if count}
        if translation.left_out:
            tags[LEFT_OUT_TAG] = f"{counted(translation.left_out)}: {translation.why}"
        self._tags(tags, self.muted)
        if ended:  # how far it came is known now, and its problems are there
            self._later(outputs.diagnosis, findings.DIAGNOSIS, "tfmon/")
        if self.so_far.tagged != "complete" or ended:
            self.so_far.tagged = "complete"
            count = partial(self._ask, partial(self._count, ended=ended), MANIFEST)
            if ended or not self.muted:
                self._files.add(Call(count, MANIFEST, needs=""))
        note = partial(self._note_flushed, seq)
        self._files.add(Call(note, "flush", needs=""))

    def _note_flushed(self, seq: int) -> None:
        self._ledger.note(flushed=max(seq, self._ledger.status.flushed))

    def settle_models(self) -> None:
        """Has the models that are kept linked to the run, and those registered that are to be."""
        for name, ask in settled(self.so_far, self._ledger):
            self._later(ask, name, "model ")

    def show_all(self, started: RunStarted) -> None:
        """Makes the outputs from everything that has arrived: the report and event files."""
        if started.report:
            self._later(self._shown(outputs.report, REPORT), REPORT, "")
        if started.tensorboard:
            self._later(self._shown(outputs.event_files, EVENT_FILES), EVENT_FILES, "")

    def _shown(self, make: Callable[[RunStore], dict[str, str]], name: str) -> Asked:
        """Has something made of what was recorded; what cannot be made, after some tries, is said in the run.

        It is said no more when another delivery has made it.
        """
        tries = 0

        def ask(run: RunStore) -> dict[str, str]:
            nonlocal tries
            failed = make(run)
            tries += 1
            if failed and tries < _SHOWN_TRIES:
                raise AwayError(next(iter(failed.values())))
            if failed:
                self._ledger.reject(failed)
                self._tell_refused(run)
            elif name in self._ledger.status.rejected:
                self._ledger.take_back(name)
                self._tell_refused(run)
            return failed

        return ask

    def end(self, ended: RunEnded) -> None:
        """Records why the run failed, and its end state."""
        reason = findings.plain(ended.reason)  # an exception's text may be anything; this is Markdown
        if ended.set_status:
            self._do(lambda run: run.end(ended.status, ended.time, reason), "end state")
        elif reason:
            self._do(lambda run: run.describe(reason), "description")

    def _tags(self, tags: Mapping[str, str], muted: bool) -> None:
        self.so_far.tally.tags.update(map(clean, tags))
        self._each(lambda some: lambda run: run.tags(some), "tag", tags, muted)

    def _each(
        self,
        asked: Callable[[dict[str, str]], Asked],
        what: str,
        values: Mapping[str, str],
        muted: bool,
    ) -> None:
        """Queues a call for several values at once; where the store does not take it, each gets one of its own."""

        def of(some: dict[str, str]) -> Call:
            name = f"{what} {next(iter(some))}"

            def singles() -> list[Call]:
                return [of({key: value}) for key, value in some.items()] if len(some) > 1 else []

            return Call(partial(self._ask, asked(some), name), name, parts=singles)

        if values and not muted:
            self._calls.add(of(dict(values)))

    def _do(self, ask: Asked, name: str) -> None:
        """Queues a call, in order."""
        if not self.muted:
            self._calls.add(Call(partial(self._ask, ask, name), name))

    def _later(
        self, ask: Asked, name: str, needs: str | None, after: Callable[[], None] = lambda: None
    ) -> None:
        """Queues a call that waits for no other but those that it needs.

        Args:
            ask: what is asked of the run.
            name: what it is about.
            needs: as in `Call`.
            after: is done when the call was made.
        """

        def make() -> None:
            self._ask(ask, name)
            after()

        if not self.muted:
            self._files.add(Call(make, name, needs))

    def _text(self, path: str, text: str) -> None:
        self.so_far.tally.texts.add(path)
        self._later(lambda run: run.text(path, text), path, path)


def _show_charts(run: RunStore) -> None:
    with contextlib.suppress(AwayError, RefusedError):  # who may write runs may not write experiments
        run.show_charts()


def _write_batch(run: RunStore, folder: str, batch: bytes) -> None:
    with store_errors(), temporary.Folder() as place:
        path = Path(place, BATCH)
        path.write_bytes(batch)
        run.file(path, folder)


def _upload(run: RunStore, part: Part, patient: bool = True, sizes: dict[str, int] | None = None) -> None:
    with contextlib.ExitStack() as stack, store_errors():
        try:
            path = part.save()
        except OSError:  # the journal's disk is full: another may have room for a moment
            folder = stack.enter_context(temporary.Folder())
            path = Path(folder, part.path.name)
            part.write(path)
        run.file(path, part.folder, patient)
        if sizes is not None:
            sizes[part.artifact] = path.stat().st_size
