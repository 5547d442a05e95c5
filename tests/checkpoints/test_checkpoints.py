"""Tests of the best and the last checkpoint: their choice, their content, and that no training waits for them."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.checkpoints.folder import WEIGHTS, Writer
from mlflow_tfmon.checkpoints.snapshot import Camera, ChangedError, variables_of
from mlflow_tfmon.checkpoints.writer import Queue
from mlflow_tfmon.errors import logger
from mlflow_tfmon.tags import pointer
from tests import trainings

pytestmark = pytest.mark.usefixtures("fresh")
X, Y = trainings.data()
UNSEEN = trainings.data(seed=5)


def net() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((trainings.FEATURES,)), layers.Dense(16, "relu"), layers.BatchNormalization(),
         layers.Dropout(0.2), layers.Dense(trainings.CLASSES)]
    )  # fmt: skip
    model.compile(keras.optimizers.Adam(0.05), trainings.loss(), metrics=["accuracy"])
    return model


def fit(model: keras.Model, epochs: int = 5, callbacks: Any = (), **how: Any) -> Any:
    how = {"x": X, "y": Y, "validation_data": UNSEEN, **how}
    return model.fit(batch_size=16, epochs=epochs, verbose=0, callbacks=[*callbacks], **how)


def weights(model: keras.Model) -> list[np.ndarray]:
    optimizer = [variable.numpy() for variable in model.optimizer.variables] if model.optimizer else []
    return [variable.numpy() for variable in model.weights] + optimizer


def tags(run_id: str) -> dict[str, str]:
    return dict(mlflow.get_run(run_id).data.tags)


def checkpoints(run_id: str) -> list[Any]:
    found = mlflow.search_logged_models(
        filter_string=f"source_run_id='{run_id}'",
        output_format="list",
        order_by=[{"field_name": "creation_time"}],
    )
    return [one for one in found if one.name in ("best", "last")]


@pytest.fixture
def every_epoch(tmp_path: Path) -> keras.callbacks.Callback:
    """Keras's own checkpoints, the reference: one an epoch."""
    return keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")


def test_the_best_and_the_last_of_a_fit(tmp_path: Path, every_epoch: Any) -> None:
    check_best_and_last(tmp_path, every_epoch)


def check_best_and_last(tmp_path: Path, every_epoch: Any) -> None:
    unwatched = net()
    fit(unwatched)
    mlflow_tfmon.autolog(registered_model_name="digits")
    model = net()
    history = fit(model, callbacks=[every_epoch]).history["val_loss"]
    for ours, theirs in zip(weights(model), weights(unwatched), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    run_id = mlflow.last_active_run().info.run_id
    best = int(np.argmin(history))
    assert 0 < best < 4, history  # or the test would show less
    pointers = [tags(run_id)[pointer(f"{kind}_model")] for kind in ("best", "last")]
    for model_id, epoch in zip(pointers, (best, 4), strict=True):
        reference = keras.models.load_model(tmp_path / f"{epoch + 1}.keras")
        loaded = mlflow.tensorflow.load_model(f"models:/{model_id}")
        np.testing.assert_array_equal(loaded.predict(X, verbose=0), reference.predict(X, verbose=0))
        for ours, theirs in zip(weights(loaded), weights(reference), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    (_, _, served) = (mlflow.pyfunc.load_model("models:/digits@best") for _ in range(3))
    reference = keras.models.load_model(tmp_path / f"{best + 1}.keras")
    np.testing.assert_allclose(served.predict(X), reference.predict(X, verbose=0), rtol=1e-5)
    assert served.metadata.signature.inputs.inputs[0].shape == (-1, trainings.FEATURES)

    kept = {one.model_id: one for one in checkpoints(run_id)}
    assert set(kept) == set(pointers)
    linked = {one.key: (one.value, one.step, one.dataset_name) for one in kept[pointers[0]].metrics}
    assert linked["val_loss"] == (pytest.approx(history[best], rel=1e-6), best, "dataset")
    steps = {one.model_id: one.step for one in mlflow.get_run(run_id).outputs.model_outputs}
    assert {steps[one] for one in pointers} == {best, 4} and len(steps) == 3  # and the final model
    points = mlflow.MlflowClient().get_metric_history(run_id, "val_loss")
    assert len(points) == 5  # linking a metric adds no point
    (version,) = mlflow.MlflowClient().search_model_versions("name='digits'")
    assert (version.source, version.tags["tfmon.epoch"]) == (f"models:/{pointers[0]}", str(best))


@pytest.mark.thorough
def test_kerass_callbacks_go_on_working_and_what_they_did_is_recorded(tmp_path: Path) -> None:
    def train() -> Any:
        model = net()
        model.optimizer.learning_rate = 0.5
        stopping = keras.callbacks.EarlyStopping(patience=4, restore_best_weights=True)
        slower = keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=0.05)
        history = fit(model, 30, [stopping, slower])
        return model, history.history, stopping

    reference, _, _ = train()
    mlflow_tfmon.autolog(log_models=False)
    model, history, stopping = train()
    for ours, theirs in zip(weights(model), weights(reference), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    run_id = mlflow.last_active_run().info.run_id
    client, metrics = mlflow.MlflowClient(), mlflow.get_run(run_id).data.metrics
    assert metrics["stopped_epoch"] == stopping.stopped_epoch < 29
    assert metrics["restored_epoch"] == stopping.best_epoch == metrics["best/epoch"]
    rates = history["learning_rate"]  # of each epoch; a change is made at the end of the one before
    changes = {at: new for at, (old, new) in enumerate(itertools.pairwise(rates)) if new != old}
    found = {one.step: one.value for one in client.get_metric_history(run_id, "learning_rate_changed")}
    assert len(changes) >= 2
    assert {at: found[at] for at in changes} == pytest.approx(changes)
    assert found.keys() - changes.keys() <= {len(rates) - 1}  # one at the very end comes into no epoch


def losses(*values: float) -> Iterator[tuple[int, dict[str, float]]]:
    return enumerate({"val_loss": value} for value in values)


@pytest.mark.thorough
def test_in_a_custom_loop_the_n_best_are_kept_and_nan_is_none_of_them(store: str) -> None:
    model = net()
    step = trainings.custom_step(model, model.optimizer)
    seen = {}
    with mlflow_tfmon.Monitor(model, checkpoint_keep=2, min_delta=0.05) as monitor:
        run_id = str(monitor.run_id)
        for epoch, metrics in losses(0.5, 0.3, float("nan"), 0.28, 0.9):
            for x, y in trainings.batches(X[:32], Y[:32], 1):
                step(x, y)
            seen[epoch] = model.predict(X, verbose=0)
            monitor.log_epoch(epoch, metrics)
    kept = {int(one.tags["tfmon.epoch"]): one for one in checkpoints(run_id)}
    assert sorted(kept) == [1, 3, 4]  # the two best by value, and the last
    best = tags(run_id)["tfmon.best_model"]
    assert best == kept[1].model_id  # 0.28 is better by less than min_delta
    for epoch, one in kept.items():
        loaded = mlflow.tensorflow.load_model(f"models:/{one.model_id}")
        np.testing.assert_array_equal(loaded.predict(X, verbose=0), seen[epoch])
        assert one.tags["tfmon.step"] == str(2 * (epoch + 1))


def test_no_epoch_end_waits_for_the_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, written, write = threading.Event(), [], Writer.write

    def held_up(self: Writer, *what: Any) -> None:
        assert gate.wait(60)
        written.append(threading.current_thread())
        write(self, *what)

    monkeypatch.setattr(Writer, "write", held_up)
    model = net()
    with mlflow_tfmon.Monitor(model, delivery_wait=60) as monitor:
        run_id = str(monitor.run_id)
        for epoch, metrics in losses(0.5, 0.4, 0.3):
            monitor.log_epoch(epoch, metrics)
        assert not written  # though three epochs are over
        gate.set()
    assert threading.current_thread() not in written
    assert mlflow.get_logged_model(tags(run_id)["tfmon.best_model"]).tags["tfmon.epoch"] == "2"


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["plain", "eager", "XLA", "sparse"])
def test_a_snapshot_stays_as_it_was_while_the_model_trains_on(kind: str) -> None:
    x = X
    model = net()
    if kind == "sparse":
        x = np.abs(X * 10).astype("int32") % 50
        model = keras.Sequential(
            [keras.layers.Embedding(50, 4), keras.layers.Flatten(), keras.layers.Dense(3)]
        )
    for optimizer in (keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.1)):
        model.compile(optimizer, trainings.loss(), run_eagerly=kind == "eager", jit_compile=kind == "XLA")
        model.fit(x[:32], Y[:32], verbose=0)
        before = [variable.numpy() for variable in variables_of(model)]
        camera = Camera()
        snapshots = [camera.take(model), camera.take(model)]
        model.fit(x, Y, verbose=0)
        assert any((a != v.numpy()).any() for a, v in zip(before, variables_of(model), strict=True))
        for snapshot in snapshots:
            for value, expected in zip(snapshot.values, before, strict=True):
                np.testing.assert_array_equal(value, expected)


class Unregistered(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(trainings.CLASSES)

    def call(self, x: Any) -> Any:
        return self.dense(x)


def test_the_snapshots_of_many_models_make_tensorflow_warn_of_nothing(caplog: Any) -> None:
    import logging

    logging.getLogger("tensorflow").addHandler(caplog.handler)
    try:
        for _ in range(7):
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            assert len(Camera().take(model).values) == 2
    finally:
        logging.getLogger("tensorflow").removeHandler(caplog.handler)
    assert "retracing" not in caplog.text


def test_a_model_that_keras_cannot_load_again_is_kept_as_its_weights(caplog: Any, tmp_path: Path) -> None:
    mlflow_tfmon.autolog(log_datasets=False, checkpoint_save_best_only=False, registered_model_name="own")
    model = Unregistered()
    model.compile("adam", trainings.loss())
    reference = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    with caplog.at_level("WARNING", "mlflow_tfmon"):
        fit(model, 2, [reference])
    assert sum("contain only its weights" in one.getMessage() for one in caplog.records) == 1
    run_id = mlflow.last_active_run().info.run_id
    kept = checkpoints(run_id)
    assert sorted(one.tags["tfmon.epoch"] for one in kept) == ["0", "1"]
    for one in kept:
        path = f"{mlflow.artifacts.download_artifacts(f'models:/{one.model_id}')}/{WEIGHTS}"
        ours, theirs = Unregistered(), Unregistered()
        for loaded, file in (
            (ours, path),
            (theirs, tmp_path / f"{int(one.tags['tfmon.epoch']) + 1}.weights.h5"),
        ):
            loaded(X)
            loaded.load_weights(file)
        np.testing.assert_array_equal(ours(X), theirs(X))
    (version,) = mlflow.MlflowClient().search_model_versions("name='own'")  # what can be served
    assert version.source == f"models:/{tags(run_id)['mlflow.tfmon.model']}"


@pytest.mark.slow
def test_weights_alone_where_that_is_asked_for(tmp_path: Path) -> None:
    mlflow_tfmon.autolog(checkpoint_save_weights_only=True, log_models=True, monitor="val_accuracy")
    every = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    history = fit(net(), 3, [every]).history["val_accuracy"]
    run_id = mlflow.last_active_run().info.run_id
    best = tags(run_id)["tfmon.best_model"]
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{best}"))
    assert not list(folder.rglob("*.keras"))
    ours, theirs = net(), net()
    ours.load_weights(folder / WEIGHTS)
    theirs.load_weights(tmp_path / f"{int(np.argmax(history)) + 1}.weights.h5")
    np.testing.assert_array_equal(ours.predict(X, verbose=0), theirs.predict(X, verbose=0))


@pytest.mark.thorough
def test_the_frequency_in_epochs_and_in_steps() -> None:
    model = net()
    step = trainings.custom_step(model, model.optimizer)
    batch = next(trainings.batches(X, Y, 1))
    for frequency, expected in (("2 epochs", ["8"]), (3, ["3", "4", "6", "8"])):
        with mlflow_tfmon.Monitor(
            model, checkpoint_save_freq=frequency, checkpoint_save_best_only=False
        ) as monitor:
            run_id = str(monitor.run_id)
            for epoch in range(2):
                for _ in range(4):
                    step(*batch)
                    monitor.log(val_loss=0.5)
                monitor.log_epoch(epoch, {"val_loss": 0.4})
        assert sorted(one.tags["tfmon.step"] for one in checkpoints(run_id)) == expected, frequency
    keys = [{metric.key for metric in one.metrics} for one in checkpoints(run_id)]
    assert keys.count({"checkpoint/val_loss"}) == keys.count({"val_loss"}) == 2

    mlflow_tfmon.autolog(checkpoint_save_freq=8, checkpoint_save_best_only=False, log_datasets=False)
    fit(net(), 2)  # of ten steps each
    mlflow_tfmon.autolog(disable=True)
    kept = checkpoints(mlflow.last_active_run().info.run_id)
    assert sorted(int(one.tags["tfmon.step"]) for one in kept) == [8, 10, 16, 20]


def test_the_training_does_not_wait_for_its_optimizers_state_to_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That of a loop is not in the model's own file."""
    threads: set[threading.Thread] = set()
    serialize = tf.io.serialize_tensor

    def noted(*what: Any, **how: Any) -> Any:
        threads.add(threading.current_thread())
        return serialize(*what, **how)

    monkeypatch.setattr(tf.io, "serialize_tensor", noted)
    model, optimizer = trainings.model(), keras.optimizers.Adam(0.1)
    step = trainings.custom_step(model, optimizer)
    with mlflow_tfmon.Monitor(model, optimizer=optimizer) as monitor:
        step(*next(trainings.batches(X, Y, 1)))
        monitor.log_epoch(0, {"val_loss": 0.5})
    assert threads and threading.current_thread() not in threads


@pytest.mark.slow
def test_each_checkpoint_and_version_is_of_the_data_that_it_was_validated_on() -> None:
    """A run of two fits has two datasets for each purpose."""
    mlflow_tfmon.autolog(registered_model_name="digits", checkpoint_save_best_only=False)
    model, digests = net(), []
    with mlflow.start_run() as run:
        for shift in (1, 2):
            fit(model, 1, validation_data=(UNSEEN[0] + shift, UNSEEN[1]), x=X + shift)
            inputs = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
            digests += [
                one.dataset.digest
                for one in inputs
                if one.tags[0].value == "eval" and one.dataset.digest not in digests
            ]
    for one, digest in zip(checkpoints(run.info.run_id), digests, strict=True):
        assert one.tags["tfmon.dataset"] == digest
        assert {m.dataset_digest for m in one.metrics if m.key == "val_loss"} == {digest}
    for version in mlflow.MlflowClient().search_model_versions("name='digits'"):
        assert version.tags["tfmon.dataset"] == digests[int(version.tags["tfmon.epoch"])]


@pytest.mark.parametrize("by", ["the setting", "a person"])
def test_what_is_registered_stays_when_a_better_one_takes_its_place(by: str) -> None:
    model, client = net(), mlflow.MlflowClient()
    name = "digits" if by == "the setting" else None
    with mlflow.start_run() as run:
        for _, metrics in losses(0.5, 0.4):
            with mlflow_tfmon.Monitor(model, registered_model_name=name) as monitor:
                monitor.log_epoch(0, metrics)
            if name is None and not client.search_registered_models():
                client.create_registered_model("digits")
                best = tags(run.info.run_id)["tfmon.best_model"]
                client.create_model_version("digits", f"models:/{best}")
    first = mlflow.pyfunc.load_model("models:/digits/1").metadata.model_id
    assert mlflow.get_logged_model(first).tags["tfmon.value"] == "0.5"
    assert mlflow.get_logged_model(tags(run.info.run_id)["tfmon.best_model"]).tags["tfmon.value"] == "0.4"


def test_a_model_that_is_changed_before_it_is_saved(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    gate, write = threading.Event(), Writer.write

    def late(self: Writer, snapshot: Any, folder: Path, *more: Any) -> None:
        if not (folder.parent / "changed").exists() and gate.is_set():
            (folder.parent / "changed").touch()
            snapshot.model.compile("sgd", "mse")
        write(self, snapshot, folder, *more)

    monkeypatch.setattr(Writer, "write", late)
    model = net()
    model.optimizer.build(model.trainable_variables)
    with mlflow_tfmon.Monitor(model) as monitor:
        run_id = str(monitor.run_id)
        monitor.log_epoch(0, {"val_loss": 0.5})
        monitor._pipeline.finish_checkpoints()
        before = model.predict(X, verbose=0)
        gate.set()
        monitor.log_epoch(1, {"val_loss": 0.4})
    said = tags(run_id)
    assert "epoch 1" in said["tfmon.checkpoint_error"] and "was changed" in said["tfmon.checkpoint_error"]
    loaded = mlflow.tensorflow.load_model(f"models:/{said['tfmon.best_model']}")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), before)


@pytest.mark.slow
def test_the_best_stays_when_a_better_one_cannot_be_saved_and_a_worse_one_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Writer.write

    def not_the_better(self: Writer, snapshot: Any, *more: Any) -> None:
        if better:
            raise ChangedError("it was changed")
        write(self, snapshot, *more)

    monkeypatch.setattr(Writer, "write", not_the_better)
    model, better, best = net(), False, None
    step = trainings.custom_step(model, model.optimizer)
    with mlflow_tfmon.Monitor(model) as monitor:
        run_id = str(monitor.run_id)
        for epoch, metrics in losses(0.5, 0.4, 0.6):
            step(*next(trainings.batches(X, Y, 1)))
            best = model.predict(X, verbose=0) if epoch == 0 else best
            better = epoch == 1
            monitor.log_epoch(epoch, metrics)
            monitor._pipeline.finish_checkpoints()
    kept = {one.tags["tfmon.epoch"]: one.model_id for one in checkpoints(run_id)}
    said = tags(run_id)
    assert (said["tfmon.best_model"], said["mlflow.tfmon.last_model"]) == (kept["0"], kept["2"])
    loaded = mlflow.tensorflow.load_model(f"models:/{said['tfmon.best_model']}")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), best)


@pytest.mark.slow
def test_one_that_cannot_be_saved_is_not_to_be_beaten(monkeypatch: pytest.MonkeyPatch) -> None:
    write, lost = Writer.write, (1, 4)

    def not_those(self: Writer, *what: Any) -> None:
        if epoch in lost:
            raise ChangedError("it was changed")
        write(self, *what)

    monkeypatch.setattr(Writer, "write", not_those)
    model, seen = net(), {}
    step = trainings.custom_step(model, model.optimizer)
    with mlflow_tfmon.Monitor(model) as monitor:
        run_id = str(monitor.run_id)
        for epoch, metrics in losses(0.5, 0.2, 0.45, 0.6, 0.3, 0.4, 0.45, 0.7):
            step(*next(trainings.batches(X, Y, 1)))
            seen[epoch] = model.predict(X, verbose=0)
            monitor.log_epoch(epoch, metrics)
            monitor._pipeline.finish_checkpoints()
    kept = {one.tags["tfmon.epoch"]: one.model_id for one in checkpoints(run_id)}
    said = tags(run_id)
    assert kept == {"5": said["tfmon.best_model"], "7": said["mlflow.tfmon.last_model"]}
    loaded = mlflow.tensorflow.load_model(f"models:/{said['tfmon.best_model']}")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), seen[5])
    assert mlflow.get_run(run_id).data.metrics["best/epoch"] == 1  # what was best, kept or not


def test_what_is_written_is_kept_though_better_ones_came_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill then does not find the training without any."""
    write, gate, begun = Writer.write, threading.Event(), threading.Event()

    def held_up(self: Writer, *what: Any) -> None:
        begun.set()
        assert gate.wait(60)
        write(self, *what)

    monkeypatch.setattr(Writer, "write", held_up)
    monkeypatch.setattr("mlflow_tfmon.checkpoints.writer.SHARE", 1e-9)  # a rest without end
    with mlflow_tfmon.Monitor(net()) as monitor:
        run_id = str(monitor.run_id)
        for epoch, metrics in losses(0.5, 0.4, 0.3):
            monitor.log_epoch(epoch, metrics)
            assert begun.wait(60)
        gate.set()
        while "tfmon.best_model" not in tags(run_id):
            time.sleep(0.1)
        assert [one.tags["tfmon.epoch"] for one in checkpoints(run_id)] == ["0"]
    assert [one.tags["tfmon.epoch"] for one in checkpoints(run_id)] == ["2"]


def test_of_many_in_short_order_none_is_left_behind_in_mlflow() -> None:
    """Those that are superseded before they are delivered had been to take others away."""
    with mlflow_tfmon.Monitor(net()) as monitor:
        run_id = str(monitor.run_id)
        for epoch, metrics in losses(*(1 / (1 + n) for n in range(12))):
            monitor.log_epoch(epoch, metrics)
            monitor._pipeline.keeper("").finish()
            if epoch == 0:
                while "tfmon.best_model" not in tags(run_id):
                    time.sleep(0.1)
    assert [one.tags["tfmon.epoch"] for one in checkpoints(run_id)] == ["11"]


def test_what_is_being_written_at_the_end_is_waited_for_whatever_the_network_may_take(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, gate, begun = Writer.write, threading.Event(), threading.Event()

    def held_up(self: Writer, *what: Any) -> None:
        begun.set()
        assert gate.wait(60)
        write(self, *what)

    monkeypatch.setattr(Writer, "write", held_up)
    monkeypatch.setattr(logger, "propagate", True)
    with mlflow_tfmon.Monitor(net(), delivery_wait=0) as monitor:
        run_id = str(monitor.run_id)
        monitor.log_epoch(0, {"val_loss": 0.5})
        assert begun.wait(60)
        threading.Timer(2.0, gate.set).start()  # by then the training has come to its end
    assert "not written" not in caplog.text and "failed" not in caplog.text
    while tags(run_id).get("tfmon.delivery") != "complete":
        time.sleep(0.1)
    assert [one.tags["tfmon.epoch"] for one in checkpoints(run_id)] == ["0"]


def test_a_job_that_ends_the_training_does_not_wait_for_itself() -> None:
    """As where a problem that it was told of has the user's function end the run."""
    found: list[bool] = []

    def do(number: int, job: int) -> bool:
        found.append(queue.finish())
        return True

    queue = Queue(do)
    queue.put(1, 1, frozenset([1]))
    assert queue.finish() and found == [True]


def test_the_writer_rests_by_what_it_took_the_processor_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting takes nothing from the training, and what is done once is not taken for what the next will take."""
    ended: list[float] = []

    def do(number: int, seconds: float) -> bool:
        with queue.once():
            busy(3 * seconds)
        time.sleep(10 * seconds)
        busy(seconds)
        ended.append(time.monotonic())
        return True

    def busy(seconds: float) -> None:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass

    queue = Queue(do)
    queue.put(1, 0.1, frozenset([1]))
    while not queue._rest_until:
        time.sleep(0.01)
    assert (
        1.9 <= queue._rest_until - ended[0] < 7.6
    )  # 19 times 0.1; with what is done once it would be 4 times that
    queue.put(2, 0.0, frozenset([1, 2]))
    assert queue.finish() and len(ended) == 2


def test_a_full_disk_leaves_the_best_before_whole() -> None:
    """The limit on a file's size stands in for the disk's: both are an OSError in the middle of writing."""
    inputs = keras.Input((trainings.FEATURES,))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(60_000)(inputs)))  # 2.4 MB
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with mlflow_tfmon.Monitor(model) as monitor:
        run_id = str(monitor.run_id)
        monitor.log_epoch(0, {"val_loss": 0.5})
        monitor._pipeline.finish_checkpoints()
        before = model.predict(X, verbose=0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
        try:
            monitor.log_epoch(1, {"val_loss": 0.4})
            monitor._pipeline.keeper("").finish()
            folders = list((monitor.folder / "checkpoints").iterdir())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not [one for one in folders if "draft" in one.name]  # nothing half written
        monitor.log_epoch(2, {"val_loss": 0.6})
    said = tags(run_id)
    assert os.strerror(errno.EFBIG) in said["tfmon.checkpoint_error"]
    kept = {one.tags["tfmon.epoch"]: one.model_id for one in checkpoints(run_id)}
    assert said["tfmon.best_model"] == kept["1"]  # there was room again before the end: it was tried again
    loaded = mlflow.tensorflow.load_model(f"models:/{kept['1']}")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), before)


@pytest.mark.slow
def test_a_name_that_the_registry_refuses_leaves_the_best_in_the_run() -> None:
    mlflow.MlflowClient().register_prompt("digits", "a template with {{name}}")  # which has the name
    mlflow_tfmon.autolog(registered_model_name="digits")
    model = net()
    history = fit(model, 2).history
    assert len(history["val_loss"]) == 2
    run_id = mlflow.last_active_run().info.run_id
    said = tags(run_id)
    assert said["tfmon.registered"].startswith("digits is refused: ")
    assert said["tfmon.delivery"] == "complete"
    best = mlflow.get_logged_model(said["tfmon.best_model"])
    assert best.tags["tfmon.epoch"] == str(int(np.argmin(history["val_loss"])))
    assert mlflow.get_run(run_id).info.status == "FINISHED"


def test_a_loop_without_a_best_says_that_nothing_is_registered(caplog: Any) -> None:
    with (
        caplog.at_level("WARNING", "mlflow_tfmon"),
        mlflow_tfmon.Monitor(net(), monitor="val_los", registered_model_name="digits") as monitor,
    ):
        run_id = str(monitor.run_id)
        monitor.log_epoch(0, {"val_loss": 0.5})
    assert "'val_los' was never logged" in caplog.text and "nothing is registered" in caplog.text
    assert tags(run_id)["tfmon.registered"].startswith("digits gets no version: ")
    assert mlflow.MlflowClient().search_registered_models() == []


KILLED = """
import os, pathlib, signal, sys, time
import keras, mlflow, mlflow_tfmon
from tests.checkpoints import test_checkpoints as here

store, home, out = sys.argv[1:]
mlflow.set_tracking_uri(store)
mlflow_tfmon.autolog(registered_model_name="digits")
monitor = keras.callbacks.ModelCheckpoint(out, monitor="val_loss", save_best_only=True)

class Kill(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        # That the last epoch's checkpoint is not written yet makes no difference: the best before it is.
        while epoch == 1 and not list(pathlib.Path(home).glob("recordings/*/checkpoints/*/MLmodel")):
            time.sleep(0.05)
        if epoch == 1:
            time.sleep(0.5)  # for its record, which follows at once
            os.kill(os.getpid(), signal.SIGKILL)

model = here.net()
model.optimizer.learning_rate = 5.0  # gets worse after the first epoch
here.fit(model, 5, [monitor, Kill()])
"""


@pytest.mark.thorough
def test_the_best_before_a_kill_is_delivered_and_registered(store: str, home: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", KILLED, store, str(home), str(tmp_path / "best.keras")]
    killed = subprocess.run(arguments, stderr=subprocess.PIPE)
    assert killed.returncode == -9, killed.stderr.decode()
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs(["0"])
    while client.get_run(run.info.run_id).info.status != "FAILED":  # delivery goes on without the trainer
        time.sleep(0.2)
    assert {one.status.value for one in client.search_logged_models(["0"])} == {
        "READY"
    }  # none is left pending
    best = tags(run.info.run_id)["tfmon.best_model"]
    loaded = mlflow.tensorflow.load_model(f"models:/{best}")
    reference = keras.models.load_model(tmp_path / "best.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), reference.predict(X, verbose=0))
    assert client.get_model_version_by_alias("digits", "best").source == f"models:/{best}"
