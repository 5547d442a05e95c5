"""Trainings of several replicas in several processes, monitored or not; run by `tests.promises.test_collectives`.

python -m tests.several_processes FOLDER 2|3 mirrored CASES
python -m tests.several_processes FOLDER 2|3 workers CASES INDEX PORT PORT
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER, KERAS, KIND, CASES = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4].split(",")
INDEX, PORTS = int(sys.argv[5]) if KIND == "workers" else 0, sys.argv[6:]
os.environ["TF_USE_LEGACY_KERAS"] = str(int(KERAS == "2"))
if KIND == "workers":
    cluster = {"worker": [f"127.0.0.1:{port}" for port in PORTS]}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": INDEX}})

import mlflow  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import mlflow_tfmon  # noqa: E402

EPOCHS, STEPS, BATCH, FEATURES = 2, 4, 16, 6
Losses = list[float]


def strategy() -> tf.distribute.Strategy:
    if KIND == "workers":
        return tf.distribute.MultiWorkerMirroredStrategy()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def dataset() -> tf.data.Dataset:
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS * BATCH, FEATURES)).astype("float32")
    y = (x.sum(axis=1) > 0).astype("int64")
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).repeat().with_options(options)


class Own(tf.keras.Model):  # type: ignore[name-defined, misc]
    """A model that Keras could not load again."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = layers()

    def call(self, x: Any, training: bool = False) -> Any:
        for part in self.parts:
            x = part(x, training=training) if "norm" in part.name or "drop" in part.name else part(x)
        return x


def layers() -> list[Any]:
    made = tf.keras.layers
    return [made.Dense(8, "relu"), made.BatchNormalization(), made.Dropout(0.2), made.Dense(2)]


def model(own: bool = False, rate: float = 0.01) -> Any:
    tf.keras.utils.set_random_seed(1)
    net = Own() if own else tf.keras.Sequential([tf.keras.Input((FEATURES,)), *layers()])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(tf.keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return net


def fit(
    of: tf.distribute.Strategy, own: bool = False, inside: bool = False, rate: float = 0.01, **settings: Any
) -> Losses:
    with of.scope():
        net = model(own, rate)
    with of.scope() if inside else contextlib.nullcontext():
        if own:
            with of.scope():
                net.build((None, FEATURES))
        seen = net.fit(dataset(), epochs=EPOCHS, steps_per_epoch=STEPS, verbose=0)
    look_at(net)
    return [*seen.history["loss"], *seen.history["accuracy"]]


def loop(of: tf.distribute.Strategy, inside: bool = False, rate: float = 0.01, **settings: Any) -> Losses:
    """Where watched, by a Monitor that keeps checkpoints."""
    with of.scope():
        net = model(rate=rate)
        net.seen = tf.keras.metrics.Mean()
        net.optimizer.build(net.trainable_variables)
    loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.nn.compute_average_loss(loss_of(y, net(x, training=True)), global_batch_size=BATCH)
        gradients = tape.gradient(loss, net.trainable_variables)
        net.optimizer.apply_gradients(zip(gradients, net.trainable_variables, strict=True))
        net.seen.update_state(loss)
        return loss

    @tf.function
    def whole_step(x: Any, y: Any) -> tf.Tensor:
        return of.reduce("SUM", of.run(step, args=(x, y)), axis=None)

    found = []
    monitor = mlflow_tfmon.Monitor(net, **settings) if settings else None
    with of.scope() if inside else contextlib.nullcontext(), monitor or contextlib.nullcontext():
        batches = iter(of.experimental_distribute_dataset(dataset()))
        for epoch in range(EPOCHS):
            losses = [float(whole_step(*next(batches))) for _ in range(STEPS)]
            found += [*losses, float(net.seen.result())]
            if monitor is not None:
                monitor.log_epoch(epoch, {"val_loss": losses[-1]})
                if monitor.should_stop:
                    break
    look_at(net)
    return found


def look_at(net: Any) -> None:
    """Weights at the end, as all processes see them together."""
    global last
    last = net.get_weights()


last: list[np.ndarray] = []
CALLS: dict[str, Callable[..., Losses]] = {
    "fit": fit,
    "fit inside the scope": lambda of, **settings: fit(of, inside=True, **settings),
    "fit of a class of one's own": lambda of, **settings: fit(of, own=True, **settings),
    "fit that the chief alone watches": fit,
    "fit that diverges": lambda of, **settings: fit(of, rate=float("inf"), **settings),
    "loop": loop,
    "loop that diverges": lambda of, **settings: loop(of, rate=float("inf"), **settings),
    "loop inside the scope": lambda of, **settings: loop(of, inside=True, **settings),
}


def kept(run_id: str) -> dict[str, list[list[float]]]:
    """The weights of the models that a run has in MLflow, by the tag that names each."""
    found = {}
    for tag, model_id in mlflow.get_run(run_id).data.tags.items():
        if "tfmon." in tag and tag.endswith("model"):
            folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
            if (folder / "data" / "model.keras").exists():
                loaded = mlflow.tensorflow.load_model(str(folder))
                found[tag] = [weight.tolist() for weight in loaded.get_weights()]
            else:
                found[tag] = []
    return found


def main() -> None:
    of = strategy()
    told: dict[str, Any] = {}
    for name in CASES:
        train = CALLS[name]
        told[name] = {"unwatched": train(of)}
        for log_models in (True, False):
            settings: dict[str, Any] = {"log_models": log_models, "on_problem": "stop"}
            if INDEX == 0 or "chief" not in name:
                mlflow_tfmon.autolog(**settings)
            told[name][f"log_models={log_models}"] = train(of, **settings)
            mlflow_tfmon.end_run()
            mlflow_tfmon.autolog(disable=True)
            if log_models and INDEX == 0:
                told[name]["weights"] = [weight.tolist() for weight in last]
                run = mlflow.last_active_run()
                assert run is not None
                told[name]["kept"] = kept(run.info.run_id)
    (FOLDER / f"{KIND}{INDEX}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
