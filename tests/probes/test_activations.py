"""Tests of activations at epoch ends: they equal NumPy's, and measuring them changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.probes import batches
from tests import trainings
from tests.report import recordings

pytestmark = pytest.mark.usefixtures("fresh")
ROWS = 48


def recorded() -> Any:
    return mlflow_tfmon.load_run(trainings.last_run()).activations


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class Weights(keras.callbacks.Callback):
    """Keeps the weights of each epoch's end."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.__dict__.setdefault("kept", []).append([w.numpy() for w in self.model.weights])


def expect(row: Any, values: np.ndarray, saturated: np.ndarray | None = None) -> None:
    """Compares a row with a layer's output, of which the last axis is the units."""
    units = values.reshape(-1, values.shape[-1])
    assert row.units == units.shape[1]
    np.testing.assert_allclose([row["mean"], row["std"]], [units.mean(), units.std()], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(row.zero_fraction, (units == 0).mean(), atol=1e-6)
    np.testing.assert_allclose(row.dead_fraction, (units == 0).all(axis=0).mean(), atol=1e-6)
    np.testing.assert_allclose(row.saturated_fraction, np.nan if saturated is None else saturated.mean())


def test_an_epoch_that_is_over_at_the_first_look_at_its_batches_has_them_too() -> None:
    """More batches are held from that look on, at first empty ones."""

    class Ring:
        thread = -1

    ring = cast(Any, Ring())
    ring.held, ring.batch = {}, batches.Held((tf.zeros([0, 0], tf.float64),), tf.float64)

    @tf.function
    def step(number: tf.Tensor) -> None:
        ring.batch.put(number, (tf.fill([4, 2], number),))

    for number in range(1, 46):
        step(tf.constant(number, tf.float64))
    batches.glance(ring, 45, follow=True)
    rows, inputs = batches.kept(ring)
    assert rows == 4 and inputs.numpy().tolist() == [[45.0] * 2] * 4
    assert ring.batch.depth > 45


def test_where_nothing_was_recorded_the_table_has_its_columns(store: str, home: Path) -> None:
    without = recordings.delivered(store, home, *recordings.training(8, epochs=0))
    with_some = recordings.delivered(store, home, *recordings.training(8, epochs=1))
    empty, found = (mlflow_tfmon.load_run(one).activations for one in (without, with_some))
    assert list(empty) == list(found) and (len(empty), len(found)) == (0, 3)


def test_dense_layers_agree_with_numpy_at_each_epoch() -> None:
    keras.utils.set_random_seed(1)
    relu = keras.layers.Dense(9, "relu", bias_initializer=keras.initializers.RandomNormal(stddev=30.0))
    layers = [keras.Input((6,)), relu, keras.layers.Dropout(0.5), keras.layers.Dense(7, "tanh"),
              keras.layers.Dense(5, "sigmoid", kernel_initializer=keras.initializers.RandomNormal(stddev=9.0)),
              keras.layers.Dense(3)]  # fmt: skip
    net = keras.Sequential(layers, name="net")
    net.compile(keras.optimizers.SGD(0.1), trainings.loss())
    x, y = trainings.data(rows=ROWS)
    x *= 4
    weights = Weights()
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    net.fit(x, y, batch_size=ROWS, epochs=3, verbose=0, callbacks=[weights])
    found = recorded().set_index(["epoch", "layer"])
    assert len(found) == 3 * 4  # dropout gives what it takes
    assert set(found.examples) == {ROWS} and found.step.groupby("epoch").first().to_list() == [1, 2, 3]
    for epoch, (a, b, c, d, e, f, g, h) in enumerate(weights.kept):
        first = np.maximum(x @ a + b, 0)
        second = np.tanh(first @ c + d)
        third = sigmoid(second @ e + f)
        names = [name for at, name in found.index if at == epoch]
        assert names == [layer.path.replace("/", ".") for layer in net.layers if layer.weights]
        rows = [found.loc[(epoch, name)] for name in names]
        assert [row.activation for row in rows] == ["relu", "tanh", "sigmoid", "linear"]
        assert [bool(row.output) for row in rows] == [False, False, False, True]
        expect(rows[0], first)
        expect(rows[1], second, 1 - second**2 < 0.05)
        expect(rows[2], third, 4 * third * (1 - third) < 0.05)
        expect(rows[3], third @ g + h)
        assert 0 < rows[0].dead_fraction < 1 and 0 < rows[2].saturated_fraction < 1


class Own(keras.Model):
    """A subclassed model with everything that looking could disturb."""

    def __init__(self) -> None:
        super().__init__(name="own")
        self.conv = keras.layers.Conv1D(4, 3)
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.5)
        self.rnn = keras.layers.LSTM(5)
        self.head = keras.layers.Dense(trainings.CLASSES)
        self.noise = keras.random.SeedGenerator(3)

    def call(self, x: Any, training: bool = False) -> Any:
        x = tf.nn.relu(self.norm(self.conv(x[:, :, None]), training=training))
        x = self.rnn(self.drop(x, training=training))
        x = x + 0.1 * keras.random.normal((5,), seed=self.noise) + 0.001 * np.random.normal()
        self.add_loss(0.01 * tf.reduce_mean(x**2))
        return self.head(x + 0.01 * tf.random.normal([5]))


@pytest.mark.thorough
@pytest.mark.parametrize("eagerly", [False, True])
def test_looking_changes_nothing(eagerly: bool) -> None:
    x, y = trainings.data(rows=40)

    def train(watched: bool) -> tuple[list[np.ndarray], float, list[float]]:
        mlflow_tfmon.autolog(log_models=False, log_datasets=False, disable=not watched)
        keras.utils.set_random_seed(7)
        batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(40).batch(16)
        net = Own()
        net.compile("adam", trainings.loss(), run_eagerly=eagerly)
        history = net.fit(batches, epochs=3, verbose=0).history["loss"]
        return [w.numpy() for w in net.variables], np.random.random(), history

    unwatched, random, history = train(False)
    watched, random_watched, history_watched = train(True)
    for one, other in zip(unwatched, watched, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (random, history) == (random_watched, history_watched)
    found = recorded()
    assert set(found.epoch) == {0, 1, 2}
    # The activation in the model's own `call` is the convolution's; a cell's first step is not taken for the layer.
    last = found[found.epoch == 2]
    assert last.activation.to_list() == ["linear", "relu", "", "linear"]
    assert [re.sub(r"^own\.|_\d+$", "", name) for name in last.layer] == [
        "conv1d",
        "batch_normalization",
        "lstm",
        "dense",
    ]
    assert last.units.to_list() == [4, 4, 5, 3] and last.zero_fraction.iloc[1] > 0


def test_a_custom_loop_by_its_dataset_and_the_batch_with_most_rows() -> None:
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    dataset = tf.data.Dataset.from_tensor_slices(trainings.data(rows=33)).batch(16)
    with mlflow_tfmon.Monitor(net, deep_every=4) as monitor:
        for epoch in range(2):
            for x, y in dataset:
                step(x, y)
                monitor.log(seen=1.0)  # as the drain's thread would, looks at what was taken
            monitor.log_epoch(epoch)
    found = mlflow_tfmon.load_run(trainings.last_run()).activations
    assert set(found.examples) == {16}
    assert found.epoch.to_list() == [0, 0, 1, 1] and found.step.to_list() == [3, 3, 6, 6]


class Counting(keras.Model):
    """What it counts in its call is part of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.head = keras.layers.Dense(trainings.CLASSES)
        self.count = tf.Variable(0.0, trainable=False)

    def call(self, x: Any) -> Any:
        return self.head(x + 1e-3 * self.count.assign_add(1.0))


class OnDictionary(keras.Model):
    """Its `train_step` gives the model something else than the dataset has first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = keras.layers.Dense(trainings.CLASSES)

    def call(self, x: Any) -> Any:
        return self.head(x["x"])

    def train_step(self, data: Any) -> Any:
        x, y = data
        return super().train_step(({"x": x}, y))


@pytest.mark.parametrize("kind", [Counting, OnDictionary])
def test_a_model_that_cannot_be_looked_at_is_trained_all_the_same(kind: type[keras.Model]) -> None:
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    net = kind()
    net.compile("sgd", trainings.loss())
    net.fit(*trainings.data(rows=32), batch_size=16, epochs=2, verbose=0)
    assert len(recorded()) == 0
    assert len(mlflow_tfmon.load_run(trainings.last_run()).steps) == 4
    if kind is Counting:
        assert float(net.count) == 4
    assert mlflow.get_run(trainings.last_run()).info.status == "FINISHED"
