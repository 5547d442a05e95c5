"""Tests of exactness: the recording equals a hand-written NumPy loop, step by step."""

from __future__ import annotations

from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon import errors
from tests import trainings
from tests.daily import thorough
from tests.trainings import BATCH, DEEP, by_hand, compare, last_run, renamed

EPOCHS = 3


def schedule() -> keras.optimizers.schedules.LearningRateSchedule:
    return keras.optimizers.schedules.CosineDecay(0.05, 30)


def cosine(step: int) -> float:
    return 0.05 * 0.5 * (1 + np.cos(np.pi * min(step, 30) / 30))


class Halve(keras.callbacks.Callback):
    """A callback that changes the learning rate at the epochs' ends."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.05 * 0.5 ** (epoch + 1)


RATES = {
    "constant": (lambda: 0.05, lambda step: 0.05, []),
    "schedule": (schedule, cosine, []),
    "changed by a callback": (lambda: 0.05, lambda step: 0.05 * 0.5 ** (step // 10), [Halve]),
}


@pytest.mark.parametrize("rate", RATES)
def test_fit(watched: str, rate: str) -> None:
    make_rate, expected_rate, callbacks = RATES[rate]
    x, y = trainings.data()
    net = trainings.model()
    net.compile(keras.optimizers.SGD(make_rate(), momentum=0.9), trainings.loss())
    net.fit(
        x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[c() for c in callbacks]
    )
    reference = trainings.model()
    seen = by_hand(
        reference, keras.optimizers.SGD(0.05, momentum=0.9), trainings.batches(x, y, EPOCHS), expected_rate
    )
    compare(last_run(), renamed(seen, reference, net), clipped=False)


def by_norm(gradients: list[np.ndarray]) -> list[np.ndarray]:
    return [g * min(1.0, 0.1 / np.linalg.norm(g)) for g in gradients]


def by_global_norm(gradients: list[np.ndarray]) -> list[np.ndarray]:
    scale = min(1.0, 0.1 / trainings.norm(gradients))
    return [(g * scale).astype("float32") for g in gradients]


def by_value(gradients: list[np.ndarray]) -> list[np.ndarray]:
    return [np.clip(g, -0.01, 0.01) for g in gradients]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "clip"),
    [
        ({"clipnorm": 0.1}, by_norm),
        ({"global_clipnorm": 0.1}, by_global_norm),
        ({"clipvalue": 0.01}, by_value),
    ],
    ids=["clipnorm", "global_clipnorm", "clipvalue"],
)
def test_fit_with_clipping(watched: str, setting: dict[str, float], clip: Any) -> None:
    x, y = trainings.data()
    net = trainings.model()
    net.compile(keras.optimizers.Adam(0.01, **setting), trainings.loss())
    net.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    reference = trainings.model()
    seen = by_hand(
        reference, keras.optimizers.Adam(0.01), trainings.batches(x, y, 2), lambda step: 0.01, clip
    )
    compare(last_run(), renamed(seen, reference, net), clipped=True)


@pytest.mark.parametrize("in_graph", [True, False], ids=["tf.function", "eager"])
def test_custom_loop(watched: str, in_graph: bool) -> None:
    x, y = trainings.data()
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.Adam(schedule()), in_graph)
    losses = [float(step(a, b)) for a, b in trainings.batches(x, y, EPOCHS)]
    mlflow_tfmon.end_run()
    reference = trainings.model()
    seen = by_hand(reference, keras.optimizers.Adam(0.05), trainings.batches(x, y, EPOCHS), cosine)
    run_id = mlflow.search_runs(output_format="list")[0].info.run_id
    compare(run_id, renamed(seen, reference, net), clipped=False)
    np.testing.assert_array_equal(
        mlflow_tfmon.load_run(run_id).steps.loss, losses
    )  # the loop's own, to the last bit


def test_gradients_in_a_function_and_the_optimizer_outside(
    watched: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A loss that is known in another function than the one that updates; so is what is clipped between, and said."""
    x, y = trainings.data()
    net, optimizer, criterion = trainings.model(), keras.optimizers.SGD(0.1), trainings.loss()

    @tf.function
    def gradients(a: tf.Tensor, b: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            value = criterion(b, net(a, training=True))
        return value, tape.gradient(value, net.trainable_variables)

    losses, norms = [], []
    errors._said.clear()
    errors.logger.addHandler(caplog.handler)
    for a, b in trainings.batches(x, y, 1):
        value, grads = gradients(a, b)
        grads, _ = tf.clip_by_global_norm(grads, 0.1)
        optimizer.apply_gradients(zip(grads, net.trainable_variables, strict=True))
        losses.append(float(value))
        norms.append(trainings.norm(grads))
    mlflow_tfmon.end_run()
    errors.logger.removeHandler(caplog.handler)
    run = mlflow_tfmon.load_run(mlflow.search_runs(output_format="list")[0].info.run_id)
    np.testing.assert_array_equal(run.steps.loss, losses)
    np.testing.assert_allclose(run.steps.grad_norm, norms, rtol=1e-5)  # of what the optimizer gets
    assert "grad_norm_clipped" not in run.steps
    assert len([line for line in set(caplog.messages) if "after any clipping by hand" in line]) == 1


@pytest.mark.parametrize("scale", [1e-25, 1e25], ids=["tiny", "huge"])
def test_gradients_whose_squares_no_float32_holds(watched: str, scale: float) -> None:
    variable = tf.Variable([3.0, 4.0], name="weights")
    optimizer = keras.optimizers.SGD(0.0)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(variable * tf.constant([3.0 * scale, 4.0 * scale]))
        optimizer.apply_gradients([(tape.gradient(value, variable), variable)])

    for _ in range(3):
        step()
    mlflow_tfmon.end_run()
    run = mlflow_tfmon.load_run(mlflow.search_runs(output_format="list")[0].info.run_id)
    np.testing.assert_allclose(run.steps.grad_norm, 5 * scale, rtol=1e-5)


def test_embedding(watched: str) -> None:
    """Sparse gradients: rows that occur twice in a batch count once, summed; rows that don't occur are zeros."""
    rows = np.array([[1, 1, 2], [2, 5, 1]])
    targets = np.array([[1.0], [0.0]], "float32")
    keras.utils.set_random_seed(3)
    net = keras.Sequential(
        [keras.Input((3,)), keras.layers.Embedding(10, 4), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    table = net.trainable_variables[0]
    with tf.GradientTape() as tape:
        value = keras.losses.MeanSquaredError()(targets, net(rows, training=True))
    dense = tf.convert_to_tensor(tape.gradient(value, table.value)).numpy()
    net.compile("sgd", keras.losses.MeanSquaredError())
    net.fit(rows, targets, batch_size=2, epochs=1, verbose=0)
    layers = mlflow_tfmon.load_run(last_run()).layers.set_index(["step", "variable"])
    name = table.path.replace("/", ".")
    np.testing.assert_allclose(layers.loc[(1, name), "grad_norm"], np.linalg.norm(dense), rtol=1e-5)
    np.testing.assert_allclose(layers.loc[(1, name), "grad_zero_fraction"], (dense == 0).mean(), rtol=1e-9)


KINDS = ("dense", "batch norm and dropout", "convolution")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "loop"),
    thorough(
        [(kind, loop) for kind in KINDS for loop in ("fit", "custom")],
        [("dense", "fit"), ("batch norm and dropout", "custom"), ("convolution", "custom")],
    ),
)
def test_watching_changes_nothing(store: str, home: Any, loop: str, kind: str) -> None:
    """The weights after a watched training are bit for bit those of an unwatched one."""

    def train() -> list[np.ndarray]:
        keras.utils.set_random_seed(7)
        x, y = trainings.data()
        layers = {
            "dense": [keras.layers.Dense(16, "relu")],
            "batch norm and dropout": [
                keras.layers.Dense(16),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.3),
            ],
            "convolution": [
                keras.layers.Reshape((3, 2, 1)),
                keras.layers.Conv2D(4, 2, activation="relu"),
                keras.layers.Flatten(),
            ],
        }[kind]
        net = keras.Sequential(
            [keras.Input((trainings.FEATURES,)), *layers, keras.layers.Dense(trainings.CLASSES)]
        )
        if loop == "fit":
            net.compile(
                keras.optimizers.AdamW(0.01, global_clipnorm=0.5), trainings.loss(), metrics=["accuracy"]
            )
            net.fit(x, y, batch_size=BATCH, epochs=3, verbose=0, validation_split=0.2)
        else:
            step = trainings.custom_step(net, keras.optimizers.AdamW(0.01, global_clipnorm=0.5))
            for a, b in trainings.batches(x, y, 3):
                step(a, b)
        return [np.asarray(w) for w in net.get_weights()]

    unwatched = train()
    mlflow.set_tracking_uri(store)
    mlflow_tfmon.autolog(deep_every=3, log_models=False)
    try:
        watched = train()
    finally:
        mlflow_tfmon.autolog(disable=True)
    assert mlflow.search_runs(output_format="list")  # it was watched
    for before, after in zip(unwatched, watched, strict=True):
        assert before.tobytes() == after.tobytes()


# Where TensorFlow regroups products in which a gradient, a clipped one or a learning rate has but one reader.
REGROUPED = {
    "clipped by global norm": lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.05),
    "learning rate times a product": lambda: keras.optimizers.SGD(0.1),
    "loss scaling": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1, global_clipnorm=0.05)
    ),
    "accumulation": lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.05, gradient_accumulation_steps=2),
}


@pytest.mark.thorough
def test_watching_keeps_products_as_they_are(store: str, home: Any) -> None:
    """Bit for bit, though TensorFlow's rounding depends on who reads what."""

    def train(optimizer: str, loop: str) -> bytes:
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Dense(8, "relu"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)]
        net = keras.Sequential([keras.Input((trainings.FEATURES,)), *layers, keras.layers.Dense(3)])
        made, (x, y) = REGROUPED[optimizer](), trainings.data()
        if loop == "fit":
            net.compile(made, trainings.loss())
            net.fit(x, y, batch_size=BATCH, verbose=0)
        else:
            step = trainings.custom_step(net, made)
            for a, b in trainings.batches(x, y, 1):
                step(a, b)
        return b"".join(weights.tobytes() for weights in net.get_weights())

    cases = [(optimizer, "fit") for optimizer in REGROUPED] + [("clipped by global norm", "custom")]
    unwatched = {case: train(*case) for case in cases}
    mlflow.set_tracking_uri(store)
    mlflow_tfmon.autolog(deep_every=3, log_models=False, log_datasets=False)
    with mlflow.start_run() as run:
        changed = [case for case in cases if train(*case) != unwatched[case]]
    mlflow_tfmon.autolog(disable=True)
    assert changed == []
    recorded = mlflow_tfmon.load_run(run.info.run_id).steps  # they were watched
    assert sum(column.endswith("grad_norm") for column in recorded) == len(cases)


@pytest.fixture
def watched(store: str, home: Any) -> Any:
    mlflow.set_tracking_uri(store)
    mlflow_tfmon.autolog(deep_every=DEEP, log_models=False)
    yield store
    mlflow_tfmon.autolog(disable=True)
