"""Formerly held-out configurations, evaluated once the detectors had been written; part of the seen sets since.

Other models, data, sizes, optimizers and schedules than `benchmarks.sets.each_kind`.
"""

from __future__ import annotations

import functools

import keras

from benchmarks.sets.recipes import Configuration as one
from benchmarks.sets.recipes import friedman, mlp, rnn, transformer
from benchmarks.sets.sizes_recipes import (
    WarmUp,
    bag,
    both_ways,
    conv1d,
    cut_by_rounding,
    dataset,
    forecast,
    labels,
    picture_autoencoder,
    picture_net,
    plane,
    rare,
    regularized,
    root_of_less_than_nothing,
    shuffled_friedman,
    slow,
    table,
    two_inputs,
)

_random = keras.initializers.RandomNormal
_schedules = keras.optimizers.schedules
_IRIS = {"data": table, "classes": 3, "hidden": (12,)}
_DIABETES = {"data": functools.partial(table, name="diabetes"), "classes": 0, "hidden": (24,)}
_MOONS = {"data": plane, "classes": 1, "hidden": (24, 24)}
_SPIRALS = {"data": functools.partial(plane, name="spirals"), "classes": 1, "hidden": (32, 32, 32)}
_LABELS = {
    "data": labels,
    "classes": 5,
    "hidden": (32,),
    "loss": "binary_crossentropy",
    "output": "sigmoid",
    "metrics": ["binary_accuracy"],
}
_HIGH, _LOW, _START = "learning_rate_too_high", "learning_rate_too_low", "poor_initialization"
_EXPLODES, _NAN, _SLOW = "exploding_gradient", "nan_or_inf", "slow_convergence"

# fmt: off
CONFIGURATIONS = (
    one("conv1d", conv1d, (), {"rate": 3e-3}, 0.85, 12),
    one("bidirectional", both_ways, (), {"optimizer": "RMSprop", "rate": 3e-3}, 0.8, 15),
    one("iris by a linear model", mlp, (), {**_IRIS, "hidden": (), "optimizer": "SGD", "rate": 0.1, "momentum": 0.9,
        "nesterov": True}, 0.85, 40, 16),
    one("spirals", mlp, (), {**_SPIRALS, "activation": "tanh", "optimizer": "Adamax", "rate": 1e-2}, 0.8, 60),
    one("moons lion selu", mlp, (), {**_MOONS, "activation": "selu", "kernel": "lecun_normal", "optimizer": "Lion",
        "rate": 1e-3}, 0.9, 25),
    one("diabetes by mean distance", mlp, (), {**_DIABETES, "loss": "mae", "metrics": ["mse"], "rate": 3e-3},
        0.3, 30),
    one("several labels", mlp, (), {**_LABELS, "rate": 3e-3}, 0.8, 20),
    one("rare class", mlp, (), {"data": rare, "classes": 1, "hidden": (24,), "rate": 2e-3}, 0.96, 15),
    one("pictures", picture_net, (), {"optimizer": "AdamW", "rate": _schedules.CosineDecay(4e-3, 250)}, 0.85, 12),
    one("digits from a dataset", mlp, (), {"hidden": (96, 48), "activation": "elu", "kernel": "he_normal",
        "optimizer": "SGD", "rate": _schedules.PiecewiseConstantDecay([200, 320], [0.1, 0.03, 0.01]),
        "momentum": 0.9},
        0.85, 12, feed=dataset),
    one("transformer with warm-up", transformer, (), {"blocks": 2, "width": 24, "rate": WarmUp(4e-3, 60)},
        0.85, 15, 64),
    one("bag of tokens", bag, (), {"optimizer": "Nadam", "rate": 1e-2}, 0.85, 20),
    one("two inputs", two_inputs, (), {"rate": 2e-3}, 0.85, 15),
    one("friedman log cosh", mlp, (), {"data": friedman, "classes": 0, "hidden": (48, 24), "activation": "gelu",
        "loss": "log_cosh", "metrics": ["mse"], "rate": _schedules.ExponentialDecay(1e-2, 100, 0.8)}, 0.6, 25),
    one("forecast", forecast, (), {}, 0.6, 20),
    one("regularized", regularized, (), {"rate": 1e-3}, 0.85, 20),
    one("picture autoencoder", picture_autoencoder, (), {}, 0.4, 12),
    one("gru of many steps", rnn, (), {"cell": "GRU", "units": 16, "rate": 1e-2, "given": {"steps": 45}}, 0.8,
        15, 64),
    one("conv1d rate too high", conv1d, (_HIGH, "dead_relu"), {"rate": 0.5}, 0.85, 12),
    one("forecast rate too high", forecast, (_HIGH, _EXPLODES, _NAN),
        {"cell": "SimpleRNN", "activation": "relu", "optimizer": "SGD", "rate": 3.0}, 0.6, 15),
    one("adamax far too high", mlp, (_HIGH, "dead_relu"), {"optimizer": "Adamax", "rate": 3.0, "hidden": (48,
        48, 48)}),
    one("spirals rate too low", mlp, (_LOW, _SLOW), {**_SPIRALS, "activation": "tanh", "rate": 1e-6}, 0.8, 30),
    one("schedule that decays at once", mlp, (_LOW, _SLOW, "plateau", "underfitting"),
        {"optimizer": "SGD", "rate": _schedules.ExponentialDecay(0.01, 5, 0.5)}, 0.8, 15),
    one("slow", mlp, (_SLOW, _LOW), {"optimizer": "SGD", "rate": 4e-4}, 0.8, 12),
    one("iris of zeros", mlp, (_START,), {**_IRIS, "hidden": (12, 12), "kernel": "zeros", "rate": 1e-2}, 0.85,
        25, 16),
    one("pictures huge weights", picture_net, (_START, _HIGH, _EXPLODES, "saturated_activation"),
        {"kernel": _random(stddev=4.0), "norm": False, "activation": "tanh", "optimizer": "SGD", "rate": 0.05},
        0.85, 10),
    one("moons deep sigmoid", mlp, ("vanishing_gradient",), {**_MOONS, "hidden": (16,) * 14, "activation": "sigmoid",
        "optimizer": "RMSprop"}, 0.9, 25),
    one("conv1d dead bias", conv1d, ("dead_relu",), {"bias": keras.initializers.Constant(-20.0), "scale": 0.5},
        0.85, 12),
    one("conv1d saturated", conv1d, ("saturated_activation", "unnormalized_input"),
        {"activation": "tanh", "scale": 2e3, "optimizer": "SGD", "rate": 1e-4}, 0.85, 12),
    one("several labels by softmax", mlp, ("loss_output_mismatch",), {**_LABELS, "output": "softmax",
        "rate": 3e-3}, 0.8,
        20),
    one("moons two logits", mlp, ("loss_output_mismatch",), {**_MOONS, "classes": 2, "output": None}, 0.9, 20),
    one("iris numbered from 1", mlp, ("loss_output_mismatch", _NAN),
        {**_IRIS, "given": {"label_from": 1}, "rate": 1e-2}, 0.85, 20, 16),
    one("diabetes through tanh", mlp, ("improper_activation",), {**_DIABETES, "given": {"raw": True},
        "output": "tanh"},
        0.3, 25),
    one("spirals linear", mlp, ("improper_activation",), {**_SPIRALS, "activation": None, "rate": 1e-2}, 0.8, 25),
    one("moons relu output", mlp, ("improper_activation",), {**_MOONS, "output": "relu"}, 0.9, 20),
    one("forecast explodes", forecast, (_EXPLODES, _NAN, _HIGH, _START), {"cell": "SimpleRNN", "activation": "relu",
        "recurrent_initializer": _random(stddev=1.5), "optimizer": "SGD", "rate": 0.01}, 0.6, 12),
    one("root of less than nothing", root_of_less_than_nothing, (_NAN,), {}, 0.9, 12),
    one("diabetes with infinities", mlp, (_NAN,), {**_DIABETES, "given": {"broken": True}}, 0.3, 15),
    one("iris unscaled", mlp, ("unnormalized_input",),
        {**_IRIS, "given": {"scale": 1e4}, "optimizer": "SGD", "rate": 0.01}, 0.85, 25, 16),
    one("cut by rounding", cut_by_rounding, ("stagnant_weights",), {"rate": 2e-3}, 0.8, 15),
    one("moons by heart", mlp, ("overfitting",), {**_MOONS, "hidden": (128, 128), "rate": 3e-3,
        "given": {"wrong": 0.35, "train": 80}}, 0.75, 150, 16),
    one("targets of others", mlp, ("underfitting", "overfitting", _SLOW),
        {"data": shuffled_friedman, "classes": 0, "hidden": (8,), "optimizer": "SGD", "rate": 0.01}, 0.6, 20),
    one("swinging transformer", transformer, ("oscillating_loss", _HIGH),
        {"optimizer": "SGD", "rate": 1.5, "momentum": 0.95}, 0.85, 15),
    one("one unit wide", mlp, ("plateau", "underfitting", _SLOW, "dead_relu"), {"hidden": (48, 1, 24)}, 0.8, 15),
    one("waits for its data", mlp, ("input_bound",), {"rate": 2e-3}, 0.8, 10, feed=slow, wasteful=True),
)
# fmt: on
