"""One timed training in its own process: `python -m benchmarks.training '<JSON of a Case>'` prints its times."""

from __future__ import annotations

import itertools
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """What is trained, how, and who watches.

    Attributes:
        task: model, a key of `benchmarks.models.TASKS`.
        way: "fit" or "loop" (a step under `tf.function`).
        mode: "plain", "xla", "float16", "bfloat16", "mirrored" (two logical CPUs) or "workers" (two processes).
        watcher: key of `benchmarks.watchers.WATCHERS`.
        steps: of an epoch.
        epochs: the first one, in which everything is traced, is not timed.
        endless: whether the data of a loop have no end: else workers tell each other at each batch whether theirs have.
    """

    task: str = "mlp"
    way: str = "fit"
    mode: str = "plain"
    watcher: str = "unwatched"
    steps: int = 400
    epochs: int = 6
    endless: bool = False


def measure(case: Case) -> dict[str, float]:
    """Trains in this process.

    Returns:
        `step_ms`: median over the second half of the epochs; `train_s`: the whole training, from the call to its
        return; `first_step_s`: from the call to the end of the first step; `peak_mb`: the most memory of the process.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    from benchmarks.models import TASKS, data
    from benchmarks.watchers import WATCHERS

    if case.mode == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    if case.mode in ("float16", "bfloat16"):
        keras.mixed_precision.set_dtype_policy(f"mixed_{case.mode}")
    if case.mode == "mirrored":
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    elif case.mode == "workers":
        strategy = _workers(case)
    else:
        strategy = tf.distribute.get_strategy()
    task = TASKS[case.task]
    dataset = tf.data.Dataset.from_tensor_slices(data(task, case.steps)).batch(task.batch).cache()
    callbacks = WATCHERS[case.watcher]()
    with strategy.scope():
        keras.utils.set_random_seed(1)
        model = task.model()
        model.compile(
            keras.optimizers.Adam(1e-4),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=case.mode == "xla",
        )
    begun = time.perf_counter()
    if case.way == "fit":
        epochs = _Epochs()
        model.fit(dataset, epochs=case.epochs, verbose=0, callbacks=[epochs.callback(), *callbacks])
        took, first = epochs.took, epochs.first
    else:
        took, first = _loop(model, dataset, case, strategy)
    return {
        "step_ms": statistics.median(took[case.epochs // 2 :]) / case.steps * 1e3,
        "train_s": time.perf_counter() - begun,
        "first_step_s": first - begun,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _workers(case: Case) -> Any:
    """The strategy of two workers, of which this process, the chief, starts the other: the same training."""
    import tensorflow as tf

    if "TF_CONFIG" not in os.environ:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            places = [f"127.0.0.1:{free.getsockname()[1]}" for free in (one, other)]
        config = [
            json.dumps({"cluster": {"worker": places}, "task": {"type": "worker", "index": at}})
            for at in range(2)
        ]
        command = [sys.executable, "-m", "benchmarks.training", json.dumps(asdict(case))]
        subprocess.Popen(
            command, env={**os.environ, "TF_CONFIG": config[1]}, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.environ["TF_CONFIG"] = config[0]
    return tf.distribute.MultiWorkerMirroredStrategy()


class _Epochs:
    """Takes the time of each epoch, and tells when the first step ended."""

    def __init__(self) -> None:
        self.took: list[float] = []
        self.first = 0.0

    def callback(self) -> Any:
        import keras

        epochs = self

        class Clock(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                self.begun = time.perf_counter()

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                epochs.first = epochs.first or time.perf_counter()

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                epochs.took.append(time.perf_counter() - self.begun)

        return Clock()


def _loop(model: Any, dataset: Any, case: Case, strategy: Any) -> tuple[list[float], float]:
    import tensorflow as tf

    optimizer, criterion, several = model.optimizer, model.loss, strategy.num_replicas_in_sync
    variables = model.trainable_variables
    with strategy.scope():
        optimizer.build(variables)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = criterion(y, model(x, training=True)) / several
            scaled = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return loss

    @tf.function(jit_compile=case.mode == "xla")
    def train_step(x: Any, y: Any) -> Any:
        return step(x, y) if several == 1 else strategy.run(step, args=(x, y))

    dataset = dataset.repeat() if case.endless else dataset
    batches = dataset if several == 1 else strategy.experimental_distribute_dataset(dataset)
    batches = iter(batches) if case.endless else batches
    took, first = [], 0.0
    for _ in range(case.epochs):
        begun = time.perf_counter()
        loss = None
        for x, y in itertools.islice(batches, case.steps) if case.endless else batches:
            loss = train_step(x, y)
            first = first or time.perf_counter()
        tf.nest.map_structure(lambda one: one.numpy(), strategy.experimental_local_results(loss))
        took.append(time.perf_counter() - begun)
    return took, first


def main() -> int:
    """Measures what the command line says, and leaves without waiting for whoever delivers in the background."""
    case = Case(**json.loads(sys.argv[1]))
    result = measure(case)
    print(json.dumps({**asdict(case), **result}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
