"""The calls that a recording asks of MLflow, in order: each is made until it succeeds or is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path

from mlflow.tracking import MlflowClient

from mlflow_tfmon.checkpoints.names import MODELS
from mlflow_tfmon.checkpoints.registry import register_pointed
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
from mlflow_tfmon.tracking.curves import Point
from mlflow_tfmon.tracking.earlier import Earlier
from mlflow_tfmon.tracking.models import deliver_model, drop_model, link_models
from mlflow_tfmon.tracking.names import DELIVERY_TAG, EVENT_FILES, REACHED_TAG, REPORT, clean
from mlflow_tfmon.tracking.status import Ledger
from mlflow_tfmon.tracking.store import RefusedError, RunStore, open_store, store_errors
from mlflow_tfmon.tracking.tally import MANIFEST, Tally, missing
from mlflow_tfmon.tracking.telemetry import Part

RECORDING_TAG = "tfmon.recording"
LOST_TAGS = "tfmon.lost_"
PROGRESS_TAG = "tfmon.progress"

_Call = Callable[[RunStore], "dict[str, str] | None"]


class Outbox:
    """Calls that wait to be made: those for rows and facts, and those for files and what must follow them.

    Two queues, so that an artifact store that is away does not hold up the curves.

    Attributes:
        sent: when a call last succeeded (monotonic seconds).
        muted: whether calls are left out, because an earlier delivery has made them.

    Args:
        folder: of the recording.
        uris: tracking and registry URI, None for what the recording says.
        ledger: where to note what became of the calls.
    """

    def __init__(self, folder: Path, uris: tuple[str | None, str | None], ledger: Ledger) -> None:
        self.sent = time.monotonic()
        self.muted = False
        self._folder = folder
        self._uris = uris
        self._ledger = ledger
        self._calls: deque[Callable[[], None]] = deque()
        self._files: deque[Callable[[], None]] = deque()
        self._client: MlflowClient | None = None
        self._run: RunStore | None = None
        self._earlier = Earlier()
        self._tagged = ""
        self._progress = ""
        self._linkable: dict[tuple[str, int], Point] = {}
        self._steps: dict[str, int] = {}  # of models that are kept: path -> step
        self._to_register: dict[str, str] = {}  # a run's tag that says which model -> registered model
        self._tally = Tally()
        self._uncounted: set[str] = set()  # metrics with points that were not looked for in the store yet

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
        self._tagged = "streaming"
        self._calls.append(partial(self._open, started))
        if started.run_id is not None:
            self._do(lambda run: run.tags(started.tags))
        self._do(lambda run: run.tags({DELIVERY_TAG: "streaming"}))

    def points(self, points: Sequence[Point]) -> None:
        """Logs points."""
        self._tally.points(points)
        self._uncounted.update(point.key for point in points)
        if points:
            self._do(lambda run: run.points(self._earlier.new(points)))

    def linkable(self, points: Sequence[Point]) -> None:
        """Points that a model's metrics may be: a model linked to one of them doubles nothing in the run."""
        self._linkable |= {(point.key, point.step): point for point in points}

    def record(self, record: Record, when: float) -> None:
        """Logs a record that is no data.

        Args:
            record: the record.
            when: Unix time for what has no time of its own, seconds.
        """
        if isinstance(record, Facts):
            if record.params:
                self._do(lambda run: run.params(record.params))
            if record.tags:
                self._do(lambda run: run.tags(record.tags))
        elif isinstance(record, Text):
            self._text(record.path, record.text)
        elif isinstance(record, DatasetUsed):
            self._do(lambda run: run.dataset(record.dataset, record.context, record.tags), "dataset")
        elif isinstance(record, Premises):
            self._text(*findings.premises_file(record))
        elif isinstance(record, Problems):
            self._problems(record)
        elif isinstance(record, ModelSaved):
            self._model(record, when)

    def files(self, parts: Sequence[Part]) -> None:
        """Uploads finished telemetry parts; the files they are written to meanwhile are deleted."""
        self._tally.rows |= {part.artifact: part.rows for part in parts}
        for part in parts if not self.muted else ():
            with contextlib.suppress(OSError):  # a full disk: it stays in memory, and is tried again
                part.save()
            self._do(partial(_upload, part=part), part.artifact, self._files)
            self._files.append(partial(part.path.unlink, missing_ok=True))

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
        if text != self._progress and not self.muted:
            self._progress = text
            tags = {PROGRESS_TAG: text, REACHED_TAG: json.dumps(reached.as_dict())}
            self._do(lambda run: run.tags(tags))

    def streaming(self) -> None:
        """Notes that more has come."""
        if self._tagged != "streaming":
            self._tagged = "streaming"
            self._do(lambda run: run.tags({DELIVERY_TAG: "streaming"}))

    def flushed(self, seq: int, lost: Mapping[str, int]) -> None:
        """Notes that all up to record `seq` is delivered; `lost` is how much of what never was recorded."""
        tags = {f"{LOST_TAGS}{what}": str(count) for what, count in lost.items() if count}
        if tags:
            self._do(lambda run: run.tags(tags))
        if self._tagged != "complete":
            self._tagged = "complete"
            self._do(self._count, DELIVERY_TAG, self._files)
        self._files.append(lambda: self._ledger.note(flushed=max(seq, self._ledger.status.flushed)))

    def show_all(self, started: RunStarted) -> None:
        """Makes of all that has arrived what people look at: report, pictures of the histograms, event files."""
        if started.report:
            self._do(_report, REPORT, self._files)
        if started.tensorboard:
            self._do(_event_files, EVENT_FILES, self._files)

    def _count(self, run: RunStore) -> dict[str, str]:
        """Calls delivery complete if the store holds all that was sent."""
        manifest = self._tally.manifest(self._ledger.status.rejected, self._earlier)
        run.text(MANIFEST, manifest)
        with store_errors():
            lacks = missing(run.client, run.run_id, manifest, sorted(self._uncounted))
        self._uncounted.clear()
        # If files were held up, more may have come since: then it is not complete after all.
        return run.tags({DELIVERY_TAG: "incomplete" if lacks else self._tagged}) | {
            line.partition(":")[0]: line for line in lacks
        }

    def end(self, ended: RunEnded) -> None:
        """Says why the run failed and gives it its end state."""
        if ended.reason:
            reason = ended.reason.replace("<", "\\<")  # an exception's text may be anything; this is Markdown
            self._do(lambda run: run.describe(reason), "description", self._files)
        if ended.set_status:
            self._do(lambda run: run.end(ended.status, ended.time), "end state", self._files)

    def _do(
        self,
        call: _Call,
        name: str = "",
        queue: deque[Callable[[], None]] | None = None,
    ) -> None:
        """Queues a call."""
        if not self.muted:
            (self._calls if queue is None else queue).append(partial(self._call, call, name))

    def _text(self, path: str, text: str) -> None:
        self._do(lambda run: run.text(path, text), path, self._files)

    def _call(self, call: _Call, name: str) -> None:
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
            run_id = started.run_id or self._ledger.status.run_id or self._made_run(self._client, started)
            if started.run_id is not None:  # else nothing is earlier
                self._earlier = Earlier.of(self._client, run_id, self._folder)
        self._run = RunStore(self._client, run_id)
        self._ledger.note(run_id=run_id)

    def _made_run(self, client: MlflowClient, started: RunStarted) -> str:
        """The run that the trainer could not make; one whose making went well but unheard is found again."""
        mark = self._folder.name
        experiment = started.experiment_id or "0"
        if started.experiment_name and not started.experiment_id:
            known = client.get_experiment_by_name(started.experiment_name)
            experiment = known.experiment_id if known else client.create_experiment(started.experiment_name)
        query = f"tags.`{RECORDING_TAG}` = '{mark}'"
        if found := client.search_runs([experiment], query, max_results=1):
            return str(found[0].info.run_id)
        tags = {**started.tags, RECORDING_TAG: mark}
        run = client.create_run(experiment, int(started.start_time * 1e3), tags, started.run_name)
        return str(run.info.run_id)

    def _model(self, saved: ModelSaved, when: float) -> None:
        name, folder = f"model {saved.name}", self._folder / saved.path
        finite = {clean(key): value for key, value in saved.metrics.items() if isfinite(value)}
        points = []
        for key, value in finite.items():
            known = self._linkable.get((key, saved.step))
            same = known is not None and known.value == value
            points.append(known if known and same else Point(key, value, saved.step, int(when * 1e3)))
        self._steps[saved.path] = saved.step
        for path in saved.drops:
            self._steps.pop(path, None)
        if saved.registered_model_name:
            self._to_register[saved.pointers[0]] = saved.registered_model_name

        def remember(model_id: str) -> None:
            self._ledger.note(models={**self._ledger.status.models, saved.path: model_id})

        def deliver(run: RunStore) -> dict[str, str]:
            known = self._ledger.status.models
            gone = folder.with_name(f"{folder.name}.gone")
            if gone.exists():  # another took its place before it was delivered
                if saved.path in known:
                    drop_model(run, known[saved.path])
                return {}
            with store_errors():
                linked = self._earlier.linkable(run.client, run.run_id, points)
            rejected = deliver_model(run, saved, folder, linked, known.get(saved.path), remember)
            if name in rejected:
                self._steps.pop(saved.path, None)
            else:
                for path in saved.drops:
                    if path in known or path.startswith(MODELS):
                        drop_model(run, known.get(path) or path.removeprefix(MODELS))
            return rejected

        self._do(deliver, name, self._files)
        self._files.append(partial(shutil.rmtree, folder, ignore_errors=True))

    def settle_models(self) -> None:
        """Has the models that are kept linked to the run, and those registered that are to be: of many the best."""
        if self._steps:
            self._do(self._link, "outputs", self._files)
        for tag, name in self._to_register.items():
            self._do(partial(register_pointed, tag=tag, name=name), f"registered model {name}", self._files)
        self._to_register.clear()

    def _link(self, run: RunStore) -> None:
        known = self._ledger.status.models
        link_models(run, {known[path]: step for path, step in self._steps.items() if path in known})


def _report(run: RunStore) -> dict[str, str]:
    from mlflow_tfmon.report.making import report_of  # with libraries that nothing else here needs

    try:
        page, pictures = report_of(run.client, run.run_id)
    except Exception as error:  # what was recorded is there without it, and `mlflow-tfmon report` tries again
        return {REPORT: f"{type(error).__name__}: {error}"}
    run.text(REPORT, page)
    with store_errors():
        for key, step, picture in pictures:
            run.client.log_image(run.run_id, picture, key=key, step=step, synchronous=True)
    return {}


def _event_files(run: RunStore) -> dict[str, str]:
    from mlflow_tfmon.tensorboard.export import export

    with tempfile.TemporaryDirectory(prefix="mlflow_tfmon-") as folder:
        try:
            export(run.run_id, Path(folder), run.client.tracking_uri)
        except Exception as error:  # as above: `mlflow-tfmon export-tensorboard` tries again
            return {EVENT_FILES: f"{type(error).__name__}: {error}"}
        with store_errors():
            run.client.log_artifacts(run.run_id, folder, EVENT_FILES)
    return {}


def _upload(run: RunStore, part: Part, patient: bool = True) -> None:
    with store_errors():
        part.save()
    run.file(part.path, part.folder, patient)
