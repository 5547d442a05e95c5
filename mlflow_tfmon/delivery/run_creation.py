"""Delayed creation of the run if the trainer could not create it because its store was down."""

from __future__ import annotations

from mlflow.tracking import MlflowClient

from mlflow_tfmon.stream.records import RunStarted
from mlflow_tfmon.tags import RECORDING_TAG
from mlflow_tfmon.tracking.names import clean
from mlflow_tfmon.tracking.store import MAX_TAG_VAL_LENGTH
from mlflow_tfmon.tracking.texts import cut, milliseconds


def made_run(client: MlflowClient, started: RunStarted, mark: str) -> str:
    """Creates the run as the trainer would have; finds one that was created although the answer was lost.

    Args:
        client: of the store.
        started: what it is to be.
        mark: what the run is known by: the recording's name.

    Raises:
        Exception: MLflow's own, if the store does not answer.
    """
    experiment = started.experiment_id or "0"
    if started.experiment_name and not started.experiment_id:
        known = client.get_experiment_by_name(started.experiment_name)
        experiment = known.experiment_id if known else client.create_experiment(started.experiment_name)
    query = f"tags.`{RECORDING_TAG}` = '{mark}'"
    if found := client.search_runs([experiment], query, max_results=1):
        return str(found[0].info.run_id)
    tags = {**started.tags, RECORDING_TAG: mark}
    tags = {clean(key): cut(value, MAX_TAG_VAL_LENGTH) for key, value in tags.items()}
    run = client.create_run(experiment, milliseconds(started.start_time), tags, started.run_name)
    return str(run.info.run_id)
