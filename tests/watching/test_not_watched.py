"""Tests of trainings whose updates no Keras optimizer makes: in the end one line says that, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import minimize

import mlflow_tfmon
from mlflow_tfmon.probes import tape
from mlflow_tfmon.watching import user_messages

X = np.linspace(-1.0, 1.0, 50, dtype="float32")


def _loss(weight: Any) -> Any:
    return tf.reduce_mean((weight * X - 3.0 * X) ** 2)


def by_hand(weight: tf.Variable) -> None:
    with tf.GradientTape() as tape:
        loss = _loss(weight)
    weight.assign_sub(0.1 * tape.gradient(loss, weight))


def by_an_optimizer_of_tensorflow_1(weight: tf.Variable) -> None:
    optimizer = tf.compat.v1.train.GradientDescentOptimizer(0.1)
    if tf.executing_eagerly():
        optimizer.minimize(lambda: _loss(weight), var_list=[weight])
    else:
        optimizer.minimize(_loss(weight), var_list=[weight])


def by_its_gradients(weight: tf.Variable) -> None:
    with tf.GradientTape() as tape:
        loss = _loss(weight)
    found = tape.gradient(loss, weight)
    tf.compat.v1.train.GradientDescentOptimizer(0.1).apply_gradients(zip([found], [weight], strict=True))


def by_scipy(weight: tf.Variable) -> None:
    def function(values: np.ndarray) -> Any:
        weight.assign(values[0].astype("float32"))
        with tf.GradientTape() as tape:
            loss = _loss(weight)
        return float(loss), np.array([float(tape.gradient(loss, weight))])

    minimize(function, np.array([5.0]), jac=True, method="L-BFGS-B")


@pytest.mark.parametrize("in_function", [False, True])
@pytest.mark.parametrize("way", [by_hand, by_an_optimizer_of_tensorflow_1, by_its_gradients, by_scipy])
def test_it_is_said(
    way: Callable[[tf.Variable], None],
    in_function: bool,
    fresh: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if in_function and way is by_scipy:
        pytest.skip("it calls eager code")
    monkeypatch.setattr(tape, "_seen", {})
    monkeypatch.setattr(tape, "_applied", set())
    monkeypatch.setattr(user_messages, "all_rings", list)  # other tests' are there
    mlflow_tfmon.autolog(log_models=False)
    weight = tf.Variable(5.0, name="slope")

    def step() -> None:
        way(weight)

    trained = tf.function(step) if in_function else step
    with caplog.at_level(logging.INFO), mlflow.start_run():
        for _ in range(3):
            trained()
        assert float(weight) < 5.0
        user_messages.say_what_was_not_seen()  # as at the script's end
    told = [line for line in caplog.messages if "no training step was recorded" in line]
    assert len(told) == 1
    assert "slope" in told[0] and "not applied by a Keras optimizer" in told[0]


def test_nothing_is_said_of_a_script_whose_steps_are_recorded(
    fresh: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tape, "_seen", {})
    mlflow_tfmon.autolog(log_models=False)
    weight, optimizer = tf.Variable(5.0), keras.optimizers.SGD(0.1)
    with caplog.at_level(logging.INFO), mlflow.start_run():
        with tf.GradientTape() as one:
            loss = _loss(weight)
        optimizer.apply_gradients([(one.gradient(loss, weight), weight)])
        user_messages.say_what_was_not_seen()
    assert not any("no training step was recorded" in line for line in caplog.messages)
