"""Models for the configurations of `benchmarks.sets.tasks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

from benchmarks.sets.recipes import Data, optimizer_of
from benchmarks.sets.tasks_data import beats, census, echoes, lives, padded, pieces, reviews, speech, spots
from benchmarks.sets.tasks_losses import concordant, exponential_life
from benchmarks.sets.tasks_more_data import bodies, clouds, power, regions

_EXCLUSIVE = "sparse_categorical_crossentropy"


def built(
    inputs: Any,
    outputs: Any,
    loss: Any,
    optimizer: str = "Adam",
    rate: Any = 1e-3,
    metrics: Any = ("accuracy",),
    compiled: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A compiled model; `options` are the optimizer's, `compiled` further ones of `compile`."""
    model = keras.Model(inputs, outputs)
    chosen = metrics if isinstance(metrics, dict) else list(metrics)
    model.compile(optimizer_of(optimizer, rate, **options), loss, metrics=chosen, **(compiled or {}))
    return model


def dense(
    seed: int,
    data: Callable[..., Data],
    units: int = 1,
    output: str | None = None,
    loss: Any = "mse",
    hidden: tuple[int, ...] = (48, 24),
    activation: str | None = "relu",
    kernel: Any = "he_normal",
    bias: Any = "zeros",
    norm: bool = False,
    dropout: tuple[str, float] | None = None,
    given: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[Any, Data]:
    """Dense layers; `norm` is for layer normalization, `dropout` the layer's name and its share."""
    made = data(seed, **(given or {}))
    inputs = x = keras.Input(made[0].shape[1:])
    for width in hidden:
        x = layers.Dense(width, kernel_initializer=kernel, bias_initializer=bias)(x)
        x = layers.LayerNormalization()(x) if norm else x
        x = layers.Activation(activation)(x) if activation else x
        x = getattr(layers, dropout[0])(dropout[1])(x) if dropout else x
    return built(inputs, layers.Dense(units, output)(x), loss, **more), made


def deep_sum(
    seed: int, data: Callable[..., Data], blocks: int = 20, kernel: Any = "he_normal", **more: Any
) -> Any:
    """Blocks that add to what came before, and nothing that holds the sum down."""
    made = data(seed)
    inputs = keras.Input(made[0].shape[1:])
    x = layers.Dense(32)(inputs)
    for _ in range(blocks):
        y = layers.Dense(32, "relu", kernel_initializer=kernel)(x)
        x = layers.Add()([x, layers.Dense(32, kernel_initializer=kernel)(y)])
    return built(inputs, layers.Dense(1)(x), "mse", metrics=(), **more), made


def reader(
    seed: int, cell: str = "", width: int = 16, given: Any = None, loss: Any = _EXCLUSIVE, **more: Any
) -> Any:
    """Embedded words, then separable convolutions or a recurrent cell: which topic?"""
    made = reviews(seed, **(given or {}))
    inputs = keras.Input((None,), dtype="int64")
    x = layers.Embedding(320, width, mask_zero=bool(cell))(inputs)
    if cell:
        x = getattr(layers, cell)(24)(x)
    else:
        x = layers.GlobalMaxPooling1D()(layers.SeparableConv1D(32, 3, padding="same", activation="relu")(x))
    return built(inputs, layers.Dense(4, "softmax")(layers.Dense(24, "relu")(x)), loss, **more), made


def heart(
    seed: int,
    units: int = 3,
    blocks: int = 3,
    width: int = 16,
    norm: bool = True,
    activation: str = "swish",
    kernel: Any = "he_normal",
    given: Any = None,
    **more: Any,
) -> tuple[Any, Data]:
    """Residual convolutions over beats."""
    made = beats(seed, **(given or {}))
    inputs = keras.Input((96, 1))
    x = layers.Conv1D(width, 7, 2, padding="same", kernel_initializer=kernel)(inputs)
    for _ in range(blocks):
        y = layers.BatchNormalization(momentum=0.9)(x) if norm else x
        y = layers.Activation(activation)(y)
        y = layers.Conv1D(width, 5, padding="same", kernel_initializer=kernel)(y)
        x = layers.MaxPooling1D(2)(layers.Add()([x, y]))
    return built(inputs, layers.Dense(units, "softmax")(layers.Flatten()(x)), _EXCLUSIVE, **more), made


def heart_tasks(seed: int, weights: dict[str, float], **more: Any) -> tuple[Any, Any]:
    """Which kind of beat is it, and when is it?"""
    inputs = keras.Input((96, 1))
    x = inputs
    for width in (8, 16):
        x = layers.MaxPooling1D(2)(layers.Conv1D(width, 7, 2, padding="same", activation="relu")(x))
    x = layers.Dense(32, "relu")(layers.Flatten()(x))
    outputs = {"kind": layers.Dense(3, "softmax", name="kind")(x), "when": layers.Dense(1, name="when")(x)}
    loss = {"kind": _EXCLUSIVE, "when": "mse"}
    more = {"metrics": {"kind": "accuracy"}, "compiled": {"loss_weights": weights}, **more}
    return built(inputs, outputs, loss, **more), beats(seed, where=True)


def squeezed(seed: int, **more: Any) -> tuple[Any, Data]:
    """Beats through a bottleneck of eight numbers, by convolutions."""
    x, _, x_val, _ = beats(seed)
    inputs = keras.Input((96, 1))
    y = layers.Conv1D(16, 5, 4, padding="same", activation="elu")(inputs)
    y = layers.Dense(8)(layers.Flatten()(layers.Conv1D(16, 5, 4, padding="same", activation="elu")(y)))
    y = layers.Reshape((6, 16))(layers.Dense(96, "elu")(y))
    y = layers.Conv1DTranspose(16, 5, 4, padding="same", activation="elu")(y)
    return built(inputs, layers.Conv1DTranspose(1, 5, 4, padding="same")(y), "mae", **more), (
        x,
        x,
        x_val,
        x_val,
    )


def wide_and_deep(
    seed: int, hidden: tuple[int, ...] = (32, 16), activation: str = "relu", kernel: Any = "glorot_uniform",
    given: Any = None, **more: Any
) -> tuple[Any, Any]:  # fmt: skip
    """Categories as single weights and as vectors, beside numbers."""
    kinds, numbers = keras.Input((3,), dtype="int32"), keras.Input((10,))
    wide = layers.Flatten()(layers.Embedding(48, 1)(kinds))
    x = layers.Concatenate()([layers.Flatten()(layers.Embedding(48, 6)(kinds)), numbers])
    for width in hidden:
        x = layers.Dense(width, activation, kernel_initializer=kernel)(x)
    y = layers.Dense(1, "sigmoid")(layers.Concatenate()([wide, x]))
    return built([kinds, numbers], y, "binary_crossentropy", **more), census(seed, **(given or {}))


def divided(seed: int, **more: Any) -> tuple[Any, Any]:
    """Down twice and up again, and past it: what each pixel is of."""
    inputs = x = keras.Input((24, 24, 1))
    past = []
    for width in (8, 16):
        past.append(layers.Conv2D(width, 3, padding="same", activation="relu")(x))
        x = layers.MaxPooling2D()(past[-1])
    x = layers.Conv2D(24, 3, padding="same", activation="relu")(x)
    for width in (16, 8):
        x = layers.Conv2DTranspose(width, 2, 2)(x)
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(layers.Concatenate()([x, past.pop()]))
    return built(inputs, layers.Conv2D(3, 1, activation="softmax")(x), _EXCLUSIVE, **more), pieces(seed)


def counter(
    seed: int,
    activation: str = "relu",
    bias: Any = "zeros",
    kernel: Any = "he_normal",
    given: Any = None,
    **more: Any,
) -> tuple[Any, Data]:
    """Convolutions, the channels of which are weighted by squeeze and excitation: how many spots?"""
    inputs = x = keras.Input((20, 20, 1))
    for width in (12, 16):
        x = layers.Conv2D(width, 3, 2, padding="same", kernel_initializer=kernel, bias_initializer=bias)(x)
        x = layers.Activation(activation)(x)
        share = layers.Dense(width // 4, activation)(layers.GlobalAveragePooling2D()(x))
        x = layers.Multiply()([x, layers.Reshape((1, 1, width))(layers.Dense(width, "sigmoid")(share))])
    x = layers.Dense(32, activation)(layers.Flatten()(x))
    return built(inputs, layers.Dense(4, "softmax")(x), _EXCLUSIVE, **more), spots(seed, **(given or {}))


def varied(
    seed: int, cell: str = "GRU", inner: dict[str, Any] | None = None, **more: Any
) -> tuple[Any, Data]:
    """A recurrent net that passes over what was filled up."""
    inputs = keras.Input((24, 2))
    x = getattr(layers, cell)(20, **(inner or {}))(layers.Masking()(inputs))
    return built(inputs, layers.Dense(1, "sigmoid")(x), "binary_crossentropy", **more), padded(seed)


def tagger(
    seed: int,
    cell: str = "LSTM",
    depth: int = 1,
    output: str | None = "softmax",
    inner: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[Any, Data]:
    """Reads both ways: a tag for each word."""
    inputs = keras.Input((18,), dtype="int64")
    x = layers.Embedding(12, 8)(inputs)
    for _ in range(depth):
        x = layers.Bidirectional(getattr(layers, cell)(12, return_sequences=True, **(inner or {})))(x)
    return built(inputs, layers.Dense(3, output)(x), _EXCLUSIVE, **more), speech(seed)


def listener(seed: int, depth: int = 4, **more: Any) -> tuple[Any, Data]:
    """Causal convolutions, dilated further and further."""
    inputs = x = keras.Input((40, 1))
    for at in range(depth):
        y = layers.Conv1D(16, 2, dilation_rate=2**at, padding="causal", activation="relu")(x)
        x = layers.Add()([x, y]) if at else y
    return built(inputs, layers.Dense(1, "sigmoid")(x), "binary_crossentropy", **more), echoes(seed)


def experts(seed: int, many: int = 4, kernel: Any = "glorot_uniform", **more: Any) -> tuple[Any, Data]:
    """Several small nets, and one that tells how far to trust each."""
    inputs = keras.Input((5,))
    trust = layers.Dense(many, "softmax", kernel_initializer=kernel)(inputs)
    said = []
    for _ in range(many):
        x = layers.Dense(16, "relu", kernel_initializer=kernel)(inputs)
        said.append(layers.Dense(1, kernel_initializer=kernel)(x))
    return built(
        inputs, layers.Dot(1)([trust, layers.Concatenate()(said)]), "mse", metrics=(), **more
    ), regions(seed)


def ahead(seed: int, given: Any = None, **more: Any) -> tuple[Any, Data]:
    """Recurrent, upon convolutions: power in the next hour."""
    inputs = keras.Input((36, 2))
    x = layers.GRU(16)(layers.Conv1D(12, 3, 2, activation="relu")(inputs))
    return built(inputs, layers.Dense(1)(x), "mse", metrics=(), **more), power(seed, **(given or {}))


def cloud_net(seed: int, cut: bool = False, kernel: Any = "he_normal", **more: Any) -> tuple[Any, Data]:
    """The same layers for each point, and the highest of what they make; `cut` leaves yes or no of two values."""
    inputs = x = keras.Input((32, 2))
    for width in (32, 2 if cut else 48):
        x = layers.Dense(width, None if cut and width == 2 else "relu", kernel_initializer=kernel)(x)
    x = layers.GlobalMaxPooling1D()(x)
    if cut:
        x = layers.Lambda(lambda x: ops.cast(x > 0, "float32"))(x)
    x = layers.Dense(24, "relu", kernel_initializer=kernel)(x)
    return built(
        inputs, layers.Dense(3, "softmax", kernel_initializer=kernel)(x), _EXCLUSIVE, **more
    ), clouds(seed)


def room(seed: int, **more: Any) -> tuple[Any, Data]:
    """Convolutions in three dimensions."""
    inputs = keras.Input((8, 8, 8, 1))
    x = layers.MaxPooling3D()(layers.Conv3D(8, 3, padding="same", activation="relu")(inputs))
    x = layers.Conv3D(16, 3, padding="same", activation="relu")(x)
    x = layers.Dense(24, "relu")(layers.Flatten()(layers.MaxPooling3D()(x)))
    return built(inputs, layers.Dense(3, "softmax")(x), _EXCLUSIVE, **more), bodies(seed)


def lasting(seed: int, **more: Any) -> tuple[Any, Data]:
    """The logarithm of the rate at which things fail."""
    return dense(seed, **{"data": lives, "loss": exponential_life, "metrics": (concordant,), **more})
