"""Trainings on several replicas, each without and with monitoring; run as scripts by `tests.promises.test_distribute`.

python -m tests.distributed mirrored FOLDER
python -m tests.distributed worker FOLDER INDEX PORT PORT
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import tensorflow as tf

import mlflow_tfmon
from tests import trainings
from tests.trainings import BATCH

STEPS, FEW = 10, 2  # few where steps are slow
RATE, CLIP, DEEP, SLEEP = 0.05, 0.1, 4, 0.05


def fit(strategy: tf.distribute.Strategy, optimizer: Any, steps: int = STEPS, **settings: Any) -> keras.Model:
    x, y = (part[: steps * BATCH] for part in trainings.data())
    with strategy.scope():
        net = trainings.model(name="net")
        net.compile(optimizer(), trainings.loss(), **settings)
    net.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    return net


def loop(
    strategy: tf.distribute.Strategy,
    optimizer: Any,
    steps: int = STEPS,
    in_graph: bool = True,
    slow: bool = False,
    waited: list[float] | None = None,
) -> keras.Model:
    """The loop of TensorFlow's guide, which sums what the replicas' tapes differentiate.

    Given a list, batches come slowly, and how long the loop waited for each is put there, in seconds.
    """
    with strategy.scope():
        net = trainings.model(name="net")
        made = optimizer()
        made.build(net.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    dataset = tf.data.Dataset.from_tensor_slices(trainings.data()).batch(BATCH).take(steps)
    if waited is not None:
        dataset = dataset.map(slowly)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        if slow:
            x, y = slowly(x, y)
        with tf.GradientTape() as tape:
            loss = tf.nn.compute_average_loss(loss_of(y, net(x, training=True)), global_batch_size=BATCH)
        gradients = tape.gradient(loss, net.trainable_variables)
        made.apply_gradients(zip(gradients, net.trainable_variables, strict=True))
        return loss

    def whole_step(x: Any, y: Any) -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(step, args=(x, y)), axis=None)

    if in_graph:
        whole_step = tf.function(whole_step)
    batches = iter(strategy.experimental_distribute_dataset(dataset.with_options(options)))
    for _ in range(steps):
        start = time.perf_counter()
        batch = next(batches)
        if waited is not None:
            waited.append(time.perf_counter() - start)
        whole_step(*batch)
    return net


def slowly(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    with tf.control_dependencies([tf.numpy_function(lambda: time.sleep(SLEEP), [], [])]):
        return tf.identity(x), y


def sgd() -> Any:
    return keras.optimizers.SGD(RATE, momentum=0.9)


def clipped() -> Any:
    return keras.optimizers.SGD(RATE, momentum=0.9, global_clipnorm=CLIP)


def scaled() -> Any:
    return keras.optimizers.LossScaleOptimizer(sgd())


def fit_with_a_bad_batch(strategy: tf.distribute.Strategy) -> keras.Model:
    """The fourth batch has gradients that are not finite: loss scaling leaves its step out."""
    x, y = trainings.data()
    x[3 * BATCH : 4 * BATCH] = np.inf
    with strategy.scope():
        net = trainings.model(name="net")
        net.compile(scaled(), trainings.loss())
    net.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    return net


def same(one: keras.Model, other: keras.Model) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


def mirrored(folder: Path) -> None:
    """Two replicas in this process."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    modes: dict[str, Any] = {
        "fit": lambda: fit(strategy, sgd),
        "fit, eager": lambda: fit(strategy, sgd, steps=FEW, run_eagerly=True),
        "fit, clipping": lambda: fit(strategy, clipped),
        "fit, loss scaling": lambda: fit(strategy, scaled),
        "fit, a bad batch": lambda: fit_with_a_bad_batch(strategy),
        "loop": lambda: loop(strategy, sgd),
        "loop, clipping": lambda: loop(strategy, clipped),
        "loop, eager": lambda: loop(strategy, sgd, steps=FEW, in_graph=False),
    }
    unwatched = {name: train() for name, train in modes.items()}
    mlflow_tfmon.autolog(deep_every=DEEP, log_models=False)
    seen = {}
    for name, train in modes.items():
        with mlflow.start_run() as run:
            net = train()
        variables = [variable.path for variable in net.trainable_variables]
        seen[name] = {"run_id": run.info.run_id, "same": same(net, unwatched[name]), "variables": variables}
    (folder / "mirrored.json").write_text(json.dumps(seen))


def worker(folder: Path, index: int, ports: list[str]) -> None:
    """One of several processes, the last of which is slow."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    slow = index == len(ports) - 1
    unwatched = loop(strategy, sgd, slow=slow)
    mlflow_tfmon.autolog(deep_every=DEEP)
    watched = loop(strategy, sgd, slow=slow)
    mlflow_tfmon.end_run()
    waited: list[float] = []
    loop(strategy, clipped, waited=waited)
    mlflow_tfmon.end_run()
    if index > 0:
        mlflow_tfmon.autolog(disable=True)
    loop(strategy, sgd)  # now, nobody tells the chief of the other workers' part
    mlflow_tfmon.end_run()
    variables = [variable.path for variable in watched.trainable_variables]
    seen = {"same": same(watched, unwatched), "variables": variables, "waited": waited}
    (folder / f"worker{index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    if sys.argv[1] == "mirrored":
        mirrored(Path(sys.argv[2]))
    else:
        worker(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
