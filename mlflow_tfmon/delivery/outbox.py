"""The calls that a recording asks of MLflow, in order: each is made until it succeeds or is refused."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mlflow.tracking import MlflowClient

from mlflow_tfmon import temporary
from mlflow_tfmon.delivery import showing
from mlflow_tfmon.delivery.checkpointed import Call, saved_model, settled
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
from mlflow_tfmon.tracking.names import DELIVERY_TAG, EVENT_FILES, REACHED_TAG, REPORT
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.tracking.store import RefusedError, RunStore, open_store, store_errors
from mlflow_tfmon.translation.parts import Part
from mlflow_tfmon.translation.translation import Translation

LOST_TAGS = "tfmon.lost_"
LEFT_OUT_TAG = "tfmon.not_kept"
REFUSED_TAG = "tfmon.refused"
_TAG_LENGTH = 5000  # of the longest that every store takes
PROGRESS_TAG = "tfmon.progress"


class Outbox:
    """Calls that wait to be made: those for rows and facts, and those for files and what must follow them.

    Two queues, so that an artifact store that is away does not hold up the curves.

    Attributes:
        sent: when a call last succeeded (monotonic seconds).
        muted: whether calls are left out, because an earlier delivery has made them.
        so_far: what has been handed over.
        lacks: what the store has lost of it, as far as that was counted, a line each.

    Args:
        folder: of the recording.
        uris: tracking and registry URI, None for what the recording says.
        ledger: where to note what became of the calls.
    """

    def __init__(self, folder: Path, uris: tuple[str | None, str | None], ledger: Ledger) -> None:
        self.sent = time.monotonic()
        self.muted = False
        self.so_far = Sent()
        self.lacks: list[str] = []
        self._folder = folder
        self._uris = uris
        self._ledger = ledger
        self._calls: deque[Callable[[], None]] = deque()
        self._files: deque[Callable[[], None]] = deque()
        self._client: MlflowClient | None = None
        self._run: RunStore | None = None
        self._earlier = Earlier()
        self._coming: set[str] = set()  # files that wait

    @property
    def empty(self) -> bool:
        """Whether no call waits."""
        return not self._calls and not self._files

    def send(self) -> None:
        """Makes the calls for rows and facts.

        Raises:
            AwayError: the store does not answer; the calls that are left still wait.
        """
        self._make(self._calls)

    def send_files(self) -> None:
        """Makes the calls for files, and those that must follow them.

        Raises:
            AwayError: the store does not answer; the calls that are left still wait.
        """
        self._make(self._files)

    def _make(self, calls: deque[Callable[[], None]]) -> None:
        while calls:
            calls[0]()
            calls.popleft()
            self.sent = time.monotonic()

    def begin(self, started: RunStarted) -> None:
        """Opens the store and, where there is none yet, makes the run."""
        self.so_far.tagged = "streaming"
        self._calls.append(partial(self._open, started))
        if started.run_id is not None:
            self._do(lambda run: run.tags(started.tags))
        self._do(lambda run: run.tags({DELIVERY_TAG: "streaming"}))

    def points(self, points: Sequence[Point]) -> None:
        """Logs points."""
        self.so_far.tally.points(points)
        self.so_far.uncounted.update(point.key for point in points)
        if points:
            self._do(lambda run: run.points(self._earlier.new(points)))

    def linkable(self, points: Sequence[Point]) -> None:
        """Points that a model's metrics may be: a model linked to one of them doubles nothing in the run."""
        self.so_far.linkable |= {(point.key, point.step): point for point in points}

    def record(self, record: Record, when: float, names: Callable[[str], str]) -> None:
        """Logs a record that is no data.

        Args:
            record: the record.
            when: Unix time for what has no time of its own, seconds.
            names: gives each metric the name that MLflow has for it.
        """
        if isinstance(record, Facts):
            if record.params:
                self._do(lambda run: run.params(record.params))
            if record.tags:
                self._do(lambda run: run.tags(record.tags))
            self.so_far.to_register |= record.register
        elif isinstance(record, Text):
            self._text(record.path, record.text)
        elif isinstance(record, DatasetUsed):
            self._do(lambda run: run.dataset(record.dataset, record.context, record.tags), "dataset")
        elif isinstance(record, Premises):
            self._text(*findings.premises_file(record))
        elif isinstance(record, Problems):
            self._problems(record)
        elif isinstance(record, ModelSaved):
            name, call, after = saved_model(
                record, when, self._folder, self.so_far, self._ledger, lambda: self._earlier, names
            )
            self._do(call, name, self._files)
            self._files.append(after)

    def files(self, parts: Sequence[Part]) -> None:
        """Uploads finished telemetry parts; the files they are written to meanwhile are deleted."""
        self.so_far.tally.rows |= {part.artifact: part.rows for part in parts}
        self.so_far.uncounted.update(part.artifact for part in parts)
        for part in parts if not self.muted else ():
            with contextlib.suppress(OSError):  # a full disk: it stays in memory, and is tried again
                part.save()
            self._coming.add(part.artifact)
            self._do(partial(_upload, part=part, sizes=self.so_far.tally.sizes), part.artifact, self._files)
            self._files.append(partial(self._come, part))

    def _come(self, part: Part) -> None:
        self._coming.discard(part.artifact)
        part.path.unlink(missing_ok=True)

    def show(self, part: Part) -> None:
        """Uploads a telemetry part as it stands, at once: it comes again when it is finished.

        Raises:
            AwayError: the store does not answer.
        """
        self._call(partial(_upload, part=part, patient=False), part.artifact)
        part.path.unlink(missing_ok=True)

    def _problems(self, record: Problems) -> None:
        def all_of(
            found: Callable[[Problems], str],
        ) -> str:  # when the call is made: then it is known what was there
            return found(self._earlier.with_problems(record))

        self._do(lambda run: run.tags({findings.TAG: all_of(findings.kinds)}))
        self._do(lambda run: run.explain(all_of(findings.summary)), "description")
        self._do(lambda run: run.text(findings.FILE, all_of(findings.as_json)), findings.FILE, self._files)

    def progress(self, text: str, reached: Past) -> None:
        """Says how far the training has come, in words, and for a recording that goes on."""
        if text != self.so_far.progress and not self.muted:
            self.so_far.progress = text
            tags = {PROGRESS_TAG: text, REACHED_TAG: json.dumps(reached.as_dict())}
            self._do(lambda run: run.tags(tags))

    def streaming(self) -> None:
        """Notes that more has come."""
        if self.so_far.tagged != "streaming":
            self.so_far.tagged = "streaming"
            self._do(lambda run: run.tags({DELIVERY_TAG: "streaming"}))

    def flushed(self, seq: int, translation: Translation) -> None:
        """Notes that all up to record `seq` is delivered, and how much was measured and is not there."""
        tags = {f"{LOST_TAGS}{what}": str(count) for what, count in translation.lost.items() if count}
        if translation.left_out:
            tags[LEFT_OUT_TAG] = f"{counted(translation.left_out)}: {translation.why}"
        if tags:
            self._do(lambda run: run.tags(tags))
        if self.so_far.tagged != "complete":
            self.so_far.tagged = "complete"
            self._do(self._count, DELIVERY_TAG, self._files)
        self._files.append(lambda: self._ledger.note(flushed=max(seq, self._ledger.status.flushed)))

    def settle_models(self) -> None:
        """Has the models that are kept linked to the run, and those registered that are to be."""
        for name, call in settled(self.so_far, self._ledger):
            self._do(call, name, self._files)

    def show_all(self, started: RunStarted) -> None:
        """Makes of all that has arrived what people look at: report, pictures of the histograms, event files."""
        if started.report:
            self._do(showing.report, REPORT, self._files)
        if started.tensorboard:
            self._do(showing.event_files, EVENT_FILES, self._files)

    def _count(self, run: RunStore) -> dict[str, str]:
        """Calls delivery complete if the store holds all that was sent, and tells what it refuses."""
        tally, refused = self.so_far.tally, self._ledger.status.rejected
        # If files were held up, more may have come since: then it is not complete after all.
        manifest = tally.manifest({**refused, **dict.fromkeys(self._coming, "")}, self._earlier)
        run.text(MANIFEST, manifest)
        with store_errors():
            self.lacks = missing(run.client, run.run_id, manifest, self.so_far.uncounted, tally.sizes)
        if not self.lacks:  # else they are looked for again
            self.so_far.uncounted &= self._coming
        state = "incomplete" if self.lacks else "streaming" if self._coming else self.so_far.tagged
        tags = {DELIVERY_TAG: state}
        if told := [*(f"{name}: {why}" for name, why in refused.items()), *self.lacks]:
            tags[REFUSED_TAG] = "; ".join(told)[:_TAG_LENGTH]
        else:
            run.untag(REFUSED_TAG)
        return run.tags(tags)

    def end(self, ended: RunEnded) -> None:
        """Says why the run failed and gives it its end state."""
        reason = findings.plain(ended.reason)  # an exception's text may be anything; this is Markdown
        if ended.set_status:
            self._do(lambda run: run.end(ended.status, ended.time, reason), "end state", self._files)
        elif reason:
            self._do(lambda run: run.describe(reason), "description", self._files)

    def _do(
        self,
        call: Call,
        name: str = "",
        queue: deque[Callable[[], None]] | None = None,
    ) -> None:
        """Queues a call."""
        if not self.muted:
            (self._calls if queue is None else queue).append(partial(self._call, call, name))

    def _text(self, path: str, text: str) -> None:
        self._do(lambda run: run.text(path, text), path, self._files)

    def _call(self, call: Call, name: str) -> None:
        """Makes a call; what MLflow refuses of it is noted, not tried again."""
        assert self._run is not None
        try:
            self._ledger.reject(call(self._run) or {})
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
