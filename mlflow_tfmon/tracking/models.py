"""Conversion of a model saved in a recording's folder to a logged model of the run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from mlflow_tfmon.stream.records import ModelSaved
from mlflow_tfmon.tags import RECORDED_AS
from mlflow_tfmon.tracking.names import MODEL_ID
from mlflow_tfmon.tracking.patience import patient_uploads
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.tracking.store import AwayError, RefusedError, RunStore, is_refusal, store_errors

DatasetOf = Callable[[str], "tuple[str, str] | None"]
_VERSIONS = "mlflow.modelVersions"  # MLflow's tag of a logged model that is registered (3.1 to 3.17)
_GONE = frozenset({"RESOURCE_DOES_NOT_EXIST"})
_PATH = RECORDED_AS


def deliver_model(
    run: RunStore,
    saved: ModelSaved,
    folder: Path,
    metrics: Sequence[Point],
    known: str | None,
    remember: Callable[[str], None],
) -> dict[str, str]:
    """Makes a saved model a logged model of the run: files, metrics with their datasets, and then its pointers.

    Args:
        run: the run.
        saved: the record.
        folder: where the model's files are.
        metrics: points to link; a point that is in the run already, with the same time, is not doubled there.
        known: the logged model's id, if an earlier attempt got as far as that and heard it.
        remember: is told the id as soon as there is one.

    Returns:
        What was rejected: name -> reason.

    Raises:
        AwayError: the store does not answer; call again, with `known`, to go on.
    """
    client = run.client
    model_id: str | None = None
    rejected: dict[str, str] = {}
    try:
        with store_errors():
            source = client.get_run(run.run_id)
            model_id = known or unheard(run, saved.path)
            dataset_of = datasets_of(source, saved.datasets)
            if model_id is None:
                model = client.create_logged_model(
                    source.info.experiment_id,
                    saved.name,
                    run.run_id,
                    tags={**saved.tags, _PATH: saved.path},
                    params=source.data.params,
                )
                model_id = model.model_id
            else:
                found = _known(run, model_id)
                if found is None:  # it was there, and another has taken its place, or somebody has deleted it
                    return {}
                model = found
            remember(model_id)
            if model.status != LoggedModelStatus.READY:  # an earlier attempt may have got as far as that
                _sign(folder, model_id, run.run_id, model.artifact_location)
                with patient_uploads():
                    client.log_model_artifacts(model_id, str(folder))
                _compare(client, model_id, folder)
                client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        rejected |= run.points(_unlinked(model, metrics), model_id, dataset_of)
        rejected |= run.tags(dict.fromkeys(saved.pointers, model_id))
    except RefusedError as error:
        rejected[f"model {saved.name}"] = str(error)
        if model_id is not None:
            with contextlib.suppress(AwayError, RefusedError), store_errors():
                if client.get_logged_model(model_id).status != LoggedModelStatus.READY:
                    client.finalize_logged_model(model_id, LoggedModelStatus.FAILED)
    return rejected


def _unlinked(model: LoggedModel, metrics: Sequence[Point]) -> list[Point]:
    """The points that a logged model does not have yet.

    MLflow (3.1 to 3.17) passes over a point that a model has, but fails if the dataset named with it is another: it
    may have got into the run since.
    """
    there = {(one.key, one.step, one.timestamp) for one in model.metrics or ()}
    return [one for one in metrics if (one.key, one.step, one.time) not in there]


def _known(run: RunStore, model_id: str) -> LoggedModel | None:
    """A logged model of the run that was there; None if it is deleted.

    That of another run is none of this one's, whatever a recording says, which may have come from elsewhere.
    """
    try:
        model = run.client.get_logged_model(model_id)
        return model if model.source_run_id == run.run_id else None
    except MlflowException as error:
        if is_refusal(error, _GONE):
            return None
        raise


def _compare(client: MlflowClient, model_id: str, folder: Path) -> None:
    """Looks whether the store has each file of a model, and as long as it is.

    Raises:
        AwayError: it does not.
    """
    there: dict[str, int | None] = {}
    below: list[str | None] = [None]
    while below:
        for item in client.list_logged_model_artifacts(model_id, below.pop()):
            if item.is_dir:
                below.append(item.path)
            else:
                there[item.path] = item.file_size
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and (name not in there or there[name] not in (None, path.stat().st_size)):
            raise AwayError(f"model {model_id}: the store lacks {name}, or has a different file")


def unheard(run: RunStore, path: str) -> str | None:
    """Id of the logged model that was made of a record, if one was, though the answer got lost."""
    experiment = run.client.get_run(run.run_id).info.experiment_id
    token = None
    while True:
        found = run.client.search_logged_models(
            [experiment], f"source_run_id = '{run.run_id}'", page_token=token
        )
        for model in found:
            if model.tags.get(_PATH) == path:
                return str(model.model_id)
        token = found.token
        if not token:
            return None


def _sign(folder: Path, model_id: str, run_id: str, location: str) -> None:
    """Writes into the model's description which logged model it is, as `log_model` does."""
    path = str(folder / "MLmodel")
    try:
        model = Model.load(path)
        model.model_id = model.model_uuid = model_id
        model.run_id, model.artifact_path = run_id, location
        model.save(path)
    except Exception as error:
        raise RefusedError(f"{path} cannot be read, so the model was not saved in full: {error}") from error


def link_models(run: RunStore, steps: Mapping[str, int]) -> None:
    """Makes logged models outputs of the run, those that are not yet.

    A run's outputs cannot be taken back, so this comes once it is known which are kept.

    Args:
        run: the run.
        steps: id -> step.

    Raises:
        AwayError: the store does not answer.
    """
    with store_errors():
        outputs = run.client.get_run(run.run_id).outputs
        linked = {output.model_id for output in outputs.model_outputs} if outputs else set()
        new = [LoggedModelOutput(one, step) for one, step in steps.items() if one not in linked]
        if new:
            run.client.log_outputs(run.run_id, new)


def drop_model(run: RunStore, model_id: str) -> None:
    """Deletes a logged model that another took the place of, files and all, unless somebody has registered it.

    Raises:
        AwayError: the store does not answer.
    """
    client = run.client
    with contextlib.suppress(RefusedError), store_errors():
        model = _known(run, model_id)
        if model is None or registered_as(model) or _has_versions(client, model_id):
            return
        client.delete_logged_model(model_id)
        # A server says where they are: that may be any folder of this machine.
        if not MODEL_ID.fullmatch(model_id) or not model.artifact_location.endswith(f"/{model_id}/artifacts"):
            return
        # MLflow only marks it as deleted; an artifact store that deletes nothing keeps the files.
        with contextlib.suppress(Exception), current_store(client.tracking_uri):
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            get_artifact_repository(model.artifact_location).delete_artifacts()


def _has_versions(client: MlflowClient, model_id: str) -> bool:
    """Whether the registry has a version of a logged model: without a server none of MLflow tells the model so."""
    with contextlib.suppress(Exception), current_store(client.tracking_uri):
        return bool(client.search_model_versions(f"source_path='models:/{model_id}'"))
    return False


def note_version(client: MlflowClient, model_id: str, name: str, version: str) -> None:
    """Has a logged model say that it is a version of a registered model, as MLflow's server does."""
    told = _versions(client.get_logged_model(model_id)) or []
    if all(one["name"] != name for one in told):
        told.append({"name": name, "version": version})
        client.set_logged_model_tags(model_id, {_VERSIONS: json.dumps(told)})


def registered_as(model: LoggedModel) -> tuple[str, ...]:
    """The registered models that a logged model is a version of."""
    told = _versions(model)
    return ("what its tag does not say",) if told is None else tuple(str(one["name"]) for one in told)


def _versions(model: LoggedModel) -> list[dict[str, Any]] | None:
    """What a logged model's tag says of its versions; None if somebody has written something else there."""
    try:
        told = json.loads(model.tags.get(_VERSIONS) or "[]")
    except (ValueError, RecursionError):
        return None
    right = isinstance(told, list) and all(isinstance(one, dict) and "name" in one for one in told)
    return told if right else None


def datasets_of(run: Run, known: Mapping[str, tuple[str, str]] | None = None) -> DatasetOf:
    """Tells of which dataset a metric is, as (name, digest).

    Args:
        run: whose datasets it may be; it tells of several for one purpose (of two fits) in any order.
        known: purpose ("train", "eval") -> the dataset, where that is known.
    """
    found = dict(known or {})
    for one in run.inputs.dataset_inputs if run.inputs and not known else []:
        context = next((tag.value for tag in one.tags if tag.key == "mlflow.data.context"), "train")
        found[context] = (one.dataset.name, one.dataset.digest)
    return datasets_among(found)


def datasets_among(found: Mapping[str, tuple[str, str]]) -> DatasetOf:
    """Tells of which of these datasets, by purpose, a metric is."""

    def dataset_of(metric: str) -> tuple[str, str] | None:
        validated = metric.rpartition("/")[2].startswith(("val_", "validation_"))
        return found.get("eval" if validated else "train")

    return dataset_of


@contextlib.contextmanager
def current_store(uri: str) -> Iterator[None]:
    """A registry in a database looks a logged model up in the process's current store, whatever the client's is."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
