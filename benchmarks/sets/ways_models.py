"""Models, input pipelines and training loops for the configurations of `benchmarks.sets.ways`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from benchmarks.sets.recipes import Data, digits, finish, optimizer_of
from benchmarks.sets.ways_data import chain, masks, movements, noisy_digits, pairs, peaks, ratings, stripes


def sequence(
    seed: int,
    data: Callable[..., Data],
    cell: str = "LSTM",
    classes: int = 10,
    symbols: int = 0,
    every: bool = False,
    depth: int = 1,
    units: int = 24,
    outputs: int | None = None,
    given: dict[str, Any] | None = None,
    inner: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[Any, Data]:
    """A recurrent net; `symbols` are embedded, `every` is for an output at each moment."""
    made = data(seed, **(given or {}))
    inputs = x = keras.Input(made[0].shape[1:], dtype="int32" if symbols else "float32")
    x = layers.Embedding(symbols, 12)(x) if symbols else x
    for at in range(depth):
        x = getattr(layers, cell)(units, return_sequences=every or at < depth - 1, **(inner or {}))(x)
    return finish(inputs, x, classes, units=outputs, **more), made


def _blocks(x: Any, width: int, blocks: int, causal: bool) -> Any:
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, width // 2)(y, y, use_causal_mask=causal)])
        y = layers.Dense(2 * width, "gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(width)(y)])
    return layers.LayerNormalization()(x)


class _Places(layers.Layer):
    """Adds what is learned of each place."""

    def build(self, shape: Any) -> None:
        self.places = self.add_weight(shape=shape[1:], initializer="random_uniform", name="places")

    def call(self, x: Any) -> Any:
        return x + self.places


def speaker(
    seed: int, width: int = 24, blocks: int = 2, given: Any = None, symbols: int = 8, **more: Any
) -> Any:
    """A causal transformer that tells the next token."""
    made = chain(seed, **(given or {}))
    inputs = keras.Input(made[0].shape[1:], dtype="int32")
    x = _blocks(_Places()(layers.Embedding(symbols, width)(inputs)), width, blocks, True)
    return finish(inputs, x, symbols, **more), made


def patches(seed: int, width: int = 24, blocks: int = 2, **more: Any) -> tuple[Any, Data]:
    """A vision transformer over stripes."""
    made = stripes(seed)
    inputs = keras.Input((20, 20, 1))
    x = layers.Reshape((16, width))(layers.Conv2D(width, 5, 5)(inputs))
    x = layers.GlobalAveragePooling1D()(_blocks(_Places()(x), width, blocks, False))
    return finish(inputs, x, 4, **more), made


def mobile(
    seed: int,
    widths: tuple[int, ...] = (16, 24, 32),
    activation: str = "relu6",
    norm: str | None = "batch",
    kernel: Any = "he_normal",
    given: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[Any, Data]:
    """Convolutions over stripes: one, then depthwise and pointwise ones."""
    made = stripes(seed, **(given or {}))
    inputs = keras.Input((20, 20, 1))
    x = layers.Conv2D(widths[0], 3, 2, padding="same", kernel_initializer=kernel)(inputs)
    for width in widths[1:]:
        x = layers.Activation(activation)(x)
        x = layers.DepthwiseConv2D(3, padding="same", depthwise_initializer=kernel)(x)
        x = layers.Conv2D(width, 1, kernel_initializer=kernel)(x)
        if norm:
            x = (
                layers.BatchNormalization(momentum=0.9)(x)
                if norm == "batch"
                else layers.GroupNormalization(4)(x)
            )
    x = layers.GlobalAveragePooling2D()(layers.Activation(activation)(x))
    return finish(inputs, x, 4, **more), made


def finder(seed: int, **more: Any) -> tuple[Any, Data]:
    """Down and up again, and past it: which pixels belong to the disc."""
    made = masks(seed)
    inputs = keras.Input((16, 16, 1))
    wide = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    deep = layers.Conv2D(16, 3, padding="same", activation="relu")(layers.MaxPooling2D()(wide))
    x = layers.Concatenate()([wide, layers.UpSampling2D()(deep)])
    return finish(inputs, layers.Conv2D(8, 3, padding="same", activation="relu")(x), 1, **more), made


def position(seed: int, bias: Any = "zeros", **more: Any) -> tuple[Any, Data]:
    """Where the peak of a signal is, by convolutions."""
    made = peaks(seed)
    inputs = x = keras.Input((48, 1))
    for width in (12, 16, 24):
        x = layers.Conv1D(width, 5, 2, padding="same", activation="relu", bias_initializer=bias)(x)
    return finish(inputs, layers.Dense(24, "relu")(layers.Flatten()(x)), 0, **more), made


def mixed(seed: int, given: dict[str, Any] | None = None, **more: Any) -> tuple[Any, Data]:
    """Convolutions over time, then a GRU, for movements."""
    made = movements(seed, **(given or {}))
    inputs = keras.Input((40, 3))
    x = layers.MaxPooling1D(2)(layers.Conv1D(16, 5, activation="relu", padding="same")(inputs))
    return finish(inputs, layers.GRU(20)(x), 4, **more), made


def twins(seed: int, cut: bool = False, **more: Any) -> tuple[Any, Data]:
    """The same encoder for two digits, and how far apart what it makes of them is."""
    made = pairs(seed)
    encoder = keras.Sequential([keras.Input((64,)), layers.Dense(64, "relu"), layers.Dense(4 if cut else 24)])
    if cut:
        encoder.add(layers.Lambda(lambda x: keras.ops.one_hot(keras.ops.argmax(x, -1), 4)))
    inputs = [keras.Input((64,)), keras.Input((64,))]
    apart = layers.Lambda(lambda both: keras.ops.abs(both[0] - both[1]))([encoder(one) for one in inputs])
    return finish(inputs, layers.Dense(16, "relu")(apart), 1, **more), made


def factors(seed: int, **more: Any) -> tuple[Any, Data]:
    """People and things as vectors, whose product is the rating."""
    inputs = [keras.Input((), dtype="int32"), keras.Input((), dtype="int32")]
    who, what = layers.Embedding(60, 4)(inputs[0]), layers.Embedding(50, 4)(inputs[1])
    model = keras.Model(inputs, layers.Dot(1)([who, what]))
    model.compile(optimizer_of(**{"name": "Adam", "rate": 1e-2, **more}), "mse")
    return model, ratings(seed)


def cleaner(seed: int, bias: Any = "zeros", activation: str = "gelu", **more: Any) -> tuple[Any, Data]:
    """Takes the noise off digits."""
    inputs = keras.Input((64,))
    x = layers.Dense(96, activation, bias_initializer=bias)(inputs)
    x = layers.Dense(32, activation, bias_initializer=bias)(x)
    return finish(inputs, layers.Dense(96, activation)(x), 0, units=64, **more), noisy_digits(seed)


def two_heads(seed: int, rate: float = 2e-3) -> Any:
    """Which digit is it, and is it an even one?"""
    x, y, x_val, y_val = digits(seed)
    inputs = keras.Input((64,))
    body = layers.Dense(48, "relu")(layers.Dense(64, "relu")(inputs))
    digit, even = (
        layers.Dense(10, "softmax", name="digit")(body),
        layers.Dense(1, "sigmoid", name="even")(body),
    )
    model = keras.Model(inputs, {"digit": digit, "even": even})
    model.compile(
        keras.optimizers.Adam(rate),
        {"digit": "sparse_categorical_crossentropy", "even": "binary_crossentropy"},
        metrics={"digit": "accuracy", "even": "accuracy"},
    )
    return model, (x, {"digit": y, "even": y % 2}, x_val, {"digit": y_val, "even": y_val % 2})


def upon_frozen(seed: int, **more: Any) -> tuple[Any, Data]:
    """A classifier upon layers that are not trained."""
    inputs = keras.Input((64,))
    base = layers.Dense(256, "relu", kernel_initializer="he_normal", trainable=False)(inputs)
    return finish(inputs, layers.Dense(32, "relu")(base), 10, **more), digits(seed)


def residual(seed: int, data: Callable[..., Data], blocks: int = 6, **more: Any) -> tuple[Any, Data]:
    """Many dense layers, past each of which there is a way."""
    made = data(seed)
    inputs = keras.Input(made[0].shape[1:])
    x = layers.Dense(32)(inputs)
    for _ in range(blocks):
        x = layers.Add()([x, layers.Dense(32, "swish")(layers.LayerNormalization()(x))])
    return finish(inputs, layers.LayerNormalization()(x), 0, **more), made


def held_down(seed: int, penalty: float = 0.0, dropout: float = 0.0, **more: Any) -> tuple[Any, Data]:
    """A net over digits that is kept from learning by too much of what is good for it."""
    inputs = x = keras.Input((64,))
    for _ in range(2):
        x = layers.Dense(64, "relu", kernel_regularizer=keras.regularizers.L2(penalty))(x)
        x = layers.Dropout(dropout)(x)
    return finish(inputs, x, 10, **more), digits(seed)


class _Slowly(keras.utils.PyDataset):
    """Batches each of which takes a while."""

    def __init__(self, x: Any, y: Any, batch: int) -> None:
        super().__init__()
        self.data = (x, y, batch)

    def __len__(self) -> int:
        return len(self.data[1]) // self.data[2]

    def __getitem__(self, at: int) -> Any:
        x, y, batch = self.data
        time.sleep(0.025)
        return x[at * batch : (at + 1) * batch], y[at * batch : (at + 1) * batch]


def slowly(x: Any, y: Any, batch: int) -> Any:
    """Batches each of which takes a while."""
    return _Slowly(x, y, batch)


def careful() -> dict[str, Any]:
    """Callbacks that change the rate and end the training."""
    return {
        "callbacks": [
            keras.callbacks.ReduceLROnPlateau(patience=2, factor=0.3),
            keras.callbacks.EarlyStopping(patience=6, restore_best_weights=True),
        ]
    }


def in_waves() -> dict[str, Any]:
    """A rate that goes up and down over six epochs."""
    rates = [1e-3, 3e-3, 6e-3, 1e-2, 6e-3, 3e-3]
    return {"callbacks": [keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch % 6])]}


def weighted() -> dict[str, Any]:
    """The rare class counts for more."""
    return {"class_weight": {0: 1.0, 1: 6.0}}
