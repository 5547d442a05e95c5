"""More data and models for the configurations of `benchmarks.sets.sizes`."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks.sets.recipes import (
    Data,
    digits,
    finish,
    friedman,
    optimizer_of,
    split,
    transformer,
    waves,
)


# -- data ----------------------------------------------------------------------------------------------------------
def table(
    seed: int,
    name: str = "iris",
    label_from: int = 0,
    scale: float = 1.0,
    raw: bool = False,
    broken: bool = False,
) -> Data:
    """Iris (3 classes) or diabetes (a regression) of scikit-learn."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    x = x * np.geomspace(1, scale, x.shape[1]) + (scale if scale > 1 else 0)
    if broken:
        x[3::7, 1] = np.inf
    if name == "iris":
        return split(x, y.astype(np.int64) + label_from, 110, seed)
    return split(x, (y if raw else (y - y.mean()) / y.std()).astype(np.float32), 340, seed)


def plane(
    seed: int, name: str = "moons", rows: int = 900, noise: float = 0.15, wrong: float = 0.0, train: int = 600
) -> Data:
    """Two classes in the plane: scikit-learn's moons, or two spirals; `wrong` is a share of labels turned over."""
    from sklearn.datasets import make_moons

    rng = np.random.default_rng(seed + 7)
    if name == "moons":
        x, y = make_moons(rows, noise=noise, random_state=seed)
    else:
        y = np.arange(rows) % 2
        angle = np.sqrt(rng.random(rows)) * 3 * np.pi
        x = np.stack([np.cos(angle), np.sin(angle)], 1) * (angle / 5 * (1 - 2 * y))[:, None]
        x = x + 0.03 * rng.normal(size=x.shape)
    y = np.where(rng.random(rows) < wrong, 1 - y, y)
    return split(x, y.astype(np.int64), train, seed)


def labels(seed: int) -> Data:
    """Five independent labels of twenty features."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1500, 20))
    y = (x @ np.random.default_rng(0).normal(size=(20, 5)) + 0.5 * rng.normal(size=(1500, 5)) > 0).astype(
        np.float32
    )
    return split(x, y, 1100, seed)


def rare(seed: int) -> Data:
    """Two classes, one of 6%."""
    rng = np.random.default_rng(seed)
    y = (rng.random(2000) < 0.06).astype(np.int64)
    x = rng.normal(size=(2000, 10)) + 2.2 * y[:, None] * np.sign(np.arange(10) - 4.5)
    return split(x, y, 1500, seed)


def shapes(seed: int, scale: float = 1.0) -> Data:
    """Coloured pictures of 16 by 16: a square, a cross or a ring, anywhere."""
    rng = np.random.default_rng(seed)
    count = 900
    y, pictures = rng.integers(0, 3, count), 0.2 * rng.random((count, 16, 16, 3))
    rows, columns = np.mgrid[:16, :16]
    for at in range(count):
        u, v = np.abs(rows - rng.integers(4, 12)), np.abs(columns - rng.integers(4, 12))
        square, cross = (u <= 3) & (v <= 3), ((u <= 1) & (v <= 3)) | ((v <= 1) & (u <= 3))
        ring = square & ~((u <= 1) & (v <= 1))
        pictures[at][(square, cross, ring)[y[at]]] += 0.3 + 0.5 * rng.random(3)
    return split(pictures * scale, y, 650, seed)


def next_value(seed: int) -> Data:
    """Damped waves: the next value of 20."""
    rng = np.random.default_rng(seed)
    t = np.arange(21)[None]
    x = np.sin(t * (0.2 + 0.4 * rng.random((1100, 1))) + 6 * rng.random((1100, 1))) + 0.05 * rng.normal(
        size=(1100, 21)
    )
    return split(x[:, :20, None], x[:, 20].astype(np.float32), 800, seed)


def one_hot_digits(seed: int) -> Data:
    """Digits with one-hot labels."""
    x, y, x_val, y_val = digits(seed)
    return x, np.eye(10, dtype=np.float32)[y], x_val, np.eye(10, dtype=np.float32)[y_val]


def shuffled_friedman(seed: int) -> Data:
    """A regression whose targets are those of other examples."""
    x, y, x_val, y_val = friedman(seed)
    rng = np.random.default_rng(seed)
    return x, rng.permutation(y), x_val, rng.permutation(y_val)


# -- models --------------------------------------------------------------------------------------------------------
def conv1d(
    seed: int, activation: str = "relu", bias: Any = "zeros", scale: float = 1.0, **more: Any
) -> tuple[Any, Data]:
    """Convolutions over waves."""
    made = waves(seed, steps=40, scale=scale)
    inputs = x = keras.Input((40, 1))
    for width in (16, 24):
        x = layers.Conv1D(width, 5, activation=activation, bias_initializer=bias, padding="same")(x)
        x = layers.MaxPooling1D(2)(x)
    return finish(inputs, layers.GlobalMaxPooling1D()(x), 3, **more), made


def picture_net(seed: int, kernel: Any = "he_normal", norm: bool = True, scale: float = 1.0, activation: str = "swish",
                **more: Any) -> tuple[Any, Data]:  # fmt: skip
    """Separable convolutions over coloured shapes."""
    made = shapes(seed, scale)
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, padding="same", kernel_initializer=kernel)(inputs)
    for width in (24, 32):
        x = layers.BatchNormalization(momentum=0.9)(x) if norm else x
        x = layers.Activation(activation)(x)
        x = layers.SeparableConv2D(
            width, 3, padding="same", depthwise_initializer=kernel, pointwise_initializer=kernel
        )(x)
        x = layers.MaxPooling2D()(x)
    return finish(inputs, layers.Flatten()(layers.Activation(activation)(x)), 3, **more), made


def both_ways(seed: int, **more: Any) -> tuple[Any, Data]:
    """A bidirectional GRU over waves."""
    made = waves(seed, steps=25)
    inputs = keras.Input((25, 1))
    return finish(inputs, layers.Bidirectional(layers.GRU(12))(inputs), 3, **more), made


def forecast(seed: int, cell: str = "LSTM", **cells: Any) -> tuple[Any, Data]:
    """A recurrent net that tells the next value."""
    made, rate, optimizer = next_value(seed), cells.pop("rate", 5e-3), cells.pop("optimizer", "Adam")
    inputs = keras.Input((20, 1))
    return finish(inputs, getattr(layers, cell)(20, **cells)(inputs), 0, optimizer=optimizer, rate=rate), made


def bag(seed: int, **more: Any) -> tuple[Any, Data]:
    """The mean of embeddings: does token 1 or token 2 come more often?"""
    _, made = transformer(seed, given={"length": 24, "vocabulary": 8})
    inputs = keras.Input((24,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(8, 6)(inputs))
    return finish(inputs, layers.Dense(16, "relu")(x), 1, **more), made


def two_inputs(seed: int, **more: Any) -> tuple[Any, Data]:
    """A wide and a deep part, each with an input of its own."""
    x, y, x_val, y_val = digits(seed)
    wide, deep = keras.Input((32,)), keras.Input((32,))
    joined = layers.Concatenate()([wide, layers.Dense(32, "relu")(layers.Dense(48, "relu")(deep))])
    return finish([wide, deep], joined, 10, **more), (
        [x[:, :32], x[:, 32:]],
        y,
        [x_val[:, :32], x_val[:, 32:]],
        y_val,
    )


def picture_autoencoder(seed: int, output: str = "sigmoid") -> tuple[Any, Data]:
    """Pictures to pictures through strided convolutions."""
    x, _, x_val, _ = shapes(seed)
    inputs = keras.Input((16, 16, 3))
    y = layers.Conv2D(16, 3, 2, "same", activation="relu")(inputs)
    y = layers.Conv2DTranspose(16, 3, 2, "same", activation="relu")(
        layers.Conv2D(24, 3, 1, "same", activation="relu")(y)
    )
    model = keras.Model(inputs, layers.Conv2D(3, 3, 1, "same", activation=output)(y))
    model.compile(optimizer_of("Adam", 3e-3), "mse")
    return model, (x, x, x_val, x_val)


def regularized(seed: int, **more: Any) -> tuple[Any, Data]:
    """A wide net over digits with L2, dropout and smoothed labels."""
    made = one_hot_digits(seed)
    inputs = x = keras.Input((64,))
    for _ in range(2):
        x = layers.Dropout(0.4)(layers.Dense(192, "gelu", kernel_regularizer=keras.regularizers.L2(1e-3))(x))
    return finish(inputs, x, 10, loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1), **more), made


def cut_by_rounding(seed: int, **more: Any) -> tuple[Any, Data]:
    """Digits through two values that are rounded, which no gradient passes."""
    made = digits(seed)
    inputs = keras.Input((64,))
    x = layers.Dense(2, "tanh")(layers.Dense(24, "relu")(inputs))
    return finish(inputs, layers.Dense(16, "relu")(layers.Lambda(keras.ops.round)(x)), 10, **more), made


def root_of_less_than_nothing(seed: int, **more: Any) -> tuple[Any, Data]:
    """A layer that takes the root of what may be negative."""
    made = plane(seed)
    inputs = keras.Input((2,))
    x = layers.Lambda(keras.ops.sqrt)(layers.Dense(16, bias_initializer="ones")(inputs))
    return finish(inputs, x, 1, **more), made


def dataset(x: Any, y: Any, batch: int) -> Any:
    """Shuffled batches from tf.data."""
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=0).batch(batch).prefetch(2)


def slow(x: Any, y: Any, batch: int) -> Any:
    """Batches that take a while each."""

    def batches() -> Any:
        for at in range(0, len(y) - batch + 1, batch):
            time.sleep(0.03)
            yield x[at : at + batch], y[at : at + batch]

    kinds = tuple(tf.TensorSpec((None, *a.shape[1:]), tf.as_dtype(a.dtype)) for a in (x, y))
    return tf.data.Dataset.from_generator(batches, output_signature=kinds)


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rises to a rate, then falls with the root of the step."""

    def __init__(self, rate: float, steps: int) -> None:
        self.rate, self.steps = rate, steps

    def __call__(self, step: Any) -> Any:
        step = keras.ops.cast(step, "float32") + 1.0
        return self.rate * keras.ops.minimum(step / self.steps, keras.ops.sqrt(self.steps / step))
