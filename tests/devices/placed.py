"""Trainings whose variables are not all where the training runs: `python -m tests.devices.placed FILE CASE…`.

Each is made unwatched and then watched, on two logical CPU devices, and what became of both is written to a file as
JSON. The parameter server needs a process of its own: its cluster replaces the devices.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon import errors
from tests.devices.audited import GPU, two_devices, watch

WORDS, CLASSES, BATCH, STEPS = 20, 3, 16, 8
_random = np.random.default_rng(0)
X, Y = _random.integers(0, WORDS, (BATCH * STEPS, 4)), _random.integers(0, CLASSES, BATCH * STEPS)


def model(embedding: str = "", hidden: str = "", last: str = "") -> keras.Model:
    """A model whose layers are built on some devices."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,), dtype="int32")
    with tf.device(embedding):
        x = keras.layers.Embedding(WORDS, 8)(inputs)
    with tf.device(hidden):
        x = keras.layers.Dense(8, activation="relu")(keras.layers.Flatten()(x))
    with tf.device(last):
        return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


def loss(reduction: str = "sum_over_batch_size") -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)


def fit(build: Callable[[], keras.Model], jit: bool = False, strategy: Any = None) -> keras.Model:
    with strategy.scope() if strategy else contextlib.nullcontext():
        net = build()
        net.compile(keras.optimizers.Adam(0.01), loss(), jit_compile=jit)
    net.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)
    return net


def loop(
    build: Callable[[], keras.Model],
    graph: bool = True,
    strategy: Any = None,
    device: str = "",
) -> keras.Model:
    with strategy.scope() if strategy else contextlib.nullcontext():
        net, optimizer, loss_of = build(), keras.optimizers.Adam(0.01), loss()
        optimizer.build(net.trainable_variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.device(device):
            with tf.GradientTape() as tape:
                value = loss_of(y, net(x, training=True))
            optimizer.apply(tape.gradient(value, net.trainable_variables), net.trainable_variables)
        return value

    whole: Any = (lambda x, y: strategy.run(step, args=(x, y))) if strategy else step
    if graph:
        whole = tf.function(whole)
    for x, y in zip(np.split(X, STEPS), np.split(Y, STEPS), strict=True):
        whole(tf.constant(x), tf.constant(y))
    return net


def within(train: Callable[[], keras.Model]) -> keras.Model:
    """All of a training within a device's scope."""
    with tf.device(GPU):
        return train()


def elsewhere() -> keras.Model:
    return model(GPU, GPU, GPU)


def split() -> keras.Model:
    return model("CPU:0", "CPU:0", GPU)


def embedding_on_host() -> keras.Model:
    return model("CPU:0", GPU, GPU)


def one_device() -> Any:
    return tf.distribute.OneDeviceStrategy(GPU)


def central() -> Any:
    return tf.distribute.experimental.CentralStorageStrategy([GPU], "CPU:0")


# Without those that fail unwatched: under XLA, all variables must be where the function is called (TF 2.21).
CASES: dict[str, Callable[[], keras.Model]] = {
    "model on another device, loop": lambda: loop(elsewhere),
    "model on another device, eager loop": lambda: loop(elsewhere, graph=False),
    "model on another device, fit": lambda: fit(elsewhere),
    "model over two devices, loop": lambda: loop(split),
    "model over two devices, eager loop": lambda: loop(split, graph=False),
    "model over two devices, fit": lambda: fit(split),
    "embedding on the host, loop": lambda: loop(embedding_on_host),
    "embedding on the host, fit": lambda: fit(embedding_on_host),
    "all within tf.device, loop": lambda: within(lambda: loop(model)),
    "all within tf.device, fit": lambda: within(lambda: fit(model)),
    "all within tf.device, fit under XLA": lambda: within(lambda: fit(model, jit=True)),
    "step within tf.device, loop": lambda: loop(model, device=GPU),
    "OneDeviceStrategy, loop": lambda: loop(model, strategy=one_device()),
    "OneDeviceStrategy, fit": lambda: fit(model, strategy=one_device()),
    "CentralStorageStrategy, loop": lambda: loop(model, strategy=central()),
    "CentralStorageStrategy, fit": lambda: fit(model, strategy=central()),
}
DAILY = [
    "model on another device, loop",
    "model on another device, fit",
    "model over two devices, loop",
    "embedding on the host, fit",
]
PARAMETER_SERVER = "ParameterServerStrategy"


def cluster() -> Any:
    """A parameter server and a worker within this process."""
    from tests.servers import free_port

    spec = tf.train.ClusterSpec({job: [f"127.0.0.1:{free_port()}"] for job in ("worker", "ps")})
    config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=4)
    cluster.servers = [  # type: ignore[attr-defined]
        tf.distribute.Server(spec, job_name=job, task_index=0, config=config, protocol="grpc")
        for job in spec.jobs
    ]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(spec, rpc_layer="grpc")
    return tf.distribute.ParameterServerStrategy(resolver)


def scheduled(strategy: Any) -> keras.Model:
    """The loop of TensorFlow's guide, whose steps a coordinator schedules."""
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        net, optimizer, loss_of = model(), keras.optimizers.SGD(0.1), loss("sum")
        optimizer.build(net.trainable_variables)

    @tf.function
    def step(iterator: Any) -> tf.Tensor:
        def one(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                value = loss_of(y, net(x, training=True)) / BATCH
            gradients = tape.gradient(value, net.trainable_variables)
            optimizer.apply_gradients(zip(gradients, net.trainable_variables, strict=True))
            return value

        return strategy.run(one, args=next(iterator))

    @tf.function
    def per_worker() -> Any:
        batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH).repeat()
        return strategy.experimental_distribute_dataset(batches)

    iterator = iter(coordinator.create_per_worker_dataset(per_worker))
    for _ in range(STEPS):
        coordinator.schedule(step, args=(iterator,))
    coordinator.join()
    return net


class Said(logging.Handler):
    """The lines that the package logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def outcome(train: Callable[[], keras.Model]) -> tuple[list[np.ndarray] | None, str | None]:
    """A training's last weights, or why it broke."""
    try:
        return train().get_weights(), None
    except Exception as error:  # whatever it is: unwatched there may be none
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main(path: Path, names: list[str]) -> None:
    if names == [PARAMETER_SERVER]:
        strategy = cluster()
        cases = {PARAMETER_SERVER: lambda: scheduled(strategy)}
    else:
        two_devices()
        cases = {name: CASES[name] for name in names}
    unwatched = {name: outcome(train) for name, train in cases.items()}
    watch()
    results: dict[str, Any] = {}
    for name, train in cases.items():
        said = Said()
        errors.logger.addHandler(said)
        errors._said.clear()  # each case is to say it
        with mlflow.start_run() as run:
            weights, error = outcome(train)
        errors.logger.removeHandler(said)
        expected, broken = unwatched[name]
        same = weights is not None and expected is not None
        same = same and all(np.array_equal(a, b) for a, b in zip(weights, expected, strict=True))
        results[name] = {"unwatched": broken, "watched": error, "same": same, "said": said.lines}
        results[name]["run_id"] = run.info.run_id
    for found in results.values():
        found["recorded"] = []
        with contextlib.suppress(ValueError):  # of a run that has no steps
            found["recorded"] = [int(step) for step in mlflow_tfmon.load_run(found["run_id"]).steps.index]
    path.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    # A coordinator's threads, and servers within the process, would keep it from its end.
    sys.stdout.flush()
    if sys.argv[2:] == [PARAMETER_SERVER]:
        import os

        os._exit(0)
