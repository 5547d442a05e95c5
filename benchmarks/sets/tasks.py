"""Formerly held-out configurations, written without a look at any detector; evaluated, so part of the seen sets since.

Other models, data, losses, optimizers and ways to train than those of the sets before (`benchmarks.sets.each_kind`,
`benchmarks.sets.sizes` and `benchmarks.sets.ways`).
"""

from __future__ import annotations

import keras

from benchmarks.sets.recipes import Configuration as one
from benchmarks.sets.tasks_data import levels, reviews, tags, waits
from benchmarks.sets.tasks_losses import (
    by_steps,
    endless,
    exponential_life_of_rate,
    far_up_at_times,
    lower_at_once,
    lower_on_plateau,
    mse,
    patient,
    pinball,
    read_one_by_one,
    weighed,
)  # fmt: skip
from benchmarks.sets.tasks_models import (
    ahead,
    cloud_net,
    counter,
    deep_sum,
    dense,
    divided,
    experts,
    heart,
    heart_tasks,
    lasting,
    listener,
    reader,
    room,
    squeezed,
    tagger,
    varied,
    wide_and_deep,
)  # fmt: skip
from benchmarks.sets.tasks_more_data import (
    demand,
    directions,
    faint,
    hastie,
    islands,
    machine,
    parity,
    rolled,
    scarce,
    tails,
)  # fmt: skip
from benchmarks.sets.tasks_unusual import alike, towers, variational

_random, _constant = keras.initializers.RandomNormal, keras.initializers.Constant
_schedules, _metrics = keras.optimizers.schedules, keras.metrics
_YES = {"output": "sigmoid", "loss": "binary_crossentropy"}
_NUMBER = {"metrics": ("mse",)}
_WORDS = {"data": reviews, "units": 4, "output": "softmax", "loss": "sparse_categorical_crossentropy"}
_HASTIE = {"data": hastie, **_YES}
_PARITY = {"data": parity, **_YES, "hidden": (48, 24)}
_TAGS = {"data": tags, "units": 8, **_YES, "hidden": (64,), "metrics": ("binary_accuracy",)}
_LEVELS = {"data": levels, "units": 4, **_YES, "metrics": ("binary_accuracy",)}
_ISLANDS = {**_WORDS, "data": islands, "hidden": (16,)}
_TO = {"data": directions, "units": 12, "loss": "cosine_similarity", "hidden": (64,)}
_HIGH, _LOW, _START = "learning_rate_too_high", "learning_rate_too_low", "poor_initialization"
_EXPLODES, _NAN, _SLOW, _FLAT = "exploding_gradient", "nan_or_inf", "slow_convergence", "plateau"
_FIT, _OUTPUT, _RAW = "loss_output_mismatch", "improper_activation", "unnormalized_input"
_UNSCALED = "unscaled_targets"
_UNDER, _OVER, _DEAD, _STILL = "underfitting", "overfitting", "dead_relu", "stagnant_weights"
_SATURATED, _VANISHES, _SWINGS = "saturated_activation", "vanishing_gradient", "oscillating_loss"

# fmt: off
CONFIGURATIONS = (
    # -- made to go well
    one("topics by tf-idf", dense, (), {**_WORDS, "given": {"mode": "tf_idf"}, "optimizer": "Adafactor", "rate": 1e-2},
        0.8, 10),
    one("topics by convolutions", reader, (), {"optimizer": "Nadam", "rate": 3e-3}, 0.75, 10),
    one("topics by gru, long batches", reader, (), {"cell": "GRU", "rate": 1e-2}, 0.75, 14, 128),
    one("topics, a quarter wrong", dense, (), {**_WORDS, "given": {"mode": "multi_hot", "wrong": 0.33}, "hidden": (24,),
        "dropout": ("Dropout", 0.5), "rate": 1e-3}, 0.55, 12),
    one("heart with restarts", heart, (), {"optimizer": "AdamW", "weight_decay": 1e-2, "rate":
        _schedules.CosineDecayRestarts(4e-3, 120)}, 0.85, 12),
    one("heart, two tasks", heart_tasks, (), {"weights": {"kind": 1.0, "when": 5.0}, "rate": 2e-3}, 0.85, 10,
        judged_by="val_kind_accuracy"),
    one("heart squeezed", squeezed, (), {**_NUMBER, "rate": 3e-3}, 0.6, 15),
    one("census ftrl", wide_and_deep, (), {"optimizer": "Ftrl", "rate": 0.1}, 0.75, 15),
    one("census without end", wide_and_deep, (), {"optimizer": "RMSprop", "rate": 2e-3}, 0.75, 15, 64, feed=endless,
        fit=by_steps),
    one("eight tags, focal", dense, (), {**_TAGS, "loss": keras.losses.BinaryFocalCrossentropy(), "rate": 2e-3}, 0.75,
        15),
    one("levels in order", dense, (), {**_LEVELS, "rate": 3e-3}, 0.85, 15),
    one("three quantiles", dense, (), {"data": waits, "units": 3, "loss": pinball, "metrics": (mse,), "rate": 3e-3},
        0.55, 20),
    one("demand in per cent", dense, (), {"data": demand, "loss": "mape", **_NUMBER, "rate": 5e-3}, 0.6, 25),
    one("how long it lasts", lasting, (), {"rate": 2e-3}, 0.68, 15, judged_by="val_concordant"),
    one("filled up", varied, (), {"rate": 5e-3, "global_clipnorm": 1.0}, 0.85, 10),
    one("tags for words", tagger, (), {"rate": 6e-3}, 0.9, 10),
    one("echoes, gradients gathered", listener, (), {"rate": 8e-3, "gradient_accumulation_steps": 2}, 0.85, 20),
    one("spots, averaged weights", counter, (), {"rate": 3e-3, "use_ema": True, "ema_momentum": 0.9, "compiled":
        {"steps_per_execution": 4}}, 0.75, 16),
    one("experts", experts, (), {"rate": 1e-2}, 0.7, 20),
    one("hastie selu", dense, (), {**_HASTIE, "activation": "selu", "kernel": "lecun_normal", "dropout":
        ("AlphaDropout", 0.05), "optimizer": "SGD", "rate": 0.05, "momentum": 0.9, "hidden": (64, 32)}, 0.8, 15),
    one("hastie in threes", dense, (), {**_HASTIE, "activation": "silu", "rate": 1e-3}, 0.8, 5, 3),
    one("hastie warm-up", dense, (), {**_HASTIE, "hidden": (48, 48, 48), "activation": "gelu", "optimizer": "AdamW",
        "rate": _schedules.CosineDecay(0.0, 600, warmup_target=6e-3, warmup_steps=80)}, 0.8, 12),
    one("variational", variational, (), {}, 0.65, 20),
    one("triplets", alike, (), {"rate": 1e-3}, 0.9, 12, judged_by="val_closer"),
    one("two towers", towers, (), {"rate": 3e-3}, 0.45, 20, judged_by="val_matched"),
    one("clouds lion", cloud_net, (), {"optimizer": "Lion", "rate": 5e-4}, 0.85, 20),
    one("bodies", room, (), {"optimizer": "SGD", "rate": 0.02, "momentum": 0.9, "nesterov": True}, 0.8, 15),
    one("heavy tails", dense, (), {"data": tails, "loss": "mae", **_NUMBER, "rate": 4e-3, "hidden": (48, 48)}, 0.5, 25),
    one("directions", dense, (), {**_TO, "metrics": (_metrics.CosineSimilarity(name="cosine"),), "rate": 3e-3}, 0.75,
        15, judged_by="val_cosine"),
    one("rolled, all at once", dense, (), {"data": rolled, "hidden": (64, 64), "activation": "tanh", "kernel":
        "glorot_normal", "metrics": (), "rate": 1e-2}, 0.8, 120, 1000),
    one("parity that drops late", dense, (), {**_PARITY, "optimizer": "SGD", "rate": 0.1}, 0.9, 45),
    one("one in twenty, weighed", dense, (), {"data": scarce, **_YES, "metrics": (_metrics.AUC(name="auc"),),
        "hidden": (16,), "rate": 2e-3}, 0.85, 12, feed=weighed, judged_by="val_auc"),
    one("islands, patiently", dense, (), {**_ISLANDS, "optimizer": "Adamax", "rate": 1e-2}, 0.85, 150, 16,
        fit=patient),
    one("islands one by one", dense, (), {**_ISLANDS, "optimizer": "SGD", "rate": 5e-3}, 0.85, 8, 1),
    one("hastie held back", dense, (), {**_HASTIE, "hidden": (128, 128), "dropout": ("Dropout", 0.5), "optimizer":
        "AdamW", "weight_decay": 0.1, "rate": 2e-3}, 0.8, 20),
    one("near its floor", dense, (), {"data": faint, "hidden": (8,), "metrics": (), "kernel": "glorot_normal",
        "rate": 3e-3}, 0.05, 12, 64),
    one("pieces", divided, (), {"optimizer": "Adamax", "rate": 1e-2}, 0.93, 8),
    one("power, rate lowered", ahead, (), {"optimizer": "RMSprop", "rate": 3e-3}, 0.6, 15, fit=lower_on_plateau),
    one("power in a few epochs", ahead, (), {"rate": 5e-3}, 0.6, 4, 16),
    # -- made to fail
    one("topics rate too high", reader, (_HIGH, _DEAD, _EXPLODES), {"optimizer": "Nadam", "rate": 1.0}, 0.75, 8),
    one("heart rate too high", heart, (_HIGH, _EXPLODES, _NAN), {"norm": False, "optimizer": "SGD", "rate": 10.0},
        0.85, 10),
    one("clouds lion too high", cloud_net, (_HIGH, _DEAD, _SWINGS), {"optimizer": "Lion", "rate": 0.3}, 0.85, 15),
    one("lasting far away", lasting, (_NAN, _EXPLODES, _HIGH, _RAW), {"given": {"raw": 100.0}, "optimizer": "SGD",
        "rate": 0.1}, 0.68, 12, judged_by="val_concordant"),
    one("echoes rate too low", listener, (_LOW, _SLOW), {"rate": 1e-7}, 0.85, 12),
    one("pieces rate too low", divided, (_LOW, _SLOW), {"optimizer": "SGD", "rate": 3e-5}, 0.9, 8),
    one("experts adadelta as it comes", experts, (_LOW, _SLOW), {"optimizer": "Adadelta"}, 0.7, 20),
    one("rate that decays with each step", experts, (_LOW, _SLOW, _FLAT, _UNDER), {"rate":
        _schedules.InverseTimeDecay(1e-2, 1, 20.0)}, 0.7, 20),
    one("rate lowered at once", ahead, (_LOW, _SLOW, _FLAT, _UNDER), {"optimizer": "SGD", "rate": 1e-3}, 0.6, 15,
        fit=lower_at_once),
    one("clipped to nothing", dense, (_LOW, _SLOW, _STILL), {**_TAGS, "optimizer": "SGD", "rate": 0.1, "clipvalue":
        1e-6}, 0.75, 15),
    one("filled up explodes", varied, (_EXPLODES, _NAN, _HIGH, _START), {"cell": "SimpleRNN", "inner": {"activation":
        "relu", "recurrent_initializer": _random(stddev=0.9)}, "optimizer": "SGD", "rate": 0.05}, 0.85, 10),
    one("sum explodes", deep_sum, (_EXPLODES, _NAN, _HIGH, _START), {"data": tails, "kernel": _random(stddev=0.5),
        "optimizer": "SGD", "rate": 0.01}, 0.5, 12),
    one("hastie deep hard sigmoid", dense, (_VANISHES,), {**_HASTIE, "hidden": (32,) * 9, "activation":
        "hard_sigmoid", "optimizer": "SGD", "rate": 0.1, "momentum": 0.9}, 0.8, 15),
    one("tags for words through sigmoids", tagger, (_VANISHES,), {"cell": "SimpleRNN", "depth": 3, "inner":
        {"activation": "sigmoid"}, "optimizer": "SGD", "rate": 0.1}, 0.75, 8),
    one("spots dead", counter, (_DEAD,), {"bias": _constant(-6.0), "rate": 2e-3}, 0.75, 12),
    one("islands far from nothing", dense, (_RAW, _DEAD, _HIGH, _EXPLODES), {**_ISLANDS, "given": {"offset": 300.0},
        "optimizer": "SGD", "rate": 0.01}, 0.85, 30, 16),
    one("census saturated", wide_and_deep, (_SATURATED, _RAW), {"given": {"raw": True}, "activation": "tanh"}, 0.75,
        8),
    one("spots saturated", counter, (_SATURATED, _START, _RAW, _VANISHES), {"activation": "sigmoid", "given": {"scale":
        255.0}, "kernel": _random(stddev=3.0), "optimizer": "SGD", "rate": 0.01}, 0.75, 12),
    one("clouds of zeros", cloud_net, (_START,), {"kernel": "zeros", "rate": 2e-3}, 0.85, 12),
    one("tags for words from ones", tagger, (_START,), {"inner": {"kernel_initializer": "ones",
        "recurrent_initializer": "ones"}, "optimizer": "SGD", "rate": 0.01}, 0.75, 8),
    one("tags for words, no softmax", tagger, (_FIT, _OUTPUT), {"output": None}, 0.75, 8),
    one("eight tags, one of them", dense, (_FIT, _OUTPUT), {**_TAGS, "output": "softmax", "loss":
        "categorical_crossentropy"}, 0.75, 15),
    one("levels through one sigmoid", dense, (_FIT, _OUTPUT), {"data": levels, "given": {"cumulative": False}, **_YES},
        0.6, 15),
    one("topics numbered from 1", reader, (_FIT, _NAN), {"given": {"number_from": 1}}, 0.75, 6),
    one("heart of two kinds", heart, (_FIT, _NAN), {"units": 2, "rate": 2e-3}, 0.85, 8),
    one("hastie minus one", dense, (_FIT,), {**_HASTIE, "given": {"signed": True}}, 0.8, 15),
    one("rolled through softmax", dense, (_OUTPUT, _FIT), {"data": rolled, "output": "softmax", "metrics": ()}, 0.6,
        15),
    one("directions without a minus", dense, (_OUTPUT,), {**_TO, "output": "relu", "metrics":
        (_metrics.CosineSimilarity(name="cosine"),), "rate": 3e-3}, 0.75, 15, judged_by="val_cosine"),
    one("demand through tanh", dense, (_OUTPUT,), {"data": demand, "output": "tanh", "loss": "mape", **_NUMBER}, 0.6,
        15),
    one("parity by lines", dense, (_OUTPUT, _UNDER, _FLAT, _SLOW), {**_PARITY, "activation": None}, 0.9, 20),
    one("census with gaps", wide_and_deep, (_NAN,), {"given": {"gaps": True}}, 0.75, 8),
    one("power with a few gaps", ahead, (_NAN,), {"given": {"gaps": True}, "rate": 3e-3}, 0.6, 10),
    one("triplets, root of nothing", alike, (_NAN,), {"given": {"same": True}, "least": 0.0}, 0.9, 8,
        judged_by="val_closer"),
    one("lasting, log of nothing", lasting, (_NAN, _OUTPUT), {"loss": exponential_life_of_rate, "output": "relu"}, 0.68,
        10, judged_by="val_concordant"),
    one("machine raw", dense, (_RAW, _UNSCALED, _EXPLODES, _NAN, _HIGH), {"data": machine, "metrics": (), "optimizer":
        "SGD", "rate": 1e-3}, 0.6, 15),
    one("topics by heart", reader, (_OVER,), {"given": {"train": 120, "wrong": 0.5}, "rate": 5e-3, "width": 48}, 0.5,
        50, 16),
    one("census by heart", wide_and_deep, (_OVER,), {"hidden": (192, 192), "given": {"train": 200, "wrong": 0.3},
        "rate": 2e-3}, 0.75, 50),
    one("topics of others", dense, (_UNDER, _OVER, _SLOW), {**_WORDS, "given": {"mode": "tf_idf", "shuffled": True},
        "hidden": (6,)}, 0.75, 15),
    one("hastie, swinging", dense, (_SWINGS, _HIGH, _SATURATED), {**_HASTIE, "activation": "tanh", "optimizer": "SGD",
        "rate": 3.0, "momentum": 0.9}, 0.8, 15),
    one("far up at times", dense, (_SWINGS, _HIGH, _EXPLODES, _DEAD), {**_HASTIE, "hidden": (48, 48)}, 0.8, 24,
        fit=far_up_at_times),
    one("variational, nothing let through", variational, (_UNDER, _FLAT, _SLOW), {"strictness": 60.0}, 0.65, 15),
    one("weights that decay at once", dense, (_UNDER, _FLAT, _SLOW, _VANISHES, _DEAD), {**_HASTIE, "hidden": (48, 48),
        "optimizer": "AdamW", "weight_decay": 40.0, "rate": 1e-2}, 0.8, 15),
    one("towers cut by signs", towers, (_STILL, _VANISHES), {"cut": True}, 0.45, 15, judged_by="val_matched"),
    one("clouds cut by a threshold", cloud_net, (_STILL,), {"cut": True, "rate": 3e-3}, 0.85, 15),
    one("the scarce are not seen", dense, (_UNDER, _LOW, _SLOW, _FLAT), {"data": scarce, **_YES, "given":
        {"share": 0.02}, "metrics": (_metrics.Recall(name="recall"),), "hidden": (16,), "optimizer": "SGD",
        "rate": 1e-3}, 0.4, 12, judged_by="val_recall"),
    one("read one by one", dense, ("input_bound",), {**_HASTIE, "rate": 3e-3}, 0.75, 4, feed=read_one_by_one,
        wasteful=True),
)
# fmt: on
