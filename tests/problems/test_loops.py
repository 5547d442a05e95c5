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
from tests.daily import thorough

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


@pytest.mark.slow
def test_digits_that_come_class_by_class(store: str, home: Path) -> None:
    """In a loop over a dataset and in a fit; shuffled, they are not reported."""
    x, y = load_digits(return_X_y=True)
    order = np.argsort(y, kind="stable")
    x, y = (x[order] / 16).astype("float32"), y[order]

    def trained(in_fit: bool, shuffled: bool) -> bool:
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
        loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        with mlflow.start_run() as run:
            if in_fit:
                model.compile(keras.optimizers.SGD(0.2), loss_of)
                model.fit(x, y, epochs=4, shuffle=shuffled, verbose=0)
            else:
                of_digits(model, loss_of, x, y, shuffled)
        return "unshuffled_data" in {one.kind for one in mlflow_tfmon.load_run(run.info.run_id).problems}

    mlflow.set_tracking_uri(store)
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    found = {(a, b): trained(a, b) for a in (True, False) for b in (True, False)}
    mlflow_tfmon.autolog(disable=True)
    assert found == {(a, b): not b for a, b in found}


def of_digits(model: keras.Model, loss_of: Loss, x: np.ndarray, y: np.ndarray, shuffled: bool) -> None:
    optimizer = keras.optimizers.SGD(0.2)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )

    data = tf.data.Dataset.from_tensor_slices((x, y))
    data = data.shuffle(len(x), seed=1) if shuffled else data
    for batch in data.batch(32).repeat(4):
        step(*batch)


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
    optimizer, criterion = keras.optimizers.SGD(0.2), trainings.loss()
    sums = [tf.Variable(tf.zeros_like(v)) for v in model.trainable_variables]

    @tf.function
    def accumulate(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = criterion(y, model(x, training=True))
        for s, g in zip(sums, tape.gradient(loss, model.trainable_variables), strict=True):
            s.assign_add(g / 4)
        return loss

    @tf.function
    def update() -> None:
        optimizer.apply_gradients(zip([s.value() for s in sums], model.trainable_variables, strict=True))

    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(1280, seed=1).batch(16).repeat(6)
    losses = []
    with mlflow.start_run():
        for number, (a, b) in enumerate(batches, 1):
            losses.append(float(accumulate(a, b)))
            if number % 4 == 0:
                update()
                for s in sums if zeroed else ():
                    s.assign(tf.zeros_like(s))
    mlflow_tfmon.autolog(disable=True)
    run = mlflow_tfmon.load_run(trainings.last_run())
    assert [one.kind for one in run.problems if not one.consequence_of] == (
        [] if zeroed else ["accumulation_not_zeroed"]
    )
    # Either way the loss of a step is that of its own four batches.
    expected = np.mean(np.reshape(losses, (-1, 4)), axis=1)
    np.testing.assert_allclose(run.steps["loss"], expected, rtol=1e-5)


def train(
    model: keras.Model, loss_of: Loss, y: np.ndarray, *, epochs: int = 20, eager: bool = False, sign: float = 1.0,
    targets: Callable[[np.ndarray, int], np.ndarray] = lambda y, step: y, rate: float = 3e-3,
) -> None:  # fmt: skip
    """A loop over batches of a dataset (or over arrays, if targets change with the steps)."""
    optimizer = keras.optimizers.Adam(rate)

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
            loss = loss if sign == 1.0 else sign * loss
        pairs = zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        optimizer.apply_gradients([(g, v) for g, v in pairs if g is not None])

    make, number = step if eager else tf.function(step), 0
    for _ in range(epochs):
        for a, b in tf.data.Dataset.from_tensor_slices((X, y)).batch(32):
            make(a, tf.constant(targets(b.numpy(), number)))
            number += 1


def classifier(end: str | None = None, cut: bool = False) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    h = keras.layers.Dense(16, "relu", name="body")(inputs)
    h = keras.layers.Lambda(tf.stop_gradient)(h) if cut else h
    return keras.Model(inputs, keras.layers.Dense(3, end)(h))


LABELS = np.digitize(Y, [-1.0, 1.0])
OTHERS = RANDOM.permutation(LABELS)
SPARSE = keras.losses.SparseCategoricalCrossentropy
PROBLEMS: dict[str, tuple[Callable[[], None], str]] = {
    "logits for probabilities": (lambda: train(classifier(), SPARSE(), LABELS), "loss_output_mismatch"),
    "the same, eagerly": (lambda: train(classifier(), SPARSE(), LABELS, epochs=5, eager=True), "loss_output_mismatch"),
    "a minus sign": (lambda: train(classifier(), SPARSE(from_logits=True), LABELS, sign=-1.0), "loss_unbounded"),
    "a minus sign by hand": (lambda: train(net(), with_one_shape, Y, sign=-1.0), "loss_unbounded"),
    "nothing reaches the body": (
        lambda: train(classifier(cut=True), SPARSE(from_logits=True), OTHERS), "stagnant_weights"
    ),
    "labels of others": (lambda: train(classifier(), SPARSE(from_logits=True), OTHERS, epochs=8), "underfitting"),
    "a mean, eagerly": (lambda: train(net(), squared, Y, eager=True, rate=0.01), "underfitting"),
    "targets in thousands": (lambda: train(net(), with_one_shape, 500 * Y + 4000), "unscaled_targets"),
}  # fmt: skip
# Of an eager loop whose loss is the user's own the targets are not known, and a busy machine has seen too little of it.
RARE = ["a mean, eagerly"]
WELL: dict[str, Callable[[], None]] = {
    "a classifier": lambda: train(classifier(), SPARSE(from_logits=True), LABELS),
    "a classifier by its probabilities": lambda: train(classifier("softmax"), SPARSE(), LABELS),
    "a regression": lambda: train(net(), with_one_shape, Y, rate=0.01, epochs=30),
    # as in Q-learning: what is to be predicted is the model's own, and becomes more
    "targets that grow": lambda: train(
        net(), with_one_shape, Y, targets=lambda y, step: (np.float32(0.01 * step) * y).astype("float32")
    ),
    "a score that is made large": lambda: train(
        net(), lambda y, p: -tf.reduce_mean(tf.tanh(p[:, 0]) * y), Y, rate=0.01
    ),
}  # fmt: skip


def diagnosed(train: Callable[[], None], store: str) -> list[str]:
    mlflow.set_tracking_uri(store)
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, report=False)
    with mlflow.start_run():
        train()
    mlflow_tfmon.autolog(disable=True)
    run = mlflow_tfmon.load_run(trainings.last_run())
    assert {one.kind for one in diagnose(run)} == {one.kind for one in run.problems}
    return [one.kind for one in run.problems]


@pytest.mark.slow
@pytest.mark.parametrize("name", thorough(PROBLEMS, RARE))
def test_the_cause_of_a_loop_that_fails_is_named_first(name: str, store: str, home: Path) -> None:
    make, kind = PROBLEMS[name]
    assert diagnosed(make, store)[:1] == [kind]


@pytest.mark.slow
@pytest.mark.parametrize("name", WELL)
def test_of_a_loop_that_goes_well_nothing_is_said(name: str, store: str, home: Path) -> None:
    assert diagnosed(WELL[name], store) == []


def step_of(model: keras.Model) -> Callable[[tf.Tensor, tf.Tensor], None]:
    optimizer = keras.optimizers.Adam(3e-3)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = with_one_shape(y, model(x, training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )

    return step


@pytest.mark.slow
def test_the_same_batch_again_and_again(store: str, home: Path) -> None:
    """`next(iter(dataset))` in a loop; not a batch that is kept on purpose, nor a dataset of one batch."""

    def trained(train: Callable[[Callable[..., None], tf.data.Dataset], None]) -> dict[str, str]:
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(32)
        with mlflow.start_run() as run:
            train(step_of(net()), data)
        return {one.kind: one.evidence for one in mlflow_tfmon.load_run(run.info.run_id).problems}

    def begin_anew(step: Callable[..., None], data: tf.data.Dataset) -> None:
        for _ in range(60):
            step(*next(iter(data)))

    def keep_one(step: Callable[..., None], data: tf.data.Dataset) -> None:
        batch = next(iter(data))
        for _ in range(60):
            step(*batch)

    def take_one(step: Callable[..., None], data: tf.data.Dataset) -> None:
        for _ in range(60):
            for batch in data.take(1):
                step(*batch)

    def go_on(step: Callable[..., None], data: tf.data.Dataset) -> None:
        for batch in data.repeat(8):
            step(*batch)

    mlflow.set_tracking_uri(store)
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    assert "the first of the 8 that its dataset has" in trained(begin_anew)["overfitting"]
    assert all("overfitting" not in trained(one) for one in (keep_one, take_one, go_on))
    mlflow_tfmon.autolog(disable=True)


@pytest.mark.slow
@pytest.mark.parametrize("anew", [True, False])
def test_an_optimizer_for_each_step(anew: bool, store: str, home: Path) -> None:
    mlflow.set_tracking_uri(store)
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    model, optimizer = net(), keras.optimizers.Adam(0.1)
    with mlflow.start_run() as run:
        for _ in range(60):
            with tf.GradientTape() as tape:
                loss = with_one_shape(Y[:64], model(X[:64], training=True))
            optimizer = keras.optimizers.Adam(0.1) if anew else optimizer
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    mlflow_tfmon.autolog(disable=True)
    found = {one.kind: one for one in mlflow_tfmon.load_run(run.info.run_id).problems}
    assert ("optimizer_renewed" in found) == anew
