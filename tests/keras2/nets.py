"""Models and trainings of Keras 2 (`tf_keras`), for tests that may import it."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import tensorflow as tf
import tf_keras

from tests import trainings

STEPS = 3  # an epoch


def data() -> tuple[np.ndarray, np.ndarray]:
    return trainings.data(STEPS * trainings.BATCH)


def batches() -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Of two epochs."""
    return list(trainings.batches(*data(), 2))


def net(name: str | None = None, noise: float = 0.0) -> Any:
    tf_keras.utils.set_random_seed(1)
    layers = [tf_keras.Input((trainings.FEATURES,)), tf_keras.layers.Dense(8, "relu", name="hidden")]
    if noise:
        layers += [tf_keras.layers.BatchNormalization(), tf_keras.layers.Dropout(noise)]
    # Keras 2 would add its losses up in float16 under a mixed policy, if the output were.
    layers += [tf_keras.layers.Dense(trainings.CLASSES, name="out", dtype="float32")]
    return tf_keras.Sequential(layers, name=name)


def loss() -> Any:
    return tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(optimizer: Any = "sgd", noise: float = 0.0, **options: Any) -> Any:
    model = net(noise=noise)
    model.compile(optimizer, loss(), metrics=["accuracy"], **options)
    return model


def fit(model: Any, epochs: int = 2, **options: Any) -> Any:
    return model.fit(
        *data(),
        **{"batch_size": trainings.BATCH, "epochs": epochs, "shuffle": False, "verbose": 0, **options},
    )


def loop(model: Any, optimizer: Any, in_graph: bool) -> list[float]:
    step = trainings.custom_step(model, optimizer, in_graph)
    return [float(step(a, b)) for a, b in batches()]


def decay() -> Any:
    return tf_keras.optimizers.schedules.InverseTimeDecay(0.1, 4, 0.5)


def decayed(step: int) -> float:
    return 0.1 / (1 + 0.5 * step / 4)


def last_run() -> str:
    return str(mlflow.search_runs(output_format="list")[0].info.run_id)


def is_tf_keras() -> bool:
    """Whether `tf.keras` is Keras 2."""
    return tf.keras.Model is tf_keras.Model
