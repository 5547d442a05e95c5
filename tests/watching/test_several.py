"""Tests of several trainings at once, nested or consecutive: no step is lost or goes to the wrong run."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.stream import drain
from mlflow_tfmon.watching import pipeline
from tests import trainings

pytestmark = pytest.mark.usefixtures("fresh")


def compiled(name: str | None = None, **how: Any) -> keras.Model:
    net = trainings.model(name=name)
    net.compile(keras.optimizers.SGD(0.1, **how), trainings.loss())
    return net


def fit(net: keras.Model, epochs: int = 1, **kwargs: Any) -> Any:
    x, y = trainings.data()
    return net.fit(x, y, batch_size=trainings.BATCH, epochs=epochs, verbose=0, shuffle=False, **kwargs)


def loop(step: Any, epochs: int = 1) -> list[float]:
    return [float(step(a, b)) for a, b in trainings.batches(*trainings.data(), epochs)]


def steps(run_id: str | None) -> list[int]:
    return list(mlflow_tfmon.load_run(str(run_id)).steps.index)


@pytest.mark.slow
def test_a_fit_within_a_fit() -> None:
    mlflow_tfmon.autolog(log_models=False)

    class Probe(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            fit(compiled(f"probe{epoch}"))

    fit(compiled("outer"), epochs=2, callbacks=[Probe()])
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED"
    assert steps(run.info.run_id) == list(range(1, 21))
    for name in ("probe0", "probe1"):
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, f"{name}.batch/loss")
        assert [m.step for m in history] == list(range(1, 11))


def test_a_loop_over_a_model_that_was_fitted_before() -> None:
    """The optimizer of the fit lives on, and makes no step more: the loop's is the only one of its run."""
    mlflow_tfmon.autolog(log_models=False, report=False)
    net, x, y = compiled(), *trainings.data()
    fit(net)
    mlflow.end_run()
    optimizer = keras.optimizers.SGD(0.1)
    with mlflow_tfmon.Monitor(net, report=False, monitor="loss") as monitor:
        for epoch in range(2):
            for a, b in trainings.batches(x, y, 1):
                with tf.GradientTape() as tape:
                    loss = trainings.loss()(b, net(a))
                optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)
            monitor.log_epoch(epoch, {"loss": 1.0 - epoch})
        assert monitor.steps == 20
        run_id = str(monitor.run_id)
    run = mlflow_tfmon.load_run(run_id)
    assert list(run.steps.index) == list(range(1, 21)) and list(run.epoch_ends.step) == [10, 20]
    names = mlflow.get_run(run_id).data.metrics
    assert {"batch/loss", "loss"} <= names.keys() and not [one for one in names if one.startswith("model")]


@pytest.mark.slow
def test_two_monitors_within_each_other() -> None:
    outer, inner = trainings.model(name="outer"), trainings.model(name="inner")
    one, two = (trainings.custom_step(net, keras.optimizers.SGD(0.1)) for net in (outer, inner))
    with mlflow_tfmon.Monitor(outer) as monitor:
        loop(one)
        with mlflow_tfmon.Monitor(inner) as second:
            loop(two)
        run_id = monitor.run_id
        assert second.run_id is None and mlflow.get_run(str(run_id)).info.status == "RUNNING"
        loop(one)
    assert steps(run_id) == list(range(1, 21))


def test_a_loop_goes_on_after_a_fit_in_the_same_run() -> None:
    mlflow_tfmon.autolog(log_models=False)
    step = trainings.custom_step(trainings.model(name="looped"), keras.optimizers.SGD(0.1))
    with mlflow.start_run() as run:
        loop(step)
        fit(compiled("fitted"))
        loop(step)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "batch/loss")
    assert [m.step for m in history] == list(range(1, 21))
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "fitted.batch/loss")
    assert [m.step for m in history] == list(range(1, 11))


def test_names_do_not_hang_on_when_the_drain_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    def anew() -> None:
        pipeline.DRAIN.stop()
        pipeline.DRAIN._called.clear()
        pipeline.DRAIN._stopped, pipeline.DRAIN._thread = False, None

    anew()
    with monkeypatch.context() as patched:
        patched.setattr(drain, "_FIRST", 600.0)
        test_a_loop_goes_on_after_a_fit_in_the_same_run()
        anew()


def test_a_loop_and_a_fit_of_one_model_in_one_run() -> None:
    mlflow_tfmon.autolog(log_models=False)
    net = compiled()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    with mlflow.start_run() as run:
        loop(step, 20)
        fit(net)
    assert steps(run.info.run_id) == list(range(1, 211))


def test_autolog_called_again_in_mid_loop() -> None:
    step = trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.1))
    with mlflow.start_run() as run:
        for _ in range(5):
            mlflow_tfmon.autolog()
            loop(step, 3)
    assert steps(run.info.run_id) == list(range(1, 151))


def test_nested_runs_with_one_traced_step() -> None:
    mlflow_tfmon.autolog()
    step = trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.1))
    with mlflow.start_run() as parent:
        first = loop(step)
        with mlflow.start_run(nested=True) as child:
            second = loop(step)
        third = loop(step)
    np.testing.assert_array_equal(mlflow_tfmon.load_run(parent.info.run_id).steps.loss, first + third)
    np.testing.assert_array_equal(mlflow_tfmon.load_run(child.info.run_id).steps.loss, second)


@pytest.mark.parametrize("known", [False, True])
def test_a_run_does_not_take_what_was_trained_before_it_began(known: bool) -> None:
    mlflow_tfmon.autolog()
    step = trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.1))
    with mlflow.start_run() as run:
        first = loop(step)
    later = mlflow.MlflowClient().create_run("0").info.run_id if known else None
    second = loop(step)
    with mlflow.start_run(run_id=later) as other:
        third = loop(step)
    mlflow_tfmon.end_run()
    given = {run.info.run_id, other.info.run_id}
    (made,) = (one for one in mlflow.search_runs(output_format="list") if one.info.run_id not in given)
    for run_id, losses in ((run.info.run_id, first), (made.info.run_id, second), (other.info.run_id, third)):
        np.testing.assert_array_equal(mlflow_tfmon.load_run(run_id).steps.loss, losses)
    assert mlflow.get_run(made.info.run_id).info.status == "FINISHED"


def test_a_slow_loop_is_live_before_its_second_optimizer_comes() -> None:
    mlflow_tfmon.autolog()
    nets = [trainings.model(name=name) for name in ("critic", "generator")]
    critic, generator = (trainings.custom_step(net, keras.optimizers.SGD(0.1)) for net in nets)
    batch = next(trainings.batches(*trainings.data(), 1))
    with mlflow.start_run() as run:
        losses = [float(critic(*batch))]
        while "batch/loss" not in mlflow.get_run(run.info.run_id).data.metrics:
            time.sleep(0.1)
        losses += [float(critic(*batch)) for _ in range(2)]
        other = float(generator(*batch))
        losses.append(float(critic(*batch)))
    recorded = mlflow_tfmon.load_run(run.info.run_id)
    assert recorded.streams == ["critic.", "generator."]
    np.testing.assert_array_equal(recorded.steps["critic.loss"], losses)
    np.testing.assert_array_equal(recorded.steps["generator.loss"].dropna(), [other])
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "critic.batch/loss")
    assert [(m.step, m.value) for m in history] == list(enumerate(losses, 1))


@pytest.mark.thorough
def test_models_of_one_name_in_one_run() -> None:
    mlflow_tfmon.autolog(log_datasets=False)
    nets = [compiled("fold") for _ in range(3)]
    with mlflow.start_run() as run:
        for net in nets:
            fit(net)
    client = mlflow.MlflowClient()
    tags, x = client.get_run(run.info.run_id).data.tags, trainings.data()[0]
    for prefix, net in zip(("", "fold.", "fold_2."), nets, strict=True):
        kept = mlflow.tensorflow.load_model(f"models:/{tags[f'tfmon.{prefix}best_model']}")
        np.testing.assert_array_equal(kept.predict(x, verbose=0), net.predict(x, verbose=0))
        for key, expected in (("batch/loss", list(range(1, 11))), ("loss", [0])):
            assert [m.step for m in client.get_metric_history(run.info.run_id, prefix + key)] == expected
    assert steps(run.info.run_id) == list(range(1, 11))


@pytest.mark.slow
def test_two_fits_within_one_monitor_and_one_of_them_interrupted() -> None:
    mlflow_tfmon.autolog(log_models=False)
    net = compiled()

    class Interrupts(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    with mlflow_tfmon.Monitor(net) as monitor:
        run_id = str(monitor.run_id)
        with pytest.raises(KeyboardInterrupt):
            fit(net, callbacks=[Interrupts()])
        fit(net, epochs=2)
        fit(net)
    assert steps(run_id) == list(range(1, 41))
    epochs = [m.step for m in mlflow.MlflowClient().get_metric_history(run_id, "loss")]
    assert epochs[-3:] == [epochs[-3], epochs[-3] + 1, epochs[-3] + 2]


def test_disabled_by_a_callback_of_the_fit() -> None:
    mlflow_tfmon.autolog(log_models=False)

    class Disables(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 3:
                mlflow_tfmon.autolog(disable=True)

    net = compiled()
    fit(net, epochs=2, callbacks=[Disables()])
    assert net.train_function is None  # built anew, without probes, by the next fit


def test_a_monitor_leaves_autologs_probes_in() -> None:
    monitor = mlflow_tfmon.Monitor(trainings.model()).start()
    mlflow_tfmon.autolog()
    monitor.end()
    with mlflow.start_run() as run:
        loop(trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.1)))
    assert steps(run.info.run_id) == list(range(1, 11))


def test_a_journal_that_fails_for_a_while_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow_tfmon.journal.journal import Journal

    monkeypatch.delenv("MLFLOW_TFMON_RAISE_ERRORS")
    append, failures = Journal.append, [0]

    def locked(self: Any, records: Any) -> int:
        if any(type(r).__name__ == "Steps" for r in records) and failures[0] < 3:
            failures[0] += 1
            raise sqlite3.OperationalError("database is locked")
        return append(self, records)

    monkeypatch.setattr(Journal, "append", locked)
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    with mlflow_tfmon.Monitor(net) as monitor:
        losses = loop(step, 50)
        run_id = monitor.run_id
        while failures[0] < 3:
            losses += loop(step)
    np.testing.assert_array_equal(mlflow_tfmon.load_run(str(run_id)).steps.loss, losses)


@pytest.mark.parametrize("how", ["mixed_float16", "loss_scale_factor"])
def test_the_loss_is_not_the_scaled_one(how: str) -> None:
    mlflow_tfmon.autolog(log_models=False)
    try:
        if how == "mixed_float16":
            keras.config.set_dtype_policy("mixed_float16")
        net = compiled(**({} if how == "mixed_float16" else {"loss_scale_factor": 1024.0}))
        history = fit(net)
    finally:
        keras.config.set_dtype_policy("float32")
    run = mlflow.last_active_run()
    assert run is not None
    recorded = mlflow_tfmon.load_run(run.info.run_id).steps
    # Batches of equal size: Keras's epoch loss is the mean of the steps' losses.
    np.testing.assert_allclose(recorded.loss.mean(), history.history["loss"][0], rtol=1e-5)


def test_gradients_that_are_no_tapes_have_no_loss() -> None:
    mlflow_tfmon.autolog(log_models=False)
    net = compiled()
    criterion, optimizer = trainings.loss(), keras.optimizers.SGD(0.1)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        value = criterion(y, net(x, training=True))
        weights = [v.value for v in net.trainable_variables]
        optimizer.apply_gradients(zip(tf.gradients(value, weights), net.trainable_variables, strict=True))
        return value

    fit(net)
    with mlflow.start_run() as run:
        loop(step)
    recorded = mlflow_tfmon.load_run(run.info.run_id).steps
    assert list(recorded.index) == list(range(1, 11))
    assert "loss" not in recorded or recorded.loss.isna().all()


def test_another_run_measures_weights_as_often_as_it_wants() -> None:
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    for every in (4, 3):
        with mlflow_tfmon.Monitor(net, deep_every=every) as monitor:
            run_id = str(monitor.run_id)
            loop(step)
        layers = mlflow_tfmon.load_run(run_id).layers
        deep = sorted(layers.dropna(subset="weight_norm").step.unique())
        assert deep == [1, *range(every, 11, every)]


SHORT = """
import sys
import keras, mlflow, numpy as np
import mlflow_tfmon
mlflow.set_tracking_uri(sys.argv[1])
mlflow_tfmon.autolog(log_models=False)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x, y = np.ones((8, 2)), np.ones((8, 1))
model.fit(x, y, epochs=1, verbose=0)
for _ in range(20):
    model.train_on_batch(x, y)
"""


@pytest.mark.thorough
def test_what_is_trained_just_before_the_end_of_the_script(store: str) -> None:
    subprocess.run([sys.executable, "-c", SHORT, store], check=True)
    fitted, batches = mlflow.search_runs(output_format="list", order_by=["attributes.start_time ASC"])
    assert (len(steps(fitted.info.run_id)), len(steps(batches.info.run_id))) == (1, 20)
    assert {fitted.info.status, batches.info.status} == {"FINISHED"}
