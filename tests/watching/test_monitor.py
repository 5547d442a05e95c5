"""Tests of Monitor and MonitorCallback, and of what reaches MLflow during training."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from tests import trainings

pytestmark = pytest.mark.usefixtures("fresh")


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run_id, key)]


def test_a_monitor_around_a_custom_loop() -> None:
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    losses = []
    started = mlflow_tfmon.Monitor(net, monitor="val_accuracy", deep_every=4).start()
    with started as monitor:  # which does not start it again
        run_id = monitor.run_id
        for epoch, accuracy in enumerate([0.5, 0.8, float("nan"), 0.7]):
            losses += [float(step(a, b)) for a, b in trainings.batches(*trainings.data(), 1)]
            monitor.log(temperature=10 - epoch)
            monitor.log_epoch(epoch, {"val_accuracy": accuracy, "val_loss": 1 - accuracy})
    assert run_id is not None
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED" and mlflow.active_run() is None
    recorded = mlflow_tfmon.load_run(run_id)
    np.testing.assert_array_equal(recorded.steps.loss, losses)
    assert recorded.steps.temperature.dropna().to_dict() == {10: 10, 20: 9, 30: 8, 40: 7}
    assert list(recorded.epochs.index) == [0, 1, 2, 3]
    np.testing.assert_array_equal(recorded.epochs.val_accuracy, [0.5, 0.8, np.nan, 0.7])
    np.testing.assert_allclose(recorded.epochs.learning_rate, 0.1, rtol=1e-6)
    assert history(run_id, "val_accuracy") == [(0, 0.5), (1, 0.8), (3, 0.7)]  # the NaN elsewhere
    assert [step for step, _ in history(run_id, "nonfinite/val_accuracy")] == [2]
    assert run.data.metrics["best/val_accuracy"] == 0.8 and run.data.metrics["best/epoch"] == 1
    assert history(run_id, "batch/temperature") == [(10, 10), (20, 9), (30, 8), (40, 7)]


def test_a_monitor_that_is_left_by_an_exception() -> None:
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    for error, status in (
        (KeyboardInterrupt(), "KILLED"),
        (OSError("http://ann:s3cret@e.org is away"), "FAILED"),
    ):
        with pytest.raises(type(error)), mlflow_tfmon.Monitor(net) as monitor:
            run_id = str(monitor.run_id)
            for a, b in trainings.batches(*trainings.data(), 1):
                step(a, b)
            raise error
        run = mlflow.get_run(run_id)
        assert run.info.status == status
        assert len(mlflow_tfmon.load_run(run_id).steps) == 10
    assert run.data.tags["mlflow.note.content"].startswith("OSError: http://e.org is away\n\n")


def test_a_monitor_in_a_run_of_the_users() -> None:
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    with mlflow.start_run() as run:
        with mlflow_tfmon.Monitor(net) as monitor:
            assert monitor.run_id == run.info.run_id
            for a, b in trainings.batches(*trainings.data(), 1):
                step(a, b)
        assert mlflow.get_run(run.info.run_id).info.status == "RUNNING"
        assert len(mlflow_tfmon.load_run(run.info.run_id).steps) == 10  # all is there when the block is left
        mlflow.log_metric("mine", 1.0)


def test_monitors_one_after_the_other_share_no_steps() -> None:
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    runs = []
    for count in (1, 2):
        with mlflow_tfmon.Monitor(net) as monitor:
            runs.append(monitor.run_id)
            for a, b in trainings.batches(*trainings.data(), count):
                step(a, b)
    for a, b in trainings.batches(*trainings.data(), 1):  # unwatched
        step(a, b)
    assert [len(mlflow_tfmon.load_run(str(run)).steps) for run in runs] == [10, 20]


@pytest.mark.slow
def test_the_callback() -> None:
    x, y = trainings.data()
    net = trainings.model()
    net.compile("sgd", trainings.loss(), metrics=["accuracy"])
    net.fit(x, y, epochs=1, verbose=0)  # its train function is compiled unwatched
    callback = mlflow_tfmon.MonitorCallback(monitor="accuracy", deep_every=3)
    fitted = net.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[callback])
    run = mlflow.last_active_run()
    assert run is not None and run.info.status == "FINISHED"
    recorded = mlflow_tfmon.load_run(run.info.run_id)
    assert list(recorded.steps.index) == list(range(1, 21))
    np.testing.assert_allclose(recorded.epochs.accuracy, fitted.history["accuracy"], rtol=1e-6)
    assert run.data.metrics["best/accuracy"] == pytest.approx(max(fitted.history["accuracy"]))
    with mlflow.start_run() as second:
        net.fit(x, y, batch_size=16, epochs=1, verbose=0, callbacks=[callback])  # the same object again
    assert len(mlflow_tfmon.load_run(second.info.run_id).steps) == 10


@pytest.mark.slow
def test_the_callback_beside_autolog_records_all_once() -> None:
    """The fit is recorded as autologging does it, under the callback's settings; an exception ends it."""
    mlflow_tfmon.autolog(extra_tags={"team": "a"}, registered_model_name="digits", monitor="loss")
    x, y = trainings.data()
    net = trainings.model()
    net.compile("sgd", trainings.loss(), metrics=["accuracy"])
    callback = mlflow_tfmon.MonitorCallback(monitor="accuracy", deep_every=3)

    class Interrupts(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    def fit(*more: keras.callbacks.Callback) -> Any:
        return net.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[callback, *more])

    fitted = fit()
    run = mlflow.last_active_run()
    assert run is not None and run.info.status == "FINISHED"
    assert run.data.tags["team"] == "a" and run.data.params["batch_size"] == "16"
    assert len(run.inputs.dataset_inputs) == 1
    client = mlflow.MlflowClient()
    assert "model_summary.txt" in [artifact.path for artifact in client.list_artifacts(run.info.run_id)]
    assert client.search_model_versions("name='digits'")[0].run_id == run.info.run_id
    assert history(run.info.run_id, "loss") == list(
        enumerate(pytest.approx(v) for v in fitted.history["loss"])
    )
    assert run.data.metrics["best/accuracy"] == pytest.approx(max(fitted.history["accuracy"]))
    assert [step for step, _ in history(run.info.run_id, "batch/loss")] == list(range(1, 21))
    layers = mlflow_tfmon.load_run(run.info.run_id).layers
    assert sorted(layers.dropna(subset="weight_norm").step.unique()) == [1, *range(3, 21, 3)]

    with pytest.raises(KeyboardInterrupt):
        fit(Interrupts())
    interrupted = mlflow.last_active_run()
    assert interrupted is not None and interrupted.info.run_id != run.info.run_id
    assert interrupted.info.status == "KILLED" and mlflow.active_run() is None

    with mlflow_tfmon.Monitor(net) as monitor:
        net.fit(x, y, batch_size=16, verbose=0, callbacks=[mlflow_tfmon.MonitorCallback(monitor)])
        run_id = str(monitor.run_id)
    assert mlflow.get_run(run_id).data.params["batch_size"] == "16"
    assert [step for step, _ in history(run_id, "loss")] == [0]

    mlflow_tfmon.autolog(disable=True)
    fit()  # alone again
    alone = mlflow.last_active_run()
    assert alone is not None and alone.info.run_id not in (run.info.run_id, interrupted.info.run_id, run_id)
    assert alone.info.status == "FINISHED" and "batch_size" not in alone.data.params
    assert list(mlflow_tfmon.load_run(alone.info.run_id).steps.index) == list(range(1, 21))


@pytest.mark.thorough
def test_validation_is_no_step_time_and_input_wait_is_measured() -> None:
    """A dataset that holds each batch back, and a validation that takes long."""
    hold, pause = 0.05, 3.0
    x, y = trainings.data(rows=96)

    def slow() -> Iterator[Any]:
        for a, b in trainings.batches(x, y, 1):
            time.sleep(hold)
            yield a, b

    class Validation(keras.callbacks.Callback):
        def on_test_begin(self, logs: Any = None) -> None:
            time.sleep(pause)

    spec = (tf.TensorSpec((None, trainings.FEATURES)), tf.TensorSpec((None,), tf.int64))
    net = trainings.model()
    net.compile("sgd", trainings.loss())
    mlflow_tfmon.autolog(log_models=False)
    dataset = tf.data.Dataset.from_generator(slow, output_signature=spec)
    net.fit(dataset, epochs=3, verbose=0, validation_data=(x, y), callbacks=[Validation()])
    run = mlflow.last_active_run()
    assert run is not None
    steps = mlflow_tfmon.load_run(run.info.run_id).steps
    assert (steps.examples == trainings.BATCH).all()
    # While the step is traced, or the machine is busy, batches are made ahead.
    assert (steps.input_wait > 0.8 * hold).mean() > 0.6
    assert np.isnan(steps.step_time_ms.iloc[0])  # tracing is no step time
    times = steps.step_time_ms.dropna() / 1e3
    assert len(times) >= 15 and (times >= 0.8 * hold).mean() > 0.6
    assert times.sum() < 2 * pause  # as much as the two pauses between the steps alone
    share = steps.input_wait_share.dropna()
    assert share.between(0, 1).all() and share.median() > 0.3
    np.testing.assert_allclose(
        steps.examples_per_second.dropna(), steps.examples[times.index] / times, rtol=1e-6
    )


SIZES = [7, 3, 3, 7, 3, 7, 7, 7, 3, 7, 3, 3]  # of few kinds: XLA compiles each anew


def sized() -> tf.data.Dataset:
    """Batches of the sizes above, which come at once."""
    x, y = trainings.data(rows=sum(SIZES))
    cuts = np.cumsum(SIZES)[:-1]
    spec = (tf.TensorSpec((None, trainings.FEATURES)), tf.TensorSpec((None,), tf.int64))
    batches = list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))
    return tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fit", "fit_xla", "steps_per_execution", "unrolled", "while"])
def test_each_step_has_the_batch_that_it_was_made_of(way: str) -> None:
    net = trainings.model()
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    next(iter(sized()))  # a look at the data: it is no step's
    if way.startswith(("fit", "steps")):
        several = 4 if way == "steps_per_execution" else 1
        net.compile("sgd", trainings.loss(), steps_per_execution=several, jit_compile=way == "fit_xla")
        net.fit(sized().repeat(2), epochs=2, steps_per_epoch=len(SIZES), verbose=0, shuffle=False)
    else:
        step = trainings.custom_step(net, keras.optimizers.SGD(0.1))

        @tf.function
        def several_steps(iterator: Any) -> None:
            if way == "unrolled":
                for _ in range(4):
                    step(*next(iterator))
            else:
                for _ in tf.range(4):
                    step(*next(iterator))

        for _ in range(2):
            iterator = iter(sized())
            for _ in range(3):
                several_steps(iterator)
        mlflow_tfmon.end_run()
    (run,) = mlflow.search_runs(output_format="list")
    steps = mlflow_tfmon.load_run(run.info.run_id).steps
    assert len(steps) == 2 * len(SIZES)
    if (
        way == "steps_per_execution"
    ):  # Keras takes the next batch while the step is made: whose it is can't be told
        assert not {"examples", "input_wait", "input_wait_share", "examples_per_second"} & set(steps)
        return
    assert steps.examples.tolist() == 2 * SIZES
    assert (steps.input_wait >= 0).all()


def test_input_wait_of_a_custom_loop() -> None:
    hold = 0.05
    x, y = trainings.data(rows=96)

    def slow() -> Iterator[Any]:
        for a, b in trainings.batches(x, y, 1):
            time.sleep(hold)
            yield a, b

    spec = (tf.TensorSpec((None, trainings.FEATURES)), tf.TensorSpec((None,), tf.int64))
    dataset = tf.data.Dataset.from_generator(slow, output_signature=spec)
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    with mlflow_tfmon.Monitor(net) as monitor:
        run_id = monitor.run_id
        for a, b in dataset:
            step(a, b)
    steps = mlflow_tfmon.load_run(str(run_id)).steps
    assert (steps.examples == trainings.BATCH).all()
    assert (steps.input_wait > 0.8 * hold).mean() > 0.4  # while the step is traced, batches are made ahead


def test_a_training_without_datasets_has_no_input_figures() -> None:
    """What could not be measured is absent, never zero."""
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    with mlflow_tfmon.Monitor(net) as monitor:
        run_id = monitor.run_id
        for a, b in trainings.batches(*trainings.data(), 1):
            step(a, b)
    assert not {"input_wait", "examples", "input_wait_share"} & set(
        mlflow_tfmon.load_run(str(run_id)).steps.dropna(axis=1, how="all").columns
    )
    assert not any("input" in key for key in mlflow.get_run(str(run_id)).data.metrics)


def test_mlflows_system_metrics_where_they_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    mlflow_tfmon.autolog(log_models=False)
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    for a, b in trainings.batches(*trainings.data(), 1):
        step(a, b)
        time.sleep(0.1)
    mlflow_tfmon.end_run()
    (run,) = mlflow.search_runs(output_format="list")
    assert any(key.startswith("system/") for key in run.data.metrics)


@pytest.mark.slow
def test_no_step_is_lost_at_full_speed() -> None:
    """4,000 steps as fast as they go, by fit and by a custom loop: each once, in order, with the loop's own loss."""
    variable = tf.Variable(1.0)
    optimizer = keras.optimizers.SGD(1e-4)

    @tf.function
    def step(target: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = (variable - target) ** 2
        optimizer.apply_gradients([(tape.gradient(value, variable), variable)])
        return value

    with mlflow_tfmon.Monitor() as monitor:
        run_id = str(monitor.run_id)
        losses = [step(tf.constant(float(i % 7))) for i in range(4000)]
    recorded = mlflow_tfmon.load_run(run_id).steps
    assert list(recorded.index) == list(range(1, 4001))
    np.testing.assert_array_equal(recorded.loss, [float(v) for v in losses])
    assert len(history(run_id, "batch/loss")) <= 320

    x, y = trainings.data(rows=4000)
    net = trainings.model()
    net.compile("sgd", trainings.loss())
    net.fit(x, y, batch_size=1, epochs=1, verbose=0, callbacks=[mlflow_tfmon.MonitorCallback()])
    run = mlflow.last_active_run()
    assert run is not None
    assert list(mlflow_tfmon.load_run(run.info.run_id).steps.index) == list(range(1, 4001))


LIVE = """
import sys, time
import keras, mlflow, tensorflow as tf
import mlflow_tfmon
mlflow.set_tracking_uri(sys.argv[1])
variable, optimizer = tf.Variable(1.0), keras.optimizers.SGD(1e-4)

@tf.function
def step():
    with tf.GradientTape() as tape:
        value = variable ** 2
    optimizer.apply_gradients([(tape.gradient(value, variable), variable)])

with mlflow_tfmon.Monitor() as monitor:
    print(monitor.run_id, flush=True)
    count = 0
    while True:
        step()
        count += 1
        time.sleep(0.01)
        print(count, time.time(), flush=True)
"""


@pytest.mark.thorough
def test_a_step_can_be_read_in_mlflow_while_training_goes_on(store: str) -> None:
    """Within 5 s; and when the trainer is killed, all that was recorded arrives and the run is failed."""
    trainer = subprocess.Popen([sys.executable, "-c", LIVE, store], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    run_id = trainer.stdout.readline().strip()
    done: dict[int, float] = {}
    lags = []
    client = mlflow.MlflowClient()
    until = None
    for line in trainer.stdout:
        step, when = line.split()
        done[int(step)] = float(when)
        if int(step) % 50 == 0:
            points = client.get_metric_history(run_id, "batch/loss")
            if points:
                until = until or time.time() + 8
                latest = max(point.step for point in points)
                lags.append(time.time() - done.get(latest, done[max(done)]))
        if until is not None and time.time() > until:
            break
    trainer.kill()
    assert lags and np.median(lags) < 5
    deadline = time.time() + 60
    while client.get_run(run_id).data.tags.get("tfmon.delivery") != "complete" and time.time() < deadline:
        time.sleep(0.2)
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert "killed or crashed" in run.data.tags["mlflow.note.content"]
    steps = mlflow_tfmon.load_run(run_id).steps
    assert list(steps.index) == list(range(1, len(steps) + 1))
    assert len(steps) >= max(done) - 100  # all but the last moments: the ring is read every 50 ms
