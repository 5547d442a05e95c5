"""Tests of LearningRateRangeTest: it measures what a loop by hand does, leaves no trace, and its result is used."""

from __future__ import annotations

from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import mlflow_tfmon
from mlflow_tfmon.errors import SettingError
from mlflow_tfmon.problems.rediagnosis import diagnose
from mlflow_tfmon.watching.range_test import LearningRateRangeTest
from tests import trainings

BATCH = 32


def data(rows: int = 320) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 6)).astype("float32")
    return x, (x[:, 0] + x[:, 1] > 0).astype("int64")


def net(optimizer: Any, **compiled: Any) -> keras.Model:
    keras.utils.set_random_seed(3)
    layers = keras.layers
    inner = [layers.Dense(16), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((6,)), *inner, layers.Dense(2)])
    model.compile(optimizer, trainings.loss(), metrics=["accuracy"], **compiled)
    model.optimizer.build(model.trainable_variables)
    return model


def state(model: keras.Model) -> list[np.ndarray]:
    every = [*model.variables, *model.optimizer.variables, *(v for m in model.metrics for v in m.variables)]
    return [np.array(tf.convert_to_tensor(one)) for one in every]


def by_hand(optimizer: keras.optimizers.Optimizer, rates: np.ndarray) -> list[float]:
    """The loss of each step of a loop whose learning rate grows."""
    model, (x, y) = net(optimizer), data()
    losses = []
    for at, rate in enumerate(rates):
        batch = slice(at % 10 * BATCH, (at % 10 + 1) * BATCH)
        with tf.GradientTape() as tape:
            loss = trainings.loss()(y[batch], model(x[batch], training=True))
        optimizer.learning_rate = rate
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        losses.append(float(loss))
    return losses


def test_it_measures_what_a_loop_by_hand_does_and_puts_all_back() -> None:
    (x, y), test = data(), LearningRateRangeTest(1e-5, 30.0, 60)
    model = net(keras.optimizers.SGD(0.123, momentum=0.9))
    for epochs in (0, 2):  # at first nothing is in the optimizer and the metrics, then something is
        model.fit(x, y, BATCH, epochs, verbose=0)
        before = state(model)
        assert bool(np.any(before[-1])) == bool(epochs)
        model.fit(x, y, BATCH, 0, shuffle=False, verbose=0, callbacks=[test])
        for one, other in zip(
            before, state(model), strict=bool(epochs)
        ):  # metrics are made by the first step
            assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
        made = len(test.losses)
        assert 30 < made < 60, "it ends once the loss has diverged"
        assert test.rates == pytest.approx(np.geomspace(1e-5, 30.0, 60)[:made])
        assert test.diverged and test.suggested and test.suggested <= test.diverged / 9.5
        if not epochs:
            expected = by_hand(keras.optimizers.SGD(0.123, momentum=0.9), np.geomspace(1e-5, 30.0, 60))
            # At the end differences by rounding grow as the loss does.
            assert test.losses[:-8] == pytest.approx(expected[: made - 8], rel=1e-4)
            assert test.steepest and 1e-3 < test.steepest < test.diverged


@pytest.mark.thorough
def test_its_steps_are_no_part_of_the_training_and_its_rate_is_advised(store: str, home: Any) -> None:
    mlflow.set_tracking_uri(store)
    x, y = data()
    schedule = keras.optimizers.schedules.ExponentialDecay(300.0, 1000, 0.5)
    weights, runs = [], []
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    for callbacks in ([], [LearningRateRangeTest()]):
        model = net(keras.optimizers.SGD(schedule), jit_compile=False)
        with mlflow.start_run() as run:
            model.fit(x, y, BATCH, 8, verbose=0, callbacks=callbacks)
        assert model.optimizer._learning_rate is schedule
        weights.append(model.get_weights())
        runs.append(mlflow_tfmon.load_run(run.info.run_id))
    mlflow_tfmon.autolog(disable=True)
    plain, tested = runs
    for one, other in zip(*weights, strict=True):
        assert one.tobytes() == other.tobytes()
    np.testing.assert_array_equal(plain.steps["loss"], tested.steps["loss"])
    assert len(tested.steps) == 80 and tested.epochs.index.tolist() == list(range(8))
    tag = mlflow.get_run(tested.run_id).data.tags["tfmon.range_test"]
    assert tag == callbacks[0].text() and tag.startswith(f"suggests {callbacks[0].suggested:.2g}: ")
    for problems in (tested.problems, diagnose(tested)):
        (advice,) = (one.advice for one in problems if one.kind == "learning_rate_too_high")
        assert (
            f"to {callbacks[0].suggested:.2g}, which the range test before the training suggests." in advice
        )


def test_where_it_cannot_be_made_the_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    (x, y), test = data(64), LearningRateRangeTest(steps=20)
    batches = ((x[:BATCH], y[:BATCH]) for _ in range(4))  # each of which is there once
    done = net("adam").fit(batches, epochs=1, steps_per_epoch=4, verbose=0, callbacks=[test])
    assert np.isfinite(done.history["loss"]).all()
    assert (test.rates, test.suggested) == ([], None)
    assert "LearningRateRangeTest: the data are neither arrays nor a tf.data.Dataset" in caplog.text


def test_a_model_that_its_first_step_would_build_is_built_before() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = keras.layers.Dense(8, "relu"), keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.outer(self.inner(x))

    (x, y), found = data(), []
    for callbacks in ([], [LearningRateRangeTest(steps=20)]):
        keras.utils.set_random_seed(1)
        model = Own()
        model.compile(keras.optimizers.Adam(0.01), trainings.loss())
        model.fit(x, y, BATCH, 1, shuffle=False, verbose=0, callbacks=callbacks)
        found.append([one.tobytes() for one in model.get_weights()])
    assert found[0] == found[1] and callbacks[0].losses


@settings(deadline=None, max_examples=40)
@given(
    fall=st.floats(-4.0, -1.0), depth=st.floats(0.5, 0.95), after=st.floats(1.0, 2.0), seed=st.integers(0, 99)
)
def test_the_steepest_descent_and_the_divergence_of_a_known_curve(
    fall: float, depth: float, after: float, seed: int
) -> None:
    test = LearningRateRangeTest(1e-7, 10.0, 160)
    rates = test._planned
    noise = 1 + 0.01 * np.random.default_rng(seed).normal(size=len(rates))
    log = np.log10(rates)
    losses = (2.3 * (1 - depth / (1 + np.exp(-4 * (log - fall)))) + np.exp(9 * (log - fall - after))) * noise
    for rate, loss in zip(rates, losses, strict=True):
        test.rates.append(float(rate))
        test.losses.append(float(loss))
        if mlflow_tfmon.watching.range_test._has_diverged(test.losses):
            break
    test._conclude()
    assert test.steepest is not None and abs(np.log10(test.steepest) - fall) < 0.4
    if test.diverged is not None:
        assert abs(np.log10(test.diverged) - fall - after) < 0.4
        assert test.suggested == pytest.approx(min(test.steepest, test.diverged / 10), rel=0.1)


def test_a_loss_that_only_wanders_suggests_nothing() -> None:
    test = LearningRateRangeTest()
    test.rates = test._planned.tolist()
    test.losses = (2.3 + 0.1 * np.random.default_rng(0).normal(size=100)).tolist()
    test._conclude()
    assert (test.steepest, test.diverged, test.suggested) == (None, None, None)
    assert "no learning rate" in test.text() and "did not fall and did not diverge" in test.text()


@pytest.mark.parametrize("wrong", [{"lowest": 0.0}, {"lowest": 1.0, "highest": 0.1}, {"steps": 3}])
def test_values_that_make_no_test_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        LearningRateRangeTest(**wrong)
