"""Requests of delivery to MLflow. Every error becomes one of two: the store is down, or it rejects the request."""

from __future__ import annotations

import contextlib
import importlib
import logging
import posixpath
import time
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking import MlflowClient

from mlflow_tfmon import locks
from mlflow_tfmon.internals import internal
from mlflow_tfmon.noise import hushed
from mlflow_tfmon.tracking import chart_view, findings
from mlflow_tfmon.tracking.names import clean
from mlflow_tfmon.tracking.patience import patient_uploads
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.tracking.texts import cut, milliseconds, sayable
from mlflow_tfmon.uris import in_a_line, sqlite_path


def _bound(name: str, otherwise: int) -> int:
    return int(internal(f"mlflow.utils.validation.{name}", otherwise, f"{otherwise} is assumed"))


MAX_METRICS_PER_BATCH = _bound("MAX_METRICS_PER_BATCH", 1000)
MAX_PARAMS_TAGS_PER_BATCH = _bound("MAX_PARAMS_TAGS_PER_BATCH", 100)
MAX_PARAM_VAL_LENGTH = _bound("MAX_PARAM_VAL_LENGTH", 6000)  # characters
MAX_TAG_VAL_LENGTH = _bound("MAX_TAG_VAL_LENGTH", 5000)  # characters
DESCRIPTION = "mlflow.note.content"
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"})
# MLflow (3.1 to 3.17) calls whatever its database says a bad request, but for what SQLAlchemy calls operational: also
# that no connection is free, that it is read-only, or is being migrated. Of all that only a value of the wrong size or
# kind (DataError) stays refused; each kind has an address, which ends the message.
_OF_DATABASE, _DATA_ERROR = "https://sqlalche.me/e/", "/9h9h"
_HTTP_CLIENT = "mlflow.utils.rest_utils"  # where MLflow reads a server's answers (3.1 to 3.17)
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # what MLflow (3.1 to 3.17) opens by SQLAlchemy
_OPEN_SECONDS = 60.0
_MIGRATION = "alembic.runtime.migration"  # a line for each of forty steps, with MLflow 3.1


class AwayError(Exception):
    """The store cannot be reached, or fails: to be retried."""


class RefusedError(Exception):
    """The store rejects this permanently."""


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turns every error within into `AwayError` or `RefusedError`, with a text of one line and no secret in it."""
    try:
        yield
    except (AwayError, RefusedError):
        raise
    except Exception as error:
        text = sayable(in_a_line(error))
        if is_refusal(error, _REFUSALS):
            raise RefusedError(text) from error
        raise AwayError(text) from error


def is_refusal(error: BaseException | None, codes: Container[str]) -> bool:
    """Whether MLflow itself has answered with one of some error codes.

    Not so where what lies between has answered (a proxy, with a page of HTML or a JSON of its own): MLflow's client
    makes an error code of the bare HTTP status then, of 400 the one for a value that is never taken.
    """
    if _OF_DATABASE in str(error) and _DATA_ERROR not in str(error):
        return False
    if isinstance(error, RestException):
        return error.json.get("error_code") in codes
    if not isinstance(error, MlflowException) or error.error_code not in codes:
        return False
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is None or frame.tb_frame.f_globals.get("__name__") != _HTTP_CLIENT


def load_store(tracking_uri: str) -> None:
    """Imports what `open_store` will need for a store, and touches no store.

    MLflow (3.1 to 3.17) imports its database code when it first opens one: a second of the processor, which a training
    of a few seconds on two cores would pay for.

    Args:
        tracking_uri: MLflow tracking URI.
    """
    if urlsplit(tracking_uri).scheme.partition("+")[0] in _DATABASES:
        with contextlib.suppress(Exception):  # opening it tells what is wrong
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
            importlib.import_module("sqlalchemy.orm").configure_mappers()


def open_store(tracking_uri: str, registry_uri: str | None = None) -> MlflowClient:
    """Opens a store, and creates its database if there is none yet.

    Processes that open a fresh SQLite store at the same time would collide in MLflow's migrations: here one makes it
    while the others wait, and where another program makes it, it is tried again.

    Args:
        tracking_uri: MLflow tracking URI.
        registry_uri: MLflow registry URI; default as MLflow derives it.

    Raises:
        Exception: MLflow's own, if the store does not open within a minute.
    """
    path = sqlite_path(tracking_uri)
    if path is None:
        return MlflowClient(tracking_uri, registry_uri)
    give_up = time.monotonic() + _OPEN_SECONDS
    tried = ""
    with locks.one_at_a_time(Path(path).parent), hushed(_MIGRATION, below=logging.WARNING):
        while True:
            try:
                client = MlflowClient(tracking_uri, registry_uri)
                client.search_experiments(max_results=1)
                return client
            except Exception as error:
                # A schema that stays out of date is the user's to upgrade; one that changes is just being made.
                if time.monotonic() > give_up or ("out-of-date" in str(error) and str(error) == tried):
                    raise
                tried = str(error)
                time.sleep(2.0 if "out-of-date" in tried else 0.25)


class RunStore:
    """One run in a store.

    Every method raises `AwayError` if the store does not answer; those that log several things at once return what was
    refused, as name -> reason, and log all the rest.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id

    def points(
        self,
        points: Sequence[Point],
        model_id: str | None = None,
        dataset_of: Callable[[str], tuple[str, str] | None] | None = None,
    ) -> dict[str, str]:
        """Logs points; those that are there already are not doubled.

        Args:
            points: the points.
            model_id: logged model to link them to, or None.
            dataset_of: name and digest of the dataset that a metric is of, where known.
        """
        rejected: dict[str, str] = {}
        for at in range(0, len(points), MAX_METRICS_PER_BATCH):
            metrics = []
            for p in points[at : at + MAX_METRICS_PER_BATCH]:
                name, digest = (dataset_of(p.key) if dataset_of else None) or (None, None)
                metrics.append(Metric(p.key, p.value, p.time, p.step, model_id, name, digest))
            self._metrics(metrics, rejected)
        return rejected

    def _metrics(self, metrics: list[Metric], rejected: dict[str, str]) -> None:
        metrics = [metric for metric in metrics if metric.key not in rejected]
        try:
            with store_errors():
                if metrics:
                    self.client.log_batch(self.run_id, metrics=metrics, synchronous=True)
        except RefusedError as error:
            self._check_active()
            if len(metrics) == 1:
                rejected[metrics[0].key] = str(error)
            else:  # one bad metric refuses its whole batch: halve until it stands alone
                self._metrics(metrics[: len(metrics) // 2], rejected)
                self._metrics(metrics[len(metrics) // 2 :], rejected)

    def params(self, params: dict[str, str]) -> dict[str, str]:
        """Logs params; one that has another value already keeps it."""
        rejected: dict[str, str] = {}
        entries = [
            Param(clean(key), _fitting(f"param {key}", value, MAX_PARAM_VAL_LENGTH, rejected))
            for key, value in params.items()
        ]
        for at in range(0, len(entries), MAX_PARAMS_TAGS_PER_BATCH):
            part = entries[at : at + MAX_PARAMS_TAGS_PER_BATCH]
            try:
                with store_errors():
                    self.client.log_batch(self.run_id, params=part, synchronous=True)
            except RefusedError:
                self._check_active()
                for entry in part:
                    self._param(entry, rejected)
        return rejected

    def _param(self, param: Param, rejected: dict[str, str]) -> None:
        try:
            with store_errors():
                self.client.log_batch(self.run_id, params=[param], synchronous=True)
        except RefusedError as error:
            if param.key not in self._run().data.params:
                rejected[f"param {param.key}"] = str(error)

    def tags(self, tags: dict[str, str]) -> dict[str, str]:
        """Sets tags."""
        rejected: dict[str, str] = {}
        for key, value in tags.items():
            try:
                with store_errors():
                    self.client.log_batch(
                        self.run_id,
                        tags=[
                            RunTag(clean(key), _fitting(f"tag {key}", value, MAX_TAG_VAL_LENGTH, rejected))
                        ],
                        synchronous=True,
                    )
            except RefusedError as error:
                self._check_active()
                rejected[f"tag {clean(key)}"] = str(error)
        return rejected

    def untag(self, key: str) -> None:
        """Takes a tag away, if it is there."""
        if key in self._run().data.tags:
            with store_errors():
                self.client.delete_tag(self.run_id, key)

    def describe(self, text: str) -> dict[str, str]:
        """Adds a paragraph to the run's description, below what is there."""
        description = self._run().data.tags.get(DESCRIPTION, "")
        return {} if text in description else self.tags({DESCRIPTION: f"{description}\n\n{text}".strip()})

    def explain(self, verdict: str, others: str) -> dict[str, str]:
        """Sets what the run's description says of problems, below what the user wrote there; "" takes it away.

        Args:
            verdict: what people read first.
            others: the other problems, below where to look.
        """
        rejected = self._part(self._run(), "problems", verdict)
        return rejected | self._part(self._run(), "others", others)

    def introduce(self, report: bool) -> dict[str, str]:
        """Brings up to date what the run's description says of its best epoch, its model and its report.

        Args:
            report: whether the run has a report, or will have one soon.
        """
        run = self._run()
        return self._part(run, "run", findings.about(run, report))

    def _part(self, run: Run, part: str, text: str) -> dict[str, str]:
        description = run.data.tags.get(DESCRIPTION, "")
        room = MAX_TAG_VAL_LENGTH - len(
            findings.with_part(findings.with_part(description, "", part), "-", part)
        )
        changed = findings.with_part(description, cut(text, room) if text and room > 0 else "", part)
        return {} if changed == description else self.tags({DESCRIPTION: changed})

    def show_charts(self) -> None:
        """Gives the run's experiment the chart view that is linked; one that is there stays as its users have it."""
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        with store_errors():
            run = self._run()
            experiment = self.client.get_experiment(run.info.experiment_id)
            if chart_view.TAG not in experiment.tags:
                view = chart_view.value(unfolded=MLFLOW_PARENT_RUN_ID in run.data.tags)
                self.client.set_experiment_tag(experiment.experiment_id, chart_view.TAG, view)

    def text(self, path: str, text: str) -> None:
        """Writes a text artifact."""
        if path in ("", ".") or path != posixpath.normpath(path) or path.startswith(("..", "/")):
            raise RefusedError(f"artifact path {path!r} is not valid in MLflow")
        with store_errors(), patient_uploads():
            self.client.log_text(self.run_id, sayable(text), path)

    def file(self, path: Path, folder: str, patient: bool = True) -> None:
        """Uploads a file into a folder of the run's artifacts, over the one that is there.

        Args:
            path: the file.
            folder: the folder.
            patient: whether a server may take as long for it as files take.
        """
        with store_errors(), patient_uploads() if patient else contextlib.nullcontext():
            self.client.log_artifact(self.run_id, str(path), folder)

    def dataset(self, dataset: dict[str, str], context: str, tags: dict[str, str]) -> None:
        """Logs a dataset input."""
        with store_errors():
            names = ("name", "digest", "source_type", "source", "schema", "profile")
            found = {name: dataset.get(name) for name in names}
            entity = Dataset(**{name: value and sayable(str(value)) for name, value in found.items()})
            labels = [
                InputTag(sayable(key), sayable(str(value)))
                for key, value in {"mlflow.data.context": context, **tags}.items()
            ]
            self.client.log_inputs(self.run_id, [DatasetInput(entity, labels)])

    def end(self, status: str, end_time: float, reason: str) -> dict[str, str]:
        """Gives the run its end state (`end_time` in Unix seconds), unless it has one, and says why it failed.

        One that has finished did not: its journal's disk could not be written at the end.
        """
        known = RunStatus.from_string(self._run().info.status)
        rejected = self.describe(reason) if reason and known != RunStatus.FINISHED else {}
        if not RunStatus.is_terminated(known):
            with store_errors():
                self.client.set_terminated(self.run_id, status, milliseconds(end_time))
        return rejected

    def ended(self) -> bool:
        """Whether the run has an end state."""
        return bool(RunStatus.is_terminated(RunStatus.from_string(self._run().info.status)))

    def _run(self) -> Run:
        with store_errors():
            return self.client.get_run(self.run_id)

    def _check_active(self) -> None:
        """A deleted run refuses everything, but can be restored: nothing of it is dropped."""
        if self._run().info.lifecycle_stage != "active":
            raise AwayError(f"run {self.run_id} is deleted; restore it to deliver the rest")


def _fitting(name: str, value: object, length: int, told: dict[str, str]) -> str:
    """A value as every store takes it; `told` gets what had to be changed in it."""
    text = str(value)
    fits = cut(sayable(text), length)
    if fits != text:
        cut_off = len(fits) < len(sayable(text))
        told[sayable(name)] = f"is cut at {length} characters" if cut_off else "is written with escapes"
    return fits
