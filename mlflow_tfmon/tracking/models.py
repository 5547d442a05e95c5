"""From a model saved in a recording's folder to a logged model of the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from mlflow_tfmon.stream.records import ModelSaved
from mlflow_tfmon.tracking.curves import Point
from mlflow_tfmon.tracking.store import AwayError, RefusedError, RunStore, patient_uploads, store_errors


def deliver_model(
    run: RunStore,
    saved: ModelSaved,
    folder: Path,
    metrics: Sequence[Point],
    known: str | None,
    remember: Callable[[str], None],
) -> dict[str, str]:
    """Makes a saved model a logged model of the run: files, step, metrics and, where asked, a registered version.

    Args:
        run: the run.
        saved: the record.
        folder: where the model's files are.
        metrics: points to link; a point that is in the run already, with the same time, is not doubled there.
        known: the logged model's id, if an earlier attempt got as far as that.
        remember: is told the id as soon as there is one.

    Returns:
        What was refused: name -> reason.

    Raises:
        AwayError: the store does not answer; call again, with `known`, to go on.
    """
    client = run.client
    model_id = known
    rejected: dict[str, str] = {}
    try:
        with store_errors():
            source = client.get_run(run.run_id)
            if model_id is None:
                model = client.create_logged_model(
                    source.info.experiment_id,
                    saved.name,
                    run.run_id,
                    tags=saved.tags,
                    params=source.data.params,
                )
                model_id = model.model_id
                remember(model_id)
            else:
                model = client.get_logged_model(model_id)
            _sign(folder, model_id, run.run_id, model.artifact_location)
            with patient_uploads():
                client.log_model_artifacts(model_id, str(folder))
            client.finalize_logged_model(model_id, LoggedModelStatus.READY)
            if not known or model_id not in _outputs(client, run.run_id):
                client.log_outputs(run.run_id, [LoggedModelOutput(model_id, step=saved.step)])
        rejected |= run.points(metrics, model_id)
        if saved.registered_model_name:
            _register(client, saved, model_id, run.run_id, again=known is not None)
    except RefusedError as error:
        rejected[f"model {saved.name}"] = str(error)
        if model_id is not None:
            with contextlib.suppress(AwayError, RefusedError), store_errors():
                if client.get_logged_model(model_id).status != LoggedModelStatus.READY:
                    client.finalize_logged_model(model_id, LoggedModelStatus.FAILED)
    return rejected


def _sign(folder: Path, model_id: str, run_id: str, location: str) -> None:
    """Writes into the model's description which logged model it is, as `log_model` does."""
    path = str(folder / "MLmodel")
    try:
        model = Model.load(path)
        model.model_id = model.model_uuid = model_id
        model.run_id, model.artifact_path = run_id, location
        model.save(path)
    except Exception as error:
        raise RefusedError(f"{path} cannot be read, the model was not saved in full: {error}") from error


def _outputs(client: MlflowClient, run_id: str) -> list[str]:
    outputs = client.get_run(run_id).outputs
    return [output.model_id for output in outputs.model_outputs] if outputs else []


def _register(client: MlflowClient, saved: ModelSaved, model_id: str, run_id: str, again: bool) -> None:
    name, source = str(saved.registered_model_name), f"models:/{model_id}"
    with store_errors(), _current_store(client.tracking_uri):
        try:
            client.get_registered_model(name)
        except Exception:
            client.create_registered_model(name)
        if again and any(one.source == source for one in client.search_model_versions(f"name='{name}'")):
            return
        client.create_model_version(name, source, run_id=run_id, tags=saved.tags, model_id=model_id)


@contextlib.contextmanager
def _current_store(uri: str) -> Iterator[None]:
    """A registry in a database looks a logged model up in the process's current store, whatever the client's is."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
