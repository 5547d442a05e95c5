"""Tests of histograms: counts equal NumPy's exactly, for the same values and bins, in every mode."""

from __future__ import annotations

import threading
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mlflow_tfmon
from mlflow_tfmon.probes import histograms
from mlflow_tfmon.stream import bins
from mlflow_tfmon.stream.ring import SeldomRing
from mlflow_tfmon.watching import pipeline
from tests import trainings

INFINITE = float("inf")


def check(row: np.ndarray, values: np.ndarray) -> None:
    """Compares a row of `bins.WIDTH` with what NumPy makes of the values."""
    finite = values[np.isfinite(values)].astype(np.float64)
    np.testing.assert_array_equal(row[: bins.COUNT], np.histogram(finite, bins.EDGES)[0])
    assert row[bins.COUNT] == len(values) - len(finite) and row[bins.COUNT + 1] == (values == 0).sum()
    if len(finite):
        np.testing.assert_array_equal(row[-2:], [finite.min(), finite.max()])


# TensorFlow's threads take numbers below 1.2e-38 for zero.
@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32, allow_subnormal=False)))
def test_any_values_are_counted_as_numpy_counts(values: np.ndarray) -> None:
    for row in histograms._row.values():  # in pieces, and at once
        check(row(tf.constant(values)).numpy(), values)


def test_values_on_the_edges_and_beyond() -> None:
    edges = bins.EDGES.astype(np.float32)
    assert (edges == bins.EDGES).all()  # a float32 can be on each
    ends = [0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, np.nan]
    values = np.concatenate([edges, np.nextafter(edges[1:-1], 0), np.nextafter(edges[1:-1], np.inf), ends])
    check(histograms._row[False](tf.constant(values, tf.float32)).numpy(), values.astype(np.float32))


@pytest.mark.parametrize("kind", [np.float16, tf.bfloat16.as_numpy_dtype, np.float64])
def test_values_of_other_kinds_are_counted_as_the_single_they_are(kind: Any) -> None:
    random = np.random.default_rng(0)
    values = np.concatenate(
        [random.normal(size=500), [0.0, -0.0, np.inf, -np.inf, np.nan, -6e4, 6e4, 2**-14]]
    )
    values = values.astype(kind)
    check(histograms._row[False](tf.constant(values)).numpy(), values.astype(np.float32))


def test_quantiles_are_right_to_the_width_of_a_bin() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    counts = np.histogram(values, bins.EDGES)[0]
    first, end = bins.trimmed(counts)
    shares = np.array([0.0, 0.05, 0.5, 0.95, 1.0])
    found = bins.quantiles(bins.EDGES[first : end + 1], counts[first:end], shares, values.min(), values.max())
    exact = np.quantile(values, shares)
    np.testing.assert_allclose(found, exact, rtol=0.25, atol=0.02)
    np.testing.assert_allclose(found[[0, -1]], exact[[0, -1]])


def test_a_ring_of_few_rows_keeps_the_last() -> None:
    ring = SeldomRing(2, memory=0, most=9)
    for step in range(1, 8):
        ring.write(tf.constant([step, step * 10.0], tf.float64))
    first = ring.read(6)
    np.testing.assert_array_equal(first.rows, [[5, 50], [6, 60]])  # one may be being written just now
    assert first.lost == 4
    np.testing.assert_array_equal(ring.read(6).rows, first.rows)  # not recorded: they come again
    ring.taken = first.taken
    second = ring.read(9)
    np.testing.assert_array_equal(second.rows, [[7, 70]])
    ring.taken = second.taken
    assert (second.lost, ring.read(9).lost, len(ring.read(9).rows)) == (0, 0, 0)
    ring.write(tf.constant([8, 80.0], tf.float64))
    ring.skip()
    assert (len(ring.read(9).rows), ring.read(9).lost) == (0, 0)


class Reference:
    """Trains by hand as `trainings.custom_step` does, with a copy of all weights and gradients of each step."""

    def __init__(self, net: keras.Model, steps: list[Any], rate: float) -> None:
        optimizer = keras.optimizers.SGD(rate)
        self.weights, self.gradients = [], []
        for x, y in steps:
            self.gradients.append(trainings.differentiated(net, x, y)[1])
            pairs = zip([tf.constant(g) for g in self.gradients[-1]], net.trainable_variables, strict=True)
            optimizer.apply_gradients(pairs)
            self.weights.append([v.numpy() for v in net.trainable_variables])


def compare(found: pd.DataFrame, step: int, variable: str, kind: str, values: np.ndarray) -> None:
    rows = found[(found.step == step) & (found.variable == variable) & (found.kind == kind)]
    assert len(rows) == 1
    row = rows.iloc[0]
    np.testing.assert_array_equal(np.histogram(values.astype(np.float64), row.edges)[0], row.counts)
    assert row.counts.sum() == values.size and row.nonfinite == 0 and row.zeros == (values == 0).sum()
    np.testing.assert_array_equal([row["min"], row["max"]], [values.min(), values.max()])


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("mode", ["graph", "eager", "xla"])
def test_a_training_gives_those_of_its_weights_and_gradients(mode: str) -> None:
    steps = list(trainings.batches(*trainings.data(), 1))
    reference = Reference(trainings.model(), steps, 0.5)
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.5), in_graph=mode == "graph")
    if mode == "xla":
        step = tf.function(step, jit_compile=True)
    with mlflow_tfmon.Monitor(net, deep_every=4):
        for x, y in steps:
            step(x, y)
    found = mlflow_tfmon.load_run(trainings.last_run()).histograms
    assert sorted(set(found.step)) == [1, 4, 8] and len(found) == 3 * 2 * 4
    for at in (1, 4, 8):
        for position, variable in enumerate(net.trainable_variables):
            name = trainings.name(variable)
            weights, gradient = reference.weights[at - 1][position], reference.gradients[at - 1][position]
            if mode == "graph":  # which computes as the reference does, bit for bit
                compare(found, at, name, "weight", weights)
                compare(found, at, name, "gradient", gradient)
            row = found[(found.step == at) & (found.variable == name) & (found.kind == "weight")].iloc[0]
            np.testing.assert_allclose([row["min"], row["max"]], [weights.min(), weights.max()], rtol=1e-5)


@pytest.mark.usefixtures("fresh")
def test_a_sparse_gradient_has_the_zeros_that_it_leaves_out() -> None:
    keras.utils.set_random_seed(1)
    net = keras.Sequential([keras.layers.Embedding(20, 3), keras.layers.Flatten(), keras.layers.Dense(1)])
    net.compile("sgd", "mse")
    x, y = np.array([[1, 2], [1, 3]]), np.ones((2, 1))
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    net.fit(x, y, batch_size=2, epochs=1, verbose=0)
    found = mlflow_tfmon.load_run(trainings.last_run()).histograms
    gradient = found[(found.kind == "gradient") & found.variable.str.contains("embedding")].iloc[0]
    assert gradient.counts.sum() == 60 and gradient.zeros == 60 - 3 * 3
    assert gradient["min"] <= 0 <= gradient["max"]


@pytest.mark.usefixtures("fresh")
def test_of_a_long_training_every_histogram_is_rarer_than_the_last() -> None:
    net = trainings.model()
    x, y = next(trainings.batches(*trainings.data(), 1))
    single = trainings.custom_step(net, keras.optimizers.SGD(0.01))
    many = tf.function(lambda: [single(x, y) for _ in range(1)] and None)
    with mlflow_tfmon.Monitor(net, deep_every=1) as monitor:
        for _ in range(140):
            many()
            monitor.log(seen=1.0)  # as the drain's thread would, empties the ring
    found = sorted(set(mlflow_tfmon.load_run(mlflow.last_active_run().info.run_id).histograms.step))
    assert found == [*range(1, 32), *range(32, 64, 2), *range(64, 128, 4), *range(128, 141, 8)]
    assert [n for n in range(141) if bins.due(n)] == [0, *found]


@pytest.mark.usefixtures("fresh")
def test_what_is_overwritten_before_it_could_be_read_is_counted_and_said() -> None:
    net = trainings.model()
    x, y = next(trainings.batches(*trainings.data(), 1))
    step = trainings.custom_step(net, keras.optimizers.SGD(0.01))
    with mlflow_tfmon.Monitor(net, deep_every=1) as monitor:
        step(x, y)
        monitor.log(seen=1.0)
        with pipeline.DRAIN._lock:  # a drain that can't keep up
            for _ in range(299):
                step(x, y)
    run = mlflow.get_run(trainings.last_run())
    recorded = mlflow_tfmon.load_run(run.info.run_id)
    due = [n for n in range(1, 301) if bins.due(n)]
    there = sorted(set(recorded.histograms.step))
    assert 0 < len(there) < len(due) and set(there) < set(due)
    assert run.data.tags["tfmon.lost_histograms"] == str(len(due) - len(there))
    deep = recorded.layers.dropna(subset=["weight_norm"]).step.nunique()
    assert run.data.tags["tfmon.lost_deep_steps"] == str(300 - deep)
    assert len(recorded.steps) == 300 and "tfmon.lost_steps" not in run.data.tags


class Weights(keras.callbacks.Callback):
    """Copies the weights at each epoch's end."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[np.ndarray]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append([v.numpy() for v in self.model.trainable_variables])


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("frozen", [False, True])
def test_at_each_epochs_end_there_are_those_of_the_weights(frozen: bool) -> None:
    plain = trainings.model()
    plain.compile("adam", trainings.loss())
    plain.fit(*trainings.data(), batch_size=trainings.BATCH, epochs=5, shuffle=False, verbose=0)
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, deep_every=4)
    net, weights = trainings.model(), Weights()
    net.compile("adam", trainings.loss())
    with mlflow.start_run() as run:
        fit = {"batch_size": trainings.BATCH, "shuffle": False, "verbose": 0, "callbacks": [weights]}
        net.fit(*trainings.data(), epochs=5, **fit)
        for mine, one in zip(net.trainable_variables, plain.trainable_variables, strict=True):
            np.testing.assert_array_equal(mine.numpy(), one.numpy())  # bit for bit
        if frozen:
            net.layers[0].trainable = False
            net.compile("adam", trainings.loss())
            net.fit(*trainings.data(), epochs=1, **fit)
    found = mlflow_tfmon.load_run(run.info.run_id).histograms
    for epoch, seen in enumerate(weights.seen):
        step = 10 * (epoch + 1)
        for variable, values in zip(
            net.trainable_variables, seen[-len(net.trainable_variables) :], strict=True
        ):
            compare(found, step, trainings.name(variable), "weight", values)
    gradients = set(found[found.kind == "gradient"].step)
    assert {1, 4, 8, 12, 20, 40} <= gradients and not {10, 30, 50} & gradients  # of deep steps alone


@pytest.mark.usefixtures("fresh")
def test_a_loop_that_tells_of_its_epochs_has_them_too() -> None:
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.01))
    with mlflow_tfmon.Monitor(net, deep_every=100) as monitor:
        for epoch in range(2):
            for x, y in trainings.batches(*trainings.data(), 1):
                step(x, y)
            monitor.log_epoch(epoch)
    found = mlflow_tfmon.load_run(trainings.last_run()).histograms
    assert found.groupby("kind").step.unique().map(list).to_dict() == {"gradient": [1], "weight": [1, 10, 20]}
    for variable in net.trainable_variables:
        compare(found, 20, trainings.name(variable), "weight", variable.numpy())


@pytest.mark.usefixtures("fresh")
def test_the_training_does_not_wait_until_its_weights_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    by, begun, go_on = list[threading.Thread](), threading.Event(), threading.Event()
    counts = histograms._counts

    def slow_counts(values: Any) -> np.ndarray:
        by.append(threading.current_thread())
        begun.set()
        go_on.wait(60)
        return counts(values)

    monkeypatch.setattr(histograms, "_counts", slow_counts)
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.01))
    with mlflow_tfmon.Monitor(net, deep_every=100) as monitor:
        for x, y in trainings.batches(*trainings.data(), 1):
            step(x, y)
        monitor.log_epoch(0)
        assert begun.wait(60)
        before = [variable.numpy() for variable in net.trainable_variables]
        for x, y in trainings.batches(*trainings.data(), 1):
            step(x, y)
        go_on.set()
    assert len(by) == 1 and by[0] is not threading.current_thread()
    found = mlflow_tfmon.load_run(trainings.last_run()).histograms
    for variable, values in zip(net.trainable_variables, before, strict=True):
        compare(found, 10, trainings.name(variable), "weight", values)
