"""One training on a device, in turns with other processes: `python -m benchmarks.device "<JSON of a Turn>"`.

A turn is an epoch: it begins when a line comes on standard input, and ends with a line of JSON on standard output. The
first, in which all is traced and compiled, begins at once. After the last, a line tells what the training took.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FEATURES, CLASSES = 64, 10
# What a profile calls what makes a host and a GPU wait for each other, or copies between them.
WAITS = {"waits": "Synchronize", "to_host": "MemcpyD2H", "to_device": "MemcpyH2D"}


@dataclass(frozen=True)
class Turn:
    """What is trained, how, and who watches.

    Attributes:
        way: "fit" (under XLA, as Keras has it with one GPU), "loop", or "fit, float16".
        width: of the hidden layers.
        layers: how many of them.
        batch: examples of a batch.
        steps: of a turn.
        turns: that are timed.
        watcher: key of `benchmarks.watchers.WATCHERS`.
    """

    way: str
    width: int
    layers: int
    batch: int
    steps: int
    turns: int
    watcher: str = "unwatched"


def prepare() -> None:
    """Lets other processes have memory of the GPU, too; before anything runs on it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def model_of(turn: Turn) -> Any:
    """A compiled model of so many hidden layers."""
    import keras

    keras.config.set_dtype_policy("mixed_float16" if turn.way.endswith("float16") else "float32")
    keras.utils.set_random_seed(1)
    hidden = [keras.layers.Dense(turn.width, activation="relu") for _ in range(turn.layers)]
    model = keras.Sequential(
        [keras.Input((FEATURES,)), *hidden, keras.layers.Dense(CLASSES, dtype="float32")]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=turn.way != "loop")
    return model


def batches_of(turn: Turn) -> Any:
    """The same random batch for each step."""
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    x = random.normal(size=(turn.batch, FEATURES)).astype("float32")
    batch = tf.data.Dataset.from_tensors((x, random.integers(0, CLASSES, turn.batch)))
    return batch.cache().repeat(turn.steps).prefetch(2)


def step_of(model: Any) -> Callable[[Any, Any], Any]:
    """The step that a user would write."""
    import tensorflow as tf

    optimizer, criterion, variables = model.optimizer, model.loss, model.trainable_variables
    optimizer.build(variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = criterion(y, model(x, training=True))
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    return step


def train(turn: Turn, callbacks: list[Any], begin: Callable[[int], None], end: Callable[[int], None]) -> None:
    """Trains for as many epochs as there are turns, and one before them and one after."""
    import keras

    model, batches = model_of(turn), batches_of(turn)
    if turn.way != "loop":
        clock = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: begin(epoch), on_epoch_end=lambda epoch, logs: end(epoch)
        )
        model.fit(batches, epochs=turn.turns + 2, verbose=0, callbacks=[clock, *callbacks])
        return
    step = step_of(model)
    for epoch in range(turn.turns + 2):
        begin(epoch)
        loss: Any = None
        for x, y in batches:
            loss = step(x, y)
        float(loss)  # all steps are made by then
        end(epoch)


def peak_bytes() -> int:
    """The most memory that was in use: of the GPU, or of this process where there is none."""
    import tensorflow as tf

    if tf.config.list_logical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Profile:
    """Counts, over an epoch, what makes host and device wait for each other; needs a GPU."""

    def __init__(self, steps: int) -> None:
        import tensorflow as tf

        self.counts: dict[str, float] | None = None
        self._steps = steps
        self._folder = tempfile.mkdtemp() if tf.config.list_logical_devices("GPU") else None
        self._profiler = tf.profiler.experimental

    def begin(self) -> None:
        if self._folder is not None:
            self._profiler.start(self._folder)

    def end(self) -> None:
        if self._folder is None:
            return
        self._profiler.stop()
        try:
            from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace
        except ImportError:  # where it is not, a profile can't be read
            return
        seen: Counter[str] = Counter()
        for path in Path(self._folder).rglob("*.xplane.pb"):
            for plane in XSpace.FromString(path.read_bytes()).planes:
                for line in plane.lines:
                    for event in line.events:
                        seen[plane.event_metadata[event.metadata_id].name] += 1
        self.counts = {
            what: sum(count for name, count in seen.items() if part in name) / self._steps
            for what, part in WAITS.items()
        }


def main() -> int:
    """Trains, turn by turn."""
    turn = Turn(**json.loads(sys.argv[1]))
    prepare()
    from benchmarks.watchers import WATCHERS

    callbacks = WATCHERS[turn.watcher]()
    called = time.perf_counter()
    began, profile, last = called, Profile(turn.steps), turn.turns + 1

    def say(**found: Any) -> None:
        print(json.dumps(found), flush=True)

    def begin(epoch: int) -> None:
        nonlocal began
        if epoch:
            sys.stdin.readline()
        if epoch == last:
            profile.begin()
        began = time.perf_counter()

    def end(epoch: int) -> None:
        took = time.perf_counter() - began
        if epoch == last:  # which is profiled, and so not timed
            profile.end()
            say(peak_mb=peak_bytes() / 2**20, per_step=profile.counts)
        else:
            say(step_ms=took / turn.steps * 1e3)

    train(turn, callbacks, begin, end)
    return 0


if __name__ == "__main__":
    sys.exit(main())
