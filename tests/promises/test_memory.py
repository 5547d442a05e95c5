"""Tests that nothing outlives a model: no objects, device memory, threads, descriptors or processes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.delivery.process import DeliveryProcess
from mlflow_tfmon.stream import ring
from tests import trainings
from tests.daily import thorough

pytestmark = pytest.mark.usefixtures("fresh")


def fit() -> None:
    x, y = trainings.data(32)
    model = trainings.model()
    for _ in range(2):  # compiled again, as in a k-fold
        model.compile(keras.optimizers.Adam(0.01), trainings.loss())
        model.fit(x, y, batch_size=trainings.BATCH, verbose=0)


def loop() -> None:
    model = trainings.model()
    step = trainings.custom_step(model, keras.optimizers.SGD(0.1))
    for a, b in trainings.batches(*trainings.data(32), 1):
        step(a, b)
    mlflow_tfmon.end_run()


def monitored() -> None:
    model = trainings.model()
    step = trainings.custom_step(model, keras.optimizers.SGD(0.1))
    with mlflow_tfmon.Monitor(model, monitor="loss") as monitor:
        for a, b in trainings.batches(*trainings.data(32), 1):
            step(a, b)
        monitor.log_epoch(0, {"loss": 1.0})


def ours() -> Counter[str]:
    """How many objects of our classes there are, of lasting variables, and of graphs with ops of ours."""
    keras.backend.clear_session()
    gc.collect()
    ring.give_back()
    gc.collect()
    things = gc.get_objects()
    found = Counter(
        type(one).__name__ for one in things if str(type(one).__module__).startswith("mlflow_tfmon")
    )
    found["graph"] = sum(
        hasattr(type(one), "outer_graph") and hasattr(one, "_mlflow_tfmon_handed_over") for one in things
    )
    found["variable"] = sum(hasattr(type(one), "_shared_name") and _is_ours(one) for one in things)
    return +found


def _is_ours(variable: Any) -> bool:
    return hasattr(variable.handle, "_cached_variable") and not variable.trainable


@pytest.mark.slow
@pytest.mark.parametrize("train", thorough([fit, loop, monitored], [loop, monitored]))
def test_no_object_of_ours_outlives_its_training(
    train: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("watch", "wait", "ensure_alive"):
        monkeypatch.setattr(DeliveryProcess, name, lambda *_, **__: True)
    monkeypatch.delenv("MLFLOW_AUTOLOGGING_TESTING", raising=False)
    mlflow_tfmon.autolog(log_models=False, monitor="loss")
    earlier = ours()  # what other tests of this process still hold
    train()
    before = ours()
    for _ in range(20):  # the last training's graph may be held until a thread of ours has looked again
        if not (before - earlier).keys() & {"Ring", "variable", "graph"}:
            break
        time.sleep(0.25)
        before = ours()
    for _ in range(3):
        train()
    more = {name: number - before[name] for name, number in ours().items() if number - before[name] >= 3}
    assert not more
    assert not (before - earlier).keys() & {"Ring", "variable", "graph"}, before - earlier


def concrete_step(x: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    weights, optimizer = tf.Variable(tf.ones([4])), keras.optimizers.SGD(0.1)
    optimizer.build([weights])

    @tf.function
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((weights * x) ** 2)
        optimizer.apply(tape.gradient(loss, [weights]), [weights])
        return loss

    step(x)
    return step.get_concrete_function(x)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_function_that_outlives_its_model_goes_on() -> None:
    """What it writes into is there as long as it can be called."""
    x = tf.constant(np.arange(4.0), tf.float32)
    with mlflow_tfmon.Monitor(monitor="loss"):
        concrete = concrete_step(x)
    losses = []
    for _ in range(3):
        gc.collect()
        ring.give_back()
        losses.append(float(concrete(x)))
    assert 14 > losses[0] > losses[1] > losses[2] > 0


CENSUS = """
    import gc, os, sys
    import keras, numpy as np, psutil
    me, x, y = psutil.Process(), np.ones((64, 4), "float32"), np.ones((64, 1), "float32")
    if sys.argv[1] == "watched":
        import mlflow_tfmon
        mlflow_tfmon.autolog(log_models=False, report=False, silent=True, delivery_wait=0.0)
    seen = []
    for number in range(int(sys.argv[2])):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(x, y, batch_size=16, verbose=0)
        del model
        keras.backend.clear_session()
        gc.collect()
        if number in (int(sys.argv[2]) // 2, int(sys.argv[2]) - 1):
            seen += [me.memory_info().rss, me.num_threads(), me.num_fds(), len(me.children(recursive=True))]
    print("census", *seen)
"""


@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_many_fits_take_no_more_than_unwatched() -> None:
    fits, growth = 200, {}
    # MLflow's own check of autologging asks that a run has ended: with delivery_wait=0 it does so when it has arrived.
    environment = {**os.environ, "MLFLOW_AUTOLOGGING_TESTING": "false"}
    started = {
        how: subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CENSUS), how, str(fits)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for how in ("watched", "unwatched")
    }  # fmt: skip
    for how, process in started.items():
        out, said = process.communicate()
        assert process.returncode == 0, said[-4000:]
        (line,) = [line for line in out.splitlines() if line.startswith("census")]
        half, end = np.array([int(one) for one in line.split()[1:]]).reshape(2, 4)
        growth[how] = end - half
    assert list(growth["watched"][1:]) == list(growth["unwatched"][1:])  # threads, descriptors, processes
    assert (growth["watched"][0] - growth["unwatched"][0]) / (fits / 2) < 2**20  # bytes a fit
