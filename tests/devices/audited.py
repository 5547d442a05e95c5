"""Trainings whose traced functions are audited, unwatched and watched: `python -m tests.devices.audited FILE CASE…`.

All run where a GPU is stood in for by a second logical CPU device, and what is found is written to a file as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

import mlflow_tfmon
from tests.devices.audit import Finding, added, audit, executed, training

GPU = "CPU:1"  # stands in for it
FEATURES, HIDDEN, CLASSES, BATCH, STEPS = 6, 1000, 3, 16, 4
_random = np.random.default_rng(0)
X, Y = _random.normal(size=(BATCH * STEPS, FEATURES)).astype("float32"), np.arange(BATCH * STEPS) % CLASSES


def two_devices() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def watch() -> None:
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, report=False, checkpoint=False)


def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(HIDDEN, activation="relu"), keras.layers.Dense(CLASSES, dtype="float32")]
    return keras.Sequential([keras.Input((FEATURES,)), *layers])


def loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH, drop_remainder=True)


def fit(strategy: tf.distribute.Strategy | None = None, **settings: Any) -> keras.Model:
    with (strategy or tf.distribute.get_strategy()).scope():
        net = model()
        net.compile(keras.optimizers.Adam(0.01, **settings.pop("optimizer", {})), loss(), **settings)
    net.fit(dataset(), verbose=0)
    return net


def half() -> keras.Model:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return fit()
    finally:
        keras.config.set_dtype_policy("float32")


def step_of(net: keras.Model, **settings: Any) -> Callable[..., tf.Tensor]:
    optimizer, loss_of = keras.optimizers.Adam(0.01, **settings), loss()
    optimizer.build(net.trainable_variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss_of(y, net(x, training=True))
        optimizer.apply(tape.gradient(value, net.trainable_variables), net.trainable_variables)
        return value

    return step


def loop_of_tensors() -> keras.Model:
    net = model()
    step = tf.function(step_of(net))
    for x, y in zip(np.split(X, STEPS), np.split(Y, STEPS), strict=True):
        step(tf.constant(x), tf.constant(y))
    return net


def loop_of_an_iterator(**settings: Any) -> keras.Model:
    net = model()
    one = step_of(net, **settings)

    @tf.function
    def step(iterator: Any) -> tf.Tensor:
        return one(*next(iterator))

    with tf.device("CPU:0"):
        iterator = iter(dataset())
    for _ in range(STEPS):
        step(iterator)
    return net


FIGURES: dict[str, Callable[[], keras.Model]] = {
    "fit": fit,
    "loop, next(iterator) inside": loop_of_an_iterator,
    "loop fed tensors": loop_of_tensors,
    "mixed_float16": half,
    "MirroredStrategy of one": lambda: fit(tf.distribute.MirroredStrategy([GPU])),
    "steps_per_execution=4": lambda: fit(steps_per_execution=4),
    "fit under XLA": lambda: fit(jit_compile=True),
    "clipping": lambda: fit(optimizer={"global_clipnorm": 0.1}),
    "gradient accumulation": lambda: fit(optimizer={"gradient_accumulation_steps": 2}),
}

DAILY = ["fit", "loop, next(iterator) inside", "mixed_float16"]
PARTITIONS = "partitions"


@dataclass(frozen=True)
class Audited:
    """What the audit finds in the functions of a training, and why the training broke, if it did."""

    found: list[Finding]
    functions: int
    error: str | None


def audited(train: Callable[[], keras.Model]) -> Audited:
    error = None
    with executed() as calls, tf.device(GPU):
        try:
            train()
        except tf.errors.OpError as broken:
            error = " ".join(str(broken).split())[:300]
    functions = training(calls)
    return Audited([one for function in functions for one in audit(function, HIDDEN)], len(functions), error)


def sent() -> dict[str, Any]:
    """What one step's placed partitions send to one another: the way, the source's op, its name and elements.

    What has no kernel for a GPU is placed on the stand-in too, so this sees less of the host than `audit`, but it is
    what TensorFlow's own placer makes of the rest.
    """
    iterator = iter(dataset())  # the host's, as with a GPU
    with tf.device(GPU):
        net = model()
        one = step_of(net)
        step = tf.function(lambda iterator: one(*next(iterator)))
        function = step.get_concrete_function(iterator)
        context.enable_graph_collection()
        context.enable_run_metadata()
        error = None
        try:
            function(iterator)
        except tf.errors.OpError as broken:
            error = " ".join(str(broken).split())[:300]
    metadata = context.export_run_metadata()
    context.disable_run_metadata()
    context.disable_graph_collection()
    elements = {
        op.name: op.outputs[0].shape.num_elements() for op in function.graph.get_operations() if op.outputs
    }
    things = []
    for graph in (graph for graphs in metadata.function_graphs for graph in graphs.partition_graphs):
        nodes = {node.name: node for node in graph.node}
        for node in graph.node:
            if node.op in ("_Send", "_HostSend"):
                source = nodes[node.input[0].lstrip("^").split(":")[0]]
                way = [node.attr[one].s.decode()[-5:] for one in ("send_device", "recv_device")]
                things.append([" -> ".join(way), source.op, source.name, elements.get(source.name)])
    return {"error": error, "sent": things}


def main(path: Path, names: list[str]) -> None:
    two_devices()
    figures = {name: FIGURES[name] for name in names if name in FIGURES}
    before = {name: audited(train) for name, train in figures.items()}
    sends = {"unwatched": sent()} if PARTITIONS in names else {}
    watch()
    results: dict[str, Any] = {}
    with mlflow.start_run():  # one for all: the end of each would wait for delivery
        for name, train in figures.items():
            after = audited(train)
            results[name] = {
                "functions": [before[name].functions, after.functions],
                "added": added(after.found, before[name].found),
                "errors": [before[name].error, after.error],
            }
        if PARTITIONS in names:
            sends["watched"] = sent()
    path.write_text(json.dumps({**results, PARTITIONS: sends}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
