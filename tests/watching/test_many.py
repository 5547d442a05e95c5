"""Tests of many optimizers and models in one process: their counted cost does not grow with their number."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.probes import activations, step
from mlflow_tfmon.probes.step import StepProbe
from mlflow_tfmon.stream import records
from mlflow_tfmon.watching import end_budget, fitting, pipeline
from tests import trainings


@pytest.mark.slow
def test_an_optimizer_for_each_example(
    fresh: None, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    traced: list[StepProbe] = []
    record = StepProbe._record

    def recorded(self: StepProbe, *args: object) -> None:
        traced.append(self)
        record(self, *args)

    monkeypatch.setattr(StepProbe, "_record", recorded)
    mlflow_tfmon.autolog(log_models=False)
    threads: set[int] = set()
    files: set[int] = set()
    taps = len(pipeline.DRAIN._taps)  # of other tests

    def example() -> None:
        offset, optimizer = tf.Variable(tf.zeros([1, 4])), keras.optimizers.SGD(0.1)
        for _ in range(2):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((offset - 1.0) ** 2)
            optimizer.apply_gradients([(tape.gradient(loss, offset), offset)])

    with caplog.at_level(logging.INFO), mlflow.start_run():
        for number in range(12):
            example()
            gc.collect()
            if number >= 2:
                threads.add(threading.active_count())
                files.add(len(list(home.rglob("*.db"))))
                assert len(pipeline.DRAIN._taps) <= taps + 2
    # Once a size of rings, which are smaller where many are alive, such as the garbage of other tests.
    assert len(traced) == len({probe.ring.capacity for probe in traced}) <= 3
    assert len(threads) == 1 and len(files) == 1
    assert sum("can't be measured" in line for line in caplog.messages) == 1
    assert not any("retracing" in line for line in caplog.messages)


@pytest.mark.slow
def test_fits_of_one_step_over_and_over(
    fresh: None, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their ends take a share of what they take: each would save the model, look at all layers and wait for MLflow."""
    count = 12
    done: dict[str, int] = {"saved": 0, "waited": 0, "looked": 0}
    appended: list[Any] = []

    def counted(name: str, original: Any) -> Any:
        def call(*args: Any, **how: Any) -> Any:
            done[name] += 1
            return original(*args, **how)

        return call

    monkeypatch.setattr(fitting, "save_model", counted("saved", fitting.save_model))
    monkeypatch.setattr(pipeline.Pipeline, "_wait", counted("waited", pipeline.Pipeline._wait))
    monkeypatch.setattr(
        activations.ActivationProbe, "__init__", counted("looked", activations.ActivationProbe.__init__)
    )
    append = pipeline.Pipeline._append

    def noted(self: Any, out: Any) -> None:
        appended.extend(out)
        append(self, out)

    monkeypatch.setattr(pipeline.Pipeline, "_append", noted)
    monkeypatch.setattr(end_budget, "_MAX_SHARE", 0.0)  # so that no time decides
    x, y = np.ones((16, 4), "float32"), np.ones((16, 1), "float32")
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    net.compile("sgd", "mse")
    mlflow_tfmon.autolog()
    threads: set[int] = set()
    with caplog.at_level(logging.INFO), mlflow.start_run() as run:
        for number in range(count):
            net.fit(x, y, verbose=0)
            if number >= 3:
                # That of the checkpoints, for which no fit waits, lives while there are any to write.
                threads.add(sum("checkpoints" not in one.name for one in threading.enumerate()))
        kinds = Counter(type(one).__name__ for one in appended)
        assert kinds["DatasetUsed"] == 1  # what stays the same is told once
        assert sum(bool(one.params) for one in appended if isinstance(one, records.Facts)) == 1
        assert len(appended) <= 13 * count, kinds
        assert done == {"saved": 3, "waited": 3, "looked": 1}
        assert len(mlflow_tfmon.load_run(run.info.run_id).steps) == count  # it waits for what was put off
    assert done == {"saved": 4, "waited": 4, "looked": 1}  # and the run's end for the rest
    files = mlflow.artifacts.list_artifacts(run_id=run.info.run_id, artifact_path="tfmon/telemetry")
    assert len(files) < 5 * count  # some for each time that MLflow is brought up to date, not for each fit
    assert len(threads) == 1 and len(list(home.rglob("*.db"))) <= 1
    assert 4 <= sum("recorded " in line for line in caplog.messages) <= 6  # one a minute, on a busy machine
    assert not any("retracing" in line for line in caplog.messages)
    last = mlflow.get_logged_model(mlflow.get_run(run.info.run_id).data.tags["mlflow.tfmon.model"])
    assert [metric.step for metric in last.metrics] == [count - 1]


def test_what_is_put_off_comes_once_trainings_are_long_enough() -> None:
    thrift = end_budget.Thrift()
    for _ in range(3):
        assert thrift.may_spend(0.01)  # the first ones end with all there is
        with thrift.spending():
            time.sleep(0.02)
    assert not thrift.may_spend(0.01)
    assert thrift.may_spend(3600.0)


@pytest.mark.thorough
def test_a_model_after_the_other(fresh: None, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As k-fold, or a search, has them: a run each."""
    x, y = np.ones((16, 4), "float32"), np.ones((16, 1), "float32")
    mlflow_tfmon.autolog(log_models=False)
    threads: set[int] = set()
    alive = weakref.WeakSet()  # type: ignore[var-annotated]
    taps = len(pipeline.DRAIN._taps)  # of other tests

    def fold() -> None:
        net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        net.compile("sgd", "mse")
        net.fit(x, y, verbose=0)
        alive.add(net)

    with caplog.at_level(logging.INFO):
        for number in range(5):
            with mlflow.start_run():
                fold()
            keras.backend.clear_session()
            gc.collect()
            if number >= 2:
                threads.add(threading.active_count())
                assert len(alive) <= 1
                assert len(pipeline.DRAIN._taps) <= taps + 2
                assert len(list(step.all_rings())) <= 2
    assert len(threads) == 1
    # Of Keras's own train function TensorFlow warns unwatched, too.
    told = [line for line in caplog.messages if "retracing" in line and "TensorFlowTrainer" not in line]
    assert told == []
    assert sum("no validation data" in line for line in caplog.messages) <= 1


@pytest.mark.slow
def test_each_of_several_models_fitted_in_one_run_is_logged_as_its_fit_left_it(fresh: None) -> None:
    """Short fits put the saving off; that of another model is not left out for it."""
    mlflow_tfmon.autolog(checkpoint=False, report=False)
    x, y = trainings.data()
    biases = []
    with mlflow.start_run() as run:
        for seed in range(5):
            net = trainings.model(seed)
            net.compile("sgd", trainings.loss())
            net.fit(x[:16], y[:16], verbose=0)
            biases.append(net.layers[-1].bias.numpy())
    mlflow_tfmon.load_run(run.info.run_id)  # waits until all has arrived
    found = mlflow.MlflowClient().search_logged_models(
        ["0"], filter_string=f"source_run_id = '{run.info.run_id}'"
    )
    saved = [mlflow.tensorflow.load_model(one.model_uri).layers[-1].bias.numpy() for one in found]
    assert len(saved) == len(biases)
    for bias in biases:
        assert any(np.array_equal(bias, other) for other in saved)
