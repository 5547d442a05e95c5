"""Fresh configurations for `fit`, half of them healthy, written before anything was read of how problems are detected.

From what people ask in forums.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.sets.fresh_data import (
    Arrays,
    adding,
    digits,
    halves,
    images,
    rare,
    rings,
    same,
    spirals,
    strokes,
    table,
    waves,
    words,
    wrong_labels,
)  # fmt: skip
from benchmarks.sets.recipes import Configuration

K, L, opt = keras.Sequential, keras.layers, keras.optimizers
SCHEDULES = opt.schedules
Recipe = tuple[Any, Any]


# -- parts ------------------------------------------------------------------------------------------------------------
def logits() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def two() -> Any:
    return keras.losses.BinaryCrossentropy(from_logits=True)


def made(
    data: Arrays,
    *parts: Any,
    optimizer: Any = "adam",
    loss: Any = None,
    metrics: Any = ("accuracy",),
    **how: Any,
) -> Recipe:
    """A stack of layers, compiled, and its data."""
    whole = data[0].dtype.kind != "f"
    model = K([keras.Input(data[0].shape[1:], dtype="int32" if whole else None), *parts])
    model.compile(optimizer, logits() if loss is None else loss, metrics=list(metrics), **how)
    return model, data


def dense(*units: int, act: Any = "relu", **how: Any) -> list[Any]:
    return [L.Dense(n, act, **how) for n in units]


def regression(data: Arrays, *parts: Any, optimizer: Any = "adam", loss: Any = "mse", **how: Any) -> Recipe:
    return made(data, *parts, optimizer=optimizer, loss=loss, metrics=["mse"], **how)


def two_sided(data: Arrays, *parts: Any, optimizer: Any = "adam", loss: Any = None, **how: Any) -> Recipe:
    metrics = [keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)]
    return made(
        data, *parts, optimizer=optimizer, loss=two() if loss is None else loss, metrics=metrics, **how
    )


# -- data that go wrong -----------------------------------------------------------------------------------------------
def by_class(data: Arrays) -> Arrays:
    x, y, x_val, y_val = data
    order = np.argsort(y, kind="stable")
    return x[order], y[order], x_val, y_val


def sorted_split(seed: int) -> Arrays:
    """`validation_split=0.25` of data that are sorted by their class."""
    x, y, x_val, y_val = digits(seed)
    x, y = np.concatenate([x, x_val]), np.concatenate([y, y_val])
    order = np.argsort(y, kind="stable")
    return x[order[:1347]], y[order[:1347]], x[order[1347:]], y[order[1347:]]


def raw_validation(data: Arrays) -> Arrays:
    """Pixels between -1 and 1 to train on, and as they are in the files to validate."""
    x, y, x_val, y_val = data
    return 2 * x - 1, y, x_val * 255, y_val


def leaking(seed: int) -> Arrays:
    """A column that tells the answer while training, and is empty in use."""
    x, y, x_val, y_val = rare(seed, share=0.5, size=1500)
    tell = (2.0 * y - 1 + 0.05 * np.random.default_rng(seed).normal(size=len(y)))[:, None]
    return (
        np.concatenate([x, tell], 1).astype("float32"), y,
        np.concatenate([x_val, np.zeros((len(x_val), 1))], 1).astype("float32"), y_val,
    )  # fmt: skip


def wide(seed: int) -> Arrays:
    """Few examples of many features, of which few matter."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(280, 300))
    y = (x[:, :10].sum(1) + random.normal(size=280) > 0).astype(int)
    return halves(x, y, seed, 0.3)


def holes(data: Arrays, every: int) -> Arrays:
    x, y, x_val, y_val = data
    y = y.copy()
    y[3::every] = np.nan
    return x, y, x_val, y_val


def stamped(seed: int) -> Arrays:
    """Columns as they come: one is seconds since 1970, one is in millions."""
    x, y, x_val, y_val = table(seed)
    scale = np.array([1, 1, 3e6, 1, 1e3, 1, 1, 1], "float32")
    offset = np.array([0, 0, 1.7e9, 0, 0, 20, 0, 0], "float32")
    return x * scale + offset, y, x_val * scale + offset, y_val


def mostly_zero(seed: int) -> Arrays:
    """What customers spend: most of them nothing."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(1600, 6))
    buys = random.uniform(size=1600) < 1 / (1 + np.exp(1.5 - x[:, 0] - x[:, 1]))
    return halves(x, (buys * np.exp(1 + 0.5 * x[:, 2])).astype("float32"), seed)


def counts(seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    x = random.normal(size=(1600, 5))
    return halves(x, random.poisson(np.exp(1 + 0.6 * x[:, 0] - 0.5 * x[:, 1])).astype("float32"), seed)


def xor(seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (1200, 2))
    return halves(x, ((x[:, 0] > 0) ^ (x[:, 1] > 0)).astype(int), seed)


def ahead(seed: int) -> Arrays:
    """The next value of a noisy seasonal series from the last 24."""
    random = np.random.default_rng(seed)
    at = np.arange(1500)
    series = np.sin(at / 3) + 0.5 * np.sin(at / 11) + 0.2 * random.normal(size=1500)
    x = np.stack([series[i : i + 24] for i in range(1476)])[..., None]
    return halves(x, series[24:].astype("float32"), seed)


# -- models of more than a stack --------------------------------------------------------------------------------------
def one_head_guesses(seed: int) -> Recipe:
    """Two outputs, the targets of one of which are in another order."""
    x, y, x_val, y_val = digits(seed)
    seen = keras.Input((64,))
    body = L.Dense(64, "relu")(seen)
    model = keras.Model(seen, [L.Dense(10, name="digit")(body), L.Dense(1, name="even")(body)])
    model.compile(
        "adam", [logits(), two()], metrics=[["accuracy"], [keras.metrics.BinaryAccuracy(threshold=0.0)]]
    )
    even = np.random.default_rng(seed).permutation(y % 2)
    return model, (x, [y, even.astype("float32")], x_val, [y_val, (y_val % 2).astype("float32")])


def two_heads(seed: int) -> Recipe:
    x, y, x_val, y_val = digits(seed)
    seen = keras.Input((64,))
    body = L.Dense(64, "relu")(seen)
    model = keras.Model(seen, [L.Dense(10, name="digit")(body), L.Dense(1, name="ink")(body)])
    model.compile("adam", [logits(), "mse"], metrics=[["accuracy"], ["mse"]], loss_weights=[1.0, 0.3])
    ink, ink_val = (10 * one.mean(1) - 3 for one in (x, x_val))
    return model, (x, [y, ink], x_val, [y_val, ink_val])


def frozen_random(seed: int) -> Recipe:
    """A body with little room, frozen before it has learned anything."""
    body = K([keras.Input((64,)), *dense(32, 2, act="tanh")])
    body.trainable = False
    return made(digits(seed), body, L.Dense(10), optimizer=opt.Adam(5e-3))


def frozen_learned(seed: int) -> Recipe:
    """A head for five digits on a frozen body: the principal components of the others, and features of them."""
    x, y, x_val, y_val = digits(seed)
    body = K([keras.Input((64,)), *dense(64, 96)])
    other = x[y < 5]
    components = np.linalg.svd(other - other.mean(0), full_matrices=False)[2][:32]
    features = np.random.default_rng(seed).normal(size=(64, 96)) / 6
    body.set_weights(
        [0.7 * np.concatenate([components, -components]).T, np.full(64, 0.1), features, np.full(96, 0.1)]
    )
    body.trainable = False
    held, kept = y_val >= 5, y >= 5
    data = x[kept], y[kept] - 5, x_val[held], y_val[held] - 5
    return made(data, body, L.Dense(5), optimizer=opt.Adam(5e-3))


class Code(keras.layers.Layer):
    """A random code around its mean, with the cost of what it tells."""

    def call(self, given: Any) -> Any:
        mean, spread = keras.ops.split(given, 2, axis=-1)
        kl = -0.5 * keras.ops.mean(1 + spread - mean**2 - keras.ops.exp(spread))
        self.add_loss(2e-3 * kl)
        return mean + keras.ops.exp(spread / 2) * tf.random.normal(tf.shape(mean))


def siamese(seed: int) -> Recipe:
    """Whether two digits are the same."""
    x, y, x_val, y_val = digits(seed)
    random = np.random.default_rng(seed)

    def pairs(a: Any, b: Any) -> tuple[Any, Any]:
        one, other = random.integers(0, len(a), (2, 3 * len(a)))
        alike = np.array([random.choice(np.flatnonzero(b == b[i])) for i in one[::2]])
        other[::2] = alike
        return np.stack([a[one], a[other]], 1), (b[one] == b[other]).astype("float32")

    seen = keras.Input((2, 64))
    code = L.Dense(16)(L.Dense(64, "relu")(seen))
    apart = keras.ops.square(code[:, 0] - code[:, 1])
    model = keras.Model(seen, L.Dense(1)(apart))
    model.compile(
        opt.Adam(2e-3), two(), metrics=[keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)]
    )
    return model, (*pairs(x, y), *pairs(x_val, y_val))


def transformer(seed: int) -> Recipe:
    data = words(seed)
    seen = keras.Input((20,), dtype="int32")
    x = L.Embedding(200, 16)(seen)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 8)(x, x))
    x = L.LayerNormalization()(x + L.Dense(16)(L.Dense(32, "relu")(x)))
    model = keras.Model(seen, L.Dense(1)(L.GlobalAveragePooling1D()(x)))
    warm = SCHEDULES.CosineDecay(1e-5, 300, warmup_target=5e-3, warmup_steps=40)
    model.compile(
        opt.AdamW(warm), two(), metrics=[keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)]
    )
    return model, data


def continued(seed: int) -> Recipe:
    """A model that already knows what it is trained for, at a small rate: little is left to learn."""
    x, y, x_val, y_val = table(seed, noise=1.0)
    features = [
        np.concatenate([one, one**2, np.sin(np.pi * one[:, :1] * one[:, 1:2])], 1) for one in (x, x_val)
    ]
    model, data = regression((features[0], y, features[1], y_val), L.Dense(1), optimizer=opt.Adam(1e-4))
    full = np.concatenate([features[0], np.ones((len(x), 1))], 1)
    best = np.linalg.lstsq(full, y, rcond=None)[0].astype("float32")
    model.set_weights([best[:-1, None], best[-1:]])
    return model, data


class Turned(keras.layers.Layer):
    """An augmentation that mirrors half of the pictures, though left and right are what is to be told."""

    def call(self, given: Any, training: bool = False) -> Any:
        if not training:
            return given
        turned = tf.random.uniform((tf.shape(given)[0], 1, 1, 1)) < 0.5
        return tf.where(turned, given[:, :, ::-1], given)


def conv(*more: Any, out: int = 10) -> list[Any]:
    return [
        *more,
        L.Conv2D(12, 3, activation="relu"),
        L.MaxPooling2D(),
        L.Flatten(),
        *dense(32),
        L.Dense(out),
    ]


def normal(momentum: float = 0.9, *units: int) -> list[Any]:
    return [one for n in units for one in (L.Dense(n), L.BatchNormalization(momentum=momentum), L.ReLU())]


def quick(y: Any, p: Any) -> Any:
    """A loss for the 70th percentile."""
    over = tf.reshape(tf.cast(y, p.dtype), tf.shape(p)) - p
    return tf.reduce_mean(tf.maximum(0.7 * over, -0.3 * over))


def turned_likelihood(y: Any, p: Any) -> Any:
    """A log-likelihood, that is, with the minus sign forgotten."""
    y = tf.one_hot(tf.cast(tf.reshape(y, (-1,)), tf.int32), 10)
    return tf.reduce_mean(tf.reduce_sum(y * tf.nn.log_softmax(p), -1))


def generated(x: Any, y: Any, size: int) -> Any:
    def rows() -> Any:
        random = np.random.default_rng(1)
        for _ in range(12 * (len(x) // size)):
            some = random.integers(0, len(x), size)
            yield x[some], y[some]

    kinds = tuple(tf.TensorSpec((None, *one.shape[1:]), one.dtype) for one in (x, y))
    return tf.data.Dataset.from_generator(rows, output_signature=kinds).prefetch(2)


def in_order() -> dict[str, Any]:
    return {"shuffle": False}


def impatient() -> dict[str, Any]:
    return {"callbacks": [keras.callbacks.ReduceLROnPlateau("loss", 0.1, patience=1, min_delta=0.5)]}


def patient() -> dict[str, Any]:
    return {"callbacks": [keras.callbacks.ReduceLROnPlateau("val_loss", 0.5, patience=3)]}


def weighted() -> dict[str, Any]:
    return {"class_weight": {0: 0.52, 1: 12.0}}


L2 = keras.regularizers.L2


def recalled(data: Arrays, *parts: Any, **how: Any) -> Recipe:
    return made(
        data, *parts, loss="binary_crossentropy", metrics=[keras.metrics.Recall(name="recall")], **how
    )


CONFIGURATIONS = (
    # -- that go wrong
    Configuration("fit, sorted and not shuffled", lambda s: made(by_class(digits(s)), *dense(48), L.Dense(10),
        optimizer=opt.SGD(0.2)), ("oscillating_loss", "one_class_predicted"), fit=in_order, epochs=12),
    Configuration("fit, split of sorted data", lambda s: made(sorted_split(s), *dense(48), L.Dense(10)),
        ("validation_mismatch",), epochs=12),
    Configuration("fit, validation not divided by 255", lambda s: made(
        raw_validation(images(s)), *conv(L.BatchNormalization())), ("validation_mismatch",), epochs=8),
    Configuration("fit, softmax of one unit", lambda s: made(rings(s), *dense(24), L.Dense(1, "softmax"),
        loss="binary_crossentropy"), ("improper_activation", "loss_output_mismatch")),
    Configuration("fit, categorical loss of one sigmoid", lambda s: made(rings(s), *dense(24),
        L.Dense(1, "sigmoid"), loss="categorical_crossentropy", metrics=["binary_accuracy"]),
        ("loss_output_mismatch", "improper_activation")),
    Configuration("fit, relu before negative targets", lambda s: regression(table(s, offset=-1.0), *dense(48),
        L.Dense(1, "relu")), ("improper_activation",), good=0.6),
    Configuration("fit, mirrored arrows", lambda s: two_sided(strokes(s), Turned(), *conv(out=1)),
        ("underfitting", "validation_mismatch"), epochs=12),
    Configuration("fit, adam with a rate of 1", lambda s: made(digits(s), *dense(64, 64), L.Dense(10),
        optimizer=opt.Adam(1.0)), ("learning_rate_too_high", "exploding_gradient"), epochs=10),
    Configuration("fit, impatient schedule", lambda s: made(spirals(s), *dense(48, 48), L.Dense(3),
        optimizer=opt.Adam(5e-3)), ("learning_rate_too_low", "plateau", "slow_convergence", "underfitting"),
        fit=impatient, epochs=25),
    Configuration("fit, rate that decays at each step", lambda s: made(spirals(s), *dense(48, 48), L.Dense(3),
        optimizer=opt.Adam(SCHEDULES.ExponentialDecay(5e-3, 1, 0.95))),
        ("learning_rate_too_low", "plateau", "slow_convergence", "underfitting"), epochs=25),
    Configuration("fit, frozen by mistake", frozen_random, ("stagnant_weights", "underfitting")),
    Configuration("fit, more features than examples", lambda s: made(wide(s), *dense(128, 128), L.Dense(2)),
        ("overfitting",), epochs=30, good=0.75),
    Configuration("fit, column that tells", lambda s: two_sided(leaking(s), *dense(32), L.Dense(1)),
        ("overfitting", "validation_mismatch"), good=0.75),
    Configuration("fit, two units for spirals", lambda s: made(spirals(s), *dense(2), L.Dense(3),
        optimizer=opt.Adam(1e-2)), ("underfitting", "plateau"), good=0.85),
    Configuration("fit, targets with holes", lambda s: regression(holes(table(s), 150), *dense(48), L.Dense(1)),
        ("nan_or_inf",), good=0.6, epochs=10),
    Configuration("fit, decay of 1", lambda s: made(digits(s), *dense(48, 48, kernel_regularizer=L2(1.0)),
        L.Dense(10)), ("underfitting", "plateau"), epochs=12),
    Configuration("fit, dropout of nearly all", lambda s: made(digits(s), *dense(64), L.Dropout(0.97), *dense(32),
        L.Dropout(0.97), L.Dense(10)), ("underfitting", "plateau", "slow_convergence"), epochs=12),
    Configuration("fit, seconds since 1970", lambda s: regression(stamped(s), *dense(48, 48), L.Dense(1)),
        ("unnormalized_input",), good=0.6, epochs=12),
    Configuration("fit, eight sigmoids", lambda s: made(digits(s), *dense(*[32] * 8, act="sigmoid"), L.Dense(10),
        optimizer=opt.SGD(0.1)), ("vanishing_gradient", "saturated_activation"), epochs=15),
    Configuration("fit, rare class", lambda s: recalled(rare(s, 0.03), *dense(16), L.Dense(1, "sigmoid")),
        ("one_class_predicted",), epochs=12, judged_by="val_recall", good=0.5),
    Configuration("fit, stack without activations", lambda s: two_sided(xor(s), *dense(32, 32, 32, act=None),
        L.Dense(1)), ("improper_activation",)),
    Configuration("fit, one head guesses", one_head_guesses, ("output_not_learning",),
        judged_by="val_even_binary_accuracy", epochs=12),
    Configuration("fit, biases of -3", lambda s: regression(table(s), *dense(48, 48,
        bias_initializer=keras.initializers.Constant(-3.0)), L.Dense(1), optimizer=opt.SGD(0.05)),
        ("dead_relu", "poor_initialization"), good=0.6),
    Configuration("fit, likelihood with the sign forgotten", lambda s: made(digits(s), *dense(32), L.Dense(10),
        loss=turned_likelihood), ("loss_unbounded",), epochs=8),
    Configuration("fit, distance to what is mostly zero", lambda s: regression(mostly_zero(s), *dense(32),
        L.Dense(1, "relu"), loss="mae"), ("underfitting", "plateau", "dead_relu", "improper_activation"), good=0.2),
    # -- that are well
    Configuration("fit, few, with dropout", lambda s: made(digits(s, 240), *dense(48), L.Dropout(0.4),
        L.Dense(10)), epochs=40, good=0.8),
    Configuration("fit, learned body, frozen", frozen_learned, good=0.8),
    Configuration("fit, rate of 1, normalized", lambda s: made(digits(s), *normal(0.9, 48, 48), L.Dense(10),
        optimizer=opt.SGD(1.0)), good=0.85, epochs=15),
    Configuration("fit, decay and dropout", lambda s: made(digits(s), *dense(96, kernel_regularizer=L2(1e-2)),
        L.Dropout(0.5), L.Dense(10)), good=0.85, epochs=15),
    Configuration("fit, rare class, weighted", lambda s: recalled(rare(s, 0.04), *dense(16), L.Dense(1, "sigmoid")),
        fit=weighted, epochs=12, judged_by="val_recall", good=0.6),
    Configuration("fit, warm restarts", lambda s: made(spirals(s), *dense(64, 64), L.Dense(3),
        optimizer=opt.Adam(SCHEDULES.CosineDecayRestarts(2e-2, 120))), good=0.85, epochs=30),
    Configuration("fit, arrows", lambda s: two_sided(strokes(s), L.GaussianNoise(0.1), *conv(out=1)), epochs=12),
    Configuration("fit, lstm", lambda s: made(waves(s), L.LSTM(24), L.Dense(3), optimizer=opt.Adam(1e-2)),
        epochs=12, good=0.75),
    Configuration("fit, transformer with warm-up", transformer, epochs=10, good=0.75),
    Configuration("fit, variational", lambda s: regression(same(s), *dense(64), L.Dense(16), Code(), *dense(64),
        L.Dense(64), optimizer=opt.Adam(2e-3)), epochs=15, good=0.65),
    Configuration("fit, two heads", two_heads, judged_by="val_digit_accuracy", epochs=12),
    Configuration("fit, bfloat16", lambda s: made(digits(s), *dense(48, dtype="mixed_bfloat16"), L.Dense(10)),
        epochs=12, good=0.85),
    Configuration("fit, accumulated over four", lambda s: made(digits(s), *dense(48), L.Dense(10),
        optimizer=opt.Adam(3e-3, gradient_accumulation_steps=4)), epochs=15, good=0.85, batch_size=8),
    Configuration("fit, a third of the labels wrong", lambda s: made(wrong_labels(digits(s), 0.3, 10, s),
        *dense(32), L.Dropout(0.3), L.Dense(10)), epochs=12, good=0.85),
    Configuration("fit, targets of much noise", lambda s: regression(table(s, noise=5.0, size=3000), *dense(16),
        L.Dense(1), optimizer=opt.Adam(3e-3)), epochs=12, good=0.3, batch_size=64),
    Configuration("fit, batches of two", lambda s: made(digits(s, 600), *dense(32), L.Dense(10),
        optimizer=opt.SGD(0.02)), epochs=8, good=0.8, batch_size=2),
    Configuration("fit, from a generator", lambda s: made(digits(s), *dense(48), L.Dense(10),
        optimizer=opt.RMSprop(2e-3)), epochs=12, good=0.85, feed=generated,
        fit=lambda: {"steps_per_epoch": 42}),
    Configuration("fit, the 70th percentile", lambda s: regression(table(s), *dense(48, 48), L.Dense(1),
        loss=quick, optimizer=opt.Adam(2e-3)), good=0.5),
    Configuration("fit, forecast", lambda s: regression(ahead(s), L.Conv1D(16, 5, activation="relu"),
        L.Flatten(), L.Dense(1)), good=0.7, epochs=15),
    Configuration("fit, alike or not", siamese, epochs=6, good=0.85),
    Configuration("fit, counts", lambda s: regression(counts(s), *dense(24), L.Dense(1, "exponential"),
        loss="poisson"), good=0.4),
    Configuration("fit, knows it already", continued, good=0.6, epochs=12),
    Configuration("fit, whole set at each step", lambda s: made(rings(s), *dense(32), L.Dense(2),
        optimizer=opt.Adam(2e-2)), epochs=80, batch_size=900),
    Configuration("fit, sums of marked numbers", lambda s: regression(adding(s), L.GRU(32), L.Dense(1),
        optimizer=opt.Adam(1e-2, clipnorm=1.0)), good=0.7, epochs=20, fit=patient),
)  # fmt: skip
