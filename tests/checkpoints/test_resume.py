"""Tests of resumed trainings: same weights as uninterrupted ones, and one training in MLflow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.errors import SettingError
from mlflow_tfmon.facts import model_order
from mlflow_tfmon.reading.recorded import Seam
from mlflow_tfmon.tags import pointer

EPOCHS, STEPS = 6, 6  # a training that is not interrupted
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(STEPS * 8, 4)).astype("float32"), RNG.integers(0, 2, STEPS * 8)
pytestmark = pytest.mark.usefixtures("fresh")


class Interrupted(Exception):
    pass


class Interrupt(keras.callbacks.Callback):
    """Ends a fit in the middle of an epoch, at a step counted from 1."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted


def model(units: int = 8) -> keras.Model:
    keras.utils.set_random_seed(3)
    hidden, out = keras.layers.Dense(units, "relu", name="hidden"), keras.layers.Dense(2, name="out")
    return keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dropout(0.3), out], name="net")


def compiled(units: int = 8) -> keras.Model:
    net = model(units)
    net.compile(keras.optimizers.Adam(0.05), loss(), metrics=["accuracy"])
    return net


def loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(len(X), seed=5).batch(8).prefetch(2)


def callbacks() -> list[keras.callbacks.Callback]:
    return [
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=0.02),
        keras.callbacks.EarlyStopping("loss", patience=4, restore_best_weights=True, min_delta=0.3),
    ]


def fit(net: keras.Model, *more: keras.callbacks.Callback) -> Any:
    return net.fit(dataset(), epochs=EPOCHS, callbacks=[*callbacks(), *more], verbose=0)


def values(net: keras.Model, optimizer: Any = None) -> list[np.ndarray]:
    optimizer = net.optimizer if optimizer is None else optimizer
    return [one.numpy() for one in (*net.variables, *optimizer.variables)]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient()


def the_run() -> Any:
    (found,) = client().search_runs(["0"])
    return found


def check_as_one(run: Any, steps: int, epochs: int) -> mlflow_tfmon.RecordedRun:
    """Every step and epoch of a run is there once, in the files and among the metrics."""
    client = mlflow.MlflowClient()
    assert run.data.tags["tfmon.delivery"] == "complete"
    recorded = mlflow_tfmon.load_run(run.info.run_id)
    assert recorded.steps.index.tolist() == list(range(1, steps + 1))
    assert recorded.epochs.index.tolist() == list(range(epochs))
    for key in run.data.metrics:
        points = [point.step for point in client.get_metric_history(run.info.run_id, key)]
        assert len(points) == len(set(points)), key
    history = client.get_metric_history(run.info.run_id, "batch/loss")
    assert sorted(point.step for point in history) == list(range(1, steps + 1))
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in history) == list(range(epochs))
    return recorded


def test_a_fit_that_was_interrupted_goes_on_as_if_it_had_not_been() -> None:
    whole = compiled()
    expected = fit(whole).history
    mlflow_tfmon.autolog(deep_every=4)
    with pytest.raises(Interrupted):
        fit(compiled(), Interrupt(3 * STEPS + 2))
    first = the_run()
    assert first.info.status == "FAILED"
    mlflow_tfmon.autolog(deep_every=4, resume=first.info.run_id)
    net = compiled()
    history = fit(net)
    assert history.epoch == [3, 4]
    assert same(values(net), values(whole))
    run = the_run()
    assert (run.info.run_id, run.info.status) == (first.info.run_id, "FINISHED")
    recorded = check_as_one(run, 5 * STEPS, 5)  # then EarlyStopping had waited for long enough
    np.testing.assert_array_equal(recorded.epochs["loss"], expected["loss"])
    np.testing.assert_allclose(recorded.epochs["learning_rate"], expected["learning_rate"], rtol=1e-6)
    deep = recorded.layers.dropna(subset="weight_norm")["step"].unique().tolist()
    assert deep == [1, *range(4, 5 * STEPS + 1, 4)]
    drawn = recorded.histograms.groupby("kind")["step"].unique()
    assert drawn["gradient"].tolist() == deep
    assert sorted(drawn["weight"]) == sorted({*deep, *range(STEPS, 5 * STEPS + 1, STEPS)})  # and epoch ends
    assert recorded.seams == (Seam(3 * STEPS + 1, "resumed"),)
    assert recorded.activations["epoch"].unique().tolist() == list(range(5))
    assert run.data.metrics["best/loss"] == min(expected["loss"])
    assert run.data.metrics["best/epoch"] == int(np.argmin(expected["loss"]))
    assert run.data.tags["tfmon.resumed"] == f"after step {3 * STEPS}, with epoch 3"
    assert "tfmon.seams" not in run.data.tags
    kept = {run.data.tags[pointer(f"{name}_model")] for name in ("best", "last", "resume")}
    left = {one.model_id for one in mlflow.MlflowClient().search_logged_models(["0"])}
    assert left == kept | {run.data.tags["mlflow.tfmon.model"]}
    fit(net)  # a further one begins anew
    assert mlflow.MlflowClient().search_runs(["0"])[0].info.run_id != run.info.run_id


def loop(
    monitor: mlflow_tfmon.Monitor, net: keras.Model, optimizer: Any, interrupt_at: int | None = None
) -> None:
    """A hand-written loop whose order of data comes of NumPy's random numbers."""
    loss_of = loss()

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss_of(y, net(x, training=True))
        optimizer.apply(tape.gradient(value, net.trainable_variables), net.trainable_variables)
        return value

    done = monitor.first_epoch * STEPS
    for epoch in range(monitor.first_epoch, EPOCHS):
        order = np.random.permutation(len(X)).reshape(STEPS, 8)
        for rows in order:
            step(tf.constant(X[rows]), tf.constant(Y[rows]))
            done += 1
            if done == interrupt_at:
                raise Interrupted
        monitor.log(rate=0.5 / (epoch + 1))
        monitor.log_epoch(epoch, {"loss": 1.0 / (epoch + 1)})


def adam() -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.05, 5, 0.8))


@pytest.mark.thorough
def test_a_loop_that_was_interrupted_goes_on_and_so_does_a_further_recording(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, own = model(), adam()
    np.random.seed(11)
    with mlflow_tfmon.Monitor(whole, checkpoint=False, extra_tags={"whole": "yes"}) as monitor:
        loop(monitor, whole, own)
    client = mlflow.MlflowClient()
    client.delete_run(the_run().info.run_id)
    net, optimizer = model(), adam()
    np.random.seed(11)
    with pytest.raises(Interrupted), mlflow_tfmon.Monitor(net) as monitor:
        loop(monitor, net, optimizer, 2 * STEPS + 3)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 3600.0)  # it was set back meanwhile
    net, optimizer = model(), adam()
    np.random.seed(12)  # whatever it is
    with mlflow_tfmon.Monitor(net, optimizer=optimizer, resume="latest") as monitor:
        assert monitor.first_epoch == 2
        loop(monitor, net, optimizer)
    assert same(values(net, optimizer), values(whole, own))
    run = the_run()
    recorded = check_as_one(run, EPOCHS * STEPS, EPOCHS)
    assert recorded.steps["rate"].dropna().index.tolist() == [STEPS * (e + 1) for e in range(EPOCHS)]
    expected = [0.05 * 0.8 ** (step / 5) for step in range(EPOCHS * STEPS)]
    np.testing.assert_allclose(recorded.steps["learning_rate"], expected, rtol=1e-5)

    # Another process trains on in the run: nothing of what was there is lost, and its steps follow.
    tags = dict(run.data.tags)
    problems = client.download_artifacts(run.info.run_id, "tfmon/problems.json")
    before = Path(problems).read_text("utf-8")
    monkeypatch.setattr(time, "time", lambda: clock() - 7200.0)
    with mlflow.start_run(run_id=run.info.run_id), mlflow_tfmon.Monitor(net, checkpoint=False) as monitor:
        loop(monitor, net, optimizer)
    run = client.get_run(run.info.run_id)
    check_as_one(run, 2 * EPOCHS * STEPS, 2 * EPOCHS)
    assert run.data.tags["mlflow.tfmon.last_model"] == tags["mlflow.tfmon.last_model"]
    after = Path(client.download_artifacts(run.info.run_id, "tfmon/problems.json")).read_text("utf-8")
    assert {one["kind"] for one in json.loads(before)} <= {one["kind"] for one in json.loads(after)}


def two_phases(net: keras.Model, *more: keras.callbacks.Callback) -> None:
    """Fine-tuning: the last layer first, then all of them."""
    for trainable, rate, epochs in ((False, 0.05, 3), (True, 0.01, 4)):
        net.layers[0].trainable = trainable
        net.compile(keras.optimizers.Adam(rate), loss(), metrics=["accuracy"])
        net.fit(dataset(), epochs=epochs, callbacks=list(more), verbose=0)


@pytest.mark.thorough
def test_of_two_fits_in_a_run_the_second_goes_on_and_the_first_is_passed_over(caplog: Any) -> None:
    whole = model()
    two_phases(whole)
    mlflow_tfmon.autolog(resume="latest", report=False)
    with pytest.raises(Interrupted), mlflow.start_run() as first:
        two_phases(model(), Interrupt(5 * STEPS + 2))  # in the second one's third epoch
    mlflow_tfmon.autolog(resume="latest", report=False)
    net = model()
    with caplog.at_level("INFO", "mlflow_tfmon"), mlflow.start_run() as other:
        two_phases(net)
    assert f"resumes in run {first.info.run_id}" in caplog.text
    assert f"mlflow.start_run(run_id={first.info.run_id!r})" in caplog.text
    assert other.info.run_id in caplog.text
    assert same(values(net), values(whole))
    run = mlflow.get_run(first.info.run_id)
    assert run.info.status == "FINISHED"
    check_as_one(run, 7 * STEPS, 7)
    assert run.data.tags["tfmon.seams"] == str(3 * STEPS + 1)
    assert run.data.tags["tfmon.resumed"] == f"after step {5 * STEPS}, with epoch 2"

    mlflow_tfmon.autolog(report=False)  # a Monitor has the model go on at once: it can pass over nothing
    net = model()
    net.compile(keras.optimizers.Adam(0.05), loss())
    with (
        pytest.raises(SettingError, match=r"in fit 2 of the model, but this is fit 1; .*autolog\(resume"),
        mlflow_tfmon.Monitor(net, resume=first.info.run_id),
    ):
        net.fit(dataset(), epochs=3, verbose=0)


@pytest.mark.thorough
def test_what_follows_a_resumed_fit_is_in_its_run_where_that_is_the_active_one() -> None:
    whole = model()
    two_phases(whole)
    mlflow_tfmon.autolog()
    with pytest.raises(Interrupted), mlflow.start_run() as first:
        two_phases(model(), Interrupt(STEPS + 2))
    mlflow_tfmon.autolog(resume="latest")
    net = model()
    with mlflow.start_run(run_id=first.info.run_id):
        two_phases(net)
    assert same(values(net), values(whole))
    check_as_one(the_run(), 7 * STEPS, 7)


def folds(*more: keras.callbacks.Callback) -> list[keras.Model]:
    """Three models of one name and shape, each trained on data of its own, in a run of its own."""
    nets = []
    for fold in range(3):
        nets.append(compiled())
        nets[-1].fit(X + fold, Y, batch_size=8, epochs=2, shuffle=False, callbacks=list(more), verbose=0)
    return nets


@pytest.mark.thorough
def test_of_several_models_the_one_that_was_interrupted_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def in_another_process() -> None:
        for name, value in (
            ("PROCESS", f"{model_order.PROCESS}+"),
            ("_places", {}),
            ("_fits", {}),
            ("_models", 0),
        ):
            monkeypatch.setattr(model_order, name, value)

    whole = folds()
    in_another_process()
    mlflow_tfmon.autolog()
    with pytest.raises(Interrupted):
        folds(Interrupt(5 * STEPS + 2))
    (interrupted, *before) = client().search_runs(["0"], order_by=["attributes.start_time DESC"])
    assert (interrupted.info.status, len(before)) == ("FAILED", 2)
    in_another_process()
    mlflow_tfmon.autolog(resume="latest")
    with caplog.at_level("WARNING", "mlflow_tfmon"):
        nets = folds()
    said = [one.getMessage() for one in caplog.records if "starts from scratch" in one.getMessage()]
    assert ["is model 1:" in said[0], "is model 2:" in said[1], len(said)] == [True, True, 2], said
    for net, reference in zip(nets, whole, strict=True):
        assert same(values(net), values(reference))
    runs = {one.info.run_id: one for one in client().search_runs(["0"])}
    assert len(runs) == 5
    run = runs[interrupted.info.run_id]
    assert run.data.tags["tfmon.resumed"] == f"after step {STEPS}, with epoch 1"
    check_as_one(run, 2 * STEPS, 2)
    in_another_process()
    caplog.clear()
    mlflow_tfmon.autolog(resume=run.info.run_id)  # whoever names the run means it
    with caplog.at_level("WARNING", "mlflow_tfmon"):
        net = compiled()
        assert net.fit(X, Y, epochs=2, verbose=0).epoch == []
    assert "resumes from there anyway" in caplog.text
    assert same(values(net), values(whole[2]))


@pytest.mark.slow
def test_a_loop_that_autolog_alone_watches_begins_anew_and_says_how_to_go_on(caplog: Any) -> None:
    net, optimizer = model(), adam()
    with pytest.raises(Interrupted), mlflow_tfmon.Monitor(net, optimizer=optimizer, report=False) as monitor:
        run_id = str(monitor.run_id)
        loop(monitor, net, optimizer, 2 * STEPS + 3)
    before = dict(mlflow.get_run(run_id).data.tags)
    with caplog.at_level("INFO", "mlflow_tfmon"):
        mlflow_tfmon.autolog(resume="latest", report=False)
        net, optimizer = model(), adam()
        with tf.GradientTape() as tape:
            value = loss()(Y, net(X, training=True))
        optimizer.apply(tape.gradient(value, net.trainable_variables), net.trainable_variables)
        mlflow_tfmon.end_run()
        said = [one.getMessage() for one in caplog.records if "starts from scratch" in one.getMessage()]
        assert len(said) == 1 and "Monitor(model, optimizer=optimizer, resume='latest')" in said[0], said
        mlflow_tfmon.autolog(disable=True)
        (anew,) = (one.info.run_id for one in client().search_runs(["0"]) if one.info.run_id != run_id)
        assert dict(mlflow.get_run(run_id).data.tags) == before
        client().set_terminated(anew, "FAILED")  # as one that was killed
        mlflow_tfmon.autolog(resume="latest")
        assert f"run {anew} is unfinished, but has no checkpoint" in caplog.text
    net, optimizer = model(), adam()  # nothing is lost
    with mlflow_tfmon.Monitor(net, optimizer=optimizer, resume=run_id, report=False) as monitor:
        assert monitor.first_epoch == 2


@pytest.mark.slow
def test_what_cannot_be_resumed_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(call: Callable[[], Any], *says: str) -> None:
        with pytest.raises(SettingError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert all(text in str(caught.value) for text in says), caught.value

    net = compiled()
    refused(lambda: mlflow_tfmon.autolog(resume="f" * 32), "no such run")
    refused(lambda: mlflow_tfmon.autolog(resume=""), 'must be the id of a run, or "latest"')
    refused(lambda: mlflow_tfmon.Monitor(resume="latest"), "Monitor(model, resume=...)")
    client = mlflow.MlflowClient()
    unwatched = client.create_run("0").info.run_id
    refused(lambda: mlflow_tfmon.MonitorCallback(resume=unwatched), unwatched, "no checkpoint")
    client.delete_run(unwatched)
    monkeypatch.setenv("MLFLOW_TFMON_RESUME", "latest")
    mlflow_tfmon.autolog()  # nothing to resume: a new training begins
    monkeypatch.delenv("MLFLOW_TFMON_RESUME")
    assert len(net.fit(X, Y, epochs=1, verbose=0).history["loss"]) == 1
    run_id = the_run().info.run_id
    with mlflow_tfmon.Monitor(net, run_id=run_id, report=False):
        refused(lambda: mlflow_tfmon.autolog(resume=run_id), "is being trained")
    mlflow_tfmon.autolog(resume=run_id)
    kept = {tag: value for tag, value in the_run().data.tags.items() if tag.endswith("_model")}
    with (
        monkeypatch.context() as as_users_are
    ):  # out of MLflow's test mode no fit begins with other weights either
        as_users_are.setenv("MLFLOW_AUTOLOGGING_TESTING", "false")
        as_users_are.delenv("MLFLOW_TFMON_RAISE_ERRORS")
        refused(lambda: compiled(units=9).fit(X, Y, verbose=0), run_id, "hidden/kernel", "(4, 9)", "(4, 8)")
    mlflow_tfmon.autolog(disable=True)
    assert kept == {tag: value for tag, value in the_run().data.tags.items() if tag.endswith("_model")}
    sgd = model()
    sgd.compile("sgd", loss())
    refused(lambda: mlflow_tfmon.Monitor(sgd, resume=run_id).start(), "the optimizer differs")
    refused(lambda: mlflow_tfmon.Monitor(model(), resume=run_id).start(), "call compile first")
    both = compiled()
    refused(
        lambda: mlflow_tfmon.Monitor(both, optimizer=adam(), resume=run_id).start(),
        "0 optimizers besides the model's",
    )
