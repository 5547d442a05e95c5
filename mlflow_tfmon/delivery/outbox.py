"""The calls that a recording asks of MLflow, in order: each is made until it succeeds or is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from mlflow.tracking import MlflowClient

from mlflow_tfmon import temporary
from mlflow_tfmon.delivery import showing
from mlflow_tfmon.delivery.calls import AnyOrder, Call, InOrder
from mlflow_tfmon.delivery.checkpointed import Asked, models_not_there, saved_model, settled
from mlflow_tfmon.delivery.earlier import Earlier
from mlflow_tfmon.delivery.making import made_run
from mlflow_tfmon.delivery.sent import Sent
from mlflow_tfmon.delivery.status import Ledger
from mlflow_tfmon.delivery.tally import MANIFEST, missing
from mlflow_tfmon.stream.counted import counted
from mlflow_tfmon.stream.past import Past
from mlflow_tfmon.stream.records import (
    DatasetUsed,
    Facts,
    ModelSaved,
    Premises,
    Problems,
    Record,
    RunEnded,
    RunStarted,
    Text,
)
from mlflow_tfmon.tracking import findings
from mlflow_tfmon.tracking.names import DELIVERY_TAG, EVENT_FILES, REACHED_TAG, REPORT, clean
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.tracking.store import AwayError, RefusedError, RunStore, open_store, store_errors
from mlflow_tfmon.translation.parts import Part
from mlflow_tfmon.translation.translation import Translation

LOST_TAGS = "tfmon.lost_"
LEFT_OUT_TAG = "tfmon.not_kept"
REFUSED_TAG = "tfmon.refused"
_TAG_LENGTH = 5000  # of the longest that every store takes
PROGRESS_TAG = "tfmon.progress"
_TOLD = 100  # of what was changed


class Outbox:
    """Calls that wait to be made: those for rows and facts, and those for files and what must follow them.

    Two queues, so that metrics, params, tags and the run's end state wait for no file.

    Attributes:
        muted: whether calls are left out, because an earlier delivery has made them.
        so_far: what has been handed over.
        lacks: what the store has lost of it, as far as that was counted, a line each.
        confirmed: whether all of the recording was counted in the store.

    Args:
        folder: of the recording.
        uris: tracking and registry URI, None for what the recording says.
        ledger: where to note what became of the calls.
        unread: records that could not be translated: number -> why.
    """

    def __init__(
        self, folder: Path, uris: tuple[str | None, str | None], ledger: Ledger, unread: Mapping[int, str]
    ) -> None:
        self.muted = False
        self.so_far = Sent()
        self.lacks: list[str] = []
        self.confirmed = False
        self._folder = folder
        self._uris = uris
        self._ledger = ledger
        self._unread = unread
        self._calls = InOrder(self._takes_tags)
        self._files = AnyOrder()
        self._client: MlflowClient | None = None
        self._run: RunStore | None = None
        self._earlier = Earlier()
        self._coming: set[str] = set()  # files that wait
        self._told: Mapping[str, str] = {}
        self._manifest = ""

    @property
    def empty(self) -> bool:
        """Whether no call waits."""
        return not self._calls and not self._files

    @property
    def sent(self) -> float:
        """When a call last succeeded (monotonic seconds), 0 if none did."""
        return max(self._calls.sent, self._files.sent)

    @property
    def left(self) -> dict[str, str]:
        """What is not in the store and may yet get there: name -> why it is not."""
        lacking = dict.fromkeys(self.lacks, "the store lacks it")
        unread = {f"record {number}": why for number, why in self._unread.items()}
        return {**unread, **self._calls.failed, **self._files.errors, **lacking}

    def send(self) -> None:
        """Makes the calls for rows and facts.

        Raises:
            AwayError: the store does not answer; the calls that are left still wait.
        """
        self._calls.make()

    def send_files(self) -> None:
        """Makes the calls for files, and those that must follow them.

        Raises:
            AwayError: some failed, and still wait, as do those that follow on them.
        """
        try:
            self._files.make()
        except AwayError:
            self._tell_what_is_left()
            raise

    def _tell_what_is_left(self) -> None:
        """Says in the run what has not arrived, where something waits for it that is to call it complete."""
        left = self.left
        if self._run is not None and left != self._told and self._files.has(MANIFEST):
            with contextlib.suppress(AwayError):
                self._run.tags({DELIVERY_TAG: "incomplete", REFUSED_TAG: self._refused()})
                self._told = left

    def _refused(self) -> str:
        """What is not in the store, and why, for people."""
        told = {**self._ledger.status.rejected, **self.so_far.changed, **self.left}
        return "; ".join(f"{name}: {why}" for name, why in told.items())[:_TAG_LENGTH]

    def _takes_tags(self) -> bool:
        """Whether the store takes a tag: then it is not away, whatever it says to a call."""
        if self._run is None:
            return False
        try:
            return not self._run.tags({DELIVERY_TAG: "streaming"})
        except AwayError:
            return False

    def begin(self, started: RunStarted) -> None:
        """Opens the store and, where there is none yet, makes the run."""
        self.so_far.tagged = "streaming"
        self._calls.add(Call(partial(self._open, started), "the run"))
        self._tags(started.tags, muted=self.muted or started.run_id is None)
        self._do(lambda run: run.tags({DELIVERY_TAG: "streaming"}), DELIVERY_TAG)

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
        """Notes what had to be changed in a record."""
        if len(self.so_far.changed) < _TOLD:
            self.so_far.changed |= told

    def record(self, record: Record, when: float, names: Callable[[str], str]) -> None:
        """Logs a record that is no data.

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
        elif isinstance(record, ModelSaved):
            name, ask, after = saved_model(
                record, when, self._folder, self.so_far, self._ledger, lambda: self._earlier, names
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
        self.so_far.tally.texts.add(findings.FILE)
        self._do(lambda run: run.tags({findings.TAG: all_of(findings.kinds)}), findings.TAG)
        self._do(lambda run: run.explain(all_of(findings.summary)), "description")
        self._later(
            lambda run: run.text(findings.FILE, all_of(findings.as_json)), findings.FILE, findings.FILE
        )

    def progress(self, text: str, reached: Past) -> None:
        """Says how far the training has come, in words, and for a recording that goes on."""
        if text != self.so_far.progress and not self.muted:
            self.so_far.progress = text
            tags = {PROGRESS_TAG: text, REACHED_TAG: json.dumps(reached.as_dict())}
            self._do(lambda run: run.tags(tags), PROGRESS_TAG)

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
        """Makes of all that has arrived what people look at: report, pictures of the histograms, event files."""
        if started.report:
            self._later(showing.report, REPORT, "")
        if started.tensorboard:
            self._later(showing.event_files, EVENT_FILES, "")

    def count(self) -> None:
        """Looks in the store for all that was sent, and was not looked for yet; `lacks` tells what is not there.

        Raises:
            AwayError: the store does not answer.
        """
        assert self._run is not None
        run, tally, refused = self._run, self.so_far.tally, self._ledger.status.rejected
        # If files were held up, more may have come since: then it is not complete after all.
        manifest = tally.manifest({**refused, **dict.fromkeys(self._coming, "")}, self._earlier)
        with store_errors():
            self.lacks = [
                *missing(run.client, run.run_id, manifest, self.so_far.uncounted, tally.sizes),
                *tally.not_there(run.client, run.run_id, refused),
                *models_not_there(run, self.so_far, self._ledger, self._folder),
            ]
        if not self.lacks:  # else they are looked for again
            self.so_far.uncounted &= self._coming
        self._manifest = manifest

    def _count(self, run: RunStore, ended: RunEnded | None) -> dict[str, str]:
        """Calls delivery complete if the store holds all that was sent, and tells what it refuses."""
        self.count()
        if ended is not None and ended.set_status and not run.ended():
            self.lacks.append("end state: the run goes on")
        run.text(MANIFEST, self._manifest)
        whole = not self.left.keys() - {MANIFEST}
        state = "incomplete" if not whole else "streaming" if self._coming else self.so_far.tagged
        tags = {DELIVERY_TAG: state}
        if refused := self._refused():
            tags[REFUSED_TAG] = refused
        else:
            run.untag(REFUSED_TAG)
        rejected = run.tags(tags)
        self.confirmed = whole and ended is not None
        return rejected

    def end(self, ended: RunEnded) -> None:
        """Says why the run failed and gives it its end state."""
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

    def _ask(self, ask: Asked, name: str) -> None:
        """Asks something of the run; what MLflow refuses of it is noted, not tried again."""
        assert self._run is not None
        try:
            self._ledger.reject(ask(self._run) or {})
        except RefusedError as error:
            self._ledger.reject({name: str(error)})

    def _open(self, started: RunStarted) -> None:
        tracking_uri = self._uris[0] or started.tracking_uri
        registry_uri = self._uris[1] or started.registry_uri
        with store_errors():
            if self._client is None:
                self._client = open_store(tracking_uri, registry_uri)
            run_id = (
                started.run_id
                or self._ledger.status.run_id
                or made_run(self._client, started, self._folder.name)
            )
            if started.run_id is not None:  # else nothing is earlier
                self._earlier = Earlier.of(self._client, run_id, self._folder)
        self._run = RunStore(self._client, run_id)
        self._ledger.note(run_id=run_id)


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
