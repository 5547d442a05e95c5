"""Formerly held-out configurations, written before any of them was run; evaluated, so part of the seen sets since.

Other models, data, losses, optimizers and ways to train than those of `benchmarks.sets.each_kind` and
`benchmarks.sets.sizes`.
"""

from __future__ import annotations

import keras

from benchmarks.sets.recipes import Configuration as one
from benchmarks.sets.recipes import mlp, tabular
from benchmarks.sets.ways_data import (
    adding,
    chain,
    circles,
    counts,
    four_classes,
    prices,
    remembered,
    rows_of_digits,
    seldom,
    six_ahead,
    soft_labels,
    straight,
    targets_as_numbers,
)  # fmt: skip
from benchmarks.sets.ways_models import (
    careful,
    cleaner,
    factors,
    finder,
    held_down,
    in_waves,
    mixed,
    mobile,
    patches,
    position,
    residual,
    sequence,
    slowly,
    speaker,
    twins,
    two_heads,
    upon_frozen,
    weighted,
)  # fmt: skip

_random, _constant = keras.initializers.RandomNormal, keras.initializers.Constant
_schedules = keras.optimizers.schedules
_ROWS = {"data": rows_of_digits}
_FOUR = {"data": four_classes, "classes": 4, "hidden": (48, 24)}
_PRICES = {"data": prices, "classes": 0, "hidden": (48, 48), "rate": 3e-3}
_COUNTS = {"data": counts, "classes": 0, "hidden": (24,), "loss": "poisson", "metrics": ["mse"], "rate": 3e-3}
_HIGH, _LOW, _START = "learning_rate_too_high", "learning_rate_too_low", "poor_initialization"
_EXPLODES, _NAN, _SLOW = "exploding_gradient", "nan_or_inf", "slow_convergence"
_FIT, _OUTPUT = "loss_output_mismatch", "improper_activation"

# fmt: off
CONFIGURATIONS = (
    # -- made to go well
    one("rows lstm", sequence, (), {**_ROWS, "rate": 4e-3}, 0.85, 15),
    one("rows simple rnn", sequence, (), {**_ROWS, "cell": "SimpleRNN", "units": 48, "optimizer": "RMSprop"}, 0.8, 20),
    one("adding gru", sequence, (), {"data": adding, "cell": "GRU", "classes": 0, "rate": 6e-3}, 0.6, 20, 48),
    one("remembering gru", sequence, (), {"data": remembered, "cell": "GRU", "classes": 5, "symbols": 5,
        "rate": 8e-3, "clipnorm": 1.0}, 0.85, 15),
    one("next token gru", sequence, (), {"data": chain, "cell": "GRU", "classes": 8, "symbols": 8, "every": True,
        "rate": 5e-3}, 0.65, 12),
    one("next token transformer", speaker, (), {"optimizer": "AdamW", "rate": 3e-3, "given": {"back": 2}}, 0.65, 15),
    one("discs", finder, (), {"rate": 4e-3, "metrics": ["binary_accuracy"]}, 0.93, 10),
    one("peak", position, (), {"rate": 2e-3}, 0.8, 15),
    one("counts", mlp, (), {**_COUNTS, "output": "exponential"}, 0.4, 15),
    one("four classes sgd", mlp, (), {**_FOUR, "optimizer": "SGD", "rate": 0.1, "clipnorm": 1.0}, 0.75, 20),
    one("prices", mlp, (), _PRICES, 0.4, 30),
    one("prices by huber", mlp, (), {**_PRICES, "loss": "huber", "metrics": ["mse"], "activation": "elu"}, 0.4, 30),
    one("twins", twins, (), {"rate": 2e-3}, 0.8, 20),
    one("circles hinge", mlp, (), {"data": circles, "classes": 1, "hidden": (24,), "output": "tanh", "loss": "hinge",
        "metrics": [keras.metrics.BinaryAccuracy(threshold=0.0)], "rate": 1e-2}, 0.9, 30),
    one("stripes mobile", mobile, (), {"optimizer": "SGD", "rate": _schedules.CosineDecay(0.1, 260),
        "momentum": 0.9, "nesterov": True}, 0.85, 12),
    one("stripes group norm", mobile, (), {"norm": "group", "activation": "mish", "optimizer": "Adamax",
        "rate": 1e-2}, 0.85, 12),
    one("patches", patches, (), {"rate": 2e-3}, 0.8, 15),
    one("movements", mixed, (), {"rate": 4e-3}, 0.85, 15),
    one("ratings", factors, (), {}, 0.5, 20, 64),
    one("cleaner", cleaner, (), {"rate": 2e-3}, 0.4, 15),
    one("logistic", mlp, (), {"data": tabular, "given": {"name": "breast_cancer"}, "classes": 1, "hidden": (),
        "optimizer": "Adagrad", "rate": 0.1}, 0.9, 20),
    one("straight line", mlp, (), {"data": straight, "classes": 0, "hidden": (), "optimizer": "SGD", "rate": 0.02},
        0.6, 20),
    one("two heads", two_heads, (), {}, 0.85, 15, judged_by="val_digit_accuracy"),
    one("six ahead", sequence, (), {"data": six_ahead, "classes": 0, "outputs": 6, "rate": 5e-3}, 0.6, 15),
    one("seldom but weighted", mlp, (), {"data": seldom, "classes": 1, "hidden": (24,), "rate": 3e-3}, 0.85, 15,
        fit=weighted),
    one("from soft labels", mlp, (), {"data": soft_labels, "loss": "kl_divergence", "rate": 2e-3}, 0.8, 20),
    one("upon frozen layers", upon_frozen, (), {"rate": 2e-3}, 0.85, 15),
    one("residual prices", residual, (), {"data": prices, "rate": 2e-3}, 0.4, 25),
    one("careful", mlp, (), {"hidden": (96,), "rate": 3e-3}, 0.85, 30, fit=careful),
    one("rate in waves", mlp, (), {**_FOUR, "activation": "leaky_relu"}, 0.75, 18, fit=in_waves),
    one("four at a time", mlp, (), {"data": tabular, "classes": 3, "hidden": (16,), "optimizer": "SGD",
        "rate": 0.01}, 0.85, 15, 4),
    # -- made to fail
    one("rows lstm rate too high", sequence, (_HIGH,), {**_ROWS, "rate": 2.0}, 0.85, 12),
    one("patches rate too high", patches, (_HIGH,), {"rate": 0.3}, 0.8, 12),
    one("ratings rate too high", factors, (_HIGH, _EXPLODES, _NAN), {"name": "SGD", "rate": 500.0}, 0.5, 12, 64),
    one("adding explodes", sequence, (_EXPLODES, _NAN, _HIGH, _START), {"data": adding, "given": {"length": 30},
        "cell": "SimpleRNN", "classes": 0, "inner": {"activation": "relu",
        "recurrent_initializer": _random(stddev=1.0)}, "optimizer": "SGD", "rate": 0.02}, 0.6, 12),
    one("movements rate too low", mixed, (_LOW, _SLOW), {"optimizer": "SGD", "rate": 3e-6}, 0.85, 12),
    one("next token rate too low", speaker, (_LOW, _SLOW), {"rate": 3e-7}, 0.65, 10),
    one("stripes of zeros", mobile, (_START,), {"kernel": "zeros", "norm": None, "rate": 3e-3}, 0.85, 12),
    one("four classes tiny weights", mlp, (_START, "vanishing_gradient"), {**_FOUR, "hidden": (32,) * 6,
        "kernel": _random(stddev=1e-5)}, 0.75, 15),
    one("four classes deep sigmoid", mlp, ("vanishing_gradient",), {**_FOUR, "hidden": (24,) * 12,
        "activation": "sigmoid", "optimizer": "SGD", "rate": 0.1}, 0.75, 20),
    one("rows deep sigmoid rnn", sequence, ("vanishing_gradient",), {**_ROWS, "cell": "SimpleRNN", "depth": 5,
        "inner": {"activation": "sigmoid"}, "optimizer": "SGD", "rate": 0.05}, 0.8, 15),
    one("cleaner dead", cleaner, ("dead_relu",), {"activation": "relu", "bias": _constant(-15.0)}, 0.4, 12),
    one("peak dead", position, ("dead_relu",), {"bias": _constant(-5.0)}, 0.8, 12),
    one("stripes saturated", mobile, ("saturated_activation", "unnormalized_input", _START, "vanishing_gradient"),
        {"activation": "tanh", "norm": None, "kernel": _random(stddev=2.0), "given": {"scale": 500.0},
         "optimizer": "SGD", "rate": 1e-3}, 0.85, 12),
    one("circles two softmaxed as one", mlp, (_FIT,), {"data": circles, "classes": 1, "hidden": (24,),
        "output": "softmax"}, 0.9, 20),
    one("four classes as numbers", mlp, (_FIT, _OUTPUT), {**_FOUR, "data": targets_as_numbers, "loss": "mse"}, 0.75,
        15),
    one("next token out of range", sequence, (_FIT, _NAN), {"data": chain, "given": {"shift": 1}, "cell": "GRU",
        "classes": 8, "symbols": 8, "every": True, "rate": 5e-3}, 0.65, 8),
    one("prices through sigmoid", mlp, (_OUTPUT,), {**_PRICES, "output": "sigmoid", "given": {"centred": True}}, 0.6,
        20),
    one("softmax inside", mlp, (_OUTPUT,), {**_FOUR, "hidden": (64,) * 5, "activation": "softmax"}, 0.75, 20),
    one("prices missing", mlp, (_NAN,), {**_PRICES, "given": {"broken": True}}, 0.4, 12),
    one("features missing", mlp, (_NAN,), {**_FOUR, "given": {"missing": True}}, 0.75, 12),
    one("counts below nothing", mlp, (_NAN, _OUTPUT, _FIT), {**_COUNTS, "output": None, "loss":
        lambda y, mean: mean - y * keras.ops.log(mean)}, 0.4, 12),
    one("movements raw", mixed, ("unnormalized_input",), {"given": {"raw": True}, "optimizer": "SGD", "rate": 0.01},
        0.85, 12),
    one("twins cut", twins, ("stagnant_weights",), {"cut": True}, 0.9, 15),
    one("few stripes by heart", mobile, ("overfitting",), {"widths": (32, 48, 64), "given": {"train": 80,
        "noise": 1.0, "wrong": 0.4}, "rate": 5e-3}, 0.65, 80, 16),
    one("movements of others", mixed, ("underfitting", "overfitting", _SLOW), {"given": {"shuffled": True}}, 0.85,
        12),
    one("swinging line", mlp, ("oscillating_loss", _HIGH, _EXPLODES, _NAN), {"data": straight, "classes": 0,
        "hidden": (), "optimizer": "SGD", "rate": 0.5, "momentum": 0.95}, 0.6, 20),
    one("penalty", held_down, ("underfitting", "plateau", _SLOW, "vanishing_gradient", "dead_relu"), {"penalty": 3.0},
        0.8, 15),
    one("dropout", held_down, ("underfitting", "plateau", _SLOW), {"dropout": 0.97}, 0.8, 15),
    one("rows slow", sequence, (_SLOW, _LOW, "underfitting"), {**_ROWS, "optimizer": "SGD", "rate": 2e-3}, 0.8, 10),
    one("rate that is gone at once", mobile, (_LOW, _SLOW, "plateau", "underfitting"), {"norm": None,
        "optimizer": "SGD", "rate": _schedules.CosineDecay(0.01, 6)}, 0.85, 12),
    one("waits for each batch", mlp, ("input_bound",), {"rate": 2e-3}, 0.8, 10, feed=slowly, wasteful=True),
)
# fmt: on
