"""Tests of models in a recording, which become logged models that load; the only ones here that need TensorFlow."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.entities import DatasetInput, InputTag
from mlflow.models import infer_signature
from recordings import BEGUN, deliver, started

from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.stream.records import EpochEnded, Facts, ModelSaved, RunEnded
from mlflow_tfmon.tracking.models import deliver_model
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.tracking.store import AwayError, RunStore

SAVED = ModelSaved(
    "models/0", "best", 3, {"val_loss": 0.25, "extra": 7.0}, "digits", {"kind": "best"}, ("tfmon.best_model",)
)


def record(home: Path, store: str, run_id: str, *, whole: bool = True) -> Journal:
    journal = Journal.create(home)
    if whole:
        import keras

        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, kernel_initializer="ones")])
        example = np.ones((1, 4), np.float32)
        mlflow.tensorflow.save_model(
            model, str(journal.folder / "models/0"), pip_requirements=["keras"],
            signature=infer_signature(example, model.predict(example, verbose=0)),
        )  # fmt: skip
    journal.append(
        [
            started(store, run_id),
            Facts(params={"epochs": "4"}),
            EpochEnded(3, 400, BEGUN, {"val_loss": 0.25}),
            SAVED,
            RunEnded(BEGUN, "FINISHED", True),
        ]
    )
    journal.close()
    return journal


def deliver_unheard(folder: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery that is cut off at a call of MLflow's client: after it was done, before the answer came."""
    real = getattr(mlflow.MlflowClient, call)

    def unheard(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)
        raise ConnectionError("reset by peer")

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, call, unheard)
        first = Deliverer(folder)
        first.advance()
        first.close()
    assert first.status.error is not None and first.status.error.endswith(": reset by peer")


def test_a_saved_model_becomes_a_logged_and_registered_one_exactly_once(
    store: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient(store)
    run_id = client.create_run("0").info.run_id
    journal = record(home, store, run_id)
    # The first delivery is cut off at its last call, after everything has been done.
    deliver_unheard(journal.folder, "create_model_version", monkeypatch)
    deliverer = deliver(journal.folder)
    assert deliverer.done and deliverer.status.rejected == {}

    (model,) = client.search_logged_models(["0"])
    assert (model.name, model.status.value, model.source_run_id) == ("best", "READY", run_id)
    assert (model.tags["kind"], model.params) == ("best", {"epochs": "4"})
    assert {(one.key, one.value, one.step) for one in model.metrics} == {
        ("val_loss", 0.25, 3),
        ("extra", 7.0, 3),
    }
    run = client.get_run(run_id)
    assert run.data.tags["tfmon.best_model"] == model.model_id
    assert [(one.model_id, one.step) for one in run.outputs.model_outputs] == [(model.model_id, 3)]
    assert len(client.get_metric_history(run_id, "val_loss")) == 1
    (version,) = client.search_model_versions("name='digits'")
    assert (version.source, version.run_id, version.status) == (f"models:/{model.model_id}", run_id, "READY")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    example = np.ones((3, 4), np.float32)
    for uri in (f"models:/{model.model_id}", "models:/digits/1"):
        loaded = mlflow.tensorflow.load_model(uri)
        np.testing.assert_allclose(loaded(example), np.full((3, 2), 4.0))
        np.testing.assert_allclose(mlflow.pyfunc.load_model(uri).predict(example), np.full((3, 2), 4.0))
    info = mlflow.models.get_model_info(f"models:/{model.model_id}")
    assert (info.run_id, info.model_uuid) == (run_id, model.model_id)


def test_a_model_whose_making_went_well_but_unheard_is_made_once(
    store: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient(store)
    run_id = client.create_run("0").info.run_id
    journal = record(home, store, run_id)
    deliver_unheard(journal.folder, "create_logged_model", monkeypatch)
    assert deliver(journal.folder).done
    (model,) = client.search_logged_models(["0"])
    assert model.status.value == "READY"
    assert client.get_run(run_id).data.tags["tfmon.best_model"] == model.model_id


def test_a_model_that_was_not_saved_in_full_is_marked_failed_and_holds_nothing_up(
    store: str, home: Path
) -> None:
    client = mlflow.MlflowClient(store)
    run_id = client.create_run("0").info.run_id
    deliverer = deliver(record(home, store, run_id, whole=False).folder)
    assert deliverer.done
    assert "model best" in deliverer.status.rejected
    (model,) = client.search_logged_models(["0"])
    assert model.status.value == "FAILED"
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_model_whose_dataset_becomes_known_after_its_metrics_is_not_rejected(
    store: str, home: Path
) -> None:
    """MLflow takes a metric of another dataset for another one, which its table has no room for."""
    client = mlflow.MlflowClient(store)
    run = RunStore(client, client.create_run("0").info.run_id)
    folder = record(home, store, run.run_id).folder / SAVED.path
    points = [Point(key, value, SAVED.step, int(BEGUN * 1000)) for key, value in SAVED.metrics.items()]
    known: list[str] = []
    assert deliver_model(run, SAVED, folder, points, None, known.append) == {}
    dataset = mlflow.data.from_numpy(np.ones((4, 4)), name="held out")._to_mlflow_entity()
    client.log_inputs(run.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "eval")])])
    assert deliver_model(run, SAVED, folder, points, known[0], known.append) == {}
    (model,) = client.search_logged_models(["0"])
    assert {(one.key, one.value, one.step) for one in model.metrics} == {
        ("val_loss", 0.25, 3),
        ("extra", 7.0, 3),
    }
    assert len(model.metrics) == 2


def test_errors_are_one_line_without_secrets() -> None:
    from mlflow_tfmon.tracking.store import store_errors

    with pytest.raises(AwayError, match=r"^no answer from https://example\.org/ twice$"), store_errors():
        raise ConnectionError("no answer from\n https://ann:pw@example.org/ twice")
