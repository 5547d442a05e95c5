"""Training configurations, healthy and broken in each way that a kind of problem names, for `benchmarks.detection`.

A configuration is a recipe (what model on what data) with changes to it. Half of them, `held_out`, were set aside while
the detectors were made. Each is judged by its real outcome, so a broken one that trains well all the same counts as
well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # training x and y, validation x and y


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
        held_out: whether it is of the half that was set aside.
    """

    name: str
    recipe: Callable[..., tuple[Any, Data]]
    kinds: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    good: float = 0.8
    epochs: int = 20
    batch_size: int = 32
    held_out: bool = False


# -- data ----------------------------------------------------------------------------------------------------------
def _split(x: np.ndarray, y: np.ndarray, train: int, seed: int) -> Data:
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
    return _split(x * scale, y, train, seed)


def tabular(seed: int, name: str = "wine", scaled: bool = True, missing: bool = False) -> Data:
    """A table of scikit-learn's: wine (3 classes) or breast cancer (2)."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if scaled:
        x = (x - x.mean(0)) / x.std(0)
    if missing:
        x[:: max(1, len(x) // 10), 0] = np.nan
    return _split(x, y.astype(np.int64), len(x) * 3 // 4, seed)


def friedman(
    seed: int, noise: float = 0.3, scale: float = 1.0, offset: float = 0.0, inputs: float = 1.0
) -> Data:
    """Friedman's first regression; targets of mean 0 and deviation about 1, times `scale`, plus `offset`."""
    rng = np.random.default_rng(seed)
    x = rng.random((1200, 8))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = (y - y.mean()) / y.std() + noise * rng.normal(size=len(y))
    return _split((2 * x - 1) * inputs, (y * scale + offset).astype(np.float32), 900, seed)


def waves(seed: int, steps: int = 30, scale: float = 1.0) -> Data:
    """Noisy waves of three frequencies, to be told apart."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 900)
    t = np.arange(steps)[None]
    phase = rng.random((900, 1)) * 2 * np.pi
    x = np.sin(t * (0.2 + 0.25 * y[:, None]) + phase) + 0.3 * rng.normal(size=(900, steps))
    return _split(x[..., None] * scale, y, 650, seed)


def tokens(seed: int, length: int = 16, vocabulary: int = 12) -> Data:
    """Sequences of tokens: is token 1 in there more often than token 2?"""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, vocabulary, (1600, length))
    more = (x == 1).sum(1) - (x == 2).sum(1)
    keep = more != 0
    return _split(x[keep], (more[keep] > 0).astype(np.int64), int(keep.sum() * 0.75), seed)


# -- models --------------------------------------------------------------------------------------------------------
def _optimizer(name: str, rate: float, **options: Any) -> Any:
    return getattr(keras.optimizers, name)(learning_rate=rate, **options)


def _loss(classes: int, from_logits: bool) -> Any:
    if classes == 0:
        return "mse"
    if classes == 1:
        return keras.losses.BinaryCrossentropy(from_logits=from_logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def _finish(
    inputs: Any,
    x: Any,
    classes: int,
    *,
    output: str | None = "",
    from_logits: bool = False,
    loss: Any = None,
    optimizer: str = "Adam",
    rate: float = 1e-3,
    units: int | None = None,
    kernel: Any = "glorot_uniform",
    **options: Any,
) -> Any:
    usual = {0: None, 1: "sigmoid"}.get(classes, "softmax")
    y = layers.Dense(
        units or max(1, classes), activation=usual if output == "" else output, kernel_initializer=kernel
    )(x)
    model = keras.Model(inputs, y)
    metrics = ["accuracy"] if classes else []
    model.compile(
        _optimizer(optimizer, rate, **options), loss or _loss(classes, from_logits), metrics=metrics
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
    return _finish(inputs, x, classes, **more), made


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
    return _finish(inputs, x, 10, **more), made


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
    return _finish(inputs, x, 3, **more), made


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
    return _finish(inputs, layers.GlobalAveragePooling1D()(x), 1, **more), made


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
    model.compile(_optimizer(optimizer, rate), "mse")
    return model, (x_train, x_train, x_val, x_val)


def _log_loss(y: Any, p: Any) -> Any:
    """Cross-entropy by hand, without keeping log away from 0."""
    return -keras.ops.sum(
        keras.ops.one_hot(keras.ops.cast(keras.ops.reshape(y, [-1]), "int32"), 10) * keras.ops.log(p), -1
    )


_REG = {"data": friedman, "classes": 0}
_WINE = {"data": tabular, "classes": 3, "hidden": (32,)}
_CANCER = {"data": tabular, "classes": 1, "hidden": (32,), "given": {"name": "breast_cancer"}}
_random = keras.initializers.RandomNormal


def _rows() -> list[Configuration]:
    make = Configuration
    seen = [
        make("mlp adam", mlp),
        make("mlp sgd momentum", mlp, (), {"optimizer": "SGD", "rate": 0.05, "momentum": 0.9}),
        make("mlp logits", mlp, (), {"output": None, "from_logits": True}),
        make("mlp tanh", mlp, (), {"activation": "tanh", "optimizer": "RMSprop"}),
        make("mlp norm dropout", mlp, (), {"norm": True, "dropout": 0.3}),
        make("cnn", cnn, (), {}, 0.85, 12),
        make(
            "cnn norm residual",
            cnn,
            (),
            {"filters": (16, 16, 16), "norm": True, "residual": True, "rate": 3e-3},
            0.8,
            12,
        ),
        make("lstm", rnn, (), {"rate": 5e-3}, 0.8, 15),
        make("transformer", transformer, (), {"rate": 3e-3}, 0.85, 15),
        make("regression", mlp, (), {**_REG, "rate": 3e-3}, 0.6, 30),
        make(
            "regression with noise",
            mlp,
            (),
            {**_REG, "hidden": (16,), "rate": 3e-3, "given": {"noise": 1.2}},
            0.2,
            15,
        ),
        make("wine", mlp, (), {**_WINE, "rate": 5e-3}, 0.85, 30, 16),
        make("cancer", mlp, (), _CANCER, 0.85, 20),
        make("autoencoder", autoencoder, (), {}, 0.4, 25),
        make("mlp rate too high", mlp, ("learning_rate_too_high", "dead_relu"), {"rate": 1.0}),
        make(
            "mlp sgd diverges",
            mlp,
            ("learning_rate_too_high", "exploding_gradient", "nan_or_inf"),
            {**_REG, "optimizer": "SGD", "rate": 5.0},
            0.6,
            20,
        ),
        make("mlp rate too low", mlp, ("learning_rate_too_low",), {"rate": 1e-6}),
        make("mlp zero weights", mlp, ("poor_initialization",), {"kernel": "zeros"}),
        make(
            "mlp huge weights",
            mlp,
            ("poor_initialization", "saturated_activation"),
            {"kernel": _random(stddev=5.0), "activation": "tanh", "hidden": (64, 64, 64)},
            0.8,
            15,
        ),
        make(
            "mlp deep sigmoid",
            mlp,
            ("vanishing_gradient",),
            {"activation": "sigmoid", "hidden": (32,) * 10},
            0.8,
            30,
        ),
        make("mlp dead bias", mlp, ("dead_relu",), {"bias": keras.initializers.Constant(-10.0)}, 0.8, 15),
        make(
            "cnn saturated",
            cnn,
            ("saturated_activation", "unnormalized_input", "poor_initialization"),
            {"activation": "tanh", "kernel": _random(stddev=3.0), "given": {"scale": 100.0}},
            0.85,
            12,
        ),
        make("mlp logits as probabilities", mlp, ("loss_output_mismatch",), {"output": None}),
        make("binary softmax", mlp, ("loss_output_mismatch",), {**_CANCER, "output": "softmax"}, 0.8, 20),
        make(
            "regression relu output",
            mlp,
            ("improper_activation",),
            {**_REG, "output": "relu", "given": {"offset": -3.0}},
            0.6,
            20,
        ),
        make(
            "wine unscaled",
            mlp,
            ("unnormalized_input",),
            {**_WINE, "given": {"scaled": False}, "activation": "tanh", "optimizer": "SGD", "rate": 0.01},
            0.85,
            30,
            16,
        ),
        make("missing values", mlp, ("nan_or_inf",), {**_WINE, "given": {"missing": True}}, 0.85, 15, 16),
        make("log of zero", mlp, ("nan_or_inf",), {"loss": _log_loss, "output": "relu"}, 0.8, 10),
        make(
            "overfitting",
            mlp,
            ("overfitting",),
            {"hidden": (256, 256), "given": {"train": 200, "noise": 0.5}},
            0.7,
            80,
        ),
        make(
            "shuffled labels",
            mlp,
            ("underfitting", "overfitting", "slow_convergence"),
            {"hidden": (8,), "given": {"shuffled": True}},
            0.8,
            20,
        ),
        make(
            "swinging",
            mlp,
            ("oscillating_loss", "learning_rate_too_high"),
            {"optimizer": "SGD", "rate": 2.0, "momentum": 0.9, "hidden": (32,)},
            0.8,
            30,
        ),
        make("cut gradient", mlp, ("stagnant_weights",), {"cut": True, "hidden": (8, 2)}, 0.8, 20),
        make(
            "rnn explodes",
            rnn,
            ("exploding_gradient", "nan_or_inf", "learning_rate_too_high", "poor_initialization"),
            {
                "cell": "SimpleRNN",
                "activation": "relu",
                "recurrent": _random(stddev=2.0),
                "optimizer": "SGD",
                "rate": 0.1,
            },
            0.8,
            10,
        ),
        make(
            "lstm rate too low", rnn, ("learning_rate_too_low",), {"optimizer": "SGD", "rate": 1e-5}, 0.8, 15
        ),
        make("transformer rate too high", transformer, ("learning_rate_too_high",), {"rate": 1.0}, 0.85, 12),
        make(
            "cnn deep sigmoid",
            cnn,
            ("vanishing_gradient",),
            {"activation": "sigmoid", "filters": (8,) * 8},
            0.8,
            12,
        ),
    ]
    aside = [
        make("mlp small batch", mlp, (), {"hidden": (32,), "rate": 5e-4}, 0.85, 15, 16),
        make("mlp nadam elu", mlp, (), {"optimizer": "Nadam", "activation": "elu"}, 0.85, 15),
        make("mlp adagrad", mlp, (), {"optimizer": "Adagrad", "rate": 0.1}, 0.85, 15),
        make("mlp deep relu he", mlp, (), {"hidden": (48,) * 6, "kernel": "he_normal"}, 0.85, 20),
        make("mlp unscaled but fine", mlp, (), {"given": {"scale": 16.0}}, 0.85, 20),
        make("cnn gelu", cnn, (), {"activation": "gelu", "optimizer": "AdamW", "rate": 2e-3}, 0.85, 12),
        make("cnn deep norm", cnn, (), {"filters": (12,) * 5, "norm": True, "rate": 3e-3}, 0.85, 12),
        make("gru", rnn, (), {"cell": "GRU", "rate": 5e-3}, 0.8, 15),
        make("lstm of two", rnn, (), {"depth": 2, "units": 16, "rate": 5e-3}, 0.8, 15),
        make("transformer of two", transformer, (), {"blocks": 2, "rate": 2e-3}, 0.85, 15),
        make("regression huber", mlp, (), {**_REG, "loss": "huber", "rate": 3e-3}, 0.6, 30),
        make(
            "regression scaled",
            mlp,
            (),
            {**_REG, "given": {"scale": 50.0, "offset": 200.0}, "rate": 1e-2, "hidden": (64, 64)},
            0.6,
            60,
        ),
        make("cancer sgd", mlp, (), {**_CANCER, "optimizer": "SGD", "rate": 0.1}, 0.85, 20),
        make("autoencoder tanh", autoencoder, (), {"activation": "tanh"}, 0.4, 25),
        make(
            "rmsprop too high",
            mlp,
            ("learning_rate_too_high", "dead_relu"),
            {"optimizer": "RMSprop", "rate": 0.5},
        ),
        make("cnn rate too high", cnn, ("learning_rate_too_high", "dead_relu"), {"rate": 0.5}, 0.85, 12),
        make(
            "cnn sgd diverges",
            cnn,
            ("learning_rate_too_high", "exploding_gradient", "nan_or_inf", "dead_relu"),
            {"optimizer": "SGD", "rate": 10.0, "output": None, "from_logits": True},
            0.85,
            12,
        ),
        make(
            "regression too low",
            mlp,
            ("learning_rate_too_low",),
            {**_REG, "optimizer": "SGD", "rate": 1e-6},
            0.6,
            25,
        ),
        make("transformer too low", transformer, ("learning_rate_too_low",), {"rate": 1e-6}, 0.85, 12),
        make(
            "cnn constant weights",
            cnn,
            ("poor_initialization",),
            {"kernel": keras.initializers.Constant(0.01)},
            0.85,
            12,
        ),
        make(
            "mlp tiny weights",
            mlp,
            ("poor_initialization", "vanishing_gradient"),
            {"kernel": _random(stddev=1e-4), "hidden": (32,) * 4},
            0.8,
            15,
        ),
        make(
            "mlp deep tanh exploding",
            mlp,
            ("vanishing_gradient", "saturated_activation", "poor_initialization", "exploding_gradient"),
            {
                "kernel": _random(stddev=3.0),
                "activation": "tanh",
                "hidden": (64,) * 6,
                "optimizer": "SGD",
                "rate": 0.05,
            },
            0.8,
            15,
        ),
        make(
            "rnn deep sigmoid",
            rnn,
            ("vanishing_gradient",),
            {"cell": "SimpleRNN", "activation": "sigmoid", "depth": 3, "optimizer": "SGD", "rate": 0.05},
            0.8,
            12,
        ),
        make(
            "cnn dead bias",
            cnn,
            ("dead_relu",),
            {"bias": keras.initializers.Constant(-5.0), "filters": (16, 16, 16)},
            0.85,
            12,
        ),
        make(
            "sigmoid unscaled",
            mlp,
            ("saturated_activation", "unnormalized_input"),
            {
                "activation": "sigmoid",
                "given": {"scale": 1000.0},
                "kernel": _random(stddev=1.0),
                "optimizer": "SGD",
                "rate": 0.001,
            },
            0.8,
            15,
        ),
        make("cnn logits as probabilities", cnn, ("loss_output_mismatch",), {"output": None}, 0.85, 10),
        make("labels out of range", mlp, ("loss_output_mismatch", "nan_or_inf"), {"units": 8}, 0.85, 10),
        make("relu classifier", mlp, ("improper_activation",), {"output": "relu"}, 0.8, 15),
        make(
            "regression sigmoid output",
            mlp,
            ("improper_activation",),
            {**_REG, "output": "sigmoid", "given": {"offset": 5.0}},
            0.6,
            20,
        ),
        make(
            "exponential net",
            mlp,
            ("exploding_gradient", "nan_or_inf", "improper_activation"),
            {"activation": "exponential", "hidden": (32,) * 4},
            0.8,
            10,
        ),
        make(
            "cancer unscaled",
            mlp,
            ("unnormalized_input",),
            {**_CANCER, "given": {"name": "breast_cancer", "scaled": False}, "optimizer": "SGD", "rate": 0.1},
            0.85,
            20,
        ),
        make(
            "missing in cancer",
            mlp,
            ("nan_or_inf",),
            {**_CANCER, "given": {"name": "breast_cancer", "missing": True}},
            0.85,
            10,
        ),
        make(
            "cnn overfitting",
            cnn,
            ("overfitting",),
            {"filters": (32, 32), "given": {"train": 150, "noise": 0.6}},
            0.7,
            60,
        ),
        make(
            "cnn shuffled labels",
            cnn,
            ("underfitting", "overfitting", "slow_convergence"),
            {"filters": (4,), "given": {"shuffled": True}},
            0.8,
            12,
        ),
        make(
            "swinging cnn",
            cnn,
            ("oscillating_loss", "learning_rate_too_high", "dead_relu"),
            {"optimizer": "SGD", "rate": 1.0, "momentum": 0.9},
            0.85,
            20,
        ),
        make(
            "cut gradient sgd",
            mlp,
            ("stagnant_weights",),
            {"cut": True, "hidden": (16, 3), "optimizer": "SGD", "rate": 0.1},
            0.8,
            20,
        ),
    ]
    import dataclasses

    return seen + [dataclasses.replace(one, held_out=True) for one in aside]


def configurations(held_out: bool) -> list[Configuration]:
    """One of the two halves."""
    return [one for one in _rows() if one.held_out == held_out]
