"""The checksum of the weights, against NumPy, and what a comparison makes of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.probes import pieces, quantities
from mlflow_tfmon.report.comparison import Bits, bits, differences, parting
from mlflow_tfmon.signals import INGREDIENTS
from mlflow_tfmon.signals.checksum import CHECKSUM
from tests import trainings
from tests.daily import thorough

EPOCHS, EVERY = 2, 2
STEPS = EPOCHS * 10  # the last one is deep


def by_numpy(values: np.ndarray) -> int:
    """The sum of the hashes of the bits, in Python's own integers."""
    words = np.ascontiguousarray(values).reshape(-1).view(np.int32).tolist()
    products = [word * 0x5BD1E995 for word in words]
    return sum((one ^ (one >> 29)) % 2**24 for one in products) % 2**24


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_it_is_exact_whatever_the_values_and_the_size(kind: Any) -> None:
    random = np.random.default_rng(0)
    size = pieces.PIECE + 77
    values = (random.normal(size=size) * 10.0 ** random.integers(-30, 30, size)).astype(kind)
    values[:5] = [0.0, -0.0, np.inf, np.nan, 1e-42]
    at = [one.name for one in INGREDIENTS if not one.state].index(CHECKSUM.name)
    small = values[: pieces.PIECE]
    for measure, given in (
        (quantities._of_variable[False, False], values),  # in pieces
        (quantities._of_variable[False, True], small),
        (tf.function(lambda *some: quantities._deep(False, False, *some), jit_compile=True), values),
    ):
        tensor = tf.constant(given)
        assert int(measure(tensor, tensor, tensor)[at]) % 2**24 == by_numpy(given)


def test_the_least_changes_change_it() -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=(100, 100)).astype(np.float32)

    def checksum(some: np.ndarray) -> float:
        return float(CHECKSUM.trace(SimpleNamespace(new=tf.constant(some)))) % 2**24

    seen = {checksum(values)}
    for _ in range(200):
        changed = values.copy()
        up, down = random.integers(0, 100, (2, 2))
        changed[tuple(up)] = np.nextafter(changed[tuple(up)], np.float32(np.inf))
        if _ % 2:  # one up and one down, which a plain sum would not tell
            changed[tuple(down)] = np.nextafter(changed[tuple(down)], np.float32(-np.inf))
        if (changed != values).any():
            seen.add(checksum(changed))
    assert len(seen) >= 199
    assert checksum(np.array([0.0], np.float32)) != checksum(np.array([-0.0], np.float32))


def train(way: str, change: bool = False) -> tuple[keras.Model, str]:
    net, optimizer = trainings.model(name="net"), keras.optimizers.SGD(0.1)
    if change:
        kernel = net.trainable_variables[2]
        weights = kernel.numpy()
        weights[3, 1] = np.nextafter(weights[3, 1], np.float32(1))
        kernel.assign(weights)
    x, y = trainings.data()
    if way.startswith("fit"):
        mlflow_tfmon.autolog(deep_every=EVERY, log_models=False, log_datasets=False)
        net.compile(optimizer, trainings.loss(), jit_compile="XLA" in way)
        net.fit(x, y, batch_size=trainings.BATCH, epochs=EPOCHS, shuffle=False, verbose=0)
    else:
        step = tf.function(trainings.custom_step(net, optimizer, in_graph=False), jit_compile="XLA" in way)
        with mlflow_tfmon.Monitor(net, deep_every=EVERY, report=False):
            for batch in trainings.batches(x, y, EPOCHS):
                step(*batch)
    return net, trainings.last_run()


@pytest.mark.parametrize(
    "way", thorough(["fit", "loop", "fit, XLA", "loop, XLA"], ["fit, XLA", "loop, XLA"], [])
)
def test_it_is_that_of_the_weights_and_tells_the_first_step_at_which_two_runs_differ(
    fresh: None, way: str
) -> None:
    net, first = train(way)
    run = mlflow_tfmon.load_run(first)
    last = run.layers[run.layers.step == STEPS].set_index("variable").weight_checksum
    assert last.to_dict() == {trainings.name(v): by_numpy(v.numpy()) for v in net.trainable_variables}
    again, other = (mlflow_tfmon.load_run(train(way, change)[1]) for change in (False, True))
    deep = 1 + STEPS // EVERY
    assert bits(run, again) == Bits(None, "", deep) and parting(run, again) is None
    found = bits(run, other)
    assert (found.step, found.compared) == (1, deep) and found.variable.startswith("net.")
    told = differences([first, again.run_id, other.run_id])
    assert [one["step"] for one in told["bits"]] == [None, 1]
    page = mlflow_tfmon.compare([first, again.run_id])
    assert f"at every common step, bit for bit in the weights at {deep} steps" in page
    key = "weight_checksum/"  # a curve of it would say nothing
    assert not [one for one in mlflow.get_run(first).data.metrics if one.startswith(key)]
