"""Tests of which problems are acted on: not withdrawn ones, nor those of another model or fit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.problems import plugins
from mlflow_tfmon.problems.rediagnosis import diagnose
from tests.problems.test_problems import _data, _fit, _loop, _model, _tags

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.fixture(autouse=True)
def no_detectors() -> Iterator[None]:
    """Those that a test defines judge in that test alone."""
    yield
    plugins._defined.clear()


class Slow(keras.callbacks.Callback):
    """Has the first epoch take so long that it is judged within."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.model.optimizer.iterations < 8:
            time.sleep(0.3)


def test_what_is_taken_back_before_the_epoch_ends_stops_nothing() -> None:
    seen = []

    class Early(mlflow_tfmon.Detector):
        def detect(self, history: Any) -> Iterator[mlflow_tfmon.Problem]:
            seen.append(history.step)
            if 0 < history.step < 7:
                yield mlflow_tfmon.Problem("early", "critical", 0, (), "Seen.", "Do.")

    x, y = _data()
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, on_problem="stop")
    with mlflow.start_run() as run:
        found = _model(rate=0.05).fit(x[:200], y[:200], epochs=4, verbose=0, callbacks=[Slow()]).history
    assert any(0 < step < 7 for step in seen)
    assert len(found["loss"]) == 4
    assert _tags(run.info.run_id)["tfmon.problems"] == "none"


def test_what_a_fit_before_was_stopped_for_does_not_stop_the_next() -> None:
    class Once(mlflow_tfmon.Detector):
        def detect(self, history: Any) -> Iterator[mlflow_tfmon.Problem]:
            yield mlflow_tfmon.Problem("once", "critical", 0, (), "Seen.", "Do.")

    x, y = _data()
    model = _model()
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, on_problem="stop")
    with mlflow.start_run():
        epochs = [len(model.fit(x, y, epochs=3, verbose=0).history["loss"]) for _ in range(2)]
    assert epochs == [1, 3]


def test_another_models_problem_does_not_stop_a_loop() -> None:
    with mlflow.start_run() as run:
        for model in (_model(kernel="zeros", sgd=True), _model(sgd=True)):
            with mlflow_tfmon.Monitor(model, monitor="loss", on_problem="stop", log_models=False) as monitor:
                made = len(_loop(monitor, model, bad_from=99, epochs=6))
    assert "poor_initialization" in _tags(run.info.run_id)["tfmon.problems"]
    assert made == 6


def test_targets_that_the_users_loss_leaves_out_stop_nothing() -> None:
    def masked(y: Any, p: Any) -> Any:
        there = tf.math.is_finite(y)
        return tf.reduce_mean(tf.where(there, tf.square(tf.where(there, y, 0.0) - p), 0.0))

    x, _ = _data()
    y = np.where(np.arange(len(x))[:, None] % 3 == 0, np.nan, x[:, :2] * [1, -2]).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.02), masked)
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, on_problem="stop")
    assert len(model.fit(x, y, epochs=5, verbose=0).history["loss"]) == 5


def test_a_nan_in_data_that_nobody_looked_at_is_traced_and_critical() -> None:
    """The hidden layer's weights are NaN, and its ReLU makes 0 of them: the loss may stay finite."""
    x, y = _data()
    x[170, 2] = np.nan
    feed = tf.data.Dataset.from_tensor_slices((x, y)).map(lambda x, y: (x, y)).batch(32)
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    with mlflow.start_run() as run:
        _model().fit(feed, epochs=12, verbose=0)
    found = {one.kind: one for one in mlflow_tfmon.load_run(run.info.run_id).problems}["nan_or_inf"]
    assert (found.severity, found.first_step) == ("critical", 6)
    assert "Check that the data are finite" in found.advice


@pytest.mark.thorough
def test_a_second_fit_with_a_loss_of_another_scale_has_not_diverged() -> None:
    x, _ = _data()
    targets = (x[:, :1] - 2 * x[:, 1:2] + 0.2).astype("float32")
    feed = tf.data.Dataset.from_tensor_slices((x, targets)).batch(32)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
    mlflow_tfmon.autolog(log_models=False)
    with mlflow.start_run() as run:
        for loss in ("mse", lambda y, p: 50.0 + 200.0 * tf.reduce_mean(tf.abs(y - p))):
            model.compile(keras.optimizers.Adam(0.01), loss)
            model.fit(feed, epochs=15, verbose=0)
    assert _tags(run.info.run_id)["tfmon.problems"] == "none"


@pytest.mark.thorough
def test_layers_set_free_are_not_stagnant_when_the_run_is_judged_again() -> None:
    """Each fit is judged by what was known before it, then and later."""
    x, _ = _data()
    noise = np.random.default_rng(3).normal(size=len(x)).astype("float32")
    base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu")])
    model = keras.Sequential([base, keras.layers.Dense(1)])
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, delivery_wait=120.0)
    with mlflow.start_run() as run:
        for trainable in (False, True):
            base.trainable = trainable
            model.compile(keras.optimizers.Adam(1e-3), "mse")
            model.fit(x, noise, epochs=8, verbose=0)
    found = mlflow_tfmon.load_run(run.info.run_id)
    assert "stagnant_weights" not in {one.kind for one in (*found.problems, *diagnose(found))}


def test_what_a_detector_of_the_users_gives_breaks_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Silent(mlflow_tfmon.Detector):
        def detect(self, history: Any) -> Any:
            return None

    class Words(mlflow_tfmon.Detector):
        def detect(self, history: Any) -> Any:
            return ["something is wrong"]

    class Grave(mlflow_tfmon.Detector):
        def detect(self, history: Any) -> Any:
            yield mlflow_tfmon.Problem("grave", "grave", 1, (), "Seen.", "Do.")

    class Between(mlflow_tfmon.Detector):
        """What others are made of."""

    class Numbers(Between):
        def detect(self, history: Any) -> Any:
            loss = history.steps.column("loss")
            if len(loss):
                yield mlflow_tfmon.Problem(
                    "numbers", "warning", np.int64(3), tuple(np.array(["a"])), "Seen.", "Do.",
                    loss.last[-1], np.float32(0.5),
                )  # fmt: skip

    class Other(mlflow_tfmon.Detector):
        """One of the same name, of another package."""

        __module__, __qualname__ = "theirs", Numbers.__qualname__

        def detect(self, history: Any) -> Any:
            yield mlflow_tfmon.Problem("theirs", "warning", 1, (), "Seen.", "Do.")

    run_id, _ = _fit(_model(kernel="zeros"), epochs=2)
    assert set(_tags(run_id)["tfmon.problems"].split(",")) == {"poor_initialization", "numbers", "theirs"}
    said = "\n".join(one.message for one in caplog.records if "failed" in one.message)
    assert "not mlflow_tfmon.Problem" in said
    assert "severity='grave'" in said
    assert "Silent" not in said
    assert "Between" not in said
