"""Tests of custom metrics: in fit's logs before any callback reads them, in loops, in the store."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest

import mlflow_tfmon
from mlflow_tfmon.report.training import training
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.watching.epoch_metrics import measured
from tests import trainings

X, Y = trainings.data()
UNSEEN, _ = trainings.data(seed=5)
EPOCHS = 8
fresh = pytest.mark.usefixtures("fresh")


def net() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((trainings.FEATURES,)), layers.Dense(8, "relu"), layers.BatchNormalization(),
         layers.Dropout(0.3), layers.Dense(trainings.CLASSES)]
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.1), trainings.loss())
    return model


def score(model: keras.Model) -> float:
    """A figure that goes up and down."""
    return float(np.sin(40 * np.abs(model.predict(UNSEEN, verbose=0)).mean()))


def scores(model: keras.Model) -> dict[str, float]:
    """As a user writes it, with random numbers of Python and NumPy."""
    sample = np.random.permutation(len(UNSEEN))[: random.randint(1, 5)]
    return {"val_score": score(model), "sample": len(sample)}


class Adds(keras.callbacks.Callback):
    """What a user would write without us."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["val_score"] = score(self.model)


def fit(model: keras.Model, *callbacks: keras.callbacks.Callback) -> Any:
    return model.fit(X, Y, batch_size=16, epochs=EPOCHS, verbose=0, callbacks=[*callbacks])


def goers() -> list[keras.callbacks.Callback]:
    """Callbacks that go by the metric."""
    return [keras.callbacks.EarlyStopping("val_score", patience=3, mode="max", restore_best_weights=True)]


@pytest.mark.slow
@fresh
@pytest.mark.parametrize("how", ["autolog", "callback"])
def test_in_fit(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callbacks go by it as they would by the user's own; the best checkpoint is chosen by it."""
    # MLflow's test mode wants callbacks to be added after the user's alone; here one must come before.
    monkeypatch.setenv("MLFLOW_AUTOLOGGING_TESTING", "false")
    unwatched = net()
    expected = fit(unwatched, Adds(), *goers()).history["val_score"]
    assert 3 < len(expected) <= EPOCHS and 0 < int(np.argmax(expected)) < len(expected) - 1

    settings: dict[str, Any] = {"epoch_metrics": scores, "monitor": "val_score", "mode": "max"}
    watched, every_epoch = net(), keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    if how == "autolog":
        mlflow_tfmon.autolog(**settings)
        history = fit(watched, *goers(), every_epoch).history
    else:
        history = fit(watched, mlflow_tfmon.MonitorCallback(**settings), *goers(), every_epoch).history
    np.testing.assert_array_equal(history["val_score"], expected)
    assert all(1 <= number <= 5 for number in history["sample"])
    for one, other in zip(unwatched.get_weights(), watched.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)

    run = mlflow.last_active_run()
    client, best = mlflow.MlflowClient(), int(np.argmax(expected))
    assert [m.value for m in client.get_metric_history(run.info.run_id, "val_score")] == expected
    assert run.data.metrics["best/val_score"] == max(expected) and run.data.metrics["best/epoch"] == best
    kept = mlflow.tensorflow.load_model(
        f"models:/{client.get_run(run.info.run_id).data.tags['tfmon.best_model']}"
    )
    reference = keras.models.load_model(tmp_path / f"{best + 1}.keras")
    for one, other in zip(reference.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        mlflow_tfmon.load_run(run.info.run_id).epochs["val_score"].to_numpy(), expected
    )


@fresh
def test_in_a_custom_loop() -> None:
    model = trainings.model()
    step = trainings.custom_step(model, keras.optimizers.SGD(0.3))
    expected, told = [], []
    settings = {"epoch_metrics": scores, "monitor": "val_score", "mode": "max"}
    with mlflow_tfmon.Monitor(model, **settings) as monitor:
        for epoch in range(4):
            for x, y in trainings.batches(X, Y, 1):
                step(x, y)
            told.append(monitor.log_epoch(epoch, {"mine": epoch}))
            expected.append(score(model))
        run_id = str(monitor.run_id)
    assert [(one["val_score"], one["mine"]) for one in told] == list(zip(expected, range(4), strict=True))
    recorded = mlflow_tfmon.load_run(run_id)
    shown = {
        curve.name for section in training(recorded) for panel in section.panels for curve in panel.curves
    }
    assert {"val_score", "sample", "mine"} <= shown  # in the report
    epochs = recorded.epochs
    np.testing.assert_array_equal(epochs["val_score"], expected)
    np.testing.assert_array_equal(epochs["mine"], range(4))
    assert mlflow.get_run(run_id).data.metrics["best/epoch"] == np.argmax(expected)


@fresh
def test_a_function_that_fails_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def fails(model: keras.Model) -> dict[str, float]:
        calls.append(len(calls))
        if len(calls) < 3:
            raise RuntimeError("no boxes\nfound")
        return {"val_map": 0.5}

    logging.getLogger("mlflow_tfmon").addHandler(caplog.handler)
    try:
        mlflow_tfmon.autolog(epoch_metrics=fails, monitor="val_map", checkpoint=False)
        history = fit(net()).history
    finally:
        logging.getLogger("mlflow_tfmon").removeHandler(caplog.handler)
    assert len(history["loss"]) == EPOCHS and calls == list(range(EPOCHS))
    (line,) = [one for one in caplog.messages if "epoch_metrics failed" in one]
    assert "RuntimeError: no boxes found" in line and "fix it" in line
    (line,) = [one for one in caplog.messages if "monitor='val_map': lower" in one]
    assert 'mode="max"' in line
    run = mlflow.last_active_run()
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_map")
    assert [(point.step, point.value) for point in points] == [(epoch, 0.5) for epoch in range(2, EPOCHS)]


@pytest.mark.parametrize("returned", [0.5, None, {"val_map": "high"}, {"val_map": [1, 2]}])
def test_what_is_no_number_is_left_out(returned: Any) -> None:
    assert measured(None, Settings.make(epoch_metrics=lambda model: returned)) == {}


def test_no_random_number_is_taken() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()
    found = measured(
        None, Settings.make(epoch_metrics=lambda model: {"a": random.random() + np.random.rand()})
    )
    assert 0 <= found["a"] <= 2 and (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_a_setting_that_is_no_function() -> None:
    with pytest.raises(mlflow_tfmon.SettingError, match=r"epoch_metrics='val_map': .*function of the model"):
        Settings.make(epoch_metrics="val_map")
