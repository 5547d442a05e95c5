"""Tests of the cost of monitoring by counts: the training thread runs only traced ops, and few of them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.stream.records import Variable
from mlflow_tfmon.stream.ring import Ring, RingLayout
from tests import trainings


@pytest.fixture
def watched(store: str, home: Path) -> Iterator[None]:
    mlflow.set_tracking_uri(store)
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    yield
    mlflow_tfmon.autolog(disable=True)


def ops(step: Any, *batch: tf.Tensor) -> Counter[str]:
    """The ops that run in an ordinary step: those of the branch taken once in `deep_every` steps are left out."""
    graph = step.get_concrete_function(*batch).graph
    return Counter(op.type for op in graph.get_operations())


def test_the_graph_grows_by_two_ops_a_variable_and_a_constant(store: str, home: Path) -> None:
    x, y = next(trainings.batches(*trainings.data(), 1))

    def grown(hidden: int) -> int:
        def step() -> Any:
            keras.utils.set_random_seed(1)
            layers = [keras.layers.Dense(4, activation="relu") for _ in range(hidden)]
            net = keras.Sequential(
                [keras.Input((trainings.FEATURES,)), *layers, keras.layers.Dense(trainings.CLASSES)]
            )
            return trainings.custom_step(net, keras.optimizers.SGD(0.1))

        unwatched = ops(step(), x, y)
        mlflow.set_tracking_uri(store)
        with mlflow.start_run():
            mlflow_tfmon.autolog()
            watched = ops(step(), x, y)
            mlflow_tfmon.autolog(disable=True)
        more = watched - unwatched
        assert not {"PyFunc", "EagerPyFunc", "Print", "PrintV2"} & set(more)  # no Python
        assert (
            more["If"] + more["StatelessIf"] == 2
        )  # the deep step's snapshot and row: left whole, not lowered
        assert more["L2Loss"] == 2 * (hidden + 1)
        # Constants, and identities that TensorFlow's optimizer removes, do not run.
        return sum(count for op, count in more.items() if op not in ("Const", "Identity", "NoOp"))

    few, many = grown(1), grown(11)
    # Per variable: cast and sum of squares each step; the deep conds take its handle, gradient and empty snapshot.
    assert (many - few) / 20 <= 3
    assert few <= 60


class Calls:
    """Python functions of this package, or of a room of it, that this thread enters between `begin` and `end`."""

    def __init__(self, room: str = "") -> None:
        self.seen: Counter[str] = Counter()
        self._package = str(Path(mlflow_tfmon.__file__).parent / room)

    def begin(self) -> None:
        sys.setprofile(self._profile)

    def end(self) -> None:
        sys.setprofile(None)

    def _profile(self, frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(self._package):
            self.seen[code.co_qualname if hasattr(code, "co_qualname") else code.co_name] += 1


def calls_of_ours(train: Callable[[], Any], room: str = "") -> Counter[str]:
    """Python functions of this package, or of a room of it, that the training thread enters."""
    calls = Calls(room)
    calls.begin()
    try:
        train()
    finally:
        calls.end()
    return calls.seen


def calls_in_epochs(net: keras.Model, rows: int) -> Counter[str]:
    """The same within the epochs of a fit: not what waits for delivery, or judges, at its end."""
    calls = Calls()
    epochs = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: calls.begin(), on_epoch_end=lambda *_: calls.end()
    )
    net.fit(*trainings.data(rows=rows), batch_size=16, epochs=2, verbose=0, callbacks=[epochs])
    return calls.seen


@pytest.mark.slow
def test_tracing_grows_with_the_variables_not_with_their_square(watched: None) -> None:
    def calls(hidden: int) -> int:
        layers = [keras.layers.Dense(4, activation="relu") for _ in range(hidden)]
        net = keras.Sequential([keras.Input((trainings.FEATURES,)), *layers, keras.layers.Dense(3)])
        net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        rows = trainings.data(rows=16)
        return calls_of_ours(lambda: net.fit(*rows, batch_size=16, verbose=0), "probes").total()

    calls(2)  # what is traced once for all nets
    few, more, most = calls(5), calls(10), calls(20)
    assert most - more <= 2.1 * (more - few)


def test_fit_calls_no_python_of_ours_in_a_step(watched: None) -> None:
    net = trainings.model()
    net.compile("sgd", trainings.loss())
    with mlflow.start_run():
        calls_in_epochs(net, 16)  # traces
        few, many = calls_in_epochs(net, 16), calls_in_epochs(net, 160)
    # 18 steps more: what is called in a step would be called 18 times more.
    assert {name: count for name, count in many.items() if count - few[name] >= 9} == {}


def test_a_custom_loop_calls_no_python_of_ours_in_a_step(watched: None) -> None:
    step = trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.1))
    with mlflow.start_run():
        batches = list(trainings.batches(*trainings.data(), 1))
        step(*batches[0])
        assert not calls_of_ours(lambda: [step(a, b) for a, b in batches])
        dataset = tf.data.Dataset.from_tensor_slices(trainings.data()).batch(trainings.BATCH)
        next(iter(dataset))  # the first batch of a thread tells how many are held
        seen = calls_of_ours(lambda: [step(a, b) for a, b in dataset])
    # Taking a batch in eager code is timed: three short calls beside the many of TensorFlow's own.
    assert sum(seen.values()) <= 7 * 11


def test_what_is_measured_rarely_is_traced_once_though_keras_traces_a_first_step_twice(watched: None) -> None:
    net, (x, y) = trainings.model(), trainings.data()
    net.compile("adam", trainings.loss())
    with mlflow.start_run():
        seen = calls_of_ours(lambda: net.fit(x, y, epochs=1, verbose=0))
    called: Counter[str] = Counter()
    for name, count in seen.items():
        called[name.rpartition(".")[2]] += count
    assert called["_look"] == 2
    assert called["deep_row"] == 2  # the branch, and what it holds


def test_a_step_is_recorded_of_a_function_whose_first_trace_is_run_after_all(watched: None) -> None:
    """One that makes a variable with an initial value that depends on what it is given: both traces are kept."""
    weight, optimizer = tf.Variable([1.0, 2.0]), keras.optimizers.Adam(0.1)
    largest: list[tf.Variable] = []

    @tf.function
    def step(x: tf.Tensor) -> tf.Tensor:
        if not largest:
            largest.append(tf.Variable(tf.reduce_max(x)))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(weight * x))
        optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])
        return loss

    with mlflow.start_run() as run:
        losses = [float(step(tf.constant([1.0, 2.0 + n]))) for n in range(4)]
    recorded = mlflow_tfmon.load_run(run.info.run_id).steps
    assert float(largest[0]) == 2.0
    assert recorded["loss"].tolist() == pytest.approx(losses)


def test_training_is_not_synchronised_with_the_host(watched: None) -> None:
    """No tensor's value is fetched by us on the training thread in a step."""
    import threading

    from tensorflow.python.framework.ops import EagerTensor  # the class whose `numpy` waits for the device

    step = trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.1))
    fetched: list[int] = []
    original = EagerTensor.numpy

    def numpy(self: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            fetched.append(1)
        return original(self)

    with mlflow.start_run():
        batches = list(trainings.batches(*trainings.data(), 1))
        step(*batches[0])
        EagerTensor.numpy = numpy
        try:
            for a, b in batches:
                step(a, b)
        finally:
            EagerTensor.numpy = original
    assert not fetched


def test_a_ring_of_ten_thousand_variables_takes_bounded_memory() -> None:
    variables = tuple(Variable(f"layer{n}.kernel", (9, 9), True) for n in range(10_000))
    ring = Ring(RingLayout(variables, frozenset(), ("grad_norm", "grad_norm_clipped")), 0)
    every_step, deep = (8 * one.capacity * one.width for one in (ring, ring.deep))
    assert every_step <= 16 * 2**20 and deep <= 16 * 2**20  # so many bytes, whatever the model
    assert ring.histograms.capacity == 4  # as few as can be: a row of them is 6 kB a variable
    assert all(
        tuple(one.rows.shape) == (one.capacity, one.width) for one in (ring, ring.deep, ring.histograms)
    )
