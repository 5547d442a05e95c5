"""Tests of the final diagnosis: a finished training is diagnosed as complete, an interrupted one by its plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.detectors import History, judge
from mlflow_tfmon.detectors.table import Table
from mlflow_tfmon.problems.rediagnosis import diagnose
from tests.detectors.histories import history, premises
from tests.problems.test_problems import _data, _tags

_CHANCE = float(np.log(4))


def _kinds(of: History, **changes: Any) -> list[str]:
    return [one.kind for one in judge(dataclasses.replace(of, **changes))]


@pytest.mark.parametrize("planned", [None, 5000], ids=["length not known", "stopped early"])
def test_one_that_ended_without_having_learned_is_told_of(planned: int | None) -> None:
    stuck = history(_CHANCE, steps=200)
    assert _kinds(stuck, total_steps=planned) == []
    assert _kinds(stuck, total_steps=planned, ended=True) == ["underfitting"]


def test_few_steps_are_enough_if_they_are_epochs() -> None:
    stuck = history(_CHANCE, steps=24, update=0.01)
    assert _kinds(stuck, ended=True) == ["underfitting"]
    assert _kinds(stuck) == _kinds(stuck, ended=True, epochs=Table()) == []


@pytest.mark.parametrize("end", [0.3, 2.0], ids=["much", "little"])
@pytest.mark.parametrize("seed", range(4))
def test_a_short_loop_that_learns_is_clean(end: float, seed: int) -> None:
    noise = 0.1 * np.random.default_rng(seed).normal(size=100)
    loss = np.linspace(2.3, end, 100) + noise
    short = history(loss, steps=100, known=premises(loss="", targets=None), update=5e-4)
    assert _kinds(short, total_steps=None, ended=True) == []


def _loop(steps: int, rate: float) -> None:
    x, y = _data()
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
    optimizer = keras.optimizers.Adam(rate)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)

    @tf.function
    def step(rows: Any, labels: Any) -> None:
        with tf.GradientTape() as tape:
            value = loss(labels[:, None], model(rows))
        optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)

    for number in range(steps):
        at = slice(32 * (number % 8), 32 * (number % 8 + 1))
        step(tf.constant(x[at]), tf.constant(y[at]))


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("rate", "interrupted", "expected"),
    [(1e-8, False, "learning_rate_too_low"), (1e-8, True, "none"), (0.02, False, "none")],
    ids=["stuck", "interrupted", "learns"],
)
def test_a_short_loop(rate: float, interrupted: bool, expected: str) -> None:
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, delivery_wait=120.0)
    run: Any = None
    try:
        with mlflow.start_run() as run:
            _loop(100, rate)
            if interrupted:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert _tags(run.info.run_id)["tfmon.problems"] == expected
    recorded = mlflow_tfmon.load_run(run.info.run_id)
    kinds = [one.kind for one in recorded.problems]
    assert kinds == [one.kind for one in diagnose(recorded)]
    assert (",".join(kinds) or "none") == expected


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("own_run", [False, True], ids=["a run made for it", "the user's"])
@pytest.mark.parametrize("interrupted", [False, True], ids=["stopped early", "interrupted"])
def test_a_fit_that_ends_before_its_last_epoch(own_run: bool, interrupted: bool) -> None:
    class End(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 7 and interrupted:
                raise KeyboardInterrupt
            self.model.stop_training = epoch == 7

    x, _ = _data()
    labels = np.random.default_rng(3).integers(0, 2, len(x))
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.SGD(1e-6), "binary_crossentropy")
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, delivery_wait=120.0)
    if own_run:
        mlflow.start_run()
    try:
        model.fit(x, labels, epochs=400, verbose=0, callbacks=[End()])
    except KeyboardInterrupt:
        assert interrupted
    if own_run:
        mlflow.end_run()
    (run,) = mlflow.search_runs(output_format="list")
    assert ("learning_rate_too_low" in _tags(run.info.run_id)["tfmon.problems"]) != interrupted
