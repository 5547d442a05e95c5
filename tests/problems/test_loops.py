"""Tests of the diagnosis of custom loops: problems that only the code of the step tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

import mlflow_tfmon
from mlflow_tfmon.problems.rediagnosis import diagnose
from tests import trainings

RANDOM = np.random.default_rng(6)
X = RANDOM.normal(size=(256, 6)).astype("float32")
Y = (2 * X[:, 0] - X[:, 1] * X[:, 2] + 0.1 * RANDOM.normal(size=256)).astype("float32")
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def net() -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])


def loop(model: keras.Model, loss_of: Loss) -> None:
    optimizer = keras.optimizers.Adam(3e-3)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )

    for _ in range(6):
        for x, y in tf.data.Dataset.from_tensor_slices((X, Y)).batch(32):
            step(x, y)


def fit(model: keras.Model, loss_of: Loss) -> None:
    model.compile(keras.optimizers.Adam(3e-3), loss_of)
    model.fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(32), epochs=6, verbose=0)


def squared(y: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(y - p))


def absolute(y: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.abs(p - tf.cast(y, tf.float32)))


def with_one_shape(y: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(y - p[:, 0]))


def of_all_pairs(y: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
    """A loss of differences between examples, which is meant to be of all pairs."""
    return tf.reduce_mean(tf.square((y[:, None] - y[None, :]) - (p - tf.transpose(p))))


@pytest.mark.parametrize(
    ("train", "loss_of", "reported"),
    [
        (loop, squared, True),
        pytest.param(loop, absolute, True, marks=pytest.mark.thorough),
        # Keras gives its targets the shape of the predictions,
        pytest.param(fit, squared, False, marks=pytest.mark.thorough),
        (fit, with_one_shape, True),  # which then is the mistake
        pytest.param(loop, with_one_shape, False, marks=pytest.mark.thorough),
        (loop, of_all_pairs, False),
    ],
)
def test_a_loss_that_broadcasts_predictions_and_targets_to_all_pairs(
    train: Callable[[keras.Model, Loss], None], loss_of: Loss, reported: bool, store: str, home: Path
) -> None:
    mlflow.set_tracking_uri(store)
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    with mlflow.start_run():
        train(net(), loss_of)
    mlflow_tfmon.autolog(disable=True)
    run = mlflow_tfmon.load_run(trainings.last_run())
    found = [one for one in run.problems if one.kind == "shape_broadcast"]
    assert bool(found) == reported
    assert {one.kind for one in diagnose(run)} == {one.kind for one in run.problems}
    if reported:
        assert "(32,) and (32, 1)" in found[0].evidence or "(n,) and (n, 1)" in found[0].evidence
        assert run.problems[0].kind == "shape_broadcast" and found[0].first_step <= 1
        # The mistake is real: every prediction is drawn to the mean of a batch.
        wanted = np.mean((Y[:, None] - Y[None, :]) ** 2) / 2
        assert loss_of is absolute or run.steps["loss"].iloc[-8:].mean() == pytest.approx(wanted, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("zeroed", [False, True])
def test_accumulated_gradients_that_are_never_set_back_to_zero(zeroed: bool, store: str, home: Path) -> None:
    mlflow.set_tracking_uri(store)
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    keras.utils.set_random_seed(1)
    x, y = load_digits(return_X_y=True)
    images, labels = (x[:1280] / 16).astype("float32"), y[:1280]
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
    optimizer, criterion = keras.optimizers.SGD(0.05), trainings.loss()
    sums = [tf.Variable(tf.zeros_like(v)) for v in model.trainable_variables]

    @tf.function
    def accumulate(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = criterion(y, model(x, training=True))
        for s, g in zip(sums, tape.gradient(loss, model.trainable_variables), strict=True):
            s.assign_add(g / 4)

    @tf.function
    def update() -> None:
        optimizer.apply_gradients(zip([s.value() for s in sums], model.trainable_variables, strict=True))

    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(1280, seed=1).batch(16).repeat(6)
    with mlflow.start_run():
        for number, (a, b) in enumerate(batches, 1):
            accumulate(a, b)
            if number % 4 == 0:
                update()
                for s in sums if zeroed else ():
                    s.assign(tf.zeros_like(s))
    mlflow_tfmon.autolog(disable=True)
    found = mlflow_tfmon.load_run(trainings.last_run()).problems
    assert [one.kind for one in found if not one.consequence_of] == (
        [] if zeroed else ["accumulation_not_zeroed"]
    )
