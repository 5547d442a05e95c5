"""Trainings of two workers in which one is apart from the other, or is not; run by `tests.promises.test_workers`.

python -m tests.workers FOLDER CASES INDEX PORT PORT

A port may have a host before it: `10.0.0.1:4321`; without any, TF_CONFIG is as the launcher has set it. Run by
`tests.promises.test_launchers` and `tests.promises.test_ray`, too.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER, CASES, INDEX, PORTS = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]), sys.argv[4:]
if PORTS:  # else it is set
    PLACES = [one if ":" in one else f"127.0.0.1:{one}" for one in PORTS]
    cluster, task = {"worker": PLACES}, {"type": "worker", "index": INDEX}
    if os.environ.get("CHIEF"):  # as Vertex AI has it
        cluster = {"chief": PLACES[:1], "worker": PLACES[1:]}
        task = {"type": "worker", "index": INDEX - 1} if INDEX else {"type": "chief", "index": 0}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})

import keras  # noqa: E402
import mlflow  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import mlflow_tfmon  # noqa: E402

BATCH, FEATURES, STEPS = 16, 6, 60
EPOCHS, OF_EPOCH = 6, 20  # of the training that is killed, and steps of each
PLANTED, VARIABLE = 25, "net.hidden.kernel"  # after which step a bit is another, and of which variable
SLOW, SLEEP = 130, 0.05  # steps of the slow ones, and s of each
LARGE = 60  # steps of the one with many weights
STOPS = 40
PAUSE = float(os.environ.get("PAUSE", "0"))  # s after each step of the one that is killed
HEALTHY = 50  # trainings


def data(steps: int = -1, slow: bool = False) -> tf.data.Dataset:
    """So many batches; by default without an end, of which workers need not tell each other at each batch."""
    random = np.random.default_rng(0)
    x = random.normal(size=(64 * BATCH, FEATURES)).astype("float32")
    y = (x.sum(axis=1) > 0).astype("int64")
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    found = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(BATCH).take(steps)
    return (found.map(slowly) if slow else found).with_options(options)


def slowly(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    with tf.control_dependencies([tf.numpy_function(lambda: time.sleep(SLEEP), [], [])]):
        return tf.identity(x), y


def net(extra: tuple[Any, ...] = ()) -> keras.Model:
    hidden, out = keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(2, name="out")
    return keras.Sequential([keras.Input((FEATURES,)), hidden, *extra, out], name="net")


def train(
    steps: int = STEPS,
    optimizer: Callable[[], Any] = lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    extra: Callable[[], tuple[Any, ...]] = tuple,
    between: Callable[[int, Any], None] = lambda step, model: None,
    slow_step: bool = False,
    slow_data: bool = False,
    times: list[float] | None = None,
) -> str | None:
    """A custom loop; `between` is called after each step. Gives the id of the run that it was recorded in.

    Given a list, Unix times are put there: of each step, when this worker had its gradients, and when its new weights.
    """
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model, made = net(extra()), optimizer()
        made.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        if slow_step:
            x, y = slowly(x, y)
        with tf.GradientTape() as tape:
            loss = tf.nn.compute_average_loss(loss_of(y, model(x, training=True)), global_batch_size=BATCH)
        gradients = tape.gradient(loss, model.trainable_variables)
        note(gradients)
        made.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        note([variable.value.read_value() for variable in model.trainable_variables])

    def note(after: list[tf.Tensor]) -> None:
        if times is not None:
            with tf.control_dependencies(after):
                tf.numpy_function(lambda: times.append(time.time()), [], [])

    @tf.function
    def whole_step(x: Any, y: Any) -> None:
        strategy.run(step, args=(x, y))

    batches = itertools.islice(strategy.experimental_distribute_dataset(data(slow=slow_data)), steps)
    with mlflow.start_run() if INDEX == 0 else contextlib.nullcontext() as run:
        for number, batch in enumerate(batches, 1):
            whole_step(*batch)
            between(number, model)
    return None if run is None else str(run.info.run_id)


def plant(step: int, model: Any) -> None:
    """Another last bit of one weight, on this worker alone: the largest, in which no update rounds it away."""
    if step == PLANTED and INDEX == 1:
        own = strategy.experimental_local_results(model.get_layer("hidden").kernel.value)[0]
        values = own.numpy()
        values.view(np.int32)[np.unravel_index(np.abs(values).argmax(), values.shape)] ^= 1
        own.assign(values)


def slow_callback(step: int, model: Any) -> None:
    """What this worker alone does between its steps."""
    if INDEX == 1:
        time.sleep(SLEEP)


def large() -> str | None:
    """A training in which the sum over both workers takes long; each writes down its own times."""
    times: list[float] = []
    run_id = train(LARGE, extra=lambda: (keras.layers.Dense(1000), keras.layers.Dense(1000)), times=times)
    np.save(FOLDER / f"times{INDEX}.npy", np.reshape(times, (LARGE, 2)))
    return run_id


def stop(step: int, model: Any) -> None:
    """This worker alone does not go on."""
    if step == STOPS and INDEX == 1:
        (FOLDER / "stopped").touch()
        while True:
            time.sleep(1)


def resumable() -> str | None:
    """A training that goes on from its last checkpoint wherever it is killed; each worker writes down its own steps."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model, made = net(), keras.optimizers.Adam(0.01)
        made.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.nn.compute_average_loss(loss_of(y, model(x, training=True)), global_batch_size=BATCH)
        gradients = tape.gradient(loss, model.trainable_variables)
        made.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @tf.function
    def whole_step(x: Any, y: Any) -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(step, args=(x, y)), axis=None)

    with (
        (FOLDER / f"steps{INDEX}.txt").open("a") as own,
        mlflow_tfmon.Monitor(model, optimizer=made, resume="latest", monitor="loss") as monitor,
    ):
        for epoch in range(monitor.first_epoch, EPOCHS):
            for number, batch in enumerate(strategy.experimental_distribute_dataset(data(OF_EPOCH)), 1):
                loss = float(whole_step(*batch))
                own.write(f"{epoch * OF_EPOCH + number} {loss!r}\n")
                own.flush()
                time.sleep(PAUSE)
            monitor.log_epoch(epoch, {"loss": loss})
        run_id = monitor.run_id
    return run_id


def healthy() -> list[str | None]:
    """Trainings of many kinds, a hundredth of a second or two of which nothing is the matter with."""
    schedule = keras.optimizers.schedules
    optimizers = [
        lambda: keras.optimizers.SGD(0.05),
        lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        lambda: keras.optimizers.SGD(schedule.CosineDecay(0.1, STEPS)),
        lambda: keras.optimizers.Adam(0.01),
        lambda: keras.optimizers.Adam(0.01, clipnorm=0.1),
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.1),
        lambda: keras.optimizers.RMSprop(0.01, centered=True),
        lambda: keras.optimizers.Adagrad(0.1),
        lambda: keras.optimizers.Nadam(0.01, use_ema=True, ema_momentum=0.9),
        lambda: keras.optimizers.SGD(10.0),  # which diverges, on all workers alike
    ]
    extras = [
        tuple,
        lambda: (keras.layers.Dropout(0.5),),
        lambda: (keras.layers.BatchNormalization(),),
        lambda: (keras.layers.GaussianNoise(0.5), keras.layers.LayerNormalization()),
        lambda: tuple(keras.layers.Dense(16, "tanh", name=f"further_{at}") for at in range(6)),
    ]
    return [train(40, optimizer, extra) for optimizer in optimizers for extra in extras][:HEALTHY]


strategy = tf.distribute.MultiWorkerMirroredStrategy()
KINDS: dict[str, Callable[[], Any]] = {
    "healthy": healthy,
    "planted": lambda: train(between=plant),
    "slow step": lambda: train(SLOW, slow_step=INDEX == 1),
    "slow data": lambda: train(SLOW, slow_data=INDEX == 1),
    "slow callback": lambda: train(SLOW, between=slow_callback),
    "large": large,
    "stopped": lambda: train(between=stop),
    "resumable": resumable,
}

if __name__ == "__main__":
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, deep_every=50)
    told = {name: KINDS[name]() for name in CASES}
    (FOLDER / f"worker{INDEX}.json").write_text(json.dumps(told))
