"""Models, losses, input pipelines and callbacks for the configurations of `benchmarks.sets.aside`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from scipy import ndimage  # type: ignore[import-untyped]

from benchmarks.sets.aside_data import cooling, opinions, turned
from benchmarks.sets.recipes import Data, optimizer_of
from benchmarks.sets.tasks_models import built

EXCLUSIVE = "sparse_categorical_crossentropy"


# -- models --------------------------------------------------------------------------------------------------------
def row(
    seed: int,
    data: Callable[..., Data],
    made_of: Callable[[Any], list[Any]],
    loss: Any = EXCLUSIVE,
    given: dict[str, Any] | None = None,
    model: Any = None,
    **more: Any,
) -> tuple[Any, Data]:
    """One layer after the other; `made_of` makes them, and sees what is trained with."""
    made = data(seed, **(given or {}))
    x = inputs = keras.Input(
        made[0].shape[1:], dtype=made[0].dtype.name if made[0].dtype.kind == "i" else None
    )
    for layer in made_of(made[0]):
        x = layer(x)
    if model is None:
        return built(inputs, x, loss, **more), made
    own = model(inputs, x)
    own.compile(optimizer_of(more["optimizer"], more["rate"]), loss, metrics=["accuracy"])
    return own, made


def as_usual(x: np.ndarray) -> Any:
    """Takes each column to mean 0 and deviation 1."""
    layer = layers.Normalization()
    layer.adapt(x)
    return layer


def components(x: np.ndarray, count: int) -> Any:
    """The principal components of what is trained with, not to be trained further."""
    from sklearn.decomposition import PCA

    found = PCA(count).fit(x.reshape(len(x), -1)).components_.T
    return layers.Dense(
        count,
        kernel_initializer=lambda shape, dtype=None: ops.convert_to_tensor(found, dtype),
        trainable=False,
    )


class Past(layers.Layer):
    """Layers with a way past them; of what they add, a share is taken that begins at nothing."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def build(self, shape: Any) -> None:
        self.inner.build(shape)
        self.share = self.add_weight(shape=(), initializer="zeros", name="share")

    def call(self, x: Any) -> Any:
        return x + self.share * self.inner(x)


def judge(seed: int, width: int = 24, **more: Any) -> tuple[Any, Data]:
    """Words and their places, attention, and the mean of what is made of them."""
    inputs = keras.Input((14,), dtype="int32")
    x = layers.Embedding(40, width)(inputs) + layers.Embedding(14, width)(ops.arange(14))
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(3, width // 3)(x, x)]))
    y = layers.Dense(width)(layers.Dense(2 * width, "gelu")(x))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(layers.Add()([x, y])))
    return built(inputs, layers.Dense(1, "sigmoid")(x), "binary_crossentropy", **more), opinions(seed)


def turner(seed: int, units: int = 48, **more: Any) -> tuple[Any, Any]:
    """Reads a word, hands on its state, and writes it from behind."""
    read, written = keras.Input((5,), dtype="int32"), keras.Input((5,), dtype="int32")
    _, *state = layers.LSTM(units, return_state=True)(layers.Embedding(8, 12)(read))
    x = layers.LSTM(units, return_sequences=True)(layers.Embedding(8, 12)(written), initial_state=state)
    return built([read, written], layers.Dense(8, "softmax")(x), EXCLUSIVE, **more), turned(seed)


class Cooling(keras.Model):
    """Knows no temperature, only by which equation it changes and where it begins."""

    def train_step(self, data: Any) -> dict[str, Any]:
        t = data[0]
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(t)
                u = self(t, training=True)
            wrong = inner.gradient(u, t) + 1.5 * u - ops.cos(2 * t) - 0.75 * ops.sin(2 * t)
            start = self(ops.zeros_like(t[:1]), training=True) - 1.0
            loss = ops.mean(wrong**2) + 5 * ops.mean(start**2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.metrics[0].update_state(loss)
        return {"loss": self.metrics[0].result()}


def cooled(seed: int) -> tuple[Any, Data]:
    """A net of one number, trained by its derivative."""
    x = inputs = keras.Input((1,))
    for _ in range(2):
        x = layers.Dense(32, "tanh")(x)
    model = Cooling(inputs, layers.Dense(1)(x))
    model.compile(keras.optimizers.Adam(5e-3), "mse")
    return model, cooling(seed)


class OnlyLast(keras.Model):
    """A step of its own, which by mistake hands the optimizer the last layer alone."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            told = self(x, training=True)
            loss = self.compute_loss(x, y, told)
        last = self.trainable_variables[-2:]
        self.optimizer.apply(tape.gradient(loss, last), last)
        self.metrics[0].update_state(loss)
        return self.compute_metrics(x, y, told)


# -- losses and measures -------------------------------------------------------------------------------------------
def _likely(y: Any, told: Any, spread: Any) -> Any:
    mean, share = told[:, :4], ops.log_softmax(told[:, 8:12])
    return ops.logsumexp(share - ops.log(spread) - 0.5 * ops.square((y - mean) / spread) - 0.919, -1)


def unlikely(y: Any, told: Any) -> Any:
    """How unlikely it is of a mixture of four."""
    return -_likely(y, told, ops.exp(told[:, 4:8]))


def unlikely_by_relu(y: Any, told: Any) -> Any:
    """The same, with spreads that can be nothing."""
    return -_likely(y, told, ops.relu(told[:, 4:8]))


def likely(y: Any, told: Any) -> Any:
    return _likely(y, told, ops.exp(told[:, 4:8]))


# -- feeds and callbacks -------------------------------------------------------------------------------------------
class _Turned(keras.utils.PyDataset):
    """Pictures that are enlarged, turned and made small again one by one, when their batch is asked for."""

    def __init__(self, x: Any, y: Any, batch: int) -> None:
        super().__init__()
        self.data, self.rng = (x, y, batch), np.random.default_rng(0)

    def __len__(self) -> int:
        return -(-len(self.data[1]) // self.data[2])

    def _turned(self, one: np.ndarray) -> np.ndarray:
        large = ndimage.zoom(one[..., 0], 4)
        return ndimage.rotate(large, self.rng.normal(0, 8), reshape=False)[::4, ::4, None]

    def __getitem__(self, at: int) -> Any:
        x, y, batch = self.data
        chosen = slice(at * batch, (at + 1) * batch)
        return np.stack([self._turned(one) for one in x[chosen]]), y[chosen]


def turned_by_hand(x: Any, y: Any, batch: int) -> Any:
    """Each picture is turned in Python, with care."""
    return _Turned(x, y, batch)


def from_afar(x: Any, y: Any, batch: int) -> tf.data.Dataset:
    """Each batch is fetched when it is wanted, from a place that takes a while to answer."""

    def fetched() -> Any:
        for at in range(0, len(y) - batch, batch):
            time.sleep(0.03)
            yield x[at : at + batch], y[at : at + batch]

    parts = [tf.TensorSpec((batch, *one.shape[1:]), one.dtype) for one in (x, y)]
    return tf.data.Dataset.from_generator(fetched, output_signature=tuple(parts))


def shaken(x: Any, y: Any, batch: int) -> Any:
    """Draws examples without end, each under noise of its own."""
    rng = np.random.default_rng(0)
    while True:
        at = rng.integers(0, len(y), batch)
        yield (x[at] + 0.2 * rng.normal(size=x[at].shape)).astype(np.float32), y[at]


class _OneCycle(keras.callbacks.Callback):
    """Sets the rate before each batch: up, then down to nothing."""

    def __init__(self, highest: float, steps: int) -> None:
        super().__init__()
        self.highest, self.steps, self.at = highest, steps, 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.at += 1
        share = self.at / self.steps
        self.model.optimizer.learning_rate = self.highest * min(share / 0.3, max(0.0, 1 - share) / 0.7)


def one_cycle() -> dict[str, Any]:
    """Up to 0.2 and down again within a thousand steps."""
    return {"callbacks": [_OneCycle(0.2, 1000)]}


def whole_numbers() -> dict[str, Any]:
    """A rate by a division that leaves no fraction: none is left from the second epoch on."""
    return {"callbacks": [keras.callbacks.LearningRateScheduler(lambda epoch: 0.02 * (1 // (1 + epoch)))]}
