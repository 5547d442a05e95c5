"""Held-out configurations, written without a look at any detector, to be evaluated once, at the end.

Whether a training goes as it is meant to may be tried with `--unwatched`: no detector is asked.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as of

from benchmarks.sets import aside_data as some
from benchmarks.sets import aside_models as my
from benchmarks.sets.aside_models import as_usual, row
from benchmarks.sets.recipes import Configuration as one

_random, _constant = keras.initializers.RandomNormal, keras.initializers.Constant
_schedules, _only = keras.optimizers.schedules, keras.regularizers
_HIGH, _LOW, _START = "learning_rate_too_high", "learning_rate_too_low", "poor_initialization"
_EXPLODES, _NAN, _SLOW, _FLAT = "exploding_gradient", "nan_or_inf", "slow_convergence", "plateau"
_FIT, _OUTPUT, _RAW = "loss_output_mismatch", "improper_activation", "unnormalized_input"
_UNSCALED = "unscaled_targets"
_UNDER, _OVER, _DEAD, _STILL = "underfitting", "overfitting", "dead_relu", "stagnant_weights"
_SATURATED, _VANISHES, _SWINGS = "saturated_activation", "vanishing_gradient", "oscillating_loss"
_NUMBER: dict[str, Any] = {"loss": "mse", "metrics": ()}
_WHO: dict[str, Any] = {"data": some.clients, "loss": "binary_crossentropy", "metrics":
    ("AUC", "accuracy")}  # fmt: skip
_XOR: dict[str, Any] = {"data": some.either_or, "loss": "binary_crossentropy"}
_BYTES = {"scale": 255.0}


def _seen(*before: Any, widths: tuple[int, ...] = (16, 32), norm: bool = False) -> list[Any]:
    """Convolutions and pooling, for twelve signs."""
    made = list(before)
    for width in widths:
        made += [of.Conv2D(width, 3, padding="same", activation=None if norm else "relu")]
        made += [of.BatchNormalization(momentum=0.9), of.ReLU()] if norm else []
        made += [of.MaxPooling2D()]
    return [*made, of.Flatten(), of.Dense(12, "softmax")]


def _wide(many: int, units: int, end: Any, activation: Any = "relu", **inner: Any) -> list[Any]:
    """Dense layers alike, then a last one."""
    return [*(of.Dense(units, activation, **inner) for _ in range(many)), end]


def _again(activity: float = 0.0) -> list[Any]:
    """Pictures through sixty-four numbers."""
    kept = _only.L1(activity) if activity else None
    return [of.Conv2D(16, 3, 2, "same", activation="relu"), of.Conv2D(32, 3, 2, "same", activation="relu"),
            of.Flatten(), of.Dense(64, "relu", activity_regularizer=kept), of.Dense(512, "relu"),
            of.Reshape((4, 4, 32)), of.Conv2DTranspose(16, 3, 2, "same", activation="relu"),
            of.Conv2DTranspose(3, 3, 2, "same", activation="sigmoid")]  # fmt: skip


def _read(cell: Any, *after: Any, **inner: Any) -> list[Any]:
    """Letters, a recurrent cell, four languages."""
    return [of.Embedding(21, 12, mask_zero=True, **inner), cell, *after, of.Dense(4, "softmax")]


def _heard(many: int, activation: str = "relu") -> list[Any]:
    """Convolutions over tones."""
    return [*(of.Conv1D(16 + 8 * (at > 0), 9 if at < 2 else 3, 2 if at < 3 else 1, "same", activation=activation)
            for at in range(many)), of.GlobalMaxPooling1D(), of.Dense(3, "softmax")]  # fmt: skip


# fmt: off
CONFIGURATIONS = (
    # -- made to go well
    one("signs, moved and turned", row, (), {"data": some.signs, "made_of": lambda x: _seen(of.RandomTranslation(0.08,
        0.08), of.RandomRotation(0.03)), "rate": 3e-3}, 0.8, 14),
    one("signs in bytes, scaled inside", row, (), {"data": some.signs, "given": _BYTES, "made_of": lambda x:
        _seen(of.Rescaling(1 / 127.5, -1.0)), "optimizer": "RMSprop", "rate": 2e-3}, 0.85, 12),
    one("signs in bytes, as they are", row, (), {"data": some.signs, "given": _BYTES, "made_of": lambda x: _seen()},
        0.85, 12),
    one("signs, a high rate", row, (), {"data": some.signs, "made_of": lambda x: _seen(norm=True), "optimizer": "SGD",
        "rate": 0.3}, 0.85, 25, 128),
    one("signs, small steps", row, (), {"data": some.signs, "made_of": lambda x: _seen(), "rate": 1e-4}, 0.8, 10, 8),
    one("signs, labels smoothed", row, (), {"data": some.signs, "given": {"one_hot": True}, "made_of": lambda x:
        _seen(widths=(12, 24, 32)), "loss": keras.losses.CategoricalCrossentropy(label_smoothing=0.3), "optimizer":
        "SGD", "rate": 0.03, "momentum": 0.9, "nesterov": True}, 0.85, 15),
    one("signs by frozen components", row, (), {"data": some.signs, "made_of": lambda x: [of.Flatten(),
        my.components(x, 48), of.Dense(48, "relu"), of.Dense(12, "softmax")], "rate": 3e-3}, 0.8, 20),
    one("signs without end, shaken", row, (), {"data": some.signs, "made_of": lambda x: _seen(), "optimizer": "Nadam",
        "rate": 2e-3}, 0.85, 8, feed=my.shaken, fit=lambda: {"steps_per_epoch": 50}),
    one("photographs told apart", row, (), {"data": some.photographs, "loss": "binary_crossentropy", "made_of": lambda
        x: [of.Rescaling(1 / 255), of.Conv2D(12, 3, 2, activation="relu"), of.Conv2D(16, 3, 2, activation="relu"),
        of.GlobalAveragePooling2D(), of.Dropout(0.2), of.Dense(1, "sigmoid")], "optimizer": "AdamW", "rate": 5e-3},
        0.85, 15),
    one("photographs coloured", row, (), {"data": some.photographs, "given": {"what": "colours"}, **_NUMBER,
        "made_of": lambda x: [*(of.Conv2D(12, 3, padding="same", activation="tanh") for _ in range(2)), of.Conv2D(3,
        1, activation="sigmoid")], "rate": 5e-3}, 0.6, 8),
    one("photographs again, by cross-entropy", row, (), {"data": some.photographs, "given": {"what": "again"},
        "made_of": lambda x: _again(), "loss": "binary_crossentropy", "metrics": ("mse",), "rate": 2e-3}, 0.7, 12),
    one("films", row, (), {"data": some.films, "made_of": lambda x: [of.TimeDistributed(of.Conv2D(8, 3, 2,
        activation="relu")), of.TimeDistributed(of.Flatten()), of.LSTM(24), of.Dense(4, "softmax")], "rate": 5e-3},
        0.85, 12),
    one("names by letters", row, (), {"data": some.names, "made_of": lambda x: _read(of.LSTM(32)), "rate": 5e-3}, 0.7,
        10),
    one("names, much dropped", row, (), {"data": some.names, "made_of": lambda x: _read(of.Bidirectional(of.GRU(16)),
        of.Dropout(0.6)), "rate": 5e-3}, 0.7, 8),
    one("opinions after a warm-up", my.judge, (), {"optimizer": "AdamW", "rate": _schedules.CosineDecay(0.0, 700,
        warmup_target=4e-3, warmup_steps=120)}, 0.65, 15),
    one("words turned round", my.turner, (), {"rate": 8e-3}, 0.8, 14, 64),
    one("passengers", row, (), {"data": some.passengers, **_NUMBER, "made_of": lambda x: [of.LSTM(24), of.Dense(1)],
        "rate": 5e-3}, 0.7, 15),
    one("returns", row, (), {"data": some.returns, **_NUMBER, "made_of": lambda x: [of.GRU(8), of.Dense(1)], "rate":
        3e-3}, 0.04, 10, 64),
    one("chirps", row, (), {"data": some.chirps, "made_of": lambda x: _heard(3), "rate": 3e-3}, 0.85, 15),
    one("houses as usual", row, (), {"data": some.houses, **_NUMBER, "made_of": lambda x: [as_usual(x), *_wide(2, 32,
        of.Dense(1))], "rate": 4e-3}, 0.7, 20),
    one("houses by a line", row, (), {"data": some.houses, **_NUMBER, "made_of": lambda x: [as_usual(x), of.Dense(1)],
        "optimizer": "SGD", "rate": 0.1}, 0.7, 30),
    one("clients who leave", row, (), {**_WHO, "made_of": lambda x: [as_usual(x), of.Dense(24, "relu"),
        of.Dropout(0.2), of.Dense(1, "sigmoid", bias_initializer=_constant(-2.0))], "rate": 3e-3}, 0.8, 15,
        judged_by="val_auc"),
    one("shells, all that holds back", row, (), {"data": some.shells, "made_of": lambda x: [of.GaussianNoise(0.2),
        *_wide(2, 96, of.Dropout(0.5), kernel_regularizer=_only.L2(2e-3)), of.Dense(3, "softmax")], "rate": 3e-3},
        0.7, 20),
    one("shells, half of the labels drawn", row, (), {"data": some.shells, "given": {"wrong": 0.5}, "made_of": lambda
        x: _wide(1, 48, of.Dense(3, "softmax")), "rate": 1e-2}, 0.46, 15),
    one("shells, one cycle", row, (), {"data": some.shells, "made_of": lambda x: _wide(2, 48, of.Dense(3, "softmax")),
        "optimizer": "SGD", "momentum": 0.9, "rate": 0.01}, 0.8, 20, fit=my.one_cycle),
    one("shells, from nothing added", row, (), {"data": some.shells, "made_of": lambda x: [of.Dense(32),
        *(my.Past(of.Dense(32, "relu")) for _ in range(6)), of.Dense(3, "softmax", kernel_initializer="zeros")],
        "rate": 2e-3}, 0.75, 15),
    one("shells, slow to begin", row, (), {"data": some.shells, "made_of": lambda x: _wide(2, 64, of.Dense(3,
        "softmax"), "sigmoid"), "rate": 1e-2}, 0.75, 32),
    one("shells, two batches an epoch", row, (), {"data": some.shells, "made_of": lambda x: _wide(1, 64, of.Dense(3,
        "softmax"), "gelu"), "optimizer": "Lamb", "rate": 0.02}, 0.75, 70, 800),
    one("genes, few let in", row, (), {"data": some.genes, "given": {"train": 260}, "loss": "binary_crossentropy",
        "made_of": lambda x: [of.Dense(1, "sigmoid", kernel_regularizer=_only.L1(0.02))], "optimizer": "SGD",
        "rate": 0.02}, 0.7, 30, 16),
    one("spectra, five sigmoids behind norms", row, (), {"data": some.spectra, "made_of": lambda x: [*(layer for _ in
        range(5) for layer in (of.Dense(32), of.BatchNormalization(momentum=0.9), of.Activation("sigmoid"))),
        of.Dense(5, "softmax")], "rate": 3e-3}, 0.8, 15),
    one("spectra, muon", row, (), {"data": some.spectra, "made_of": lambda x: _wide(2, 32, of.Dense(5, "softmax"),
        "gelu"), "optimizer": "Muon", "rate": 5e-3}, 0.8, 12),
    one("branches as a mixture", row, (), {"data": some.branches, "loss": my.unlikely, "metrics": (my.likely,),
        "made_of": lambda x: _wide(2, 32, of.Dense(12), "tanh"), "rate": 5e-3}, 0.3, 25, judged_by="val_likely"),
    one("a curve, for long", row, (), {"data": some.curve, **_NUMBER, "made_of": lambda x: _wide(2, 32, of.Dense(1),
        "tanh"), "rate": 1e-2}, 0.85, 140, 95),
    one("cooling, by its equation", my.cooled, (), {}, 0.9, 60),
    one("either, or", row, (), {**_XOR, "made_of": lambda x: _wide(1, 8, of.Dense(1, "sigmoid"), "tanh"), "rate":
        0.05}, 0.9, 130, 4),
    # -- made to fail
    one("signs in bytes, plain descent", row, (_RAW, _HIGH, _EXPLODES, _NAN, _DEAD), {"data": some.signs, "given":
        _BYTES, "made_of": lambda x: [of.Flatten(), *_wide(2, 64, of.Dense(12, "softmax"))], "optimizer": "SGD",
        "rate": 0.05}, 0.8, 15),
    one("signs scaled twice", row, (_RAW, _SLOW, _LOW, _UNDER, _FLAT, _VANISHES), {"data": some.signs, "made_of":
        lambda x: _seen(of.Rescaling(1 / 255)), "optimizer": "SGD", "rate": 0.01}, 0.8, 12),
    one("signs numbered from 1", row, (_FIT, _NAN), {"data": some.signs, "given": {"number_from": 1}, "made_of":
        lambda x: _seen()}, 0.8, 8),
    one("numbers of signs against shares", row, (_FIT, _OUTPUT), {"data": some.signs, "given": {"as_column": True},
        "made_of": lambda x: _seen(), "loss": "mse"}, 0.8, 10),
    one("few signs by heart", row, (_OVER,), {"data": some.signs, "given": {"train": 120, "wrong": 0.5}, "made_of":
        lambda x: _seen(widths=(32, 64)), "rate": 2e-3}, 0.5, 50, 16),
    one("signs, rate too high", row, (_HIGH, _DEAD), {"data": some.signs, "made_of": lambda x: _seen(widths=(16, 24,
        32)), "rate": 0.3}, 0.8, 12),
    one("signs under thresholds", row, (_DEAD,), {"data": some.signs, "made_of": lambda x: [of.Flatten(),
        of.Dense(96), of.ReLU(threshold=6.0), of.Dense(48, "relu"), of.Dense(12, "softmax")]}, 0.8, 12),
    one("signs, each turned in Python", row, ("input_bound",), {"data": some.signs, "made_of": lambda x: _seen()},
        0.8, 4, feed=my.turned_by_hand, wasteful=True),
    one("photographs in bytes again", row, (_FIT, _OUTPUT, _RAW), {"data": some.photographs, "given": {"what":
        "again", **_BYTES}, "made_of": lambda x: _again(), "loss": "binary_crossentropy", "metrics": ("mse",)}, 0.7,
        10),
    one("photographs centred, through sigmoids", row, (_OUTPUT,), {"data": some.photographs, "given": {"what":
        "again", "centred": True}, "made_of": lambda x: _again(), **_NUMBER, "rate": 2e-3}, 0.7, 12),
    one("photographs, nothing may be active", row, (_DEAD, _UNDER, _FLAT, _SLOW), {"data": some.photographs, "given":
        {"what": "again"}, "made_of": lambda x: _again(activity=5.0), **_NUMBER, "rate": 2e-3}, 0.7, 12),
    one("names from nothing", row, (_START,), {"data": some.names, "made_of": lambda x: _read(of.LSTM(24,
        kernel_initializer="zeros", recurrent_initializer="zeros"), embeddings_initializer="zeros")}, 0.8, 10),
    one("names by heart", row, (_OVER,), {"data": some.names, "given": {"train": 140, "wrong": 0.5}, "made_of": lambda
        x: _read(of.GRU(48)), "rate": 5e-3}, 0.5, 36, 16),
    one("names by one number", row, (_UNDER, _FLAT, _SLOW), {"data": some.names, "made_of": lambda x:
        _read(of.LSTM(1)), "rate": 3e-3}, 0.8, 12),
    one("names from afar", row, ("input_bound",), {"data": some.names, "made_of": lambda x: _read(of.GRU(8)), "rate":
        1e-2}, 0.8, 5, feed=my.from_afar, wasteful=True),
    one("opinions, rate too low", my.judge, (_LOW, _SLOW), {"optimizer": "SGD", "rate": 2e-5}, 0.7, 12),
    one("opinions, a warm-up without end", my.judge, (_LOW, _SLOW), {"rate": _schedules.CosineDecay(0.0, 2_000_000,
        warmup_target=1e-3, warmup_steps=1_000_000)}, 0.65, 12),
    one("words turned round, rate too high", my.turner, (_HIGH, _SATURATED), {"rate": 1.0}, 0.8, 8, 64),
    one("the first of sixty", row, (_VANISHES, _UNDER, _FLAT, _SLOW), {"data": some.first, "loss":
        "binary_crossentropy", "made_of": lambda x: [of.SimpleRNN(16), of.Dense(1, "sigmoid")]}, 0.8, 12),
    one("a share as it is quoted", row, (_RAW, _UNSCALED, _SATURATED, _SLOW, _LOW, _UNDER), {"data": some.prices,
        **_NUMBER, "made_of": lambda x: [of.LSTM(32), of.Dense(1)]}, 0.6, 12),
    one("passengers out of a cell", row, (_OUTPUT, _SATURATED, _UNDER), {"data": some.passengers, "given": {"spread":
        4.0}, **_NUMBER, "made_of": lambda x: [of.LSTM(16, return_sequences=True), of.LSTM(1)], "rate": 5e-3}, 0.7,
        12),
    one("passengers explode", row, (_EXPLODES, _NAN, _HIGH, _START), {"data": some.passengers, **_NUMBER, "made_of":
        lambda x: [of.SimpleRNN(32, "relu", recurrent_initializer=_random(stddev=0.6)), of.Dense(1)], "optimizer":
        "SGD", "rate": 0.05}, 0.7, 10),
    one("houses in dollars", row, (_UNSCALED, _LOW, _SLOW, _UNDER), {"data": some.houses, "given": {"unit": 1.0},
        **_NUMBER, "made_of": lambda x: [as_usual(x), *_wide(2, 32, of.Dense(1))]}, 0.7, 20),
    one("houses, a column that is constant", row, (_NAN,), {"data": some.houses, "given": {"constant": True},
        **_NUMBER, "made_of": lambda x: _wide(2, 32, of.Dense(1))}, 0.7, 12),
    one("houses with their date", row, (_RAW, _EXPLODES, _HIGH, _NAN, _DEAD), {"data": some.houses, "given": {"date":
        True}, **_NUMBER, "made_of": lambda x: _wide(2, 32, of.Dense(1))}, 0.7, 20),
    one("houses by tanh, as they are", row, (_RAW, _SATURATED, _UNDER, _FLAT, _SLOW, _VANISHES), {"data": some.houses,
        **_NUMBER, "made_of": lambda x: _wide(2, 32, of.Dense(1), "tanh"), "rate": 3e-3}, 0.7, 15),
    one("photographs of one category", row, (_FIT,), {"data": some.photographs, "loss": "categorical_crossentropy",
        "made_of": lambda x: [of.Rescaling(1 / 255), of.Conv2D(12, 3, 2, activation="relu"), of.Flatten(), of.Dense(1,
        "sigmoid")]}, 0.8, 10),
    one("clients by heart", row, (_OVER,), {**_WHO, "given": {"train": 160, "wrong": 0.25}, "made_of": lambda x:
        [as_usual(x), *_wide(2, 128, of.Dense(1, "sigmoid"))], "rate": 2e-3}, 0.8, 60, 16, judged_by="val_auc"),
    one("genes by heart", row, (_OVER,), {"data": some.genes, "given": {"train": 48}, "loss": "binary_crossentropy",
        "made_of": lambda x: _wide(2, 128, of.Dense(1, "sigmoid"))}, 0.8, 50, 16),
    one("shells by straight layers", row, (_OUTPUT, _UNDER, _FLAT, _SLOW), {"data": some.shells, "made_of": lambda x:
        _wide(3, 64, of.Dense(3, "softmax"), None), "rate": 3e-3}, 0.7, 12),
    one("shells, deep and of small weights", row, (_VANISHES, _START), {"data": some.shells, "made_of": lambda x:
        _wide(12, 32, of.Dense(3, "softmax"), kernel_initializer="random_normal"), "optimizer": "SGD", "rate": 0.05},
        0.7, 15),
    one("shells, weights as randn draws them", row, (_START, _SATURATED, _VANISHES, _EXPLODES), {"data": some.shells,
        "made_of": lambda x: _wide(4, 256, of.Dense(3, "softmax"), "tanh", kernel_initializer=_random(stddev=1.0)),
        "optimizer": "SGD", "rate": 1e-3}, 0.7, 12),
    one("shells, rate in whole numbers", row, (_STILL, _LOW, _SLOW, _FLAT, _UNDER), {"data": some.shells, "made_of":
        lambda x: _wide(2, 48, of.Dense(3, "softmax")), "optimizer": "SGD"}, 0.7, 15, fit=my.whole_numbers),
    one("shells, the last layer alone", row, (_STILL, _UNDER, _FLAT, _SLOW), {"data": some.shells, "model":
        my.OnlyLast, "made_of": lambda x: _wide(3, 8, of.Dense(3, "softmax"), "tanh"), "optimizer": "Adam", "rate":
        3e-3}, 0.7, 15),
    one("either, or, by two sigmoids", row, (_SLOW, _LOW, _FLAT, _UNDER), {**_XOR, "made_of": lambda x: _wide(1, 2,
        of.Dense(1, "sigmoid"), "sigmoid"), "optimizer": "SGD", "rate": 0.1}, 0.9, 150, 4),
    one("the cube of a number", row, (_UNSCALED, _NAN, _EXPLODES, _HIGH, _RAW), {"data": some.curve, "given":
        {"power": 3}, **_NUMBER, "made_of": lambda x: _wide(2, 32, of.Dense(1)), "optimizer": "SGD", "rate": 0.01}, 0.7,
        20, 16),
    one("shells, swinging", row, (_SWINGS, _HIGH, _SATURATED), {"data": some.shells, "made_of": lambda x: _wide(2, 32,
        of.Dense(3, "softmax"), "tanh"), "optimizer": "SGD", "rate": 2.0, "momentum": 0.9}, 0.7, 20),
    one("branches, spread by relu", row, (_NAN, _OUTPUT), {"data": some.branches, "loss": my.unlikely_by_relu,
        "metrics": (my.likely,), "made_of": lambda x: _wide(2, 32, of.Dense(12), "tanh"), "rate": 5e-3}, 0.3, 12,
        judged_by="val_likely"),
    one("chirps through sigmoids", row, (_VANISHES,), {"data": some.chirps, "made_of": lambda x: _heard(8, "sigmoid"),
        "optimizer": "SGD", "rate": 0.05}, 0.8, 12),
    one("chirps, swinging", row, (_SWINGS, _HIGH, _EXPLODES, _SATURATED), {"data": some.chirps, "made_of": lambda x:
        _heard(3, "tanh"), "optimizer": "SGD", "rate": 0.5, "momentum": 0.95}, 0.8, 15),
    one("spectra in decibels", row, (_RAW, _DEAD, _HIGH, _EXPLODES), {"data": some.spectra, "given": {"scaled":
        False}, "made_of": lambda x: _wide(2, 32, of.Dense(5, "softmax")), "optimizer": "SGD", "rate": 0.1}, 0.8, 15),
)
# fmt: on
