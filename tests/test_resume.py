"""A training that was interrupted goes on: with the same weights as one that never was, and as one training in MLflow."""

from __future__ import annotations

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


def the_run() -> Any:
    (found,) = mlflow.MlflowClient().search_runs(["0"])
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
    assert recorded.histograms["step"].unique().tolist() == deep
    assert recorded.activations["epoch"].unique().tolist() == list(range(5))
    assert run.data.metrics["best/loss"] == min(expected["loss"])
    assert run.data.metrics["best/epoch"] == int(np.argmin(expected["loss"]))
    assert run.data.tags["tfmon.resumed"] == f"after step {3 * STEPS}, with epoch 3"
    assert "tfmon.seams" not in run.data.tags
    kept = {run.data.tags[f"tfmon.{name}_model"] for name in ("best", "last", "resume")}
    left = {one.model_id for one in mlflow.MlflowClient().search_logged_models(["0"])}
    assert left == kept | {run.data.tags["tfmon.model"]}
    fit(net)  # a further one begins anew
    assert mlflow.MlflowClient().search_runs(["0"])[0].info.run_id != run.info.run_id
