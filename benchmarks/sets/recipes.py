"""Building blocks of configurations for `benchmarks.detection`: data and models.

A configuration is a recipe (what model on what data) with changes to it. Each training is judged by its real outcome:
a broken one that trains well all the same counts as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

Data = tuple[Any, np.ndarray, Any, np.ndarray]  # training x and y, validation x and y


@dataclass(frozen=True)
class Configuration:
    """A training to be.

    Attributes:
        name: of the configuration.
        recipe: makes the compiled model and the data.
        kinds: the kinds of problem that would be right to name; none for a healthy one.
        changes: arguments of the recipe.
        good: the validation accuracy (for a regression, the share of the variance explained) of a good training.
        epochs: how many.
        batch_size: examples a step.
        feed: makes of x, y and the batch size what `fit` is given instead of them.
        wasteful: whether it is broken though it learns, for what it costs.
        fit: makes further arguments of `fit`, such as callbacks.
        judged_by: the accuracy to judge by, where it is not under one of the usual names.
    """

    name: str
    recipe: Callable[..., tuple[Any, Data]]
    kinds: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    good: float = 0.8
    epochs: int = 20
    batch_size: int = 32
    feed: Callable[[Any, Any, int], Any] | None = None
    wasteful: bool = False
    fit: Callable[[], dict[str, Any]] = dict
    judged_by: str = ""


# -- data ----------------------------------------------------------------------------------------------------------
def split(x: np.ndarray, y: np.ndarray, train: int, seed: int) -> Data:
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order].astype(np.float32 if x.dtype.kind == "f" else x.dtype), y[order]
    return x[:train], y[:train], x[train:], y[train:]


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x / 16.0, y.astype(np.int64)


def digits(
    seed: int, train: int = 1000, scale: float = 1.0, noise: float = 0.0, shuffled: bool = False
) -> Data:
    """Handwritten digits; `noise` is a share of labels drawn at random, `shuffled` all of them."""
    x, y = _digits()
    rng = np.random.default_rng(seed + 1)
    y = y.copy()
    if noise or shuffled:
        wrong = rng.random(len(y)) < (1.0 if shuffled else noise)
        y[wrong] = rng.permutation(y[wrong])
    return split(x * scale, y, train, seed)


def tabular(seed: int, name: str = "wine", scaled: bool = True, missing: bool = False) -> Data:
    """A table of scikit-learn's: wine (3 classes) or breast cancer (2)."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if scaled:
        x = (x - x.mean(0)) / x.std(0)
    if missing:
        x[:: max(1, len(x) // 10), 0] = np.nan
    return split(x, y.astype(np.int64), len(x) * 3 // 4, seed)


def friedman(
    seed: int, noise: float = 0.3, scale: float = 1.0, offset: float = 0.0, inputs: float = 1.0
) -> Data:
    """Friedman's first regression; targets of mean 0 and deviation about 1, times `scale`, plus `offset`."""
    rng = np.random.default_rng(seed)
    x = rng.random((1200, 8))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = (y - y.mean()) / y.std() + noise * rng.normal(size=len(y))
    return split((2 * x - 1) * inputs, (y * scale + offset).astype(np.float32), 900, seed)


def waves(seed: int, steps: int = 30, scale: float = 1.0) -> Data:
    """Noisy waves of three frequencies, to be told apart."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 900)
    t = np.arange(steps)[None]
    phase = rng.random((900, 1)) * 2 * np.pi
    x = np.sin(t * (0.2 + 0.25 * y[:, None]) + phase) + 0.3 * rng.normal(size=(900, steps))
    return split(x[..., None] * scale, y, 650, seed)


def tokens(seed: int, length: int = 16, vocabulary: int = 12) -> Data:
    """Sequences of tokens: is token 1 in there more often than token 2?"""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, vocabulary, (1600, length))
    more = (x == 1).sum(1) - (x == 2).sum(1)
    keep = more != 0
    return split(x[keep], (more[keep] > 0).astype(np.int64), int(keep.sum() * 0.75), seed)


# -- models --------------------------------------------------------------------------------------------------------
def optimizer_of(name: str, rate: Any, **options: Any) -> Any:
    return getattr(keras.optimizers, name)(learning_rate=rate, **options)


def _loss(classes: int, from_logits: bool) -> Any:
    if classes == 0:
        return "mse"
    if classes == 1:
        return keras.losses.BinaryCrossentropy(from_logits=from_logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def finish(
    inputs: Any,
    x: Any,
    classes: int,
    *,
    output: str | None = "",
    from_logits: bool = False,
    loss: Any = None,
    optimizer: str = "Adam",
    rate: Any = 1e-3,
    units: int | None = None,
    kernel: Any = "glorot_uniform",
    metrics: Any = None,
    **options: Any,
) -> Any:
    usual = {0: None, 1: "sigmoid"}.get(classes, "softmax")
    y = layers.Dense(
        units or max(1, classes), activation=usual if output == "" else output, kernel_initializer=kernel
    )(x)
    model = keras.Model(inputs, y)
    metrics = metrics or (["accuracy"] if classes else [])
    model.compile(
        optimizer_of(optimizer, rate, **options), loss or _loss(classes, from_logits), metrics=metrics
    )
    return model


def mlp(
    seed: int,
    data: Callable[..., Data] = digits,
    classes: int = 10,
    hidden: tuple[int, ...] = (64, 64),
    activation: str | None = "relu",
    kernel: Any = "glorot_uniform",
    bias: Any = "zeros",
    norm: bool = False,
    dropout: float = 0.0,
    cut: bool = False,
    given: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[Any, Data]:
    """Dense layers. `cut` stops the gradient before the last hidden layer."""
    made = data(seed, **(given or {}))
    inputs = x = keras.Input(made[0].shape[1:])
    if len(made[0].shape) > 2:
        x = layers.Flatten()(x)
    for at, units in enumerate(hidden):
        x = layers.Dense(units, kernel_initializer=kernel, bias_initializer=bias)(x)
        x = layers.BatchNormalization(momentum=0.9)(x) if norm else x
        x = layers.Activation(activation)(x) if activation else x
        x = layers.Dropout(dropout)(x) if dropout else x
        if cut and at == len(hidden) - 1:
            x = layers.Lambda(keras.ops.stop_gradient)(x)
    return finish(inputs, x, classes, **more), made


def cnn(
    seed: int,
    filters: tuple[int, ...] = (16, 32),
    activation: str | None = "relu",
    norm: bool = False,
    residual: bool = False,
    kernel: Any = "glorot_uniform",
    bias: Any = "zeros",
    given: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[Any, Data]:
    """Convolutions over the digits as images."""
    made = digits(seed, **(given or {}))
    x_train, y_train, x_val, y_val = made
    made = x_train.reshape(-1, 8, 8, 1), y_train, x_val.reshape(-1, 8, 8, 1), y_val
    inputs = x = keras.Input((8, 8, 1))
    for width in filters:
        before = x
        x = layers.Conv2D(width, 3, padding="same", kernel_initializer=kernel, bias_initializer=bias)(x)
        x = layers.BatchNormalization(momentum=0.9)(x) if norm else x
        x = layers.Activation(activation)(x) if activation else x
        if residual and before.shape[-1] == width:
            x = layers.Add()([x, before])
    x = layers.GlobalAveragePooling2D()(x) if residual else layers.Flatten()(layers.MaxPooling2D()(x))
    return finish(inputs, x, 10, **more), made


def rnn(
    seed: int,
    cell: str = "LSTM",
    units: int = 24,
    activation: str | None = None,
    recurrent: Any = "orthogonal",
    given: dict[str, Any] | None = None,
    depth: int = 1,
    **more: Any,
) -> tuple[Any, Data]:
    """A recurrent net over waves."""
    made = waves(seed, **(given or {}))
    inputs = x = keras.Input(made[0].shape[1:])
    chosen = {} if activation is None else {"activation": activation}
    for at in range(depth):
        x = getattr(layers, cell)(
            units, recurrent_initializer=recurrent, return_sequences=at < depth - 1, **chosen
        )(x)
    return finish(inputs, x, 3, **more), made


def transformer(
    seed: int,
    width: int = 16,
    blocks: int = 1,
    norm: bool = True,
    kernel: Any = "glorot_uniform",
    given: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[Any, Data]:
    """A small transformer over tokens."""
    made = tokens(seed, **(given or {}))
    inputs = keras.Input(made[0].shape[1:], dtype="int32")
    x = layers.Embedding(12, width)(inputs)
    for _ in range(blocks):
        attended = layers.MultiHeadAttention(2, width // 2, kernel_initializer=kernel)(x, x)
        x = layers.Add()([x, attended])
        x = layers.LayerNormalization()(x) if norm else x
        wide = layers.Dense(2 * width, "relu", kernel_initializer=kernel)(x)
        x = layers.Add()([x, layers.Dense(width, kernel_initializer=kernel)(wide)])
    return finish(inputs, layers.GlobalAveragePooling1D()(x), 1, **more), made


def autoencoder(
    seed: int,
    units: int = 24,
    activation: str = "relu",
    output: str | None = "sigmoid",
    rate: float = 2e-3,
    optimizer: str = "Adam",
    given: dict[str, Any] | None = None,
) -> tuple[Any, Data]:
    """Digits to digits through a bottleneck."""
    x_train, _, x_val, _ = digits(seed, **(given or {}))
    inputs = keras.Input((64,))
    x = layers.Dense(48, activation)(inputs)
    x = layers.Dense(units, activation)(x)
    x = layers.Dense(48, activation)(x)
    model = keras.Model(inputs, layers.Dense(64, output)(x))
    model.compile(optimizer_of(optimizer, rate), "mse")
    return model, (x_train, x_train, x_val, x_val)


def log_loss(y: Any, p: Any) -> Any:
    """Cross-entropy by hand, without keeping log away from 0."""
    return -keras.ops.sum(
        keras.ops.one_hot(keras.ops.cast(keras.ops.reshape(y, [-1]), "int32"), 10) * keras.ops.log(p), -1
    )
