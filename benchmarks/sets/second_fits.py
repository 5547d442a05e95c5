"""Second configurations for `fit`, half of them healthy, written by someone who had read nothing of the detectors.

From what people report that goes wrong, and from what looks wrong but is not. Where no word of the vocabulary says
just what the cause is, a comment does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.sets.fresh_data import Arrays, halves
from benchmarks.sets.recipes import Configuration
from benchmarks.sets.second_data import (
    before,
    bits,
    cancer,
    colours,
    flipped,
    hills,
    many,
    moons,
    padded,
    pictures,
    seldom,
    series,
    shapes,
    texts,
    wine,
)  # fmt: skip

K, L, opt, losses = keras.Sequential, keras.layers, keras.optimizers, keras.losses
L2 = keras.regularizers.L2
Recipe = tuple[Any, Any]


# -- parts ------------------------------------------------------------------------------------------------------------
def built(
    data: Arrays,
    *parts: Any,
    optimizer: Any = "adam",
    loss: Any = None,
    metrics: Any = ("accuracy",),
    **how: Any,
) -> Recipe:
    """Layers one after another, compiled, and the data; the loss is that of logits of classes, unless given."""
    whole = data[0].dtype.kind != "f"
    model = K([keras.Input(data[0].shape[1:], dtype="int32" if whole else None), *parts])
    loss = losses.SparseCategoricalCrossentropy(from_logits=True) if loss is None else loss
    model.compile(optimizer, loss, metrics=list(metrics), **how)
    return model, data


def yes_or_no(data: Arrays, *parts: Any, loss: Any = None, **how: Any) -> Recipe:
    """Two classes by one logit."""
    loss = losses.BinaryCrossentropy(from_logits=True) if loss is None else loss
    metrics = [keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)]
    return built(data, *parts, loss=loss, metrics=metrics, **how)


def amount(data: Arrays, *parts: Any, loss: Any = "mse", **how: Any) -> Recipe:
    return built(data, *parts, loss=loss, metrics=["mse"], **how)


def hidden(*units: int, act: Any = "relu", **how: Any) -> list[Any]:
    return [L.Dense(n, act, **how) for n in units]


def seeing(out: int = 3, rate: float = 0.0) -> list[Any]:
    return [
        L.Conv2D(12, 3, activation="relu"),
        L.MaxPooling2D(),
        L.Conv2D(16, 3, activation="relu"),
        L.Flatten(),
        L.Dropout(rate),
        L.Dense(out),
    ]


# -- data -------------------------------------------------------------------------------------------------------------
def divided_as_integers(seed: int) -> Arrays:
    """Pixels divided by 16 as whole numbers, so that nearly all of them are zero; the rest was cut off before."""
    x, y, x_val, y_val = pictures(seed)
    one, other = (np.minimum((a * 16).astype(int), 15) // 16 for a in (x, x_val))
    return one.astype("float32"), y, other.astype("float32"), y_val


def numbers_of_things(seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    x = random.normal(size=(1500, 5))
    return halves(x, random.poisson(np.exp(0.5 * x[:, 0] - 0.6 * x[:, 1])).astype("float32"), seed)


def read_by_another(data: Arrays) -> Arrays:
    """Pictures in red, green, blue to train on, and in blue, green, red to validate."""
    x, y, x_val, y_val = data
    return x, y, x_val[..., ::-1].copy(), y_val


def with_extras(data: Arrays, seed: int) -> Arrays:
    """Columns twice, columns that are constant, and columns of noise."""
    random = np.random.default_rng(seed + 2)
    x, y, x_val, y_val = data

    def more(a: Any) -> Any:
        constant, noise = np.ones((len(a), 3)), random.normal(size=(len(a), 3))
        return np.concatenate([a, a[:, :6], a[:, :3], constant, noise], 1).astype("float32")

    return more(x), y, more(x_val), y_val


def trusted(seed: int) -> Arrays:
    """A third of the labels are wrong; the last column says how much a row is to be trusted."""
    (x, y, x_val, y_val), wrong = flipped(many(seed), 0.35, 3, seed)
    trust = np.where(wrong, 0.05, 1.0)[:, None]
    one, other = np.concatenate([x, trust], 1), np.concatenate([x_val, np.ones((len(x_val), 1))], 1)
    return one.astype("float32"), y, other.astype("float32"), y_val


def directions(seed: int) -> Arrays:
    """Directions in space, that come from others through a turn and a bend."""
    random = np.random.default_rng(seed)
    x, turn = random.normal(size=(1200, 5)), random.normal(size=(5, 3))
    y = np.tanh(x @ turn) + 0.1 * random.normal(size=(1200, 3))
    return halves(x, (y / np.linalg.norm(y, axis=1, keepdims=True)).astype("float32"), seed)


def wages(seed: int) -> Arrays:
    """What people earn: never nothing, some of them much."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(1500, 6))
    return halves(x, np.exp(3 + 0.4 * x[:, 0] + 0.3 * x[:, 1] + 0.05 * random.normal(size=1500)), seed)


def own_pixels(seed: int) -> Arrays:
    x, _, x_val, _ = pictures(seed)
    return x, x, x_val, x_val


def small_check(data: Arrays, rows: int) -> Arrays:
    x, y, x_val, y_val = data
    return x, y, x_val[:rows], y_val[:rows]


def in_thousands(data: Arrays) -> Arrays:
    """Inputs as they were measured; the targets are standardized."""
    x, y, x_val, y_val = data
    return x * 900 + 4000, y, x_val * 900 + 4000, y_val


def times(data: Arrays, scale: float) -> Arrays:
    x, y, x_val, y_val = data
    return x, y * scale, x_val, y_val * scale


# -- losses -----------------------------------------------------------------------------------------------------------
def by_the_book(y: Any, p: Any) -> Any:
    """The cross entropy as in a book: nothing keeps the logarithm from zero."""
    y = tf.cast(tf.reshape(y, tf.shape(p)), p.dtype)
    return -tf.reduce_mean(y * tf.math.log(p) + (1 - y) * tf.math.log(1 - p))


def smooth(y: Any, p: Any) -> Any:
    """The cross entropy to labels of which a fifth is given to all classes."""
    y = tf.one_hot(tf.cast(tf.reshape(y, (-1,)), tf.int32), 10)
    return losses.categorical_crossentropy(y, p, label_smoothing=0.2)


# -- models of more than a stack --------------------------------------------------------------------------------------
def attention_without_places(seed: int) -> Recipe:
    """Attention and a mean, neither of which knows what comes first."""
    data = before(seed)
    seen = keras.Input((12,), dtype="int32")
    x = L.Embedding(12, 16)(seen)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 8)(x, x))
    model = keras.Model(seen, L.Dense(2)(L.Dense(24, "relu")(L.GlobalAveragePooling1D()(x))))
    model.compile(
        opt.Adam(3e-3), losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model, data


class Places(keras.layers.Layer):
    """Adds what is learned for each place of a sequence."""

    def __init__(self, length: int, wide: int) -> None:
        super().__init__()
        self.length, self.table = length, L.Embedding(length, wide)

    def call(self, given: Any) -> Any:
        return given + self.table(keras.ops.arange(self.length))


def attention_with_places(seed: int) -> Recipe:
    data = before(seed)
    seen = keras.Input((12,), dtype="int32")
    x = Places(12, 16)(L.Embedding(12, 16)(seen))
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 8)(x, x))
    model = keras.Model(seen, L.Dense(2)(L.Dense(24, "relu")(L.GlobalMaxPooling1D()(x))))
    model.compile(
        opt.Adam(3e-3), losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model, data


def residual(seed: int, blocks: int = 5) -> Recipe:
    data = many(seed)
    seen = keras.Input((20,))
    x = L.Dense(24)(seen)
    for _ in range(blocks):
        x = x + L.Dense(24, kernel_initializer="zeros")(L.Dense(24, "relu")(L.LayerNormalization()(x)))
    model = keras.Model(seen, L.Dense(3)(x))
    model.compile(
        opt.Adam(2e-3), losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model, data


class Careful(keras.Model):
    """A model with a step of its own: two noisy views of each batch, and a penalty for saying different things."""

    def __init__(self) -> None:
        super().__init__()
        self.net = K([L.Dense(48, "relu"), L.Dropout(0.2), L.Dense(3)])

    def call(self, given: Any, training: bool = False) -> Any:
        return self.net(given, training=training)

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            one, other = (self(x + 0.2 * tf.random.normal(tf.shape(x)), training=True) for _ in range(2))
            loss = self.compute_loss(y=y, y_pred=one) + 0.3 * tf.reduce_mean((one - other) ** 2)
        of = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        for metric in self.metrics:
            _ = metric.update_state(loss) if metric.name == "loss" else metric.update_state(y, one)
        return self.get_metrics_result()


def careful(seed: int) -> Recipe:
    model = Careful()
    model.compile(
        opt.Adam(2e-3), losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model, many(seed)


# -- ways to feed and to fit ------------------------------------------------------------------------------------------
def weighed(weight: Callable[[Any], Any]) -> Callable[..., Any]:
    """Batches with a weight for each row."""

    def feed(x: Any, y: Any, size: int) -> Any:
        rows = tf.data.Dataset.from_tensor_slices((x, y, weight(x).astype("float32")))
        return rows.shuffle(len(x), seed=1).batch(size)

    return feed


def jittered(x: Any, y: Any, size: int) -> Any:
    """Batches without end, of rows that are moved a little each time."""
    rows = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=1).repeat()
    return rows.map(lambda a, b: (a + 0.15 * tf.random.normal(tf.shape(a)), b)).batch(size).prefetch(1)


def waves_of_rates(epoch: int, _: float) -> float:
    """Falls within six epochs, then starts anew."""
    return float(0.3 * 0.4 ** (epoch % 6))


def nervous() -> dict[str, Any]:
    return {"callbacks": [keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=0.5)]}


def stops_early() -> dict[str, Any]:
    return {"callbacks": [keras.callbacks.EarlyStopping("val_loss", patience=6, restore_best_weights=True)]}


def rate_by_epoch() -> dict[str, Any]:
    return {"callbacks": [keras.callbacks.LearningRateScheduler(waves_of_rates)]}


def only_zero_counts() -> dict[str, Any]:
    return {"class_weight": {0: 1.0, 1: 0.01}}


def of_rare() -> dict[str, Any]:
    return {"class_weight": {0: 0.53, 1: 8.0}}


def endless() -> dict[str, Any]:
    return {"steps_per_epoch": 28}


def area(data: Arrays, *parts: Any, loss: Any, **how: Any) -> Recipe:
    metrics = [keras.metrics.AUC(name="auc", from_logits=True)]
    return built(data, *parts, loss=loss, metrics=metrics, **how)


CONFIGURATIONS = (
    # -- that go wrong
    # The true cause is that the inputs are constant.
    Configuration("fit, divided as integers", lambda s: built(divided_as_integers(s), *hidden(48), L.Dense(10)),
        ("one_class_predicted", "underfitting", "plateau"), epochs=12, batch_size=32, good=0.8),
    Configuration("fit, blue for red", lambda s: built(read_by_another(colours(s)), *seeing()),
        ("validation_mismatch",), epochs=12, batch_size=32, good=0.8),
    Configuration("fit, later is higher", lambda s: amount(series(s, rise=4e-3, by_time=True), L.Flatten(),
        *hidden(32, 32, act="tanh"), L.Dense(1)), ("validation_mismatch",), epochs=15, batch_size=32, good=0.6),
    Configuration("fit, cross entropy by the book", lambda s: built(cancer(s), *hidden(64, 64),
        L.Dense(1, "sigmoid"), loss=by_the_book, optimizer=opt.Adam(1e-2), metrics=["binary_accuracy"]),
        ("nan_or_inf",), epochs=40, batch_size=16, good=0.8, judged_by="val_binary_accuracy"),
    Configuration("fit, tanh as a chance", lambda s: built(moons(s), *hidden(24), L.Dense(1, "tanh"),
        loss="binary_crossentropy", optimizer=opt.SGD(0.5), metrics=["binary_accuracy"]),
        ("loss_output_mismatch", "improper_activation"), epochs=20, batch_size=32, good=0.8,
        judged_by="val_binary_accuracy"),
    Configuration("fit, sequence not flattened", lambda s: amount(series(s), *hidden(24), L.Dense(1)),
        ("shape_broadcast",), epochs=10, batch_size=32, good=0.5),
    Configuration("fit, begins with zeros", lambda s: built(pictures(s), *hidden(48, 48, kernel_initializer="zeros"),
        L.Dense(10, kernel_initializer="zeros")), ("poor_initialization", "stagnant_weights", "dead_relu"),
        epochs=12, batch_size=32, good=0.8),
    Configuration("fit, rate of a millionth", lambda s: built(pictures(s), *hidden(48), L.Dense(10),
        optimizer=opt.Adam(1e-6)), ("learning_rate_too_low", "slow_convergence"), epochs=12, batch_size=32,
        good=0.8),
    Configuration("fit, convolution with a high rate", lambda s: built(shapes(s), *seeing(),
        optimizer=opt.RMSprop(0.2)), ("learning_rate_too_high", "exploding_gradient"), epochs=12, batch_size=32,
        good=0.7),
    Configuration("fit, weights decayed by half", lambda s: built(pictures(s), *hidden(48), L.Dense(10),
        optimizer=opt.AdamW(1e-3, weight_decay=500.0)), ("underfitting", "plateau"), epochs=12, batch_size=32,
        good=0.8),  # that is, a weight decay that is too strong
    # The true cause is the weights of the classes.
    Configuration("fit, weight only for the other class", lambda s: yes_or_no(moons(s, noise=0.35), *hidden(16),
        L.Dense(1)), ("one_class_predicted",), epochs=12, batch_size=32, good=0.75, fit=only_zero_counts),
    # The true cause is the weights of the rows, which make the rate too low.
    Configuration("fit, weights of rows that sum to one", lambda s: built(many(s), *hidden(32), L.Dense(3),
        optimizer=opt.SGD(0.1)), ("learning_rate_too_low", "slow_convergence"), epochs=15, batch_size=32,
        good=0.75, feed=weighed(lambda x: np.full(len(x), 1 / len(x)))),
    Configuration("fit, learns wrong labels by heart", lambda s: built(flipped(many(s, 400), 0.4, 3, s)[0],
        *hidden(256, 256), L.Dense(3), optimizer=opt.Adam(2e-3)), ("overfitting",), epochs=60, batch_size=32,
        good=0.75),
    Configuration("fit, recurrence over thousands", lambda s: amount(in_thousands(series(s, noise=0.1)),
        L.SimpleRNN(16), L.Dense(1)), ("unnormalized_input", "saturated_activation"), epochs=12, batch_size=32,
        good=0.6),
    Configuration("fit, fifty zeros after the text", lambda s: yes_or_no(padded(s, length=60),
        L.Embedding(60, 8), L.LSTM(12), L.Dense(1), optimizer=opt.Adam(2e-3)),
        ("vanishing_gradient", "underfitting", "plateau"), epochs=8,
        batch_size=32, good=0.75),  # the zeros are not masked
    Configuration("fit, normalized by batches of one", lambda s: built(many(s, 700), L.Dense(24),
        L.BatchNormalization(), L.ReLU(), L.Dense(3)), ("normalization_mismatch", "underfitting", "plateau"),
        epochs=3, batch_size=1, good=0.7),
    Configuration("fit, counts below zero", lambda s: amount(numbers_of_things(s), *hidden(24), L.Dense(1),
        loss="poisson", optimizer=opt.SGD(0.05)), ("improper_activation", "loss_output_mismatch", "nan_or_inf"),
        epochs=12, batch_size=32, good=0.3),
    Configuration("fit, code of one number", lambda s: amount(own_pixels(s), *hidden(48), L.Dense(1), *hidden(48),
        L.Dense(64)), ("underfitting", "plateau"), epochs=12, batch_size=32, good=0.75),
    Configuration("fit, attention without places", attention_without_places, ("underfitting", "plateau"),
        epochs=10, batch_size=32, good=0.8),
    # It was stopped too early.
    Configuration("fit, stopped at once", lambda s: built(pictures(s), *hidden(32), L.Dense(10),
        optimizer=opt.SGD(0.01)), ("underfitting", "slow_convergence", "learning_rate_too_low"), epochs=20,
        batch_size=8, good=0.8, fit=nervous),
    # -- that are well
    Configuration("fit, columns twice and constant", lambda s: yes_or_no(with_extras(cancer(s), s), *hidden(24),
        L.Dense(1)), epochs=15, batch_size=16, good=0.85),
    Configuration("fit, sixty wines", lambda s: built(wine(s, share=0.35), *hidden(24), L.Dropout(0.3), L.Dense(3),
        optimizer=opt.Adam(3e-3)), epochs=50, batch_size=8, good=0.85),
    Configuration("fit, rate in waves", lambda s: built(pictures(s), *hidden(48), L.Dense(10), optimizer="sgd"),
        epochs=24, batch_size=32, good=0.85, fit=rate_by_epoch),
    Configuration("fit, stops early", lambda s: built(shapes(s), *seeing(rate=0.3), optimizer=opt.Adam(3e-3)),
        epochs=30, batch_size=64, good=0.8, fit=stops_early),
    Configuration("fit, rows to be trusted", lambda s: built(trusted(s), L.Lambda(lambda x: x[:, :-1]), *hidden(32),
        L.Dense(3), optimizer=opt.Adam(2e-3)), epochs=15, batch_size=32, good=0.8,
        feed=weighed(lambda x: x[:, -1])),
    Configuration("fit, cosine of an angle", lambda s: built(directions(s), *hidden(32), L.Dense(3),
        loss=losses.CosineSimilarity(), metrics=[keras.metrics.CosineSimilarity(name="cosine")]), epochs=15,
        batch_size=32, good=0.85, judged_by="val_cosine"),
    Configuration("fit, percents of wages", lambda s: amount(wages(s), *hidden(32), L.Dense(1, "exponential"),
        loss="mape", optimizer=opt.Adam(5e-3)), epochs=20, batch_size=32, good=0.7),
    Configuration("fit, large targets, scaled within", lambda s: amount(times(hills(s), 300.0), *hidden(48, 48),
        L.Dense(1), L.Rescaling(300.0), optimizer=opt.Adam(2e-3)), epochs=20, batch_size=32, good=0.8),
    Configuration("fit, much noise on pictures", lambda s: built(shapes(s, 1600), L.GaussianNoise(0.3),
        *seeing(rate=0.5), optimizer=opt.Adam(3e-3)), epochs=15, batch_size=32, good=0.8),
    Configuration("fit, parity of five", lambda s: yes_or_no(bits(s, 5, 1), *hidden(48, 24, act="tanh"), L.Dense(1),
        optimizer=opt.SGD(0.05, momentum=0.9)), epochs=30, batch_size=32, good=0.9),
    Configuration("fit, many residual blocks", residual, epochs=10, batch_size=32, good=0.8),
    Configuration("fit, smoothed labels", lambda s: built(pictures(s), *hidden(48), L.Dense(10), L.Softmax(),
        loss=smooth, optimizer=opt.Adam(3e-3)), epochs=12, batch_size=32, good=0.85),
    Configuration("fit, moved a little each time", lambda s: built(pictures(s), *hidden(64), L.Dense(10),
        steps_per_execution=4), epochs=18, batch_size=32, good=0.85, feed=jittered, fit=endless),
    Configuration("fit, forty to validate", lambda s: built(small_check(many(s), 40), *hidden(24), L.Dropout(0.2),
        L.Dense(3), optimizer=opt.SGD(0.1)), epochs=20, batch_size=32, good=0.75),
    Configuration("fit, a step of its own", careful, epochs=12, batch_size=32, good=0.8),
    Configuration("fit, series of much noise", lambda s: amount(series(s, noise=0.8), L.Conv1D(8, 4,
        activation="relu"), L.Flatten(), L.Dropout(0.2), L.Dense(1), optimizer=opt.Adam(1e-3)), epochs=12,
        batch_size=32, good=0.2),
    Configuration("fit, attention with places", attention_with_places, epochs=10, batch_size=32, good=0.8),
    Configuration("fit, texts by fours", lambda s: built(texts(s, 900), L.Embedding(120, 8),
        L.GlobalAveragePooling1D(), L.Dropout(0.3), L.Dense(4), optimizer=opt.Adam(5e-3)), epochs=6, batch_size=4,
        good=0.75),
    Configuration("fit, seldom, weighted", lambda s: area(seldom(s, 0.06), *hidden(24), L.Dense(1),
        loss=losses.BinaryCrossentropy(from_logits=True), optimizer=opt.Adam(5e-3)), epochs=12, batch_size=32,
        good=0.85, judged_by="val_auc", fit=of_rare),
    Configuration("fit, strong decay", lambda s: built(cancer(s), *hidden(64, 64, kernel_regularizer=L2(0.02)),
        L.Dense(2), optimizer=opt.Adam(2e-3)), epochs=25, batch_size=32, good=0.85),
)  # fmt: skip
