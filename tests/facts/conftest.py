"""Independent reference: what `mlflow.tensorflow.autolog` records of a fit."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
from pathlib import Path

import keras
import mlflow
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fits


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A run as MLflow's client gives it back."""

    params: dict
    metrics: dict  # name: [(step, value), …]
    inputs: dict  # context: dict of the dataset
    summary: str
    run_id: str


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    uri = f"sqlite:///{folder}/store.db"
    client = mlflow.MlflowClient(uri)
    client.create_experiment("reference", artifact_location=str(folder / "artifacts"))
    return client


@pytest.fixture(scope="session")
def autologged(store):
    """Runs a fit under MLflow's own autologging and reads back what it recorded."""

    def fit(model, args, kwargs, **options):
        # Each time: tests of other folders have set theirs in between.
        mlflow.set_tracking_uri(store.tracking_uri)
        experiment = store.get_experiment_by_name("reference").experiment_id
        mlflow.tensorflow.autolog(**{"log_models": False, "checkpoint": False, "silent": True, **options})
        try:
            with mlflow.start_run(experiment_id=experiment) as active:
                model.fit(*args, **kwargs)
        finally:
            mlflow.tensorflow.autolog(disable=True, silent=True)
        run = store.get_run(active.info.run_id)
        inputs = {}
        for used in run.inputs.dataset_inputs:
            (context,) = (tag.value for tag in used.tags if tag.key == "mlflow.data.context")
            inputs[context] = {k.lstrip("_"): v for k, v in vars(used.dataset).items() if v is not None}
        metrics = {
            name: [(point.step, point.value) for point in store.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        summary = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/model_summary.txt")
        return Recorded(dict(run.data.params), metrics, inputs, summary, run.info.run_id)

    return fit


@pytest.fixture(scope="session")
def reference(autologged):
    """The reference's record of each kind of fit, made once a session."""

    @functools.cache
    def record(kind):
        args, kwargs, model = fits.KINDS[kind]()
        # MLflow runs an endless pipeline for ever to take its digest.
        return autologged(model, args, _quiet(args, kwargs), log_datasets=kind != "endless")

    return record


def _quiet(args, kwargs):
    positional = list(inspect.signature(keras.Model.fit).parameters)[1 : len(args) + 1]
    return kwargs if "verbose" in positional else {**kwargs, "verbose": 0}


@pytest.fixture(scope="session")
def parsed():
    """A dataset's description with its JSON texts parsed."""

    def parse(entry):
        return {
            key: json.loads(v) if key in ("schema", "profile", "source") else v for key, v in entry.items()
        }

    return parse
