"""Models for the timed trainings, and data of matching shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers


class Task(NamedTuple):
    """What a benchmark trains: makes the model, and gives the shapes of a batch."""

    model: Callable[[], Any]
    shape: tuple[int, ...]
    classes: int
    batch: int


def mlp() -> Any:
    """6 variables; about a millisecond a step, most of it TensorFlow's and Keras's own overhead."""
    hidden = [layers.Dense(128, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10, dtype="float32")])


def cnn() -> Any:
    """6 variables, two convolutions."""
    stages: list[Any] = []
    for filters in (16, 32):
        stages += [layers.Conv2D(filters, 3, activation="relu"), layers.MaxPooling2D()]
    return keras.Sequential(
        [keras.Input((28, 28, 1)), *stages, layers.Flatten(), layers.Dense(10, dtype="float32")]
    )


def resnet20() -> Any:
    """The residual net of 20 layers for 32 x 32 pictures (He et al. 2016, section 4.2)."""
    inputs = keras.Input((32, 32, 3))

    def unit(x: Any, filters: int, stride: int = 1) -> Any:
        return layers.BatchNormalization()(
            layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
        )

    x = layers.ReLU()(unit(inputs, 16))
    for filters in (16, 32, 64):
        for block in range(3):
            stride = 2 if filters > 16 and block == 0 else 1
            y = unit(layers.ReLU()(unit(x, filters, stride)), filters)
            if stride == 2:  # the shortcut without weights: every other pixel, and zeros for the new channels
                x = layers.AveragePooling2D(1, 2)(x)
                x = layers.Concatenate()([x, layers.Rescaling(0.0)(x)])
            x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(10, dtype="float32")(layers.GlobalAveragePooling2D()(x)))


def resnet50() -> Any:
    """The residual net of 50 layers (He et al. 2016): 161 variables, 23.5 million parameters; for small pictures."""
    inputs = keras.Input((32, 32, 3))

    def unit(x: Any, filters: int, size: int, stride: int = 1) -> Any:
        return layers.BatchNormalization()(
            layers.Conv2D(filters, size, stride, padding="same", use_bias=False)(x)
        )

    x = layers.ReLU()(unit(inputs, 64, 3))
    for blocks, filters in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            stride = 2 if filters > 64 and block == 0 else 1
            y = layers.ReLU()(unit(x, filters, 1))
            y = unit(layers.ReLU()(unit(y, filters, 3, stride)), 4 * filters, 1)
            x = layers.ReLU()(layers.Add()([unit(x, 4 * filters, 1, stride) if block == 0 else x, y]))
    return keras.Model(inputs, layers.Dense(10, dtype="float32")(layers.GlobalAveragePooling2D()(x)))


def large_transformer() -> Any:
    """996 variables, 101 million parameters: 62 encoder blocks of width 368 over 16 tokens."""
    width = 368
    inputs = keras.Input((16,))
    x = layers.Dense(width)(layers.Reshape((16, 1))(inputs))
    for _ in range(62):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(8, width // 8)(x, x))
        x = layers.LayerNormalization()(
            x + layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(x))
        )
    return keras.Model(inputs, layers.Dense(10, dtype="float32")(layers.GlobalAveragePooling1D()(x)))


def transformer() -> Any:
    """Two encoder blocks of width 64 over 32 tokens."""
    inputs = keras.Input((32,))
    x = layers.Dense(64)(layers.Reshape((32, 1))(inputs))
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, 16)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(64)(layers.Dense(256, activation="gelu")(x)))
    return keras.Model(inputs, layers.Dense(10, dtype="float32")(layers.GlobalAveragePooling1D()(x)))


def deep() -> Any:
    """1,000 variables: 500 small layers."""
    hidden = [layers.Dense(16, activation="tanh") for _ in range(499)]
    return keras.Sequential([keras.Input((16,)), *hidden, layers.Dense(10, dtype="float32")])


def wide() -> Any:
    """6 variables, 3.2 million parameters."""
    hidden = [layers.Dense(units, activation="relu") for units in (1600, 1200)]
    return keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(10, dtype="float32")])


TASKS = {
    "wide": Task(wide, (784,), 10, 32),
    "mlp": Task(mlp, (64,), 10, 64),
    "cnn": Task(cnn, (28, 28, 1), 10, 32),
    "resnet20": Task(resnet20, (32, 32, 3), 10, 16),
    "transformer": Task(transformer, (32,), 10, 32),
    "resnet50": Task(resnet50, (32, 32, 3), 10, 4),
    "large transformer": Task(large_transformer, (16,), 10, 2),
    "deep": Task(deep, (16,), 10, 32),
}


def data(task: Task, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Random examples for that many steps of an epoch, the same each time."""
    random = np.random.default_rng(0)
    rows = steps * task.batch
    return random.normal(size=(rows, *task.shape)).astype("float32"), random.integers(0, task.classes, rows)
